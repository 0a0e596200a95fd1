//! Seccomp filters, compiled once for all pods of a node.
//!
//! libseccomp takes about 10 ms for a profile of the usual size, several times what the rest of a container's start
//! costs. So the compiled program is kept in a file next to the profile it came from, and the same bytes are given to the
//! kernel for every container and exec. What libcontainer would compile itself is taken out of its configuration; its
//! child loads the filter instead ([`Workload`](super::workload::Workload)), right before it is ready.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;
use std::rc::Rc;

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, Spec};

use super::sys;

/// A classic BPF program: instructions of 8 bytes, as seccomp(2) takes them.
#[derive(Clone, Debug)]
pub struct Filter(Rc<[u8]>);

impl Filter {
    /// The filter of a profile, from the folder of compiled ones or compiled now. `None` when the profile wants what
    /// only libcontainer does (a notify socket, flags).
    pub fn of(profile: &LinuxSeccomp, cache: Option<&Path>) -> io::Result<Option<Filter>> {
        let wants_more = profile.flags().as_ref().is_some_and(|flags| !flags.is_empty());
        let rules = profile.syscalls().iter().flatten();
        if wants_more || rules.map(|rule| rule.action()).any(|action| action == LinuxSeccompAction::ScmpActNotify) {
            return Ok(None);
        }
        let text = serde_json::to_string(profile)?;
        let kept = cache.map(|folder| folder.join(file_name(&text)));
        if let Some(program) = kept.as_deref().and_then(|path| read(path, &text)) {
            return Ok(Some(Filter(program.into())));
        }
        let program = in_a_child(|| compile(profile))?;
        if let Some(path) = kept {
            keep(&path, &text, &program)?;
        }
        Ok(Some(Filter(program.into())))
    }

    #[cfg(test)]
    pub fn of_bytes(program: &[u8]) -> Filter {
        Filter(program.into())
    }

    /// Confines the calling process. Needs CAP_SYS_ADMIN or no_new_privs.
    pub fn load(&self) -> io::Result<()> {
        sys::load_filter(&self.0).map_err(|error| sys::context(error, "load the seccomp filter"))
    }
}

/// How the processes of one container are confined.
#[derive(Debug)]
pub enum Confinement {
    None,
    Filter(Filter),
    /// A profile that libcontainer compiles each time.
    Profile(LinuxSeccomp),
}

impl Confinement {
    pub fn of(spec: &Spec, cache: Option<&Path>) -> io::Result<Confinement> {
        let Some(profile) = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) else {
            return Ok(Confinement::None);
        };
        let filter = Filter::of(profile, cache)?;
        Ok(filter.map_or_else(|| Confinement::Profile(profile.clone()), Confinement::Filter))
    }

    /// Confines the calling process.
    pub fn load(&self) -> io::Result<()> {
        match self {
            Confinement::None => Ok(()),
            Confinement::Filter(filter) => filter.load(),
            Confinement::Profile(profile) => libcontainer::seccomp::initialize_seccomp(profile)
                .map(drop)
                .map_err(|error| io::Error::other(causes::chain(&error))),
        }
    }
}

// ---- files: the profile's length (8 bytes), the profile, the program ----

fn file_name(profile: &str) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(profile.as_bytes());
    format!("{:016x}", hasher.finish())
}

/// The program kept for exactly this profile; anything else is as good as absent.
fn read(path: &Path, profile: &str) -> Option<Vec<u8>> {
    let kept = fs::read(path).ok()?;
    let (length, rest) = kept.split_first_chunk::<8>()?;
    let (text, program) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    (text == profile.as_bytes() && !program.is_empty()).then(|| program.to_vec())
}

/// Another pod process may do the same at the same time: each writes a file of its own and renames it.
fn keep(path: &Path, profile: &str, program: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension(std::process::id().to_string());
    let mut file = File::create(&temporary)?;
    file.write_all(&(profile.len() as u64).to_le_bytes())?;
    file.write_all(profile.as_bytes())?;
    file.write_all(program)?;
    fs::rename(&temporary, path)
}

// ---- from the profile to the program ----

type Compiled = Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>>;

