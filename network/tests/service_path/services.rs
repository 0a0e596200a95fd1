//! Services at their own addresses, from pods and from the host.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv6Addr, UdpSocket};

use proxy_userspace::SocketHooks;
use serde_json::json;

use crate::family::Family;
use crate::world::*;

#[test]
fn cluster_ip_tcp_is_balanced_for_pods_and_host() {
    for &setting in WORLDS {
        let world = World::new(setting);
        tcp_server(&world.pods[0], "a", 8080);
        tcp_server(&world.pods[1], "b", 8080);
        world.serve(&[web().to(&both_pods(8080))]);
        for client in [&world.pods[0], &world.node] {
            let mut seen = BTreeSet::new();
            for _ in 0..24 {
                let (answer, peer) =
                    ask_tcp(client, "10.96.0.80:80").unwrap_or_else(|error| panic!("{setting:?} {error}"));
                assert_eq!(peer.to_string(), "10.96.0.80:80");
                seen.insert(answer.split(' ').next().unwrap().to_owned());
            }
            assert_eq!(seen.len(), 2, "{setting:?}");
        }
    }
}

#[test]
fn tcp_and_udp_on_one_port_are_told_apart() {
    for &setting in WORLDS {
        let world = World::new(setting);
        tcp_server(&world.pods[0], "stream", 8080);
        udp_server(&world.pods[0], "datagram", 9090);
        let both = Service::new("both", "10.96.0.80", "TCP", json!({"nodePort": 30080}));
        world.serve(&[both.to(&[(PODS[0], 8080)]).also("UDP", 9090)]);
        let (inside, outside) = ("10.96.0.80:80", "192.168.77.1:30080");
        for (client, to) in [(&world.pods[1], inside), (&world.node, inside), (&world.client, outside)] {
            let (stream, datagram) = (ask_tcp(client, to).unwrap(), ask_udp(client, to).unwrap());
            assert!(stream.0.starts_with("stream"), "{setting:?} {to}: {stream:?}");
            assert!(datagram.0.starts_with("datagram"), "{setting:?} {to}: {datagram:?}");
            assert_eq!((stream.1.to_string(), datagram.1.to_string()), (to.into(), to.into()));
        }
    }
}

