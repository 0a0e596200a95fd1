//! From an address that a client used to one endpoint. Shared by the socket hooks and the packet path.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_loop};
use proxy_common::*;

use crate::maps::{AFFINITY, AFFINITY_OF, BACKENDS, FRONTENDS, SLOTS, node_address, whole};

/// A service port found for an address: the slot's number and its content, read once.
#[derive(Clone, Copy)]
pub struct Service {
    pub number: u32,
    pub slot: Slot,
}

/// What to do with a client of a service.
pub enum Choice {
    Endpoint(Backend),
    /// Nobody has an endpoint.
    Refuse,
    /// Endpoints exist, only not where the policy allows.
    Drop,
}

/// The service behind an address, if there is one. `loopback` says that 127.0.0.0/8 means the node itself.
#[inline(always)]
pub fn find_service(addr: Ip4, port: Port, protocol: u8, scope: Scope, loopback: bool) -> Option<Service> {
    let key = FrontendKey { addr, port, protocol, scope: scope as u8 };
    if let Some(service) = find_frontend(&key) {
        return Some(service);
    }
    if node_address(addr).is_some() || (loopback && addr.is_loopback()) {
        return find_frontend(&FrontendKey { addr: Ip4::UNSPECIFIED, ..key });
    }
    None
}

#[inline(always)]
fn find_frontend(key: &FrontendKey) -> Option<Service> {
    // SAFETY: the pointer is to a map element; the tag shows whether it still belongs to this key.
    let number = key.slot_of(unsafe { whole(FRONTENDS.get_ptr(key)?) })?;
    // SAFETY: the pointer is to a map element.
    let slot = Slot::from_bits(unsafe { whole(SLOTS.get_ptr(number)?) });
    Some(Service { number, slot })
}

#[inline(always)]
pub fn choose(service: Service, client: Ip4) -> Choice {
    let slot = service.slot;
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
    match sticky(slot.bits(), &AffinityKey { id: affinity.id, client }, affinity.seconds) {
        0 => Choice::Refuse,
        bits => Choice::Endpoint(Backend::from_bits(bits)),
    }
}

/// A random endpoint.
#[inline(always)]
pub fn any(slot: Slot) -> Choice {
    if slot.count == 0 {
        return Choice::Refuse;
    }
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() };
    match backend_at(slot.base.wrapping_add(random % slot.count as u32)) {
        Some(bits) => Choice::Endpoint(Backend::from_bits(bits)),
        None => Choice::Refuse,
    }
}

/// The endpoint of the client's last visit while it is in the set and the visit recent, else a new one, as bits; 0 when there is
/// none. A function of its own for the kernel too: most services have no use for it.
#[inline(never)]
fn sticky(slot: u64, key: &AffinityKey, seconds: u32) -> u64 {
    let slot = Slot::from_bits(slot);
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if let Some(value) = AFFINITY.get_ptr(key) {
        // SAFETY: a map element; a value recycled for another client at worst fails the checks below.
        let (backend, used) = unsafe { ((*value).backend, (*value).used) };
        if now.wrapping_sub(used) < seconds as u64 * 1_000_000_000 && contains(slot, backend) {
            let _ = AFFINITY.insert(key, AffinityValue { backend, used: now }, 0);
            return backend;
        }
    }
    let Choice::Endpoint(backend) = any(slot) else { return 0 };
    // A failed insert costs stickiness only.
    let _ = AFFINITY.insert(key, AffinityValue { backend: backend.bits(), used: now }, 0);
    backend.bits()
}

/// Binary search: sets are sorted by their bits.
#[inline(always)]
pub fn contains(slot: Slot, backend: u64) -> bool {
    let mut search = Search { base: slot.base, low: 0, high: slot.count as u32, backend, found: false };
    // SAFETY: the callback takes what it is given here, which outlives the call.
    unsafe { bpf_loop(HALVINGS, halve as *mut c_void, (&raw mut search).cast(), 0) };
    search.found
}

/// A set has at most 2¹⁶ − 1 endpoints.
const HALVINGS: u32 = 17;

/// The part of a set in which an endpoint may still be. A loop of the kernel's: the verifier walks its body once.
struct Search {
    base: u32,
    low: u32,
    high: u32,
    backend: u64,
    found: bool,
}

/// One look at the middle; 1 ends the search.
unsafe extern "C" fn halve(_index: u32, search: *mut Search) -> i64 {
    // SAFETY: `contains` passes its own, which outlives the search.
    let search = unsafe { &mut *search };
    if search.low >= search.high {
        return 1;
    }
    let middle = (search.low + search.high) / 2;
    let Some(bits) = backend_at(search.base.wrapping_add(middle)) else { return 1 };
    if bits == search.backend {
        search.found = true;
        return 1;
    }
    if bits < search.backend {
        search.low = middle + 1;
    } else {
        search.high = middle;
    }
    0
}

#[inline(always)]
fn backend_at(index: u32) -> Option<u64> {
    // SAFETY: the pointer is to a map element.
    BACKENDS.get_ptr(index).map(|bits| unsafe { whole(bits) })
}
