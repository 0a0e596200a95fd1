//! What `kubectl get pods` shows: what a pod says, and what its containers say of it.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::table::cells::{has_condition, or_none};
use crate::time::human;
use crate::value::{items, number, text};

pub fn of(pod: &Value, now: Timestamp) -> Vec<(&'static str, Value)> {
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

/// `Completed` rows are greyed by clients that want to.
pub fn conditions(pod: &Value) -> Vec<Value> {
    let completed = |reason: &str, message: &str| json!({"type": "Completed", "status": "True", "reason": reason, "message": message});
    match text(&pod["status"]["phase"]) {
        "Succeeded" => vec![completed("Succeeded", "The pod has completed successfully.")],
        "Failed" => vec![completed("Failed", "The pod failed.")],
        _ => Vec::new(),
    }
}
