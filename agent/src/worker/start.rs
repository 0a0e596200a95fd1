//! Bringing up: volumes, sandbox, network; then images and containers one after the other.

use std::collections::HashMap;

use causes::chain;
use jiff::Timestamp;
use pod::protocol::{FailureKind, Op};

use super::{Wake, Worker};
use crate::admit::absent_kind;
use crate::boundary::EventKind;
use crate::files::host_resolv;
use crate::image::{Credential, Image, ImageError, PullPolicy, of_secret};
use crate::launch::{Launch, LaunchError, Launched, remove_run};
use crate::model::{Container, Volume};
use crate::node::LivePod;
use crate::plan::{Plan, next_back_off, runs_again};
use crate::process_link::LinkError;
use crate::record::{BackOff, ContainerRecord, End, Run};
use crate::sandbox::{self, Presence};
use crate::status::Waiting;
use crate::step::Step;
use crate::volume::{VolumeError, Volumes};

/// Runtimes that this one stands for: itself, and the one that it does the same as.
const HANDLERS: [&str; 2] = ["amphipod", "runc"];
/// When content that could not be had is asked for again, unless something changes before.
const VOLUME_RETRY: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);
/// The exit code of a container whose program never began.
const NOT_STARTED: i32 = 128;
/// The empty name: what concerns the pod as a whole.
const POD: &str = "";

impl Worker {
    /// Makes what containers need. False when something is missing; it is tried again later.
    pub(super) async fn ready_to_run(&mut self) -> bool {
        if self.must_wait(POD) {
            return false;
        }
        let ready = self.make_volumes().await && self.make_sandbox().await;
        if ready {
            self.retries.remove(POD);
        } else {
            self.retry_later(POD);
        }
        ready
    }

    async fn make_volumes(&mut self) -> bool {
        let due = self.renew_at.is_some_and(|at| at <= Timestamp::now());
        let made = self.pod.spec.volumes.iter().all(|volume| self.volumes.contains_key(&volume.name));
        if made && !due && !self.stale {
            return true;
        }
        let (pod, facts, uid) = (self.pod.clone(), self.facts(), self.record.pod.uid.clone());
        let (durable, volatile) = (self.node.pod_volumes(&uid), self.node.volatile_volumes(&uid));
        let upstream = self.node.upstream.clone();
        let tokens = std::mem::take(&mut self.tokens);
        let maker = Volumes {
            upstream: upstream.as_ref(),
            pod: &pod,
            facts: &facts,
            durable: &durable,
            volatile: &volatile,
            tokens: &tokens,
        };
        self.stale = false;
        let mut renew_at = None::<Timestamp>;
        let mut complete = true;
        for volume in &pod.spec.volumes {
            let again = match maker.make(volume).await {
                Ok(ready) => {
                    self.volumes.insert(volume.name.clone(), ready.place);
                    ready.renew_at
                }
                Err(error) => {
                    self.event(None, EventKind::Warning, "FailedMount", chain(&error)).await;
                    self.say_absent(volume, &error);
                    complete &= self.keep_volume(&maker, volume);
                    Timestamp::now().checked_add(VOLUME_RETRY).ok()
                }
            };
            renew_at = renew_at.into_iter().chain(again).min();
            if !complete {
                break;
            }
        }
        self.tokens = tokens;
        self.renew_at = renew_at;
        Step::MakeVolumes.done();
        complete
    }

    /// What this node will never have is not waited for in silence.
    fn say_absent(&mut self, volume: &Volume, error: &VolumeError) {
        if absent_kind(volume).is_none() {
            return;
        }
        let waiting = Waiting { reason: "CreateContainerConfigError", message: Some(chain(error)) };
        let pod = self.pod.clone();
        let names = pod.spec.all_containers().map(|container| container.name.clone());
        self.waiting.extend(names.map(|name| (name, waiting.clone())));
    }

    /// A volume that once had its content keeps it when the content cannot be had again: containers go on with it.
    fn keep_volume(&mut self, maker: &Volumes<'_>, volume: &Volume) -> bool {
        let kept = self.volumes.get(&volume.name).cloned().or_else(|| maker.written(volume));
        kept.map(|place| self.volumes.insert(volume.name.clone(), place)).is_some()
    }

