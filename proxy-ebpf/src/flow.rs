//! Flows of translated packets: one entry per connection, found by what is on the wire in either direction.
//!
//! The client's packets are the key. Answers lead to it by the port they go to (`snat`) or by the endpoint they come from
//! (`EXPOSED`). How far a connection has come is kept as marks, each a byte that one direction sets. Only an endpoint that
//! accepts a connection anew takes them back.

use core::ffi::c_void;
use core::mem::offset_of;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_loop};
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::atomic;
use crate::choose::{Caller, contains, find_service, is_barred, is_gone};
use crate::family::{Net, node};
use crate::forward::{Place, Sender, is_pod_address, place_of};
use crate::maps::{of_map, whole};
use crate::packet::{FIN, Layer4, Packet, RST, are_same, no_tuple, set_words, words};
use crate::shares;
use crate::snat::{self, Answered};

const NOEXIST: u64 = 1;
/// What the kernel says when a map has no element left (E2BIG).
const FULL: i32 = -7;
/// Flows looked at for one that gives way to a new one.
const LOOKS: u32 = 16;
/// A second or a tenth of it, as the kernel was built.
const TICKS: u32 = 100;

/// Which source the packets of a new flow show.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
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

impl Source {
    const fn from_word(word: u32) -> Self {
        match word {
            0 => Self::Keep,
            1 => Self::OtherPort,
            2 => Self::Gateway,
            _ => Self::Node,
        }
    }
}

/// Whether a flow began.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    Yes,
    /// No port was found for it.
    NoPort,
    /// All flows are in use, or another processor has just begun it.
    Full,
}

impl Begun {
    const fn from_word(word: u32) -> Self {
        match word {
            0 => Self::Yes,
            1 => Self::NoPort,
            _ => Self::Full,
        }
    }
}

/// Whether a packet's flow is known.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    Known,
    Unknown,
}

/// Finds what becomes of this packet and where that lies, if its flow is known. What a pod sends to a pod is nobody's but an
/// endpoint's answer.
#[inline(always)]
pub fn find<A: Net>(packet: &mut Packet<A>, from: Sender, node: &NodeConfig<A>) -> Place {
    if from != Sender::Pod || !is_pod_address(packet.tuple.dst, node) {
        let place = forward(packet, from, node);
        if place != Place::NO_FLOW {
            return place;
        }
    }
    find_answered(packet, node)
}

/// The same for what the host sends: only its endpoints' answers are of flows. A step of its own.
#[inline(always)]
pub fn find_reply<A: Net>(packet: *mut Packet<A>) -> u32 {
    // SAFETY: callers give a packet of their own.
    let (Some(packet), Some(node)) = (unsafe { packet.as_mut() }, node()) else { return Place::NO_FLOW.word() };
    find_answered(packet, node).word()
}

#[inline(always)]
fn find_answered<A: Net>(packet: &mut Packet<A>, node: &NodeConfig<A>) -> Place {
    let mut asking = no_tuple();
    // A client may have by itself a port that somebody else shows to the same endpoint: then only its own flow fits.
    if snat::asking(&packet.tuple, &mut asking, node) {
        let place = reply_to(packet, &mut asking, node);
        if place != Place::NO_FLOW {
            return place;
        }
    }
    if !exposed(&packet.tuple, &mut asking) {
        return Place::NO_FLOW;
    }
    reply_to(packet, &mut asking, node)
}

/// The translation of a tuple, without touching its flow: for errors that quote it.
#[inline(always)]
pub fn peek<A: Net>(tuple: &mut Tuple<A>, to: &mut Tuple<A>) -> Seen {
    let Some(node) = node() else { return Seen::Unknown };
    if let Some(flow) = A::flows().get_ptr(&*tuple) {
        // SAFETY: a map element.
        return unsafe { contents(flow, tuple, to) };
    }
    let mut asking = no_tuple();
    let by_port = snat::asking(tuple, &mut asking, node) && A::is_answer(&raw mut asking, tuple) != 0;
    if by_port || (exposed(tuple, &mut asking) && A::is_answer(&raw mut asking, tuple) != 0) {
        set_words(to, A::reversed(words(&asking)));
        return Seen::Known;
    }
    set_words(&mut asking, A::reversed(words(tuple)));
    if A::is_answer(&raw mut asking, tuple) != 0 {
        set_words(to, words(tuple));
        return Seen::Known;
    }
    Seen::Unknown
}

