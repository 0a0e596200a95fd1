//! A client and a server, each a thread inside a network namespace and bound to one processor.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::host;

/// Both ends on one processor: on two, waking the other one costs more than the whole path.
pub const CPU: usize = 1;
const MESSAGE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);

// The first byte of a request says what the server does after its answer.
const KEEP: u8 = b'k';
const CLOSE: u8 = b'c';
const QUIT: u8 = b'q';

/// Answers each request with a message of its letter.
pub struct Server {
    netns: PathBuf,
    port: u16,
}

impl Server {
    pub fn start(netns: &Path, port: u16, letter: u8) -> Result<Self> {
        let (ready, listening) = channel();
        let thread = host::inside(netns, move || {
            host::pin(CPU)?;
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("cannot listen")?;
            ready.send(())?;
            while serve(&mut listener.accept()?.0, letter)? {}
            Ok(())
        });
        match listening.recv_timeout(PATIENCE) {
            Ok(()) => Ok(Self { netns: netns.to_owned(), port }),
            Err(_) => Err(host::join(thread).err().unwrap_or_else(|| anyhow!("the server does not listen"))),
        }
    }
}

/// One connection to its end; false when the client wants no more served.
fn serve(stream: &mut TcpStream, letter: u8) -> Result<bool> {
    stream.set_nodelay(true)?;
    let (mut request, answer) = ([0; MESSAGE], [letter; MESSAGE]);
    // A client may break off: its connection is over then, the server is not.
    while stream.read_exact(&mut request).is_ok() && stream.write_all(&answer).is_ok() {
        match request[0] {
            KEEP => {}
            QUIT => return Ok(false),
            _ => break,
        }
    }
    Ok(true)
}

impl Drop for Server {
    fn drop(&mut self) {
        let at = SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.port);
        let asked = host::inside(&self.netns, move || exchange(&mut connect(at)?, QUIT).map(drop));
        if let Err(error) = host::join(asked) {
            eprintln!("the server at port {} does not end: {error:#}", self.port);
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread that measures, for as long as it is wanted.
pub struct Client {
    jobs: Sender<Job>,
}

impl Client {
    pub fn enter(netns: &Path) -> Result<Self> {
        let (jobs, inbox) = channel::<Job>();
        // It ends with the sender; what goes wrong inside shows as a job without an answer.
        drop(host::inside(netns, move || {
            host::pin(CPU)?;
            inbox.into_iter().for_each(|job| job());
            Ok(())
        }));
        let client = Self { jobs };
        client.run(|| Ok(())).context("cannot enter the client's namespace")?;
        Ok(client)
    }

    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let (give, take) = channel();
        let job = Box::new(move || drop(give.send(work())));
        self.jobs.send(job).map_err(|_| anyhow!("the client's thread has ended"))?;
        take.recv().context("the client's thread has ended")?
    }

    /// Waits until the server answers at this address.
    pub fn wait(&self, at: SocketAddrV4) -> Result<()> {
        self.run(move || {
            let deadline = Instant::now() + PATIENCE;
            while let Err(error) = visit(at) {
                ensure!(Instant::now() < deadline, "{at} does not answer: {error:#}");
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        })
    }

    /// Microseconds of connecting, asking once and closing; each time at one of the addresses.
    pub fn connects(&self, at: Vec<SocketAddrV4>, count: usize, seed: u64) -> Result<Vec<f64>> {
        self.run(move || {
            let mut pick = Pick::new(seed);
            let timed = |_| {
                let at = at[pick.below(at.len())];
                let began = Instant::now();
                visit(at)?;
                Ok(began.elapsed().as_secs_f64() * 1e6)
            };
            (0..count).map(timed).collect()
        })
    }

    /// Microseconds of each question and answer on one connection.
    pub fn exchanges(&self, at: Vec<SocketAddrV4>, count: usize, seed: u64) -> Result<Vec<f64>> {
        self.run(move || {
            let mut stream = connect(at[Pick::new(seed).below(at.len())])?;
            let timed = |_| {
                let began = Instant::now();
                exchange(&mut stream, KEEP)?;
                Ok(began.elapsed().as_secs_f64() * 1e6)
            };
            let times = (0..count).map(timed).collect();
            exchange(&mut stream, CLOSE)?;
            times
        })
    }
}

fn connect(at: SocketAddrV4) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&at.into(), PATIENCE).with_context(|| format!("cannot connect to {at}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The server's letter.
fn exchange(stream: &mut TcpStream, then: u8) -> Result<u8> {
    let mut answer = [0; MESSAGE];
    stream.write_all(&[then; MESSAGE])?;
    stream.read_exact(&mut answer)?;
    Ok(answer[0])
}

/// A connection with one question. The server closes first, so that its side waits, not the client's ports.
pub fn visit(at: SocketAddrV4) -> Result<u8> {
    let mut stream = connect(at)?;
    let letter = exchange(&mut stream, CLOSE)?;
    ensure!(stream.read(&mut [0])? == 0, "{at} says more than its answer");
    Ok(letter)
}

/// A quick generator: the same picks for the same seed.
pub struct Pick(u64);

impl Pick {
    pub fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound.max(1) as u64).unwrap_or(0)
    }
}
