//! Hooks on packets: pods' host ends, the uplink, and the service link that the host's own packets to services take.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::choose::{Choice, choose, find_service};
use crate::flow::{self, Source};
use crate::forward::{From, Place, Verdict, Way, ifindex, place_of, route, to_host_as_service, to_pod, to_uplink};
use crate::icmp;
use crate::mangle::rewrite;
use crate::maps::{count, local_pod, node};
use crate::packet::{Layer4, Packet};
use crate::reject::{HOST_UNREACHABLE, PORT_UNREACHABLE, reject};

const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;

type Step = Result<Verdict, Verdict>;

/// Everything a pod sends.
#[classifier]
fn amphi_from_pod(ctx: TcContext) -> i32 {
    let Some(packet) = Packet::parse(&ctx) else { return TC_ACT_UNSPEC };
    if local_pod(packet.tuple.src).is_none_or(|pod| pod.ifindex != ifindex(&ctx)) {
        return finish(Err(Verdict::Drop(Counter::DropSpoofed)));
    }
    finish(handle(&ctx, &packet, From::Pod))
}

/// What the host sends to services, where no socket hook saw it: it comes out at the far end of the service link.
#[classifier]
fn amphi_from_host(ctx: TcContext) -> i32 {
    let Some(packet) = Packet::parse(&ctx) else { return TC_ACT_SHOT };
    match handle(&ctx, &packet, From::Host) {
        // The far end is no place to receive anything.
        Ok(Verdict::Next) => finish(Err(Verdict::Drop(Counter::Unanswerable))),
        step => finish(step),
    }
}

/// What comes in from the network.
#[classifier]
fn amphi_from_uplink(ctx: TcContext) -> i32 {
    let Some(packet) = Packet::parse(&ctx) else { return TC_ACT_UNSPEC };
    finish(handle(&ctx, &packet, From::Uplink))
}

/// What the host itself sends to pods and to the network: only replies of its own endpoints need translating back.
#[classifier]
fn amphi_from_stack(ctx: TcContext) -> i32 {
    let Some(packet) = Packet::parse(&ctx) else { return TC_ACT_UNSPEC };
    if packet.layer4 == Layer4::IcmpError {
        return match icmp::translate(&ctx, &packet) {
            Some(Ok(_)) => counted(Counter::IcmpTranslated, TC_ACT_UNSPEC),
            Some(Err(_)) => counted(Counter::DropMangle, TC_ACT_SHOT),
            None => TC_ACT_UNSPEC,
        };
    }
    let Some(to) = flow::find(&packet) else { return TC_ACT_UNSPEC };
    match rewrite(&ctx, &packet, &to) {
        Ok(()) => TC_ACT_UNSPEC,
        Err(_) => counted(Counter::DropMangle, TC_ACT_SHOT),
    }
}

fn counted(counter: Counter, action: i32) -> i32 {
    count(counter);
    action
}

fn finish(step: Step) -> i32 {
    match step {
        Ok(verdict) | Err(verdict) => match verdict {
            Verdict::Next => TC_ACT_UNSPEC,
            Verdict::Redirect(action) => action,
            Verdict::Drop(counter) => counted(counter, TC_ACT_SHOT),
        },
    }
}

#[inline(always)]
fn handle(ctx: &TcContext, packet: &Packet, from: From) -> Step {
    let Some(node) = node() else { return Ok(Verdict::Next) };
    if packet.layer4 == Layer4::IcmpError {
        return icmp_error(ctx, packet, from, node);
    }
    if packet.layer4 != Layer4::Unknown
        && let Some(to) = flow::find(packet)
    {
        rewrite(ctx, packet, &to)?;
        return deliver(ctx, packet, &to, from, node);
    }
    begin(ctx, packet, from, node)
}

/// An error about a flow goes where the flow's replies go; others are ordinary packets.
#[inline(always)]
fn icmp_error(ctx: &TcContext, packet: &Packet, from: From, node: &NodeConfig) -> Step {
    match icmp::translate(ctx, packet) {
        Some(translated) => {
            let translated = translated?;
            count(Counter::IcmpTranslated);
            deliver(ctx, packet, &translated.to, from, node)
        }
        None => untranslated(ctx, packet, from, node),
    }
}

/// A packet of no known flow: to a service, or straight to where its address says.
#[inline(always)]
fn begin(ctx: &TcContext, packet: &Packet, from: From, node: &NodeConfig) -> Step {
    let tuple = &packet.tuple;
    let scope = if from == From::Uplink { Scope::External } else { Scope::Internal };
    let transport = matches!(packet.layer4, Layer4::Tcp(_) | Layer4::Udp);
    if transport && let Some(service) = find_service(tuple.dst, tuple.dport, tuple.protocol, scope, false) {
        return match choose(service, tuple.src) {
            Choice::Endpoint(backend) => to_endpoint(ctx, packet, backend, service.slot, from, node),
            Choice::Refuse => refuse(ctx, packet, from, node),
            Choice::Drop => Err(Verdict::Drop(Counter::DropPolicy)),
        };
    }
    if tuple.dst.is_within(node.service_net, node.service_mask) {
        return match from {
            From::Uplink => Err(Verdict::Drop(Counter::DropClusterIpOutside)),
            From::Pod | From::Host => reject(ctx, packet, from, node, PORT_UNREACHABLE),
        };
    }
    untranslated(ctx, packet, from, node)
}

