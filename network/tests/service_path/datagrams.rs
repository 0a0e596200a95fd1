//! Datagrams to services: which address answers show, and what sockets hear when endpoints come and go.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use proxy_userspace::SocketHooks;
use serde_json::json;

use crate::family::Family;
use crate::world::*;

#[test]
fn datagrams_show_the_services_address() {
    for &setting in WORLDS {
        let world = World::new(setting);
        udp_server(&world.pods[1], "b", 5353);
        let services = || {
            [("one", "10.96.0.11"), ("two", "10.96.0.12")].map(|(name, ip)| Service::new(name, ip, "UDP", json!({})))
        };
        world.serve(&services().map(|service| service.to(&[(PODS[1], 5353)])));
        for client in [&world.pods[0], &world.node] {
            let (_, from) = ask_udp(client, "10.96.0.11:80").unwrap_or_else(|error| panic!("{setting:?} {error}"));
            assert_eq!(from.to_string(), "10.96.0.11:80");
            // One socket, two services, one endpoint behind both: each reply carries the address that was asked.
            let socket = bound(client, "0.0.0.0:0");
            for service in ["10.96.0.11:80", "10.96.0.12:80", "10.96.0.11:80"] {
                let (_, from) = ask_udp_on(&socket, client, service)
                    .unwrap_or_else(|error| panic!("{setting:?} {service} {error}"));
                assert_eq!(from.to_string(), service, "{setting:?}");
            }
            let connected = connected_udp(client, "10.96.0.12:80");
            let connected = client.run(move || {
                connected.send(b"who")?;
                let (_, from) = connected.recv_from(&mut [0; 100])?;
                Ok::<_, std::io::Error>((from, connected.peer_addr()?))
            });
            let service = client.at("10.96.0.12:80");
            assert_eq!(connected.unwrap(), (service, service));
        }
    }
}

