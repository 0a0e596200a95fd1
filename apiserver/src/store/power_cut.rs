//! The store on a disk that fails: cut off after each of its operations in turn, full, and with a sync that fails or lies.
//!
//! The disk keeps a log of what was asked of it. A power cut keeps what was synced; what was written since is there, or
//! not, or in part. Whatever is found must be exactly what was acknowledged (or one batch more, which was under way), or
//! the store must say that it is damaged.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redb::{BackendError, Builder, Database, DatabaseError, StorageBackend};

use super::contract::{Heard, put};
use super::local::Local;
use super::mark::Mark;
use super::redb::{Medium, RedbStore};
use super::{Durability, Expect, Record, Store, StoreError, Transaction, seal, unseal};

const SECTOR: usize = 512;
/// Bytes at the start of the file that are no page with a checksum.
const HEADER: usize = 320;

#[derive(Debug, Clone)]
enum Operation {
    Write(usize, Vec<u8>),
    SetLen(usize),
    Sync,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    log: Vec<Operation>,
    syncs: usize,
    /// This sync, and no later one, fails.
    failing_sync: Option<usize>,
    /// Bytes that may still be written.
    space: Option<usize>,
}

#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn holding(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State { bytes, ..State::default() })))
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.with(|state| state.bytes.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.with(|state| {
            let from = offset as usize;
            let found = state.bytes.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(found);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.with(|state| {
            state.log.push(Operation::SetLen(len as usize));
            state.bytes.resize(len as usize, 0);
            Ok(())
        })
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.with(|state| {
            state.syncs += 1;
            if state.failing_sync == Some(state.syncs) {
                return Err(io::Error::from_raw_os_error(5));
            }
            state.log.push(Operation::Sync);
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.with(|state| {
            if let Some(space) = &mut state.space {
                *space = space.checked_sub(data.len()).ok_or(io::ErrorKind::StorageFull)?;
            }
            let operation = Operation::Write(offset as usize, data.to_vec());
            apply(&mut state.bytes, &operation);
            state.log.push(operation);
            Ok(())
        })
    }

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn try_lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn query_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(false)
    }
}

fn apply(bytes: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Write(offset, data) => {
            let end = offset + data.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[*offset..end].copy_from_slice(data);
        }
        Operation::SetLen(len) => bytes.resize(*len, 0),
        Operation::Sync => {}
    }
}

/// The disk under a store, and the folder of its mark.
struct Machine {
    disk: Disk,
    path: PathBuf,
}

impl Medium for Machine {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.with(|state| state.bytes.len() as u64))
    }

    fn open(&self, builder: &Builder) -> Result<Database, DatabaseError> {
        builder.create_with_backend(self.disk.clone())
    }
}

struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("store.redb")
    }

    fn open(&self, disk: &Disk) -> Result<RedbStore, StoreError> {
        RedbStore::on(Box::new(Machine { disk: disk.clone(), path: self.path() }))
    }

    /// What a new start finds on a disk, when `acknowledged` was the last revision acknowledged.
    fn find(&self, disk: &Disk, acknowledged: u64) -> Result<Content, StoreError> {
        Mark::open(&self.path(), acknowledged).unwrap();
        let mut store = self.open(disk)?;
        content(&mut store)
    }
}

type Content = (u64, BTreeMap<String, Vec<u8>>);

fn content(store: &mut RedbStore) -> Result<Content, StoreError> {
    let (revision, records) = store.load()?;
    let texts = records.into_iter().map(|record| {
        let text = unseal(&record.key, record.revision, record.value.unwrap_or_default())?.text;
        Ok((record.key, text))
    });
    Ok((revision, texts.collect::<Result<_, StoreError>>()?))
}

/// A generator that gives the same numbers each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// Batches that create, change and remove, of changing size, and what is stored after each of them.
fn batches(count: usize) -> (Vec<Vec<Record>>, Vec<Content>) {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut states: Vec<Content> = vec![(0, BTreeMap::new())];
    let all = (0..count).map(|_| {
        let (mut revision, mut now) = states.last().unwrap().clone();
        let batch = (0..1 + numbers.below(8)).map(|_| {
            revision += 1;
            let key = format!("/amphipod/core/configmaps/default/c{}", numbers.below(40));
            let text = format!("{{\"r\":{revision},\"x\":\"{}\"}}", "x".repeat(numbers.below(3000))).into_bytes();
            let value = (numbers.below(5) > 0).then(|| seal(&key, revision, &text));
            match value {
                Some(_) => now.insert(key.clone(), text),
                None => now.remove(&key),
            };
            Record { key, revision, value }
        });
        let batch = batch.collect();
        states.push((revision, now));
        batch
    });
    let all = all.collect();
    (all, states)
}

