//! Ports that are used again while an endpoint still remembers their last connection.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use network::PortRange;
use proxy_userspace::SocketHooks;
use serde_json::json;

use crate::netns::Namespace;
use crate::world::*;
use crate::{connect_from, reset_on_close};

const NODE_PORT: &str = "192.168.77.1:30080";
/// Less than the second after which an opening is sent again.
const AT_ONCE: Duration = Duration::from_millis(700);

fn served(ports: u16) -> World {
    let world = World::with_ports(SocketHooks::Attached, PortRange { first: 50_000, last: 50_000 + ports - 1 });
    tcp_server(&world.pods[0], "a", 8080);
    world.serve(&[Service::new("np", "10.96.0.81", "TCP", json!({"nodePort": 30080})).to(&[(PODS[0], 8080)])]);
    world
}

/// A whole connection that the server ends first, which then remembers it; its answer.
fn until_goodbye(client: &Namespace, port: u16) -> String {
    client.run(move || {
        let mut stream = connect_from(port, NODE_PORT);
        stream.write_all(b"bye").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
}

#[test]
fn a_clients_port_that_comes_round_again_is_served_at_once() {
    let world = served(64);
    let mut sources = BTreeSet::new();
    for round in 0..100 {
        let began = Instant::now();
        sources.insert(until_goodbye(&world.client, 12_345));
        assert!(began.elapsed() < AT_ONCE, "connection {round} took {:?}", began.elapsed());
    }
    // The endpoint sees one client with one clock.
    assert_eq!(sources.len(), 1, "{sources:?}");
    // After a reset, too.
    for _ in 0..5 {
        world.client.run(|| {
            let mut stream = connect_from(12_345, NODE_PORT);
            ask_on(&mut stream).unwrap();
            reset_on_close(&stream);
        });
    }
}

#[test]
fn ports_of_connections_that_are_over_are_used_when_no_other_is_left() {
    let world = served(8);
    for port in 20_000..20_014 {
        assert!(until_goodbye(&world.client, port).starts_with("a 192.168.77.1:5000"));
    }
    assert_eq!(world.counters()["drop_snat_exhausted"], 0);
    // Those of living ones are not.
    let living: Vec<TcpStream> =
        (21_000..21_008).map(|port| world.client.run(move || connect_from(port, NODE_PORT))).collect();
    assert!(ask_tcp(&world.client, NODE_PORT).is_err());
    assert!(world.counters()["drop_snat_exhausted"] > 0);
    for mut stream in living {
        ask_on(&mut stream).unwrap();
    }
}

#[test]
fn an_opening_that_is_sent_again_finds_another_endpoint() {
    let world = World::new(SocketHooks::Attached);
    let service = || Service::new("np", "10.96.0.81", "TCP", json!({"nodePort": 30080}));
    tcp_server(&world.pods[1], "b", 8080);
    // Hears nothing.
    world.pods[0].command("iptables -A INPUT -p tcp -j DROP");
    world.serve(&[service().to(&[(PODS[0], 8080)])]);
    let answer = std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask_tcp(&world.client, NODE_PORT));
        std::thread::sleep(AT_ONCE / 2);
        world.serve(&[service().to(&[(PODS[1], 8080)])]);
        asking.join().unwrap()
    });
    assert!(answer.unwrap().0.starts_with("b "));
}
