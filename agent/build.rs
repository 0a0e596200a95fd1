//! Builds the pod process (`amphipod-pod`) with a cargo of its own, so that a plain `cargo build` embeds it.
//!
//! Its target folder lies below this crate's `OUT_DIR`: the outer cargo holds the lock of its own folder while build
//! scripts run. The inner cargo does nothing when `pod/` is unchanged.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every pod holds one of these processes: what it relocates at its start is memory of its own.
const SMALL: [(&str, &str); 4] = [("LTO", "fat"), ("OPT_LEVEL", "s"), ("PANIC", "abort"), ("CODEGEN_UNITS", "1")];

fn main() {
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR")).join("..");
    for watched in ["pod/src", "pod/Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(watched).display());
    }
    println!("cargo::rerun-if-env-changed=LIBSECCOMP_LIB_PATH");
    let (target_dir, target) = (shared_target_dir(), variable("TARGET"));
    // Builds with other features share that folder: one at a time, until each has its own copy of what came out.
    let _alone = lock(&target_dir);
    let mut cargo = Command::new(variable("CARGO"));
    cargo.current_dir(&workspace).args(["build", "--release", "--package", "pod", "--bin", "amphipod-pod"]);
    cargo.args(["--features", &features(), "--target", &target]).arg("--target-dir").arg(&target_dir);
    if workspace.join("Cargo.lock").exists() {
        cargo.arg("--locked");
    }
    // What the outer cargo decided for itself must not leak into the inner build.
    for (name, _) in
        env::vars().filter(|(name, _)| name.starts_with("CARGO_FEATURE_") || name.starts_with("CARGO_CFG_"))
    {
        cargo.env_remove(name);
    }
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_MAKEFLAGS"]
    {
        cargo.env_remove(name);
    }
    for (name, value) in SMALL {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{name}"), value);
    }
    if let Some(path) = static_libseccomp() {
        cargo.env("LIBSECCOMP_LINK_TYPE", "static").env("LIBSECCOMP_LIB_PATH", path);
    }
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("the pod process did not build ({status}); libseccomp-dev may be missing")),
        Err(error) => fail(&format!("run cargo: {error}")),
    }
    let built = target_dir.join(target).join("release/amphipod-pod");
    let own = Path::new(&variable("OUT_DIR")).join("amphipod-pod");
    if let Err(error) = fs::copy(&built, &own) {
        fail(&format!("copy {}: {error}", built.display()));
    }
    println!("cargo::rustc-env=AMPHIPOD_POD_EXECUTABLE={}", own.display());
}

/// What the process needs, and the features of a test build that it shares with the agent.
fn features() -> String {
    let shared = [("faults", "CARGO_FEATURE_FAULTS"), ("next-protocol", "CARGO_FEATURE_NEXT_PROTOCOL")];
    let chosen = shared.iter().filter(|(_, variable)| env::var_os(variable).is_some()).map(|(name, _)| *name);
    std::iter::once("process").chain(chosen).collect::<Vec<_>>().join(",")
}

/// Held until the script ends.
fn lock(folder: &Path) -> fs::File {
    let path = folder.join("one-at-a-time");
    let locked = fs::create_dir_all(folder).and_then(|()| fs::File::create(&path)).and_then(|file| {
        file.lock()?;
        Ok(file)
    });
    locked.unwrap_or_else(|error| fail(&format!("lock {}: {error}", path.display())))
}

/// `<target>/pod-process`, the same for debug and release builds of the agent: one build of the pod process serves both.
/// `OUT_DIR` is `<target>/<profile>/build/<crate>-<hash>/out`.
fn shared_target_dir() -> PathBuf {
    let out = PathBuf::from(variable("OUT_DIR"));
    let profile = out.ancestors().nth(3).unwrap_or(&out);
    profile.parent().unwrap_or(profile).join("pod-process")
}

/// The folder of libseccomp.a, as the C compiler knows it on every layout; the caller's own setting wins.
fn static_libseccomp() -> Option<PathBuf> {
    if let Some(path) = env::var_os("LIBSECCOMP_LIB_PATH") {
        return Some(path.into());
    }
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let output = Command::new(compiler).arg("-print-file-name=libseccomp.a").output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.is_absolute().then(|| path.parent().map(Path::to_owned)).flatten()
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")))
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    std::process::exit(1)
}
