//! The fuzz targets without a fuzzer: each replays its corpus, and some thousand mutations of it from a fixed seed.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::time::{Duration, Instant};

#[path = "../../fuzz/src/targets.rs"]
mod targets;

/// Mutations of each target, and when to stop short of them: a slow machine still runs the corpus.
const MUTATIONS: usize = 4000;
const TIME: Duration = Duration::from_secs(20);
/// Larger inputs are for hours, not for this.
const LARGEST: usize = 4096;

/// What the readers know; random bytes would rarely hit on it.
const WORDS: [&str; 28] = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\0",
    "&a ",
    "*a",
    "<<: ",
    "\n- ",
    "\n  ",
    "null",
    "-1",
    "1e99",
    "\\ud800",
    "\"metadata\":{",
    "\"$patch\":\"replace\"",
    "f:",
    "k:{}",
    "in (",
    "!",
    "\u{e9}",
    "[?(@.",
    ")]",
    "..",
    "[*]",
];

/// xorshift: the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }
}

fn mutated(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(16)).min(bytes.len());
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => bytes = [&bytes[..end], &bytes[at..]].concat(),
            3 => {
                let word = WORDS[random.below(WORDS.len())];
                bytes.splice(at..at, word.bytes());
            }
            4 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                bytes.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let byte = u8::try_from(random.below(256)).unwrap();
                bytes.insert(at, byte);
            }
        }
    }
    bytes.truncate(LARGEST);
    bytes
}

fn run(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    corpus.iter().for_each(|bytes| target(bytes));
    let (mut random, start) = (Random(0x9e37_79b9_7f4a_7c15), Instant::now());
    for number in 0..MUTATIONS {
        let bytes = mutated(&mut random, &corpus);
        if std::panic::catch_unwind(|| target(&bytes)).is_err() {
            panic!("mutation {number}: {:?}", String::from_utf8_lossy(&bytes));
        }
        if start.elapsed() > TIME {
            return;
        }
    }
}

macro_rules! replay {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            run(stringify!($name), targets::$name);
        }
    )*};
}

replay! { json yaml object patch selector path column spdy websocket }
