//! The agent as a process of its own, ended by SIGKILL at many moments while it starts and stops pods. Needs root.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use support::{TestNode, pod, uid_of};

const ROLE: &str = "AMPHIPOD_TEST_AGENT";

/// The other process: an agent that takes pods as lines of JSON and says `ready` and `removed` about them.
#[test]
#[ignore = "run by the other test as a process of its own"]
fn the_agent_process() {
    let Ok(text) = std::env::var(ROLE) else { return };
    let settings: Value = serde_json::from_str(&text).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let node = TestNode::in_folder(&settings).await;
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in std::io::stdin().lines() {
                if sender.send(serde_json::from_str::<Value>(&line.unwrap()).unwrap()).is_err() {
                    return;
                }
            }
        });
        while let Some(pod) = receiver.recv().await {
            node.agent().sync(Arc::new(pod.clone()));
            if pod["metadata"]["deletionTimestamp"].is_null() {
                node.wait_ready(uid_of(&pod)).await;
                println!("\nready");
            } else {
                node.wait_removed(uid_of(&pod)).await;
                println!("\nremoved");
            }
        }
    });
}

struct Process {
    child: Child,
    words: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn start(node: &TestNode) -> Process {
        let folder = node.folder.path().to_str().unwrap();
        let settings = json!({"folder": folder, "cgroup": node.config.cgroup_root, "registry": support::registry()});
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "the_agent_process", "--nocapture"])
            .env(ROLE, settings.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let words = BufReader::new(child.stdout.take().unwrap());
        Process { child, words }
    }

    fn tell(&mut self, pod: &Value) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{pod}").unwrap();
    }

    fn hear(&mut self, word: &str) {
        let mut line = String::new();
        while line.trim() != word {
            line.clear();
            assert_ne!(self.words.read_line(&mut line).unwrap(), 0, "the agent process ended before {word:?}");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill(); // ended already is as good
        self.child.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigkill_at_any_moment() {
    let mut node = TestNode::start("sigkill").await;
    node.kill_agent().await;
    for round in 0..6_u64 {
        let script = "trap 'exit 0' TERM; sleep 1000 & wait";
        let pod = pod(&format!("round-{round}"), json!({"command": ["sh", "-c", script]}));
        let mut process = Process::start(&node);
        process.tell(&pod);
        tokio::time::sleep(Duration::from_millis(20 + round * 32)).await;
        drop(process);
        let mut process = Process::start(&node);
        process.tell(&pod);
        process.hear("ready");
        let mut doomed = pod.clone();
        doomed["metadata"]["deletionTimestamp"] = json!(jiff::Timestamp::now().to_string());
        doomed["metadata"]["deletionGracePeriodSeconds"] = json!(2);
        process.tell(&doomed);
        tokio::time::sleep(Duration::from_millis(round * 22)).await;
        drop(process);
        let mut process = Process::start(&node);
        process.tell(&doomed);
        process.hear("removed");
        drop(process);
        assert_eq!(node.leftovers(), Vec::<String>::new(), "round {round}");
    }
}
