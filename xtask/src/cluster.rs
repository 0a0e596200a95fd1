//! Test clusters: each node in a network namespace of its own, a client outside on the same link, a registry. The first node has the
//! server, the others join it by a token.
//!
//! ```text
//!   node1 ─┐
//!   node2 ─┤ bridge (10.90.0.1, registry :5000) ─ client
//! ```
//!
//! Everything a cluster made is written to `target/clusters/NAME/` before it exists, so that `down` finds it after any
//! failure.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::netns;
use crate::setup::workspace_root;

const REGISTRY: &str = "10.90.0.1:5000";
const REGISTRY_PORT: u16 = 5000;
const GATEWAY: usize = 1;
const CLIENT: usize = 100;
const API_PORT: u16 = 6443;
/// How long a node may take to be ready.
const READY: Duration = Duration::from_secs(30);
/// How long a process may take to end after SIGTERM.
const END: Duration = Duration::from_secs(10);

/// Which addresses a cluster has; of both families, those of IPv4 come first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Families {
    #[default]
    Ipv4,
    Dual,
    Ipv6,
}

/// The addresses of one family.
struct Net {
    /// A number behind it makes an address of the link.
    link: &'static str,
    bits: u8,
    pods: &'static str,
    services: &'static str,
}

/// By amphipod's defaults.
const V4: Net = Net { link: "10.90.0.", bits: 24, pods: "10.244.0.0/16", services: "10.96.0.0/12" };
const V6: Net = Net { link: "fd00:90::", bits: 64, pods: "fd00:10:244::/56", services: "fd00:10:96::/112" };

impl Families {
    fn nets(self) -> &'static [Net] {
        match self {
            Self::Ipv4 => &[V4],
            Self::Dual => &[V4, V6],
            Self::Ipv6 => &[V6],
        }
    }

    /// On the link.
    fn addresses(self, number: usize) -> Vec<String> {
        self.nets().iter().map(|net| format!("{}{number}", net.link)).collect()
    }

    /// The same with the length of the link's prefix.
    fn prefixes(self, number: usize) -> Vec<String> {
        self.nets().iter().map(|net| format!("{}{number}/{}", net.link, net.bits)).collect()
    }

    /// The flags of a server, where the defaults are not meant.
    fn ranges(self) -> Vec<String> {
        let list = |pick: fn(&Net) -> &'static str| self.nets().iter().map(pick).collect::<Vec<_>>().join(",");
        match self {
            Self::Ipv4 => Vec::new(),
            _ => ["--pod-cidr".to_owned(), list(|net| net.pods), "--service-cidr".to_owned(), list(|net| net.services)]
                .into(),
        }
    }
}

