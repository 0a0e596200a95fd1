//! One task per pod UID: brings the pod up, keeps its containers as the plan says, tells its status, takes it down.
//!
//! It wakes for a change of the pod, a report of its pod process, or a deadline; nothing is polled.

mod health;
mod recover;
mod start;
mod stop;
mod storage;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pod::protocol::ContainerState;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::admit::{Rejection, admit};
use crate::boundary::{EventKind, UpstreamError};
use crate::env::Facts;
use crate::model::Pod;
use crate::node::{LivePod, Node};
use crate::plan::{Plan, plan};
use crate::probe::{Kind, Probes, Verdict};
use crate::process_link::LinkEvent;
use crate::record::{Cause, End, Finished, Record};
use crate::sandbox::Presence;
use crate::status::{self, Health, Waiting};
use crate::step::{Part, Step};
use crate::storage::{Candidate, Eviction};
use crate::teardown::tear_down;
use crate::volume::{Place, Tokens};
use stop::Kill;
use storage::{Look, Measured};

/// What a worker is told.
#[derive(Debug)]
pub enum Command {
    /// The pod as it is now.
    Update(Arc<Value>),
    /// The object is gone: nothing to report to any more.
    Gone,
    /// A config map or secret the pod may use has changed.
    ContentChanged,
    Probe(Verdict),
    /// What the pod has written, as it was asked to find out.
    Measured(Measured),
    /// How much of the node does it take?
    Weigh(oneshot::Sender<Candidate>),
    /// It must go; the sender is dropped when it has.
    Evict(Eviction, oneshot::Sender<()>),
}

/// First and longest wait before something that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// The name under which writing the status is tried again; no container has it.
const STATUS: &str = "status of the pod";

pub struct Worker {
    node: Arc<Node>,
    commands: mpsc::UnboundedReceiver<Command>,
    /// For tasks that report back to this worker.
    own: mpsc::UnboundedSender<Command>,
    record: Record,
    pod: Arc<Pod>,
    presence: Presence,
    volumes: HashMap<String, Place>,
    /// Something that volumes show may have changed.
    stale: bool,
    tokens: Tokens,
    renew_at: Option<Timestamp>,
    /// The pod asks for other resources, and nobody has been told yet that it cannot have them.
    resized: bool,
    waiting: BTreeMap<String, Waiting>,
    health: BTreeMap<String, Health>,
    probes: Probes,
    /// Warnings to tell: container, reason, message.
    notices: Vec<(String, &'static str, String)>,
    /// Containers that a probe has given up.
    condemned: Vec<(String, Kind)>,
    /// Containers (or the pod, under the empty name) to try again, and after which wait.
    retries: BTreeMap<String, Retry>,
    /// When its files are measured, and what came of it: why it must go, and who waits for that.
    look: Look,
    eviction: Option<Eviction>,
    evictors: Vec<oneshot::Sender<()>>,
    /// A time to end in that is shorter than the pod's own.
    most_grace: Option<Duration>,
    initialized: bool,
    /// The container whose postStart hook runs.
    starting: Option<String>,
    /// The status this worker wrote last, and the one the API server showed last.
    written: Option<Value>,
    seen: Value,
    gone: bool,
    /// What a finished pod held of the running node has been taken away.
    cleared: bool,
}

#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Instant,
    wait: Duration,
}

/// Why a wait ended.
enum Wake {
    Command(Option<Command>),
    Link(Option<LinkEvent>),
    Deadline,
}

impl Worker {
    pub fn new(
        node: Arc<Node>,
        record: Record,
        commands: mpsc::UnboundedReceiver<Command>,
        own: mpsc::UnboundedSender<Command>,
    ) -> Worker {
        let pod = Arc::new(parse(&record));
        let seen = pod.status.clone();
        Worker {
            node,
            commands,
            own,
            record,
            pod,
            presence: Presence::Absent,
            volumes: HashMap::new(),
            stale: false,
            tokens: Tokens::default(),
            renew_at: None,
            resized: false,
            waiting: BTreeMap::new(),
            health: BTreeMap::new(),
            probes: Probes::default(),
            notices: Vec::new(),
            condemned: Vec::new(),
            retries: BTreeMap::new(),
            look: Look::default(),
            eviction: None,
            evictors: Vec::new(),
            most_grace: None,
            initialized: false,
            starting: None,
            written: None,
            seen,
            gone: false,
            cleared: false,
        }
    }