/// A run on a good disk: the log, and how many batches had been acknowledged at each place of it.
struct Run {
    log: Vec<Operation>,
    /// Where the store was there: a file gets its name only then.
    created: usize,
    /// Where it was closed.
    closed: usize,
    acknowledged: Vec<usize>,
    states: Vec<Content>,
}

fn run(count: usize) -> Run {
    let (lab, disk) = (Lab::new(), Disk::default());
    let (all, states) = batches(count);
    let mut acknowledged = Vec::new();
    let mut note = |done: usize| acknowledged.resize(disk.with(|state| state.log.len()), done);
    let mut store = lab.open(&disk).unwrap();
    note(0);
    let created = disk.with(|state| state.log.len());
    for (done, batch) in all.iter().enumerate() {
        store.put(batch).unwrap();
        note(done);
    }
    note(count);
    store.compact().unwrap();
    note(count);
    let closed = disk.with(|state| state.log.len());
    drop(store);
    note(count);
    Run { log: disk.with(|state| state.log.clone()), created, closed, acknowledged, states }
}

/// What becomes of writes that no sync has confirmed.
#[derive(Debug, Clone, Copy)]
enum Unsynced {
    Lost,
    Kept,
    /// Some of them, some only in part.
    Torn(u64),
}

/// What a disk holds that was cut off after `until` operations, and whose sync `liar` did nothing.
fn image(log: &[Operation], until: usize, unsynced: Unsynced, liar: Option<usize>) -> Vec<u8> {
    let synced = (0..until).rfind(|at| matches!(log[*at], Operation::Sync) && Some(*at) != liar).unwrap_or(0);
    let lied = liar.filter(|liar| *liar < synced);
    // A sync that lied has its writes dropped for good: they are not repeated by the next one.
    let from = lied.map(|lied| (0..lied).rfind(|at| matches!(log[*at], Operation::Sync)).unwrap_or(0));
    let dropped = |at: usize| lied.is_some_and(|lied| at < lied && Some(at) > from);
    let mut numbers = Numbers(match unsynced {
        Unsynced::Torn(seed) => seed,
        _ => 1,
    });
    let mut bytes = Vec::new();
    for (at, operation) in log[..until].iter().enumerate() {
        if at < synced && !dropped(at) {
            apply(&mut bytes, operation);
            continue;
        }
        match (unsynced, operation) {
            (Unsynced::Lost, Operation::SetLen(len)) if at < synced => bytes.resize(*len, 0),
            (Unsynced::Lost, _) => {}
            (Unsynced::Kept, _) => apply(&mut bytes, operation),
            (Unsynced::Torn(_), Operation::Write(offset, data)) => {
                for (sector, part) in data.chunks(SECTOR).enumerate() {
                    if numbers.below(4) > 0 {
                        apply(&mut bytes, &Operation::Write(offset + sector * SECTOR, part.to_vec()));
                    }
                }
            }
            (Unsynced::Torn(_), _) => {
                if numbers.below(2) > 0 {
                    apply(&mut bytes, operation);
                }
            }
        }
    }
    bytes
}

/// Cuts the power at every `step`th operation.
fn cut_everywhere(count: usize, step: usize, seeds: u64) {
    let run = run(count);
    let lab = Lab::new();
    for until in (run.created..=run.log.len()).step_by(step) {
        let acknowledged = run.acknowledged[until - 1];
        let all = [Unsynced::Lost, Unsynced::Kept].into_iter().chain((1..=seeds).map(Unsynced::Torn));
        for unsynced in all {
            let disk = Disk::holding(image(&run.log, until, unsynced, None));
            let found = lab.find(&disk, run.states[acknowledged].0);
            let found = found.unwrap_or_else(|error| panic!("cut after {until}, {unsynced:?}: {error:?}"));
            let possible = &run.states[acknowledged..run.states.len().min(acknowledged + 2)];
            assert!(possible.contains(&found), "cut after {until}, {unsynced:?}: revision {}", found.0);
        }
    }
}

