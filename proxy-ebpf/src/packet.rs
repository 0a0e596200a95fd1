//! What the decisions need of a packet, and what shall become of it.

use proxy_common::*;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// What the transport header says, as far as it matters.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layer4 {
    Tcp,
    Udp,
    Sctp,
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

/// A packet, and what shall become of it. Functions of their own get it by its address, so every byte of it is a field's.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet<A> {
    pub tuple: Tuple<A>,
    /// The addresses and ports it shall have.
    pub to: Tuple<A>,
    /// Where the transport header begins.
    pub offset: u32,
    /// Length of the IP packet.
    pub length: u16,
    pub layer4: Layer4,
    /// Of TCP, or what means the same of SCTP; else none.
    pub flags: u8,
    pub ttl: u8,
    pub pad: u8,
    pub rest: u16,
    pub more: u32,
}

const _: () = assert!(size_of::<Packet<Ip4>>() == 48 && size_of::<Packet<Ip>>() == 96);

/// A tuple's words. What was written in words is read in words or parts of them: a processor that has to put a word together from
/// parts just written waits for them, at each packet.
#[inline(always)]
pub fn words<A: Addr>(tuple: &Tuple<A>) -> A::Words {
    let first = core::ptr::from_ref(tuple).cast::<u64>();
    let mut words = A::Words::default();
    for (index, word) in words.as_mut().iter_mut().enumerate() {
        // SAFETY: a tuple is so many aligned words.
        *word = unsafe { core::ptr::read_volatile(first.add(index)) };
    }
    words
}

#[inline(always)]
pub fn set_words<A: Addr>(tuple: &mut Tuple<A>, words: A::Words) {
    let first = core::ptr::from_mut(tuple).cast::<u64>();
    for (index, word) in words.as_ref().iter().enumerate() {
        // SAFETY: as above, and every word is one of a tuple.
        unsafe { core::ptr::write_volatile(first.add(index), *word) };
    }
}

/// Whether two tuples are one: no call, as comparing arrays would be.
#[inline(always)]
pub fn are_same<A: Addr>(one: A::Words, other: A::Words) -> bool {
    let both = one.as_ref().iter().zip(other.as_ref());
    both.fold(0, |difference, (one, other)| difference | one ^ other) == 0
}

/// A tuple of no packet, to be written over.
#[inline(always)]
pub fn no_tuple<A: Addr>() -> Tuple<A> {
    A::from_words(A::Words::default())
}

impl<A> Packet<A> {
    /// All but addresses and ports.
    #[inline(always)]
    pub fn set_plain(&mut self, offset: usize, length: u16, layer4: Layer4, flags: u8, ttl: u8) {
        (self.offset, self.length) = (offset as u32, length);
        (self.layer4, self.flags, self.ttl) = (layer4, flags, ttl);
        (self.pad, self.rest, self.more) = (0, 0, 0);
    }

    pub fn transport(&self) -> usize {
        self.offset as usize
    }

    /// Whether its flows are connections, which packets open and close.
    pub fn is_of_connection(&self) -> bool {
        matches!(self.layer4, Layer4::Tcp | Layer4::Sctp)
    }

    pub fn is_opening(&self) -> bool {
        !self.is_of_connection() || self.flags & (SYN | ACK) == SYN
    }

    /// The second packet of a connection.
    pub fn accepts(&self) -> bool {
        self.is_of_connection() && self.flags & (SYN | ACK) == SYN | ACK
    }

    pub fn is_closing(&self) -> bool {
        self.flags & (FIN | RST) != 0
    }
}

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
