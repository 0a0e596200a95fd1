//! From an address that a client used to one endpoint. Shared by the socket hooks and the packet path.

use core::ffi::c_void;

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_loop};
use proxy_common::*;

use crate::family::is_node_address;
use crate::maps::{AFFINITY, AFFINITY_OF, BACKENDS, FRONTENDS, NODE_PORTS, SETS, SLOTS, SOURCE_RANGES, whole};

/// A service port found for an address: the slot's number and its content, read once.
#[derive(Clone, Copy)]
pub struct Service {
    pub number: u32,
    pub slot: Slot,
}

/// An endpoint and its place.
#[derive(Clone, Copy)]
pub struct Endpoint {
    pub ip: Ip,
    pub port: Port,
    /// `Member` bits.
    pub member: u64,
}

/// What to do with a client of a service.
pub enum Choice {
    Endpoint(Endpoint),
    /// Nobody has an endpoint.
    Refuse,
    /// Endpoints exist, only not where the policy allows.
    Drop,
    /// It is not for this client.
    Bar,
}

/// Whether addresses that mean "this host" mean the node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    Node,
    Elsewhere,
}

/// The service behind an address, if there is one.
#[inline(always)]
pub fn find_service(ip: Ip, port: Port, protocol: u8, scope: Scope, caller: Caller) -> Option<Service> {
    // Every caller has a loopback of its own, and only the node's leads to services.
    if caller == Caller::Elsewhere && ip.is_loopback() {
        return None;
    }
    if let Some(number) = find_frontend(&FrontendKey::new(ip, port, protocol, scope)) {
        return at(number);
    }
    let of_node = match caller {
        Caller::Node => ip.is_unspecified() || ip.is_loopback() || is_node_address(ip),
        Caller::Elsewhere => is_node_address(ip),
    };
    if !of_node {
        return None;
    }
    at(node_port(ip.family(), protocol, port)?.slot(scope)?)
}

#[inline(always)]
fn find_frontend(key: &FrontendKey) -> Option<u32> {
    let [high, low] = key.addr.halves();
    let rest = key.port.0 as u64 | (key.protocol as u64) << 16 | (key.scope as u64) << 24;
    let words = [high, low, rest];
    // Written in words, for it is read in words at once.
    // SAFETY: a key has this size and alignment, and these are its bytes as they lie on the target.
    let value = FRONTENDS.get_ptr(unsafe { &*words.as_ptr().cast::<FrontendKey>() })?;
    // SAFETY: the pointer is to a map element; the tag shows whether it still belongs to this key.
    key.slot_of(unsafe { whole(value) })
}

/// What a port of the node leads to.
#[inline(always)]
pub fn node_port(family: Family, protocol: u8, port: Port) -> Option<NodePort> {
    // SAFETY: the pointer is to a map element.
    Some(NodePort(unsafe { whole(NODE_PORTS.get_ptr(NodePort::index(family, protocol, port)?)?) }))
}

#[inline(always)]
fn at(number: u32) -> Option<Service> {
    // SAFETY: the pointer is to a map element.
    let slot = Slot::from_bits(unsafe { whole(SLOTS.get_ptr(number)?) });
    Some(Service { number, slot })
}

#[inline(always)]
pub fn choose(service: Service, client: Ip) -> Choice {
    let slot = service.slot;
    if is_barred(service, client) {
        return Choice::Bar;
    }
    if slot.count == 0 {
        return if slot.has(Slot::DROP_WHEN_EMPTY) { Choice::Drop } else { Choice::Refuse };
    }
    if !slot.has(Slot::AFFINITY) {
        return any(slot);
    }
    // SAFETY: the pointer is to a map element.
    let Some(affinity) = AFFINITY_OF.get_ptr(service.number).map(|bits| Affinity::from_bits(unsafe { whole(bits) }))
    else {
        return any(slot);
    };
    endpoint(sticky(slot, AffinityKey { client, id: affinity.id, pad: 0 }, affinity.seconds))
}

/// Whether a service is for others than this client.
#[inline(always)]
pub fn is_barred(service: Service, mut client: Ip) -> bool {
    service.slot.has(Slot::SOURCE_RANGES) && amphi_is_source(service.number, &raw mut client) == 0
}

/// Whether a client is in a slot's ranges, verified by itself: most services are for everybody.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn amphi_is_source(slot: u32, client: *mut Ip) -> u32 {
    // SAFETY: callers give an address of their own.
    let Some(client) = (unsafe { client.as_ref() }) else { return 0 };
    SOURCE_RANGES.get(&Key::new(SourceRange::WHOLE, Source { slot, quads: client.quads() })).is_some() as u32
}

