//! Field ownership: managedFields on every write, and server-side apply.
//!
//! Ownership is counted on the object as the writer sent it, defaults included, **before** admission and strategy
//! change it: what the server adds belongs to nobody.

mod fieldset;
mod typed;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use self::fieldset::FieldSet;
use self::typed::Difference;
use crate::kind::{Kind, Part};
use crate::status::{Cause, Status};
use crate::time::rfc3339;

/// Who writes.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    pub manager: &'a str,
    /// `None`: the object itself.
    pub part: Option<Part>,
    pub now: Timestamp,
}

impl Writer<'_> {
    /// As entries name it: "" for the object itself.
    fn part_name(&self) -> &'static str {
        self.part.map_or("", Part::name)
    }
}

/// What becomes of fields that an apply changes and others own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflicts {
    Refuse,
    /// They are the applier's from then on.
    Force,
}

/// One entry of managedFields.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    manager: String,
    apply: bool,
    api_version: String,
    time: Option<String>,
    subresource: String,
    fields: FieldSet,
}

/// Brings `new.metadata.managedFields` up to date after a create (`old` is `None`) or update. Call it after defaults
/// and before admission and strategy. What did not change keeps its entries and times.
pub fn update(kind: &Kind, old: Option<&Value>, new: &mut Value, writer: Writer) {
    let empty = empty_object(kind);
    let live = old.unwrap_or(&empty);
    let mut entries = entries_to_update(old, new, writer.part);
    take_managed_fields(new);
    if old.is_none() {
        // A new object is not being deleted, whatever was sent.
        for name in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
            new.get_mut("metadata").and_then(Value::as_object_mut).map(|m| m.remove(name));
        }
    }
    // A stored object that nobody tracks stays so until its first apply.
    if old.is_some() && entries.is_empty() {
        return;
    }
    let difference = typed::compare(&kind.schema, live, new).without(&ignored(kind, writer.part));
    let own = Entry {
        manager: writer.manager.into(),
        apply: false,
        api_version: kind.api_version(),
        time: None,
        subresource: writer.part_name().into(),
        fields: FieldSet::default(),
    };
    record(&mut entries, own, &difference, writer.now);
    write_entries(new, limited(entries));
}

/// Server-side apply: the live object merged with what `applied` asks for, entries included. The result still goes
/// through decoding, defaults, admission, strategy and validation.
///
/// # Errors
/// 409 when others own what would change and conflicts are refused: a cause for each field. 400 when `applied` is of
/// another kind or has managedFields; 500, as upstream, when it does not fit its type.
pub fn apply(
    kind: &Kind,
    live: Option<&Value>,
    applied: &Value,
    writer: Writer,
    conflicts: Conflicts,
) -> Result<Value, Status> {
    check_applied(kind, applied)?;
    let empty = empty_object(kind);
    let current = live.unwrap_or(&empty);
    let mut entries = live.and_then(read_entries).unwrap_or_default();
    if let Some(live) = live.filter(|_| entries.is_empty()) {
        entries.push(before_first_apply(kind, live, writer.now));
    }
    let ignored = ignored(kind, writer.part);
    let mut config = applied.clone();
    take_managed_fields(&mut config);
    let owned = strip(typed::paths(&kind.schema, &config)).recursive_difference(&ignored);
    let is_own = |e: &Entry| e.apply && e.manager == writer.manager && e.subresource == writer.part_name();
    let previous = entries.iter().find(|e| is_own(e)).cloned();

    let merged = typed::merge(&kind.schema, current, &config);
    let merged = match &previous {
        Some(previous) => prune(kind, &merged, &previous.fields, &owned, &entries, writer),
        None => merged,
    };
    let difference = typed::compare(&kind.schema, current, &merged).without(&ignored);
    let changed = difference.modified.union(&difference.added);
    let owned_by_others: Vec<(Entry, FieldSet)> = entries
        .iter()
        .filter(|e| !is_own(e))
        .map(|e| (e.clone(), e.fields.intersection(&changed)))
        .filter(|(_, set)| !set.is_empty())
        .collect();
    if conflicts == Conflicts::Refuse {
        let allowed = moved_from_client_side(kind, live, writer.manager);
        let real: Vec<(Entry, FieldSet)> = owned_by_others
            .into_iter()
            .map(|(entry, set)| (entry, set.difference(&allowed)))
            .filter(|(_, set)| !set.is_empty())
            .collect();
        if !real.is_empty() {
            return Err(conflict(&real));
        }
    }
    release(&mut entries, &difference, is_own);
    // One that changes no field of the object keeps the time of the apply before.
    let time = if difference.is_empty() { previous.and_then(|entry| entry.time) } else { Some(rfc3339(writer.now)) };
    let own = Entry {
        manager: writer.manager.into(),
        apply: true,
        api_version: kind.api_version(),
        time,
        subresource: writer.part_name().into(),
        fields: owned,
    };
    place(&mut entries, own);
    let mut out = merged;
    if writer.manager == "kubectl" {
        update_last_applied(&mut out, live, &config);
    }
    write_entries(&mut out, entries);
    Ok(out)
}

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// kubectl's annotation follows its server-side applies, so that either side of it can be used next.
fn update_last_applied(object: &mut Value, live: Option<&Value>, config: &Value) {
    if live.is_none_or(|live| live["metadata"]["annotations"].get(LAST_APPLIED).is_none()) {
        return;
    }
    let mut config = config.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    object["metadata"]["annotations"][LAST_APPLIED] = json!(format!("{config}\n"));
}

