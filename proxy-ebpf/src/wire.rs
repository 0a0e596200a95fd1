//! The headers of both families: how a packet is read, and what is written where. All that is the same in both is written elsewhere, once.

mod v4;
mod v6;

use aya_ebpf::bindings::{bpf_fib_lookup as FibLookup, bpf_sock_tuple};
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::packet::{Hop, Mangled, Packet};

/// The network header follows the Ethernet header.
pub const IP: usize = 14;
/// The length of what every transport header begins with: both ports, or ICMP's fixed part.
pub const PORTS: usize = 8;
pub const TCP_FLAGS: usize = 13;

/// A family on the wire.
pub trait Wire: Addr {
    const ETHERTYPE: u32;
    /// Length of the header without options.
    const HEADER: usize;
    /// Where the transport header begins then.
    const PLAIN: usize = IP + Self::HEADER;
    const ECHO_REQUEST: u8;
    const ECHO_REPLY: u8;
    /// An ICMP error, and two of its codes.
    const UNREACHABLE: u8;
    const PORT_UNREACHABLE: u8;
    const HOST_UNREACHABLE: u8;
    /// What an ICMP error quotes: the header, and eight bytes.
    type Quote: Copy;

    /// Whether an ICMP message is about another packet.
    fn is_error(kind: u8) -> bool;

    /// TCP and UDP without options and fragmentation, whose headers lie in one piece: read in place, all of the packet's fields.
    fn read_plain(ctx: &TcContext, packet: &mut Packet<Self>) -> bool;

    /// Everything else, wherever the kernel keeps it, up to the transport header; none: cut short, or not to be read.
    fn read_header(ctx: &TcContext, packet: &mut Packet<Self>) -> Option<Part>;

    /// Addresses and protocol of the packet that an ICMP error quotes from `at` on; gives where its transport header begins.
    fn read_quoted(ctx: &TcContext, at: usize, quoted: &mut Tuple<Self>) -> Option<usize>;

    /// Gives a quoted packet other addresses; `check` is where the message's own sum lies.
    fn rewrite_quoted(ctx: &TcContext, at: usize, check: usize, from: &Tuple<Self>, to: &Tuple<Self>) -> Result<(), Mangled>;

    /// What to add to a sum over the addresses of `from` for one over those of `to`.
    fn difference(from: &Tuple<Self>, to: &Tuple<Self>) -> u32;

    /// Writes the header's part of what changes. `difference` is as above.
    ///
    /// # Safety
    /// The packet begins at `data`, and its headers up to the plain transport header are there and writable.
    unsafe fn write_header(ctx: &TcContext, data: usize, packet: &Packet<Self>, hop: Hop, difference: u32);

    /// A header of our own over the packet's; none: the packet is too short.
    fn store_header(ctx: &TcContext, src: Self, dst: Self, protocol: u8, payload: usize) -> Option<()>;

    /// The sum of what a transport checksum covers besides the transport's own bytes.
    fn pseudo_sum(src: Self, dst: Self, protocol: u8, length: usize) -> u32;

    /// The same for an ICMP message.
    fn icmp_sum(src: Self, dst: Self, length: usize) -> u32;

    fn fill_route(query: &mut FibLookup, to: &Tuple<Self>);

    /// The ends of a socket that would get answers to `to`, and the size of that part.
    fn socket(to: &Tuple<Self>) -> (bpf_sock_tuple, u32);

    /// What links talk about among themselves: none of it leaves one.
    fn is_of_link(tuple: &Tuple<Self>) -> bool;

    /// What becomes of that where a pod sends it; the program's result.
    fn answer_on_link(ctx: &TcContext, packet: &Packet<Self>) -> i32;
}

/// Whether the transport header is in a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// The first of several fragments with this number.
    First(u32),
    /// A later one.
    Later(u32),
}

/// What to add to a sum over `from` for one over `to`: of as many words.
#[inline(always)]
fn difference<const WORDS: usize>(from: [u32; WORDS], to: [u32; WORDS]) -> u32 {
    let mut sum = 0;
    for index in 0..WORDS {
        sum += !from[index] as u64 + to[index] as u64;
    }
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// The same for the word that a hop less changes.
#[inline(always)]
fn hop_difference(before: [u8; 2], after: [u8; 2]) -> u64 {
    !u16::from_ne_bytes(before) as u64 + u16::from_ne_bytes(after) as u64
}
