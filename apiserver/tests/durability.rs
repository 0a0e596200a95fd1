//! A server killed at any moment loses nothing it acknowledged, and gives no version twice.
//!
//! The test runs its own executable again as the server: that child creates, changes and deletes without end, and says
//! on its standard output what it finds, what it is about to do, and what was acknowledged, until the parent kills it
//! somewhere in between. Lines in the pipe outlive the child.
//!
//! `cargo test -p apiserver --test durability -- [--rounds N | --minutes N]`; without either, a short form.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use api::status::Status;
use apiserver::identity::User;
use apiserver::nodes::NoNodes;
use apiserver::server::{Config, Server};
use client::{Client, Resource, Selector};
use serde_json::{Value, json};

const ROUNDS: usize = 25;
const WRITERS: u64 = 8;
/// A child that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// The kill comes so many microseconds after the first acknowledgement, at most.
const LONGEST: u64 = 40_000;
const CONFIG_MAPS: Resource = Resource::core("configmaps");

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let after = |flag: &str| arguments.iter().skip_while(|given| *given != flag).nth(1);
    if let (Some(folder), Some(round)) = (after("child"), after("--round")) {
        tokio::runtime::Runtime::new().unwrap().block_on(child(Path::new(folder), round.parse().unwrap()));
    }
    match (after("--rounds"), after("--minutes")) {
        (Some(rounds), _) => kill(|round| round < rounds.parse().unwrap()),
        (None, Some(minutes)) => {
            let end = Instant::now() + Duration::from_secs(60 * minutes.parse::<u64>().unwrap());
            kill(|_| Instant::now() < end);
        }
        (None, None) => kill(|round| round < ROUNDS),
    }
}

/// Serves and writes until it is killed.
async fn child(folder: &Path, round: u64) {
    let config = Config::on_loopback(folder.join("store.redb"));
    let server = Server::open(&config, Arc::new(NoNodes)).await.unwrap();
    let client = server.client(User::new("writer", &["system:masters"]), "writer");
    for object in client.list(&CONFIG_MAPS, "default", &Selector::default()).await.unwrap().items {
        let text = object.value()["data"]["text"].as_str().unwrap().to_owned();
        say(&format!("has {} {} {text}", object.key.name, object.revision));
    }
    say("ready");
    let writers = (0..WRITERS).map(|writer| tokio::spawn(write(client.clone(), writer, round)));
    futures::future::join_all(writers).await;
}

/// One writer has its objects for itself, so what is acknowledged last is what is there.
async fn write(client: Client, writer: u64, round: u64) {
    let mut numbers = Numbers(round * WRITERS + writer + 1);
    for step in 0_u64.. {
        let name = format!("w{writer}-{}", numbers.below(6));
        let text = format!("{round}/{writer}/{step}");
        let padding = "x".repeat(numbers.below(2000) as usize);
        if numbers.below(4) == 0 {
            say(&format!("tries {name} -"));
            match client.delete(&CONFIG_MAPS, "default", &name, &Default::default()).await {
                Ok(_) => say(&format!("did {name} 0 -")),
                Err(status) if status.code == 404 => say(&format!("did {name} 0 -")),
                Err(status) => panic!("{status}"),
            }
            continue;
        }
        say(&format!("tries {name} {text}"));
        let written = put(&client, &name, json!({"text": text, "padding": padding})).await.unwrap();
        say(&format!("did {name} {} {text}", written["metadata"]["resourceVersion"].as_str().unwrap()));
    }
}

async fn put(client: &Client, name: &str, data: Value) -> Result<Value, Status> {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data});
    match client.create(&CONFIG_MAPS, "default", object).await {
        Err(status) if status.code == 409 => {
            let change = |current: &Value| {
                let mut next = current.clone();
                next["data"] = data.clone();
                Ok(next)
            };
            client.update(&CONFIG_MAPS, "default", name, "", change).await
        }
        outcome => outcome,
    }
}

/// One line, written at once.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush()).unwrap();
}

/// A generator that gives the same numbers each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % limit
    }
}

/// What is known of an object: its version (0 when it was deleted) and text.
type State = (u64, String);

/// The checker: what was acknowledged, and what was under way at the last kill.
#[derive(Default)]
struct Checker {
    acknowledged: BTreeMap<String, State>,
    tried: BTreeMap<String, String>,
    newest: u64,
    writes: usize,
}

