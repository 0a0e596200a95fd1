//! What a container sees below /sys/fs/cgroup where version 1 controllers hold its limits.
//!
//! libcontainer would mount each hierarchy for writing, whatever the configuration says, so that a container could lift
//! its own limits; the first process's own hierarchies it looks up by a process id that means another process, or none,
//! when the container joins a PID namespace. So its one mount is replaced by plain binds of the container's own folders.

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{Mount, MountBuilder, Spec};

use super::cgroup;
use crate::mounts;

/// Controllers for which libcgroups makes a folder.
const LIMITING: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "hugetlb",
    "memory",
    "pids",
    "perf_event",
    "blkio",
    "net_prio",
    "net_cls",
    "freezer",
];

/// Replaces the configuration's mount of cgroups; whether there was one to replace.
pub fn show_own(spec: &mut Spec) -> io::Result<bool> {
    let table = mounts::read()?;
    if cgroup::unified_root(&table).is_some() {
        return Ok(false);
    }
    let own = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone()).unwrap_or_default();
    let Some(mounts) = spec.mounts_mut() else { return Ok(false) };
    let Some(place) = mounts.iter().position(|mount| mount.typ().as_deref() == Some("cgroup")) else {
        return Ok(false);
    };
    let binds = binds(&mounts[place], &own, &cgroup::hierarchies(&table)).map_err(io::Error::other)?;
    mounts.splice(place..=place, binds);
    Ok(true)
}

/// A small file system with one folder a hierarchy, by each of the names under which it is known.
fn binds(wanted: &Mount, own: &Path, hierarchies: &[(Vec<String>, PathBuf)]) -> Result<Vec<Mount>, OciSpecError> {
    let below = own.strip_prefix("/").unwrap_or(own);
    let options = |list: &[&str]| list.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>();
    let base = MountBuilder::default().source("tmpfs").typ("tmpfs").destination(wanted.destination().clone());
    let mut mounts = vec![base.options(options(&["nosuid", "noexec", "nodev", "mode=755", "size=64k"])).build()?];
    let mut access = options(&["bind"]);
    access.extend(wanted.options().iter().flatten().cloned());
    for (controllers, point) in hierarchies {
        if !controllers.iter().any(|name| LIMITING.contains(&name.as_str())) {
            continue;
        }
        let folder = point.file_name().map(|name| name.to_string_lossy().into_owned());
        let mut names: Vec<String> = folder.into_iter().chain(controllers.iter().cloned()).collect();
        names.dedup();
        for name in names {
            let place = wanted.destination().join(name);
            let bind = MountBuilder::default().source(point.join(below)).typ("bind").destination(place);
            mounts.push(bind.options(access.clone()).build()?);
        }
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hierarchy_is_shown_by_all_its_names() {
        let wanted: Mount = serde_json::from_str(
            r#"{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "ro"]}"#,
        )
        .unwrap();
        let hierarchies = [
            (vec!["cpu".to_owned(), "cpuacct".to_owned()], PathBuf::from("/c/cpu,cpuacct")),
            (vec!["memory".to_owned()], PathBuf::from("/c/memory")),
            (vec!["name=systemd".to_owned()], PathBuf::from("/c/systemd")),
        ];
        let made = binds(&wanted, Path::new("/pods/x"), &hierarchies).unwrap();
        let shown: Vec<_> = made.iter().map(|mount| mount.destination().to_str().unwrap()).collect();
        let below = |name: &str| format!("/sys/fs/cgroup/{name}");
        let names = ["cpu,cpuacct", "cpu", "cpuacct", "memory"].map(below);
        assert_eq!(shown[0], "/sys/fs/cgroup");
        assert_eq!(shown[1..], names);
        assert_eq!(made[4].source().as_deref(), Some(Path::new("/c/memory/pods/x")));
        assert_eq!(made[4].options().as_deref().unwrap(), ["bind", "nosuid", "ro"]);
    }
}
