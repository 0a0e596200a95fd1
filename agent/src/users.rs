//! The host's user and group ids that stand for those of pods with users of their own (`hostUsers: false`): one range for
//! each, from the share that the administrator gave to this node.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::{Mutex, PoisonError};

use pod::protocol::IdRange;

/// Every pod has as many ids as a machine of the old days: what images and file servers know.
pub const IDS_PER_POD: u32 = 1 << 16;

/// The account by whose name `/etc/subuid` and `/etc/subgid` give a node its share, as with the kubelet.
const ACCOUNT: &str = "kubelet";

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum UsersError {
    #[error("{file}: {line:?} is no share of ids")]
    Line { file: &'static str, line: String },
    #[error("/etc/subuid and /etc/subgid give {ACCOUNT} different shares of ids")]
    Different,
    #[error("/etc/subuid gives {ACCOUNT} more than one share of ids")]
    Several,
    #[error("the share of {ACCOUNT} in /etc/subuid must begin and end at multiples of {IDS_PER_POD}, beyond the first")]
    Uneven,
    #[error("read {0}")]
    Read(&'static str, #[source] ReadError),
}

/// An error that compares by its words.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ReadError(io::Error);

impl PartialEq for ReadError {
    fn eq(&self, other: &ReadError) -> bool {
        self.0.kind() == other.0.kind()
    }
}

/// Which ranges are free. The one after the last given comes next, so that a returned one rests.
#[derive(Debug)]
pub struct Ranges {
    /// In units of [`IDS_PER_POD`].
    share: std::ops::Range<u32>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    taken: BTreeSet<u32>,
    next: u32,
}

impl Ranges {
    /// From what the administrator wrote; without a word of his, all ids beyond the host's own.
    pub fn open(taken: impl Iterator<Item = IdRange>) -> Result<Ranges, UsersError> {
        let read = |path: &'static str| match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => read.map_err(|error| UsersError::Read(path, ReadError(error))),
        };
        Ok(Ranges::new(share(&read("/etc/subuid")?, &read("/etc/subgid")?)?, taken))
    }

    fn new(share: std::ops::Range<u32>, taken: impl Iterator<Item = IdRange>) -> Ranges {
        let taken = taken.map(|range| range.first / IDS_PER_POD).collect();
        let next = share.start;
        Ranges { share, state: Mutex::new(State { taken, next }) }
    }

    pub fn take(&self) -> Option<IdRange> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let order = (state.next..self.share.end).chain(self.share.start..state.next);
        let unit = order.into_iter().find(|unit| !state.taken.contains(unit))?;
        state.taken.insert(unit);
        state.next = if unit + 1 < self.share.end { unit + 1 } else { self.share.start };
        Some(IdRange { first: unit * IDS_PER_POD, count: IDS_PER_POD })
    }

    pub fn release(&self, range: IdRange) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).taken.remove(&(range.first / IDS_PER_POD));
    }
}

fn share(subuid: &str, subgid: &str) -> Result<std::ops::Range<u32>, UsersError> {
    let (users, groups) = (shares("/etc/subuid", subuid)?, shares("/etc/subgid", subgid)?);
    match (users.as_slice(), users == groups) {
        (_, false) => Err(UsersError::Different),
        ([], true) => Ok(1..u32::MAX / IDS_PER_POD),
        ([(first, count)], true) => {
            let end = first.checked_add(*count).ok_or(UsersError::Uneven)?;
            let even = first % IDS_PER_POD == 0 && count % IDS_PER_POD == 0 && *count > 0 && *first > 0;
            if even { Ok(first / IDS_PER_POD..end / IDS_PER_POD) } else { Err(UsersError::Uneven) }
        }
        _ => Err(UsersError::Several),
    }
}

/// Lines of the account: `name:first:count`.
fn shares(file: &'static str, text: &str) -> Result<Vec<(u32, u32)>, UsersError> {
    let own = text.lines().filter_map(|line| Some((line, line.strip_prefix(ACCOUNT)?.strip_prefix(':')?)));
    own.map(|(line, rest)| {
        let numbers =
            rest.split_once(':').and_then(|(first, count)| Some((first.parse().ok()?, count.trim().parse().ok()?)));
        numbers.ok_or_else(|| UsersError::Line { file, line: line.to_owned() })
    })
    .collect()
}

/// Why this kernel gives a pod no users of its own.
pub fn refusal() -> Option<String> {
    if fs::metadata("/proc/self/ns/user").is_err() {
        return Some("the kernel of this node has no user namespaces".into());
    }
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    (most.trim() == "0").then(|| "user namespaces are switched off on this node (user.max_user_namespaces)".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(unit: u32) -> IdRange {
        IdRange { first: unit * IDS_PER_POD, count: IDS_PER_POD }
    }

    #[test]
    fn a_share_is_read_as_the_kubelets_is() {
        let own = "root:1:2\nkubelet:65536:131072\nkubelets:7:7\n";
        assert_eq!(share(own, own), Ok(1..3));
        assert_eq!(share("root:1:2\n", ""), Ok(1..65535));
        assert_eq!(share(own, ""), Err(UsersError::Different));
        let twice = "kubelet:65536:65536\nkubelet:131072:65536\n";
        assert_eq!(share(twice, twice), Err(UsersError::Several));
        for uneven in ["kubelet:65537:65536\n", "kubelet:65536:100\n", "kubelet:0:65536\n"] {
            assert_eq!(share(uneven, uneven), Err(UsersError::Uneven), "{uneven}");
        }
        assert!(matches!(share("kubelet:x:1\n", ""), Err(UsersError::Line { .. })));
    }

    #[test]
    fn no_two_pods_share_ids() {
        let ranges = Ranges::new(1..4, [range(2)].into_iter());
        assert_eq!((ranges.take(), ranges.take(), ranges.take()), (Some(range(1)), Some(range(3)), None));
        ranges.release(range(2));
        ranges.release(range(1));
        assert_eq!((ranges.take(), ranges.take(), ranges.take()), (Some(range(1)), Some(range(2)), None));
    }
}
