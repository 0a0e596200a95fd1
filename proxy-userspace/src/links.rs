//! Attaching programs, so that they stay when this process goes: every link is pinned, adopted at the next start, and gets the new
//! program in place. Where packet programs are filters of their device, the pin holds the program instead.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::clsact;
use crate::object::{Attachment, LoadError, PacketHook, Pins, Programs, SOCKET_HOOKS, Side};
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
    for pin in Pin::all(pins)? {
        let program = programs.named(pin.program());
        let renewed = program.zip(pin.held()).map(|(program, held)| match held {
            Held::Link(link) => sys::link_update(link.as_fd(), program.as_fd()),
            Held::Filter => pin.put_filter(program),
        });
        if !matches!(renewed, Some(Ok(()))) {
            tracing::debug!(pin = %pin.path.display(), outcome = ?renewed, "link of an earlier process is of no use");
            pin.release()?;
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
    SOCKET_HOOKS.iter().try_for_each(|(program, _)| Pin::new(pins, program).release())
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
    let attached = match pins.attachment() {
        Attachment::Tcx => {
            // Another's program that lets a packet pass for good would keep it from ours.
            let attach = || place(&pin.path, fd, ifindex, hook.side().tcx(), Rank::First);
            match attach() {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    take_new_name(pins, &pin, ifindex, hook)?;
                    attach()
                }
                attached => attached,
            }
        }
        Attachment::Clsact => {
            let put = clsact::put(ifindex, hook.side(), fd.as_fd(), program);
            put.and_then(|()| pin.replace(fd))
        }
    };
    attached.map_err(|source| LinkError::Attach { program, target: device.to_owned(), source })
}

/// A device that was given another name has its link still, pinned under the old one.
fn take_new_name(pins: &Pins, wanted: &Pin, ifindex: u32, hook: PacketHook) -> Result<(), LinkError> {
    let is_of_device = |pin: &Pin| {
        pin.device().is_some()
            && pin.program() == hook.program()
            && sys::object_get(&pin.path).is_ok_and(|link| link_target(&link) == Some(ifindex))
    };
    match Pin::all(pins)?.into_iter().find(is_of_device) {
        Some(pin) => fs::rename(&pin.path, &wanted.path).map_err(|source| LinkError::Pin { path: pin.path, source }),
        None => Ok(()),
    }
}

/// Forgets a device. Its links may be gone with it already.
pub fn detach_device(pins: &Pins, device: &str) -> Result<(), LinkError> {
    PacketHook::ALL.iter().try_for_each(|hook| device_pin(pins, device, *hook).release())
}

/// Removes the pins of devices that are gone: their links do nothing any more.
pub fn forget_devices(pins: &Pins, present: &[&str]) -> Result<(), LinkError> {
    let present: Vec<String> = present.iter().map(|device| pin_part(device)).collect();
    let is_gone = |pin: &Pin| pin.device().is_some_and(|device| !present.iter().any(|present| present == device));
    Pin::all(pins)?.iter().filter(|pin| is_gone(pin)).try_for_each(Pin::release)
}

/// Takes every program off devices and cgroups.
pub fn release(pins: &Pins) -> Result<(), LinkError> {
    Pin::all(pins)?.iter().try_for_each(Pin::release)
}

/// Where a link is pinned: its program's name, and behind an `@` the device's.
struct Pin {
    path: PathBuf,
    name: String,
}

/// What a pin holds.
enum Held {
    Link(OwnedFd),
    /// A program, which is a filter of the device.
    Filter,
}

impl Pin {
    fn new(pins: &Pins, name: &str) -> Self {
        Self { path: pins.link(name), name: name.to_owned() }
    }

    /// None where nothing was ever attached.
    fn all(pins: &Pins) -> Result<Vec<Self>, LinkError> {
        let folder = pins.link("");
        let failed = |source| LinkError::Pin { path: folder.clone(), source };
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let named = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        named.map(|name| name.map(|name| Self::new(pins, &name)).map_err(failed)).collect()
    }

    fn program(&self) -> &str {
        self.name.split_once('@').map_or(&self.name, |(program, _)| program)
    }

    /// As pins write it.
    fn device(&self) -> Option<&str> {
        self.name.split_once('@').map(|(_, device)| device)
    }

    fn held(&self) -> Option<Held> {
        let object = sys::object_get(&self.path).ok()?;
        let is_link = said_of(&object, "link_type:").is_some();
        Some(if is_link { Held::Link(object) } else { Held::Filter })
    }

    /// The device whose filter this is, and the side; `ENODEV` where it is gone.
    fn filter(&self) -> io::Result<(u32, Side)> {
        let hook = PacketHook::ALL.into_iter().find(|hook| hook.program() == self.program());
        let device = sys::devices()?.into_iter().find(|(_, name)| self.device() == Some(pin_part(name).as_str()));
        let both = device.zip(hook).map(|((index, _), hook)| (index, hook.side()));
        both.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    fn put_filter(&self, program: &OwnedFd) -> io::Result<()> {
        let (device, side) = self.filter()?;
        clsact::put(device, side, program.as_fd(), self.program())?;
        self.replace(program)
    }

    /// Holds this one from now on.
    fn replace(&self, object: &OwnedFd) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sys::object_pin(object.as_fd(), &self.path),
        }
    }

    /// Lets go of what it holds, and so takes the program away.
    fn release(&self) -> Result<(), LinkError> {
        let failed = |source| LinkError::Pin { path: self.path.clone(), source };
        if let Some(Held::Filter) = self.held() {
            match self.filter().and_then(|(device, side)| clsact::remove(device, side)) {
                Err(error) if error.raw_os_error() != Some(libc::ENODEV) => return Err(failed(error)),
                _ => {}
            }
        }
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed(source)),
            _ => Ok(()),
        }
    }
}

