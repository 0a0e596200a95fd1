//! What the pod has written against what it may: measured aside, judged here.

use std::io;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Command, Worker};
use crate::boundary::EventKind;
use crate::record::Finished;
use crate::storage::{Candidate, Eviction, Limits, Places, Usage};

/// The first look comes soon, since pods write most at their beginning; later ones come this often at the most.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// And never so often that measuring takes more than this part of the time.
const SHARE: u32 = 10;
/// For one measurement; and for one on which the room of the whole node depends, which takes what is known by then.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3));
/// What an evicted pod gets to end.
const GRACE: Duration = Duration::from_secs(1);

/// When the pod's files are measured.
#[derive(Clone, Copy, Debug, Default)]
pub enum Look {
    /// It set no limits, or nothing of it is here.
    #[default]
    Never,
    At(Instant, Duration),
    /// Under way; so long was waited for it.
    Now(Duration),
}

/// A measurement, and how long it took.
#[derive(Debug)]
pub struct Measured {
    usage: io::Result<Usage>,
    took: Duration,
}

impl Worker {
    /// Begins a measurement when one is due.
    pub(super) fn measure_if_due(&mut self) {
        let here = self.presence.sandbox().is_some() && self.record.finished.is_none();
        let limited = here && !Limits::of(&self.pod.spec).is_empty();
        self.look = match self.look {
            _ if !limited => Look::Never,
            Look::Never => Look::At(Instant::now() + WAIT.0, WAIT.0),
            Look::At(at, wait) if at <= Instant::now() => {
                self.measure();
                Look::Now(wait)
            }
            look => look,
        };
    }

    pub(super) fn next_look(&self) -> Option<Instant> {
        if let Look::At(at, _) = self.look { Some(at) } else { None }
    }

    fn places(&self) -> Places {
        let current = self.record.containers.iter().filter_map(|(name, record)| Some((name, record.current.as_ref()?)));
        let runs = current.map(|(name, run)| (name.clone(), run.name.clone())).collect();
        Places::of(&self.record.pod.uid, &self.pod.spec, runs)
    }

    fn measure(&self) {
        let (places, node, own) = (self.places(), self.node.clone(), self.own.clone());
        tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let usage = places.measure(&node, PATIENCE.0);
            // A worker that is gone needs no answer.
            let _ = own.send(Command::Measured(Measured { usage, took: began.elapsed() }));
        });
    }

    pub(super) fn measured(&mut self, measured: Measured) {
        if let Look::Now(wait) = self.look {
            let wait = (wait * 2).min(WAIT.1).max(measured.took * SHARE);
            self.look = Look::At(Instant::now() + wait, wait.min(WAIT.1));
        }
        match measured.usage {
            Ok(usage) => self.eviction = self.eviction.take().or_else(|| Limits::of(&self.pod.spec).exceeded(&usage)),
            Err(error) => self.log_failure("measure what the pod has written", &error),
        }
    }

    /// For the choice among the node's pods. One of which nothing is here any more has no part in it.
    pub(super) fn weigh(&self, reply: oneshot::Sender<Candidate>) {
        if self.presence.sandbox().is_none() || self.record.finished.is_some() || self.must_stop() {
            return;
        }
        let (places, node, spec) = (self.places(), self.node.clone(), self.pod.clone());
        tokio::task::spawn_blocking(move || match places.measure(&node, PATIENCE.1) {
            // Who asked may have given up waiting.
            Ok(usage) => drop(reply.send(Candidate { uid: places.uid, spec, usage })),
            Err(error) => tracing::warn!(uid = %places.uid, %error, "weigh a pod"),
        });
    }

    /// Ends the pod because of what it, or the node's pods together, took.
    pub(super) async fn evict(&mut self, eviction: Eviction) {
        if self.record.finished.is_some() {
            return;
        }
        self.event(None, EventKind::Warning, "Evicted", eviction.message.clone()).await;
        self.most_grace = Some(GRACE);
        self.finish(Finished::failed("Evicted", eviction.message, eviction.cause)).await;
    }
}
