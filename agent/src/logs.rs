//! Reading containers' CRI logs: over rotations, from the end, by time, and on as they grow.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::uid::Uid;
use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::door::{open_regular, read_end};
use crate::node::Node;

#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    pub follow: bool,
    pub previous: bool,
    pub since: Option<Timestamp>,
    pub tail: Option<u64>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
    /// `Stdout` or `Stderr` only.
    pub stream: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("container {container:?} in pod {uid} is waiting to start")]
    NotStarted { uid: Uid, container: String },
    #[error("previous terminated container {container:?} in pod {uid} not found")]
    NoPrevious { uid: Uid, container: String },
    #[error("read the log")]
    Io(#[from] io::Error),
}

/// One entry of a log file.
#[derive(Debug, PartialEq)]
struct Entry<'a> {
    time: &'a str,
    stream: &'a str,
    /// The line ends here; otherwise the next entry of the stream goes on.
    full: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let mut word = || parts.next().and_then(|part| std::str::from_utf8(part).ok());
    let (time, stream, tag) = (word()?, word()?, word()?);
    Some(Entry { time, stream, full: tag.starts_with('F'), text: parts.next().unwrap_or_default() })
}

/// The bytes a client sees of one entry.
fn render(line: &[u8], options: &LogOptions) -> Vec<u8> {
    let Some(entry) = parse(line) else { return Vec::new() };
    if options.stream.as_deref().is_some_and(|wanted| !wanted.eq_ignore_ascii_case(entry.stream)) {
        return Vec::new();
    }
    if options.since.is_some_and(|since| entry.time.parse::<Timestamp>().is_ok_and(|time| time < since)) {
        return Vec::new();
    }
    let mut out = Vec::with_capacity(entry.text.len() + 40);
    if options.timestamps {
        out.extend_from_slice(entry.time.as_bytes());
        out.push(b' ');
    }
    out.extend_from_slice(entry.text);
    if entry.full {
        out.push(b'\n');
    }
    out
}

/// The log of a container's present or previous run.
pub fn read(
    node: &Arc<Node>,
    uid: &Uid,
    container: &str,
    options: LogOptions,
) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static + use<>, LogError> {
    let run = if uid.is_file_name() { newest_run(&node.pod_logs(uid).join(container))? } else { None };
    let names = || (uid.clone(), container.to_owned());
    let run = match (run, options.previous) {
        (None, _) => {
            let (uid, container) = names();
            return Err(LogError::NotStarted { uid, container });
        }
        (Some(run), false) => run,
        (Some(run), true) => {
            let previous = run.checked_sub(1).filter(|run| node.log_file(uid, container, *run).exists());
            previous.ok_or_else(|| {
                let (uid, container) = names();
                LogError::NoPrevious { uid, container }
            })?
        }
    };
    let (sender, receiver) = mpsc::channel(16);
    let reader = Reader {
        node: node.clone(),
        uid: uid.clone(),
        container: container.to_owned(),
        run: format!("{container}-{run}"),
        path: node.log_file(uid, container, run),
        options,
        sent: 0,
    };
    tokio::spawn(reader.run(sender));
    Ok(futures::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }))
}

fn newest_run(folder: &Path) -> io::Result<Option<u32>> {
    let items = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        items => items?,
    };
    let numbers = items.flatten().filter_map(|item| item.file_name().to_str()?.strip_suffix(".log")?.parse().ok());
    Ok(numbers.max())
}

/// The rotated files of a log, oldest first, then the log itself.
fn files_of(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.");
    let mut rotated: Vec<PathBuf> = fs::read_dir(folder)?
        .flatten()
        .filter(|item| item.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)))
        .map(|item| item.path())
        .collect();
    rotated.sort();
    rotated.push(log.to_owned());
    Ok(rotated)
}

/// Removes a log with its rotated files.
pub fn remove(log: &Path) -> io::Result<()> {
    if log.parent().is_none_or(|folder| !folder.exists()) {
        return Ok(());
    }
    files_of(log)?.iter().try_for_each(|path| crate::disk::remove_file(path))
}

