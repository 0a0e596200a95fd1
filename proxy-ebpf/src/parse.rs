//! Reads what the decisions need out of a packet, once, before anything is changed.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use proxy_common::*;

use crate::family::Net;
use crate::maps::{SERVES_V4, SERVES_V6};
use crate::packet::{Layer4, Packet, no_tuple};
use crate::wire::{Part, TCP_FLAGS, Wire};

/// What the sender says the packet is, if it is of a family of this node.
#[inline(always)]
pub fn family(ctx: &TcContext) -> Option<Family> {
    match ctx.skb.protocol() {
        Ip4::ETHERTYPE if SERVES_V4.load() != 0 => Some(Family::V4),
        Ip::ETHERTYPE if SERVES_V6.load() != 0 => Some(Family::V6),
        _ => None,
    }
}

/// The kernel has taken the tag off before any program sees the packet.
#[inline(always)]
fn has_vlan(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.skb.skb).vlan_present != 0 }
}

impl<A: Net> Packet<A> {
    /// `None`: not of the family, cut short, or of another network on the same wire; none of ours.
    #[inline(always)]
    pub fn read<'a>(ctx: &TcContext, room: &'a mut MaybeUninit<Self>) -> Option<&'a mut Self> {
        if has_vlan(ctx) {
            return None;
        }
        // SAFETY: written whole by `read_plain`, or below; all its fields are integers.
        let packet = unsafe { &mut *room.as_mut_ptr() };
        if A::read_plain(ctx, packet) {
            return Some(packet);
        }
        *packet = Self {
            tuple: no_tuple(),
            to: no_tuple(),
            offset: 0,
            length: 0,
            layer4: Layer4::Other,
            flags: 0,
            ttl: 0,
            pad: 0,
            rest: 0,
            more: 0,
        };
        if A::read_any(ctx.skb.skb, packet) != 0 { Some(packet) } else { None }
    }

    /// Everything but plain TCP and UDP.
    #[inline(always)]
    fn read_rest(&mut self, ctx: &TcContext) -> bool {
        let Some(part) = A::read_header(ctx, self) else { return false };
        if let Part::Later(id) = part {
            self.layer4 = continued(&mut self.tuple, id);
            return true;
        }
        if !parse_layer4(ctx, self) {
            return false;
        }
        if let Part::First(id) = part {
            note_first_fragment(&self.tuple, id);
        }
        true
    }
}

/// A step of its own; 0: none of ours.
#[inline(always)]
pub fn read_any<A: Net>(skb: *mut __sk_buff, packet: *mut Packet<A>) -> u32 {
    // SAFETY: callers give a packet of their own.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return 0 };
    let read = packet.read_rest(&TcContext::new(skb));
    packet.to = packet.tuple;
    read as u32
}

/// False: cut short.
#[inline(always)]
fn parse_layer4<A: Net>(ctx: &TcContext, packet: &mut Packet<A>) -> bool {
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
        protocol if protocol == A::ICMP => {
            let Ok(header) = ctx.load::<[u16; 4]>(offset) else { return false };
            let kind = header[0].to_ne_bytes()[0];
            if kind == A::ECHO_REQUEST {
                tuple.sport = Port(header[2]);
                Layer4::EchoRequest
            } else if kind == A::ECHO_REPLY {
                tuple.dport = Port(header[2]);
                Layer4::EchoReply
            } else if A::is_error(kind) {
                Layer4::IcmpError
            } else {
                Layer4::Other
            }
        }
        _ => Layer4::Other,
    };
    true
}

#[inline(always)]
fn note_first_fragment<A: Net>(tuple: &Tuple<A>, id: u32) {
    // A failed insert shows as later fragments dropped and counted.
    let _ = A::fragments().insert(A::fragment_key(tuple, id), tuple.ports(), 0);
}

#[inline(always)]
fn continued<A: Net>(tuple: &mut Tuple<A>, id: u32) -> Layer4 {
    let Some(ports) = A::fragments().get_ptr(A::fragment_key(tuple, id)) else { return Layer4::Unknown };
    // SAFETY: a map element, read whole.
    let ports = unsafe { core::ptr::read_volatile(ports) };
    (tuple.sport, tuple.dport) = (Port(ports as u16), Port((ports >> 16) as u16));
    Layer4::Continued
}
