use proxy_common::{Flow, Ip4, Port, TCP, Tuple};

use super::*;
use crate::layout::{CURRENT, NEXT, Raw, Step};
use crate::object;
use crate::sys::{Map, RawMap, Shape};

fn older(migration: &Migration) -> Vec<(&'static str, u32)> {
    migration.older.iter().map(|older| (older.layout.map, older.version)).collect()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn every_pin_is_current_older_or_foreign() {
    fn twice(raw: Raw) -> Option<Raw> {
        Some(raw)
    }
    let layouts = [Layout { map: "FLOWS", carry: Carry::Twice, steps: &[twice, twice] }];
    let migration =
        Migration::plan(&layouts, &names(&["v1_FLOWS", "v2_FLOWS", "v3_FLOWS", "v4_FLOWS", "v1_GONE", "else"]));
    assert_eq!(older(&migration), [("FLOWS", 2), ("FLOWS", 1)]);
    assert_eq!(migration.foreign, ["v4_FLOWS", "v1_GONE"]);
}

/// Pins that go with the test.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        object::prepare_root(&root.path()).unwrap();
        root
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("bpf")
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        object::remove_root(&self.path()).unwrap();
    }
}

fn tuple(port: u16) -> Tuple {
    let (src, dst) = (Ip4::new([10, 244, 0, 5]), Ip4::new([10, 96, 0, 1]));
    Tuple { src, dst, sport: Port::new(port), dport: Port::new(80), protocol: TCP, pad: 0, rest: 0 }
}

fn flow(seen: u64) -> Flow {
    Flow { to: tuple(1).reversed(), seen, ..Flow::default() }
}

fn flows(pins: &Pins) -> Vec<(Tuple, Flow)> {
    let mut flows = Map::<Tuple, Flow>::open(&pins.map("FLOWS")).unwrap().entries().unwrap();
    flows.sort_by_key(|(tuple, _)| tuple.sport.get());
    flows
}

/// A layout 1 of flows that had the time in seconds, in front, and nothing more.
#[test]
fn flows_of_another_shape_arrive_converted() {
    const OLD: Shape = Shape { key: 16, value: 24 };
    fn widen(old: Raw) -> Option<Raw> {
        let (seconds, to) = old.value.split_first_chunk::<8>()?;
        let seen = u64::from_ne_bytes(*seconds) * 1_000_000_000;
        let value = [to, &seen.to_ne_bytes(), &[0; 56]].concat();
        (seconds != &[0; 8]).then_some(Raw { key: old.key, value })
    }
    static STEPS: &[Step] = &[widen];
    static LAYOUTS: &[Layout] = &[Layout { map: "FLOWS", carry: Carry::Twice, steps: STEPS }];
    let root = Root::new();
    let pins = Pins::in_layouts(&root.path(), LAYOUTS);
    let bytes = |tuple: Tuple| {
        let Tuple { src, dst, sport, dport, protocol, .. } = tuple;
        [&src.octets()[..], &dst.octets(), &sport.0.to_ne_bytes(), &dport.0.to_ne_bytes(), &[protocol, 0, 0, 0]]
            .concat()
    };
    let old = RawMap::create(&root.path().join("maps/v1_FLOWS"), OLD, 16).unwrap();
    for (port, seconds) in [(4000, 5u64), (4001, 0), (4002, 7)] {
        let value = [&seconds.to_ne_bytes()[..], &bytes(tuple(1).reversed())].concat();
        old.put(&Raw { key: bytes(tuple(port)), value }, Put::New).unwrap();
    }
    let shape = Shape { key: 16, value: size_of::<Flow>() };
    RawMap::create(&pins.map("FLOWS"), shape, proxy_common::MAX_FLOWS as u32).unwrap();
    let migration = Migration::find(&pins).unwrap();
    migration.carry(&pins, Pass::First).unwrap();
    let expected = [(tuple(4000), flow(5_000_000_000)), (tuple(4002), flow(7_000_000_000))];
    assert_eq!(flows(&pins), expected);
    // A step that gives the wrong shape is an error, not rubbish in the map.
    static FORGOTTEN: &[Layout] = &[Layout { map: "FLOWS", carry: Carry::Twice, steps: &[crate::layout::renumbered] }];
    let pins = Pins::in_layouts(&root.path(), FORGOTTEN);
    assert!(matches!(
        Migration::find(&pins).unwrap().carry(&pins, Pass::First),
        Err(MigrateError::Carry { map: "FLOWS", from: 1, to: 2, .. })
    ));
}

