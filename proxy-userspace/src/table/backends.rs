//! The endpoints of all service ports: each has a place as long as it is in a set of its port, and the place a generation, which
//! tells it from whoever has the place next.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proxy_common::Member;

use super::{Op, Space};
use crate::desired::{Entry, ServiceName, Target};

/// A service port, whose sets share their endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Port {
    pub service: ServiceName,
    port: u16,
    protocol: u8,
}

impl Port {
    pub fn of(service: &str, entry: &Entry) -> Self {
        Self { service: service.to_owned(), port: entry.port, protocol: entry.protocol }
    }
}

/// A place that has held an endpoint: its index, its generation, and whether it still says that it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    pub member: Member,
    pub alive: bool,
}

#[derive(Debug)]
struct Held {
    member: Member,
    target: Target,
    /// Sets it is in.
    sets: u32,
    port: Port,
}

#[derive(Debug)]
pub(super) struct Backends {
    space: Space,
    held: HashMap<u32, Held>,
    places: HashMap<Port, BTreeMap<Target, u32>>,
    /// Generations of places that have held an endpoint.
    generations: HashMap<u32, u32>,
    /// Endpoints that an earlier process died too early to retire.
    orphans: Vec<u32>,
}

impl Backends {
    pub fn new(limit: u32) -> Self {
        Self {
            space: Space::new(limit),
            held: HashMap::new(),
            places: HashMap::new(),
            generations: HashMap::new(),
            orphans: Vec::new(),
        }
    }

    /// `used` are the places that sets refer to.
    pub fn adopt(&mut self, used: BTreeSet<u32>, generations: Vec<Generation>) {
        for index in &used {
            self.space.claim(*index, 1);
        }
        for Generation { member, alive } in generations {
            self.generations.insert(member.index, member.generation);
            if alive && !used.contains(&member.index) && self.space.claim(member.index, 1) {
                self.orphans.push(member.index);
            }
        }
    }

    /// A service port takes up a set that an earlier process left.
    pub fn take_up(&mut self, port: &Port, targets: &[Target], members: &[Member]) {
        for (target, member) in targets.iter().zip(members) {
            let places = self.places.entry(port.clone()).or_default();
            places.entry(*target).or_insert(member.index);
            let new = || Held { member: *member, target: *target, sets: 0, port: port.clone() };
            self.held.entry(member.index).or_insert_with(new).sets += 1;
        }
    }

    /// Adds a set: the member of each endpoint. None, and nothing changed, when there is no room.
    pub fn add(&mut self, port: &Port, targets: &[Target], ops: &mut Vec<Op>) -> Option<Vec<Member>> {
        let places = self.places.get(port);
        let new = targets.iter().filter(|target| !places.is_some_and(|places| places.contains_key(target)));
        if new.count() > self.space.room() as usize {
            return None;
        }
        let mut members = Vec::with_capacity(targets.len());
        for target in targets {
            let known = self.places.get(port).and_then(|places| places.get(target)).copied();
            let index = known.or_else(|| self.place(port, *target, ops))?;
            let held = self.held.get_mut(&index)?;
            held.sets += 1;
            members.push(held.member);
        }
        Some(members)
    }

    fn place(&mut self, port: &Port, target: Target, ops: &mut Vec<Op>) -> Option<u32> {
        let index = self.space.take(1)?;
        // No member is zero.
        let generation = *self.generations.entry(index).or_insert(1);
        let member = Member { index, generation };
        ops.push(Op::WriteBackend { member, target, protocol: port.protocol });
        self.held.insert(index, Held { member, target, sets: 0, port: port.clone() });
        self.places.entry(port.clone()).or_default().insert(target, index);
        Some(index)
    }

    /// Takes a set's members away; those that are in no other go.
    pub fn remove(&mut self, members: &[Member], ops: &mut Vec<Op>) {
        for member in members {
            match self.held.get_mut(&member.index) {
                Some(held) if held.sets > 1 => held.sets -= 1,
                Some(_) => {
                    if let Some(held) = self.held.remove(&member.index) {
                        self.forget(&held);
                    }
                    self.retire(member.index, ops);
                }
                // Of a set that was never taken up; another such set may have the same member.
                None => self.orphans.push(member.index),
            }
        }
    }

    fn forget(&mut self, held: &Held) {
        if let Some(places) = self.places.get_mut(&held.port) {
            if places.get(&held.target) == Some(&held.member.index) {
                places.remove(&held.target);
            }
            if places.is_empty() {
                self.places.remove(&held.port);
            }
        }
    }

    fn retire(&mut self, index: u32, ops: &mut Vec<Op>) {
        ops.push(Op::RetireBackend { index });
        let generation = self.generations.entry(index).or_insert(1);
        *generation = generation.wrapping_add(1).max(1);
        self.space.give_up(index, 1);
    }

    /// Retires what nobody took up.
    pub fn retire_orphans(&mut self, ops: &mut Vec<Op>) {
        let mut orphans = std::mem::take(&mut self.orphans);
        orphans.sort_unstable();
        orphans.dedup();
        for index in orphans.into_iter().filter(|index| !self.held.contains_key(index)).collect::<Vec<_>>() {
            self.retire(index, ops);
        }
    }

    pub fn take_waste(&mut self) -> Vec<(u32, u32)> {
        self.space.take_waste()
    }

    pub fn reclaim(&mut self, waste: Vec<(u32, u32)>) {
        self.space.reclaim(waste);
    }

    #[cfg(test)]
    pub fn free(&self) -> &BTreeMap<u32, u32> {
        &self.space.free
    }
}
