//! What a container or an image may leave where the agent looks next, tried on each user of the door: links of every
//! kind, FIFOs, devices, sockets, sparse files, and names that change while they are looked up.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, RenameFlags};

use crate::door::{Folder, Links, Missing, read_end};
use crate::launch::{find_part, make_part};
use crate::oci::user::Accounts;
use crate::volume::{Files, is_written};

const SECRET: &str = "root:x:0:0:the host's secret:/root:/bin/sh\n";
/// None of this waits for anybody.
const PATIENCE: Duration = Duration::from_secs(10);

/// What lies in the way.
#[derive(Clone, Copy, Debug)]
enum Trap {
    LinkToFile,
    LinkToFolder,
    LinkUp,
    LinkToItself,
    LinkToNowhere,
    LinkToProcess,
    Fifo,
    Device,
    Socket,
    Folder,
    Sparse,
}

const TRAPS: [Trap; 11] = [
    Trap::LinkToFile,
    Trap::LinkToFolder,
    Trap::LinkUp,
    Trap::LinkToItself,
    Trap::LinkToNowhere,
    Trap::LinkToProcess,
    Trap::Fifo,
    Trap::Device,
    Trap::Socket,
    Trap::Folder,
    Trap::Sparse,
];

impl Trap {
    /// Never to be opened, let alone read.
    fn is_no_file(self) -> bool {
        matches!(self, Trap::Fifo | Trap::Device | Trap::Socket | Trap::Folder)
    }
}

/// The folder that a container shapes, beside one of the host's.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("host/deep")).unwrap();
        fs::write(folder.path().join("host/secret"), SECRET).unwrap();
        fs::create_dir(folder.path().join("volume")).unwrap();
        World { folder }
    }

    fn volume(&self) -> PathBuf {
        self.folder.path().join("volume")
    }

    fn host(&self) -> PathBuf {
        self.folder.path().join("host")
    }

    fn set(&self, trap: Trap, name: &str) {
        let there = self.volume().join(name);
        fs::create_dir_all(there.parent().unwrap()).unwrap();
        let node = |kind, device| rustix::fs::mknodat(CWD, &there, kind, Mode::from_raw_mode(0o666), device).unwrap();
        match trap {
            Trap::LinkToFile => symlink(self.host().join("secret"), &there).unwrap(),
            Trap::LinkToFolder => symlink(self.host(), &there).unwrap(),
            Trap::LinkUp => symlink("../../../host", &there).or_else(|_| symlink("../host", &there)).unwrap(),
            Trap::LinkToItself => symlink(&there, &there).unwrap(),
            Trap::LinkToNowhere => symlink(self.host().join("made"), &there).unwrap(),
            Trap::LinkToProcess => symlink("/proc/self/root", &there).unwrap(),
            Trap::Fifo => node(FileType::Fifo, 0),
            // Would be read for ever.
            Trap::Device => node(FileType::CharacterDevice, rustix::fs::makedev(1, 5)),
            Trap::Socket => drop(UnixListener::bind(&there).unwrap()),
            Trap::Folder => fs::create_dir(&there).unwrap(),
            Trap::Sparse => fs::File::create(&there).unwrap().set_len(22 << 30).unwrap(),
        }
    }

    fn check_host(&self, what: &str) {
        let names: Vec<_> = fs::read_dir(self.host()).unwrap().map(|item| item.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{what}: {names:?}");
        assert_eq!(fs::read_to_string(self.host().join("secret")).unwrap(), SECRET, "{what}");
        assert_eq!(fs::read_dir(self.host().join("deep")).unwrap().count(), 0, "{what}");
    }
}

/// Runs a user with a trap at each of the names it looks at.
fn try_all(user: &'static str, names: &'static [&'static str], run: fn(&World, Trap)) {
    for (trap, name) in TRAPS.iter().flat_map(|trap| names.iter().map(move |name| (*trap, *name))) {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let world = World::new();
            world.set(trap, name);
            run(&world, trap);
            world.check_host(&format!("{user}: {trap:?} at {name}"));
            sender.send(())
        });
        let ended = receiver.recv_timeout(PATIENCE);
        ended.unwrap_or_else(|error| panic!("{user}: {trap:?} at {name}: {error}"));
    }
}

#[test]
fn accounts() {
    try_all("accounts", &["etc/passwd", "etc/group", "etc"], |world, trap| match Accounts::read(&world.volume()) {
        Ok(accounts) => {
            let at_etc = world.volume().join("etc").symlink_metadata().is_ok_and(|meta| !meta.is_dir());
            assert!(!trap.is_no_file() || at_etc || matches!(trap, Trap::Folder), "{accounts:?}");
            assert!(!format!("{accounts:?}").contains("secret"));
        }
        Err(error) => assert!(!format!("{error:?}").contains("secret")),
    });
}

#[test]
fn termination_messages() {
    try_all("termination message", &["message"], |world, trap| {
        let text = read_end(&world.volume().join("message"), 4096);
        match trap {
            Trap::Sparse => assert_eq!(text.unwrap(), vec![0; 4096]),
            _ => assert!(text.is_err(), "{text:?}"),
        }
    });
}

#[test]
fn logs() {
    try_all("logs", &["0.log", "0.log.000001"], |world, trap| {
        let text = crate::logs::last_lines(&world.volume().join("0.log"), 80, 2048);
        assert!(text.is_empty(), "{trap:?}: {text:?}");
    });
}

