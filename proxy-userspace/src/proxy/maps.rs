//! The pinned maps as user space reads and writes them.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnetwork::IpNetwork;
use proxy_common::*;

use super::{LIMITS, ProxyError, Result};
use crate::desired::{self, Frontend, Target};
use crate::family::Twin;
use crate::object::{self, LoadError, Pins};
use crate::sys::{Map, Put, SharedArray, Words};
use crate::table::{Generation, Left, Op, Table};

/// Words of a backend, and where its state is among them.
const BACKEND_WORDS: usize = size_of::<Backend>() / 8;
pub(super) const STATE: usize = std::mem::offset_of!(Backend, state) / 8;
/// Words of a place among the ports for translated sources.
pub(super) const fn snat_words<A: Addr>() -> usize {
    size_of::<SnatPlace<A>>() / 8
}

#[derive(Debug)]
pub(crate) struct Maps {
    pub frontends: Map<FrontendKey, u64>,
    pub node_ports: SharedArray,
    pub slots: SharedArray,
    pub affinity_of: SharedArray,
    pub sets: SharedArray,
    pub backends: SharedArray,
    pub source_ranges: Map<SourceRange, u32>,
    pub local_netns: Map<u64, u64>,
    pub local_netns6: Map<u64, Ip>,
    pub v4: Twins<Ip4>,
    pub v6: Twins<Ip>,
    pub counters: Map<u32, u64>,
    /// Cookies of connected datagram sockets, and where they were led.
    pub led: Map<u64, u64>,
}

/// The maps of one family.
#[derive(Debug)]
pub(crate) struct Twins<A: Twin> {
    pub pods: Map<A, u64>,
    pub shares: Map<A, u64>,
    pub node_addresses: Map<A, u32>,
    pub node: Map<u32, NodeConfig<A>>,
    pub flows: Map<Tuple<A>, Flow<A>>,
    /// How many flows there may be.
    pub most_flows: u32,
    pub snat: SharedArray,
    pub exposed: Map<A::End, A::End>,
}

impl<A: Twin> Twins<A> {
    fn open(pins: &Pins) -> std::result::Result<Self, LoadError> {
        let elements = |map| pins.families().elements(map).unwrap_or(1);
        Ok(Self {
            pods: object::open(pins, A::PODS)?,
            shares: object::open(pins, A::SHARES)?,
            node_addresses: object::open(pins, A::NODE_ADDRESSES)?,
            node: object::open(pins, A::NODE)?,
            flows: object::open(pins, A::FLOWS)?,
            most_flows: elements(A::FLOWS),
            snat: object::open_shared(pins, A::SNAT, elements(A::SNAT) as usize * snat_words::<A>())?,
            exposed: object::open(pins, A::EXPOSED)?,
        })
    }

    /// Makes the addresses that are of this family those of nodes.
    pub fn set_node_addresses(&self, this: &[IpAddr], others: &[IpAddr]) -> Result<()> {
        let of_kind = |addresses: &[IpAddr], kind| -> Vec<(A, u32)> {
            addresses.iter().filter_map(|ip| Some((A::of(*ip)?, kind))).collect()
        };
        let wanted = of_kind(others, OTHER_NODE).into_iter().chain(of_kind(this, THIS_NODE));
        let wanted: BTreeMap<A, u32> = wanted.collect();
        let map = &self.node_addresses;
        for (address, _) in map.entries().map_err(written(A::NODE_ADDRESSES))? {
            if !wanted.contains_key(&address) {
                map.remove(&address).map_err(written(A::NODE_ADDRESSES))?;
            }
        }
        let mut entries = wanted.iter();
        entries.try_for_each(|(address, kind)| map.put(address, kind, Put::Any)).map_err(written(A::NODE_ADDRESSES))
    }

