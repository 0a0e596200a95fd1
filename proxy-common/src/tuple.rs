//! What packets show of their two ends, and what is remembered of that.

use crate::{Ip, Ip4, Port};

/// A packet's ends as a hook sees them on the wire. ICMP echoes have their identifier as the asking side's port. Whole words, so that
/// copying and comparing take few instructions.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Tuple<A = Ip4> {
    pub src: A,
    pub dst: A,
    pub sport: Port,
    pub dport: Port,
    pub protocol: u8,
    pub pad: u8,
    pub rest: u16,
}

impl<A: Copy> Tuple<A> {
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, ..*self }
    }

    #[inline(always)]
    pub fn ports(&self) -> u32 {
        self.sport.0 as u32 | (self.dport.0 as u32) << 16
    }
}

/// The address under which an endpoint is exposed, and when that was last made sure of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exposed<A = Ip4> {
    pub addr: A,
    pub port: Port,
    /// In units of `EPOCH_NS`, and wrapping.
    pub epoch: u16,
}

impl<A> Exposed<A> {
    const EPOCH_SHIFT: u32 = 36;
    /// About 69 seconds.
    pub const EPOCH_NS: u64 = 1 << Self::EPOCH_SHIFT;

    pub const fn epoch_of(now: u64) -> u16 {
        (now >> Self::EPOCH_SHIFT) as u16
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentKey {
    pub src: Ip4,
    pub dst: Ip4,
    pub id: u16,
    pub protocol: u8,
    pub pad: u8,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentKey6 {
    pub src: Ip,
    pub dst: Ip,
    pub id: u32,
    pub protocol: u8,
    pub pad: [u8; 3],
}

const _: () = {
    assert!(size_of::<Tuple>() == 16);
    assert!(size_of::<FragmentKey>() == 12);
    assert!(size_of::<Tuple<Ip>>() == 40);
    assert!(size_of::<FragmentKey6>() == 40);
};
