//! The cluster's DNS server, one per node.
//!
//! [`Snapshot`] is the content of the cluster zone, a pure function of namespaces, Services and EndpointSlices; [`Server`] answers
//! from the one it was given last, and asks other name servers about everything else. Datagrams have plain threads, one per CPU,
//! which take and send many in one call: `quick` answers what pods ask all the time straight from bytes to bytes, the general code
//! the rest. That is hickory's: `names` is a request handler as its servers know it, `forward` asks through its pools of name
//! servers and keeps what they say in its cache. Connections have a task, and so has each question that takes another server. All
//! of them end with the server or by their own deadline.

mod autopath;
mod clients;
mod forward;
mod kept;
mod loops;
mod message;
mod metrics;
mod names;
mod query;
mod quick;
mod server;
mod shards;
mod snapshot;
mod sockets;
mod tcp;
#[expect(unsafe_code, reason = "many datagrams in one call")]
mod udp;
mod zone;

pub use autopath::Autopath;
pub use forward::{Stub, upstreams_of};
pub use kept::{Keeper, Listening, keep_sockets, let_go};
pub use names::QueryLog;
pub use query::{QueryError, Reply, query};
pub use server::{Config, Server, ServerError};
pub use snapshot::Snapshot;
pub use sockets::Sockets;