    /// Packets to a pod's address, if it is of this family, go into a device.
    pub fn add_pod(&self, ip: IpAddr, ifindex: u32) -> Result<()> {
        let Some(addr) = A::of(ip) else { return Ok(()) };
        // Before the pod can send: without a row it has no bounds.
        self.shares.put(&addr, &0, Put::Any).map_err(written(A::SHARES))?;
        self.pods.put(&addr, &PodLink { ifindex, mark: addr.mark() }.bits(), Put::Any).map_err(written(A::PODS))
    }

    pub fn forget_pod(&self, ip: IpAddr) -> Result<()> {
        let Some(addr) = A::of(ip) else { return Ok(()) };
        self.pods.remove(&addr).map(drop).map_err(written(A::PODS))
    }

    pub fn forget_share(&self, ip: IpAddr) -> Result<()> {
        let Some(addr) = A::of(ip) else { return Ok(()) };
        self.shares.remove(&addr).map(drop).map_err(written(A::SHARES))
    }

    pub fn forget_flows(&self) -> Result<()> {
        for (key, _) in self.flows.entries().map_err(written(A::FLOWS))? {
            self.flows.remove(&key).map_err(written(A::FLOWS))?;
        }
        Ok(())
    }

    /// Address and host end of every pod.
    fn pods(&self) -> Result<impl Iterator<Item = (IpAddr, u32)>> {
        let pods = self.pods.entries().map_err(written(A::PODS))?;
        Ok(pods.into_iter().map(|(ip, bits)| (ip.address(), PodLink::from_bits(bits).ifindex)))
    }
}

impl Maps {
    pub fn open(pins: &Pins) -> std::result::Result<Self, LoadError> {
        Ok(Self {
            frontends: object::open(pins, "FRONTENDS")?,
            node_ports: object::open_shared(pins, "NODE_PORTS", MAX_NODE_PORTS)?,
            slots: object::open_shared(pins, "SLOTS", MAX_SLOTS)?,
            affinity_of: object::open_shared(pins, "AFFINITY_OF", MAX_SLOTS)?,
            sets: object::open_shared(pins, "SETS", MAX_MEMBERS)?,
            backends: object::open_shared(pins, "BACKENDS", MAX_BACKENDS * BACKEND_WORDS)?,
            source_ranges: object::open(pins, "SOURCE_RANGES")?,
            local_netns: object::open(pins, "LOCAL_NETNS")?,
            local_netns6: object::open(pins, "LOCAL_NETNS6")?,
            v4: Twins::open(pins)?,
            v6: Twins::open(pins)?,
            counters: object::open(pins, "COUNTERS")?,
            led: object::open(pins, "LED")?,
        })
    }

    pub fn run(&self, op: &Op) -> Result<()> {
        match op {
            Op::WriteBackend { member, target, protocol } => {
                self.write_backend(*member, target, *protocol).map_err(written("BACKENDS"))?;
            }
            Op::WriteSet { base, members } => {
                for (place, member) in (*base as usize..).zip(members) {
                    self.sets.word(place).map_err(written("SETS"))?.store(member.bits(), Ordering::Relaxed);
                }
            }
            Op::WriteAffinity { slot, bits } => {
                let word = self.affinity_of.word(*slot as usize).map_err(written("AFFINITY_OF"))?;
                word.store(*bits, Ordering::Release);
            }
            Op::FlipSlot { slot, bits } => {
                self.slots.word(*slot as usize).map_err(written("SLOTS"))?.store(*bits, Ordering::Release);
            }
            Op::PutFrontend { frontend, slot } => match node_port(frontend) {
                Some(index) => self.set_node_port(index, frontend.scope, Some(*slot))?,
                None => {
                    let key = frontend_key(frontend);
                    self.frontends.put(&key, &key.value(*slot), Put::Any).map_err(written("FRONTENDS"))?;
                }
            },
            Op::RemoveFrontend { frontend } => match node_port(frontend) {
                Some(index) => self.set_node_port(index, frontend.scope, None)?,
                None => {
                    self.frontends.remove(&frontend_key(frontend)).map_err(written("FRONTENDS"))?;
                }
            },
            Op::PutRange { slot, range } => {
                let key = source_range(*slot, range);
                self.source_ranges.put(&key, &1, Put::Any).map_err(written("SOURCE_RANGES"))?;
            }
            Op::RemoveRange { slot, range } => {
                self.source_ranges.remove(&source_range(*slot, range)).map_err(written("SOURCE_RANGES"))?;
            }
            Op::RetireBackend { index } => {
                let state = &self.backend_words(*index).map_err(written("BACKENDS"))?[STATE];
                let backend = Backend { state: state.load(Ordering::Acquire), ..Backend::default() };
                state.store(backend.retired(), Ordering::Release);
            }
        }
        Ok(())
    }

