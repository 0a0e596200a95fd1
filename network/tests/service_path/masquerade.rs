//! What pods send out of the cluster shows the node's address, and what comes back finds them: answers, refusals, errors on the way.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use network::PortRange;
use proxy_userspace::SocketHooks;
use serde_json::json;

use crate::family::{Family, Setting};
use crate::world::*;

#[test]
fn pods_leave_the_cluster_behind_the_nodes_address() {
    for world in in_each_family(SocketHooks::Attached) {
        tcp_server(&world.client, "far", 9000);
        udp_server(&world.client, "far", 9000);
        let before = world.counters();
        let (answer, _) = ask_tcp(&world.pods[0], "203.0.113.5:9000").unwrap();
        assert!(answer.starts_with("far 192.168.77.1:"), "{answer}");
        let port: u16 = answer.rsplit(':').next().unwrap().parse().unwrap();
        assert!((50_000..=64_999).contains(&port), "{answer}");
        let (answer, _) = ask_udp(&world.pods[0], "192.168.77.2:9000").unwrap();
        assert!(answer.starts_with("far 192.168.77.1:"), "{answer}");
        assert!(ping(&world.pods[0], "203.0.113.5"));
        assert_eq!(world.rose(&before).get("masqueraded_flow"), Some(&3));
        // Refusals of the far end come back to the pod.
        assert_eq!(ask_tcp(&world.pods[0], "203.0.113.5:9001").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

/// A program of the node has a port of the range for translated sources, since before the agent or since later: no pod's connection
/// shows it towards the same far end.
#[test]
fn ports_that_programs_of_the_node_use_are_left_to_them() {
    use Family::{V4, V6};
    use SocketHooks::{Absent, Attached};
    for (family, hooks, before) in [
        (V4, Attached, false),
        (V6, Attached, false),
        (V4, Attached, true),
        (V6, Attached, true),
        (V4, Absent, false),
        (V6, Absent, false),
    ] {
        let mut world = World::new(Setting { family, hooks });
        udp_server(&world.client, "far", 9000);
        let range = 50_000..50_016;
        let ports = PortRange { first: range.start, last: range.end - 1 };
        let restarted = |world: &mut World| world.restart_with_ports(hooks, ports);
        if !before {
            restarted(&mut world);
        }
        let own: Vec<UdpSocket> = range
            .clone()
            .skip(1)
            .map(|port| {
                let socket = bound(&world.node, &format!("192.168.77.1:{port}"));
                let to = world.family.at("192.168.77.2:9000");
                world.node.run(move || socket.connect(to).map(|()| socket).unwrap())
            })
            .collect();
        if before {
            restarted(&mut world);
        }
        // With one port left, draws may miss it; none ever takes another.
        let answers: BTreeSet<String> = (0..20)
            .filter_map(|_| ask_udp(&world.pods[0], "192.168.77.2:9000").ok())
            .map(|(answer, _)| answer.split(' ').nth(1).unwrap().to_owned())
            .collect();
        assert!(answers.iter().all(|shown| shown == "192.168.77.1:50000"), "{family:?} {hooks:?} {before} {answers:?}");
        drop(own);
    }
}

#[test]
fn icmp_errors_find_their_way_back() {
    for world in in_each_family(SocketHooks::Absent) {
        let before = world.counters();
        assert_eq!(refused(&world.pods[0], "203.0.113.5:9").kind(), ErrorKind::ConnectionRefused);
        assert_eq!(world.rose(&before).get("icmp_error_translated"), Some(&1));
        // From an endpoint of a service, quoted with the endpoint's address.
        world.serve(&[Service::new("dns", "10.96.0.10", "UDP", json!({})).to(&[(PODS[1], 9)])]);
        assert_eq!(refused(&world.pods[0], "10.96.0.10:80").kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn out_of_hops_is_told_with_the_address_that_was_asked() {
    for world in in_each_family(SocketHooks::Absent) {
        world.serve(&[Service::new("dns", "10.96.0.10", "UDP", json!({})).to(&[(PODS[1], 9)])]);
        // The error finds the socket by the addresses it quotes.
        let socket = connected_udp(&world.pods[0], "10.96.0.10:80");
        let (level, errors, hops) = match world.family {
            Family::V4 | Family::Both => (libc::IPPROTO_IP, libc::IP_RECVERR, libc::IP_TTL),
            Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, libc::IPV6_UNICAST_HOPS),
        };
        let told = world.pods[0].run(move || {
            for option in [errors, hops] {
                let (one, size) = (1i32, size_of::<i32>() as u32);
                // SAFETY: an open descriptor and an option of the stated size.
                let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const one).cast(), size) };
                assert_eq!(set, 0);
            }
            socket.send(b"who")?;
            socket.recv(&mut [0; 10])
        });
        assert_eq!(told.unwrap_err().raw_os_error(), Some(libc::EHOSTUNREACH));
    }
}

/// An answer without any connection is none of ours to send: a client outside must not learn of a pod's address by it.
#[test]
fn the_middle_of_an_unknown_connection_does_not_leave_the_node() {
    for world in in_each_family(SocketHooks::Attached) {
        tcp_server(&world.client, "far", 9000);
        let mut stream = connect(&world.pods[0], "203.0.113.5:9000").unwrap();
        ask_on(&mut stream).unwrap();
        world.proxy.forget_flows().unwrap();
        assert_eq!(ask_on(&mut stream).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

#[test]
fn big_uploads_leave_the_cluster() {
    for world in in_each_family(SocketHooks::Absent) {
        let at = world.family.at("203.0.113.5:9000");
        let listener = world.client.run(move || std::net::TcpListener::bind(at).unwrap());
        let sink = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all.len()
        });
        let mut stream = connect(&world.pods[0], "203.0.113.5:9000").unwrap();
        world.pods[0].run(move || {
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&vec![7; 5_000_000]).unwrap();
        });
        assert_eq!(sink.join().unwrap(), 5_000_000);
    }
}
