//! What services are compared with: a plain bridge, and a node with kube-proxy's published rules in iptables or nftables.
//!
//! ```text
//!   client ── br0 ── server             the bridge: one link, no translation
//!   client ── node ── server            the others: routed, /32 addresses, the rules (or none) in the node's namespace
//! ```

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::load::{Client, Server};
use super::{PORT, Setting};
use crate::processes::command;

pub const BRIDGE: &str = "bridge";
pub const ROUTED: &str = "routed";
pub const IPTABLES: &str = "iptables";
pub const NFTABLES: &str = "nftables";

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 91, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 91, 0, 3);
const PODS: &str = "10.91.0.0/16";

/// Namespaces of the peers; dropped, they are gone.
pub struct Peers;

impl Peers {
    pub fn make() -> Result<Self> {
        let peers = Self; // from here on a failure takes away what was made
        for name in [BRIDGE, ROUTED, IPTABLES, NFTABLES] {
            for place in ["client", "server", "node"] {
                let netns = namespace(name, place);
                command("ip", &["netns", "add", &netns])?;
                ip(&format!("-n {netns} link set lo up"))?;
            }
        }
        bridge()?;
        routed(ROUTED)?;
        routed(IPTABLES)?;
        routed(NFTABLES)?;
        Ok(peers)
    }

    pub fn settings(&self) -> Result<Vec<Setting>> {
        [BRIDGE, ROUTED, IPTABLES, NFTABLES].into_iter().map(setting).collect()
    }

    /// Loads the rules for so many services; their addresses.
    pub fn fill(&self, name: &str, services: usize) -> Result<Vec<SocketAddrV4>> {
        let addresses: Vec<Ipv4Addr> = (0..services).map(virtual_ip).collect();
        match name {
            IPTABLES => load("iptables-restore", &[], name, &iptables_rules(&addresses))?,
            NFTABLES => load("nft", &["-f", "-"], name, &nftables_rules(&addresses))?,
            _ => return Ok(Vec::new()),
        }
        Ok(addresses.into_iter().map(|address| SocketAddrV4::new(address, 80)).collect())
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for name in [BRIDGE, ROUTED, IPTABLES, NFTABLES] {
            for place in ["client", "server", "node"] {
                let netns = namespace(name, place);
                if path(name, place).exists()
                    && let Err(error) = command("ip", &["netns", "del", &netns])
                {
                    eprintln!("{netns} stays behind: {error:#}");
                }
            }
        }
    }
}

fn namespace(name: &str, place: &str) -> String {
    format!("amp-bench-{name}-{place}")
}

fn path(name: &str, place: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(namespace(name, place))
}

fn setting(name: &'static str) -> Result<Setting> {
    Ok(Setting {
        name,
        client: Client::enter(&path(name, "client"))?,
        _servers: vec![Server::start(&path(name, "server"), PORT, b'A')?],
        direct: SocketAddrV4::new(SERVER, PORT),
        services: Vec::new(),
    })
}

fn ip(words: &str) -> Result<()> {
    command("ip", &words.split_whitespace().collect::<Vec<_>>()).map(drop)
}

/// Client and server on one bridge, as the simplest network plugin links them.
fn bridge() -> Result<()> {
    let node = namespace(BRIDGE, "node");
    ip(&format!("-n {node} link add br0 type bridge"))?;
    ip(&format!("-n {node} link set br0 up"))?;
    for (place, address) in [("client", CLIENT), ("server", SERVER)] {
        let netns = namespace(BRIDGE, place);
        ip(&format!("-n {netns} link add eth0 type veth peer name {place} netns {node}"))?;
        ip(&format!("-n {node} link set {place} master br0 up"))?;
        ip(&format!("-n {netns} addr add {address}/24 dev eth0"))?;
        ip(&format!("-n {netns} link set eth0 up"))?;
    }
    Ok(())
}

/// A routed pair per pod, as point-to-point network plugins make them.
fn routed(name: &str) -> Result<()> {
    let node = namespace(name, "node");
    let netns = format!("--net={}", path(name, "node").display());
    for setting in ["net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"] {
        command("nsenter", &[&netns, "--", "sysctl", "-q", "-w", setting])?;
    }
    for (place, address) in [("client", CLIENT), ("server", SERVER)] {
        let netns = namespace(name, place);
        ip(&format!("-n {netns} link add eth0 type veth peer name {place} netns {node}"))?;
        ip(&format!("-n {node} addr add 169.254.1.1/32 dev {place}"))?;
        ip(&format!("-n {node} link set {place} up"))?;
        ip(&format!("-n {node} route add {address}/32 dev {place}"))?;
        ip(&format!("-n {netns} addr add {address}/32 dev eth0"))?;
        ip(&format!("-n {netns} link set eth0 up"))?;
        ip(&format!("-n {netns} route add 169.254.1.1 dev eth0 scope link"))?;
        ip(&format!("-n {netns} route add default via 169.254.1.1"))?;
    }
    Ok(())
}

