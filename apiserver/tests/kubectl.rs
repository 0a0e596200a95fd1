//! The real kubectl, whichever is on PATH, against a server of this process: what users type every day must work.
//!
//! Words are those that every kubectl since 1.20 says, whether it validates by the OpenAPI document or lets the server do it.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use api::status::Status;
use apiserver::identity::{MASTERS, User};
use apiserver::nodes::{Duplex, ExecOptions, LogOptions, Nodes, Session, unreachable};
use apiserver::server::{Config, Server};
use async_trait::async_trait;
use bytes::Bytes;
use client::{Client, Resource};
use futures::stream::BoxStream;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long one command may take, on a machine that does other things too.
const LIMIT: Duration = Duration::from_secs(60);

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: nginx, image: 'nginx:1.10', ports: [{containerPort: 80}]}
";

/// A node whose every process sends its input back, its arguments to stderr, and ends with code 3.
struct Echo;

#[async_trait]
impl Nodes for Echo {
    async fn logs(&self, pod: &Value, _: LogOptions) -> Result<BoxStream<'static, std::io::Result<Bytes>>, Status> {
        Err(unreachable(pod))
    }

    async fn exec(&self, _: &Value, options: ExecOptions) -> Result<Session, Status> {
        let (stdin, stdout) = tokio::io::duplex(1 << 16);
        let (mut errors, stderr) = tokio::io::duplex(1 << 16);
        errors.write_all(options.command.join(" ").as_bytes()).await.unwrap();
        Ok(Session {
            stdin: Some(Box::new(stdin)),
            stdout: Some(Box::new(stdout)),
            stderr: Some(Box::new(stderr)),
            resize: None,
            exit: Box::pin(async { Ok(3) }),
        })
    }

    /// Port 80 sends back what it is sent, port 79 says one word and closes; nothing listens elsewhere.
    async fn dial(&self, _: &Value, port: u16) -> Result<Box<dyn Duplex>, Status> {
        if !matches!(port, 79 | 80) {
            return Err(Status::internal("connection refused"));
        }
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            let (mut from, mut to) = tokio::io::split(ours);
            match port {
                80 => drop(tokio::io::copy(&mut from, &mut to).await.unwrap()),
                _ => to.write_all(b"word").await.unwrap(),
            }
            to.shutdown().await.unwrap();
        });
        Ok(Box::new(theirs))
    }
}

/// A server with its own folder, which is also kubectl's home (its caches must not outlive the server).
struct Cluster {
    folder: TempDir,
    client: Client,
    _stop: DropGuard,
}

impl Cluster {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::on_loopback(folder.path().join("store.redb"));
        let server = Server::open(&config, Arc::new(Echo)).await.unwrap();
        let kubeconfig = server.admin_kubeconfig(&server.address().to_string()).unwrap();
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig).unwrap();
        let client = server.client(User::new("tester", &[MASTERS]), "tester");
        let stop = CancellationToken::new();
        tokio::spawn(server.serve(stop.clone()));
        let cluster = Self { folder, client, _stop: stop.drop_guard() };
        // Pods are admitted only where their service account is; no controller makes it here.
        cluster.kubectl("create serviceaccount default").await;
        cluster
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Output {
        self.run_with(arguments, input, None).await
    }

    fn command(&self, arguments: &[&str], setting: Option<(&str, &str)>) -> Command {
        let mut command = Command::new("kubectl");
        command.args(arguments).env("HOME", self.path()).env("KUBECONFIG", self.path().join("kubeconfig"));
        command.env("KUBE_EDITOR", "sed -i s/nginx:1.10/nginx:1.11/").env_remove("KUBECTL_EXTERNAL_DIFF");
        command.envs(setting);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    async fn run_with(&self, arguments: &[&str], input: &str, setting: Option<(&str, &str)>) -> Output {
        let mut child = self.command(arguments, setting).spawn().expect("kubectl is on PATH");
        let mut stdin = child.stdin.take().unwrap();
        // Who reads no input has closed it.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        tokio::time::timeout(LIMIT, child.wait_with_output()).await.expect("kubectl ends in time").unwrap()
    }

    /// What the command prints; it must succeed.
    async fn kubectl(&self, words: &str) -> String {
        self.fed(words, "").await
    }

    async fn fed(&self, words: &str, input: &str) -> String {
        let output = self.run(&words.split(' ').collect::<Vec<_>>(), input).await;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "kubectl {words}: {out}{err}");
        out.into_owned()
    }

    /// What the command says when it fails, as it must.
    async fn refused(&self, words: &str, input: &str) -> String {
        let output = self.run(&words.split(' ').collect::<Vec<_>>(), input).await;
        assert!(!output.status.success(), "kubectl {words}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    async fn image(&self) -> String {
        self.kubectl("get deployment web -o jsonpath={.spec.template.spec.containers[*].image}").await
    }
}

