//! Reads what the decisions need out of a packet, once, before anything is changed.

use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::maps::FRAGMENTS;

/// The network header follows the Ethernet header.
pub const IP: usize = 14;
const ETHERTYPE_IPV4: u32 = 0x0800u16.to_be() as u32;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

pub const ECHO_REPLY: u8 = 0;
pub const UNREACHABLE: u8 = 3;
pub const ECHO_REQUEST: u8 = 8;
pub const TIME_EXCEEDED: u8 = 11;
pub const PARAMETER_PROBLEM: u8 = 12;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4Header {
    pub version_ihl: u8,
    pub tos: u8,
    pub length: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub check: u16,
    pub src: u32,
    pub dst: u32,
}

/// What the transport header says, as far as it matters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layer4 {
    /// TCP with its flags.
    Tcp(u8),
    Udp,
    EchoRequest,
    EchoReply,
    /// An ICMP message about another packet.
    IcmpError,
    /// A later fragment whose ports are known from the first.
    Continued,
    /// A later fragment whose first was not seen.
    Unknown,
    /// Another protocol: addresses only.
    Other,
}

#[derive(Clone, Copy)]
pub struct Packet {
    pub tuple: Tuple,
    pub layer4: Layer4,
    /// Where the transport header begins.
    pub offset: usize,
    pub ttl: u8,
    /// Length of the IP packet.
    pub length: u16,
}

impl Packet {
    /// `None`: not IPv4, or cut short; none of ours.
    #[inline(always)]
    pub fn parse(ctx: &TcContext) -> Option<Self> {
        if ctx.skb.protocol() != ETHERTYPE_IPV4 {
            return None;
        }
        let header: Ipv4Header = ctx.load(IP).ok()?;
        let offset = IP + (header.version_ihl & 15) as usize * 4;
        let mut tuple = Tuple {
            src: Ip4(header.src),
            dst: Ip4(header.dst),
            sport: Port(0),
            dport: Port(0),
            protocol: header.protocol,
            pad: [0; 3],
        };
        let fragment = u16::from_be(header.fragment);
        let layer4 = if fragment & FRAGMENT_OFFSET != 0 {
            continued(&mut tuple, header.id)
        } else {
            let layer4 = parse_layer4(ctx, offset, &mut tuple)?;
            if fragment & MORE_FRAGMENTS != 0 {
                note_first_fragment(&tuple, header.id);
            }
            layer4
        };
        Some(Self { tuple, layer4, offset, ttl: header.ttl, length: u16::from_be(header.length) })
    }

    pub fn is_opening(&self) -> bool {
        !matches!(self.layer4, Layer4::Tcp(flags) if flags & (SYN | ACK) != SYN)
    }

    pub fn is_closing(&self) -> bool {
        matches!(self.layer4, Layer4::Tcp(flags) if flags & (FIN | RST) != 0)
    }
}

#[inline(always)]
fn parse_layer4(ctx: &TcContext, offset: usize, tuple: &mut Tuple) -> Option<Layer4> {
    match tuple.protocol {
        TCP => {
            let [sport, dport]: [u16; 2] = ctx.load(offset).ok()?;
            (tuple.sport, tuple.dport) = (Port(sport), Port(dport));
            Some(Layer4::Tcp(ctx.load(offset + 13).ok()?))
        }
        UDP => {
            let [sport, dport]: [u16; 2] = ctx.load(offset).ok()?;
            (tuple.sport, tuple.dport) = (Port(sport), Port(dport));
            Some(Layer4::Udp)
        }
        ICMP => {
            let header: [u16; 4] = ctx.load(offset).ok()?;
            match header[0].to_ne_bytes()[0] {
                ECHO_REQUEST => {
                    tuple.sport = Port(header[2]);
                    Some(Layer4::EchoRequest)
                }
                ECHO_REPLY => {
                    tuple.dport = Port(header[2]);
                    Some(Layer4::EchoReply)
                }
                UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM => Some(Layer4::IcmpError),
                _ => Some(Layer4::Other),
            }
        }
        _ => Some(Layer4::Other),
    }
}

#[inline(always)]
fn fragment_key(tuple: &Tuple, id: u16) -> FragmentKey {
    FragmentKey { src: tuple.src, dst: tuple.dst, id, protocol: tuple.protocol, pad: 0 }
}

#[inline(always)]
fn note_first_fragment(tuple: &Tuple, id: u16) {
    let ports = tuple.sport.0 as u32 | (tuple.dport.0 as u32) << 16;
    // A failed insert shows as later fragments dropped and counted.
    let _ = FRAGMENTS.insert(fragment_key(tuple, id), ports, 0);
}

#[inline(always)]
fn continued(tuple: &mut Tuple, id: u16) -> Layer4 {
    let Some(ports) = FRAGMENTS.get_ptr(fragment_key(tuple, id)) else { return Layer4::Unknown };
    // SAFETY: a map element, read whole.
    let ports = unsafe { core::ptr::read_volatile(ports) };
    (tuple.sport, tuple.dport) = (Port(ports as u16), Port((ports >> 16) as u16));
    Layer4::Continued
}
