//! Changes packets. Transport checksums go through the kernel's helper only: it knows whether the device, or nobody yet, has summed
//! up the packet, which a delta computed here would not.

use aya_ebpf::helpers::{bpf_csum_diff, bpf_skb_pull_data};
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::family::Net;
use crate::packet::{Hop, Layer4, Mangled, Packet, Result};

const PSEUDO_HEADER: u64 = 0x10;
const MARK_MANGLED_0: u64 = 0x20;
/// A sum that a device has made stays right with what is written.
pub const RECOMPUTE: u64 = 1;

/// Gives the packet the addresses and ports that it shall have.
#[inline(always)]
pub fn rewrite<A: Net>(ctx: &TcContext, packet: &Packet<A>, hop: Hop) -> Result<()> {
    let (from, to) = (&packet.tuple, &packet.to);
    let addresses = A::difference(from, to);
    if from.src != to.src || from.dst != to.dst || from.sport != to.sport || from.dport != to.dport {
        rewrite_transport(ctx, packet, addresses)?;
    }
    let data = header::<A>(ctx)?;
    // SAFETY: as just found.
    unsafe { A::write_header(ctx, data, packet, hop, addresses) };
    if let Some((dst, src)) = hop.macs {
        let [a, b, c, d, e, f] = dst;
        let [g, h, i, j, k, l] = src;
        let words = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
        for (index, word) in words.into_iter().enumerate() {
            // SAFETY: within the Ethernet header, and aligned enough for these kernels.
            unsafe { core::ptr::write((data + index * 4) as *mut u32, word) };
        }
    }
    Ok(())
}

/// Ports, and the transport's checksum with all that it covers.
#[inline(always)]
fn rewrite_transport<A: Net>(ctx: &TcContext, packet: &Packet<A>, addresses: u32) -> Result<()> {
    let (from, to, offset) = (&packet.tuple, &packet.to, packet.transport());
    let (check, flags) = match packet.layer4 {
        Layer4::Tcp => (offset + 16, 0),
        Layer4::Udp => (offset + 6, MARK_MANGLED_0),
        // Only the one of IPv6 sums up addresses.
        Layer4::EchoRequest | Layer4::EchoReply | Layer4::IcmpError if A::FAMILY == Family::V6 => (offset + 2, 0),
        Layer4::EchoRequest | Layer4::EchoReply => return rewrite_echo(ctx, packet),
        Layer4::IcmpError | Layer4::Continued | Layer4::Unknown | Layer4::Other => return Ok(()),
    };
    if from.src != to.src || from.dst != to.dst {
        ctx.l4_csum_replace(check, 0, addresses as u64, flags | PSEUDO_HEADER).map_err(|_| Mangled)?;
    }
    if from.ports() == to.ports() {
        return Ok(());
    }
    if !matches!(packet.layer4, Layer4::Tcp | Layer4::Udp) {
        return rewrite_echo(ctx, packet);
    }
    ctx.l4_csum_replace(check, from.ports() as u64, to.ports() as u64, flags | 4).map_err(|_| Mangled)?;
    let (data, end) = (ctx.data(), ctx.data_end());
    if offset == A::PLAIN && data + A::PLAIN + 4 <= end {
        // SAFETY: within the packet; the helper before has made it writable up to the checksum, which lies behind the ports.
        unsafe { core::ptr::write((data + A::PLAIN) as *mut u32, to.ports()) };
        return Ok(());
    }
    ctx.store(offset, &to.ports(), 0).map_err(|_| Mangled)
}

/// The identifier of an echo stands for its port.
#[inline(always)]
fn rewrite_echo<A: Net>(ctx: &TcContext, packet: &Packet<A>) -> Result<()> {
    let (from, to) = match packet.layer4 {
        Layer4::EchoRequest => (packet.tuple.sport, packet.to.sport),
        Layer4::EchoReply => (packet.tuple.dport, packet.to.dport),
        _ => return Ok(()),
    };
    ctx.l4_csum_replace(packet.transport() + 2, from.0 as u64, to.0 as u64, 2).map_err(|_| Mangled)?;
    ctx.store(packet.transport() + 4, &to.0, 0).map_err(|_| Mangled)
}

/// The address of the packet's first byte; Ethernet and IP header behind it are in one piece.
#[inline(always)]
fn header<A: Net>(ctx: &TcContext) -> Result<usize> {
    if ctx.data() + A::PLAIN > ctx.data_end() {
        // SAFETY: the context is valid; packet pointers are not held across the call.
        unsafe { bpf_skb_pull_data(ctx.skb.skb, A::PLAIN as u32) };
    }
    let data = ctx.data();
    if data + A::PLAIN > ctx.data_end() { Err(Mangled) } else { Ok(data) }
}

#[inline(always)]
pub fn sum<T>(data: &mut T, seed: u32) -> u32 {
    // SAFETY: the range is the value itself, whose size is a multiple of four; all such types here have no padding.
    unsafe {
        bpf_csum_diff(core::ptr::null_mut(), 0, core::ptr::from_mut(data).cast(), size_of::<T>() as u32, seed) as u32
    }
}

#[inline(always)]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[inline(always)]
pub fn set_ethernet(ctx: &TcContext, dst: [u8; 6], src: [u8; 6]) -> Result<()> {
    let mut both = [0u8; 12];
    both[..6].copy_from_slice(&dst);
    both[6..].copy_from_slice(&src);
    ctx.store(0, &both, 0).map_err(|_| Mangled)
}
