//! Answers a packet that leads nowhere at once: a TCP reset, or ICMP unreachable for the rest.
//!
//! The packet is cut and turned into its own answer. Answers to a pod or the host are put in on the receiving side, never sent
//! through a device, so that no device completes a checksum where the question's transport header used to be.

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_redirect, bpf_redirect_peer, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::forward::{Sender, TC_ACT_SHOT, ifindex};
use crate::mangle::set_ethernet;
use crate::maps::{count, node};
use crate::packet::{ACK, FIN, IP, Ipv4Header, Layer4, PLAIN, Packet, RST, SYN, UNREACHABLE};

pub const PORT_UNREACHABLE: u8 = 3;
pub const HOST_UNREACHABLE: u8 = 1;
const RECOMPUTE: u64 = 1;
const TCP_CHECK: usize = 16;
const IP_HEADER: usize = 20;
/// An ICMP error quotes the header and eight bytes.
const QUOTE: usize = IP_HEADER + 8;

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

/// The part of the addresses that transport checksums cover.
#[repr(C)]
struct PseudoHeader {
    src: u32,
    dst: u32,
    zero: u8,
    protocol: u8,
    length: u16,
}

/// Answers the packet, or drops it where no answer is possible; the program's result.
#[inline(always)]
pub fn reject(ctx: &TcContext, packet: &mut Packet, from: Sender, code: u8) -> i32 {
    amphi_reject(ctx.skb.skb, packet, from.word(), code as u32)
}

/// `reject`, for every caller at once: it is rare.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn amphi_reject(skb: *mut __sk_buff, packet: *mut Packet, from: u32, code: u32) -> i32 {
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
fn answer(ctx: &TcContext, packet: &Packet, from: Sender, node: &NodeConfig, code: u8) -> Option<i32> {
    // With IP options a packet is not worth the stack space.
    if packet.transport() != PLAIN {
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
fn reset(ctx: &TcContext, packet: &Packet, flags: u8, from: Sender) -> Option<Counter> {
    let asked: TcpHeader = ctx.load(PLAIN).ok()?;
    let header_length = (asked.offset >> 4) as u16 * 4;
    let payload = packet.length.wrapping_sub(IP_HEADER as u16).wrapping_sub(header_length);
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
    let mut pseudo = PseudoHeader {
        src: packet.tuple.dst.0,
        dst: packet.tuple.src.0,
        zero: 0,
        protocol: TCP,
        length: (size_of::<TcpHeader>() as u16).to_be(),
    };
    let sum = sum(&mut pseudo, 0);
    tcp.check = fold(self::sum(&mut tcp, sum));
    cut(ctx, PLAIN + size_of::<TcpHeader>())?;
    store_ip(ctx, packet, packet.tuple.dst, TCP, size_of::<TcpHeader>())?;
    ctx.store(PLAIN, &tcp, RECOMPUTE).ok()?;
    if from == Sender::Uplink && device_sums_up(ctx)? {
        // What it adds to: the part that it does not see.
        tcp.check = !fold(sum);
    }
    ctx.store(PLAIN, &tcp, RECOMPUTE).ok()?;
    Some(Counter::Reset)
}

/// Whether the device that sends the packet will put a sum over the transport header into it, as it was to do for the question. The
/// kernel's helper leaves such a sum alone unless told that addresses changed, which is how to see it.
#[inline(always)]
fn device_sums_up(ctx: &TcContext) -> Option<bool> {
    let before: u16 = ctx.load(PLAIN + TCP_CHECK).ok()?;
    ctx.l4_csum_replace(PLAIN + TCP_CHECK, 0, 1, 2).ok()?;
    let after: u16 = ctx.load(PLAIN + TCP_CHECK).ok()?;
    Some(before == after)
}

#[inline(always)]
fn unreachable(ctx: &TcContext, packet: &Packet, code: u8, node: &NodeConfig) -> Option<Counter> {
    let quote: [u8; QUOTE] = ctx.load(IP).ok()?;
    let mut message = [0u8; 8 + QUOTE];
    message[0] = UNREACHABLE;
    message[1] = code;
    message[8..].copy_from_slice(&quote);
    let check = fold(sum(&mut message, 0)).to_ne_bytes();
    message[2] = check[0];
    message[3] = check[1];
    cut(ctx, PLAIN + message.len())?;
    let source = if code == PORT_UNREACHABLE { packet.tuple.dst } else { node.node_ip };
    store_ip(ctx, packet, source, ICMP, message.len())?;
    ctx.store(PLAIN, &message, RECOMPUTE).ok()?;
    Some(Counter::Unreachable)
}

#[inline(always)]
fn cut(ctx: &TcContext, length: usize) -> Option<()> {
    // SAFETY: the context is valid; packet pointers are not held across the call.
    (unsafe { bpf_skb_change_tail(ctx.skb.skb, length as u32, 0) } == 0).then_some(())
}

#[inline(always)]
fn store_ip(ctx: &TcContext, packet: &Packet, src: Ip4, protocol: u8, payload: usize) -> Option<()> {
    let mut header = Ipv4Header {
        version_ihl: 0x45,
        tos: 0,
        length: ((IP_HEADER + payload) as u16).to_be(),
        id: 0,
        fragment: 0x4000u16.to_be(),
        ttl: 64,
        protocol,
        check: 0,
        src: src.0,
        dst: packet.tuple.src.0,
    };
    header.check = fold(sum(&mut header, 0));
    ctx.store(IP, &header, RECOMPUTE).ok()
}

#[inline(always)]
fn send_back(ctx: &TcContext, packet: &Packet, from: Sender, node: &NodeConfig) -> Option<i32> {
    let verdict = match from {
        Sender::Pod => {
            set_ethernet(ctx, pod_mac(packet.tuple.src), HOST_MAC).ok()?;
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

#[inline(always)]
fn sum<T>(data: &mut T, seed: u32) -> u32 {
    // SAFETY: the range is the value itself, whose size is a multiple of four; all such types here have no padding.
    unsafe {
        bpf_csum_diff(core::ptr::null_mut(), 0, core::ptr::from_mut(data).cast(), size_of::<T>() as u32, seed) as u32
    }
}

fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