/// Compiling takes most of a megabyte that the allocator would keep as long as the pod lives: a child takes it along.
fn in_a_child(compile: impl FnOnce() -> Compiled) -> io::Result<Vec<u8>> {
    const FAILED: u8 = b'E';
    const DONE: u8 = b'P';
    let (reader, writer) = sys::pipe()?;
    let Some(child) = sys::fork()? else {
        let said = match compile() {
            Ok(program) => [&[DONE][..], &program].concat(),
            Err(error) => [&[FAILED][..], error.to_string().as_bytes()].concat(),
        };
        sys::exit_now(i32::from(File::from(writer).write_all(&said).is_err()));
    };
    drop(writer);
    let mut said = Vec::new();
    let heard = File::from(reader).read_to_end(&mut said);
    sys::wait_for(child)?;
    heard?;
    match said.split_first() {
        Some((&DONE, program)) => Ok(program.to_vec()),
        Some((_, words)) => Err(io::Error::other(String::from_utf8_lossy(words).into_owned())),
        None => Err(io::Error::other("the compiler ended without a word")),
    }
}

fn compile(profile: &LinuxSeccomp) -> Compiled {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default)?;
    for arch in profile.architectures().iter().flatten() {
        filter.add_arch(architecture(*arch)?)?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        if action == default {
            continue; // libseccomp refuses a rule that changes nothing
        }
        let conditions: Vec<_> = rule.args().iter().flatten().map(condition).collect();
        for name in rule.names() {
            // A name that this library does not know is a call that it cannot allow either.
            let Ok(syscall) = ScmpSyscall::from_name(name) else { continue };
            if conditions.is_empty() {
                filter.add_rule(action, syscall)?;
            } else if compares_one_argument_twice(rule.args().iter().flatten()) {
                for condition in &conditions {
                    filter.add_rule_conditional(action, syscall, std::slice::from_ref(condition))?;
                }
            } else {
                filter.add_rule_conditional(action, syscall, &conditions)?;
            }
        }
    }
    let mut file = sys::memory_file(c"seccomp")?;
    filter.export_bpf(&file)?;
    file.rewind()?;
    let mut program = Vec::new();
    file.read_to_end(&mut program)?;
    Ok(program)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, String> {
    let errno = errno.map_or(libc::EPERM, |errno| errno as i32);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(errno as u16),
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActNotify => return Err("a seccomp profile cannot notify by default".into()),
    })
}

/// Both libraries know an architecture by the same word.
fn architecture(arch: Arch) -> Result<ScmpArch, Box<dyn std::error::Error + Send + Sync>> {
    let word = serde_json::to_value(arch)?;
    Ok(word.as_str().unwrap_or_default().parse()?)
}

fn condition(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let operator = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
        LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
        LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
        LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
        LinuxSeccompOperator::ScmpCmpMaskedEq => ScmpCompareOp::MaskedEqual(arg.value_two().unwrap_or(0)),
    };
    ScmpArgCompare::new(arg.index() as u32, operator, arg.value())
}

/// libseccomp compares each argument once in a rule; more comparisons of one become rules of their own, as with runc.
fn compares_one_argument_twice<'a>(args: impl Iterator<Item = &'a LinuxSeccompArg>) -> bool {
    let mut seen = Vec::new();
    args.into_iter().any(|arg| {
        let again = seen.contains(&arg.index());
        seen.push(arg.index());
        again
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(text: &str) -> LinuxSeccomp {
        serde_json::from_str(text).unwrap()
    }

    const PLAIN: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{"names": ["mkdir", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99}]}"#;

    #[test]
    fn a_filter_is_compiled_once_for_a_profile() {
        let folder = tempfile::tempdir().unwrap();
        let first = Filter::of(&profile(PLAIN), Some(folder.path())).unwrap().unwrap();
        assert!(!first.0.is_empty() && first.0.len().is_multiple_of(8));
        let kept = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let text = serde_json::to_string(&profile(PLAIN)).unwrap();
        keep(&kept, &text, b"12345678").unwrap();
        assert_eq!(&*Filter::of(&profile(PLAIN), Some(folder.path())).unwrap().unwrap().0, b"12345678");
    }

    #[test]
    fn a_kept_file_of_another_profile_or_cut_short_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let text = serde_json::to_string(&profile(PLAIN)).unwrap();
        let path = folder.path().join(file_name(&text));
        for (kept_text, cut) in [("another", 0), (text.as_str(), 9)] {
            keep(&path, kept_text, b"12345678").unwrap();
            let whole = fs::read(&path).unwrap();
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            assert_ne!(&*Filter::of(&profile(PLAIN), Some(folder.path())).unwrap().unwrap().0, b"12345678");
        }
    }

    #[test]
    fn what_only_libcontainer_does_is_left_to_it() {
        for more in [
            r#""flags": ["SECCOMP_FILTER_FLAG_LOG"]"#,
            r#""syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]"#,
        ] {
            let text = format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", {more}}}"#);
            assert!(Filter::of(&profile(&text), None).unwrap().is_none());
        }
    }
}
