//! Taking down: preStop, the stop signal, the grace period, SIGKILL; then the teardown steps and the last word.

use std::time::Duration;

use jiff::Timestamp;
use pod::protocol::Op;
use tokio::time::Instant;

use super::{Command, RETRY, Wake, Worker};
use crate::boundary::{EventKind, UpstreamError};
use crate::link::LinkEvent;
use crate::model::Container;
use crate::probe::Failure;
use crate::step::{Part, Step};

const DEFAULT_GRACE: i64 = 30;
/// A pod whose object is gone has nobody to be graceful for; still it may finish a write.
const GONE_GRACE: i64 = 1;
/// What a container gets between its stop signal and SIGKILL, whatever was used up before.
const LEAST_GRACE: Duration = Duration::from_secs(2);
/// After SIGKILL only a process stuck in the kernel remains.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// One container that is to stop, and what is said about it.
pub(super) struct Kill<'a> {
    pub container: &'a str,
    pub grace: Duration,
    pub message: String,
}

/// How much of the pod stops, and in which time.
#[derive(Clone, Copy)]
enum Scope<'a> {
    /// All of it, in the time that its object gives by now.
    Pod,
    Container(&'a Kill<'a>),
}

impl Scope<'_> {
    fn grace(self, worker: &Worker) -> Duration {
        match self {
            Scope::Pod => worker.grace(),
            Scope::Container(kill) => kill.grace,
        }
    }
}

impl Worker {
    /// Ends the pod for good.
    pub(super) async fn stop(mut self) {
        if self.record.stopping.is_none() {
            self.record.stopping = Some(Timestamp::now());
            self.save();
            Step::NoteStop.done();
        }
        self.stop_containers(None).await;
        self.runs_lost().await;
        self.save();
        Step::NoteEnds.done();
        self.probes.stop_all();
        self.leave_live();
        self.presence.lose();
        self.publish().await;
        self.clear(Part::Whole).await;
        self.say_removed().await;
        Step::ReportRemoval.done();
        if let Err(error) = self.node.records.remove(&self.record.pod.uid) {
            self.log_failure("remove the pod's record", &error);
        }
        Step::RemoveRecord.done();
        self.node.take_back(self.record.ip, self.record.users);
    }

    async fn say_removed(&mut self) {
        let mut wait = RETRY.0;
        while !self.gone {
            match self.node.upstream.pod_removed(&self.record.pod).await {
                Ok(()) | Err(UpstreamError::NotFound(_)) => return,
                Err(error) => self.log_failure("report the pod's removal", &error),
            }
            let sleep = tokio::time::sleep(wait);
            tokio::pin!(sleep);
            tokio::select! {
                () = &mut sleep => {}
                command = self.commands.recv() => match command {
                    Some(command) => self.take(command),
                    None => return,
                },
            }
            wait = (wait * 2).min(RETRY.1);
        }
    }

    pub(super) fn grace(&self) -> Duration {
        let metadata = &self.pod.metadata;
        let asked = metadata.deletion_grace_period_seconds.or(self.pod.spec.termination_grace_period_seconds);
        let seconds = if self.gone { GONE_GRACE } else { asked.unwrap_or(DEFAULT_GRACE).max(1) };
        let grace = grace_of(seconds);
        self.most_grace.map_or(grace, |most| grace.min(most))
    }

    /// Stops all containers, or one. Sidecars go after the main containers, the last one first.
    pub(super) async fn stop_containers(&mut self, only: Option<Kill<'_>>) {
        if self.presence.sandbox().is_none() {
            return;
        }
        let (began, pod) = (Instant::now(), self.pod.clone());
        let chosen = |container: &&Container| only.as_ref().is_none_or(|kill| container.name == kill.container);
        let main = pod.spec.containers.iter().chain(&pod.spec.ephemeral_containers).filter(chosen).collect();
        let sidecars = pod.spec.init_containers.iter().rev().filter(chosen).map(|container| vec![container]);
        let scope = only.as_ref().map_or(Scope::Pod, Scope::Container);
        for group in std::iter::once(main).chain(sidecars) {
            self.stop_group(&group, began, scope).await;
        }
    }

