//! Clients that stay with their endpoint, by whatever address they ask.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use proxy_userspace::SocketHooks;
use serde_json::{Value, json};

use crate::netns::Namespace;
use crate::world::*;

const CLUSTER_IP: &str = "10.96.0.80:80";
const NODE_PORT: &str = "192.168.77.1:30080";
const LOOPBACK: &str = "127.0.0.1:30080";
const BALANCED: &str = "192.168.78.1:80";
const EXTERNAL: &str = "192.168.79.1:80";

fn sticky(protocol: &'static str, extra: Value) -> Service {
    let mut spec = json!({
        "type": "LoadBalancer", "nodePort": 30080, "externalIPs": ["192.168.79.1"], "sessionAffinity": "ClientIP",
    });
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    Service::new("sticky", "10.96.0.80", protocol, spec).balanced("192.168.78.1")
}

fn lasting(seconds: u32) -> Value {
    json!({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}})
}

/// The endpoint's name.
fn ask(place: &Namespace, protocol: &str, to: &str) -> String {
    let asked = if protocol == "TCP" { ask_tcp(place, to) } else { ask_udp(place, to) };
    let (answer, _) = asked.unwrap_or_else(|error| panic!("{protocol} {to}: {error}"));
    answer.split(' ').next().unwrap().to_owned()
}

fn world(setting: impl Into<crate::family::Setting>) -> World {
    let world = World::new(setting);
    for (pod, name) in world.pods.iter().zip(["a", "b"]) {
        tcp_server(pod, name, 8080);
        udp_server(pod, name, 8080);
    }
    for ip in ["192.168.78.1", "192.168.79.1"] {
        world.client.command(&format!("ip route add {ip} via 192.168.77.1"));
    }
    world
}

#[test]
fn a_client_has_one_endpoint_by_whatever_address_it_asks() {
    for &setting in WORLDS {
        let world = world(setting);
        // What the host sends to other addresses than services' and its own passes no packet program.
        let host: &[&str] = match setting.hooks {
            SocketHooks::Attached if world.family == crate::family::Family::V4 => {
                &[CLUSTER_IP, NODE_PORT, LOOPBACK, BALANCED, EXTERNAL]
            }
            SocketHooks::Attached => &[CLUSTER_IP, NODE_PORT, BALANCED, EXTERNAL],
            SocketHooks::Absent => &[CLUSTER_IP],
        };
        let cases = [
            (&world.pods[0], &[CLUSTER_IP, NODE_PORT, BALANCED, EXTERNAL][..]),
            (&world.pods[1], &[CLUSTER_IP, NODE_PORT, BALANCED, EXTERNAL]),
            (&world.node, host),
            (&world.client, &[NODE_PORT, BALANCED, EXTERNAL]),
        ];
        for protocol in ["TCP", "UDP"] {
            world.serve(&[sticky(protocol, json!({})).to(&both_pods(8080))]);
            for (place, addresses) in cases {
                let seen: BTreeSet<String> =
                    (0..4).flat_map(|_| addresses).map(|address| ask(place, protocol, address)).collect();
                assert_eq!(seen.len(), 1, "{setting:?} {protocol} {addresses:?}");
            }
            // Switched off, clients are spread again.
            world.serve(&[sticky(protocol, json!({"sessionAffinity": "None"})).to(&both_pods(8080))]);
            let seen: BTreeSet<String> = (0..32).map(|_| ask(&world.client, protocol, NODE_PORT)).collect();
            assert_eq!(seen.len(), 2, "{setting:?} {protocol}");
        }
    }
}

#[test]
fn a_client_stays_for_as_long_as_it_comes_back_in_time() {
    for world in [SocketHooks::Attached, SocketHooks::Absent].map(world) {
        world.serve(&[sticky("TCP", lasting(4)).to(&both_pods(8080))]);
        for (place, address) in [(&world.pods[0], CLUSTER_IP), (&world.client, NODE_PORT)] {
            let (first, began) = (ask(place, "TCP", address), Instant::now());
            // Each visit counts from anew: together they are longer than the time.
            while began.elapsed() < Duration::from_secs(6) {
                let since = Instant::now();
                std::thread::sleep(Duration::from_millis(500));
                let next = ask(place, "TCP", address);
                // Unless the machine made a visit come too late.
                assert!(next == first || since.elapsed() > Duration::from_secs(3), "{address}");
            }
        }
        // One that comes too late has any of both.
        world.serve(&[sticky("TCP", lasting(1)).to(&both_pods(8080))]);
        for (place, address) in [(&world.pods[0], CLUSTER_IP), (&world.client, NODE_PORT)] {
            let first = ask(place, "TCP", address);
            let moved = (0..24).any(|_| {
                std::thread::sleep(Duration::from_millis(1300));
                ask(place, "TCP", address) != first
            });
            assert!(moved, "{address}");
        }
    }
}
