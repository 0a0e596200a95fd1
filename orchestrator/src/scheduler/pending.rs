//! Pods that wait for a node, each in one of three states. Pure: told the time.
//!
//! 1. *Active*: to be tried now, the highest priority first, then the oldest.
//! 2. *Resting*: to be tried when its own pause is over: after a failure, or when something came up before the pause was over.
//! 3. *Waiting*: no node takes it as things are. It is tried again only when it is woken, because a node would take it now; pods that
//!    ask for the same are woken one after the other, each by the success of the one before, so that ten thousand of them
//!    cost no more than one while nothing changes.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::uid::Uid;
use client::Key;
use tokio::time::Instant;

use super::demand::Demand;

/// The pause after the first attempt that failed, doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// Higher priority first, then the oldest.
type Order = (Reverse<i64>, String, Key);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Active,
    Resting(Instant),
    Waiting,
    /// Being tried.
    Taken,
}

/// A pod without a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub key: Key,
    pub uid: Uid,
    pub demand: Arc<Demand>,
    pub created: String,
}

impl Candidate {
    fn order(&self) -> Order {
        (Reverse(self.demand.priority), self.created.clone(), self.key.clone())
    }
}

#[derive(Debug)]
struct Entry {
    candidate: Candidate,
    state: State,
    attempts: u32,
    /// The end of its pause.
    rested: Instant,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Pending {
    entries: HashMap<Key, Entry>,
    active: BTreeSet<Order>,
    resting: BTreeSet<(Instant, Key)>,
    waiting: HashMap<Arc<Demand>, BTreeSet<Order>>,
}

impl Pending {
    /// A pod waits for a node, or is as it is now. One that asks for something else than before is tried anew.
    pub fn set(&mut self, candidate: Candidate, now: Instant) {
        let same = self.entries.get(&candidate.key).is_some_and(|known| known.candidate == candidate);
        if same {
            return;
        }
        self.remove(&candidate.key);
        let entry = Entry { candidate, state: State::Taken, attempts: 0, rested: now };
        let key = entry.candidate.key.clone();
        self.entries.insert(key.clone(), entry);
        self.enter(&key, State::Active);
    }

    /// A pod waits no longer.
    pub fn remove(&mut self, key: &Key) -> Option<Candidate> {
        self.leave(key);
        self.entries.remove(key).map(|entry| entry.candidate)
    }

    pub fn knows(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    /// The pod to try now. It stays known until it is removed.
    pub fn take(&mut self, now: Instant) -> Option<Candidate> {
        while let Some((at, key)) = self.resting.first().filter(|(at, _)| *at <= now).cloned() {
            self.resting.remove(&(at, key.clone()));
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.state = State::Taken;
            }
            self.enter(&key, State::Active);
        }
        let (_, _, key) = self.active.first()?.clone();
        self.leave(&key);
        self.entries.get(&key).map(|entry| entry.candidate.clone())
    }

    /// When the next pause is over.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.resting.first().map(|(at, _)| *at)
    }

    /// No node takes it as things are.
    pub fn unschedulable(&mut self, key: &Key, now: Instant) {
        if self.pause(key, now).is_some() {
            self.enter(key, State::Waiting);
        }
    }

    /// It was given a node, and that could not be written.
    pub fn failed(&mut self, key: &Key, now: Instant) {
        if let Some(rested) = self.pause(key, now) {
            self.enter(key, State::Resting(rested));
        }
    }

    /// What pods wait for.
    pub fn demands(&self) -> impl Iterator<Item = &Arc<Demand>> {
        self.waiting.keys()
    }

    /// A node may take a pod that asks for this: the first that has rested, or the first at the end of its pause.
    pub fn wake_one(&mut self, demand: &Arc<Demand>, now: Instant) {
        let Some(all) = self.waiting.get(demand) else { return };
        let rested = |order: &&Order| self.entries.get(&order.2).is_some_and(|entry| entry.rested <= now);
        let Some((_, _, key)) = all.iter().find(rested).or_else(|| all.first()).cloned() else { return };
        self.wake(&key, now);
    }

    /// A pod may be helped now, if it waits.
    pub fn wake(&mut self, key: &Key, now: Instant) {
        let Some(entry) = self.entries.get(key).filter(|entry| entry.state == State::Waiting) else { return };
        let end = entry.rested;
        self.leave(key);
        self.enter(key, if end <= now { State::Active } else { State::Resting(end) });
    }

    /// Everybody may be helped, or has to be told something else.
    pub fn wake_all(&mut self, now: Instant) {
        let all: Vec<Key> = self.waiting.values().flatten().map(|(_, _, key)| key.clone()).collect();
        all.iter().for_each(|key| self.wake(key, now));
    }

    /// Counts an attempt; returns the end of the pause after it.
    fn pause(&mut self, key: &Key, now: Instant) -> Option<Instant> {
        self.leave(key);
        let entry = self.entries.get_mut(key)?;
        entry.rested = now + FIRST_PAUSE.saturating_mul(1 << entry.attempts.min(8)).min(LAST_PAUSE);
        entry.attempts += 1;
        Some(entry.rested)
    }

