//! Conditions of an object's status: what somebody has to say, and where it goes among what is stored.
//!
//! Whoever says something says no times: those follow from what is stored, in [`stamped`], and nowhere else.

use serde_json::{Value, json};

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    True,
    False,
    Unknown,
}

impl State {
    pub fn text(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for State {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// What is said of one type of condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    pub type_: String,
    state: String,
    /// Left out when empty, as the message is.
    reason: String,
    message: String,
    /// Of the object's spec of which this is said.
    generation: Option<i64>,
}

impl Condition {
    pub fn new(type_: &str, state: impl Into<State>) -> Self {
        let state = state.into().text().to_owned();
        Self { type_: type_.to_owned(), state, reason: String::new(), message: String::new(), generation: None }
    }

    #[must_use]
    pub fn because(self, reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into(), ..self }
    }

    #[must_use]
    pub fn of_generation(self, generation: Option<i64>) -> Self {
        Self { generation, ..self }
    }

    /// What a stored condition says, to say it again.
    pub fn said_by(stored: &Value) -> Self {
        let text = |field: &str| stored[field].as_str().unwrap_or_default().to_owned();
        let generation = stored["observedGeneration"].as_i64();
        Self {
            type_: text("type"),
            state: text("status"),
            reason: text("reason"),
            message: text("message"),
            generation,
        }
    }

    /// A list of stored conditions says just this already.
    pub fn is_said_in(&self, stored: &Value) -> bool {
        let found = find(list(stored), &self.type_).map(Self::said_by);
        found.is_some_and(|found| Self { generation: self.generation, ..found } == *self)
    }

    fn holds_as(&self, old: &Value) -> bool {
        old["status"] == *self.state
    }

    fn without_times(&self) -> Value {
        let mut out = json!({"type": self.type_, "status": self.state});
        for (field, text) in [("reason", &self.reason), ("message", &self.message)] {
            if !text.is_empty() {
                out[field] = json!(text);
            }
        }
        if let Some(generation) = self.generation {
            out["observedGeneration"] = json!(generation);
        }
        out
    }
}

/// A time that a condition carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stamp {
    /// Since when it has this status.
    Transition,
    /// Since when it says just this.
    Update,
    /// When it was last said.
    Heartbeat,
    /// When the one it is about last said it: whoever says it now is another.
    Heard,
    /// When it was probed: written as null, since nothing probes.
    Probe,
    /// The same where it is found out without a probe: since when it has this status.
    Found,
}

/// The times that conditions of each kind carry.
pub const PLAIN: &[Stamp] = &[Stamp::Transition];
pub const OF_PODS: &[Stamp] = &[Stamp::Probe, Stamp::Transition];
pub const OF_JOBS: &[Stamp] = &[Stamp::Found, Stamp::Transition];
pub const OF_DEPLOYMENTS: &[Stamp] = &[Stamp::Update, Stamp::Transition];
pub const OF_NODES: &[Stamp] = &[Stamp::Heartbeat, Stamp::Transition];
/// What is said of a node by others.
pub const OF_SILENT_NODES: &[Stamp] = &[Stamp::Heard, Stamp::Transition];

impl Stamp {
    fn field(self) -> &'static str {
        match self {
            Self::Transition => "lastTransitionTime",
            Self::Update => "lastUpdateTime",
            Self::Heartbeat | Self::Heard => "lastHeartbeatTime",
            Self::Probe | Self::Found => "lastProbeTime",
        }
    }

    /// Whether the stored time still holds.
    fn stays(self, old: &Value, new: &Condition) -> bool {
        match self {
            Self::Transition | Self::Found => new.holds_as(old),
            Self::Update => {
                new.holds_as(old)
                    && (old["reason"].as_str().unwrap_or_default(), old["message"].as_str().unwrap_or_default())
                        == (&*new.reason, &*new.message)
            }
            Self::Heard => true,
            Self::Heartbeat | Self::Probe => false,
        }
    }

    fn time(self, old: Option<&Value>, new: &Condition, now: &str) -> Value {
        let kept = old.filter(|old| self.stays(old, new)).and_then(|old| old[self.field()].as_str());
        match self {
            Self::Probe => Value::Null,
            _ => json!(kept.unwrap_or(now)),
        }
    }
}

fn find<'a>(list: &'a [Value], type_: &str) -> Option<&'a Value> {
    list.iter().find(|condition| condition["type"] == type_)
}

