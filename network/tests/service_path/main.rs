//! The service path and the pod network on the real kernel, in namespaces of the test's own.
#![expect(unsafe_code, reason = "entering namespaces")]
#![expect(clippy::unwrap_used, reason = "a test")]

mod host_ports;
mod netns;
mod ports;
mod shares;
mod upgrade;
mod uplink;
mod world;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use network::PortRange;
use proxy_userspace::SocketHooks;
use serde_json::json;
use world::*;

const BOTH: [SocketHooks; 2] = [SocketHooks::Attached, SocketHooks::Absent];

fn web() -> Service {
    Service::new("web", "10.96.0.80", "TCP", json!({}))
}

fn connected_udp(place: &netns::Namespace, to: &'static str) -> UdpSocket {
    place.run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(to).unwrap();
        socket
    })
}

fn both_pods(port: u16) -> [(&'static str, u16); 2] {
    PODS.map(|ip| (ip, port))
}

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

/// Puts bytes on a link as an IPv4 packet, whatever they are.
fn send_frame(device: &str, bytes: &[u8]) {
    let name = std::ffi::CString::new(device).unwrap();
    let protocol = (libc::ETH_P_IP as u16).to_be();
    // SAFETY: the descriptor is new and closed below; name, address and buffer are of the stated lengths.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM, protocol.into());
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = protocol;
        to.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        to.sll_halen = 6;
        let size = size_of::<libc::sockaddr_ll>() as u32;
        let sent = libc::sendto(fd, bytes.as_ptr().cast(), bytes.len(), 0, (&raw const to).cast(), size);
        assert_eq!(sent, bytes.len() as isize, "{}", std::io::Error::last_os_error());
        libc::close(fd);
    }
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

#[test]
fn pods_reach_pods_and_the_host_reaches_pods() {
    let world = World::new(SocketHooks::Absent);
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

#[test]
fn where_no_route_leads_is_told_at_once() {
    let world = World::new(SocketHooks::Attached);
    world.node.command("ip route add unreachable 198.51.100.0/24");
    assert_eq!(ask_tcp(&world.pods[0], "198.51.100.1:80").unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn cluster_ip_tcp_is_balanced_for_pods_and_host() {
    for hooks in BOTH {
        let world = World::new(hooks);
        tcp_server(&world.pods[0], "a", 8080);
        tcp_server(&world.pods[1], "b", 8080);
        world.serve(&[web().to(&both_pods(8080))]);
        for client in [&world.pods[0], &world.node] {
            let mut seen = BTreeSet::new();
            for _ in 0..24 {
                let (answer, peer) =
                    ask_tcp(client, "10.96.0.80:80").unwrap_or_else(|error| panic!("{hooks:?} {error}"));
                assert_eq!(peer.to_string(), "10.96.0.80:80");
                seen.insert(answer.split(' ').next().unwrap().to_owned());
            }
            assert_eq!(seen.len(), 2, "{hooks:?}");
        }
    }
}

#[test]
fn no_endpoint_is_refused_at_once() {
    for hooks in BOTH {
        let world = World::new(hooks);
        let udp = Service::new("dns", "10.96.0.10", "UDP", json!({}));
        world.serve(&[web(), udp, Service::new("np", "10.96.0.81", "TCP", json!({"nodePort": 30080}))]);
        for client in [&world.pods[0], &world.node] {
            let error = ask_tcp(client, "10.96.0.80:80").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{hooks:?} {error}");
            let refused = client.run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.connect("10.96.0.10:80")?;
                socket.send(b"who")?;
                socket.recv(&mut [0; 10])
            });
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{hooks:?}");
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
    for hooks in BOTH {
        let world = World::new(hooks);
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
    let world = World::new(SocketHooks::Attached);
    tcp_server(&world.pods[0], "a", 8080);
    let extra = json!({"nodePort": 30080, "externalTrafficPolicy": "Local"});
    world.serve(&[Service::new("np", "10.96.0.81", "TCP", extra).to(&[(PODS[0], 8080)])]);
    let before = world.counters();
    let (answer, _) = ask_tcp(&world.client, "192.168.77.1:30080").unwrap();
    assert!(answer.starts_with("a 192.168.77.2:"), "{answer}");
    assert_packet_path(&world, &before);
}

#[test]
fn node_port_reaches_an_endpoint_of_the_host_itself() {
    let world = World::new(SocketHooks::Attached);
    tcp_server(&world.node, "host", 8081);
    world.serve(&[Service::new("np", "10.96.0.81", "TCP", json!({"nodePort": 30080})).to(&[(NODE, 8081)])]);
    let (answer, peer) = ask_tcp(&world.client, "192.168.77.1:30080").unwrap();
    assert!(answer.starts_with("host 192.168.77.2:"), "{answer}");
    assert_eq!(peer.to_string(), "192.168.77.1:30080");
}

#[test]
fn the_api_address_reaches_a_server_on_the_host_from_pods_and_host() {
    for hooks in BOTH {
        let world = World::new(hooks);
        tcp_server(&world.node, "api", 6443);
        udp_server(&world.node, "dns", 6443);
        let udp = Service::new("dns", "10.96.0.10", "UDP", json!({}));
        world.serve(&[web().to(&[(NODE, 6443)]), udp.to(&[(NODE, 6443)])]);
        for client in [&world.pods[0], &world.node] {
            let (answer, _) = ask_tcp(client, "10.96.0.80:80").unwrap_or_else(|error| panic!("{hooks:?} {error}"));
            assert!(answer.starts_with("api "), "{answer}");
            let (answer, from) = ask_udp(client, "10.96.0.10:80").unwrap_or_else(|error| panic!("{hooks:?} {error}"));
            assert!(answer.starts_with("dns "), "{answer}");
            assert_eq!(from.to_string(), "10.96.0.10:80");
        }
    }
}

#[test]
fn node_port_from_inside_and_by_loopback() {
    let world = World::new(SocketHooks::Attached);
    tcp_server(&world.pods[0], "a", 8080);
    let extra = json!({"nodePort": 30080, "externalTrafficPolicy": "Local"});
    world.serve(&[Service::new("np", "10.96.0.81", "TCP", extra).to(&[(PODS[0], 8080)])]);
    assert!(ask_tcp(&world.pods[1], "192.168.77.1:30080").is_ok());
    assert!(ask_tcp(&world.node, "192.168.77.1:30080").is_ok());
    assert!(ask_tcp(&world.node, "127.0.0.1:30080").is_ok());
    // A pod's loopback is its own.
    assert_eq!(ask_tcp(&world.pods[1], "127.0.0.1:30080").unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn node_ports_cannot_be_bound_on_the_host() {
    let world = World::new(SocketHooks::Attached);
    world.serve(&[Service::new("np", "10.96.0.81", "TCP", json!({"nodePort": 30080})).to(&[(PODS[0], 8080)])]);
    for (port, refused) in [(30080, true), (30081, false), (50000, false), (64999, false), (65000, false)] {
        let outcome = world.node.run(move || std::net::TcpListener::bind(("0.0.0.0", port)).map(drop));
        assert_eq!(
            outcome.map_err(|error| error.kind()),
            if refused { Err(ErrorKind::AddrInUse) } else { Ok(()) },
            "{port}"
        );
    }
    assert!(world.pods[0].run(|| std::net::TcpListener::bind(("0.0.0.0", 30080)).is_ok()));
    let reserved = world.node.command("cat /proc/sys/net/ipv4/ip_local_reserved_ports");
    assert_eq!(reserved.trim(), "30000-32767,50000-64999");
}

/// A program of the node has a port of the range for translated sources, since before the agent or since later: no pod's connection
/// shows it towards the same far end.
#[test]
fn ports_that_programs_of_the_node_use_are_left_to_them() {
    for (hooks, before) in [(SocketHooks::Attached, false), (SocketHooks::Attached, true), (SocketHooks::Absent, false)]
    {
        let mut world = World::new(hooks);
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
                world.node.run(move || {
                    let socket = UdpSocket::bind(("192.168.77.1", port)).unwrap();
                    socket.connect("192.168.77.2:9000").unwrap();
                    socket
                })
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
        assert!(answers.iter().all(|shown| shown == "192.168.77.1:50000"), "{hooks:?} {before} {answers:?}");
        drop(own);
    }
}

#[test]
fn pods_leave_the_cluster_behind_the_nodes_address() {
    let world = World::new(SocketHooks::Attached);
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

#[test]
fn icmp_errors_find_their_way_back() {
    let world = World::new(SocketHooks::Absent);
    let before = world.counters();
    let refused = world.pods[0].run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect("203.0.113.5:9")?;
        socket.send(b"who")?;
        socket.recv(&mut [0; 10])
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(world.rose(&before).get("icmp_error_translated"), Some(&1));
    // From an endpoint of a service, quoted with the endpoint's address.
    world.serve(&[Service::new("dns", "10.96.0.10", "UDP", json!({})).to(&[(PODS[1], 9)])]);
    let refused = world.pods[0].run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect("10.96.0.10:80")?;
        socket.send(b"who")?;
        socket.recv(&mut [0; 10])
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn out_of_hops_is_told_with_the_address_that_was_asked() {
    let world = World::new(SocketHooks::Absent);
    world.serve(&[Service::new("dns", "10.96.0.10", "UDP", json!({})).to(&[(PODS[1], 9)])]);
    let told = world.pods[0].run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let (on, size) = (1i32, size_of::<i32>() as u32);
        // SAFETY: an open descriptor and an option of the stated size.
        let set = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_RECVERR, (&raw const on).cast(), size)
        };
        assert_eq!(set, 0);
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_ttl(1)?;
        // The error finds the socket by the addresses it quotes.
        socket.connect("10.96.0.10:80")?;
        socket.send(b"who")?;
        socket.recv(&mut [0; 10])
    });
    assert_eq!(told.unwrap_err().raw_os_error(), Some(libc::EHOSTUNREACH));
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    for hooks in BOTH {
        let world = World::new(hooks);
        tcp_server(&world.pods[0], "a", 8080);
        world.serve(&[web().to(&[(PODS[0], 8080)])]);
        let (answer, _) = ask_tcp(&world.pods[0], "10.96.0.80:80").unwrap_or_else(|error| panic!("{hooks:?} {error}"));
        let seen = if hooks == SocketHooks::Attached { "a 10.244.0.5:" } else { "a 169.254.1.1:" };
        assert!(answer.starts_with(seen), "{answer}");
    }
}

#[test]
fn datagrams_show_the_services_address() {
    for hooks in BOTH {
        let world = World::new(hooks);
        udp_server(&world.pods[1], "b", 5353);
        let services = || {
            [("one", "10.96.0.11"), ("two", "10.96.0.12")].map(|(name, ip)| Service::new(name, ip, "UDP", json!({})))
        };
        world.serve(&services().map(|service| service.to(&[(PODS[1], 5353)])));
        for client in [&world.pods[0], &world.node] {
            let (_, from) = ask_udp(client, "10.96.0.11:80").unwrap_or_else(|error| panic!("{hooks:?} {error}"));
            assert_eq!(from.to_string(), "10.96.0.11:80");
            // One socket, two services, one endpoint behind both: each reply carries the address that was asked.
            let socket = client.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            for service in ["10.96.0.11:80", "10.96.0.12:80", "10.96.0.11:80"] {
                let (_, from) =
                    ask_udp_on(&socket, client, service).unwrap_or_else(|error| panic!("{hooks:?} {service} {error}"));
                assert_eq!(from.to_string(), service, "{hooks:?}");
            }
            let connected = client.run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.connect("10.96.0.12:80")?;
                socket.send(b"who")?;
                let (_, from) = socket.recv_from(&mut [0; 100])?;
                Ok::<_, std::io::Error>((from, socket.peer_addr()?))
            });
            let service: SocketAddr = "10.96.0.12:80".parse().unwrap();
            assert_eq!(connected.unwrap(), (service, service));
        }
    }
}

/// A resolver may connect for its errors and then send with an address all the same.
#[test]
fn a_connected_socket_that_names_the_service_reaches_its_own_endpoint() {
    let world = World::new(SocketHooks::Attached);
    for (pod, name) in world.pods.iter().zip(["a", "b"]) {
        udp_server(pod, name, 8080);
    }
    world.serve(&[Service::new("udp", "10.96.0.11", "UDP", json!({})).to(&both_pods(8080))]);
    for _ in 0..12 {
        let socket = connected_udp(&world.node, "10.96.0.11:80");
        ask_udp_on(&socket, &world.node, "10.96.0.11:80").unwrap();
    }
    // It follows when the endpoint goes: what it hears then comes from elsewhere, to which it is not connected.
    let socket = connected_udp(&world.pods[0], "10.96.0.11:80");
    let (first, _) = ask_udp_on(&socket, &world.pods[0], "10.96.0.11:80").unwrap();
    let left = if first.starts_with('a') { 1 } else { 0 };
    world.serve(&[Service::new("udp", "10.96.0.11", "UDP", json!({})).to(&[(PODS[left], 8080)])]);
    let unconnected = ask_udp(&world.pods[0], "10.96.0.11:80").unwrap();
    assert_ne!(unconnected.0[..1], first[..1]);
}

#[test]
fn connecting_datagrams_never_fails_and_an_endpoint_may_come_later() {
    for hooks in BOTH {
        let world = World::new(hooks);
        udp_server(&world.pods[1], "b", 8080);
        let udp = || Service::new("udp", "10.96.0.11", "UDP", json!({}));
        world.serve(&[udp()]);
        for client in [&world.pods[0], &world.node] {
            let socket = connected_udp(client, "10.96.0.11:80");
            socket.send(b"who").unwrap();
            assert_eq!(socket.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{hooks:?}");
            world.serve(&[udp().to(&[(PODS[1], 8080)])]);
            socket.send(b"who").unwrap();
            let mut answer = [0; 100];
            let length = socket.recv(&mut answer).unwrap();
            assert!(answer[..length].starts_with(b"b "), "{hooks:?}");
            world.serve(&[udp()]);
        }
    }
}

/// The list of one socket's services is shared by its threads.
#[test]
fn threads_of_one_socket_do_not_mix_services() {
    let world = World::new(SocketHooks::Attached);
    udp_server(&world.pods[1], "b", 8080);
    udp_server(&world.pods[1], "c", 8081);
    world.serve(&[
        Service::new("one", "10.96.0.11", "UDP", json!({})).to(&[(PODS[1], 8080)]),
        Service::new("two", "10.96.0.12", "UDP", json!({})).to(&[(PODS[1], 8081)]),
    ]);
    let socket = world.pods[0].run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let netns = world.pods[0].file();
    std::thread::scope(|scope| {
        for service in ["10.96.0.11:80", "10.96.0.12:80"] {
            let (socket, netns) = (&socket, &netns);
            scope.spawn(move || {
                let send = || (0..500).try_for_each(|_| socket.send_to(b"who", service).map(drop));
                proxy_userspace::sys::inside(netns, send).unwrap();
            });
        }
        let mut heard = 0;
        let mut answer = [0; 100];
        // Buffers are short: some may be lost, none may be somebody else's.
        while let Ok((length, from)) = socket.recv_from(&mut answer) {
            let expected = if answer[..length].starts_with(b"b ") { "10.96.0.11:80" } else { "10.96.0.12:80" };
            assert_eq!(from.to_string(), expected);
            heard += 1;
            if heard == 1000 {
                break;
            }
        }
        assert!(heard > 100, "{heard}");
    });
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
    let world = World::new(SocketHooks::Attached);
    world.serve(&[Service::new("lb", "10.96.0.81", "TCP", json!({"type": "LoadBalancer"})).balanced("192.168.78.1")]);
    world.client.command("ip route add 192.168.78.1 via 192.168.77.1");
    for offload in ["on", "off"] {
        world.client.command(&format!("ethtool -K eth0 tx {offload}"));
        let error = ask_tcp(&world.client, "192.168.78.1:80").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "tx {offload}");
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
fn much_data_passes_whole() {
    for hooks in BOTH {
        let world = World::new(hooks);
        tcp_server(&world.pods[1], "b", 8080);
        world.serve(&[Service::new("np", "10.96.0.80", "TCP", json!({"nodePort": 30080})).to(&[(PODS[1], 8080)])]);
        for (client, address) in
            [(&world.pods[0], "10.96.0.80:80"), (&world.node, "10.96.0.80:80"), (&world.client, "192.168.77.1:30080")]
        {
            let total = client.run(move || {
                let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                let mut total = 0;
                for _ in 0..20 {
                    stream.write_all(b"much")?;
                    let mut line = Vec::new();
                    while line.last() != Some(&b'\n') {
                        let mut part = [0; 65_536];
                        let length = stream.read(&mut part)?;
                        line.extend_from_slice(&part[..length]);
                    }
                    total += line.len();
                }
                Ok::<_, std::io::Error>(total)
            });
            assert!(total.unwrap_or_else(|error| panic!("{hooks:?} {address} {error}")) > 20 * 200_000);
        }
    }
}

#[test]
fn fragments_follow_their_first() {
    let world = World::new(SocketHooks::Absent);
    udp_server(&world.pods[1], "b", 8080);
    udp_server(&world.client, "far", 8080);
    world.serve(&[Service::new("udp", "10.96.0.11", "UDP", json!({"nodePort": 30080})).to(&[(PODS[1], 8080)])]);
    let to = [
        (&world.pods[0], "10.96.0.11:80"),
        (&world.client, "192.168.77.1:30080"),
        (&world.pods[0], "192.168.77.2:8080"),
        (&world.pods[0], "10.244.0.6:8080"),
    ];
    for (client, address) in to {
        let answer = client.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to(&[7; 4000], address)?;
            let mut answer = [0; 100];
            let (length, _) = socket.recv_from(&mut answer)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer[..length]).into_owned())
        });
        assert!(answer.as_ref().is_ok_and(|answer| answer.ends_with(" 4000")), "{address} {answer:?}");
    }
}

#[test]
fn flipping_sets_never_fails_a_client() {
    let world = World::new(SocketHooks::Attached);
    for (pod, name) in world.pods.iter().zip(["a", "b"]) {
        tcp_server(pod, name, 8080);
    }
    world.serve(&[web().to(&[(PODS[0], 8080)])]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flipper = scope.spawn(|| {
            let mut flips = 0;
            while !stop.load(Ordering::Relaxed) {
                world.serve(&[web().to(&[(PODS[flips % 2], 8080)])]);
                flips += 1;
            }
            flips
        });
        let mut seen = BTreeSet::new();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            let outcome = ask_tcp(&world.pods[0], "10.96.0.80:80");
            seen.insert(outcome.map(|(answer, _)| answer[..1].to_owned()).map_err(|error| error.to_string()));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(flipper.join().unwrap() > 100);
        assert_eq!(seen, BTreeSet::from([Ok("a".to_owned()), Ok("b".to_owned())]));
    });
}

