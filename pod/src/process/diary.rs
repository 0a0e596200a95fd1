//! Why a container could not be made. libcontainer's child sends the outermost words of its error only ("failed to
//! prepare rootfs"); which path it was and what the kernel said goes to its log. So its log of errors is read here: the
//! child writes it to a pipe of this process, and what is found there becomes words as runc has them.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::{Mutex, Once, PoisonError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

use super::{program, sys};

/// Where errors are written at present, in this process and the children it forks.
static OPEN: Mutex<Option<File>> = Mutex::new(None);
/// Less than a pipe holds: the writer never waits, and what is beyond is lost.
const MOST: u64 = 16 << 10;

/// Errors that are written from [`Diary::open`] on.
pub struct Diary(File);

impl Diary {
    pub fn open() -> io::Result<Diary> {
        static SCRIBE: Once = Once::new();
        SCRIBE.call_once(|| {
            // Nobody else in this process listens.
            let _ = tracing::subscriber::set_global_default(Scribe);
        });
        let (reader, writer) = sys::pipe()?;
        sys::set_nonblocking(reader.as_raw_fd())?;
        sys::set_nonblocking(writer.as_raw_fd())?;
        *OPEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer.into());
        Ok(Diary(reader.into()))
    }

    /// What has been written by now, line by line.
    pub fn read(&self) -> Vec<String> {
        let mut text = Vec::new();
        // A child that was not reaped may hold the other end: there is no end of file, only nothing more for now.
        let _nothing_more = (&self.0).take(MOST).read_to_end(&mut text);
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }
}

