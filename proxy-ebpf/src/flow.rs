//! Flows of translated packets: found by what is on the wire, begun for new ones, confirmed by the first reply.
//!
//! Each flow has two entries, one per direction, and each says what its packets become; the partner's key follows from it.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::maps::{FLOWS, NEW_FLOWS, count};
use crate::packet::Packet;

const NOEXIST: u64 = 1;
const SECOND_NS: u64 = 1_000_000_000;
const CURRENT_NETNS: u64 = u64::MAX;
/// Draws of a port before the range counts as exhausted.
const ATTEMPTS: u32 = 16;

/// Which source the packets of a new flow show.
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

pub struct Exhausted;

/// What becomes of this packet, if its flow is known.
#[inline(always)]
pub fn find(packet: &Packet) -> Option<Tuple> {
    match FLOWS.get_ptr_mut(packet.tuple) {
        // SAFETY: a map element; it stays readable while the program runs.
        Some(flow) => confirmed(packet, unsafe { &mut *flow }),
        None => unconfirmed(packet),
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
fn confirmed(packet: &Packet, flow: &mut Flow) -> Option<Tuple> {
    let to = flow.to;
    if flow.flags & (Flow::CLOSING | Flow::REPLY) == Flow::CLOSING && starts_anew(packet) {
        // The client's port came round again: the old connection is over.
        forget(packet, &to);
        return None;
    }
    touch(flow);
    if packet.is_closing() && flow.flags & Flow::CLOSING == 0 {
        flow.flags |= Flow::CLOSING;
        mark_partner_closing(packet, &to);
    }
    Some(to)
}

/// Writes the time at most once a second, to leave the cache line alone otherwise.
#[inline(always)]
fn touch(flow: &mut Flow) {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if now.wrapping_sub(flow.seen) > SECOND_NS {
        flow.seen = now;
    }
}

#[inline(always)]
fn starts_anew(packet: &Packet) -> bool {
    matches!(packet.layer4, crate::packet::Layer4::Tcp(_)) && packet.is_opening()
}

/// The deadline of a connection is that of both its entries.
#[inline(always)]
fn mark_partner_closing(packet: &Packet, to: &Tuple) {
    let partner = to.reversed();
    if let Some(flow) = FLOWS.get_ptr_mut(partner) {
        // SAFETY: a map element; setting the flag on a recycled one would only shorten its idle life.
        unsafe {
            if (*flow).to == packet.tuple.reversed() {
                (*flow).flags |= Flow::CLOSING;
            }
        }
    }
}

#[inline(always)]
fn forget(packet: &Packet, to: &Tuple) {
    // Either may be gone already.
    let _ = FLOWS.remove(packet.tuple);
    let _ = FLOWS.remove(to.reversed());
}

#[inline(always)]
fn unconfirmed(packet: &Packet) -> Option<Tuple> {
    let flow = NEW_FLOWS.get_ptr_mut(packet.tuple)?;
    // SAFETY: a map element, copied out before any other map operation.
    let flow = unsafe {
        touch(&mut *flow);
        *flow
    };
    if flow.flags & Flow::REPLY != 0 {
        confirm(packet, &flow);
    }
    Some(flow.to)
}

/// The first reply moves both entries among the confirmed. A refused one stays where it is and works until it is pushed out.
#[inline(always)]
fn confirm(packet: &Packet, reply: &Flow) {
    // SAFETY: the helper has no preconditions.
    let seen = unsafe { bpf_ktime_get_ns() };
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
}

/// Begins a flow to `backend` and says what its packets become.
#[inline(always)]
pub fn begin(
    ctx: &TcContext,
    packet: &Packet,
    backend: Backend,
    source: Source,
    node: &NodeConfig,
) -> Result<Tuple, Exhausted> {
    let from = &packet.tuple;
    let src = match source {
        Source::Keep | Source::OtherPort => from.src,
        Source::Gateway => GATEWAY,
        Source::Node => node.node_ip,
    };
    let mut to = Tuple { src, dst: backend.addr, dport: backend.port, ..*from };
    for attempt in 0..ATTEMPTS {
        if attempt > 0 || matches!(source, Source::Node | Source::OtherPort) {
            to.sport = random_port(node);
            if matches!(source, Source::Node) && taken_by_host(ctx, &to) {
                continue;
            }
        }
        if record(from, &to) {
            return Ok(to);
        }
    }
    Err(Exhausted)
}

#[inline(always)]
fn random_port(node: &NodeConfig) -> Port {
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() };
    let count = if node.snat_count == 0 { 1 } else { node.snat_count as u32 };
    Port::new(node.snat_first.wrapping_add((random % count) as u16))
}

/// Records both directions, unless the replies' tuple already means another flow.
#[inline(always)]
fn record(from: &Tuple, to: &Tuple) -> bool {
    // SAFETY: the helper has no preconditions.
    let seen = unsafe { bpf_ktime_get_ns() };
    let answer = to.reversed();
    if FLOWS.get_ptr(answer).is_some() {
        return false;
    }
    let reply = Flow { to: from.reversed(), flags: Flow::REPLY, seen };
    if NEW_FLOWS.insert(answer, reply, NOEXIST).is_err() && !is_same(&answer, &reply.to) {
        return false;
    }
    NEW_FLOWS.insert(*from, Flow { to: *to, flags: 0, seen }, 0).is_ok()
}

/// A retried opening finds its own entry.
#[inline(always)]
fn is_same(key: &Tuple, to: &Tuple) -> bool {
    // SAFETY: a map element; it stays readable while the program runs.
    NEW_FLOWS.get_ptr(key).is_some_and(|flow| unsafe { (*flow).to == *to })
}

/// Whether a socket of the host itself would get the replies.
#[inline(always)]
fn taken_by_host(ctx: &TcContext, to: &Tuple) -> bool {
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
            TCP => bpf_skc_lookup_tcp(ctx.as_ptr(), &mut tuple, size, CURRENT_NETNS, 0),
            UDP => bpf_sk_lookup_udp(ctx.as_ptr(), &mut tuple, size, CURRENT_NETNS, 0),
            _ => core::ptr::null_mut(),
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
        true
    }
}
