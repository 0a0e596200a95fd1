//! Answers a packet that leads nowhere at once: a TCP reset, or ICMP unreachable for the rest.
//!
//! The packet is cut and turned into its own answer. Answers to a pod or the host are put in on the receiving side, never sent
//! through a device, so that no device completes a checksum where the question's transport header used to be.

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_peer, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::family::{Net, node};
use crate::forward::{Sender, TC_ACT_SHOT, ifindex};
use crate::mangle::{RECOMPUTE, fold, set_ethernet, sum};
use crate::maps::count;
use crate::packet::{ACK, FIN, Layer4, Packet, RST, SYN};
use crate::wire::IP;

const TCP_CHECK: usize = 16;

#[repr(C)]
#[derive(Clone, Copy)]
struct TcpHeader {
    sport: u16,
    dport: u16,
    seq: u32,
    ack: u32,
    offset: u8,
    flags: u8,
    window: u16,
    check: u16,
    urgent: u16,
}

/// An ICMP error.
#[repr(C)]
struct Error<Q> {
    kind: u8,
    code: u8,
    check: u16,
    rest: u32,
    quote: Q,
}

/// Answers the packet, or drops it where no answer is possible; the program's result. A step of its own: it is rare.
#[inline(always)]
pub fn reject<A: Net>(skb: *mut __sk_buff, packet: *mut Packet<A>, from: u32, code: u32) -> i32 {
    // SAFETY: callers give a packet of their own.
    let (Some(packet), Some(node)) = (unsafe { packet.as_ref() }, node()) else { return TC_ACT_SHOT };
    match answer(&TcContext::new(skb), packet, Sender::from_word(from), node, code as u8) {
        Some(action) => action,
        None => {
            count(Counter::Unanswerable);
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
fn answer<A: Net>(
    ctx: &TcContext,
    packet: &Packet<A>,
    from: Sender,
    node: &NodeConfig<A>,
    code: u8,
) -> Option<i32> {
    // With options a packet is not worth the stack space.
    if packet.transport() != A::PLAIN {
        return None;
    }
    let answered = match packet.layer4 {
        Layer4::Tcp if packet.flags & RST == 0 => reset(ctx, packet, packet.flags, from),
        Layer4::Udp | Layer4::EchoRequest => unreachable(ctx, packet, code, node),
        _ => None,
    }?;
    count(answered);
    send_back(ctx, packet, from, node)
}

#[inline(always)]
fn reset<A: Net>(ctx: &TcContext, packet: &Packet<A>, flags: u8, from: Sender) -> Option<Counter> {
    let asked: TcpHeader = ctx.load(A::PLAIN).ok()?;
    let header_length = (asked.offset >> 4) as u16 * 4;
    let payload = packet.length.wrapping_sub(A::HEADER as u16).wrapping_sub(header_length);
    let controls = (flags & SYN != 0) as u32 + (flags & FIN != 0) as u32;
    let end = u32::from_be(asked.seq).wrapping_add(payload as u32).wrapping_add(controls);
    let (seq, ack, flags) = match flags & ACK {
        0 => (0, end.to_be(), RST | ACK),
        _ => (asked.ack, 0, RST),
    };
    let mut tcp = TcpHeader {
        sport: packet.tuple.dport.0,
        dport: packet.tuple.sport.0,
        seq,
        ack,
        offset: 5 << 4,
        flags,
        window: 0,
        check: 0,
        urgent: 0,
    };
    let pseudo = A::pseudo_sum(packet.tuple.dst, packet.tuple.src, TCP, size_of::<TcpHeader>());
    tcp.check = !fold(sum(&mut tcp, pseudo) as u64);
    cut(ctx, A::PLAIN + size_of::<TcpHeader>())?;
    A::store_header(ctx, packet.tuple.dst, packet.tuple.src, TCP, size_of::<TcpHeader>())?;
    ctx.store(A::PLAIN, &tcp, RECOMPUTE).ok()?;
    if from == Sender::Uplink && device_sums_up::<A>(ctx)? {
        // What it adds to: the part that it does not see.
        tcp.check = fold(pseudo as u64);
    }
    ctx.store(A::PLAIN, &tcp, RECOMPUTE).ok()?;
    Some(Counter::Reset)
}

/// Whether the device that sends the packet will put a sum over the transport header into it, as it was to do for the question. The
/// kernel's helper leaves such a sum alone unless told that addresses changed, which is how to see it.
#[inline(always)]
fn device_sums_up<A: Net>(ctx: &TcContext) -> Option<bool> {
    let before: u16 = ctx.load(A::PLAIN + TCP_CHECK).ok()?;
    ctx.l4_csum_replace(A::PLAIN + TCP_CHECK, 0, 1, 2).ok()?;
    let after: u16 = ctx.load(A::PLAIN + TCP_CHECK).ok()?;
    Some(before == after)
}

#[inline(always)]
fn unreachable<A: Net>(ctx: &TcContext, packet: &Packet<A>, code: u8, node: &NodeConfig<A>) -> Option<Counter> {
    let quote: A::Quote = ctx.load(IP).ok()?;
    let mut error = Error { kind: A::UNREACHABLE, code, check: 0, rest: 0, quote };
    let length = size_of::<Error<A::Quote>>();
    let source = if code == A::PORT_UNREACHABLE { packet.tuple.dst } else { node.node_ip };
    let seed = A::icmp_sum(source, packet.tuple.src, length);
    error.check = !fold(sum(&mut error, seed) as u64);
    cut(ctx, A::PLAIN + length)?;
    A::store_header(ctx, source, packet.tuple.src, A::ICMP, length)?;
    ctx.store(A::PLAIN, &error, RECOMPUTE).ok()?;
    Some(Counter::Unreachable)
}

#[inline(always)]
fn cut(ctx: &TcContext, length: usize) -> Option<()> {
    // SAFETY: the context is valid; packet pointers are not held across the call.
    (unsafe { bpf_skb_change_tail(ctx.skb.skb, length as u32, 0) } == 0).then_some(())
}

#[inline(always)]
fn send_back<A: Net>(ctx: &TcContext, packet: &Packet<A>, from: Sender, node: &NodeConfig<A>) -> Option<i32> {
    let verdict = match from {
        Sender::Pod => {
            set_ethernet(ctx, packet.tuple.src.pod_mac(), HOST_MAC).ok()?;
            // SAFETY: an ingress hook of tc, as the helper demands.
            unsafe { bpf_redirect_peer(ifindex(ctx), 0) }
        }
        Sender::Host => {
            set_ethernet(ctx, HOST_MAC, SERVICE_MAC).ok()?;
            // SAFETY: the helper has no preconditions.
            unsafe { bpf_redirect(node.service_link, BPF_F_INGRESS as u64) }
        }
        Sender::Uplink => {
            let [dst, src]: [[u8; 6]; 2] = ctx.load(0).ok()?;
            set_ethernet(ctx, src, dst).ok()?;
            // SAFETY: the helper has no preconditions.
            unsafe { bpf_redirect(node.uplink, 0) }
        }
    };
    Some(verdict as i32)
}
