//! Pods and Services through the API server: requests, and connections into a pod.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{CLUSTER_IP, Space};

pub fn through_the_server(space: &Space<'_>) -> Result<()> {
    space.web_servers()?;
    space.apply("nginx-pod.yaml")?;
    space.wait_ready(&["pod/my-nginx-pod"])?;
    let home = format!("/api/v1/namespaces/{}", space.namespace());
    let raw = |path: &str| space.kubectl(&["get", "--raw", &format!("{home}/{path}")]);
    let pod = space.get(&["pods", "-l", "app=webserver"], "{.items[0].metadata.name}")?;
    for name in [pod.clone(), format!("{pod}:80"), format!("http:{pod}:80")] {
        let page = raw(&format!("pods/{name}/proxy/"))?;
        ensure!(page.trim() == pod, "pods/{name}/proxy/: {page}");
    }
    for name in [format!("{CLUSTER_IP}:web-port"), format!("{CLUSTER_IP}:8080")] {
        let page = raw(&format!("services/{name}/proxy/some/path?a=b"))?;
        ensure!(page.starts_with("hostname-deployment-"), "services/{name}/proxy/: {page}");
    }
    let write = "echo '<a href=\"/other\">other</a>' > /usr/share/nginx/html/linked.html";
    space.kubectl(&["exec", "my-nginx-pod", "--", "sh", "-c", write])?;
    let page = raw("pods/my-nginx-pod/proxy/linked.html")?;
    let link = format!("<a href=\"{home}/pods/my-nginx-pod/proxy/other\">other</a>");
    ensure!(page.trim() == link, "a link of a proxied page: {page}");
    let refused = space.kubectl_fails(&["get", "--raw", &format!("{home}/pods/{pod}:81/proxy/")])?;
    ensure!(refused.contains("ServiceUnavailable"), "{refused}");
    for websockets in ["true", "false"] {
        let mut kubectl = space
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