/// A random endpoint.
#[inline(always)]
pub fn any(slot: Slot) -> Choice {
    endpoint(draw(slot))
}

/// `Member` bits of a random endpoint; 0, which no member has, when there is none.
#[inline(always)]
fn draw(slot: Slot) -> u64 {
    if slot.count == 0 {
        return 0;
    }
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() };
    member_at(slot.base.wrapping_add(random % slot.count as u32))
}

/// A set that was read a moment ago may name a backend that has just gone: its place keeps the address until no program can have
/// read that set.
#[inline(always)]
fn endpoint(member: u64) -> Choice {
    if member == 0 {
        return Choice::Refuse;
    }
    let Some(backend) = BACKENDS.get_ptr(Member::from_bits(member).index) else { return Choice::Refuse };
    // SAFETY: a map element.
    let (ip, state) = unsafe { ((*backend).addr, whole(&raw const (*backend).state)) };
    Choice::Endpoint(Endpoint { ip, port: Port(state as u16), member })
}

/// Whether a flow's or socket's endpoint is one no more.
#[inline(always)]
pub fn is_gone(member: u64) -> bool {
    let member = Member::from_bits(member);
    BACKENDS.get_ptr(member.index).is_some_and(|backend| {
        // SAFETY: a map element.
        generation_of(unsafe { whole(&raw const (*backend).state) }) != member.generation
    })
}

/// The endpoint of the client's last visit while it is in the set and the visit recent, else a new one; 0 when there is none.
#[inline(always)]
fn sticky(slot: Slot, mut key: AffinityKey, seconds: u32) -> u64 {
    amphi_sticky(slot.bits(), &raw mut key, seconds)
}

/// `sticky`, verified by itself: its search is long, and most services have no use for it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn amphi_sticky(slot: u64, key: *mut AffinityKey, seconds: u32) -> u64 {
    // SAFETY: callers give a key of their own.
    let Some(key) = (unsafe { key.as_ref() }) else { return 0 };
    let slot = Slot::from_bits(slot);
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if let Some(value) = AFFINITY.get_ptr(key) {
        // SAFETY: a map element; a value recycled for another client at worst fails the checks below.
        let (member, used) = unsafe { ((*value).member, (*value).used) };
        if now.wrapping_sub(used) < seconds as u64 * 1_000_000_000 && contains(slot, member) {
            let _ = AFFINITY.insert(key, AffinityValue { member, used: now }, 0);
            return member;
        }
    }
    let member = draw(slot);
    if member != 0 {
        // A failed insert costs stickiness only.
        let _ = AFFINITY.insert(key, AffinityValue { member, used: now }, 0);
    }
    member
}

/// Whether an endpoint is in a set.
#[inline(always)]
pub fn contains(slot: Slot, member: u64) -> bool {
    amphi_contains(slot.bits(), member) != 0
}

/// A set has at most 2¹⁶ − 1 endpoints.
const HALVINGS: u32 = 17;

/// The part of a set in which an endpoint may still be.
struct Search {
    base: u32,
    low: u32,
    high: u32,
    found: u32,
    member: u64,
}

/// `contains`, verified by itself: a binary search, for sets are sorted by their bits. A loop of the kernel's: the verifier walks its
/// body once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn amphi_contains(slot: u64, member: u64) -> u32 {
    let slot = Slot::from_bits(slot);
    let mut search = Search { base: slot.base, low: 0, high: slot.count as u32, found: 0, member };
    // SAFETY: the callback takes what it is given here, which outlives the call.
    unsafe { bpf_loop(HALVINGS, halve as *mut c_void, (&raw mut search).cast(), 0) };
    search.found
}

/// One look at the middle; 1 ends the search.
unsafe extern "C" fn halve(_index: u32, search: *mut Search) -> i64 {
    // SAFETY: `amphi_contains` passes its own, which outlives the search.
    let search = unsafe { &mut *search };
    if search.low >= search.high {
        return 1;
    }
    let middle = (search.low + search.high) / 2;
    let found = member_at(search.base.wrapping_add(middle));
    if found == search.member {
        search.found = 1;
        return 1;
    }
    if found < search.member {
        search.low = middle + 1;
    } else {
        search.high = middle;
    }
    0
}

#[inline(always)]
fn member_at(index: u32) -> u64 {
    // SAFETY: the pointer is to a map element.
    SETS.get_ptr(index).map_or(0, |bits| unsafe { whole(bits) })
}
