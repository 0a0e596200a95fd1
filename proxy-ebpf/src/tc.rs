//! Hooks on packets: pods' host ends, the uplink, and the service link that the host's own packets to services take.
//!
//! A program decides first, without touching the packet, and acts last and in one place: so it stays small, which the verifier
//! thanks with its time and every packet with its own. The steps between are exported functions: those the verifier walks once by
//! themselves, whoever calls them with whatever, and their callers go on in one state.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::choose::{Caller, Choice, Endpoint, choose, find_service};
use crate::family::{Net, local_pod, node};
use crate::flow::{self, Begun, Source};
use crate::forward::{
    Exit, Place, Sender, TC_ACT_SHOT, TC_ACT_UNSPEC, Way, ifindex, is_marked, local_pod_of, place_beyond, place_of,
    route, send,
};
use crate::icmp::{self, Known};
use crate::mangle::rewrite;
use crate::maps::{count, count_number, flows_are_carried, of_map};
use crate::packet::{Hop, Layer4, Packet, set_words, words};
use crate::parse::family;
use crate::shares;

/// What shall become of a packet, in one word: an act, and an exit, ICMP code or counter above it.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Verdict(u64);

impl Verdict {
    /// Not ours: left to other programs and the stack.
    const NEXT: Self = Self(0);
    /// No flow is known: where it goes is still to be found out.
    const BEGIN: Self = Self(1);
    const SEND: u32 = 2;
    const REJECT: u32 = 3;
    const DROP: u32 = 4;

    const fn of(act: u32, value: u32) -> Self {
        Self(act as u64 | (value as u64) << 32)
    }

    /// On with the addresses that were decided.
    const fn send(exit: Exit) -> Self {
        Self::of(Self::SEND, exit.word())
    }

    /// Answered with a TCP reset, or ICMP unreachable.
    const fn reject(code: u8) -> Self {
        Self::of(Self::REJECT, code as u32)
    }

    const fn drop(reason: Counter) -> Self {
        Self::of(Self::DROP, reason as u32)
    }

    const fn act(self) -> u32 {
        self.0 as u32
    }

