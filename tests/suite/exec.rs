//! Logs, and commands inside containers.

use anyhow::{Result, ensure};
use e2e::{Space, succeeded, text, until};

pub fn logs_and_exec(space: &Space<'_>) -> Result<()> {
    let script = "for i in 1 2 3; do echo line $i; done; echo failing >&2; exec sleep 1000";
    space.run_pod("talker", &["sh", "-c", script])?;
    until("the log is whole", || Ok(space.kubectl(&["logs", "talker"])? == "line 1\nline 2\nline 3\nfailing\n"))?;
    let tail = space.kubectl(&["logs", "talker", "--tail=1", "--timestamps"])?;
    ensure!(tail.ends_with("failing\n") && tail.starts_with("20"), "{tail}");
    let said = space.kubectl(&["exec", "talker", "--", "sh", "-c", "echo out; cat /etc/hostname"])?;
    ensure!(said == "out\ntalker\n", "{said:?}");
    let code = space.try_kubectl(&["exec", "talker", "--", "sh", "-c", "exit 3"])?;
    ensure!(code.status.code() == Some(3), "exit code of exec: {:?} {}", code.status, text(&code.stderr));
    for websockets in ["true", "false"] {
        let environment = [("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)];
        let missing = space.kubectl_with(&["exec", "talker", "--", "nope"], "", &environment)?;
        let said = text(&missing.stderr);
        let begins =
            "error: Internal error occurred: error executing command in container: failed to exec in container: ";
        let ends = "exec: \"nope\": executable file not found in $PATH";
        ensure!(missing.status.code() == Some(1), "exec of a command that is not there: {:?}", missing.status.code());
        ensure!(said.starts_with(begins) && said.trim_end().ends_with(ends), "{said}");
    }
    let echoed = succeeded(space.kubectl_with(&["exec", "-i", "talker", "--", "cat"], "through\n", &[])?, "exec -i")?;
    ensure!(echoed == "through\n", "{echoed:?}");
    let account = space.kubectl(&["exec", "talker", "--", "ls", "/var/run/secrets/kubernetes.io/serviceaccount"])?;
    ensure!(account == "ca.crt\nnamespace\ntoken\n", "{account:?}");
    let status =
        space.kubectl(&["exec", "talker", "--", "grep", "-E", "^(Seccomp|NoNewPrivs|CapEff)", "/proc/self/status"])?;
    ensure!(status.contains("Seccomp:\t2"), "exec runs without a seccomp filter:\n{status}");
    space.kubectl(&["annotate", "pod", "talker", "exec.amphipod.io/user=1000:50"])?;
    let other = space.kubectl(&["exec", "talker", "--", "sh", "-c", "id -u; id -g"])?;
    ensure!(other == "1000\n50\n", "exec as another user: {other:?}");
    space.kubectl(&["annotate", "--overwrite", "pod", "talker", "exec.amphipod.io/user=root"])?;
    let refused = space.kubectl_fails(&["exec", "talker", "--", "true"])?;
    ensure!(refused.contains("\"root\" is neither UID nor UID:GID"), "{refused}");
    Ok(())
}
