//! The contract on a real etcd, and what is peculiar to one that is shared.

use std::sync::atomic::Ordering;

use super::super::contract::{self, Ground, Heard, commit, put};
use super::*;

#[path = "../../../tests/processes/etcd.rs"]
mod process;

/// An etcd of this test's own.
struct Server(process::Etcd);

impl Server {
    fn start(words: &[&str]) -> Self {
        Self(process::Etcd::start(words))
    }

    fn settings(&self) -> Settings {
        Settings { endpoints: vec![self.0.endpoint()], tls: None }
    }

    fn wire(&self) -> Wire {
        Wire::new(&self.settings()).unwrap()
    }
}

#[async_trait]
impl Ground for Server {
    async fn open(&self) -> Result<Opened, StoreError> {
        open(&self.settings()).await
    }
}

async fn started(server: &Server) -> (Arc<dyn Store>, Heard) {
    let heard = Heard::default();
    (server.open().await.unwrap().start(heard.clone()), heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds() {
    contract::hold(async || Server::start(&[])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_hear_of_each_other() {
    let server = Server::start(&[]);
    let ((one, first), (two, second)) = (started(&server).await, started(&server).await);
    for round in 0..20 {
        let revision = commit(&one, put(&format!("a{round}"), Expect::Absent)).await.unwrap();
        two.fresh().await.unwrap();
        assert!(second.revisions().contains(&revision), "a fresh read misses what another server acknowledged");
        let mine = commit(&two, put(&format!("a{round}"), Expect::At(revision))).await.unwrap();
        let lost = commit(&one, put(&format!("a{round}"), Expect::At(revision))).await;
        assert!(matches!(lost, Err(CommitError::Conflict { found, .. }) if found == Some(mine)));
        assert!(first.revisions().contains(&mine), "who lost has heard of the winner");
    }
    one.fresh().await.unwrap();
    assert_eq!(first.all(), second.all());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_read_does_not_wait_for_others_keys() {
    let server = Server::start(&[]);
    let (store, _) = started(&server).await;
    let wire = server.wire();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let foreign = tokio::spawn({
        let stop = stop.clone();
        async move {
            while !stop.load(Ordering::Relaxed) {
                let request = PutRequest { key: b"/registry/foreign".to_vec(), value: b"x".to_vec(), lease: 0 };
                wire.put(request).await.unwrap();
            }
        }
    });
    let mut took = Vec::new();
    for _ in 0..100 {
        let began = Instant::now();
        store.fresh().await.unwrap();
        took.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    stop.store(true, Ordering::Relaxed);
    foreign.await.unwrap();
    took.sort();
    // Half of them, since other tests run beside: who waited for the watch alone would wait for ever.
    assert!(took[49] < Duration::from_millis(50), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_away_for_a_while_is_taken_up_again() {
    let mut server = Server::start(&[]);
    let (store, heard) = started(&server).await;
    let first = commit(&store, put("a", Expect::Absent)).await.unwrap();
    server.0.kill();
    let outcome = commit(&store, put("a", Expect::At(first))).await;
    assert!(
        matches!(&outcome, Err(CommitError::Store(error)) if matches!(**error, StoreError::Outage { .. })),
        "{outcome:?}"
    );
    assert!(store.health().await.is_err());
    server.0.start_again();
    let second = loop {
        // The call that failed may have been carried out: who tries again is told.
        match commit(&store, put("a", Expect::At(first))).await {
            Ok(revision) => break revision,
            Err(CommitError::Conflict { found: Some(found), .. }) => break found,
            Err(CommitError::Store(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(heard.revisions(), [first, second]);
    assert!(store.failure().borrow().is_none());
    assert_eq!(store.health().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_up_quota_is_told_and_ends() {
    let server = Server::start(&["--quota-backend-bytes", "2000000"]);
    let (store, _) = started(&server).await;
    let wire = server.wire();
    let mut filled = 0;
    while wire
        .put(PutRequest { key: format!("/registry/{filled}").into(), value: vec![0; 100_000], lease: 0 })
        .await
        .is_ok()
    {
        filled += 1;
        assert!(filled < 100, "the quota holds nothing back");
    }
    let refused = commit(&store, put("a", Expect::Absent)).await;
    assert!(matches!(&refused, Err(CommitError::Store(error)) if error.is_refusal()), "{refused:?}");
    assert!(store.health().await.unwrap_err().contains("NOSPACE"));
    assert!(store.failure().borrow().is_none(), "nothing is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_a_lifetime_outlives_no_lease() {
    let server = Server::start(&[]);
    let (store, heard) = started(&server).await;
    let short = |name: &str| Write { lifetime: Some(Duration::from_secs(1)), ..put(name, Expect::Absent) };
    let shared = started(&server).await.0;
    commit(&shared, short("a")).await.unwrap();
    assert!(store.keeps_lifetimes());
    // The lease is longer than asked for, because it is shared: here only that the key has one.
    let asked = RangeRequest { key: b"/amphipod/core/pods/ns/a".to_vec(), ..RangeRequest::default() };
    let entry = server.wire().range(asked).await.unwrap().kvs.remove(0);
    assert!(entry.lease > 0);
    store.fresh().await.unwrap();
    assert_eq!(heard.revisions(), [number(entry.mod_revision)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_take_turns_in_compacting_and_one_left_behind_says_so() {
    let server = Server::start(&[]);
    let wire = server.wire();
    let (store, _) = started(&server).await;
    let first = commit(&store, put("a", Expect::Absent)).await.unwrap();
    // Two servers see the same key; only one of them moves it each turn.
    let (mut one, mut two) = (None, None);
    for round in 0..4 {
        commit(&store, put(&format!("b{round}"), Expect::Absent)).await.unwrap();
        one = compact_once(&wire, one).await.unwrap();
        two = compact_once(&wire, two).await.unwrap();
    }
    let old = RangeRequest { key: b"a".to_vec(), revision: signed(first), ..RangeRequest::default() };
    assert_eq!(wire.range(old).await.unwrap_err().code(), Code::OutOfRange, "what is old is forgotten");
    let current = commit(&store, put("c", Expect::Absent)).await.unwrap();
    let now = RangeRequest { key: b"a".to_vec(), revision: signed(current), ..RangeRequest::default() };
    assert!(wire.range(now).await.is_ok());
    // A server that was cut off before all that, and hears only now.
    let late = Etcd::start(server.wire(), "late".into(), Box::new(Heard::default()), first - 1);
    let mut failure = late.failure();
    let why = tokio::time::timeout(Duration::from_secs(10), failure.wait_for(Option::is_some)).await.unwrap().unwrap();
    assert!(matches!(why.as_deref(), Some(StoreError::Behind { .. })), "{why:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_layout_is_refused() {
    let server = Server::start(&[]);
    drop(server.open().await.unwrap());
    let newer = PutRequest { key: FORMAT_KEY.into(), value: (FORMAT + 1).to_string().into(), lease: 0 };
    server.wire().put(newer).await.unwrap();
    assert!(matches!(server.open().await, Err(StoreError::Newer { found, .. }) if found == FORMAT + 1));
}

/// An authority, a certificate of it for loopback, and one for a client; each with its key, as PEM.
fn certificates() -> [(String, String); 3] {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = (params.self_signed(&key).unwrap().pem(), key.serialize_pem());
    let issuer = Issuer::new(params, key);
    let issue = |names: Vec<String>| {
        let (mut params, key) = (CertificateParams::new(names).unwrap(), KeyPair::generate().unwrap());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    [authority, issue(vec!["127.0.0.1".into()]), issue(vec!["amphipod".into()])]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tls_both_sides_show_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let [authority, server, client] = certificates();
    let (ca, certificate, key) = (file("ca", &authority.0), file("cert", &server.0), file("key", &server.1));
    let words = ["--client-cert-auth", "--trusted-ca-file", &ca, "--cert-file", &certificate, "--key-file", &key];
    let etcd = process::Etcd::start(&words);
    let settings = |authority: &str, identity: Option<&(String, String)>| Settings {
        endpoints: vec![etcd.endpoint()],
        tls: Some(Tls {
            authority: authority.into(),
            identity: identity.map(|(certificate, key)| (certificate.clone().into(), key.clone().into())),
        }),
    };
    let opened = open(&settings(&authority.0, Some(&client))).await.unwrap();
    let heard = Heard::default();
    let store = opened.start(heard.clone());
    let revision = commit(&store, put("a", Expect::Absent)).await.unwrap();
    assert_eq!(heard.revisions(), [revision]);
    // Without a certificate, with one of somebody else's, or towards somebody else, nothing is served.
    let [other, _, stranger] = certificates();
    for (what, settings) in [
        ("no certificate", settings(&authority.0, None)),
        ("a stranger's certificate", settings(&authority.0, Some(&stranger))),
        ("another authority", settings(&other.0, Some(&client))),
        ("no TLS", Settings { tls: None, ..settings(&authority.0, None) }),
    ] {
        assert!(open(&settings).await.is_err(), "{what}");
    }
}
