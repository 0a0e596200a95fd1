//! Which numbers of a range are free.

use std::collections::BTreeMap;

/// Numbers handed out in runs, first fit; given-up runs wait until they are reclaimed.
#[derive(Debug)]
pub(super) struct Space {
    /// Start → length of each free run.
    pub(super) free: BTreeMap<u32, u32>,
    /// Length of all free runs.
    room: u32,
    waste: Vec<(u32, u32)>,
}

impl Space {
    pub fn new(length: u32) -> Self {
        Self { free: BTreeMap::from([(0, length)]), room: length, waste: Vec::new() }
    }

    pub fn take(&mut self, length: u32) -> Option<u32> {
        if length == 0 {
            return Some(0);
        }
        let (&start, &run) = self.free.iter().find(|(_, run)| **run >= length)?;
        self.free.remove(&start);
        self.room -= length;
        if run > length {
            self.free.insert(start + length, run - length);
        }
        Some(start)
    }

    /// Takes a certain run; false when part of it is taken.
    pub fn claim(&mut self, start: u32, length: u32) -> bool {
        if length == 0 {
            return true;
        }
        let Some((&from, &run)) = self.free.range(..=start).next_back() else { return false };
        let (end, wanted) = (from + run, start.saturating_add(length));
        if wanted > end {
            return false;
        }
        self.free.remove(&from);
        self.room -= length;
        if start > from {
            self.free.insert(from, start - from);
        }
        if end > wanted {
            self.free.insert(wanted, end - wanted);
        }
        true
    }

    pub fn give_up(&mut self, start: u32, length: u32) {
        if length > 0 {
            self.waste.push((start, length));
        }
    }

    /// How many numbers are free, in however many runs.
    pub fn room(&self) -> u32 {
        self.room
    }

    /// What was given up since the last time.
    pub fn take_waste(&mut self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.waste)
    }

    pub fn reclaim(&mut self, waste: Vec<(u32, u32)>) {
        for (mut start, mut length) in waste {
            self.room += length;
            if let Some(next) = self.free.remove(&(start + length)) {
                length += next;
            }
            if let Some((&before, &run)) = self.free.range(..start).next_back()
                && before + run == start
            {
                (start, length) = (before, run + length);
            }
            self.free.insert(start, length);
        }
    }
}
