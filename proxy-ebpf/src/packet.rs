//! Reads what the decisions need out of a packet, once, before anything is changed.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::maps::FRAGMENTS;

/// The network header follows the Ethernet header.
pub const IP: usize = 14;
/// The addresses in it: source and destination.
pub const IP_SRC: usize = IP + 12;
/// Where the transport header begins without IP options.
pub const PLAIN: usize = IP + 20;
const PLAIN_VERSION_IHL: u8 = 0x45;
const LONGEST_VERSION_IHL: u8 = 0x4f;
/// The length of what every transport header begins with: both ports, or ICMP's fixed part.
const PORTS: usize = 8;
const TCP_FLAGS: usize = 13;
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
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layer4 {
    Tcp,
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

/// What the sender says the packet is.
#[inline(always)]
pub fn claims_ip4(ctx: &TcContext) -> bool {
    ctx.skb.protocol() == ETHERTYPE_IPV4
}

/// The kernel has taken the tag off before any program sees the packet.
#[inline(always)]
fn has_vlan(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.skb.skb).vlan_present != 0 }
}

/// A packet, and what shall become of it. Functions of their own get it by its address, so every byte of it is a field's.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet {
    pub tuple: Tuple,
    /// The addresses and ports it shall have.
    pub to: Tuple,
    /// Where the transport header begins.
    pub offset: u32,
    /// Length of the IP packet.
    pub length: u16,
    pub layer4: Layer4,
    /// Of TCP; else none.
    pub flags: u8,
    pub ttl: u8,
    pub pad: u8,
    pub rest: u16,
    pub more: u32,
}

const _: () = assert!(size_of::<Packet>() == 48);

const UNREAD: Packet = Packet {
    tuple: NO_TUPLE,
    to: NO_TUPLE,
    offset: 0,
    length: 0,
    layer4: Layer4::Other,
    flags: 0,
    ttl: 0,
    pad: 0,
    rest: 0,
    more: 0,
};

/// A tuple's words. What was written in words is read in words or parts of them: a processor that has to put a word together from
/// parts just written waits for them, at each packet.
#[inline(always)]
pub fn words(tuple: &Tuple) -> [u64; 2] {
    let first = core::ptr::from_ref(tuple).cast::<u64>();
    // SAFETY: a tuple is two aligned words.
    unsafe { [core::ptr::read_volatile(first), core::ptr::read_volatile(first.add(1))] }
}

#[inline(always)]
pub fn set_words(tuple: &mut Tuple, words: [u64; 2]) {
    let first = core::ptr::from_mut(tuple).cast::<u64>();
    // SAFETY: as above, and every word is one of a tuple.
    unsafe {
        core::ptr::write_volatile(first, words[0]);
        core::ptr::write_volatile(first.add(1), words[1]);
    }
}

