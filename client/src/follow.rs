//! How a view follows its collection: events in, changes of the view out ([`Follow`], pure), for ever ([`run`]).

use std::collections::BTreeSet;
use std::time::Duration;

use api::status::Status;

use crate::client::Client;
use crate::object::{Event, Item, Key, Resource, Revision};
use crate::transport::{EventStream, Selector};

/// Before a watch that was refused is asked for again, doubled each time up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// One thing to do to the view.
#[derive(Debug)]
pub enum Step {
    Set(Item),
    Remove(Key),
    /// What is not among these went away unseen.
    Retain(BTreeSet<Key>),
    /// The view holds everything up to here.
    Seen(Revision),
}

/// Where the view stands.
#[derive(Debug, Default)]
enum Phase {
    /// No watch.
    #[default]
    Closed,
    /// The present state comes in; these keys so far.
    Filling(BTreeSet<Key>),
    Live,
}

/// What is known of a view's watch.
#[derive(Debug, Default)]
pub struct Follow {
    phase: Phase,
    refusals: u32,
}

impl Follow {
    /// A watch began, with the present state.
    pub fn opened(&mut self) {
        self.phase = Phase::Filling(BTreeSet::new());
    }

    /// What events do to the view, in order.
    pub fn take(&mut self, events: Vec<Event>) -> Vec<Step> {
        let mut steps = Vec::with_capacity(events.len() + 1);
        let last = events.last().map(Event::revision);
        for event in events {
            match event {
                Event::Applied(item) => {
                    if let Phase::Filling(fresh) = &mut self.phase {
                        fresh.insert(item.key.clone());
                    }
                    steps.push(Step::Set(item));
                }
                Event::Deleted(item) => {
                    if let Phase::Filling(fresh) = &mut self.phase {
                        fresh.remove(&item.key);
                    }
                    steps.push(Step::Remove(item.key));
                }
                Event::Synced(_) => {
                    if let Phase::Filling(fresh) = std::mem::replace(&mut self.phase, Phase::Live) {
                        steps.push(Step::Retain(fresh));
                    }
                    self.refusals = 0;
                }
                Event::Bookmark(_) => {}
            }
        }
        if let (Phase::Live, Some(last)) = (&self.phase, last) {
            steps.push(Step::Seen(last));
        }
        steps
    }

    /// There is no watch (any more). Returns how long to wait before the next: not at all when a good one fell behind.
    pub fn closed(&mut self, why: &Status) -> Duration {
        let was_live = matches!(std::mem::take(&mut self.phase), Phase::Live);
        if was_live && why.code == 410 {
            return Duration::ZERO;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.refusals.min(16)).min(LAST_PAUSE);
        self.refusals = self.refusals.saturating_add(1);
        pause
    }
}

/// A part of a collection: a namespace (empty for all) and what is selected of it.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    pub namespace: String,
    pub selector: Selector,
}

impl Scope {
    pub fn fields(fields: impl Into<String>) -> Self {
        Self { namespace: String::new(), selector: Selector::fields(fields) }
    }
}

/// Follows a collection for ever; starts over from the whole state when it fell behind.
pub async fn run(client: Client, resource: Resource, scope: Scope, mut act: impl FnMut(Step) + Send) {
    let mut follow = Follow::default();
    loop {
        let ended = match client.watch(&resource, &scope.namespace, &scope.selector).await {
            Ok(events) => {
                follow.opened();
                relay(&mut follow, events, &mut act).await
            }
            Err(refused) => refused,
        };
        let pause = jittered(follow.closed(&ended));
        if !pause.is_zero() {
            tracing::warn!(resource = &*resource.plural, error = %ended, ?pause, "watch ended; will be asked for again");
        }
        tokio::time::sleep(pause).await;
    }
}

/// Passes steps on until the watch ends; says why it did.
async fn relay(follow: &mut Follow, mut events: Box<dyn EventStream>, act: &mut (impl FnMut(Step) + Send)) -> Status {
    loop {
        match events.next().await {
            Ok(events) => follow.take(events).into_iter().for_each(&mut *act),
            Err(why) => return why,
        }
    }
}

/// Between half of it and all of it: those who lost one server together do not come back together.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
