use proxy_common::{Scope, TCP};

use super::*;

const LIMITS: Limits = Limits { slots: 8, backends: 16, frontends: 8 };

fn frontend(last: u8) -> Frontend {
    Frontend { addr: [10, 96, 0, last].into(), port: 80, protocol: TCP, scope: Scope::Internal }
}

fn entry(frontends: &[u8], backends: &[u64]) -> Entry {
    let set = EndpointSet { backends: backends.to_vec(), ..Default::default() };
    Entry { port: 80, protocol: TCP, frontends: frontends.iter().map(|last| frontend(*last)).collect(), set }
}

/// What programs would see: the plan executed on plain memory, checked after every single step.
#[derive(Default)]
struct Memory {
    backends: HashMap<u32, u64>,
    slots: HashMap<u32, u64>,
    frontends: HashMap<Frontend, u32>,
}

impl Memory {
    fn run(&mut self, op: &Op) {
        match op {
            Op::WriteBackends { base, backends } => {
                for (offset, bits) in backends.iter().enumerate() {
                    self.backends.insert(base + offset as u32, *bits);
                }
            }
            Op::WriteAffinity { .. } => {}
            Op::FlipSlot { slot, bits } => drop(self.slots.insert(*slot, *bits)),
            Op::PutFrontend { frontend, slot } => drop(self.frontends.insert(*frontend, *slot)),
            Op::RemoveFrontend { frontend } => drop(self.frontends.remove(frontend)),
        }
    }

    fn endpoints(&self, frontend: &Frontend) -> Option<Vec<u64>> {
        let slot = Slot::from_bits(self.slots[self.frontends.get(frontend)?]);
        Some((slot.base..slot.base + u32::from(slot.count)).map(|index| self.backends[&index]).collect())
    }
}

fn settle(table: &mut Table) {
    let waste = table.take_waste();
    table.reclaim(waste);
}

#[test]
fn no_step_shows_a_mixed_set() {
    let (mut table, mut memory) = (Table::new(LIMITS), Memory::default());
    let sets: [&[u64]; 4] = [&[1, 2, 3], &[11, 12], &[], &[21, 22, 23, 24]];
    for op in table.change("a", &[entry(&[1], sets[3])]).ops {
        memory.run(&op);
    }
    for round in 0..100 {
        for op in table.change("a", &[entry(&[1], sets[round % 4])]).ops {
            memory.run(&op);
            let seen = memory.endpoints(&frontend(1)).unwrap();
            assert!(sets.contains(&seen.as_slice()), "{seen:?}");
        }
        assert_eq!(memory.endpoints(&frontend(1)).unwrap(), sets[round % 4]);
        settle(&mut table);
    }
}

#[test]
fn an_extent_is_not_reused_before_it_is_reclaimed() {
    let mut table = Table::new(LIMITS);
    let base = |change: &Change| match change.ops[0] {
        Op::WriteBackends { base, .. } => base,
        _ => panic!("{change:?}"),
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
    assert_eq!(table.replace(&contents).ops.len(), 6);
    assert_eq!(table.replace(&contents), Change::default());
    assert_eq!(table.change("a", &contents["a"]), Change::default());
}

#[test]
fn a_restart_adopts_and_touches_only_differences() {
    let mut first = Table::new(LIMITS);
    let mut memory = Memory::default();
    let mut contents =
        Contents::from([("a".into(), vec![entry(&[1, 3], &[1])]), ("b".into(), vec![entry(&[2], &[2, 9])])]);
    first.replace(&contents).ops.iter().for_each(|op| memory.run(op));

    let frontends: Vec<_> = memory.frontends.iter().map(|(frontend, slot)| (*frontend, *slot)).collect();
    let mut second = Table::adopt(LIMITS, &frontends, |number| {
        let slot = Slot::from_bits(memory.slots[&number]);
        let backends = (slot.base..slot.base + u32::from(slot.count)).map(|index| memory.backends[&index]).collect();
        (slot.bits(), backends, 0)
    });
    contents.remove("b");
    // Affinity ids are not in the kernel without affinity: writing the same slot again is all that may happen to `a`.
    let ops = second.replace(&contents).ops;
    assert!(ops.contains(&Op::RemoveFrontend { frontend: frontend(2) }));
    assert!(!ops.iter().any(|op| matches!(op, Op::WriteBackends { .. } | Op::PutFrontend { .. })), "{ops:?}");
}

#[test]
fn the_second_claimant_inherits_an_address() {
    let mut table = Table::new(LIMITS);
    table.change("a", &[entry(&[1], &[1])]);
    let change = table.change("b", &[entry(&[1], &[2])]);
    assert!(matches!(&change.refusals[..], [(name, Refusal::Conflict { owner, .. })] if name == "b" && owner == "a"));
    assert!(change.ops.is_empty());
    let mut memory = Memory::default();
    table.change("a", &[]).ops.iter().for_each(|op| memory.run(op));
    assert_eq!(memory.endpoints(&frontend(1)), Some(vec![2]));
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
    for round in 0u64..200 {
        let set: Vec<u64> = (0..round % 5).map(|offset| round * 10 + offset).collect();
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
    assert_eq!(table.backend_space.free, BTreeMap::from([(0, 16)]));
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
