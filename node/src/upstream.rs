//! The API server as the agent sees it: under the node's own identity.

use std::sync::Arc;
use std::time::Duration;

use agent::boundary::{EventKind, PodEvent, PodRef, ServiceLinks, Token, TokenRequest, Upstream, UpstreamError};
use api::conditions;
use api::references::Referent;
use api::status::Status;
use api::view::Service;
use async_trait::async_trait;
use client::events::{Recorder, Reference};
use client::views::PODS;
use client::{Client, DeleteOptions, Resource};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::outlook::Outlook;

/// Events that wait to be written; a pod goes on without them.
const QUEUED_EVENTS: usize = 4096;

/// How long the first state of the services is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct ApiUpstream {
    client: Client,
    outlook: Outlook,
    events: mpsc::Sender<PodEvent>,
}

impl ApiUpstream {
    /// One task writes the events, in their order.
    pub fn new(client: Client, recorder: Recorder, outlook: Outlook, tasks: &mut JoinSet<()>) -> Self {
        let (events, mut queue) = mpsc::channel(QUEUED_EVENTS);
        tasks.spawn(async move {
            while let Some(event) = queue.recv().await {
                record(&recorder, event).await;
            }
        });
        Self { client, outlook, events }
    }
}

async fn record(recorder: &Recorder, event: PodEvent) {
    let about = Reference {
        api_version: "v1".into(),
        kind: "Pod".into(),
        namespace: event.pod.namespace,
        name: event.pod.name,
        uid: event.pod.uid,
        field_path: event.field_path.unwrap_or_default(),
    };
    match event.kind {
        EventKind::Normal => recorder.normal(&about, event.reason, &event.message).await,
        EventKind::Warning => recorder.warning(&about, event.reason, &event.message).await,
    }
}

fn failed(status: Status) -> UpstreamError {
    match status.code {
        404 => UpstreamError::NotFound(status.message),
        500.. => UpstreamError::Unavailable(status.message),
        _ => UpstreamError::Refused(status.message),
    }
}

/// What the kubelet looks up in views of its own is told in its words: one object, not a resource of the API's.
fn absent(what: &'static str, name: &str) -> impl FnOnce(Status) -> UpstreamError {
    move |status| match failed(status) {
        UpstreamError::NotFound(_) => UpstreamError::NotFound(format!("{what} {name:?} not found")),
        other => other,
    }
}

#[async_trait]
impl Upstream for ApiUpstream {
    async fn write_status(&self, pod: &PodRef, status: Value) -> Result<(), UpstreamError> {
        let replace = |current: &Value| {
            if current["metadata"]["uid"] != pod.uid {
                return Err(Status::not_found("", "pods", &pod.name));
            }
            let mut next = current.clone();
            next["status"] = status.clone();
            // What others wrote (readiness gates) stays.
            let stored = &current["status"]["conditions"];
            next["status"]["conditions"] =
                json!(conditions::beside_others(stored, &agent::OWN_CONDITIONS, &status["conditions"]));
            Ok(next)
        };
        self.client.update(&PODS, &pod.namespace, &pod.name, "status", replace).await.map(drop).map_err(failed)
    }

    async fn event(&self, event: PodEvent) {
        if let Err(error) = self.events.try_send(event) {
            tracing::warn!(%error, "event not written");
        }
    }

    async fn config_map(&self, pod: &PodRef, name: &str) -> Result<Arc<Value>, UpstreamError> {
        self.outlook.content.get(Referent::ConfigMap, pod, name).await.map_err(absent("configmap", name))
    }

    async fn secret(&self, pod: &PodRef, name: &str) -> Result<Arc<Value>, UpstreamError> {
        self.outlook.content.get(Referent::Secret, pod, name).await.map_err(absent("secret", name))
    }

    async fn service_account_token(&self, request: &TokenRequest) -> Result<Token, UpstreamError> {
        let spec = json!({
            "audiences": request.audiences,
            "expirationSeconds": request.expiration_seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": request.pod_name, "uid": request.pod_uid},
        });
        let answer = self.client.token(&request.namespace, &request.service_account, spec).await.map_err(failed)?;
        let text = |field: &str| answer["status"][field].as_str().unwrap_or_default().to_owned();
        let expires_at = text("expirationTimestamp")
            .parse()
            .map_err(|_| UpstreamError::Unavailable("a token without an end".into()))?;
        Ok(Token { token: text("token"), expires_at })
    }

    async fn runtime_handler(&self, class: &str) -> Result<String, UpstreamError> {
        let found = self.client.get(&Resource::new("node.k8s.io", "runtimeclasses"), "", class).await;
        let found = found.map_err(absent("runtimeclass.node.k8s.io", class))?;
        Ok(found["handler"].as_str().unwrap_or_default().to_owned())
    }