#[test]
fn affinity_keeps_a_client_at_its_endpoint() {
    for hooks in BOTH {
        let world = World::new(hooks);
        tcp_server(&world.pods[0], "a", 8080);
        tcp_server(&world.pods[1], "b", 8080);
        let sticky =
            || Service::new("np", "10.96.0.80", "TCP", json!({"nodePort": 30080, "sessionAffinity": "ClientIP"}));
        world.serve(&[sticky().to(&both_pods(8080))]);
        for (client, address) in [(&world.pods[0], "10.96.0.80:80"), (&world.client, "192.168.77.1:30080")] {
            let names: BTreeSet<_> = (0..12).map(|_| ask_tcp(client, address).unwrap().0[..1].to_owned()).collect();
            assert_eq!(names.len(), 1, "{hooks:?} {address}");
            // Its endpoint goes: another takes over.
            let left = if names.contains("a") { 1 } else { 0 };
            world.serve(&[sticky().to(&[(PODS[left], 8080)])]);
            assert!(ask_tcp(client, address).is_ok());
            world.serve(&[sticky().to(&both_pods(8080))]);
        }
    }
}

#[test]
fn connections_survive_a_restart_of_the_agent() {
    for hooks in BOTH {
        let mut world = World::new(hooks);
        tcp_server(&world.pods[0], "a", 8080);
        let service = || Service::new("np", "10.96.0.80", "TCP", json!({"nodePort": 30080}));
        world.serve(&[service().to(&[(PODS[0], 8080)])]);
        let connect =
            |address: &'static str| move || TcpStream::connect_timeout(&address.parse().unwrap(), PATIENCE).unwrap();
        let mut open = [
            world.client.run(connect("192.168.77.1:30080")),
            world.pods[1].run(connect("10.96.0.80:80")),
            world.node.run(connect("10.96.0.80:80")),
        ];
        open.iter_mut().for_each(|stream| drop(ask_on(stream).unwrap()));
        world.restart(hooks);
        open.iter_mut().for_each(|stream| drop(ask_on(stream).unwrap()));
        // Adopted contents serve before the first apply, and links once.
        assert!(ask_tcp(&world.client, "192.168.77.1:30080").is_ok());
        world.serve(&[service().to(&[(PODS[0], 8080)])]);
        for (index, ip) in PODS.iter().enumerate() {
            world.attach(&format!("pod-{index}"), ip, &world.pods[index].path());
        }
        open.iter_mut().for_each(|stream| drop(ask_on(stream).unwrap()));
        assert!(ask_tcp(&world.pods[1], "10.96.0.80:80").is_ok());
    }
}

