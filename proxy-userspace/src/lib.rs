//! The service path of a node: Services and EndpointSlices become BPF maps.
//!
//! [`desired`] computes, purely, what the maps shall hold; [`Table`](table::Table) plans the steps from what they hold now;
//! [`Proxy`] loads the programs, owns the maps and carries the steps out. `Proxy` has one thread of its own, the sweeper, which
//! hands places of old endpoint sets back and drops flows that ended; it is woken by changes and every half minute. Maps and links
//! are pinned and taken up by the next process, also by one of another version: [`layout`] and `migrate`.

mod clsact;
pub mod cost;
pub mod desired;
mod family;
mod flows;
pub mod layout;
mod links;
mod migrate;
#[expect(unsafe_code, reason = "checks and mounts that only system calls give")]
pub mod object;
mod proxy;
#[expect(unsafe_code, reason = "wrappers of bpf(2) and its kin")]
pub mod sys;
pub mod table;

pub use desired::ExternalIps;
pub use family::{Addresses, Families};
pub use object::{Attachment, OLDEST_KERNEL, PacketHook};
pub use proxy::{Config, Pinned, Proxy, ProxyError, Refusals, SocketHooks};
pub use proxy_common::{Ip, Ip4, NodeConfig};
