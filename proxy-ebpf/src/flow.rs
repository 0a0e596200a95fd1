//! Flows of translated packets: one entry per connection, found by what is on the wire in either direction.
//!
//! The client's packets are the key. Answers lead to it by the port they go to (`snat`) or by the endpoint they come from
//! (`EXPOSED`). How far a connection has come is kept as marks, each a byte that one direction sets and nobody clears.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::atomic;
use crate::choose::is_gone;
use crate::forward::{Place, place_of};
use crate::maps::{BEGUN, EXPOSED, FLOWS, NEWEST, SHARES, node, whole};
use crate::packet::{FIN, Layer4, Packet, RST, hide};
use crate::snat;

const NOEXIST: u64 = 1;
const SECOND_NS: u64 = 1_000_000_000;

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

/// Whether a flow began.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    Yes,
    /// No port was found for it.
    NoPort,
    /// All flows are in use, or another processor has just begun it.
    Full,
}

/// Whether a packet's flow is known.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    Known,
    Unknown,
}

/// Finds what becomes of this packet and where that lies, if its flow is known.
#[inline(always)]
pub fn find(packet: &Packet, to: &mut Tuple, place: &mut Place, node: &NodeConfig) -> Seen {
    if forward(packet, to, place, node) == Seen::Known {
        return Seen::Known;
    }
    find_reply(packet, to, place, node)
}

/// The same for what the host sends: only its endpoints' answers are of flows.
#[inline(always)]
pub fn find_reply(packet: &Packet, to: &mut Tuple, place: &mut Place, node: &NodeConfig) -> Seen {
    let mut asking = packet.tuple;
    // A client may have by itself a port that somebody else shows to the same endpoint: then only its own flow fits.
    if snat::asking(&packet.tuple, &mut asking, node) && reply(packet, &asking, to, place, node) == Seen::Known {
        return Seen::Known;
    }
    if !exposed(&packet.tuple, &mut asking) {
        return Seen::Unknown;
    }
    reply(packet, &asking, to, place, node)
}

/// The translation of a tuple, without touching its flow: for errors that quote it.
#[inline(always)]
pub fn peek(tuple: &Tuple, to: &mut Tuple) -> Seen {
    let Some(node) = node() else { return Seen::Unknown };
    if let Some(flow) = FLOWS.get_ptr(tuple) {
        // SAFETY: a map element.
        return unsafe { contents(flow, tuple, to) };
    }
    let mut asking = *tuple;
    let by_port = snat::asking(tuple, &mut asking, node) && is_answer(&asking, tuple);
    if by_port || (exposed(tuple, &mut asking) && is_answer(&asking, tuple)) {
        *to = asking.reversed();
        return Seen::Known;
    }
    if is_answer(&tuple.reversed(), tuple) {
        *to = *tuple;
        return Seen::Known;
    }
    Seen::Unknown
}

#[inline(never)]
fn is_answer(asking: &Tuple, answer: &Tuple) -> bool {
    let Some(flow) = FLOWS.get_ptr(asking) else { return false };
    let mut to = *answer;
    // SAFETY: a map element.
    unsafe { contents(flow, asking, &mut to) == Seen::Known && to.reversed() == *answer }
}

/// What a flow's packets become, unless its element was recycled for another.
///
/// # Safety
/// `flow` points to an element of `FLOWS`.
#[inline(always)]
unsafe fn contents(flow: *const Flow, key: &Tuple, to: &mut Tuple) -> Seen {
    // SAFETY: the caller vouches for the pointer.
    let (found, tag) = unsafe { ((*flow).to, whole(&raw const (*flow).tag)) };
    if tag != Flow::tag_of(key, &found) {
        return Seen::Unknown;
    }
    *to = found;
    Seen::Known
}

