//! `cargo xtask vm`: a command on real machines, for what this one may lack: systemd as the first process, cgroup v2 alone,
//! Debian's kernels with all their modules, AppArmor, a reboot.
//!
//! The machines are emulated in full (no KVM), some twenty times slower than this one: whoever waits in them multiplies
//! by `AMPHIPOD_SLOWNESS`. Each has one disk with a Debian system, made once per kernel below `target/vm` and never
//! written to, and one with what a run brings along: the binary, kubectl, a registry with the test images, the command.
//! The machines of a run share a link of their own; the command runs on the first.

mod machine;
mod root;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser as _;

use crate::setup::{self, find_command, workspace_root};
use machine::{End, Link, Machine};
use root::Root;

#[derive(clap::Args)]
pub struct Arguments {
    /// Debian's kernel of this series
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Machines on one link, 10.91.0.1 and up; all but the first only wait
    #[arg(long, default_value_t = 1)]
    nodes: u8,
    /// How many times slower than real ones the machines are taken to be
    #[arg(long, default_value_t = 20)]
    slowness: u32,
    /// The longest that a run may take
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// The binary to bring along [default: target/release/amphipod, built]
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Run on the first machine as root; `vm-cases` is the project's own list of cases
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// How often a machine is started at most. An emulated processor may run an instruction that the kernel is just exchanging, and the
/// kernel panics; once commands run, hardly any are exchanged.
const STARTS: u32 = 3;

/// Runs the command; its output and exit code are this program's.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!((1..=16).contains(&arguments.nodes), "--nodes {}: 1 to 16 machines", arguments.nodes);
    setup::setup()?;
    setup::setup_vm()?;
    let binary = match &arguments.binary {
        Some(binary) => binary.clone(),
        None => crate::build::build()?,
    };
    let folder = workspace_root().join("target/vm");
    let root = Root::prepare(&folder, &arguments.kernel)?;
    let run = Run::new(&folder)?;
    let luggage = run.pack(arguments, &binary)?;
    let mut starts = 0;
    loop {
        starts += 1;
        let link = Link::choose()?;
        let machine = |number| Machine::start(&root, &luggage, &link, number, &run.folder);
        let first = machine(1)?;
        let _others = (2..=arguments.nodes).map(machine).collect::<Result<Vec<_>>>()?;
        match first.finish(Duration::from_secs(60 * arguments.minutes))? {
            End::Done(code) => return Ok(code),
            End::NeverBegan(console) if starts == STARTS => {
                bail!("the machine ended while it started; its console:\n{console}")
            }
            End::NeverBegan(_) => eprintln!("vm: the machine ended while it started, and is started again"),
        }
    }
}

/// The project's own cases, with the settings that a command line without flags has.
pub fn cases() -> Result<()> {
    let words = ["vm", "--", "vm-cases"];
    let code = run(&Words::parse_from(words).arguments)?;
    ensure!(code == ExitCode::SUCCESS, "the cases failed");
    Ok(())
}

#[derive(clap::Parser)]
struct Words {
    #[command(flatten)]
    arguments: Arguments,
}

/// What belongs to one run; gone after it.
struct Run {
    folder: PathBuf,
}

impl Run {
    fn new(folder: &Path) -> Result<Run> {
        let folder = folder.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        Ok(Run { folder })
    }

    /// The second disk.
    fn pack(&self, arguments: &Arguments, binary: &Path) -> Result<PathBuf> {
        let luggage = self.folder.join("luggage");
        let programs = luggage.join("bin");
        fs::create_dir_all(&programs)?;
        let kubectl = find_kubectl()?;
        for (from, name) in [(binary, "amphipod"), (kubectl.as_path(), "kubectl")] {
            fs::copy(from, programs.join(name)).with_context(|| format!("copy {}", from.display()))?;
        }
        for (name, text) in [("vm-run", include_str!("vm/run.sh")), ("vm-cases", include_str!("vm/cases.sh"))] {
            fs::write(programs.join(name), text)?;
            fs::set_permissions(programs.join(name), fs::Permissions::from_mode(0o755))?;
        }
        let words: Vec<String> = arguments.command.iter().map(|word| quoted(word)).collect();
        let slowness = arguments.slowness;
        fs::write(luggage.join("command"), format!("AMPHIPOD_SLOWNESS={slowness}\n{}\n", words.join(" ")))?;
        copy_tree(&registry()?, &luggage.join("registry"))?;
        let disk = self.folder.join("luggage.img");
        root::make_disk(&luggage, &disk, root::size_of(&luggage)? + (64 << 20))?;
        Ok(disk)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("vm: {} stays behind: {error}", self.folder.display());
        }
    }
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The program itself: what PATH names may be a dispatcher that chooses a version from beside it.
fn find_kubectl() -> Result<PathBuf> {
    let found = fs::canonicalize(find_command("kubectl").context("no kubectl on PATH")?)?;
    let beside = fs::read_dir(found.parent().unwrap_or(Path::new("/")))?.flatten().map(|entry| entry.path());
    let versions = beside.filter(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("kubectl.1."))
    });
    Ok(versions.max_by_key(|path| minor(path)).unwrap_or(found))
}

fn minor(path: &Path) -> usize {
    path.extension().and_then(|minor| minor.to_str()?.parse().ok()).unwrap_or(0)
}

/// The content of a registry that holds the test images.
fn registry() -> Result<PathBuf> {
    let folder = workspace_root().join("target/registry");
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let listen = format!("127.0.0.1:{port}");
    let _registry = images::start_registry(&listen, None, &folder)?;
    images::images(&listen, None, &workspace_root().join("target/images"))?;
    Ok(folder.join("data"))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().context("run cp")?;
    ensure!(status.success(), "copy {}", from.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        for word in ["plain", "two words", "it's", "$HOME `x` \"y\" \\", "", "a\nb"] {
            let script = format!("printf %s {}", quoted(word));
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }

    #[test]
    fn the_newest_kubectl_is_the_one_with_the_greatest_number() {
        assert!(minor(Path::new("/x/kubectl.1.33")) > minor(Path::new("/x/kubectl.1.9")));
    }
}
