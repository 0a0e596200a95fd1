use proxy_common::{Scope, TCP};

use super::*;
use crate::desired::{self, HostPort, desired_host_ports};

const LIMITS: Limits = Limits { slots: 8, members: 24, backends: 16, frontends: 8, ranges: 3 };

fn frontend(last: u8) -> Frontend {
    Frontend { addr: [10, 96, 0, last].into(), port: 80, protocol: TCP, scope: Scope::Internal }
}

fn targets(last: &[u8]) -> Vec<Target> {
    last.iter().map(|last| Target { ip: [10, 244, 0, *last].into(), port: 8080 }).collect()
}

fn entry(frontends: &[u8], backends: &[u8]) -> Entry {
    let set = EndpointSet { backends: targets(backends), ..Default::default() };
    Entry { port: 80, protocol: TCP, frontends: frontends.iter().map(|last| frontend(*last)).collect(), set }
}

/// What programs would see: the plan executed on plain memory, checked after every single step.
#[derive(Default)]
struct Memory {
    /// Generation, endpoint, and whether it is alive.
    backends: HashMap<u32, (u32, Target, bool)>,
    sets: HashMap<u32, Member>,
    slots: HashMap<u32, u64>,
    frontends: HashMap<Frontend, u32>,
    ranges: BTreeSet<(u32, IpNetwork)>,
}

impl Memory {
    fn run(&mut self, op: &Op) {
        match op {
            Op::WriteBackend { member, target, .. } => {
                self.backends.insert(member.index, (member.generation, *target, true));
            }
            Op::WriteSet { base, members } => {
                assert!(members.is_sorted(), "programs search in it");
                self.sets.extend((*base..).zip(members.iter().copied()));
            }
            Op::WriteAffinity { .. } => {}
            Op::FlipSlot { slot, bits } => drop(self.slots.insert(*slot, *bits)),
            Op::PutFrontend { frontend, slot } => drop(self.frontends.insert(*frontend, *slot)),
            Op::RemoveFrontend { frontend } => drop(self.frontends.remove(frontend)),
            Op::PutRange { slot, range } => assert!(self.ranges.insert((*slot, *range))),
            Op::RemoveRange { slot, range } => assert!(self.ranges.remove(&(*slot, *range))),
            Op::RetireBackend { index } => {
                let backend = self.backends.get_mut(index).unwrap();
                (backend.0, backend.2) = (backend.0 + 1, false);
            }
        }
    }

    fn slot(&self, number: u32) -> (Slot, Vec<(Member, Target)>) {
        let slot = Slot::from_bits(self.slots[&number]);
        let members = (slot.base..slot.base + u32::from(slot.count)).map(|index| self.sets[&index]);
        (slot, members.map(|member| (member, self.backends[&member.index].1)).collect())
    }

    fn endpoints(&self, frontend: &Frontend) -> Option<Vec<Target>> {
        let (_, members) = self.slot(*self.frontends.get(frontend)?);
        let mut targets: Vec<_> = members.into_iter().map(|(_, target)| target).collect();
        targets.sort();
        Some(targets)
    }

    /// What flows and sockets would hold of a frontend's endpoints.
    fn members(&self, frontend: &Frontend) -> BTreeMap<Target, Member> {
        let (_, members) = self.slot(self.frontends[frontend]);
        members.into_iter().map(|(member, target)| (target, member)).collect()
    }

    fn is_gone(&self, member: Member) -> bool {
        self.backends[&member.index].0 != member.generation
    }

    fn adopt(&self) -> Table {
        let frontends: Vec<_> = self.frontends.iter().map(|(frontend, slot)| (*frontend, *slot)).collect();
        let generations = self.backends.iter().map(|(index, (generation, _, alive))| Generation {
            member: Member { index: *index, generation: *generation },
            alive: *alive,
        });
        let left = |number| {
            let (slot, members) = self.slot(number);
            Left { slot, members, affinity: Affinity::default() }
        };
        Table::adopt(LIMITS, &frontends, left, generations.collect(), self.ranges.iter().copied().collect())
    }
}

