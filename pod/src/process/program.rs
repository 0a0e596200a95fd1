//! Which file a command's name means, and why it cannot be run: looked up as runc looks it up, and told in its words,
//! which everybody who runs containers has read before.

use std::ffi::CString;
use std::io;
use std::path::Path;

use super::sys;

/// Where a program is looked for when its environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotFound(String),
    #[error("exec: {name:?}: stat {name}: {}", words(.why))]
    Absent { name: String, why: io::Error },
    #[error("exec: {name:?}: {}", words(.why))]
    NotRunnable { name: String, why: io::Error },
    #[error(transparent)]
    Name(#[from] io::Error),
}

/// Looks a program up in the calling process's root, with its rights.
pub fn find(name: &str, path: Option<&str>) -> Result<CString, Unfit> {
    if name.contains('/') {
        let file = sys::c_string(name)?;
        let kind = std::fs::metadata(name).map_err(|why| Unfit::Absent { name: name.to_owned(), why })?;
        let runnable = if kind.is_dir() { Err(is_a_folder()) } else { sys::may_execute(&file) };
        return runnable.map(|()| file).map_err(|why| Unfit::NotRunnable { name: name.to_owned(), why });
    }
    let folders = path.unwrap_or(DEFAULT_PATH).split(':').filter(|folder| !folder.is_empty());
    let candidates = folders.map(|folder| Path::new(folder).join(name));
    let found = candidates.into_iter().find(|candidate| runs(candidate));
    let found = found.filter(|_| !name.is_empty()).ok_or_else(|| Unfit::NotFound(name.to_owned()))?;
    Ok(sys::c_path(&found)?)
}

fn runs(path: &Path) -> bool {
    let is_file = std::fs::metadata(path).is_ok_and(|kind| !kind.is_dir());
    is_file && sys::c_path(path).and_then(|path| sys::may_execute(&path)).is_ok()
}

fn is_a_folder() -> io::Error {
    io::Error::from_raw_os_error(libc::EISDIR)
}

/// The system's words for an error, without the number that std adds, and beginning small as inside a sentence.
pub fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    fn refusal(name: &str, path: Option<&str>) -> String {
        find(name, path).unwrap_err().to_string()
    }

    #[test]
    fn programs_are_found_in_path() {
        assert_eq!(find("sh", Some("/nonexistent::/bin")).unwrap().to_str().unwrap(), "/bin/sh");
        assert_eq!(find("/bin/sh", None).unwrap().to_str().unwrap(), "/bin/sh");
        assert_eq!(refusal("no-such", None), r#"exec: "no-such": executable file not found in $PATH"#);
        assert_eq!(refusal("", None), r#"exec: "": executable file not found in $PATH"#);
    }

    #[test]
    fn what_cannot_be_run_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        fs::write(&plain, "").unwrap();
        fs::set_permissions(&plain, Permissions::from_mode(0o644)).unwrap();
        let name = plain.to_str().unwrap();
        assert_eq!(refusal(name, None), format!("exec: {name:?}: permission denied"));
        let below = format!("{name}/x");
        assert_eq!(refusal(&below, None), format!("exec: {below:?}: stat {below}: not a directory"));
        assert_eq!(refusal("/nope/x", None), r#"exec: "/nope/x": stat /nope/x: no such file or directory"#);
        assert_eq!(refusal("/etc", None), r#"exec: "/etc": is a directory"#);
        let path = folder.path().to_str();
        assert_eq!(refusal("plain", path), r#"exec: "plain": executable file not found in $PATH"#);
        fs::set_permissions(&plain, Permissions::from_mode(0o700)).unwrap();
        find("plain", path).unwrap();
    }
}
