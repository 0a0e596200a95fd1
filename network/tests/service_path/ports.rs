//! Ports that are used again while an endpoint still remembers their last connection.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::{Duration, Instant};

use network::PortRange;
use proxy_userspace::SocketHooks;
use serde_json::json;

use crate::netns::Namespace;
use crate::world::*;

const NODE_PORT: &str = "192.168.77.1:30080";
/// Less than the second after which an opening is sent again.
const AT_ONCE: Duration = Duration::from_millis(700);

/// A connection from a chosen port, which may be used again at once.
fn connect_from(port: u16, to: &str) -> TcpStream {
    // SAFETY: the descriptor is new and owned at once; the option is an integer of the stated size.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        assert!(fd >= 0);
        let local = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: 0 },
            sin_zero: [0; 8],
        };
        let size = size_of::<libc::sockaddr_in>() as u32;
        // The kernel may hold the port for a moment after the last connection from it.
        let deadline = Instant::now() + PATIENCE;
        while libc::bind(fd, (&raw const local).cast(), size) != 0 {
            let error = std::io::Error::last_os_error();
            assert!(error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline, "{error}");
        }
        let SocketAddr::V4(to) = to.parse().unwrap() else { panic!("an IPv4 address") };
        let remote = libc::sockaddr_in {
            sin_port: to.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
            ..local
        };
        assert_eq!(libc::connect(fd, (&raw const remote).cast(), size), 0, "{}", std::io::Error::last_os_error());
        TcpStream::from_raw_fd(fd)
    };
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Closing sends a reset, so that the port is free at once.
fn reset_on_close(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = size_of::<libc::linger>() as u32;
    // SAFETY: an open descriptor and an option of the stated size.
    let result = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size)
    };
    assert_eq!(result, 0);
}

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
    for world in in_each_family(SocketHooks::Attached) {
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
}