fn settle(table: &mut Table) {
    let waste = table.take_waste();
    table.reclaim(waste);
}

#[test]
fn no_step_shows_a_mixed_set() {
    let (mut table, mut memory) = (Table::new(LIMITS), Memory::default());
    let sets: [&[u8]; 4] = [&[1, 2, 3], &[11, 12], &[], &[21, 22, 23, 24]];
    for op in table.change("a", &[entry(&[1], sets[3])]).ops {
        memory.run(&op);
    }
    for round in 0..100 {
        for op in table.change("a", &[entry(&[1], sets[round % 4])]).ops {
            memory.run(&op);
            let seen = memory.endpoints(&frontend(1)).unwrap();
            assert!(sets.iter().any(|set| targets(set) == seen), "{seen:?}");
        }
        assert_eq!(memory.endpoints(&frontend(1)).unwrap(), targets(sets[round % 4]));
        settle(&mut table);
    }
}

#[test]
fn an_extent_is_not_reused_before_it_is_reclaimed() {
    let mut table = Table::new(LIMITS);
    let base = |change: &Change| {
        let written = change.ops.iter().find_map(|op| match op {
            Op::WriteSet { base, .. } => Some(*base),
            _ => None,
        });
        written.unwrap_or_else(|| panic!("{change:?}"))
    };
    let first = base(&table.change("a", &[entry(&[1], &[1, 2])]));
    let second = base(&table.change("a", &[entry(&[1], &[3, 4])]));
    let third = base(&table.change("a", &[entry(&[1], &[5, 6])]));
    assert!(first != second && second != third && first != third);
    settle(&mut table);
    assert_eq!(base(&table.change("a", &[entry(&[1], &[7, 8])])), first);
}

#[test]
fn an_unchanged_service_costs_nothing() {
    let mut table = Table::new(LIMITS);
    let contents = Contents::from([("a".into(), vec![entry(&[1], &[1])]), ("b".into(), vec![entry(&[2], &[2])])]);
    // An endpoint, a set, a slot and a frontend each.
    assert_eq!(table.replace(&contents).ops.len(), 8);
    assert!(table.replace(&contents).ops.is_empty());
    assert_eq!(table.change("a", &contents["a"]), Change::default());
}

#[test]
fn a_restart_adopts_and_touches_only_differences() {
    let mut first = Table::new(LIMITS);
    let mut memory = Memory::default();
    let mut contents =
        Contents::from([("a".into(), vec![entry(&[1, 3], &[1])]), ("b".into(), vec![entry(&[2], &[2, 9])])]);
    first.replace(&contents).ops.iter().for_each(|op| memory.run(op));

    let mut second = memory.adopt();
    contents.remove("b");
    // Affinity ids are not in the kernel without affinity: writing the same slot again is all that may happen to `a`.
    let ops = second.replace(&contents).ops;
    assert!(ops.contains(&Op::RemoveFrontend { frontend: frontend(2) }));
    assert!(
        !ops.iter().any(|op| matches!(op, Op::WriteSet { .. } | Op::WriteBackend { .. } | Op::PutFrontend { .. })),
        "{ops:?}"
    );
}