/// The key of the connection whose client kept its address and port.
#[inline(always)]
fn exposed(answer: &Tuple, asking: &mut Tuple) -> bool {
    let Some(word) = EXPOSED.get_ptr(answer.answering()) else { return false };
    // SAFETY: the pointer is to a map element.
    let service = Exposed::from_bits(unsafe { whole(word) });
    *asking = Tuple { src: answer.dst, sport: answer.dport, dst: service.addr, dport: service.port, ..*answer };
    true
}

#[inline(always)]
fn forward(packet: &Packet, to: &mut Tuple, at: &mut Place, node: &NodeConfig) -> Seen {
    let key = &packet.tuple;
    let Some(flow) = FLOWS.get_ptr_mut(key) else { return Seen::Unknown };
    // SAFETY: a map element.
    if unsafe { contents(flow, key, to) } == Seen::Unknown {
        return Seen::Unknown;
    }
    // SAFETY: a map element; one that is recycled from now on may get a mark that is not its own, which shortens or lengthens its
    // idle life.
    let flow = unsafe { &mut *flow };
    if packet.is_opening() && is_over(flow) {
        forget(key, flow.snat);
        return Seen::Unknown;
    }
    touch(flow);
    if flow.assured == 0 && flow.replied != 0 && !(packet.layer4 == Layer4::Tcp && packet.is_opening()) {
        flow.assured = 1;
    }
    if packet.is_closing() {
        mark_closing(packet, &mut flow.client_fin, &mut flow.reset);
    }
    *at = place(flow, Direction::Forward, to.dst, node);
    Seen::Known
}

/// The client's port came round again after the connection's end, or the endpoint is gone. Datagrams ask each time, openings of
/// connections once.
#[inline(always)]
fn is_over(flow: &Flow) -> bool {
    let ended = flow.reset != 0 || flow.client_fin & flow.server_fin != 0;
    ended || (flow.member != Member::NONE.bits() && is_gone(flow.member))
}

