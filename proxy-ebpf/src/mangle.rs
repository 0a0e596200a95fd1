//! Changes packets. Checksums go through the kernel's helpers only: they know whether the device, or nobody yet, has summed up
//! the packet, which a delta computed here would not.

use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::packet::{IP, Layer4, Packet};

const PSEUDO_HEADER: u64 = 0x10;
const MARK_MANGLED_0: u64 = 0x20;
const IP_TTL: usize = IP + 8;
const IP_CHECK: usize = IP + 10;
const IP_SRC: usize = IP + 12;
const IP_DST: usize = IP + 16;

/// The packet could not be changed: it must not go on.
pub struct Mangled;

pub type Result<T> = core::result::Result<T, Mangled>;

/// Gives the packet the addresses and ports of `to`.
#[inline(always)]
pub fn rewrite(ctx: &TcContext, packet: &Packet, to: &Tuple) -> Result<()> {
    let from = &packet.tuple;
    let check = checksum_field(packet);
    if from.src != to.src {
        replace_address(ctx, IP_SRC, from.src, to.src, check)?;
    }
    if from.dst != to.dst {
        replace_address(ctx, IP_DST, from.dst, to.dst, check)?;
    }
    match packet.layer4 {
        Layer4::Tcp(_) | Layer4::Udp => {
            replace_port(ctx, packet.offset, from.sport, to.sport, check)?;
            replace_port(ctx, packet.offset + 2, from.dport, to.dport, check)
        }
        Layer4::EchoRequest => replace_port(ctx, packet.offset + 4, from.sport, to.sport, check),
        Layer4::EchoReply => replace_port(ctx, packet.offset + 4, from.dport, to.dport, check),
        _ => Ok(()),
    }
}

/// Where the transport checksum lies, and how the helper must treat it.
#[derive(Clone, Copy)]
struct Check {
    offset: usize,
    /// For changes of addresses: only where the sum covers them.
    address: Option<u64>,
    port: u64,
}

#[inline(always)]
fn checksum_field(packet: &Packet) -> Option<Check> {
    match packet.layer4 {
        Layer4::Tcp(_) => Some(Check { offset: packet.offset + 16, address: Some(PSEUDO_HEADER | 4), port: 2 }),
        Layer4::Udp => Some(Check {
            offset: packet.offset + 6,
            address: Some(PSEUDO_HEADER | MARK_MANGLED_0 | 4),
            port: MARK_MANGLED_0 | 2,
        }),
        Layer4::EchoRequest | Layer4::EchoReply => Some(Check { offset: packet.offset + 2, address: None, port: 2 }),
        _ => None,
    }
}

#[inline(always)]
fn replace_address(ctx: &TcContext, at: usize, from: Ip4, to: Ip4, check: Option<Check>) -> Result<()> {
    if let Some(Check { offset, address: Some(flags), .. }) = check {
        ctx.l4_csum_replace(offset, from.0 as u64, to.0 as u64, flags).map_err(|_| Mangled)?;
    }
    ctx.l3_csum_replace(IP_CHECK, from.0 as u64, to.0 as u64, 4).map_err(|_| Mangled)?;
    ctx.store(at, &to.0, 0).map_err(|_| Mangled)
}

#[inline(always)]
fn replace_port(ctx: &TcContext, at: usize, from: Port, to: Port, check: Option<Check>) -> Result<()> {
    if from == to {
        return Ok(());
    }
    if let Some(check) = check {
        ctx.l4_csum_replace(check.offset, from.0 as u64, to.0 as u64, check.port).map_err(|_| Mangled)?;
    }
    ctx.store(at, &to.0, 0).map_err(|_| Mangled)
}

/// One hop less to live. The caller has seen that there is one to lose.
#[inline(always)]
pub fn decrement_ttl(ctx: &TcContext, packet: &Packet) -> Result<()> {
    let word = |ttl: u8| u16::from_ne_bytes([ttl, packet.tuple.protocol]) as u64;
    ctx.l3_csum_replace(IP_CHECK, word(packet.ttl), word(packet.ttl - 1), 2).map_err(|_| Mangled)?;
    ctx.store(IP_TTL, &(packet.ttl - 1), 0).map_err(|_| Mangled)
}

#[inline(always)]
pub fn set_ethernet(ctx: &TcContext, dst: [u8; 6], src: [u8; 6]) -> Result<()> {
    let mut both = [0u8; 12];
    both[..6].copy_from_slice(&dst);
    both[6..].copy_from_slice(&src);
    ctx.store(0, &both, 0).map_err(|_| Mangled)
}
