//! What one pod may take of what all share: flows, and ports of the node's address.

use std::net::UdpSocket;
use std::time::Duration;

use proxy_userspace::SocketHooks;

use crate::family::Family;
use crate::netns::Namespace;
use crate::world::*;

/// Longest wait for an answer on this machine.
const SOON: Duration = Duration::from_millis(300);

/// Asks each server from each port, one after the other; how many answers came before the first that did not.
fn ask_from(place: &Namespace, ports: std::ops::Range<u16>, servers: std::ops::Range<u16>) -> usize {
    ask_often(place, ports, servers, 1)
}

/// The same, each several times: what is asked again after an answer is a connection that lasts.
fn ask_often(place: &Namespace, ports: std::ops::Range<u16>, servers: std::ops::Range<u16>, times: usize) -> usize {
    let (any, to) = (place.family.ip("0.0.0.0"), place.family.ip("192.168.77.2"));
    place.run(move || {
        let mut answered = 0;
        for port in ports {
            let socket = UdpSocket::bind((any, port)).unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
            for server in servers.clone() {
                for _ in 0..times {
                    socket.send_to(b"who", (to, server)).unwrap();
                    if socket.recv_from(&mut [0; 200]).is_err() {
                        return answered;
                    }
                }
                answered += 1;
            }
        }
        answered
    })
}

#[test]
fn a_pod_has_a_share_of_the_flows_and_no_more() {
    for world in in_each_family(SocketHooks::Attached) {
        let servers = 9000..9012;
        servers.clone().for_each(|port| udp_server(&world.client, "far", port));
        let most = if world.family == Family::V4 { proxy_common::MAX_FLOWS } else { 90_112 } / 8;
        assert_eq!(ask_from(&world.pods[0], 20_000..22_500, servers.clone()), most);
        assert!(world.counters()["drop_flow_share"] > 0);
        assert_eq!(ask_from(&world.pods[0], 20_000..20_001, servers.clone()), servers.len(), "what it has goes on");
        assert_eq!(ask_from(&world.pods[1], 20_000..20_010, servers.clone()), 10 * servers.len(), "others go on");
    }
}

#[test]
fn a_pod_leaves_ports_towards_a_server_to_others() {
    for world in in_each_family(SocketHooks::Attached) {
        udp_server(&world.client, "far", 9000);
        let taken = ask_often(&world.pods[0], 20_000..32_000, 9000..9001, 2);
        assert!((3_000..=7_500).contains(&taken), "{taken}");
        assert!(world.counters()["drop_snat_exhausted"] > 0);
        assert_eq!(ask_from(&world.pods[1], 20_000..20_500, 9000..9001), 500);
    }
}
