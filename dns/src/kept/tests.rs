//! The test's own executable is server and keeper as well: it runs itself again with a variable that says as what.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};

use super::*;
use crate::{Config, QueryLog, Server, Snapshot};

const ROLE: &str = "AMPHIPOD_TEST_KEPT";
const FOLDER: &str = "AMPHIPOD_TEST_FOLDER";

/// A process of this executable, ended with its owner.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What the processes run: not a test of its own.
#[test]
fn role() {
    match std::env::var(ROLE).as_deref() {
        Ok("server") => serve(Path::new(&std::env::var(FOLDER).unwrap())),
        Ok("keeper") => keep_for(Duration::from_secs(5)).unwrap(),
        _ => {}
    }
}

fn keeper(folder: &Path) -> Keeper {
    // The role goes by a variable, which only `env` can set for one that a server starts.
    let program = std::env::current_exe().unwrap().display().to_string();
    let role = format!("{ROLE}=keeper");
    let arguments = [&*role, &program, "--exact", "kept::tests::role"].map(str::to_owned);
    Keeper { path: folder.join("names.sock"), program: "env".into(), arguments: arguments.into() }
}

fn serve(folder: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let address = IpAddr::from(Ipv4Addr::LOCALHOST);
    let open = || Sockets::bind(SocketAddr::new(address, 0));
    let listening = Listening::keep(address, open, keeper(folder)).unwrap();
    let config = Config {
        domain: "cluster.local".into(),
        node: "node1".into(),
        pods: Vec::new(),
        servers: vec![address],
        upstreams: Vec::new(),
        stubs: Vec::new(),
        clients: vec!["127.0.0.0/8".parse().unwrap()],
        log: QueryLog::Off,
        autopath: crate::Autopath::Off,
    };
    let _entered = runtime.enter();
    let server = Server::start(config, listening).unwrap();
    server.publish(Snapshot::default());
    std::fs::write(folder.join("new"), server.address().to_string()).unwrap();
    std::fs::rename(folder.join("new"), folder.join("address")).unwrap();
    runtime.block_on(server.broken());
}

fn start_server(folder: &Path) -> Other {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "kept::tests::role"]).env(ROLE, "server").env(FOLDER, folder).stdout(Stdio::null());
    Other(command.spawn().unwrap())
}

/// Where the server says that it listens.
fn address(folder: &Path) -> SocketAddr {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match std::fs::read_to_string(folder.join("address")) {
            Ok(text) => return text.parse().unwrap(),
            Err(_) => assert!(Instant::now() < deadline, "the server does not start"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn question(id: u16) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = id;
    message.queries.push(Query::query(Name::from_ascii("ns.dns.cluster.local.").unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

/// Asks once more at most, as resolvers do; none if there was no answer, else how often it took.
fn ask(server: SocketAddr, id: u16) -> Option<usize> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (1..=2).find(|_| {
        let mut answer = [0; 512];
        let sent = socket.send(&question(id)).and_then(|_| socket.recv(&mut answer));
        sent.is_ok_and(|length| Message::from_vec(&answer[..length]).is_ok_and(|answer| answer.metadata.id == id))
    })
}

#[test]
fn a_server_that_is_killed_and_comes_back_loses_no_question() {
    let folder = tempfile::tempdir().unwrap();
    let first = start_server(folder.path());
    let server = address(folder.path());
    assert_eq!(ask(server, 1), Some(1));
    let (stop, asked, again, lost) =
        (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let last = std::thread::scope(|scope| {
        for thread in 0..4u16 {
            let (stop, asked, again, lost) = (&stop, &asked, &again, &lost);
            scope.spawn(move || {
                let deadline = Instant::now() + Duration::from_secs(200);
                for id in 0.. {
                    if stop.load(Ordering::SeqCst) || Instant::now() > deadline {
                        return;
                    }
                    asked.fetch_add(1, Ordering::SeqCst);
                    match ask(server, id << 2 | thread) {
                        Some(1) => {}
                        Some(_) => drop(again.fetch_add(1, Ordering::SeqCst)),
                        None => drop(lost.fetch_add(1, Ordering::SeqCst)),
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        }
        let mut running = first;
        for round in 1..=3 {
            let deadline = Instant::now() + Duration::from_secs(60);
            while asked.load(Ordering::SeqCst) < round * 50 {
                assert!(Instant::now() < deadline, "questions are not answered");
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(running);
            std::fs::remove_file(folder.path().join("address")).unwrap();
            // Away for a moment: questions meet sockets that nobody reads.
            std::thread::sleep(Duration::from_millis(100));
            running = start_server(folder.path());
            assert_eq!(address(folder.path()), server, "the port stays");
        }
        stop.store(true, Ordering::SeqCst);
        running
    });
    drop(last);
    let [asked, again, lost] = [asked, again, lost].map(AtomicUsize::into_inner);
    assert_eq!(lost, 0, "of {asked} questions, {again} took a second try");
    let_go(&folder.path().join("names.sock")).unwrap();
    assert!(UdpSocket::bind(server).is_ok(), "nobody has the port any more");
}

#[test]
fn an_address_that_the_node_lost_is_not_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
    let kept = |address: IpAddr| {
        let open = || Sockets::bind(SocketAddr::new(address, 0));
        Listening::keep(address, open, keeper(folder.path())).unwrap()
    };
    let first = kept(one).address().unwrap();
    assert_eq!(kept(one).address().unwrap(), first);
    assert_eq!(kept(other).address().unwrap().ip(), other);
    let_go(&folder.path().join("names.sock")).unwrap();
    assert!(!folder.path().join("names.sock").exists());
}

#[test]
fn a_keeper_without_a_server_ends_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_server(folder.path());
    let at = address(folder.path());
    drop(server);
    let deadline = Instant::now() + Duration::from_secs(30);
    while UdpSocket::bind(at).is_err() {
        assert!(Instant::now() < deadline, "the sockets are still kept");
        std::thread::sleep(Duration::from_millis(50));
    }
}
