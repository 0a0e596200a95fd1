//! Keeps the node's reserve of the disk from its pods: the store lies on it too. While there is room it only asks how
//! much, the more often the less there is; when the reserve is being used, pods are weighed, and one is evicted.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::{mpsc, oneshot};

use crate::node::Node;
use crate::room::{Level, Want};
use crate::storage::{Candidate, choose, pressure};
use crate::worker::Command;

/// What the quickest disks take in a second.
const FASTEST: u64 = 2 << 30;
/// A pod writes at most so many files in a second.
const FASTEST_FILES: u64 = 100_000;
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Weighing a pod is given up by itself before this; so many are weighed at once.
const WEIGHING: (Duration, usize) = (Duration::from_secs(10), 8);
/// As long as an evicted pod is waited for before another is chosen.
const LEAVING: Duration = Duration::from_secs(30);
/// When nobody's end would help.
const HELPLESS: Duration = Duration::from_secs(30);

type Workers = Vec<mpsc::UnboundedSender<Command>>;

/// A disk that is being used up, and where to say how long to wait before the next look.
type Alarm = (Level, Want, std::sync::mpsc::Sender<Duration>);

/// Never ends; `workers` are those of the pods that are here by then.
pub async fn watch(node: Arc<Node>, workers: impl Fn() -> Workers + Send) {
    let (alarms, mut raised) = mpsc::channel(1);
    let path = node.config.data_dir.clone();
    let (running, stop) = std::sync::mpsc::channel::<()>();
    // A thread of its own: a disk in trouble may take its time to answer, and one that is well costs a single wake-up.
    let looking = move || look_until_stopped(&path, &alarms, &stop);
    if let Err(error) = std::thread::Builder::new().name("disk-guard".into()).spawn(looking) {
        tracing::error!(%error, "nothing keeps the node's reserve of the disk");
        return;
    }
    while let Some((level, want, next)) = raised.recv().await {
        let wait = relieve(level, want, workers()).await;
        // Its thread has ended only if this future is being dropped.
        let _ = next.send(wait);
    }
    drop(running);
}

fn look_until_stopped(path: &Path, alarms: &mpsc::Sender<Alarm>, stop: &Receiver<()>) {
    let mut wait = Duration::ZERO;
    while stop.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
        wait = match Level::at(path) {
            Ok(level) => match level.want() {
                None => next_look(level),
                Some(want) => {
                    let (next, told) = std::sync::mpsc::channel();
                    let raised = alarms.blocking_send((level, want, next));
                    match raised.ok().and_then(|()| told.recv().ok()) {
                        Some(wait) => wait,
                        None => return,
                    }
                }
            },
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "ask how full the disk is");
                LOOK.1
            }
        };
    }
}

/// Before the room can be used up.
fn next_look(level: Level) -> Duration {
    let room = level.room();
    let seconds = (room.bytes / FASTEST).min(room.files / FASTEST_FILES);
    Duration::from_secs(seconds).clamp(LOOK.0, LOOK.1)
}

/// Evicts one pod; how long to wait before the next look.
async fn relieve(level: Level, want: Want, workers: Workers) -> Duration {
    let weighed = workers.into_iter().map(|worker| async move { Some((weigh(&worker).await?, worker)) });
    let weighed = futures::stream::iter(weighed).buffer_unordered(WEIGHING.1).filter_map(std::future::ready);
    let (candidates, senders): (Vec<Candidate>, Vec<_>) = weighed.unzip().await;
    let Some(chosen) = choose(&candidates, want) else {
        tracing::error!(?level, "the disk is nearly full, and no pod's end would free much of it");
        return HELPLESS;
    };
    let place = candidates.iter().position(|candidate| candidate.uid == chosen.uid).unwrap_or(0);
    let eviction = pressure(chosen, level, want);
    tracing::warn!(uid = %chosen.uid, message = eviction.message, "pod evicted");
    let (done, left) = oneshot::channel();
    let sent = senders[place].send(Command::Evict(eviction, done));
    if sent.is_ok() {
        // Gone meanwhile is as good; one that does not go in time is not waited for.
        let _ = tokio::time::timeout(LEAVING, left).await;
    }
    LOOK.0
}

async fn weigh(worker: &mpsc::UnboundedSender<Command>) -> Option<Candidate> {
    let (reply, weighed) = oneshot::channel();
    worker.send(Command::Weigh(reply)).ok()?;
    tokio::time::timeout(WEIGHING.0, weighed).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_looked_at_the_more_often_the_fuller_it_is() {
        let look =
            |available, available_files| next_look(Level { available, available_files, ..Level::default() }).as_secs();
        assert_eq!(look(1 << 40, u64::MAX), 60);
        assert_eq!(look(20 << 30, u64::MAX), 10);
        assert_eq!(look(1, u64::MAX), 1);
        assert_eq!(look(1 << 40, 500_000), 5);
    }
}
