//! Names, as pods and the node resolve them.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use e2e::{CLUSTER_IP, Space, until};

pub fn names(space: &Space<'_>) -> Result<()> {
    space.web_servers()?;
    space.apply("externalname-svc.yaml")?;
    space.asker()?;
    let domain = format!("{}.svc.cluster.local", space.namespace());
    let ip = space.address(CLUSTER_IP)?;
    let dig = |arguments: &[&str]| -> Result<String> {
        let mut all = vec!["+short", "+time=2", "+tries=2", "@10.96.0.10"];
        all.extend_from_slice(arguments);
        Ok(space.cluster.node().run("dig", &all)?.trim().to_owned())
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
    ensure!(dig(&["kubernetes.default.svc.cluster.local"])? == "10.96.0.1", "the API server's name");
    ensure!(dig(&[&format!("nonesuch.{domain}")])?.is_empty(), "a name that is not there");
    space.apply_text("{apiVersion: v1, kind: Service, metadata: {name: headless}, spec: {clusterIP: None, selector: {app: webserver}, ports: [{port: 80}]}}")?;
    let pods: BTreeSet<String> = space
        .get(&["pods", "-l", "app=webserver"], "{.items[*].status.podIP}")?
        .split(' ')
        .map(str::to_owned)
        .collect();
    until("a headless service gives its pods", || {
        Ok(dig(&[&format!("headless.{domain}")])?.lines().map(str::to_owned).collect::<BTreeSet<_>>() == pods)
    })?;
    space.kubectl(&["scale", "deployment/hostname-deployment", "--replicas=1"])?;
    until("the address of a pod that went is nobody's", || {
        let left = space.get(&["pods", "-l", "app=webserver"], "{.items[*].status.podIP}")?;
        Ok(!left.contains(' ') && dig(&[&format!("headless.{domain}")])? == left)
    })?;
    // Names that are only above others, and ones that are not there.
    let code = |arguments: &[&str]| -> Result<String> {
        let mut all = vec!["+time=2", "+tries=2", "@10.96.0.10"];
        all.extend_from_slice(arguments);
        let told = space.cluster.node().run("dig", &all)?;
        let status = told.split_once("status: ").and_then(|(_, rest)| rest.split(',').next());
        Ok(status.unwrap_or_default().to_owned())
    };
    ensure!(code(&[&domain])? == "NOERROR", "a namespace");
    ensure!(code(&["nonesuch.svc.cluster.local"])? == "NXDOMAIN", "no namespace");
    space.apply_text("{apiVersion: v1, kind: Service, metadata: {name: vacant}, spec: {clusterIP: None, selector: {app: nobody}, ports: [{port: 80}]}}")?;
    ensure!(code(&[&format!("vacant.{domain}")])? == "NXDOMAIN", "a headless service without endpoints");
    ensure!(dig(&["NS", "cluster.local"])? == "ns.dns.cluster.local.", "NS");
    ensure!(dig(&["ns.dns.cluster.local"])? == "10.96.0.10", "the name server's address");
    for (name, expected) in [(&format!("{CLUSTER_IP}.{domain}"), &ip), (&ip, &format!("{CLUSTER_IP}.{domain}."))] {
        let said = space.cluster.amphipod(&["dns", "query", name, "--run-dir", &space.cluster.run_dir()])?;
        ensure!(said.trim() == expected, "amphipod dns query {name}: {said}");
    }
    let inside = space.ask(&["nslookup", &format!("{CLUSTER_IP}.{domain}")])?;
    ensure!(inside.contains(&ip), "from a pod: {inside}");
    let search = space.ask(&["cat", "/etc/resolv.conf"])?;
    ensure!(
        search.contains(&format!("search {domain} svc.cluster.local cluster.local")) && search.contains("ndots:5"),
        "{search}"
    );
    Ok(())
}
