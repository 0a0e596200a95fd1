//! What the packet programs cost, by the kernel's own clock: the loaded programs run on made-up packets, thousands of times.
//!
//! `BPF_PROG_TEST_RUN` with a repeat count runs a program again on what it made of the packet. So the maps are filled with rings: a
//! known flow leads to another known flow and back, a service's endpoint is the next service. Each run then does the whole work.
//! Packets end when their time to live is used up, which bounds the runs of one call. What leaves with the node's own address makes
//! no ring, as nobody outside may send with it: there each call is one run.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use proxy_common::{Family, Flow, Ip, Ip4, Member, NodeConfig, Port, Scope, Slot, TCP, Tuple};

use crate::desired::{Contents, EndpointSet, Entry, Frontend, Target};
use crate::family::{Families, Twin};
use crate::object::{self, PacketHook, Pins, Programs};
use crate::proxy::{LIMITS, Maps, ProxyError, Result, Twins, written};
use crate::sys::{self, Put};
use crate::table::Table;

/// How often a program runs on one packet after another: runs of one call, fewer than a time to live has hops, and calls.
#[derive(Debug, Clone, Copy)]
struct Repeat {
    runs: u32,
    calls: u16,
}

const IN_A_RING: Repeat = Repeat { runs: 250, calls: 200 };
/// Fewer than there are ports behind the node.
const ONCE_EACH: Repeat = Repeat { runs: 1, calls: 10_000 };
/// `TC_ACT_SHOT`.
const DROPPED: u32 = 2;
const SYN: u8 = 2;
const ACK: u8 = 16;
/// The device of test packets is the loopback.
const LOOPBACK: u32 = 1;

const CLIENT: [u8; 4] = [203, 0, 113, 5];
const OTHER_CLIENT: [u8; 4] = [203, 0, 113, 6];
const NODE: [u8; 4] = [192, 0, 2, 1];
const PODS: [[u8; 4]; 2] = [[10, 244, 0, 5], [10, 244, 0, 6]];

/// One kind of packet.
#[derive(Debug, Clone, PartialEq)]
pub struct PacketCost {
    pub what: &'static str,
    /// Nanoseconds of one run, the harness included: the median of all calls, and the nearest to the least that one call gave.
    pub median: u32,
    pub least: u32,
    pub runs: u32,
}

/// Size of a loaded program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramSize {
    pub program: &'static str,
    /// Instructions the verifier walked through, over all paths, and of machine code in bytes.
    pub verified: u32,
    pub machine_code: u32,
}

/// Loads the programs under a folder of pins of its own, which is gone afterwards, and runs them.
///
/// # Errors
/// [`ProxyError::Load`](crate::ProxyError::Load) where the programs cannot be loaded on this machine, `Write` where a map, the
/// run of a program (`TEST_RUN`) or the removal of the folder (`pins`) is refused. The folder goes after a failed run too.
pub fn measure(bpf_root: &Path) -> Result<(Vec<PacketCost>, Vec<ProgramSize>)> {
    object::prepare_root(bpf_root)?;
    let outcome = measure_at(&Pins::new(bpf_root).of(Families::Both));
    object::remove_root(bpf_root).map_err(written("pins"))?;
    outcome
}

fn measure_at(pins: &Pins) -> Result<(Vec<PacketCost>, Vec<ProgramSize>)> {
    let programs = object::load(pins)?;
    let maps = Maps::open(pins)?;
    fill(&maps)?;
    let mut costs =
        vec![cost("neither IPv4 nor IPv6", programs.get(PacketHook::FromUplink.program())?, IN_A_RING, |_| {
            vec![0; 60]
        })?];
    costs.extend(family_costs::<Ip4>(
        &programs,
        ["known flow", "pod to pod", "new flow, source kept", "new flow behind the node's address"],
    )?);
    costs.extend(family_costs::<Ip>(
        &programs,
        [
            "IPv6: known flow",
            "IPv6: pod to pod",
            "IPv6: new flow, source kept",
            "IPv6: new flow behind the node's address",
        ],
    )?);
    Ok((costs, sizes(&programs)?))
}

