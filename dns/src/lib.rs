//! The cluster's DNS server, one per node.
//!
//! [`Snapshot`] is the content of the cluster zone, a pure function of Services and EndpointSlices; [`Server`] answers from the one
//! it was given last, and asks the node's own name servers about everything else. Datagrams have plain threads, one per CPU, which
//! take and send many in one call: `quick` answers what pods ask all the time straight from bytes to bytes, the general code the
//! rest. Connections have a task, and so has each question that takes another server. All of them end with the server or by their
//! own deadline.

mod cache;
mod clients;
mod forward;
mod quick;
mod server;
mod shards;
mod snapshot;
#[expect(unsafe_code, reason = "many datagrams in one call")]
mod udp;
mod zone;

pub use forward::upstreams_of;
pub use server::{Config, Server, ServerError};
pub use snapshot::Snapshot;