    async fn stop_group(&mut self, group: &[&Container], began: Instant, scope: Scope<'_>) {
        let running = self.running_runs();
        let group: Vec<(&Container, String)> = group
            .iter()
            .filter_map(|container| {
                let (_, run) = running.iter().find(|(name, _)| *name == container.name)?;
                Some((*container, run.clone()))
            })
            .collect();
        if group.is_empty() {
            return;
        }
        for (container, _) in &group {
            let message = match scope {
                Scope::Pod => {
                    // Services are to know how a pod fares that still serves its last requests.
                    self.probes.keep_readiness(&container.name);
                    format!("Stopping container {}", container.name)
                }
                Scope::Container(kill) => {
                    self.probes.stop(&container.name);
                    kill.message.clone()
                }
            };
            self.event(Some(&container.name), EventKind::Normal, "Killing", message).await;
        }
        let runs: Vec<String> = group.iter().map(|(_, run)| run.clone()).collect();
        let containers: Vec<&Container> = group.iter().map(|(container, _)| *container).collect();
        self.run_pre_stop(&containers, &runs, |worker| began + scope.grace(worker)).await;
        for (container, run) in &group {
            let signal = self.stop_signal(&container.name);
            self.signal(run, signal).await;
        }
        Step::SignalContainers.done();
        // However long the hooks took.
        let least = Instant::now() + if self.gone { Duration::ZERO } else { LEAST_GRACE };
        self.wait_for_ends(&runs, |worker| (began + scope.grace(worker)).max(least)).await;
        for run in &runs {
            if self.runs(run) {
                self.signal(run, libc::SIGKILL).await;
            }
        }
        let last = Instant::now() + KILL_PATIENCE;
        self.wait_for_ends(&runs, |_| last).await;
        Step::AwaitEnds.done();
        self.save();
    }

    /// Runs the hooks of containers until all are through, none of the containers runs any more, or time is up.
    async fn run_pre_stop(&mut self, group: &[&Container], runs: &[String], deadline: impl Fn(&Worker) -> Instant) {
        let left = deadline(self).saturating_duration_since(Instant::now());
        let hooks =
            group.iter().filter_map(|container| Some((container.name.clone(), self.pre_stop(container, left)?)));
        let hooks: Vec<_> = hooks.map(|(name, hook)| async move { (name, hook.await) }).collect();
        if hooks.is_empty() {
            return;
        }
        let hooks = futures::future::join_all(hooks);
        tokio::pin!(hooks);
        while runs.iter().any(|run| self.runs(run)) {
            let at = deadline(self);
            let wake = tokio::select! {
                outcomes = &mut hooks => {
                    for (name, outcome) in outcomes {
                        self.tell_pre_stop(&name, outcome).await;
                    }
                    return;
                }
                wake = self.wait(Some(at)) => wake,
            };
            self.while_stopping(wake, at).await;
            if Instant::now() >= deadline(self) {
                return;
            }
        }
    }

    async fn tell_pre_stop(&self, name: &str, outcome: Result<(), Failure>) {
        if let Err(why) = outcome {
            tracing::warn!(uid = %self.record.pod.uid, container = name, ?why, "preStop hook failed");
            self.event(Some(name), EventKind::Warning, "FailedPreStopHook", "PreStopHook failed".to_owned()).await;
        }
    }

    fn runs(&self, run: &str) -> bool {
        self.presence.sandbox().is_some() && self.running_runs().iter().any(|(_, running)| running == run)
    }

    async fn wait_for_ends(&mut self, runs: &[String], deadline: impl Fn(&Worker) -> Instant) {
        while runs.iter().any(|run| self.runs(run)) {
            let at = deadline(self);
            let wake = self.wait(Some(at)).await;
            self.while_stopping(wake, at).await;
            if Instant::now() >= deadline(self) {
                return;
            }
        }
    }

