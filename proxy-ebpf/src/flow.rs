//! Flows of translated packets: found by what is on the wire, begun for new ones, confirmed by the first reply.
//!
//! Each flow has two entries, one per direction, and each says what its packets become; the partner's key follows from it.

use core::ffi::c_void;

use aya_ebpf::bindings::{
    __sk_buff, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
};
use aya_ebpf::helpers::{
    bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_loop, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
};
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::choose::{contains, find_service};
use crate::maps::{FLOWS, NEW_FLOWS, SHARES, count, local_pod, node};
use crate::packet::{Layer4, Packet, hide};

const NOEXIST: u64 = 1;
const SECOND_NS: u64 = 1_000_000_000;
const CURRENT_NETNS: u64 = u64::MAX;
/// Spreads addresses that differ in few bits: 2³² divided by the golden ratio.
const SPREAD: u32 = 0x9e37_79b9;
/// Draws of a port before the range counts as exhausted. The later ones take a port whose connection is over, too: its endpoint may
/// still hold the old one, and answer the new one late.
const ATTEMPTS: u32 = 32;
const ATTEMPTS_FOR_UNUSED: u32 = ATTEMPTS / 2;

/// Which source the packets of a new flow show.
#[repr(u8)]
#[derive(Clone, Copy)]
pub enum Source {
    /// The client's own; another port only where its own is taken.
    Keep,
    /// The client's own address with another port: its own may be in use towards the same endpoint, where the socket hooks led it.
    OtherPort,
    /// The gateway's: a client that reaches itself.
    Gateway,
    /// The node's, from the reserved range.
    Node,
}

/// What becomes of this packet, if its flow is known. Openings are for services as clients in `scope` see them.
#[inline(always)]
pub fn find(packet: &Packet, scope: Scope) -> Option<Tuple> {
    match FLOWS.get_ptr_mut(packet.tuple) {
        // SAFETY: a map element; it stays readable while the program runs.
        Some(flow) => confirmed(packet, unsafe { &mut *flow }, scope),
        None => unconfirmed(packet, scope),
    }
}

/// The translation of a tuple, without touching its flow: for errors that quote it.
#[inline(always)]
pub fn peek(tuple: &Tuple) -> Option<Tuple> {
    let flow = FLOWS.get_ptr(tuple).or_else(|| NEW_FLOWS.get_ptr(tuple))?;
    // SAFETY: a map element; it stays readable while the program runs.
    Some(unsafe { (*flow).to })
}

#[inline(always)]
fn confirmed(packet: &Packet, flow: &mut Flow, scope: Scope) -> Option<Tuple> {
    let to = flow.to;
    // The client's port came round again. With the same port behind the node the endpoint sees one client with one clock; with
    // another it might take the opening for a packet of somebody's old connection.
    if flow.flags & (Flow::CLOSING | Flow::REPLY) == Flow::CLOSING && starts_anew(packet) && !leads_on(packet, &to, scope) {
        forget(packet, &to);
        return None;
    }
    touch(flow);
    if packet.is_closing() && flow.flags & Flow::CLOSING == 0 {
        flow.flags |= Flow::CLOSING;
        mark_partner(packet, &to, Flow::CLOSING);
    } else if flow.flags & (Flow::CLOSING | Flow::REPLY) == Flow::CLOSING | Flow::REPLY && packet.accepts() {
        flow.flags &= !Flow::CLOSING;
        mark_partner(packet, &to, 0);
    }
    Some(to)
}

/// Whether an opening may follow a flow that exists: what leaves the cluster always, what goes to a service while its endpoint is
/// one of the service's.
#[inline(never)]
fn leads_on(packet: &Packet, to: &Tuple, scope: Scope) -> bool {
    let asked = &packet.tuple;
    if asked.dst == to.dst && asked.dport == to.dport {
        return true;
    }
    let Some(service) = find_service(asked.dst, asked.dport, asked.protocol, scope, false) else { return false };
    contains(service.slot, Backend::new(to.dst, to.dport).bits())
}

/// Writes the time at most once a second, to leave the cache line alone otherwise.
#[inline(always)]
fn touch(flow: &mut Flow) {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if now > flow.seen.wrapping_add(SECOND_NS) {
        flow.seen = now;
    }
}

