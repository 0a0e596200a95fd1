//! Keys to work on.
//!
//! [`Work`] decides, without a clock of its own; [`Queue`] shares it between workers and waits. What it guarantees:
//!
//! 1. A key that is worked on is handed out to nobody else.
//! 2. A key that was added, however often, is handed out once; one that was added while it was worked on, once more.
//! 3. Of several times to come back, the earliest counts. Handing a key out fulfils all of them.
//! 4. After a key's work its own writes are read: it is handed out again only when they were said to be visible.
//! 5. Failures come back later and later, up to a limit; a success forgets them.
//! 6. Keys are handed out in the order in which they became ready.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// After the first failure, doubled with each further one.
pub const FIRST_RETRY: Duration = Duration::from_millis(20);
pub const LAST_RETRY: Duration = Duration::from_secs(60);

/// How the work on a key ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Idle,
    Ready,
    Running,
    /// Its work is done, its writes are not visible yet.
    Settling,
}

#[derive(Debug, Default)]
struct Entry {
    stage: Stage,
    /// Added since it was handed out.
    again: bool,
    deadline: Option<Instant>,
    failures: u32,
}

/// The keys and what is to become of them. Pure: told the time.
#[derive(Debug)]
pub struct Work<K> {
    entries: HashMap<K, Entry>,
    ready: VecDeque<K>,
    deadlines: BTreeSet<(Instant, K)>,
}