/// Whether a tuple is that of an answer to what `asking` is the key of. A step of its own.
#[inline(always)]
pub fn is_answer<A: Net>(asking: *mut Tuple<A>, answer: *mut Tuple<A>) -> u32 {
    // SAFETY: callers give tuples of their own.
    let (Some(asking), Some(answer)) = (unsafe { asking.as_ref() }, unsafe { answer.as_ref() }) else { return 0 };
    let Some(flow) = A::flows().get_ptr(asking) else { return 0 };
    // SAFETY: a map element.
    let (shown, tag) = unsafe { (words(&(*flow).to), whole(&raw const (*flow).tag)) };
    (tag == A::tag(words(asking), shown) && are_same::<A>(A::reversed(shown), words(answer))) as u32
}

/// What a flow's packets become, unless its element was recycled for another.
///
/// # Safety
/// `flow` points to an element of `FLOWS`.
#[inline(always)]
unsafe fn contents<A: Net>(flow: *const Flow<A>, key: &Tuple<A>, to: &mut Tuple<A>) -> Seen {
    // SAFETY: the caller vouches for the pointer.
    let (found, tag) = unsafe { (words(&(*flow).to), whole(&raw const (*flow).tag)) };
    if tag != A::tag(words(key), found) {
        return Seen::Unknown;
    }
    set_words(to, found);
    Seen::Known
}

/// The key of the connection whose client kept its address and port.
#[inline(always)]
fn exposed<A: Net>(answer: &Tuple<A>, asking: &mut Tuple<A>) -> bool {
    let Some(bits) = A::exposed_ends().get_ptr(answer.answering()) else { return false };
    // SAFETY: the pointer is to a map element.
    let service = A::from_exposed(unsafe { core::ptr::read_volatile(bits) });
    let asked = A::from_words(A::reversed(words(answer)));
    set_words(asking, A::words(&Tuple { dst: service.addr, dport: service.port, ..asked }));
    true
}

#[inline(always)]
fn forward<A: Net>(packet: &mut Packet<A>, from: Sender, node: &NodeConfig<A>) -> Place {
    let Some(flow) = A::flows().get_ptr_mut(&packet.tuple) else { return Place::NO_FLOW };
    // SAFETY: a map element.
    if unsafe { contents(flow, &packet.tuple, &mut packet.to) } == Seen::Unknown {
        return Place::NO_FLOW;
    }
    // SAFETY: a map element; one that is recycled from now on may get a mark that is not its own, which shortens or lengthens its
    // idle life.
    let flow = unsafe { &mut *flow };
    if packet.is_opening() && !is_followed(packet, flow, from) {
        forget(&packet.tuple);
        return Place::NO_FLOW;
    }
    touch(flow);
    if flow.assured == 0 && flow.replied != 0 && !(packet.is_of_connection() && packet.is_opening()) {
        flow.assured = 1;
    }
    if packet.is_closing() {
        shares::change(flow, packet.tuple.src, |flow| mark_closing(packet, &mut flow.client_fin, &mut flow.reset));
    }
    place(flow, Direction::Forward, packet.to.dst, node)
}

/// Whether what may open a connection follows a flow that exists. Datagrams ask each time, openings of connections once.
#[inline(always)]
fn is_followed<A: Net>(packet: &mut Packet<A>, flow: &Flow<A>, from: Sender) -> bool {
    match packet.layer4 {
        Layer4::Tcp | Layer4::Sctp => A::leads_on(packet, flow.member, flow.snat, from.word()) != 0,
        _ => flow.member == Member::NONE.bits() || !is_gone(flow.member),
    }
}

/// Whether an opening follows a flow that exists: one that was sent again, or one of a client whose port came round again. That one
/// keeps its port behind the node, too: so the endpoint sees one client with one clock. With another port it might take the opening
/// for a packet of somebody's old connection. A step of its own.
#[inline(always)]
pub fn leads_on<A: Net>(packet: *mut Packet<A>, member: u64, snat: u32, from: u32) -> u32 {
    // SAFETY: callers give a packet of their own.
    let Some(Packet { tuple, to, .. }) = (unsafe { packet.as_ref() }) else { return 0 };
    (is_served(tuple, member, Sender::from_word(from).scope()) && finds_answers(tuple, to, member, snat)) as u32
}

/// Whether an endpoint is one of those that the client may have now for the address it asked. What goes to no service needs none.
#[inline(always)]
fn is_served<A: Net>(asked: &Tuple<A>, member: u64, scope: Scope) -> bool {
    if member == Member::NONE.bits() {
        return true;
    }
    let Tuple { src, dst, dport, protocol, .. } = *asked;
    find_service(dst.to_ip(), dport, protocol, scope, Caller::Elsewhere)
        .is_some_and(|service| contains(service.slot, member) && !is_barred(service, src.to_ip()))
}

