//! Jobs that finished and say how long they may stay.

use std::time::Duration;

use client::{Caches, Kept, Key, Propagation};
use jiff::{SignedDuration, Timestamp};

use super::given::{Account, Given};
use super::job::{JOBS, Job};
use super::runtime::{Action, Controller, Plan, Queue};

pub struct TtlAfterFinished;

impl Controller for TtlAfterFinished {
    const NAME: &'static str = "ttl-after-finished-controller";
    const ACCOUNT: Account = Account::Service("ttl-after-finished-controller");
    const READS: &'static [Kept] = &[Kept::of::<Job>()];

    fn new(_: &Given) -> Self {
        Self
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        let queue = queue.clone();
        caches.of::<Job>().on_change(move |_, new| {
            if let Some(job) = new.filter(|job| end(job).is_some()) {
                queue.add(Key::of(&job.metadata.meta));
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let job = caches.of::<Job>().get(&key.namespace, &key.name);
        job.map_or_else(Plan::new, |job| plan(&job, Timestamp::now()))
    }
}

/// When its time is over.
fn end(job: &Job) -> Option<Timestamp> {
    let seconds = job.spec.ttl_seconds_after_finished.filter(|_| !job.is_deleting())?;
    let finished = ["Complete", "Failed"].iter().find_map(|type_| job.status.condition(type_))?;
    let since: Timestamp = finished["lastTransitionTime"].as_str()?.parse().ok()?;
    since.checked_add(SignedDuration::from_secs(seconds)).ok()
}

fn plan(job: &Job, now: Timestamp) -> Plan {
    let Some(end) = end(job) else { return Plan::new() };
    let (meta, key) = (&job.metadata.meta, Key::of(&job.metadata.meta));
    if end > now {
        let after = Duration::try_from(end.duration_since(now)).unwrap_or_default();
        return vec![Action::Again { key, after }];
    }
    let propagation = Some(Propagation::Foreground);
    vec![Action::Delete { resource: JOBS, key, uid: Some(meta.uid.clone()), propagation }]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn plans_are_as_agreed() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let plan = |ttl: Value, condition: &str| {
            let conditions =
                json!([{"type": condition, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
            let job = json!({"metadata": {"namespace": "ns", "name": "j", "uid": "u"},
                "spec": {"ttlSecondsAfterFinished": ttl}, "status": {"conditions": conditions}});
            plan(&serde_json::from_value(job).unwrap(), now)
        };
        super::super::golden::check(
            "ttl-after-finished",
            &[
                ("its time is over", plan(json!(60), "Failed")),
                ("its time is not over", plan(json!(61), "Complete")),
                ("not finished", plan(json!(0), "Suspended")),
                ("it may stay", plan(Value::Null, "Complete")),
            ],
        );
    }
}
