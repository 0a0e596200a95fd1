//! Much at once: no byte, and no connection, is lost.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proxy_userspace::SocketHooks;
use serde_json::json;

use crate::world::*;

#[test]
fn much_data_passes_whole() {
    for &setting in WORLDS {
        let world = World::new(setting);
        tcp_server(&world.pods[1], "b", 8080);
        world.serve(&[Service::new("np", "10.96.0.80", "TCP", json!({"nodePort": 30080})).to(&[(PODS[1], 8080)])]);
        for (client, address) in
            [(&world.pods[0], "10.96.0.80:80"), (&world.node, "10.96.0.80:80"), (&world.client, "192.168.77.1:30080")]
        {
            let mut stream = connect(client, address).unwrap();
            let total = client.run(move || {
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
            assert!(total.unwrap_or_else(|error| panic!("{setting:?} {address} {error}")) > 20 * 200_000);
        }
    }
}

#[test]
fn flipping_sets_never_fails_a_client() {
    for world in in_each_family(SocketHooks::Attached) {
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
}

#[test]
fn many_short_connections_all_succeed() {
    for &setting in WORLDS {
        let world = World::new(setting);
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
        assert_eq!(failures, [0, 0, 0], "{setting:?} {:?}", world.counters());
    }
}