/// Whether answers find a flow. It takes a sweep, a kill or a recycled element at the wrong moment that they do not, but whoever waits
/// for one has nothing else to bring it back.
#[inline(always)]
fn finds_answers<A: Net>(tuple: &Tuple<A>, to: &Tuple<A>, member: u64, snat: u32) -> bool {
    match snat {
        // The far end of the answers' own packets is the key itself.
        0 if member == Member::NONE.bits() => true,
        0 => A::exposed_ends().get_ptr(to.answerer()).is_some_and(|bits| {
            // SAFETY: the pointer is to a map element.
            let service = A::from_exposed(unsafe { core::ptr::read_volatile(bits) });
            service.addr == tuple.dst && service.port == tuple.dport
        }),
        _ => snat::has_place(snat, tuple, to),
    }
}

/// What becomes of an answer of the connection with this key, and where that lies, if it is one.
#[inline(always)]
pub fn reply_to<A: Net>(packet: &mut Packet<A>, asking: &mut Tuple<A>, node: &NodeConfig<A>) -> Place {
    Place::from_word(A::reply(packet, asking, of_map(node)))
}

/// The same of the connection whose client's packets are the packet's own the other way round.
#[inline(always)]
pub fn reply_unchanged<A: Net>(packet: &mut Packet<A>, node: &NodeConfig<A>) -> Place {
    Place::from_word(A::reply(packet, core::ptr::null_mut(), of_map(node)))
}

/// Both, a step of its own.
#[inline(always)]
pub fn reply<A: Net>(packet: *mut Packet<A>, asking: *mut Tuple<A>, node: *mut NodeConfig<A>) -> u32 {
    // SAFETY: callers give a packet and a tuple of their own, and the node.
    let (Some(packet), asking, Some(node)) = (unsafe { (packet.as_mut(), asking.as_ref(), node.as_ref()) }) else {
        return Place::NO_FLOW.word();
    };
    let mut own = no_tuple();
    let asking = match asking {
        Some(asking) => asking,
        None => {
            set_words(&mut own, A::reversed(words(&packet.tuple)));
            &own
        }
    };
    answer(packet, asking, node).word()
}

#[inline(always)]
fn answer<A: Net>(packet: &mut Packet<A>, asking: &Tuple<A>, node: &NodeConfig<A>) -> Place {
    let Some(flow) = A::flows().get_ptr_mut(asking) else { return Place::NO_FLOW };
    // SAFETY: a map element; the tag shows whether it still is this flow's.
    let (shown, tag) = unsafe { (words(&(*flow).to), whole(&raw const (*flow).tag)) };
    let asked = words(asking);
    if tag != A::tag(asked, shown) || !are_same::<A>(A::reversed(shown), words(&packet.tuple)) {
        return Place::NO_FLOW;
    }
    // SAFETY: as for `forward`.
    let flow = unsafe { &mut *flow };
    touch(flow);
    if flow.replied == 0 {
        shares::change(flow, asking.src, |flow| flow.replied = 1);
    }
    if packet.accepts() && (flow.client_fin | flow.server_fin | flow.reset) != 0 {
        shares::change(flow, asking.src, live_again);
    }
    if packet.is_closing() {
        shares::change(flow, asking.src, |flow| mark_closing(packet, &mut flow.server_fin, &mut flow.reset));
    }
    set_words(&mut packet.to, A::reversed(asked));
    place(flow, Direction::Reply, asking.src, node)
}

/// Writes the time now and then, to leave clock and cache line alone otherwise.
#[inline(always)]
fn touch<A>(flow: &mut Flow<A>) {
    // SAFETY: the helper has no preconditions.
    let tick = unsafe { bpf_jiffies64() } as u32;
    if tick.wrapping_sub(flow.tick) >= TICKS {
        flow.tick = tick;
        // SAFETY: as above.
        flow.seen = unsafe { bpf_ktime_get_coarse_ns() };
    }
}

#[inline(always)]
fn mark_closing<A>(packet: &Packet<A>, fin: &mut u8, reset: &mut u8) {
    if packet.flags & FIN != 0 {
        *fin = 1;
    }
    if packet.flags & RST != 0 {
        *reset = 1;
    }
}