/// Who knows a route to the pods speaks with them under their own addresses.
#[test]
fn pods_answer_outside_clients_with_their_own_address() {
    let world = World::new(SocketHooks::Attached);
    udp_server(&world.pods[0], "a", 8080);
    tcp_server(&world.pods[0], "a", 8080);
    world.client.command("ip route add 10.244.0.0/24 via 192.168.77.1");
    assert!(ping(&world.client, PODS[0]));
    let (_, from) = ask_udp(&world.client, "10.244.0.5:8080").unwrap();
    assert_eq!(from.to_string(), "10.244.0.5:8080");
    assert!(ask_tcp(&world.client, "10.244.0.5:8080").unwrap().0.starts_with("a 192.168.77.2:"));
    assert_eq!(ask_tcp(&world.client, "10.244.0.5:8081").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let refused = world.client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect("10.244.0.5:9")?;
        socket.send(b"who")?;
        socket.recv(&mut [0; 10])
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // What a pod begins itself still goes behind the node's address.
    udp_server(&world.client, "far", 9000);
    let (answer, _) = ask_udp(&world.pods[0], "192.168.77.2:9000").unwrap();
    assert!(answer.starts_with("far 192.168.77.1:"), "{answer}");
}

/// An answer without any connection is none of ours to send: a client outside must not learn of a pod's address by it.
#[test]
fn the_middle_of_an_unknown_connection_does_not_leave_the_node() {
    let world = World::new(SocketHooks::Attached);
    tcp_server(&world.client, "far", 9000);
    let mut stream =
        world.pods[0].run(|| TcpStream::connect_timeout(&"203.0.113.5:9000".parse().unwrap(), PATIENCE).unwrap());
    ask_on(&mut stream).unwrap();
    world.proxy.forget_flows().unwrap();
    assert_eq!(ask_on(&mut stream).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn an_absent_pod_is_answered_for() {
    let world = World::new(SocketHooks::Absent);
    tcp_server(&world.pods[1], "b", 8080);
    world.client.command("ip route add 10.244.0.0/24 via 192.168.77.1");
    let mut open = [&world.pods[0], &world.client].map(|client| {
        client.run(|| TcpStream::connect_timeout(&"10.244.0.6:8080".parse().unwrap(), PATIENCE).unwrap())
    });
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
    let again = netns::Namespace::new();
    world.attach("pod-1", PODS[1], &again.path());
    tcp_server(&again, "b2", 8080);
    assert!(ask_tcp(&world.pods[0], "10.244.0.6:8080").unwrap().0.starts_with("b2"));
}

#[test]
fn spoofed_and_outside_packets_are_dropped_and_counted() {
    let world = World::new(SocketHooks::Attached);
    tcp_server(&world.pods[1], "b", 8080);
    world.serve(&[web().to(&[(PODS[1], 8080)])]);
    let before = world.counters();
    world.client.command("ip route add 10.96.0.0/12 via 192.168.77.1");
    assert_eq!(ask_tcp(&world.client, "10.96.0.80:80").unwrap_err().kind(), ErrorKind::TimedOut);
    world.pods[0].command("ip addr add 10.9.9.9/32 dev eth0");
    world.pods[0].run(|| UdpSocket::bind("10.9.9.9:0").unwrap().send_to(b"x", "10.244.0.6:9").unwrap());
    let rose = world.rose(&before);
    assert!(rose.contains_key("drop_cluster_ip_from_outside") && rose["drop_spoofed"] == 1, "{rose:?}");
}

#[test]
fn nobody_outside_sends_with_an_address_of_this_node() {
    let world = World::new(SocketHooks::Attached);
    let receiver = world.pods[1].run(|| UdpSocket::bind("0.0.0.0:9").unwrap());
    receiver.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    world.client.command("ip route add 10.244.0.0/24 via 192.168.77.1");
    let send = |source: &'static str| {
        world.client.run(move || UdpSocket::bind((source, 0)).unwrap().send_to(b"x", "10.244.0.6:9").unwrap())
    };
    // Its own address is good, and lets the neighbour be found.
    send("192.168.77.2");
    assert_eq!(receiver.recv(&mut [0; 8]).unwrap(), 1);
    // A pod's, a service's, the node's own, and the gateway that pods take the node for.
    for forged in ["10.244.0.5", "10.96.0.80", "192.168.77.1", "169.254.1.1"] {
        world.client.command(&format!("ip addr add {forged}/32 dev lo"));
        let before = world.counters();
        send(forged);
        assert_eq!(receiver.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock, "{forged}");
        let rose = world.rose(&before);
        assert_eq!(rose.get("drop_spoofed"), Some(&1), "{forged}: {rose:?}");
    }
}

#[test]
fn a_pods_packet_that_cannot_be_read_goes_nowhere() {
    let world = World::new(SocketHooks::Attached);
    let before = world.counters();
    // Ten bytes that call themselves IPv4: too few for a header.
    world.pods[0].run(|| send_frame("eth0", &[0x45, 0, 0, 10, 0, 0, 0, 0, 64, 17]));
    assert_eq!(world.rose(&before)["drop_spoofed"], 1);
}

#[test]
fn cluster_dns_is_the_nodes_own_server() {
    for hooks in BOTH {
        let world = World::new(hooks);
        world.serve(&[web()]);
        let server = world.start_dns(&[web()]);
        world.meanwhile(|| {
            for client in [&world.pods[0], &world.node] {
                for protocol in ["+notcp", "+tcp"] {
                    let command =
                        format!("dig {protocol} +short +time=2 +tries=1 @10.96.0.10 web.default.svc.cluster.local");
                    assert_eq!(client.command(&command).trim(), "10.96.0.80", "{hooks:?} {protocol}");
                }
            }
        });
        drop(server);
    }
}

#[test]
fn big_uploads_leave_the_cluster() {
    let world = World::new(SocketHooks::Absent);
    let listener = world.client.run(|| std::net::TcpListener::bind("203.0.113.5:9000").unwrap());
    let sink = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.len()
    });
    world.pods[0].run(|| {
        let mut stream = TcpStream::connect_timeout(&"203.0.113.5:9000".parse().unwrap(), PATIENCE).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&vec![7; 5_000_000]).unwrap();
    });
    assert_eq!(sink.join().unwrap(), 5_000_000);
}