    async fn make_sandbox(&mut self) -> bool {
        let made = match self.presence {
            Presence::Alive(_) => return true,
            Presence::Absent | Presence::Remains => self.begin_sandbox().await,
            Presence::Unlinked(_) => Ok(()),
        };
        let made = match made {
            Ok(()) => self.attach_network().await,
            failed => failed,
        };
        if let Err(what) = &made {
            let message = format!("Failed to create pod sandbox: {what}");
            self.event(None, EventKind::Warning, "FailedCreatePodSandBox", message).await;
        }
        made.is_ok()
    }

    /// A class may ask for stronger walls than this runtime's: then there is no pod, rather than a weaker one.
    async fn check_runtime(&self) -> Result<(), String> {
        let class = self.pod.spec.runtime_class_name.as_deref().filter(|class| !class.is_empty());
        let Some(class) = class else { return Ok(()) };
        let handler = self.node.upstream.runtime_handler(class).await;
        let handler = handler.map_err(|error| format!("failed to get sandbox runtime: {}", chain(&error)))?;
        if HANDLERS.contains(&handler.as_str()) {
            return Ok(());
        }
        Err(format!("failed to get sandbox runtime: no runtime for {handler:?} is configured"))
    }

    async fn begin_sandbox(&mut self) -> Result<(), String> {
        self.check_runtime().await?;
        if self.record.ips.is_empty() && !self.pod.spec.host_network {
            let ips = self.node.addresses.take();
            self.record.ips = ips.ok_or("no pod address is free on this node")?;
        }
        if self.record.users.is_none() && self.pod.spec.has_own_users() {
            let users = self.node.users.take();
            self.record.users = Some(users.ok_or("no user ids for another pod are free on this node")?);
        }
        self.record.sandboxes += 1;
        self.record.boot.clone_from(&self.node.boot);
        self.record.host_resolv = Some(host_resolv());
        self.presence = Presence::Remains; // from here on something may be there
        self.save();
        Step::NoteSandbox.done();
        let qos = self.pod.status["qosClass"].as_str().unwrap_or("BestEffort");
        let made = self.node.cgroups.make_pod(qos, &self.record.pod.uid, self.node.config.pod_max_pids);
        made.map_err(|error| format!("make the pod's cgroup: {error}"))?;
        let sandbox = sandbox::spawn(&self.node, &self.pod, &self.record).await.map_err(|error| chain(&error))?;
        self.presence = Presence::Unlinked(sandbox);
        Ok(())
    }

    pub(super) async fn attach_network(&mut self) -> Result<(), String> {
        let Presence::Unlinked(sandbox) = &self.presence else { return Ok(()) };
        let attached = sandbox::attach(&self.node, &self.pod, &self.record, sandbox).await;
        for refused in attached.map_err(|error| format!("failed to set up the pod's network: {error}"))? {
            self.event(None, EventKind::Warning, "FailedHostPort", refused).await;
        }
        if let Presence::Unlinked(sandbox) = std::mem::take(&mut self.presence) {
            self.presence = Presence::Alive(sandbox);
        }
        Ok(())
    }

    /// Starts what the plan says, re-planning after each because starting takes time.
    pub(super) async fn start_containers(&mut self, plan: &mut Plan) {
        let mut tried = Vec::new();
        loop {
            self.show_waiting(plan).await;
            let next = plan.start.iter().find(|name| !tried.contains(*name) && !self.must_wait(name)).cloned();
            let Some(name) = next else { return };
            tried.push(name.clone());
            self.start_container(&name).await;
            if self.must_end() || self.presence.sandbox().is_none() {
                return;
            }
            *plan = self.plan();
        }
    }

    /// Containers waiting for their back-off show it, with an event when that begins.
    async fn show_waiting(&mut self, plan: &Plan) {
        for (name, _) in &plan.waiting {
            let seconds = self.record.containers.get(name).and_then(|record| record.back_off).map_or(0, |b| b.seconds);
            let pod = &self.record.pod;
            let whole = format!("{}_{}({})", pod.name, pod.namespace, pod.uid);
            let delay = whole_millis(std::time::Duration::from_secs(seconds.into()));
            let message = format!("back-off {delay} restarting failed container={name} pod={whole}");
            let shown = Waiting { reason: "CrashLoopBackOff", message: Some(message) };
            if self.waiting.insert(name.clone(), shown.clone()) != Some(shown) {
                let message = format!("Back-off restarting failed container {name} in pod {whole}");
                self.event(Some(name), EventKind::Warning, "BackOff", message).await;
            }
        }
    }

