//! Hooks on packets: pods' host ends, the uplink, and the service link that the host's own packets to services take.
//!
//! A program decides first, without touching the packet, and acts last and in one place: so it stays small, which the verifier
//! thanks with its time and every packet with its own.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::choose::{Choice, choose, find_service};
use crate::flow::{self, Source};
use crate::forward::{
    Exit, From, Place, TC_ACT_SHOT, TC_ACT_UNSPEC, Way, ifindex, place_beyond, place_of, route, send,
};
use crate::icmp::{self, Known};
use crate::mangle::{Hop, rewrite};
use crate::maps::{count, flows_are_carried, local_pod, node};
use crate::packet::{Layer4, Packet, claims_ip4};
use crate::reject::{HOST_UNREACHABLE, PORT_UNREACHABLE, reject};

/// What shall become of a packet. Not ours is `Next`, which leaves it to other programs and the stack.
#[must_use]
#[derive(Clone, Copy)]
enum Verdict {
    Next,
    Send(Tuple, Exit),
    /// Answer with a TCP reset, or ICMP unreachable of this code.
    Reject(u8),
    Drop(Counter),
}

/// Everything a pod sends.
#[classifier]
fn amphi_from_pod(ctx: TcContext) -> i32 {
    let Some(packet) = Packet::parse(&ctx) else {
        // What claims to be IPv4 and cannot be read cannot show whose it is either.
        return if claims_ip4(&ctx) { drop(Counter::DropSpoofed) } else { TC_ACT_UNSPEC };
    };
    if local_pod(packet.tuple.src).is_none_or(|pod| pod.ifindex != ifindex(&ctx)) {
        return drop(Counter::DropSpoofed);
    }
    handle(&ctx, &packet, From::Pod)
}

/// What the host sends to services, where no socket hook saw it: it comes out at the far end of the service link.
#[classifier]
fn amphi_from_host(ctx: TcContext) -> i32 {
    let Some(packet) = Packet::parse(&ctx) else { return TC_ACT_SHOT };
    match handle(&ctx, &packet, From::Host) {
        // The far end is no place to receive anything.
        TC_ACT_UNSPEC => drop(Counter::Unanswerable),
        action => action,
    }
}

/// What comes in from the network.
#[classifier]
fn amphi_from_uplink(ctx: TcContext) -> i32 {
    let Some(packet) = Packet::parse(&ctx) else { return TC_ACT_UNSPEC };
    if node().is_some_and(|node| is_of_this_node(packet.tuple.src, node)) {
        return drop(Counter::DropSpoofed);
    }
    handle(&ctx, &packet, From::Uplink)
}

/// Addresses that only this node's own pods and programs send with; what shows one from outside is forged.
#[inline(always)]
fn is_of_this_node(addr: Ip4, node: &NodeConfig) -> bool {
    addr.is_within(node.pod_net, node.pod_mask) || addr.is_within(node.service_net, node.service_mask) || addr == GATEWAY
}

/// What the host itself sends to the network: only replies of its own endpoints need translating back.
#[classifier]
fn amphi_from_stack(ctx: TcContext) -> i32 {
    let Some(packet) = Packet::parse(&ctx) else { return TC_ACT_UNSPEC };
    let mut to = packet.tuple;
    let known = match packet.layer4 {
        Layer4::IcmpError => icmp::translate(&ctx, &packet, &mut to),
        // No client of a service opens here.
        _ => find(&packet, &mut to, Scope::Internal),
    };
    if known == Known::NotOurs {
        return TC_ACT_UNSPEC;
    }
    if known == Known::Mangled {
        return drop(Counter::DropMangle);
    }
    match rewrite(&ctx, &packet, &to, Hop::NONE) {
        Ok(()) => TC_ACT_UNSPEC,
        Err(_) => drop(Counter::DropMangle),
    }
}

fn drop(reason: Counter) -> i32 {
    count(reason);
    TC_ACT_SHOT
}