impl Drop for Diary {
    fn drop(&mut self) {
        *OPEN.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Writes down errors, and nothing else.
struct Scribe;

impl Subscriber for Scribe {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::ERROR)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn event(&self, event: &Event<'_>) {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = open.as_mut() else { return };
        let mut line = Line::default();
        event.record(&mut line);
        // One write for a line: it comes whole, or not at all when the pipe is full.
        let _full = file.write_all(format!("{}{}\n", line.message, line.fields).replace("\n ", " ").as_bytes());
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// What libcontainer puts before the words of its child.
const CHILDS: &str = "error in executing process : ";
/// The child's own last line says nothing new.
const LAST_LINE: &str = "failed to initialize container process";
/// What follows is why it could not take away at once what it had made; that goes with the pod.
const AFTERWARDS: &str = ". error during cleanup: ";

/// The reason in runc's words, as far as it has words for it: what was said, what was written down, and the working
/// folder that was asked for.
pub fn reason(said: &str, written: &[String], cwd: &Path) -> String {
    let said = said.split_once(AFTERWARDS).map_or(said, |(why, _)| why);
    let Some((_, childs)) = said.split_once(CHILDS) else { return with_details(said, written) };
    let written: Vec<String> = written.iter().take_while(|line| !line.starts_with(LAST_LINE)).cloned().collect();
    let told = mount_refused(&written).or_else(|| cwd_refused(&written, cwd));
    format!("error during container init: {}", told.unwrap_or_else(|| with_details(childs, &written)))
}

fn with_details(said: &str, written: &[String]) -> String {
    let new = written.iter().filter(|line| !said.contains(line.as_str()));
    new.fold(said.to_owned(), |text, line| format!("{text}: {line}"))
}

fn cwd_refused(written: &[String], cwd: &Path) -> Option<String> {
    let line = written.iter().find(|line| line.starts_with("failed to chdir"))?;
    Some(match errno(line)?.as_str() {
        // One that is not there is made, and here it cannot be.
        refused @ "not a directory" => format!("mkdir {}: {refused}", cwd.display()),
        refused => format!("chdir to cwd ({:?}) set in config.json failed: {refused}", cwd.display().to_string()),
    })
}

fn mount_refused(written: &[String]) -> Option<String> {
    const KINDS: &str = "Are you trying to mount a directory onto a file (or vice-versa)? \
        Check if the specified host path exists and is the expected type";
    let line = written.iter().find(|line| line.starts_with("failed to mount Mount {"))?;
    let between = |from: &str| Some(line.split_once(from)?.1.split_once('"')?.0);
    let (source, destination) = (between(r#"source: Some(""#).unwrap_or("none"), between(r#"destination: ""#)?);
    let refused = written.iter().find_map(|line| errno(line))?;
    let hint = if refused == "not a directory" { format!(": {KINDS}") } else { String::new() };
    Some(format!(
        "error mounting {source:?} to rootfs at {destination:?}: mount src={source}, dst={destination}: {refused}{hint}"
    ))
}

/// The first error number of a line, as words: by its name, or as std shows it.
fn errno(line: &str) -> Option<String> {
    let mut names = line.split(|c: char| !c.is_ascii_alphanumeric());
    let named = names.find_map(|name| ERRNOS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number));
    let number = named.or_else(|| line.split_once("code: ")?.1.split(',').next()?.parse().ok())?;
    Some(program::words(&io::Error::from_raw_os_error(number)))
}

/// What mounts and folders fail with.
const ERRNOS: [(&str, i32); 20] = [
    ("EPERM", libc::EPERM),
    ("ENOENT", libc::ENOENT),
    ("EIO", libc::EIO),
    ("ENXIO", libc::ENXIO),
    ("ENOMEM", libc::ENOMEM),
    ("EACCES", libc::EACCES),
    ("EBUSY", libc::EBUSY),
    ("EEXIST", libc::EEXIST),
    ("EXDEV", libc::EXDEV),
    ("ENODEV", libc::ENODEV),
    ("ENOTDIR", libc::ENOTDIR),
    ("EISDIR", libc::EISDIR),
    ("EINVAL", libc::EINVAL),
    ("EMFILE", libc::EMFILE),
    ("ENOSPC", libc::ENOSPC),
    ("EROFS", libc::EROFS),
    ("EMLINK", libc::EMLINK),
    ("ELOOP", libc::ELOOP),
    ("ENAMETOOLONG", libc::ENAMETOOLONG),
    ("ESTALE", libc::ESTALE),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn of(said: &str, written: &[&str]) -> String {
        let written: Vec<String> = written.iter().map(|line| (*line).to_owned()).collect();
        reason(said, &written, Path::new("/work"))
    }

    #[test]
    fn the_childs_own_words_are_enough() {
        let said = r#"exec process failed with error error in executing process : exec: "x": executable file not found in $PATH"#;
        let last = ["failed to initialize container process: exec: \"x\": executable file not found in $PATH"];
        let words = r#"error during container init: exec: "x": executable file not found in $PATH"#;
        assert_eq!(of(said, &last), words);
        let busy = format!("{said}. error during cleanup: failed to cleanup container: io error: could not delete");
        assert_eq!(of(&busy, &last), words);
    }

    #[test]
    fn paths_and_causes_come_from_the_log() {
        let said = "exec process failed with error error in executing process : failed to unix syscall";
        assert_eq!(
            of(said, &["failed to chdir e=ELOOP", "failed to initialize container process: failed to unix syscall"]),
            r#"error during container init: chdir to cwd ("/work") set in config.json failed: too many levels of symbolic links"#
        );
        assert_eq!(
            of(said, &["failed to chdir e=ENOTDIR"]),
            "error during container init: mkdir /work: not a directory"
        );
        let said = "exec process failed with error error in executing process : failed to prepare rootfs";
        let mount = r#"failed to mount Mount { destination: "/etc/passwd", typ: Some("bind"), source: Some("/v"), options: None }: syscall"#;
        let words = of(said, &[mount, "failed to prepare rootfs err=Mount(Syscall(Nix(ENOTDIR)))"]);
        assert!(words.contains(r#"error mounting "/v" to rootfs at "/etc/passwd": "#), "{words}");
        assert!(words.contains("not a directory: Are you trying to mount a directory onto a file"), "{words}");
        let std = "failed to prepare rootfs err=Mount(Io(Os { code: 13, kind: PermissionDenied, message: \"x\" }))";
        assert!(of(said, &[mount, std]).ends_with(": permission denied"));
        let other = of("cgroup error: x", &["failed to apply cgroup err=Y"]);
        assert_eq!(other, "cgroup error: x: failed to apply cgroup err=Y");
    }

    #[test]
    fn errors_are_written_down_as_long_as_the_diary_is_open() {
        let diary = Diary::open().unwrap();
        tracing::error!(code = 7, "it {}", "broke");
        tracing::warn!("not this");
        assert_eq!(diary.read(), ["it broke code=7"]);
        drop(diary);
        tracing::error!("nobody reads this");
    }
}
