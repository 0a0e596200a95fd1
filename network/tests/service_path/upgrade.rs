//! Another version takes over: maps of other layouts, the same connections.

use std::collections::BTreeSet;
use std::net::{TcpStream, UdpSocket};

use proxy_userspace::SocketHooks;
use proxy_userspace::layout::{CURRENT, Layout, NEXT};
use serde_json::json;

use crate::world::*;

fn services() -> [Service; 2] {
    let to = &[(PODS[0], 8080)];
    let sticky = json!({"nodePort": 30080, "sessionAffinity": "ClientIP"});
    [
        Service::new("tcp", "10.96.0.80", "TCP", sticky).to(&[(PODS[0], 8080), (PODS[1], 8080)]),
        Service::new("udp", "10.96.0.81", "UDP", json!({"nodePort": 30081})).to(to),
    ]
}

/// Connections of every kind, each with what its server sees of it.
struct Open {
    streams: Vec<TcpStream>,
    datagrams: Vec<UdpSocket>,
}

impl Open {
    /// NodePort from outside, ClusterIP from pod and host, and a pod's way out of the cluster.
    fn new(world: &World) -> Self {
        let (client, pod, node) = (&world.client, &world.pods[1], &world.node);
        let streams = vec![
            connect(client, "192.168.77.1:30080"),
            connect(pod, "10.96.0.80:80"),
            connect(node, "10.96.0.80:80"),
            connect(pod, "203.0.113.5:9000"),
        ];
        let streams = streams.into_iter().map(Result::unwrap).collect();
        let datagrams = vec![
            connected_udp(client, "192.168.77.1:30081"),
            connected_udp(pod, "10.96.0.81:80"),
            connected_udp(node, "10.96.0.81:80"),
            connected_udp(pod, "192.168.77.2:9000"),
        ];
        Self { streams, datagrams }
    }

    /// The answers name endpoint and client as the endpoint sees it: they stay as long as the connection is the same. Source and peer
    /// are what the client sees of the service.
    fn ask(&mut self) -> Vec<String> {
        let mut answers = Vec::new();
        for stream in &mut self.streams {
            answers.push(format!("{} from {}", ask_on(stream).unwrap(), stream.peer_addr().unwrap()));
        }
        for socket in &self.datagrams {
            socket.send(b"who").unwrap();
            let mut answer = [0; 100];
            let (length, from) = socket.recv_from(&mut answer).unwrap();
            answers.push(format!("{} from {from}", String::from_utf8_lossy(&answer[..length])));
        }
        answers
    }
}

fn serve_everywhere(world: &World) {
    for (place, name) in [(&world.pods[0], "a"), (&world.pods[1], "b")] {
        tcp_server(place, name, 8080);
        udp_server(place, name, 8080);
    }
    tcp_server(&world.client, "far", 9000);
    udp_server(&world.client, "far", 9000);
    world.serve(&services());
}

fn pins(layouts: &[Layout]) -> BTreeSet<String> {
    layouts.iter().map(Layout::pin_name).collect()
}

#[test]
fn connections_survive_an_upgrade_to_other_layouts() {
    for &setting in WORLDS {
        let (mut world, hooks) = (World::new(setting), setting.hooks);
        serve_everywhere(&world);
        let mut open = Open::new(&world);
        let before = open.ask();
        assert_eq!(world.pinned_maps(), pins(CURRENT));
        let counted = world.counters();
        world.restart_in_layouts(hooks, NEXT);
        assert_eq!(world.pinned_maps(), pins(NEXT));
        assert!(pins(NEXT).intersection(&pins(CURRENT)).count() == 4, "all but what sockets hold moved");
        assert_eq!(open.ask(), before, "{setting:?}");
        // What began is known, so nothing began anew; the counts go on.
        assert_eq!(world.rose(&counted).get("service_flow"), None, "{setting:?}");
        // Contents serve before the first apply, sticky clients keep their endpoint, and the next start adopts all of it.
        for (client, address, index) in [(&world.client, "192.168.77.1:30080", 0), (&world.pods[1], "10.96.0.80:80", 1)]
        {
            assert_eq!(ask_tcp(client, address).unwrap().0[..1], before[index][..1], "{setting:?}");
        }
        world.serve(&services());
        assert_eq!(open.ask(), before, "{setting:?}");
        world.restart_in_layouts(hooks, NEXT);
        assert_eq!(open.ask(), before, "{setting:?}");
    }
}

#[test]
fn an_earlier_version_makes_the_maps_of_a_later_one_anew() {
    let hooks = SocketHooks::Attached;
    let mut world = World::new(hooks);
    world.restart_in_layouts(hooks, NEXT);
    serve_everywhere(&world);
    let mut open = Open::new(&world);
    open.ask();
    world.restart(hooks);
    assert_eq!(world.pinned_maps(), pins(CURRENT));
    for (index, ip) in PODS.iter().enumerate() {
        world.attach(&format!("pod-{index}"), ip, &world.pods[index].path());
    }
    world.serve(&services());
    // The socket path needs no memory of a connection; the packet path tells its clients at once that it has none.
    ask_on(&mut open.streams[1]).unwrap();
    assert!(ask_on(&mut open.streams[0]).is_err());
    assert!(ask_tcp(&world.client, "192.168.77.1:30080").is_ok());
    assert!(ask_tcp(&world.pods[1], "10.96.0.80:80").is_ok());
}