/// The end of a log as plain text: at most so many lines and bytes.
pub fn last_lines(log: &Path, lines: usize, bytes: usize) -> Vec<u8> {
    // An entry has at most 16 KiB, so its last bytes are always in here.
    const WINDOW: u64 = 64 << 10;
    let (options, mut found) = (LogOptions::default(), Vec::new());
    for path in files_of(log).unwrap_or_default().iter().rev() {
        let Ok(text) = read_end(path, WINDOW) else { continue }; // rotated away meanwhile
        let entries = text.split(|byte| *byte == b'\n').rev().map(|line| render(line, &options));
        let left = lines.saturating_sub(found.len());
        found.extend(entries.filter(|line| !line.is_empty()).take(left));
    }
    let out: Vec<u8> = found.into_iter().rev().flatten().collect();
    out[out.len().saturating_sub(bytes)..].to_vec()
}

/// The file in which reading begins, at its place there; the files after it are its successors.
fn start(log: &Path, tail: Option<u64>) -> io::Result<LogFile> {
    let (mut wanted, mut first) = (tail.unwrap_or(u64::MAX), None);
    for path in files_of(log)?.iter().rev() {
        let mut file = match LogFile::open(path, 0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // just rotated or removed
            opened => opened?,
        };
        let (start, found) = tail_start(file.reader.get_mut(), wanted)?;
        file.reader.seek(SeekFrom::Start(start))?;
        first = Some(file);
        wanted -= found.min(wanted);
        if wanted == 0 {
            break;
        }
    }
    first.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The offset of the last `wanted` lines, and how many there are.
fn tail_start(file: &mut File, wanted: u64) -> io::Result<(u64, u64)> {
    const BLOCK: u64 = 64 << 10;
    let size = file.metadata()?.len();
    let (mut position, mut found) = (size, 0);
    if wanted == 0 {
        return Ok((size, 0));
    }
    while position > 0 {
        let length = BLOCK.min(position);
        position -= length;
        let mut block = vec![0; length as usize];
        file.seek(SeekFrom::Start(position))?;
        file.read_exact(&mut block)?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = position + index as u64 + 1;
            if after == size {
                continue; // the end of the last line
            }
            found += 1;
            if found == wanted {
                return Ok((after, found));
            }
        }
    }
    Ok((0, found + u64::from(size > 0)))
}

struct Reader {
    node: Arc<Node>,
    uid: Uid,
    container: String,
    run: String,
    path: PathBuf,
    options: LogOptions,
    sent: u64,
}

type Sender = mpsc::Sender<io::Result<Bytes>>;

/// Whether the reader goes on.
#[derive(PartialEq)]
enum Next {
    More,
    Done,
}

impl Reader {
    async fn run(mut self, sender: Sender) {
        let outcome = self.read_all(&sender).await;
        if let Err(error) = outcome {
            let _ = sender.send(Err(error)).await; // the client has left: nobody to tell
        }
    }

    async fn read_all(&mut self, sender: &Sender) -> io::Result<()> {
        // Subscribed before the first read, so that nothing written in between is missed.
        let mut watcher = if self.options.follow { Some(Watcher::new(&self.path)?) } else { None };
        let mut changes = self.node.changes.subscribe();
        let mut following = Following { file: start(&self.path, self.options.tail)?, log: self.path.clone() };
        loop {
            let live = self.is_live();
            if self.copy(&mut following, sender).await? == Next::Done || !live {
                return Ok(());
            }
            let Some(watcher) = watcher.as_mut() else { return Ok(()) };
            tokio::select! {
                read = watcher.changed() => read?,
                _ = changes.changed() => {}
                () = sender.closed() => return Ok(()),
            }
        }
    }

    /// Whether more may come. A pod that is just being taken over may well run.
    fn is_live(&self) -> bool {
        let live = self.node.live();
        let container = live.pods.get(&self.uid).and_then(|pod| pod.containers.get(&self.container));
        container.is_some_and(|container| container.run == self.run) || live.adopting.contains(&self.uid)
    }

