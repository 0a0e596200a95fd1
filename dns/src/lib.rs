//! The cluster's DNS server.
mod snapshot;
mod zone;
pub use snapshot::Snapshot;
