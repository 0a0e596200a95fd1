//! A cluster of two machines, in network namespaces: the first has the server, the second has joined it by a token. What one machine
//! cannot show is shown here.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{ExitCode, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Cluster, Inventory, Node, Place, Space, Wanted, text, told_at, until, workspace, xtask};
use proxy_userspace::sys::inside;

type Case = (&'static str, fn(&World<'_>) -> Result<()>);

const CASES: &[Case] = &[
    ("both nodes are ready, with pods of their own", ready),
    ("pods reach services of the other node by name", by_name),
    ("a NodePort is served by the node without the endpoint", node_ports),
    ("pods and services of the other node are reached over IPv6", over_ipv6),
    ("logs, exec and port-forward reach the other node", streams),
    ("open connections go on while the other node's agent is away", agent_away),
    ("whoever may not join is told why", refused),
];

/// How long an answer may take on this machine.
const PATIENCE: Duration = Duration::from_secs(5);

struct World<'a> {
    space: Space<'a>,
    binary: PathBuf,
}

impl World<'_> {
    fn cluster(&self) -> &Cluster {
        self.space.cluster
    }

    fn node(&self, index: usize) -> &Node {
        &self.cluster().nodes()[index]
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Another release than `target/release/amphipod`, where one is named (`--binary PATH`). Words that cargo's own runner takes are not for us.
fn binary() -> Option<PathBuf> {
    let mut words = std::env::args().skip_while(|word| word != "--binary").skip(1);
    words.next().map(PathBuf::from)
}

fn run() -> Result<bool> {
    let (before, other) = (Inventory::take()?, binary());
    let wanted = Wanted { nodes: 2, families: "dual", binary: other.as_deref() };
    let cluster = Cluster::up_as("two-nodes", wanted)?;
    let binary = other.unwrap_or_else(|| workspace().join("target/release/amphipod"));
    let mut passed = cases(&cluster, binary)?;
    until("the cases' namespace is gone", || Ok(cluster.get(&["namespace", "across"], "{.metadata.name}").is_err()))?;
    cluster.down()?;
    passed &= told("nothing is left behind", nothing_left(&before));
    Ok(passed)
}

fn cases(cluster: &Cluster, binary: PathBuf) -> Result<bool> {
    let world = World { space: Space::new(cluster, "across")?, binary };
    let mut passed = prepare(&world).map_or_else(|error| told("preparation", Err(error)), |()| true);
    if passed {
        for (name, case) in CASES {
            passed &= told(name, case(&world));
        }
    }
    if !passed {
        for node in cluster.nodes() {
            println!("the last words of {}:\n{}", node.name, node.last_words());
        }
    }
    world.space.leave()?;
    Ok(passed)
}

fn told(name: &str, outcome: Result<()>) -> bool {
    match &outcome {
        Ok(()) => println!("test {name} ... ok"),
        Err(error) => println!("test {name} ... FAILED\n    {error:#}"),
    }
    outcome.is_ok()
}

fn nothing_left(before: &Inventory) -> Result<()> {
    // Programs and namespaces are freed by the kernel a moment after their last user.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let differences = Inventory::take()?.differences(before);
        if differences.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{}", differences.join("\n    "));
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// On each node a web server with a Service of its own (`web-node1`, `web-node2`), and a pod that asks.
fn prepare(world: &World<'_>) -> Result<()> {
    let space = &world.space;
    for node in world.cluster().nodes() {
        let name = &node.name;
        space.apply_text(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: web-{name}, labels: {{web: {name}}}}}, spec: {{nodeName: {name}, terminationGracePeriodSeconds: 1, containers: [{{name: c, image: 'registry.k8s.io/e2e-test-images/agnhost:2.56', args: [serve-hostname, --port=80]}}]}}}}"
        ))?;
        space.apply_text(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: ask-{name}}}, spec: {{nodeName: {name}, terminationGracePeriodSeconds: 1, containers: [{{name: c, image: busybox, command: [sh, -c, 'echo here is {name}; exec sleep 1000000']}}]}}}}"
        ))?;
        space.apply_text(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web-{name}}}, spec: {{type: NodePort, selector: {{web: {name}}}, ports: [{{port: 8080, targetPort: 80}}]}}}}"
        ))?;
    }
    let pods: Vec<String> = ["web", "ask"]
        .iter()
        .flat_map(|role| world.cluster().nodes().iter().map(move |node| format!("pod/{role}-{}", node.name)))
        .collect();
    space.wait_ready(&pods.iter().map(String::as_str).collect::<Vec<_>>())
}