    const fn value(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Everything a pod sends.
#[classifier]
fn amphi_from_pod(ctx: TcContext) -> i32 {
    match family(&ctx) {
        Some(Family::V4) => from_pod::<Ip4>(ctx.skb.skb),
        Some(Family::V6) => from_pod::<Ip>(ctx.skb.skb),
        None => TC_ACT_UNSPEC,
    }
}

#[inline(never)]
fn from_pod<A: Net>(skb: *mut __sk_buff) -> i32 {
    let (ctx, mut room) = (&TcContext::new(skb), MaybeUninit::uninit());
    // What cannot be read cannot show whose it is either.
    let Some(packet) = Packet::<A>::read(ctx, &mut room) else { return discard(Counter::DropSpoofed) };
    if A::is_of_link(&packet.tuple) {
        return A::answer_on_link(ctx, packet);
    }
    if local_pod(packet.tuple.src).is_none_or(|pod| pod.ifindex != ifindex(ctx)) {
        return discard(Counter::DropSpoofed);
    }
    let Some(node) = node() else { return TC_ACT_UNSPEC };
    handle(ctx, packet, Sender::Pod, node)
}

/// What the host sends to services, where no socket hook saw it: it comes out at the far end of the service link.
#[classifier]
fn amphi_from_host(ctx: TcContext) -> i32 {
    match family(&ctx) {
        Some(Family::V4) => from_host::<Ip4>(ctx.skb.skb),
        Some(Family::V6) => from_host::<Ip>(ctx.skb.skb),
        None => TC_ACT_SHOT,
    }
}

#[inline(never)]
fn from_host<A: Net>(skb: *mut __sk_buff) -> i32 {
    let (ctx, mut room) = (&TcContext::new(skb), MaybeUninit::uninit());
    let Some(packet) = Packet::<A>::read(ctx, &mut room) else { return TC_ACT_SHOT };
    let Some(node) = node() else { return TC_ACT_SHOT };
    if A::is_of_link(&packet.tuple) {
        return TC_ACT_SHOT;
    }
    match handle(ctx, packet, Sender::Host, node) {
        // The far end is no place to receive anything.
        TC_ACT_UNSPEC => discard(Counter::Unanswerable),
        action => action,
    }
}

/// What comes in from the network.
#[classifier]
fn amphi_from_uplink(ctx: TcContext) -> i32 {
    match family(&ctx) {
        Some(Family::V4) => from_uplink::<Ip4>(ctx.skb.skb),
        Some(Family::V6) => from_uplink::<Ip>(ctx.skb.skb),
        None => TC_ACT_UNSPEC,
    }
}

#[inline(never)]
fn from_uplink<A: Net>(skb: *mut __sk_buff) -> i32 {
    let (ctx, mut room) = (&TcContext::new(skb), MaybeUninit::uninit());
    let Some(packet) = Packet::<A>::read(ctx, &mut room) else { return TC_ACT_UNSPEC };
    let Some(node) = node() else { return TC_ACT_UNSPEC };
    if is_of_this_node(packet.tuple.src, node) {
        return discard(Counter::DropSpoofed);
    }
    handle(ctx, packet, Sender::Uplink, node)
}

/// Addresses that only this node's own pods and programs send with; what shows one from outside is forged.
#[inline(always)]
fn is_of_this_node<A: Net>(addr: A, node: &NodeConfig<A>) -> bool {
    addr.is_within(node.pod_net, node.pod_mask)
        || addr.is_within(node.service_net, node.service_mask)
        || addr == node.node_ip
        || addr == A::GATEWAY
}

/// What the host itself sends to the network: only replies of its own endpoints need translating back.
#[classifier]
fn amphi_from_stack(ctx: TcContext) -> i32 {
    if is_marked(&ctx) {
        // It went through a program of ours, which sent it here.
        return TC_ACT_UNSPEC;
    }
    match family(&ctx) {
        Some(Family::V4) => from_stack::<Ip4>(ctx.skb.skb),
        Some(Family::V6) => from_stack::<Ip>(ctx.skb.skb),
        None => TC_ACT_UNSPEC,
    }
}

#[inline(never)]
fn from_stack<A: Net>(skb: *mut __sk_buff) -> i32 {
    let (ctx, mut room) = (&TcContext::new(skb), MaybeUninit::uninit());
    let Some(packet) = Packet::<A>::read(ctx, &mut room) else { return TC_ACT_UNSPEC };
    if packet.layer4 == Layer4::IcmpError {
        match icmp::translate(ctx, packet) {
            Known::NotOurs => return TC_ACT_UNSPEC,
            Known::Mangled => return discard(Counter::DropMangle),
            Known::Translated => {}
        }
    } else if Place::from_word(A::find_reply(packet)) == Place::NO_FLOW {
        return TC_ACT_UNSPEC;
    }
    match rewrite(ctx, packet, Hop::NONE) {
        Ok(()) => TC_ACT_UNSPEC,
        Err(_) => discard(Counter::DropMangle),
    }
}

fn discard(reason: Counter) -> i32 {
    count(reason);
    TC_ACT_SHOT
}

#[inline(always)]
fn handle<A: Net>(ctx: &TcContext, packet: &mut Packet<A>, from: Sender, node: &NodeConfig<A>) -> i32 {
    let mut verdict = Verdict(A::decide(ctx.skb.skb, packet, from.word(), of_map(node)));
    if verdict == Verdict::BEGIN {
        verdict = Verdict(A::begin(ctx.skb.skb, packet, from.word(), of_map(node)));
    }
    match verdict.act() {
        Verdict::SEND => send(ctx, packet, Exit::from_word(verdict.value()), from, node),
        Verdict::REJECT => A::reject(ctx.skb.skb, packet, from.word(), verdict.value()),
        Verdict::DROP => {
            count_number(verdict.value());
            TC_ACT_SHOT
        }
        _ => TC_ACT_UNSPEC,
    }
}

/// What is known about a packet. A step of its own.
#[inline(always)]
pub fn decide<A: Net>(skb: *mut __sk_buff, packet: *mut Packet<A>, from: u32, node: *mut NodeConfig<A>) -> u64 {
    // SAFETY: `handle` gives its own, and the node.
    let (Some(packet), Some(node)) = (unsafe { packet.as_mut() }, unsafe { node.as_ref() }) else {
        return Verdict::NEXT.0;
    };
    known(&TcContext::new(skb), packet, Sender::from_word(from), node).0
}

#[inline(always)]
fn known<A: Net>(ctx: &TcContext, packet: &mut Packet<A>, from: Sender, node: &NodeConfig<A>) -> Verdict {
    let place = match packet.layer4 {
        Layer4::Unknown => Place::NO_FLOW,
        // An error about a flow goes where the flow's replies go; others are ordinary packets.
        Layer4::IcmpError => match icmp::translate(ctx, packet) {
            Known::Translated => place_of(packet.to.dst, node),
            Known::Mangled => return Verdict::drop(Counter::DropMangle),
            Known::NotOurs => Place::NO_FLOW,
        },
        _ => flow::find(packet, from, node),
    };
    if place == Place::NO_FLOW { Verdict::BEGIN } else { exit(packet, place, from) }
}

/// Where a packet goes that nothing is known about. A step of its own.
#[inline(always)]
pub fn begin<A: Net>(skb: *mut __sk_buff, packet: *mut Packet<A>, from: u32, node: *mut NodeConfig<A>) -> u64 {
    // SAFETY: `handle` gives its own, and the node.
    let (Some(packet), Some(node)) = (unsafe { packet.as_mut() }, unsafe { node.as_ref() }) else {
        return Verdict::NEXT.0;
    };
    let words = words(&packet.tuple);
    set_words(&mut packet.to, words);
    unknown(&TcContext::new(skb), packet, Sender::from_word(from), node).0
}

/// A packet of no known flow: to a service, or straight to where its address says. A pod's address is never a service's.
#[inline(always)]
fn unknown<A: Net>(ctx: &TcContext, packet: &mut Packet<A>, from: Sender, node: &NodeConfig<A>) -> Verdict {
    if let Some(pod) = local_pod_of(packet.tuple.dst, node) {
        if from == Sender::Uplink && is_of_flows(packet) && !is_of_cluster(packet.tuple.src, node) {
            flow::note_direct(packet);
        }
        return Verdict::send(Exit::pod(pod.ifindex));
    }
    let transport = matches!(packet.layer4, Layer4::Tcp | Layer4::Udp);
    let Tuple { src, dst, dport, protocol, .. } = packet.tuple;
    if transport && let Some(service) = find_service(dst.to_ip(), dport, protocol, from.scope(), Caller::Elsewhere) {
        return match choose(service, src.to_ip()) {
            Choice::Endpoint(endpoint) => to_endpoint(ctx, packet, &endpoint, service.slot, from, node),
            // On the node's own address too: the host would refuse it as well, but not where its firewall drops what it gets.
            Choice::Refuse => Verdict::reject(A::PORT_UNREACHABLE),
            Choice::Drop => Verdict::drop(Counter::DropPolicy),
        };
    }
    if dst.is_within(node.service_net, node.service_mask) {
        return match from {
            Sender::Uplink => Verdict::drop(Counter::DropClusterIpOutside),
            Sender::Pod | Sender::Host => Verdict::reject(A::PORT_UNREACHABLE),
        };
    }
    untranslated(ctx, packet, from, node)
}

/// Whether answers to the packet can be told from what a pod begins itself.
#[inline(always)]
fn is_of_flows<A>(packet: &Packet<A>) -> bool {
    matches!(packet.layer4, Layer4::Tcp | Layer4::Udp | Layer4::EchoRequest)
}

/// Whether pods answer an address under their own without more ado.
#[inline(always)]
fn is_of_cluster<A: Net>(addr: A, node: &NodeConfig<A>) -> bool {
    !matches!(place_beyond(addr, node), Place::OUTSIDE)
}

#[inline(always)]
fn to_endpoint<A: Net>(
    ctx: &TcContext,
    packet: &mut Packet<A>,
    endpoint: &Endpoint,
    slot: Slot,
    from: Sender,
    node: &NodeConfig<A>,
) -> Verdict {
    if !packet.is_opening() {
        // The middle of a connection that nobody remembers: the client shall know at once.
        return if flows_are_carried() {
            Verdict::drop(Counter::DropCarried)
        } else {
            Verdict::reject(A::PORT_UNREACHABLE)
        };
    }
    if shares::is_spent(packet.tuple.src, node) {
        return Verdict::drop(Counter::DropFlowShare);
    }
    let Some(addr) = A::from_ip(endpoint.ip) else { return Verdict::drop(Counter::Unanswerable) };
    let place = place_of(addr, node);
    let source = source_for(packet, addr, place, slot, from);
    (packet.to.dst, packet.to.dport) = (addr, endpoint.port);
    match flow::begin_from(ctx, packet, source, endpoint.member, node) {
        Begun::Yes => count(Counter::ServiceFlow),
        Begun::NoPort => return Verdict::drop(Counter::DropSnatExhausted),
        Begun::Full => return Verdict::drop(Counter::FlowsFull),
    }
    exit(packet, place, from)
}

/// Replies must pass here again: so a client that would answer itself, or that an endpoint could reach by another way, is hidden.
#[inline(always)]
fn source_for<A: Net>(packet: &Packet<A>, backend: A, place: Place, slot: Slot, from: Sender) -> Source {
    match (from, place) {
        (Sender::Pod, Place::OUTSIDE) => Source::Node,
        (Sender::Pod, _) if backend == packet.tuple.src => Source::Gateway,
        (Sender::Pod | Sender::Host, Place::THIS_NODE) => Source::Gateway,
        (Sender::Pod | Sender::Host, _) if packet.tuple.protocol == UDP => Source::OtherPort,
        (Sender::Pod | Sender::Host, _) => Source::Keep,
        (Sender::Uplink, Place::THIS_NODE) => Source::Keep,
        (Sender::Uplink, _) if slot.has(Slot::KEEP_SOURCE) => Source::Keep,
        (Sender::Uplink, _) => Source::Node,
    }
}

/// Sends a translated packet on.
#[inline(always)]
fn exit<A: Net>(packet: &Packet<A>, place: Place, from: Sender) -> Verdict {
    match place {
        Place::THIS_NODE if from == Sender::Host || packet.to.src != packet.tuple.src => {
            Verdict::send(Exit::HOST_AS_SERVICE)
        }
        Place::THIS_NODE => Verdict::send(Exit::STACK),
        // The client knows the address it used, not the endpoint that is gone.
        Place::NOBODY => Verdict::reject(nobody(packet)),
        Place::CLUSTER | Place::OUTSIDE => Verdict::send(Exit::UPLINK),
        pod => Verdict::send(Exit::to(pod)),
    }
}

/// Whose address nobody has: of the two answers a connected UDP socket hears only the one.
#[inline(always)]
fn nobody<A: Net>(packet: &Packet<A>) -> u8 {
    if packet.layer4 == Layer4::Udp { A::PORT_UNREACHABLE } else { A::HOST_UNREACHABLE }
}

/// A packet of a connection that was opened before.
#[inline(always)]
fn is_middle<A>(packet: &Packet<A>) -> bool {
    packet.layer4 == Layer4::Tcp && !packet.is_opening()
}

/// A packet whose addresses stay, unless it leaves the cluster. Its destination is no local pod.
#[inline(always)]
fn untranslated<A: Net>(ctx: &TcContext, packet: &mut Packet<A>, from: Sender, node: &NodeConfig<A>) -> Verdict {
    match place_beyond(packet.tuple.dst, node) {
        Place::NOBODY => Verdict::reject(nobody(packet)),
        // An answer to who hides behind the node's address: the host knows nothing of him.
        Place::THIS_NODE if from == Sender::Pod && is_middle(packet) && flows_are_carried() => {
            Verdict::drop(Counter::DropCarried)
        }
        Place::CLUSTER if from == Sender::Pod => Verdict::send(Exit::UPLINK),
        Place::OUTSIDE if from == Sender::Pod => leave(ctx, packet, node),
        _ => Verdict::NEXT,
    }
}

/// Out of the cluster, behind the node's address. Destinations on other devices of this node are left to its routes.
#[inline(always)]
fn leave<A: Net>(ctx: &TcContext, packet: &mut Packet<A>, node: &NodeConfig<A>) -> Verdict {
    match route(ctx, &packet.tuple) {
        Way::Device(device) if device == node.uplink => {}
        Way::Device(_) | Way::Stack => return Verdict::NEXT,
        Way::Nowhere => return Verdict::reject(A::HOST_UNREACHABLE),
    }
    // An answer to somebody who knows the pod's own address.
    if flow::reply_unchanged(packet, node) != Place::NO_FLOW {
        return Verdict::send(Exit::UPLINK);
    }
    match packet.layer4 {
        Layer4::Unknown => return Verdict::drop(Counter::DropFragment),
        Layer4::Tcp if !packet.is_opening() && flows_are_carried() => return Verdict::drop(Counter::DropCarried),
        // Of a connection that nobody remembers: its far end knows the node's address, not the pod's.
        Layer4::Tcp if !packet.is_opening() => return Verdict::reject(A::PORT_UNREACHABLE),
        _ if shares::is_spent(packet.tuple.src, node) => return Verdict::drop(Counter::DropFlowShare),
        _ => {}
    }
    match flow::begin_from(ctx, packet, Source::Node, Member::NONE.bits(), node) {
        Begun::Yes => count(Counter::MasqueradedFlow),
        Begun::NoPort => return Verdict::drop(Counter::DropSnatExhausted),
        Begun::Full => return Verdict::drop(Counter::FlowsFull),
    }
    Verdict::send(Exit::UPLINK)
}
