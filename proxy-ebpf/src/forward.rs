//! Where a packet goes once its addresses are right: into a local pod, to the host itself, or out by the uplink.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, bpf_fib_lookup as FibLookup};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::family::{Net, local_pod, node_address};
use crate::mangle::rewrite;
use crate::maps::count;
use crate::packet::{Hop, Packet, Result};

const SKIP_NEIGHBOUR: u32 = 1 << 2;
const FIB_SUCCESS: i64 = 0;
const FIB_BLACKHOLE: i64 = 1;
const FIB_PROHIBIT: i64 = 3;
pub const TC_ACT_UNSPEC: i32 = -1;
pub const TC_ACT_SHOT: i32 = 2;

/// Where a packet came from, which decides how it may be answered and which frontends it sees.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    Pod,
    Host,
    Uplink,
}

impl Sender {
    pub const fn word(self) -> u32 {
        self as u32
    }

    pub const fn from_word(word: u32) -> Self {
        match word {
            0 => Self::Pod,
            1 => Self::Host,
            _ => Self::Uplink,
        }
    }

    pub const fn scope(self) -> Scope {
        match self {
            Self::Pod | Self::Host => Scope::Internal,
            Self::Uplink => Scope::External,
        }
    }
}

/// Where an address lies, seen from this node. One word, like every verdict here: of a choice with contents the compiler copies
/// registers that it never filled, and the verifier refuses that.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Place(u32);

impl Place {
    /// An address of this node's pod range that no pod has.
    pub const NOBODY: Self = Self(0);
    pub const THIS_NODE: Self = Self(u32::MAX);
    /// Other nodes and their pods.
    pub const CLUSTER: Self = Self(u32::MAX - 1);
    pub const OUTSIDE: Self = Self(u32::MAX - 2);
    /// Of no flow that is known: nothing was looked for.
    pub const NO_FLOW: Self = Self(u32::MAX - 3);

    pub const fn word(self) -> u32 {
        self.0
    }

    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// In a pod on this node, behind this device: no device has one of the numbers above.
    pub const fn pod(ifindex: u32) -> Self {
        Self(ifindex)
    }

    /// The place of an address as a flow remembers it; 0 is nothing.
    #[inline(always)]
    pub fn note<A: Net>(self, addr: A) -> u64 {
        if self.0 == 0 { 0 } else { PodLink { ifindex: self.0, mark: addr.mark() }.bits() }
    }

    /// `NOBODY`: it remembers nothing about this address.
    #[inline(always)]
    pub fn recall<A: Net>(note: u64, addr: A) -> Self {
        let link = PodLink::from_bits(note);
        if link.mark == addr.mark() { Self(link.ifindex) } else { Self::NOBODY }
    }
}

#[inline(always)]
pub fn place_of<A: Net>(addr: A, node: &NodeConfig<A>) -> Place {
    match local_pod_of(addr, node) {
        Some(pod) => Place::pod(pod.ifindex),
        None => place_beyond(addr, node),
    }
}

/// The host end of a pod on this node: no address beyond the cluster's pods is looked up.
#[inline(always)]
pub fn local_pod_of<A: Net>(addr: A, node: &NodeConfig<A>) -> Option<PodLink> {
    if is_pod_address(addr, node) { local_pod(addr) } else { None }
}

/// Whether an address is of the range that all the cluster's pods have theirs of.
#[inline(always)]
pub fn is_pod_address<A: Net>(addr: A, node: &NodeConfig<A>) -> bool {
    addr.is_within(node.cluster_net, node.cluster_mask)
}

/// The place of what is no local pod.
#[inline(always)]
pub fn place_beyond<A: Net>(addr: A, node: &NodeConfig<A>) -> Place {
    if addr.is_within(node.pod_net, node.pod_mask) {
        return Place::NOBODY;
    }
    match node_address(addr) {
        Some(THIS_NODE) => Place::THIS_NODE,
        Some(_) => Place::CLUSTER,
        None if is_pod_address(addr, node) => Place::CLUSTER,
        None => Place::OUTSIDE,
    }
}

/// The way a packet leaves this program: a pod's device, or one of these.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Exit(u32);

impl Exit {
    /// On with other programs and the stack.
    pub const STACK: Self = Self(u32::MAX);
    /// To the host as if the service had sent it: on the service link, where the route back to services lies.
    pub const HOST_AS_SERVICE: Self = Self(u32::MAX - 1);
    pub const UPLINK: Self = Self(u32::MAX - 2);

