//! The embedded BPF object: loading it, the maps under their pins, the programs ready to be attached.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aya::programs::{CgroupSockAddr, Program, ProgramError, SchedClassifier};
use aya::{EbpfError, EbpfLoader};

use crate::family::Families;
use crate::layout::{self, Layout};
use crate::sys;

/// The parser reads the object in place, so it must be aligned like its widest field.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!("../bpf/amphipod.bpf.o"));

/// A hook at the socket: program, the kernel's attach type.
pub const SOCKET_HOOKS: &[(&str, u32)] = &[
    ("amphi_bind4", 8),
    ("amphi_bind6", 9),
    ("amphi_connect4", 10),
    ("amphi_connect6", 11),
    ("amphi_sendmsg4", 14),
    ("amphi_sendmsg6", 15),
    ("amphi_recvmsg4", 19),
    ("amphi_recvmsg6", 20),
    ("amphi_getpeername4", 29),
    ("amphi_getpeername6", 30),
];

/// The verifiers of older ones refuse the programs: the stacks of five of their steps add up to more than 512 bytes there.
pub const OLDEST_KERNEL: (u32, u32) = (6, 6);

/// A hook on packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketHook {
    FromPod,
    FromHost,
    FromUplink,
    /// On the way out of the stack to the uplink.
    FromStack,
}

impl PacketHook {
    pub const ALL: [Self; 4] = [Self::FromPod, Self::FromHost, Self::FromUplink, Self::FromStack];

    pub fn program(self) -> &'static str {
        match self {
            Self::FromPod => "amphi_from_pod",
            Self::FromHost => "amphi_from_host",
            Self::FromUplink => "amphi_from_uplink",
            Self::FromStack => "amphi_from_stack",
        }
    }

    pub(crate) fn side(self) -> Side {
        match self {
            Self::FromStack => Side::Egress,
            _ => Side::Ingress,
        }
    }
}

/// The side of a device on which packets are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What comes in.
    Ingress,
    /// What goes out.
    Egress,
}

impl Side {
    /// The kernel's attach type of tcx.
    pub(crate) fn tcx(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }
}

pub(crate) const LOOPBACK: u32 = 1;

/// How packet programs are attached to devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// By links.
    Tcx,
    /// By filters of the device.
    Clsact,
}