/// Fields that `kubectl` applied from the client before: it may take those without a conflict.
fn moved_from_client_side(kind: &Kind, live: Option<&Value>, manager: &str) -> FieldSet {
    let last = || {
        let annotations = live.filter(|_| manager == "kubectl")?.pointer("/metadata/annotations")?;
        let text = annotations[LAST_APPLIED].as_str()?;
        serde_json::from_str::<Value>(text).ok()
    };
    last().map(|object| typed::paths(&kind.schema, &object)).unwrap_or_default()
}

/// Puts the applier's entry in place of its old one.
fn place(entries: &mut Vec<Entry>, own: Entry) {
    let same = |e: &Entry| e.apply && e.manager == own.manager && e.subresource == own.subresource;
    let at = entries.iter().position(same);
    match at {
        _ if own.fields.is_empty() => entries.retain(|e| !same(e)),
        Some(at) => entries[at] = own,
        None => entries.push(own),
    }
}

/// Fields that this manager applied before, does not apply now, and nobody else owns.
fn prune(kind: &Kind, merged: &Value, before: &FieldSet, now: &FieldSet, entries: &[Entry], writer: Writer) -> Value {
    let others = entries
        .iter()
        .filter(|e| !(e.apply && e.manager == writer.manager && e.subresource == writer.part_name()))
        .fold(now.clone(), |set, e| set.union(&e.fields));
    let gone = before.difference_of_free(&others);
    typed::remove(&kind.schema, merged, &gone)
}

/// Takes changed and removed fields from everyone else.
fn release(entries: &mut Vec<Entry>, difference: &Difference, is_own: impl Fn(&Entry) -> bool) {
    let changed = difference.modified.union(&difference.added).union(&difference.removed);
    for entry in entries.iter_mut().filter(|e| !is_own(e)) {
        entry.fields = entry.fields.difference(&changed);
    }
    entries.retain(|e| is_own(e) || !e.fields.is_empty());
}

/// An update: the writer gains what it changed, everyone loses it.
fn record(entries: &mut Vec<Entry>, mut own: Entry, difference: &Difference, now: Timestamp) {
    release(entries, difference, |_| false);
    own.fields = strip(difference.modified.union(&difference.added));
    if own.fields.is_empty() {
        return;
    }
    // Upstream gives entries that come through the scale subresource no time.
    own.time = (own.subresource != Part::Scale.name()).then(|| rfc3339(now));
    let same = |e: &Entry| {
        !e.apply && e.manager == own.manager && e.api_version == own.api_version && e.subresource == own.subresource
    };
    match entries.iter_mut().find(|e| same(e)) {
        Some(entry) => {
            entry.fields = entry.fields.union(&own.fields);
            entry.time = own.time;
        }
        None => entries.push(own),
    }
}

/// Updaters that an object tells apart.
const UPDATERS: usize = 10;
/// The name that the others share.
const ANCIENT: &str = "ancient-changes";

