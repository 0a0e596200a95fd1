//! What programs choose while user space changes the maps, dies in the midst of it, or both at once: packets through the loaded
//! program show it.

mod connections;
mod hostile;
mod memory;
mod sums;

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::cost::{addr, mask};
use crate::desired::{EndpointSet, Frontend, Target};
use crate::object;
use crate::table::Op;

const CLIENT: [u8; 4] = [10, 244, 0, 5];
const NODE: [u8; 4] = [192, 0, 2, 1];
/// The device that packets of a test run come from.
const LOOPBACK: u32 = 1;

pub(super) struct Kernel {
    root: tempfile::TempDir,
    pub pins: Pins,
    pub programs: Programs,
    pub maps: Maps,
    /// Each packet is a new connection.
    port: std::sync::atomic::AtomicU16,
}

/// 10.244.0.0/24 of 10.244.0.0/15, and services in 10.96.0.0/12.
fn node<A: Twin>(maps: &Twins<A>) -> NodeConfig<A> {
    NodeConfig {
        node_ip: addr(NODE),
        uplink: LOOPBACK,
        service_link: LOOPBACK,
        snat_first: 50_000,
        snat_count: 15_000,
        epoch: 1,
        pod_flows: maps.most_flows / POD_SHARE,
        cluster_net: addr([10, 244, 0, 0]),
        cluster_mask: mask(15),
        pod_net: addr([10, 244, 0, 0]),
        pod_mask: mask(24),
        service_net: addr([10, 96, 0, 0]),
        service_mask: mask(12),
        ..Default::default()
    }
}

impl Kernel {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        object::prepare_root(&root.path().join("bpf")).unwrap();
        let pins = Pins::new(&root.path().join("bpf")).of(Families::Both);
        let programs = object::load(&pins).unwrap_or_else(|error| panic!("{error:?}"));
        let maps = Maps::open(&pins).unwrap();
        maps.v4.node.put(&0, &node(&maps.v4), Put::Any).unwrap();
        maps.v6.node.put(&0, &node(&maps.v6), Put::Any).unwrap();
        maps.v4.add_pod(addr::<Ip4>(CLIENT).address(), LOOPBACK).unwrap();
        maps.v6.add_pod(addr::<Ip>(CLIENT).address(), LOOPBACK).unwrap();
        Self { root, pins, programs, maps, port: 1024.into() }
    }

    /// Where a new connection to a service goes; none when it is refused.
    fn choice(&self, service: u8) -> Option<Target> {
        let port = self.port.fetch_add(1, Ordering::Relaxed).max(1024);
        let mut packet = vec![0u8; 60];
        packet[12..14].copy_from_slice(&[8, 0]);
        packet[14..24].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP]);
        packet[26..30].copy_from_slice(&CLIENT);
        packet[30..34].copy_from_slice(&[10, 96, 0, service]);
        packet[34..36].copy_from_slice(&port.to_be_bytes());
        packet[36..38].copy_from_slice(&80u16.to_be_bytes());
        packet[46..48].copy_from_slice(&[5 << 4, 2]);
        let program = self.programs.get(PacketHook::FromPod.program()).unwrap();
        let (_, packet, _) = sys::test_run(program.as_fd(), &packet, 1).unwrap();
        let ip: [u8; 4] = packet[30..34].try_into().unwrap();
        let target = Target { ip: ip.into(), port: u16::from_be_bytes([packet[36], packet[37]]) };
        const SYN: u8 = 2;
        (packet[47] == SYN && target.port == 8080).then_some(target)
    }

    fn run(&self, ops: &[Op]) {
        ops.iter().for_each(|op| self.maps.run(op).unwrap());
    }

    /// What a new process does.
    pub fn settle(&self, contents: &Contents) -> Table {
        let mut table = self.maps.adopt().unwrap();
        self.run(&table.replace(contents).ops);
        table
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        object::remove_root(&self.root.path().join("bpf")).unwrap();
    }
}

fn entry(service: u8, ports: &[u16], endpoints: &[u8]) -> Entry {
    let backend = |last: &u8| Target { ip: [10, 245, 0, *last].into(), port: 8080 };
    let mut backends: Vec<Target> = endpoints.iter().map(backend).collect();
    backends.sort_unstable();
    let addr = [10, 96, 0, service].into();
    let frontends = ports.iter().map(|&port| Frontend { addr, port, protocol: TCP, scope: Scope::Internal }).collect();
    Entry { port: 80, protocol: TCP, frontends, set: EndpointSet { backends, ..Default::default() } }
}

fn contents(services: &[(u8, &[u16], &[u8])]) -> Contents {
    services
        .iter()
        .map(|(service, ports, endpoints)| (name(*service), vec![entry(*service, ports, endpoints)]))
        .collect()
}

fn name(service: u8) -> String {
    format!("default/s{service}")
}

/// The endpoints of a service's port 80.
fn set(contents: &Contents, service: u8) -> Option<&[Target]> {
    let entry = &contents.get(&name(service))?[0];
    entry.frontends.iter().any(|frontend| frontend.port == 80).then_some(&entry.set.backends)
}

/// Every store by itself.
fn single_stores(ops: Vec<Op>) -> Vec<Op> {
    let split = |op| match op {
        Op::WriteSet { base, members } => {
            let single = |(base, member)| Op::WriteSet { base, members: vec![member] };
            (base..).zip(members).map(single).collect()
        }
        op => vec![op],
    };
    ops.into_iter().flat_map(split).collect()
}

