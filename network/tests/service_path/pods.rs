//! Pods and the host reach each other, and whoever leaves is answered for.

use std::io::ErrorKind;

use proxy_userspace::SocketHooks;

use crate::family::{Family, Setting};
use crate::world::*;

#[test]
fn pods_reach_pods_and_the_host_reaches_pods() {
    for world in in_each_family(SocketHooks::Absent) {
        tcp_server(&world.pods[1], "b", 8080);
        tcp_server(&world.node, "host", 8081);
        let (answer, _) = ask_tcp(&world.pods[0], "10.244.0.6:8080").unwrap();
        assert!(answer.starts_with("b 10.244.0.5:"), "{answer}");
        let (answer, _) = ask_tcp(&world.node, "10.244.0.6:8080").unwrap();
        assert!(answer.starts_with("b 192.168.77.1:"), "{answer}");
        let (answer, _) = ask_tcp(&world.pods[0], "192.168.77.1:8081").unwrap();
        assert!(answer.starts_with("host 10.244.0.5:"), "{answer}");
        assert!(ping(&world.pods[0], "10.244.0.6"));
        assert!(ping(&world.node, "10.244.0.6"));
        // Any address of the host, not only the node's.
        world.node.command("ip addr add 172.31.0.1/32 dev lo");
        assert!(ask_tcp(&world.pods[0], "172.31.0.1:8081").unwrap().0.starts_with("host 10.244.0.5:"));
    }
}

#[test]
fn where_no_route_leads_is_told_at_once() {
    for world in in_each_family(SocketHooks::Attached) {
        world.node.command("ip route add unreachable 198.51.100.0/24");
        assert_eq!(ask_tcp(&world.pods[0], "198.51.100.1:80").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

/// Who knows a route to the pods speaks with them under their own addresses.
#[test]
fn pods_answer_outside_clients_with_their_own_address() {
    for world in in_each_family(SocketHooks::Attached) {
        udp_server(&world.pods[0], "a", 8080);
        tcp_server(&world.pods[0], "a", 8080);
        world.client.command("ip route add 10.244.0.0/24 via 192.168.77.1");
        assert!(ping(&world.client, PODS[0]));
        let (_, from) = ask_udp(&world.client, "10.244.0.5:8080").unwrap();
        assert_eq!(from.to_string(), "10.244.0.5:8080");
        assert!(ask_tcp(&world.client, "10.244.0.5:8080").unwrap().0.starts_with("a 192.168.77.2:"));
        assert_eq!(ask_tcp(&world.client, "10.244.0.5:8081").unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(refused(&world.client, "10.244.0.5:9").kind(), ErrorKind::ConnectionRefused);
        // What a pod begins itself still goes behind the node's address.
        udp_server(&world.client, "far", 9000);
        let (answer, _) = ask_udp(&world.pods[0], "192.168.77.2:9000").unwrap();
        assert!(answer.starts_with("far 192.168.77.1:"), "{answer}");
    }
}

#[test]
fn an_absent_pod_is_answered_for() {
    for world in in_each_family(SocketHooks::Absent) {
        tcp_server(&world.pods[1], "b", 8080);
        world.client.command("ip route add 10.244.0.0/24 via 192.168.77.1");
        let mut open = [&world.pods[0], &world.client].map(|client| connect(client, "10.244.0.6:8080").unwrap());
        open.iter_mut().for_each(|stream| drop(ask_on(stream).unwrap()));
        let hears = connected_udp(&world.pods[0], "10.244.0.6:9");
        world.detach("pod-1");
        // A connected socket hears of it without asking for errors.
        hears.send(b"who").unwrap();
        assert_eq!(hears.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        for stream in &mut open {
            assert_eq!(ask_on(stream).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        for client in [&world.pods[0], &world.client] {
            assert_eq!(ask_tcp(client, "10.244.0.6:8080").unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        assert_eq!(world.proxy.pods().unwrap().len(), 1);
        // Detaching twice is once, and the uid may come back with a new namespace.
        world.detach("pod-1");
        let again = world.namespace();
        world.attach("pod-1", PODS[1], &again.path());
        tcp_server(&again, "b2", 8080);
        assert!(ask_tcp(&world.pods[0], "10.244.0.6:8080").unwrap().0.starts_with("b2"));
    }
}

/// Its neighbours are known for good. Who makes his pod forget them all the same is told again.
#[test]
fn a_pod_that_forgot_its_gateway_is_told_it_again() {
    let world = World::new(Setting { family: Family::V6, hooks: SocketHooks::Attached });
    tcp_server(&world.pods[1], "b", 8080);
    let gateway = world.family.ip("169.254.1.1");
    let known = world.pods[0].command("ip -6 neigh show");
    assert!(known.contains(&gateway.to_string()) && known.contains("PERMANENT"), "{known}");
    world.pods[0].command(&format!("ip -6 neigh del {gateway} dev eth0"));
    assert!(ask_tcp(&world.pods[0], "10.244.0.6:8080").is_ok());
}