    /// Sends what the file has by now.
    async fn copy(&mut self, lines: &mut Following, sender: &Sender) -> io::Result<Next> {
        loop {
            let mut out = Vec::new();
            let mut more = false;
            while let Some(line) = lines.next_line()? {
                out.extend(render(&line, &self.options));
                more = out.len() >= 32 << 10;
                if more {
                    break;
                }
            }
            let left = self.options.limit_bytes.map(|limit| limit.saturating_sub(self.sent));
            if let Some(left) = left {
                out.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            }
            self.sent += out.len() as u64;
            if !out.is_empty() && sender.send(Ok(out.into())).await.is_err() {
                return Ok(Next::Done);
            }
            if self.options.limit_bytes.is_some_and(|limit| self.sent >= limit) {
                return Ok(Next::Done);
            }
            if !more {
                return Ok(Next::More);
            }
        }
    }
}

/// A log over its rotations.
struct Following {
    file: LogFile,
    log: PathBuf,
}

impl Following {
    /// The next whole line, if it has been written.
    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(line) = self.file.next_line()? {
                return Ok(Some(line));
            }
            let Some(next) = self.file.successor(&self.log)? else { return Ok(None) };
            // It is complete now: what was written between the last look and its rotation comes first.
            if let Some(line) = self.file.next_line()? {
                return Ok(Some(line));
            }
            self.file = next;
        }
    }
}

/// A log file being read, and the piece of an entry that isn't whole yet.
struct LogFile {
    reader: BufReader<File>,
    inode: u64,
    piece: Vec<u8>,
}

impl LogFile {
    fn open(path: &Path, start: u64) -> io::Result<LogFile> {
        use std::os::unix::fs::MetadataExt as _;
        let mut file = open_regular(path)?;
        let inode = file.metadata()?.ino();
        file.seek(SeekFrom::Start(start))?;
        Ok(LogFile { reader: BufReader::new(file), inode, piece: Vec::new() })
    }

    /// The next whole line, if it has been written.
    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.reader.read_until(b'\n', &mut self.piece)?;
        if self.piece.last() != Some(&b'\n') {
            return Ok(None);
        }
        self.piece.pop();
        Ok(Some(std::mem::take(&mut self.piece)))
    }

    /// The file that came after this one, if it has been rotated away. Names move on while they are looked at: the file
    /// that was listed next may have become another's predecessor by the time it is opened. Once it is open all files
    /// before it have the names they keep, so the one that is still next in a second list is the successor.
    fn successor(&self, log: &Path) -> io::Result<Option<LogFile>> {
        const ATTEMPTS: u32 = 10;
        let mut own_seen = false;
        for _ in 0..ATTEMPTS {
            let files = inodes_of(log)?;
            let Some(own) = files.iter().position(|(inode, _)| *inode == self.inode) else { continue };
            own_seen = true;
            let Some((_, path)) = files.get(own + 1) else { return Ok(None) };
            let next = match LogFile::open(path, 0) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            if inodes_of(log)?.windows(2).any(|pair| pair[0].0 == self.inode && pair[1].0 == next.inode) {
                return Ok(Some(next));
            }
        }
        if own_seen {
            return Ok(None); // it is asked again when something changes
        }
        // So far behind that this file has been removed: the oldest there is comes next.
        match files_of(log)?.first() {
            Some(path) if path.exists() => LogFile::open(path, 0).map(Some),
            _ => Ok(None),
        }
    }
}

/// The files of a log from the oldest on, each with its inode, 0 for one that is gone meanwhile.
fn inodes_of(log: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    use std::os::unix::fs::MetadataExt as _;
    let inode = |path: &PathBuf| fs::symlink_metadata(path).map_or(0, |meta| meta.ino());
    let files = files_of(log)?.into_iter();
    Ok(files.map(|path| (inode(&path), path)).collect())
}

/// Wakes when something in a log's folder changes.
struct Watcher {
    inotify: tokio::io::unix::AsyncFd<File>,
}

