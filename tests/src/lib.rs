//! What end-to-end tests share: a cluster made by the project's own command, the real kubectl, and a count of what a
//! machine holds before and after.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

mod inventory;

pub use inventory::Inventory;

/// How long anything may take that has no limit of its own.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A running test cluster; taken down when dropped.
pub struct Cluster {
    name: String,
    facts: Value,
}

pub fn workspace() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

pub fn xtask(arguments: &[&str]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["xtask"])
        .args(arguments)
        .current_dir(workspace())
        .stdin(Stdio::null())
        .status()
        .context("cannot run cargo xtask")?;
    ensure!(status.success(), "cargo xtask {} failed", arguments.join(" "));
    Ok(())
}

/// The release after this one: another pod protocol and other map layouts.
pub fn next_release() -> Result<PathBuf> {
    xtask(&["build", "--next-release"])?;
    Ok(workspace().join("target/debug/amphipod"))
}

impl Cluster {
    pub fn up(name: &str) -> Result<Self> {
        Self::up_by(name, &[])
    }

    /// The same with another release than `target/release/amphipod`.
    pub fn up_with(name: &str, binary: &std::path::Path) -> Result<Self> {
        Self::up_by(name, &["--binary", &binary.display().to_string()])
    }

    fn up_by(name: &str, words: &[&str]) -> Result<Self> {
        if workspace().join("target/clusters").join(name).exists() {
            xtask(&["cluster", "down", name])?;
        }
        xtask(&[&["cluster", "up", "--nodes", "1", "--name", name], words].concat())?;
        let path = workspace().join("target/clusters").join(name).join("cluster.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { name: name.to_owned(), facts: serde_json::from_str(&text)? })
    }

    pub fn down(self) -> Result<()> {
        let name = self.name.clone();
        std::mem::forget(self);
        xtask(&["cluster", "down", &name])
    }

    fn fact(&self, pointer: &str) -> &str {
        self.facts.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn node_ip(&self) -> &str {
        self.fact("/nodes/0/ip")
    }

    pub fn data_dir(&self) -> &str {
        self.fact("/nodes/0/data_dir")
    }

    pub fn log(&self) -> &str {
        self.fact("/log")
    }

    /// What the node's programs hold, read past the agent.
    pub fn kernel(&self) -> Result<proxy_userspace::Pinned> {
        let path = Path::new(self.data_dir()).join("places.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let places: Value = serde_json::from_str(&text)?;
        let root = places["bpf_root"].as_str().context("places.json names no bpf_root")?;
        proxy_userspace::Pinned::open(Path::new(root)).with_context(|| format!("cannot open the maps of {root}"))
    }

    /// The network namespace of the client outside.
    pub fn client_netns(&self) -> Result<File> {
        let path = Path::new("/run/netns").join(self.fact("/client/netns"));
        File::open(&path).with_context(|| format!("cannot open {}", path.display()))
    }

    /// kubectl for this cluster, to be started by whoever needs it running.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.fact("/kubeconfig")).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs kubectl; its output, whatever its end.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<Output> {
        self.kubectl_command(arguments).output().context("cannot run kubectl")
    }

    /// Runs kubectl, which must succeed; its standard output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        succeeded(self.try_kubectl(arguments)?, &format!("kubectl {}", arguments.join(" ")))
    }

    /// Runs kubectl, which must fail; what it said.
    pub fn kubectl_fails(&self, arguments: &[&str]) -> Result<String> {
        let output = self.try_kubectl(arguments)?;
        ensure!(!output.status.success(), "kubectl {} succeeded: {}", arguments.join(" "), text(&output.stdout));
        Ok(text(&output.stderr))
    }

    /// The first lines of a kubectl command that would go on; it is ended after them.
    pub fn follow(&self, arguments: &[&str], lines: usize) -> Result<Vec<String>> {
        let mut child = self.kubectl_command(arguments).stdout(Stdio::piped()).spawn().context("cannot run kubectl")?;
        let out = child.stdout.take().context("no standard output")?;
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut read = Vec::new();
        while read.len() < lines
            && let Ok(line) = receiver.recv_timeout(LIMIT)
        {
            read.push(line);
        }
        child.kill().context("cannot end kubectl")?;
        child.wait().context("kubectl did not end")?;
        ensure!(read.len() == lines, "kubectl {} ended after {} lines", arguments.join(" "), read.len());
        Ok(read)
    }

    /// Runs kubectl with standard input and an environment.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str, environment: &[(&str, &str)]) -> Result<Output> {
        let mut command = self.kubectl_command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).envs(environment.iter().copied());
        let mut child = command.spawn().context("cannot run kubectl")?;
        child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
        child.wait_with_output().context("kubectl did not end")
    }

    pub fn apply(&self, example: &str) -> Result<String> {
        let path = workspace().join("examples").join(example).display().to_string();
        self.kubectl(&["apply", "-f", &path])
    }

    /// Applies a manifest given as text.
    pub fn apply_text(&self, manifest: &str) -> Result<String> {
        succeeded(self.kubectl_with(&["apply", "-f", "-"], &yaml(manifest), &[])?, "kubectl apply -f -")
    }

    /// A value of an object, by JSONPath.
    pub fn get(&self, what: &[&str], path: &str) -> Result<String> {
        let output = format!("jsonpath={path}");
        let mut arguments = vec!["get"];
        arguments.extend_from_slice(what);
        arguments.extend(["-o", &output]);
        self.kubectl(&arguments)
    }

    /// A command on the node (`node1`) or outside (`client`).
    pub fn command(&self, place: &str, program: &str, arguments: &[&str]) -> Command {
        let netns = if place == "client" { self.fact("/client/netns") } else { self.fact("/nodes/0/netns") };
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{netns}")).arg("--").arg(program).args(arguments).stdin(Stdio::null());
        command
    }

    pub fn run(&self, place: &str, program: &str, arguments: &[&str]) -> Result<String> {
        let output =
            self.command(place, program, arguments).output().with_context(|| format!("cannot run {program}"))?;
        succeeded(output, &format!("{place}: {program} {}", arguments.join(" ")))
    }

    /// A page over HTTP, fetched within five seconds.
    pub fn fetch(&self, place: &str, url: &str) -> Result<String> {
        self.run(place, "curl", &["--silent", "--show-error", "--fail", "--max-time", "5", url])
    }

    /// Waits for a condition; the last reason why it did not hold is part of the failure.
    pub fn until(&self, what: &str, holds: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let outcome = holds(self);
            if matches!(outcome, Ok(true)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return outcome
                    .and_then(|_| bail!("it did not happen within {} s", LIMIT.as_secs()))
                    .context(format!("waiting until {what}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Only on the way out of a failure: what went wrong before matters more.
        if let Err(error) = xtask(&["cluster", "down", &self.name]) {
            eprintln!("taking the cluster down: {error:#}");
        }
    }
}

/// Text that kubectl takes for YAML even where it opens with a brace.
pub fn yaml(manifest: &str) -> String {
    format!("---\n{manifest}")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn succeeded(output: Output, what: &str) -> Result<String> {
    ensure!(output.status.success(), "{what}: {}", text(&output.stderr).trim());
    Ok(text(&output.stdout))
}
