//! `cargo xtask demo`: what Amphipod is for, on this machine, with the real kubectl.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::{Cluster, Families, wait_for};
use crate::setup::workspace_root;
use crate::{build, setup};

const NAME: &str = "demo";
/// How long anything in the demo may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Applied in this order; the Pod of the two-container manifest takes the name of the single one's.
const MANIFESTS: [&str; 9] = [
    "nginx-pod.yaml",
    "replicaset-nginx.yaml",
    "deployment-nginx.yaml",
    "webserver-deployment.yaml",
    "hostname-svc-clusterip.yaml",
    "hostname-svc-nodeport.yaml",
    "hostname-svc-lb.yaml",
    "hostname-svc-lb-local.yaml",
    "externalname-svc.yaml",
];

/// What becomes of the cluster after the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    Down,
    /// Unless something failed.
    Kept,
}

/// Runs the demo; takes the cluster down again unless it is to be kept.
pub fn demo(afterwards: Afterwards) -> Result<()> {
    let started = Instant::now();
    let say = |text: &str| println!("\n\x1b[1m[{:>3} s] {text}\x1b[0m", started.elapsed().as_secs());
    say("set-up: install what is missing");
    setup::setup()?;
    say("build");
    let binary = build::build()?;
    let cluster = Cluster::new(NAME)?;
    if workspace_root().join("target/clusters").join(NAME).exists() {
        say("an earlier demo's cluster is taken down first");
        cluster.down()?;
    }
    say("a one-node cluster in network namespaces");
    cluster.up(1, Families::Ipv4, &binary, &|step| println!("  • {step}"))?;
    let shown = show(&Demo { kubeconfig: cluster.kubeconfig() }, &say);
    if afterwards == Afterwards::Kept && shown.is_ok() {
        say("kept, as asked");
        println!("  kubectl --kubeconfig {} get all", cluster.kubeconfig().display());
        println!("  cargo xtask cluster exec {NAME} node1 -- curl http://10.90.0.11:NODEPORT");
        println!("  cargo xtask cluster down {NAME}");
        return Ok(());
    }
    say("everything is taken down again");
    let down = cluster.down();
    shown?;
    down?;
    say("done");
    Ok(())
}

struct Demo {
    kubeconfig: PathBuf,
}

impl Demo {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs kubectl, showing command and output.
    fn kubectl(&self, arguments: &[&str]) -> Result<()> {
        println!("  $ kubectl {}", arguments.join(" "));
        let status = self.command(arguments).status().context("cannot run kubectl")?;
        ensure!(status.success(), "kubectl {} failed", arguments.join(" "));
        Ok(())
    }

    fn value(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).output().context("cannot run kubectl")?;
        ensure!(
            output.status.success(),
            "kubectl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn apply(&self, manifest: &str) -> Result<()> {
        let path = workspace_root().join("examples").join(manifest);
        println!("  $ kubectl apply -f examples/{manifest}");
        let status = self.command(&["apply", "-f"]).arg(&path).status().context("cannot run kubectl")?;
        ensure!(status.success(), "applying {manifest} failed");
        Ok(())
    }

    /// Fetches a page from a place of the cluster.
    fn curl(&self, place: &str, url: &str, more: &[&str]) -> Result<String> {
        let netns = format!("amp-{NAME}-{place}");
        let mut arguments = vec!["--silent", "--show-error", "--fail", "--max-time", "5"];
        arguments.extend_from_slice(more);
        arguments.push(url);
        let page = crate::netns::inside(&netns, "curl", &arguments)?;
        println!("  {place} $ curl {url}  →  {}", gist(&page));
        Ok(page)
    }

    fn until(&self, what: &str, holds: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let mut last = None;
        let reached = wait_for(LIMIT, || match holds(self) {
            Ok(holds) => holds,
            Err(error) => {
                last = Some(error);
                false
            }
        });
        match (reached, last) {
            (Ok(()), _) => Ok(()),
            (Err(error), Some(cause)) => Err(cause).context(format!("waiting until {what}: {error}")),
            (Err(error), None) => Err(error).with_context(|| format!("waiting until {what}")),
        }
    }
}

/// What tells one page from another: its title, and which version it says it is of.
fn gist(page: &str) -> String {
    let version = page.lines().find_map(|line| line.split_once("Version: ")?.1.split('<').next());
    let title = first_line(page);
    version.map_or_else(|| title.to_owned(), |version| format!("{title} ({version})"))
}

/// A page's title, or its first line that says something.
fn first_line(page: &str) -> &str {
    let title = page.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
    let line = || page.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    title.map_or_else(line, |(title, _)| title).trim()
}

