//! Services, as users reach them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, text};

const CLUSTER_IP: &str = "hostname-svc-clusterip";

fn address(cluster: &Cluster, service: &str) -> Result<String> {
    cluster.get(&["service", service], "{.spec.clusterIP}")
}

fn node_port(cluster: &Cluster, service: &str) -> Result<String> {
    cluster.get(&["service", service], "{.spec.ports[0].nodePort}")
}

/// Runs a command in a pod that stays for the asking.
fn in_pod(cluster: &Cluster, command: &[&str]) -> Result<String> {
    if !cluster.try_kubectl(&["get", "pod", "asker"])?.status.success() {
        cluster.kubectl(&["run", "asker", "--image=busybox:latest", "--", "sleep", "100000"])?;
        cluster.kubectl(&["wait", "--for=condition=Ready", "pod/asker", "--timeout=60s"])?;
    }
    let mut arguments = vec!["exec", "asker", "--"];
    arguments.extend_from_slice(command);
    cluster.kubectl(&arguments)
}

pub fn three_ways(cluster: &Cluster) -> Result<()> {
    let ip = address(cluster, CLUSTER_IP)?;
    let port = node_port(cluster, "hostname-svc-nodeport")?;
    let names = cluster.get(&["pods", "-l", "app=webserver"], "{.items[*].metadata.name}")?;
    let known = |page: &str| names.split(' ').any(|name| page.contains(name));
    cluster.until("the ClusterIP answers on the node", |cluster| {
        cluster.fetch("node1", &format!("http://{ip}:8080/")).map(|page| known(&page))
    })?;
    let page = in_pod(cluster, &["wget", "-qO-", &format!("http://{ip}:8080/")])?;
    ensure!(known(&page), "from a pod: {page}");
    let page = in_pod(cluster, &["wget", "-qO-", &format!("http://{CLUSTER_IP}:8080/")])?;
    ensure!(known(&page), "by name: {page}");
    let page = cluster.fetch("client", &format!("http://{}:{port}/", cluster.node_ip()))?;
    ensure!(known(&page), "by NodePort from outside: {page}");
    for place in [cluster.node_ip(), "127.0.0.1"] {
        let page = cluster.fetch("node1", &format!("http://{place}:{port}/"))?;
        ensure!(known(&page), "by NodePort from the node itself at {place}: {page}");
    }
    // A ClusterIP is for the inside: nothing answers outside, even with a route to the node.
    let outside =
        cluster.command("client", "curl", &["--silent", "--max-time", "1", &format!("http://{ip}:8080/")]).output()?;
    ensure!(!outside.status.success(), "the ClusterIP answers outside the cluster");
    Ok(())
}

/// Through the API server: requests to pods and services, and connections into a pod.
pub fn through_the_server(cluster: &Cluster) -> Result<()> {
    let raw = |path: &str| cluster.kubectl(&["get", "--raw", &format!("/api/v1/namespaces/default/{path}")]);
    let pod = cluster.get(&["pods", "-l", "app=webserver"], "{.items[0].metadata.name}")?;
    for name in [pod.clone(), format!("{pod}:80"), format!("http:{pod}:80")] {
        let page = raw(&format!("pods/{name}/proxy/"))?;
        ensure!(page.trim() == pod, "pods/{name}/proxy/: {page}");
    }
    for name in [format!("{CLUSTER_IP}:web-port"), format!("{CLUSTER_IP}:8080")] {
        let page = raw(&format!("services/{name}/proxy/some/path?a=b"))?;
        ensure!(page.starts_with("hostname-deployment-"), "services/{name}/proxy/: {page}");
    }
    let write = "echo '<a href=\"/other\">other</a>' > /usr/share/nginx/html/linked.html";
    cluster.kubectl(&["exec", "my-nginx-pod", "--", "sh", "-c", write])?;
    let page = raw("pods/my-nginx-pod/proxy/linked.html")?;
    let link = "<a href=\"/api/v1/namespaces/default/pods/my-nginx-pod/proxy/other\">other</a>";
    ensure!(page.trim() == link, "a link of a proxied page: {page}");
    let refused =
        cluster.kubectl_fails(&["get", "--raw", &format!("/api/v1/namespaces/default/pods/{pod}:81/proxy/")])?;
    ensure!(refused.contains("ServiceUnavailable"), "{refused}");
    for websockets in ["true", "false"] {
        let mut kubectl = cluster
            .kubectl_command(&["port-forward", &format!("pod/{pod}"), ":80"])
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        let page = forwarded(&mut kubectl);
        kubectl.kill()?;
        kubectl.wait()?;
        let page = page?;
        ensure!(page.ends_with(&format!("{pod}\n")) || page.ends_with(&pod), "port-forward: {page}");
    }
    Ok(())
}

