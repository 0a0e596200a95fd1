//! Packets that nobody who means well would send: programs read them without harm, and what a pod sends that cannot be read is dropped.

use super::*;
use crate::cost::{frame, tuple_of};

/// `TC_ACT_SHOT`.
const DROPPED: u32 = 2;
const IP: usize = 14;
const RUNS: u32 = 20_000;

/// Numbers in no order, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// A packet to a service with some bytes changed, in its headers above all, and its end cut off or not.
fn broken<A: Twin>(numbers: &mut Numbers) -> Vec<u8> {
    let to = tuple_of::<A>(addr(CLIENT), 4000, addr([10, 96, 0, 1]), 80);
    let mut packet = frame(2, &to);
    packet.resize(packet.len() + 64, 0);
    for _ in 0..1 + numbers.below(6) {
        let at = IP + numbers.below(packet.len() - IP);
        packet[at] = numbers.below(256) as u8;
    }
    if A::FAMILY == Family::V6 && numbers.below(2) == 0 {
        // What leads along headers more often than chance would have it.
        packet[IP + 6] = [0, 44, 60, 43, 51, 58, 59, 6, 17][numbers.below(9)];
        packet[IP + 40] = [0, 44, 60, 6, 17, 58][numbers.below(6)];
        packet[IP + 41] = [0, 1, 2, 255][numbers.below(4)];
    }
    if numbers.below(3) == 0 {
        packet.truncate(IP + 1 + numbers.below(packet.len() - IP - 1));
    }
    packet
}

fn survives<A: Twin>() {
    let kernel = Kernel::new();
    kernel.settle(&contents(&[(1, &[80], &[1])]));
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for _ in 0..RUNS {
        let packet = broken::<A>(&mut numbers);
        for hook in PacketHook::ALL {
            let program = kernel.programs.get(hook.program()).unwrap();
            let ran = sys::test_run(program.as_fd(), &packet, 1);
            // So short a packet the harness of some kernels does not take.
            if packet.len() < IP + 40 && ran.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL)) {
                continue;
            }
            let (verdict, after, _) = ran.unwrap();
            // Left to the stack, dropped, or sent on.
            assert!([u32::MAX, 0, DROPPED, 7].contains(&verdict), "{hook:?} {verdict} {packet:?}");
            assert!(after.len() >= 14, "{hook:?} {packet:?}");
        }
    }
}

#[test]
fn malformed_headers_do_no_harm() {
    survives::<Ip4>();
    survives::<Ip>();
}

/// What becomes of a pod's packet.
fn from_pod(kernel: &Kernel, packet: &[u8]) -> u32 {
    let program = kernel.programs.get(PacketHook::FromPod.program()).unwrap();
    sys::test_run(program.as_fd(), packet, 1).unwrap().0
}

/// A packet of IPv6 with these headers before TCP's.
fn extended(headers: &[u8], first: u8) -> Vec<u8> {
    let mut packet = frame(2, &tuple_of::<Ip>(addr(CLIENT), 4000, addr([10, 245, 0, 1]), 80));
    packet[IP + 6] = first;
    packet.splice(IP + 40..IP + 40, headers.iter().copied());
    packet
}

#[test]
fn headers_are_followed_as_far_as_anybody_needs() {
    const HOP_BY_HOP: u8 = 0;
    const DESTINATION: u8 = 60;
    const FRAGMENT: u8 = 44;
    let kernel = Kernel::new();
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let sent = |headers: &[u8], first| from_pod(&kernel, &extended(headers, first)) != DROPPED;
    assert!(sent(&options(TCP), HOP_BY_HOP));
    assert!(sent(&[options(DESTINATION), options(TCP)].concat(), HOP_BY_HOP));
    assert!(sent(&[TCP, 0, 0, 1, 0, 0, 0, 9], FRAGMENT), "the first of several");
    let many = |count: usize| [vec![options(DESTINATION); count - 1].concat(), options(TCP).to_vec()].concat();
    assert!(sent(&many(6), DESTINATION));
    assert!(!sent(&many(7), DESTINATION));
    // A header that ends where no packet does.
    assert!(!sent(&[TCP, 255, 1, 4, 0, 0, 0, 0], DESTINATION));
}

#[test]
fn a_pod_sends_nothing_that_is_of_its_link_or_shows_an_ipv4_address_in_disguise() {
    let kernel = Kernel::new();
    let address = |text: &str| Ip::from(text.parse::<std::net::Ipv6Addr>().unwrap());
    let own = addr::<Ip>(CLIENT);
    let drops = |src, dst| from_pod(&kernel, &frame(2, &tuple_of(src, 4000, dst, 80))) == DROPPED;
    let far = address("2001:db8::1");
    for src in ["fe80::1", "::", "::ffff:10.244.0.5", "fd77::10.244.0.6", "ff02::1"] {
        assert!(drops(address(src), far), "from {src}");
    }
    for dst in ["fe80::1", "ff02::1", "::ffff:10.96.0.1"] {
        assert!(drops(own, address(dst)), "to {dst}");
    }
}
