//! IPv4.

use aya_ebpf::bindings::{
    bpf_fib_lookup as FibLookup, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
};
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use super::{IP, PORTS, Part, TCP_FLAGS, Wire, difference, hop_difference};
use crate::forward::TC_ACT_SHOT;
use crate::mangle::{RECOMPUTE, fold, sum};
use crate::packet::{Hop, Layer4, Mangled, Packet, set_words, words};

const PLAIN: usize = Ip4::PLAIN;
const SRC: usize = IP + 12;
const TTL: usize = IP + 8;
const CHECK: usize = IP + 10;
const PLAIN_VERSION_IHL: u8 = 0x45;
const LONGEST_VERSION_IHL: u8 = 0x4f;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
const DONT_FRAGMENT: u16 = 0x4000;
const AF_INET: u8 = 2;
const UNREACHABLE: u8 = 3;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;

#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    version_ihl: u8,
    tos: u8,
    length: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    check: u16,
    src: u32,
    dst: u32,
}

impl Header {
    #[inline(always)]
    fn addresses(&self) -> Tuple {
        let (src, dst) = (Ip4(self.src), Ip4(self.dst));
        Tuple { src, dst, sport: Port(0), dport: Port(0), protocol: self.protocol, pad: 0, rest: 0 }
    }
}

/// The part of the addresses that transport checksums cover.
#[repr(C)]
struct PseudoHeader {
    src: u32,
    dst: u32,
    zero: u8,
    protocol: u8,
    length: u16,
}