#[test]
fn host_ports_are_their_pods_whatever_services_there_are() {
    let pod = IpAddr::from([10, 244, 0, 9]);
    let port = |host_port, host_ip| HostPort { host_ip, host_port, container_port: 8080, protocol: TCP };
    let entries = desired_host_ports(pod, &[port(8888, None), port(80, Some([192, 0, 2, 1].into()))]);
    let (mut table, mut memory) = (Table::new(LIMITS), Memory::default());
    table.change(&host_ports_of(pod), &entries).ops.iter().for_each(|op| memory.run(op));
    let services = Contents::from([("a".into(), vec![entry(&[1], &[1])])]);
    table.replace(&services).ops.iter().for_each(|op| memory.run(op));
    let all: Vec<Frontend> = entries.iter().flat_map(|entry| entry.frontends.clone()).collect();
    let lead = |memory: &Memory| all.iter().all(|frontend| memory.endpoints(frontend) == Some(targets(&[9])));
    assert!(lead(&memory) && all.len() == 4);

    // The next process keeps them for pods that are there.
    let mut next = memory.adopt();
    next.take_up_host_ports(&BTreeSet::from([pod])).ops.iter().for_each(|op| memory.run(op));
    next.replace(&Contents::new()).ops.iter().for_each(|op| memory.run(op));
    assert!(lead(&memory) && memory.frontends.len() == all.len());
    let again = next.change(&host_ports_of(pod), &entries).ops;
    assert!(!again.iter().any(|op| matches!(op, Op::WriteSet { .. } | Op::PutFrontend { .. })), "{again:?}");
    next.change(&host_ports_of(pod), &[]).ops.iter().for_each(|op| memory.run(op));
    assert!(memory.frontends.is_empty());
}

#[test]
fn host_ports_of_a_pod_that_is_gone_go_with_the_first_contents() {
    let pod = IpAddr::from([10, 244, 0, 9]);
    let port = HostPort { host_ip: None, host_port: 8888, container_port: 8080, protocol: TCP };
    let (mut table, mut memory) = (Table::new(LIMITS), Memory::default());
    let entries = desired_host_ports(pod, &[port]);
    table.change(&host_ports_of(pod), &entries).ops.iter().for_each(|op| memory.run(op));
    let mut next = memory.adopt();
    assert_eq!(next.take_up_host_ports(&BTreeSet::new()), Change::default());
    next.replace(&Contents::new()).ops.iter().for_each(|op| memory.run(op));
    assert!(memory.frontends.is_empty());
}

#[test]
fn the_second_claimant_inherits_an_address() {
    let (mut table, mut memory) = (Table::new(LIMITS), Memory::default());
    table.change("a", &[entry(&[1], &[1])]).ops.iter().for_each(|op| memory.run(op));
    let change = table.change("b", &[entry(&[1], &[2])]);
    assert!(matches!(&change.refusals[..], [(name, Refusal::Conflict { owner, .. })] if name == "b" && owner == "a"));
    assert!(change.ops.is_empty());
    table.change("a", &[]).ops.iter().for_each(|op| memory.run(op));
    assert_eq!(memory.endpoints(&frontend(1)), Some(targets(&[2])));
}

#[test]
fn a_full_table_refuses_one_service_and_keeps_the_others() {
    let mut table = Table::new(LIMITS);
    assert!(table.change("a", &[entry(&[1], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10])]).refusals.is_empty());
    let change = table.change("b", &[entry(&[2], &[1, 2, 3, 4, 5, 6, 7])]);
    assert_eq!(change.refusals, [("b".into(), Refusal::BackendsFull { limit: 16 })]);
    assert!(change.ops.is_empty());
    assert!(table.change("c", &[entry(&[3], &[1])]).refusals.is_empty());
}

#[test]
fn nothing_leaks_over_many_changes() {
    let mut table = Table::new(LIMITS);
    for round in 0u8..200 {
        let set: Vec<u8> = (0..round % 5).map(|offset| round % 25 * 10 + offset).collect();
        let change = table.change("a", &[entry(&[1], &set), entry(&[2, 3], &set[..set.len() / 2])]);
        assert!(change.refusals.is_empty(), "{round}: {change:?}");
        settle(&mut table);
        if round % 7 == 0 {
            assert!(table.change("a", &[]).refusals.is_empty());
            settle(&mut table);
        }
    }
    table.change("a", &[]);
    settle(&mut table);
    assert_eq!(table.slot_space.free, BTreeMap::from([(0, 8)]));
    assert_eq!(table.member_space.free, BTreeMap::from([(0, 24)]));
    assert_eq!(table.backends.free(), &BTreeMap::from([(0, 16)]));
}

