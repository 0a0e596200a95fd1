//! A node, two pods and a client outside, joined by a veth pair that stands for the network between node and client.
//!
//! The node is as unhelpful as real ones may be: FORWARD policy DROP, strict reverse-path filter, no global forwarding. Checksum
//! offload is off at every end, so that a wrong sum is a lost packet.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::FromRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use network::{Config, HostPortRefusal, Network, Peer, PodNetwork, PortRange, Ranges};
use proxy_userspace::desired::{HostPort, LocalServer, NodeFacts, desired};
use proxy_userspace::layout::{CURRENT, Layout};
use proxy_userspace::{Attachment, Families, Proxy, SocketHooks};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::family::{Family, Setting, named_at};
use crate::netns::Namespace;

pub const NODE: &str = "192.168.77.1";
pub const CLIENT: &str = "192.168.77.2";
/// An address far outside, behind the client.
pub const OUTSIDE: &str = "203.0.113.5";
pub const PODS: [&str; 2] = ["10.244.0.5", "10.244.0.6"];
/// Where the node's DNS server listens.
const DNS: &str = "192.168.77.1:10053";
pub const PATIENCE: Duration = Duration::from_secs(2);
pub use crate::family::WORLDS;

pub struct World {
    pub node: Namespace,
    pub client: Namespace,
    pub pods: Vec<Namespace>,
    pub proxy: Arc<Proxy>,
    network: Option<Arc<Network>>,
    runtime: Arc<Runtime>,
    folder: Folder,
    snat_ports: PortRange,
    pub family: Family,
    /// Other nodes.
    pub peers: watch::Sender<Vec<Peer>>,
}

/// A world of either family, one after the other.
pub fn in_each_family(hooks: SocketHooks) -> impl Iterator<Item = World> {
    [Family::V4, Family::V6].into_iter().map(move |family| World::new(Setting { family, hooks }))
}

/// Pins and state of a node; gone when the test ends, however it ends.
struct Folder(tempfile::TempDir);

impl Folder {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        Proxy::unload(&self.path().join("bpf")).unwrap();
    }
}

fn cluster_dns(family: Family) -> LocalServer {
    LocalServer { address: family.at("10.96.0.10:53"), server: family.at(DNS) }
}

fn cgroup_root() -> &'static Path {
    let hybrid = Path::new("/sys/fs/cgroup/unified");
    if hybrid.exists() { hybrid } else { Path::new("/sys/fs/cgroup") }
}

impl World {
    pub fn new(setting: impl Into<Setting>) -> Self {
        Self::with_ports(setting, Config::DEFAULT_SNAT_PORTS)
    }

