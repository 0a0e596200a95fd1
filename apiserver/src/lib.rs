//! The API engine: the store and what stands between it and everybody else.
//!
//! Entry point: [`server::Server`]. A request comes in through `http` (or [`client::Client`], in process: `local`), is
//! authenticated ([`authn`]) and authorised ([`authz`]), and becomes a call of the [`engine`], which asks [`admission`]. A write ends in the
//! [`store`], which holds it against what is there and commits it; what was committed goes through [`feed`] to the [`cache`],
//! from which every read and watch is answered.
//!
//! Tasks: the store's own (a writer thread, for the local one); one that removes old Events (`expiry`); one task per connection.
//! Channels: requests → store (bounded); store → watchers through the cache's history, which each watcher reads with its own
//! cursor.
//!
//! *Architecture invariant:* nothing outside this crate sees the store, and nothing in it polls.

pub mod admission;
mod aggregation;
pub mod authn;
pub mod authz;
mod bootstrap;
mod cache;
mod definitions;
pub mod engine;
mod expiry;
pub(crate) mod feed;
mod header;
mod http;
pub mod identity;
mod limits;
mod local;
mod memory;
pub mod nodes;
mod object;
pub mod pki;
mod reader;
mod request;
mod reviews;
pub mod server;
mod shared;
mod store;

pub use object::{Object, ObjectKey, Revision};
pub use shared::Anonymous;
pub use store::etcd::{Settings as EtcdSettings, Tls as EtcdTls};
/// The administrator's side of a store: files, not contents.
pub use store::{StoreError, tools as store_tools};
