//! Thin wrappers of bpf(2): map access by plain bytes, links, pins. aya loads the object; what it lacks (replacing a cgroup link,
//! one way for all link kinds, batches) is here.

mod call;
mod raw;
mod shared;

use std::fs::File;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;

pub use call::{object_get, object_pin};
pub use raw::{RawMap, Shape};
pub use shared::{SharedArray, Words};

use call::{address, bpf};

const MAP_LOOKUP: u32 = 1;
const MAP_UPDATE: u32 = 2;
const MAP_DELETE: u32 = 3;
const MAP_LOOKUP_AND_DELETE: u32 = 21;
const PROG_TEST_RUN: u32 = 10;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;

/// Values that may be copied to and from the kernel byte by byte.
///
/// # Safety
/// The type has no padding and every bit pattern is a value of it.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($type:ty),*) => { $(
        // SAFETY: `repr(C)` of integers, explicit padding, size asserted where it is defined.
        unsafe impl Plain for $type {}
    )* };
}

plain!(u32, u64, [u64; 3], proxy_common::FrontendKey, proxy_common::AffinityKey, proxy_common::AffinityValue);
plain!(proxy_common::Ip4, proxy_common::Ip);

macro_rules! plain_in_both_families {
    ($($type:ident),*) => { $(
        // SAFETY: as above, for the two kinds of address that there are.
        unsafe impl<A: proxy_common::Addr> Plain for proxy_common::$type<A> {}
    )* };
}

plain_in_both_families!(Tuple, Flow, SnatPlace, NodeConfig);

#[repr(C)]
struct ElementAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
    rest: [u64; 4],
}

#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old: u32,
}

#[repr(C)]
struct TestRunAttr {
    program: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    rest: [u64; 4],
}

/// A map of the kernel with known key and value types.
#[derive(Debug)]
pub struct Map<K, V> {
    fd: OwnedFd,
    types: std::marker::PhantomData<fn(K) -> V>,
}

/// Whether an update may replace, or must.
#[derive(Debug, Clone, Copy)]
pub enum Put {
    Any = 0,
    New = 1,
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// # Errors
    /// As for [`object_get`]. That key and value have other sizes is not noticed.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { fd: object_get(path)?, types: std::marker::PhantomData })
    }

    fn attr(&self, key: u64, value: u64, flags: u64) -> ElementAttr {
        ElementAttr { map: self.fd.as_raw_fd() as u32, pad: 0, key, value, flags }
    }

    /// # Errors
    /// The kernel's, of a map that has no look-up. A key that is not there gives `None`.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        self.read(MAP_LOOKUP, key)
    }

    /// Takes an element out: what is given is what was there when it went.
    ///
    /// # Errors
    /// The kernel's, of a map such as an array, which nothing can be taken out of. A key that is not there gives `None`.
    pub fn take(&self, key: &K) -> io::Result<Option<V>> {
        self.read(MAP_LOOKUP_AND_DELETE, key)
    }

    fn read(&self, command: u32, key: &K) -> io::Result<Option<V>> {
        // SAFETY: any bit pattern is a value.
        let mut value: V = unsafe { zeroed() };
        let mut attr = self.attr(address(key), ptr::from_mut(&mut value) as u64, 0);
        // SAFETY: key and value have the sizes the map was made with, and outlive the call.
        match unsafe { bpf(command, &mut attr) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes an element: any before it is replaced, or is an error, as `put` says.
    ///
    /// # Errors
    /// `EEXIST` for [`Put::New`] where the key is there; `E2BIG` where a hash is full or an array has no such index; `ENOMEM`.
    pub fn put(&self, key: &K, value: &V, put: Put) -> io::Result<()> {
        let mut attr = self.attr(address(key), address(value), put as u64);
        // SAFETY: as for `get`.
        unsafe { bpf(MAP_UPDATE, &mut attr) }.map(drop)
    }

    /// Removing what is not there is no error; whether it was.
    ///
    /// # Errors
    /// `EINVAL` for an array, whose elements stay.
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        let mut attr = self.attr(address(key), 0, 0);
        // SAFETY: as for `get`.
        match unsafe { bpf(MAP_DELETE, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Every entry.
    ///
    /// # Errors
    /// `ENOSPC` where a bucket of a hash has more elements than one call takes; the kernel's, of a map that is not read in
    /// batches.
    pub fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        let shape = Shape { key: size_of::<K>(), value: size_of::<V>() };
        raw::read_batches(self.fd.as_fd(), shape, |keys, values| {
            let elements = keys.chunks_exact(shape.key).zip(values.chunks_exact(shape.value));
            // SAFETY: chunks of the types' sizes, in which any bit pattern is a value.
            entries.extend(elements.map(|(key, value)| unsafe {
                (ptr::read_unaligned(key.as_ptr().cast()), ptr::read_unaligned(value.as_ptr().cast()))
            }));
        })?;
        Ok(entries)
    }
}

impl<V: Plain> Map<u32, V> {
    /// The values of all CPUs at an index of a per-CPU array.
    ///
    /// # Errors
    /// `ENOENT` for an index beyond the array.
    pub fn per_cpu(&self, index: u32, cpus: usize) -> io::Result<Vec<V>> {
        // SAFETY: any bit pattern is a value.
        let mut values = vec![unsafe { zeroed::<V>() }; cpus];
        let mut attr = self.attr(address(&index), values.as_mut_ptr() as u64, 0);
        // SAFETY: the kernel writes one value, rounded up to eight bytes, for each possible CPU.
        unsafe { bpf(MAP_LOOKUP, &mut attr) }?;
        Ok(values)
    }
}

/// Waits until every program that was running when this was called has ended.
///
/// # Errors
/// `ENOSYS` or `EINVAL` where the kernel has no such barrier, as with `nohz_full` processors: then nothing was waited for.
pub fn wait_for_programs() -> io::Result<()> {
    const GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes two integers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The clock that programs read.
pub fn monotonic_nanoseconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a structure to fill; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// CPUs that may ever be there: so many values has an element of a per-CPU map.
pub fn possible_cpus() -> usize {
    let listed = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = listed.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), |last| last + 1)
}

/// Whether programs that others attached come before a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    Last,
    /// Only packet hooks have an order.
    First,
}

