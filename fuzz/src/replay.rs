//! The fuzz targets without a fuzzer: a target's corpus, and some thousand mutations of it from a fixed seed. Included by
//! the tests of the crates whose readers these are.

use std::panic::RefUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

/// Mutations of each target, and when to stop short of them: a slow machine still runs the corpus.
const MUTATIONS: usize = 4000;
const TIME: Duration = Duration::from_secs(20);

/// What a target's inputs look like.
#[derive(Clone, Copy)]
pub struct Shape<'a> {
    /// What the readers know; random bytes would rarely hit on it.
    pub words: &'a [&'a str],
    /// Pieces of this size move as a whole, and nothing is put between them; 1 for texts.
    pub block: usize,
    /// Larger inputs are for hours, not for this.
    pub largest: usize,
}

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
        usize::try_from(self.next() % limit.max(1) as u64).expect("less than a usize")
    }
}

fn mutated(random: &mut Random, corpus: &[Vec<u8>], shape: Shape<'_>) -> Vec<u8> {
    let whole = |place: usize| place / shape.block * shape.block;
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(4) {
        let place = random.below(bytes.len() + 1);
        let at = whole(place);
        let end = whole(at + random.below(16 * shape.block)).min(bytes.len());
        match random.below(6) {
            0 if place < bytes.len() => bytes[place] ^= 1 << random.below(8),
            1 if at < end => drop(bytes.drain(at..end)),
            2 if at < end => bytes = [&bytes[..end], &bytes[at..]].concat(),
            3 => put(&mut bytes, place, shape.words[random.below(shape.words.len())].as_bytes(), shape),
            4 => {
                let other = &corpus[random.below(corpus.len())];
                let from = whole(random.below(other.len() + 1));
                bytes.splice(at.min(bytes.len()).., other[from..].iter().copied());
            }
            _ => {
                let byte = u8::try_from(random.below(256)).expect("a byte");
                put(&mut bytes, place, &[byte], shape);
            }
        }
    }
    bytes.truncate(shape.largest);
    bytes
}

/// Between what is there, or over it where that may not move.
fn put(bytes: &mut Vec<u8>, place: usize, new: &[u8], shape: Shape<'_>) {
    let over = if shape.block == 1 { 0 } else { new.len() };
    let end = (place + over).min(bytes.len());
    bytes.splice(place..end, new.iter().copied());
}

/// `corpus` is a folder's name in `fuzz/corpus`.
pub fn run(corpus: &str, shape: Shape<'_>, target: impl Fn(&[u8]) + RefUnwindSafe) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(corpus);
    let files = std::fs::read_dir(&folder).expect("a corpus");
    let mut files: Vec<_> = files.map(|entry| entry.expect("a file of the corpus").path()).collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).expect("a file of the corpus")).collect();
    corpus.iter().for_each(|bytes| target(bytes));
    let (mut random, start) = (Random(0x9e37_79b9_7f4a_7c15), Instant::now());
    for number in 0..MUTATIONS {
        let bytes = mutated(&mut random, &corpus, shape);
        if std::panic::catch_unwind(|| target(&bytes)).is_err() {
            panic!("mutation {number}: {:?}", String::from_utf8_lossy(&bytes));
        }
        if start.elapsed() > TIME {
            return;
        }
    }
}