/// On a node's own address the host refuses for itself: nothing may listen on a NodePort.
#[inline(always)]
fn refuse(ctx: &TcContext, packet: &Packet, from: From, node: &NodeConfig) -> Step {
    match place_of(packet.tuple.dst, node) {
        Place::ThisNode if from != From::Host => Ok(Verdict::Next),
        _ => reject(ctx, packet, from, node, PORT_UNREACHABLE),
    }
}

#[inline(always)]
fn to_endpoint(ctx: &TcContext, packet: &Packet, backend: Backend, slot: Slot, from: From, node: &NodeConfig) -> Step {
    if !packet.is_opening() {
        // The middle of a connection that nobody remembers: the client shall know at once.
        return reject(ctx, packet, from, node, PORT_UNREACHABLE);
    }
    let source = source_for(packet, backend.addr, slot, from, node);
    let to = flow::begin(ctx, packet, backend, source, node).map_err(|_| Verdict::Drop(Counter::DropSnatExhausted))?;
    count(Counter::ServiceFlow);
    rewrite(ctx, packet, &to)?;
    deliver(ctx, packet, &to, from, node)
}

/// Replies must pass here again: so a client that would answer itself, or that an endpoint could reach by another way, is hidden.
#[inline(always)]
fn source_for(packet: &Packet, backend: Ip4, slot: Slot, from: From, node: &NodeConfig) -> Source {
    let place = place_of(backend, node);
    match (from, place) {
        (From::Pod, Place::Outside) => Source::Node,
        (From::Pod, _) if backend == packet.tuple.src => Source::Gateway,
        (From::Host, Place::ThisNode) => Source::Gateway,
        (From::Pod | From::Host, _) if packet.tuple.protocol == UDP => Source::OtherPort,
        (From::Pod | From::Host, _) => Source::Keep,
        (From::Uplink, Place::ThisNode) => Source::Keep,
        (From::Uplink, _) if slot.has(Slot::KEEP_SOURCE) => Source::Keep,
        (From::Uplink, _) => Source::Node,
    }
}

/// Sends a translated packet on. Its addresses are those of `to`; `packet` says how it came.
#[inline(always)]
fn deliver(ctx: &TcContext, packet: &Packet, to: &Tuple, from: From, node: &NodeConfig) -> Step {
    match place_of(to.dst, node) {
        Place::LocalPod(pod) => to_pod(ctx, packet, pod),
        Place::ThisNode if from == From::Host || to.src != packet.tuple.src => to_host_as_service(ctx, node),
        Place::ThisNode => Ok(Verdict::Next),
        Place::Nobody => {
            let now = Packet { tuple: *to, ..*packet };
            reject(ctx, &now, from, node, HOST_UNREACHABLE)
        }
        Place::Cluster | Place::Outside => to_uplink(ctx, packet, node),
    }
}

/// A packet whose addresses stay, unless it leaves the cluster.
#[inline(always)]
fn untranslated(ctx: &TcContext, packet: &Packet, from: From, node: &NodeConfig) -> Step {
    match place_of(packet.tuple.dst, node) {
        Place::LocalPod(pod) => to_pod(ctx, packet, pod),
        Place::Nobody => reject(ctx, packet, from, node, HOST_UNREACHABLE),
        Place::ThisNode => Ok(Verdict::Next),
        Place::Cluster if from == From::Pod => to_uplink(ctx, packet, node),
        Place::Outside if from == From::Pod => leave(ctx, packet, node),
        Place::Cluster | Place::Outside => Ok(Verdict::Next),
    }
}

/// Out of the cluster, behind the node's address. Destinations on other devices of this node are left to its routes.
#[inline(always)]
fn leave(ctx: &TcContext, packet: &Packet, node: &NodeConfig) -> Step {
    let tuple = &packet.tuple;
    match route(ctx, tuple) {
        Way::Device(device) if device == node.uplink => {}
        Way::Device(_) | Way::Stack => return Ok(Verdict::Next),
        Way::Nowhere => return reject(ctx, packet, From::Pod, node, HOST_UNREACHABLE),
    }
    match packet.layer4 {
        Layer4::Unknown => return Err(Verdict::Drop(Counter::DropFragment)),
        // An answer to somebody who knows the pod's own address.
        Layer4::Tcp(_) if !packet.is_opening() => return to_uplink(ctx, packet, node),
        _ => {}
    }
    let backend = Backend::new(tuple.dst, tuple.dport);
    let to =
        flow::begin(ctx, packet, backend, Source::Node, node).map_err(|_| Verdict::Drop(Counter::DropSnatExhausted))?;
    count(Counter::MasqueradedFlow);
    rewrite(ctx, packet, &to)?;
    to_uplink(ctx, packet, node)
}
