//! `/metrics`: the store, limits, Events, the size of every collection, and what this process's node counts, in Prometheus' text form.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::nodes::Nodes as _;
use crate::object::INTERNAL;
use crate::shared::Shared;

pub fn text(shared: &Shared) -> String {
    let cache = shared.engine.cache();
    let mut out = String::from("# TYPE amphipod_store_revision counter\n");
    out += &format!("amphipod_store_revision {}\n", cache.revision());
    let (kept, most) = cache.history_bytes();
    out += &format!("# TYPE amphipod_watch_history_bytes gauge\namphipod_watch_history_bytes {kept}\n");
    out += &format!("# TYPE amphipod_watch_history_limit_bytes gauge\namphipod_watch_history_limit_bytes {most}\n");
    out += "# TYPE amphipod_store_unreadable_objects gauge\n";
    out += &format!("amphipod_store_unreadable_objects {}\n", cache.unreadable());
    let events = &shared.engine.events;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    out += &format!("# TYPE amphipod_events_limit gauge\namphipod_events_limit {}\n", crate::expiry::LIMIT);
    out += "# TYPE amphipod_events_removed_total counter\n";
    out += &format!("amphipod_events_removed_total{{reason=\"age\"}} {}\n", count(&events.expired));
    out += &format!("amphipod_events_removed_total{{reason=\"limit\"}} {}\n", count(&events.pushed_out));
    out += &shared.limits.metrics();
    out += &shared.nodes.metrics();
    let mut collections = cache.collections();
    out += "# TYPE apiserver_storage_objects gauge\n";
    collections.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, objects) in collections.iter().filter(|(name, _)| &*name.group != INTERNAL) {
        let dot = if name.group.is_empty() { "" } else { "." };
        out += &format!(
            "apiserver_storage_objects{{resource=\"{}{dot}{}\"}} {}\n",
            name.plural,
            name.group,
            objects.len()
        );
    }
    out
}
