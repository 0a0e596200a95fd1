//! The two families as programs reach them: the maps of each, what is looked up there, and the steps that call each other.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::{HashMap, LruHashMap};
use proxy_common::*;

use crate::maps::*;
use crate::packet::Packet;
use crate::wire::Wire;

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

/// The steps that the verifier walks by themselves. They are written once, in the files they belong to; `steps` names them.
pub trait Steps<A> {
    fn read_any(skb: *mut __sk_buff, packet: *mut Packet<A>) -> u32;
    fn decide(skb: *mut __sk_buff, packet: *mut Packet<A>, from: u32, node: *mut NodeConfig<A>) -> u64;
    fn begin(skb: *mut __sk_buff, packet: *mut Packet<A>, from: u32, node: *mut NodeConfig<A>) -> u64;
    fn find_reply(packet: *mut Packet<A>) -> u32;
    fn is_answer(asking: *mut Tuple<A>, answer: *mut Tuple<A>) -> u32;
    fn leads_on(packet: *mut Packet<A>, member: u64, snat: u32, from: u32) -> u32;
    fn reply(packet: *mut Packet<A>, asking: *mut Tuple<A>, node: *mut NodeConfig<A>) -> u32;
    fn begin_flow(
        skb: *mut __sk_buff,
        packet: *mut Packet<A>,
        source: u32,
        member: u64,
        node: *mut NodeConfig<A>,
    ) -> u32;
    fn record(packet: *mut Packet<A>, member: u64, place: u32) -> i32;
    fn make_room() -> u32;
    fn note_newest(key: *mut Tuple<A>) -> u32;
    fn quoted(skb: *mut __sk_buff, packet: *mut Packet<A>) -> u32;
    fn reject(skb: *mut __sk_buff, packet: *mut Packet<A>, from: u32, code: u32) -> i32;
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

maps!(Ip4, 10, MAX_NEW_FLOWS, NODE, PODS, SHARES, NODE_ADDRESSES, FLOWS, EXPOSED, FRAGMENTS, SNAT, NEWEST, BEGUN);
maps!(
    Ip,
    13,
    MAX_NEW_FLOWS6,
    NODE6,
    PODS6,
    SHARES6,
    NODE_ADDRESSES6,
    FLOWS6,
    EXPOSED6,
    FRAGMENTS6,
    SNAT6,
    NEWEST6,
    BEGUN6
);

/// The node in a family, if it is one there.
#[inline(always)]
pub fn node<A: Net>() -> Option<&'static NodeConfig<A>> {
    A::node().filter(|node| node.uplink != 0)
}

/// What a node address is, if it is one.
#[inline(always)]
pub fn node_address<A: Net>(addr: A) -> Option<u32> {
    // SAFETY: see `whole`; a recycled element still says "an address of some node".
    A::node_addresses().get_ptr(addr).map(|kind| unsafe { core::ptr::read_volatile(kind) })
}

/// Whether any node has an address.
#[inline(always)]
pub fn is_node_address(ip: Ip) -> bool {
    match ip.to_v4() {
        Some(ip) => is_nodes(ip),
        None => is_nodes(ip),
    }
}

#[inline(always)]
fn is_nodes<A: Net>(addr: A) -> bool {
    node::<A>().is_some_and(|node| node.node_ip == addr) || node_address(addr).is_some()
}

/// The host end of a pod on this node.
#[inline(always)]
pub fn local_pod<A: Net>(addr: A) -> Option<PodLink> {
    // SAFETY: the pointer is to a map element.
    let link = PodLink::from_bits(unsafe { whole(A::pods().get_ptr(addr)?) });
    (link.mark == addr.mark()).then_some(link)
}
