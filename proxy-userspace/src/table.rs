//! The model of what the kernel holds, and the plan that takes it from one content to another. No I/O.
//!
//! Endpoint sets lie in extents of one flat array. A changed set goes into a fresh extent, then its slot flips with one store;
//! the old extent, and slots given up, are handed out again only when the caller has seen to it that no program still reads them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proxy_common::{Affinity, Slot};

use crate::desired::{Contents, EndpointSet, Entry, Frontend, ServiceName};

/// One step, in an order that is safe to stop after anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Write these backends from `base` on. Nobody reads there yet.
    WriteBackends {
        base: u32,
        backends: Vec<u64>,
    },
    WriteAffinity {
        slot: u32,
        bits: u64,
    },
    /// The one store that makes a set visible.
    FlipSlot {
        slot: u32,
        bits: u64,
    },
    PutFrontend {
        frontend: Frontend,
        slot: u32,
    },
    RemoveFrontend {
        frontend: Frontend,
    },
}

/// Why a service is not, or not wholly, in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("all {limit} endpoint places are taken")]
    BackendsFull { limit: u32 },
    #[error("all {limit} endpoint sets are taken")]
    SlotsFull { limit: u32 },
    #[error("all {limit} service addresses are taken")]
    FrontendsFull { limit: usize },
    #[error("{frontend:?} belongs to {owner} already")]
    Conflict { frontend: Frontend, owner: ServiceName },
}

/// What changing one service takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub ops: Vec<Op>,
    pub refusals: Vec<(ServiceName, Refusal)>,
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub slots: u32,
    pub backends: u32,
    pub frontends: usize,
}

/// Places given up that a running program may still read.
#[must_use]
#[derive(Debug, Default)]
pub struct Waste {
    slots: Vec<(u32, u32)>,
    backends: Vec<(u32, u32)>,
}

impl Waste {
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.backends.is_empty()
    }
}

#[derive(Debug)]
struct Held {
    base: u32,
    set: EndpointSet,
    affinity_id: u32,
    /// Frontends that lead here.
    users: u32,
    /// Unknown for a slot adopted from the kernel until a service takes it up.
    owner: Option<ServiceName>,
}

#[derive(Debug)]
pub struct Table {
    limits: Limits,
    frontends: HashMap<Frontend, u32>,
    owners: HashMap<Frontend, ServiceName>,
    slots: HashMap<u32, Held>,
    services: Contents,
    /// Who else asked for a frontend that has an owner.
    contested: HashMap<Frontend, BTreeSet<ServiceName>>,
    slot_space: Space,
    backend_space: Space,
}

