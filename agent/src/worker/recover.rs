//! What an earlier agent left: a pod process that lives goes on, the remains of one are cleaned away.

use jiff::Timestamp;
use pod::protocol::ContainerState;

use super::Worker;
use crate::boundary::EventKind;
use crate::record::{End, Progress};
use crate::sandbox::{self, Presence};
use crate::step::Part;

/// How a container ended that nobody saw end.
#[derive(Clone, Copy)]
struct Loss {
    exit_code: i32,
    reason: &'static str,
    message: &'static str,
}

/// Its pod process died, or forgot it.
const LOST: Loss = Loss {
    exit_code: 137,
    reason: "ContainerStatusUnknown",
    message: "The container could not be located when the pod was terminated",
};
/// The machine went down under it.
const REBOOTED: Loss =
    Loss { exit_code: 255, reason: "Unknown", message: "The node was restarted while the container ran" };

impl Worker {
    /// Looks at what there is. What must be cleaned away, or stopped, is so by the steps that follow.
    pub(super) async fn recover(&mut self) {
        match sandbox::find(&self.node, &self.record).await {
            Ok(presence) => self.presence = presence,
            Err(error) => {
                self.log_failure("adopt the pod process", &error);
                self.presence = Presence::Remains;
            }
        }
        if self.presence.sandbox().is_some() {
            // What fails is tried again by the steps that follow, and told there.
            if let Err(error) = self.attach_network().await {
                tracing::warn!(uid = %self.record.pod.uid, error, "adopt the pod's network");
            }
            self.adopted().await;
        }
        self.node.live().adopting.remove(&self.record.pod.uid);
        self.node.changes.send_modify(|count| *count += 1);
    }

    async fn adopted(&mut self) {
        let Some(sandbox) = self.presence.sandbox() else { return };
        let states: Vec<ContainerState> = sandbox.state.containers.clone();
        let protocol = sandbox.state.version;
        tracing::info!(pod = %self.record.pod.name, uid = %self.record.pod.uid, protocol, "pod process adopted");
        for state in &states {
            self.container_state(state);
        }
        for (name, run) in self.running_runs() {
            if self.only_noted(&name) {
                self.take_back_run(&name).await;
            } else if !states.iter().any(|state| state.container == run) {
                self.container_lost(&name);
            }
        }
        self.save();
        self.go_live();
        for (name, _) in self.running_runs() {
            self.watch_health(&name);
        }
    }

    /// The pod process died: whatever ran in it is killed, and how it would have ended is unknown.
    pub(super) async fn lost_sandbox(&mut self) {
        self.leave_live();
        self.runs_lost().await;
        self.save();
        let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
        self.event(None, EventKind::Normal, "SandboxChanged", message).await;
        self.publish().await; // nothing is ready now: services must know at once
        self.clear(Part::Sandbox).await;
    }

    /// Nothing of the pod runs any more.
    pub(super) async fn runs_lost(&mut self) {
        for (name, _) in self.running_runs() {
            if self.only_noted(&name) {
                self.take_back_run(&name).await;
            } else {
                self.container_lost(&name);
            }
        }
    }

    fn only_noted(&self, name: &str) -> bool {
        let run = self.record.containers.get(name).and_then(|record| record.current.as_ref());
        run.is_some_and(|run| run.progress() == Progress::Noted)
    }

    fn container_lost(&mut self, name: &str) {
        self.probes.stop(name);
        self.health.remove(name);
        let rebooted = self.record.boot != self.node.boot && !self.record.boot.is_empty();
        let loss = if rebooted { REBOOTED } else { LOST };
        let Some(record) = self.record.containers.get_mut(name) else { return };
        if rebooted {
            record.back_off = None; // it was not at fault
        }
        if let Some(run) = &mut record.current {
            run.end = Some(End {
                exit_code: loss.exit_code,
                reason: loss.reason.into(),
                message: Some(loss.message.into()),
                started_at: run.started_at,
                finished_at: Some(Timestamp::now()),
                id: run.id.clone(),
            });
        }
    }
}
