//! Where a packet goes once its addresses are right: into a local pod, to the host itself, or out by the uplink.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_INGRESS, bpf_fib_lookup as FibLookup};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::mangle::{Hop, Result, rewrite};
use crate::maps::{local_pod, node_address};
use crate::packet::Packet;

const AF_INET: u8 = 2;
const SKIP_NEIGHBOUR: u32 = 1 << 2;
const FIB_SUCCESS: i64 = 0;
const FIB_BLACKHOLE: i64 = 1;
const FIB_PROHIBIT: i64 = 3;
pub const TC_ACT_UNSPEC: i32 = -1;
pub const TC_ACT_SHOT: i32 = 2;

/// Where a packet came from, which decides how it may be answered and which frontends it sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum From {
    Pod,
    Host,
    Uplink,
}

/// Where an address lies, seen from this node.
#[derive(Clone, Copy)]
pub enum Place {
    LocalPod(PodLink),
    ThisNode,
    /// An address of this node's pod range that no pod has.
    Nobody,
    /// Other nodes and their pods.
    Cluster,
    Outside,
}

#[inline(always)]
pub fn place_of(addr: Ip4, node: &NodeConfig) -> Place {
    match local_pod(addr) {
        Some(pod) => Place::LocalPod(pod),
        None => place_beyond(addr, node),
    }
}

/// The place of what is no local pod.
#[inline(always)]
pub fn place_beyond(addr: Ip4, node: &NodeConfig) -> Place {
    if addr.is_within(node.pod_net, node.pod_mask) {
        return Place::Nobody;
    }
    match node_address(addr) {
        Some(THIS_NODE) => Place::ThisNode,
        Some(_) => Place::Cluster,
        None if addr.is_within(node.cluster_net, node.cluster_mask) => Place::Cluster,
        None => Place::Outside,
    }
}

/// The way a packet leaves this program.
#[derive(Clone, Copy)]
pub enum Exit {
    /// On with other programs and the stack.
    Stack,
    Pod(PodLink),
    /// To the host as if the service had sent it: on the service link, where the route back to services lies.
    HostAsService,
    Uplink,
}

/// Gives the packet the addresses of `to` and sends it on; the program's result.
#[inline(always)]
pub fn send(ctx: &TcContext, packet: &Packet, to: &Tuple, exit: Exit, from: From, node: &NodeConfig) -> Result<i32> {
    // What has no hop left is the stack's to answer for, which to a pod it does with the addresses that the pod used. From outside
    // it must not be taken for the host's own.
    let dead = packet.ttl <= 1;
    if dead && from == From::Pod && matches!(exit, Exit::Pod(_) | Exit::Uplink) {
        return Ok(TC_ACT_UNSPEC);
    }
    let hop = match exit {
        Exit::Pod(_) | Exit::Uplink if dead => Hop::NONE,
        Exit::Stack => Hop::NONE,
        Exit::Pod(pod) => Hop { counted: true, macs: Some((pod_mac(pod.ip), HOST_MAC)) },
        Exit::HostAsService => Hop { counted: false, macs: Some((HOST_MAC, SERVICE_MAC)) },
        Exit::Uplink => Hop { counted: true, macs: None },
    };
    rewrite(ctx, packet, to, hop)?;
    if matches!(exit, Exit::Stack) || (dead && !matches!(exit, Exit::HostAsService)) {
        return Ok(TC_ACT_UNSPEC);
    }
    ctx.set_mark(0);
    // SAFETY: ingress hooks of tc, as redirect_peer demands; without parameters redirect_neigh takes next hop and neighbour from
    // the routes.
    let action = unsafe {
        match exit {
            Exit::Pod(pod) => bpf_redirect_peer(pod.ifindex, 0),
            Exit::HostAsService => bpf_redirect(node.service_link, BPF_F_INGRESS as u64),
            Exit::Uplink | Exit::Stack => bpf_redirect_neigh(node.uplink, core::ptr::null_mut(), 0, 0),
        }
    };
    Ok(action as i32)
}

/// What the node's routes say about a destination.
#[derive(Clone, Copy)]
pub enum Way {
    Device(u32),
    /// Unreachable, prohibited, or a black hole.
    Nowhere,
    /// An address of the host itself, a group, or anything else that the stack knows better.
    Stack,
}

#[inline(never)]
pub fn route(ctx: &TcContext, to: &Tuple) -> Way {
    // SAFETY: all fields are integers.
    let mut query: FibLookup = unsafe { core::mem::zeroed() };
    query.family = AF_INET;
    query.l4_protocol = to.protocol;
    query.ifindex = ifindex(ctx);
    query.__bindgen_anon_3.ipv4_src = to.src.0;
    query.__bindgen_anon_4.ipv4_dst = to.dst.0;
    // SAFETY: the query is of the stated size.
    let answer = unsafe { bpf_fib_lookup(ctx.as_ptr(), &mut query, size_of::<FibLookup>() as i32, SKIP_NEIGHBOUR) };
    match answer {
        FIB_SUCCESS => Way::Device(query.ifindex),
        FIB_BLACKHOLE..=FIB_PROHIBIT => Way::Nowhere,
        _ => Way::Stack,
    }
}

#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.skb.skb).ifindex }
}