    fn enter(&mut self, key: &Key, state: State) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.state = state;
        let order = entry.candidate.order();
        match state {
            State::Active => drop(self.active.insert(order)),
            State::Resting(at) => drop(self.resting.insert((at, key.clone()))),
            State::Waiting => {
                self.waiting.entry(entry.candidate.demand.clone()).or_default().insert(order);
            }
            State::Taken => {}
        }
    }

    fn leave(&mut self, key: &Key) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let order = entry.candidate.order();
        match std::mem::replace(&mut entry.state, State::Taken) {
            State::Active => drop(self.active.remove(&order)),
            State::Resting(at) => drop(self.resting.remove(&(at, key.clone()))),
            State::Waiting => {
                if let Some(all) = self.waiting.get_mut(&entry.candidate.demand) {
                    all.remove(&order);
                    if all.is_empty() {
                        self.waiting.remove(&entry.candidate.demand);
                    }
                }
            }
            State::Taken => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, priority: i64) -> Candidate {
        let demand = Arc::new(Demand { priority, ..Demand::default() });
        Candidate { key: Key::new("ns", name), uid: Uid::new(name), demand, created: name.into() }
    }

    fn take(all: &mut Pending, now: Instant) -> Option<String> {
        all.take(now).map(|candidate| candidate.key.name)
    }

    #[test]
    fn the_important_first_then_the_oldest() {
        let (mut all, now) = (Pending::default(), Instant::now());
        for (name, priority) in [("c", 0), ("a", 0), ("z", 5)] {
            all.set(candidate(name, priority), now);
        }
        all.set(candidate("a", 0), now);
        let order: Vec<_> = std::iter::from_fn(|| take(&mut all, now)).collect();
        assert_eq!(order, ["z", "a", "c"]);
    }

    #[test]
    fn who_waits_is_woken_one_by_one() {
        let (mut all, now) = (Pending::default(), Instant::now());
        for name in ["a", "b", "c"] {
            all.set(candidate(name, 0), now);
            take(&mut all, now);
            all.unschedulable(&Key::new("ns", name), now);
        }
        let later = now + Duration::from_secs(600);
        assert_eq!((take(&mut all, later), all.next_deadline()), (None, None), "time helps nobody");
        let demand = candidate("a", 0).demand;
        assert_eq!(all.demands().count(), 1);
        all.wake_one(&demand, later);
        assert_eq!((take(&mut all, later).as_deref(), take(&mut all, later)), (Some("a"), None));
        all.remove(&Key::new("ns", "a"));
        all.remove(&Key::new("ns", "b"));
        all.wake_one(&demand, later);
        assert_eq!(take(&mut all, later).as_deref(), Some("c"));
        assert_eq!(all.demands().count(), 0);
    }

    #[test]
    fn each_pod_has_its_own_pause() {
        let (mut all, now) = (Pending::default(), Instant::now());
        let after = |millis| now + Duration::from_millis(millis);
        all.set(candidate("a", 0), now);
        take(&mut all, now);
        all.unschedulable(&Key::new("ns", "a"), now);
        // Something came up at once: it is tried when its pause is over.
        all.wake_one(&candidate("a", 0).demand, after(100));
        assert_eq!((take(&mut all, after(999)), all.next_deadline()), (None, Some(after(1000))));
        assert_eq!(take(&mut all, after(1000)).as_deref(), Some("a"));
        all.failed(&Key::new("ns", "a"), after(1000));
        assert_eq!(all.next_deadline(), Some(after(3000)), "the second is twice as long");
        // One that rested goes before one that did not.
        all.set(candidate("b", 0), now);
        assert_eq!(take(&mut all, after(1000)).as_deref(), Some("b"));
        all.unschedulable(&Key::new("ns", "b"), after(1000));
        all.set(Candidate { created: "0".into(), ..candidate("new", 0) }, now);
        assert_eq!(take(&mut all, after(5000)).as_deref(), Some("new"));
        all.unschedulable(&Key::new("ns", "new"), after(5000));
        all.wake_one(&candidate("b", 0).demand, after(5100));
        assert_eq!(take(&mut all, after(5100)).as_deref(), Some("a"), "its pause ended before");
        assert_eq!(take(&mut all, after(5100)).as_deref(), Some("b"));
    }

    #[test]
    fn a_pod_that_asks_for_something_else_is_tried_anew() {
        let (mut all, now) = (Pending::default(), Instant::now());
        all.set(candidate("a", 0), now);
        take(&mut all, now);
        all.unschedulable(&Key::new("ns", "a"), now);
        all.set(candidate("a", 0), now);
        assert_eq!(take(&mut all, now), None);
        all.set(candidate("a", 7), now);
        assert_eq!(take(&mut all, now).as_deref(), Some("a"));
    }
}