fn show(demo: &Demo, say: &dyn Fn(&str)) -> Result<()> {
    say("the first-day manifests, unchanged, with the real kubectl");
    for manifest in MANIFESTS {
        demo.apply(manifest)?;
    }
    say("pods run: real nginx processes in real containers");
    demo.kubectl(&["rollout", "status", "deployment/my-nginx-deployment", "--timeout=60s"])?;
    demo.kubectl(&["rollout", "status", "deployment/hostname-deployment", "--timeout=60s"])?;
    demo.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    demo.kubectl(&["get", "pods", "-o", "wide"])?;
    demo.kubectl(&["get", "services"])?;
    say("one Service, three ways: ClusterIP, NodePort, name — translated by eBPF");
    let address = demo.value(&["get", "service", "hostname-svc-clusterip", "-o", "jsonpath={.spec.clusterIP}"])?;
    let port = demo.value(&["get", "service", "hostname-svc-nodeport", "-o", "jsonpath={.spec.ports[0].nodePort}"])?;
    demo.until("the ClusterIP answers", |demo| {
        demo.curl("node1", &format!("http://{address}:8080/"), &[]).map(|_| true)
    })?;
    for _ in 0..2 {
        demo.curl("node1", &format!("http://{address}:8080/"), &[])?;
    }
    demo.curl("client", &format!("http://10.90.0.11:{port}/"), &[])?;
    by_name(demo)?;
    say("an update, rolled out pod by pod, and a rollback");
    rollout(demo)?;
    say("two containers in one pod");
    demo.kubectl(&["delete", "pod", "my-nginx-pod", "--grace-period=2"])?;
    demo.apply("two-container-pod.yaml")?;
    demo.kubectl(&["wait", "--for=condition=Ready", "pod/my-nginx-pod", "--timeout=60s"])?;
    demo.kubectl(&["get", "pod", "my-nginx-pod"])?;
    say("nothing of iptables: the firewall of the node is empty");
    println!(
        "  node1 $ nft list ruleset  →  {:?}",
        crate::netns::inside(&format!("amp-{NAME}-node1"), "nft", &["list", "ruleset"])?
    );
    Ok(())
}

/// Asks for the name from inside a pod, by the pod's own resolver.
fn by_name(demo: &Demo) -> Result<()> {
    let name = "hostname-svc-clusterip.default.svc.cluster.local";
    let netns = format!("amp-{NAME}-node1");
    let found = crate::netns::inside(&netns, "dig", &["+short", "+time=2", "+tries=2", "@10.96.0.10", name])?;
    ensure!(!found.trim().is_empty(), "{name} does not resolve");
    println!("  node1 $ dig +short @10.96.0.10 {name}  →  {}", first_line(&found));
    demo.curl("node1", &format!("http://{name}:8080/"), &["--resolve", &format!("{name}:8080:{}", found.trim())])?;
    let run = [
        "run",
        "asker",
        "--image=busybox:latest",
        "--restart=Never",
        "--command",
        "--",
        "wget",
        "-qO-",
        "http://hostname-svc-clusterip:8080/",
    ];
    demo.kubectl(&run)?;
    demo.until("the pod has asked", |demo| {
        let phase = demo.value(&["get", "pod", "asker", "-o", "jsonpath={.status.phase}"])?;
        if phase == "Failed" {
            bail!("the pod failed: {}", demo.value(&["logs", "asker"]).unwrap_or_default());
        }
        Ok(phase == "Succeeded")
    })?;
    println!("  pod $ wget http://hostname-svc-clusterip:8080/  →  {}", first_line(&demo.value(&["logs", "asker"])?));
    demo.kubectl(&["delete", "pod", "asker"])
}

fn rollout(demo: &Demo) -> Result<()> {
    let page = |demo: &Demo| -> Result<String> {
        let pods = demo.value(&["get", "pods", "-l", "app=my-nginx", "-o", "jsonpath={.items[0].status.podIP}"])?;
        demo.curl("node1", &format!("http://{pods}/"), &[])
    };
    page(demo)?;
    demo.kubectl(&["set", "image", "deployment/my-nginx-deployment", "nginx=nginx:1.16.1"])?;
    demo.kubectl(&["rollout", "status", "deployment/my-nginx-deployment", "--timeout=60s"])?;
    demo.kubectl(&["rollout", "history", "deployment/my-nginx-deployment"])?;
    demo.until("the new page is there", |demo| Ok(page(demo)?.contains("1.16.1")))?;
    demo.kubectl(&["rollout", "undo", "deployment/my-nginx-deployment", "--to-revision=1"])?;
    demo.kubectl(&["rollout", "status", "deployment/my-nginx-deployment", "--timeout=60s"])?;
    demo.until("the old page is back", |demo| Ok(page(demo)?.contains("1.14.2")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_told_apart() {
        let page = |version: &str| {
            format!("<html>\n<head><title>Welcome to nginx!</title></head>\n<p>Version: nginx {version}</p>\n</html>\n")
        };
        assert_eq!(gist(&page("1.16.1")), "Welcome to nginx! (nginx 1.16.1)");
        assert_ne!(gist(&page("1.14.2")), gist(&page("1.16.1")));
        assert_eq!(gist("\nweb-1\n"), "web-1");
    }
}
