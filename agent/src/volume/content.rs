//! Files that come from the API, as a volume holds them: all in a fresh `..<number>` folder, one `..data` link flipped
//! to it by rename, and a link per first name through `..data`.
//!
//! Containers get these volumes read-only. Still nothing in them is trusted: an older release mounted them writable, and
//! whoever may mount can. So names are used through the door, and only what has the form of our own is followed.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use jiff::Timestamp;

use super::ContentError;
use crate::door::{Folder, Owner, Stop};

const DATA: &str = "..data";
/// The kubelet's limit for the path of a file in a volume.
pub(super) const LONGEST: usize = 4096;

/// The files of a volume by relative path.
#[derive(Debug, Default)]
pub struct Files {
    files: BTreeMap<String, File>,
    /// When the first of them must be written anew.
    pub renew_at: Option<Timestamp>,
}

#[derive(Debug)]
struct File {
    content: Vec<u8>,
    mode: u32,
    user: Option<u32>,
}

impl Files {
    pub fn add(&mut self, path: &str, content: Vec<u8>, mode: u32) -> Result<(), ContentError> {
        self.add_of(path, content, mode, None)
    }

    /// Adds a file that belongs to a user.
    pub fn add_of(&mut self, path: &str, content: Vec<u8>, mode: u32, user: Option<u32>) -> Result<(), ContentError> {
        if path.len() > LONGEST {
            return Err(ContentError::LongPath);
        }
        let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || path.is_empty() || path.starts_with("..") {
            return Err(ContentError::Path(path.to_owned()));
        }
        self.files.insert(path.to_owned(), File { content, mode, user });
        Ok(())
    }

    fn first_names(&self) -> impl Iterator<Item = &OsStr> {
        self.files.keys().filter_map(|path| path.split('/').next()).map(OsStr::new)
    }

    /// Makes the volume hold these files and no others. With a group, it may read them all.
    pub fn write(&self, volume: &Folder, group: Option<u32>) -> io::Result<()> {
        let old = current(volume);
        if old.as_ref().is_some_and(|old| self.are_in(old)) {
            return Ok(());
        }
        let name = OsString::from(format!("..{}", Timestamp::now().as_nanosecond()));
        let folder = volume.make_folder(&name, folder_mode(group), group)?;
        for (path, file) in &self.files {
            write_file(&folder, Path::new(path), file, group)?;
        }
        volume.put_link(&name, OsStr::new(DATA))?;
        self.link(volume)?;
        remove_others(volume, &name)
    }

    fn are_in(&self, folder: &Folder) -> bool {
        let same = |(path, file): (&String, &File)| {
            let limit = file.content.len() as u64 + 1;
            let parent = parent_in(folder, Path::new(path), Absent::Fail, None);
            parent.and_then(|(parent, name)| parent.read(&name, limit)).is_ok_and(|old| old == file.content)
        };
        self.files.iter().all(same) && count(folder).is_ok_and(|count| count == self.files.len())
    }

    /// One link per first name; those of files that went away are removed.
    fn link(&self, volume: &Folder) -> io::Result<()> {
        for name in volume.names()? {
            let wanted = self.first_names().any(|first| first == name) || name.as_bytes().starts_with(b"..");
            if !wanted && volume.link_target(&name).is_ok_and(|target| target == through_data(&name)) {
                volume.remove(&name, &Stop::default())?;
            }
        }
        for name in self.first_names() {
            if volume.link_target(name).ok() != Some(through_data(name)) {
                volume.put_link(&through_data(name), name)?;
            }
        }
        Ok(())
    }
}

/// Whether the volume has content already.
pub fn is_written(volume: &Folder) -> bool {
    current(volume).is_some()
}

/// The folder that `..data` names, if it names one of ours.
fn current(volume: &Folder) -> Option<Folder> {
    let target = volume.link_target(OsStr::new(DATA)).ok().filter(|target| is_generation(target))?;
    volume.entry(&target).and_then(Folder::of).ok()
}

fn is_generation(name: &OsStr) -> bool {
    let digits = name.as_bytes().strip_prefix(b"..");
    digits.is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}

fn remove_others(volume: &Folder, kept: &OsStr) -> io::Result<()> {
    let others = volume.names()?.into_iter().filter(|name| is_generation(name) && name != kept);
    others.into_iter().try_for_each(|name| volume.remove(&name, &Stop::default()))
}

