//! Every reader of client bytes, as functions that libFuzzer and a plain test call (`apiserver/tests/fuzz.rs`).
//!
//! `cargo +nightly fuzz run TARGET` in this folder runs one of them for hours; `corpus/TARGET` is what it starts from
//! and what the plain test replays. Keep there only what reaches code that nothing else there reaches.

mod targets;

pub use targets::{column, json, object, patch, path, selector, spdy, websocket, yaml};
