//! Every reader of client bytes, and of registries' layers, as functions that libFuzzer and plain tests call
//! (`apiserver/tests/fuzz.rs`, `agent/src/image/fuzz.rs`).
//!
//! `cargo +nightly fuzz run TARGET` in this folder runs one of them for hours; `corpus/TARGET` is what it starts from
//! and what the plain test replays. Keep there only what reaches code that nothing else there reaches.

mod layer;
mod targets;

pub use layer::layer;
pub use targets::{column, json, object, patch, path, selector, spdy, websocket, yaml};

/// The part of the agent that reads layers. All of it is a crate that builds executables for itself.
#[path = "../../agent/src"]
#[expect(dead_code, unused_imports, reason = "the agent uses all of it")]
mod agent {
    pub mod door;
    pub mod room;

    pub mod image {
        pub mod digest;
        pub mod unpack;
    }
}

use agent::{door, image, room};
