//! A node, pods and services of both families: each serves by itself, and who is one client in both is two.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use proxy_userspace::SocketHooks;
use serde_json::json;

use crate::family::{Family, Setting};
use crate::world::*;

const SERVICES: [&str; 2] = ["10.96.0.80:80", "[fd77::10.96.0.80]:80"];
const NODE_PORTS: [&str; 2] = ["192.168.77.1:30080", "[fd77::192.168.77.1]:30080"];

fn dual(hooks: SocketHooks) -> World {
    World::new(Setting { family: Family::Both, hooks })
}

fn in_both(hooks: SocketHooks, work: impl Fn(&World, usize)) {
    let world = dual(hooks);
    for place in world.pods.iter().zip(["a", "b"]) {
        tcp_server_in(place.0, Family::V4, place.1, 8080);
        tcp_server_in(place.0, Family::V6, place.1, 8080);
    }
    tcp_server_in(&world.client, Family::V4, "far", 9000);
    tcp_server_in(&world.client, Family::V6, "far", 9000);
    (0..2).for_each(|family| work(&world, family));
}

fn sticky() -> Service {
    let extra = json!({"nodePort": 30080, "sessionAffinity": "ClientIP", "ipFamilies": ["IPv4", "IPv6"]});
    Service::new("np", "10.96.0.80", "TCP", extra)
}

#[test]
fn each_family_reaches_services_pods_and_the_outside() {
    for hooks in [SocketHooks::Attached, SocketHooks::Absent] {
        in_both(hooks, |world, family| {
            let service = || Service::new("np", "10.96.0.80", "TCP", json!({"nodePort": 30080}));
            world.serve(&[service().to(&both_pods(8080))]);
            for (client, to) in [
                (&world.pods[0], SERVICES[family]),
                (&world.node, SERVICES[family]),
                (&world.client, NODE_PORTS[family]),
                (&world.pods[0], NODE_PORTS[family]),
                (&world.pods[0], ["10.244.0.6:8080", "[fd77::10.244.0.6]:8080"][family]),
                (&world.pods[0], ["203.0.113.5:9000", "[fd77::203.0.113.5]:9000"][family]),
            ] {
                let mut seen = BTreeSet::new();
                for _ in 0..8 {
                    let (answer, _) = ask_tcp(client, to).unwrap_or_else(|error| panic!("{hooks:?} {to} {error}"));
                    seen.insert(answer.split(' ').next().unwrap().to_owned());
                }
                assert!(!seen.is_empty());
            }
            world.serve(&[service()]);
            assert_eq!(ask_tcp(&world.pods[0], SERVICES[family]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        });
    }
}

#[test]
fn a_client_stays_with_an_endpoint_of_each_family() {
    for hooks in [SocketHooks::Attached, SocketHooks::Absent] {
        let world = dual(hooks);
        for (pod, name) in world.pods.iter().zip(["a", "b"]) {
            tcp_server_in(pod, Family::V4, name, 8080);
            tcp_server_in(pod, Family::V6, name, 8080);
        }
        world.serve(&[sticky().to(&both_pods(8080))]);
        let ask = |to: &str| ask_tcp(&world.pods[0], to).unwrap().0[..1].to_owned();
        let first = SERVICES.map(ask);
        for _ in 0..8 {
            assert_eq!(SERVICES.map(ask), first, "{hooks:?}");
        }
        // The same by the packet path's other ways in.
        assert_eq!(NODE_PORTS.map(ask), first, "{hooks:?}");
    }
}

#[test]
fn host_ports_lead_to_a_pod_in_both_families() {
    let world = dual(SocketHooks::Attached);
    tcp_server_in(&world.pods[0], Family::V4, "a", 8080);
    tcp_server_in(&world.pods[0], Family::V6, "a", 8080);
    assert_eq!(world.open_host_port(0, 8888, None), []);
    for to in ["192.168.77.1:8888", "[fd77::192.168.77.1]:8888"] {
        assert!(ask_tcp(&world.client, to).unwrap().0.starts_with("a "), "{to}");
    }
    world.detach("pod-0");
    for to in ["192.168.77.1:8888", "[fd77::192.168.77.1]:8888"] {
        assert_eq!(ask_tcp(&world.client, to).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn the_nodes_loopback_leads_to_node_ports_in_both_families() {
    let world = dual(SocketHooks::Attached);
    tcp_server_in(&world.pods[0], Family::V4, "a", 8080);
    tcp_server_in(&world.pods[0], Family::V6, "a", 8080);
    world.serve(&[Service::new("np", "10.96.0.80", "TCP", json!({"nodePort": 30080})).to(&[(PODS[0], 8080)])]);
    for to in ["127.0.0.1:30080", "[::1]:30080", "[::]:30080", "0.0.0.0:30080"] {
        assert!(ask_tcp(&world.node, to).unwrap().0.starts_with("a "), "{to}");
        assert_eq!(ask_tcp(&world.pods[1], to).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
    }
}

/// The maps of a family come with it, and those of the other get another size: what they held goes on.
#[test]
fn connections_survive_a_node_that_gets_another_family() {
    for hooks in [SocketHooks::Attached, SocketHooks::Absent] {
        let mut world = dual(hooks);
        world.restart_in_families(hooks, Family::V4);
        for (pod, name) in world.pods.iter().zip(["a", "b"]) {
            tcp_server_in(pod, Family::V4, name, 8080);
            tcp_server_in(pod, Family::V6, name, 8080);
        }
        world.serve(&[Service::new("np", "10.96.0.80", "TCP", json!({"nodePort": 30080})).to(&both_pods(8080))]);
        let mut open = [
            connect(&world.client, NODE_PORTS[0]).unwrap(),
            connect(&world.pods[0], SERVICES[0]).unwrap(),
            connect(&world.node, SERVICES[0]).unwrap(),
        ];
        let before: Vec<_> = open.iter_mut().map(|stream| ask_on(stream).unwrap()).collect();
        world.restart_in_families(hooks, Family::Both);
        let after: Vec<_> = open.iter_mut().map(|stream| ask_on(stream).unwrap()).collect();
        assert_eq!(after, before, "{hooks:?}");
        for (index, ip) in PODS.iter().enumerate() {
            world.attach(&format!("pod-{index}"), ip, &world.pods[index].path());
        }
        world.serve(&[Service::new("np", "10.96.0.80", "TCP", json!({"nodePort": 30080})).to(&both_pods(8080))]);
        assert!(ask_tcp(&world.client, NODE_PORTS[1]).is_ok() && ask_tcp(&world.pods[0], SERVICES[1]).is_ok());
        world.restart_in_families(hooks, Family::V4);
        let after: Vec<_> = open.iter_mut().map(|stream| ask_on(stream).unwrap()).collect();
        assert_eq!(after, before, "{hooks:?}");
        assert!(world.pinned_maps().iter().all(|name| !name.contains("aside")), "{:?}", world.pinned_maps());
    }
}
