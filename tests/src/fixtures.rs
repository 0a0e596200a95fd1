//! What many cases put into their namespace before they look at something.

use anyhow::{Context, Result};

use crate::{Space, until};

/// The Service before the web servers, at an address of the cluster and at a port of every node.
pub const CLUSTER_IP: &str = "hostname-svc-clusterip";
pub const NODE_PORT: &str = "hostname-svc-nodeport";

/// A web server of both families that tells who answers and who asks, with its Service.
const TELLER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {app: NAME}}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: busybox
    env:
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: POD_IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
    - {name: HOST_IPS, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}
    readinessProbe: {httpGet: {path: /cgi-bin/who, port: 8080}, periodSeconds: 1}
    command:
    - sh
    - -c
    - |
      mkdir -p /www/cgi-bin
      cat > /www/cgi-bin/who <<'END'
      #!/bin/sh
      echo Content-type: text/plain
      echo
      echo "NAME answers $REMOTE_ADDR"
      END
      chmod +x /www/cgi-bin/who
      exec httpd -f -p 8080 -h /www
---
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec: {type: NodePort, ipFamilyPolicy: PreferDualStack, selector: {app: NAME}, ports: [{port: 80, targetPort: 8080}]}
"#;

/// Where a [`Space::teller`] tells: at port 8080 of its pod, at port 80 of its Service.
pub fn told_at(host: &str, port: &str) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    format!("http://{host}:{port}/cgi-bin/who")
}

impl Space<'_> {
    /// A pod on a node, ready, and its Service of the same name and of all the cluster's families: the page at [`told_at`] is `NAME
    /// answers ADDRESS`.
    ///
    /// # Errors
    /// As for [`Space::run_pod`].
    pub fn teller(&self, name: &str, node: &str) -> Result<()> {
        self.apply_text(&TELLER.replace("NAME", name).replace("NODE", node))?;
        self.wait_ready(&[&format!("pod/{name}")])
    }

    /// Three web servers that answer with their names, and both Services before them, answering.
    ///
    /// # Errors
    /// When an example is refused, the deployment is not rolled out within 90 seconds, or a Service does not answer within
    /// [`LIMIT`](crate::LIMIT).
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
    ///
    /// # Errors
    /// When the example is refused, or not rolled out within 90 seconds.
    pub fn nginx(&self) -> Result<&'static str> {
        self.apply("deployment-nginx.yaml")?;
        self.rolled_out("my-nginx-deployment")?;
        Ok("deployment/my-nginx-deployment")
    }

    /// Waits until a deployment is rolled out.
    ///
    /// # Errors
    /// When there is no such deployment, or 90 seconds are not enough.
    pub fn rolled_out(&self, deployment: &str) -> Result<()> {
        self.kubectl(&["rollout", "status", &format!("deployment/{deployment}"), "--timeout=90s"]).map(drop)
    }

    /// A pod that stays for the asking.
    ///
    /// # Errors
    /// As for [`Space::run_pod`].
    pub fn asker(&self) -> Result<()> {
        self.run_pod("asker", &["sleep", "1000000"])
    }

    /// A pod of busybox that runs a command, ready.
    ///
    /// # Errors
    /// When the pod is refused, as a second one of its name is, or is not ready within a minute.
    pub fn run_pod(&self, name: &str, command: &[&str]) -> Result<()> {
        let mut arguments = vec!["run", name, "--image=busybox:latest", "--"];
        arguments.extend_from_slice(command);
        self.kubectl(&arguments)?;
        self.wait_ready(&[&format!("pod/{name}")])
    }

    /// Runs a command in the [`Self::asker`].
    ///
    /// # Errors
    /// When there is no asker, or the command fails: with what it wrote to standard error.
    pub fn ask(&self, command: &[&str]) -> Result<String> {
        let mut arguments = vec!["exec", "asker", "--"];
        arguments.extend_from_slice(command);
        self.kubectl(&arguments)
    }

    /// The ClusterIP of a Service.
    ///
    /// # Errors
    /// When there is no such Service.
    pub fn address(&self, service: &str) -> Result<String> {
        self.get(&["service", service], "{.spec.clusterIP}")
    }

    /// The node port of a Service's first port; empty where it has none.
    ///
    /// # Errors
    /// When there is no such Service, or it has no ports.
    pub fn node_port(&self, service: &str) -> Result<String> {
        self.get(&["service", service], "{.spec.ports[0].nodePort}")
    }

    /// Where the outside reaches a Service: a node's address and port.
    ///
    /// # Errors
    /// As for [`Space::node_port`].
    pub fn outside(&self, service: &str) -> Result<String> {
        let port = self.node_port(service).with_context(|| format!("the node port of {service}"))?;
        Ok(format!("{}:{port}", self.cluster.node_ip()))
    }
}