#[test]
fn frontends_may_move_between_the_sets_of_a_service() {
    let (mut table, mut memory) = (Table::new(LIMITS), Memory::default());
    for entries in [
        vec![entry(&[1, 2], &[1, 2])],
        vec![entry(&[1], &[1]), entry(&[2], &[1, 2])],
        vec![entry(&[2], &[3]), entry(&[1], &[4])],
        vec![entry(&[2, 1], &[5])],
    ] {
        table.change("a", &entries).ops.iter().for_each(|op| memory.run(op));
        settle(&mut table);
        for entry in &entries {
            for frontend in &entry.frontends {
                assert_eq!(memory.endpoints(frontend).as_ref(), Some(&entry.set.backends));
            }
        }
    }
}

#[test]
fn an_endpoint_keeps_its_place_while_any_set_of_its_port_has_it() {
    let (mut table, mut memory) = (Table::new(LIMITS), Memory::default());
    let bring = |table: &mut Table, memory: &mut Memory, name: &str, entries: &[Entry]| {
        table.change(name, entries).ops.iter().for_each(|op| memory.run(op));
        settle(table);
    };
    bring(&mut table, &mut memory, "a", &[entry(&[1], &[1, 2]), entry(&[2], &[2])]);
    bring(&mut table, &mut memory, "b", &[entry(&[3], &[2])]);
    let first = memory.members(&frontend(1));
    let [one, two] = [1, 2].map(|last| first[&targets(&[last])[0]]);
    assert_eq!(memory.members(&frontend(2)).into_values().collect::<Vec<_>>(), [two], "one place for both sets");
    assert_ne!(memory.members(&frontend(3)).into_values().collect::<Vec<_>>(), [two], "another service has its own");
    bring(&mut table, &mut memory, "a", &[entry(&[1], &[3]), entry(&[2], &[2])]);
    assert!(memory.is_gone(one) && !memory.is_gone(two));
    bring(&mut table, &mut memory, "a", &[entry(&[1], &[1])]);
    assert!(memory.is_gone(one) && memory.is_gone(two), "who comes back is somebody else");
}

#[test]
fn a_restart_keeps_endpoints_and_retires_those_that_went_meanwhile() {
    let (mut first, mut memory) = (Table::new(LIMITS), Memory::default());
    let before = Contents::from([("a".into(), vec![entry(&[1], &[1, 2, 3])]), ("b".into(), vec![entry(&[2], &[4])])]);
    first.replace(&before).ops.iter().for_each(|op| memory.run(op));
    let members = memory.members(&frontend(1));
    let gone = memory.members(&frontend(2))[&targets(&[4])[0]];
    // Killed before it could use what it had written.
    let stray = first.change("c", &[entry(&[3], &[9])]).ops.remove(0);
    assert!(matches!(stray, Op::WriteBackend { .. }));
    memory.run(&stray);
    let mut second = memory.adopt();
    let after = Contents::from([("a".into(), vec![entry(&[1], &[2, 3])])]);
    second.replace(&after).ops.iter().for_each(|op| memory.run(op));
    for (last, stays) in [(1, false), (2, true), (3, true)] {
        assert_eq!(memory.is_gone(members[&targets(&[last])[0]]), !stays, "{last}");
    }
    assert!(memory.is_gone(gone));
    assert!(memory.backends.values().filter(|(_, _, alive)| *alive).count() == 2, "{:?}", memory.backends);
    settle(&mut second);
    second.replace(&Contents::new()).ops.iter().for_each(|op| memory.run(op));
    settle(&mut second);
    assert_eq!(second.backends.free(), &BTreeMap::from([(0, 16)]));
}

