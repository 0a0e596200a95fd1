//! The ports that connections show in place of their own: who has which, and how one is had from a flood of openings.
//!
//! A port has a way for every kind of far end, and serves one connection in each: so an answer's port and sender lead to exactly one
//! place, and taking it is one operation. Whoever has taken a flow out of `FLOWS` gives its place back, so no place is given back twice.
//!
//! Where no port is unused, one is had from a connection that is over or not assured. The oldest gives way: an endpoint that closed a
//! connection remembers it for a minute and may answer another client late, and a client that is just opening one has its answer soon.

use core::ffi::c_void;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_loop, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use proxy_common::*;

use crate::atomic::swap;
use crate::family::{Net, node};
use crate::forward::local_pod_of;
use crate::packet::{Packet, are_same, no_tuple, set_words, words};
use crate::shares;

const CURRENT_NETNS: u64 = u64::MAX;
/// Spreads addresses that differ in few bits: 2³² divided by the golden ratio.
const SPREAD: u32 = 0x9e37_79b9;
/// Draws of a port before none counts as unused.
const ATTEMPTS: u32 = 32;

/// The range's number of a port, if it is one of the range.
#[inline(always)]
fn number<A>(port: Port, node: &NodeConfig<A>) -> Option<u32> {
    let number = port.get().wrapping_sub(node.snat_first);
    (number < node.snat_count).then_some(number as u32)
}

/// Finds the key of the connection that an answer belongs to.
#[inline(always)]
pub fn asking<A: Net>(answer: &Tuple<A>, asking: &mut Tuple<A>, node: &NodeConfig<A>) -> bool {
    let Some(number) = number(answer.dport, node) else { return false };
    let remote = answer.reversed().remote();
    let Some(place) = A::snat_place(SnatPlace::<A>::index(number, SnatPlace::<A>::way(remote))) else { return false };
    // SAFETY: a map element.
    if unsafe { read_volatile(&raw const (*place).remote) } != remote {
        return false;
    }
    // One that is just being replaced leads to a flow that does not fit the answer.
    set_words(asking, key(place));
    true
}

/// Where the answers come to that a port is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    Elsewhere,
    /// The node's own address, where its programs may listen.
    AtNode,
}

/// The search for a source port. A loop of the kernel's: the verifier walks its body once.
struct Search<A> {
    skb: *mut __sk_buff,
    packet: *mut Packet<A>,
    first: u16,
    count: u16,
    answered: Answered,
    probe_all: bool,
    /// The place found, as flows have it.
    place: u32,
    /// That of the oldest connection met that may give way, and when it was last heard of.
    victim: u32,
    seen: u64,
}

/// Finds the source port that a packet shall have, and sets it. Gives the place, or 0.
#[inline(always)]
pub fn find_port<A: Net>(skb: *mut __sk_buff, packet: &mut Packet<A>, answered: Answered, node: &NodeConfig<A>) -> u32 {
    let mut search = Search {
        skb,
        packet,
        first: node.snat_first,
        count: if node.snat_count < 2 { 2 } else { node.snat_count },
        answered,
        probe_all: node.probe_ports != 0,
        place: 0,
        victim: 0,
        seen: 0,
    };
    // SAFETY: the callback takes what it is given here, which outlives the call.
    unsafe { bpf_loop(ATTEMPTS, try_port::<A> as *mut c_void, (&raw mut search).cast(), 0) };
    if search.place == 0 && search.victim != 0 {
        search.place = take_over(search.victim, &packet.to, &packet.tuple);
    }
    let number = SnatPlace::<A>::port(search.place.wrapping_sub(1));
    packet.to.sport = Port::new(search.first.wrapping_add(number as u16));
    search.place
}

/// One draw; 1 ends the search.
unsafe extern "C" fn try_port<A: Net>(_index: u32, search: *mut Search<A>) -> i64 {
    // SAFETY: `find_port` passes its own.
    let search = unsafe { &mut *search };
    // SAFETY: the caller of `find_port` has it for itself.
    let packet = unsafe { &mut *search.packet };
    let number = draw(packet.tuple.src, search.count);
    let remote = packet.to.remote();
    let index = SnatPlace::<A>::index(number, SnatPlace::<A>::way(remote));
    let Some(place) = A::snat_place(index) else { return 0 };
    packet.to.sport = Port::new(search.first.wrapping_add(number as u16));
    // SAFETY: a map element.
    let bound = search.probe_all || unsafe { read_volatile(&raw const (*place).bound) } != 0;
    if search.answered == Answered::AtNode && bound && taken_by_host(search.skb, &packet.to) {
        return 0;
    }
    // SAFETY: within a map element.
    if unsafe { swap(&raw mut (*place).remote, 0, remote) } {
        set_key(place, &packet.tuple);
        search.place = index + 1;
        return 1;
    }
    consider(search, place, index);
    0
}