    async fn service_environment(
        &self,
        namespace: &str,
        links: ServiceLinks,
    ) -> Result<Vec<(String, String)>, UpstreamError> {
        let known = self.outlook.views.of::<Service>();
        // A pod is not started as if there were no services because they are not known yet.
        if tokio::time::timeout(PATIENCE, known.caught_up(0)).await.is_err() {
            let why = "services have not yet been read at least once, cannot construct envvars";
            return Err(UpstreamError::Unavailable(why.into()));
        }
        let mut services: Vec<Arc<Service>> = known.get("default", "kubernetes").into_iter().collect();
        if links == ServiceLinks::Enabled {
            let own = known.namespace(namespace).into_iter();
            services.extend(own.filter(|service| service.metadata.name != "kubernetes"));
        }
        Ok(services.iter().flat_map(|service| environment(service)).collect())
    }

    async fn pod_removed(&self, pod: &PodRef) -> Result<(), UpstreamError> {
        let options = DeleteOptions { grace_seconds: Some(0), uid: Some(pod.uid.clone()), ..DeleteOptions::default() };
        match self.client.delete(&PODS, &pod.namespace, &pod.name, &options).await {
            Ok(_) => Ok(()),
            // Gone already, or a namesake took its place.
            Err(status) if matches!(status.code, 404 | 409) => Ok(()),
            Err(status) => Err(failed(status)),
        }
    }
}

/// `NAME_SERVICE_HOST` and its kin, as containers have had them since Docker links.
fn environment(service: &Service) -> Vec<(String, String)> {
    let Some(host) = service.spec.cluster_ips.first().filter(|ip| !matches!(ip.as_str(), "" | "None")) else {
        return Vec::new();
    };
    let name = service.metadata.name.to_uppercase().replace('-', "_");
    let Some(first) = service.spec.ports.first() else { return Vec::new() };
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let url = |protocol: &str, port: u16| format!("{}://{bracketed}:{port}", protocol.to_lowercase());
    let protocol = |text: &str| if text.is_empty() { "TCP".to_owned() } else { text.to_owned() };
    let mut all =
        vec![(format!("{name}_SERVICE_HOST"), host.clone()), (format!("{name}_SERVICE_PORT"), first.port.to_string())];
    for port in service.spec.ports.iter().filter(|port| !port.name.is_empty()) {
        all.push((
            format!("{name}_SERVICE_PORT_{}", port.name.to_uppercase().replace('-', "_")),
            port.port.to_string(),
        ));
    }
    all.push((format!("{name}_PORT"), url(&protocol(&first.protocol), first.port)));
    for port in &service.spec.ports {
        let protocol = protocol(&port.protocol);
        let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
        all.push((prefix.clone(), url(&protocol, port.port)));
        all.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
        all.push((format!("{prefix}_PORT"), port.port.to_string()));
        all.push((format!("{prefix}_ADDR"), host.clone()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_said_once_and_of_one_object() {
        let server = |resource: &str| Status::not_found("", resource, "x");
        for (error, words) in [
            (absent("configmap", "x")(server("configmaps")), "configmap \"x\" not found"),
            (absent("secret", "x")(server("secrets")), "secret \"x\" not found"),
            (
                absent("runtimeclass.node.k8s.io", "x")(server("runtimeclasses")),
                "runtimeclass.node.k8s.io \"x\" not found",
            ),
            (failed(server("serviceaccounts")), "serviceaccounts \"x\" not found"),
        ] {
            assert_eq!(error.to_string(), words);
        }
        let refused = absent("secret", "x")(Status { code: 403, message: "no".into(), ..server("secrets") });
        assert!(matches!(refused, UpstreamError::Refused(message) if message == "no"));
    }

    #[test]
    fn services_are_told_as_links_did() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "my-db"},
            "spec": {"clusterIPs": ["10.96.0.9"], "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]},
        }))
        .unwrap();
        let all: std::collections::BTreeMap<_, _> = environment(&service).into_iter().collect();
        assert_eq!(all["MY_DB_SERVICE_HOST"], "10.96.0.9");
        assert_eq!(all["MY_DB_SERVICE_PORT_SQL"], "5432");
        assert_eq!(all["MY_DB_PORT_5432_TCP"], "tcp://10.96.0.9:5432");
        let v6: Service = serde_json::from_value(json!({
            "metadata": {"name": "x"},
            "spec": {"clusterIPs": ["fd00::9", "10.96.0.9"], "ports": [{"port": 80}]},
        }))
        .unwrap();
        let all: std::collections::BTreeMap<_, _> = environment(&v6).into_iter().collect();
        assert_eq!((&*all["X_SERVICE_HOST"], &*all["X_PORT"]), ("fd00::9", "tcp://[fd00::9]:80"));
        let headless: Service = serde_json::from_value(
            json!({"metadata": {"name": "x"}, "spec": {"clusterIPs": ["None"], "ports": [{"port": 1}]}}),
        )
        .unwrap();
        assert!(environment(&headless).is_empty());
    }
}
