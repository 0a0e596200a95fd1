//! Where cgroup hierarchies are mounted, and what a container's cgroups say about it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::mounts::{self, Mount};

/// The cgroup folders of one process, as absolute paths.
#[derive(Debug, Default)]
pub struct Membership {
    pub folders: Vec<Folder>,
}

#[derive(Debug, PartialEq)]
pub struct Folder {
    /// Comma-separated v1 controllers (`cpu,cpuacct`, `name=systemd`); empty for cgroup2.
    pub controllers: String,
    pub path: PathBuf,
}

impl Membership {
    /// The cgroups of a running process.
    pub fn of(pid: i32) -> io::Result<Membership> {
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        Ok(Membership { folders: folders(&cgroups, &mounts::read()?) })
    }

    /// The files through which a process joins all of them, opened now and written later.
    pub fn join_files(&self) -> io::Result<Vec<File>> {
        let open = |folder: &Folder| OpenOptions::new().write(true).open(folder.path.join("cgroup.procs"));
        self.folders.iter().map(open).collect()
    }

    /// The cgroup2 folder.
    pub fn unified(&self) -> Option<&Path> {
        self.folders.iter().find(|folder| folder.controllers.is_empty()).map(|folder| folder.path.as_path())
    }

    /// Moves the process into a cgroup2 folder of this name below its own.
    pub fn move_down(&mut self, name: &str, pid: i32) -> io::Result<()> {
        for folder in self.folders.iter_mut().filter(|folder| folder.controllers.is_empty()) {
            folder.path.push(name);
            move_into(&folder.path, pid)?;
        }
        Ok(())
    }

    /// How many processes the kernel killed here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let v1 = self.folders.iter().find(|folder| folder.controllers.split(',').any(|name| name == "memory"));
        let v2 = self.folders.iter().find(|folder| folder.controllers.is_empty());
        let count = |folder: &Folder, file: &str| {
            fs::read_to_string(folder.path.join(file)).ok().and_then(|text| field(&text, "oom_kill"))
        };
        v1.and_then(|folder| count(folder, "memory.oom_control"))
            .or_else(|| v2.and_then(|folder| count(folder, "memory.events")))
            .unwrap_or(0)
    }

    /// Every process of the container: its own cgroup is the one whose path ends in `name`.
    pub fn processes(&self, name: &str) -> Vec<i32> {
        let own = self.folders.iter().find(|folder| folder.path.ends_with(name));
        let text = own.and_then(|folder| fs::read_to_string(folder.path.join("cgroup.procs")).ok()).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.find(|(key, _)| *key == name).and_then(|(_, value)| value.trim().parse().ok())
}

/// Joins `/proc/<pid>/cgroup` with the mounts.
fn folders(cgroups: &str, mounts: &[Mount]) -> Vec<Folder> {
    let folder = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let mount = mounts.iter().find(|mount| serves(mount, controllers))?;
        let below = Path::new(path).strip_prefix(&mount.root).ok()?;
        Some(Folder { controllers: controllers.to_owned(), path: mount.point.join(below) })
    };
    cgroups.lines().filter_map(folder).collect()
}

/// Whether a hierarchy is that of these controllers (none: cgroup2).
fn serves(mount: &Mount, controllers: &str) -> bool {
    match controllers {
        "" => mount.kind == "cgroup2",
        names => mount.kind == "cgroup" && names.split(',').all(|name| mount.has(name)),
    }
}

/// Creates a cgroup2 folder and moves this process into it.
pub fn join(folder: &Path) -> io::Result<()> {
    move_into(folder, 0)
}

/// Creates a cgroup2 folder and moves a process into it, 0 being this one.
pub fn move_into(folder: &Path, pid: i32) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("cgroup.procs"), pid.to_string())
}

/// Makes the folders above a container's on a machine where cgroup2 is all there is. libcgroups looks before it makes
/// each, so that of two pods that begin at once one would fail on what the other has just made.
pub fn make_parents(cgroups_path: &Path) -> io::Result<()> {
    let Some(root) = unified_root(&mounts::read()?) else { return Ok(()) };
    let below = cgroups_path.strip_prefix("/").unwrap_or(cgroups_path);
    below.parent().map_or(Ok(()), |parent| fs::create_dir_all(root.join(parent)))
}

/// The v1 hierarchies: their controllers, and where they are mounted.
pub fn hierarchies(mounts: &[Mount]) -> Vec<(Vec<String>, PathBuf)> {
    let v1 = mounts.iter().filter(|mount| mount.kind == "cgroup");
    let is_controller = |option: &&String| !["rw", "ro", "xattr"].contains(&option.as_str());
    v1.map(|mount| (mount.options.iter().filter(is_controller).cloned().collect(), mount.point.clone())).collect()
}

/// The mount of cgroup2 where no v1 controller is mounted.
pub fn unified_root(mounts: &[Mount]) -> Option<PathBuf> {
    let mut cgroups = mounts.iter().filter(|mount| mount.is_cgroup());
    let first = cgroups.next()?;
    (first.kind == "cgroup2" && cgroups.all(|mount| mount.kind == "cgroup2")).then(|| first.point.clone())
}

/// Removes a folder whose processes have been killed: the kernel lets it go when the last has ended.
pub fn remove(folder: &Path) -> io::Result<()> {
    const TRIES: u32 = 50;
    for tried in 1.. {
        match fs::remove_dir(folder) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && tried < TRIES => {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => break,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 23 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 23 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
34 23 0:30 / /tmp rw - tmpfs tmpfs rw
";

    #[test]
    fn hybrid_paths() {
        let found = folders(
            "9:name=systemd:/a\n4:memory:/pods/x\n1:cpu,cpuacct:/pods/x\n0::/amphipod/p\n",
            &mounts::parse(MOUNTS.as_bytes()),
        );
        let paths: Vec<_> = found.iter().map(|folder| folder.path.to_str().unwrap()).collect();
        assert_eq!(
            paths,
            [
                "/sys/fs/cgroup/systemd/a",
                "/sys/fs/cgroup/memory/pods/x",
                "/sys/fs/cgroup/cpu,cpuacct/pods/x",
                "/sys/fs/cgroup/unified/amphipod/p"
            ]
        );
    }

    #[test]
    fn a_mount_of_a_subtree_shortens_the_path() {
        let mounts = "30 23 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        let found = folders("0::/docker/abc/pods/x\n", &mounts::parse(mounts.as_bytes()));
        assert_eq!(found[0].path, Path::new("/sys/fs/cgroup/pods/x"));
    }

    #[test]
    fn parents_are_made_only_where_cgroup2_is_all_there_is() {
        assert_eq!(unified_root(&mounts::parse(MOUNTS.as_bytes())), None);
        let pure = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n34 23 0:30 / /tmp rw - tmpfs tmpfs rw\n";
        assert_eq!(unified_root(&mounts::parse(pure.as_bytes())).as_deref(), Some(Path::new("/sys/fs/cgroup")));
    }

    #[test]
    fn own_cgroups_of_this_machine_exist() {
        let own = Membership::of(std::process::id() as i32).unwrap();
        assert!(!own.folders.is_empty());
        assert!(own.folders.iter().all(|folder| folder.path.is_dir()), "{own:?}");
    }

    #[test]
    fn oom_counter_is_read_by_name() {
        assert_eq!(field("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(field("low 0\n", "oom_kill"), None);
    }
}
