//! Of every step that the verifier walks by itself one copy for each family: a function that is exported has a name and no parameters
//! of types, so each step gets its two names here.

use aya_ebpf::bindings::__sk_buff;
use proxy_common::*;

use crate::family::Steps;
use crate::packet::Packet;
use crate::{flow, icmp, parse, reject, tc};

/// Every step: its parameters with `A` for the address, where it is written, and its names.
macro_rules! steps {
    ($($step:ident($($arg:ident: $type:ty),*) -> $out:ty = $body:path, $v4:ident, $v6:ident;)*) => {
        const _: () = {
            type A = Ip4;
            impl Steps<A> for A {
                $(#[inline(always)]
                fn $step($($arg: $type),*) -> $out {
                    #[unsafe(no_mangle)]
                    #[inline(never)]
                    extern "C" fn $v4($($arg: $type),*) -> $out {
                        $body($($arg),*)
                    }
                    $v4($($arg),*)
                })*
            }
        };

        const _: () = {
            type A = Ip;
            impl Steps<A> for A {
                $(#[inline(always)]
                fn $step($($arg: $type),*) -> $out {
                    #[unsafe(no_mangle)]
                    #[inline(never)]
                    extern "C" fn $v6($($arg: $type),*) -> $out {
                        $body($($arg),*)
                    }
                    $v6($($arg),*)
                })*
            }
        };
    };
}

steps! {
    read_any(skb: *mut __sk_buff, packet: *mut Packet<A>) -> u32 = parse::read_any::<A>, amphi_read_any, amphi_read_any6;
    decide(skb: *mut __sk_buff, packet: *mut Packet<A>, from: u32, node: *mut NodeConfig<A>) -> u64
        = tc::decide::<A>, amphi_decide, amphi_decide6;
    begin(skb: *mut __sk_buff, packet: *mut Packet<A>, from: u32, node: *mut NodeConfig<A>) -> u64
        = tc::begin::<A>, amphi_begin, amphi_begin6;
    find_reply(packet: *mut Packet<A>) -> u32 = flow::find_reply::<A>, amphi_find_reply, amphi_find_reply6;
    is_answer(asking: *mut Tuple<A>, answer: *mut Tuple<A>) -> u32 = flow::is_answer::<A>, amphi_is_answer, amphi_is_answer6;
    leads_on(packet: *mut Packet<A>, member: u64, snat: u32, from: u32) -> u32
        = flow::leads_on::<A>, amphi_leads_on, amphi_leads_on6;
    reply(packet: *mut Packet<A>, asking: *mut Tuple<A>, node: *mut NodeConfig<A>) -> u32
        = flow::reply::<A>, amphi_reply, amphi_reply6;
    begin_flow(skb: *mut __sk_buff, packet: *mut Packet<A>, source: u32, member: u64, node: *mut NodeConfig<A>) -> u32
        = flow::begin::<A>, amphi_begin_flow, amphi_begin_flow6;
    record(packet: *mut Packet<A>, member: u64, place: u32) -> i32 = flow::record::<A>, amphi_record, amphi_record6;
    make_room() -> u32 = flow::make_room::<A>, amphi_make_room, amphi_make_room6;
    note_newest(key: *mut Tuple<A>) -> u32 = flow::note_newest::<A>, amphi_note_newest, amphi_note_newest6;
    quoted(skb: *mut __sk_buff, packet: *mut Packet<A>) -> u32 = icmp::quoted::<A>, amphi_quoted, amphi_quoted6;
    reject(skb: *mut __sk_buff, packet: *mut Packet<A>, from: u32, code: u32) -> i32
        = reject::reject::<A>, amphi_reject, amphi_reject6;
}
