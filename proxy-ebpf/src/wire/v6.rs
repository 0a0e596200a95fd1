//! IPv6: a longer header without a checksum of its own, and others that may follow it.

use core::ffi::c_void;

use aya_ebpf::bindings::{
    __sk_buff, bpf_fib_lookup as FibLookup, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::{bpf_csum_update, bpf_loop, bpf_skb_load_bytes};
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use super::{IP, PORTS, Part, TCP_FLAGS, Wire, difference, hop_difference};
use crate::mangle::{RECOMPUTE, sum};
use crate::neighbour;
use crate::packet::{Hop, Layer4, Mangled, Packet, set_words, words};

const PLAIN: usize = Ip::PLAIN;
const NEXT: usize = IP + 6;
const HOPS: usize = IP + 7;
const SRC: usize = IP + 8;
/// Length of both addresses.
const ADDRESSES: u32 = 32;
const VERSION: u8 = 6;
const AF_INET6: u8 = 10;
const UNREACHABLE: u8 = 1;
/// The last of the errors; what informs has greater numbers.
const LAST_ERROR: u8 = 4;

const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Headers between the first and the transport's: more has nobody.
const EXTENSIONS: u32 = 6;
const MORE_FRAGMENTS: u16 = 1;
const FRAGMENT_OFFSET: u16 = 0xfff8;

#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    version: u8,
    rest: [u8; 3],
    length: u16,
    next: u8,
    hops: u8,
    src: [u32; 4],
    dst: [u32; 4],
}

/// Addresses and what comes next of a header, and its length of the rest and hops. None where an address is an IPv4 one in disguise:
/// such are for sockets, not for the wire.
#[inline(always)]
fn read_addresses(ctx: &TcContext, at: usize, tuple: &mut Tuple<Ip>) -> Option<(u16, u8)> {
    let [first, second]: [u32; 2] = ctx.load(at).ok()?;
    let ([version, ..], [high, low, next, hops]) = (first.to_ne_bytes(), second.to_ne_bytes());
    let both = (at + SRC - IP) as u32;
    // SAFETY: both addresses lie at the tuple's beginning, as in the header.
    if unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), both, core::ptr::from_mut(tuple).cast(), ADDRESSES) } != 0 {
        return None;
    }
    (tuple.sport, tuple.dport, tuple.protocol, tuple.pad, tuple.rest) = (Port(0), Port(0), next, 0, 0);
    let is_plain = version >> 4 == VERSION && tuple.src.to_v4().is_none() && tuple.dst.to_v4().is_none();
    is_plain.then_some((u16::from_be_bytes([high, low]), hops))
}

/// Both addresses, as the header has them.
#[inline(always)]
fn addresses_of(tuple: &Tuple<Ip>) -> &[u64; 4] {
    // SAFETY: they are the first four words of the tuple.
    unsafe { &*core::ptr::from_ref(tuple).cast() }
}

/// The part of the addresses that transport checksums cover.
#[repr(C)]
struct PseudoHeader {
    src: [u64; 2],
    dst: [u64; 2],
    length: u32,
    zero: [u8; 3],
    protocol: u8,
}