impl Attachment {
    /// The better one that this kernel has.
    pub fn of_this_kernel() -> Self {
        if sys::attached_programs(LOOPBACK, Side::Ingress.tcx()).is_ok() { Self::Tcx } else { Self::Clsact }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the service path needs root (CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN)")]
    NotRoot,
    #[error("kernel {found} is too old: Linux 6.6 or newer is needed")]
    OldKernel { found: String },
    #[error("this kernel has no BTF (/sys/kernel/btf/vmlinux): one built with CONFIG_DEBUG_INFO_BTF=y is needed")]
    NoBtf,
    #[error("no cgroup2 at {}: mount one, or name it with --cgroup-root", .0.display())]
    NoCgroup2(PathBuf),
    #[error("cannot mount the BPF file system at {}", path.display())]
    Bpffs { path: PathBuf, source: io::Error },
    #[error("{} cannot be used", path.display())]
    Path { path: PathBuf, source: io::Error },
    #[error("the embedded BPF object does not load")]
    Object(#[from] Box<EbpfError>),
    #[error("the kernel refuses program {program}")]
    Program { program: &'static str, source: Box<ProgramError> },
    #[error("the embedded BPF object has no program {0}")]
    Missing(&'static str),
    #[error("map {map} cannot be opened")]
    Map { map: &'static str, source: io::Error },
}

/// The loaded programs; maps are reached by their pins.
#[derive(Debug)]
pub struct Programs {
    loaded: Vec<(&'static str, OwnedFd)>,
}

impl Programs {
    /// # Errors
    /// [`LoadError::Missing`] for a name that is no hook of this version.
    pub fn get(&self, name: &'static str) -> Result<&OwnedFd, LoadError> {
        self.named(name).ok_or(LoadError::Missing(name))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, &OwnedFd)> {
        self.loaded.iter().map(|(name, fd)| (*name, fd))
    }

    pub(crate) fn named(&self, name: &str) -> Option<&OwnedFd> {
        self.loaded.iter().find(|(program, _)| *program == name).map(|(_, fd)| fd)
    }
}

/// Where things are pinned, and in which layout.
#[derive(Debug, Clone)]
pub struct Pins {
    root: PathBuf,
    layouts: &'static [Layout],
    families: Families,
    attachment: Attachment,
}

impl Pins {
    pub fn new(root: &Path) -> Self {
        Self::in_layouts(root, layout::CURRENT)
    }

    pub fn in_layouts(root: &Path, layouts: &'static [Layout]) -> Self {
        Self { root: root.to_owned(), layouts, families: Families::V4, attachment: Attachment::Tcx }
    }

    /// With maps of the sizes for a node of these families.
    pub fn of(self, families: Families) -> Self {
        Self { families, ..self }
    }

    /// With packet programs attached this way.
    pub fn by(self, attachment: Attachment) -> Self {
        Self { attachment, ..self }
    }

    pub fn attachment(&self) -> Attachment {
        self.attachment
    }

    pub fn families(&self) -> Families {
        self.families
    }

    pub fn layouts(&self) -> &'static [Layout] {
        self.layouts
    }

    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// A name that is in no layout gets a pin that nobody makes.
    pub fn map(&self, name: &str) -> PathBuf {
        let layout = self.layouts.iter().find(|layout| layout.map == name);
        self.maps().join(layout.map_or_else(|| name.to_owned(), Layout::pin_name))
    }

    pub fn link(&self, name: &str) -> PathBuf {
        self.root.join("links").join(name)
    }
}

/// Checks that the machine can carry the service path, with one sentence for the first thing that is missing.
///
/// # Errors
/// For the first thing that is missing, with one sentence for its user: [`LoadError::NotRoot`], `OldKernel`, `NoBtf` or
/// `NoCgroup2`; `Path` where the kernel does not say which one it is.
pub fn check_machine(cgroup_root: &Path) -> Result<(), LoadError> {
    // SAFETY: the call has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return Err(LoadError::NotRoot);
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_err(|source| LoadError::Path { path: "/proc/sys/kernel/osrelease".into(), source })?;
    if kernel_version(&release) < OLDEST_KERNEL {
        return Err(LoadError::OldKernel { found: release.trim().to_owned() });
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Err(LoadError::NoBtf);
    }
    const CGROUP2: i64 = 0x6367_7270;
    match file_system(cgroup_root) {
        Ok(CGROUP2) => Ok(()),
        _ => Err(LoadError::NoCgroup2(cgroup_root.to_owned())),
    }
}

fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.trim().parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn file_system(path: &Path) -> io::Result<i64> {
    let folder = File::open(path)?;
    // SAFETY: all fields are integers.
    let mut facts: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor and a structure to fill.
    let result = unsafe { libc::fstatfs(std::os::fd::AsRawFd::as_raw_fd(&folder), &mut facts) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(facts.f_type) }
}

/// Makes `root` a folder of a BPF file system, mounting one there when it is not.
///
/// # Errors
/// [`LoadError::Bpffs`] where a folder cannot be made or the file system not be mounted. What was made stays; a repeat goes on
/// from there.
pub fn prepare_root(root: &Path) -> Result<(), LoadError> {
    const BPFFS: i64 = 0xcafe_4a11;
    let failed = |source| LoadError::Bpffs { path: root.to_owned(), source };
    let already =
        root.ancestors().find(|folder| folder.exists()).is_some_and(|near| file_system(near).ok() == Some(BPFFS));
    fs::create_dir_all(root).map_err(failed)?;
    if !already {
        mount_bpffs(root).map_err(failed)?;
    }
    for folder in ["maps", "links"] {
        fs::create_dir_all(root.join(folder)).map_err(failed)?;
    }
    Ok(())
}

fn mount_bpffs(root: &Path) -> io::Result<()> {
    let target =
        std::ffi::CString::new(root.as_os_str().as_encoded_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: terminated strings that outlive the call.
    let result =
        unsafe { libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, c"mode=0700".as_ptr().cast()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes every pin away and the mount, if one is there: links let go of their programs, maps of their contents.
///
/// # Errors
/// The first thing that cannot be removed; `ENOTEMPTY` where others keep something in the folder. A root that is not there is no
/// error, and a repeat goes on with what is left.
pub fn remove_root(root: &Path) -> io::Result<()> {
    for folder in ["links", "maps"] {
        match fs::remove_dir_all(root.join(folder)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let target =
        std::ffi::CString::new(root.as_os_str().as_encoded_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // Detached, for a copy of the mount in another mount namespace may be busy. Not a mount point (EINVAL) is fine: the root may
    // lie on a file system that somebody else mounted.
    // SAFETY: a terminated string that outlives the call.
    unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    match fs::remove_dir(root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Loads maps (adopting pinned ones) and programs.
///
/// # Errors
/// [`LoadError::Object`] where the object cannot be read or a map not be made, `Program` with the verifier's words for a program
/// that the kernel refuses, `Missing` where the object lacks a hook. Maps made until then stay pinned; nothing is attached.
pub fn load(pins: &Pins) -> Result<Programs, LoadError> {
    // It reads the kernel's BTF by itself.
    let mut loader = EbpfLoader::new();
    for layout in pins.layouts() {
        loader.map_pin_path(layout.map, pins.map(layout.map));
        if let Some(elements) = pins.families.elements(layout.map) {
            loader.map_max_entries(layout.map, elements);
        }
    }
    let (v4, v6) = pins.families.served();
    loader.override_global("SERVES_V4", &v4, true).override_global("SERVES_V6", &v6, true);
    let mut object = loader.load(&OBJECT.0).map_err(Box::new)?;
    let mut wanted = Vec::new();
    let names: Vec<_> =
        SOCKET_HOOKS.iter().map(|(name, _)| *name).chain(PacketHook::ALL.map(PacketHook::program)).collect();
    for (found, program) in object.programs_mut() {
        wanted.extend(names.iter().position(|name| *name == found).map(|place| (place, program)));
    }
    wanted.sort_by_key(|(place, _)| *place);
    let wanted = wanted.into_iter().map(|(place, program)| (names[place], program)).collect();
    let loaded = load_programs(wanted)?;
    match names.iter().find(|name| !loaded.iter().any(|(loaded, _)| loaded == *name)) {
        Some(missing) => Err(LoadError::Missing(missing)),
        None => Ok(Programs { loaded }),
    }
}

/// The kernel verifies on the calling thread, so all CPUs take part: this is most of a start's time.
fn load_programs(programs: Vec<(&'static str, &mut Program)>) -> Result<Vec<(&'static str, OwnedFd)>, LoadError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(programs.len());
    let left = Mutex::new(programs);
    // Those that take longest come last in the list, and so first off it.
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || {
        let mut loaded = Vec::new();
        while let Some((name, program)) = next() {
            let failed = |source| LoadError::Program { program: name, source: Box::new(source) };
            loaded.push((name, load_program(program).map_err(failed)?));
        }
        Ok::<_, LoadError>(loaded)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}

fn load_program(program: &mut Program) -> Result<OwnedFd, ProgramError> {
    let fd = match program {
        Program::SchedClassifier(program) => {
            load_classifier(program)?;
            program.fd()?
        }
        Program::CgroupSockAddr(program) => {
            load_socket_hook(program)?;
            program.fd()?
        }
        _ => return Err(ProgramError::UnexpectedProgramType),
    };
    fd.as_fd().try_clone_to_owned().map_err(ProgramError::IOError)
}

fn load_classifier(program: &mut SchedClassifier) -> Result<(), ProgramError> {
    program.load()
}

fn load_socket_hook(program: &mut CgroupSockAddr) -> Result<(), ProgramError> {
    program.load()
}

pub(crate) fn open<K: sys::Plain, V: sys::Plain>(pins: &Pins, map: &'static str) -> Result<sys::Map<K, V>, LoadError> {
    sys::Map::open(&pins.map(map)).map_err(|source| LoadError::Map { map, source })
}

pub(crate) fn open_shared(pins: &Pins, map: &'static str, length: usize) -> Result<sys::SharedArray, LoadError> {
    sys::SharedArray::open(&pins.map(map), length).map_err(|source| LoadError::Map { map, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_compare_by_number() {
        assert_eq!(kernel_version("6.18.44-fc-v669\n"), (6, 18));
        assert!(kernel_version("6.1.0-25-amd64") < OLDEST_KERNEL);
        assert!(kernel_version("6.12.9") >= OLDEST_KERNEL);
    }

    #[test]
    fn pins_carry_the_layout() {
        let pins = Pins::in_layouts(Path::new("/x"), layout::NEXT);
        assert_eq!(pins.map("SLOTS"), Path::new("/x/maps/v3_SLOTS"));
        assert_eq!(pins.map("SETS"), Path::new("/x/maps/v2_SETS"));
        assert_eq!(pins.map("ORIGINS"), Path::new("/x/maps/v1_ORIGINS"));
    }

    #[test]
    fn the_object_loads_and_its_maps_are_adopted() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("bpf");
        prepare_root(&root).unwrap();
        let pins = Pins::new(&root);
        let outcome = load(&pins).and_then(|_| {
            let map = open::<u32, u64>(&pins, "PODS")?;
            map.put(&7, &9, sys::Put::New).unwrap();
            load(&pins)?;
            Ok(open::<u32, u64>(&pins, "PODS")?.get(&7).unwrap())
        });
        remove_root(&root).unwrap();
        assert_eq!(outcome.unwrap_or_else(|error| panic!("{error:?}")), Some(9));
        assert!(!root.exists());
    }
}