#[test]
fn killed_after_any_store_programs_choose_whole_sets_and_the_next_process_finishes() {
    let kernel = Kernel::new();
    // A set replaced, one emptied, one filled, a service gone, one new, one that moves to another port and back.
    let a = contents(&[
        (1, &[80], &[1, 2, 3]),
        (2, &[80], &[4, 5]),
        (3, &[80], &[]),
        (4, &[80], &[6]),
        (6, &[80, 81], &[7]),
    ]);
    let b =
        contents(&[(1, &[80], &[11, 12]), (2, &[80], &[]), (3, &[80], &[13]), (5, &[80], &[14]), (6, &[81], &[7, 15])]);
    let services = 1..=6;
    let mut killed_after = 0;
    loop {
        let table = kernel.settle(&a);
        drop(table);
        let mut table = kernel.maps.adopt().unwrap();
        let ops = single_stores(table.replace(&b).ops);
        let done = killed_after.min(ops.len());
        kernel.run(&ops[..done]);
        for service in services.clone() {
            for _ in 0..8 {
                let choice = kernel.choice(service);
                let fits = |contents: &Contents| match choice {
                    // An address on its way out may show its service's new set.
                    Some(choice) => {
                        contents.get(&name(service)).is_some_and(|entries| entries[0].set.backends.contains(&choice))
                    }
                    None => set(contents, service).is_none_or(<[Target]>::is_empty),
                };
                assert!(fits(&a) || fits(&b), "service {service} killed after {done} of {ops:?}: {choice:?}");
            }
        }
        let table = kernel.settle(&b);
        for service in services.clone() {
            let frontend = entry(service, &[80], &[]).frontends[0];
            assert_eq!(table.endpoints(&frontend), set(&b, service), "killed after {done}");
            for _ in 0..8 {
                let choice = kernel.choice(service);
                assert!(choice.map_or(set(&b, service).is_none_or(<[Target]>::is_empty), |choice| {
                    set(&b, service).is_some_and(|set| set.contains(&choice))
                }));
            }
        }
        // Nothing is left over: what the next process finds is exactly what is desired.
        let adopted = kernel.maps.adopt().unwrap();
        assert_eq!(adopted.len(), 5);
        if killed_after > ops.len() {
            assert!(done > 10, "{ops:?}");
            return;
        }
        killed_after += 1;
    }
}

#[test]
fn a_flipping_set_is_never_seen_mixed() {
    let kernel = Kernel::new();
    let sets: [&[u8]; 2] = [&[1, 2, 3, 4, 5], &[11, 12]];
    let contents = sets.map(|endpoints| contents(&[(1, &[80], endpoints)]));
    let table = kernel.settle(&contents[0]);
    let shared = Shared::new(kernel.pins.clone(), Maps::open(&kernel.pins).unwrap(), table, SocketHooks::Absent);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sweeper = scope.spawn(|| shared.sweep_until_stopped());
        let flipper = scope.spawn(|| {
            let mut flips = 0;
            while !stop.load(Ordering::Relaxed) {
                flips += 1;
                shared.change(|table| table.replace(&contents[flips % 2]));
            }
            flips
        });
        let mut seen = BTreeSet::new();
        for _ in 0..20_000 {
            seen.extend(kernel.choice(1));
        }
        stop.store(true, Ordering::Relaxed);
        let flips = flipper.join().unwrap();
        shared.lock().tidy = Tidy::Stop;
        shared.wake.notify_all();
        sweeper.join().unwrap();
        let allowed = contents.iter().flat_map(|contents| set(contents, 1).unwrap()).copied().collect();
        assert_eq!(seen, allowed, "{flips} flips");
        assert!(flips > 100);
    });
}

/// The table knows of room that the kernel has not: somebody else's elements fill the map.
#[test]
fn a_service_that_the_kernel_refuses_holds_as_soon_as_it_can_and_others_go_on() {
    let kernel = Kernel::new();
    let table = kernel.settle(&contents(&[(1, &[80], &[1])]));
    let shared = Shared::new(kernel.pins.clone(), Maps::open(&kernel.pins).unwrap(), table, SocketHooks::Absent);
    let told = Arc::new(Mutex::new(Vec::new()));
    let hearing = Arc::clone(&told);
    let tell = move |name: &str, error: &ProxyError| hearing.lock().unwrap().push(format!("{name}: {error}"));
    shared.listener.set(Listener(Box::new(tell))).unwrap();
    let strangers =
        |number: u32| FrontendKey::new(Ip::from_quads([1, 2, 3, number]), Port::new(1), TCP, Scope::External);
    let mut number = 0;
    while kernel.maps.frontends.put(&strangers(number), &0, Put::Any).is_ok() {
        number += 1;
    }
    std::thread::scope(|scope| {
        let sweeper = scope.spawn(|| shared.sweep_until_stopped());
        for endpoint in [2, 3] {
            shared.change(|table| table.change(&name(2), &[entry(2, &[80], &[endpoint])]));
        }
        assert_eq!(*told.lock().unwrap(), ["default/s2: map FRONTENDS refuses a change"]);
        assert_eq!(kernel.choice(2), None);
        shared.change(|table| table.change(&name(1), &[entry(1, &[80], &[4])]));
        assert_eq!(kernel.choice(1), Some(Target { ip: [10, 245, 0, 4].into(), port: 8080 }));
        assert_eq!(shared.lock().doubts.len(), 1);
        for number in 0..number {
            kernel.maps.frontends.remove(&strangers(number)).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while shared.lock().doubts.len() > 0 {
            assert!(Instant::now() < deadline, "it never held");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(kernel.choice(2), Some(Target { ip: [10, 245, 0, 3].into(), port: 8080 }));
        shared.lock().tidy = Tidy::Stop;
        shared.wake.notify_all();
        sweeper.join().unwrap();
    });
}