#[inline(always)]
fn handle(ctx: &TcContext, packet: &Packet, from: From) -> i32 {
    let Some(node) = node() else { return TC_ACT_UNSPEC };
    match decide(ctx, packet, from, node) {
        Verdict::Next => TC_ACT_UNSPEC,
        Verdict::Send(to, exit) => match send(ctx, packet, &to, exit, from, node) {
            Ok(action) => action,
            Err(_) => drop(Counter::DropMangle),
        },
        Verdict::Reject(code) => reject(ctx, packet, from, code),
        Verdict::Drop(reason) => drop(reason),
    }
}

#[inline(always)]
fn decide(ctx: &TcContext, packet: &Packet, from: From, node: &NodeConfig) -> Verdict {
    let mut to = packet.tuple;
    let known = match packet.layer4 {
        Layer4::Unknown => Known::NotOurs,
        // An error about a flow goes where the flow's replies go; others are ordinary packets.
        Layer4::IcmpError => icmp::translate(ctx, packet, &mut to),
        _ => find(packet, &mut to, scope_of(from)),
    };
    match known {
        Known::Translated => exit(packet, to, place_of(to.dst, node), from),
        Known::Mangled => Verdict::Drop(Counter::DropMangle),
        Known::NotOurs => begin(ctx, packet, from, node),
    }
}

#[inline(always)]
fn find(packet: &Packet, to: &mut Tuple, scope: Scope) -> Known {
    match flow::find(packet, scope) {
        Some(known) => {
            *to = known;
            Known::Translated
        }
        None => Known::NotOurs,
    }
}

#[inline(always)]
fn scope_of(from: From) -> Scope {
    if from == From::Uplink { Scope::External } else { Scope::Internal }
}

/// A packet of no known flow: to a service, or straight to where its address says. A pod's address is never a service's.
#[inline(always)]
fn begin(ctx: &TcContext, packet: &Packet, from: From, node: &NodeConfig) -> Verdict {
    let tuple = &packet.tuple;
    if let Some(pod) = local_pod(tuple.dst) {
        return Verdict::Send(*tuple, Exit::Pod(pod));
    }
    let transport = matches!(packet.layer4, Layer4::Tcp | Layer4::Udp);
    let service = || find_service(tuple.dst, tuple.dport, tuple.protocol, scope_of(from), false);
    if transport && let Some(service) = service() {
        return match choose(service, tuple.src) {
            Choice::Endpoint(backend) => to_endpoint(ctx, packet, backend, service.slot, from, node),
            Choice::Refuse => refuse(packet, from, node),
            Choice::Drop => Verdict::Drop(Counter::DropPolicy),
        };
    }
    if tuple.dst.is_within(node.service_net, node.service_mask) {
        return match from {
            From::Uplink => Verdict::Drop(Counter::DropClusterIpOutside),
            From::Pod | From::Host => Verdict::Reject(PORT_UNREACHABLE),
        };
    }
    untranslated(ctx, packet, from, node)
}

/// On a node's own address the host refuses for itself: nothing may listen on a NodePort.
#[inline(always)]
fn refuse(packet: &Packet, from: From, node: &NodeConfig) -> Verdict {
    match place_beyond(packet.tuple.dst, node) {
        Place::ThisNode if from != From::Host => Verdict::Next,
        _ => Verdict::Reject(PORT_UNREACHABLE),
    }
}

#[inline(always)]
fn to_endpoint(
    ctx: &TcContext,
    packet: &Packet,
    backend: Backend,
    slot: Slot,
    from: From,
    node: &NodeConfig,
) -> Verdict {
    if !packet.is_opening() {
        // The middle of a connection that nobody remembers: the client shall know at once.
        return if flows_are_carried() { Verdict::Drop(Counter::DropCarried) } else { Verdict::Reject(PORT_UNREACHABLE) };
    }
    if flow::share_is_spent(packet.tuple.src) {
        return Verdict::Drop(Counter::DropFlowShare);
    }
    let place = place_of(backend.addr, node);
    let source = source_for(packet, backend.addr, place, slot, from);
    let mut to = Tuple { dst: backend.addr, dport: backend.port, ..packet.tuple };
    if !flow::begin(ctx, &packet.tuple, &mut to, source) {
        return Verdict::Drop(Counter::DropSnatExhausted);
    }
    count(Counter::ServiceFlow);
    exit(packet, to, place, from)
}