#[track_caller]
fn says(text: &str, wanted: &[&str]) {
    for words in wanted {
        assert!(text.contains(words), "wanted {words:?} in:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_is_applied_changed_and_deleted() {
    let cluster = Cluster::start().await;
    says(&cluster.fed("apply -f -", DEPLOYMENT).await, &["deployment.apps/web created"]);
    says(&cluster.fed("apply -f -", DEPLOYMENT).await, &["deployment.apps/web unchanged"]);
    says(&cluster.kubectl("get deployments -o wide").await, &["READY", "IMAGES", "0/3", "nginx:1.10", "app=web"]);
    says(&cluster.kubectl("describe deployment web").await, &["Replicas:", "RollingUpdate", "nginx:1.10"]);
    says(&cluster.kubectl("edit deployment web").await, &["edited"]);
    assert_eq!(cluster.image().await, "nginx:1.11");
    cluster.kubectl("set image deployment/web nginx=nginx:1.12").await;
    cluster.kubectl("scale deployment web --replicas=2").await;
    // By the containers' merge key: the second one is added, the first one stays.
    let two = r#"{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"busybox"}]}}}}"#;
    cluster.kubectl(&format!("patch deployment web -p {two}")).await;
    assert_eq!(cluster.image().await, "busybox nginx:1.12");
    cluster.kubectl(r#"patch deployment web --type=merge -p {"metadata":{"labels":{"a":"b"}}}"#).await;
    cluster
        .kubectl(r#"patch deployment web --type=json -p [{"op":"replace","path":"/spec/replicas","value":4}]"#)
        .await;
    assert_eq!(cluster.kubectl("get deployment -l a=b -o jsonpath={.items[*].spec.replicas}").await, "4");
    says(&cluster.kubectl("delete deployment web --timeout=30s").await, &["\"web\" deleted"]);
    says(&cluster.refused("get deployment web", "").await, &["(NotFound): deployments.apps \"web\" not found"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_defined_kind_is_used_like_any_other() {
    let cluster = Cluster::start().await;
    let definition = include_str!("../../api/tests/data/crontab.yaml");
    says(
        &cluster.fed("apply -f -", definition).await,
        &["customresourcedefinition.apiextensions.k8s.io/crontabs.stable.example.com created"],
    );
    cluster.kubectl("wait --for=condition=Established crd/crontabs.stable.example.com --timeout=30s").await;
    says(&cluster.fed("apply -f -", definition).await, &["unchanged"]);
    says(
        &cluster.kubectl("api-resources --api-group=stable.example.com").await,
        &["crontabs", "ct", "stable.example.com/v1", "true", "CronTab"],
    );
    says(&cluster.kubectl("explain crontab.spec.cronSpec").await, &["CronTab", "cronSpec <string>", "When to run"]);
    let object = "---\n{apiVersion: stable.example.com/v1, kind: CronTab, metadata: {name: nightly}, spec: {cronSpec: '@daily', color: blue}}";
    says(&cluster.fed("create -f -", object).await, &["crontab.stable.example.com/nightly created"]);
    says(&cluster.kubectl("get ct").await, &["NAME", "SPEC", "REPLICAS", "AGE", "nightly", "@daily", "1"]);
    says(&cluster.kubectl("get all").await, &["crontab.stable.example.com/nightly"]);
    says(
        &cluster.kubectl("get ct --field-selector spec.color=blue -o name").await,
        &["crontab.stable.example.com/nightly"],
    );
    says(&cluster.kubectl("describe ct nightly").await, &["Cron Spec:", "@daily"]);
    let more = object.replace("blue", "red").replace("cronSpec", "tags: [a], cronSpec");
    says(&cluster.fed("apply --server-side --force-conflicts -f -", &more).await, &["nightly serverside-applied"]);
    says(&cluster.refused("apply -f -", &object.replace("color", "colour")).await, &["unknown field \"spec.colour\""]);
    says(
        &cluster.refused("apply -f -", &object.replace("@daily", "a b")).await,
        &["spec.cronSpec in body should match"],
    );
    cluster.kubectl("scale ct nightly --replicas=4").await;
    cluster.kubectl(r#"patch ct nightly --type=merge -p {"spec":{"labels":{"a":"b"}}}"#).await;
    assert_eq!(
        cluster.kubectl("get ct nightly -o jsonpath={.spec.replicas}{.spec.labels.a}{.spec.tags[0]}").await,
        "4ba"
    );
    cluster.kubectl(r#"patch ct nightly --subresource=status --type=merge -p {"status":{"replicas":4}}"#).await;
    cluster.kubectl("wait --for=jsonpath={.status.replicas}=4 ct/nightly --timeout=30s").await;
    says(&cluster.kubectl("auth can-i delete crontabs.stable.example.com").await, &["yes"]);
    says(&cluster.kubectl("delete crd crontabs.stable.example.com --timeout=30s").await, &["deleted"]);
    says(&cluster.refused("get crontabs.stable.example.com", "").await, &["the server doesn't have a resource type"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_are_shown_before_they_are_applied() {
    let cluster = Cluster::start().await;
    cluster.fed("apply -f -", DEPLOYMENT).await;
    let newer = DEPLOYMENT.replace("nginx:1.10", "nginx:1.11");
    let output = cluster.run(&["diff", "-f", "-"], &newer).await;
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    says(&String::from_utf8_lossy(&output.stdout), &["-      - image: nginx:1.10", "+      - image: nginx:1.11"]);
    says(&cluster.fed("apply --dry-run=server -f -", &newer).await, &["configured (server dry run)"]);
    assert_eq!(cluster.image().await, "nginx:1.10");
    says(&cluster.fed("apply -f -", &newer).await, &["configured"]);
    assert_eq!(cluster.image().await, "nginx:1.11");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_side_apply_keeps_managers_apart() {
    let cluster = Cluster::start().await;
    let map = |value: &str| {
        format!("---\n{{apiVersion: v1, kind: ConfigMap, metadata: {{name: m}}, data: {{x: '{value}'}}}}")
    };
    says(&cluster.fed("apply --server-side -f -", &map("1")).await, &["configmap/m serverside-applied"]);
    let other = "apply --server-side --field-manager=other -f -";
    let conflict = cluster.refused(other, &map("2")).await;
    says(&conflict, &["Apply failed with 1 conflict: conflict with \"kubectl\"", ".data.x", "--force-conflicts"]);
    cluster.fed(&format!("{other} --force-conflicts"), &map("2")).await;
    assert_eq!(cluster.kubectl("get configmap m -o jsonpath={.data.x}").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_named() {
    let cluster = Cluster::start().await;
    let pod = |version: &str, container: &str| {
        format!("---\n{{apiVersion: {version}, kind: Pod, metadata: {{name: p}}, spec: {{containers: [{container}]}}}}")
    };
    for (manifest, wanted) in [
        (pod("v1", "{name: c, image: i, imagee: j}"), ["unknown field", "imagee"]),
        (pod("v1", "{name: c, image: i, ports: [{containerPort: eighty}]}"), ["string", "containerPort"]),
        (pod("v1", "{name: C, image: i}"), ["spec.containers[0].name: Invalid value: \"C\"", "RFC 1123 label"]),
        (pod("v2", "{name: c, image: i}"), ["no matches for kind \"Pod\"", "in version \"v2\""]),
    ] {
        says(&cluster.refused("apply -f -", &manifest).await, &wanted);
    }
    says(&cluster.fed("apply -f -", &pod("v1", "{name: c, image: i}")).await, &["pod/p created"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_explains_itself() {
    let cluster = Cluster::start().await;
    says(&cluster.kubectl("explain pod.spec.containers").await, &["FIELDS:", "image", "<string>", "livenessProbe"]);
    says(&cluster.kubectl("explain deployment --recursive").await, &["apps", "strategy", "rollingUpdate", "maxSurge"]);
    says(&cluster.kubectl("api-resources --api-group=apps -o name").await, &["deployments.apps", "statefulsets.apps"]);
    says(&cluster.kubectl("api-versions").await, &["apps/v1\n", "autoscaling/v2\n", "\nv1\n"]);
    says(&cluster.kubectl("auth can-i delete nodes").await, &["yes"]);
    says(&cluster.kubectl("version").await, &["1.34"]);
}

/// Newer clients send these in protobuf.
#[tokio::test(flavor = "multi_thread")]
async fn objects_are_made_without_a_manifest() {
    let cluster = Cluster::start().await;
    for (words, made) in [
        ("namespace n", "namespace/n"),
        ("configmap m --from-literal=a=b", "configmap/m"),
        ("secret generic s --from-literal=a=b", "secret/s"),
        ("deployment d --image=nginx --replicas=2", "deployment.apps/d"),
        ("service clusterip v --tcp=80:8080", "service/v"),
        ("job j --image=busybox -- true", "job.batch/j"),
    ] {
        says(&cluster.kubectl(&format!("create {words}")).await, &[made, "created"]);
    }
    assert_eq!(cluster.kubectl("get service v -o jsonpath={.spec.ports[*].targetPort}").await, "8080");
    assert_eq!(cluster.kubectl("get secret s -o jsonpath={.data.a}").await, "Yg==");
    cluster.kubectl("label configmap m tier=x").await;
    cluster.kubectl("annotate configmap m note=y").await;
    says(&cluster.kubectl("get configmaps -l tier=x -o yaml").await, &["note: \"y\"", "a: b"]);
}

/// The same over both protocols; clients that know no WebSocket take SPDY both times.
#[tokio::test(flavor = "multi_thread")]
async fn processes_are_reached_by_websocket_and_spdy() {
    let cluster = Cluster::start().await;
    let pod = "---\n{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {nodeName: one, containers: [{name: c, image: i}]}}";
    cluster.fed("apply -f -", pod).await;
    let input = "0123456789abcdef\n".repeat(20_000);
    for websockets in ["true", "false"] {
        let setting = Some(("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets));
        let output = cluster.run_with(&["exec", "-i", "p", "--", "two", "words"], &input, setting).await;
        assert_eq!(String::from_utf8_lossy(&output.stdout), input, "{websockets}");
        says(&String::from_utf8_lossy(&output.stderr), &["two words", "command terminated with exit code 3"]);
        assert_eq!(output.status.code(), Some(3));
    }
}

/// The same over both protocols, several connections at once, and one to where nothing listens.
#[tokio::test(flavor = "multi_thread")]
async fn ports_are_forwarded_by_websocket_and_spdy() {
    let cluster = Cluster::start().await;
    let pod = "---\n{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {nodeName: one, containers: [{name: c, image: i}]}}";
    cluster.fed("apply -f -", pod).await;
    let runs = |pod: &Value| {
        let mut pod = pod.clone();
        pod["status"]["phase"] = json!("Running");
        Ok(pod)
    };
    cluster.client.update(&Resource::core("pods"), "default", "p", "status", runs).await.unwrap();
    for websockets in ["true", "false"] {
        let setting = Some(("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets));
        let mut kubectl = cluster.command(&["port-forward", "pod/p", ":80", ":81", ":79"], setting).spawn().unwrap();
        let mut lines = BufReader::new(kubectl.stdout.take().unwrap()).lines();
        let mut port = async |end: &str| loop {
            let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
            if let Some(rest) = line.strip_prefix("Forwarding from 127.0.0.1:").filter(|_| line.ends_with(end)) {
                return rest.split(' ').next().unwrap().parse::<u16>().unwrap();
            }
        };
        let (open, closed, brief) = (port("-> 80").await, port("-> 81").await, port("-> 79").await);
        // The pod's end is the client's, who has not said that it is done.
        let mut told = String::new();
        let mut stream = TcpStream::connect(("127.0.0.1", brief)).await.unwrap();
        tokio::time::timeout(LIMIT, stream.read_to_string(&mut told)).await.unwrap().unwrap();
        assert_eq!(told, "word", "{websockets}");
        let talk = |index: u8| async move {
            let mut stream = TcpStream::connect(("127.0.0.1", open)).await.unwrap();
            let said = vec![index; 300_000];
            let (mut from, mut to) = stream.split();
            let mut heard = Vec::new();
            let write = async {
                to.write_all(&said).await.unwrap();
                to.shutdown().await.unwrap();
            };
            let (_, read) = tokio::join!(write, from.read_to_end(&mut heard));
            read.unwrap();
            assert!(heard == said, "{} of {} bytes", heard.len(), said.len());
        };
        tokio::time::timeout(LIMIT, futures::future::join_all((1..=8).map(talk))).await.unwrap();
        let mut refused = TcpStream::connect(("127.0.0.1", closed)).await.unwrap();
        let ended = tokio::time::timeout(LIMIT, refused.read(&mut [0; 8])).await.unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        kubectl.kill().await.unwrap();
    }
}