/// `names` are those of a known flow, from pod to pod, and the two kinds of new flow.
fn family_costs<A: Twin>(programs: &Programs, names: [&'static str; 4]) -> Result<[PacketCost; 4]> {
    let (pod, uplink) = (programs.get(PacketHook::FromPod.program())?, programs.get(PacketHook::FromUplink.program())?);
    let opening = |ring: Ring, call: u16| {
        let service = ring.service::<A>((call % 256) as u8);
        frame(SYN, &tuple_of(addr(CLIENT), 1024 + call, service, 80))
    };
    let between = tuple_of::<A>(addr(PODS[0]), 4000, addr(PODS[1]), 8080);
    let [known, pods, kept, behind] = names;
    Ok([
        cost(known, uplink, IN_A_RING, |_| frame(ACK, &flow_ring::<A>()[0]))?,
        cost(pods, pod, IN_A_RING, |_| frame(ACK, &between))?,
        cost(kept, uplink, IN_A_RING, |call| opening(Ring::SourceKept, call))?,
        cost(behind, uplink, ONCE_EACH, |call| opening(Ring::BehindNode, call))?,
    ])
}

fn sizes(programs: &Programs) -> Result<Vec<ProgramSize>> {
    let size = |(program, fd): (&'static str, &OwnedFd)| {
        let (verified, machine_code) = sys::program_size(fd.as_fd()).map_err(written("programs"))?;
        Ok(ProgramSize { program, verified, machine_code })
    };
    programs.all().map(size).collect()
}

fn cost(what: &'static str, program: &OwnedFd, repeat: Repeat, make: impl Fn(u16) -> Vec<u8>) -> Result<PacketCost> {
    let mut times = Vec::new();
    for call in 0..repeat.calls {
        let (verdict, _, nanoseconds) =
            sys::test_run(program.as_fd(), &make(call), repeat.runs).map_err(written("TEST_RUN"))?;
        if verdict == DROPPED {
            return Err(ProxyError::Dropped { what });
        }
        times.push(nanoseconds);
    }
    times.sort_unstable();
    let runs = repeat.runs * u32::from(repeat.calls);
    Ok(PacketCost { what, median: times[times.len() / 2], least: times[0], runs })
}

/// The address that an IPv4 one stands for: itself, or behind fd77::/96.
pub(crate) fn addr<A: Twin>(octets: [u8; 4]) -> A {
    let [a, b, c, d] = octets;
    let v6 = IpAddr::from([0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]);
    A::of(IpAddr::from(octets)).or_else(|| A::of(v6)).unwrap_or_default()
}

/// The mask of a range with so many bits, as of an IPv4 one.
pub(crate) fn mask<A: Twin>(bits: u32) -> A {
    let v4 = (u32::MAX << (32 - bits)).to_be_bytes();
    let v6 = (u128::MAX << (32 - bits)).to_be_bytes();
    A::of(IpAddr::from(v4)).or_else(|| A::of(IpAddr::from(v6))).unwrap_or_default()
}

pub(crate) fn tuple_of<A>(src: A, sport: u16, dst: A, dport: u16) -> Tuple<A> {
    Tuple { src, dst, sport: Port::new(sport), dport: Port::new(dport), protocol: TCP, pad: 0, rest: 0 }
}

/// Two flows, each of whose packets become the other's: everything that can change changes.
fn flow_ring<A: Twin>() -> [Tuple<A>; 2] {
    [tuple_of(addr(CLIENT), 4000, addr(PODS[0]), 80), tuple_of(addr(OTHER_CLIENT), 50_000, addr(PODS[1]), 8080)]
}

/// A ring of services, each the endpoint of the one before, by what its endpoints see of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ring {
    SourceKept,
    BehindNode,
}

impl Ring {
    /// The address of one of its services.
    fn service<A: Twin>(self, index: u8) -> A {
        let net = match self {
            Self::SourceKept => 100,
            Self::BehindNode => 101,
        };
        addr([198, 51, net, index])
    }

    fn entry<A: Twin>(self, index: u8) -> Entry {
        let addr = self.service::<A>(index).address();
        let next = Target { ip: self.service::<A>(index.wrapping_add(1)).address(), port: 80 };
        let flags = match self {
            Self::SourceKept => Slot::KEEP_SOURCE,
            Self::BehindNode => 0,
        };
        let frontends = vec![Frontend { addr, port: 80, protocol: TCP, scope: Scope::External }];
        let set = EndpointSet { backends: vec![next], flags, ..Default::default() };
        Entry { port: 80, protocol: TCP, frontends, set }
    }
}

