//! Clusters of both address families, and of IPv6 alone: pods, names, Services, node ports, restarts.

use anyhow::{Context, Result, ensure};
use e2e::{Space, told_at, until, xtask};

use crate::Runs::{Alone, Beside};
use crate::{Case, restart};

pub const DUAL: &[Case] = &[
    ("dual-pods", "a pod has an address of each family, and says so everywhere", Beside, two_addresses),
    ("dual-services", "a service is reached by both its addresses and by name", Beside, both_addresses),
    ("dual-ports", "node ports serve IPv6, and policy Local keeps the client", Beside, node_ports),
    ("dual-restart", "addresses of both families outlast the agent", Alone, kept),
];

pub const V6: &[Case] = &[
    ("v6-only", "without IPv4 there are pods, names, services and streams", Beside, v6_only),
    ("v6-restart", "an address of IPv6 outlasts the agent", Alone, kept),
];

fn web(space: &Space<'_>) -> Result<()> {
    space.asker()?;
    space.teller("web", &space.cluster.node().name)
}

fn list(space: &Space<'_>, object: &[&str], path: &str) -> Result<Vec<String>> {
    Ok(space.get(object, path)?.split_whitespace().map(str::to_owned).collect())
}

/// The web server's addresses.
fn pod_ips(space: &Space<'_>) -> Result<Vec<String>> {
    list(space, &["pod", "web"], "{.status.podIPs[*].ip}")
}

fn two_addresses(space: &Space<'_>) -> Result<()> {
    web(space)?;
    let ips = pod_ips(space)?;
    let [v4, v6] = &*ips else { anyhow::bail!("podIPs are {ips:?}") };
    ensure!(v4.starts_with("10.244.") && v6.starts_with("fd00:10:244:"), "podIPs are {ips:?}");
    let node = space.cluster.node();
    let said = list(space, &["node", &node.name], "{.status.addresses[?(@.type=='InternalIP')].address}")?;
    ensure!(said == node.ips, "the node has {said:?}");
    let hosts = list(space, &["pod", "web"], "{.status.hostIPs[*].ip}")?;
    ensure!(hosts == node.ips && space.get(&["pod", "web"], "{.status.podIP}")? == *v4, "hostIPs are {hosts:?}");
    let ranges = list(space, &["node", &node.name], "{.spec.podCIDRs[*]}")?;
    ensure!(matches!(&*ranges, [v4, v6] if v4.ends_with("/24") && v6.ends_with("/64")), "podCIDRs are {ranges:?}");
    let inside =
        space.kubectl(&["exec", "web", "--", "sh", "-c", "echo $POD_IP $POD_IPS $HOST_IPS; cat /etc/hosts"])?;
    let told = format!("{v4} {v4},{v6} {}", node.ips.join(","));
    ensure!(inside.starts_with(&told), "the pod is told {inside}, not {told}");
    ensure!(ips.iter().all(|ip| inside.contains(&format!("{ip}\tweb\n"))), "its /etc/hosts is {inside}");
    for ip in &ips {
        let url = told_at(ip, "8080");
        ensure!(space.ask(&["wget", "-qO-", &url])?.starts_with("web answers"), "from a pod at {ip}");
        ensure!(node.fetch(&url)?.starts_with("web answers"), "from the node at {ip}");
        space.ask(&["ping", "-c", "1", "-W", "5", ip]).with_context(|| format!("ping {ip}"))?;
    }
    let own = space.ask(&["wget", "-qO-", &told_at(v6, "8080")])?;
    let asker = list(space, &["pod", "asker"], "{.status.podIPs[*].ip}")?;
    ensure!(own.contains(&asker[1]), "pods see each other's own addresses: {own}");
    // A pod of the host's network has the node's.
    space.apply_text("{apiVersion: v1, kind: Pod, metadata: {name: host}, spec: {hostNetwork: true, terminationGracePeriodSeconds: 1, containers: [{name: c, image: busybox, command: [sleep, '1000000']}]}}")?;
    space.wait_ready(&["pod/host"])?;
    let host = list(space, &["pod", "host"], "{.status.podIPs[*].ip}")?;
    ensure!(host == node.ips, "a pod of the host's network has {host:?}");
    Ok(())
}

