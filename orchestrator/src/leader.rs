//! Which of several servers runs the controllers: the one that holds a Lease.
//!
//! How old a lease is counts from when its last change was seen here, never from the times that it carries: clocks differ. Who
//! holds it stops well before others may take it, also when no call is answered any more. Who is told to end gives it back, so that
//! the next need not wait.

use std::time::{Duration, Instant};

use api::status::Status;
use client::Client;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::controllers::views::LEASES;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "amphipod-controllers";

#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// A lease that did not change for so long may be taken.
    pub lease: Duration,
    /// Who could not renew for so long stops.
    pub give_up: Duration,
    /// Between two looks.
    pub pause: Duration,
}

impl Default for Terms {
    /// As kube-controller-manager's.
    fn default() -> Self {
        Self { lease: Duration::from_secs(15), give_up: Duration::from_secs(10), pause: Duration::from_secs(2) }
    }
}

/// The lease as it was seen last, and when it came to be so.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    version: String,
    since: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// It is ours, or nobody's any more.
    Write,
    Wait,
}

fn decide(lease: &Value, me: &str, seen: &Seen, terms: Terms, now: Instant) -> Decision {
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    let free = holder.is_empty() || now.duration_since(seen.since) >= terms.lease;
    if holder == me || free { Decision::Write } else { Decision::Wait }
}

/// The lease with us as its holder.
fn held(lease: &Value, me: &str, terms: Terms, now: &str) -> Value {
    let mut next = lease.clone();
    let changes = next["spec"]["holderIdentity"] != me;
    let spec = &mut next["spec"];
    if changes {
        spec["acquireTime"] = json!(now);
        spec["leaseTransitions"] = json!(spec["leaseTransitions"].as_i64().map_or(0, |count| count + 1));
    }
    spec["holderIdentity"] = json!(me);
    spec["leaseDurationSeconds"] = json!(terms.lease.as_secs().max(1));
    spec["renewTime"] = json!(now);
    next
}

/// The lease as its holder leaves it: free for whoever looks next.
fn released(lease: &Value, now: &str) -> Value {
    let mut next = lease.clone();
    let spec = &mut next["spec"];
    spec["holderIdentity"] = json!("");
    spec["leaseDurationSeconds"] = json!(1);
    spec["renewTime"] = json!(now);
    next
}

/// Runs what `start` starts for as long as we lead; ends when one of those tasks does, or when told to, with the lease given back.
pub async fn run(
    client: Client,
    me: String,
    terms: Terms,
    stop: CancellationToken,
    start: impl Fn(&mut JoinSet<()>) + Send,
) {
    let mut term: JoinSet<()> = JoinSet::new();
    let (mut seen, mut renewed) = (None, Instant::now());
    loop {
        let asked = Instant::now();
        let patience = match term.is_empty() {
            true => terms.give_up,
            false => terms.give_up.saturating_sub(renewed.elapsed()),
        };
        // Without an answer, whoever leads goes on for a while.
        let leads = match tokio::time::timeout(patience, turn(&client, &me, &mut seen, terms)).await {
            Ok(Ok(leads)) => Some(leads),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the controllers' lease is out of reach");
                None
            }
            Err(_) => None,
        };
        if leads == Some(true) {
            renewed = asked;
        }
        let goes_on = leads.unwrap_or(renewed.elapsed() < terms.give_up);
        match (goes_on, term.is_empty()) {
            (true, true) if leads.is_some() => {
                tracing::info!(identity = me, "leads: the controllers start");
                start(&mut term);
            }
            (false, false) => {
                tracing::warn!(identity = me, "leads no longer: the controllers stop");
                term.shutdown().await;
            }
            _ => {}
        }
        tokio::select! {
            () = tokio::time::sleep(terms.pause) => {}
            () = stop.cancelled() => {
                let leads = !term.is_empty();
                // Nothing of ours runs any more when others may start.
                term.shutdown().await;
                if leads && let Err(error) = release(&client, &me).await {
                    tracing::warn!(%error, "the controllers' lease is not given back: it has to run out");
                }
                return;
            }
            Some(ended) = term.join_next() => {
                tracing::error!(?ended, "a controller ended that should run for ever");
                return;
            }
        }
    }
}

/// Looks at the lease, and writes it if it is ours to write: whether we hold it now.
async fn turn(client: &Client, me: &str, seen: &mut Option<Seen>, terms: Terms) -> Result<bool, Status> {
    let now = api::time::micro(Timestamp::now());
    let found = match client.get(&LEASES, NAMESPACE, NAME).await {
        Ok(found) => found,
        Err(status) if status.code == 404 => {
            let fresh = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": NAME, "namespace": NAMESPACE}, "spec": {}});
            return match client.create(&LEASES, NAMESPACE, held(&fresh, me, terms, &now)).await {
                Ok(made) => {
                    note(seen, &made);
                    Ok(true)
                }
                // Another server was quicker.
                Err(status) if status.reason == "AlreadyExists" => Ok(false),
                Err(status) => Err(status),
            };
        }
        Err(status) => return Err(status),
    };
    let seen_now = note(seen, &found);
    if decide(&found, me, &seen_now, terms, Instant::now()) == Decision::Wait {
        return Ok(false);
    }
    let change = |current: &Value| match current["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"]
    {
        true => Ok(held(current, me, terms, &now)),
        false => Err(Status::conflict("coordination.k8s.io", "leases", NAME, "another server took it")),
    };
    match client.update(&LEASES, NAMESPACE, NAME, "", change).await {
        Ok(written) => {
            note(seen, &written);
            Ok(true)
        }
        Err(status) if status.code == 409 => Ok(false),
        Err(status) => Err(status),
    }
}