/// Of too many updaters those who wrote longest ago share an entry, one for each version.
fn limited(entries: Vec<Entry>) -> Vec<Entry> {
    let (mut all, mut updaters): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().filter(|entry| !entry.fields.is_empty()).partition(|entry| entry.apply);
    let mut over = updaters.len().saturating_sub(UPDATERS);
    let is_ancient = |e: &Entry| e.manager == ANCIENT && e.subresource.is_empty();
    let age =
        |e: &Entry| (!is_ancient(e), e.time.clone(), e.manager.clone(), e.api_version.clone(), e.subresource.clone());
    updaters.sort_by_cached_key(age);
    let mut kept: Vec<Entry> = Vec::new();
    for entry in updaters {
        match kept.iter_mut().find(|first| over > 0 && first.api_version == entry.api_version) {
            Some(first) => {
                first.fields = first.fields.union(&entry.fields);
                first.time = entry.time;
                first.manager = ANCIENT.into();
                first.subresource = String::new();
                over -= 1;
            }
            None => kept.push(entry),
        }
    }
    all.append(&mut kept);
    all
}

fn conflict(conflicts: &[(Entry, FieldSet)]) -> Status {
    let described = |entry: &Entry| {
        let subresource = match entry.subresource.as_str() {
            "" => String::new(),
            name => format!(" with subresource {name:?}"),
        };
        // Appliers are named alone, updaters with the version they used.
        let using = if entry.apply { String::new() } else { format!(" using {}", entry.api_version) };
        format!("{:?}{subresource}{using}", entry.manager)
    };
    let mut causes = Vec::new();
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for (entry, set) in conflicts {
        let who = described(entry);
        for path in set.leaves().paths() {
            causes.push(Cause {
                reason: "FieldManagerConflict".into(),
                message: format!("conflict with {who}"),
                field: path.clone(),
            });
            match groups.iter_mut().find(|(name, _)| *name == who) {
                Some((_, paths)) => paths.push(path),
                None => groups.push((who.clone(), vec![path])),
            }
        }
    }
    let message = match groups.as_slice() {
        [(who, paths)] if paths.len() == 1 => format!("conflict with {who}: {}", paths[0]),
        _ => groups
            .iter()
            .map(|(who, paths)| {
                let list: String = paths.iter().map(|p| format!("\n- {p}")).collect();
                format!("conflicts with {who}:{list}")
            })
            .collect::<Vec<_>>()
            .join("\n"),
    };
    let count = causes.len();
    let noun = if count == 1 { "conflict" } else { "conflicts" };
    Status::apply_conflict(format!("Apply failed with {count} {noun}: {message}"), causes)
}

