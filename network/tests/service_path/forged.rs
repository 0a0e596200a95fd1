//! Packets that show an address which is not their sender's, or none that can be read.

use std::io::ErrorKind;
use std::time::Duration;

use proxy_userspace::SocketHooks;

use crate::world::*;

/// Puts bytes on a link as an IPv4 packet, whatever they are.
fn send_frame(device: &str, bytes: &[u8]) {
    let name = std::ffi::CString::new(device).unwrap();
    let protocol = (libc::ETH_P_IP as u16).to_be();
    // SAFETY: the descriptor is new and closed below; name, address and buffer are of the stated lengths.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM, protocol.into());
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = protocol;
        to.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        to.sll_halen = 6;
        let size = size_of::<libc::sockaddr_ll>() as u32;
        let sent = libc::sendto(fd, bytes.as_ptr().cast(), bytes.len(), 0, (&raw const to).cast(), size);
        assert_eq!(sent, bytes.len() as isize, "{}", std::io::Error::last_os_error());
        libc::close(fd);
    }
}

#[test]
fn spoofed_and_outside_packets_are_dropped_and_counted() {
    for world in in_each_family(SocketHooks::Attached) {
        tcp_server(&world.pods[1], "b", 8080);
        world.serve(&[web().to(&[(PODS[1], 8080)])]);
        let before = world.counters();
        world.client.command("ip route add 10.96.0.0/12 via 192.168.77.1");
        assert_eq!(ask_tcp(&world.client, "10.96.0.80:80").unwrap_err().kind(), ErrorKind::TimedOut);
        world.pods[0].command("ip addr add 10.9.9.9/32 dev eth0");
        let (socket, to) = (bound(&world.pods[0], "10.9.9.9:0"), world.family.at("10.244.0.6:9"));
        world.pods[0].run(move || socket.send_to(b"x", to).unwrap());
        let rose = world.rose(&before);
        assert!(rose.contains_key("drop_cluster_ip_from_outside") && rose["drop_spoofed"] == 1, "{rose:?}");
    }
}

#[test]
fn nobody_outside_sends_with_an_address_of_this_node() {
    for world in in_each_family(SocketHooks::Attached) {
        let receiver = bound(&world.pods[1], "0.0.0.0:9");
        world.client.command("ip route add 10.244.0.0/24 via 192.168.77.1");
        let send = |source: &str| {
            let (socket, to) = (bound(&world.client, &format!("{source}:0")), world.family.at("10.244.0.6:9"));
            world.client.run(move || socket.send_to(b"x", to).unwrap())
        };
        // Its own address is good, and lets the neighbour be found.
        send("192.168.77.2");
        assert_eq!(receiver.recv(&mut [0; 8]).unwrap(), 1);
        receiver.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        // A pod's, a service's, the node's own, and the gateway that pods take the node for.
        for forged in ["10.244.0.5", "10.96.0.80", "192.168.77.1", "169.254.1.1"] {
            world.client.command(&format!("ip addr add {forged}/32 dev lo"));
            let before = world.counters();
            send(forged);
            assert_eq!(receiver.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock, "{forged}");
            let rose = world.rose(&before);
            assert_eq!(rose.get("drop_spoofed"), Some(&1), "{forged}: {rose:?}");
        }
    }
}

#[test]
fn a_pods_packet_that_cannot_be_read_goes_nowhere() {
    let world = World::new(SocketHooks::Attached);
    let before = world.counters();
    // Ten bytes that call themselves IPv4: too few for a header.
    world.pods[0].run(|| send_frame("eth0", &[0x45, 0, 0, 10, 0, 0, 0, 0, 64, 17]));
    assert_eq!(world.rose(&before)["drop_spoofed"], 1);
}
