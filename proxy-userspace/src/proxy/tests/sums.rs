//! Checksums of what programs changed, summed up anew.

use super::*;
use crate::cost::{frame, tuple_of};

const IP: usize = 14;
const NODE_PORT: u16 = 30_080;

/// A sum in ones' complement over bytes of an even number.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Where the sum of the transport lies, and the transport with what else it is made over.
fn summed<A: Twin>(packet: &[u8]) -> (usize, Vec<u8>) {
    let (addresses, header, protocol) = match A::FAMILY {
        Family::V4 => (IP + 12, 20, packet[IP + 9]),
        Family::V6 => (IP + 8, 40, packet[IP + 6]),
    };
    let transport = &packet[IP + header..][..20];
    let at = IP + header + if protocol == TCP { 16 } else { 6 };
    let both = &packet[addresses..][..2 * size_of::<A>()];
    (at, [both, &[0, protocol, 0, 20], transport].concat())
}

/// CRC-32C, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    let step = |sum: u32| (sum >> 1) ^ if sum & 1 != 0 { 0x82f6_3b78 } else { 0 };
    !bytes.iter().fold(u32::MAX, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum)))
}

/// The sum of an SCTP packet, which lies behind ports and tag.
fn crc_of(transport: &[u8]) -> [u8; 4] {
    let mut bytes = transport.to_vec();
    bytes[8..12].fill(0);
    crc(&bytes).to_le_bytes()
}

/// With the sums that its sender gives it.
fn sent<A: Twin>(flags: u8, tuple: &Tuple<A>) -> Vec<u8> {
    let mut packet = frame(flags, tuple);
    if tuple.protocol == SCTP {
        return sent_sctp::<A>(packet, flags);
    }
    if tuple.protocol == UDP {
        let header = if A::FAMILY == Family::V4 { 20 } else { 40 };
        packet[IP + header + 4..][..2].copy_from_slice(&20u16.to_be_bytes());
    }
    if A::FAMILY == Family::V4 {
        let check = !sum(&packet[IP..IP + 20]);
        packet[IP + 10..IP + 12].copy_from_slice(&check.to_be_bytes());
    }
    let (at, bytes) = summed::<A>(&packet);
    let check = if sum(&bytes) == 0xffff { 0xffff } else { !sum(&bytes) };
    packet[at..at + 2].copy_from_slice(&check.to_be_bytes());
    packet
}

/// An opening or what accepts it, longer by some bytes.
fn sent_sctp<A: Twin>(mut packet: Vec<u8>, flags: u8) -> Vec<u8> {
    let header = if A::FAMILY == Family::V4 { 20 } else { 40 };
    let transport = IP + header;
    packet.truncate(transport + 4);
    let length = 16 + usize::from(packet[transport + 1]) * 5;
    let chunk = if flags == 2 { 1 } else { 2 };
    packet.extend([7; 4]);
    packet.extend([0; 4]);
    packet.extend([chunk, 0, 0, 4]);
    packet.extend((0..length - 16).map(|byte| byte as u8));
    let check = crc_of(&packet[transport..]);
    packet[transport + 8..transport + 12].copy_from_slice(&check);
    let (at, long) = if A::FAMILY == Family::V4 { (IP + 2, header + length) } else { (IP + 4, length) };
    packet[at..at + 2].copy_from_slice(&(long as u16).to_be_bytes());
    if A::FAMILY == Family::V4 {
        packet[IP + 10..IP + 12].fill(0);
        let check = !sum(&packet[IP..IP + 20]);
        packet[IP + 10..IP + 12].copy_from_slice(&check.to_be_bytes());
    }
    packet
}

fn check<A: Twin>(packet: &[u8]) {
    if A::FAMILY == Family::V4 {
        assert_eq!(sum(&packet[IP..IP + 20]), 0xffff, "{packet:?}");
    }
    let (at, header) = if A::FAMILY == Family::V4 { (9, 20) } else { (6, 40) };
    if packet[IP + at] == SCTP {
        let transport = &packet[IP + header..];
        assert_eq!(transport[8..12], crc_of(transport), "{packet:?}");
        return;
    }
    assert_eq!(sum(&summed::<A>(packet).1), 0xffff, "{packet:?}");
}

fn sums_stay_right<A: Twin>() {
    let kernel = Kernel::new();
    let table = &mut kernel.settle(&Contents::new());
    let endpoint = addr::<A>(CLIENT);
    let addr_of_ports = if A::FAMILY == Family::V4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let frontend = |protocol| Frontend { addr: addr_of_ports, port: NODE_PORT, protocol, scope: Scope::External };
    let backends = vec![Target { ip: endpoint.address(), port: 8080 }];
    let set = EndpointSet { backends, ..EndpointSet::default() };
    let entry = |protocol| Entry { port: 80, protocol, frontends: vec![frontend(protocol)], set: set.clone() };
    kernel.run(&table.change("default/web", &[entry(TCP), entry(UDP), entry(SCTP)]).ops);
    let pass = |hook: PacketHook, packet: &[u8]| {
        let program = kernel.programs.get(hook.program()).unwrap();
        sys::test_run(program.as_fd(), packet, 1).unwrap().1
    };
    for number in 0..1500u32 {
        let [_, _, c, d] = number.wrapping_mul(2_654_435_761).to_be_bytes();
        let client = addr::<A>([203, 0, c, d]);
        for protocol in [TCP, UDP, SCTP] {
            let asked = Tuple { protocol, ..tuple_of(client, 1024 + number as u16 * 17, addr(NODE), NODE_PORT) };
            let shown = pass(PacketHook::FromUplink, &sent(2, &asked));
            check::<A>(&shown);
            // The endpoint's answer goes back the same way.
            let header = if A::FAMILY == Family::V4 { 20 } else { 40 };
            let port = u16::from_be_bytes([shown[IP + header], shown[IP + header + 1]]);
            let answer = Tuple { protocol, ..tuple_of(endpoint, 8080, addr(NODE), port) };
            let heard = pass(PacketHook::FromPod, &sent(18, &answer));
            check::<A>(&heard);
            let (from, to) = (&heard[IP + header..][..2], &heard[IP + header + 2..][..2]);
            assert_eq!((from, to), (&NODE_PORT.to_be_bytes()[..], &(1024 + number as u16 * 17).to_be_bytes()[..]));
        }
    }
}

#[test]
fn the_sum_is_the_one_of_the_standard() {
    assert_eq!(crc(b"123456789"), 0xe306_9283);
}

#[test]
fn translated_packets_have_right_sums() {
    sums_stay_right::<Ip4>();
    sums_stay_right::<Ip>();
}
