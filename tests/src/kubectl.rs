//! The real kubectl, as a user of one namespace runs it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{LIMIT, succeeded, text, workspace};

/// kubectl for one cluster and namespace.
#[derive(Debug, Clone)]
pub struct Kubectl {
    kubeconfig: String,
    namespace: String,
}

impl Kubectl {
    pub(crate) fn new(kubeconfig: &str, namespace: &str) -> Self {
        Self { kubeconfig: kubeconfig.to_owned(), namespace: namespace.to_owned() }
    }

    pub(crate) fn within(&self, namespace: &str) -> Self {
        Self::new(&self.kubeconfig, namespace)
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A command to be started by whoever needs it running.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.args(["--kubeconfig", &self.kubeconfig, "--namespace", &self.namespace]);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs it; its output, whatever its end.
    ///
    /// # Errors
    /// When kubectl cannot be run. That it failed is in the output.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<Output> {
        whole(|| self.kubectl_command(arguments).output().context("cannot run kubectl"))
    }

    /// Runs it, which must succeed; its standard output.
    ///
    /// # Errors
    /// When it cannot be run or fails: with the command and what it wrote to standard error.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        succeeded(self.try_kubectl(arguments)?, &format!("kubectl {}", arguments.join(" ")))
    }

    /// Runs it, which must fail; what it said.
    ///
    /// # Errors
    /// When it cannot be run or succeeds.
    pub fn kubectl_fails(&self, arguments: &[&str]) -> Result<String> {
        let output = self.try_kubectl(arguments)?;
        ensure!(!output.status.success(), "kubectl {} succeeded: {}", arguments.join(" "), text(&output.stdout));
        Ok(text(&output.stderr))
    }

    /// Runs it with standard input and an environment.
    ///
    /// # Errors
    /// When it cannot be run, or ends before it has read all of the input. That it failed is in the output.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str, environment: &[(&str, &str)]) -> Result<Output> {
        whole(|| {
            let mut command = self.kubectl_command(arguments);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.envs(environment.iter().copied()).spawn().context("cannot run kubectl")?;
            child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
            child.wait_with_output().context("kubectl did not end")
        })
    }

    /// The first lines of a command that would go on; it is ended after them.
    ///
    /// # Errors
    /// When it cannot be run, or gives fewer lines than wanted, each within [`LIMIT`].
    pub fn follow(&self, arguments: &[&str], lines: usize) -> Result<Vec<String>> {
        let mut child = self.kubectl_command(arguments).stdout(Stdio::piped()).spawn().context("cannot run kubectl")?;
        let out = child.stdout.take().context("no standard output")?;
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut read = Vec::new();
        while read.len() < lines
            && let Ok(line) = receiver.recv_timeout(LIMIT)
        {
            read.push(line);
        }
        child.kill().context("cannot end kubectl")?;
        child.wait().context("kubectl did not end")?;
        ensure!(read.len() == lines, "kubectl {} ended after {} lines", arguments.join(" "), read.len());
        Ok(read)
    }

    /// Applies one of the project's examples.
    ///
    /// # Errors
    /// As for [`Kubectl::kubectl`].
    pub fn apply(&self, example: &str) -> Result<String> {
        let path = workspace().join("examples").join(example).display().to_string();
        self.kubectl(&["apply", "-f", &path])
    }

    /// Applies a manifest given as text.
    ///
    /// # Errors
    /// As for [`Kubectl::kubectl`].
    pub fn apply_text(&self, manifest: &str) -> Result<String> {
        succeeded(self.kubectl_with(&["apply", "-f", "-"], &yaml(manifest), &[])?, "kubectl apply -f -")
    }

    /// A value of an object, by JSONPath.
    ///
    /// # Errors
    /// As for [`Kubectl::kubectl`]. An object that lacks the value gives empty text.
    pub fn get(&self, what: &[&str], path: &str) -> Result<String> {
        let output = format!("jsonpath={path}");
        let mut arguments = vec!["get"];
        arguments.extend_from_slice(what);
        arguments.extend(["-o", &output]);
        self.kubectl(&arguments)
    }

    /// How many objects of a kind have a label.
    ///
    /// # Errors
    /// As for [`Kubectl::kubectl`].
    pub fn count(&self, kind: &str, label: &str) -> Result<usize> {
        Ok(self.kubectl(&["get", kind, "-l", label, "--no-headers"])?.lines().count())
    }

    /// Waits until pods, named as `pod/NAME`, are ready.
    ///
    /// # Errors
    /// When one of them is not there, or not ready within a minute.
    pub fn wait_ready(&self, pods: &[&str]) -> Result<()> {
        let mut arguments = vec!["wait", "--for=condition=Ready", "--timeout=60s"];
        arguments.extend_from_slice(pods);
        self.kubectl(&arguments).map(drop)
    }
}

/// What kubectl before 1.34 says when it has lost output of a command: what came in before it was ready for it.
const LOST: &str = "Unknown stream id";
const TRIES: usize = 5;

/// Runs something until nothing of its output was lost on the way.
fn whole(run: impl Fn() -> Result<Output>) -> Result<Output> {
    for _ in 1..TRIES {
        let output = run()?;
        if !text(&output.stderr).contains(LOST) {
            return Ok(output);
        }
    }
    run()
}

/// Text that kubectl takes for YAML even where it opens with a brace.
pub fn yaml(manifest: &str) -> String {
    format!("---\n{manifest}")
}