    /// With so many ports behind the node's address.
    pub fn with_ports(setting: impl Into<Setting>, snat_ports: PortRange) -> Self {
        let Setting { family, hooks } = setting.into();
        let folder = Folder(tempfile::tempdir().unwrap());
        let (node, client) = (Namespace::of(family), Namespace::of(family));
        join(&node, &client);
        let runtime = Arc::new(tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
        let peers = watch::Sender::new(Vec::new());
        let config = config(family, folder.path(), snat_ports);
        let (proxy, network) = start(&node, &runtime, config, hooks, CURRENT, peers.subscribe());
        let network = Some(network);
        let mut world =
            Self { node, client, pods: Vec::new(), proxy, network, runtime, folder, snat_ports, family, peers };
        for (index, ip) in PODS.iter().enumerate() {
            let pod = world.namespace();
            world.attach(&format!("pod-{index}"), ip, &pod.path());
            pod.command("ethtool -K eth0 tx off");
            world.pods.push(pod);
        }
        world
    }

    /// Another place of this world's family.
    pub fn namespace(&self) -> Namespace {
        Namespace::of(self.family)
    }

    /// No agent runs any more.
    pub fn stop(&mut self) {
        self.network = None;
    }

    /// What an agent does when it comes back.
    pub fn restart(&mut self, hooks: SocketHooks) {
        self.restart_in_layouts(hooks, CURRENT);
    }

    /// The same by another version.
    pub fn restart_in_layouts(&mut self, hooks: SocketHooks, layouts: &'static [Layout]) {
        self.network = None;
        let config = config(self.family, self.folder.path(), self.snat_ports);
        let (proxy, network) = start(&self.node, &self.runtime, config, hooks, layouts, self.peers.subscribe());
        (self.proxy, self.network) = (proxy, Some(network));
    }

    /// On a node that has addresses of these families in its settings now.
    pub fn restart_in_families(&mut self, hooks: SocketHooks, family: Family) {
        self.family = family;
        self.restart(hooks);
    }

    /// With another range of ports behind the node's address.
    pub fn restart_with_ports(&mut self, hooks: SocketHooks, snat_ports: PortRange) {
        self.snat_ports = snat_ports;
        self.restart(hooks);
    }

    fn network(&self) -> Arc<Network> {
        Arc::clone(self.network.as_ref().unwrap())
    }

    /// The node's uplink, as it was when everything began.
    pub fn plug_in(&self) {
        plug_in(&self.node, &self.client);
    }

    pub fn pinned_maps(&self) -> BTreeSet<String> {
        let folder = std::fs::read_dir(self.folder.path().join("bpf/maps")).unwrap();
        folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub fn pinned_links(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("bpf/links")).unwrap().count()
    }

    /// What `amphipod reset` does.
    pub fn reset(&self) {
        let (runtime, folder) = (Arc::clone(&self.runtime), self.folder.path().to_owned());
        self.node.run(move || runtime.block_on(Network::reset(&folder.join("state")))).unwrap();
    }

    /// The node's DNS server; cluster DNS is translated to it.
    pub fn start_dns(&self, objects: &[Service]) -> dns::Server {
        let config = dns::Config {
            domain: "cluster.local".into(),
            node: "n1".into(),
            pods: Vec::new(),
            servers: Vec::new(),
            upstreams: Vec::new(),
            stubs: Vec::new(),
            clients: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
            log: dns::QueryLog::Off,
            autopath: dns::Autopath::Off,
        };
        let family = self.family;
        let objects: Vec<_> =
            objects.iter().map(|service| serde_json::from_value(service.object(family)).unwrap()).collect();
        let runtime = Arc::clone(&self.runtime);
        let server = self.node.run(move || {
            let sockets = dns::Sockets::bind(family.at(DNS)).unwrap();
            let _runtime = runtime.enter();
            dns::Server::start(config, sockets).unwrap()
        });
        server.publish(dns::Snapshot::compute(["default".to_owned()], &objects, &[]));
        server
    }

    /// Keeps the node's tasks going, on a thread in its namespace, while `work` goes on elsewhere.
    pub fn meanwhile<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let (done, ended) = tokio::sync::oneshot::channel::<()>();
        let (runtime, netns) = (Arc::clone(&self.runtime), self.node.file());
        std::thread::scope(|scope| {
            let node = scope.spawn(move || {
                let turned = proxy_userspace::sys::inside(&netns, || Ok(runtime.block_on(ended)));
                assert!(turned.unwrap().is_err(), "ends when its sender is dropped");
            });
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            drop(done);
            node.join().unwrap();
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn attach(&self, uid: &str, ip: &str, netns: &Path) {
        assert!(self.attach_with(uid, ip, netns, &[]).is_empty());
    }

    /// With ports of the node; what of them it does not get.
    pub fn attach_with(&self, uid: &str, ip: &str, netns: &Path, ports: &[HostPort]) -> Vec<HostPortRefusal> {
        let (network, runtime) = (self.network(), Arc::clone(&self.runtime));
        let (uid, addresses, netns) = (uid.to_owned(), self.family.ips(ip).collect(), netns.to_owned());
        let pod = PodNetwork { uid, addresses, netns, host_ports: ports.to_vec() };
        self.node.run(move || runtime.block_on(network.attach(&pod))).unwrap()
    }

    pub fn detach(&self, uid: &str) {
        let (network, runtime, uid) = (self.network(), Arc::clone(&self.runtime), uid.to_owned());
        self.node.run(move || runtime.block_on(network.detach(&uid))).unwrap();
    }

    /// A port of the node leads to the 8080 of one of the pods.
    pub fn open_host_port(&self, pod: usize, host_port: u16, host_ip: Option<&str>) -> Vec<HostPortRefusal> {
        let host_ip = host_ip.map(|ip| self.family.ip(ip));
        let port = HostPort { host_ip, host_port, container_port: 8080, protocol: proxy_common::TCP };
        self.attach_with(&format!("pod-{pod}"), PODS[pod], &self.pods[pod].path(), &[port])
    }

    /// All host ports of a pod.
    pub fn open_host_ports(&self, pod: usize, ports: &[u16]) -> Vec<HostPortRefusal> {
        let port = |host_port: &u16| HostPort {
            host_ip: None,
            host_port: *host_port,
            container_port: 8080,
            protocol: proxy_common::TCP,
        };
        let all: Vec<HostPort> = ports.iter().map(port).collect();
        self.attach_with(&format!("pod-{pod}"), PODS[pod], &self.pods[pod].path(), &all)
    }

    /// Services as (spec, endpoints), each endpoint set on one target port.
    pub fn serve(&self, services: &[Service]) {
        let family = self.family;
        let local_servers = vec![cluster_dns(family)];
        let facts = NodeFacts { node_name: "n1".into(), local_servers, ..NodeFacts::default() };
        let objects: Vec<_> =
            services.iter().map(|service| serde_json::from_value(service.object(family)).unwrap()).collect();
        let slices = services.iter().flat_map(|service| family.each().iter().map(|family| service.slice(*family)));
        let slices: Vec<_> = slices.map(|slice| serde_json::from_value(slice).unwrap()).collect();
        let refusals = self.proxy.apply(&desired(&objects, &slices, &facts)).unwrap();
        assert!(refusals.is_empty(), "{refusals:?}");
    }

    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.proxy.counters().unwrap().into_iter().collect()
    }

    /// How much each counter rose since.
    pub fn rose(&self, before: &BTreeMap<&'static str, u64>) -> BTreeMap<&'static str, u64> {
        let now = self.counters().into_iter();
        now.filter(|(name, value)| *value > before[name]).map(|(name, value)| (name, value - before[name])).collect()
    }
}

fn start(
    node: &Namespace,
    runtime: &Arc<Runtime>,
    node_config: Config,
    hooks: SocketHooks,
    layouts: &'static [Layout],
    peers: watch::Receiver<Vec<Peer>>,
) -> (Arc<Proxy>, Arc<Network>) {
    let runtime = Arc::clone(runtime);
    node.run(move || {
        let config = proxy_userspace::Config {
            bpf_root: node_config.state_file.with_file_name("bpf"),
            cgroup_root: cgroup_root().to_owned(),
            socket_hooks: hooks,
            attachment: attachment(node_config.families()),
            families: node_config.families(),
        };
        let proxy = Arc::new(Proxy::start_in_layouts(&config, layouts).unwrap_or_else(|error| panic!("{error:?}")));
        let network = runtime
            .block_on(Network::start(&node_config, Arc::clone(&proxy), peers))
            .unwrap_or_else(|error| panic!("{error:?}"));
        (proxy, Arc::new(network))
    })
}

/// The other way rides along with the other family: what programs decide does not depend on how they are attached.
fn attachment(families: Families) -> Attachment {
    match families {
        Families::V6 => Attachment::Clsact,
        _ => Attachment::of_this_kernel(),
    }
}

fn config(family: Family, folder: &Path, snat_ports: PortRange) -> Config {
    let v4 = Ranges {
        node_ip: NODE.parse().unwrap(),
        pod_cidr: "10.244.0.0/24".parse().unwrap(),
        cluster_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/12".parse().unwrap(),
    };
    let IpAddr::V6(node_ip) = Family::V6.ip(NODE) else { panic!("an IPv6 address") };
    let range = |name: &str| Family::V6.line(name).parse().unwrap();
    let v6 = Ranges {
        node_ip,
        pod_cidr: range("10.244.0.0/24"),
        cluster_cidr: range("10.244.0.0/16"),
        service_cidr: range("10.96.0.0/12"),
    };
    Config {
        v4: (family != Family::V6).then_some(v4),
        v6: (family != Family::V4).then_some(v6),
        node_ports: network::PortRange { first: 30_000, last: 32_767 },
        snat_ports,
        state_file: folder.join("state"),
    }
}

fn join(node: &Namespace, client: &Namespace) {
    plug_in(node, client);
    client.in_each(&format!("ip addr add {OUTSIDE}/32 dev lo"));
    node.in_each("iptables -P FORWARD DROP");
    for setting in ["all/rp_filter=1", "default/rp_filter=1"] {
        node.command(&format!("sysctl -qw net/ipv4/conf/{setting}"));
    }
    node.command("sysctl -qw net/ipv4/ip_forward=0");
}

fn plug_in(node: &Namespace, client: &Namespace) {
    node.command(&format!("ip link add eth0 type veth peer name eth0 netns {}", client.tid()));
    for (end, ip) in [(node, NODE), (client, CLIENT)] {
        end.in_each(&format!("ip addr add {ip}/24 dev eth0"));
        end.command("ip link set eth0 up");
        end.command("ethtool -K eth0 tx off");
    }
    // Asking for their state lets the links have their queues now, before anything is sent.
    for end in [node, client] {
        end.command("ethtool eth0");
    }
    node.in_each(&format!("ip route add default via {CLIENT}"));
}

pub fn wait_until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "it never came to that");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A Service with one port, or with one of each protocol, and its endpoints.
pub struct Service {
    name: &'static str,
    spec: Value,
    status: Value,
    protocol: &'static str,
    endpoints: Vec<(String, u16)>,
    also: Option<(&'static str, u16)>,
}

impl Service {
    pub fn new(name: &'static str, ip: &str, protocol: &'static str, extra: Value) -> Self {
        let mut spec = json!({"clusterIPs": [ip], "ports": [{"port": 80, "protocol": protocol}]});
        if let Some(port) = extra.get("nodePort") {
            spec["type"] = json!("NodePort");
            spec["ports"][0]["nodePort"] = port.clone();
        }
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Self { name, spec, status: json!({}), protocol, endpoints: Vec::new(), also: None }
    }

    pub fn to(mut self, endpoints: &[(&str, u16)]) -> Self {
        self.endpoints = endpoints.iter().map(|(ip, port)| ((*ip).to_owned(), *port)).collect();
        self
    }

    /// The same port, in another protocol, leads to another port of the endpoints.
    pub fn also(mut self, protocol: &'static str, port: u16) -> Self {
        let mut other = self.spec["ports"][0].clone();
        (other["name"], other["protocol"]) = (json!("also"), json!(protocol));
        self.spec["ports"].as_array_mut().unwrap().push(other);
        self.also = Some((protocol, port));
        self
    }

    /// It has an address of a load balancer.
    pub fn balanced(mut self, ip: &str) -> Self {
        self.status = json!({"loadBalancer": {"ingress": [{"ip": ip}]}});
        self
    }

    fn object(&self, family: Family) -> Value {
        let (mut spec, mut status) = (self.spec.clone(), self.status.clone());
        let name = spec["clusterIPs"][0].as_str().unwrap();
        spec["clusterIPs"] = json!(family.ips(name).collect::<Vec<_>>());
        if let Some(ip) = status.pointer_mut("/loadBalancer/ingress/0/ip") {
            *ip = json!(family.ip(ip.as_str().unwrap()));
        }
        json!({"metadata": {"namespace": "default", "name": self.name}, "spec": spec, "status": status})
    }

    fn slice(&self, family: Family) -> Value {
        let port = self.endpoints.first().map_or(0, |(_, port)| *port);
        let endpoints: Vec<_> = self
            .endpoints
            .iter()
            .map(|(ip, _)| json!({"addresses": [family.ip(ip)], "nodeName": "n1", "conditions": {"ready": true}}))
            .collect();
        let mut ports = vec![json!({"protocol": self.protocol, "port": port})];
        ports.extend(self.also.map(|(protocol, port)| json!({"name": "also", "protocol": protocol, "port": port})));
        json!({"metadata": {"namespace": "default", "name": self.name, "labels": {"kubernetes.io/service-name": self.name}},
            "addressType": format!("IP{family:?}").replace('V', "v"), "endpoints": endpoints, "ports": ports})
    }
}

pub fn web() -> Service {
    Service::new("web", "10.96.0.80", "TCP", json!({}))
}

/// Both pods, as endpoints at a port.
pub fn both_pods(port: u16) -> [(&'static str, u16); 2] {
    PODS.map(|ip| (ip, port))
}

/// Answers each connection with its name and the client's address; says goodbye first to who asks for it.
pub fn tcp_server(place: &Namespace, name: &'static str, port: u16) {
    tcp_server_in(place, place.family, name, port);
}

/// In one of the families that the place has.
pub fn tcp_server_in(place: &Namespace, family: Family, name: &'static str, port: u16) {
    let any = family.at(&format!("0.0.0.0:{port}"));
    let only_v6 = family == Family::V6;
    let listener = place.run(move || if only_v6 { listen_v6(any) } else { TcpListener::bind(any).unwrap() });
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let peer = named_at(peer);
            std::thread::spawn(move || {
                let mut ask = [0; 512];
                while let Ok(length @ 1..) = stream.read(&mut ask) {
                    let padding = if ask[..length].starts_with(b"much") { "x".repeat(200_000) } else { String::new() };
                    if stream.write_all(format!("{name} {peer}{padding}\n").as_bytes()).is_err() {
                        return;
                    }
                    if ask[..length].starts_with(b"bye") {
                        return;
                    }
                }
            });
        }
    });
}

/// Beside a listener on the same port of the other family.
fn listen_v6(at: SocketAddr) -> TcpListener {
    // SAFETY: the descriptor is new and owned at once; address and option are of the stated sizes.
    unsafe {
        let fd = libc::socket(libc::AF_INET6, libc::SOCK_STREAM, 0);
        assert!(fd >= 0);
        let on = 1i32;
        libc::setsockopt(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, (&raw const on).cast(), size_of::<i32>() as u32);
        let mut own: libc::sockaddr_in6 = std::mem::zeroed();
        (own.sin6_family, own.sin6_port) = (libc::AF_INET6 as u16, at.port().to_be());
        let size = size_of::<libc::sockaddr_in6>() as u32;
        assert_eq!(libc::bind(fd, (&raw const own).cast(), size), 0, "{}", std::io::Error::last_os_error());
        assert_eq!(libc::listen(fd, 128), 0);
        TcpListener::from_raw_fd(fd)
    }
}

/// The same for datagrams. It answers from the address that was asked, as a socket on all addresses may.
pub fn udp_server(place: &Namespace, name: &'static str, port: u16) {
    let any = SocketAddr::new(place.family.ip("0.0.0.0"), port);
    let socket = place.run(move || UdpSocket::bind(any).unwrap());
    std::thread::spawn(move || {
        let mut ask = vec![0; 65_536];
        while let Ok((length, peer)) = socket.recv_from(&mut ask) {
            let answer = format!("{name} {} {length}", named_at(peer));
            let _ = socket.send_to(answer.as_bytes(), peer);
        }
    });
}

pub fn connect(place: &Namespace, to: &str) -> std::io::Result<TcpStream> {
    let to = place.at(to);
    place.run(move || TcpStream::connect_timeout(&to, PATIENCE))
}

/// Connects, asks once, and gives (answer, the server's address as the client sees it).
pub fn ask_tcp(place: &Namespace, to: &str) -> std::io::Result<(String, SocketAddr)> {
    let mut stream = connect(place, to)?;
    ask_on(&mut stream).map(|answer| (answer, named_at(stream.peer_addr().unwrap())))
}

pub fn ask_on(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"who")?;
    let mut answer = [0; 200];
    let length = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).trim().to_owned())
}

