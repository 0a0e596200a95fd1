//! What one writer was told, and what may be true besides: a write that got no answer happened or did not.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use e2e::Space;
use serde_json::Value;

/// Names that a writer changes in turn.
const NAMES: usize = 5;

/// The text of an object; `None` when there is no such object.
type Text = Option<String>;

pub struct Ledger {
    writer: usize,
    step: usize,
    acknowledged: usize,
    /// What may be there, by name: one possibility once a write was acknowledged, more after writes without an answer.
    possible: BTreeMap<String, Vec<Text>>,
    /// The highest version ever seen: none may be given out again.
    version: u64,
}

impl Ledger {
    pub fn new(writer: usize) -> Self {
        Self { writer, step: 0, acknowledged: 0, possible: BTreeMap::new(), version: 0 }
    }

    pub fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    /// Creates, changes or deletes one object. A refusal is told apart from silence by looking, in [`Self::check`].
    pub fn write(&mut self, space: &Space<'_>) {
        self.step += 1;
        let name = format!("soak-{}-{}", self.writer, self.step % NAMES);
        let text = format!("step {}", self.step);
        let possible = self.possible.entry(name.clone()).or_insert_with(|| vec![None]);
        let manifest = format!(
            "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}, labels: {{soak: \"{}\"}}}}, data: {{text: {text}}}}}",
            self.writer
        );
        let there = possible.iter().any(Option::is_some);
        let delete = there && self.step.is_multiple_of(7);
        let wanted = (!delete).then_some(text);
        let output = if delete {
            space.try_kubectl(&["delete", "configmap", &name, "--ignore-not-found", "--request-timeout=5s"])
        } else {
            space.kubectl_with(
                &["apply", "--request-timeout=5s", "--validate=false", "-f", "-"],
                &e2e::yaml(&manifest),
                &[],
            )
        };
        if output.is_ok_and(|output| output.status.success()) {
            self.acknowledged += 1;
            *possible = vec![wanted];
        } else if !possible.contains(&wanted) {
            possible.push(wanted);
        }
    }

    /// Looks at what is there. What was in doubt is known afterwards.
    pub fn check(&mut self, space: &Space<'_>) -> Result<()> {
        // kubectl's own lists leave out their version.
        let path = format!("/api/v1/namespaces/{}/configmaps?labelSelector=soak%3D{}", space.namespace(), self.writer);
        let list = space.kubectl(&["get", "--raw", &path])?;
        let list: Value = serde_json::from_str(&list).context("a list")?;
        let mut found: BTreeMap<String, String> = BTreeMap::new();
        for item in list["items"].as_array().context("items")? {
            let name = item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let version = item["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
            self.version = self.version.max(version);
            found.insert(name, item["data"]["text"].as_str().unwrap_or_default().to_owned());
        }
        for (name, possible) in &mut self.possible {
            let there = found.remove(name);
            ensure!(possible.contains(&there), "{name} is {there:?}; acknowledged or tried: {possible:?}");
            *possible = vec![there];
        }
        ensure!(found.is_empty(), "nobody wrote {found:?}");
        let newest = list["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse::<u64>().ok());
        ensure!(
            newest.is_some_and(|newest| newest >= self.version),
            "the list is older than what was seen: {newest:?}"
        );
        self.version = newest.unwrap_or(self.version);
        Ok(())
    }
}
