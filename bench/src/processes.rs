//! What processes cost: memory by /proc, CPU time and wake-ups by the scheduler's counts.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// Kibibytes of a field of `smaps_rollup`: `Pss`, `Private_Dirty`.
pub fn memory(pid: u32, field: &str) -> Result<f64> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| format!("process {pid} is gone"))?;
    let line = text.lines().find(|line| line.split(':').next() == Some(field));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).with_context(|| format!("no {field}"))
}

/// Kibibytes of BPF maps that the process has mapped: they are map memory, not the process's.
pub fn mapped_maps(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).with_context(|| format!("process {pid} is gone"))?;
    let (mut inside, mut sum) = (false, 0.0);
    for line in text.lines() {
        if line.contains('-') && line.split_whitespace().count() >= 5 && !line.starts_with(char::is_uppercase) {
            inside = line.ends_with("anon_inode:bpf-map");
        } else if let (true, Some(rest)) = (inside, line.strip_prefix("Pss:")) {
            sum += rest.split_whitespace().next().and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        }
    }
    Ok(sum)
}

/// Nanoseconds of CPU time of all threads, and how often they were woken.
#[derive(Debug, Clone, Copy, Default)]
pub struct Activity {
    pub cpu_ns: u64,
    pub wakeups: u64,
}

pub fn activity(pids: &[u32]) -> Result<Activity> {
    let mut sum = Activity::default();
    for pid in pids {
        for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))? {
            let folder = task?.path();
            let times = fs::read_to_string(folder.join("schedstat"))?;
            sum.cpu_ns += times.split_whitespace().next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
            let status = fs::read_to_string(folder.join("status"))?;
            let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            sum.wakeups += switches.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(sum)
}

/// A process of ours, killed when dropped.
pub struct Peer(Child);

impl Peer {
    /// Starts a command with its output in a file.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let output = fs::File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let errors = output.try_clone()?;
        let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
        Ok(Self(child.with_context(|| format!("cannot start {:?}", command.get_program()))?))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself; nothing is left either way.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command that must succeed; its output.
pub fn command(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    e2e::succeeded(
        output.with_context(|| format!("cannot run {program}"))?,
        &format!("{program} {}", arguments.join(" ")),
    )
}