/// Replies must pass here again: so a client that would answer itself, or that an endpoint could reach by another way, is hidden.
#[inline(always)]
fn source_for(packet: &Packet, backend: Ip4, place: Place, slot: Slot, from: From) -> Source {
    match (from, place) {
        (From::Pod, Place::Outside) => Source::Node,
        (From::Pod, _) if backend == packet.tuple.src => Source::Gateway,
        (From::Pod | From::Host, Place::ThisNode) => Source::Gateway,
        (From::Pod | From::Host, _) if packet.tuple.protocol == UDP => Source::OtherPort,
        (From::Pod | From::Host, _) => Source::Keep,
        (From::Uplink, Place::ThisNode) => Source::Keep,
        (From::Uplink, _) if slot.has(Slot::KEEP_SOURCE) => Source::Keep,
        (From::Uplink, _) => Source::Node,
    }
}

/// Sends a translated packet on. Its addresses are those of `to`; `packet` says how it came.
#[inline(always)]
fn exit(packet: &Packet, to: Tuple, place: Place, from: From) -> Verdict {
    match place {
        Place::LocalPod(pod) => Verdict::Send(to, Exit::Pod(pod)),
        Place::ThisNode if from == From::Host || to.src != packet.tuple.src => Verdict::Send(to, Exit::HostAsService),
        Place::ThisNode => Verdict::Send(to, Exit::Stack),
        // The client knows the address it used, not the endpoint that is gone.
        Place::Nobody => Verdict::Reject(HOST_UNREACHABLE),
        Place::Cluster | Place::Outside => Verdict::Send(to, Exit::Uplink),
    }
}

/// A packet of a connection that was opened before.
#[inline(always)]
fn is_middle(packet: &Packet) -> bool {
    packet.layer4 == Layer4::Tcp && !packet.is_opening()
}

/// A packet whose addresses stay, unless it leaves the cluster. Its destination is no local pod.
#[inline(always)]
fn untranslated(ctx: &TcContext, packet: &Packet, from: From, node: &NodeConfig) -> Verdict {
    match place_beyond(packet.tuple.dst, node) {
        Place::Nobody => Verdict::Reject(HOST_UNREACHABLE),
        // An answer to who hides behind the node's address: the host knows nothing of him.
        Place::ThisNode if from == From::Pod && is_middle(packet) && flows_are_carried() => {
            Verdict::Drop(Counter::DropCarried)
        }
        Place::Cluster if from == From::Pod => Verdict::Send(packet.tuple, Exit::Uplink),
        Place::Outside if from == From::Pod => leave(ctx, packet, node),
        _ => Verdict::Next,
    }
}

/// Out of the cluster, behind the node's address. Destinations on other devices of this node are left to its routes.
#[inline(always)]
fn leave(ctx: &TcContext, packet: &Packet, node: &NodeConfig) -> Verdict {
    let tuple = &packet.tuple;
    match route(ctx, tuple) {
        Way::Device(device) if device == node.uplink => {}
        Way::Device(_) | Way::Stack => return Verdict::Next,
        Way::Nowhere => return Verdict::Reject(HOST_UNREACHABLE),
    }
    match packet.layer4 {
        Layer4::Unknown => return Verdict::Drop(Counter::DropFragment),
        Layer4::Tcp if !packet.is_opening() && flows_are_carried() => return Verdict::Drop(Counter::DropCarried),
        // An answer to somebody who knows the pod's own address.
        Layer4::Tcp if !packet.is_opening() => return Verdict::Send(*tuple, Exit::Uplink),
        _ if flow::share_is_spent(tuple.src) => return Verdict::Drop(Counter::DropFlowShare),
        _ => {}
    }
    let mut to = *tuple;
    if !flow::begin(ctx, tuple, &mut to, Source::Node) {
        return Verdict::Drop(Counter::DropSnatExhausted);
    }
    count(Counter::MasqueradedFlow);
    Verdict::Send(to, Exit::Uplink)
}
