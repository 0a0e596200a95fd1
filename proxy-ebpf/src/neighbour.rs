//! What a pod asks of its link: it knows its gateway, and is told again should it have forgotten it. The host hears of none of it.

use aya_ebpf::helpers::{bpf_redirect_peer, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::forward::{TC_ACT_SHOT, ifindex};
use crate::mangle::{fold, set_ethernet, sum};
use crate::packet::Packet;
use crate::wire::{IP, Wire};

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// From a router, asked for, and in place of what was known.
const FLAGS: u32 = 0xe000_0000u32.to_be();
/// The address of the link's end is told, in eight bytes.
const TARGET_OPTION: [u8; 2] = [2, 1];
const HOPS: usize = IP + 7;
/// Of what has come over no router.
const FRESH: u8 = 255;

#[repr(C)]
#[derive(Clone, Copy)]
struct Question {
    kind: u8,
    code: u8,
    check: u16,
    reserved: u32,
    target: [u32; 4],
}

#[repr(C)]
struct Answer {
    question: Question,
    option: [u8; 2],
    mac: [u8; 6],
}

/// Answers who asks for the gateway, and drops everything else; the program's result.
#[inline(never)]
pub fn answer(ctx: &TcContext, packet: &Packet<Ip>) -> i32 {
    advertise(ctx, packet).unwrap_or(TC_ACT_SHOT)
}

#[inline(always)]
fn advertise(ctx: &TcContext, packet: &Packet<Ip>) -> Option<i32> {
    let src = packet.tuple.src;
    if packet.tuple.protocol != ICMP6 || packet.ttl != FRESH || packet.transport() != Ip::PLAIN || src.is_unspecified()
    {
        return None;
    }
    let question: Question = ctx.load(Ip::PLAIN).ok()?;
    if question.kind != SOLICITATION || Ip::from_quads(question.target) != GATEWAY6 {
        return None;
    }
    let question = Question { kind: ADVERTISEMENT, code: 0, check: 0, reserved: FLAGS, ..question };
    let mut answer = Answer { question, option: TARGET_OPTION, mac: HOST_MAC };
    let length = size_of::<Answer>();
    answer.question.check = !fold(sum(&mut answer, Ip::icmp_sum(GATEWAY6, src, length)) as u64);
    let [_, asking]: [[u8; 6]; 2] = ctx.load(0).ok()?;
    // SAFETY: the context is valid; packet pointers are not held across the call.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, (Ip::PLAIN + length) as u32, 0) } != 0 {
        return None;
    }
    Ip::store_header(ctx, GATEWAY6, src, ICMP6, length)?;
    ctx.store(HOPS, &FRESH, 0).ok()?;
    ctx.store(Ip::PLAIN, &answer, 0).ok()?;
    set_ethernet(ctx, asking, HOST_MAC).ok()?;
    // SAFETY: an ingress hook of tc, as the helper demands.
    Some(unsafe { bpf_redirect_peer(ifindex(ctx), 0) } as i32)
}