/// Host and port as in a URL.
fn at(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// A cluster by its name; it may or may not be up.
pub struct Cluster {
    name: String,
    dir: PathBuf,
}

/// One node's places.
struct Node {
    name: String,
    netns: String,
    ips: Vec<String>,
    data_dir: PathBuf,
    run_dir: PathBuf,
}

impl Cluster {
    pub fn new(name: &str) -> Result<Self> {
        let fits = (1..=12).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        ensure!(fits, "cluster name {name:?}: 1 to 12 lower case letters, digits and '-' are wanted");
        Ok(Self { name: name.to_owned(), dir: workspace_root().join("target/clusters").join(name) })
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    fn place(&self, what: &str) -> String {
        format!("amp-{}-{what}", self.name)
    }

    fn families(&self) -> Families {
        let said = self.read("made.json").and_then(|made| made["families"].as_str().map(str::to_owned));
        said.and_then(|said| clap::ValueEnum::from_str(&said, false).ok()).unwrap_or_default()
    }

    fn node(&self, index: usize) -> Node {
        let name = format!("node{index}");
        Node {
            netns: self.place(&name),
            ips: self.families().addresses(10 + index),
            data_dir: self.dir.join(&name),
            run_dir: PathBuf::from(format!("/run/amphipod-{}/{name}", self.name)),
            name,
        }
    }

    fn read(&self, file: &str) -> Option<Value> {
        serde_json::from_str(&fs::read_to_string(self.dir.join(file)).ok()?).ok()
    }

    fn write(&self, file: &str, value: &Value) -> Result<()> {
        let path = self.dir.join(file);
        fs::write(&path, format!("{value:#}\n")).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Brings the cluster up with this binary; tells each step through `say`.
    pub fn up(&self, nodes: usize, families: Families, binary: &Path, say: &dyn Fn(&str)) -> Result<()> {
        ensure!((1..=80).contains(&nodes), "1 to 80 nodes are wanted, not {nodes}");
        ensure!(!self.dir.exists(), "cluster {} is there already: cargo xtask cluster down {}", self.name, self.name);
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot create {}", self.dir.display()))?;
        let name = clap::ValueEnum::to_possible_value(&families).map(|value| value.get_name().to_owned());
        self.write(
            "made.json",
            &json!({"nodes": nodes, "families": name, "binary": binary.canonicalize()?, "processes": []}),
        )?;
        let all: Vec<Node> = (1..=nodes).map(|index| self.node(index)).collect();
        let made = self.bring_up(&all, families, binary, say);
        if made.is_err() {
            // The failure is what matters; what cannot be taken down is said after it.
            if let Err(error) = self.down() {
                eprintln!("taking the half-made cluster down: {error:#}");
            }
        }
        made
    }

    fn bring_up(&self, nodes: &[Node], families: Families, binary: &Path, say: &dyn Fn(&str)) -> Result<()> {
        say("network namespaces: one per node, one for a client outside, one link");
        let switch = self.place("link");
        netns::make(&switch)?;
        // The images are pushed there by its IPv4 address, whatever the nodes have.
        netns::bridge(&switch, "br0", &Families::Dual.prefixes(GATEWAY))?;
        let gateways = families.addresses(GATEWAY);
        for (number, node) in (11..).zip(nodes) {
            netns::make(&node.netns)?;
            netns::plug(&node.netns, &families.prefixes(number), &gateways, &switch, "br0", &node.name)?;
        }
        let client = self.place("client");
        netns::make(&client)?;
        netns::plug(&client, &families.prefixes(CLIENT), &gateways, &switch, "br0", "client")?;
        say("registry with the test images (nginx, hostname-server, busybox)");
        self.start_registry(&switch)?;
        let (first, others) = nodes.split_first().context("a cluster has a node")?;
        say(&format!("{}: amphipod up", first.name));
        let process = self.start_node(first, binary)?;
        self.wait_started(first, process)?;
        if !others.is_empty() {
            say("a join token");
            self.make_token(first, binary)?;
        }
        let mut processes = Vec::new();
        for node in others {
            say(&format!("{}: amphipod agent", node.name));
            processes.push((node, self.start_node(node, binary)?));
        }
        for (node, process) in processes {
            self.wait_started(node, process)?;
        }
        self.forward(first)?;
        let listed: Vec<Value> = nodes
            .iter()
            .map(|node| {
                let log = node.data_dir.with_extension("log");
                json!({"name": node.name, "netns": node.netns, "ips": node.ips, "data_dir": node.data_dir, "log": log})
            })
            .collect();
        self.write(
            "cluster.json",
            &json!({
                "kubeconfig": self.kubeconfig(),
                "nodes": listed,
                "client": {"netns": client},
                "registry": REGISTRY,
            }),
        )?;
        self.wait_ready(nodes.len())
    }

    fn start_registry(&self, switch: &str) -> Result<()> {
        // One content for all clusters: a second start pushes nothing.
        let all = format!(":{REGISTRY_PORT}");
        let registry = images::start_registry(&all, Some(switch), &workspace_root().join("target/registry"))?;
        self.note_process(registry.pid())?;
        images::images(REGISTRY, Some(switch), &workspace_root().join("target/images"))?;
        // It lives until `down`.
        std::mem::forget(registry);
        Ok(())
    }

    /// The file that leads public names to the test registry, and the registry's own name to itself. Made once: what was
    /// added to it by hand survives a start.
    fn registries(&self) -> Result<PathBuf> {
        let path = self.dir.join("registries.yaml");
        if !path.exists() {
            let registry = at(&self.families().addresses(GATEWAY)[0], REGISTRY_PORT);
            let entry = |name: &str| (name.to_owned(), json!({"endpoints": [format!("http://{registry}")]}));
            let names: serde_json::Map<_, _> =
                ["docker.io", "registry.k8s.io", REGISTRY].map(entry).into_iter().collect();
            // JSON is YAML.
            self.write("registries.yaml", &json!({"registries": names}))?;
        }
        Ok(path)
    }

    fn token_file(&self) -> PathBuf {
        self.dir.join("join-token")
    }

    /// Has a node with a server make the token by which the others join.
    fn make_token(&self, node: &Node, binary: &Path) -> Result<()> {
        let arguments = ["token", "create", "--data-dir", &node.data_dir.display().to_string()];
        let token = || netns::inside(&node.netns, &binary.display().to_string(), &arguments);
        // The kubeconfig is there a moment before the server listens.
        let mut made = token();
        wait_for(READY, || {
            if made.is_err() {
                made = token();
            }
            made.is_ok()
        })
        .ok();
        fs::write(self.token_file(), made?).context("cannot write the join token")
    }

    /// The flags by which a node is what it is; whoever has a server tells the others where.
    fn role(&self, node: &Node) -> Vec<String> {
        let server = self.node(1);
        match node.name == server.name {
            true => ["up".to_owned()].into_iter().chain(self.families().ranges()).collect(),
            false => {
                let url = format!("https://{}", at(&server.ips[0], API_PORT));
                ["agent", "--server", &url, "--token-file", &self.token_file().display().to_string()]
                    .map(str::to_owned)
                    .into()
            }
        }
    }

    /// Gives the process that it started.
    fn start_node(&self, node: &Node, binary: &Path) -> Result<u32> {
        fs::create_dir_all(&node.data_dir)?;
        let registries = self.registries()?;
        let log = fs::File::options().create(true).append(true).open(node.data_dir.with_extension("log"))?;
        let mut command = netns::command(&node.netns, &binary.display().to_string());
        command
            .args(self.role(node))
            .args(["--node-name", &node.name, "--node-ip", &node.ips.join(",")])
            .arg("--data-dir")
            .arg(&node.data_dir)
            .arg("--run-dir")
            .arg(&node.run_dir)
            .args(["--pod-cgroup", &format!("amphipod-{}/{}", self.name, node.name)])
            .arg("--bpf-root")
            .arg(node.run_dir.join("bpf"))
            .arg("--registries")
            .arg(&registries);
        let child = detached(command, Stdio::null(), log)?;
        self.note_process(child.id())?;
        Ok(child.id())
    }

    /// Waits for what a node has once it serves, or has joined.
    fn wait_started(&self, node: &Node, process: u32) -> Result<()> {
        let file = if node.name == self.node(1).name { "admin.kubeconfig" } else { "node.crt" };
        let file = node.data_dir.join(file);
        wait_for(READY, || file.exists() || has_ended(process)).ok();
        if !file.exists() {
            bail!("{} did not start:\n{}", node.name, tail(&node.data_dir.with_extension("log")));
        }
        Ok(())
    }

    /// The number of a node by its name.
    fn index(&self, place: &str) -> Result<usize> {
        let index = place.strip_prefix("node").and_then(|number| number.parse().ok());
        index.filter(|_| netns::exists(&self.place(place))).with_context(|| {
            format!("cluster {} has no node {place:?}: there {}", self.name, there_are(&self.places()))
        })
    }

    /// Ends a node's amphipod by a signal.
    pub fn signal(&self, place: &str, signal: &str) -> Result<()> {
        let index = self.index(place)?;
        let pid = self.node_pid(index).with_context(|| format!("no amphipod runs on {place}"))?;
        netns::run("kill", &[signal, &pid.to_string()])?;
        wait_for(END, || has_ended(pid))
    }

    /// Starts a node's amphipod again, as after a crash or an upgrade.
    pub fn start(&self, place: &str, binary: &Path) -> Result<()> {
        let index = self.index(place)?;
        ensure!(self.node_pid(index).is_none(), "amphipod runs on {place} already");
        let node = self.node(index);
        let process = self.start_node(&node, binary)?;
        self.wait_started(&node, process)
    }

    /// Makes the API server of a namespace reachable from here: a listener of ours, served from in there.
    fn forward(&self, node: &Node) -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
        let port = listener.local_addr()?.port();
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = netns::command(&node.netns, &program.display().to_string());
        let server = at(&node.ips[0], API_PORT);
        command.args(["forward", &server]);
        let log = fs::File::create(self.dir.join("forward.log"))?;
        let child = detached(command, Stdio::from(OwnedFd::from(listener)), log)?;
        self.note_process(child.id())?;
        let admin = fs::read_to_string(node.data_dir.join("admin.kubeconfig"))?;
        let here = admin.replace(&format!("https://{server}"), &format!("https://127.0.0.1:{port}"));
        fs::write(self.kubeconfig(), here).context("cannot write the kubeconfig")
    }

    fn wait_ready(&self, nodes: usize) -> Result<()> {
        let kubectl = || {
            let output = Command::new("kubectl")
                .arg("--kubeconfig")
                .arg(self.kubeconfig())
                .args(["get", "nodes", "--no-headers"])
                .output();
            output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).matches(" Ready ").count() == nodes)
        };
        let logs =
            || (1..=nodes).map(|index| tail(&self.node(index).data_dir.with_extension("log"))).collect::<Vec<_>>();
        let ready = wait_for(READY, kubectl);
        ready.with_context(|| format!("not every node is ready:\n{}", logs().join("\n\n")))
    }

    /// Remembers a process, by id and start time, so that `down` ends this one and no successor of its number.
    fn note_process(&self, pid: u32) -> Result<()> {
        let mut made = self.read("made.json").unwrap_or_else(|| json!({"nodes": 1, "processes": []}));
        if let Some(list) = made["processes"].as_array_mut() {
            list.push(json!({"pid": pid, "started": start_time(pid)}));
        }
        self.write("made.json", &made)
    }

    /// The pid of a node's running `amphipod up` or `agent`.
    fn node_pid(&self, index: usize) -> Option<u32> {
        let data_dir = self.node(index).data_dir.display().to_string();
        let made = self.read("made.json")?;
        let alive = made["processes"].as_array()?.iter().filter(|process| is_same(process));
        let mut pids = alive.filter_map(|process| u32::try_from(process["pid"].as_u64()?).ok());
        pids.find(|pid| {
            fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                ["\0up\0", "\0agent\0"].iter().any(|role| line.contains(role)) && line.contains(&data_dir)
            })
        })
    }

    /// Takes the cluster away: processes, pods, programs, namespaces, files.
    pub fn down(&self) -> Result<()> {
        let Some(made) = self.read("made.json") else { bail!("there is no cluster {}", self.name) };
        for process in made["processes"].as_array().into_iter().flatten().rev() {
            end(process)?;
        }
        let nodes = usize::try_from(made["nodes"].as_u64().unwrap_or(1)).unwrap_or(1);
        for index in 1..=nodes {
            self.reset(&self.node(index))?;
        }
        for index in 1..=nodes {
            netns::remove(&self.node(index).netns)?;
        }
        netns::remove(&self.place("client"))?;
        netns::remove(&self.place("link"))?;
        remove_dir(&PathBuf::from(format!("/run/amphipod-{}", self.name)))?;
        remove_cgroups(&format!("amphipod-{}", self.name))?;
        fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))
    }

    fn reset(&self, node: &Node) -> Result<()> {
        if !node.data_dir.join("places.json").exists() || !netns::exists(&node.netns) {
            return Ok(());
        }
        let made = self.read("made.json").and_then(|made| made["binary"].as_str().map(str::to_owned));
        let binary = made.unwrap_or_else(|| crate::build::binary().display().to_string());
        let data_dir = node.data_dir.display().to_string();
        netns::inside(&node.netns, &binary, &["reset", "--data-dir", &data_dir]).map(drop)
    }

    /// Where commands can be run: the nodes that there are, and the outside.
    fn places(&self) -> Vec<String> {
        let nodes = self.read("made.json").and_then(|made| made["nodes"].as_u64()).unwrap_or(0);
        let places = (1..=nodes).map(|index| format!("node{index}")).chain(["client".to_owned()]);
        places.filter(|place| netns::exists(&self.place(place))).collect()
    }

    /// Runs a command where a node or the client is; its end is ours.
    pub fn exec(&self, place: &str, command: &[String]) -> Result<ExitStatus> {
        let netns = self.place(place);
        ensure!(netns::exists(&netns), "cluster {} has no {place:?}: there {}", self.name, there_are(&self.places()));
        let (program, arguments) = command.split_first().context("a command is wanted after --")?;
        netns::command(&netns, program).args(arguments).status().with_context(|| format!("cannot run {program}"))
    }
}

