//! What becomes of the uplink while the agent runs.

use proxy_userspace::SocketHooks;
use serde_json::json;

use crate::family::{Family, Setting};
use crate::netns::Namespace;
use crate::world::*;

const NODE_PORT: &str = "192.168.77.1:30080";

fn served(family: Family) -> World {
    let world = World::new(Setting { family, hooks: SocketHooks::Attached });
    tcp_server(&world.pods[0], "a", 8080);
    world.serve(&[Service::new("np", "10.96.0.81", "TCP", json!({"nodePort": 30080})).to(&[(PODS[0], 8080)])]);
    assert!(ask_tcp(&world.client, NODE_PORT).is_ok());
    world
}

#[test]
fn an_address_that_comes_later_carries_node_ports_until_it_goes() {
    for family in [Family::V4, Family::V6] {
        const LATER: &str = "192.168.77.9:30080";
        let world = served(family);
        assert!(ask_tcp(&world.client, LATER).is_err());
        world.meanwhile(|| {
            world.node.command("ip addr add 192.168.77.9/24 dev eth0");
            wait_until(|| ask_tcp(&world.client, LATER).is_ok());
            world.node.command("ip addr del 192.168.77.9/24 dev eth0");
            wait_until(|| ask_tcp(&world.client, LATER).is_err());
            assert!(ask_tcp(&world.client, NODE_PORT).is_ok());
        });
    }
}

#[test]
fn an_uplink_may_get_another_name() {
    for family in [Family::V4, Family::V6] {
        let mut world = served(family);
        let links = world.pinned_links();
        let rename = |world: &World, from: &str, to: &str| {
            for command in [format!("ip link set {from} down"), format!("ip link set {from} name {to}")] {
                world.node.command(&command);
            }
            world.node.command(&format!("ip link set {to} up"));
            // Those of IPv6 go with a device that is down.
            world.node.command(&format!("ip addr replace 192.168.77.1/24 dev {to}"));
        };
        world.meanwhile(|| {
            rename(&world, "eth0", "lan0");
            wait_until(|| ask_tcp(&world.client, NODE_PORT).is_ok());
        });
        // While no agent runs, too.
        rename(&world, "lan0", "lan1");
        world.restart(SocketHooks::Attached);
        assert!(ask_tcp(&world.client, NODE_PORT).is_ok());
        assert_eq!(world.pinned_links(), links);
    }
}

#[test]
fn an_uplink_may_be_replaced() {
    for family in [Family::V4, Family::V6] {
        let world = served(family);
        let links = world.pinned_links();
        world.meanwhile(|| {
            world.node.command("ip link del eth0");
            assert!(ask_tcp(&world.client, NODE_PORT).is_err());
            world.plug_in();
            wait_until(|| ask_tcp(&world.client, NODE_PORT).is_ok());
        });
        assert_eq!(world.pinned_links(), links);
    }
}

#[test]
fn pods_have_the_uplinks_mtu() {
    for mut world in in_each_family(SocketHooks::Attached) {
        let later = world.namespace();
        // Of pods' devices and the service link's in the node, of the pod's own in a pod.
        let have = |place: &Namespace, devices: &str, wanted: u32| {
            let shown = place.command("ip -o link show");
            let shown: Vec<&str> = shown.lines().filter(|line| line.contains(devices)).collect();
            !shown.is_empty() && shown.iter().all(|line| line.contains(&format!(" mtu {wanted} ")))
        };
        let all_have = |world: &World, wanted| {
            have(&world.node, ": amp", wanted) && world.pods.iter().all(|pod| have(pod, ": eth0", wanted))
        };
        world.meanwhile(|| {
            world.node.command("ip link set eth0 mtu 1400");
            wait_until(|| all_have(&world, 1400));
            world.attach("pod-9", "10.244.0.9", &later.path());
            assert!(have(&later, ": eth0", 1400));
            world.detach("pod-9");
        });
        // It changes while no agent runs, too.
        world.node.command("ip link set eth0 mtu 1300");
        world.restart(SocketHooks::Attached);
        for (index, ip) in PODS.iter().enumerate() {
            world.attach(&format!("pod-{index}"), ip, &world.pods[index].path());
        }
        assert!(all_have(&world, 1300));
    }
}
