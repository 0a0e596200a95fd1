//! The pod process: one small, single-threaded executable per running pod.
//!
//! It makes and holds the pod's namespaces, creates each container through libcontainer, reaps, writes and rotates
//! the CRI-format logs, and answers the agent on a Unix socket. It outlives the agent: exit codes wait here until the
//! agent has read them and says `Delete`.
//!
//! Without the feature `process` this crate is only [`protocol`], [`frame`], the names of [`step`]s and small helpers, which is all that
//! the agent links.
//!
//! *Architecture invariant:* no thread exists here, before or after a clone. libcontainer runs allocating code in a
//! cloned child, which may hang when another thread held a lock at that moment; hence no tokio and no helper threads.

pub mod capability;
pub mod devices;
pub mod faults;
pub mod frame;
pub mod mounts;
pub mod protocol;
pub mod step;

#[cfg(feature = "process")]
pub mod process;