impl Packet {
    /// `None`: not IPv4, cut short, or of another network on the same wire; none of ours.
    #[inline(always)]
    pub fn read<'a>(ctx: &TcContext, room: &'a mut MaybeUninit<Self>) -> Option<&'a mut Self> {
        if !claims_ip4(ctx) || has_vlan(ctx) {
            return None;
        }
        // SAFETY: written whole by `read_plain`, or below; all its fields are integers.
        let packet = unsafe { &mut *room.as_mut_ptr() };
        if packet.read_plain(ctx) {
            return Some(packet);
        }
        *packet = UNREAD;
        if amphi_read_any(ctx.skb.skb, packet) != 0 { Some(packet) } else { None }
    }

    /// TCP and UDP without IP options and fragmentation, whose headers lie in one piece: read in place.
    #[inline(always)]
    fn read_plain(&mut self, ctx: &TcContext) -> bool {
        let (data, end) = (ctx.data(), ctx.data_end());
        if data + PLAIN + PORTS > end {
            return false;
        }
        // SAFETY: within the packet, as just checked; the kernels this runs on read words at any address.
        let header = unsafe { core::ptr::read((data + IP) as *const Ipv4Header) };
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
        let addresses = unsafe { core::ptr::read_volatile((data + IP_SRC) as *const u64) };
        let words = [addresses, ports as u64 | (header.protocol as u64) << 32];
        set_words(&mut self.tuple, words);
        set_words(&mut self.to, words);
        (self.offset, self.length) = (PLAIN as u32, u16::from_be(header.length));
        (self.layer4, self.flags, self.ttl) = (layer4, flags, header.ttl);
        (self.pad, self.rest, self.more) = (0, 0, 0);
        true
    }

    /// Everything else, wherever the kernel keeps it.
    #[inline(always)]
    fn read_any(&mut self, ctx: &TcContext) -> bool {
        let Ok(header) = ctx.load::<Ipv4Header>(IP) else { return false };
        if header.version_ihl < PLAIN_VERSION_IHL || header.version_ihl > LONGEST_VERSION_IHL {
            return false;
        }
        self.offset = IP as u32 + (header.version_ihl & 15) as u32 * 4;
        self.tuple = addresses(&header);
        self.ttl = header.ttl;
        self.length = u16::from_be(header.length);
        let fragment = u16::from_be(header.fragment);
        if fragment & FRAGMENT_OFFSET != 0 {
            self.layer4 = continued(&mut self.tuple, header.id);
            return true;
        }
        if !parse_layer4(ctx, self) {
            return false;
        }
        if fragment & MORE_FRAGMENTS != 0 {
            note_first_fragment(&self.tuple, header.id);
        }
        true
    }

    pub fn transport(&self) -> usize {
        self.offset as usize
    }

    pub fn is_opening(&self) -> bool {
        self.layer4 != Layer4::Tcp || self.flags & (SYN | ACK) == SYN
    }

    /// The second packet of a connection.
    pub fn accepts(&self) -> bool {
        self.layer4 == Layer4::Tcp && self.flags & (SYN | ACK) == SYN | ACK
    }

    pub fn is_closing(&self) -> bool {
        self.flags & (FIN | RST) != 0
    }
}

/// `Packet::read_any`, verified by itself; 0: none of ours.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn amphi_read_any(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: callers give a packet of their own.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return 0 };
    let read = packet.read_any(&TcContext::new(skb));
    packet.to = packet.tuple;
    read as u32
}

#[inline(always)]
fn addresses(header: &Ipv4Header) -> Tuple {
    Tuple {
        src: Ip4(header.src),
        dst: Ip4(header.dst),
        sport: Port(0),
        dport: Port(0),
        protocol: header.protocol,
        pad: 0,
        rest: 0,
    }
}

/// False: cut short.
#[inline(always)]
fn parse_layer4(ctx: &TcContext, packet: &mut Packet) -> bool {
    let (offset, tuple) = (packet.transport(), &mut packet.tuple);
    packet.layer4 = match tuple.protocol {
        TCP | UDP => {
            let Ok([sport, dport]) = ctx.load::<[u16; 2]>(offset) else { return false };
            (tuple.sport, tuple.dport) = (Port(sport), Port(dport));
            if tuple.protocol == TCP {
                let Ok(flags) = ctx.load(offset + TCP_FLAGS) else { return false };
                packet.flags = flags;
                Layer4::Tcp
            } else {
                Layer4::Udp
            }
        }
        ICMP => {
            let Ok(header) = ctx.load::<[u16; 4]>(offset) else { return false };
            match header[0].to_ne_bytes()[0] {
                ECHO_REQUEST => {
                    tuple.sport = Port(header[2]);
                    Layer4::EchoRequest
                }
                ECHO_REPLY => {
                    tuple.dport = Port(header[2]);
                    Layer4::EchoReply
                }
                UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM => Layer4::IcmpError,
                _ => Layer4::Other,
            }
        }
        _ => Layer4::Other,
    };
    true
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
