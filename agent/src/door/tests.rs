//! How names are resolved; what hostile ones do to those who use the door is in `crate::hostile`.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use super::*;

/// A folder `root` with links of every kind, beside a file that none of them may reach.
fn tree() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/b/file"), "inside").unwrap();
    fs::write(folder.path().join("file"), "outside").unwrap();
    let absolute = root.join("a").display().to_string();
    for (name, target) in [
        ("relative", "a"),
        ("up", "a/../a"),
        ("chain", "relative/b"),
        ("absolute", &absolute),
        ("out", "../file"),
        ("host", "/etc"),
        ("loop", "loop"),
        ("dangling", "nowhere/deep"),
        ("a/back", "../a"),
    ] {
        symlink(target, root.join(name)).unwrap();
    }
    folder
}

fn inode(found: &Found) -> u64 {
    fs::metadata(found.path()).unwrap().ino()
}

#[test]
fn links_inside_a_volume_work_and_no_others() {
    let folder = tree();
    let path = folder.path().join("root");
    let root = Folder::open(&path).unwrap();
    let walk = |name: &str| root.walk(Path::new(name), Links::Contained(&path), Missing::Refuse);
    let wanted = fs::metadata(path.join("a/b/file")).unwrap().ino();
    for good in ["a/b/file", "relative/b/file", "up/b/file", "chain/file", "absolute/b/file", "a/back/b/file"] {
        assert_eq!(inode(&walk(good).unwrap()), wanted, "{good}");
    }
    assert_eq!(inode(&walk("").unwrap()), fs::metadata(&path).unwrap().ino());
    for bad in ["out", "host", "host/passwd", "loop", "dangling", "..", "a/../..", "a/b/file/x"] {
        assert!(walk(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_root_is_a_root() {
    let folder = tree();
    let path = folder.path().join("root");
    let root = Folder::open(&path).unwrap();
    let make = |name: &str, missing| root.walk(Path::new(name), Links::Rooted, missing);
    make("host/made", Missing::Folders(0o750)).unwrap();
    assert_eq!(fs::metadata(path.join("etc/made")).unwrap().permissions().mode() & 0o7777, 0o750);
    make("dangling/more", Missing::Folders(0o755)).unwrap();
    assert!(path.join("nowhere/deep/more").is_dir(), "what a link names is made where it points");
    make("out", Missing::File).unwrap();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "", "`..` stops at the root");
    make("/../../x/file", Missing::File).unwrap();
    assert!(path.join("x/file").is_file());
    assert!(make("loop/x", Missing::Folders(0o755)).is_err());
    assert_eq!(fs::read_to_string(folder.path().join("file")).unwrap(), "outside");
}

#[test]
fn what_a_link_in_a_volume_names_is_not_made() {
    let folder = tree();
    let path = folder.path().join("root");
    let make = |name: &str| {
        Folder::open(&path).unwrap().walk(Path::new(name), Links::Contained(&path), Missing::Folders(0o770))
    };
    assert!(make("dangling").is_err() && !path.join("nowhere").exists());
    make("relative/new/deep").unwrap();
    assert_eq!(fs::metadata(path.join("a/new/deep")).unwrap().mode() & 0o777, 0o770);
}

#[test]
fn a_link_is_put_in_place_of_anything() {
    let folder = tempfile::tempdir().unwrap();
    let door = Folder::open(folder.path()).unwrap();
    let name = OsStr::new("..data");
    for _ in 0..2 {
        door.put_link(OsStr::new("one"), name).unwrap();
        assert_eq!(door.link_target(name).unwrap(), "one");
    }
    door.remove(name, &Stop::default()).unwrap();
    fs::create_dir_all(folder.path().join("..data/deep")).unwrap();
    door.put_link(OsStr::new("two"), name).unwrap();
    assert_eq!(door.link_target(name).unwrap(), "two");
}

/// Tells the process that a test starts under limits of its own where to work.
const WITHIN_LIMITS: &str = "AMPHIPOD_WITHIN_LIMITS";

/// Runs `work` on a disk with what `make` made, in a process with few descriptors and little stack: this test, started
/// once more.
pub(super) fn within_limits(test: &str, make: impl FnOnce(&Path), work: impl FnOnce(&Path)) {
    if let Ok(folder) = std::env::var(WITHIN_LIMITS) {
        return work(Path::new(&folder));
    }
    let disk = crate::disk::TestDisk::new("size=256m,nr_inodes=1m");
    make(disk.path());
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -n 64 && exec \"$0\" --exact \"$1\""]).arg(std::env::current_exe().unwrap());
    let ended = limited.arg(test).env(WITHIN_LIMITS, disk.path()).env("RUST_MIN_STACK", "131072").output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
}

#[test]
fn a_path_is_as_long_as_the_kernel_takes_it_and_holds_one_folder() {
    let test = "door::tests::a_path_is_as_long_as_the_kernel_takes_it_and_holds_one_folder";
    let work = |folder: &Path| {
        let root = Folder::open(folder).unwrap();
        let walk = |path: &str, missing| root.walk(Path::new(path), Links::Rooted, missing);
        let long = "x/".repeat(2048);
        assert_eq!(long.len(), MAX_PATH + 1);
        let refused = walk(&long, Missing::Folders(0o755)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENAMETOOLONG));
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "nothing of it is made");
        walk(&long[..MAX_PATH - 1], Missing::Folders(0o755)).unwrap();
        let back = walk(&format!("{}{}", "x/".repeat(1000), "../".repeat(500)), Missing::Refuse).unwrap();
        assert_eq!(inode(&back), inode(&walk(&long[..1000], Missing::Refuse).unwrap()));
        symlink("/x/x/x/x", folder.join("link")).unwrap();
        let refused = walk(&format!("link/{}", &long[..MAX_PATH - 5]), Missing::Folders(0o755)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENAMETOOLONG), "links count");
    };
    within_limits(test, |_| {}, work);
}
