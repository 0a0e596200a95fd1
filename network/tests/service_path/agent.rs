//! What an agent that starts again takes up, and what a reset leaves.

use std::io::ErrorKind;

use proxy_userspace::SocketHooks;
use serde_json::json;

use crate::world::*;

#[test]
fn connections_survive_a_restart_of_the_agent() {
    for &setting in WORLDS {
        let mut world = World::new(setting);
        tcp_server(&world.pods[0], "a", 8080);
        let service = || Service::new("np", "10.96.0.80", "TCP", json!({"nodePort": 30080}));
        world.serve(&[service().to(&[(PODS[0], 8080)])]);
        let mut open = [
            connect(&world.client, "192.168.77.1:30080").unwrap(),
            connect(&world.pods[1], "10.96.0.80:80").unwrap(),
            connect(&world.node, "10.96.0.80:80").unwrap(),
        ];
        open.iter_mut().for_each(|stream| drop(ask_on(stream).unwrap()));
        world.restart(setting.hooks);
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

#[test]
fn pods_of_an_earlier_agent_can_be_detached_and_vanished_ones_are_forgotten() {
    for mut world in in_each_family(SocketHooks::Attached) {
        let vanishing = world.namespace();
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
}

#[test]
fn reset_leaves_the_node_as_it_was() {
    for world in in_each_family(SocketHooks::Absent) {
        world.reset();
        let links = world.node.command("ip -o link show");
        assert_eq!(links.lines().count(), 2, "{links}");
        assert_eq!(world.node.command("cat /proc/sys/net/ipv4/ip_local_reserved_ports").trim(), "");
        let routes = world.node.command("ip route show");
        let kept = routes.lines().filter(|route| !route.starts_with("fe80::"));
        assert_eq!(kept.count(), 2, "{routes}");
    }
}

#[test]
fn routes_are_of_the_kind_that_network_managers_leave_alone() {
    for world in in_each_family(SocketHooks::Absent) {
        assert_eq!(world.node.command("ip route show proto static"), "");
        let kept = world.node.command("ip route show proto kernel");
        let to = PODS.iter().chain(&["10.96.0.0/12"]).map(|to| world.family.line(to));
        assert!(to.into_iter().all(|to| kept.contains(&to)), "{kept}");
    }
}