/// The endpoint has taken a connection whose client's port came round again. An opening alone changes nothing: one that nobody
/// answers lives no longer than what it follows.
#[inline(always)]
fn live_again<A>(flow: &mut Flow<A>) {
    (flow.assured, flow.client_fin, flow.server_fin, flow.reset) = (0, 0, 0, 0);
}

/// Where an address lies, from memory while nothing has changed.
#[inline(always)]
fn place<A: Net>(flow: &mut Flow<A>, direction: Direction, addr: A, node: &NodeConfig<A>) -> Place {
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

/// Begins a flow from a packet to the endpoint that its `to` has; the rest of `to` is found here.
#[inline(always)]
pub fn begin_from<A: Net>(
    ctx: &TcContext,
    packet: &mut Packet<A>,
    source: Source,
    member: u64,
    node: &NodeConfig<A>,
) -> Begun {
    Begun::from_word(A::begin_flow(ctx.skb.skb, packet, source as u32, member, of_map(node)))
}

/// `begin_from`, a step of its own.
#[inline(always)]
pub fn begin<A: Net>(
    skb: *mut __sk_buff,
    packet: *mut Packet<A>,
    source: u32,
    member: u64,
    node: *mut NodeConfig<A>,
) -> u32 {
    // SAFETY: callers give a packet of their own, and the node.
    let (Some(packet), Some(node)) = (unsafe { packet.as_mut() }, unsafe { node.as_ref() }) else {
        return Begun::Full as u32;
    };
    track(skb, packet, Source::from_word(source), member, node) as u32
}

#[inline(always)]
fn track<A: Net>(
    skb: *mut __sk_buff,
    packet: &mut Packet<A>,
    source: Source,
    member: u64,
    node: &NodeConfig<A>,
) -> Begun {
    packet.to.src = match source {
        Source::Keep | Source::OtherPort => packet.tuple.src,
        Source::Gateway => A::GATEWAY,
        Source::Node => node.node_ip,
    };
    let mut place = 0;
    if !(source == Source::Keep && expose(&packet.tuple, &packet.to)) {
        let answered = if source == Source::Node { Answered::AtNode } else { Answered::Elsewhere };
        place = snat::find_port(skb, packet, answered, node);
        if place == 0 {
            return Begun::NoPort;
        }
    }
    if write_down(packet, member, place) {
        return Begun::Yes;
    }
    snat::release(place, &packet.tuple);
    Begun::Full
}

/// Notes a packet from outside to a pod's own address, so that its answers are known for what they are. Without a note they show
/// the node's address.
#[inline(always)]
pub fn note_direct<A: Net>(packet: &mut Packet<A>) {
    write_down(packet, Member::NONE.bits(), 0);
}

/// Makes sure that answers of an endpoint lead to this service. False: they lead to another, under which its clients know it too. Not
/// in place, for the search of a port needs the stack as well.
#[inline(never)]
fn expose<A: Net>(from: &Tuple<A>, to: &Tuple<A>) -> bool {
    let key = to.answerer();
    // SAFETY: the helper has no preconditions.
    let epoch = Exposed::<A>::epoch_of(unsafe { bpf_ktime_get_coarse_ns() });
    let wanted = Exposed { addr: from.dst, port: from.dport, epoch };
    let Some(bits) = A::exposed_ends().get_ptr_mut(key) else {
        return A::exposed_ends().insert(key, A::exposed(wanted), NOEXIST).is_ok();
    };
    // SAFETY: the pointer is to a map element.
    let found = A::from_exposed(unsafe { core::ptr::read_volatile(bits) });
    if found.addr != wanted.addr || found.port != wanted.port {
        return false;
    }
    if found.epoch != epoch {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(bits, A::exposed(wanted)) };
    }
    true
}

#[inline(always)]
fn write_down<A: Net>(packet: &mut Packet<A>, member: u64, place: u32) -> bool {
    let mut error = A::record(packet, member, place);
    if error == FULL && A::make_room() != 0 {
        error = A::record(packet, member, place);
    }
    if error != 0 {
        return false;
    }
    A::note_newest(&raw mut packet.tuple);
    true
}