/// Attaches a program: `target` is a cgroup's descriptor or a device index, as the attach type demands.
///
/// # Errors
/// `EEXIST` where the device has this very program, `ENODEV` where there is no such device, `EBADF` where the descriptor is no
/// cgroup's, `EINVAL` where the program does not fit the attach type.
pub fn link_create(program: BorrowedFd<'_>, target: u32, attach_type: u32, rank: Rank) -> io::Result<OwnedFd> {
    const BEFORE: u32 = 1 << 3;
    let mut attr = LinkCreateAttr {
        program: program.as_raw_fd() as u32,
        target,
        attach_type,
        flags: if rank == Rank::First { BEFORE } else { 0 },
        relative: 0,
        pad: 0,
        revision: 0,
        rest: [0; 4],
    };
    // SAFETY: integers only; the result is a new descriptor of ours.
    unsafe { bpf(LINK_CREATE, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// The programs of a packet hook of a device in the order in which packets meet them, by the kernel's numbers.
///
/// # Errors
/// `EINVAL` where the kernel has no such hook, `ENODEV` where there is no such device, `ENOSPC` where it has more than 16 programs.
pub fn attached_programs(device: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    const PROG_QUERY: u32 = 16;
    /// `union bpf_attr` of the call.
    #[repr(C)]
    struct QueryAttr {
        target: u32,
        attach_type: u32,
        flags: [u32; 2],
        programs: u64,
        count: u32,
        pad: u32,
        rest: [u64; 4],
    }
    let mut programs = vec![0u32; 16];
    let (list, count) = (programs.as_mut_ptr() as u64, programs.len() as u32);
    let mut attr =
        QueryAttr { target: device, attach_type, flags: [0; 2], programs: list, count, pad: 0, rest: [0; 4] };
    // SAFETY: the list is as long as stated and outlives the call.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    programs.truncate(attr.count as usize);
    Ok(programs)
}

/// Replaces the program of a link without a gap.
///
/// # Errors
/// `ENOLINK` where what the link was on is gone, `EINVAL` where the program is of another kind. The link keeps the program it
/// has.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link: raw(link), program: raw(program), flags: 0, old: 0 };
    // SAFETY: integers only.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// The devices of the calling thread's network namespace, by index and name.
///
/// # Errors
/// `ENOBUFS` or `ENOMEM` where the kernel has no room to list them.
pub fn devices() -> io::Result<Vec<(u32, String)>> {
    // SAFETY: no preconditions; the list is given back below.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut next = list;
    // SAFETY: the list ends with an element of index 0, and names are terminated.
    while let device @ libc::if_nameindex { if_index: 1.., .. } = unsafe { *next } {
        // SAFETY: as above.
        let name = unsafe { std::ffi::CStr::from_ptr(device.if_name) };
        found.push((device.if_index, name.to_string_lossy().into_owned()));
        // SAFETY: not the last element.
        next = unsafe { next.add(1) };
    }
    // SAFETY: as it was given, and not used any more.
    unsafe { libc::if_freenameindex(list) };
    Ok(found)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

/// Runs a packet program on `packet`: its verdict, the packet afterwards, and nanoseconds per run.
///
/// # Errors
/// `EINVAL` for a packet shorter than an Ethernet header, `ENOSPC` where the program made it longer by more than 256 bytes.
pub fn test_run(program: BorrowedFd<'_>, packet: &[u8], repeat: u32) -> io::Result<(u32, Vec<u8>, u32)> {
    let mut out = vec![0u8; packet.len() + 256];
    // SAFETY: integers only.
    let mut attr: TestRunAttr = unsafe { zeroed() };
    attr.program = raw(program);
    attr.data_in = packet.as_ptr() as u64;
    attr.data_size_in = packet.len() as u32;
    attr.data_out = out.as_mut_ptr() as u64;
    attr.data_size_out = out.len() as u32;
    attr.repeat = repeat;
    // SAFETY: both buffers are of the stated sizes and outlive the call.
    unsafe { bpf(PROG_TEST_RUN, &mut attr) }?;
    out.truncate(attr.data_size_out as usize);
    Ok((attr.retval, out, attr.duration))
}

/// Of a loaded program: instructions verified over all paths, and bytes of machine code.
///
/// # Errors
/// `EINVAL` for a descriptor of no BPF object.
pub fn program_size(program: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    /// The kernel's `bpf_prog_info`, in words.
    const WORDS: usize = 58;
    const MACHINE_CODE: usize = 4;
    const VERIFIED: usize = 54;
    let mut info = [0u64; WORDS / 2];
    let length = size_of_val(&info) as u32;
    let mut attr = raw::InfoAttr { fd: raw(program), length, info: ptr::from_mut(&mut info) as u64 };
    // SAFETY: the structure is of the stated size and outlives the call; zeroed, it asks for no lists.
    unsafe { bpf(raw::OBJ_GET_INFO_BY_FD, &mut attr) }?;
    let word = |index: usize| (info[index / 2] >> (32 * (index % 2))) as u32;
    Ok((word(VERIFIED), word(MACHINE_CODE)))
}

/// The kernel's number of a network namespace, by which programs know whose socket they see.
///
/// # Errors
/// As for [`inside`], and `ENOPROTOOPT` before Linux 5.14.
pub fn netns_cookie(netns: &File) -> io::Result<u64> {
    inside(netns, || {
        // SAFETY: integers only; the descriptor is owned at once.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor of ours.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        socket_cookie(socket.as_raw_fd())
    })
}

fn socket_cookie(socket: RawFd) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: value and length are valid for writing and of the stated size.
    let result = unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, ptr::from_mut(&mut cookie).cast(), &mut length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Runs `work` in another network namespace, on a thread of its own that ends with it: no thread of ours ever changes place.
///
/// # Errors
/// `EINVAL` where the file is no network namespace and `EPERM` where it may not be entered, without `work` being begun; else what
/// `work` gives.
pub fn inside<T: Send>(netns: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let inner = scope.spawn(|| {
            // SAFETY: an open descriptor; only this short-lived thread moves.
            if unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) } < 0 {
                return Err(io::Error::last_os_error());
            }
            work()
        });
        inner.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