impl Table {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            frontends: HashMap::new(),
            owners: HashMap::new(),
            slots: HashMap::new(),
            services: Contents::new(),
            contested: HashMap::new(),
            slot_space: Space::new(limits.slots),
            backend_space: Space::new(limits.backends),
        }
    }

    /// Takes up what an earlier process left in the kernel. Frontends get their owners with the first contents.
    pub fn adopt(limits: Limits, frontends: &[(Frontend, u32)], slots: impl Fn(u32) -> (u64, Vec<u64>, u64)) -> Self {
        let mut table = Self::new(limits);
        for &(frontend, number) in frontends {
            table.frontends.insert(frontend, number);
            if let Some(held) = table.slots.get_mut(&number) {
                held.users += 1;
                continue;
            }
            let (bits, backends, affinity) = slots(number);
            let (slot, affinity) = (Slot::from_bits(bits), Affinity::from_bits(affinity));
            let whole =
                backends.len() == slot.count as usize && table.backend_space.claim(slot.base, slot.count.into());
            let set = EndpointSet {
                backends: if whole { backends } else { Vec::new() },
                flags: slot.flags,
                affinity_seconds: affinity.seconds,
            };
            table.slot_space.claim(number, 1);
            table.slots.insert(number, Held { base: slot.base, set, affinity_id: affinity.id, users: 1, owner: None });
        }
        table
    }

    pub fn len(&self) -> usize {
        self.frontends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty()
    }

    pub fn services(&self) -> &Contents {
        &self.services
    }

    /// Brings everything to `contents`: services that did not change cost a comparison.
    pub fn replace(&mut self, contents: &Contents) -> Change {
        let mut change = Change::default();
        let gone: Vec<_> = self.services.keys().filter(|name| !contents.contains_key(*name)).cloned().collect();
        for name in gone {
            self.set_service(&name, &[], &mut change);
        }
        for (name, entries) in contents {
            if self.services.get(name) != Some(entries) {
                self.set_service(name, entries, &mut change);
            }
        }
        self.remove_unowned(&mut change);
        change
    }

    /// Brings one service to `entries`; none removes it.
    pub fn change(&mut self, name: &str, entries: &[Entry]) -> Change {
        let mut change = Change::default();
        if self.services.get(name).map_or(&[][..], Vec::as_slice) != entries {
            self.set_service(name, entries, &mut change);
        }
        change
    }

    /// What was given up so far. It may be used again once every program running now has ended.
    pub fn take_waste(&mut self) -> Waste {
        Waste {
            slots: std::mem::take(&mut self.slot_space.waste),
            backends: std::mem::take(&mut self.backend_space.waste),
        }
    }

    /// Hands out again what [`Table::take_waste`] gave.
    pub fn reclaim(&mut self, waste: Waste) {
        self.slot_space.reclaim(waste.slots);
        self.backend_space.reclaim(waste.backends);
    }

    /// The endpoints behind a frontend.
    pub fn endpoints(&self, frontend: &Frontend) -> Option<&[u64]> {
        let slot = self.frontends.get(frontend)?;
        self.slots.get(slot).map(|held| held.set.backends.as_slice())
    }

    fn set_service(&mut self, name: &str, entries: &[Entry], change: &mut Change) {
        let old = self.services.remove(name).unwrap_or_default();
        if !entries.is_empty() {
            self.services.insert(name.to_owned(), entries.to_vec());
        }
        let wanted: BTreeSet<Frontend> = entries.iter().flat_map(|entry| entry.frontends.iter().copied()).collect();
        let freed: Vec<Frontend> = old
            .iter()
            .flat_map(|entry| entry.frontends.iter().copied())
            .filter(|frontend| {
                !wanted.contains(frontend) && self.owners.get(frontend).is_some_and(|owner| owner == name)
            })
            .collect();
        let mut used = BTreeSet::new();
        let mut affinity_ids: BTreeMap<(u16, u8), u32> = BTreeMap::new();
        for entry in entries {
            if let Err(refusal) = self.set_entry(name, entry, &mut used, &mut affinity_ids, change) {
                change.refusals.push((name.to_owned(), refusal));
            }
        }
        for frontend in &freed {
            self.remove_frontend(frontend, change);
        }
        self.offer(&freed, name, change);
    }

    fn set_entry(
        &mut self,
        name: &str,
        entry: &Entry,
        used: &mut BTreeSet<u32>,
        affinity_ids: &mut BTreeMap<(u16, u8), u32>,
        change: &mut Change,
    ) -> Result<(), Refusal> {
        let mut mine = Vec::new();
        for frontend in &entry.frontends {
            match self.owners.get(frontend) {
                Some(owner) if owner != name => {
                    let refusal = Refusal::Conflict { frontend: *frontend, owner: owner.clone() };
                    self.contested.entry(*frontend).or_default().insert(name.to_owned());
                    change.refusals.push((name.to_owned(), refusal));
                }
                _ => mine.push(*frontend),
            }
        }
        if mine.is_empty() {
            return Ok(());
        }
        let present = mine.iter().filter_map(|frontend| self.frontends.get(frontend).copied());
        let slot = match present.into_iter().find(|slot| !used.contains(slot) && self.may_use(*slot, name)) {
            Some(slot) => slot,
            None => self.slot_space.take(1).ok_or(Refusal::SlotsFull { limit: self.limits.slots })?,
        };
        used.insert(slot);
        let affinity_id = *affinity_ids.entry((entry.port, entry.protocol)).or_insert(slot);
        let outcome = self
            .set_endpoints(name, slot, &entry.set, affinity_id, change)
            .and_then(|()| mine.into_iter().try_for_each(|frontend| self.put_frontend(name, frontend, slot, change)));
        self.release_if_unused(slot);
        outcome
    }

    fn may_use(&self, slot: u32, name: &str) -> bool {
        self.slots.get(&slot).is_some_and(|held| held.owner.as_deref().is_none_or(|owner| owner == name))
    }

    fn set_endpoints(
        &mut self,
        name: &str,
        slot: u32,
        set: &EndpointSet,
        affinity_id: u32,
        change: &mut Change,
    ) -> Result<(), Refusal> {
        if let Some(held) = self.slots.get_mut(&slot) {
            held.owner = Some(name.to_owned());
        }
        let held = self.slots.get(&slot);
        let users = held.map_or(0, |held| held.users);
        if held.is_some_and(|held| held.set == *set && held.affinity_id == affinity_id) {
            return Ok(());
        }
        let old = held.map(|held| (held.base, held.set.backends.len() as u32));
        let same_place = held.filter(|held| held.set.backends == set.backends).map(|held| held.base);
        let full = Refusal::BackendsFull { limit: self.limits.backends };
        let count = u16::try_from(set.backends.len()).map_err(|_| full.clone())?;
        let base = match same_place {
            Some(base) => base,
            None => self.backend_space.take(count.into()).ok_or(full)?,
        };
        if same_place.is_none() {
            change.ops.push(Op::WriteBackends { base, backends: set.backends.clone() });
            if let Some((old_base, old_count)) = old {
                self.backend_space.give_up(old_base, old_count);
            }
        }
        if set.flags & Slot::AFFINITY != 0 {
            let bits = Affinity { id: affinity_id, seconds: set.affinity_seconds }.bits();
            change.ops.push(Op::WriteAffinity { slot, bits });
        }
        change.ops.push(Op::FlipSlot { slot, bits: Slot { base, count, flags: set.flags }.bits() });
        let owner = Some(name.to_owned());
        self.slots.insert(slot, Held { base, set: set.clone(), affinity_id, users, owner });
        Ok(())
    }

    fn put_frontend(&mut self, name: &str, frontend: Frontend, slot: u32, change: &mut Change) -> Result<(), Refusal> {
        let old = self.frontends.get(&frontend).copied();
        if old.is_none() && self.frontends.len() >= self.limits.frontends {
            return Err(Refusal::FrontendsFull { limit: self.limits.frontends });
        }
        self.owners.insert(frontend, name.to_owned());
        if old == Some(slot) {
            return Ok(());
        }
        self.frontends.insert(frontend, slot);
        if let Some(held) = self.slots.get_mut(&slot) {
            held.users += 1;
        }
        change.ops.push(Op::PutFrontend { frontend, slot });
        if let Some(old) = old {
            self.leave_slot(old);
        }
        Ok(())
    }

    fn remove_frontend(&mut self, frontend: &Frontend, change: &mut Change) {
        self.owners.remove(frontend);
        if let Some(slot) = self.frontends.remove(frontend) {
            change.ops.push(Op::RemoveFrontend { frontend: *frontend });
            self.leave_slot(slot);
        }
    }

    fn leave_slot(&mut self, slot: u32) {
        if let Some(held) = self.slots.get_mut(&slot) {
            held.users -= 1;
        }
        self.release_if_unused(slot);
    }

    /// What an earlier process left and nobody wants any more.
    fn remove_unowned(&mut self, change: &mut Change) {
        let unowned: Vec<_> =
            self.frontends.keys().filter(|frontend| !self.owners.contains_key(*frontend)).copied().collect();
        for frontend in unowned {
            self.remove_frontend(&frontend, change);
        }
    }

    fn release_if_unused(&mut self, slot: u32) {
        match self.slots.get(&slot) {
            Some(held) if held.users > 0 => return,
            Some(held) => {
                self.backend_space.give_up(held.base, held.set.backends.len() as u32);
                self.slots.remove(&slot);
            }
            None => {}
        }
        self.slot_space.give_up(slot, 1);
    }

    /// Addresses that came free go to a service that was refused them.
    fn offer(&mut self, freed: &[Frontend], from: &str, change: &mut Change) {
        for frontend in freed {
            for name in self.contested.remove(frontend).unwrap_or_default() {
                if name != from
                    && let Some(entries) = self.services.get(&name).cloned()
                {
                    self.set_service(&name, &entries, change);
                }
            }
        }
    }
}