#[test]
fn a_power_cut_anywhere_keeps_what_was_acknowledged() {
    cut_everywhere(12, 1, 2);
}

#[tokio::test]
async fn a_revision_given_to_a_lost_write_is_never_given_again() {
    let (lab, disk) = (Lab::new(), Disk::default());
    let opened = lab.open(&disk).unwrap();
    let created = disk.with(|state| state.log.len());
    let store: Arc<dyn Store> = Arc::new(Local::start(opened, Box::new(Heard::default()), 0));
    // At each place of the log: the last revision given, and the last that had to be on the disk.
    let (mut given, mut synced) = (Vec::new(), Vec::new());
    let (mut lease, mut held) = (Expect::Absent, 0);
    for round in 0..40 {
        let durability = if round % 5 == 0 { Durability::Synced } else { Durability::Soon };
        let writes = vec![put("lease", lease)];
        let revision =
            store.transact(Transaction { writes, durability, ..Transaction::default() }).await.unwrap().revision;
        lease = Expect::At(revision);
        held = if durability == Durability::Synced { revision } else { held };
        let until = disk.with(|state| state.log.len());
        given.resize(until + 1, 0);
        synced.resize(until + 1, 0);
        (given[until], synced[until]) = (revision, held);
    }
    let log = disk.with(|state| state.log.clone());
    drop(store);
    for until in created..given.len() {
        let last = |marks: &[u64]| marks[..=until].iter().copied().max().unwrap_or_default();
        for unsynced in [Unsynced::Lost, Unsynced::Kept, Unsynced::Torn(until as u64 + 1)] {
            let cut = Disk::holding(image(&log, until, unsynced, None));
            std::fs::remove_file(super::mark::path(&lab.path())).ok();
            let mut store = lab.open(&cut).unwrap();
            assert!(store.reserved() >= last(&given), "cut after {until}, {unsynced:?}");
            assert!(store.load().unwrap().0 >= last(&synced), "cut after {until}, {unsynced:?}");
        }
    }
}

#[test]
#[ignore = "minutes: the long form"]
fn a_power_cut_anywhere_in_a_long_run_keeps_what_was_acknowledged() {
    cut_everywhere(60, 1, 4);
}

/// Lets every `step`th sync lie, and cuts the power at places after it.
fn lie_everywhere(count: usize, step: usize, cuts: usize) {
    let run = run(count);
    let lab = Lab::new();
    let syncs: Vec<usize> = (run.created..run.log.len()).filter(|at| matches!(run.log[*at], Operation::Sync)).collect();
    let (mut survived, mut refused) = (0, 0);
    for liar in syncs.into_iter().step_by(step) {
        for cut in 0..cuts {
            let until = (liar + 1 + cut * cut).min(run.log.len());
            let acknowledged = run.acknowledged[until - 1];
            for unsynced in [Unsynced::Lost, Unsynced::Torn(until as u64 + 1)] {
                let disk = Disk::holding(image(&run.log, until, unsynced, Some(liar)));
                let possible = &run.states[acknowledged..run.states.len().min(acknowledged + 2)];
                match lab.find(&disk, run.states[acknowledged].0) {
                    Ok(found) => {
                        assert!(possible.contains(&found), "sync {liar} lied, cut after {until}, {unsynced:?}");
                        survived += 1;
                    }
                    Err(StoreError::Damaged { .. } | StoreError::Lost { .. }) => refused += 1,
                    Err(other) => panic!("sync {liar} lied, cut after {until}: {other:?}"),
                }
            }
        }
    }
    assert!(survived > 0 && refused > 0, "{survived} survived, {refused} refused");
}

#[test]
fn a_lying_sync_is_survived_or_found_out() {
    lie_everywhere(12, 1, 5);
}