/// A resolver may connect for its errors and then send with an address all the same.
#[test]
fn a_connected_socket_that_names_the_service_reaches_its_own_endpoint() {
    for world in in_each_family(SocketHooks::Attached) {
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
}

#[test]
fn connecting_datagrams_never_fails_and_an_endpoint_may_come_later() {
    for &setting in WORLDS {
        let world = World::new(setting);
        udp_server(&world.pods[1], "b", 8080);
        let udp = || Service::new("udp", "10.96.0.11", "UDP", json!({}));
        world.serve(&[udp()]);
        for client in [&world.pods[0], &world.node] {
            let socket = connected_udp(client, "10.96.0.11:80");
            socket.send(b"who").unwrap();
            assert_eq!(socket.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{setting:?}");
            world.serve(&[udp().to(&[(PODS[1], 8080)])]);
            socket.send(b"who").unwrap();
            let mut answer = [0; 100];
            let length =
                socket.recv(&mut answer).unwrap_or_else(|error| panic!("{setting:?} {error} {:?}", world.counters()));
            assert!(answer[..length].starts_with(b"b "), "{setting:?}");
            world.serve(&[udp()]);
        }
    }
}

/// What a connected socket sends passes no hook: it is ended, and its program connects anew.
#[test]
fn a_connected_socket_whose_endpoint_goes_hears_of_it_within_a_second() {
    for world in in_each_family(SocketHooks::Attached) {
        for (pod, name) in world.pods.iter().zip(["a", "b"]) {
            udp_server(pod, name, 8080);
        }
        let udp = |name, ip| Service::new(name, ip, "UDP", json!({}));
        let left = |endpoints: &[(&str, u16)]| {
            [udp("one", "10.96.0.11").to(endpoints), udp("two", "10.96.0.12").to(&[(PODS[0], 8080)])]
        };
        for client in [&world.pods[1], &world.node] {
            world.serve(&left(&[(PODS[0], 8080)]));
            let (socket, other) = (connected_udp(client, "10.96.0.11:80"), connected_udp(client, "10.96.0.12:80"));
            let direct = connected_udp(client, "10.244.0.5:8080");
            let ask = |socket: &UdpSocket| {
                socket.send(b"who")?;
                let mut answer = [0; 100];
                socket.recv(&mut answer).map(|length| String::from_utf8_lossy(&answer[..length]).into_owned())
            };
            assert!(ask(&socket).unwrap().starts_with("a "));
            let ended = world.proxy.ended_sockets();
            world.serve(&left(&[(PODS[1], 8080)]));
            let started = Instant::now();
            // It waits for an answer that will not come.
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            assert_eq!(socket.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
            println!("ended after {:?}", started.elapsed());
            assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
            let (again, service) = (socket.try_clone().unwrap(), client.at("10.96.0.11:80"));
            client.run(move || again.connect(service)).unwrap();
            assert!(ask(&socket).unwrap().starts_with("b "));
            // Nobody else is: not of another service of the same endpoint, not who asked the endpoint itself.
            assert!(ask(&other).unwrap().starts_with("a ") && ask(&direct).unwrap().starts_with("a "));
            assert_eq!(world.proxy.ended_sockets(), ended + 1);
        }
    }
}

/// One that an agent did not live to end is ended by the next.
#[test]
fn a_socket_whose_endpoint_went_unseen_is_ended_by_the_next_agent() {
    for mut world in in_each_family(SocketHooks::Attached) {
        udp_server(&world.pods[0], "a", 8080);
        world.serve(&[Service::new("udp", "10.96.0.11", "UDP", json!({})).to(&[(PODS[0], 8080)])]);
        let socket = connected_udp(&world.node, "10.96.0.11:80");
        world.restart(SocketHooks::Attached);
        world.serve(&[]);
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert_eq!(socket.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
    }
}

/// One endpoint behind two services, one socket that asks both: each answer is of the service that was asked, or none comes, as from
/// servers apart.
#[test]
fn a_socket_that_connects_and_names_is_never_answered_by_another_service() {
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Step {
        Connect(&'static str),
        Send(&'static str),
        Disconnect,
    }
    use Step::{Connect, Disconnect, Send};
    const ONE: &str = "10.96.0.11:80";
    const TWO: &str = "10.96.0.12:80";
    // What is done, and who may answer the last question.
    let orders: [(&[Step], Option<&str>); 4] = [
        (&[Connect(ONE), Send(TWO)], None),
        (&[Connect(ONE), Disconnect, Send(TWO)], Some(TWO)),
        (&[Send(ONE), Connect(TWO), Send(TWO)], Some(TWO)),
        (&[Send(ONE), Connect(TWO), Disconnect, Send(ONE)], Some(ONE)),
    ];
    for world in in_each_family(SocketHooks::Attached) {
        udp_server(&world.pods[1], "b", 8080);
        let udp = |name, ip| Service::new(name, ip, "UDP", json!({})).to(&[(PODS[1], 8080)]);
        world.serve(&[udp("one", "10.96.0.11"), udp("two", "10.96.0.12")]);
        for client in [&world.pods[0], &world.node] {
            for (steps, expected) in orders {
                let (socket, family) = (bound(client, "0.0.0.0:0"), world.family);
                let heard = client.run(move || {
                    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                    let (last, before) = steps.split_last().unwrap();
                    for step in before.iter().chain([last]) {
                        match *step {
                            Connect(to) => socket.connect(family.at(to)).unwrap(),
                            Disconnect => disconnect(&socket),
                            Send(to) => drop(socket.send_to(b"who", family.at(to)).unwrap()),
                        }
                        // Answers to what was asked before are not looked at.
                        if step != last && matches!(step, Send(_)) {
                            socket.recv_from(&mut [0; 100]).unwrap();
                        }
                    }
                    socket.recv_from(&mut [0; 100]).ok().map(|(_, from)| from)
                });
                // Linux may have a socket of IPv6 hear its last peer alone, also after it is disconnected.
                let deaf = family == Family::V6 && steps.contains(&Disconnect) && heard.is_none();
                assert!(
                    deaf || heard == expected.map(|expected| family.at(expected)),
                    "{family:?} {steps:?} {heard:?}"
                );
            }
        }
    }
}

fn disconnect(socket: &UdpSocket) {
    // SAFETY: an address of no family, of the stated size.
    let done = unsafe {
        let mut nowhere: libc::sockaddr = std::mem::zeroed();
        nowhere.sa_family = libc::AF_UNSPEC as u16;
        libc::connect(socket.as_raw_fd(), &raw const nowhere, size_of::<libc::sockaddr>() as u32)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// The list of one socket's services is shared by its threads.
#[test]
fn threads_of_one_socket_do_not_mix_services() {
    for world in in_each_family(SocketHooks::Attached) {
        udp_server(&world.pods[1], "b", 8080);
        udp_server(&world.pods[1], "c", 8081);
        world.serve(&[
            Service::new("one", "10.96.0.11", "UDP", json!({})).to(&[(PODS[1], 8080)]),
            Service::new("two", "10.96.0.12", "UDP", json!({})).to(&[(PODS[1], 8081)]),
        ]);
        let socket = bound(&world.pods[0], "0.0.0.0:0");
        let netns = world.pods[0].file();
        std::thread::scope(|scope| {
            for service in ["10.96.0.11:80", "10.96.0.12:80"].map(|service| world.family.at(service)) {
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
                assert_eq!(from, world.family.at(expected));
                heard += 1;
                if heard == 1000 {
                    break;
                }
            }
            assert!(heard > 100, "{heard}");
        });
    }
}

#[test]
fn fragments_follow_their_first() {
    for world in in_each_family(SocketHooks::Absent) {
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
            let (socket, to) = (bound(client, "0.0.0.0:0"), client.at(address));
            let answer = client.run(move || {
                socket.send_to(&[7; 4000], to)?;
                let mut answer = [0; 100];
                let (length, _) = socket.recv_from(&mut answer)?;
                Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer[..length]).into_owned())
            });
            assert!(answer.as_ref().is_ok_and(|answer| answer.ends_with(" 4000")), "{address} {answer:?}");
        }
    }
}
