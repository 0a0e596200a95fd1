//! The RuntimeDefault seccomp profile.
//!
//! The list (`seccomp.txt`) names every system call once: allowed for all, allowed with a capability, or refused.
//! Refused ones get EPERM; those in no list are newer than it and get ENOSYS, so that a C library falls back.

use serde_json::{Value, json};

static LIST: &str = include_str!("seccomp.txt");

/// Flags of clone(2) that make namespaces.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

/// The profile for a container with these capabilities (`CAP_…`).
pub fn runtime_default(capabilities: &[String]) -> Value {
    let has = |name: &str| capabilities.iter().any(|capability| capability.strip_prefix("CAP_") == Some(name));
    let (mut allowed, mut refused) = (Vec::new(), Vec::new());
    let lines = LIST.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(": "));
    for (who, names) in lines {
        let list = if who == "*" || has(who) { &mut allowed } else { &mut refused };
        list.extend(names.split(' '));
    }
    let mut rules = vec![allow(&allowed)];
    rules.push(json!({"names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM}));
    if has("SYS_ADMIN") {
        rules.push(allow(&["clone", "clone3"]));
    } else {
        // libcontainer 0.7 reads `valueTwo` as the mask and `value` as the result. clone3 hides its flags from
        // filters: ENOSYS sends the C library to clone.
        let flags = json!([{"index": 0, "value": 0, "valueTwo": NAMESPACE_FLAGS, "op": "SCMP_CMP_MASKED_EQ"}]);
        rules.push(json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": flags}));
    }
    for persona in [0_u64, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff] {
        let args = json!([{"index": 0, "value": persona, "op": "SCMP_CMP_EQ"}]);
        rules.push(json!({"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": args}));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": ENOSYS,
        "architectures": architectures(),
        "syscalls": rules,
    })
}

fn allow(names: &[&str]) -> Value {
    json!({"names": names, "action": "SCMP_ACT_ALLOW"})
}

/// The native one and those whose programs run on it.
fn architectures() -> Value {
    match std::env::consts::ARCH {
        "x86_64" => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]),
        "aarch64" => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        _ => json!(["SCMP_ARCH_NATIVE"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(profile: &Value, rule: usize) -> Vec<&str> {
        profile["syscalls"][rule]["names"].as_array().unwrap().iter().filter_map(Value::as_str).collect()
    }

    #[test]
    fn a_capability_opens_its_calls() {
        let plain = runtime_default(&["CAP_SYS_CHROOT".into()]);
        assert!(names(&plain, 0).contains(&"chroot") && !names(&plain, 0).contains(&"mount"));
        assert!(names(&plain, 1).contains(&"mount") && names(&plain, 1).contains(&"kexec_load"));
        let admin = runtime_default(&["CAP_SYS_ADMIN".into()]);
        assert!(names(&admin, 0).contains(&"mount") && names(&admin, 1).contains(&"kexec_load"));
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut seen = std::collections::BTreeSet::new();
        for (_, names) in LIST.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once(": ")) {
            for name in names.split(' ') {
                assert!(seen.insert(name), "{name}");
            }
        }
        assert!(seen.len() > 400);
    }
}