#[test]
fn reset_leaves_the_node_as_it_was() {
    let world = World::new(SocketHooks::Absent);
    world.reset();
    let links = world.node.command("ip -o link show");
    assert_eq!(links.lines().count(), 2, "{links}");
    assert_eq!(world.node.command("cat /proc/sys/net/ipv4/ip_local_reserved_ports").trim(), "");
    let routes = world.node.command("ip route show");
    assert_eq!(routes.lines().count(), 2, "{routes}");
}

#[test]
fn routes_are_of_the_kind_that_network_managers_leave_alone() {
    let world = World::new(SocketHooks::Absent);
    assert_eq!(world.node.command("ip route show proto static"), "");
    let kept = world.node.command("ip route show proto kernel");
    assert!(PODS.iter().chain(&["10.96.0.0/12"]).all(|to| kept.contains(to)), "{kept}");
}

#[test]
fn many_short_connections_all_succeed() {
    for hooks in BOTH {
        let world = World::new(hooks);
        tcp_server(&world.pods[0], "a", 8080);
        tcp_server(&world.pods[1], "b", 8080);
        world.serve(&[Service::new("np", "10.96.0.81", "TCP", json!({"nodePort": 30080})).to(&both_pods(8080))]);
        let outside = |count| (0..count).filter(|_| ask_tcp(&world.client, "192.168.77.1:30080").is_err()).count();
        let inside = |count| (0..count).filter(|_| ask_tcp(&world.pods[0], "10.96.0.81:80").is_err()).count();
        let host = |count| (0..count).filter(|_| ask_tcp(&world.node, "10.96.0.81:80").is_err()).count();
        let failures = std::thread::scope(|scope| {
            let workers = [scope.spawn(|| outside(2000)), scope.spawn(|| inside(2000)), scope.spawn(|| host(2000))];
            workers.map(|worker| worker.join().unwrap())
        });
        assert_eq!(failures, [0, 0, 0], "{hooks:?} {:?}", world.counters());
    }
}

#[test]
fn pods_of_an_earlier_agent_can_be_detached_and_vanished_ones_are_forgotten() {
    let mut world = World::new(SocketHooks::Attached);
    let vanishing = netns::Namespace::new();
    world.attach("pod-9", "10.244.0.9", &vanishing.path());
    world.restart(SocketHooks::Attached);
    assert_eq!(world.proxy.pods().unwrap().len(), 3);
    world.detach("pod-1");
    assert_eq!(world.proxy.pods().unwrap().len(), 2);
    assert_eq!(ask_tcp(&world.pods[0], "10.244.0.6:8080").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    drop(vanishing);
    // The kernel takes a namespace apart in its own time.
    wait_until(|| world.node.command("ip -o link show").lines().count() <= 5);
    world.restart(SocketHooks::Attached);
    assert_eq!(world.proxy.pods().unwrap().len(), 1);
    // One hook for the remaining pod, two at the uplink, one at the service link, ten at sockets.
    assert_eq!(world.pinned_links(), 14);
}