/// What a forwarded port answers.
fn forwarded(kubectl: &mut std::process::Child) -> Result<String> {
    use std::io::{BufRead, Read, Write};
    let mut line = String::new();
    // Kept to the end: kubectl says more, and would not outlive its reader.
    let mut output = std::io::BufReader::new(kubectl.stdout.take().context("no output")?);
    output.read_line(&mut line)?;
    let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
    let port: u16 = port.with_context(|| format!("kubectl said {line:?}"))?.parse()?;
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// A NodePort serves the client outside packet by packet: no socket hook takes part.
pub fn packet_path(cluster: &Cluster) -> Result<()> {
    let kernel = cluster.kernel()?;
    ensure!(!kernel.is_local_netns(&cluster.client_netns()?)?, "the client counts as inside the cluster");
    let count = |name: &str| -> Result<u64> {
        let all = kernel.counters()?;
        Ok(all.iter().find(|(known, _)| *known == name).with_context(|| format!("no counter {name}"))?.1)
    };
    let port = node_port(cluster, "hostname-svc-nodeport")?;
    let (sockets, flows) = (count("socket_translated")?, count("service_flow")?);
    for _ in 0..10 {
        cluster.fetch("client", &format!("http://{}:{port}/", cluster.node_ip()))?;
    }
    let (sockets, flows) = (count("socket_translated")? - sockets, count("service_flow")? - flows);
    ensure!(sockets == 0, "{sockets} sockets were translated while only the client asked");
    ensure!(flows >= 10, "the packet path saw {flows} of 10 connections");
    Ok(())
}

pub fn balanced(cluster: &Cluster) -> Result<()> {
    let ip = address(cluster, CLUSTER_IP)?;
    let port = node_port(cluster, "hostname-svc-nodeport")?;
    for (place, url) in
        [("node1", format!("http://{ip}:8080/")), ("client", format!("http://{}:{port}/", cluster.node_ip()))]
    {
        let mut seen = BTreeSet::new();
        for _ in 0..40 {
            seen.insert(cluster.fetch(place, &url)?);
        }
        // Missing one of three in 40 tries has odds of one in four million.
        ensure!(seen.len() == 3, "{place} reached {} of 3 endpoints through {url}", seen.len());
    }
    Ok(())
}

pub fn refused(cluster: &Cluster) -> Result<()> {
    cluster.apply_text("{apiVersion: v1, kind: Service, metadata: {name: nobody}, spec: {type: NodePort, selector: {app: nobody}, ports: [{port: 80}]}}")?;
    let ip = address(cluster, "nobody")?;
    let port = node_port(cluster, "nobody")?;
    for (place, url) in
        [("node1", format!("http://{ip}/")), ("client", format!("http://{}:{port}/", cluster.node_ip()))]
    {
        cluster.until("it refuses", |cluster| {
            let started = Instant::now();
            let output =
                cluster.command(place, "curl", &["--silent", "--show-error", "--max-time", "3", &url]).output()?;
            // 7: could not connect; 28 would be a time-out.
            Ok(output.status.code() == Some(7)
                && started.elapsed() < Duration::from_secs(1)
                && text(&output.stderr).contains("connect"))
        })?;
    }
    let refused = cluster.try_kubectl(&["exec", "asker", "--", "wget", "-qO-", &format!("http://{ip}/")])?;
    ensure!(text(&refused.stderr).contains("refused"), "{}", text(&refused.stderr));
    cluster.kubectl(&["delete", "service", "nobody"]).map(drop)
}

pub fn names(cluster: &Cluster) -> Result<()> {
    let domain = "default.svc.cluster.local";
    let ip = address(cluster, CLUSTER_IP)?;
    let dig = |arguments: &[&str]| -> Result<String> {
        let mut all = vec!["+short", "+time=2", "+tries=2", "@10.96.0.10"];
        all.extend_from_slice(arguments);
        Ok(cluster.run("node1", "dig", &all)?.trim().to_owned())
    };
    ensure!(dig(&[&format!("{CLUSTER_IP}.{domain}")])? == ip, "A of {CLUSTER_IP}");
    ensure!(dig(&["+tcp", &format!("{CLUSTER_IP}.{domain}")])? == ip, "A over TCP");
    ensure!(dig(&["-x", &ip])? == format!("{CLUSTER_IP}.{domain}."), "PTR of {ip}");
    ensure!(
        dig(&["SRV", &format!("_web-port._tcp.{CLUSTER_IP}.{domain}")])?
            == format!("0 100 8080 {CLUSTER_IP}.{domain}."),
        "SRV"
    );
    ensure!(dig(&["CNAME", &format!("externalname-svc.{domain}")])? == "my.database.example.com.", "CNAME");
    ensure!(dig(&[&format!("kubernetes.{domain}")])? == "10.96.0.1", "the API server's name");
    ensure!(dig(&[&format!("nonesuch.{domain}")])?.is_empty(), "a name that is not there");
    cluster.apply_text("{apiVersion: v1, kind: Service, metadata: {name: headless}, spec: {clusterIP: None, selector: {app: webserver}, ports: [{port: 80}]}}")?;
    let pods: BTreeSet<String> = cluster
        .get(&["pods", "-l", "app=webserver"], "{.items[*].status.podIP}")?
        .split(' ')
        .map(str::to_owned)
        .collect();
    cluster.until("a headless service gives its pods", |_| {
        Ok(dig(&[&format!("headless.{domain}")])?.lines().map(str::to_owned).collect::<BTreeSet<_>>() == pods)
    })?;
    let inside = in_pod(cluster, &["nslookup", &format!("{CLUSTER_IP}.{domain}")])?;
    ensure!(inside.contains(&ip), "from a pod: {inside}");
    let search = in_pod(cluster, &["cat", "/etc/resolv.conf"])?;
    ensure!(
        search.contains("search default.svc.cluster.local svc.cluster.local cluster.local")
            && search.contains("ndots:5"),
        "{search}"
    );
    cluster.kubectl(&["delete", "service", "headless"]).map(drop)
}

pub fn no_firewall(cluster: &Cluster) -> Result<()> {
    let rules = cluster.run("node1", "nft", &["list", "ruleset"])?;
    ensure!(rules.trim().is_empty(), "{rules}");
    Ok(())
}

pub fn type_changes(cluster: &Cluster) -> Result<()> {
    cluster.apply_text("{apiVersion: v1, kind: Service, metadata: {name: changing}, spec: {selector: {app: webserver}, ports: [{port: 80}]}}")?;
    let patch = |patch: &str| cluster.kubectl(&["patch", "service", "changing", "-p", patch]);
    let first = address(cluster, "changing")?;
    patch(r#"{"spec":{"type":"NodePort"}}"#)?;
    let port = node_port(cluster, "changing")?;
    let url = format!("http://{}:{port}/", cluster.node_ip());
    cluster.until("the node port answers", |cluster| Ok(cluster.fetch("client", &url).is_ok()))?;
    patch(r#"{"spec":{"type":"ClusterIP"}}"#)?;
    cluster.until("the node port is closed", |cluster| Ok(cluster.fetch("client", &url).is_err()))?;
    ensure!(
        node_port(cluster, "changing")?.is_empty() && address(cluster, "changing")? == first,
        "the address stays, the port goes"
    );
    patch(r#"{"spec":{"type":"LoadBalancer"}}"#)?;
    ensure!(!node_port(cluster, "changing")?.is_empty(), "a load balancer has a node port");
    patch(r#"{"spec":{"type":"ExternalName","externalName":"elsewhere.example.com"}}"#)?;
    ensure!(address(cluster, "changing")?.is_empty(), "an external name has no address");
    patch(r#"{"spec":{"type":"ClusterIP","externalName":null}}"#)?;
    let ip = address(cluster, "changing")?;
    cluster.until("the new address answers", |cluster| Ok(cluster.fetch("node1", &format!("http://{ip}/")).is_ok()))?;
    cluster.kubectl(&["delete", "service", "changing"])?;
    cluster.until("a deleted service answers no more", |cluster| {
        Ok(cluster.fetch("node1", &format!("http://{ip}/")).is_err())
    })
}
