//! ICMP errors about translated packets: the quoted packet gets back the addresses that its sender knows.

use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::flow;
use crate::mangle::{Mangled, rewrite};
use crate::packet::{Ipv4Header, Packet};

const ICMP_HEADER: usize = 8;

/// An error whose quote was translated: where the message goes now.
pub struct Translated {
    pub to: Tuple,
}

/// `None`: it quotes no packet of ours.
#[inline(always)]
pub fn translate(ctx: &TcContext, packet: &Packet) -> Option<Result<Translated, Mangled>> {
    let at = packet.offset + ICMP_HEADER;
    let header: Ipv4Header = ctx.load(at).ok()?;
    if header.version_ihl != 0x45 {
        return None;
    }
    let quoted = quoted_tuple(ctx, at + 20, &header)?;
    // The error about a packet goes where a reply to it would.
    let reply = flow::peek(&quoted.reversed())?;
    Some(apply(ctx, packet, at, &header, &quoted, &reply))
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
        pad: [0; 3],
    })
}

#[inline(always)]
fn apply(
    ctx: &TcContext,
    packet: &Packet,
    at: usize,
    header: &Ipv4Header,
    quoted: &Tuple,
    reply: &Tuple,
) -> Result<Translated, Mangled> {
    let original = reply.reversed();
    quote_addresses(ctx, at, header, &original)?;
    quote_ports(ctx, packet, at + 20, quoted, &original)?;
    // A router on the way keeps its own address; the far end itself shows the one its peer knows.
    let src = if packet.tuple.src == quoted.dst { reply.src } else { packet.tuple.src };
    let to = Tuple { src, dst: reply.dst, ..packet.tuple };
    rewrite(ctx, packet, &to)?;
    Ok(Translated { to })
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
    let check = packet.offset + 2;
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