impl Checker {
    /// Holds what a new server found against what was acknowledged, and takes it over.
    fn check(&mut self, round: usize, has: BTreeMap<String, State>) {
        let names: Vec<&String> = self.acknowledged.keys().chain(self.tried.keys()).collect();
        for name in names {
            let found = has.get(name).cloned().unwrap_or((0, "-".into()));
            let acknowledged = self.acknowledged.get(name).cloned().unwrap_or((0, "-".into()));
            let under_way = self.tried.get(name).is_some_and(|tried| *tried == found.1);
            assert!(
                found == acknowledged || under_way,
                "round {round}: {name} is {found:?}, {acknowledged:?} was acknowledged"
            );
        }
        let newest = has.values().map(|(version, _)| *version).max().unwrap_or(0);
        self.newest = self.newest.max(newest);
        (self.acknowledged, self.tried) = (has, BTreeMap::new());
    }

    fn did(&mut self, round: usize, name: &str, version: u64, text: &str) {
        self.tried.remove(name);
        // Deletions give no version here; creations and changes give one that nothing had before this start.
        if version > 0 {
            let before = self.acknowledged.get(name).map_or(0, |(version, _)| *version);
            assert!(version > before, "round {round}: {name} got version {version} after {before}");
        }
        self.acknowledged.insert(name.into(), (version, text.into()));
        self.newest = self.newest.max(version);
        self.writes += 1;
    }
}

fn kill(go_on: impl Fn(usize) -> bool) {
    let folder = tempfile::tempdir().unwrap();
    let mut checker = Checker::default();
    let mut numbers = Numbers(u64::from(std::process::id()));
    let mut rounds = 0;
    while go_on(rounds) {
        let mut child = start(folder.path(), rounds);
        let lines = lines(&mut child);
        let wait = Duration::from_micros(numbers.below(LONGEST));
        if let Err(why) = listen(&mut child, &lines, &mut checker, rounds, wait) {
            child.kill().unwrap();
            panic!("round {rounds}: {why}");
        }
        child.wait().unwrap();
        rounds += 1;
        if rounds % 100 == 0 {
            println!("{rounds} kills, {} acknowledged writes, nothing lost", checker.writes);
        }
    }
    assert!(checker.writes >= rounds, "{rounds} rounds saw {} writes", checker.writes);
    println!("{rounds} kills, {} acknowledged writes, nothing lost", checker.writes);
}

fn start(folder: &Path, round: usize) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("child").arg(folder).args(["--round", &round.to_string()]);
    command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
}

/// The child's lines, read beside: a child that hangs must not hang the test.
fn lines(child: &mut Child) -> Receiver<String> {
    let out = BufReader::new(child.stdout.take().unwrap());
    let (send, lines) = channel();
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    lines
}

/// Hears what a child says, kills it `wait` after its first acknowledgement, and hears the rest.
fn listen(
    child: &mut Child,
    lines: &Receiver<String>,
    checker: &mut Checker,
    round: usize,
    wait: Duration,
) -> Result<(), String> {
    let (mut has, mut before, mut kill_at) = (Some(BTreeMap::new()), 0, None);
    loop {
        let left = kill_at.map_or(PATIENCE, |at: Instant| at.saturating_duration_since(Instant::now()));
        let line = match lines.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) if kill_at.is_some() => {
                child.kill().map_err(|error| error.to_string())?;
                kill_at = Some(Instant::now() + PATIENCE);
                continue;
            }
            Err(RecvTimeoutError::Timeout) => return Err("the server says nothing any more".into()),
            Err(RecvTimeoutError::Disconnected) => break,
        };
        match *line.split(' ').collect::<Vec<_>>() {
            ["has", name, version, text] => {
                let has = has.as_mut().ok_or("objects after all objects")?;
                has.insert(name.to_owned(), (version.parse().map_err(|_| line.clone())?, text.to_owned()));
            }
            ["ready"] => {
                checker.check(round, has.take().ok_or("ready twice")?);
                before = checker.newest;
            }
            ["tries", name, text] => drop(checker.tried.insert(name.into(), text.into())),
            ["did", name, version, text] => {
                let version: u64 = version.parse().map_err(|_| line.clone())?;
                if version > 0 && version <= before {
                    return Err(format!("{name} got version {version}, which was given before ({before})"));
                }
                checker.did(round, name, version, text);
                kill_at = kill_at.or_else(|| Some(Instant::now() + wait));
            }
            _ => {}
        }
    }
    if has.is_some() { Err("the server did not start".into()) } else { Ok(()) }
}