    pub(super) fn backend_words(&self, index: u32) -> io::Result<&[AtomicU64]> {
        self.backends.words(index as usize * BACKEND_WORDS, BACKEND_WORDS)
    }

    fn write_backend(&self, member: Member, target: &Target, protocol: u8) -> io::Result<()> {
        let backend = Backend::new(target.ip.into(), Port::new(target.port), protocol, member.generation);
        let words = self.backend_words(member.index)?;
        for (word, half) in words.iter().zip(backend.addr.halves()) {
            word.store(half, Ordering::Relaxed);
        }
        words[STATE + 1].store(0, Ordering::Relaxed);
        words[STATE].store(backend.state, Ordering::Release);
        Ok(())
    }

    fn set_node_port(&self, index: u32, scope: Scope, slot: Option<u32>) -> Result<()> {
        let word = self.node_ports.word(index as usize).map_err(written("NODE_PORTS"))?;
        // Only this process writes them, one change at a time.
        let before = NodePort(word.load(Ordering::Relaxed));
        word.store(before.with(scope, slot).0, Ordering::Release);
        Ok(())
    }

    /// Every address of a pod, with its host end.
    pub fn pods(&self) -> Result<Vec<(IpAddr, u32)>> {
        Ok(self.v4.pods()?.chain(self.v6.pods()?).collect())
    }

    /// The table of what an earlier process left.
    pub fn adopt(&self) -> Result<Table> {
        let entries = self.frontends.entries().map_err(written("FRONTENDS"))?;
        let by_address = entries.iter().filter_map(|(key, value)| Some((frontend(key)?, key.slot_of(*value)?)));
        let words = self.node_ports.whole().map_err(written("NODE_PORTS"))?;
        let ports = (0u32..).zip(words.iter()).flat_map(|(index, word)| {
            let ports = NodePort(word.load(Ordering::Acquire));
            [Scope::Internal, Scope::External]
                .into_iter()
                .filter_map(move |scope| Some((node_port_frontend(index, scope), ports.slot(scope)?)))
        });
        let frontends: BTreeMap<Frontend, u32> = by_address.chain(ports).collect();
        let frontends: Vec<_> = frontends.into_iter().filter(|(_, slot)| (*slot as usize) < MAX_SLOTS).collect();
        let sets = Sets {
            slots: self.slots.whole().map_err(written("SLOTS"))?,
            affinity_of: self.affinity_of.whole().map_err(written("AFFINITY_OF"))?,
            members: self.sets.whole().map_err(written("SETS"))?,
            backends: self.backends.whole().map_err(written("BACKENDS"))?,
        };
        let ranges = self.source_ranges.entries().map_err(written("SOURCE_RANGES"))?;
        let ranges = ranges.iter().filter_map(|(key, _)| range(key)).collect();
        Ok(Table::adopt(LIMITS, &frontends, |number| sets.left(number), sets.generations(), ranges))
    }
}

/// What an earlier process left, while it is read.
struct Sets {
    slots: Words,
    affinity_of: Words,
    members: Words,
    backends: Words,
}

