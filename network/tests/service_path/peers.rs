//! Another node on the same link: its pods, and what goes to them and comes from them. The client stands for it.

use std::net::TcpStream;

use network::Peer;
use proxy_userspace::SocketHooks;
use serde_json::json;

use crate::family::{Family, Setting};
use crate::netns::Namespace;
use crate::world::*;

/// A pod of the other node.
const FAR: &str = "10.244.1.5";

fn other(family: Family) -> Peer {
    let pods = vec![family.line("10.244.1.0/24").parse().unwrap()];
    Peer { name: "n2".into(), addresses: vec![family.ip(CLIENT)], pods }
}

/// A world whose client is the other node, with one pod.
fn two_nodes(setting: impl Into<Setting>) -> World {
    let setting = setting.into();
    let mut world = World::new(setting);
    world.client.command(&format!("ip addr add {FAR}/32 dev lo"));
    // Datagrams come from the pod that was asked.
    world.client.command(&format!("ip route add 10.244.0.0/24 via {NODE} src {FAR}"));
    tcp_server(&world.client, "far", 8080);
    udp_server(&world.client, "far", 8080);
    tcp_server(&world.pods[0], "a", 8080);
    world.peers.send_replace(vec![other(world.family)]);
    world.restart(setting.hooks);
    world
}

/// Asks from one of a place's addresses.
fn ask_from(place: &Namespace, from: &str, to: &str) -> std::io::Result<String> {
    let (from, to) = (place.at(&format!("{from}:0")), place.at(to));
    place.run(move || {
        let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        ask_on(&mut TcpStream::from(socket))
    })
}

#[test]
fn nodes_and_their_pods_reach_each_other_under_their_own_addresses() {
    for &setting in WORLDS {
        let world = two_nodes(setting);
        let far = format!("{FAR}:8080");
        assert!(ask_tcp(&world.pods[0], &far).unwrap().0.starts_with("far 10.244.0.5:"), "pod to pod");
        assert!(ask_udp(&world.pods[0], &far).unwrap().0.starts_with("far 10.244.0.5:"), "pod to pod, datagrams");
        assert!(ping(&world.pods[0], FAR));
        assert!(ask_tcp(&world.node, &far).unwrap().0.starts_with("far 192.168.77.1:"), "node to pod");
        assert!(ask_tcp(&world.pods[0], "192.168.77.2:8080").unwrap().0.starts_with("far 10.244.0.5:"), "pod to node");
        assert!(ask_from(&world.client, FAR, "10.244.0.5:8080").unwrap().starts_with("a 10.244.1.5:"), "pod from pod");
        assert!(
            ask_from(&world.client, CLIENT, "10.244.0.5:8080").unwrap().starts_with("a 192.168.77.2:"),
            "from node"
        );
        // The world beyond sees the node's address as ever.
        assert!(ask_tcp(&world.pods[0], "203.0.113.5:8080").unwrap().0.starts_with("far 192.168.77.1:"));
    }
}

#[test]
fn services_lead_to_pods_of_other_nodes() {
    for &hooks in WORLDS {
        let world = two_nodes(hooks);
        let cluster_ip = Service::new("web", "10.96.0.80", "TCP", json!({})).to(&[(FAR, 8080)]).also("UDP", 8080);
        let node_port = Service::new("np", "10.96.0.81", "TCP", json!({"nodePort": 30080})).to(&[(FAR, 8080)]);
        world.serve(&[cluster_ip, node_port]);
        assert!(ask_tcp(&world.pods[0], "10.96.0.80:80").unwrap().0.starts_with("far 10.244.0.5:"), "{hooks:?}");
        assert!(ask_udp(&world.pods[0], "10.96.0.80:80").unwrap().0.starts_with("far 10.244.0.5:"), "{hooks:?}");
        assert!(ask_tcp(&world.node, "10.96.0.80:80").unwrap().0.starts_with("far 192.168.77.1:"), "{hooks:?}");
        // From outside, the endpoint's answers have to come back here.
        let answer = ask_from(&world.client, OUTSIDE, "192.168.77.1:30080").unwrap();
        assert!(answer.starts_with("far 192.168.77.1:"), "{hooks:?}: {answer}");
        // Another node's port is in the cluster, too.
        assert!(ask_tcp(&world.pods[0], "192.168.77.2:30080").unwrap().0.starts_with("far 10.244.0.5:"), "{hooks:?}");
    }
}

#[test]
fn a_pod_does_not_send_with_an_address_of_another_nodes() {
    for family in [Family::V4, Family::V6] {
        let world = two_nodes(Setting { family, hooks: SocketHooks::Attached });
        world.pods[0].command("ip addr add 10.244.1.9/32 dev eth0");
        let before = world.counters();
        assert!(ask_from(&world.pods[0], "10.244.1.9", "10.244.0.6:8080").is_err());
        assert!(world.rose(&before)["drop_spoofed"] > 0);
    }
}

fn routes(world: &World) -> String {
    world.node.command("ip route show proto 97")
}

#[test]
fn routes_follow_the_nodes_and_come_back() {
    let mut world = two_nodes(SocketHooks::Attached);
    assert!(routes(&world).starts_with("10.244.1.0/24 via 192.168.77.2 dev eth0"), "{}", routes(&world));
    world.meanwhile(|| {
        world.node.command("ip route del 10.244.1.0/24 proto 97");
        wait_until(|| routes(&world).contains("10.244.1.0/24"));
        let nowhere = Peer {
            name: "n3".into(),
            addresses: vec![[198, 51, 100, 1].into()],
            pods: vec!["10.244.2.0/24".parse().unwrap()],
        };
        let third = Peer { name: "n4".into(), pods: vec!["10.244.3.0/24".parse().unwrap()], ..other(Family::V4) };
        world.peers.send_replace(vec![nowhere, third]);
        wait_until(|| routes(&world).contains("10.244.3.0/24"));
        assert!(!routes(&world).contains("10.244.1.0/24") && !routes(&world).contains("10.244.2.0/24"));
        // A link that went down takes its routes along.
        world.node.command("ip link set eth0 down");
        world.node.command("ip link set eth0 up");
        wait_until(|| routes(&world).contains("10.244.3.0/24"));
    });
    world.stop();
    world.reset();
    assert_eq!(routes(&world), "");
}