fn there_are(places: &[String]) -> String {
    match places {
        [] => "is nothing of it: `cargo xtask cluster up` makes it".to_owned(),
        [one] => format!("is {one}"),
        many => format!("are {}", many.join(", ")),
    }
}

fn detached(mut command: Command, stdin: Stdio, log: fs::File) -> Result<Child> {
    let errors = log.try_clone()?;
    command.stdin(stdin).stdout(log).stderr(errors).process_group(0);
    command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))
}

/// Clock ticks since boot at which a process started; `None` when there is none.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(") ")?.1;
    let mut fields = after_name.split(' ');
    // The first thread may be done while others still hold the process's files.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let ended = fields.next() == Some("Z") && threads <= 1;
    if ended { None } else { fields.nth(18)?.parse().ok() }
}

fn is_same(process: &Value) -> bool {
    let pid = process["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    pid.is_some_and(|pid| start_time(pid).is_some() && start_time(pid) == process["started"].as_u64())
}

fn has_ended(pid: u32) -> bool {
    start_time(pid).is_none()
}

/// Ends a process of ours: politely, then not.
fn end(process: &Value) -> Result<()> {
    let pid = process["pid"].as_u64().unwrap_or_default().to_string();
    for signal in ["-TERM", "-KILL"] {
        if !is_same(process) {
            return Ok(());
        }
        netns::run("kill", &[signal, &pid]).ok();
        if wait_for(END, || !is_same(process)).is_ok() {
            return Ok(());
        }
    }
    bail!("process {pid} does not end")
}

/// Waits for a condition, looking every few milliseconds.
pub fn wait_for(limit: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !holds() {
        ensure!(Instant::now() < deadline, "nothing happened within {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The cluster's own folder in every hierarchy, empty by now.
fn remove_cgroups(name: &str) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mount table")?;
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        if matches!(fields.get(2), Some(&("cgroup" | "cgroup2"))) {
            let dir = Path::new(fields[1]).join(name);
            match fs::remove_dir(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", dir.display()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_not_there_is_refused_with_those_that_are() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(there_are(&names(&["node1", "node2", "client"])), "are node1, node2, client");
        let nowhere = Cluster::new("no-such").unwrap().exec("nosuch", &names(&["true"])).unwrap_err().to_string();
        assert_eq!(
            nowhere,
            "cluster no-such has no \"nosuch\": there is nothing of it: `cargo xtask cluster up` makes it"
        );
    }
}