fn ready(world: &World<'_>) -> Result<()> {
    let (mut ranges, mut pods) = (Vec::new(), Vec::new());
    for node in world.cluster().nodes() {
        let ready = world.space.get(&["node", &node.name], "{.status.conditions[?(@.type=='Ready')].status}")?;
        ensure!(ready == "True", "{} is {ready}", node.name);
        ranges.push(world.space.get(&["node", &node.name], "{.spec.podCIDR}")?);
        pods.push(world.space.get(&["pod", &format!("web-{}", node.name)], "{.status.podIP} {.status.hostIP}")?);
        ensure!(pods.last().is_some_and(|addresses| addresses.ends_with(&node.ips[0])), "{pods:?}");
    }
    ensure!(ranges[0] != ranges[1] && pods[0] != pods[1], "{ranges:?} {pods:?}");
    Ok(())
}

/// A page that a pod gets.
fn page(world: &World<'_>, pod: &str, url: &str) -> Result<String> {
    world.space.kubectl(&["exec", pod, "--", "wget", "-qO-", url])
}

fn by_name(world: &World<'_>) -> Result<()> {
    for (from, to) in [("node1", "node2"), ("node2", "node1")] {
        let address = world.space.address(&format!("web-{to}"))?;
        until("the service answers the other node's pod", || {
            let by_name = page(world, &format!("ask-{from}"), &format!("http://web-{to}:8080/"))?;
            let by_address = page(world, &format!("ask-{from}"), &format!("http://{address}:8080/"))?;
            ensure!([&by_name, &by_address].iter().all(|page| page.trim() == format!("web-{to}")), "{by_name}");
            Ok(true)
        })
        .with_context(|| format!("from {from}"))?;
    }
    Ok(())
}

fn outside(world: &World<'_>, node: &Node, service: &str) -> Result<SocketAddr> {
    Ok(format!("{}:{}", node.ips[0], world.space.node_port(service)?).parse()?)
}

fn node_ports(world: &World<'_>) -> Result<()> {
    let (first, second) = (world.node(0), world.node(1));
    let client = world.cluster().client();
    for node in [first, second] {
        let url = format!("http://{}/", outside(world, node, "web-node2")?);
        until("the port answers outside", || Ok(client.fetch(&url)?.trim() == "web-node2"))
            .context(node.name.clone())?;
    }
    // With policy Local only the node with the endpoint serves.
    let policy = |policy: &str| {
        let patch = format!("{{\"spec\":{{\"externalTrafficPolicy\":\"{policy}\"}}}}");
        world.space.kubectl(&["patch", "service", "web-node2", "-p", &patch]).map(drop)
    };
    policy("Local")?;
    let (elsewhere, here) = (outside(world, first, "web-node2")?, outside(world, second, "web-node2")?);
    until("the node without the endpoint serves no more", || Ok(!answers(client, elsewhere)?))?;
    until("the node with the endpoint serves", || answers(client, here))?;
    policy("Cluster")?;
    until("both serve again", || Ok(answers(client, elsewhere)? && answers(client, here)?))
}

