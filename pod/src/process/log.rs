//! One container's log in CRI format: `<time> <stream> <F|P> <line>`, rotated by size.
//!
//! The current file keeps its name; a full one gets the next number as suffix (`0.log.000007`), so no file is ever
//! renamed twice and a reader can follow the numbers.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::protocol::LogTarget;

/// Longer lines are cut into pieces marked `P`.
const MAX_LINE: usize = 16 << 10;

#[derive(Debug)]
pub struct Log {
    target: LogTarget,
    file: Option<File>,
    size: u64,
    next_number: u64,
    /// The unfinished line of each stream.
    partial: BTreeMap<&'static str, Vec<u8>>,
    pub bytes_lost: u64,
}

impl Log {
    pub fn open(target: LogTarget) -> io::Result<Log> {
        if let Some(folder) = target.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let next_number = rotated(&target.path)?.last().map_or(1, |(number, _)| number + 1);
        let (file, size) = open_append(&target.path)?;
        Ok(Log { target, file: Some(file), size, next_number, partial: BTreeMap::new(), bytes_lost: 0 })
    }

    /// Takes bytes that a container wrote at `now` (nanoseconds since 1970).
    pub fn write(&mut self, stream: &'static str, bytes: &[u8], now: i64) {
        let mut text = self.partial.remove(stream).unwrap_or_default();
        text.extend_from_slice(bytes);
        let (entries, rest) = entries(&text, stream, &timestamp(now));
        if !rest.is_empty() {
            self.partial.insert(stream, rest.to_vec());
        }
        self.append(&entries);
    }

    /// A stream ended: an unfinished line is written as it is.
    pub fn end(&mut self, stream: &'static str, now: i64) {
        if let Some(rest) = self.partial.remove(stream) {
            self.append(&entry(&timestamp(now), stream, 'P', &rest));
        }
    }

    fn append(&mut self, entries: &[u8]) {
        if entries.is_empty() {
            return;
        }
        if let Err(error) = self.try_append(entries) {
            self.bytes_lost += entries.len() as u64;
            eprintln!("log {}: {error}", self.target.path.display());
        }
    }

    fn try_append(&mut self, entries: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + entries.len() as u64 > self.target.max_bytes {
            self.rotate()?;
        }
        if self.file.is_none() {
            let (file, size) = open_append(&self.target.path)?;
            (self.file, self.size) = (Some(file), size);
        }
        if let Some(file) = &mut self.file {
            file.write_all(entries)?;
            self.size += entries.len() as u64;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        let mut name = self.target.path.clone().into_os_string();
        name.push(format!(".{:06}", self.next_number));
        fs::rename(&self.target.path, name)?;
        self.next_number += 1;
        let old = rotated(&self.target.path)?;
        let keep = self.target.max_files.saturating_sub(1);
        for (_, path) in old.iter().take(old.len().saturating_sub(keep)) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

fn open_append(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// The full files of a log, oldest first.
fn rotated(path: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.");
    let mut found = Vec::new();
    for item in fs::read_dir(folder)? {
        let item = item?;
        let number = item.file_name().to_str().and_then(|name| name.strip_prefix(&prefix)?.parse().ok());
        found.extend(number.map(|number| (number, item.path())));
    }
    found.sort();
    Ok(found)
}

/// Whole lines (and pieces of overlong ones) as log entries, and the rest.
fn entries<'a>(mut text: &'a [u8], stream: &str, time: &str) -> (Vec<u8>, &'a [u8]) {
    let mut out = Vec::with_capacity(text.len() + 64);
    loop {
        let newline = text.iter().take(MAX_LINE + 1).position(|byte| *byte == b'\n');
        match newline {
            Some(end) => {
                out.extend(entry(time, stream, 'F', &text[..end]));
                text = &text[end + 1..];
            }
            None if text.len() > MAX_LINE => {
                out.extend(entry(time, stream, 'P', &text[..MAX_LINE]));
                text = &text[MAX_LINE..];
            }
            None => return (out, text),
        }
    }
}

fn entry(time: &str, stream: &str, tag: char, line: &[u8]) -> Vec<u8> {
    let mut out = format!("{time} {stream} {tag} ").into_bytes();
    out.extend_from_slice(line);
    out.push(b'\n');
    out
}

/// RFC 3339 with nine digits of fraction, UTC.
fn timestamp(nanos: i64) -> String {
    let (seconds, fraction) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let (days, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

/// Days since 1970-01-01 to a date of the Gregorian calendar: eras of 400 years, years beginning in March.
fn civil(days: i64) -> (i64, i64, i64) {
    const ERA_DAYS: i64 = 146_097;
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(ERA_DAYS), shifted.rem_euclid(ERA_DAYS));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_in(folder: &Path, max_bytes: u64, max_files: usize) -> Log {
        Log::open(LogTarget { path: folder.join("0.log"), max_bytes, max_files }).unwrap()
    }

    #[test]
    fn times() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(timestamp(951_782_400_000_000_001), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(timestamp(1_735_689_599_999_999_999), "2024-12-31T23:59:59.999999999Z");
    }

    #[test]
    fn lines_pieces_and_an_unfinished_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log_in(folder.path(), 1 << 20, 5);
        log.write("stdout", b"one\ntw", 0);
        log.write("stderr", b"err\n", 0);
        log.write("stdout", b"o\nend", 0);
        log.end("stdout", 0);
        let text = fs::read_to_string(folder.path().join("0.log")).unwrap();
        let short = text.replace("1970-01-01T00:00:00.000000000Z ", "");
        assert_eq!(short, "stdout F one\nstderr F err\nstdout F two\nstdout P end\n");
    }

    #[test]
    fn long_lines_are_cut() {
        let line = [vec![b'x'; MAX_LINE + 10], b"\n".to_vec()].concat();
        let (out, rest) = entries(&line, "stdout", "T");
        let text = String::from_utf8(out).unwrap();
        let tags: Vec<_> = text.lines().map(|line| (line.split(' ').nth(2).unwrap(), line.len() - 11)).collect();
        assert_eq!(tags, [("P", MAX_LINE), ("F", 10)]);
        assert!(rest.is_empty());
    }

    #[test]
    fn rotation_keeps_the_newest_files() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log_in(folder.path(), 100, 3);
        for number in 0..20 {
            log.write("stdout", format!("line {number} {}\n", "x".repeat(30)).as_bytes(), 0);
        }
        let names: Vec<_> = rotated(&folder.path().join("0.log")).unwrap();
        assert_eq!(names.len(), 2);
        let last = fs::read_to_string(folder.path().join("0.log")).unwrap();
        assert!(last.contains("line 19"), "{last}");
        assert_eq!(log.bytes_lost, 0);
    }
}
