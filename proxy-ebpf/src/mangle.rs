//! Changes packets. Transport checksums go through the kernel's helper only: it knows whether the device, or nobody yet, has summed
//! up the packet, which a delta computed here would not. The sum of the IP header has no such trap, and is patched in place.

use aya_ebpf::helpers::bpf_skb_pull_data;
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::packet::{IP, IP_SRC, Layer4, PLAIN, Packet, words};

const PSEUDO_HEADER: u64 = 0x10;
const MARK_MANGLED_0: u64 = 0x20;
const IP_TTL: usize = IP + 8;
const IP_CHECK: usize = IP + 10;

/// The packet could not be changed: it must not go on.
pub struct Mangled;

pub type Result<T> = core::result::Result<T, Mangled>;

/// What changes besides addresses and ports.
#[derive(Clone, Copy)]
pub struct Hop {
    /// One hop less to live. The caller has seen that there is one to lose.
    pub counted: bool,
    /// Ethernet destination and source.
    pub macs: Option<([u8; 6], [u8; 6])>,
}

impl Hop {
    pub const NONE: Self = Self { counted: false, macs: None };
}

/// Gives the packet the addresses and ports that it shall have.
#[inline(always)]
pub fn rewrite(ctx: &TcContext, packet: &Packet, hop: Hop) -> Result<()> {
    let (from, to) = (&packet.tuple, &packet.to);
    let addresses = difference([from.src.0, from.dst.0], [to.src.0, to.dst.0]);
    if from.src != to.src || from.dst != to.dst || from.sport != to.sport || from.dport != to.dport {
        rewrite_transport(ctx, packet, addresses)?;
    }
    let data = header(ctx)?;
    let mut sum = addresses as u64;
    // SAFETY, for all below: within the IP header, which `header` has found writable, and aligned enough for these kernels.
    if hop.counted {
        let word = |ttl: u8| u16::from_ne_bytes([ttl, packet.tuple.protocol]);
        sum += !word(packet.ttl) as u64 + word(packet.ttl - 1) as u64;
        unsafe { core::ptr::write((data + IP_TTL) as *mut u8, packet.ttl - 1) };
    }
    let check = (data + IP_CHECK) as *mut u16;
    unsafe {
        core::ptr::write(check, !fold(sum + !core::ptr::read(check) as u64));
        core::ptr::write_volatile((data + IP_SRC) as *mut u64, words(to)[0]);
    }
    if let Some((dst, src)) = hop.macs {
        let [a, b, c, d, e, f] = dst;
        let [g, h, i, j, k, l] = src;
        let words = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
        for (index, word) in words.into_iter().enumerate() {
            unsafe { core::ptr::write((data + index * 4) as *mut u32, word) };
        }
    }
    Ok(())
}

/// Ports, and the transport's checksum with all that it covers.
#[inline(always)]
fn rewrite_transport(ctx: &TcContext, packet: &Packet, addresses: u32) -> Result<()> {
    let (from, to, offset) = (&packet.tuple, &packet.to, packet.transport());
    let (check, flags) = match packet.layer4 {
        Layer4::Tcp => (offset + 16, 0),
        Layer4::Udp => (offset + 6, MARK_MANGLED_0),
        Layer4::EchoRequest => return rewrite_echo(ctx, packet, from.sport, to.sport),
        Layer4::EchoReply => return rewrite_echo(ctx, packet, from.dport, to.dport),
        Layer4::IcmpError | Layer4::Continued | Layer4::Unknown | Layer4::Other => return Ok(()),
    };
    if from.src != to.src || from.dst != to.dst {
        ctx.l4_csum_replace(check, 0, addresses as u64, flags | PSEUDO_HEADER).map_err(|_| Mangled)?;
    }
    if from.ports() == to.ports() {
        return Ok(());
    }
    ctx.l4_csum_replace(check, from.ports() as u64, to.ports() as u64, flags | 4).map_err(|_| Mangled)?;
    let (data, end) = (ctx.data(), ctx.data_end());
    if offset == PLAIN && data + PLAIN + 4 <= end {
        // SAFETY: within the packet; the helper before has made it writable up to the checksum, which lies behind the ports.
        unsafe { core::ptr::write((data + PLAIN) as *mut u32, to.ports()) };
        return Ok(());
    }
    ctx.store(offset, &to.ports(), 0).map_err(|_| Mangled)
}

/// The identifier of an echo stands for its port. No ICMP checksum covers addresses.
#[inline(always)]
fn rewrite_echo(ctx: &TcContext, packet: &Packet, from: Port, to: Port) -> Result<()> {
    ctx.l4_csum_replace(packet.transport() + 2, from.0 as u64, to.0 as u64, 2).map_err(|_| Mangled)?;
    ctx.store(packet.transport() + 4, &to.0, 0).map_err(|_| Mangled)
}

/// The address of the packet's first byte; Ethernet and IP header behind it are in one piece.
#[inline(always)]
fn header(ctx: &TcContext) -> Result<usize> {
    if ctx.data() + PLAIN > ctx.data_end() {
        // SAFETY: the context is valid; packet pointers are not held across the call.
        unsafe { bpf_skb_pull_data(ctx.skb.skb, PLAIN as u32) };
    }
    let data = ctx.data();
    if data + PLAIN > ctx.data_end() { Err(Mangled) } else { Ok(data) }
}

/// What to add to a sum over `from` for one over `to`.
#[inline(always)]
fn difference(from: [u32; 2], to: [u32; 2]) -> u32 {
    let sum = !from[0] as u64 + !from[1] as u64 + to[0] as u64 + to[1] as u64;
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[inline(always)]
pub fn set_ethernet(ctx: &TcContext, dst: [u8; 6], src: [u8; 6]) -> Result<()> {
    let mut both = [0u8; 12];
    both[..6].copy_from_slice(&dst);
    both[6..].copy_from_slice(&src);
    ctx.store(0, &both, 0).map_err(|_| Mangled)
}