/// Numbers handed out in runs, first fit; given-up runs wait until they are reclaimed.
#[derive(Debug)]
struct Space {
    /// Start → length of each free run.
    free: BTreeMap<u32, u32>,
    waste: Vec<(u32, u32)>,
}

impl Space {
    fn new(length: u32) -> Self {
        Self { free: BTreeMap::from([(0, length)]), waste: Vec::new() }
    }

    fn take(&mut self, length: u32) -> Option<u32> {
        if length == 0 {
            return Some(0);
        }
        let (&start, &run) = self.free.iter().find(|(_, run)| **run >= length)?;
        self.free.remove(&start);
        if run > length {
            self.free.insert(start + length, run - length);
        }
        Some(start)
    }

    /// Takes a certain run; false when part of it is taken.
    fn claim(&mut self, start: u32, length: u32) -> bool {
        if length == 0 {
            return true;
        }
        let Some((&from, &run)) = self.free.range(..=start).next_back() else { return false };
        let (end, wanted) = (from + run, start.saturating_add(length));
        if wanted > end {
            return false;
        }
        self.free.remove(&from);
        if start > from {
            self.free.insert(from, start - from);
        }
        if end > wanted {
            self.free.insert(wanted, end - wanted);
        }
        true
    }

    fn give_up(&mut self, start: u32, length: u32) {
        if length > 0 {
            self.waste.push((start, length));
        }
    }

    fn reclaim(&mut self, waste: Vec<(u32, u32)>) {
        for (mut start, mut length) in waste {
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

#[cfg(test)]
mod tests;
