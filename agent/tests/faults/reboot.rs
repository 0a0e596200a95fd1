//! The machine goes down and comes up again: every pod goes on as its restart policy says.

use serde_json::{Value, json};

use crate::support::{condition, pod, uid_of};
use crate::world::World;
use crate::{container, job, lasting};

fn with_policy(name: &str, policy: &str) -> Value {
    let mut pod = lasting(name);
    pod["spec"]["restartPolicy"] = json!(policy);
    pod
}

fn crashing() -> Value {
    pod("crashing", json!({"command": ["sh", "-c", "exit 4"]}))
}

#[test]
fn every_pod_comes_back_by_its_restart_policy() {
    let mut world = World::new("reboot");
    let (mut always, on_failure) = (with_policy("always", "Always"), with_policy("on-failure", "OnFailure"));
    let (never, finished, crashing) = (with_policy("never", "Never"), job("finished"), crashing());
    always["spec"]["initContainers"] = json!([{"name": "first", "image": "busybox",
        "command": ["sh", "-c", "echo x >> /disk/firsts"], "volumeMounts": [{"name": "disk", "mountPath": "/disk"}]}]);
    let all = [&always, &on_failure, &never, &finished, &crashing];
    all.iter().for_each(|pod| world.sync(pod));
    for pod in [&always, &on_failure, &never] {
        world.wait_ready(uid_of(pod));
        world.exec(uid_of(pod), "echo kept | tee /disk/file > /memory/file");
    }
    let succeeded = world.wait_status(uid_of(&finished), "its end", |status| status["phase"] == "Succeeded");
    world.wait_status(uid_of(&crashing), "its back-off", |status| {
        container(status)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });

    world.reboot();
    world.start_agent(&all);

    for pod in [&always, &on_failure] {
        let status = world.wait_restarted(uid_of(pod));
        let last = &container(&status)["lastState"]["terminated"];
        assert_eq!((&last["exitCode"], &last["reason"]), (&json!(255), &json!("Unknown")), "{status}");
        let kept = world.exec(uid_of(pod), "cat /disk/file; ls /memory");
        assert_eq!(kept, "kept\n", "what lay on disk is there, what lay in memory is not");
        world.wait_event(uid_of(pod), "SandboxChanged");
    }
    // The first boot's init container has done its work in a sandbox that is no more.
    assert_eq!(world.exec(uid_of(&always), "cat /disk/firsts"), "x\nx\n");

    let status = world.wait_status(uid_of(&never), "its end", |status| status["phase"] == "Failed");
    let end = &container(&status)["state"]["terminated"];
    assert_eq!((&end["exitCode"], &end["reason"]), (&json!(255), &json!("Unknown")), "{status}");
    assert_eq!(container(&status)["restartCount"], 0);
    assert_eq!(condition(&status, "Ready"), "False");

    let status = world.wait_status(uid_of(&finished), "its result", |_| true);
    assert_eq!(container(&status), container(&succeeded), "a result stays as it was");

    // Its count and its wait go on from the record.
    world.wait_status(uid_of(&crashing), "its back-off", |status| {
        let container = container(status);
        container["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            && container["lastState"]["terminated"]["exitCode"] == 4
    });

    all.iter().for_each(|pod| world.delete(pod));
    all.iter().for_each(|pod| world.wait_removed(uid_of(pod)));
    world.holds_nothing_more("after a reboot");
}
