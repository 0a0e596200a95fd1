//! Installs what building and testing need and the machine lacks, saying what and why; a second run finds everything in place.
//!
//! Presence is judged by files alone, so that a run with nothing to do costs a few `stat` calls.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// How a machine shows that it already has something.
enum Probe {
    /// An executable of this name on PATH, or in an `sbin` folder that PATH leaves out for ordinary users.
    Command(&'static str),
    File(&'static str),
}

impl Probe {
    fn holds(&self) -> bool {
        match self {
            Self::Command(name) => find_command(name).is_some(),
            Self::File(path) => Path::new(path).exists(),
        }
    }
}

struct Tool {
    probe: Probe,
    package: &'static str,
    why: &'static str,
}

const fn command(name: &'static str, package: &'static str, why: &'static str) -> Tool {
    Tool { probe: Probe::Command(name), package, why }
}

const fn file(path: &'static str, package: &'static str, why: &'static str) -> Tool {
    Tool { probe: Probe::File(path), package, why }
}

/// Debian packages, whichever compiler builds the eBPF programs.
const TOOLS: &[Tool] = &[
    command("cc", "gcc", "links Rust programs"),
    file("/usr/include/seccomp.h", "libseccomp-dev", "headers for the containers' seccomp filters"),
    command("pkg-config", "pkg-config", "finds libseccomp at build time"),
    command("docker-registry", "docker-registry", "a real image registry for test images"),
    command("skopeo", "skopeo", "pushes test images to the registry"),
    command("nginx", "nginx-light", "root file system of the nginx test images"),
    command("busybox", "busybox-static", "root file system of the busybox test images"),
    command("ip", "iproute2", "network namespaces of test clusters"),
    command("nsenter", "util-linux", "runs commands inside test clusters"),
    command("ethtool", "ethtool", "turns checksum offload off on test links"),
    command("bpftool", "bpftool", "shows the loaded programs and maps"),
    command("iptables", "iptables", "proves that no firewall rule is touched or needed"),
    command("nft", "nftables", "proves that no firewall rule is touched or needed"),
    command("runc", "runc", "the reference that containers are compared with"),
    command("etcd", "etcd-server", "the store that several servers share, and that ours is measured beside"),
    command("dig", "dnsutils", "asks the cluster DNS in tests"),
    command("curl", "curl", "asks services in the demo and in tests"),
    command("kubectl", "kubernetes-client", "drives the cluster; only because no kubectl was found"),
];

/// Peers and load generators, for benchmarks only.
const BENCH_TOOLS: &[Tool] = &[
    command("dnsperf", "dnsperf", "asks name servers in benchmarks"),
    command("unbound", "unbound", "a name server measured beside the cluster's"),
    command("dnsmasq", "dnsmasq-base", "a name server measured beside the cluster's"),
];

/// Whole machines, emulated.
const VM_TOOLS: &[Tool] = &[
    command("qemu-system-x86_64", "qemu-system-x86", "emulates a machine with systemd and another kernel"),
    command("mmdebstrap", "mmdebstrap", "makes the system that such a machine boots"),
    command("mke2fs", "e2fsprogs", "makes its disks"),
];

/// A compiler with its library source and the LLVM it emits for, where rustup has no nightly with `rust-src`.
const DEBIAN_COMPILER: &[Tool] = &[
    file("/usr/bin/rustc", "rustc-web", "compiles the eBPF programs"),
    file("/usr/bin/cargo", "cargo-web", "compiles the eBPF programs"),
    file(DEBIAN_RUST_SOURCE, "rust-web-src", "library source: `core` is built for the kernel's target"),
    file("/usr/lib/llvm-22/bin/llvm-config", "llvm-22-dev", "the LLVM that bpf-linker is built on"),
];

const DEBIAN_RUST_SOURCE: &str = "/usr/lib/rustlib/src/rust/library/core/Cargo.toml";

/// The compiler that builds the eBPF programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EbpfToolchain {
    /// A rustup toolchain folder, nightly, with `rust-src`.
    Rustup(PathBuf),
    /// Debian's own compiler in /usr/bin, with the LLVM of this folder.
    Debian { llvm: &'static str },
}

impl EbpfToolchain {
    /// The rustup nightly that has `rust-src`, else Debian's.
    pub fn choose() -> Self {
        match nightly_with_source() {
            Some(folder) => Self::Rustup(folder),
            None => Self::Debian { llvm: "/usr/lib/llvm-22" },
        }
    }

    pub fn program(&self, name: &str) -> PathBuf {
        match self {
            Self::Rustup(folder) => folder.join("bin").join(name),
            Self::Debian { .. } => Path::new("/usr/bin").join(name),
        }
    }
}

/// Installs what is missing; says what and why. Safe to repeat.
pub fn setup() -> Result<()> {
    let toolchain = EbpfToolchain::choose();
    let compiler = if matches!(toolchain, EbpfToolchain::Debian { .. }) { DEBIAN_COMPILER } else { &[] };
    let missing: Vec<&Tool> = TOOLS.iter().chain(compiler).filter(|tool| !tool.probe.holds()).collect();
    install_packages(&missing)?;
    install_bpf_linker(&toolchain)
}

/// The same for what benchmarks need on top.
pub fn setup_bench() -> Result<()> {
    install_packages(&BENCH_TOOLS.iter().filter(|tool| !tool.probe.holds()).collect::<Vec<_>>())
}

/// The same for `cargo xtask vm`.
pub fn setup_vm() -> Result<()> {
    install_packages(&VM_TOOLS.iter().filter(|tool| !tool.probe.holds()).collect::<Vec<_>>())
}

/// Where cargo-installed tools of the project live.
pub fn tools_folder() -> PathBuf {
    workspace_root().join("target/tools")
}

/// The bpf-linker to use: the project's own, which matches the chosen compiler, else whatever PATH has.
pub fn bpf_linker() -> Option<PathBuf> {
    let own = tools_folder().join("bin/bpf-linker");
    own.exists().then_some(own).or_else(|| find_command("bpf-linker"))
}

pub fn workspace_root() -> PathBuf {
    let mut folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    folder.pop();
    folder
}

fn install_packages(missing: &[&Tool]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    for tool in missing {
        println!("setup: {} is missing: {}", tool.package, tool.why);
    }
    if find_command("apt-get").is_none() {
        let names: Vec<_> = missing.iter().map(|tool| tool.package).collect();
        bail!("no apt-get on this machine: install what these Debian packages hold: {}", names.join(" "));
    }
    let _guard = ServiceGuard::new()?;
    apt(&["update", "-qq"]).context("fetching Debian's package lists")?;
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(missing.iter().map(|tool| tool.package));
    apt(&arguments).context("installing Debian packages")
}

fn apt(arguments: &[&str]) -> Result<()> {
    println!("setup: apt-get {}", arguments.join(" "));
    run(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Keeps freshly installed packages from starting daemons (nginx on port 80, a registry on 5000) while apt runs:
/// only their files are wanted. An administrator's own policy is left in place.
struct ServiceGuard(Option<&'static Path>);

impl ServiceGuard {
    fn new() -> Result<Self> {
        let policy = Path::new("/usr/sbin/policy-rc.d");
        if policy.exists() {
            return Ok(Self(None));
        }
        let denied = "cannot prepare the installation: run `cargo xtask setup` as root once";
        fs::write(policy, "#!/bin/sh\nexit 101\n").context(denied)?;
        fs::set_permissions(policy, fs::Permissions::from_mode(0o755)).context(denied)?;
        Ok(Self(Some(policy)))
    }
}

impl Drop for ServiceGuard {
    fn drop(&mut self) {
        if let Some(policy) = self.0
            && let Err(error) = fs::remove_file(policy)
        {
            eprintln!("setup: {} stays behind: {error}", policy.display());
        }
    }
}

fn install_bpf_linker(toolchain: &EbpfToolchain) -> Result<()> {
    if bpf_linker().is_some() {
        return Ok(());
    }
    println!("setup: bpf-linker is missing: links the eBPF programs (about a minute)");
    let mut cargo = Command::new(toolchain.program("cargo"));
    cargo.args(["install", "bpf-linker", "--version", "^0.13", "--locked", "--root"]).arg(tools_folder());
    cargo.env("RUSTC", toolchain.program("rustc")).env_remove("RUSTUP_TOOLCHAIN");
    if let EbpfToolchain::Debian { llvm } = toolchain {
        cargo.args(["--no-default-features", "--features", "llvm-22"]);
        cargo.env("LLVM_PREFIX", llvm).env("RUSTFLAGS", format!("-L{llvm}/lib"));
    }
    run(&mut cargo).context("installing bpf-linker")
}

/// Runs to completion with the terminal shared; anything but success is an error naming the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name} failed: {status}");
    }
    Ok(())
}

pub(crate) fn find_command(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn nightly_with_source() -> Option<PathBuf> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".rustup")))?;
    let mut found: Vec<PathBuf> = fs::read_dir(home.join("toolchains"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|folder| is_nightly_with_source(folder))
        .collect();
    found.sort();
    found.pop()
}

fn is_nightly_with_source(folder: &Path) -> bool {
    let nightly = folder.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with("nightly"));
    nightly && folder.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nightly_counts_only_with_its_library_source() {
        let home = tempfile::tempdir().unwrap();
        let nightly = home.path().join("nightly-x86_64-unknown-linux-gnu");
        fs::create_dir_all(nightly.join("bin")).unwrap();
        assert!(!is_nightly_with_source(&nightly));
        let core = nightly.join("lib/rustlib/src/rust/library/core");
        fs::create_dir_all(&core).unwrap();
        fs::write(core.join("Cargo.toml"), "").unwrap();
        assert!(is_nightly_with_source(&nightly));
        assert!(!is_nightly_with_source(&home.path().join("stable-x86_64-unknown-linux-gnu")));
    }

    #[test]
    fn commands_are_found_by_executable_bit() {
        assert!(find_command("sh").is_some());
        assert!(find_command("no-such-command-anywhere").is_none());
        assert!(!is_executable(Path::new("/etc/passwd")));
    }

    #[test]
    fn every_tool_says_why() {
        for tool in TOOLS.iter().chain(DEBIAN_COMPILER).chain(BENCH_TOOLS).chain(VM_TOOLS) {
            assert!(!tool.why.is_empty() && !tool.package.is_empty());
        }
    }
}