impl Wire for Ip {
    const ETHERTYPE: u32 = 0x86ddu16.to_be() as u32;
    const HEADER: usize = size_of::<Header>();
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    const UNREACHABLE: u8 = UNREACHABLE;
    const PORT_UNREACHABLE: u8 = 4;
    const HOST_UNREACHABLE: u8 = 3;
    type Quote = [u8; 48];

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        kind <= LAST_ERROR
    }

    #[inline(always)]
    fn read_plain(ctx: &TcContext, packet: &mut Packet<Self>) -> bool {
        let (data, end) = (ctx.data(), ctx.data_end());
        if data + PLAIN + PORTS > end {
            return false;
        }
        // SAFETY, for all reads: within the packet, as just checked; the kernels this runs on read words at any address.
        let byte = |at: usize| unsafe { core::ptr::read((data + at) as *const u8) };
        let word = |index: usize| unsafe { core::ptr::read_volatile((data + SRC + index * 8) as *const u64) };
        let (next, ttl) = (byte(NEXT), byte(HOPS));
        let (layer4, flags) = match next {
            UDP => (Layer4::Udp, 0),
            TCP if data + PLAIN + TCP_FLAGS < end => (Layer4::Tcp, byte(PLAIN + TCP_FLAGS)),
            _ => return false,
        };
        let [a, b, c, d] = [word(0), word(1), word(2), word(3)];
        let is_mapped = |ip| Ip::from_halves(ip).to_v4().is_some();
        if byte(IP) >> 4 != VERSION || is_mapped([a, b]) || is_mapped([c, d]) {
            return false;
        }
        let (ports, length) = unsafe {
            (core::ptr::read((data + PLAIN) as *const u32), core::ptr::read((data + IP + 4) as *const u16))
        };
        let words = [a, b, c, d, ports as u64 | (next as u64) << 32];
        set_words(&mut packet.tuple, words);
        set_words(&mut packet.to, words);
        packet.set_plain(PLAIN, u16::from_be(length).wrapping_add(Self::HEADER as u16), layer4, flags, ttl);
        true
    }

    #[inline(always)]
    fn read_header(ctx: &TcContext, packet: &mut Packet<Self>) -> Option<Part> {
        let (length, hops) = read_addresses(ctx, IP, &mut packet.tuple)?;
        packet.ttl = hops;
        packet.length = length.wrapping_add(Self::HEADER as u16);
        let walk = Walk::along(ctx, PLAIN, packet.tuple.protocol)?;
        packet.tuple.protocol = walk.next;
        packet.offset = walk.at;
        Some(walk.part())
    }

    #[inline(always)]
    fn read_quoted(ctx: &TcContext, at: usize, quoted: &mut Tuple<Self>) -> Option<usize> {
        read_addresses(ctx, at, quoted)?;
        let walk = Walk::along(ctx, at + Self::HEADER, quoted.protocol)?;
        quoted.protocol = walk.next;
        // A later fragment shows no ports.
        (walk.fragment & FRAGMENT_OFFSET == 0).then_some(walk.at as usize)
    }

    /// No sum of the header makes up for new addresses, so the message's own has to.
    #[inline(always)]
    fn rewrite_quoted(
        ctx: &TcContext,
        at: usize,
        check: usize,
        from: &Tuple<Self>,
        to: &Tuple<Self>,
    ) -> Result<(), Mangled> {
        ctx.l4_csum_replace(check, 0, Self::difference(from, to) as u64, 0).map_err(|_| Mangled)?;
        ctx.store(at + SRC - IP, addresses_of(to), 0).map_err(|_| Mangled)
    }

    #[inline(always)]
    fn difference(from: &Tuple<Self>, to: &Tuple<Self>) -> u32 {
        let quads = |tuple: &Tuple<Self>| {
            let ([a, b, c, d], [e, f, g, h]) = (tuple.src.quads(), tuple.dst.quads());
            [a, b, c, d, e, f, g, h]
        };
        difference(quads(from), quads(to))
    }

    /// Where a device has summed up the whole packet, the header is in that sum: the helper for transport sums has taken the
    /// difference of the addresses out of it, as if a header's own sum made up for them, and it is put back here.
    #[inline(always)]
    unsafe fn write_header(ctx: &TcContext, data: usize, packet: &Packet<Self>, hop: Hop, difference: u32) {
        let mut changed = difference as u64;
        // SAFETY, for all below: within the header, which the caller vouches for, and aligned enough for these kernels.
        if hop.counted {
            let next = packet.tuple.protocol;
            changed += hop_difference([next, packet.ttl], [next, packet.ttl - 1]);
            unsafe { core::ptr::write((data + HOPS) as *mut u8, packet.ttl - 1) };
        }
        for (index, word) in words(&packet.to).into_iter().take(4).enumerate() {
            unsafe { core::ptr::write_volatile((data + SRC + index * 8) as *mut u64, word) };
        }
        let changed = (changed & 0xffff_ffff) + (changed >> 32);
        // SAFETY: the context is valid while the program runs. It fails where no device has summed up, and then there is nothing to do.
        unsafe { bpf_csum_update(ctx.skb.skb, changed as u32) };
    }

    #[inline(always)]
    fn store_header(ctx: &TcContext, src: Self, dst: Self, protocol: u8, payload: usize) -> Option<()> {
        let header = Header {
            version: VERSION << 4,
            rest: [0; 3],
            length: (payload as u16).to_be(),
            next: protocol,
            hops: 64,
            src: src.quads(),
            dst: dst.quads(),
        };
        ctx.store(IP, &header, RECOMPUTE).ok()
    }

    #[inline(always)]
    fn pseudo_sum(src: Self, dst: Self, protocol: u8, length: usize) -> u32 {
        let (src, dst, length) = (src.halves(), dst.halves(), (length as u32).to_be());
        sum(&mut PseudoHeader { src, dst, length, zero: [0; 3], protocol }, 0)
    }

    #[inline(always)]
    fn icmp_sum(src: Self, dst: Self, length: usize) -> u32 {
        Self::pseudo_sum(src, dst, Self::ICMP, length)
    }

    #[inline(always)]
    fn fill_route(query: &mut FibLookup, to: &Tuple<Self>) {
        query.family = AF_INET6;
        query.__bindgen_anon_3.ipv6_src = to.src.quads();
        query.__bindgen_anon_4.ipv6_dst = to.dst.quads();
    }

    #[inline(always)]
    fn socket(to: &Tuple<Self>) -> (bpf_sock_tuple, u32) {
        let ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
            saddr: to.dst.quads(),
            daddr: to.src.quads(),
            sport: to.dport.0,
            dport: to.sport.0,
        };
        let tuple = bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv6 } };
        (tuple, size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>() as u32)
    }

    #[inline(always)]
    fn is_of_link(tuple: &Tuple<Self>) -> bool {
        let Tuple { src, dst, .. } = tuple;
        src.is_link_local() || src.is_unspecified() || dst.is_link_local() || dst.is_multicast()
    }

    #[inline(always)]
    fn answer_on_link(ctx: &TcContext, packet: &Packet<Self>) -> i32 {
        neighbour::answer(ctx, packet)
    }
}