#[test]
fn who_found_no_room_is_tried_again_when_places_come_free() {
    let (mut table, mut memory) = (Table::new(LIMITS), Memory::default());
    let ten = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    table.change("a", &[entry(&[1], &ten)]).ops.iter().for_each(|op| memory.run(op));
    table.change("b", &[entry(&[2], &[1])]).ops.iter().for_each(|op| memory.run(op));
    let change = table.change("b", &[entry(&[2], &[11, 12, 13, 14, 15, 16])]);
    assert!(change.ops.is_empty() && !change.refusals.is_empty());
    assert_eq!((table.refused(), memory.endpoints(&frontend(2))), (1, Some(targets(&[1]))));
    assert_eq!(table.retry().refusals.len(), 1, "there is no room yet");
    table.change("a", &[]).ops.iter().for_each(|op| memory.run(op));
    settle(&mut table);
    let change = table.retry();
    assert!(change.refusals.is_empty());
    change.ops.iter().for_each(|op| memory.run(op));
    assert_eq!((table.refused(), memory.endpoints(&frontend(2))), (0, Some(targets(&[11, 12, 13, 14, 15, 16]))));
}

fn only_for(mut entry: Entry, nets: &[u8]) -> Entry {
    let ranges = nets.iter().map(|net| desired::range([*net, 0, 0, 0].into(), 8).unwrap());
    (entry.set.ranges, entry.set.flags) = (ranges.collect(), Slot::SOURCE_RANGES);
    entry
}

#[test]
fn a_slot_is_never_for_more_than_the_old_or_the_new_ranges() {
    let (mut table, mut memory) = (Table::new(LIMITS), Memory::default());
    let nets: [&[u8]; 4] = [&[1, 2], &[2, 3], &[], &[4]];
    let all = |nets: &[u8]| if nets.is_empty() { entry(&[1], &[1]) } else { only_for(entry(&[1], &[1]), nets) };
    for round in 0..12 {
        let (before, after) = (all(nets[(round + 3) % 4]), all(nets[round % 4]));
        for op in table.change("a", std::slice::from_ref(&after)).ops {
            memory.run(&op);
            let Some(slot) = memory.frontends.get(&frontend(1)) else { continue };
            if memory.slot(*slot).0.has(Slot::SOURCE_RANGES) {
                let allowed =
                    |range: &IpNetwork| [&before, &after].iter().any(|entry| entry.set.ranges.contains(range));
                assert!(memory.ranges.iter().all(|(_, range)| allowed(range)), "{op:?}");
                assert!(!memory.ranges.is_empty());
            } else {
                assert!([&before, &after].iter().any(|entry| entry.set.ranges.is_empty()) || round == 0);
            }
        }
        let held: Vec<IpNetwork> = memory.ranges.iter().map(|(_, range)| *range).collect();
        assert_eq!(held, after.set.ranges);
        // The next process finds them.
        assert!(memory.adopt().change("a", &[after]).ops.is_empty());
        settle(&mut table);
    }
    table.change("a", &[]).ops.iter().for_each(|op| memory.run(op));
    assert!(memory.ranges.is_empty());
}

#[test]
fn without_room_for_its_ranges_a_service_is_for_nobody_and_tried_again() {
    let (mut table, mut memory) = (Table::new(LIMITS), Memory::default());
    let mut run = |change: Change| {
        change.ops.iter().for_each(|op| memory.run(op));
        (change.refusals, memory.frontends.contains_key(&frontend(2)), memory.ranges.len())
    };
    run(table.change("a", &[only_for(entry(&[1], &[1]), &[1, 2])]));
    assert_eq!(run(table.change("b", &[entry(&[2], &[2])])), (vec![], true, 2));
    let full = Refusal::RangesFull { limit: 3 };
    assert_eq!(run(table.change("b", &[only_for(entry(&[2], &[2]), &[3, 4])])), (vec![("b".into(), full)], false, 2));
    run(table.change("a", &[]));
    assert_eq!(run(table.retry()), (vec![], true, 2));
}