    async fn start_container(&mut self, name: &str) {
        let pod = self.pod.clone();
        let Some(container) = pod.spec.container(name) else { return };
        let Some(image) = self.get_image(container).await else { return };
        let first = self.record.containers.get(name).is_none_or(|record| record.runs == 0);
        if first {
            self.waiting.remove(name);
        }
        self.forget_last_run(name).await;
        let before = self.record.containers.get(name).cloned();
        let run = self.begin_run(container, &image);
        match self.launch(container, &image, &run).await {
            Ok(()) => {
                self.retries.remove(name);
                self.waiting.remove(name);
                self.save();
                Step::NoteStart.done();
                self.post_start(container).await;
            }
            Err(error) => {
                self.launch_failed(name, &run, before, error).await;
                self.save();
            }
        }
    }

    // ---- images ----

    async fn get_image(&mut self, container: &Container) -> Option<Image> {
        match self.obtain_image(container).await? {
            Ok(image) => Some(image),
            Err(error) => {
                self.image_failed(container, &error).await;
                None
            }
        }
    }

    /// Pulls an image that is not there, if one can; whoever starts its container says why not.
    pub(super) async fn fetch_ahead(&mut self, container: &Container) {
        if let Ok(true) = self.node.images.must_pull(&container.image, policy(container)) {
            drop(self.obtain_image(container).await);
        }
    }

    /// `None` when the pod must end meanwhile.
    async fn obtain_image(&mut self, container: &Container) -> Option<Result<Image, ImageError>> {
        let policy = policy(container);
        let (name, image) = (container.name.as_str(), container.image.as_str());
        let node = self.node.clone();
        let pulling = match node.images.must_pull(image, policy) {
            Ok(pulling) => pulling,
            Err(error) => return Some(Err(error)),
        };
        if pulling {
            self.event(Some(name), EventKind::Normal, "Pulling", format!("Pulling image {image:?}")).await;
            self.publish().await;
        }
        let credentials = if pulling { self.pull_credentials().await } else { Vec::new() };
        let began = tokio::time::Instant::now();
        let pulled = self.unless_stopped(node.images.ensure(image, policy, &credentials)).await?;
        if let Ok(found) = &pulled {
            let message = if pulling {
                let took = whole_millis(began.elapsed());
                let size = found.size;
                format!(
                    "Successfully pulled image {image:?} in {took} ({took} including waiting). Image size: {size} bytes."
                )
            } else {
                format!("Container image {image:?} already present on machine")
            };
            self.event(Some(name), EventKind::Normal, "Pulled", message).await;
        }
        Some(pulled)
    }