#[inline(always)]
fn starts_anew(packet: &Packet) -> bool {
    packet.layer4 == Layer4::Tcp && packet.is_opening()
}

/// The deadline of a connection is that of both its entries: they are closing (`Flow::CLOSING`), or neither is (0).
#[inline(never)]
fn mark_partner(packet: &Packet, to: &Tuple, closing: u32) {
    let partner = to.reversed();
    if let Some(flow) = FLOWS.get_ptr_mut(partner) {
        // SAFETY: a map element; setting the flag on a recycled one would only shorten its idle life.
        unsafe {
            if (*flow).to == packet.tuple.reversed() {
                (*flow).flags = (*flow).flags & !Flow::CLOSING | closing;
            }
        }
    }
}

#[inline(never)]
fn forget(packet: &Packet, to: &Tuple) {
    // Either may be gone already.
    let _ = FLOWS.remove(packet.tuple);
    let _ = FLOWS.remove(to.reversed());
}

#[inline(always)]
fn unconfirmed(packet: &Packet, scope: Scope) -> Option<Tuple> {
    let flow = NEW_FLOWS.get_ptr_mut(packet.tuple)?;
    // SAFETY: a map element, copied out before any other map operation.
    let flow = unsafe {
        touch(&mut *flow);
        *flow
    };
    if flow.flags & Flow::REPLY != 0 {
        confirm(packet, &flow);
    } else if starts_anew(packet) && !leads_on(packet, &flow.to, scope) {
        // Sent again, and its endpoint is gone: there may be another.
        let _ = NEW_FLOWS.remove(packet.tuple);
        let _ = NEW_FLOWS.remove(flow.to.reversed());
        return None;
    }
    Some(flow.to)
}

/// The first reply moves both entries among the confirmed. A refused one stays where it is and works until it is pushed out.
#[inline(never)]
fn confirm(packet: &Packet, reply: &Flow) {
    // SAFETY: the helper has no preconditions.
    let seen = unsafe { bpf_ktime_get_coarse_ns() };
    let closing = if packet.is_closing() { Flow::CLOSING } else { 0 };
    let asking = reply.to.reversed();
    let forward = Flow { to: packet.tuple.reversed(), flags: Flow::CONFIRMED | closing, seen };
    let back = Flow { to: reply.to, flags: Flow::CONFIRMED | Flow::REPLY | closing, seen };
    if FLOWS.insert(packet.tuple, back, 0).is_err() {
        return count(Counter::FlowsFull);
    }
    if FLOWS.insert(asking, forward, 0).is_err() {
        let _ = FLOWS.remove(packet.tuple);
        return count(Counter::FlowsFull);
    }
    let _ = NEW_FLOWS.remove(packet.tuple);
    let _ = NEW_FLOWS.remove(asking);
    if let Some(flows) = SHARES.get_ptr_mut(asking.src.0) {
        // SAFETY: an aligned element of a map. Two processors at once may lose a flow, and it may be recycled for another pod: the
        // next sweep counts anew.
        unsafe { *flows += 1 };
    }
}

/// Whether a client is a pod that has as many flows as one may have.
#[inline(never)]
pub fn share_is_spent(client: Ip4) -> bool {
    // SAFETY: the pointer is to a map element.
    SHARES.get_ptr(client.0).is_some_and(|flows| unsafe { core::ptr::read_volatile(flows) } >= MAX_POD_FLOWS)
}

/// Begins a flow from a packet to an endpoint: `to` has the endpoint, and gets the rest. False: no free port was found.
#[inline(never)]
pub fn begin(ctx: &TcContext, from: &Tuple, to: &mut Tuple, source: Source) -> bool {
    let Some(node) = node() else { return false };
    // SAFETY: a value of the type, which hiding does not change.
    let source = unsafe { core::mem::transmute::<u8, Source>(hide(ctx, source as u8)) };
    to.src = match source {
        Source::Keep | Source::OtherPort => from.src,
        Source::Gateway => GATEWAY,
        Source::Node => node.node_ip,
    };
    if matches!(source, Source::Keep | Source::Gateway) && record(from, to, Taking::Unused) {
        return true;
    }
    let skb = ctx.skb.skb;
    let mut search = Search { skb, from, to, behind_node: matches!(source, Source::Node), found: false };
    // SAFETY: the callback takes what it is given here, which outlives the call.
    unsafe { bpf_loop(ATTEMPTS, try_port as *mut c_void, (&raw mut search).cast(), 0) };
    search.found
}

