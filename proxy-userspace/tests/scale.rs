//! Ten thousand services in real maps: loading them, changing one, taking them up after a restart.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use proxy_common::{Scope, TCP};
use proxy_userspace::desired::{Contents, EndpointSet, Entry, Frontend, Target};
use proxy_userspace::{Attachment, Config, Families, Proxy, SocketHooks};

const SERVICES: u32 = 10_000;

/// Pins that go with the test, however it ends.
struct Pins(tempfile::TempDir);

impl Drop for Pins {
    fn drop(&mut self) {
        Proxy::unload(&self.0.path().join("bpf")).unwrap();
    }
}

fn start(pins: &Pins) -> Proxy {
    let hybrid = Path::new("/sys/fs/cgroup/unified");
    let cgroup_root = if hybrid.exists() { hybrid } else { Path::new("/sys/fs/cgroup") }.to_owned();
    let (bpf_root, families) = (pins.0.path().join("bpf"), Families::V4);
    let attachment = Attachment::of_this_kernel();
    Proxy::start(&Config { bpf_root, cgroup_root, socket_hooks: SocketHooks::Absent, attachment, families }).unwrap()
}

fn entry(service: u32, endpoints: u32) -> Entry {
    let address = |base: [u8; 4], offset: u32| Ipv4Addr::from(u32::from_be_bytes(base) + offset);
    let pod = |index: u32| address([10, 244, 0, 0], service * 4 + index).into();
    let backends = (0..endpoints).map(|index| Target { ip: pod(index), port: 8080 }).collect();
    let addr = address([10, 96, 0, 0], service + 1).into();
    let frontends = vec![Frontend { addr, port: 80, protocol: TCP, scope: Scope::Internal }];
    Entry { port: 80, protocol: TCP, frontends, set: EndpointSet { backends, ..Default::default() } }
}

#[test]
fn ten_thousand_services() {
    let pins = Pins(tempfile::tempdir().unwrap());
    let contents: Contents =
        (0..SERVICES).map(|service| (format!("default/s{service}"), vec![entry(service, 4)])).collect();
    let proxy = start(&pins);
    let timed = |what: &str, limit: Duration, work: &dyn Fn()| {
        let begin = Instant::now();
        work();
        let taken = begin.elapsed();
        println!("{what}: {taken:?}");
        assert!(taken < limit, "{what} took {taken:?}");
    };
    let apply = |proxy: &Proxy| assert!(proxy.apply(&contents).unwrap().is_empty());
    timed("from nothing", Duration::from_secs(2), &|| apply(&proxy));
    assert_eq!(proxy.usage().0, SERVICES as usize);
    timed("nothing new", Duration::from_millis(500), &|| apply(&proxy));
    timed("1000 changes of one service each", Duration::from_secs(1), &|| {
        for service in 0..1000 {
            assert!(proxy.apply_service(&format!("default/s{service}"), &[entry(service, 3)]).unwrap().is_empty());
        }
    });
    drop(proxy);
    let again = start(&pins);
    assert_eq!(again.usage().0, SERVICES as usize);
    timed("after a restart", Duration::from_secs(2), &|| apply(&again));
    timed("all gone", Duration::from_secs(2), &|| assert!(again.apply(&Contents::new()).unwrap().is_empty()));
    assert_eq!(again.usage().0, 0);
}