    /// What the pod's own secrets say about registries.
    async fn pull_credentials(&self) -> Vec<Credential> {
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for reference in &self.pod.spec.image_pull_secrets {
            match self.node.upstream.secret(&self.record.pod, &reference.name).await {
                Ok(secret) => found.extend(of_secret(&secret)),
                Err(error) => {
                    self.log_failure("read an image pull secret", &error);
                    missing.push(reference.name.clone());
                }
            }
        }
        if !missing.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            self.event(None, EventKind::Warning, "FailedToRetrieveImagePullSecret", message).await;
        }
        found
    }

    /// Waits for something slow while commands and reports still are taken, and what they change is told. `None` when the
    /// pod must end meanwhile.
    pub(super) async fn unless_stopped<T>(&mut self, slow: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(slow);
        loop {
            self.measure_if_due();
            let patience = self.end_of_patience();
            let wake = tokio::select! {
                done = &mut slow => return Some(done),
                wake = self.wait(patience) => wake,
            };
            match wake {
                Wake::Command(Some(command)) => self.take(command),
                Wake::Command(None) => return None,
                Wake::Link(event) => self.heard(event),
                Wake::Deadline => {}
            }
            if self.must_end() || self.presence.sandbox().is_none() {
                return None;
            }
            self.publish().await;
        }
    }

    async fn image_failed(&mut self, container: &Container, error: &ImageError) {
        let (name, image, text) = (container.name.as_str(), container.image.as_str(), chain(error));
        let (reason, back_off) = match error {
            ImageError::InvalidName(_) => ("InvalidImageName", false),
            ImageError::NeverPull { .. } => ("ErrImageNeverPull", false),
            _ => ("ErrImagePull", true),
        };
        let message = match reason {
            "InvalidImageName" => format!("Failed to apply default image tag {image:?}: {text}"),
            "ErrImageNeverPull" => text.clone(),
            _ => format!("Failed to pull image {image:?}: {text}"),
        };
        let event = if reason == "InvalidImageName" { "InspectFailed" } else { "Failed" };
        self.event(Some(name), EventKind::Warning, if reason == "ErrImageNeverPull" { reason } else { event }, message)
            .await;
        self.event(Some(name), EventKind::Warning, "Failed", format!("Error: {reason}")).await;
        self.waiting.insert(name.to_owned(), Waiting { reason, message: Some(text.clone()) });
        self.publish().await;
        let wait = self.pull_back_off(name);
        if back_off {
            let message = format!("Back-off pulling image {image:?}: {reason}: {text}");
            self.event(Some(name), EventKind::Normal, "BackOff", format!("Back-off pulling image {image:?}")).await;
            self.event(Some(name), EventKind::Warning, "Failed", "Error: ImagePullBackOff".to_owned()).await;
            self.waiting.insert(name.to_owned(), Waiting { reason: "ImagePullBackOff", message: Some(message) });
        }
        self.retries.insert(name.to_owned(), super::Retry { at: tokio::time::Instant::now() + wait, wait });
    }

    /// 10 s, doubling up to 5 min.
    fn pull_back_off(&self, name: &str) -> std::time::Duration {
        const FIRST: std::time::Duration = std::time::Duration::from_secs(10);
        const LONGEST: std::time::Duration = std::time::Duration::from_secs(300);
        self.retries.get(name).map_or(FIRST, |retry| (retry.wait * 2).clamp(FIRST, LONGEST))
    }

    // ---- runs ----

    /// Undoes a run that was noted but never started: the agent died in between.
    pub(super) async fn take_back_run(&mut self, name: &str) {
        self.forget_run(name).await;
        let Some(record) = self.record.containers.get_mut(name) else { return };
        take_back(record);
        let run = record.runs;
        self.remove_logs(name, run); // the run that gets this number writes its own
    }

    /// The pod process and the disk forget the last run; its log stays for `--previous`.
    async fn forget_last_run(&mut self, name: &str) {
        self.forget_run(name).await;
        let runs = self.record.containers.get(name).map_or(0, |record| record.runs);
        if let Some(old) = runs.checked_sub(2) {
            self.remove_logs(name, old);
        }
    }

    async fn forget_run(&mut self, name: &str) {
        let Some(run) = self.record.containers.get(name).and_then(|record| record.current.clone()) else { return };
        if let Some(sandbox) = self.presence.sandbox()
            && let Err(error) = sandbox.link.tell(Op::Delete { container: run.name.clone() }).await
            && !matches!(&error, LinkError::Failed(failure) if failure.kind == FailureKind::NotFound)
        {
            self.log_failure("delete a container", &error);
        }
        Step::DeleteContainer.done();
        if let Err(error) = remove_run(&self.node, &self.record.pod.uid, &run.name).await {
            self.log_failure("remove a container's files", &error);
        }
        Step::RemoveRun.done();
    }

    fn remove_logs(&self, name: &str, run: u32) {
        if let Err(error) = crate::logs::remove(&self.node.log_file(&self.record.pod.uid, name, run)) {
            self.log_failure("remove an old log", &error);
        }
    }

    /// Notes a new run before anything of it exists.
    fn begin_run(&mut self, container: &Container, image: &Image) -> Run {
        let record = self.record.containers.entry(container.name.clone()).or_default();
        let again = record.runs > 0 && record.end().is_some();
        if again {
            record.back_off = next_back_off(record, Timestamp::now());
        }
        let run = Run {
            name: format!("{}-{}", container.name, record.runs),
            id: format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple()),
            image: image.name.clone(),
            image_id: image.id.clone(),
            asked: container.image.clone(),
            outdated: false,
            user: None,
            resources: Some(container.resources.clone()),
            stop_signal: container.lifecycle.stop_signal.clone().or_else(|| image.config.stop_signal.clone()),
            sandbox: self.record.sandboxes,
            started_at: None,
            end: None,
        };
        if let Some(end) = record.end().cloned() {
            record.last = Some(end);
        }
        record.runs += 1;
        record.current = Some(run.clone());
        self.save();
        Step::NoteRun.done();
        run
    }

    async fn launch(&mut self, container: &Container, image: &Image, run: &Run) -> Result<(), LaunchError> {
        let Some(sandbox) = self.presence.sandbox() else { return Err(LinkError::Gone.into()) };
        let link = sandbox.link.clone();
        let (facts, name) = (self.facts(), container.name.as_str());
        let launch = Launch {
            node: &self.node,
            pod: &self.pod,
            record: &self.record,
            container,
            image,
            volumes: &self.volumes,
            facts: &facts,
            sandbox,
            number: self.record.containers.get(name).map_or(0, |record| record.runs.saturating_sub(1)),
            run: &run.name,
        };
        let Launched { live, user } = launch.create().await?;
        Step::CreateContainer.done();
        self.created(name).await;
        link.tell(Op::Start { container: run.name.clone() }).await.map_err(LaunchError::of_start)?;
        Step::StartContainer.done();
        if let Some(run) = self.record.containers.get_mut(name).and_then(|record| record.current.as_mut()) {
            run.user = Some(user);
            run.started_at.get_or_insert_with(Timestamp::now);
        }
        let uid = self.record.pod.uid.clone();
        let entry = || LivePod { link, containers: HashMap::new() };
        self.node.live().pods.entry(uid).or_insert_with(entry).containers.insert(name.to_owned(), live);
        self.event(Some(name), EventKind::Normal, "Started", format!("Started container {name}")).await;
        self.watch_health(name);
        Ok(())
    }

    async fn created(&self, name: &str) {
        self.event(Some(name), EventKind::Normal, "Created", format!("Created container: {name}")).await;
    }

    async fn launch_failed(&mut self, name: &str, run: &Run, before: Option<ContainerRecord>, error: LaunchError) {
        let text = chain(&error);
        // Elsewhere making its processes is the start of a container, which has been created by then.
        if matches!(error, LaunchError::CannotCreate(_)) {
            self.created(name).await;
        }
        self.event(Some(name), EventKind::Warning, "Failed", format!("Error: {text}")).await;
        if matches!(error, LaunchError::CannotCreate(_) | LaunchError::CannotStart(_)) {
            self.forget_run(name).await;
            self.could_not_run(name, run, text);
            return;
        }
        self.take_back_run(name).await;
        if let Some(before) = before {
            self.record.containers.insert(name.to_owned(), before); // its end and its back-off count on
        }
        self.waiting.insert(name.to_owned(), Waiting { reason: error.reason(), message: Some(text) });
        self.retry_later(name);
    }

    /// The program itself is at fault: this counts as a run that failed, as other runtimes tell it.
    fn could_not_run(&mut self, name: &str, run: &Run, text: String) {
        let Some(record) = self.record.containers.get_mut(name) else { return };
        let end = End {
            exit_code: NOT_STARTED,
            reason: "StartError".into(),
            message: Some(text.clone()),
            started_at: Some(Timestamp::UNIX_EPOCH),
            finished_at: Some(Timestamp::now()),
            id: run.id.clone(),
        };
        if let Some(current) = record.current.as_mut() {
            current.end = Some(end);
        }
        record.back_off.get_or_insert(BackOff { seconds: 10, since: Timestamp::now() });
        // One that never runs again is not waited for: it ended so.
        if runs_again(&self.pod.spec, name, NOT_STARTED) {
            self.waiting.insert(name.to_owned(), Waiting { reason: "RunContainerError", message: Some(text) });
        } else {
            self.waiting.remove(name);
        }
    }
}

