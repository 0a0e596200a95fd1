//! Arrays that programs and this process share as memory: a word is written by one store, which programs see at once and whole.
//!
//! Mapped pages count as this process's own, and the arrays are as large as the largest cluster needs. So they are mapped in windows,
//! each when it is first used; who wants all of an array has it for as long as that takes.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use super::object_get;

/// Words of a window: 64 KiB.
const WINDOW: usize = 8192;

/// The values of a mmapable array, as words.
#[derive(Debug)]
pub struct SharedArray {
    fd: OwnedFd,
    length: usize,
    windows: Box<[OnceLock<Words>]>,
}

impl SharedArray {
    /// `length` is in words.
    ///
    /// # Errors
    /// As for [`object_get`]. The length is looked at when something is mapped.
    pub fn open(path: &Path, length: usize) -> io::Result<Self> {
        let windows = (0..length.div_ceil(WINDOW)).map(|_| OnceLock::new()).collect();
        Ok(Self { fd: object_get(path)?, length, windows })
    }

    /// One word of the values.
    ///
    /// # Errors
    /// As for [`SharedArray::words`].
    pub fn word(&self, index: usize) -> io::Result<&AtomicU64> {
        self.words(index, 1)?.first().ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// The words of one value. Values of two, four or more words to a power of two lie in one window.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for words that lie beyond the array or in two windows; else as for
    /// [`SharedArray::whole`].
    pub fn words(&self, first: usize, count: usize) -> io::Result<&[AtomicU64]> {
        let number = first / WINDOW;
        let window = self.windows.get(number).ok_or(io::ErrorKind::InvalidInput)?;
        let words = match window.get() {
            Some(words) => words,
            None => {
                let start = number * WINDOW;
                let fresh = self.map(start, WINDOW.min(self.length - start))?;
                window.get_or_init(|| fresh)
            }
        };
        words
            .get(first % WINDOW..)
            .and_then(|words| words.get(..count))
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// All of it, until that is dropped.
    ///
    /// # Errors
    /// `EINVAL` where the map is shorter than it was opened for, or not made to be mapped; `ENOMEM`.
    pub fn whole(&self) -> io::Result<Words> {
        self.map(0, self.length)
    }

    fn map(&self, start: usize, length: usize) -> io::Result<Words> {
        let (protection, offset) = (libc::PROT_READ | libc::PROT_WRITE, (start * 8) as libc::off_t);
        // SAFETY: a fresh shared mapping of the map's values; the kernel checks length, offset and flags.
        let memory = unsafe {
            libc::mmap(ptr::null_mut(), length * 8, protection, libc::MAP_SHARED, self.fd.as_raw_fd(), offset)
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Words { first: NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?, length })
    }
}

/// Mapped words.
#[derive(Debug)]
pub struct Words {
    first: NonNull<AtomicU64>,
    length: usize,
}

// SAFETY: the memory is only ever accessed atomically.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is this long, aligned to a page, and lives as long as self.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.length) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made; no reference outlives self.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.length * 8) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use proxy_common::MAX_BACKENDS;

    use super::*;
    use crate::object::{self, Pins};

    #[test]
    fn only_what_is_used_is_mapped() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("bpf");
        object::prepare_root(&root).unwrap();
        let pins = Pins::new(&root);
        let outcome = object::load(&pins).map(|_| {
            let length = MAX_BACKENDS * 4;
            let array = SharedArray::open(&pins.map("BACKENDS"), length).unwrap();
            array.word(7).unwrap().store(1, Ordering::Relaxed);
            array.words(length - 4, 4).unwrap()[3].store(2, Ordering::Relaxed);
            assert!(array.word(length).is_err() && array.words(WINDOW - 1, 2).is_err());
            let whole = array.whole().unwrap();
            assert_eq!((whole[7].load(Ordering::Relaxed), whole[length - 1].load(Ordering::Relaxed)), (1, 2));
            array.windows.iter().filter(|window| window.get().is_some()).count()
        });
        object::remove_root(&root).unwrap();
        assert_eq!(outcome.unwrap_or_else(|error| panic!("{error:?}")), 2);
    }
}
