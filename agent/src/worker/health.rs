//! What probes mean for a container, and the hooks around its life.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use super::stop::Kill;
use super::{Command, Worker};
use crate::boundary::EventKind;
use crate::model::{Container, Probe};
use crate::probe::{Failure, Kind, Target, Verdict, run_handler};
use crate::status::Health;

/// A hook has no time limit of its own; the pod may be stopped at any time.
const HOOK_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

impl Worker {
    /// Begins watching a container that has just been started (or adopted).
    pub(super) fn watch_health(&mut self, name: &str) {
        let pod = self.pod.clone();
        let Some(container) = pod.spec.container(name) else { return };
        let started = container.startup_probe.is_none();
        self.health.insert(name.to_owned(), Health { started, ready: started && container.readiness_probe.is_none() });
        match &container.startup_probe {
            Some(probe) => self.start_probe(container, Kind::Startup, probe),
            None => self.watch_started(container),
        }
    }

    fn watch_started(&mut self, container: &Container) {
        for (kind, probe) in
            [(Kind::Readiness, &container.readiness_probe), (Kind::Liveness, &container.liveness_probe)]
        {
            if let Some(probe) = probe {
                self.start_probe(container, kind, probe);
            }
        }
    }

    fn start_probe(&mut self, container: &Container, kind: Kind, probe: &Probe) {
        let Some(run) = self.run_name(&container.name) else { return };
        let own = self.own.clone();
        let tell = move |verdict| match own.send(Command::Probe(verdict)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        self.probes.start(self.target(container), &run, kind, probe.clone(), tell);
    }

    fn target(&self, container: &Container) -> Target {
        let ip = self.ips().first().copied();
        Target { node: self.node.clone(), uid: self.record.pod.uid.clone(), ip, container: Arc::new(container.clone()) }
    }

    fn run_name(&self, name: &str) -> Option<String> {
        self.record.containers.get(name)?.current.as_ref().filter(|run| run.end.is_none()).map(|run| run.name.clone())
    }

    /// Takes a probe's result; what needs waiting is left to the next step.
    pub(super) fn judge(&mut self, verdict: Verdict) {
        if self.run_name(&verdict.container).as_ref() != Some(&verdict.run) {
            return; // about a run that is over
        }
        if let Some(failure) = &verdict.failure {
            self.notices.push((verdict.container.clone(), "Unhealthy", failure.of_probe(verdict.kind)));
        }
        let Some(good) = verdict.changed else { return };
        let Some(health) = self.health.get_mut(&verdict.container) else { return };
        match (verdict.kind, good) {
            (Kind::Readiness, good) => health.ready = good,
            (Kind::Startup, true) => self.has_started(&verdict.container),
            (Kind::Liveness, true) => {}
            (Kind::Startup | Kind::Liveness, false) => self.condemned.push((verdict.container, verdict.kind)),
        }
    }

    fn has_started(&mut self, name: &str) {
        let pod = self.pod.clone();
        let Some(container) = pod.spec.container(name) else { return };
        self.health.insert(name.to_owned(), Health { started: true, ready: container.readiness_probe.is_none() });
        self.watch_started(container);
    }

    /// Says what probes found, and ends containers they have given up.
    pub(super) async fn act_on_health(&mut self) {
        for (container, reason, message) in std::mem::take(&mut self.notices) {
            self.event(Some(&container), EventKind::Warning, reason, message).await;
        }
        for (name, kind) in std::mem::take(&mut self.condemned) {
            let pod = self.pod.clone();
            let Some(container) = pod.spec.container(&name) else { continue };
            let probe = if kind == Kind::Startup { &container.startup_probe } else { &container.liveness_probe };
            let own = probe.as_ref().and_then(|probe| probe.termination_grace_period_seconds);
            let seconds = own.or(pod.spec.termination_grace_period_seconds).unwrap_or(30).max(1);
            let what = kind.name().to_lowercase();
            let message = format!("Container {name} failed {what} probe, will be restarted");
            let grace = super::stop::grace_of(seconds);
            self.stop_containers(Some(Kill { container: &name, grace, message })).await;
        }
    }

    /// A hook that fails costs the container its life, and the plan decides about the next. Until it is through the pod
    /// waits with its next container and does not call this one running, as the API says; everything else goes on.
    pub(super) async fn post_start(&mut self, container: &Container) {
        let Some(handler) = &container.lifecycle.post_start else { return };
        let target = self.target(container);
        self.starting = Some(container.name.clone());
        self.publish().await;
        let outcome = self.unless_stopped(run_handler(&target, handler, HOOK_TIMEOUT)).await;
        self.starting = None;
        let Some(outcome) = outcome else { return };
        if let Err(why) = outcome {
            // What the hook said may be secret: it is not told to those who read events.
            tracing::warn!(uid = %self.record.pod.uid, container = container.name, ?why, "postStart hook failed");
            let message = "PostStartHook failed".to_owned();
            self.event(Some(&container.name), EventKind::Warning, "FailedPostStartHook", message).await;
            let (container, message) = (container.name.as_str(), "FailedPostStartHook".to_owned());
            self.stop_containers(Some(Kill { container, grace: self.grace(), message })).await;
        }
    }

    /// The container's hook, ready to be waited for.
    pub(super) fn pre_stop(
        &self,
        container: &Container,
        left: Duration,
    ) -> Option<impl Future<Output = Result<(), Failure>> + use<>> {
        let handler = container.lifecycle.pre_stop.clone()?;
        let target = self.target(container);
        Some(async move { run_handler(&target, &handler, left).await })
    }
}