#[test]
#[ignore = "minutes: the long form"]
fn a_lying_sync_in_a_long_run_is_survived_or_found_out() {
    lie_everywhere(60, 1, 20);
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged() {
    let (all, states) = batches(6);
    let total = {
        let (lab, disk) = (Lab::new(), Disk::default());
        let mut store = lab.open(&disk).unwrap();
        let opening = disk.with(|state| state.syncs);
        all.iter().for_each(|batch| store.put(batch).unwrap());
        opening + 1..=disk.with(|state| state.syncs)
    };
    for failing in total {
        let (lab, disk) = (Lab::new(), Disk::default());
        disk.with(|state| state.failing_sync = Some(failing));
        let mut store = lab.open(&disk).unwrap();
        let done = all.iter().take_while(|batch| store.put(batch).is_ok()).count();
        assert!(done < all.len());
        let again = store.put(&all[done]).unwrap_err();
        assert!(!again.is_refusal(), "the disk works again, but who knows what it holds: {again:?}");
        drop(store);
        let log = disk.with(|state| state.log.clone());
        for unsynced in [Unsynced::Lost, Unsynced::Kept, Unsynced::Torn(failing as u64)] {
            let found = lab.find(&Disk::holding(image(&log, log.len(), unsynced, None)), states[done].0).unwrap();
            assert!(states[done..=done + 1].contains(&found), "sync {failing} failed, {unsynced:?}");
        }
    }
}

#[test]
fn a_full_disk_refuses_until_there_is_space() {
    let (all, states) = batches(8);
    for space in (0..60_000).step_by(7_000) {
        let (lab, disk) = (Lab::new(), Disk::default());
        let mut store = lab.open(&disk).unwrap();
        disk.with(|state| state.space = Some(space));
        let done = all.iter().take_while(|batch| store.put(batch).is_ok()).count();
        let refused = store.put(&all[done]).unwrap_err();
        assert!(matches!(refused, StoreError::Full { .. }), "{refused:?}");
        disk.with(|state| state.space = None);
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = store.put(&all[done]) {
            assert!(error.is_refusal() && Instant::now() < deadline, "{error:?}");
            std::thread::yield_now();
        }
        all[done + 1..].iter().for_each(|batch| store.put(batch).unwrap());
        assert_eq!(content(&mut store).unwrap(), states[all.len()], "space of {space}");
        drop(store);
        assert_eq!(lab.find(&disk, states[all.len()].0).unwrap(), states[all.len()]);
    }
}

/// Flips bits of the file of a killed server, and cuts it, at every place that `chosen` gives.
fn damage(chosen: impl Fn(usize) -> Vec<usize>) {
    let run = run(12);
    let whole = run.states.last().unwrap();
    let sound = image(&run.log, run.closed, Unsynced::Kept, None);
    let lab = Lab::new();
    let judge = |bytes: Vec<u8>, mark: u64, what: &str| match lab.find(&Disk::holding(bytes), mark) {
        Ok(found) => assert!(found == *whole, "{what}: silent loss"),
        Err(StoreError::Damaged { .. } | StoreError::Lost { .. } | StoreError::Corrupt { .. }) => {}
        Err(StoreError::Newer { .. } | StoreError::Open { .. }) => {}
        Err(other) => panic!("{what}: {other:?}"),
    };
    for place in chosen(sound.len() * 8) {
        let mut bytes = sound.clone();
        bytes[place / 8] ^= 1 << (place % 8);
        // One bit of the header says which of two states is current; only the mark can tell when it flips.
        let mark = if place / 8 < HEADER { whole.0 } else { 0 };
        judge(bytes, mark, &format!("bit {} of byte {} flipped", place % 8, place / 8));
    }
    for place in chosen(sound.len()).into_iter().step_by(7) {
        judge(sound[..place].to_vec(), whole.0, &format!("cut to {place} bytes"));
    }
}

#[test]
fn a_flipped_bit_or_a_cut_is_harmless_or_found_out() {
    let mut numbers = Numbers(77);
    let some: Vec<usize> = (0..250).map(|_| numbers.below(1 << 40)).collect();
    damage(|len| (0..HEADER * 8).step_by(13).chain(some.iter().map(|place| place % len)).collect());
}

#[test]
#[ignore = "minutes: the long form"]
fn flipped_bits_all_over_are_harmless_or_found_out() {
    damage(|len| (0..HEADER * 8).chain((0..len).step_by(211)).collect());
}
