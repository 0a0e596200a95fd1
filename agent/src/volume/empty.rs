//! emptyDir: room of the pod's own, on the disk or in memory.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use api::quantity::Quantity;

use super::{ContentError, Volumes};
use crate::disk;
use crate::model::EmptyDir;
use crate::room::Room;

impl Volumes<'_> {
    /// Made once: from then on it is the pod's, with whatever rights its containers give it.
    pub(super) fn empty_dir(&self, name: &str, empty: &EmptyDir) -> Result<PathBuf, ContentError> {
        let group = self.pod.spec.security_context.fs_group;
        let mode = if group.is_some() { 0o2777 } else { 0o777 };
        if empty.medium == "Memory" {
            let path = self.volatile.join(name);
            let size = empty.size_limit.as_ref().and_then(Quantity::of).map(|size| format!(",size={}", size.value()));
            let options = format!("mode={mode:o},gid={}{}", group.unwrap_or(0), size.unwrap_or_default());
            self.mount_memory(&path, &options)?;
            return Ok(path);
        }
        let path = self.durable.join(name);
        if !path.exists() {
            disk::create_folder(self.durable, 0o755)?;
            Room::at(self.durable)?.check(&path, 0)?;
            // What has its name is finished; no volume's name has a dot.
            let unfinished = self.durable.join(format!("{name}.new"));
            disk::create_folder(&unfinished, mode)?;
            std::os::unix::fs::chown(&unfinished, None, group)?;
            fs::set_permissions(&unfinished, fs::Permissions::from_mode(mode))?;
            fs::rename(&unfinished, &path)?;
        }
        Ok(path)
    }
}