fn both_addresses(space: &Space<'_>) -> Result<()> {
    web(space)?;
    let ips = list(space, &["service", "web"], "{.spec.clusterIPs[*]}")?;
    let [v4, v6] = &*ips else { anyhow::bail!("clusterIPs are {ips:?}") };
    ensure!(v6.starts_with("fd00:10:96:"), "clusterIPs are {ips:?}");
    let types = list(space, &["endpointslices"], "{.items[*].addressType}")?;
    ensure!(["IPv4", "IPv6"].iter().all(|family| types.iter().any(|type_| type_ == family)), "slices are of {types:?}");
    for ip in &ips {
        let url = told_at(ip, "80");
        until("the service answers a pod and the node", || {
            let pages = [space.ask(&["wget", "-qO-", &url])?, space.cluster.node().fetch(&url)?];
            Ok(pages.iter().all(|page| page.starts_with("web answers")))
        })
        .with_context(|| format!("at {ip}"))?;
    }
    let name = format!("web.{}.svc.cluster.local", space.namespace());
    for (kind, ip) in [("A", v4), ("AAAA", v6)] {
        let said = dig(space, "10.96.0.10", &[kind, &name])?;
        ensure!(said == *ip, "{kind} of {name}: {said}");
        let said = dig(space, "10.96.0.10", &["-x", ip])?;
        ensure!(said == format!("{name}."), "PTR of {ip}: {said}");
    }
    let by_name = space.ask(&["wget", "-qO-", &told_at("web", "80")])?;
    ensure!(by_name.starts_with("web answers"), "by name: {by_name}");
    let v6_alone = "{apiVersion: v1, kind: Service, metadata: {name: six}, spec: {ipFamilies: [IPv6], clusterIP: None, selector: {app: web}, ports: [{port: 8080, name: http}]}}";
    space.apply_text(v6_alone)?;
    let six = format!("six.{}.svc.cluster.local", space.namespace());
    let pod = pod_ips(space)?;
    until("a headless service of IPv6 gives that address alone", || {
        Ok(dig(space, "10.96.0.10", &["AAAA", &six])? == pod[1] && dig(space, "10.96.0.10", &["A", &six])?.is_empty())
    })?;
    let by_name = space.ask(&["wget", "-qO-", &told_at("six", "8080")])?;
    ensure!(by_name.starts_with("web answers"), "by an AAAA record alone: {by_name}");
    let srv = dig(space, "10.96.0.10", &["SRV", &format!("_http._tcp.{six}")])?;
    ensure!(srv.contains(" 8080 "), "SRV: {srv}");
    Ok(())
}

fn dig(space: &Space<'_>, server: &str, words: &[&str]) -> Result<String> {
    let server = format!("@{server}");
    let all = [&["+short", "+time=2", "+tries=2", &server], words].concat();
    Ok(space.cluster.node().run("dig", &all)?.trim().to_owned())
}

fn node_ports(space: &Space<'_>) -> Result<()> {
    web(space)?;
    let (port, client) = (space.node_port("web")?, space.cluster.client());
    for ip in &space.cluster.node().ips {
        let url = told_at(ip, &port);
        until("the port answers outside", || Ok(client.fetch(&url)?.starts_with("web answers")))
            .with_context(|| format!("at {ip}"))?;
        ensure!(space.cluster.node().fetch(&url)?.starts_with("web answers"), "from the node at {ip}");
        ensure!(space.ask(&["wget", "-qO-", &url])?.starts_with("web answers"), "from a pod at {ip}");
    }
    let own = client.run("ip", &["-6", "-oneline", "address", "show", "dev", "eth0", "scope", "global"])?;
    let own = own.split_whitespace().find_map(|word| word.strip_suffix("/64")).context("the client has no address")?;
    let url = told_at(&space.cluster.node().ips[1], &port);
    let shown = client.fetch(&url)?;
    ensure!(!shown.contains(own), "with policy Cluster the pod sees {shown}");
    space.kubectl(&["patch", "service", "web", "-p", "{\"spec\":{\"externalTrafficPolicy\":\"Local\"}}"])?;
    until("the pod sees the client", || Ok(client.fetch(&url)?.contains(own)))
}

