//! Services with the address of a load balancer, which somebody outside gives them here, and services that want their clients near.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use e2e::{CLUSTER_IP, Space, until};
use serde_json::{Value, json};

/// Only this case's: nothing else has it.
const ADDRESS: &str = "198.51.100.7";

pub fn balancer(space: &Space<'_>) -> Result<()> {
    space.web_servers()?;
    space.asker()?;
    let (node, client) = (space.cluster.node_ip(), space.cluster.client());
    space.apply_text(
        "{apiVersion: v1, kind: Service, metadata: {name: balanced}, spec: {type: LoadBalancer, externalTrafficPolicy: Local, \
         selector: {app: webserver}, ports: [{port: 80}]}}",
    )?;
    client.run("ip", &["route", "replace", ADDRESS, "via", node])?;
    let url = format!("http://{ADDRESS}/");
    let give = |ingress: &Value| {
        let patch = json!({"status": {"loadBalancer": {"ingress": [ingress]}}}).to_string();
        space.kubectl(&["patch", "service", "balanced", "--subresource", "status", "--type", "merge", "-p", &patch])
    };
    give(&json!({"ip": ADDRESS}))?;
    ensure!(space.get(&["service", "balanced"], "{.status.loadBalancer.ingress[0].ipMode}")? == "VIP", "the default");
    let answers = || Ok(client.fetch(&url).is_ok());
    let from_pod = || space.try_kubectl(&["exec", "asker", "--", "timeout", "2", "wget", "-qO-", &url]);
    until("the balancer's address answers outside", answers)?;
    until("and inside", || Ok(from_pod()?.status.success()))?;

    // Whom it is for.
    let patch = |patch: &Value| space.kubectl(&["patch", "service", "balanced", "-p", &patch.to_string()]);
    patch(&json!({"spec": {"loadBalancerSourceRanges": ["192.0.2.0/24"]}}))?;
    until("nobody else is let in", || {
        let outside = client.command("curl", &["--silent", "--max-time", "1", &url]).output()?;
        Ok(!outside.status.success() && !from_pod()?.status.success())
    })?;
    let port = space.node_port("balanced")?;
    client.fetch(&format!("http://{node}:{port}/")).context("its node port is for everybody")?;
    patch(&json!({"spec": {"loadBalancerSourceRanges": [format!("{}/32", client_ip(space)?)]}}))?;
    until("the client is let in", answers)?;

    // What its balancer is told.
    let port = space.get(&["service", "balanced"], "{.spec.healthCheckNodePort}")?;
    let check = format!("http://{node}:{port}/healthz");
    let asked = || -> Result<(String, Value)> {
        let output = client
            .command("curl", &["--silent", "--max-time", "3", "--write-out", "\n%{http_code}", &check])
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        let (body, code) = text.rsplit_once('\n').context("a status")?;
        Ok((code.to_owned(), serde_json::from_str(body).unwrap_or_default()))
    };
    until("a node with endpoints is healthy", || Ok(asked()?.0 == "200"))?;
    let (_, body) = asked()?;
    let about = json!({"namespace": space.namespace(), "name": "balanced"});
    ensure!(body == json!({"service": about, "localEndpoints": 3, "serviceProxyHealthy": true}), "{body}");
    space.kubectl(&["scale", "deployment", "hostname-deployment", "--replicas", "0"])?;
    until("one without is not", || Ok(asked()?.0 == "503"))?;
    patch(&json!({"spec": {"externalTrafficPolicy": "Cluster"}}))?;
    until("nobody asks any more", || Ok(asked()?.0 == "000"))?;

    // The balancer's own.
    space.kubectl(&["scale", "deployment", "hostname-deployment", "--replicas", "1"])?;
    until("it answers again", answers)?;
    give(&json!({"ip": ADDRESS, "ipMode": "Proxy"}))?;
    until("a proxy's address is none of the node's", || {
        Ok(!client.command("curl", &["--silent", "--max-time", "1", &url]).output()?.status.success())
    })?;
    client.run("ip", &["route", "del", ADDRESS])?;
    Ok(())
}

/// The address by which the client outside reaches the node.
fn client_ip(space: &Space<'_>) -> Result<String> {
    let route = space.cluster.client().run("ip", &["-json", "route", "get", space.cluster.node_ip()])?;
    let route: Value = serde_json::from_str(&route)?;
    Ok(route[0]["prefsrc"].as_str().context("a source")?.to_owned())
}

/// Alone: the node is in a zone meanwhile.
pub fn near(space: &Space<'_>) -> Result<()> {
    const ZONE: &str = "topology.kubernetes.io/zone";
    space.web_servers()?;
    let node = space.get(&["nodes"], "{.items[0].metadata.name}")?;
    let label = |label: &str| space.kubectl(&["label", "node", &node, "--overwrite", label]);
    let hints =
        |what: &str| space.get(&["endpointslices", "-l", &format!("kubernetes.io/service-name={CLUSTER_IP}")], what);
    label(&format!("{ZONE}=here"))?;
    until("endpoints have the zone", || {
        Ok(hints("{.items[*].endpoints[*].zone}")?.split(' ').collect::<BTreeSet<_>>() == BTreeSet::from(["here"]))
    })?;
    ensure!(hints("{.items[*].endpoints[*].hints}")?.is_empty(), "nobody asked for it");
    let patch = |value: &str| {
        let patch = json!({"spec": {"trafficDistribution": value}}).to_string();
        space.kubectl(&["patch", "service", CLUSTER_IP, "-p", &patch])
    };
    patch("PreferClose")?;
    until("they are meant for the zone", || {
        Ok(hints("{.items[*].endpoints[*].hints.forZones[*].name}")?.contains("here"))
    })?;
    patch("PreferSameNode")?;
    until("and for the node", || Ok(hints("{.items[*].endpoints[*].hints.forNodes[*].name}")?.contains(&node)))?;
    let url = format!("http://{}:8080/", space.address(CLUSTER_IP)?);
    space.cluster.node().fetch(&url)?;

    // Made by hand: one endpoint that is meant for here, one that is nowhere and meant for elsewhere.
    let ip = space.get(&["pods", "-l", "app=webserver"], "{.items[0].status.podIP}")?;
    let endpoint = |ip: &str, zone: &str| json!({"addresses": [ip], "conditions": {"ready": true}, "zone": zone, "hints": {"forZones": [{"name": zone}]}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hinted"}, "spec": {"ports": [{"port": 80}]}});
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "hinted-1", "labels": {"kubernetes.io/service-name": "hinted"}},
        "ports": [{"name": "", "port": 80}],
        "endpoints": [endpoint(&ip, "here"), endpoint("198.51.100.99", "elsewhere")],
    });
    space.apply_text(&format!("{service}\n---\n{slice}"))?;
    let url = format!("http://{}/", space.address("hinted")?);
    let answered = || (0..12).filter(|_| quick(space, &url)).count();
    until("the near endpoint alone answers", || Ok(answered() == 12))?;
    label(&format!("{ZONE}=nowhere"))?;
    until("none is near: all serve", || Ok(answered() < 12))?;
    space.kubectl(&["label", "node", &node, &format!("{ZONE}-")])?;
    Ok(())
}

fn quick(space: &Space<'_>, url: &str) -> bool {
    let asked = space.cluster.node().command("curl", &["--silent", "--max-time", "0.3", url]).output();
    asked.is_ok_and(|output| output.status.success())
}