#[test]
fn volumes_of_the_api() {
    let names = &["..data", "..new", "key", "sub", "..123", "stale"];
    try_all("API volume", names, |world, _| {
        let volume = Folder::open(&world.volume()).unwrap();
        for content in ["one", "two"] {
            let mut files = Files::default();
            files.add("key", content.into(), 0o644).unwrap();
            files.add("sub/key", content.into(), 0o644).unwrap();
            files.write(&volume, Some(7)).unwrap();
            for path in ["key", "sub/key"] {
                assert_eq!(fs::read_to_string(world.volume().join(path)).unwrap(), content);
            }
            assert!(is_written(&volume));
        }
    });
}

#[test]
fn a_data_link_that_is_not_ours_is_not_followed() {
    for target in ["/srv", "../host", "..", "..1/../../host", "...", "..1x", "."] {
        let world = World::new();
        fs::create_dir(world.volume().join("..1")).unwrap();
        symlink(target, world.volume().join("..data")).unwrap();
        let volume = Folder::open(&world.volume()).unwrap();
        assert!(!is_written(&volume), "{target}");
        Files::default().write(&volume, None).unwrap();
        world.check_host(target);
        assert!(!world.volume().join("..1").exists(), "an older one of ours goes");
    }
}

#[test]
fn parts_of_volumes() {
    try_all("subPath", &["x"], |world, _| {
        for path in ["x", "x/canary", "x/deep", "x/deep/canary", "x/../../host/canary", "y/x"] {
            for found in [find_part(&world.volume(), path, Missing::Refuse), make_part(&world.volume(), path)] {
                let Ok(found) = found else { continue };
                let real = fs::read_link(found.path()).unwrap();
                assert!(real.starts_with(fs::canonicalize(world.volume()).unwrap()), "{}", real.display());
            }
        }
    });
}

#[test]
fn mount_points_and_working_folders() {
    try_all("mount points", &["data", "var"], |world, _| {
        let root = Folder::open(&world.volume()).unwrap();
        for path in ["/data", "/var/lib/x", "/data/../var/y"] {
            for missing in [Missing::Folders(0o755), Missing::File] {
                if let Ok(found) = root.walk(Path::new(path), Links::Rooted, missing) {
                    let real = fs::read_link(found.path()).unwrap();
                    assert!(real.starts_with(fs::canonicalize(world.volume()).unwrap()), "{}", real.display());
                }
            }
        }
    });
}

/// Two names that a thread exchanges as fast as it can.
struct Race {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Race {
    /// A folder, and a link to the host's.
    fn begin(world: &World, name: &str) -> Race {
        let (one, other) = (world.volume().join(name), world.volume().join("other"));
        let (host, names) = (world.host(), (one.clone(), other.clone()));
        let set = move || {
            // One of them may be there already.
            let _ = fs::create_dir(&names.0);
            let _ = symlink(&host, &names.1);
        };
        fs::create_dir_all(one.parent().unwrap()).unwrap();
        set();
        Race::between(one, other, set)
    }

    /// `again` puts back what was taken away meanwhile: whoever writes there may clear its way.
    fn between(one: PathBuf, other: PathBuf, again: impl Fn() + Send + 'static) -> Race {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE) {
                    Err(rustix::io::Errno::NOENT) => again(),
                    outcome => outcome.unwrap(),
                }
            }
        });
        Race { stop, thread: Some(thread) }
    }
}

impl Drop for Race {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

#[test]
fn exchanged_names_lead_nowhere_else() {
    let world = World::new();
    let volume = fs::canonicalize(world.volume()).unwrap();
    let race = Race::begin(&world, "x");
    let root = Folder::open(&volume).unwrap();
    let deadline = Instant::now() + Duration::from_secs(2);
    let (mut found, mut refused, mut round) = (0, 0, 0_u32);
    while Instant::now() < deadline {
        round += 1;
        let path = format!("x/deep/{round}");
        let rooted = root.walk(Path::new(&path), Links::Rooted, Missing::Folders(0o755));
        for result in [make_part(&volume, &path), find_part(&volume, "x", Missing::Refuse), rooted] {
            match result {
                Ok(part) => {
                    found += 1;
                    let real = fs::read_link(part.path()).unwrap();
                    assert!(real.starts_with(&volume), "{}", real.display());
                }
                Err(_) => refused += 1,
            }
        }
    }
    drop(race);
    assert!(found > 0 && refused > 0, "found {found}, refused {refused}: nothing was exchanged");
    world.check_host("race");
}

#[test]
fn exchanged_files_are_not_read_as_one_another() {
    for trap in TRAPS {
        let world = World::new();
        let file = world.volume().join("etc/passwd");
        fs::create_dir_all(world.volume().join("etc")).unwrap();
        fs::write(&file, "2024-01-02T03:04:05Z stdout F own\n").unwrap();
        world.set(trap, "etc/other");
        let race = Race::between(file.clone(), world.volume().join("etc/other"), || {});
        let deadline = Instant::now() + Duration::from_millis(200);
        while Instant::now() < deadline {
            let message = read_end(&file, 4096).unwrap_or_default();
            let log = crate::logs::last_lines(&file, 80, 2048);
            let accounts = Accounts::read(&world.volume()).unwrap_or_default();
            let all = [message, log, accounts.passwd.into_bytes()].concat();
            assert!(!String::from_utf8_lossy(&all).contains("secret"), "{trap:?}");
        }
        drop(race);
        world.check_host(&format!("{trap:?}"));
    }
}

#[test]
fn content_is_written_into_the_volume_while_its_names_change() {
    let world = World::new();
    let race = Race::begin(&world, "sub");
    let volume = Folder::open(&world.volume()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(1);
    while Instant::now() < deadline {
        let mut files = Files::default();
        files.add("sub/secret", b"overwritten".to_vec(), 0o644).unwrap();
        // What is in the way may make it fail; it must not make it stray.
        let _ = files.write(&volume, None);
    }
    drop(race);
    world.check_host("volume race");
}
