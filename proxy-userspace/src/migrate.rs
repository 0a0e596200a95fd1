//! Upgrades: what an earlier version left in maps of another layout goes over into those of this one, under live traffic.
//!
//! The order is: new maps beside the old ones, contents over, programs of all links exchanged, what the old programs wrote meanwhile
//! over too, old pins gone. Killed anywhere in between, the next start does all of it again: elements that are there stay.

pub(crate) mod earlier;

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::layout::{Carry, Layout, parse_pin_name};
use crate::object::Pins;
use crate::sys::{Put, RawMap, possible_cpus};

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("{} cannot be used", path.display())]
    Pin { path: PathBuf, source: io::Error },
    #[error("the contents of map {map} cannot be carried over from layout {from} to {to}")]
    Carry { map: &'static str, from: u32, to: u32, source: io::Error },
}

/// Maps of other layouts than this version's.
#[derive(Debug, Default)]
pub(crate) struct Migration {
    older: Vec<Older>,
    /// Pins that nothing here reads: maps of later versions, and maps that are no more.
    foreign: Vec<String>,
}

#[derive(Debug, Clone)]
struct Older {
    layout: Layout,
    version: u32,
    /// The pin's name.
    pin: String,
}

/// When contents are read: before the programs are exchanged, and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    First,
    Second,
}

impl Migration {
    pub fn find(pins: &Pins) -> Result<Self, MigrateError> {
        put_aside(pins)?;
        let folder = pins.maps();
        let failed = |source| MigrateError::Pin { path: folder.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().into_string().ok());
        }
        Ok(Self::plan(pins.layouts(), &names))
    }

    /// Of several older layouts of a map the latest comes first: elements that are there already win.
    fn plan(layouts: &[Layout], names: &[String]) -> Self {
        let mut migration = Self::default();
        let mut newer = Vec::new();
        for name in names {
            let aside = name.strip_prefix(ASIDE);
            let Some((version, map)) = parse_pin_name(aside.unwrap_or(name)) else { continue };
            match layouts.iter().find(|layout| layout.map == map) {
                Some(layout) if version < layout.version() || (version == layout.version() && aside.is_some()) => {
                    migration.older.push(Older { layout: *layout, version, pin: name.clone() });
                }
                Some(layout) if version == layout.version() => {}
                found => {
                    // A later version that died before it was done leaves this one's maps beside its own.
                    let lost = found.filter(|layout| !names.contains(&layout.pin_name()));
                    newer.extend(lost.map(|_| name.as_str()));
                    migration.foreign.push(name.clone());
                }
            }
        }
        migration.older.sort_by_key(|older| std::cmp::Reverse(older.version));
        if !newer.is_empty() {
            tracing::warn!(
                maps = newer.join(" "),
                "a later version of amphipod ran here, whose maps this one cannot read: they are made anew, and connections that \
                 are translated packet by packet break"
            );
        }
        migration
    }

    /// Whether a map is there in a certain layout, or in any other than this version's.
    pub fn has(&self, map: &str, version: Option<u32>) -> bool {
        let mut older = self.older.iter().filter(|older| older.layout.map == map);
        older.any(|older| version.is_none_or(|version| older.version == version))
    }

    /// Whether connections are on their way.
    pub fn has_flows(&self) -> bool {
        self.older.iter().any(|older| older.layout.carry == Carry::Twice)
    }

    pub fn carry(&self, pins: &Pins, pass: Pass) -> Result<(), MigrateError> {
        let cpus = possible_cpus();
        let wanted = |older: &&Older| match (older.layout.carry, pass) {
            (Carry::Once, Pass::First) | (Carry::Twice, _) => true,
            (Carry::Once, Pass::Second) | (Carry::Never | Carry::Sockets, _) => false,
        };
        for older in self.older.iter().filter(wanted) {
            let (map, from, to) = (older.layout.map, older.version, older.layout.version());
            let carried = older.carry(pins, cpus).map_err(|source| MigrateError::Carry { map, from, to, source })?;
            tracing::info!(map, from, to, pass = ?pass, elements = carried, "map carried over");
        }
        Ok(())
    }

    /// Removes the pins; the kernel frees the maps with their last program.
    pub fn finish(&self, pins: &Pins) -> Result<(), MigrateError> {
        let older = self.older.iter().map(|older| &older.pin);
        for path in older.chain(&self.foreign).map(|name| pins.maps().join(name)) {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(MigrateError::Pin { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Before the name of a map that has the right layout and not the size that it shall have.
const ASIDE: &str = "aside-";

/// Gives maps of another size other names. One that was put aside before holds what is left of a start that died then: unless its
/// successor is of a wrong size too, and then it is that which counts.
fn put_aside(pins: &Pins) -> Result<(), MigrateError> {
    for layout in pins.layouts() {
        let (path, map) = (pins.map(layout.map), layout.map);
        let Some(wanted) = pins.families().elements(map) else { continue };
        let (from, to) = (layout.version(), layout.version());
        match RawMap::open(&path, possible_cpus()) {
            Ok(found) if found.elements() == wanted => {}
            Ok(found) => {
                tracing::info!(map, found = found.elements(), wanted, "map is made anew in another size");
                let aside = path.with_file_name(format!("{ASIDE}{}", layout.pin_name()));
                fs::rename(&path, aside).map_err(|source| MigrateError::Pin { path, source })?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(MigrateError::Carry { map, from, to, source }),
        }
    }
    Ok(())
}

impl Older {
    /// How many elements went over. What a smaller map has no room for does not.
    fn carry(&self, pins: &Pins, cpus: usize) -> io::Result<usize> {
        let old = RawMap::open(&pins.maps().join(&self.pin), cpus)?;
        let new = RawMap::open(&pins.map(self.layout.map), cpus)?;
        let (mut carried, mut lost) = (0, 0);
        for raw in old.entries()? {
            if old.is_array() && raw.value.iter().all(|byte| *byte == 0) {
                continue;
            }
            let Some(raw) = self.layout.convert(self.version, raw) else { continue };
            let put = if new.is_array() { Put::Any } else { Put::New };
            match new.put(&raw, put) {
                Ok(()) => carried += 1,
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) && new.elements() < old.elements() => lost += 1,
                Err(error) => return Err(error),
            }
        }
        if lost > 0 {
            tracing::warn!(map = self.layout.map, lost, "a smaller map has no room for all that it held");
        }
        Ok(carried)
    }
}

#[cfg(test)]
mod tests;
