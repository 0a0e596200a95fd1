//! The two families as programs reach them: the maps of each, and of every step that the verifier walks by itself one copy for each.
//!
//! The steps are written once, for an address of either family, in the files they belong to. A function that is exported has a name
//! and no parameters of types: so each gets its two names here.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::{HashMap, LruHashMap};
use proxy_common::*;

use crate::maps::*;
use crate::packet::Packet;
use crate::wire::Wire;
use crate::{flow, icmp, packet, reject, tc};

pub trait Net: Wire + Steps<Self> {
    /// A flow, word by word.
    type Record: AsMut<[u64]>;
    const EMPTY: Self::Record;
    /// Places of the newest flows: a power of two.
    const NEW_FLOWS: u32;

    fn node() -> Option<&'static NodeConfig<Self>>;
    fn pods() -> &'static HashMap<Self, u64, MAX_PODS>;
    fn shares() -> &'static HashMap<Self, u64, MAX_PODS>;
    fn node_addresses() -> &'static HashMap<Self, u32, MAX_NODE_ADDRESSES>;
    fn flows() -> &'static HashMap<Tuple<Self>, Flow<Self>, MAX_FLOWS>;
    fn exposed_ends() -> &'static HashMap<Self::End, Self::End, MAX_EXPOSED>;
    fn fragments() -> &'static LruHashMap<Self::FragmentKey, u32, MAX_FRAGMENTS>;
    fn snat_place(index: u32) -> Option<*mut SnatPlace<Self>>;
    /// One of the newest flows' keys.
    fn newest(place: u32) -> Option<*mut Tuple<Self>>;
    /// How many flows ever began.
    fn begun() -> Option<*mut u64>;
}

macro_rules! maps {
    ($addr:ty, $words:literal, $new_flows:ident, $node:ident, $pods:ident, $shares:ident, $addresses:ident, $flows:ident, $exposed:ident,
     $fragments:ident, $snat:ident, $newest:ident, $begun:ident) => {
        impl Net for $addr {
            type Record = [u64; $words];
            const EMPTY: Self::Record = [0; $words];
            const NEW_FLOWS: u32 = $new_flows as u32;

            #[inline(always)]
            fn node() -> Option<&'static NodeConfig<Self>> {
                $node.get(0)
            }

            #[inline(always)]
            fn pods() -> &'static HashMap<Self, u64, MAX_PODS> {
                &$pods
            }

            #[inline(always)]
            fn shares() -> &'static HashMap<Self, u64, MAX_PODS> {
                &$shares
            }

            #[inline(always)]
            fn node_addresses() -> &'static HashMap<Self, u32, MAX_NODE_ADDRESSES> {
                &$addresses
            }

            #[inline(always)]
            fn flows() -> &'static HashMap<Tuple<Self>, Flow<Self>, MAX_FLOWS> {
                &$flows
            }

            #[inline(always)]
            fn exposed_ends() -> &'static HashMap<Self::End, Self::End, MAX_EXPOSED> {
                &$exposed
            }

            #[inline(always)]
            fn fragments() -> &'static LruHashMap<Self::FragmentKey, u32, MAX_FRAGMENTS> {
                &$fragments
            }

            #[inline(always)]
            fn snat_place(index: u32) -> Option<*mut SnatPlace<Self>> {
                $snat.get_ptr_mut(index)
            }

            #[inline(always)]
            fn newest(place: u32) -> Option<*mut Tuple<Self>> {
                $newest.get_ptr_mut(place)
            }

            #[inline(always)]
            fn begun() -> Option<*mut u64> {
                $begun.get_ptr_mut(0)
            }
        }

        const _: () = assert!(size_of::<Flow<$addr>>() == $words * 8 && $new_flows.is_power_of_two());
    };
}

maps!(
    Ip4, 10, MAX_NEW_FLOWS, NODE, PODS, SHARES, NODE_ADDRESSES, FLOWS, EXPOSED, FRAGMENTS, SNAT, NEWEST, BEGUN
);
maps!(
    Ip, 13, MAX_NEW_FLOWS6, NODE6, PODS6, SHARES6, NODE_ADDRESSES6, FLOWS6, EXPOSED6, FRAGMENTS6, SNAT6, NEWEST6, BEGUN6
);

/// Every step: its parameters with `A` for the address, where it is written, and its names.
macro_rules! steps {
    ($($step:ident($($arg:ident: $type:ty),*) -> $out:ty = $body:path, $v4:ident, $v6:ident;)*) => {
        /// The exported steps of a family.
        pub trait Steps<A: Net> {
            $(fn $step($($arg: $type),*) -> $out;)*
        }

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
    read_any(skb: *mut __sk_buff, packet: *mut Packet<A>) -> u32 = packet::read_any::<A>, amphi_read_any, amphi_read_any6;
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