impl Watcher {
    #[expect(unsafe_code, reason = "inotify has no safe form in std")]
    fn new(log: &Path) -> io::Result<Watcher> {
        use std::os::fd::{AsRawFd as _, FromRawFd as _};
        use std::os::unix::ffi::OsStrExt as _;
        let folder = log.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let folder = std::ffi::CString::new(folder.as_os_str().as_bytes())?;
        // SAFETY: a new descriptor is ours; the path is a valid C string.
        let file = unsafe {
            let fd = libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let file = File::from_raw_fd(fd);
            let mask = libc::IN_MODIFY | libc::IN_CREATE | libc::IN_MOVED_FROM;
            if libc::inotify_add_watch(file.as_raw_fd(), folder.as_ptr(), mask) < 0 {
                return Err(io::Error::last_os_error());
            }
            file
        };
        // SAFETY: the AsyncFd owns the descriptor, which nothing else closes or replaces.
        let inotify = unsafe { tokio::io::unix::AsyncFd::register(file)? };
        Ok(Watcher { inotify })
    }

    async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = [0_u8; 4096];
        loop {
            let mut guard = self.inotify.readable_mut().await?;
            match guard.try_io(|file| file.get_mut().read(&mut buffer)) {
                Ok(read) => return read.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = b"2024-01-02T03:04:05.000000006Z stdout F hello there";

    #[test]
    fn entries() {
        assert_eq!(render(LINE, &LogOptions::default()), b"hello there\n");
        let options = LogOptions { timestamps: true, ..LogOptions::default() };
        assert_eq!(render(LINE, &options), b"2024-01-02T03:04:05.000000006Z hello there\n");
        let later = LogOptions { since: Some("2024-01-02T03:04:06Z".parse().unwrap()), ..LogOptions::default() };
        assert!(render(LINE, &later).is_empty());
        assert_eq!(render(b"2024-01-02T03:04:05Z stderr P abc", &LogOptions::default()), b"abc");
        let other = LogOptions { stream: Some("Stderr".into()), ..LogOptions::default() };
        assert!(render(LINE, &other).is_empty());
    }

    #[test]
    fn no_line_is_lost_while_files_are_rotated() {
        const LINES: u32 = 900;
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        File::create(&log).unwrap();
        let mut following = Following { file: LogFile::open(&log, 0).unwrap(), log: log.clone() };
        let writer = std::thread::spawn(move || {
            use std::io::Write as _;
            let mut file = File::options().append(true).open(&log).unwrap();
            for n in 0..LINES {
                writeln!(file, "{n}").unwrap();
                if n % 3 == 2 {
                    fs::rename(&log, log.with_extension(format!("log.{n:06}"))).unwrap();
                    file = File::create(&log).unwrap();
                }
            }
        });
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let mut wanted = 0;
        while wanted < LINES {
            assert!(std::time::Instant::now() < deadline, "line {wanted} never comes");
            let Some(line) = following.next_line().unwrap() else { continue };
            assert_eq!(String::from_utf8(line).unwrap(), wanted.to_string());
            wanted += 1;
        }
        writer.join().unwrap();
    }

    #[test]
    fn tails_reach_over_rotations() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        let lines = |range: std::ops::Range<u32>| {
            range.map(|n| format!("2024-01-02T03:04:05Z stdout F {n}\n")).collect::<String>()
        };
        fs::write(folder.path().join("0.log.000001"), lines(0..3)).unwrap();
        fs::write(folder.path().join("0.log.000002"), lines(3..6)).unwrap();
        fs::write(&log, lines(6..8)).unwrap();
        for (tail, expected) in [(1, "7\n"), (2, "6\n7\n"), (4, "4\n5\n6\n7\n"), (100, "0\n1\n2\n3\n4\n5\n6\n7\n")] {
            assert_eq!(String::from_utf8(last_lines(&log, tail, 1000)).unwrap(), expected);
        }
        assert_eq!(last_lines(&log, 4, 3), b"\n7\n");
        assert!(last_lines(&log, 0, 1000).is_empty());
        remove(&log).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