fn list(stored: &Value) -> &[Value] {
    stored.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// `wanted` with its times, each of which stays while what it is about does.
pub fn stamped(stored: &Value, wanted: &[Condition], stamps: &[Stamp], now: &str) -> Vec<Value> {
    let one = |condition: &Condition| {
        let old = find(list(stored), &condition.type_);
        let mut out = condition.without_times();
        for stamp in stamps {
            out[stamp.field()] = stamp.time(old, condition, now);
        }
        out
    };
    wanted.iter().map(one).collect()
}

/// The stored conditions with `wanted` in place of those of the same types and of the `own` types; in the order in which
/// they were first stored, new ones last.
pub fn merge(stored: &Value, own: &[&str], wanted: &[Condition], stamps: &[Stamp], now: &str) -> Vec<Value> {
    let wanted = stamped(stored, wanted, stamps, now);
    let type_of = |condition: &Value| condition["type"].as_str().unwrap_or_default().to_owned();
    let kept = list(stored).iter().filter_map(|old| match find(&wanted, &type_of(old)) {
        Some(new) => Some(new),
        None => (!own.iter().any(|own| old["type"] == **own)).then_some(old),
    });
    let new = wanted.iter().filter(|new| find(list(stored), &type_of(new)).is_none());
    kept.chain(new).cloned().collect()
}

/// What others stored, which nobody says anew.
pub fn others(stored: &Value, own: &[&str], said: &[Condition]) -> Vec<Value> {
    let is_ours = |type_: &str| own.contains(&type_) || said.iter().any(|condition| condition.type_ == type_);
    list(stored).iter().filter(|old| !is_ours(old["type"].as_str().unwrap_or_default())).cloned().collect()
}

/// `wanted` as it is, then what others stored.
pub fn beside_others(stored: &Value, own: &[&str], wanted: &Value) -> Vec<Value> {
    let said: Vec<Condition> = list(wanted).iter().map(Condition::said_by).collect();
    [list(wanted), &others(stored, own, &said)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_stay_with_what_they_are_about() {
        let stored = json!([
            {"type": "A", "status": "True", "reason": "r", "lastTransitionTime": "1", "lastUpdateTime": "1", "lastHeartbeatTime": "1"},
            {"type": "Foreign", "status": "True"},
            {"type": "B", "status": "True", "lastTransitionTime": "1"},
        ]);
        let wanted = [Condition::new("A", true).because("other", ""), Condition::new("C", false)];
        let all = [Stamp::Transition, Stamp::Update, Stamp::Heartbeat];
        let merged = merge(&stored, &["A", "B", "C"], &wanted, &all, "2");
        let expected = json!([
            {"type": "A", "status": "True", "reason": "other", "lastTransitionTime": "1", "lastUpdateTime": "2", "lastHeartbeatTime": "2"},
            {"type": "Foreign", "status": "True"},
            {"type": "C", "status": "False", "lastTransitionTime": "2", "lastUpdateTime": "2", "lastHeartbeatTime": "2"},
        ]);
        assert_eq!(json!(merged), expected, "B is ours and no longer said");
    }

    #[test]
    fn each_kind_has_its_own_times() {
        let stored = json!([{"type": "A", "status": "True", "lastTransitionTime": "1", "lastHeartbeatTime": "1",
            "lastUpdateTime": "1", "lastProbeTime": "1"}]);
        let times = |state: bool, stamps: &[Stamp]| {
            let said = [Condition::new("A", state).of_generation(Some(3))];
            let one = stamped(&stored, &said, stamps, "2").remove(0);
            assert_eq!(one["observedGeneration"], 3);
            one.as_object()
                .unwrap()
                .iter()
                .filter(|(key, _)| key.starts_with("last"))
                .map(|(key, time)| format!("{key} {}", time.as_str().unwrap_or("null")))
                .collect::<Vec<_>>()
                .join(", ")
        };
        assert_eq!(times(true, PLAIN), "lastTransitionTime 1");
        assert_eq!(times(false, PLAIN), "lastTransitionTime 2");
        assert_eq!(times(true, OF_PODS), "lastProbeTime null, lastTransitionTime 1");
        assert_eq!(times(true, OF_NODES), "lastHeartbeatTime 2, lastTransitionTime 1");
        assert_eq!(times(false, OF_SILENT_NODES), "lastHeartbeatTime 1, lastTransitionTime 2");
        assert_eq!(times(true, OF_JOBS), "lastProbeTime 1, lastTransitionTime 1");
        assert_eq!(times(false, OF_JOBS), "lastProbeTime 2, lastTransitionTime 2");
        assert_eq!(times(true, OF_DEPLOYMENTS), "lastTransitionTime 1, lastUpdateTime 1");
    }

    #[test]
    fn what_is_said_already_is_recognised() {
        let stored = json!([{"type": "A", "status": "True", "reason": "r", "message": "m", "observedGeneration": 1}]);
        let said = Condition::new("A", true).because("r", "m");
        assert!(said.is_said_in(&stored) && Condition::said_by(&stored[0]).is_said_in(&stored));
        let others = [Condition::new("B", true), Condition::new("A", State::Unknown), said.because("r", "other")];
        assert!(others.iter().all(|other| !other.is_said_in(&stored) && !other.is_said_in(&Value::Null)));
    }

    #[test]
    fn others_come_after_ours() {
        let stored = json!([{"type": "gate"}, {"type": "Ready", "status": "False"}, {"type": "Old"}]);
        let wanted = json!([{"type": "Ready", "status": "True"}]);
        let merged = beside_others(&stored, &["Ready", "Old"], &wanted);
        assert_eq!(json!(merged), json!([{"type": "Ready", "status": "True"}, {"type": "gate"}]));
    }
}