/// A dot may not be part of a pin's name.
fn device_pin(pins: &Pins, device: &str, hook: PacketHook) -> Pin {
    Pin::new(pins, &format!("{}@{}", hook.program(), pin_part(device)))
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
    said_of(link, "ifindex:")?.parse().ok()
}

/// What the kernel says of a BPF object behind these words, if it says that of its kind.
fn said_of(object: &OwnedFd, words: &str) -> Option<String> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix(words)).map(|said| said.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{self, LOOPBACK};

    const HOOK: PacketHook = PacketHook::FromUplink;

    /// Loads the programs and does the work on a thread in a network namespace of its own.
    #[expect(unsafe_code, reason = "a namespace of its own")]
    fn alone<T: Send>(attachment: Attachment, work: impl FnOnce(&Pins, &Programs) -> io::Result<T> + Send) -> T {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("bpf");
        object::prepare_root(&root).unwrap();
        let pins = Pins::new(&root).by(attachment);
        let inside = |programs: &Programs| {
            // SAFETY: only the calling thread moves, which ends with the test.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
                return Err(io::Error::last_os_error());
            }
            work(&pins, programs)
        };
        let outcome = object::load(&pins)
            .map(|programs| std::thread::scope(|scope| scope.spawn(|| inside(&programs)).join().unwrap()));
        object::remove_root(&root).unwrap();
        outcome.unwrap_or_else(|error| panic!("{error:?}")).unwrap()
    }

    /// The programs of loopback in their order, before and after ours came.
    fn orders(pins: &Pins, programs: &Programs) -> io::Result<[Vec<u32>; 2]> {
        let foreign = programs.get(PacketHook::FromStack.program()).map_err(io::Error::other)?;
        let _held = sys::link_create(foreign.as_fd(), LOOPBACK, HOOK.side().tcx(), Rank::Last)?;
        let before = sys::attached_programs(LOOPBACK, HOOK.side().tcx())?;
        attach_device(pins, programs, "lo", LOOPBACK, HOOK).map_err(io::Error::other)?;
        Ok([before, sys::attached_programs(LOOPBACK, HOOK.side().tcx())?])
    }

    #[test]
    fn ours_comes_before_programs_of_others() {
        let [before, after] = alone(Attachment::Tcx, orders);
        assert_eq!((before.len(), after.len()), (1, 2));
        assert_eq!(after[1], before[0], "{after:?}");
    }

    /// What filters loopback has, as `tc` shows them.
    fn filters() -> io::Result<String> {
        let shown = std::process::Command::new("tc").args(["filter", "show", "dev", "lo", "ingress"]).output()?;
        String::from_utf8(shown.stdout).map_err(io::Error::other)
    }

    #[test]
    fn a_filter_is_renewed_in_its_place_and_goes_without_a_trace() {
        let seen = alone(Attachment::Clsact, |pins, programs| {
            let mut seen = Vec::new();
            for work in [attach_again, renew_all] {
                work(pins, programs)?;
                seen.push(filters()?);
            }
            // As after the device was renamed, or when the pin of a device that is gone is left.
            Pin::new(pins, "amphi_from_uplink@gone")
                .replace(programs.get(HOOK.program()).map_err(io::Error::other)?)?;
            renew_all(pins, programs)?;
            seen.push(format!("{:?}", Pin::new(pins, "amphi_from_uplink@gone").path.exists()));
            detach_device(pins, "lo").map_err(io::Error::other)?;
            let disciplines = std::process::Command::new("tc").args(["qdisc", "show", "dev", "lo"]).output()?;
            seen.extend([filters()?, String::from_utf8_lossy(&disciplines.stdout).into_owned()]);
            detach_device(pins, "lo").map_err(io::Error::other)?;
            Ok(seen)
        });
        let [attached, renewed, stale, after, disciplines] = &seen[..] else { panic!("{seen:?}") };
        for shown in [attached, renewed] {
            assert_eq!(shown.matches("handle").count(), 1, "{shown}");
            assert!(shown.contains("pref 1 bpf") && shown.contains("amphi_from_uplink direct-action"), "{shown}");
        }
        assert_eq!((stale.as_str(), after.as_str()), ("false", ""));
        assert!(!disciplines.contains("clsact"), "{disciplines}");
    }

    fn attach_again(pins: &Pins, programs: &Programs) -> io::Result<()> {
        let attach = || attach_device(pins, programs, "lo", LOOPBACK, HOOK).map_err(io::Error::other);
        attach().and_then(|()| attach())
    }

    fn renew_all(pins: &Pins, programs: &Programs) -> io::Result<()> {
        renew(pins, programs).map_err(io::Error::other)
    }
}