#[test]
fn killed_between_any_two_steps_the_next_start_ends_with_everything() {
    type Part = fn(&Migration, &Pins) -> Result<(), MigrateError>;
    let parts: [Part; 3] =
        [|m, pins| m.carry(pins, Pass::First), |m, pins| m.carry(pins, Pass::Second), |m, pins| m.finish(pins)];
    for killed_after in 0..=parts.len() {
        let root = Root::new();
        let (old, new) = (Pins::in_layouts(&root.path(), CURRENT), Pins::in_layouts(&root.path(), NEXT));
        object::load(&old).unwrap();
        let old_flows = Map::<Tuple, Flow>::open(&old.map("FLOWS")).unwrap();
        old_flows.put(&tuple(1), &flow(1), Put::New).unwrap();
        Map::<u32, u64>::open(&old.map("PODS")).unwrap().put(&7, &9, Put::New).unwrap();

        object::load(&new).unwrap();
        let migration = Migration::find(&new).unwrap();
        parts[..killed_after].iter().for_each(|part| part(&migration, &new).unwrap());
        // Old programs go on until they are exchanged, and new ones have the last word.
        if killed_after < parts.len() {
            old_flows.put(&tuple(2), &flow(2), Put::New).unwrap();
            Map::<Tuple, Flow>::open(&new.map("FLOWS")).unwrap().put(&tuple(1), &flow(3), Put::Any).unwrap();
        }

        object::load(&new).unwrap();
        let again = Migration::find(&new).unwrap();
        parts.iter().for_each(|part| part(&again, &new).unwrap());
        let expected = match killed_after {
            3 => vec![(tuple(1), flow(1))],
            _ => vec![(tuple(1), flow(3)), (tuple(2), flow(2))],
        };
        assert_eq!(flows(&new), expected, "killed after {killed_after}");
        assert_eq!(Map::<u32, u64>::open(&new.map("PODS")).unwrap().get(&7).unwrap(), Some(9));
        assert!(older(&Migration::find(&new).unwrap()).is_empty());
    }
}

fn pin_hash(root: &Root, name: &str, shape: Shape) -> RawMap {
    RawMap::create(&root.path().join("maps").join(name), shape, 16).unwrap()
}

#[test]
fn services_of_layout_1_go_on_under_this_one() {
    use crate::desired::{Frontend, Target};
    use proxy_common::{Scope, Slot, UDP};

    const WORDS: Shape = Shape { key: 4, value: 8 };
    let root = Root::new();
    let word = |index: u32, word: u64| Raw { key: index.to_ne_bytes().to_vec(), value: word.to_ne_bytes().to_vec() };
    let frontends = pin_hash(&root, "v1_FRONTENDS", Shape { key: 8, value: 8 });
    let put = |addr: [u8; 4], port: u16, protocol, scope: Scope, slot: u64| {
        let key = [&addr[..], &port.to_be_bytes(), &[protocol, scope as u8]].concat();
        frontends.put(&Raw { key, value: (slot | 77 << 32).to_ne_bytes().to_vec() }, Put::New).unwrap();
    };
    put([10, 96, 0, 1], 53, UDP, Scope::Internal, 3);
    put([0; 4], 30_053, UDP, Scope::External, 3);
    put([10, 96, 0, 2], 80, TCP, Scope::Internal, 4);
    let slots = pin_hash(&root, "v1_SLOTS", WORDS);
    slots.put(&word(3, Slot { base: 5, count: 2, flags: Slot::KEEP_SOURCE }.bits()), Put::New).unwrap();
    slots.put(&word(4, Slot { base: 0, count: 0, flags: 0 }.bits()), Put::New).unwrap();
    let backends = pin_hash(&root, "v1_BACKENDS", WORDS);
    for (place, last) in [(5, 9), (6, 7)] {
        let bits = u64::from(Ip4::new([10, 244, 0, last]).0) | u64::from(Port::new(5353).0) << 32;
        backends.put(&word(place, bits), Put::New).unwrap();
    }
    pin_hash(&root, "v1_FLOWS", Shape { key: 16, value: 32 });
    let pins = Pins::new(&root.path());
    let contents = earlier::services(&pins).unwrap();
    let migration = Migration::find(&pins).unwrap();
    assert!(migration.has("FRONTENDS", Some(earlier::LAYOUT)) && migration.has("FLOWS", Some(earlier::LAYOUT)));

    // Twice, as after a kill.
    for _ in 0..2 {
        object::load(&pins).unwrap();
        let maps = crate::proxy::Maps::open(&pins).unwrap();
        let mut table = maps.adopt().unwrap();
        table.replace(&contents).ops.iter().for_each(|op| maps.run(op).unwrap());
        let table = maps.adopt().unwrap();
        let endpoints = |addr: [u8; 4], port, protocol, scope| {
            table.endpoints(&Frontend { addr: addr.into(), port, protocol, scope }).map(<[Target]>::to_vec)
        };
        let expected = [7, 9].map(|last| Target { ip: [10, 244, 0, last].into(), port: 5353 });
        assert_eq!(endpoints([10, 96, 0, 1], 53, UDP, Scope::Internal).unwrap(), expected);
        assert_eq!(endpoints([0; 4], 30_053, UDP, Scope::External).unwrap(), expected);
        assert_eq!(endpoints([10, 96, 0, 2], 80, TCP, Scope::Internal).unwrap(), []);
        assert_eq!(table.len(), 3);
    }
    migration.finish(&pins).unwrap();
    assert!(older(&Migration::find(&pins).unwrap()).is_empty());
}
