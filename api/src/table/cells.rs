//! The cells that are more than a field: one small function per kind, by column name.

mod scaling;

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::Kind;
use crate::selector::Labels;
use crate::time::human;

type Cells = HashMap<&'static str, Value>;
type Row = fn(&Value, Timestamp) -> Vec<(&'static str, Value)>;

const NONE: &str = "<none>";

const ROWS: &[(&str, &str, Row)] = &[
    ("", "pods", pod),
    ("", "services", service),
    ("", "nodes", node),
    ("", "namespaces", |o, _| vec![("Status", o["status"]["phase"].clone())]),
    ("", "configmaps", |o, _| vec![("Data", json!(count(&o["data"]) + count(&o["binaryData"])))]),
    ("", "secrets", |o, _| vec![("Type", o["type"].clone()), ("Data", json!(count(&o["data"])))]),
    ("", "serviceaccounts", |o, _| vec![("Secrets", json!(count(&o["secrets"])))]),
    ("", "endpoints", |o, _| vec![("Endpoints", json!(endpoints(o)))]),
    ("", "events", event),
    ("events.k8s.io", "events", event),
    ("", "componentstatuses", |o, _| {
        let healthy = o["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Healthy");
        let text = |field: &str| json!(healthy.and_then(|c| c[field].as_str()).unwrap_or_default());
        let status = match healthy.and_then(|c| c["status"].as_str()) {
            Some("True") => "Healthy",
            Some("False") => "Unhealthy",
            _ => "Unknown",
        };
        vec![("Status", json!(status)), ("Message", text("message")), ("Error", text("error"))]
    }),
    ("", "podtemplates", |o, _| {
        let labels = Labels::from_map(&o["template"]["metadata"]["labels"]).to_string();
        let (names, images) = containers(&o["template"]["spec"]);
        vec![("Containers", names), ("Images", images), ("Pod Labels", json!(or_none(labels)))]
    }),
    ("", "replicationcontrollers", replicas),
    ("apps", "replicasets", replicas),
    ("apps", "deployments", |o, _| {
        let status = &o["status"];
        let ready = format!("{}/{}", number(&status["readyReplicas"]), number(&o["spec"]["replicas"]));
        let mut out = vec![
            ("Ready", json!(ready)),
            ("Up-to-date", json!(number(&status["updatedReplicas"]))),
            ("Available", json!(number(&status["availableReplicas"]))),
        ];
        out.extend(template(o));
        out
    }),
    ("apps", "statefulsets", |o, _| {
        let ready = format!("{}/{}", number(&o["status"]["readyReplicas"]), number(&o["spec"]["replicas"]));
        let mut out = vec![("Ready", json!(ready))];
        out.extend(template(o));
        out
    }),
    ("apps", "daemonsets", |o, _| {
        let status = |name: &str| json!(number(&o["status"][name]));
        let nodes = Labels::from_map(&o["spec"]["template"]["spec"]["nodeSelector"]).to_string();
        let mut out = vec![
            ("Desired", status("desiredNumberScheduled")),
            ("Current", status("currentNumberScheduled")),
            ("Ready", status("numberReady")),
            ("Up-to-date", status("updatedNumberScheduled")),
            ("Available", status("numberAvailable")),
            ("Node Selector", json!(or_none(nodes))),
        ];
        out.extend(template(o));
        out
    }),
    ("apps", "controllerrevisions", |o, _| {
        vec![("Controller", json!(controller(o))), ("Revision", json!(number(&o["revision"])))]
    }),
    ("autoscaling", "horizontalpodautoscalers", |o, _| scaling::autoscaler(o)),
    ("batch", "jobs", job),
    ("batch", "cronjobs", cron_job),
    ("discovery.k8s.io", "endpointslices", endpoint_slice),
    ("coordination.k8s.io", "leases", |o, _| vec![("Holder", json!(text(&o["spec"]["holderIdentity"])))]),
    ("rbac.authorization.k8s.io", "rolebindings", binding),
    ("rbac.authorization.k8s.io", "clusterrolebindings", binding),
    ("networking.k8s.io", "ipaddresses", |o, _| vec![("ParentRef", json!(parent(&o["spec"]["parentRef"])))]),
    ("networking.k8s.io", "servicecidrs", |o, _| vec![("CIDRs", json!(joined(&o["spec"]["cidrs"])))]),
    ("networking.k8s.io", "networkpolicies", |o, _| vec![("Pod-Selector", json!(selector(&o["spec"]["podSelector"])))]),
    ("networking.k8s.io", "ingressclasses", |o, _| {
        let p = &o["spec"]["parameters"];
        let name = [&p["kind"], &p["apiGroup"], &p["name"]].map(text);
        let shown = match name {
            ["", ..] => NONE.to_string(),
            [kind, "", name] => format!("{kind}/{name}"),
            [kind, group, name] => format!("{kind}.{group}/{name}"),
        };
        vec![("Controller", o["spec"]["controller"].clone()), ("Parameters", json!(shown))]
    }),
    ("networking.k8s.io", "ingresses", ingress),
    ("scheduling.k8s.io", "priorityclasses", |o, _| {
        let default = o["globalDefault"].as_bool().unwrap_or(false);
        vec![
            ("Value", json!(number(&o["value"]))),
            ("Global-Default", json!(default)),
            ("PreemptionPolicy", o["preemptionPolicy"].clone()),
        ]
    }),
    ("storage.k8s.io", "storageclasses", |o, _| {
        let expands = o["allowVolumeExpansion"].as_bool().unwrap_or(false);
        vec![
            ("Provisioner", o["provisioner"].clone()),
            ("ReclaimPolicy", o["reclaimPolicy"].clone()),
            ("VolumeBindingMode", o["volumeBindingMode"].clone()),
            ("AllowVolumeExpansion", json!(expands)),
        ]
    }),
    ("node.k8s.io", "runtimeclasses", |o, _| vec![("Handler", o["handler"].clone())]),
    ("policy", "poddisruptionbudgets", |o, _| {
        let limit = |v: &Value| if v.is_null() { "N/A".to_string() } else { plain(v) };
        vec![
            ("Min Available", json!(limit(&o["spec"]["minAvailable"]))),
            ("Max Unavailable", json!(limit(&o["spec"]["maxUnavailable"]))),
            ("Allowed Disruptions", json!(number(&o["status"]["disruptionsAllowed"]))),
        ]
    }),
    ("", "persistentvolumeclaims", claim),
    ("", "resourcequotas", quota),
];

/// Cells of this object by column; what every kind has (name, age) is not among them.
pub fn of(kind: &Kind, object: &Value, now: Timestamp) -> Cells {
    let row = ROWS.iter().find(|(group, plural, _)| *group == kind.group && *plural == kind.plural);
    row.map(|(.., row)| row(object, now).into_iter().collect()).unwrap_or_default()
}

/// `Completed` rows are greyed by clients that want to.
pub fn row_conditions(kind: &Kind, object: &Value) -> Vec<Value> {
    let completed = |reason: &str, message: &str| json!({"type": "Completed", "status": "True", "reason": reason, "message": message});
    match (&*kind.group, &*kind.plural, text(&object["status"]["phase"])) {
        ("", "pods", "Succeeded") => vec![completed("Succeeded", "The pod has completed successfully.")],
        ("", "pods", "Failed") => vec![completed("Failed", "The pod failed.")],
        _ => Vec::new(),
    }
}

/// How long ago, or `<unknown>`.
pub fn age(time: &Value, now: Timestamp) -> String {
    match time.as_str().and_then(|t| t.parse::<Timestamp>().ok()) {
        Some(time) => human(now.as_second() - time.as_second()),
        None => "<unknown>".into(),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn count(value: &Value) -> usize {
    value.as_object().map(|m| m.len()).or_else(|| value.as_array().map(Vec::len)).unwrap_or(0)
}

fn joined(list: &Value) -> String {
    items(list).map(plain).collect::<Vec<_>>().join(",")
}

fn or_none(shown: String) -> String {
    if shown.is_empty() { NONE.into() } else { shown }
}

fn selector(selector: &Value) -> String {
    Labels::from_object(selector).map_or_else(|error| error, |s| or_none(s.to_string()))
}

/// Names and images of a pod spec's containers.
fn containers(spec: &Value) -> (Value, Value) {
    let list = |name: &str| items(&spec["containers"]).map(|c| text(&c[name])).collect::<Vec<_>>().join(",");
    (json!(list("name")), json!(list("image")))
}

/// The wide columns of workloads.
fn template(object: &Value) -> Vec<(&'static str, Value)> {
    let (names, images) = containers(&object["spec"]["template"]["spec"]);
    let chosen = &object["spec"]["selector"];
    let chosen = match text(&object["kind"]) {
        "ReplicationController" => or_none(Labels::from_map(chosen).to_string()),
        _ => selector(chosen),
    };
    vec![("Containers", names), ("Images", images), ("Selector", json!(chosen))]
}

fn replicas(object: &Value, _: Timestamp) -> Vec<(&'static str, Value)> {
    let mut out = vec![
        ("Desired", json!(number(&object["spec"]["replicas"]))),
        ("Current", json!(number(&object["status"]["replicas"]))),
        ("Ready", json!(number(&object["status"]["readyReplicas"]))),
    ];
    out.extend(template(object));
    out
}

/// What a container's state says, where it says more than that it runs.
fn trouble(state: &Value) -> Option<String> {
    let waiting = text(&state["waiting"]["reason"]);
    if !waiting.is_empty() {
        return Some(waiting.into());
    }
    let terminated = &state["terminated"];
    if terminated.is_null() {
        return None;
    }
    Some(match (text(&terminated["reason"]), number(&terminated["signal"]), number(&terminated["exitCode"])) {
        ("", 0, code) => format!("ExitCode:{code}"),
        ("", signal, _) => format!("Signal:{signal}"),
        (reason, ..) => reason.into(),
    })
}

fn pod(pod: &Value, now: Timestamp) -> Vec<(&'static str, Value)> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let count = Counted::of(pod);
    let gates: Vec<&str> = items(&spec["readinessGates"]).map(|g| text(&g["conditionType"])).collect();
    let open = gates.iter().filter(|g| has_condition(status, g)).count();
    let restarts = match count.last_restart {
        Some(time) if count.restarts > 0 => format!("{} ({} ago)", count.restarts, human(now.as_second() - time)),
        _ => count.restarts.to_string(),
    };
    let ip = items(&status["podIPs"]).next().map_or("", |ip| text(&ip["ip"]));
    let or_none = |shown: &str| json!(or_none(shown.into()));
    vec![
        ("Ready", json!(format!("{}/{}", count.ready, count.total))),
        ("Status", json!(pod_status(pod, &count))),
        ("Restarts", json!(restarts)),
        ("IP", or_none(ip)),
        ("Node", or_none(text(&spec["nodeName"]))),
        ("Nominated Node", or_none(text(&status["nominatedNodeName"]))),
        ("Readiness Gates", if gates.is_empty() { or_none("") } else { json!(format!("{open}/{}", gates.len())) }),
    ]
}

fn has_condition(status: &Value, name: &str) -> bool {
    items(&status["conditions"]).any(|c| c["type"] == name && c["status"] == "True")
}

/// Sums over a pod's containers.
#[derive(Default)]
struct Counted {
    total: usize,
    ready: usize,
    restarts: i64,
    /// Seconds since the epoch.
    last_restart: Option<i64>,
    /// Set while init containers are not through.
    initializing: Option<String>,
}

fn finished(status: &Value) -> Option<i64> {
    let time = text(&status["lastState"]["terminated"]["finishedAt"]);
    time.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

impl Counted {
    fn of(pod: &Value) -> Counted {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let mut out = Counted { total: items(&spec["containers"]).count(), ..Counted::default() };
        let sidecar = |name: &str| {
            items(&spec["initContainers"]).any(|c| text(&c["name"]) == name && c["restartPolicy"] == "Always")
        };
        out.total += items(&spec["initContainers"]).filter(|c| c["restartPolicy"] == "Always").count();
        let all = items(&spec["initContainers"]).count();
        let (mut restarts, mut sidecar_restarts) = (0, 0);
        for (i, container) in items(&status["initContainerStatuses"]).enumerate() {
            let is_sidecar = sidecar(text(&container["name"]));
            restarts += number(&container["restartCount"]);
            out.last_restart = out.last_restart.max(finished(container));
            if is_sidecar {
                sidecar_restarts += number(&container["restartCount"]);
                if container["ready"] == true {
                    out.ready += 1;
                }
            }
            let done = container["state"]["terminated"]["exitCode"] == 0;
            let started = is_sidecar && container["started"] == true;
            if done || started || out.initializing.is_some() {
                continue;
            }
            let why = match trouble(&container["state"]) {
                Some(why) if why != "PodInitializing" => why,
                _ => format!("{i}/{all}"),
            };
            out.initializing = Some(format!("Init:{why}"));
            out.restarts = restarts;
        }
        if out.initializing.is_none() || has_condition(status, "Initialized") {
            out.restarts = sidecar_restarts;
            for container in items(&status["containerStatuses"]) {
                out.restarts += number(&container["restartCount"]);
                out.last_restart = out.last_restart.max(finished(container));
                if container["ready"] == true && !container["state"]["running"].is_null() {
                    out.ready += 1;
                }
            }
        }
        out
    }
}

fn pod_status(pod: &Value, count: &Counted) -> String {
    let status = &pod["status"];
    let phase = text(&status["phase"]);
    let mut reason = match text(&status["reason"]) {
        "" => phase.to_string(),
        reason => reason.to_string(),
    };
    if items(&status["conditions"]).any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated") {
        reason = "SchedulingGated".into();
    }
    match &count.initializing {
        Some(why) if !has_condition(status, "Initialized") => reason.clone_from(why),
        _ => {
            let list: Vec<&Value> = items(&status["containerStatuses"]).collect();
            for container in list.iter().rev() {
                if let Some(why) = trouble(&container["state"]) {
                    reason = why;
                }
            }
            let running = list.iter().any(|c| c["ready"] == true && !c["state"]["running"].is_null());
            if reason == "Completed" && running {
                reason = if has_condition(status, "Ready") { "Running" } else { "NotReady" }.into();
            }
        }
    }
    match (pod["metadata"]["deletionTimestamp"].is_null(), text(&status["reason"])) {
        (true, _) => reason,
        (false, "NodeLost") => "Unknown".into(),
        (false, _) if !matches!(phase, "Succeeded" | "Failed") => "Terminating".into(),
        _ => reason,
    }
}

fn service(service: &Value, _: Timestamp) -> Vec<(&'static str, Value)> {
    let spec = &service["spec"];
    let kind = text(&spec["type"]);
    let cluster_ip = or_none(text(&spec["clusterIP"]).into());
    let ports: Vec<String> = items(&spec["ports"])
        .map(|p| match number(&p["nodePort"]) {
            0 => format!("{}/{}", p["port"], text(&p["protocol"])),
            node => format!("{}:{node}/{}", p["port"], text(&p["protocol"])),
        })
        .collect();
    vec![
        ("Type", json!(kind)),
        ("Cluster-IP", json!(cluster_ip)),
        ("External-IP", json!(external_ip(service, kind))),
        ("Port(s)", json!(or_none(ports.join(",")))),
        ("Selector", json!(or_none(Labels::from_map(&spec["selector"]).to_string()))),
    ]
}

fn external_ip(service: &Value, kind: &str) -> String {
    let given = joined(&service["spec"]["externalIPs"]);
    match kind {
        "ExternalName" => text(&service["spec"]["externalName"]).into(),
        "LoadBalancer" => {
            let mut list: Vec<&str> = items(&service["status"]["loadBalancer"]["ingress"])
                .map(|i| if text(&i["ip"]).is_empty() { text(&i["hostname"]) } else { text(&i["ip"]) })
                .collect();
            list.extend(given.split(',').filter(|ip| !ip.is_empty()));
            if list.is_empty() { "<pending>".into() } else { list.join(",") }
        }
        _ => or_none(given),
    }
}

fn node(node: &Value, _: Timestamp) -> Vec<(&'static str, Value)> {
    let (spec, status) = (&node["spec"], &node["status"]);
    let ready = items(&status["conditions"]).find(|c| c["type"] == "Ready").map(|c| c["status"] == "True");
    let mut shown = vec![match ready {
        Some(true) => "Ready",
        Some(false) => "NotReady",
        None => "Unknown",
    }];
    if spec["unschedulable"] == true {
        shown.push("SchedulingDisabled");
    }
    let mut roles: Vec<&str> = node["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None => (key == "kubernetes.io/role").then(|| text(value)),
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    let address = |kind: &str| {
        let found = items(&status["addresses"]).find(|a| a["type"] == kind).map(|a| text(&a["address"]));
        json!(found.unwrap_or(NONE))
    };
    let info = |name: &str| json!(or_unknown(text(&status["nodeInfo"][name])));
    vec![
        ("Status", json!(shown.join(","))),
        ("Roles", json!(or_none(roles.join(",")))),
        ("Version", status["nodeInfo"]["kubeletVersion"].clone()),
        ("Internal-IP", address("InternalIP")),
        ("External-IP", address("ExternalIP")),
        ("OS-Image", info("osImage")),
        ("Kernel-Version", info("kernelVersion")),
        ("Container-Runtime", info("containerRuntimeVersion")),
    ]
}

fn or_unknown(shown: &str) -> &str {
    if shown.is_empty() { "<unknown>" } else { shown }
}

/// `ip:port` pairs, three at most.
fn endpoints(object: &Value) -> String {
    let mut list = Vec::new();
    for subset in items(&object["subsets"]) {
        let ports: Vec<&Value> = items(&subset["ports"]).collect();
        for address in items(&subset["addresses"]) {
            let ip = text(&address["ip"]);
            if ports.is_empty() {
                list.push(ip.to_string());
            }
            list.extend(ports.iter().map(|p| format!("{ip}:{}", p["port"])));
        }
    }
    or_none(at_most_three(&list))
}

fn at_most_three(list: &[String]) -> String {
    match list.len() {
        0..=3 => list.join(","),
        n => format!("{} + {} more...", list[..3].join(","), n - 3),
    }
}

fn endpoint_slice(slice: &Value, _: Timestamp) -> Vec<(&'static str, Value)> {
    let ports: Vec<String> = items(&slice["ports"])
        .map(|p| match number(&p["port"]) {
            0 => text(&p["name"]).to_string(),
            port => port.to_string(),
        })
        .collect();
    let ports = if slice["ports"].is_null() { "<unset>".into() } else { at_most_three(&ports) };
    let addresses: Vec<String> = items(&slice["endpoints"]).flat_map(|e| items(&e["addresses"])).map(plain).collect();
    let addresses = if addresses.is_empty() { "<unset>".into() } else { at_most_three(&addresses) };
    vec![("AddressType", slice["addressType"].clone()), ("Ports", json!(ports)), ("Endpoints", json!(addresses))]
}

fn event(event: &Value, now: Timestamp) -> Vec<(&'static str, Value)> {
    let pick = |names: &[&'static str]| names.iter().map(|n| &event[*n]).find(|v| !v.is_null()).unwrap_or(&Value::Null);
    let object = pick(&["involvedObject", "regarding"]);
    let source = pick(&["source", "deprecatedSource"]);
    let created = &event["metadata"]["creationTimestamp"];
    let first = match (pick(&["firstTimestamp", "deprecatedFirstTimestamp"]), &event["eventTime"]) {
        (Value::Null, Value::Null) => created,
        (Value::Null, time) => time,
        (time, _) => time,
    };
    let series = &event["series"];
    let last = match (pick(&["lastTimestamp", "deprecatedLastTimestamp"]), &series["lastObservedTime"]) {
        (_, time) if !time.is_null() => time,
        (Value::Null, _) => first,
        (time, _) => time,
    };
    let count = match (number(&series["count"]), number(pick(&["count", "deprecatedCount"]))) {
        (0, 0) => 1,
        (0, count) => count,
        (count, _) => count,
    };
    let target = match text(&object["name"]) {
        "" => text(&object["kind"]).to_lowercase(),
        name => format!("{}/{name}", text(&object["kind"]).to_lowercase()),
    };
    vec![
        ("Last Seen", json!(age(last, now))),
        ("Type", event["type"].as_str().map_or(json!(""), |t| json!(t))),
        ("Reason", event["reason"].as_str().map_or(json!(""), |t| json!(t))),
        ("Object", json!(target)),
        ("Subobject", json!(text(&object["fieldPath"]))),
        ("Source", json!(event_source(event, source))),
        ("Message", json!(text(pick(&["message", "note"])).trim())),
        ("First Seen", json!(age(first, now))),
        ("Count", json!(count)),
    ]
}

fn event_source(event: &Value, source: &Value) -> String {
    let component = match text(&source["component"]) {
        "" => [&event["reportingComponent"], &event["reportingController"]].map(text).concat(),
        component => component.into(),
    };
    match (text(&source["host"]), text(&event["reportingInstance"])) {
        ("", "") => component,
        ("", instance) => format!("{component}, {instance}"),
        (host, _) => format!("{component}, {host}"),
    }
}

fn controller(object: &Value) -> String {
    let owner = items(&object["metadata"]["ownerReferences"]).find(|o| o["controller"] == true);
    owner.map_or(NONE.into(), |o| {
        let (kind, name) = (text(&o["kind"]).to_lowercase(), text(&o["name"]));
        match text(&o["apiVersion"]).split_once('/') {
            Some((group, _)) => format!("{kind}.{group}/{name}"),
            None => format!("{kind}/{name}"),
        }
    })
}

fn binding(binding: &Value, _: Timestamp) -> Vec<(&'static str, Value)> {
    let role = &binding["roleRef"];
    let of = |kind: &str| {
        let names: Vec<String> = items(&binding["subjects"])
            .filter(|s| s["kind"] == kind)
            .map(|s| match (kind, text(&s["namespace"])) {
                ("ServiceAccount", namespace) => format!("{namespace}/{}", text(&s["name"])),
                _ => text(&s["name"]).to_string(),
            })
            .collect();
        json!(names.join(", "))
    };
    vec![
        ("Role", json!(format!("{}/{}", text(&role["kind"]), text(&role["name"])))),
        ("Users", of("User")),
        ("Groups", of("Group")),
        ("ServiceAccounts", of("ServiceAccount")),
    ]
}

fn parent(reference: &Value) -> String {
    let parts = ["group", "resource", "namespace", "name"].map(|n| text(&reference[n]));
    match parts {
        ["", resource, "", name] => format!("{resource}/{name}"),
        ["", resource, namespace, name] => format!("{resource}/{namespace}/{name}"),
        [group, resource, namespace, name] => format!("{resource}.{group}/{namespace}/{name}"),
    }
}

fn ingress(ingress: &Value, _: Timestamp) -> Vec<(&'static str, Value)> {
    let spec = &ingress["spec"];
    let hosts: Vec<String> =
        items(&spec["rules"]).map(|r| text(&r["host"]).to_string()).filter(|h| !h.is_empty()).collect();
    let hosts = if hosts.is_empty() { "*".into() } else { at_most_three(&hosts) };
    let addresses: Vec<&str> = items(&ingress["status"]["loadBalancer"]["ingress"])
        .map(|i| if text(&i["ip"]).is_empty() { text(&i["hostname"]) } else { text(&i["ip"]) })
        .collect();
    vec![
        ("Class", json!(or_none(text(&spec["ingressClassName"]).into()))),
        ("Hosts", json!(hosts)),
        ("Address", json!(addresses.join(","))),
        ("Ports", json!(if count(&spec["tls"]) > 0 { "80, 443" } else { "80" })),
    ]
}

fn job(job: &Value, now: Timestamp) -> Vec<(&'static str, Value)> {
    let (spec, status) = (&job["spec"], &job["status"]);
    let done = number(&status["succeeded"]);
    let completions = match (spec["completions"].as_i64(), number(&spec["parallelism"])) {
        (Some(n), _) => format!("{done}/{n}"),
        (None, parallel) if parallel > 1 => format!("{done}/1 of {parallel}"),
        (None, _) => format!("{done}/1"),
    };
    let second = |v: &Value| text(v).parse::<Timestamp>().ok().map(Timestamp::as_second);
    let duration = second(&status["startTime"])
        .map(|start| human(second(&status["completionTime"]).unwrap_or_else(|| now.as_second()) - start));
    let state = ["Complete", "Failed", "Suspended", "FailureTarget", "SuccessCriteriaMet"]
        .into_iter()
        .find(|c| has_condition(status, c));
    let state = match state {
        Some("FailureTarget") => "Running",
        Some("SuccessCriteriaMet") => "SuccessCriteriaMet",
        Some(state) => state,
        None if !job["metadata"]["deletionTimestamp"].is_null() => "Terminating",
        None => "Running",
    };
    let mut out = vec![
        ("Status", json!(state)),
        ("Completions", json!(completions)),
        ("Duration", json!(duration.unwrap_or_default())),
    ];
    out.extend(template(job));
    out
}

fn cron_job(job: &Value, now: Timestamp) -> Vec<(&'static str, Value)> {
    let (spec, status) = (&job["spec"], &job["status"]);
    let last = match &status["lastScheduleTime"] {
        Value::Null => NONE.to_string(),
        time => age(time, now),
    };
    let (names, images) = containers(&spec["jobTemplate"]["spec"]["template"]["spec"]);
    vec![
        ("Schedule", spec["schedule"].clone()),
        ("Timezone", json!(or_none(text(&spec["timeZone"]).into()))),
        ("Suspend", json!(if spec["suspend"] == true { "True" } else { "False" })),
        ("Active", json!(count(&status["active"]))),
        ("Last Schedule", json!(last)),
        ("Containers", names),
        ("Images", images),
        ("Selector", json!(selector(&spec["jobTemplate"]["spec"]["selector"]))),
    ]
}

fn claim(claim: &Value, _: Timestamp) -> Vec<(&'static str, Value)> {
    let (spec, status) = (&claim["spec"], &claim["status"]);
    let phase = if claim["metadata"]["deletionTimestamp"].is_null() { text(&status["phase"]) } else { "Terminating" };
    let volume = text(&spec["volumeName"]);
    let (capacity, modes) = match volume {
        "" => (String::new(), String::new()),
        _ => (text(&status["capacity"]["storage"]).into(), access_modes(&status["accessModes"])),
    };
    let or_unset = |v: &Value| json!(if text(v).is_empty() { "<unset>" } else { text(v) });
    vec![
        ("Status", json!(phase)),
        ("Volume", json!(volume)),
        ("Capacity", json!(capacity)),
        ("Access Modes", json!(modes)),
        ("StorageClass", json!(text(&spec["storageClassName"]))),
        ("VolumeAttributesClass", or_unset(&spec["volumeAttributesClassName"])),
        ("VolumeMode", or_unset(&spec["volumeMode"])),
    ]
}

fn access_modes(modes: &Value) -> String {
    let order =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let given: Vec<&str> = items(modes).map(text).collect();
    let shown: Vec<&str> = order.iter().filter(|(name, _)| given.contains(name)).map(|(_, short)| *short).collect();
    shown.join(",")
}

fn quota(quota: &Value, _: Timestamp) -> Vec<(&'static str, Value)> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (name, hard) in quota["status"]["hard"].as_object().into_iter().flatten() {
        let used = text(&quota["status"]["used"][name.as_str()]);
        let shown = format!("{name}: {used}/{}", text(hard));
        if name.starts_with("limits.") { limits.push(shown) } else { requests.push(shown) }
    }
    vec![("Request", json!(requests.join(", "))), ("Limit", json!(limits.join(", ")))]
}
