//! The Kubernetes object model: one table of resource kinds, and the pure algorithms driven by it. No I/O.

pub mod view;
