//! This process's mounts, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The folder of the file system that is shown.
    pub root: PathBuf,
    pub point: PathBuf,
    /// Of file system.
    pub kind: String,
    /// Of the file system, whatever this mount of it adds.
    pub options: Vec<String>,
}

impl Mount {
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|own| own == option)
    }

    /// A hierarchy of cgroups, of either version.
    pub fn is_cgroup(&self) -> bool {
        matches!(self.kind.as_str(), "cgroup" | "cgroup2")
    }

    /// A line without what every line has is none.
    fn read(line: &[u8]) -> Option<Mount> {
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let (root, point) = (path(fields.next()?), path(fields.next()?));
        // Options of the mount, then any number of tags, end with a dash.
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let kind = String::from_utf8_lossy(rest.next()?).into_owned();
        let options = String::from_utf8_lossy(rest.nth(1)?).split(',').map(str::to_owned).collect();
        Some(Mount { root, point, kind, options })
    }
}

/// All mounts, in the order in which the kernel lists them.
///
/// # Errors
/// When the table cannot be read: `/proc` is not there.
pub fn read() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

pub fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(Mount::read).collect()
}

/// Blanks and backslashes are written as three octal digits.
fn path(text: &[u8]) -> PathBuf {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) => {
                out.push(digits.iter().fold(0_u8, |value, digit| value.wrapping_mul(8) + (digit - b'0')));
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_and_without_tags() {
        let table = b"\
30 23 0:26 /a\\040b /sys/fs/cgroup/memory rw,relatime shared:9 master:1 - cgroup cgroup rw,memory
33 23 0:29 / /mnt/a\\134b\\040c rw - cgroup2 none rw
broken line
34 23 0:30 / /tmp rw - tmpfs tmpfs rw,size=4k
";
        let found = parse(table);
        let shown: Vec<_> = found.iter().map(|m| (m.root.to_str(), m.point.to_str().unwrap(), &*m.kind)).collect();
        assert_eq!(
            shown,
            [
                (Some("/a b"), "/sys/fs/cgroup/memory", "cgroup"),
                (Some("/"), "/mnt/a\\b c", "cgroup2"),
                (Some("/"), "/tmp", "tmpfs")
            ]
        );
        assert!(found[0].has("memory") && !found[0].has("relatime"), "{:?}", found[0]);
        assert_eq!(found.iter().map(Mount::is_cgroup).collect::<Vec<_>>(), [true, true, false]);
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(read().unwrap().iter().any(|mount| mount.point == *"/"));
    }
}