/// Gives the lease back, if it is still ours.
async fn release(client: &Client, me: &str) -> Result<(), Status> {
    let now = api::time::micro(Timestamp::now());
    let change = |current: &Value| match current["spec"]["holderIdentity"] == me {
        true => Ok(released(current, &now)),
        false => Ok(current.clone()),
    };
    client.update(&LEASES, NAMESPACE, NAME, "", change).await.map(drop)
}

/// Notes what the lease is like now; gives since when.
fn note(seen: &mut Option<Seen>, lease: &Value) -> Seen {
    let version = lease["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    match seen {
        Some(known) if known.version == version => known.clone(),
        _ => seen.insert(Seen { version: version.to_owned(), since: Instant::now() }).clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use apiserver::identity::{MASTERS, User};
    use apiserver::nodes::NoNodes;
    use apiserver::server::{Config, Server};

    use super::*;

    const TERMS: Terms = Terms {
        lease: Duration::from_millis(900),
        give_up: Duration::from_millis(600),
        pause: Duration::from_millis(50),
    };

    #[test]
    fn a_lease_is_taken_when_it_stands_still() {
        let start = Instant::now();
        let seen = Seen { version: "1".into(), since: start };
        let lease = |holder: &str| json!({"spec": {"holderIdentity": holder}});
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(decide(&lease("me"), "me", &seen, TERMS, at(0)), Decision::Write);
        assert_eq!(decide(&lease(""), "me", &seen, TERMS, at(0)), Decision::Write);
        assert_eq!(decide(&lease("other"), "me", &seen, TERMS, at(899)), Decision::Wait);
        assert_eq!(decide(&lease("other"), "me", &seen, TERMS, at(900)), Decision::Write);
    }

    #[test]
    fn changes_of_hands_are_counted() {
        let fresh = held(&json!({"spec": {}}), "a", TERMS, "t1");
        assert_eq!(fresh["spec"]["leaseTransitions"], 0);
        let renewed = held(&fresh, "a", TERMS, "t2");
        assert_eq!((&renewed["spec"]["leaseTransitions"], &renewed["spec"]["acquireTime"]), (&json!(0), &json!("t1")));
        let taken = held(&renewed, "b", TERMS, "t3");
        assert_eq!((&taken["spec"]["leaseTransitions"], &taken["spec"]["acquireTime"]), (&json!(1), &json!("t3")));
    }

    /// Counts in `running` for as long as it lives.
    struct Guard(Arc<AtomicUsize>);

    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    async fn server(folder: &tempfile::TempDir) -> Server {
        let config = Config::on_loopback(folder.path().join("store.redb"));
        Server::open(&config, Arc::new(NoNodes)).await.unwrap()
    }

    #[tokio::test]
    async fn who_ends_gives_the_lease_back_and_the_next_does_not_wait() {
        let folder = tempfile::tempdir().unwrap();
        let server = server(&folder).await;
        // Nobody's lease runs out within this test.
        let long = Terms { lease: Duration::from_secs(600), give_up: Duration::from_secs(500), ..TERMS };
        let admin = server.client(User::new("admin", &[MASTERS]), "admin");
        for (transitions, name) in ["a", "b"].into_iter().enumerate() {
            let (stop, (led, mut leads)) = (CancellationToken::new(), tokio::sync::mpsc::channel(1));
            let client = server.client(User::new(name, &[MASTERS]), name);
            let contender = tokio::spawn(run(client, name.to_owned(), long, stop.clone(), move |tasks| {
                led.try_send(()).unwrap();
                tasks.spawn(std::future::pending());
            }));
            tokio::time::timeout(Duration::from_secs(20), leads.recv()).await.unwrap().unwrap();
            let lease = admin.get(&LEASES, NAMESPACE, NAME).await.unwrap();
            assert_eq!(lease["spec"]["holderIdentity"], name);
            assert_eq!(lease["spec"]["leaseTransitions"], transitions);
            stop.cancel();
            contender.await.unwrap();
            let lease = admin.get(&LEASES, NAMESPACE, NAME).await.unwrap();
            assert_eq!(lease["spec"]["holderIdentity"], "");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_leads_at_a_time_and_another_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let server = server(&folder).await;
        let running = Arc::new(AtomicUsize::new(0));
        let contend = |name: &str| {
            let (client, running) = (server.client(User::new(name, &[MASTERS]), name), running.clone());
            let stop = CancellationToken::new();
            tokio::spawn(run(client, name.to_owned(), TERMS, stop, move |tasks| {
                assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "two lead");
                let guard = Guard(running.clone());
                tasks.spawn(async move {
                    let _guard = guard;
                    std::future::pending::<()>().await;
                });
            }))
        };
        let contenders = ["a", "b", "c"].map(contend);
        let admin = server.client(User::new("admin", &[MASTERS]), "admin");
        let mut killed = None;
        for round in 0..40 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let lease = admin.get(&LEASES, NAMESPACE, NAME).await.unwrap();
            let holder = lease["spec"]["holderIdentity"].as_str().unwrap().to_owned();
            if round == 10 {
                let index = usize::from(holder.as_bytes()[0] - b'a');
                contenders[index].abort();
                killed = Some(holder);
            } else if killed.as_ref().is_some_and(|killed| *killed != holder) {
                assert_eq!(lease["spec"]["leaseTransitions"], 1);
                tokio::time::sleep(Duration::from_millis(100)).await;
                assert_eq!(running.load(Ordering::SeqCst), 1);
                return;
            }
        }
        panic!("nobody took the lease of who was killed");
    }
}
