//! What the packet programs cost, by the kernel's own clock: the loaded programs run on made-up packets, thousands of times.
//!
//! `BPF_PROG_TEST_RUN` with a repeat count runs a program again on what it made of the packet. So the maps are filled with rings: a
//! known flow leads to another known flow and back, a service's endpoint is the next service. Each run then does the whole work.
//! Packets end when their time to live is used up, which bounds the runs of one call. What leaves with the node's own address makes
//! no ring, as nobody outside may send with it: there each call is one run.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use proxy_common::{Flow, Ip4, Member, NodeConfig, Port, Scope, Slot, TCP, Tuple};

use crate::desired::{Contents, EndpointSet, Entry, Frontend, Target};
use crate::object::{self, PacketHook, Pins, Programs};
use crate::proxy::{LIMITS, Maps, ProxyError, Result, written};
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

const CLIENT: Ip4 = Ip4::new([203, 0, 113, 5]);
const OTHER_CLIENT: Ip4 = Ip4::new([203, 0, 113, 6]);
const NODE: Ip4 = Ip4::new([192, 0, 2, 1]);
const PODS: [Ip4; 2] = [Ip4::new([10, 244, 0, 5]), Ip4::new([10, 244, 0, 6])];

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
    let outcome = measure_at(&Pins::new(bpf_root));
    object::remove_root(bpf_root).map_err(written("pins"))?;
    outcome
}

fn measure_at(pins: &Pins) -> Result<(Vec<PacketCost>, Vec<ProgramSize>)> {
    let programs = object::load(pins)?;
    let maps = Maps::open(pins)?;
    fill(&maps)?;
    let (pod, uplink) = (programs.get(PacketHook::FromPod.program())?, programs.get(PacketHook::FromUplink.program())?);
    let opening = |ring: Ring, call: u16| {
        let service = ring.service((call % 256) as u8);
        packet(SYN, &tuple(CLIENT, 1024 + call, service, 80))
    };
    let costs = vec![
        cost("not IPv4", uplink, IN_A_RING, |_| vec![0; 60])?,
        cost("known flow", uplink, IN_A_RING, |_| packet(ACK, &flow_ring()[0]))?,
        cost("pod to pod", pod, IN_A_RING, |_| packet(ACK, &tuple(PODS[0], 4000, PODS[1], 8080)))?,
        cost("new flow, source kept", uplink, IN_A_RING, |call| opening(Ring::SourceKept, call))?,
        cost("new flow behind the node's address", uplink, ONCE_EACH, |call| opening(Ring::BehindNode, call))?,
    ];
    Ok((costs, sizes(&programs)?))
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

fn tuple(src: Ip4, sport: u16, dst: Ip4, dport: u16) -> Tuple {
    Tuple { src, dst, sport: Port::new(sport), dport: Port::new(dport), protocol: TCP, pad: 0, rest: 0 }
}

/// Two flows, each of whose packets become the other's: everything that can change changes.
fn flow_ring() -> [Tuple; 2] {
    [tuple(CLIENT, 4000, PODS[0], 80), tuple(OTHER_CLIENT, 50_000, PODS[1], 8080)]
}

/// A ring of services, each the endpoint of the one before, by what its endpoints see of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ring {
    SourceKept,
    BehindNode,
}

impl Ring {
    /// The address of one of its services.
    fn service(self, index: u8) -> Ip4 {
        let net = match self {
            Self::SourceKept => 100,
            Self::BehindNode => 101,
        };
        Ip4::new([198, 51, net, index])
    }

    fn entry(self, index: u8) -> Entry {
        let addr = self.service(index).octets().into();
        let next = Target { ip: self.service(index.wrapping_add(1)).octets().into(), port: 80 };
        let flags = match self {
            Self::SourceKept => Slot::KEEP_SOURCE,
            Self::BehindNode => 0,
        };
        let frontends = vec![Frontend { addr, port: 80, protocol: TCP, scope: Scope::External }];
        let set = EndpointSet { backends: vec![next], flags, affinity_seconds: 0 };
        Entry { port: 80, protocol: TCP, frontends, set }
    }
}

fn fill(maps: &Maps) -> Result<()> {
    let node = NodeConfig {
        node_ip: NODE,
        uplink: LOOPBACK,
        service_link: LOOPBACK,
        pod_net: Ip4::new([10, 244, 0, 0]),
        pod_mask: Ip4::new([255, 255, 255, 0]),
        cluster_net: Ip4::new([10, 244, 0, 0]),
        cluster_mask: Ip4::new([255, 255, 0, 0]),
        service_net: Ip4::new([10, 96, 0, 0]),
        service_mask: Ip4::new([255, 240, 0, 0]),
        snat_first: 50_000,
        snat_count: 15_000,
        epoch: 1,
        ..NodeConfig::default()
    };
    maps.v4.node.put(&0, &node, Put::Any).map_err(written("NODE"))?;
    for ip in PODS {
        maps.v4.add_pod(std::net::Ipv4Addr::from(ip.octets()).into(), LOOPBACK)?;
    }
    let [a, b] = flow_ring();
    for (key, to) in [(a, b), (b, a)] {
        let (seen, tag) = (sys::monotonic_nanoseconds(), Flow::tag_of(&key, &to));
        let flow = Flow { to, seen, tag, member: Member::NONE.bits(), replied: 1, assured: 1, ..Flow::default() };
        maps.v4.flows.put(&key, &flow, Put::Any).map_err(written("FLOWS"))?;
    }
    let mut table = Table::new(LIMITS);
    let services: Contents = [Ring::SourceKept, Ring::BehindNode]
        .into_iter()
        .flat_map(|ring| (0..=u8::MAX).map(move |index| (format!("{ring:?}{index}"), vec![ring.entry(index)])))
        .collect();
    table.replace(&services).ops.iter().try_for_each(|op| maps.run(op))
}

fn packet(flags: u8, tuple: &Tuple) -> Vec<u8> {
    let mut packet = vec![0u8; 60];
    packet[12..14].copy_from_slice(&[8, 0]);
    packet[14..24].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0x40, 0, 255, tuple.protocol]);
    packet[26..30].copy_from_slice(&tuple.src.octets());
    packet[30..34].copy_from_slice(&tuple.dst.octets());
    packet[34..36].copy_from_slice(&tuple.sport.0.to_ne_bytes());
    packet[36..38].copy_from_slice(&tuple.dport.0.to_ne_bytes());
    packet[46..48].copy_from_slice(&[5 << 4, flags]);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Families;

    /// Verifying is most of a start's time, and grows with every way through a program, not with its length.
    #[test]
    fn programs_are_verified_quickly() {
        // Most of one program, and of all together.
        let limits =
            [(Families::V4, 25_000, 125_000), (Families::V6, 30_000, 150_000), (Families::Both, 50_000, 225_000)];
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
