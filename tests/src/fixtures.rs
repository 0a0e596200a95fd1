//! What many cases put into their namespace before they look at something.

use anyhow::{Context, Result};

use crate::{Space, until};

/// The Service before the web servers, at an address of the cluster and at a port of every node.
pub const CLUSTER_IP: &str = "hostname-svc-clusterip";
pub const NODE_PORT: &str = "hostname-svc-nodeport";

impl Space<'_> {
    /// Three web servers that answer with their names, and both Services before them, answering.
    pub fn web_servers(&self) -> Result<()> {
        for example in ["webserver-deployment.yaml", "hostname-svc-clusterip.yaml", "hostname-svc-nodeport.yaml"] {
            self.apply(example)?;
        }
        self.rolled_out("hostname-deployment")?;
        let url = format!("http://{}:8080/", self.address(CLUSTER_IP)?);
        until("the web servers are reached by their Service", || {
            self.cluster.node().fetch(&url).map(|page| page.starts_with("hostname-deployment-"))
        })?;
        let url = format!("http://{}/", self.outside(NODE_PORT)?);
        until("the web servers are reached from outside", || {
            self.cluster.client().fetch(&url).map(|page| page.starts_with("hostname-deployment-"))
        })
    }

    /// A deployment of three nginx, rolled out; its name for kubectl.
    pub fn nginx(&self) -> Result<&'static str> {
        self.apply("deployment-nginx.yaml")?;
        self.rolled_out("my-nginx-deployment")?;
        Ok("deployment/my-nginx-deployment")
    }

    pub fn rolled_out(&self, deployment: &str) -> Result<()> {
        self.kubectl(&["rollout", "status", &format!("deployment/{deployment}"), "--timeout=90s"]).map(drop)
    }

    /// A pod that stays for the asking.
    pub fn asker(&self) -> Result<()> {
        self.run_pod("asker", &["sleep", "1000000"])
    }

    /// A pod of busybox that runs a command, ready.
    pub fn run_pod(&self, name: &str, command: &[&str]) -> Result<()> {
        let mut arguments = vec!["run", name, "--image=busybox:latest", "--"];
        arguments.extend_from_slice(command);
        self.kubectl(&arguments)?;
        self.wait_ready(&[&format!("pod/{name}")])
    }

    /// Runs a command in the [`Self::asker`].
    pub fn ask(&self, command: &[&str]) -> Result<String> {
        let mut arguments = vec!["exec", "asker", "--"];
        arguments.extend_from_slice(command);
        self.kubectl(&arguments)
    }

    pub fn address(&self, service: &str) -> Result<String> {
        self.get(&["service", service], "{.spec.clusterIP}")
    }

    pub fn node_port(&self, service: &str) -> Result<String> {
        self.get(&["service", service], "{.spec.ports[0].nodePort}")
    }

    /// Where the outside reaches a Service: a node's address and port.
    pub fn outside(&self, service: &str) -> Result<String> {
        let port = self.node_port(service).with_context(|| format!("the node port of {service}"))?;
        Ok(format!("{}:{port}", self.cluster.node_ip()))
    }
}
