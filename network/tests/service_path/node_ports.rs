//! Node ports and load balancers' addresses, from outside, from inside and by loopback.

use std::io::ErrorKind;

use proxy_userspace::SocketHooks;
use serde_json::json;

use crate::world::*;

/// The proof that a client is an outside one: its answers came without any socket hook doing anything.
fn assert_packet_path(world: &World, before: &std::collections::BTreeMap<&'static str, u64>) {
    let rose = world.rose(before);
    assert!(rose.keys().all(|name| !name.starts_with("socket_")), "{rose:?}");
    assert!(rose.contains_key("service_flow"), "{rose:?}");
    let cookie = proxy_userspace::sys::netns_cookie(&world.client.file()).unwrap();
    assert!(!world.proxy.is_local_netns(cookie).unwrap());
}

#[test]
fn node_port_from_outside_hides_the_client_under_policy_cluster() {
    for &setting in WORLDS {
        let world = World::new(setting);
        tcp_server(&world.pods[0], "a", 8080);
        udp_server(&world.pods[0], "a", 8080);
        let udp = Service::new("udp", "10.96.0.82", "UDP", json!({"nodePort": 30081}));
        let tcp = Service::new("tcp", "10.96.0.81", "TCP", json!({"nodePort": 30080}));
        world.serve(&[tcp.to(&[(PODS[0], 8080)]), udp.to(&[(PODS[0], 8080)])]);
        let before = world.counters();
        let (answer, peer) = ask_tcp(&world.client, "192.168.77.1:30080").unwrap();
        assert!(answer.starts_with("a 192.168.77.1:"), "{answer}");
        assert_eq!(peer.to_string(), "192.168.77.1:30080");
        let (answer, from) = ask_udp(&world.client, "192.168.77.1:30081").unwrap();
        assert!(answer.starts_with("a 192.168.77.1:"), "{answer}");
        assert_eq!(from.to_string(), "192.168.77.1:30081");
        assert_packet_path(&world, &before);
    }
}

#[test]
fn node_port_keeps_the_client_under_policy_local() {
    for world in in_each_family(SocketHooks::Attached) {
        tcp_server(&world.pods[0], "a", 8080);
        let extra = json!({"nodePort": 30080, "externalTrafficPolicy": "Local"});
        world.serve(&[Service::new("np", "10.96.0.81", "TCP", extra).to(&[(PODS[0], 8080)])]);
        let before = world.counters();
        let (answer, _) = ask_tcp(&world.client, "192.168.77.1:30080").unwrap();
        assert!(answer.starts_with("a 192.168.77.2:"), "{answer}");
        assert_packet_path(&world, &before);
    }
}

#[test]
fn node_port_reaches_an_endpoint_of_the_host_itself() {
    for world in in_each_family(SocketHooks::Attached) {
        tcp_server(&world.node, "host", 8081);
        world.serve(&[Service::new("np", "10.96.0.81", "TCP", json!({"nodePort": 30080})).to(&[(NODE, 8081)])]);
        let (answer, peer) = ask_tcp(&world.client, "192.168.77.1:30080").unwrap();
        assert!(answer.starts_with("host 192.168.77.2:"), "{answer}");
        assert_eq!(peer.to_string(), "192.168.77.1:30080");
    }
}

#[test]
fn node_port_from_inside_and_by_loopback() {
    for world in in_each_family(SocketHooks::Attached) {
        tcp_server(&world.pods[0], "a", 8080);
        let extra = json!({"nodePort": 30080, "externalTrafficPolicy": "Local"});
        world.serve(&[Service::new("np", "10.96.0.81", "TCP", extra).to(&[(PODS[0], 8080)])]);
        assert!(ask_tcp(&world.pods[1], "192.168.77.1:30080").is_ok());
        assert!(ask_tcp(&world.node, "192.168.77.1:30080").is_ok());
        assert!(ask_tcp(&world.node, "127.0.0.1:30080").is_ok());
        // A pod's loopback is its own.
        assert_eq!(ask_tcp(&world.pods[1], "127.0.0.1:30080").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn node_ports_cannot_be_bound_on_the_host() {
    for world in in_each_family(SocketHooks::Attached) {
        world.serve(&[Service::new("np", "10.96.0.81", "TCP", json!({"nodePort": 30080})).to(&[(PODS[0], 8080)])]);
        for (port, refused) in [(30080, true), (30081, false), (50000, false), (64999, false), (65000, false)] {
            let own = world.family.at(&format!("0.0.0.0:{port}"));
            let outcome = world.node.run(move || std::net::TcpListener::bind(own).map(drop));
            assert_eq!(
                outcome.map_err(|error| error.kind()),
                if refused { Err(ErrorKind::AddrInUse) } else { Ok(()) },
                "{port}"
            );
        }
        let own = world.family.at("0.0.0.0:30080");
        assert!(world.pods[0].run(move || std::net::TcpListener::bind(own).is_ok()));
        let reserved = world.node.command("cat /proc/sys/net/ipv4/ip_local_reserved_ports");
        assert_eq!(reserved.trim(), "30000-32767,50000-64999");
    }
}

/// "This host" is the pod itself, also when the number is a NodePort.
#[test]
fn the_unspecified_address_is_the_callers_own() {
    let world = World::new(SocketHooks::Attached);
    tcp_server(&world.pods[0], "own", 30080);
    tcp_server(&world.pods[1], "b", 8080);
    world.serve(&[Service::new("np", "10.96.0.81", "TCP", json!({"nodePort": 30080})).to(&[(PODS[1], 8080)])]);
    for own in ["0.0.0.0:30080", "[::ffff:0.0.0.0]:30080"] {
        assert!(ask_tcp(&world.pods[0], own).unwrap().0.starts_with("own "), "{own}");
        assert!(ask_tcp(&world.node, own).unwrap().0.starts_with("b "), "{own}");
    }
}

/// The device that takes the question may have left its checksum to whoever sends it on.
#[test]
fn refusals_are_whole_where_a_device_would_sum_up() {
    for world in in_each_family(SocketHooks::Attached) {
        world.serve(&[
            Service::new("lb", "10.96.0.81", "TCP", json!({"type": "LoadBalancer"})).balanced("192.168.78.1")
        ]);
        world.client.command("ip route add 192.168.78.1 via 192.168.77.1");
        for offload in ["on", "off"] {
            world.client.command(&format!("ethtool -K eth0 tx {offload}"));
            let error = ask_tcp(&world.client, "192.168.78.1:80").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "tx {offload}");
        }
    }
}