    pub const fn pod(ifindex: u32) -> Self {
        Self(ifindex)
    }

    pub const fn word(self) -> u32 {
        self.0
    }

    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// The exit to a place that is a pod's.
    pub const fn to(place: Place) -> Self {
        Self(place.0)
    }
}

/// Gives the packet the addresses it shall have and sends it on; the program's result.
#[inline(always)]
pub fn send<A: Net>(ctx: &TcContext, packet: &Packet<A>, exit: Exit, from: Sender, node: &NodeConfig<A>) -> i32 {
    match A::FAMILY {
        Family::V4 => rewrite_and_send(ctx, packet, exit, from, node),
        // What it needs of the stack does not add up with what deciding does.
        Family::V6 => send_apart(ctx.skb.skb, packet, exit, from, node),
    }
}

#[inline(never)]
fn send_apart<A: Net>(
    skb: *mut __sk_buff,
    packet: &Packet<A>,
    exit: Exit,
    from: Sender,
    node: &NodeConfig<A>,
) -> i32 {
    rewrite_and_send(&TcContext::new(skb), packet, exit, from, node)
}

#[inline(always)]
fn rewrite_and_send<A: Net>(
    ctx: &TcContext,
    packet: &Packet<A>,
    exit: Exit,
    from: Sender,
    node: &NodeConfig<A>,
) -> i32 {
    match try_to_send(ctx, packet, exit, from, node) {
        Ok(action) => action,
        Err(_) => {
            count(Counter::DropMangle);
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
fn try_to_send<A: Net>(
    ctx: &TcContext,
    packet: &Packet<A>,
    exit: Exit,
    from: Sender,
    node: &NodeConfig<A>,
) -> Result<i32> {
    // What has no hop left is the stack's to answer for, which to a pod it does with the addresses that the pod used. Sender outside
    // it must not be taken for the host's own.
    let dead = packet.ttl <= 1;
    let onwards = exit != Exit::STACK && exit != Exit::HOST_AS_SERVICE;
    if dead && from == Sender::Pod && onwards {
        return Ok(TC_ACT_UNSPEC);
    }
    let hop = match exit {
        Exit::STACK => Hop::NONE,
        Exit::HOST_AS_SERVICE => Hop { counted: false, macs: Some((HOST_MAC, SERVICE_MAC)) },
        _ if dead => Hop::NONE,
        Exit::UPLINK => Hop { counted: true, macs: None },
        _ => Hop { counted: true, macs: Some((packet.to.dst.pod_mac(), HOST_MAC)) },
    };
    rewrite(ctx, packet, hop)?;
    if exit == Exit::STACK || (dead && onwards) {
        return Ok(TC_ACT_UNSPEC);
    }
    ctx.set_mark(0);
    mark(ctx, exit);
    // SAFETY: ingress hooks of tc, as redirect_peer demands; without parameters redirect_neigh takes next hop and neighbour from
    // the routes.
    let action = unsafe {
        match exit {
            Exit::HOST_AS_SERVICE => bpf_redirect(node.service_link, BPF_F_INGRESS as u64),
            Exit::UPLINK => bpf_redirect_neigh(node.uplink, core::ptr::null_mut(), 0, 0),
            Exit(ifindex) => bpf_redirect_peer(ifindex, 0),
        }
    };
    Ok(action as i32)
}

/// Set on what leaves by the uplink, where the program for the host's own packets need not look at it again. Nothing else uses the
/// field on a packet's way out but classful queueing that a filter set up, which reads it after that program.
const SENT: u32 = 0x616d;

#[inline(always)]
fn mark(ctx: &TcContext, exit: Exit) {
    if exit == Exit::UPLINK {
        // SAFETY: the context is valid while the program runs.
        unsafe { core::ptr::write_volatile(&raw mut (*ctx.skb.skb).tc_index, SENT) };
    }
}

/// Whether a program here sent the packet to the uplink.
#[inline(always)]
pub fn is_marked(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).tc_index) == SENT }
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
pub fn route<A: Net>(ctx: &TcContext, to: &Tuple<A>) -> Way {
    // SAFETY: all fields are integers.
    let mut query: FibLookup = unsafe { core::mem::zeroed() };
    query.l4_protocol = to.protocol;
    query.ifindex = ifindex(ctx);
    A::fill_route(&mut query, to);
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
