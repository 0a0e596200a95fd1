//! Killed at every step: an agent with the real network, pod processes and single containers die in turn, right after
//! each of their steps; and the whole machine. After it everything runs again or is wholly gone, nothing is left over,
//! and the reason is told.
//! Needs root and the feature `faults`.
#![expect(clippy::unwrap_used, reason = "a test")]

mod inventory;
mod process;
mod reboot;
#[path = "../support.rs"]
mod support;
mod world;

use agent::Step;
use serde_json::{Value, json};
use support::{pod, uid_of};
use world::World;

const TIMELY: &str = "trap 'exit 0' TERM; sleep 1000 & wait";

fn lasting(name: &str) -> Value {
    let mut pod = pod(
        name,
        json!({"command": ["sh", "-c", TIMELY], "volumeMounts": [
        {"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"}]}),
    );
    pod["spec"]["volumes"] =
        json!([{"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}}]);
    pod
}

/// Ends once with 3, and lives when it is run again.
fn once_failing(name: &str) -> Value {
    let script = format!("if [ ! -e /disk/seen ]; then touch /disk/seen; exit 3; fi; {TIMELY}");
    let mut pod = lasting(name);
    pod["spec"]["containers"][0]["command"][2] = json!(script);
    pod
}

fn job(name: &str) -> Value {
    let mut pod = lasting(name);
    pod["spec"]["containers"][0]["command"] = json!(["true"]);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod
}

fn container(status: &Value) -> &Value {
    &status["containerStatuses"][0]
}

/// The agent dies after `step` of a pod's start; the next one goes on.
fn dies_starting(world: &mut World, step: Step, pod: &Value) -> Value {
    world.arm(&format!("agent.{step:?}"));
    world.sync(pod);
    world.agent_dies();
    world.start_agent(&[pod]);
    world.wait_ready(uid_of(pod))
}

fn dies_stopping(world: &mut World, step: Step, pod: &Value) {
    world.arm(&format!("agent.{step:?}"));
    world.delete(pod);
    world.agent_dies();
    // The API server has forgotten the pod once its removal has been reported.
    let doomed = world::doomed(pod);
    let known: &[&Value] = if world.removed(uid_of(pod)) { &[] } else { &[&doomed] };
    world.start_agent(known);
    world.wait_removed(uid_of(pod));
}

#[test]
fn the_agent_dies_after_every_step_of_a_start() {
    let mut world = World::new("up");
    for (round, step) in Step::ALL[..=position(Step::NoteStart)].iter().enumerate() {
        let pod = lasting(&format!("up-{round}"));
        let status = dies_starting(&mut world, *step, &pod);
        assert_eq!(container(&status)["restartCount"], 0, "{step:?}: {status}");
        assert_eq!(world.exec(uid_of(&pod), "echo alive; touch /disk/x /memory/x"), "alive\n", "{step:?}");
        world.takes_away(&pod, &format!("{step:?}"));
    }
}

#[test]
fn the_agent_dies_between_two_runs() {
    let mut world = World::new("rerun");
    for step in [Step::NoteEnd, Step::DeleteContainer, Step::RemoveRun] {
        let pod = once_failing(&format!("{step:?}").to_lowercase());
        let status = dies_starting(&mut world, step, &pod);
        assert_eq!(container(&status)["restartCount"], 1, "{step:?}: {status}");
        assert_eq!(container(&status)["lastState"]["terminated"]["exitCode"], 3, "{step:?}: {status}");
        world.takes_away(&pod, &format!("{step:?}"));
    }
}

#[test]
fn the_agent_dies_while_a_pod_finishes() {
    let mut world = World::new("finish");
    let away = |step: &&Step| matches!(step, Step::NoteFinish | Step::ReturnAddress);
    let steps = Step::ALL.iter().filter(away).copied().chain(world::finishing());
    for step in steps {
        let pod = job(&format!("{step:?}").to_lowercase());
        world.arm(&format!("agent.{step:?}"));
        world.sync(&pod);
        world.agent_dies();
        world.start_agent(&[&pod]);
        let status = world.wait_status(uid_of(&pod), "its end", |status| status["phase"] == "Succeeded");
        assert_eq!(container(&status)["state"]["terminated"]["exitCode"], 0, "{step:?}: {status}");
        world.takes_away(&pod, &format!("{step:?}"));
    }
}

#[test]
fn the_agent_dies_after_every_step_of_an_end() {
    let mut world = World::new("down");
    let steps = &Step::ALL[position(Step::NoteStop)..];
    for step in steps.iter().filter(|step| **step != Step::ReturnAddress) {
        let pod = lasting(&format!("{step:?}").to_lowercase());
        world.sync(&pod);
        world.wait_ready(uid_of(&pod));
        dies_stopping(&mut world, *step, &pod);
        world.holds_nothing_more(&format!("{step:?}"));
    }
}

fn position(step: Step) -> usize {
    Step::ALL.iter().position(|other| *other == step).unwrap()
}

#[test]
fn the_pod_process_dies_after_every_step() {
    use pod::step::Step;
    let mut world = World::new("process");
    for step in Step::ALL {
        let name = format!("{step:?}").to_lowercase();
        let mut pod = match step {
            Step::NoteEnd | Step::DeleteContainer => once_failing(&name),
            _ => lasting(&name),
        };
        pod["spec"]["shareProcessNamespace"] = json!(true);
        let uid = uid_of(&pod);
        world.arm(&format!("pod.{step:?}"));
        world.sync(&pod);
        if *step == Step::StartExec {
            world.wait_ready(uid);
            world.exec_fails(uid, "true");
        }
        world.wait_disarmed(&format!("pod.{step:?}"));
        world.wait_event(uid, "SandboxChanged");
        match step {
            Step::NoteEnd | Step::DeleteContainer | Step::StartExec => world.wait_restarted(uid),
            _ => world.wait_ready(uid),
        };
        assert_eq!(world.exec(uid, "echo alive"), "alive\n", "{step:?}");
        world.takes_away(&pod, &format!("{step:?}"));
    }
}

#[test]
fn single_processes_are_killed() {
    let mut world = World::new("single");
    let (plain, mut shared, mut begins) = (lasting("plain"), lasting("shared"), lasting("begins"));
    shared["spec"]["shareProcessNamespace"] = json!(true);
    let script = "touch /disk/began; while [ ! -e /disk/go ]; do sleep 0.05; done";
    begins["spec"]["initContainers"] = json!([{"name": "first", "image": "busybox", "command": ["sh", "-c", script],
        "volumeMounts": [{"name": "disk", "mountPath": "/disk"}]}]);
    for pod in [&plain, &shared, &begins] {
        world.sync(pod);
    }

    // A container: the kernel's signal is its end, and the policy starts it again.
    world.wait_ready(uid_of(&plain));
    world.kill_container(uid_of(&plain), "main-0");
    let status = world.wait_restarted(uid_of(&plain));
    assert_eq!(container(&status)["lastState"]["terminated"]["exitCode"], 137, "{status}");
    assert_eq!(container(&status)["lastState"]["terminated"]["reason"], "Error", "{status}");

    // The first process of a PID namespace that containers share: the kernel ends them all; a new sandbox is built.
    world.wait_ready(uid_of(&shared));
    world.kill_pod_init(uid_of(&shared));
    let status = world.wait_restarted(uid_of(&shared));
    assert_eq!(container(&status)["lastState"]["terminated"]["exitCode"], 137, "{status}");
    world.wait_event(uid_of(&shared), "SandboxChanged");

    // An init container: it is run again, and the pod gets through.
    let uid = uid_of(&begins);
    world.wait_status(uid, "its init container runs", |status| {
        status["initContainerStatuses"][0]["state"]["running"].is_object()
    });
    world.kill_container(uid, "first-0");
    world.wait_status(uid, "it runs again", |status| {
        let first = &status["initContainerStatuses"][0];
        first["restartCount"] == 1 && first["state"]["running"].is_object()
    });
    std::fs::write(world.volume(uid, "disk").join("go"), "").unwrap();
    world.wait_ready(uid);

    // The pod process itself: memory volumes outlast it, init containers run again.
    assert_eq!(world.exec(uid, "echo kept > /memory/kept"), "");
    world.kill_pod_process(uid);
    let status = world.wait_restarted(uid);
    let last = &container(&status)["lastState"]["terminated"];
    assert_eq!((&last["reason"], &last["exitCode"]), (&json!("ContainerStatusUnknown"), &json!(137)), "{status}");
    assert_eq!(status["initContainerStatuses"][0]["restartCount"], 2, "{status}");
    assert_eq!(world.exec(uid, "cat /memory/kept"), "kept\n");

    for pod in [&plain, &shared, &begins] {
        world.delete(pod);
    }
    for pod in [&plain, &shared, &begins] {
        world.wait_removed(uid_of(pod));
    }
    world.holds_nothing_more("single processes");
}