fn over_ipv6(world: &World<'_>) -> Result<()> {
    let (space, second) = (&world.space, world.node(1));
    space.teller("six", &second.name)?;
    let list = |object: &[&str], path: &str| -> Result<Vec<String>> {
        Ok(space.get(object, path)?.split_whitespace().map(str::to_owned).collect())
    };
    let (pod, asker) = ("{.status.podIPs[*].ip}", list(&["pod", "ask-node1"], "{.status.podIPs[*].ip}")?);
    let own = list(&["pod", "six"], pod)?;
    ensure!(own.len() == 2 && asker.len() == 2, "{own:?} {asker:?}");
    let told = page(world, "ask-node1", &told_at(&own[1], "8080"))?;
    ensure!(told.contains(&asker[1]), "from pod to pod: {told}");
    let told = world.node(0).fetch(&told_at(&own[1], "8080"))?;
    ensure!(told.contains(&world.node(0).ips[1]), "from node to pod: {told}");
    let service = list(&["service", "six"], "{.spec.clusterIPs[*]}")?;
    for address in &service {
        let url = told_at(address, "80");
        until("the service answers the other node's pod", || Ok(page(world, "ask-node1", &url)?.starts_with("six")))
            .with_context(|| address.clone())?;
    }
    let port = space.node_port("six")?;
    for node in world.cluster().nodes() {
        let url = told_at(&node.ips[1], &port);
        until("the port answers outside", || Ok(world.cluster().client().fetch(&url)?.starts_with("six")))
            .with_context(|| node.name.clone())?;
    }
    Ok(())
}

fn answers(from: &Place, to: SocketAddr) -> Result<bool> {
    let output = from.command("curl", &["--silent", "--max-time", "1", &format!("http://{to}/")]).output()?;
    Ok(output.status.success())
}

fn streams(world: &World<'_>) -> Result<()> {
    for node in ["node1", "node2"] {
        let pod = format!("ask-{node}");
        let log = world.space.kubectl(&["logs", &pod])?;
        ensure!(log.trim() == format!("here is {node}"), "logs of {pod}: {log}");
        let said = world.space.kubectl_with(&["exec", "-i", &pod, "--", "cat"], "back and forth", &[])?;
        ensure!(text(&said.stdout) == "back and forth", "exec in {pod}: {}", text(&said.stderr));
        let code = world.space.try_kubectl(&["exec", &pod, "--", "sh", "-c", "echo out; echo err >&2; exit 7"])?;
        ensure!(code.status.code() == Some(7) && text(&code.stdout) == "out\n", "exit code in {pod}: {code:?}");
        ensure!(text(&code.stderr).starts_with("err\n"), "standard error in {pod}: {}", text(&code.stderr));
        forwarded(world, &format!("web-{node}"))?;
    }
    let nobody = world.space.kubectl_fails(&["logs", "ask-node2", "-c", "nobody"])?;
    ensure!(nobody.contains("container nobody is not valid for pod ask-node2"), "{nobody}");
    let previous = world.space.kubectl_fails(&["logs", "ask-node2", "--previous"])?;
    ensure!(previous.contains("previous terminated container \"c\" in pod \"ask-node2\" not found"), "{previous}");
    Ok(())
}

