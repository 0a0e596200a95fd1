//! Services, as users reach them: from pods, from nodes and from outside.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{CLUSTER_IP, NODE_PORT, Space, text, until};

pub fn three_ways(space: &Space<'_>) -> Result<()> {
    space.web_servers()?;
    space.asker()?;
    let (ip, port) = (space.address(CLUSTER_IP)?, space.node_port(NODE_PORT)?);
    let names = space.get(&["pods", "-l", "app=webserver"], "{.items[*].metadata.name}")?;
    let known = |page: &str| names.split(' ').any(|name| page.contains(name));
    let page = space.cluster.node().fetch(&format!("http://{ip}:8080/"))?;
    ensure!(known(&page), "from the node: {page}");
    let page = space.ask(&["wget", "-qO-", &format!("http://{ip}:8080/")])?;
    ensure!(known(&page), "from a pod: {page}");
    let page = space.ask(&["wget", "-qO-", &format!("http://{CLUSTER_IP}:8080/")])?;
    ensure!(known(&page), "by name: {page}");
    let page = space.cluster.client().fetch(&format!("http://{}:{port}/", space.cluster.node_ip()))?;
    ensure!(known(&page), "by NodePort from outside: {page}");
    for place in [space.cluster.node_ip(), "127.0.0.1"] {
        let page = space.cluster.node().fetch(&format!("http://{place}:{port}/"))?;
        ensure!(known(&page), "by NodePort from the node itself at {place}: {page}");
    }
    // A ClusterIP is for the inside: nothing answers outside, even with a route to the node.
    let outside = space
        .cluster
        .client()
        .command("curl", &["--silent", "--max-time", "1", &format!("http://{ip}:8080/")])
        .output()?;
    ensure!(!outside.status.success(), "the ClusterIP answers outside the cluster");
    Ok(())
}

/// A NodePort serves the client outside packet by packet: no socket hook takes part.
pub fn packet_path(space: &Space<'_>) -> Result<()> {
    space.web_servers()?;
    let kernel = space.cluster.node().kernel()?;
    ensure!(!kernel.is_local_netns(&space.cluster.client().netns()?)?, "the client counts as inside the cluster");
    let count = |name: &str| -> Result<u64> {
        let all = kernel.counters()?;
        Ok(all.iter().find(|(known, _)| *known == name).with_context(|| format!("no counter {name}"))?.1)
    };
    let url = format!("http://{}/", space.outside(NODE_PORT)?);
    let (sockets, flows) = (count("socket_translated")?, count("service_flow")?);
    for _ in 0..10 {
        space.cluster.client().fetch(&url)?;
    }
    let (sockets, flows) = (count("socket_translated")? - sockets, count("service_flow")? - flows);
    ensure!(sockets == 0, "{sockets} sockets were translated while only the client asked");
    ensure!(flows >= 10, "the packet path saw {flows} of 10 connections");
    Ok(())
}

pub fn balanced(space: &Space<'_>) -> Result<()> {
    space.web_servers()?;
    let inside = (&**space.cluster.node(), format!("http://{}:8080/", space.address(CLUSTER_IP)?));
    let outside = (space.cluster.client(), format!("http://{}/", space.outside(NODE_PORT)?));
    for (place, url) in [inside, outside] {
        let mut seen = BTreeSet::new();
        for _ in 0..40 {
            seen.insert(place.fetch(&url)?);
        }
        // Missing one of three in 40 tries has odds of one in four million.
        ensure!(seen.len() == 3, "{} of 3 endpoints were reached through {url}", seen.len());
    }
    Ok(())
}

pub fn refused(space: &Space<'_>) -> Result<()> {
    space.apply_text("{apiVersion: v1, kind: Service, metadata: {name: nobody}, spec: {type: NodePort, selector: {app: nobody}, ports: [{port: 80}]}}")?;
    space.asker()?;
    let ip = space.address("nobody")?;
    let inside = (&**space.cluster.node(), format!("http://{ip}/"));
    let outside = (space.cluster.client(), format!("http://{}/", space.outside("nobody")?));
    for (place, url) in [inside, outside] {
        until("it refuses", || {
            let started = Instant::now();
            let output = place.command("curl", &["--silent", "--show-error", "--max-time", "3", &url]).output()?;
            // 7: could not connect; 28 would be a time-out.
            Ok(output.status.code() == Some(7)
                && started.elapsed() < Duration::from_secs(1)
                && text(&output.stderr).contains("connect"))
        })?;
    }
    let refused = space.try_kubectl(&["exec", "asker", "--", "wget", "-qO-", &format!("http://{ip}/")])?;
    ensure!(text(&refused.stderr).contains("refused"), "{}", text(&refused.stderr));
    Ok(())
}

pub fn host_port(space: &Space<'_>) -> Result<()> {
    const PORT: u16 = 18_098;
    let serve = "echo mine > /tmp/index.html; exec httpd -f -p 8080 -h /tmp";
    space.apply_text(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: own}}, spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: c, image: busybox, command: [sh, -c, '{serve}'], ports: [{{containerPort: 8080, hostPort: {PORT}}}]}}]}}}}"
    ))?;
    space.wait_ready(&["pod/own"])?;
    space.asker()?;
    let url = format!("http://{}:{PORT}/", space.cluster.node_ip());
    until("it answers outside", || Ok(space.cluster.client().fetch(&url).is_ok_and(|page| page.trim() == "mine")))?;
    for place in [&url, &format!("http://127.0.0.1:{PORT}/")] {
        let page = space.cluster.node().fetch(place)?;
        ensure!(page.trim() == "mine", "from the node itself at {place}: {page}");
    }
    let page = space.ask(&["wget", "-qO-", &url])?;
    ensure!(page.trim() == "mine", "from a pod: {page}");
    space.kubectl(&["delete", "pod", "own"])?;
    until("it is nobody's", || Ok(space.cluster.client().fetch(&url).is_err()))
}

pub fn type_changes(space: &Space<'_>) -> Result<()> {
    space.web_servers()?;
    space.apply_text("{apiVersion: v1, kind: Service, metadata: {name: changing}, spec: {selector: {app: webserver}, ports: [{port: 80}]}}")?;
    let patch = |patch: &str| space.kubectl(&["patch", "service", "changing", "-p", patch]);
    let first = space.address("changing")?;
    patch(r#"{"spec":{"type":"NodePort"}}"#)?;
    let url = format!("http://{}/", space.outside("changing")?);
    until("the node port answers", || Ok(space.cluster.client().fetch(&url).is_ok()))?;
    patch(r#"{"spec":{"type":"ClusterIP"}}"#)?;
    until("the node port is closed", || Ok(space.cluster.client().fetch(&url).is_err()))?;
    ensure!(
        space.node_port("changing")?.is_empty() && space.address("changing")? == first,
        "the address stays, the port goes"
    );
    patch(r#"{"spec":{"type":"LoadBalancer"}}"#)?;
    ensure!(!space.node_port("changing")?.is_empty(), "a load balancer has a node port");
    patch(r#"{"spec":{"type":"ExternalName","externalName":"elsewhere.example.com"}}"#)?;
    ensure!(space.address("changing")?.is_empty(), "an external name has no address");
    patch(r#"{"spec":{"type":"ClusterIP","externalName":null}}"#)?;
    let ip = space.address("changing")?;
    until("the new address answers", || Ok(space.cluster.node().fetch(&format!("http://{ip}/")).is_ok()))?;
    space.kubectl(&["delete", "service", "changing"])?;
    until("a deleted service answers no more", || Ok(space.cluster.node().fetch(&format!("http://{ip}/")).is_err()))
}
