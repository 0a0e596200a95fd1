//! Conditions of an object's status: what somebody has to say, merged into what is stored.

use serde_json::{Value, json};

/// A time that a condition carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stamp {
    /// Since when it has this status.
    Transition,
    /// Since when it says just this.
    Update,
    /// When it was last said.
    Heartbeat,
}

impl Stamp {
    fn field(self) -> &'static str {
        match self {
            Self::Transition => "lastTransitionTime",
            Self::Update => "lastUpdateTime",
            Self::Heartbeat => "lastHeartbeatTime",
        }
    }

    /// Whether the stored time still holds.
    fn stays(self, old: &Value, new: &Value) -> bool {
        let same = |field: &str| old[field] == new[field];
        match self {
            Self::Transition => same("status"),
            Self::Update => same("status") && same("reason") && same("message"),
            Self::Heartbeat => false,
        }
    }
}

fn find<'a>(list: &'a [Value], type_: &Value) -> Option<&'a Value> {
    list.iter().find(|condition| condition["type"] == *type_)
}

fn list(stored: &Value) -> &[Value] {
    stored.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The stored conditions with `wanted` in place of those of the same types and of the `own` types; in the order in which
/// they were first stored, new ones last. A time stays while what it is about does.
pub fn merge(stored: &Value, own: &[&str], wanted: Vec<Value>, stamps: &[Stamp], now: &str) -> Vec<Value> {
    let stored = list(stored);
    let stamped = |mut condition: Value| {
        let old = find(stored, &condition["type"]);
        for stamp in stamps {
            let kept = old.filter(|old| stamp.stays(old, &condition)).and_then(|old| old[stamp.field()].as_str());
            condition[stamp.field()] = json!(kept.unwrap_or(now));
        }
        condition
    };
    let wanted: Vec<Value> = wanted.into_iter().map(stamped).collect();
    let kept = stored.iter().filter_map(|old| match find(&wanted, &old["type"]) {
        Some(new) => Some(new),
        None => (!own.iter().any(|own| old["type"] == **own)).then_some(old),
    });
    let new = wanted.iter().filter(|new| find(stored, &new["type"]).is_none());
    kept.chain(new).cloned().collect()
}

/// `wanted`, then what others stored.
pub fn beside_others(stored: &Value, own: &[&str], wanted: &Value) -> Vec<Value> {
    let wanted = list(wanted);
    let is_own = |old: &&Value| own.iter().any(|own| old["type"] == **own) || find(wanted, &old["type"]).is_some();
    let others = list(stored).iter().filter(|old| !is_own(old));
    wanted.iter().chain(others).cloned().collect()
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
        let wanted =
            vec![json!({"type": "A", "status": "True", "reason": "other"}), json!({"type": "C", "status": "False"})];
        let all = [Stamp::Transition, Stamp::Update, Stamp::Heartbeat];
        let merged = merge(&stored, &["A", "B", "C"], wanted, &all, "2");
        let expected = json!([
            {"type": "A", "status": "True", "reason": "other", "lastTransitionTime": "1", "lastUpdateTime": "2", "lastHeartbeatTime": "2"},
            {"type": "Foreign", "status": "True"},
            {"type": "C", "status": "False", "lastTransitionTime": "2", "lastUpdateTime": "2", "lastHeartbeatTime": "2"},
        ]);
        assert_eq!(json!(merged), expected, "B is ours and no longer said");
    }

    #[test]
    fn others_come_after_ours() {
        let stored = json!([{"type": "gate"}, {"type": "Ready", "status": "False"}, {"type": "Old"}]);
        let wanted = json!([{"type": "Ready", "status": "True"}]);
        let merged = beside_others(&stored, &["Ready", "Old"], &wanted);
        assert_eq!(json!(merged), json!([{"type": "Ready", "status": "True"}, {"type": "gate"}]));
    }
}
