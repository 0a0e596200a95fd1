//! Images: names, registries, the store on disk, and mounting them as root file systems.
//!
//! `name` reads references as Kubernetes does; `registry` speaks to registries through configured endpoints; `unpack`
//! turns a layer's tar into a folder that overlayfs can use; `store` keeps blobs, layers and names, and shares
//! concurrent pulls; `mount` puts an image under a container.

mod credentials;
mod digest;
#[cfg(test)]
mod fuzz;
mod mount;
mod name;
mod registry;
mod store;
mod unpack;

pub use credentials::{Credential, of_secret};
pub use digest::{BadDigest, Digest};
pub use mount::{MountError, check_upper, mount_rootfs, mount_rootfs_for};
pub use name::{ImageName, InvalidName};
pub use registry::{Registries, RegistryError};
pub use store::{Image, ImageConfig, ImageError, ImageStore, PullPolicy};