#[inline(always)]
fn key<A: Net>(place: *const SnatPlace<A>) -> A::Words {
    let mut words = A::Words::default();
    for (index, word) in words.as_mut().iter_mut().enumerate() {
        // SAFETY: within a map element, whose key is so many words.
        *word = unsafe { read_volatile((&raw const (*place).key).cast::<u64>().add(index)) };
    }
    words
}

#[inline(always)]
fn tuple<A: Net>(words: A::Words) -> Tuple<A> {
    let mut tuple = no_tuple();
    set_words(&mut tuple, words);
    tuple
}

#[inline(always)]
fn set_key<A: Net>(place: *mut SnatPlace<A>, flow: &Tuple<A>) {
    for (index, word) in words(flow).as_ref().iter().enumerate() {
        // SAFETY: as above.
        unsafe { write_volatile((&raw mut (*place).key).cast::<u64>().add(index), *word) };
    }
}

/// Notes the user of a place if it is the oldest so far of those that may give way.
#[inline(always)]
fn consider<A: Net>(search: &mut Search<A>, place: *const SnatPlace<A>, index: u32) {
    let key = tuple::<A>(key(place));
    let Some(flow) = A::flows().get_ptr(&key) else { return };
    // SAFETY: a map element; one that was recycled is looked at again before it goes.
    let (gives_way, seen) = unsafe { (gives_way(flow), (*flow).seen) };
    if gives_way && (search.victim == 0 || seen < search.seen) {
        (search.victim, search.seen) = (index + 1, seen);
    }
}

/// Whether a connection is over, or not assured.
///
/// # Safety
/// `flow` points to an element of `FLOWS`.
#[inline(always)]
pub unsafe fn gives_way<A>(flow: *const Flow<A>) -> bool {
    // SAFETY: the caller vouches for the pointer.
    let flow = unsafe { &*flow };
    flow.assured == 0 || flow.is_over()
}

/// Ends the connection that has a place, unless it lives by now; the place then is `from`'s, whose packets become `to`: gives
/// it, or 0.
#[inline(never)]
fn take_over<A: Net>(number: u32, to: &Tuple<A>, from: &Tuple<A>) -> u32 {
    let Some(place) = A::snat_place(number.wrapping_sub(1)) else { return 0 };
    let key = tuple::<A>(key(place));
    let Some(flow) = A::flows().get_ptr(&key) else { return 0 };
    // SAFETY: a map element.
    let (gives_way, its, counts) = unsafe { (gives_way(flow), (*flow).snat, (*flow).counts()) };
    if !gives_way || its != number || A::flows().remove(&key).is_err() {
        return 0;
    }
    // The flow that had the place is gone, and by our hand.
    if counts {
        shares::lose(key.src);
    }
    set_key(place, from);
    // SAFETY: within a map element.
    unsafe { write_volatile(&raw mut (*place).remote, to.remote()) };
    number
}

/// Whether a place is a flow's, and leads answers to it.
#[inline(always)]
pub fn has_place<A: Net>(number: u32, flow: &Tuple<A>, to: &Tuple<A>) -> bool {
    A::snat_place(number.wrapping_sub(1)).is_some_and(|place| {
        // SAFETY: a map element.
        let remote = unsafe { read_volatile(&raw const (*place).remote) };
        remote == to.remote() && are_same::<A>(key(place), words(flow))
    })
}

/// Gives the place of a flow back that is gone. What the flow was taken for may have been another by then, with a place of its own:
/// so nobody's is given back but the one with this key.
#[inline(always)]
pub fn release<A: Net>(number: u32, flow: &Tuple<A>) {
    if number == 0 {
        return;
    }
    if let Some(place) = A::snat_place(number.wrapping_sub(1))
        && are_same::<A>(key(place), words(flow))
    {
        // SAFETY: within a map element.
        unsafe { write_volatile(&raw mut (*place).remote, 0) };
    }
}

/// Notes that a program of the node binds a port in a family: from now on it is looked up before it is used.
#[inline(always)]
pub fn note_bound<A: Net>(port: Port) {
    let Some(number) = node::<A>().and_then(|node| number(port, node)) else { return };
    for way in 0..A::SNAT_WAYS as u32 {
        if let Some(place) = A::snat_place(SnatPlace::<A>::index(number, way)) {
            // SAFETY: within a map element.
            unsafe { write_volatile(&raw mut (*place).bound, 1) };
        }
    }
}

/// A port of the range; for a pod, of its half of it. Halves begin at a place that the pod's address gives, so that one pod that
/// takes all it can towards a server leaves some to every other.
#[inline(always)]
fn draw<A: Net>(client: A, count: u16) -> u32 {
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() };
    let count = count as u32;
    let place = match node().and_then(|node| local_pod_of(client, node)) {
        Some(_) => (client.mark().wrapping_mul(SPREAD) >> 16) + random % (count / 2),
        None => random,
    };
    place % count
}

/// Whether a socket of the host itself would get the replies.
#[inline(always)]
fn taken_by_host<A: Net>(skb: *mut __sk_buff, to: &Tuple<A>) -> bool {
    let (mut tuple, size) = A::socket(to);
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
