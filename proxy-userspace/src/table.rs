//! The model of what the kernel holds, and the plan that takes it from one content to another. No I/O.
//!
//! Endpoint sets lie in extents of one flat array. A changed set goes into a fresh extent, then its slot flips with one store;
//! the old extent, and slots given up, are handed out again only when the caller has seen to it that no program still reads them.
//! The same holds for the endpoints that the sets are made of, each of which is one service port's.

mod backends;
mod space;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use proxy_common::{Affinity, Member, Slot};

use crate::desired::{Contents, EndpointSet, Entry, Frontend, ServiceName, Target, host_ports_of};
pub use backends::Generation;
use backends::{Backends, Port};
use space::Space;

/// One step, in an order that is safe to stop after anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Write an endpoint. Nobody reads there yet.
    WriteBackend {
        member: Member,
        target: Target,
        protocol: u8,
    },
    /// Write the members of a set from `base` on. Nobody reads there yet.
    WriteSet {
        base: u32,
        members: Vec<Member>,
    },
    WriteAffinity {
        slot: u32,
        bits: u64,
    },
    /// A slot is for these sources too; it counts once the slot says that it is not for everybody.
    PutRange {
        slot: u32,
        range: IpNetwork,
    },
    RemoveRange {
        slot: u32,
        range: IpNetwork,
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
    /// An endpoint is in no set any more: what remembers it shall look for another.
    RetireBackend {
        index: u32,
    },
}

/// How a set is written, and what leads there.
#[derive(Debug)]
pub(crate) struct Steps {
    pub set: Vec<Op>,
    pub frontends: Vec<Op>,
}

impl Op {
    /// Whether something goes: it has to wait for what takes its place.
    pub(crate) fn takes_away(&self) -> bool {
        matches!(self, Self::RemoveFrontend { .. } | Self::RetireBackend { .. } | Self::RemoveRange { .. })
    }
}

/// Why a service is not, or not wholly, in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("all {limit} endpoint places are taken")]
    BackendsFull { limit: u32 },
    #[error("all {limit} members of endpoint sets are taken")]
    SetsFull { limit: u32 },
    #[error("all {limit} endpoint sets are taken")]
    SlotsFull { limit: u32 },
    #[error("all {limit} service addresses are taken")]
    FrontendsFull { limit: usize },
    #[error("all {limit} places of source ranges are taken: load balancers' addresses lead nowhere")]
    RangesFull { limit: usize },
    #[error("{frontend} belongs to {owner} already")]
    Conflict { frontend: Frontend, owner: ServiceName },
}

/// What changing one service takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub ops: Vec<Op>,
    pub refusals: Vec<(ServiceName, Refusal)>,
    /// Whose the steps are, from each number on.
    whose: Vec<(usize, ServiceName)>,
}

impl Change {
    /// The steps of each service in turn. Those of no name take away what an earlier process left.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&str, &[Op])> {
        let ends = self.whose.iter().skip(1).map(|(start, _)| *start).chain([self.ops.len()]);
        self.whose.iter().zip(ends).map(|((start, name), end)| (name.as_str(), &self.ops[*start..end]))
    }

    fn begin(&mut self, name: &str) {
        self.whose.push((self.ops.len(), name.to_owned()));
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub slots: u32,
    /// Members of all sets together.
    pub members: u32,
    pub backends: u32,
    pub frontends: usize,
    pub ranges: usize,
}

/// Places given up that a running program may still read.
#[must_use]
#[derive(Debug, Default)]
pub struct Waste {
    slots: Vec<(u32, u32)>,
    members: Vec<(u32, u32)>,
    backends: Vec<(u32, u32)>,
}

impl Waste {
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.members.is_empty() && self.backends.is_empty()
    }

    pub fn merge(&mut self, other: Self) {
        self.slots.extend(other.slots);
        self.members.extend(other.members);
        self.backends.extend(other.backends);
    }
}

/// What an earlier process left of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    pub slot: Slot,
    pub members: Vec<(Member, Target)>,
    pub affinity: Affinity,
}

#[derive(Debug)]
struct Held {
    base: u32,
    set: EndpointSet,
    /// Of each endpoint of the set, in its order.
    members: Vec<Member>,
    affinity_id: u32,
    /// Frontends that lead here.
    users: u32,
    /// Unknown for a slot adopted from the kernel until a service takes it up.
    owner: Option<ServiceName>,
}

