//! The node agent's pod side.

pub mod boundary;
pub mod config;
mod disk;
mod embed;
mod env;
mod files;
pub mod image;
mod link;
mod model;
mod oci;
mod plan;
mod record;
mod status;
mod volume;