    /// Runs until the pod is no more. Cancelled at any moment, it leaves the pod to the next worker.
    pub async fn run(mut self) {
        self.recover().await;
        loop {
            if self.must_stop() {
                return self.stop().await;
            }
            let plan = self.step().await;
            if self.must_stop() {
                continue;
            }
            self.publish().await;
            if matches!(self.presence, Presence::Remains) {
                continue; // lost while something else was waited for: nothing more will be heard of it
            }
            let deadline = self.deadline(&plan);
            match self.wait(deadline).await {
                Wake::Command(None) => return,
                Wake::Command(Some(command)) => self.take(command),
                Wake::Link(event) => self.heard(event),
                Wake::Deadline => {}
            }
        }
    }

    fn must_stop(&self) -> bool {
        self.gone || self.record.stopping.is_some() || self.pod.metadata.deletion_timestamp.is_some()
    }

    async fn wait(&mut self, deadline: Option<Instant>) -> Wake {
        let events = self.presence.sandbox_mut().map(|sandbox| &mut sandbox.events);
        tokio::select! {
            biased;
            command = self.commands.recv() => Wake::Command(command),
            event = async { match events { Some(events) => events.recv().await, None => std::future::pending().await } } => Wake::Link(event),
            () = async { match deadline { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => Wake::Deadline,
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Update(object) => {
                let changed = wish(&self.record.object) != wish(&object);
                self.record.object = object;
                let mut pod = parse(&self.record);
                self.seen = pod.status.clone();
                if let Some(written) = &self.written {
                    pod.status = status::merge(&pod.status, written);
                }
                self.pod = Arc::new(pod);
                if changed {
                    self.resized = status::resize_pending(&self.pod.spec, &self.record);
                    self.stale = true; // labels and annotations show in volumes
                    self.save();
                }
            }
            Command::Gone => self.gone = true,
            Command::ContentChanged => {
                self.stale = true;
                let waiting = &self.waiting;
                // A registry in trouble is not helped by this; all else may be.
                self.retries
                    .retain(|name, _| waiting.get(name).is_some_and(|waiting| waiting.reason == "ImagePullBackOff"));
            }
            Command::Probe(verdict) => self.judge(verdict),
            Command::Measured(measured) => self.measured(measured),
            Command::Weigh(reply) => self.weigh(reply),
            Command::Evict(eviction, evictor) => {
                self.eviction.get_or_insert(eviction);
                self.evictors.push(evictor);
            }
        }
    }

    fn running_runs(&self) -> Vec<(String, String)> {
        let running = self
            .record
            .containers
            .iter()
            .filter(|(_, record)| record.current.as_ref().is_some_and(|run| run.end.is_none()));
        running.filter_map(|(name, record)| Some((name.clone(), record.current.as_ref()?.name.clone()))).collect()
    }

    /// Takes a part of the pod away. Steps that fail are tried again after a while, until none does.
    async fn clear(&mut self, part: Part) {
        let mut wait = RETRY.0;
        self.presence.lose();
        while let Err(error) = tear_down(&self.node, part, &self.record.pod.uid, &self.record.ips).await {
            self.log_failure("take the pod away", &error);
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
        self.presence = Presence::Absent;
    }

    // ---- reports of the pod process ----

    fn heard(&mut self, event: Option<LinkEvent>) {
        match event {
            Some(LinkEvent::Exited(state)) => {
                self.container_state(&state);
                self.save();
                Step::NoteEnd.done();
                self.go_live();
            }
            Some(LinkEvent::Closed) | None => self.presence.lose(), // the next step cleans up and starts anew
        }
    }

    fn container_state(&mut self, state: &ContainerState) {
        let found = self.record.containers.iter().find(|(_, record)| {
            record.current.as_ref().is_some_and(|run| run.name == state.container && run.end.is_none())
        });
        let Some(name) = found.map(|(name, _)| name.clone()) else { return };
        let end = state.exit.as_ref().map(|exit| self.end_of(&name, state, exit));
        let ended = end.is_some();
        if let Some(run) = self.record.containers.get_mut(&name).and_then(|record| record.current.as_mut()) {
            run.started_at = state.started_at.and_then(from_nanos).or(run.started_at);
            run.end = end;
        }
        if ended {
            self.probes.stop(&name);
            self.health.remove(&name);
        }
    }

    fn end_of(&self, name: &str, state: &ContainerState, exit: &pod::protocol::Exit) -> End {
        let reason = match exit {
            exit if exit.oom_killed => "OOMKilled",
            exit if exit.code == 0 => "Completed",
            _ => "Error",
        };
        let id = self.record.containers.get(name).and_then(|record| record.current.as_ref()).map(|run| run.id.clone());
        End {
            exit_code: exit.code,
            reason: reason.into(),
            message: self.termination_message(name, &state.container, exit.code),
            started_at: state.started_at.and_then(from_nanos),
            finished_at: from_nanos(exit.finished_at),
            id: id.unwrap_or_default(),
        }
    }

    /// What the container wrote to its termination log, or the end of its log when it asked for that and failed.
    fn termination_message(&self, name: &str, run: &str, exit_code: i32) -> Option<String> {
        let uid = &self.record.pod.uid;
        let container = self.pod.spec.container(name)?;
        let written = match crate::launch::termination_message(&self.node, uid, run) {
            Ok(written) => written,
            Err(error) => return Some(format!("Error on reading termination log: {error}")),
        };
        let fall_back = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        let bytes = if written.is_empty() && fall_back && exit_code != 0 {
            let number = self.record.containers.get(name)?.runs.saturating_sub(1);
            crate::logs::last_lines(&self.node.log_file(uid, name, number), 80, 2048)
        } else {
            written
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        (!text.is_empty()).then_some(text)
    }

    /// Tells exec and attach what runs now.
    fn go_live(&self) {
        let Some(sandbox) = self.presence.sandbox() else { return };
        let mut live = self.node.live();
        let entry = live
            .pods
            .entry(self.record.pod.uid.clone())
            .or_insert_with(|| LivePod { link: sandbox.link.clone(), containers: HashMap::new() });
        entry.link = sandbox.link.clone();
        let uid = &self.record.pod.uid;
        let running = self.running_runs();
        entry.containers.retain(|name, container| running.iter().any(|(n, run)| n == name && *run == container.run));
        for (name, run) in running {
            if entry.containers.contains_key(&name) {
                continue;
            }
            let pid = sandbox.state.containers.iter().find(|state| state.container == run).map_or(0, |state| state.pid);
            let config = std::fs::read(crate::launch::run_folder(&self.node, uid, &run).join("config.json"));
            let config: Value = config.ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
            let tty = config["process"]["terminal"] == true;
            let process = Arc::new(config["process"].clone());
            entry.containers.insert(name, crate::node::LiveContainer { run, pid, process, tty });
        }
        drop(live);
        self.node.changes.send_modify(|count| *count += 1);
    }

    fn leave_live(&self) {
        self.node.live().pods.remove(&self.record.pod.uid);
        self.node.changes.send_modify(|count| *count += 1);
    }

    // ---- what to do next ----

    async fn step(&mut self) -> Plan {
        if self.cleared {
            return self.plan();
        }
        if let Some(finished) = self.past_deadline() {
            self.finish(finished).await;
        }
        if let Some(eviction) = self.eviction.take() {
            self.evict(eviction).await;
        }
        self.reject().await;
        self.act_on_health().await;
        self.act_on_images().await;
        if std::mem::take(&mut self.resized) {
            self.event(None, EventKind::Warning, "ResizeInfeasible", status::resize_refused(&self.pod)).await;
        }
        if self.record.finished.is_none() && matches!(self.presence, Presence::Remains) {
            self.lost_sandbox().await;
        }
        let mut plan = self.plan();
        if plan.finished.is_none() && self.ready_to_run().await {
            plan = self.plan(); // in a new sandbox init containers run again
            self.start_containers(&mut plan).await;
        }
        if let Some(finished) = plan.finished.clone()
            && !self.must_stop()
        {
            self.finish(finished).await;
        }
        self.initialized = plan.initialized || self.initialized;
        self.measure_if_due();
        plan
    }

    /// A pod that this node does not take fails before anything of it exists.
    async fn reject(&mut self) {
        if self.record.sandboxes > 0 || self.record.finished.is_some() {
            return;
        }
        let Err(Rejection { reason, message }) = admit(&self.pod.spec, &self.node.allowed_sysctls, &self.node.apparmor)
        else {
            return;
        };
        self.event(None, EventKind::Warning, reason, message.clone()).await;
        self.finish(Finished::failed(reason, format!("Pod was rejected: {message}"), Cause::Rejected)).await;
    }

    /// Ends containers for which the pod asks for another image by now; the plan begins them anew.
    async fn act_on_images(&mut self) {
        let pod = self.pod.clone();
        for (name, _) in self.running_runs() {
            let sidecars = pod.spec.init_containers.iter().filter(|container| container.is_sidecar());
            let Some(container) = pod.spec.containers.iter().chain(sidecars).find(|c| c.name == name) else { continue };
            let run = self.record.containers.get(&name).and_then(|record| record.current.as_ref());
            if run.is_none_or(|run| !run.differs(&container.image)) {
                continue;
            }
            // What runs goes on while its successor's image is on its way.
            self.fetch_ahead(container).await;
            let run = self.record.containers.get_mut(&name).and_then(|record| record.current.as_mut());
            let Some(run) = run else { continue };
            run.outdated = true;
            self.save();
            let message = format!("Container {name} definition changed, will be restarted");
            self.stop_containers(Some(Kill { container: &name, grace: self.grace(), message })).await;
        }
    }

    fn plan(&mut self) -> Plan {
        let health = &self.health;
        let started = |name: &str| health.get(name).is_some_and(|health| health.started);
        let plan = plan(&self.pod.spec, &self.record, Timestamp::now(), &started);
        self.initialized = plan.initialized;
        plan
    }

    /// activeDeadlineSeconds.
    fn active_until(&self) -> Option<Timestamp> {
        let seconds = self.pod.spec.active_deadline_seconds?;
        self.record.started_at.checked_add(jiff::SignedDuration::from_secs(seconds)).ok()
    }

    fn past_deadline(&self) -> Option<Finished> {
        let until = self.active_until()?;
        (self.record.finished.is_none() && Timestamp::now() >= until).then(|| {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            Finished::failed("DeadlineExceeded", message, Cause::Itself)
        })
    }

    /// No container of the pod will run again: the sandbox and the volumes go, logs stay until the pod is deleted.
    async fn finish(&mut self, finished: Finished) {
        if self.record.finished.is_none() {
            self.stop_containers(None).await;
            self.record.finished = Some(finished);
            self.waiting.clear();
            self.save();
            Step::NoteFinish.done();
        }
        self.presence.lose();
        self.leave_live();
        self.publish().await;
        self.clear(Part::Runtime).await;
        let (ips, users) = (std::mem::take(&mut self.record.ips), self.record.users.take());
        if !ips.is_empty() || users.is_some() {
            self.save();
            Step::ReturnAddress.done();
        }
        self.node.take_back(&ips, users);
        self.cleared = true;
        self.evictors.clear();
    }

    fn deadline(&self, plan: &Plan) -> Option<Instant> {
        if self.cleared {
            return self.retries.values().map(|retry| retry.at).min();
        }
        let moments = [plan.wake_at(), self.renew_at].into_iter().flatten().map(instant_of);
        moments.chain(self.retries.values().map(|retry| retry.at)).chain(self.end_of_patience()).min()
    }

    /// When to look whether the pod must end, whatever else is waited for.
    fn end_of_patience(&self) -> Option<Instant> {
        let active = self.active_until().filter(|_| self.record.finished.is_none()).map(instant_of);
        active.into_iter().chain(self.next_look()).min()
    }

    /// There is a reason to end it.
    fn must_end(&self) -> bool {
        self.must_stop() || self.eviction.is_some() || self.past_deadline().is_some()
    }

    /// Notes that something is to be tried again, each time after a longer wait.
    fn retry_later(&mut self, name: &str) {
        let wait = self.retries.get(name).map_or(RETRY.0, |retry| (retry.wait * 2).min(RETRY.1));
        self.retries.insert(name.to_owned(), Retry { at: Instant::now() + wait, wait });
    }

    fn must_wait(&self, name: &str) -> bool {
        self.retries.get(name).is_some_and(|retry| retry.at > Instant::now())
    }

    // ---- status ----

    async fn publish(&mut self) {
        let status = status::status(&status::Inputs {
            pod: &self.pod,
            record: &self.record,
            waiting: &self.waiting,
            health: &self.health,
            sandbox_ready: self.presence.sandbox().is_some(),
            initialized: self.initialized,
            starting: self.starting.as_deref(),
            host_ips: &self.node.config.node_ips,
            now: Timestamp::now(),
        });
        if self.gone || status == self.seen {
            self.retries.remove(STATUS);
            return;
        }
        if self.written.as_ref() == Some(&status) && !self.overwritten() {
            return;
        }
        match self.node.upstream.write_status(&self.record.pod, status.clone()).await {
            Ok(()) => {
                self.retries.remove(STATUS);
                // Conditions keep their times: the next status is computed from this one.
                let mut pod = (*self.pod).clone();
                pod.status = status.clone();
                self.pod = Arc::new(pod);
                self.seen = status.clone();
                self.written = Some(status);
            }
            Err(UpstreamError::NotFound(_)) => self.gone = true,
            Err(error) => {
                self.log_failure("write the pod's status", &error);
                self.retry_later(STATUS);
            }
        }
    }

    /// The API server shows something else than was written. That may be an older state on its way, so it only counts
    /// after a moment; then somebody else has written, and this node's word is repeated.
    fn overwritten(&mut self) -> bool {
        const MOMENT: Duration = Duration::from_secs(2);
        match self.retries.get(STATUS) {
            Some(retry) => retry.at <= Instant::now(),
            None => {
                self.retries.insert(STATUS.to_owned(), Retry { at: Instant::now() + MOMENT, wait: MOMENT });
                false
            }
        }
    }

    fn facts(&self) -> Facts {
        Facts {
            node_name: self.node.config.node_name.clone(),
            host_ips: self.node.config.node_ips.clone(),
            pod_ips: self.ips().to_vec(),
        }
    }

    /// Where the pod is reached, first by the one it is known by.
    fn ips(&self) -> &[IpAddr] {
        status::pod_ips(&self.pod.spec, &self.record, &self.node.config.node_ips)
    }

    /// A record that cannot be written is a node in trouble: the pod goes on, loudly.
    fn save(&self) {
        if let Err(error) = self.node.records.write(&self.record) {
            self.log_failure("write the pod's record", &error);
        }
    }

    async fn event(&self, container: Option<&str>, kind: EventKind, reason: &'static str, message: String) {
        let field_path = container.map(|name| format!("{}{{{name}}}", self.pod.spec.field_of(name)));
        self.node.event(&self.record.pod, field_path, kind, reason, message).await;
    }

    fn log_failure(&self, what: &'static str, error: &dyn std::error::Error) {
        let pod = &self.record.pod;
        tracing::warn!(namespace = %pod.namespace, pod = %pod.name, uid = %pod.uid, what, error = %causes::chain(error));
    }
}

/// The part of a pod that a record must keep up with; the status comes back from here anyway.
fn wish(object: &Value) -> (&Value, Vec<&Value>) {
    let metadata = &object["metadata"];
    let fields = ["generation", "labels", "annotations", "deletionTimestamp", "deletionGracePeriodSeconds"];
    (&object["spec"], fields.iter().map(|field| &metadata[*field]).collect())
}

fn parse(record: &Record) -> Pod {
    match serde_json::from_value((*record.object).clone()) {
        Ok(pod) => pod,
        Err(error) => {
            tracing::error!(uid = %record.pod.uid, %error, "pod cannot be read");
            Pod::default()
        }
    }
}

fn from_nanos(nanos: i64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(nanos.into()).ok()
}

fn instant_of(time: Timestamp) -> Instant {
    let ahead = time.duration_since(Timestamp::now());
    Instant::now() + Duration::try_from(ahead).unwrap_or(Duration::ZERO)
}