fn check_applied(kind: &Kind, applied: &Value) -> Result<(), Status> {
    if applied.pointer("/metadata/managedFields").is_some_and(|v| !v.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let text = |field: &str| applied[field].as_str().unwrap_or_default();
    if text("apiVersion") != kind.api_version() || text("kind") != kind.kind {
        let version = text("apiVersion");
        let shown = if version.contains('/') { version.to_owned() } else { format!("/{version}") };
        return Err(Status::bad_request(format!("invalid object type: {shown}, Kind={}", text("kind"))));
    }
    typed::check(&kind.schema, applied).map_err(|why| {
        let name = |key: &str| applied["metadata"][key].as_str().unwrap_or_default();
        let version = kind.api_version();
        let gvk = if kind.group.is_empty() { format!("/{version}") } else { version };
        Status::unknown(format!(
            "failed to create typed patch object ({}/{}; {gvk}, Kind={}): {why}",
            name("namespace"),
            name("name"),
            kind.kind
        ))
    })
}

/// An object that nobody managed yet: what it holds belongs to whoever wrote it before.
fn before_first_apply(kind: &Kind, live: &Value, now: Timestamp) -> Entry {
    let all = typed::compare(&kind.schema, &empty_object(kind), live).without(&ignored(kind, None));
    Entry {
        manager: "before-first-apply".into(),
        apply: false,
        api_version: kind.api_version(),
        time: Some(rfc3339(now)),
        subresource: String::new(),
        fields: strip(all.added.union(&all.modified)),
    }
}

/// Metadata that belongs to the server.
fn strip(set: FieldSet) -> FieldSet {
    let mut fixed = FieldSet::default();
    fixed.insert(&["f:apiVersion"]);
    fixed.insert(&["f:kind"]);
    fixed.insert(&["f:metadata"]);
    for name in
        ["name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "managedFields", "resourceVersion"]
    {
        fixed.insert(&["f:metadata", &format!("f:{name}")]);
    }
    set.difference(&fixed)
}

/// What a write through this path cannot change, and so cannot own.
fn ignored(kind: &Kind, part: Option<Part>) -> FieldSet {
    let mut set = FieldSet::default();
    match part {
        Some(Part::Status) => {
            set.insert(&["f:spec"]);
            // Upstream counts what a defined kind's status takes along before it lets it go.
            for path in kind.behaviour.status_keeps.iter().filter(|_| kind.custom.is_none()) {
                set.insert(&["f:metadata", &format!("f:{path}")]);
            }
        }
        None if kind.subresource(Part::Status).is_some() => set.insert(&["f:status"]),
        _ => {}
    }
    set
}

/// What a new object is compared with: the zero value of its type.
fn empty_object(kind: &Kind) -> Value {
    crate::decode::canonical(&kind.gvk(), &kind.schema, &json!({}))
}

/// The sender's entries, or the stored ones when it sent none or a part; `[{}]` resets them.
fn entries_to_update(old: Option<&Value>, new: &Value, part: Option<Part>) -> Vec<Entry> {
    let stored = || old.and_then(read_entries).unwrap_or_default();
    let sent = new["metadata"]["managedFields"].as_array();
    match sent.map(Vec::as_slice) {
        _ if part.is_some() => stored(),
        Some([Value::Object(only)]) if only.is_empty() || only.values().all(Value::is_null) => Vec::new(),
        Some([_, ..]) => read_entries(new).unwrap_or_else(stored),
        _ => stored(),
    }
}

/// `None` where one of them cannot be read: then none is.
fn read_entries(object: &Value) -> Option<Vec<Entry>> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let operation = |apply: &Value| match apply.as_str()? {
        "Apply" => Some(true),
        "Update" => Some(false),
        _ => None,
    };
    object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|e| {
            let known = e["fieldsType"] == "FieldsV1" && !text(&e["apiVersion"]).is_empty();
            let (apply, fields) = (operation(&e["operation"])?, FieldSet::from_json(&e["fieldsV1"])?);
            known.then(|| Entry {
                manager: text(&e["manager"]),
                apply,
                api_version: text(&e["apiVersion"]),
                time: e["time"].as_str().map(String::from),
                subresource: text(&e["subresource"]),
                fields,
            })
        })
        .collect()
}

fn take_managed_fields(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
}

/// Entries in upstream's order: appliers first, then by time, then by name.
fn write_entries(object: &mut Value, mut entries: Vec<Entry>) {
    take_managed_fields(object);
    entries.retain(|e| !e.fields.is_empty());
    if entries.is_empty() {
        return;
    }
    entries.sort_by(|a, b| {
        let key = |e: &Entry| (!e.apply, e.time.clone().unwrap_or_default(), e.manager.clone(), e.api_version.clone());
        key(a).cmp(&key(b)).then_with(|| a.subresource.cmp(&b.subresource))
    });
    let list: Vec<Value> = entries.into_iter().map(Entry::into_value).collect();
    if let Some(root) = object.as_object_mut() {
        let metadata = root.entry("metadata").or_insert_with(|| json!({}));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert("managedFields".into(), Value::Array(list));
        }
    }
}

impl Entry {
    fn into_value(self) -> Value {
        let mut out = Map::new();
        out.insert("manager".into(), json!(self.manager));
        out.insert("operation".into(), json!(if self.apply { "Apply" } else { "Update" }));
        out.insert("apiVersion".into(), json!(self.api_version));
        out.extend(self.time.map(|time| ("time".to_string(), json!(time))));
        out.insert("fieldsType".into(), json!("FieldsV1"));
        out.insert("fieldsV1".into(), self.fields.to_json());
        if !self.subresource.is_empty() {
            out.insert("subresource".into(), json!(self.subresource));
        }
        out.retain(|_, v| *v != json!(""));
        Value::Object(out)
    }
}
