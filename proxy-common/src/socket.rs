//! What sockets remember. It lives and dies with the socket, where no upgrade reaches it: every value begins with the number of its
//! layout and keeps eight bytes for later, which are zero until a later layout says otherwise.

use crate::{Ip, Port};

/// Destinations that one unconnected UDP socket talks to through services at a time; further ones go the packet path.
pub const PEERS_PER_SOCKET: usize = 8;

/// An address and a port.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Address {
    pub ip: Ip,
    pub port: Port,
    pub pad: u16,
    pub rest: u32,
}

impl Address {
    pub const fn new(ip: Ip, port: Port) -> Self {
        Self { ip, port, pad: 0, rest: 0 }
    }
}

/// What every value begins with, in this layout and all to come.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Zero: nothing is written yet.
    pub version: u8,
    pub pad: u8,
    pub rest: u16,
    /// Of `Senders`: somebody is at work.
    pub lock: u32,
    pub reserved: u64,
}

impl Head {
    pub const NOW: Self = Self { version: 1, pad: 0, rest: 0, lock: 0, reserved: 0 };
}

/// Where a connected socket was meant to go, and where it goes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Connected {
    pub head: Head,
    /// The address the program gave.
    pub service: Address,
    pub backend: Address,
    /// `Member` bits of the backend.
    pub member: u64,
}

/// The same for a destination of an unconnected UDP socket.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sender {
    pub service: Address,
    pub backend: Address,
    pub member: u64,
    /// Monotonic nanoseconds of the last use; zero is free.
    pub used: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Senders {
    pub head: Head,
    pub list: [Sender; PEERS_PER_SOCKET],
}

/// What sockets of layout 1 hold in place of `Connected`: IPv4 address and port in one word each.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin {
    pub service: u64,
    pub backend: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Peer {
    pub service: u64,
    pub backend: u64,
    pub used: u64,
}

/// What sockets of layout 1 hold in place of `Senders`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Peers {
    pub list: [Peer; PEERS_PER_SOCKET],
}

const _: () = {
    assert!(size_of::<Address>() == 24);
    assert!(size_of::<Head>() == 16);
    assert!(size_of::<Connected>() == 72);
    assert!(size_of::<Sender>() == 64);
    assert!(size_of::<Senders>() == 16 + 64 * PEERS_PER_SOCKET);
    assert!(size_of::<Origin>() == 16);
    assert!(size_of::<Peers>() == 24 * PEERS_PER_SOCKET);
};

#[cfg(test)]
mod tests {
    use super::*;

    /// As a version to come may have it: something in the reserved bytes, which are zero in what this version wrote.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct NextConnected {
        version: u8,
        family: u8,
        pad: [u8; 2],
        lock: u32,
        policy: u64,
        service: [u8; 24],
        backend: [u8; 24],
        member: u64,
    }

    #[test]
    #[expect(unsafe_code, reason = "bytes as the kernel keeps them")]
    fn the_next_version_reads_what_this_one_left_in_sockets() {
        let octets: [u8; 16] = core::array::from_fn(|byte| byte as u8 + 1);
        let service = Address::new(Ip::from_octets(octets), Port::new(53));
        let left = Connected { head: Head::NOW, service, member: 7, ..Default::default() };
        // SAFETY: both are plain bytes of one size, as the kernel keeps them.
        let read = unsafe { core::mem::transmute::<Connected, NextConnected>(left) };
        assert_eq!((read.version, read.family, read.pad, read.lock, read.policy), (1, 0, [0; 2], 0, 0));
        assert_eq!((&read.service[..16], read.member), (&octets[..], 7));
        assert_eq!(read.service[16..], [0, 53, 0, 0, 0, 0, 0, 0]);
        assert_eq!(read.backend, [0; 24]);
        // Of the list of senders only the head is there to extend it by.
        assert_eq!(core::mem::offset_of!(Senders, head), 0);
        assert_eq!(core::mem::offset_of!(Head, version), 0);
        assert_eq!(core::mem::offset_of!(Head, reserved), 8);
    }
}
