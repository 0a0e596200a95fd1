//! Ports of the node that are a pod's own.

use std::io::ErrorKind;

use network::HostPortRefusal;
use proxy_userspace::SocketHooks;
use serde_json::json;

use crate::world::*;

const HOST_PORT: &str = "192.168.77.1:8888";

fn serves(world: &World, hooks: SocketHooks) {
    let (answer, _) = ask_tcp(&world.client, HOST_PORT).unwrap();
    assert!(answer.starts_with("a 192.168.77.2:"), "the client keeps its address: {answer}");
    for (who, client) in [("itself", &world.pods[0]), ("a pod", &world.pods[1])] {
        assert!(ask_tcp(client, HOST_PORT).is_ok(), "{who} {hooks:?}");
    }
    // What the node sends to its own address passes no device.
    if hooks == SocketHooks::Attached {
        assert!(ask_tcp(&world.node, HOST_PORT).is_ok());
    }
}

fn refuses(world: &World) {
    for client in [&world.client, &world.node, &world.pods[1]] {
        assert_eq!(ask_tcp(client, HOST_PORT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn host_ports_lead_to_their_pod_as_long_as_it_is_there_whatever_services_there_are() {
    for &setting in WORLDS {
        let mut world = World::new(setting);
        tcp_server(&world.pods[0], "a", 8080);
        assert_eq!(world.open_host_port(0, 8888, None), []);
        serves(&world, setting.hooks);
        world.serve(&[]);
        serves(&world, setting.hooks);
        world.serve(&[Service::new("web", "10.96.0.80", "TCP", json!({})).to(&[(PODS[0], 8080)])]);
        serves(&world, setting.hooks);
        // An agent that comes back knows them before it knows pods or Services.
        world.restart(setting.hooks);
        serves(&world, setting.hooks);
        world.serve(&[]);
        serves(&world, setting.hooks);
        assert_eq!(world.open_host_port(0, 8888, None), []);
        serves(&world, setting.hooks);
        world.detach("pod-0");
        refuses(&world);
        world.restart(setting.hooks);
        world.serve(&[]);
        refuses(&world);
    }
}

#[test]
fn ports_of_pods_are_reserved_as_long_as_they_have_them_however_many_there_are() {
    for mut world in in_each_family(SocketHooks::Attached) {
        let reserved = |world: &World| {
            let list = world.node.command("sysctl -n net.ipv4.ip_local_reserved_ports");
            list.trim().split(',').map(str::to_owned).collect::<Vec<_>>()
        };
        let before = reserved(&world);
        // Longer than what is read at first where a file is read to its end.
        let ports = [80, 443, 8080, 9100, 10_250, 20_000, 25_000];
        for port in ports {
            assert_eq!(world.open_host_ports(0, &[port]), []);
        }
        assert_eq!(world.open_host_ports(0, &ports), []);
        let during = reserved(&world);
        assert!(
            ports.iter().all(|port| during.contains(&port.to_string()))
                && before.iter().all(|own| during.contains(own))
        );
        world.restart(SocketHooks::Attached);
        assert_eq!(world.open_host_ports(0, &ports), []);
        world.detach("pod-0");
        assert_eq!(reserved(&world), before);
    }
}

#[test]
fn host_ports_go_with_a_pod_that_went_while_no_agent_ran() {
    for mut world in in_each_family(SocketHooks::Attached) {
        assert_eq!(world.open_host_port(0, 8888, None), []);
        let devices = |world: &World| world.node.command("ip -o link show").lines().count();
        let before = devices(&world);
        drop(world.pods.remove(0));
        // A process that looks after a pod's sockets keeps its namespace; without one, the kernel takes that apart in its own time.
        world.restart(SocketHooks::Attached);
        world.meanwhile(|| wait_until(|| devices(&world) < before));
        world.restart(SocketHooks::Attached);
        world.serve(&[]);
        assert_eq!(ask_tcp(&world.client, HOST_PORT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn a_host_port_that_is_anothers_is_had_when_it_comes_free() {
    for world in in_each_family(SocketHooks::Attached) {
        tcp_server(&world.pods[1], "b", 8080);
        assert_eq!(world.open_host_port(0, 8888, None), []);
        let refused = world.open_host_port(1, 8888, None);
        let said: Vec<String> = refused.iter().map(ToString::to_string).collect();
        let (every, pod) = (world.family.at("0.0.0.0:8888"), world.family.ip(PODS[0]));
        assert_eq!(said[0], format!("{every}/TCP belongs to host ports of {pod} already"));
        world.detach("pod-0");
        assert!(ask_tcp(&world.client, HOST_PORT).unwrap().0.starts_with("b "));
    }
}

#[test]
fn a_host_port_is_of_the_nodes_addresses_and_no_others() {
    for world in in_each_family(SocketHooks::Attached) {
        tcp_server(&world.pods[0], "a", 8080);
        tcp_server(&world.pods[1], "b", 8080);
        let refused = world.open_host_port(0, 8888, Some("203.0.113.5"));
        assert_eq!(refused, [HostPortRefusal::Elsewhere(world.family.ip("203.0.113.5"))]);
        refuses(&world);
        assert_eq!(world.open_host_port(0, 8888, Some("192.168.77.1")), []);
        serves(&world, SocketHooks::Attached);
        // The node's own loopback is nobody else's.
        assert_eq!(world.open_host_port(0, 8080, Some("127.0.0.1")), []);
        assert!(ask_tcp(&world.node, "127.0.0.1:8080").unwrap().0.starts_with("a "));
        assert!(ask_tcp(&world.pods[1], "127.0.0.1:8080").unwrap().0.starts_with("b "));
        assert_eq!(ask_tcp(&world.client, "192.168.77.1:8080").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn the_kernel_chooses_no_host_port() {
    for world in in_each_family(SocketHooks::Attached) {
        assert_eq!(world.open_host_port(0, 8888, None), []);
        let reserved = || world.node.command("cat /proc/sys/net/ipv4/ip_local_reserved_ports").trim().to_owned();
        assert_eq!(reserved(), "8888,30000-32767,50000-64999");
        world.reset();
        assert_eq!(reserved(), "");
    }
}