impl Sets {
    fn left(&self, number: u32) -> Left {
        let slot = Slot::from_bits(self.slots[number as usize].load(Ordering::Acquire));
        let places = self.members.iter().skip(slot.base as usize).take(slot.count as usize);
        let members = places.map(|place| Member::from_bits(place.load(Ordering::Relaxed)));
        let known = members.filter(|member| (member.index as usize) < MAX_BACKENDS).map(|member| {
            let backend = self.backend(member.index);
            (member, Target { ip: address(backend.addr), port: backend.port().get() })
        });
        let affinity = Affinity::from_bits(self.affinity_of[number as usize].load(Ordering::Acquire));
        Left { slot, members: known.collect(), affinity }
    }

    fn backend(&self, index: u32) -> Backend {
        let words = &self.backends[index as usize * BACKEND_WORDS..][..BACKEND_WORDS];
        let state = words[STATE].load(Ordering::Acquire);
        let mut octets = [0; 16];
        octets[..8].copy_from_slice(&words[0].load(Ordering::Relaxed).to_ne_bytes());
        octets[8..].copy_from_slice(&words[1].load(Ordering::Relaxed).to_ne_bytes());
        Backend { addr: Ip::from_octets(octets), state, ..Backend::default() }
    }

    fn generations(&self) -> Vec<Generation> {
        let states = self.backends.iter().skip(STATE).step_by(BACKEND_WORDS);
        let states = (0u32..).zip(states.map(|word| word.load(Ordering::Acquire)));
        states
            .filter(|(_, state)| *state != 0)
            .map(|(index, state)| Generation {
                member: Member { index, generation: generation_of(state) },
                alive: Backend { state, ..Backend::default() }.is_alive(),
            })
            .collect()
    }
}

pub(crate) fn written(map: &'static str) -> impl Fn(io::Error) -> ProxyError {
    move |source| ProxyError::Write { map, source }
}

fn address(ip: Ip) -> IpAddr {
    match ip.to_v4() {
        Some(ip) => ip.octets().into(),
        None => ip.octets().into(),
    }
}

/// The place of a port of every address of the node.
fn node_port(frontend: &Frontend) -> Option<u32> {
    let family = if frontend.addr.is_ipv4() { Family::V4 } else { Family::V6 };
    let index = NodePort::index(family, frontend.protocol, Port::new(frontend.port));
    index.filter(|_| frontend.addr.is_unspecified())
}

fn node_port_frontend(index: u32, scope: Scope) -> Frontend {
    let (family, protocol, port) = NodePort::at(index);
    let addr = match family {
        Family::V4 => IpAddr::from([0; 4]),
        Family::V6 => IpAddr::from([0; 16]),
    };
    Frontend { addr, port: port.get(), protocol, scope }
}

fn frontend_key(frontend: &Frontend) -> FrontendKey {
    FrontendKey::new(frontend.addr.into(), Port::new(frontend.port), frontend.protocol, frontend.scope)
}

/// Where addresses of a family begin among the bits of all.
fn bits_before(family: Family) -> u8 {
    match family {
        Family::V4 => 96,
        Family::V6 => 0,
    }
}

fn source_range(slot: u32, range: &IpNetwork) -> SourceRange {
    let net = Ip::from(range.ip());
    SourceRange::new(slot, net, bits_before(net.family()) + range.prefix())
}

fn range(key: &SourceRange) -> Option<(u32, IpNetwork)> {
    let (slot, net, length) = key.parts();
    Some((slot, desired::range(address(net), length.checked_sub(bits_before(net.family()))?)?))
}

fn frontend(key: &FrontendKey) -> Option<Frontend> {
    let scope = [Scope::Internal, Scope::External].into_iter().find(|scope| *scope as u8 == key.scope)?;
    Some(Frontend { addr: address(key.addr), port: key.port.get(), protocol: key.protocol, scope })
}
