//! ICMP errors about translated packets: the quoted packet gets back the addresses that its sender knows.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::flow::{self, Seen};
use crate::mangle::Mangled;
use crate::packet::{Ipv4Header, Packet};

const ICMP_HEADER: usize = 8;

/// What is known of the packet that an error quotes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Known {
    NotOurs,
    Translated,
    Mangled,
}

/// Translates the quote, and decides about the message's own addresses.
#[inline(always)]
pub fn translate(ctx: &TcContext, packet: &mut Packet) -> Known {
    match amphi_quoted(ctx.skb.skb, packet) {
        TRANSLATED => Known::Translated,
        NOT_OURS => Known::NotOurs,
        _ => Known::Mangled,
    }
}

const NOT_OURS: u32 = Known::NotOurs as u32;
const TRANSLATED: u32 = Known::Translated as u32;

/// `translate_quote`, for every caller at once: it is rare.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn amphi_quoted(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: callers give a packet of their own.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return NOT_OURS };
    translate_quote(&TcContext::new(skb), packet) as u32
}

#[inline(always)]
fn translate_quote(ctx: &TcContext, packet: &mut Packet) -> Known {
    let at = packet.transport() + ICMP_HEADER;
    let Ok(header) = ctx.load::<Ipv4Header>(at) else { return Known::NotOurs };
    if header.version_ihl != 0x45 {
        return Known::NotOurs;
    }
    let Some(quoted) = quoted_tuple(ctx, at + 20, &header) else { return Known::NotOurs };
    // The error about a packet goes where a reply to it would.
    let mut reply = quoted;
    if flow::peek(&quoted.reversed(), &mut reply) == Seen::Unknown {
        return Known::NotOurs;
    }
    let original = reply.reversed();
    if quote_addresses(ctx, at, &header, &original).is_err()
        || quote_ports(ctx, packet, at + 20, &quoted, &original).is_err()
    {
        return Known::Mangled;
    }
    // A router on the way keeps its own address; the far end itself shows the one its peer knows.
    if packet.tuple.src == quoted.dst {
        packet.to.src = reply.src;
    }
    packet.to.dst = reply.dst;
    crate::maps::count(Counter::IcmpTranslated);
    Known::Translated
}

#[inline(always)]
fn quoted_tuple(ctx: &TcContext, at: usize, header: &Ipv4Header) -> Option<Tuple> {
    let (sport, dport) = match header.protocol {
        TCP | UDP => {
            let [sport, dport]: [u16; 2] = ctx.load(at).ok()?;
            (sport, dport)
        }
        ICMP => (ctx.load::<u16>(at + 4).ok()?, 0),
        _ => return None,
    };
    Some(Tuple {
        src: Ip4(header.src),
        dst: Ip4(header.dst),
        sport: Port(sport),
        dport: Port(dport),
        protocol: header.protocol,
        pad: 0,
        rest: 0,
    })
}

/// New addresses and header checksum cancel out in the message's own checksum.
#[inline(always)]
fn quote_addresses(ctx: &TcContext, at: usize, header: &Ipv4Header, to: &Tuple) -> Result<(), Mangled> {
    ctx.l3_csum_replace(at + 10, header.src as u64, to.src.0 as u64, 4).map_err(|_| Mangled)?;
    ctx.l3_csum_replace(at + 10, header.dst as u64, to.dst.0 as u64, 4).map_err(|_| Mangled)?;
    ctx.store(at + 12, &[to.src.0, to.dst.0], 0).map_err(|_| Mangled)
}

#[inline(always)]
fn quote_ports(ctx: &TcContext, packet: &Packet, at: usize, from: &Tuple, to: &Tuple) -> Result<(), Mangled> {
    let check = packet.transport() + 2;
    if from.protocol == ICMP {
        return quote_port(ctx, check, at + 4, from.sport, to.sport);
    }
    quote_port(ctx, check, at, from.sport, to.sport)?;
    quote_port(ctx, check, at + 2, from.dport, to.dport)
}

#[inline(always)]
fn quote_port(ctx: &TcContext, check: usize, at: usize, from: Port, to: Port) -> Result<(), Mangled> {
    if from == to {
        return Ok(());
    }
    ctx.l4_csum_replace(check, from.0 as u64, to.0 as u64, 2).map_err(|_| Mangled)?;
    ctx.store(at, &to.0, 0).map_err(|_| Mangled)
}