#[test]
fn no_endpoint_is_refused_at_once() {
    for &setting in WORLDS {
        let world = World::new(setting);
        let udp = Service::new("dns", "10.96.0.10", "UDP", json!({}));
        world.serve(&[web(), udp, Service::new("np", "10.96.0.81", "TCP", json!({"nodePort": 30080}))]);
        for client in [&world.pods[0], &world.node] {
            let error = ask_tcp(client, "10.96.0.80:80").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{setting:?} {error}");
            assert_eq!(refused(client, "10.96.0.10:80").kind(), ErrorKind::ConnectionRefused, "{setting:?}");
        }
        assert_eq!(ask_tcp(&world.client, "192.168.77.1:30080").unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(ask_tcp(&world.pods[0], "192.168.77.1:30080").unwrap_err().kind(), ErrorKind::ConnectionRefused);
        // A port that the service does not have.
        assert_eq!(ask_tcp(&world.pods[0], "10.96.0.80:81").unwrap_err().kind(), ErrorKind::ConnectionRefused);
        // The host's firewall has no say in it.
        world.node.command("iptables -P INPUT DROP");
        assert_eq!(ask_tcp(&world.client, "192.168.77.1:30080").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn the_api_address_reaches_a_server_on_the_host_from_pods_and_host() {
    for &setting in WORLDS {
        let world = World::new(setting);
        tcp_server(&world.node, "api", 6443);
        udp_server(&world.node, "dns", 6443);
        let udp = Service::new("dns", "10.96.0.10", "UDP", json!({}));
        world.serve(&[web().to(&[(NODE, 6443)]), udp.to(&[(NODE, 6443)])]);
        for client in [&world.pods[0], &world.node] {
            let (answer, _) = ask_tcp(client, "10.96.0.80:80").unwrap_or_else(|error| panic!("{setting:?} {error}"));
            assert!(answer.starts_with("api "), "{answer}");
            let (answer, from) = ask_udp(client, "10.96.0.10:80").unwrap_or_else(|error| panic!("{setting:?} {error}"));
            assert!(answer.starts_with("dns "), "{answer}");
            assert_eq!(from.to_string(), "10.96.0.10:80");
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    for &setting in WORLDS {
        let world = World::new(setting);
        tcp_server(&world.pods[0], "a", 8080);
        world.serve(&[web().to(&[(PODS[0], 8080)])]);
        let (answer, _) =
            ask_tcp(&world.pods[0], "10.96.0.80:80").unwrap_or_else(|error| panic!("{setting:?} {error}"));
        let seen = if setting.hooks == SocketHooks::Attached { "a 10.244.0.5:" } else { "a 169.254.1.1:" };
        assert!(answer.starts_with(seen), "{answer}");
    }
}

#[test]
fn mapped_sockets_are_translated_like_plain_ones() {
    let world = World::new(SocketHooks::Attached);
    tcp_server(&world.pods[1], "b", 8080);
    udp_server(&world.pods[1], "b", 8080);
    world.serve(&[
        web().to(&[(PODS[1], 8080)]),
        Service::new("udp", "10.96.0.11", "UDP", json!({})).to(&[(PODS[1], 8080)]),
    ]);
    let before = world.counters();
    let (_, peer) = ask_tcp(&world.pods[0], "[::ffff:10.96.0.80]:80").unwrap();
    assert_eq!(peer.to_string(), "[::ffff:10.96.0.80]:80");
    for connected in [false, true] {
        let from = world.pods[0].run(move || {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            for _ in 0..2 {
                if connected {
                    socket.connect("[::ffff:10.96.0.11]:80")?;
                    socket.send(b"who")?;
                } else {
                    socket.send_to(b"who", "[::ffff:10.96.0.11]:80")?;
                }
            }
            Ok::<_, std::io::Error>(socket.recv_from(&mut [0; 100])?.1)
        });
        assert_eq!(from.unwrap().to_string(), "[::ffff:10.96.0.11]:80");
    }
    let rose = world.rose(&before);
    assert!(rose["socket_translated"] >= 4 && !rose.contains_key("service_flow"), "{rose:?}");
    world.serve(&[web()]);
    assert_eq!(ask_tcp(&world.pods[0], "[::ffff:10.96.0.80]:80").unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn affinity_keeps_a_client_at_its_endpoint() {
    for &setting in WORLDS {
        let world = World::new(setting);
        tcp_server(&world.pods[0], "a", 8080);
        tcp_server(&world.pods[1], "b", 8080);
        let sticky =
            || Service::new("np", "10.96.0.80", "TCP", json!({"nodePort": 30080, "sessionAffinity": "ClientIP"}));
        world.serve(&[sticky().to(&both_pods(8080))]);
        for (client, address) in [(&world.pods[0], "10.96.0.80:80"), (&world.client, "192.168.77.1:30080")] {
            let names: BTreeSet<_> = (0..12).map(|_| ask_tcp(client, address).unwrap().0[..1].to_owned()).collect();
            assert_eq!(names.len(), 1, "{setting:?} {address}");
            // Its endpoint goes: another takes over.
            let left = if names.contains("a") { 1 } else { 0 };
            world.serve(&[sticky().to(&[(PODS[left], 8080)])]);
            assert!(ask_tcp(client, address).is_ok());
            world.serve(&[sticky().to(&both_pods(8080))]);
        }
    }
}

#[test]
fn cluster_dns_is_the_nodes_own_server() {
    for &setting in WORLDS {
        let world = World::new(setting);
        world.serve(&[web()]);
        let server = world.start_dns(&[web()]);
        world.meanwhile(|| {
            for client in [&world.pods[0], &world.node] {
                for protocol in ["+notcp", "+tcp"] {
                    let server = world.family.ip("10.96.0.10");
                    let question = if world.family == Family::V4 { "A" } else { "AAAA" };
                    let options = format!("{protocol} +short +time=2 +tries=1");
                    let command = format!("dig {options} @{server} web.default.svc.cluster.local {question}");
                    let answer = client.command(&command);
                    assert_eq!(answer.trim(), world.family.ip("10.96.0.80").to_string(), "{setting:?} {protocol}");
                }
            }
        });
        drop(server);
    }
}