/// The search for a source port. A loop of the kernel's: the verifier walks its body once.
struct Search {
    skb: *mut __sk_buff,
    from: *const Tuple,
    to: *mut Tuple,
    behind_node: bool,
    found: bool,
}

/// One draw; 1 ends the search.
unsafe extern "C" fn try_port(index: u32, search: *mut Search) -> i64 {
    // SAFETY: `begin` passes its own, with tuples that outlive the search.
    let (search, from, to) = unsafe { (&mut *search, &*(*search).from, &mut *(*search).to) };
    to.sport = Port::new(random_port(from.src.0));
    if search.behind_node && taken_by_host(search.skb, to) {
        return 0;
    }
    let taking = if index < ATTEMPTS_FOR_UNUSED { Taking::Unused } else { Taking::Over };
    search.found = record(from, to, taking);
    search.found as i64
}

/// A port of the range; for a pod, of its half of it. Halves begin at a place that the pod's address gives, so that one pod that
/// takes all it can towards a server leaves some to every other. Not inlined: what it needs of the stack is free again after it.
#[inline(never)]
fn random_port(client: u32) -> u16 {
    let Some(node) = node() else { return 0 };
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() };
    let count = if node.snat_count < 2 { 2 } else { node.snat_count as u32 };
    let place = match local_pod(Ip4(client)) {
        Some(_) => (client.wrapping_mul(SPREAD) >> 16) + random % (count / 2),
        None => random,
    };
    node.snat_first.wrapping_add((place % count) as u16)
}

/// Whose replies' tuple a new flow may take.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taking {
    Unused,
    /// Also that of a connection which is over.
    Over,
}

/// Records both directions, unless the replies' tuple already means another flow.
#[inline(never)]
fn record(from: &Tuple, to: &Tuple, taking: Taking) -> bool {
    // SAFETY: the helper has no preconditions.
    let seen = unsafe { bpf_ktime_get_coarse_ns() };
    let answer = to.reversed();
    if let Some(other) = FLOWS.get_ptr(answer) {
        // SAFETY: a map element; it stays readable while the program runs.
        let other = unsafe { *other };
        if taking == Taking::Unused || other.flags & Flow::CLOSING == 0 {
            return false;
        }
        let _ = FLOWS.remove(other.to.reversed());
        let _ = FLOWS.remove(answer);
    }
    let mut flow = Flow { to: from.reversed(), flags: Flow::REPLY, seen };
    if NEW_FLOWS.insert(answer, flow, NOEXIST).is_err() && !is_same(&answer, &flow.to) {
        return false;
    }
    (flow.to, flow.flags) = (*to, 0);
    NEW_FLOWS.insert(from, flow, 0).is_ok()
}

/// A retried opening finds its own entry.
#[inline(always)]
fn is_same(key: &Tuple, to: &Tuple) -> bool {
    // SAFETY: a map element; it stays readable while the program runs.
    NEW_FLOWS.get_ptr(key).is_some_and(|flow| unsafe { (*flow).to == *to })
}

/// Whether a socket of the host itself would get the replies.
#[inline(always)]
fn taken_by_host(skb: *mut __sk_buff, to: &Tuple) -> bool {
    let mut tuple = bpf_sock_tuple {
        __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 {
            ipv4: bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
                saddr: to.dst.0,
                daddr: to.src.0,
                sport: to.dport.0,
                dport: to.sport.0,
            },
        },
    };
    let size = size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>() as u32;
    // SAFETY: the tuple is of the stated size; a socket found is released before the end.
    unsafe {
        let socket = match to.protocol {
            TCP => bpf_skc_lookup_tcp(skb.cast(), &mut tuple, size, CURRENT_NETNS, 0),
            UDP => bpf_sk_lookup_udp(skb.cast(), &mut tuple, size, CURRENT_NETNS, 0),
            _ => core::ptr::null_mut(),
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
        true
    }
}