impl<K> Default for Work<K> {
    fn default() -> Self {
        Self { entries: HashMap::new(), ready: VecDeque::new(), deadlines: BTreeSet::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord> Work<K> {
    /// The key needs work.
    pub fn add(&mut self, key: K) {
        let entry = self.entries.entry(key.clone()).or_default();
        match entry.stage {
            Stage::Idle => {
                entry.stage = Stage::Ready;
                self.ready.push_back(key);
            }
            Stage::Ready => {}
            Stage::Running | Stage::Settling => entry.again = true,
        }
    }

    /// The key needs work at that time.
    pub fn add_at(&mut self, key: K, at: Instant) {
        let entry = self.entries.entry(key.clone()).or_default();
        if entry.deadline.is_some_and(|known| known <= at) {
            return;
        }
        if let Some(later) = entry.deadline.replace(at) {
            self.deadlines.remove(&(later, key.clone()));
        }
        self.deadlines.insert((at, key));
    }

    /// A key to work on now.
    pub fn take(&mut self, now: Instant) -> Option<K> {
        while let Some((at, key)) = self.deadlines.pop_first() {
            if at > now {
                self.deadlines.insert((at, key));
                break;
            }
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.deadline = None;
            }
            self.add(key);
        }
        let key = self.ready.pop_front()?;
        let entry = self.entries.entry(key.clone()).or_default();
        entry.stage = Stage::Running;
        if let Some(at) = entry.deadline.take() {
            self.deadlines.remove(&(at, key.clone()));
        }
        Some(key)
    }

    /// When the next key becomes ready by itself.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// The work on a key ended; its writes are on their way to the views.
    pub fn done(&mut self, key: &K, outcome: Outcome, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.stage = Stage::Settling;
        match outcome {
            Outcome::Done => entry.failures = 0,
            Outcome::Failed => {
                let delay = FIRST_RETRY.saturating_mul(1 << entry.failures.min(16)).min(LAST_RETRY);
                entry.failures += 1;
                self.add_at(key.clone(), now + delay);
            }
        }
    }

    /// The views show what the last work on a key wrote.
    pub fn settled(&mut self, key: &K) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.stage = Stage::Idle;
        if std::mem::take(&mut entry.again) {
            self.add(key.clone());
        } else if entry.deadline.is_none() && entry.failures == 0 {
            self.entries.remove(key);
        }
    }

    /// Keys that are ready now.
    pub fn len(&self) -> usize {
        self.ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }
}

/// The same, shared by workers; clones share it.
pub struct Queue<K> {
    work: Arc<Mutex<Work<K>>>,
    wake: Arc<Notify>,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { work: self.work.clone(), wake: self.wake.clone() }
    }
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self { work: Arc::default(), wake: Arc::default() }
    }
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    /// No change to the work is ever half done, so a panic elsewhere leaves it usable.
    fn with<R>(&self, act: impl FnOnce(&mut Work<K>) -> R) -> R {
        act(&mut self.work.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn add(&self, key: K) {
        self.with(|work| work.add(key));
        self.wake.notify_one();
    }

    pub fn add_after(&self, key: K, after: Duration) {
        self.with(|work| work.add_at(key, Instant::now() + after));
        self.wake.notify_one();
    }

    /// The next key, as soon as there is one. Whoever takes it says [`Queue::done`] and [`Queue::settled`].
    pub async fn take(&self) -> K {
        loop {
            let woken = self.wake.notified();
            let (taken, next) = self.with(|work| (work.take(Instant::now()), work.next_deadline()));
            match (taken, next) {
                (Some(key), _) => {
                    // One wake-up may stand for several keys.
                    self.wake.notify_one();
                    return key;
                }
                (None, Some(at)) => {
                    let _either = tokio::time::timeout_at(at, woken).await;
                }
                (None, None) => woken.await,
            }
        }
    }

    pub fn done(&self, key: &K, outcome: Outcome) {
        self.with(|work| work.done(key, outcome, Instant::now()));
    }

    pub fn settled(&self, key: &K) {
        self.with(|work| work.settled(key));
        self.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(keys: &[&'static str]) -> Work<&'static str> {
        let mut work = Work::default();
        keys.iter().for_each(|key| work.add(*key));
        work
    }

    fn finish(work: &mut Work<&'static str>, key: &'static str, outcome: Outcome, now: Instant) {
        work.done(&key, outcome, now);
        work.settled(&key);
    }

    #[test]
    fn guarantee_1_a_key_is_never_worked_on_twice_at_once() {
        let (mut work, now) = (work(&["a"]), Instant::now());
        assert_eq!(work.take(now), Some("a"));
        work.add("a");
        work.add_at("a", now);
        assert_eq!(work.take(now), None, "it is being worked on");
        work.done(&"a", Outcome::Done, now);
        assert_eq!(work.take(now), None, "its writes are not visible");
        work.settled(&"a");
        assert_eq!(work.take(now), Some("a"));
    }

    #[test]
    fn guarantee_2_many_additions_are_one_and_one_during_the_work_is_one_more() {
        let (mut work, now) = (work(&["a", "a", "a"]), Instant::now());
        assert_eq!(work.take(now), Some("a"));
        assert_eq!(work.take(now), None);
        work.add("a");
        work.add("a");
        finish(&mut work, "a", Outcome::Done, now);
        assert_eq!(work.take(now), Some("a"));
        finish(&mut work, "a", Outcome::Done, now);
        assert_eq!(work.take(now), None);
        assert!(work.entries.is_empty(), "what is done leaves nothing behind");
    }

    #[test]
    fn guarantee_3_the_earliest_time_counts_and_handing_out_fulfils_all() {
        let (mut work, now) = (work(&[]), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        work.add_at("a", after(30));
        work.add_at("a", after(10));
        work.add_at("a", after(20));
        assert_eq!(work.next_deadline(), Some(after(10)));
        assert_eq!((work.take(after(9)), work.take(after(10))), (None, Some("a")));
        assert_eq!(work.next_deadline(), None);
        // A change comes before its time: that work decides anew when to come back.
        finish(&mut work, "a", Outcome::Done, after(10));
        work.add_at("a", after(60));
        work.add("a");
        assert_eq!(work.take(after(11)), Some("a"));
        finish(&mut work, "a", Outcome::Done, after(11));
        assert_eq!(work.take(after(100)), None);
    }

    #[test]
    fn guarantee_4_own_writes_come_before_the_next_work_on_that_key_only() {
        let (mut work, now) = (work(&["a"]), Instant::now());
        assert_eq!(work.take(now), Some("a"));
        work.done(&"a", Outcome::Done, now);
        work.add("a");
        work.add("b");
        assert_eq!(work.take(now), Some("b"), "others do not wait");
        assert_eq!(work.take(now), None);
        work.settled(&"a");
        assert_eq!(work.take(now), Some("a"));
    }

    #[test]
    fn guarantee_5_failures_back_off_and_a_success_forgets_them() {
        let (mut work, mut now) = (work(&["a"]), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..14 {
            assert_eq!(work.take(now), Some("a"));
            finish(&mut work, "a", Outcome::Failed, now);
            let next = work.next_deadline().unwrap();
            waits.push(next - now);
            now = next;
        }
        assert_eq!(waits[..3], [FIRST_RETRY, FIRST_RETRY * 2, FIRST_RETRY * 4]);
        assert_eq!(waits[13], LAST_RETRY);
        assert_eq!(work.take(now), Some("a"));
        finish(&mut work, "a", Outcome::Done, now);
        assert!(work.entries.is_empty() && work.next_deadline().is_none());
    }

    #[test]
    fn guarantee_6_first_ready_first_out() {
        let (mut work, now) = (work(&["b", "a", "c"]), Instant::now());
        assert_eq!([work.take(now), work.take(now), work.take(now)], [Some("b"), Some("a"), Some("c")]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_waits_for_additions_and_for_times() {
        let queue = Queue::default();
        let started = Instant::now();
        queue.add_after("late", Duration::from_secs(100));
        let other = queue.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            other.add("early");
        });
        assert_eq!((queue.take().await, started.elapsed().as_secs()), ("early", 1));
        assert_eq!((queue.take().await, started.elapsed().as_secs()), ("late", 100));
    }
}