/// Writes a flow down, unless its key has one; else the kernel's error. A step apart from what follows it, so that their needs of the
/// stack do not add up.
#[inline(always)]
pub fn record<A: Net>(packet: *mut Packet<A>, member: u64, place: u32) -> i32 {
    // SAFETY: callers give a packet of their own.
    let Some(Packet { tuple, to, .. }) = (unsafe { packet.as_ref() }) else { return FULL };
    // SAFETY: the helper has no preconditions.
    let seen = unsafe { bpf_ktime_get_coarse_ns() };
    let mut flow = A::EMPTY;
    let fields = flow.as_mut();
    fields[offset_of!(Flow<A>, tag) / 8] = A::tag(words(tuple), words(to));
    for (field, word) in fields.iter_mut().zip(words(to).as_ref()) {
        *field = *word;
    }
    fields[offset_of!(Flow<A>, seen) / 8] = seen;
    fields[offset_of!(Flow<A>, member) / 8] = member;
    fields[offset_of!(Flow<A>, snat) / 8] = place as u64;
    // SAFETY: a flow has this size and alignment, and no byte that is not a field's; `to` is its first, and the place lies in the
    // lower half of its word, as bytes lie on the target.
    let flow = unsafe { &*core::ptr::from_ref(&flow).cast::<Flow<A>>() };
    A::flows().insert(tuple, flow, NOEXIST).err().unwrap_or(0)
}

/// The search for a flow that gives way.
struct Looking<A> {
    oldest: Tuple<A>,
    seen: u64,
    met: u32,
}

/// Where all flows are in use, ends the oldest met of those that are over or not assured; 0: it met none. Only the newest flows are
/// looked at, for there is no list of others. A step of its own.
#[inline(always)]
pub fn make_room<A: Net>() -> u32 {
    let mut looking = Looking { oldest: no_tuple::<A>(), seen: u64::MAX, met: 0 };
    // SAFETY: the callback takes what it is given here, which outlives the call.
    unsafe { bpf_loop(LOOKS, look::<A> as *mut c_void, (&raw mut looking).cast(), 0) };
    if looking.met != 0 {
        forget(&looking.oldest);
    }
    looking.met
}

/// One look at any of the newest flows; the search goes on.
unsafe extern "C" fn look<A: Net>(_index: u32, looking: *mut Looking<A>) -> i64 {
    // SAFETY: `make_room` passes its own.
    let looking = unsafe { &mut *looking };
    // SAFETY: the helper has no preconditions.
    let number = unsafe { bpf_get_prandom_u32() };
    let Some(place) = A::newest(number & (A::NEW_FLOWS - 1)) else { return 0 };
    // SAFETY: an element of a map; halves of two keys are nobody's.
    let place = unsafe { words(&*place) };
    let mut key = no_tuple();
    set_words(&mut key, place);
    let Some(flow) = A::flows().get_ptr(&key) else { return 0 };
    // SAFETY: a map element.
    let (gives_way, seen) = unsafe { (snat::gives_way(flow), (*flow).seen) };
    if gives_way && seen < looking.seen {
        set_words(&mut looking.oldest, place);
        (looking.seen, looking.met) = (seen, 1);
    }
    0
}

/// Takes the place of the connection that began longest ago. One that is not assured by now ends with it. A step of its own.
#[inline(always)]
pub fn note_newest<A: Net>(key: *mut Tuple<A>) -> u32 {
    // SAFETY: callers give a tuple of their own.
    let (Some(key), Some(begun)) = (unsafe { key.as_ref() }, A::begun()) else { return 0 };
    // SAFETY: an element of a map.
    let number = unsafe { atomic::next(begun) };
    let Some(place) = A::newest(number as u32 & (A::NEW_FLOWS - 1)) else { return 0 };
    // SAFETY: an element of a map, which is only this program's until as many flows as there are places have begun.
    let place = unsafe { &mut *place };
    let (old, new) = (words(place), words(key));
    set_words(place, new);
    // No connection of protocol 0 is noted: nobody was here before.
    if A::from_words(old).protocol != 0 && !are_same::<A>(old, new) {
        let mut key = no_tuple();
        set_words(&mut key, old);
        end_unless_assured::<A>(&key);
    }
    0
}

#[inline(always)]
fn end_unless_assured<A: Net>(key: &Tuple<A>) {
    // SAFETY: a map element.
    if A::flows().get_ptr(key).is_some_and(|flow| unsafe { (*flow).assured } == 0) {
        forget(key);
    }
}

#[inline(always)]
fn forget<A: Net>(key: &Tuple<A>) {
    let Some(flow) = A::flows().get_ptr(key) else { return };
    // SAFETY: a map element.
    let (counts, place) = unsafe { ((*flow).counts(), (*flow).snat) };
    if A::flows().remove(key).is_ok() {
        snat::release(place, key);
        if counts {
            shares::lose(key.src);
        }
    }
}
