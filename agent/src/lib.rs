//! The node agent's pod side: from a Pod in the API to processes in containers, and back to its status.
//!
//! Entry point: [`Agent::start`]. Per pod UID it spawns one worker task (`worker`), fed by commands (the pod changed,
//! it is gone, a probe's verdict), by reports of its pod process (`link`), and by deadlines. A worker asks `plan` (pure)
//! what to do, does it (`volume`, `sandbox`, `image`, `launch`, `teardown`), and tells `status` (pure). What must survive is
//! in the `record`, fsynced before any kernel object exists; every single step is named in `step`. The rest of the node is behind the traits of [`boundary`].
//!
//! *Architecture invariant:* every name of a kernel object or folder derives from the pod's UID, so recovery is
//! "existing − recorded", and needs no memory of steps. Liveness of a pod process is a file lock, never a pid.

mod addresses;
mod admit;
mod agent;
mod apparmor;
pub mod boundary;
mod cgroups;
pub mod claim;
pub mod config;
mod dial;
mod disk;
mod door;
mod embed;
mod env;
mod exec;
mod files;
mod guard;
mod idmap;
pub mod image;
mod launch;
mod logs;
mod model;
mod node;
mod oci;
mod plan;
mod probe;
mod process_link;
mod record;
mod room;
mod sandbox;
mod status;
mod step;
mod storage;
mod teardown;
mod users;
mod volume;
mod worker;

pub use agent::{Agent, ResetError, StartError, remove_everything};
pub use config::Config;
pub use dial::DialError;
pub use exec::{AttachRequest, ExecError, ExecRequest, ExecSession, ExecUserError, Resizer, asked_user};
pub use logs::{LogError, LogOptions};
pub use pod::devices::try_on as try_device_rules;
pub use room::reserve_of as disk_reserve;
pub use status::OWN_CONDITIONS;
#[cfg(feature = "faults")]
pub use step::Step;

#[cfg(test)]
mod hostile;
