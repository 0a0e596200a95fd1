//! How long a Job waits before it tries again: the longer, the more of its pods failed since one succeeded. It is read from the
//! pods that are there, so nothing has to be kept.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::super::views::Pod;

const FIRST: i64 = 10;
const LONGEST: i64 = 600;

/// When a pod ended: when the last of its containers did, or when it was told to go.
pub fn ended_at(pod: &Pod) -> Timestamp {
    let all = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
    let containers = all.filter_map(|status| status.state.terminated.as_ref()?.finished_at.as_deref());
    let last = containers.filter_map(|text| text.parse::<Timestamp>().ok()).max();
    let told = || pod.metadata.meta.deletion_timestamp.as_ref().and_then(|text| text.parse().ok());
    let made = || pod.metadata.owned.creation_timestamp.parse().ok();
    last.or_else(told).or_else(made).unwrap_or_default()
}

/// What is left to wait after so many failures, the last at that time.
pub fn left(failures: i64, last: Timestamp, now: Timestamp) -> Option<Duration> {
    let doublings = u32::try_from(failures.checked_sub(1)?).ok()?.min(10);
    let whole = SignedDuration::from_secs((FIRST << doublings).min(LONGEST));
    let left = last.checked_add(whole).ok()?.duration_since(now);
    Duration::try_from(left).ok().filter(|left| !left.is_zero())
}

/// The same of a Job's pods.
pub fn of_pods<'p>(
    failed: impl Iterator<Item = &'p Pod>,
    succeeded: impl Iterator<Item = &'p Pod>,
    now: Timestamp,
) -> Option<Duration> {
    let success = succeeded.map(ended_at).max();
    let since: Vec<_> = failed.map(ended_at).filter(|at| success.is_none_or(|success| *at > success)).collect();
    left(i64::try_from(since.len()).unwrap_or(i64::MAX), since.into_iter().max()?, now)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(second: i64) -> Pod {
        let ended = json!([{"state": {"terminated": {"exitCode": 1, "finishedAt": at(second).to_string()}}}]);
        serde_json::from_value(json!({"status": {"containerStatuses": ended}})).unwrap()
    }

    #[test]
    fn each_failure_doubles_the_wait_and_a_success_ends_it() {
        assert_eq!(left(0, at(0), at(0)), None);
        let seconds = |failures: i64| left(failures, at(100), at(101)).map(|left| left.as_secs());
        assert_eq!([1, 2, 3, 6, 7, 50].map(seconds), [9, 19, 39, 319, 599, 599].map(Some));
        assert_eq!(left(1, at(100), at(110)), None);
        let pods = [pod(100), pod(105)];
        let none = std::iter::empty;
        assert_eq!(of_pods(pods.iter(), none(), at(106)), Some(Duration::from_secs(19)));
        assert_eq!(of_pods(pods.iter(), [pod(102)].iter(), at(106)), Some(Duration::from_secs(9)));
        assert_eq!(of_pods(pods.iter(), [pod(105)].iter(), at(106)), None);
    }
}
