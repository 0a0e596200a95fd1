//! The pinned maps as user space reads and writes them.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};

use proxy_common::*;

use super::{LIMITS, ProxyError, Result};
use crate::desired::{Frontend, Target};
use crate::object::{self, LoadError, Pins};
use crate::sys::{Map, Put, SharedArray, Words};
use crate::table::{Generation, Left, Op, Table};

/// Words of a backend, and where its state is among them.
const BACKEND_WORDS: usize = size_of::<Backend>() / 8;
const STATE: usize = std::mem::offset_of!(Backend, state) / 8;
/// Words of a place among the ports for translated sources.
pub(super) const SNAT_WORDS: usize = size_of::<SnatPlace>() / 8;

#[derive(Debug)]
pub(crate) struct Maps {
    pub frontends: Map<FrontendKey, u64>,
    pub node_ports: SharedArray,
    pub slots: SharedArray,
    pub affinity_of: SharedArray,
    pub sets: SharedArray,
    pub backends: SharedArray,
    pub local_netns: Map<u64, u64>,
    pub pods: Map<u32, u64>,
    pub shares: Map<u32, u64>,
    pub node_addresses: Map<u32, u32>,
    pub node: Map<u32, NodeConfig>,
    pub flows: Map<Tuple, Flow>,
    pub snat: SharedArray,
    pub exposed: Map<u64, u64>,
    pub counters: Map<u32, u64>,
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
            local_netns: object::open(pins, "LOCAL_NETNS")?,
            pods: object::open(pins, "PODS")?,
            shares: object::open(pins, "SHARES")?,
            node_addresses: object::open(pins, "NODE_ADDRESSES")?,
            node: object::open(pins, "NODE")?,
            flows: object::open(pins, "FLOWS")?,
            snat: object::open_shared(pins, "SNAT", MAX_SNAT_PLACES * SNAT_WORDS)?,
            exposed: object::open(pins, "EXPOSED")?,
            counters: object::open(pins, "COUNTERS")?,
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
            Op::RetireBackend { index } => {
                let state = &self.backend_words(*index).map_err(written("BACKENDS"))?[STATE];
                let backend = Backend { state: state.load(Ordering::Acquire), ..Backend::default() };
                state.store(backend.retired(), Ordering::Release);
            }
        }
        Ok(())
    }

    fn backend_words(&self, index: u32) -> io::Result<&[AtomicU64]> {
        self.backends.words(index as usize * BACKEND_WORDS, BACKEND_WORDS)
    }

    fn write_backend(&self, member: Member, target: &Target, protocol: u8) -> io::Result<()> {
        let backend = Backend::new(ip(target.ip), Port::new(target.port), protocol, member.generation);
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

    /// Address and host end of every pod.
    pub fn pods(&self) -> Result<Vec<(Ipv4Addr, u32)>> {
        let pods = self.pods.entries().map_err(written("PODS"))?;
        Ok(pods.into_iter().map(|(ip, bits)| (Ip4(ip).octets().into(), PodLink::from_bits(bits).ifindex)).collect())
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
        Ok(Table::adopt(LIMITS, &frontends, |number| sets.left(number), sets.generations()))
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

fn ip(ip: IpAddr) -> Ip {
    match ip {
        IpAddr::V4(ip) => Ip::v4(Ip4::new(ip.octets())),
        IpAddr::V6(ip) => Ip::from_octets(ip.octets()),
    }
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
    FrontendKey::new(ip(frontend.addr), Port::new(frontend.port), frontend.protocol, frontend.scope)
}

fn frontend(key: &FrontendKey) -> Option<Frontend> {
    let scope = [Scope::Internal, Scope::External].into_iter().find(|scope| *scope as u8 == key.scope)?;
    Some(Frontend { addr: address(key.addr), port: key.port.get(), protocol: key.protocol, scope })
}
