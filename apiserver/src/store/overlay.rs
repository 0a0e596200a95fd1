//! A store file looked at without changing it: reads come from the file, writes stay in memory.
//!
//! Opening a store writes to it, if only to note that it is open. Who checks a damaged store, or a backup, must leave
//! it as it was.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{BackendError, StorageBackend};

const PAGE: u64 = 4096;

#[derive(Debug)]
pub struct Overlay {
    file: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    len: u64,
    /// What of the file is still behind it: less than its length after it was cut.
    visible: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Overlay {
    pub fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file, state: Mutex::new(State { len, visible: len, pages: BTreeMap::new() }) })
    }

    pub fn is_empty(&self) -> bool {
        self.state().len == 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self, state: &State, number: u64) -> io::Result<Box<[u8]>> {
        if let Some(page) = state.pages.get(&number) {
            return Ok(page.clone());
        }
        let mut page = vec![0; PAGE as usize];
        let there = state.visible.saturating_sub(number * PAGE).min(PAGE) as usize;
        self.file.read_exact_at(&mut page[..there], number * PAGE)?;
        Ok(page.into())
    }
}

/// The parts of `start..start + len` by page: its number, the place in it, and how many bytes.
fn parts(start: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = start + len as u64;
    (start / PAGE..end.div_ceil(PAGE)).map(move |number| {
        let from = start.max(number * PAGE);
        let to = end.min((number + 1) * PAGE);
        (number, (from - number * PAGE) as usize, (to - from) as usize)
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.state().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let state = self.state();
        if offset + out.len() as u64 > state.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        for (number, at, count) in parts(offset, out.len()) {
            out[done..done + count].copy_from_slice(&self.page(&state, number)?[at..at + count]);
            done += count;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut state = self.state();
        state.len = len;
        state.visible = state.visible.min(len);
        state.pages.retain(|number, _| number * PAGE < len);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut state = self.state();
        let mut done = 0;
        for (number, at, count) in parts(offset, data.len()) {
            let mut page = self.page(&state, number)?;
            page[at..at + count].copy_from_slice(&data[done..done + count]);
            state.pages.insert(number, page);
            done += count;
        }
        state.len = state.len.max(offset + data.len() as u64);
        Ok(())
    }

    /// Who opened the file holds its lock.
    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn try_lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }
}
