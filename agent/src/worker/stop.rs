//! Taking down: preStop, the stop signal, the grace period, SIGKILL; then the teardown steps and the last word.

mod turns;

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use pod::protocol::Op;
use tokio::time::Instant;

use super::{Command, RETRY, Wake, Worker};
use crate::boundary::{EventKind, UpstreamError};
use crate::model::Container;
use crate::probe::Failure;
use crate::process_link::LinkEvent;
use crate::step::{Part, Step};
use turns::{Ending, Endings, First, Limits, Place, Signal};

const DEFAULT_GRACE: i64 = 30;
/// A pod whose object is gone has nobody to be graceful for; still it may finish a write.
const GONE_GRACE: i64 = 1;
/// What a container gets between its stop signal and SIGKILL, whatever was used up before.
const LEAST_GRACE: Duration = Duration::from_secs(2);
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
    fn has(self, container: &Container) -> bool {
        match self {
            Scope::Pod => true,
            Scope::Container(kill) => container.name == kill.container,
        }
    }

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
        self.node.take_back(&self.record.ips, self.record.users);
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

    /// Stops all containers, or one; `turns` says in which order.
    pub(super) async fn stop_containers(&mut self, only: Option<Kill<'_>>) {
        if self.presence.sandbox().is_none() {
            return;
        }
        let (began, scope) = (Instant::now(), only.as_ref().map_or(Scope::Pod, Scope::Container));
        let (mut endings, mut hooks) = self.begin_ends(scope).await;
        if endings.0.is_empty() {
            return;
        }
        loop {
            let running = if self.presence.sandbox().is_some() { self.running_runs() } else { Vec::new() };
            endings.see(|run| running.iter().any(|(_, running)| running == run));
            let least = if self.gone { Duration::ZERO } else { LEAST_GRACE };
            let limits = Limits { deadline: began + scope.grace(self), least };
            let now = Instant::now();
            if now >= limits.deadline {
                hooks.clear();
            }
            self.send(&endings.step(now, limits), &endings).await;
            let Some(at) = endings.wake_at(limits) else { break };
            let wake = tokio::select! {
                Some((number, outcome)) = hooks.next() => {
                    endings.hook_over(number);
                    self.tell_pre_stop(&endings.0[number].name, outcome).await;
                    continue;
                }
                wake = self.wait(Some(at)) => wake,
            };
            self.while_stopping(wake, at).await;
        }
        Step::AwaitEnds.done();
        self.save();
    }

    /// Says which containers end, and gets their hooks ready: these run when they are polled.
    async fn begin_ends(
        &mut self,
        scope: Scope<'_>,
    ) -> (Endings, FuturesUnordered<impl Future<Output = (usize, Result<(), Failure>)> + use<>>) {
        let pod = self.pod.clone();
        let running: HashMap<String, String> = self.running_runs().into_iter().collect();
        let (mut endings, hooks) = (Vec::new(), FuturesUnordered::new());
        for (container, place) in Place::of_all(&pod.spec).filter(|(container, _)| scope.has(container)) {
            let Some(run) = running.get(&container.name) else { continue };
            self.tell_killing(container, scope).await;
            let (number, hook) = (endings.len(), self.pre_stop(container, scope.grace(self)));
            let first = if hook.is_some() { First::Hook } else { First::Turn };
            if let Some(hook) = hook {
                hooks.push(async move { (number, hook.await) });
            }
            endings.push(Ending::new(container.name.clone(), run.clone(), place, first));
        }
        (Endings(endings), hooks)
    }

    async fn tell_killing(&mut self, container: &Container, scope: Scope<'_>) {
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

    async fn send(&self, signals: &[(usize, Signal)], endings: &Endings) {
        for (number, signal) in signals {
            let ending = &endings.0[*number];
            let signal = match signal {
                Signal::Stop => self.stop_signal(&ending.name),
                Signal::Kill => libc::SIGKILL,
            };
            self.signal(&ending.run, signal).await;
        }
        if signals.iter().any(|(_, signal)| *signal == Signal::Stop) {
            Step::SignalContainers.done();
        }
    }

    async fn tell_pre_stop(&self, name: &str, outcome: Result<(), Failure>) {
        if let Err(why) = outcome {
            tracing::warn!(uid = %self.record.pod.uid, container = name, ?why, "preStop hook failed");
            self.event(Some(name), EventKind::Warning, "FailedPreStopHook", "PreStopHook failed".to_owned()).await;
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
