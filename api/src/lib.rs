//! The Kubernetes object model: one table of resource kinds, and the pure algorithms driven by it. No I/O.
//!
//! A request body becomes an object in this order: [`decode`] → [`convert`] → [`default`] → [`write`] (strategy) →
//! [`validate`] → [`managed`]; a patch goes through [`patch`] first. [`kind`] is the table, [`schema`] the types behind
//! it. Reads use [`selector`], [`table`], [`discovery`] and [`openapi`]. [`status`] is how everything fails, [`uid`] what
//! tells an object from its namesakes, [`schedule`] when CronJobs run.

/// A table about the kinds: Kubernetes' own, then ours.
macro_rules! data {
    ($file:literal) => {
        concat!(
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/data/", $file)),
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/data/own/", $file))
        )
    };
}

pub mod budget;
pub mod conditions;
pub mod convert;
pub mod custom;
pub mod decode;
pub mod default;
pub mod discovery;
pub mod encode;
pub mod kind;
pub mod kinds;
pub mod limit_range;
pub mod managed;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod pod_security;
pub mod quantity;
pub mod references;
pub mod schedule;
pub mod schema;
pub mod scope;
pub mod selector;
pub mod status;
pub mod sysctl;
pub mod table;
pub mod time;
pub mod uid;
pub mod validate;
mod value;
pub mod view;
pub mod write;
