//! A node's certificate is renewed long before it ends, by itself.

use std::time::Duration;

use anyhow::Result;
use client::follow::jittered;
use jiff::{SignedDuration, Timestamp};

use super::Certificate;

/// The longest that nobody looks at the clock, which may be set, or have gone on while the machine slept.
const LOOK: Duration = Duration::from_secs(600);
/// Before what failed is tried again.
const RETRY: Duration = Duration::from_secs(60);

/// Renews for ever. `renew` asks for the next certificate and takes it into use.
pub async fn keep<F: Future<Output = Result<Certificate>>>(
    certificate: Certificate,
    now: impl Fn() -> Timestamp,
    renew: impl Fn() -> F,
) {
    let (mut due, mut until) = (due(&certificate), certificate.until);
    loop {
        while let Some(left) = left(due, now()) {
            tokio::time::sleep(left.min(LOOK)).await;
        }
        match renew().await {
            Ok(next) => {
                (due, until) = (self::due(&next), next.until);
                tracing::info!(%until, "this node's certificate is renewed");
            }
            Err(error) => {
                tracing::error!(%until, error = format!("{error:#}"), "this node's certificate is not renewed");
                tokio::time::sleep(jittered(RETRY)).await;
            }
        }
    }
}

/// After two thirds of its life and up to a tenth more: nodes that joined together do not ask together.
fn due(certificate: &Certificate) -> Timestamp {
    let life = certificate.until.duration_since(certificate.from);
    let more = jittered(Duration::try_from(life).unwrap_or_default() / 10);
    let wait = life / 3 * 2 + SignedDuration::try_from(more).unwrap_or_default();
    certificate.from.checked_add(wait).unwrap_or(certificate.until)
}

fn left(due: Timestamp, now: Timestamp) -> Option<Duration> {
    Duration::try_from(due.duration_since(now)).ok().filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use anyhow::anyhow;

    use super::*;

    const DAY: i64 = 86_400;

    fn certificate(from: Timestamp) -> Certificate {
        let until = from + SignedDuration::from_secs(90 * DAY);
        Certificate { pem: String::new(), user: String::new(), from, until }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_asked_for_in_time_and_again_when_it_is_not_given() {
        let (start, began) = (tokio::time::Instant::now(), Timestamp::UNIX_EPOCH);
        let now = || began + SignedDuration::try_from(start.elapsed()).unwrap();
        let asked = RefCell::new(Vec::new());
        let renew = || {
            asked.borrow_mut().push(now());
            let first = asked.borrow().len() == 1;
            std::future::ready(if first { Err(anyhow!("the server is away")) } else { Ok(certificate(now())) })
        };
        let _ended =
            tokio::time::timeout(Duration::from_secs(200 * 86_400), keep(certificate(began), now, renew)).await;
        let days: Vec<i64> = asked.borrow().iter().map(|at| at.as_second() / DAY).collect();
        let [first, again, next, ..] = days[..] else { panic!("{days:?}") };
        assert!((60..70).contains(&first) && again == first, "{days:?}");
        assert!((60..=70).contains(&(next - first)), "{days:?}");
    }

    #[test]
    fn nodes_that_joined_together_do_not_ask_together() {
        let one = certificate(Timestamp::UNIX_EPOCH);
        let times: std::collections::BTreeSet<i64> = (0..20).map(|_| due(&one).as_second()).collect();
        assert!(times.len() > 10, "{times:?}");
    }
}
