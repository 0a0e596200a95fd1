//! Maps whose types are known only at run time, read and written as bytes, many elements a call.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::call::{address, bpf, object_get};
use super::{ElementAttr, Put};
use crate::layout::Raw;

pub(super) const OBJ_GET_INFO_BY_FD: u32 = 15;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE: u32 = 2;
/// Elements a call. A bucket of a hash must fit whole.
const BATCH: usize = 4096;

const ARRAY: u32 = 2;
const PER_CPU_HASH: u32 = 5;
const PER_CPU_ARRAY: u32 = 6;
const LRU_PER_CPU_HASH: u32 = 10;

#[repr(C)]
pub(super) struct InfoAttr {
    pub fd: u32,
    pub length: u32,
    pub info: u64,
}

/// The beginning of what the kernel tells of a map.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[repr(C)]
struct BatchAttr {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Sizes of keys and values as calls exchange them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub key: usize,
    pub value: usize,
}

#[derive(Debug)]
pub struct RawMap {
    fd: OwnedFd,
    kind: u32,
    elements: u32,
    shape: Shape,
}

impl RawMap {
    /// Opens the map under a pin; `cpus` are the machine's [possible ones](super::possible_cpus).
    ///
    /// # Errors
    /// As for [`object_get`].
    pub fn open(path: &Path, cpus: usize) -> io::Result<Self> {
        Self::of(object_get(path)?, cpus)
    }

    fn of(fd: OwnedFd, cpus: usize) -> io::Result<Self> {
        // SAFETY: integers only.
        let mut info: MapInfo = unsafe { zeroed() };
        let mut attr = InfoAttr {
            fd: fd.as_raw_fd() as u32,
            length: size_of::<MapInfo>() as u32,
            info: std::ptr::from_mut(&mut info) as u64,
        };
        // SAFETY: the structure is of the stated size and outlives the call.
        unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
        let value = match info.kind {
            PER_CPU_HASH | PER_CPU_ARRAY | LRU_PER_CPU_HASH => (info.value_size as usize).next_multiple_of(8) * cpus,
            _ => info.value_size as usize,
        };
        Ok(Self {
            fd,
            kind: info.kind,
            elements: info.max_entries,
            shape: Shape { key: info.key_size as usize, value },
        })
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The most it can hold.
    pub fn elements(&self) -> u32 {
        self.elements
    }

    /// Every index of an array always has an element: a new one is zero.
    pub fn is_array(&self) -> bool {
        matches!(self.kind, ARRAY | PER_CPU_ARRAY)
    }

    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a key or value of another size than the map's; else as for
    /// [`Map::put`](super::Map::put).
    pub fn put(&self, raw: &Raw, put: Put) -> io::Result<()> {
        if (raw.key.len(), raw.value.len()) != (self.shape.key, self.shape.value) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let map = self.fd.as_raw_fd() as u32;
        let (key, value) = (raw.key.as_ptr() as u64, raw.value.as_ptr() as u64);
        let mut attr = ElementAttr { map, pad: 0, key, value, flags: put as u64 };
        // SAFETY: key and value have the map's sizes and outlive the call.
        unsafe { bpf(MAP_UPDATE, &mut attr) }.map(drop)
    }

    /// # Errors
    /// As for [`Map::entries`](super::Map::entries).
    pub fn entries(&self) -> io::Result<Vec<Raw>> {
        let Shape { key, value } = self.shape;
        let mut all = Vec::new();
        read_batches(std::os::fd::AsFd::as_fd(&self.fd), self.shape, |keys, values| {
            let elements = keys.chunks_exact(key).zip(values.chunks_exact(value));
            all.extend(elements.map(|(key, value)| Raw { key: key.to_vec(), value: value.to_vec() }));
        })?;
        Ok(all)
    }
}

/// Gives all elements of a map, batch by batch. One that is added or removed meanwhile may be missed, the others are not.
pub(super) fn read_batches(map: BorrowedFd<'_>, shape: Shape, mut take: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    let (mut keys, mut values) = (vec![0u8; BATCH * shape.key], vec![0u8; BATCH * shape.value]);
    let (mut from, mut next) = ([0u64; 8], [0u64; 8]);
    let mut first = true;
    loop {
        let mut attr = BatchAttr {
            from: if first { 0 } else { address(&from) },
            next: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: BATCH as u32,
            map: map.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the buffers hold `count` elements of the map's sizes; a position is no longer than a key, of at most 64 bytes.
        let ended = match unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let count = (attr.count as usize).min(BATCH);
        take(&keys[..count * shape.key], &values[..count * shape.value]);
        if ended {
            return Ok(());
        }
        (from, first) = (next, false);
    }
}

#[cfg(test)]
impl RawMap {
    /// A hash map under a pin, as another version may have made it.
    ///
    /// # Errors
    /// `EINVAL` for a shape that no hash has; else as for [`object_pin`](super::object_pin).
    pub fn create(path: &Path, shape: Shape, elements: u32) -> io::Result<Self> {
        use std::os::fd::{AsFd, FromRawFd};

        const MAP_CREATE: u32 = 0;
        const HASH: u32 = 1;
        let mut attr = [HASH, shape.key as u32, shape.value as u32, elements, 0];
        // SAFETY: integers only; the result is a new descriptor of ours.
        let fd = unsafe { bpf(MAP_CREATE, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd)) }?;
        super::call::object_pin(fd.as_fd(), path)?;
        Ok(Self { fd, kind: HASH, elements, shape })
    }
}