/// The way along the headers behind the first. A loop of the kernel's: the verifier walks its body once.
struct Walk {
    skb: *mut __sk_buff,
    at: u32,
    id: u32,
    fragment: u16,
    next: u8,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Not met yet.
    Beyond,
    Met,
    /// Cut short.
    Broken,
}

impl Walk {
    /// From a header of kind `next` to the first that is none of those which only go along.
    #[inline(always)]
    fn along(ctx: &TcContext, at: usize, next: u8) -> Option<Self> {
        let mut walk = Self { skb: ctx.skb.skb, at: at as u32, id: 0, fragment: 0, next, end: End::Beyond };
        // SAFETY: the callback takes what it is given here, which outlives the call.
        unsafe { bpf_loop(EXTENSIONS + 1, step as *mut c_void, (&raw mut walk).cast(), 0) };
        (walk.end == End::Met).then_some(walk)
    }

    #[inline(always)]
    fn part(&self) -> Part {
        if self.fragment & FRAGMENT_OFFSET != 0 {
            Part::Later(self.id)
        } else if self.fragment & MORE_FRAGMENTS != 0 {
            Part::First(self.id)
        } else {
            Part::Whole
        }
    }
}

/// Past one header; 1 ends the walk.
unsafe extern "C" fn step(_index: u32, walk: *mut Walk) -> i64 {
    // SAFETY: `along` passes its own.
    let walk = unsafe { &mut *walk };
    let is_extension = matches!(walk.next, HOP_BY_HOP | DESTINATION_OPTIONS | FRAGMENT);
    if !is_extension || walk.fragment & FRAGMENT_OFFSET != 0 {
        walk.end = End::Met;
        return 1;
    }
    let ctx = TcContext::new(walk.skb);
    let Ok([first, id]) = ctx.load::<[u32; 2]>(walk.at as usize) else {
        walk.end = End::Broken;
        return 1;
    };
    let [next, length, high, low] = first.to_ne_bytes();
    if walk.next == FRAGMENT {
        (walk.fragment, walk.id) = (u16::from_be_bytes([high, low]), id);
        walk.at += 8;
    } else {
        walk.at += (length as u32 + 1) * 8;
    }
    walk.next = next;
    0
}