/// A socket of the place's family, at an address and port of it.
pub fn bound(place: &Namespace, name: &str) -> UdpSocket {
    let own = place.at(name);
    let socket = place.run(move || UdpSocket::bind(own).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends one datagram from an unconnected socket: (answer, its source).
pub fn ask_udp(place: &Namespace, to: &str) -> std::io::Result<(String, SocketAddr)> {
    ask_udp_on(&bound(place, "0.0.0.0:0"), place, to)
}

pub fn ask_udp_on(socket: &UdpSocket, place: &Namespace, to: &str) -> std::io::Result<(String, SocketAddr)> {
    let (socket, to) = (socket.try_clone().unwrap(), place.at(to));
    place.run(move || {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b"who", to)?;
        let mut answer = [0; 200];
        let (length, from) = socket.recv_from(&mut answer)?;
        Ok((String::from_utf8_lossy(&answer[..length]).into_owned(), named_at(from)))
    })
}

pub fn connected_udp(place: &Namespace, to: &str) -> UdpSocket {
    let (socket, to) = (bound(place, "0.0.0.0:0"), place.at(to));
    place.run(move || socket.connect(to).map(|()| socket)).unwrap()
}

/// What a connected socket hears of a datagram that leads nowhere.
pub fn refused(place: &Namespace, to: &str) -> std::io::Error {
    let socket = connected_udp(place, to);
    place.run(move || socket.send(b"who").and_then(|_| socket.recv(&mut [0; 10]))).unwrap_err()
}

/// Whether an ICMP echo is answered with what was sent, from the address that was asked.
pub fn ping(place: &Namespace, to: &str) -> bool {
    let (family, to) = (place.family, place.family.ip(to));
    place.run(move || {
        // Kind of a request and of an answer, and where an answer begins in what is received: the kernel sums up the one of IPv6.
        let (domain, protocol, request, reply, start) = match family {
            Family::V4 | Family::Both => (libc::AF_INET, libc::IPPROTO_ICMP, 8, 0, 20),
            Family::V6 => (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128, 129, 0),
        };
        // SAFETY: integers only; the descriptor is owned at once.
        let socket = unsafe {
            let fd = libc::socket(domain, libc::SOCK_RAW, protocol);
            assert!(fd >= 0);
            UdpSocket::from_raw_fd(fd)
        };
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // Identifier 0x1234, sequence 1, no data.
        let mut echo = [request, 0, 0, 0, 0x12, 0x34, 0, 1];
        let sum = u16::from_be_bytes([request, 0]) + 0x1234 + 1;
        echo[2..4].copy_from_slice(&(!sum).to_be_bytes());
        socket.send_to(&echo, (to, 0)).unwrap();
        let mut answer = [0; 100];
        // The host's own requests and others' traffic are seen too.
        (0..10).any(|_| match socket.recv_from(&mut answer) {
            Ok((length, from)) if length == start + 8 => {
                from.ip() == to && answer[start] == reply && answer[start + 4..][..4] == echo[4..]
            }
            _ => false,
        })
    })
}
