//! One way into the API for everybody inside Amphipod: controllers, scheduler, agent, service path and DNS.
//!
//! [`Client`] speaks through a [`Transport`]: the API server implements one for callers of its own process, [`https`] is
//! the one for everybody else, and a single contract test runs against both. On top of it stand the pieces that every reader
//! needs: [`informer`] keeps a decoded view of one kind, [`queue`] hands out keys to work on, [`events`] writes Events.
//!
//! Tasks: an informer's `run`, spawned by its owner; over HTTPS one task per connection. Channels: each informer announces
//! the revision it has reached through a `tokio::sync::watch`.
//!
//! *Architecture invariant:* what is here knows nothing of the API server's inside, so a node can be built without it.

mod caches;
mod client;
pub mod events;
pub mod follow;
pub mod heartbeat;
pub mod https;
pub mod informer;
mod object;
pub mod queue;
mod transport;
pub mod views;

pub use caches::{Caches, Kept};
pub use client::Client;
pub use informer::{Informer, View};
pub use object::{Event, Item, Key, List, Resource, Revision, ServedKind};
pub use transport::{Change, DeleteOptions, Deleted, EventStream, Propagation, Selector, Target, Transport, Wrote};
