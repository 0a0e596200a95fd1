//! ICMP errors about translated packets: the quoted packet gets back the addresses that its sender knows.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::family::Net;
use crate::flow::{self, Seen};
use crate::packet::{Mangled, Packet, no_tuple, set_words, words};

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
pub fn translate<A: Net>(ctx: &TcContext, packet: &mut Packet<A>) -> Known {
    match A::quoted(ctx.skb.skb, packet) {
        TRANSLATED => Known::Translated,
        NOT_OURS => Known::NotOurs,
        _ => Known::Mangled,
    }
}

const NOT_OURS: u32 = Known::NotOurs as u32;
const TRANSLATED: u32 = Known::Translated as u32;

/// `translate`, a step of its own: it is rare.
#[inline(always)]
pub fn quoted<A: Net>(skb: *mut __sk_buff, packet: *mut Packet<A>) -> u32 {
    // SAFETY: callers give a packet of their own.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return NOT_OURS };
    translate_quote(&TcContext::new(skb), packet) as u32
}

/// Of tuples there are few on the stack, which programs that call one another share: the packet's own `to` is one until it is decided.
#[inline(always)]
fn translate_quote<A: Net>(ctx: &TcContext, packet: &mut Packet<A>) -> Known {
    let at = packet.transport() + ICMP_HEADER;
    let mut answer = no_tuple();
    let Some(transport) = A::read_quoted(ctx, at, &mut answer) else { return Known::NotOurs };
    if !read_ports(ctx, transport, &mut answer) {
        return Known::NotOurs;
    }
    // The error about a packet goes where a reply to it would.
    turn(&mut answer);
    if flow::peek(&mut answer, &mut packet.to) == Seen::Unknown {
        return Known::NotOurs;
    }
    let check = packet.transport() + 2;
    turn(&mut answer);
    turn(&mut packet.to);
    if A::rewrite_quoted(ctx, at, check, &answer, &packet.to).is_err()
        || rewrite_ports(ctx, check, transport, &answer, &packet.to).is_err()
    {
        return Known::Mangled;
    }
    // A router on the way keeps its own address; the far end itself shows the one its peer knows.
    let is_far_end = packet.tuple.src == answer.dst;
    let (src, dst) = (if is_far_end { packet.to.dst } else { packet.tuple.src }, packet.to.src);
    packet.to = Tuple { src, dst, ..packet.tuple };
    crate::maps::count(Counter::IcmpTranslated);
    Known::Translated
}

#[inline(always)]
fn turn<A: Net>(tuple: &mut Tuple<A>) {
    let reversed = A::reversed(words(tuple));
    set_words(tuple, reversed);
}

#[inline(always)]
fn read_ports<A: Net>(ctx: &TcContext, at: usize, quoted: &mut Tuple<A>) -> bool {
    let (sport, dport) = match quoted.protocol {
        TCP | UDP => {
            let Ok([sport, dport]) = ctx.load::<[u16; 2]>(at) else { return false };
            (sport, dport)
        }
        protocol if protocol == A::ICMP => {
            let Ok(id) = ctx.load::<u16>(at + 4) else { return false };
            (id, 0)
        }
        _ => return false,
    };
    (quoted.sport, quoted.dport) = (Port(sport), Port(dport));
    true
}

#[inline(always)]
fn rewrite_ports<A: Net>(
    ctx: &TcContext,
    check: usize,
    at: usize,
    from: &Tuple<A>,
    to: &Tuple<A>,
) -> Result<(), Mangled> {
    if from.protocol == A::ICMP {
        return rewrite_port(ctx, check, at + 4, from.sport, to.sport);
    }
    rewrite_port(ctx, check, at, from.sport, to.sport)?;
    rewrite_port(ctx, check, at + 2, from.dport, to.dport)
}

#[inline(always)]
fn rewrite_port(ctx: &TcContext, check: usize, at: usize, from: Port, to: Port) -> Result<(), Mangled> {
    if from == to {
        return Ok(());
    }
    ctx.l4_csum_replace(check, from.0 as u64, to.0 as u64, 2).map_err(|_| Mangled)?;
    ctx.store(at, &to.0, 0).map_err(|_| Mangled)
}
