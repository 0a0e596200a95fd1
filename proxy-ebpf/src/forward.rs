//! Where a packet goes once its addresses are right: into a local pod, to the host itself, or out by the uplink.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_INGRESS, bpf_fib_lookup as FibLookup};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::mangle::{Mangled, decrement_ttl, set_ethernet};
use crate::maps::{local_pod, node_address};
use crate::packet::Packet;

const AF_INET: u8 = 2;
const SKIP_NEIGHBOUR: u32 = 1 << 2;
const FIB_SUCCESS: i64 = 0;
const FIB_BLACKHOLE: i64 = 1;
const FIB_PROHIBIT: i64 = 3;

/// Where a packet came from, which decides how it may be answered and which frontends it sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum From {
    Pod,
    Host,
    Uplink,
}

/// What the kernel shall do with the packet. Not ours is `Next`, which leaves it to other programs and the stack.
#[must_use]
#[derive(Clone, Copy)]
pub enum Verdict {
    Next,
    Redirect(i32),
    Drop(Counter),
}

impl core::convert::From<Mangled> for Verdict {
    fn from(_: Mangled) -> Self {
        Self::Drop(Counter::DropMangle)
    }
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
    if let Some(pod) = local_pod(addr) {
        return Place::LocalPod(pod);
    }
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

#[inline(always)]
pub fn to_pod(ctx: &TcContext, packet: &Packet, pod: PodLink) -> Result<Verdict, Verdict> {
    if packet.ttl <= 1 {
        return Ok(Verdict::Next);
    }
    decrement_ttl(ctx, packet)?;
    set_ethernet(ctx, pod_mac(pod.ip), HOST_MAC)?;
    ctx.set_mark(0);
    // SAFETY: an ingress hook of tc, as the helper demands.
    Ok(Verdict::Redirect(unsafe { bpf_redirect_peer(pod.ifindex, 0) } as i32))
}

/// Hands the host a packet whose source is a service: it appears on the service link, where the route back to services lies.
#[inline(always)]
pub fn to_host_as_service(ctx: &TcContext, node: &NodeConfig) -> Result<Verdict, Verdict> {
    set_ethernet(ctx, HOST_MAC, SERVICE_MAC)?;
    ctx.set_mark(0);
    // SAFETY: the helper has no preconditions.
    Ok(Verdict::Redirect(unsafe { bpf_redirect(node.service_link, BPF_F_INGRESS as u64) } as i32))
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

#[inline(always)]
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
pub fn to_uplink(ctx: &TcContext, packet: &Packet, node: &NodeConfig) -> Result<Verdict, Verdict> {
    if packet.ttl <= 1 {
        return Ok(Verdict::Next);
    }
    decrement_ttl(ctx, packet)?;
    ctx.set_mark(0);
    // SAFETY: without parameters the helper takes next hop and neighbour from the routes.
    Ok(Verdict::Redirect(unsafe { bpf_redirect_neigh(node.uplink, core::ptr::null_mut(), 0, 0) } as i32))
}

#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.skb.skb).ifindex }
}