impl Held {
    /// How it is written, up to the store that makes it visible.
    fn steps(&self, slot: u32, protocol: u8) -> Vec<Op> {
        let endpoints = self.members.iter().zip(&self.set.backends);
        let mut ops: Vec<Op> =
            endpoints.map(|(&member, &target)| Op::WriteBackend { member, target, protocol }).collect();
        ops.push(self.write_set());
        ops.extend(self.write_affinity(slot));
        ops.extend(self.set.ranges.iter().map(|&range| Op::PutRange { slot, range }));
        ops.push(self.flip(slot));
        ops
    }

    fn write_set(&self) -> Op {
        let mut members = self.members.clone();
        members.sort();
        Op::WriteSet { base: self.base, members }
    }

    fn write_affinity(&self, slot: u32) -> Option<Op> {
        let bits = Affinity { id: self.affinity_id, seconds: self.set.affinity_seconds }.bits();
        (self.set.flags & Slot::AFFINITY != 0).then_some(Op::WriteAffinity { slot, bits })
    }

    fn flip(&self, slot: u32) -> Op {
        let count = self.set.backends.len() as u16;
        Op::FlipSlot { slot, bits: Slot { base: self.base, count, flags: self.set.flags }.bits() }
    }
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
    /// Services that found something full: to be tried again when places come free.
    refused: BTreeSet<ServiceName>,
    slot_space: Space,
    member_space: Space,
    backends: Backends,
    /// Of all sets together.
    ranges: usize,
    /// Ranges of slots that nobody has, as an earlier process left them.
    stray_ranges: Vec<(u32, IpNetwork)>,
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
            refused: BTreeSet::new(),
            slot_space: Space::new(limits.slots),
            member_space: Space::new(limits.members),
            backends: Backends::new(limits.backends),
            ranges: 0,
            stray_ranges: Vec::new(),
        }
    }

    /// Takes up what an earlier process left in the kernel. Frontends get their owners with the first contents. `generations` are
    /// of all places that ever held an endpoint.
    pub fn adopt(
        limits: Limits,
        frontends: &[(Frontend, u32)],
        slots: impl Fn(u32) -> Left,
        generations: Vec<Generation>,
        ranges: Vec<(u32, IpNetwork)>,
    ) -> Self {
        let mut table = Self::new(limits);
        let mut by_slot: HashMap<u32, Vec<IpNetwork>> = HashMap::new();
        for (slot, range) in ranges {
            by_slot.entry(slot).or_default().push(range);
        }
        for &(frontend, number) in frontends {
            table.frontends.insert(frontend, number);
            if let Some(held) = table.slots.get_mut(&number) {
                held.users += 1;
                continue;
            }
            let Left { slot, members, affinity } = slots(number);
            let whole = members.len() == slot.count as usize && table.member_space.claim(slot.base, slot.count.into());
            let mut members = if whole { members } else { Vec::new() };
            members.sort_by_key(|(_, target)| *target);
            let (members, targets) = members.into_iter().unzip();
            let mut ranges = by_slot.remove(&number).unwrap_or_default();
            ranges.sort_unstable();
            table.ranges += ranges.len();
            let set = EndpointSet { backends: targets, flags: slot.flags, affinity_seconds: affinity.seconds, ranges };
            table.slot_space.claim(number, 1);
            let held = Held { base: slot.base, set, members, affinity_id: affinity.id, users: 1, owner: None };
            table.slots.insert(number, held);
        }
        let held = table.slots.values().flat_map(|held| held.members.iter().map(|member| member.index));
        table.backends.adopt(held.collect(), generations);
        let strays = by_slot.into_iter().flat_map(|(slot, ranges)| ranges.into_iter().map(move |range| (slot, range)));
        table.stray_ranges = strays.collect();
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

    /// Takes up the host ports that an earlier process left of these pods.
    pub fn take_up_host_ports(&mut self, pods: &BTreeSet<IpAddr>) -> Change {
        let mut left: BTreeMap<(IpAddr, u32), Vec<Frontend>> = BTreeMap::new();
        for (frontend, slot) in &self.frontends {
            let held = self.slots.get(slot).filter(|held| held.owner.is_none() && is_host_port(&held.set));
            if let Some([Target { ip: pod, .. }]) = held.map(|held| held.set.backends.as_slice())
                && pods.contains(pod)
            {
                left.entry((*pod, *slot)).or_default().push(*frontend);
            }
        }
        let mut by_pod: BTreeMap<IpAddr, Vec<Entry>> = BTreeMap::new();
        for ((pod, slot), mut frontends) in left {
            frontends.sort();
            let Frontend { port, protocol, .. } = frontends[0];
            let set = self.slots[&slot].set.clone();
            by_pod.entry(pod).or_default().push(Entry { port, protocol, frontends, set });
        }
        let mut change = Change::default();
        for (pod, entries) in by_pod {
            self.set_service(&host_ports_of(pod), &entries, &mut change);
        }
        change
    }

    /// Brings all Services to `contents`: those that did not change cost a comparison. Host ports stay their pods'.
    pub fn replace(&mut self, contents: &Contents) -> Change {
        let mut change = Change::default();
        let is_gone = |(name, entries): &(&ServiceName, &Vec<Entry>)| {
            !contents.contains_key(*name) && !entries.iter().any(|entry| is_host_port(&entry.set))
        };
        let gone: Vec<_> = self.services.iter().filter(is_gone).map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.set_service(&name, &[], &mut change);
        }
        for (name, entries) in contents {
            if self.services.get(name) != Some(entries) {
                self.set_service(name, entries, &mut change);
            }
        }
        change.begin("");
        self.remove_unowned(&mut change);
        self.backends.retire_orphans(&mut change.ops);
        let strays = self.stray_ranges.drain(..).filter(|(slot, _)| !self.slots.contains_key(slot));
        change.ops.extend(strays.map(|(slot, range)| Op::RemoveRange { slot, range }));
        change
    }

    /// Tries services again that found something full.
    pub fn retry(&mut self) -> Change {
        let mut change = Change::default();
        for name in std::mem::take(&mut self.refused) {
            if let Some(entries) = self.services.get(&name).cloned() {
                self.set_service(&name, &entries, &mut change);
            }
        }
        change
    }

    /// Services that are not wholly in the kernel because something is full.
    pub fn refused(&self) -> usize {
        self.refused.len()
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
            slots: self.slot_space.take_waste(),
            members: self.member_space.take_waste(),
            backends: self.backends.take_waste(),
        }
    }

    /// Hands out again what [`Table::take_waste`] gave.
    pub fn reclaim(&mut self, waste: Waste) {
        self.slot_space.reclaim(waste.slots);
        self.member_space.reclaim(waste.members);
        self.backends.reclaim(waste.backends);
    }

    /// The endpoints behind a frontend.
    pub fn endpoints(&self, frontend: &Frontend) -> Option<&[Target]> {
        let slot = self.frontends.get(frontend)?;
        self.slots.get(slot).map(|held| held.set.backends.as_slice())
    }

    /// Everything that a service has, as if nothing of it were written: for each of its sets how to write it, and then what leads there.
    pub(crate) fn steps_of(&self, name: &str) -> Vec<Steps> {
        let mut by_slot: BTreeMap<u32, (u8, Vec<Op>)> = BTreeMap::new();
        for entry in self.services.get(name).into_iter().flatten() {
            for frontend in
                entry.frontends.iter().filter(|frontend| self.owners.get(frontend).is_some_and(|own| own == name))
            {
                if let Some(&slot) = self.frontends.get(frontend) {
                    let (_, frontends) = by_slot.entry(slot).or_insert_with(|| (entry.protocol, Vec::new()));
                    frontends.push(Op::PutFrontend { frontend: *frontend, slot });
                }
            }
        }
        let steps = by_slot.into_iter().filter_map(|(slot, (protocol, frontends))| {
            let held = self.slots.get(&slot)?;
            Some(Steps { set: held.steps(slot, protocol), frontends })
        });
        steps.collect()
    }

    /// Whether a slot is for a range.
    pub(crate) fn has_range(&self, slot: u32, range: &IpNetwork) -> bool {
        self.slots.get(&slot).is_some_and(|held| held.set.ranges.contains(range))
    }

    fn set_service(&mut self, name: &str, entries: &[Entry], change: &mut Change) {
        change.begin(name);
        self.refused.remove(name);
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
                // Rather for nobody than for everybody.
                if matches!(refusal, Refusal::RangesFull { .. }) {
                    self.shut(name, entry, change);
                }
                self.refused.insert(name.to_owned());
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
            .set_endpoints(&Port::of(name, entry), slot, &entry.set, affinity_id, change)
            .and_then(|()| mine.into_iter().try_for_each(|frontend| self.put_frontend(name, frontend, slot, change)));
        self.release_if_unused(slot, change);
        outcome
    }

    /// A service's addresses lead nowhere.
    fn shut(&mut self, name: &str, entry: &Entry, change: &mut Change) {
        for frontend in &entry.frontends {
            if self.owners.get(frontend).is_some_and(|owner| owner == name) {
                self.remove_frontend(frontend, change);
            }
        }
    }

    fn may_use(&self, slot: u32, name: &str) -> bool {
        self.slots.get(&slot).is_some_and(|held| held.owner.as_deref().is_none_or(|owner| owner == name))
    }

    fn set_endpoints(
        &mut self,
        port: &Port,
        slot: u32,
        set: &EndpointSet,
        affinity_id: u32,
        change: &mut Change,
    ) -> Result<(), Refusal> {
        if let Some(held) = self.slots.get_mut(&slot)
            && held.owner.is_none()
        {
            held.owner = Some(port.service.clone());
            self.backends.take_up(port, &held.set.backends, &held.members);
        }
        let held = self.slots.get(&slot);
        let users = held.map_or(0, |held| held.users);
        if held.is_some_and(|held| held.set == *set && held.affinity_id == affinity_id) {
            return Ok(());
        }
        let same = held.filter(|held| held.set.backends == set.backends).map(|held| (held.base, held.members.clone()));
        let old_ranges = held.map(|held| held.set.ranges.clone()).unwrap_or_default();
        if set.ranges.len() > old_ranges.len() + self.limits.ranges.saturating_sub(self.ranges) {
            return Err(Refusal::RangesFull { limit: self.limits.ranges });
        }
        let full = Refusal::SetsFull { limit: self.limits.members };
        let count = u16::try_from(set.backends.len()).map_err(|_| full.clone())?;
        let is_written = same.is_some();
        let (base, members) = match same {
            Some(same) => same,
            None => {
                let base = self.member_space.take(count.into()).ok_or(full)?;
                let Some(members) = self.backends.add(port, &set.backends, &mut change.ops) else {
                    // Nobody has seen it.
                    self.member_space.reclaim(vec![(base, count.into())]);
                    return Err(Refusal::BackendsFull { limit: self.limits.backends });
                };
                (base, members)
            }
        };
        let owner = Some(port.service.clone());
        let held = Held { base, set: set.clone(), members, affinity_id, users, owner };
        if !is_written {
            change.ops.push(held.write_set());
        }
        change.ops.extend(held.write_affinity(slot));
        let of_slot = |ranges: &[IpNetwork], others: &[IpNetwork], op: fn(u32, IpNetwork) -> Op| {
            ranges.iter().filter(|range| !others.contains(range)).map(|range| op(slot, *range)).collect::<Vec<_>>()
        };
        change.ops.extend(of_slot(&set.ranges, &old_ranges, |slot, range| Op::PutRange { slot, range }));
        change.ops.push(held.flip(slot));
        change.ops.extend(of_slot(&old_ranges, &set.ranges, |slot, range| Op::RemoveRange { slot, range }));
        self.ranges = self.ranges + set.ranges.len() - old_ranges.len();
        let old = self.slots.insert(slot, held);
        if let Some(old) = old.filter(|old| old.base != base || old.set.backends != set.backends) {
            self.give_up_set(&old, &mut change.ops);
        }
        Ok(())
    }

    fn give_up_set(&mut self, held: &Held, ops: &mut Vec<Op>) {
        self.member_space.give_up(held.base, held.members.len() as u32);
        self.backends.remove(&held.members, ops);
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
            self.leave_slot(old, change);
        }
        Ok(())
    }

    fn remove_frontend(&mut self, frontend: &Frontend, change: &mut Change) {
        self.owners.remove(frontend);
        if let Some(slot) = self.frontends.remove(frontend) {
            change.ops.push(Op::RemoveFrontend { frontend: *frontend });
            self.leave_slot(slot, change);
        }
    }

    fn leave_slot(&mut self, slot: u32, change: &mut Change) {
        if let Some(held) = self.slots.get_mut(&slot) {
            held.users -= 1;
        }
        self.release_if_unused(slot, change);
    }

    /// What an earlier process left and nobody wants any more.
    fn remove_unowned(&mut self, change: &mut Change) {
        let unowned: Vec<_> =
            self.frontends.keys().filter(|frontend| !self.owners.contains_key(*frontend)).copied().collect();
        for frontend in unowned {
            self.remove_frontend(&frontend, change);
        }
    }

    fn release_if_unused(&mut self, slot: u32, change: &mut Change) {
        if self.slots.get(&slot).is_some_and(|held| held.users > 0) {
            return;
        }
        if let Some(held) = self.slots.remove(&slot) {
            self.ranges -= held.set.ranges.len();
            change.ops.extend(held.set.ranges.iter().map(|&range| Op::RemoveRange { slot, range }));
            self.give_up_set(&held, &mut change.ops);
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

fn is_host_port(set: &EndpointSet) -> bool {
    set.flags & Slot::HOST_PORT != 0
}

#[cfg(test)]
mod tests;