fn virtual_ip(number: usize) -> Ipv4Addr {
    let base = u32::from(Ipv4Addr::new(10, 97, 0, 1));
    Ipv4Addr::from(base + u32::try_from(number).unwrap_or(0))
}

/// Feeds rules to a command inside the peer's node.
fn load(program: &str, arguments: &[&str], name: &str, rules: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new().context("cannot make a file of rules")?;
    std::fs::write(file.path(), rules).context("cannot write the rules")?;
    let output = Command::new("nsenter")
        .arg(format!("--net={}", path(name, "node").display()))
        .args(["--", program])
        .args(arguments)
        .stdin(file.reopen()?)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} refuses the rules: {}",
            e2e::text(&output.stderr).lines().take(3).collect::<Vec<_>>().join("; ")
        );
    }
    Ok(())
}

/// kube-proxy's chains, mode iptables: services are tried one after the other.
fn iptables_rules(addresses: &[Ipv4Addr]) -> String {
    let mut text = String::from("*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n");
    for number in 0..addresses.len() {
        let _ = writeln!(text, ":KUBE-SVC-{number:016} - [0:0]\n:KUBE-SEP-{number:016} - [0:0]");
    }
    text.push_str(
        "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n",
    );
    for (number, address) in addresses.iter().enumerate() {
        let comment = format!("-m comment --comment \"default/svc-{number}:main cluster IP\"");
        let _ = writeln!(
            text,
            "-A KUBE-SERVICES -d {address}/32 -p tcp {comment} -m tcp --dport 80 -j KUBE-SVC-{number:016}\n\
             -A KUBE-SVC-{number:016} ! -s {PODS} -d {address}/32 -p tcp {comment} -m tcp --dport 80 -j KUBE-MARK-MASQ\n\
             -A KUBE-SVC-{number:016} -m comment --comment \"default/svc-{number}:main -> {SERVER}:{PORT}\" -j KUBE-SEP-{number:016}\n\
             -A KUBE-SEP-{number:016} -s {SERVER}/32 -j KUBE-MARK-MASQ\n\
             -A KUBE-SEP-{number:016} -p tcp -m tcp -j DNAT --to-destination {SERVER}:{PORT}"
        );
    }
    text.push_str(
        "COMMIT\n*filter\n:KUBE-FORWARD - [0:0]\n\
         -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n",
    );
    text
}

/// kube-proxy's chains, mode nftables: one map leads to the service.
fn nftables_rules(addresses: &[Ipv4Addr]) -> String {
    let mut text = String::from("add table ip kube-proxy\ndelete table ip kube-proxy\ntable ip kube-proxy {\n");
    text.push_str(" chain mark-for-masquerade { mark set mark or 0x4000; }\n");
    text.push_str(
        " chain masquerading { mark and 0x4000 == 0 return; mark set mark xor 0x4000; masquerade fully-random; }\n",
    );
    for (number, address) in addresses.iter().enumerate() {
        let _ = writeln!(
            text,
            " chain endpoint-{number} {{ ip saddr {SERVER} jump mark-for-masquerade; meta l4proto tcp dnat to {SERVER}:{PORT}; }}\n \
             chain service-{number} {{ ip daddr {address} tcp dport 80 ip saddr != {PODS} jump mark-for-masquerade; \
             numgen random mod 1 vmap {{ 0 : goto endpoint-{number} }}; }}"
        );
    }
    text.push_str(" map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = {\n");
    for (number, address) in addresses.iter().enumerate() {
        let _ = writeln!(text, "  {address} . tcp . 80 : goto service-{number},");
    }
    text.push_str(
        " }; }\n\
         chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }\n\
         chain nat-prerouting { type nat hook prerouting priority dstnat; policy accept; jump services; }\n\
         chain nat-output { type nat hook output priority -100; policy accept; jump services; }\n\
         chain nat-postrouting { type nat hook postrouting priority srcnat; policy accept; jump masquerading; }\n\
         chain filter-forward { type filter hook forward priority -110; policy accept; ct state invalid drop; }\n}\n",
    );
    text
}
