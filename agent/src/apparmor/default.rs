//! The node's default AppArmor profile.
//!
//! It takes little from a container that other walls do not take already (capabilities, seccomp, hidden and read-only
//! paths): it is the second wall behind each. Without `#include`, so that the parser needs no files of a distribution.

/// Its name in the kernel, and in `/proc/PID/attr/current`.
pub const NAME: &str = "amphipod-default";

/// Trees of the machine's own that nobody in a container may write to.
const READ_ONLY: [&str; 18] = [
    "/proc/acpi/**",
    "/proc/bus/**",
    "/proc/driver/**",
    "/proc/fs/**",
    "/proc/irq/**",
    "/proc/scsi/**",
    "/proc/sys/{abi,crypto,debug,dev,user,vm}/**",
    "/proc/sys/fs/[^m]*",
    "/proc/sys/fs/[^m]*/**",
    "/proc/sys/kernel/[^ms]*",
    "/proc/sys/kernel/[^ms]*/**",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/modules_disabled",
    "/proc/sys/kernel/{sysrq,sched*,seccomp/**,softlockup*,soft_watchdog,stack*}",
    "/sys/{block,bus,class,dev,devices,hypervisor,module,power}/**",
    "/sys/kernel/**",
    "/sys/fs/[^c]*/**",
    "/sys/firmware/**",
];

/// What nobody in a container may even read.
const HIDDEN: [&str; 5] = [
    "/proc/kcore",
    "/proc/sysrq-trigger",
    "/sys/firmware/**",
    "/sys/kernel/security/**",
    "/sys/devices/virtual/powercap/**",
];

/// The profile as apparmor_parser reads it.
pub fn profile() -> String {
    let rules = |paths: &[&str], rights: &str| -> String {
        paths.iter().map(|path| format!("  deny {path} {rights},\n")).collect()
    };
    format!(
        "profile {NAME} flags=(attach_disconnected,mediate_deleted) {{\n  \
           file,\n  capability,\n  network,\n  unix,\n  dbus,\n  umount,\n  deny mount,\n  \
           signal (receive) peer=unconfined,\n  \
           signal (send, receive) peer={NAME},\n  \
           ptrace (trace, read, tracedby, readby) peer={NAME},\n\
         {}{}}}\n",
        rules(&READ_ONLY, "wl"),
        rules(&HIDDEN, "rwklx"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the kernel takes it is for a machine that has AppArmor; where the parser is, it is asked at least.
    #[test]
    fn the_parser_reads_it() {
        use std::io::Write as _;
        use std::process::{Command, Stdio};

        let mut parser = Command::new("apparmor_parser");
        parser.args(["--skip-kernel-load", "--skip-cache"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        match parser.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                assert!(profile().starts_with("profile amphipod-default ") && profile().ends_with("}\n"));
            }
            spawned => {
                let mut parser = spawned.unwrap();
                parser.stdin.take().unwrap().write_all(profile().as_bytes()).unwrap();
                let output = parser.wait_with_output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }
}
