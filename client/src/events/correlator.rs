//! Which events are written, counted or held back, as client-go's correlator decides. Pure.
//!
//! The same event again is counted. From the tenth of one object that differs in its message alone within ten
//! minutes, they become one. Whatever an object is said to do, 25 writes may come in a row, then one in five minutes: a probe that fails
//! each second is news once.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

use super::{EventType, Reference};

/// Remembered objects and events; beyond it the memory starts anew.
const REMEMBERED: usize = 4096;
/// Writes about one object in a row, and the time in which another becomes free.
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// Different messages of one kind of event from which on they are told as one, and the time without any after which that ends.
const DISTINCT: usize = 10;
const WINDOW: Duration = Duration::from_secs(600);
const COMBINED: &str = "(combined from similar events): ";

/// Events with one key are one event, counted. Those told as one have no message here.
pub type Key = (Reference, EventType, String, Option<String>);

/// An event to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    pub key: Key,
    /// The stored event that only needs its new count written.
    pub known: Option<Known>,
    pub message: String,
}

/// A stored event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub name: String,
    /// How often it was said.
    pub count: i64,
}

struct Budget {
    left: f64,
    since: Instant,
}

struct Similar {
    messages: HashSet<String>,
    last: Instant,
}

/// What was said so far.
#[derive(Default)]
pub struct Correlator {
    budgets: HashMap<Reference, Budget>,
    similar: HashMap<(Reference, EventType, String), Similar>,
    written: HashMap<Key, Known>,
}

impl Correlator {
    /// What is to be written of an event now; `None`: nothing, there were too many.
    pub fn take(
        &mut self,
        about: &Reference,
        type_: EventType,
        reason: &str,
        message: &str,
        now: Instant,
    ) -> Option<News> {
        let combined = self.is_one_of_many(about, type_, reason, message, now);
        // Parts of an object share its budget.
        let object = Reference { field_path: String::new(), ..about.clone() };
        if !self.spend(object, now) {
            return None;
        }
        let key = (about.clone(), type_, reason.to_owned(), (!combined).then(|| message.to_owned()));
        let message = if combined { format!("{COMBINED}{message}") } else { message.to_owned() };
        let known = self.written.get_mut(&key).map(|known| {
            known.count += 1;
            known.clone()
        });
        Some(News { known, key, message })
    }

    /// Notes how an event was stored.
    pub fn remember(&mut self, key: Key, known: Known) {
        room(&mut self.written).insert(key, known);
    }

    fn is_one_of_many(
        &mut self,
        about: &Reference,
        type_: EventType,
        reason: &str,
        message: &str,
        now: Instant,
    ) -> bool {
        let kind = (about.clone(), type_, reason.to_owned());
        let similar =
            room(&mut self.similar).entry(kind).or_insert_with(|| Similar { messages: HashSet::new(), last: now });
        if now.duration_since(similar.last) > WINDOW {
            similar.messages.clear();
        }
        similar.last = now;
        if similar.messages.len() < DISTINCT {
            similar.messages.insert(message.to_owned());
        }
        similar.messages.len() == DISTINCT
    }

    fn spend(&mut self, object: Reference, now: Instant) -> bool {
        let budget = room(&mut self.budgets).entry(object).or_insert(Budget { left: BURST, since: now });
        let grown = now.duration_since(budget.since).as_secs_f64() / REFILL.as_secs_f64();
        budget.left = (budget.left + grown).min(BURST);
        budget.since = now;
        let enough = budget.left >= 1.0;
        if enough {
            budget.left -= 1.0;
        }
        enough
    }
}

/// The map, emptied when it is full.
fn room<K: Eq + Hash, V>(map: &mut HashMap<K, V>) -> &mut HashMap<K, V> {
    if map.len() >= REMEMBERED {
        map.clear();
    }
    map
}

#[cfg(test)]
mod tests {
    use api::view::Meta;

    use super::*;

    fn pod(name: &str) -> Reference {
        Reference::pod(&Meta { name: name.into(), namespace: "ns".into(), ..Meta::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn what_repeats_is_counted_and_then_held_back() {
        let (mut all, now) = (Correlator::default(), Instant::now());
        let say = |at: Instant, all: &mut Correlator| all.take(&pod("p"), EventType::Warning, "Unhealthy", "no", at);
        let first = say(now, &mut all).unwrap();
        assert_eq!(first.known, None);
        let stored = Known { name: "event-1".into(), count: 1 };
        all.remember(first.key, stored);
        let written = (1..100).filter(|second| say(now + Duration::from_secs(*second), &mut all).is_some()).count();
        assert_eq!(written, 24, "then one in five minutes");
        let later = say(now + Duration::from_secs(500), &mut all).unwrap();
        assert_eq!(later.known, Some(Known { name: "event-1".into(), count: 26 }));
        assert!(all.take(&pod("q"), EventType::Warning, "Unhealthy", "no", now).is_some(), "others have their own");
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_differ_a_little_become_one() {
        let (mut all, now) = (Correlator::default(), Instant::now());
        let say = |index: usize, all: &mut Correlator| {
            all.take(&pod("p"), EventType::Normal, "Pulled", &format!("took {index} ms"), now).unwrap()
        };
        let first: Vec<_> = (0..9).map(|index| say(index, &mut all)).collect();
        assert!(first.iter().all(|news| news.key.3.is_some()));
        let combined = say(9, &mut all);
        assert_eq!((combined.message.as_str(), &combined.key.3), ("(combined from similar events): took 9 ms", &None));
        assert_eq!(say(10, &mut all).key, combined.key);
    }
}