fn fill(maps: &Maps) -> Result<()> {
    fill_family(&maps.v4)?;
    fill_family(&maps.v6)?;
    let mut table = Table::new(LIMITS);
    let both =
        [Ring::SourceKept, Ring::BehindNode].into_iter().flat_map(|ring| (0..=u8::MAX).map(move |at| (ring, at)));
    let services: Contents = both
        .map(|(ring, index)| (format!("{ring:?}{index}"), vec![ring.entry::<Ip4>(index), ring.entry::<Ip>(index)]))
        .collect();
    table.replace(&services).ops.iter().try_for_each(|op| maps.run(op))
}

fn fill_family<A: Twin>(maps: &Twins<A>) -> Result<()> {
    let node = NodeConfig {
        node_ip: addr(NODE),
        uplink: LOOPBACK,
        service_link: LOOPBACK,
        pod_net: addr([10, 244, 0, 0]),
        pod_mask: mask(24),
        cluster_net: addr([10, 244, 0, 0]),
        cluster_mask: mask(16),
        service_net: addr([10, 96, 0, 0]),
        service_mask: mask(12),
        snat_first: 50_000,
        snat_count: 15_000,
        epoch: 1,
        ..NodeConfig::default()
    };
    maps.node.put(&0, &node, Put::Any).map_err(written(A::NODE))?;
    PODS.iter().try_for_each(|pod| maps.add_pod(addr::<A>(*pod).address(), LOOPBACK))?;
    let [a, b] = flow_ring::<A>();
    for (key, to) in [(a, b), (b, a)] {
        let (seen, tag) = (sys::monotonic_nanoseconds(), Flow::tag_of(&key, &to));
        let flow = Flow { to, seen, tag, member: Member::NONE.bits(), replied: 1, assured: 1, ..Flow::default() };
        maps.flows.put(&key, &flow, Put::Any).map_err(written(A::FLOWS))?;
    }
    Ok(())
}

/// A packet in its Ethernet frame, with flags where it is of TCP; its sums are left to a device.
pub(crate) fn frame<A: Twin>(flags: u8, tuple: &Tuple<A>) -> Vec<u8> {
    let mut transport = [0u8; 20];
    transport[0..2].copy_from_slice(&tuple.sport.0.to_ne_bytes());
    transport[2..4].copy_from_slice(&tuple.dport.0.to_ne_bytes());
    if tuple.protocol == TCP {
        transport[12..14].copy_from_slice(&[5 << 4, flags]);
    }
    let octets = |addr: A| match addr.address() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (kind, header) = match A::FAMILY {
        Family::V4 => ([8, 0], vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 255, tuple.protocol, 0, 0]),
        Family::V6 => ([0x86, 0xdd], vec![0x60, 0, 0, 0, 0, 20, tuple.protocol, 255]),
    };
    let mut frame = [&[0; 12][..], &kind, &header, &octets(tuple.src), &octets(tuple.dst), &transport].concat();
    // The shortest that Ethernet has.
    frame.resize(frame.len().max(60), 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Verifying is most of a start's time, and grows with every way through a program, not with its length.
    #[test]
    fn programs_are_verified_quickly() {
        // Most of one program, and of all together.
        let limits =
            [(Families::V4, 25_000, 145_000), (Families::V6, 33_000, 180_000), (Families::Both, 58_000, 285_000)];
        for (families, each, together) in limits {
            let root = tempfile::tempdir().unwrap();
            let root = root.path().join("bpf");
            object::prepare_root(&root).unwrap();
            let started = std::time::Instant::now();
            let loaded = object::load(&Pins::new(&root).of(families));
            let taken = started.elapsed();
            let sizes = loaded.map_err(Into::into).and_then(|programs| sizes(&programs));
            object::remove_root(&root).unwrap();
            let sizes = sizes.unwrap_or_else(|error: crate::ProxyError| panic!("{error:?}"));
            let sum: u32 = sizes.iter().map(|size| size.verified).sum();
            println!("{families:?}: {sum} instructions verified in all, loaded in {taken:?}");
            for size in &sizes {
                println!("{families:?} {}: {} instructions verified", size.program, size.verified);
                assert!(size.verified <= each, "{size:?}");
            }
            assert!(sum <= together, "{sizes:?}");
        }
    }
}
