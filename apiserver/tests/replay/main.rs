//! Replays recorded requests against a server of ours and compares the answers with those of a real v1.34.3 server.
//!
//! The corpus lies in `tests/tape` (its README says how to record it anew). `passing.txt` names the cases whose answers
//! are equal: one of them that differs fails the test, and so does a new one that is not in the list yet.
//! `TAPE_REFRESH=1` writes the list anew; `TAPE_ONLY=e-writes/apply` runs and prints the cases whose name contains that.
#![expect(clippy::unwrap_used, reason = "a test")]

mod answer;
mod cases;
mod client;
mod normal;
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use apiserver::nodes::NoNodes;
use apiserver::server::{Config, Server};
use futures::StreamExt;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::answer::compare;
use crate::client::Credentials;

/// Cases at a time: each has a namespace and a prefix of its own.
const AT_ONCE: usize = 4;
/// Lines of a difference that are shown.
const SHOWN: usize = 12;

fn tape(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tape").join(name)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The recorded answers by `group/case`.
fn recorded(group: &str) -> BTreeMap<String, Vec<Value>> {
    let mut all: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in read(&tape(&format!("tapes/{group}.jsonl"))).lines() {
        let mut answer: Value = serde_json::from_str(line).unwrap();
        let case = answer.as_object_mut().unwrap().remove("case").unwrap();
        all.entry(format!("{group}/{}", case.as_str().unwrap())).or_default().push(answer);
    }
    all
}

fn groups() -> Vec<String> {
    let files = std::fs::read_dir(tape("cases")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = files
        .filter_map(|name| name.to_str().and_then(|name| name.strip_suffix(".cases")).map(str::to_owned))
        .collect();
    names.sort();
    names
}

/// A server on loopback with an empty store in `dir`, and what it takes to talk to it as a master.
async fn server(dir: &Path, stop: CancellationToken) -> Credentials {
    let config = Config::on_loopback(dir.join("store.redb"));
    let server = Server::open(&config, Arc::new(NoNodes)).await.unwrap();
    let admin = server.authority().client("admin", &["system:masters"]).unwrap();
    let credentials =
        Credentials::new(server.address(), &server.authority().ca_certificate, &admin.certificate, &admin.key);
    tokio::spawn(server.serve(stop));
    credentials
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_answers_are_given_again() {
    let only = std::env::var("TAPE_ONLY").unwrap_or_default();
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let credentials = Arc::new(server(dir.path(), stop.clone()).await);
    let bases: Arc<Value> = Arc::new(serde_json::from_str(&read(&tape("cases/bases.json"))).unwrap());
    let mut all = Vec::new();
    let mut wanted = BTreeMap::new();
    for group in groups() {
        wanted.append(&mut recorded(&group));
        let parsed = cases::parse(&read(&tape(&format!("cases/{group}.cases"))));
        all.extend(parsed.into_iter().map(|case| (format!("{group}/{}", case.name), case)));
    }
    all.retain(|(name, _)| name.contains(&only));
    let runs = futures::stream::iter(all).map(|(name, case)| {
        let (credentials, bases) = (credentials.clone(), bases.clone());
        async move { (name, tokio::spawn(run::run(credentials, case.steps, bases)).await.unwrap()) }
    });
    let answers: Vec<_> = runs.buffer_unordered(AT_ONCE).collect().await;
    stop.cancel();
    let mut differences = BTreeMap::new();
    for (name, answers) in answers {
        let want = wanted.get(&name).unwrap_or_else(|| panic!("{name} is not recorded"));
        differences.insert(name, compare(want, &answers));
    }
    judge(&differences, &only);
}

/// Holds what passed against the list of what has to.
fn judge(differences: &BTreeMap<String, Vec<String>>, only: &str) {
    let passing: BTreeSet<&str> =
        differences.iter().filter(|(_, lines)| lines.is_empty()).map(|(name, _)| name.as_str()).collect();
    println!("{} of {} cases pass", passing.len(), differences.len());
    let list = tape("passing.txt");
    if std::env::var_os("TAPE_REFRESH").is_some() && only.is_empty() {
        let text: String = passing.iter().map(|name| format!("{name}\n")).collect();
        std::fs::write(&list, text).unwrap();
        return;
    }
    let text = if list.exists() { read(&list) } else { String::new() };
    let known: BTreeSet<&str> = text.lines().filter(|name| name.contains(only)).collect();
    let shown = |name: &&str| {
        let lines = differences.get(*name).map(Vec::as_slice).unwrap_or_default();
        let lines: String = lines.iter().take(SHOWN).map(|line| format!("    {line}\n")).collect();
        format!("{name} differs\n{lines}")
    };
    if !only.is_empty() {
        differences
            .keys()
            .map(String::as_str)
            .filter(|name| !passing.contains(name))
            .for_each(|name| print!("{}", shown(&name)));
    }
    let lost: Vec<&str> = known.difference(&passing).copied().collect();
    let fresh: Vec<&str> = passing.difference(&known).copied().collect();
    assert!(lost.is_empty(), "{} cases are lost\n{}", lost.len(), lost.iter().map(shown).collect::<String>());
    assert!(
        fresh.is_empty(),
        "these cases pass now, keep them: TAPE_REFRESH=1 cargo test -p apiserver --test replay\n{}",
        fresh.join("\n")
    );
}
