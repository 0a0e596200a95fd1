//! Attaching programs, so that they stay when this process goes: every link is pinned, adopted at the next start, and gets the new
//! program in place.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::object::{LoadError, PacketHook, Pins, Programs, SOCKET_HOOKS};
use crate::sys::{self, Rank};

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("program {program} cannot be attached to {target}")]
    Attach { program: &'static str, target: String, source: io::Error },
    #[error("{} cannot be used", path.display())]
    Pin { path: PathBuf, source: io::Error },
}

/// Gives every pinned link this version's program, without a gap. A link whose target is gone, or whose program this version does
/// not have, goes.
pub fn renew(pins: &Pins, programs: &Programs) -> Result<(), LinkError> {
    let folder = pins.link("");
    let failed = |source| LinkError::Pin { path: folder.clone(), source };
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let pin = entry.map_err(failed)?.path();
        let name = pin.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let program = programs.named(name.split_once('@').map_or(name, |(program, _)| program));
        let link = sys::object_get(&pin);
        let renewed = program.zip(link.ok()).map(|(program, link)| sys::link_update(link.as_fd(), program.as_fd()));
        if !matches!(renewed, Some(Ok(()))) {
            tracing::debug!(pin = %pin.display(), outcome = ?renewed, "link of an earlier process is of no use");
            unpin(&pin)?;
        }
    }
    Ok(())
}

/// Attaches every socket hook to the cgroup.
pub fn attach_socket_hooks(pins: &Pins, programs: &Programs, cgroup_root: &Path) -> Result<(), LinkError> {
    let cgroup = File::open(cgroup_root).map_err(|source| LinkError::Pin { path: cgroup_root.to_owned(), source })?;
    for &(program, attach_type) in SOCKET_HOOKS {
        let fd = programs.get(program)?;
        place(&pins.link(program), fd, cgroup.as_raw_fd() as u32, attach_type, Rank::Last)
            .map_err(|source| LinkError::Attach { program, target: cgroup_root.display().to_string(), source })?;
    }
    Ok(())
}

/// Takes the socket hooks away, for runs that use the packet path alone.
pub fn detach_socket_hooks(pins: &Pins) -> Result<(), LinkError> {
    SOCKET_HOOKS.iter().try_for_each(|(program, _)| unpin(&pins.link(program)))
}

pub fn attach_device(
    pins: &Pins,
    programs: &Programs,
    device: &str,
    ifindex: u32,
    hook: PacketHook,
) -> Result<(), LinkError> {
    let program = hook.program();
    let fd = programs.get(program)?;
    let pin = device_pin(pins, device, hook);
    // Another's program that lets a packet pass for good would keep it from ours.
    let attach = || place(&pin, fd, ifindex, hook.attach_type(), Rank::First);
    let attached = match attach() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            take_new_name(pins, &pin, ifindex, hook)?;
            attach()
        }
        attached => attached,
    };
    attached.map_err(|source| LinkError::Attach { program, target: device.to_owned(), source })
}

/// A device that was given another name has its link still, pinned under the old one.
fn take_new_name(pins: &Pins, wanted: &Path, ifindex: u32, hook: PacketHook) -> Result<(), LinkError> {
    let folder = pins.link("");
    let failed = |source| LinkError::Pin { path: folder.clone(), source };
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let pin = entry.map_err(failed)?.path();
        let name = pin.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_of_hook = name.split_once('@').is_some_and(|(program, _)| program == hook.program());
        if is_of_hook && sys::object_get(&pin).is_ok_and(|link| link_target(&link) == Some(ifindex)) {
            return fs::rename(&pin, wanted).map_err(|source| LinkError::Pin { path: pin, source });
        }
    }
    Ok(())
}

/// Forgets a device. Its links may be gone with it already.
pub fn detach_device(pins: &Pins, device: &str) -> Result<(), LinkError> {
    PacketHook::ALL.iter().try_for_each(|hook| unpin(&device_pin(pins, device, *hook)))
}

/// Removes the pins of devices that are gone: their links do nothing any more.
pub fn forget_devices(pins: &Pins, present: &[&str]) -> Result<(), LinkError> {
    let folder = pins.link("");
    let failed = |source| LinkError::Pin { path: folder.clone(), source };
    let present: Vec<String> = present.iter().map(|device| pin_part(device)).collect();
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let device = name.to_str().and_then(|name| name.split_once('@')).map(|(_, device)| device);
        if device.is_some_and(|device| !present.iter().any(|present| present == device)) {
            unpin(&folder.join(&name))?;
        }
    }
    Ok(())
}

/// A dot may not be part of a pin's name.
fn device_pin(pins: &Pins, device: &str, hook: PacketHook) -> PathBuf {
    pins.link(&format!("{}@{}", hook.program(), pin_part(device)))
}

fn pin_part(device: &str) -> String {
    device.replace('.', "-")
}

/// Gives the pinned link the program, or makes a new link when there is none or its target is gone.
fn place(pin: &Path, program: &OwnedFd, target: u32, attach_type: u32, rank: Rank) -> io::Result<()> {
    if let Ok(link) = sys::object_get(pin) {
        if link_target(&link).is_none_or(|ifindex| ifindex == target)
            && sys::link_update(link.as_fd(), program.as_fd()).is_ok()
        {
            return Ok(());
        }
        fs::remove_file(pin)?;
    }
    let link = sys::link_create(program.as_fd(), target, attach_type, rank)?;
    sys::object_pin(link.as_fd(), pin)
}

/// The device of a packet link, 0 when that is gone; none for links of cgroups.
fn link_target(link: &OwnedFd) -> Option<u32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd())).ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("ifindex:"))?;
    line.trim().parse().ok()
}

fn unpin(path: &Path) -> Result<(), LinkError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(LinkError::Pin { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object;

    /// The programs of loopback in a network namespace of its own, in their order, before and after ours came.
    #[expect(unsafe_code, reason = "a namespace of its own")]
    fn orders(pins: &Pins, programs: &Programs) -> io::Result<[Vec<u32>; 2]> {
        const LOOPBACK: u32 = 1;
        let hook = PacketHook::FromUplink;
        // SAFETY: only the calling thread moves, which ends with the test.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let foreign = programs.get(PacketHook::FromStack.program()).map_err(io::Error::other)?;
        let _held = sys::link_create(foreign.as_fd(), LOOPBACK, hook.attach_type(), Rank::Last)?;
        let before = sys::attached_programs(LOOPBACK, hook.attach_type())?;
        attach_device(pins, programs, "lo", LOOPBACK, hook).map_err(io::Error::other)?;
        Ok([before, sys::attached_programs(LOOPBACK, hook.attach_type())?])
    }

    #[test]
    fn ours_comes_before_programs_of_others() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("bpf");
        object::prepare_root(&root).unwrap();
        let pins = Pins::new(&root);
        let outcome = object::load(&pins)
            .map(|programs| std::thread::scope(|scope| scope.spawn(|| orders(&pins, &programs)).join().unwrap()));
        object::remove_root(&root).unwrap();
        let [before, after] = outcome.unwrap_or_else(|error| panic!("{error:?}")).unwrap();
        assert_eq!((before.len(), after.len()), (1, 2));
        assert_eq!(after[1], before[0], "{after:?}");
    }
}
