//! The cluster's DNS server, one per node.
//!
//! [`Snapshot`] is the content of the cluster zone, a pure function of Services and EndpointSlices; [`Server`] answers from the one
//! it was given last, and asks the node's own name servers about everything else. It spawns one task per protocol and one per
//! question that takes another server; all of them end with it or by their own deadline.

mod cache;
mod forward;
mod server;
mod snapshot;
mod zone;

pub use forward::upstreams_of;
pub use server::{Config, Server, ServerError};
pub use snapshot::Snapshot;