fn policy(container: &Container) -> PullPolicy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        _ => PullPolicy::IfNotPresent,
    }
}

/// A time as Go writes it, without what is less than a millisecond: `234ms`, `1.5s`, `2m0.75s`.
fn whole_millis(time: std::time::Duration) -> String {
    let (seconds, millis) = (time.as_secs(), time.subsec_millis());
    if seconds == 0 && millis > 0 {
        return format!("{millis}ms");
    }
    let fraction = if millis == 0 { String::new() } else { format!(".{millis:03}").trim_end_matches('0').to_owned() };
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}{fraction}s"),
        (0, _) => format!("{minutes}m{seconds}{fraction}s"),
        _ => format!("{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

/// A run that never began is no run: the numbers go back, the end before it stays known.
fn take_back(record: &mut ContainerRecord) {
    record.runs = record.runs.saturating_sub(1);
    record.current = None;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_does() {
        let of = |micros| whole_millis(std::time::Duration::from_micros(micros));
        let written =
            [999, 1_000, 234_567, 1_000_000, 1_234_999, 10_500_000, 60_000_000, 62_050_000, 3_600_000_000].map(of);
        assert_eq!(written, ["0s", "1ms", "234ms", "1s", "1.234s", "10.5s", "1m0s", "1m2.05s", "1h0m0s"]);
    }
}
