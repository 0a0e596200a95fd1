//! The machines' system disk: Debian from this machine's own package sources, with a kernel of the wanted series.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

/// What the system holds beside its kernel.
const PACKAGES: &str = "systemd-sysv,udev,dbus,iproute2,kmod,procps,util-linux,apparmor,ca-certificates,docker-registry,\
                        curl,busybox-static,initramfs-tools";
const RELEASE: &str = "bookworm";
/// The service that runs what a run brings along.
const UNIT: &str = include_str!("amphipod-vm.service");
const DISK: u64 = 6 << 30;

pub struct Root {
    pub disk: PathBuf,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

impl Root {
    /// Makes the disk, or finds the one made from the same ingredients before.
    pub fn prepare(folder: &Path, series: &str) -> Result<Root> {
        let package = kernel_package(series)?;
        let ingredients = [PACKAGES, RELEASE, UNIT, &package].join("\n");
        let stamp: String = Sha256::digest(&ingredients).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let home = folder.join(format!("{series}-{stamp}"));
        let root = Root { disk: home.join("root.img"), kernel: home.join("vmlinuz"), initrd: home.join("initrd") };
        if root.disk.exists() {
            return Ok(root);
        }
        println!("vm: making a Debian system with {package} (a few minutes, once)");
        fs::create_dir_all(&home)?;
        let tree = home.join("tree");
        remove_tree(&tree)?;
        let include = format!("--include={PACKAGES},{package}");
        let mut debootstrap = Command::new("mmdebstrap");
        debootstrap.args(["--quiet", "--variant=minbase", "--mode=root", &include, RELEASE]).arg(&tree);
        succeed(&mut debootstrap)?;
        furnish(&tree)?;
        for (prefix, to) in [("vmlinuz-", &root.kernel), ("initrd.img-", &root.initrd)] {
            fs::copy(only_file(&tree.join("boot"), prefix)?, to)?;
        }
        // Under another name until it is whole.
        let unfinished = home.join("root.img.new");
        make_disk(&tree, &unfinished, DISK)?;
        fs::rename(&unfinished, &root.disk)?;
        remove_tree(&tree)?;
        forget_others(folder, series, &home)?;
        Ok(root)
    }
}

/// Systems of this series made of other ingredients. A machine that still runs from one holds it open.
fn forget_others(folder: &Path, series: &str, home: &Path) -> Result<()> {
    let others = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let prefix = format!("{series}-");
    let stale = others.filter(|path| {
        path != home && path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&prefix))
    });
    stale.into_iter().try_for_each(|path| remove_tree(&path))
}

/// The newest package of a series with all modules: not the one for clouds, not the one for real time.
fn kernel_package(series: &str) -> Result<String> {
    let pattern = format!("^linux-image-{}\\.[0-9]+.*-amd64(-unsigned)?$", series.replace('.', "\\."));
    let output =
        Command::new("apt-cache").args(["search", "--names-only", &pattern]).output().context("run apt-cache")?;
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    newest_plain(&found).with_context(|| format!("apt has no kernel {series} (apt-get update?)"))
}

fn newest_plain(found: &str) -> Option<String> {
    let names = found.lines().filter_map(|line| line.split(' ').next());
    let plain = names.filter(|name| !["-cloud-", "-rt-", "-dbg"].iter().any(|kind| name.contains(kind)));
    plain.max_by_key(|name| numbers(name)).map(str::to_owned)
}

/// All numbers of a name, so that 6.12.9 comes before 6.12.111.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|letter: char| !letter.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// The service, no waiting for what is not there, no password.
fn furnish(tree: &Path) -> Result<()> {
    let units = tree.join("etc/systemd/system");
    fs::create_dir_all(units.join("multi-user.target.wants"))?;
    fs::write(units.join("amphipod-vm.service"), UNIT)?;
    let wanted = units.join("multi-user.target.wants/amphipod-vm.service");
    std::os::unix::fs::symlink("../amphipod-vm.service", wanted)?;
    for masked in ["docker-registry.service", "apt-daily.timer", "apt-daily-upgrade.timer", "getty.target"] {
        let unit = units.join(masked);
        if fs::symlink_metadata(&unit).is_ok() {
            fs::remove_file(&unit)?;
        }
        std::os::unix::fs::symlink("/dev/null", unit)?;
    }
    fs::create_dir_all(tree.join("opt/amphipod"))?;
    fs::write(tree.join("etc/hostname"), "node1\n")?;
    fs::write(tree.join("etc/fstab"), "").context("write fstab")
}

fn only_file(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let names = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let mut found: Vec<_> = names
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix)))
        .collect();
    match (found.pop(), found.pop()) {
        (Some(path), None) => Ok(path),
        (None, _) => bail!("{} has no {prefix}*", folder.display()),
        (Some(_), Some(_)) => bail!("{} has more than one {prefix}*", folder.display()),
    }
}

/// An ext4 file system with the content of a folder, made without a mount.
pub fn make_disk(from: &Path, disk: &Path, bytes: u64) -> Result<()> {
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-d"]).arg(from).arg(disk).arg(format!("{}k", bytes >> 10));
    succeed(&mut command)
}

/// What the files of a folder take, each rounded up to whole blocks.
pub fn size_of(folder: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        size +=
            if meta.is_dir() { 8192 + size_of(&entry.path())? } else { (meta.blocks() * 512).max(meta.len()) + 4096 };
    }
    Ok(size)
}

fn remove_tree(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

fn succeed(command: &mut Command) -> Result<()> {
    let program = command.get_program().display().to_string();
    let status = command.stdout(Stdio::null()).status().with_context(|| format!("run {program}"))?;
    ensure!(status.success(), "{program} failed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_plain_kernel_is_chosen() {
        let found = "linux-image-6.12.9+deb12-amd64-unsigned - x\nlinux-image-6.12.111+deb12-amd64-unsigned - x\n\
            linux-image-6.12.111+deb12-cloud-amd64-unsigned - x\nlinux-image-6.12.200+deb12-rt-amd64-unsigned - x\n";
        assert_eq!(newest_plain(found).as_deref(), Some("linux-image-6.12.111+deb12-amd64-unsigned"));
        assert_eq!(newest_plain(""), None);
    }
}