impl Wire for Ip4 {
    const ETHERTYPE: u32 = 0x0800u16.to_be() as u32;
    const HEADER: usize = size_of::<Header>();
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    const UNREACHABLE: u8 = UNREACHABLE;
    const PORT_UNREACHABLE: u8 = 3;
    const HOST_UNREACHABLE: u8 = 1;
    type Quote = [u8; 28];

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)
    }

    #[inline(always)]
    fn read_plain(ctx: &TcContext, packet: &mut Packet<Self>) -> bool {
        let (data, end) = (ctx.data(), ctx.data_end());
        if data + PLAIN + PORTS > end {
            return false;
        }
        // SAFETY: within the packet, as just checked; the kernels this runs on read words at any address.
        let header = unsafe { core::ptr::read((data + IP) as *const Header) };
        if header.version_ihl != PLAIN_VERSION_IHL || header.fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET).to_be() != 0
        {
            return false;
        }
        let (layer4, flags) = match header.protocol {
            UDP => (Layer4::Udp, 0),
            // SAFETY: as just checked.
            TCP if data + PLAIN + TCP_FLAGS < end => {
                (Layer4::Tcp, unsafe { core::ptr::read((data + PLAIN + TCP_FLAGS) as *const u8) })
            }
            _ => return false,
        };
        // SAFETY: as above.
        let ports = unsafe { core::ptr::read((data + PLAIN) as *const u32) };
        // SAFETY: as above.
        let addresses = unsafe { core::ptr::read_volatile((data + SRC) as *const u64) };
        let words = [addresses, ports as u64 | (header.protocol as u64) << 32];
        set_words(&mut packet.tuple, words);
        set_words(&mut packet.to, words);
        packet.set_plain(PLAIN, u16::from_be(header.length), layer4, flags, header.ttl);
        true
    }

    #[inline(always)]
    fn read_header(ctx: &TcContext, packet: &mut Packet<Self>) -> Option<Part> {
        let header: Header = ctx.load(IP).ok()?;
        if header.version_ihl < PLAIN_VERSION_IHL || header.version_ihl > LONGEST_VERSION_IHL {
            return None;
        }
        packet.offset = IP as u32 + (header.version_ihl & 15) as u32 * 4;
        packet.tuple = header.addresses();
        packet.ttl = header.ttl;
        packet.length = u16::from_be(header.length);
        let (fragment, id) = (u16::from_be(header.fragment), header.id as u32);
        Some(if fragment & FRAGMENT_OFFSET != 0 {
            Part::Later(id)
        } else if fragment & MORE_FRAGMENTS != 0 {
            Part::First(id)
        } else {
            Part::Whole
        })
    }

    #[inline(always)]
    fn read_quoted(ctx: &TcContext, at: usize, quoted: &mut Tuple) -> Option<usize> {
        let header: Header = ctx.load(at).ok()?;
        if header.version_ihl != PLAIN_VERSION_IHL {
            return None;
        }
        *quoted = header.addresses();
        Some(at + Self::HEADER)
    }

    /// New addresses and header checksum cancel out in the message's own checksum.
    #[inline(always)]
    fn rewrite_quoted(ctx: &TcContext, at: usize, _check: usize, from: &Tuple, to: &Tuple) -> Result<(), Mangled> {
        ctx.l3_csum_replace(at + 10, from.src.0 as u64, to.src.0 as u64, 4).map_err(|_| Mangled)?;
        ctx.l3_csum_replace(at + 10, from.dst.0 as u64, to.dst.0 as u64, 4).map_err(|_| Mangled)?;
        ctx.store(at + 12, &[to.src.0, to.dst.0], 0).map_err(|_| Mangled)
    }

    #[inline(always)]
    fn difference(from: &Tuple, to: &Tuple) -> u32 {
        difference([from.src.0, from.dst.0], [to.src.0, to.dst.0])
    }

    /// The sum of the header has no trap as transport sums have, and is patched in place.
    #[inline(always)]
    unsafe fn write_header(_ctx: &TcContext, data: usize, packet: &Packet<Self>, hop: Hop, difference: u32) {
        let mut sum = difference as u64;
        // SAFETY, for all below: within the header, which the caller vouches for, and aligned enough for these kernels.
        if hop.counted {
            let protocol = packet.tuple.protocol;
            sum += hop_difference([packet.ttl, protocol], [packet.ttl - 1, protocol]);
            unsafe { core::ptr::write((data + TTL) as *mut u8, packet.ttl - 1) };
        }
        let check = (data + CHECK) as *mut u16;
        unsafe {
            core::ptr::write(check, !fold(sum + !core::ptr::read(check) as u64));
            core::ptr::write_volatile((data + SRC) as *mut u64, words(&packet.to)[0]);
        }
    }

    #[inline(always)]
    fn store_header(ctx: &TcContext, src: Self, dst: Self, protocol: u8, payload: usize) -> Option<()> {
        let mut header = Header {
            version_ihl: PLAIN_VERSION_IHL,
            tos: 0,
            length: ((Self::HEADER + payload) as u16).to_be(),
            id: 0,
            fragment: DONT_FRAGMENT.to_be(),
            ttl: 64,
            protocol,
            check: 0,
            src: src.0,
            dst: dst.0,
        };
        header.check = !fold(sum(&mut header, 0) as u64);
        ctx.store(IP, &header, RECOMPUTE).ok()
    }

    #[inline(always)]
    fn pseudo_sum(src: Self, dst: Self, protocol: u8, length: usize) -> u32 {
        sum(&mut PseudoHeader { src: src.0, dst: dst.0, zero: 0, protocol, length: (length as u16).to_be() }, 0)
    }

    #[inline(always)]
    fn icmp_sum(_src: Self, _dst: Self, _length: usize) -> u32 {
        0
    }

    #[inline(always)]
    fn fill_route(query: &mut FibLookup, to: &Tuple) {
        query.family = AF_INET;
        query.__bindgen_anon_3.ipv4_src = to.src.0;
        query.__bindgen_anon_4.ipv4_dst = to.dst.0;
    }

    #[inline(always)]
    fn socket(to: &Tuple) -> (bpf_sock_tuple, u32) {
        let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: to.dst.0,
            daddr: to.src.0,
            sport: to.dport.0,
            dport: to.sport.0,
        };
        let tuple = bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4 } };
        (tuple, size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>() as u32)
    }

    #[inline(always)]
    fn is_of_link(_tuple: &Tuple) -> bool {
        false
    }

    #[inline(always)]
    fn answer_on_link(_ctx: &TcContext, _packet: &Packet<Self>) -> i32 {
        TC_ACT_SHOT
    }
}
