//! What becomes of the uplink while the agent runs.

use proxy_userspace::SocketHooks;
use serde_json::json;

use crate::world::*;

const NODE_PORT: &str = "192.168.77.1:30080";

fn served() -> World {
    let world = World::new(SocketHooks::Attached);
    tcp_server(&world.pods[0], "a", 8080);
    world.serve(&[Service::new("np", "10.96.0.81", "TCP", json!({"nodePort": 30080})).to(&[(PODS[0], 8080)])]);
    assert!(ask_tcp(&world.client, NODE_PORT).is_ok());
    world
}

#[test]
fn an_address_that_comes_later_carries_node_ports_until_it_goes() {
    const LATER: &str = "192.168.77.9:30080";
    let world = served();
    assert!(ask_tcp(&world.client, LATER).is_err());
    world.meanwhile(|| {
        world.node.command("ip addr add 192.168.77.9/24 dev eth0");
        wait_until(|| ask_tcp(&world.client, LATER).is_ok());
        world.node.command("ip addr del 192.168.77.9/24 dev eth0");
        wait_until(|| ask_tcp(&world.client, LATER).is_err());
        assert!(ask_tcp(&world.client, NODE_PORT).is_ok());
    });
}

#[test]
fn an_uplink_may_get_another_name() {
    let mut world = served();
    let links = world.pinned_links();
    let rename = |world: &World, from: &str, to: &str| {
        for command in [format!("ip link set {from} down"), format!("ip link set {from} name {to}")] {
            world.node.command(&command);
        }
        world.node.command(&format!("ip link set {to} up"));
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

#[test]
fn an_uplink_may_be_replaced() {
    let world = served();
    let links = world.pinned_links();
    world.meanwhile(|| {
        world.node.command("ip link del eth0");
        assert!(ask_tcp(&world.client, NODE_PORT).is_err());
        world.plug_in();
        wait_until(|| ask_tcp(&world.client, NODE_PORT).is_ok());
    });
    assert_eq!(world.pinned_links(), links);
}

#[test]
fn pods_that_come_later_get_the_uplinks_new_mtu() {
    let world = World::new(SocketHooks::Attached);
    let later = crate::netns::Namespace::new();
    world.meanwhile(|| {
        world.node.command("ip link set eth0 mtu 1400");
        wait_until(|| {
            world.detach("pod-9");
            world.attach("pod-9", "10.244.0.9", &later.path());
            later.command("cat /sys/class/net/eth0/mtu").trim() == "1400"
        });
    });
}
