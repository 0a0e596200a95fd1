//! The node agent's pod side.

pub mod boundary;
pub mod config;
mod disk;
mod embed;
pub mod image;
mod link;
mod model;
mod plan;
mod record;