fn through_data(name: &OsStr) -> OsString {
    Path::new(DATA).join(name).into_os_string()
}

/// What a pod's group may read it may also search.
fn folder_mode(group: Option<u32>) -> u32 {
    if group.is_some() { 0o2755 } else { 0o755 }
}

fn write_file(folder: &Folder, path: &Path, file: &File, group: Option<u32>) -> io::Result<()> {
    let (parent, name) = parent_in(folder, path, Absent::Make, group)?;
    let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
    parent.write_new(&name, &file.content, Owner { mode, user: file.user, group })
}

#[derive(Clone, Copy, PartialEq)]
enum Absent {
    Fail,
    Make,
}

/// The folder that a path's last name is in, and that name.
fn parent_in(folder: &Folder, path: &Path, absent: Absent, group: Option<u32>) -> io::Result<(Folder, OsString)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    let mut here = Folder::of(folder.entry(OsStr::new("."))?)?;
    for part in path.parent().unwrap_or(Path::new("")) {
        here = match here.entry(part) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && absent == Absent::Make => {
                here.make_folder(part, folder_mode(group), group)?
            }
            found => Folder::of(found?)?,
        };
    }
    Ok((here, name))
}

/// How many entries that are no folders lie below one.
fn count(folder: &Folder) -> io::Result<usize> {
    folder.names()?.into_iter().try_fold(0, |sum, name| {
        let found = folder.entry(&name)?;
        let below = if found.kind == rustix::fs::FileType::Directory { count(&Folder::of(found)?)? } else { 1 };
        Ok(sum + below)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn files(list: &[(&str, &str)]) -> Files {
        let mut files = Files::default();
        for (path, content) in list {
            files.add(path, content.as_bytes().to_vec(), 0o640).unwrap();
        }
        files
    }

    #[test]
    fn content_is_flipped_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (volume, path) = (Folder::open(folder.path()).unwrap(), folder.path());
        files(&[("a", "1"), ("sub/b", "2"), ("old", "x")]).write(&volume, None).unwrap();
        let first = fs::read_link(path.join("..data")).unwrap();
        assert_eq!(fs::read_to_string(path.join("sub/b")).unwrap(), "2");
        files(&[("a", "1"), ("sub/b", "2"), ("old", "x")]).write(&volume, None).unwrap();
        assert_eq!(fs::read_link(path.join("..data")).unwrap(), first, "nothing changed");
        files(&[("a", "3"), ("sub/b", "2")]).write(&volume, None).unwrap();
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "3");
        assert!(fs::symlink_metadata(path.join("old")).is_err() && !path.join(first).exists());
    }

    #[test]
    fn a_group_may_read_and_an_owner_owns() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().unwrap();
        let mut files = Files::default();
        files.add_of("dir/token", b"t".to_vec(), 0o600, Some(1000)).unwrap();
        files.write(&Folder::open(folder.path()).unwrap(), None).unwrap();
        let token = fs::metadata(folder.path().join("dir/token")).unwrap();
        assert_eq!((token.mode() & 0o7777, token.uid(), token.gid()), (0o600, 1000, 0));
        files.add("more", b"m".to_vec(), 0o400).unwrap();
        files.write(&Folder::open(folder.path()).unwrap(), Some(7)).unwrap();
        let token = fs::metadata(folder.path().join("dir/token")).unwrap();
        assert_eq!((token.mode() & 0o7777, token.uid(), token.gid()), (0o640, 1000, 7));
        let dir = fs::metadata(folder.path().join("dir")).unwrap();
        assert_eq!((dir.mode() & 0o7777, dir.gid()), (0o2755, 7));
    }

    #[test]
    fn paths_stay_inside() {
        for bad in ["../x", "/x", "", "a/../b", "..data"] {
            assert!(Files::default().add(bad, Vec::new(), 0o644).is_err(), "{bad}");
        }
        let add = |length| {
            Files::default().add(&"a/".repeat(2049)[..length], Vec::new(), 0o644).map_err(|error| error.to_string())
        };
        assert_eq!(add(LONGEST), Ok(()));
        assert_eq!(add(LONGEST + 1).unwrap_err(), "invalid path: must be less than or equal to 4096 characters");
    }
}
