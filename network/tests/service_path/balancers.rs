//! Addresses of load balancers: whom they are for.

use std::io::ErrorKind;

use proxy_userspace::SocketHooks;
use serde_json::json;

use crate::world::*;

const BALANCER: &str = "192.168.78.1:80";

fn balanced(ranges: &[&str]) -> Service {
    let spec = json!({"type": "LoadBalancer", "nodePort": 30080, "loadBalancerSourceRanges": ranges});
    Service::new("lb", "10.96.0.81", "TCP", spec).balanced("192.168.78.1").to(&[(PODS[0], 8080)])
}

#[test]
fn source_ranges_hold_for_a_balancers_address_and_nothing_else() {
    for &setting in WORLDS {
        let world = World::new(setting);
        tcp_server(&world.pods[0], "a", 8080);
        world.client.command("ip route add 192.168.78.1 via 192.168.77.1");
        let reaches = |ranges: &[&str]| {
            world.serve(&[balanced(ranges)]);
            [&world.client, &world.pods[1]].map(|place| ask_tcp(place, BALANCER).is_ok())
        };
        assert_eq!(reaches(&[]), [true, true], "{setting:?}");
        assert_eq!(reaches(&["192.168.77.0/24"]), [true, false], "{setting:?}");
        assert_eq!(reaches(&["10.244.0.6/32", "192.0.2.0/24"]), [false, true], "{setting:?}");
        // The same slot for others now, and for everybody again.
        assert_eq!(reaches(&["10.0.0.0/8", "192.168.77.2/32"]), [true, true], "{setting:?}");
        let before = world.counters();
        assert_eq!(reaches(&["192.0.2.0/24"]), [false, false], "{setting:?}");
        assert!(world.rose(&before)["drop_source_range"] >= 2, "{setting:?}");
        // Its other addresses are for everybody.
        for (place, address) in [
            (&world.client, "192.168.77.1:30080"),
            (&world.pods[1], "192.168.77.1:30080"),
            (&world.pods[1], "10.96.0.81:80"),
        ] {
            assert!(ask_tcp(place, address).is_ok(), "{setting:?} {address}");
        }
        assert_eq!(reaches(&[]), [true, true], "{setting:?}");
    }
}

/// As with connection tracking: whoever was let in stays.
#[test]
fn an_open_connection_outlives_its_range_and_a_restart_keeps_ranges() {
    for mut world in in_each_family(SocketHooks::Attached) {
        tcp_server(&world.pods[0], "a", 8080);
        world.client.command("ip route add 192.168.78.1 via 192.168.77.1");
        world.serve(&[balanced(&["192.168.77.2/32"])]);
        let mut open = connect(&world.client, BALANCER).unwrap();
        ask_on(&mut open).unwrap();
        world.serve(&[balanced(&["192.0.2.0/24"])]);
        assert!(ask_tcp(&world.client, BALANCER).is_err());
        // At the socket the answer comes at once.
        assert_eq!(ask_tcp(&world.pods[1], BALANCER).unwrap_err().kind(), ErrorKind::PermissionDenied);
        ask_on(&mut open).unwrap();
        world.restart(SocketHooks::Attached);
        assert!(ask_tcp(&world.client, BALANCER).is_err());
        world.serve(&[balanced(&["192.168.77.0/25"])]);
        assert!(ask_tcp(&world.client, BALANCER).is_ok());
    }
}