/// The same for an answer of the connection with this key, if it is one.
#[inline(never)]
pub fn reply(packet: &Packet, asking: &Tuple, to: &mut Tuple, at: &mut Place, node: &NodeConfig) -> Seen {
    let Some(flow) = FLOWS.get_ptr_mut(asking) else { return Seen::Unknown };
    let mut shown = packet.tuple;
    // SAFETY: a map element.
    if unsafe { contents(flow, asking, &mut shown) } == Seen::Unknown || shown.reversed() != packet.tuple {
        return Seen::Unknown;
    }
    // SAFETY: as for `forward`.
    let flow = unsafe { &mut *flow };
    touch(flow);
    if flow.replied == 0 {
        flow.replied = 1;
        count_share(asking.src);
    }
    if packet.is_closing() {
        mark_closing(packet, &mut flow.server_fin, &mut flow.reset);
    }
    *to = asking.reversed();
    *at = place(flow, Direction::Reply, asking.src, node);
    Seen::Known
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
fn mark_closing(packet: &Packet, fin: &mut u8, reset: &mut u8) {
    if packet.flags & FIN != 0 {
        *fin = 1;
    }
    if packet.flags & RST != 0 {
        *reset = 1;
    }
}

/// Where an address lies, from memory while nothing has changed.
#[inline(always)]
fn place(flow: &mut Flow, direction: Direction, addr: Ip4, node: &NodeConfig) -> Place {
    let exit = direction as usize;
    if flow.epoch != node.epoch {
        flow.exits = [0; 2];
        flow.epoch = node.epoch;
    }
    let mut place = Place::recall(flow.exits[exit], addr);
    if place == Place::NOBODY {
        place = place_of(addr, node);
        flow.exits[exit] = place.note(addr);
    }
    place
}

#[inline(always)]
fn count_share(client: Ip4) {
    if let Some(flows) = SHARES.get_ptr_mut(client.0) {
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

/// Begins a flow from a packet to an endpoint: `to` has the endpoint, and gets the rest.
#[inline(never)]
pub fn begin(ctx: &TcContext, from: &Tuple, to: &mut Tuple, source: Source, member: u64) -> Begun {
    let Some(node) = node() else { return Begun::Full };
    // SAFETY: a value of the type, which hiding does not change.
    let source = unsafe { core::mem::transmute::<u8, Source>(hide(ctx, source as u8)) };
    to.src = match source {
        Source::Keep | Source::OtherPort => from.src,
        Source::Gateway => GATEWAY,
        Source::Node => node.node_ip,
    };
    let mut place = 0;
    if !(matches!(source, Source::Keep) && expose(from, to)) {
        place = snat::find_port(ctx.skb.skb, from, to, matches!(source, Source::Node), node);
        if place == 0 {
            return Begun::NoPort;
        }
    }
    if record(from, to, member, place) {
        note_newest(from);
        return Begun::Yes;
    }
    snat::release(place);
    Begun::Full
}

/// Notes a packet from outside to a pod's own address, so that its answers are known for what they are. Without a note they show
/// the node's address.
#[inline(never)]
pub fn note_direct(tuple: &Tuple) {
    if record(tuple, tuple, Member::NONE.bits(), 0) {
        note_newest(tuple);
    }
}

/// Makes sure that answers of an endpoint lead to this service. False: they lead to another, under which its clients know it too.
#[inline(always)]
fn expose(from: &Tuple, to: &Tuple) -> bool {
    let key = end(to.dst, to.dport, to.protocol);
    // SAFETY: the helper has no preconditions.
    let epoch = Exposed::epoch_of(unsafe { bpf_ktime_get_coarse_ns() });
    let wanted = Exposed { addr: from.dst, port: from.dport, epoch };
    let Some(word) = EXPOSED.get_ptr_mut(key) else { return EXPOSED.insert(key, wanted.bits(), NOEXIST).is_ok() };
    // SAFETY: the pointer is to a map element.
    let found = Exposed::from_bits(unsafe { whole(word) });
    if found.addr != wanted.addr || found.port != wanted.port {
        return false;
    }
    if found.epoch != epoch {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(word, wanted.bits()) };
    }
    true
}

#[inline(never)]
fn record(from: &Tuple, to: &Tuple, member: u64, place: u32) -> bool {
    // SAFETY: the helper has no preconditions.
    let seen = unsafe { bpf_ktime_get_coarse_ns() };
    let flow = Flow {
        to: *to,
        seen,
        tag: Flow::tag_of(from, to),
        member,
        exits: [0; 2],
        snat: place,
        epoch: 0,
        identity: 0,
        verdict: 0,
        replied: 0,
        assured: 0,
        client_fin: 0,
        server_fin: 0,
        reset: 0,
        pad: 0,
        rest: 0,
    };
    FLOWS.insert(from, flow, NOEXIST).is_ok()
}

/// Takes the place of the connection that began longest ago. One that is not assured by now ends with it. Apart from `record`, so
/// that their needs of the stack do not add up.
#[inline(never)]
fn note_newest(key: &Tuple) {
    let Some(begun) = BEGUN.get_ptr_mut(0) else { return };
    // SAFETY: an element of a map.
    let number = unsafe { atomic::next(begun) };
    let Some(place) = NEWEST.get_ptr_mut(number as u32 & (MAX_NEW_FLOWS as u32 - 1)) else { return };
    // SAFETY: an element of a map, which is only this program's until as many flows as there are places have begun.
    let old = unsafe { core::mem::replace(&mut *place, *key) };
    if old.protocol != 0 && old != *key {
        end_unless_assured(&old);
    }
}

#[inline(always)]
fn end_unless_assured(key: &Tuple) {
    let Some(flow) = FLOWS.get_ptr(key) else { return };
    // SAFETY: a map element.
    let (assured, place) = unsafe { ((*flow).assured, (*flow).snat) };
    if assured == 0 {
        forget(key, place);
    }
}

#[inline(never)]
fn forget(key: &Tuple, place: u32) {
    if FLOWS.remove(key).is_ok() {
        snat::release(place);
    }
}
