//! The last steps of a container's first process, in libcontainer's child: its program is looked up with the rights it
//! will have, the seccomp filter is loaded, and it begins.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt as _;

use libcontainer::workload::default::DefaultExecutor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Spec};

use super::capabilities::bits;
use super::filter::Filter;
use super::{program, sys};

/// What a filter needs to be loaded late: libcontainer drops all capabilities but these, which go right after.
const LENT: [Capability; 2] = [Capability::SysAdmin, Capability::Setpcap];
/// How a process ends that could not become its program.
const NOT_BEGUN: i32 = 255;

/// libcontainer's own executor asks whether everybody may run a program, searches again at the end, hands a file that is
/// no program to a shell, and tells neither path nor cause; hence ours.
#[derive(Clone, Default)]
pub struct Workload {
    filter: Option<Filter>,
    /// The sets that the container shall have; `None` when nothing was lent.
    capabilities: Option<LinuxCapabilities>,
    /// Found while the filter does not watch yet.
    program: OnceCell<CString>,
}

impl Workload {
    /// Takes the profile out of a configuration, to load its filter instead. Without no_new_privs that is privileged, so
    /// the configuration is lent the capabilities.
    pub fn confined(spec: &mut Spec, filter: Filter) -> Workload {
        let mut capabilities = None;
        if let Some(process) = spec.process_mut()
            && process.no_new_privileges().is_none()
            && let Some(wanted) = process.capabilities().clone()
        {
            let mut lent = wanted.clone();
            let with = |set: &Option<Capabilities>| Some(set.iter().flatten().copied().chain(LENT).collect());
            lent.set_bounding(with(wanted.bounding()));
            lent.set_permitted(with(wanted.permitted()));
            lent.set_effective(with(wanted.effective()));
            process.set_capabilities(Some(lent));
            capabilities = Some(wanted);
        }
        if let Some(linux) = spec.linux_mut() {
            linux.set_seccomp(None);
        }
        Workload { filter: Some(filter), capabilities, program: OnceCell::new() }
    }

    fn confine(&self) -> io::Result<()> {
        if let Some(filter) = &self.filter {
            filter.load()?;
        }
        let Some(wanted) = &self.capabilities else { return Ok(()) };
        sys::limit_bounding(bits(wanted.bounding().as_ref()))?;
        let (effective, permitted) = (bits(wanted.effective().as_ref()), bits(wanted.permitted().as_ref()));
        sys::set_capabilities(effective, permitted, bits(wanted.inheritable().as_ref()))
            .map_err(|error| sys::context(error, "set capabilities"))
    }
}

impl Executor for Workload {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let unfit = |error: &dyn std::fmt::Display| ExecutorValidationError::ArgValidationError(error.to_string());
        let process = spec.process().as_ref().ok_or_else(|| unfit(&"no process"))?;
        let name = process.args().iter().flatten().next().ok_or_else(|| unfit(&"no command specified"))?;
        let path = process.env().iter().flatten().rev().find_map(|pair| pair.strip_prefix("PATH="));
        let found = program::find(name, path).map_err(|error| unfit(&error))?;
        let _only_once = self.program.set(found);
        Ok(())
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        self.confine().map_err(|error| ExecutorSetEnvsError::Other(error.to_string()))?;
        DefaultExecutor {}.setup_envs(envs)
    }

    /// Returns only when there is nothing to begin. Of what fails later, the container's own output is all that can tell.
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let program = self.program.get().ok_or(ExecutorError::InvalidArg)?;
        let args = spec.process().iter().flat_map(|process| process.args().iter().flatten());
        let args = args.map(|arg| CString::new(arg.as_bytes()));
        let args = args.collect::<Result<Vec<_>, _>>().map_err(|_| ExecutorError::InvalidArg)?;
        let pair = |(name, value): (OsString, OsString)| [name, value].map(OsString::into_vec).join(&b'=');
        let env: Vec<_> = std::env::vars_os().filter_map(|named| CString::new(pair(named)).ok()).collect();
        let error = sys::execve(program, &args, &env);
        eprintln!("exec {}: {}", program.to_string_lossy(), program::words(&error));
        sys::exit_now(NOT_BEGUN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_lent_only_where_they_are_needed() {
        let spec = |no_new_privileges: &str| -> Spec {
            serde_json::from_str(&format!(
                r#"{{"ociVersion": "1.0.2", "process": {{"cwd": "/", "user": {{"uid": 0, "gid": 0}}{no_new_privileges},
                "capabilities": {{"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]}}}},
                "linux": {{"seccomp": {{"defaultAction": "SCMP_ACT_ALLOW"}}}}}}"#
            ))
            .unwrap()
        };
        let filter = || Filter::of_bytes(b"12345678");
        let held = |spec: &Spec| {
            let process = spec.process().as_ref().unwrap();
            bits(process.capabilities().as_ref().unwrap().bounding().as_ref())
        };
        let mut plain = spec("");
        let confined = Workload::confined(&mut plain, filter());
        assert_eq!(held(&plain), 1 | 1 << 8 | 1 << 21);
        assert_eq!(bits(confined.capabilities.unwrap().bounding().as_ref()), 1);
        assert!(plain.linux().as_ref().unwrap().seccomp().is_none());
        let mut restricted = spec(r#", "noNewPrivileges": true"#);
        assert!(Workload::confined(&mut restricted, filter()).capabilities.is_none());
        assert_eq!(held(&restricted), 1);
    }
}
