//! What the writer of a file needs of it: a boundary, behind which tests lose power.

use super::{Record, StoreError};
use crate::object::Revision;

/// The values on the disk, as the writer needs them.
pub(super) trait Values: Send + 'static {
    /// The revision of each key that is there.
    fn revisions(&mut self, keys: &[&str]) -> Result<Vec<Option<Revision>>, StoreError>;

    /// All of the batch or none of it, and that no revision up to `reserved` is given again; durable on return.
    fn commit(&mut self, batch: &[Record], last: Revision, reserved: Revision) -> Result<(), StoreError>;
}