    /// Takes what comes while containers end; what it changes is told at once.
    async fn while_stopping(&mut self, wake: Wake, deadline: Instant) {
        match wake {
            Wake::Command(Some(Command::Gone)) => self.gone = true,
            Wake::Command(Some(command)) => self.take(command),
            Wake::Command(None) => tokio::time::sleep_until(deadline).await, // told to leave: the kernel objects stay
            Wake::Link(Some(event @ LinkEvent::Exited(_))) => self.heard(Some(event)),
            Wake::Link(_) => self.presence.lose(),
            Wake::Deadline => {}
        }
        self.publish().await;
    }

    async fn signal(&self, run: &str, signal: i32) {
        let Some(sandbox) = self.presence.sandbox() else { return };
        if let Err(error) = sandbox.link.tell(Op::Signal { container: run.to_owned(), signal }).await {
            self.log_failure("signal a container", &error);
        }
    }

    fn stop_signal(&self, name: &str) -> i32 {
        let run = self.record.containers.get(name).and_then(|record| record.current.as_ref());
        run.and_then(|run| run.stop_signal.as_deref()).and_then(signal_number).unwrap_or(libc::SIGTERM)
    }
}

/// `SIGQUIT`, `QUIT` or `3`.
fn signal_number(name: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 30] = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ILL", libc::SIGILL),
        ("TRAP", libc::SIGTRAP),
        ("ABRT", libc::SIGABRT),
        ("BUS", libc::SIGBUS),
        ("FPE", libc::SIGFPE),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("SEGV", libc::SIGSEGV),
        ("USR2", libc::SIGUSR2),
        ("PIPE", libc::SIGPIPE),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
        ("CHLD", libc::SIGCHLD),
        ("CONT", libc::SIGCONT),
        ("STOP", libc::SIGSTOP),
        ("TSTP", libc::SIGTSTP),
        ("TTIN", libc::SIGTTIN),
        ("TTOU", libc::SIGTTOU),
        ("URG", libc::SIGURG),
        ("XCPU", libc::SIGXCPU),
        ("XFSZ", libc::SIGXFSZ),
        ("VTALRM", libc::SIGVTALRM),
        ("PROF", libc::SIGPROF),
        ("WINCH", libc::SIGWINCH),
        ("IO", libc::SIGIO),
        ("PWR", libc::SIGPWR),
        ("SYS", libc::SIGSYS),
    ];
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let short = name.trim_start_matches("SIG");
    if let Some(offset) = short.strip_prefix("RTMIN+") {
        return offset.parse::<i32>().ok().map(|offset| libc::SIGRTMIN() + offset);
    }
    NAMES.iter().find(|(known, _)| *known == short).map(|(_, number)| *number)
}

/// Whoever asks for more is not there any more to see it, and the clock has no room for all that can be asked.
const LONGEST_GRACE: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A time that pods give their containers to end by themselves.
pub(super) fn grace_of(seconds: i64) -> Duration {
    Duration::from_secs(seconds.max(0).unsigned_abs()).min(LONGEST_GRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_end_is_one_that_comes() {
        for (seconds, expected) in [(0, 0), (30, 30), (i64::MIN, 0), (i64::MAX, LONGEST_GRACE.as_secs())] {
            assert_eq!(grace_of(seconds), Duration::from_secs(expected), "{seconds}");
            let _ = Instant::now() + grace_of(seconds);
        }
    }

    #[test]
    fn signals_by_name_and_number() {
        assert_eq!(signal_number("SIGQUIT"), Some(libc::SIGQUIT));
        assert_eq!(signal_number("USR1"), Some(libc::SIGUSR1));
        assert_eq!(signal_number("15"), Some(15));
        assert_eq!(signal_number("SIGRTMIN+3"), Some(libc::SIGRTMIN() + 3));
        assert_eq!(signal_number("SIGNOTHING"), None);
        assert_eq!(signal_number("99"), None);
    }
}