/// The web server keeps its addresses, and answers there, when the agent ended and came back.
fn kept(space: &Space<'_>) -> Result<()> {
    web(space)?;
    let before = pod_ips(space)?;
    let state = "{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}";
    let (run, (name, node)) = (space.get(&["pod", "web"], state)?, (space.cluster.name(), space.cluster.node()));
    let urls: Vec<String> =
        list(space, &["service", "web"], "{.spec.clusterIPs[*]}")?.iter().map(|ip| told_at(ip, "80")).collect();
    for way in ["kill", "stop"] {
        xtask(&["cluster", way, name, &node.name])?;
        for ip in &before {
            node.fetch(&told_at(ip, "8080")).with_context(|| format!("{ip} after {way}"))?;
        }
        restart::start_agent(space.cluster, space.cluster.binary())?;
        until("the node is there again", || Ok(space.get(&["node", &node.name], "{.metadata.name}").is_ok()))?;
        let after = pod_ips(space)?;
        ensure!(after == before && space.get(&["pod", "web"], state)? == run, "after {way}: {after:?}");
        for url in &urls {
            until("the service answers", || Ok(node.fetch(url)?.starts_with("web answers")))?;
        }
    }
    // The next pod gets others.
    space.run_pod("next", &["sleep", "1000000"])?;
    let next = list(space, &["pod", "next"], "{.status.podIPs[*].ip}")?;
    ensure!(next.len() == before.len() && next.iter().all(|ip| !before.contains(ip)), "{next:?} beside {before:?}");
    Ok(())
}

fn v6_only(space: &Space<'_>) -> Result<()> {
    web(space)?;
    let (ips, node) = (pod_ips(space)?, space.cluster.node());
    ensure!(matches!(&*ips, [ip] if ip.starts_with("fd00:10:244:")), "podIPs are {ips:?}");
    let said = list(space, &["node", &node.name], "{.status.addresses[?(@.type=='InternalIP')].address}")?;
    ensure!(said == node.ips, "the node has {said:?}");
    let service = list(space, &["service", "web"], "{.spec.clusterIPs[*]}")?;
    ensure!(matches!(&*service, [ip] if ip.starts_with("fd00:10:96:")), "clusterIPs are {service:?}");
    let inside = space.ask(&["sh", "-c", "cat /etc/resolv.conf; ip address"])?;
    ensure!(inside.contains("nameserver fd00:10:96::a\n") && !inside.contains("10.244."), "{inside}");
    for host in ["web", &format!("web.{}.svc.cluster.local", space.namespace()), &service[0]] {
        until("the service answers a pod", || {
            Ok(space.ask(&["wget", "-qO-", &told_at(host, "80")])?.starts_with("web answers"))
        })
        .with_context(|| format!("by {host}"))?;
    }
    let name = "kubernetes.default.svc.cluster.local";
    let said = dig(space, "fd00:10:96::a", &["AAAA", name])?;
    ensure!(said == "fd00:10:96::1" && dig(space, "fd00:10:96::a", &["A", name])?.is_empty(), "{name} is {said}");
    // The API server, by the Service that leads to it, with its own certificate.
    let served = space.kubectl(&["get", "configmap", "kube-root-ca.crt", "-o", "jsonpath={.data.ca\\.crt}"])?;
    let folder = tempfile::tempdir()?;
    let authority = folder.path().join("ca.crt");
    std::fs::write(&authority, served)?;
    let (authority, server) = (authority.display().to_string(), "https://[fd00:10:96::1]/version");
    let version = node.run("curl", &["--silent", "--max-time", "5", "--cacert", &authority, server])?;
    ensure!(version.contains("gitVersion"), "{version}");
    let port = space.node_port("web")?;
    let outside = space.cluster.client().fetch(&told_at(&node.ips[0], &port))?;
    ensure!(outside.starts_with("web answers"), "from outside: {outside}");
    ensure!(space.kubectl(&["exec", "web", "--", "echo", "there"])?.trim() == "there", "exec");
    Ok(())
}
