//! What confines a container beside its own configuration: the devices of its cgroup2 folder, and whose its streams are.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};

use super::sys;
use crate::devices::{ALL, EVERY_CONTAINER, Kind, MKNOD, Program, READ, Rule, Verdict, WRITE};

/// Holds the processes of a cgroup2 folder to a container's device rules.
pub fn restrict_devices(spec: &Spec, cgroup2: &Path) -> io::Result<()> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let own = resources.and_then(|resources| resources.devices().as_ref());
    let rules: Vec<Rule> = own.into_iter().flatten().filter_map(rule).chain(EVERY_CONTAINER).collect();
    match Program::of(&rules) {
        Some(program) => program.load()?.attach(File::open(cgroup2)?.as_fd()),
        None => Ok(()),
    }
}

/// `None` for kinds that are no devices.
fn rule(rule: &LinuxDeviceCgroup) -> Option<Rule> {
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(Kind::Block),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(Kind::Character),
        Some(LinuxDeviceType::P) => return None,
    };
    // A negative number stands for all of them.
    let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
    let bit = |letter| match letter {
        'm' => MKNOD,
        'r' => READ,
        'w' => WRITE,
        _ => 0,
    };
    let access = rule.access().as_ref().map_or(ALL, |access| access.chars().fold(0, |bits, letter| bits | bit(letter)));
    let verdict = if rule.allow() { Verdict::Allow } else { Verdict::Deny };
    Some(Rule { verdict, kind, major: number(rule.major()), minor: number(rule.minor()), access })
}

/// The next execve of this process, or of its child, brings it under an AppArmor profile.
pub fn apparmor(profile: &str) -> io::Result<()> {
    let command = format!("exec {profile}");
    // The second name is that of kernels before 5.8.
    let written =
        fs::write("/proc/self/attr/apparmor/exec", &command).or_else(|_| fs::write("/proc/self/attr/exec", &command));
    written.map_err(|error| sys::context(error, format!("apply the AppArmor profile {profile:?}")))
}

/// A program may open its streams again by name (`/dev/stderr`): pipes and terminals must belong to its user for that.
pub fn hand_over(stream: BorrowedFd<'_>, uid: u32) -> io::Result<()> {
    const TERMINALS: u32 = 136;
    let meta = File::from(stream.try_clone_to_owned()?).metadata()?;
    let terminal = meta.file_type().is_char_device() && libc::major(meta.rdev()) == TERMINALS;
    if terminal || meta.file_type().is_fifo() { sys::give_to(stream, uid) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_the_runtime_specification_says() {
        let read = |text: &str| rule(&serde_json::from_str(text).unwrap());
        let everything = Rule { verdict: Verdict::Allow, kind: None, major: None, minor: None, access: ALL };
        assert_eq!(read(r#"{"allow": true}"#), Some(everything));
        assert_eq!(read(r#"{"allow": true, "type": "a", "access": "rwm", "major": -1}"#), Some(everything));
        let fuse =
            Rule { kind: Some(Kind::Character), major: Some(10), minor: Some(229), access: READ | WRITE, ..everything };
        assert_eq!(read(r#"{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}"#), Some(fuse));
        let disks = Rule { verdict: Verdict::Deny, kind: Some(Kind::Block), access: MKNOD, ..everything };
        assert_eq!(read(r#"{"allow": false, "type": "b", "access": "m"}"#), Some(disks));
    }
}