fn forwarded(world: &World<'_>, pod: &str) -> Result<()> {
    let mut command = world.space.kubectl_command(&["port-forward", &format!("pod/{pod}"), ":80"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn()?;
    // Kept open: kubectl tells there of each connection, and ends when nobody listens.
    let mut out = BufReader::new(child.stdout.take().context("no standard output")?);
    let mut asked = || -> Result<String> {
        let mut line = String::new();
        out.read_line(&mut line)?;
        let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
        let address = format!("127.0.0.1:{}", port.with_context(|| format!("it says {line:?}"))?);
        Kept::over(TcpStream::connect(address)?)?.ask()
    };
    let answer = asked();
    child.kill()?;
    child.wait()?;
    let answer = answer.with_context(|| format!("port-forward to {pod}"))?;
    ensure!(answer == pod, "port-forward to {pod}: {answer}");
    Ok(())
}

/// A connection that is kept alive to a web server.
struct Kept(BufReader<TcpStream>);

impl Kept {
    fn open(place: &Place, to: SocketAddr) -> Result<Self> {
        let mut kept = Self::over(inside(&place.netns()?, || TcpStream::connect_timeout(&to, PATIENCE))?)?;
        kept.ask()?;
        Ok(kept)
    }

    fn over(stream: TcpStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn ask(&mut self) -> Result<String> {
        self.0.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            ensure!(self.0.read_line(&mut line)? > 0, "the connection ended");
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(text(&body).trim().to_owned())
    }
}

fn agent_away(world: &World<'_>) -> Result<()> {
    let (first, second) = (world.node(0), world.node(1));
    let name = world.cluster().name();
    let inside: SocketAddr = format!("{}:8080", world.space.address("web-node2")?).parse()?;
    let mut kept = [
        ("the first node's ClusterIP", Kept::open(first, inside)?),
        ("outside, by the first node", Kept::open(world.cluster().client(), outside(world, first, "web-node2")?)?),
        ("outside, by the second node", Kept::open(world.cluster().client(), outside(world, second, "web-node2")?)?),
    ];
    let mut goes_on = |when: &str| -> Result<()> {
        for (way, kept) in &mut kept {
            let page = kept.ask().with_context(|| format!("{way}, {when}"))?;
            ensure!(page == "web-node2", "{way}, {when}: {page}");
        }
        Ok(())
    };
    for way in ["kill", "stop"] {
        xtask(&["cluster", way, name, &second.name])?;
        goes_on(&format!("after {way}"))?;
        xtask(&["cluster", "start", name, &second.name, "--binary", &world.binary.display().to_string()])?;
        goes_on("after the start")?;
        until("its pods are reached as before", || {
            Ok(world.space.kubectl(&["exec", "ask-node2", "--", "echo", "there"])?.trim() == "there")
        })?;
        goes_on("when it is back")?;
    }
    Ok(())
}

/// Starts another agent outside, in vain; what it says in the end.
fn in_vain(world: &World<'_>, name: &str, token: &str) -> Result<String> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("token"), token)?;
    let at = |what: &str| folder.path().join(what).display().to_string();
    let server = format!("https://{}:6443", world.node(0).ips[0]);
    let binary = world.binary.display().to_string();
    let arguments = ["60", &binary, "agent", "--server", &server, "--token-file", &at("token"), "--node-name", name];
    let places = ["--data-dir", &at("data"), "--run-dir", &at("run")];
    let mut command = world.cluster().client().command("timeout", &[&arguments[..], &places[..]].concat());
    let Output { status, stderr, .. } = command.output()?;
    ensure!(!status.success(), "an agent with {token} started");
    let said = text(&stderr);
    let last = said.lines().rev().find(|line| line.starts_with("amphipod: "));
    Ok(last.with_context(|| format!("it said nothing: {said}"))?.to_owned())
}

fn refused(world: &World<'_>) -> Result<()> {
    let first = world.node(0);
    let amphipod = |arguments: &[&str]| -> Result<String> {
        let arguments = [&["token"], arguments, &["--data-dir", &first.data_dir]].concat();
        Ok(first.run(&world.binary.display().to_string(), &arguments)?.trim().to_owned())
    };
    let token = amphipod(&["create", "--ttl", "1h", "--description", "for a test"])?;
    let (authority, secret) = token.split_once("::").context("a token has two parts")?;
    let (id, letters) = secret.split_once('.').context("and two more")?;
    ensure!(amphipod(&["list"])?.contains(&format!("{id}  ")), "it is listed");
    let expect = |what: &str, name: &str, token: &str, words: &str| -> Result<()> {
        let said = in_vain(world, name, token).with_context(|| what.to_owned())?;
        ensure!(said.contains(words), "{what}: {said}");
        Ok(())
    };
    let other: String = letters.chars().map(|letter| if letter == 'a' { 'b' } else { 'a' }).collect();
    expect("no authority", "node3", secret, "does not name the cluster's authority")?;
    let wrong = format!("A10{}::{secret}", "0".repeat(64));
    expect("another authority", "node3", &wrong, "it is another cluster, or somebody stands in between")?;
    expect("another secret", "node3", &format!("{authority}::{id}.{other}"), "the server does not accept the token")?;
    expect("a node's name", "node2", &token, "node node2 is another machine's")?;
    expect("the server's name", "node1", &token, "node node1 is another machine's")?;
    amphipod(&["delete", id])?;
    expect("a deleted token", "node3", &token, "the server does not accept the token")?;
    ensure!(!amphipod(&["list"])?.contains(id), "it is gone");
    let ended = amphipod(&["create", "--ttl", "1s"])?;
    // Earlier, it would be taken.
    std::thread::sleep(Duration::from_secs(2));
    expect("a token that ended", "node3", &ended, "the server does not accept the token")?;
    match world.space.get(&["node", "node3"], "{.metadata.name}") {
        Ok(_) => bail!("node3 was made"),
        Err(_) => Ok(()),
    }
}
