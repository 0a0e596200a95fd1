//! Every step of a pod's way up and down, in one table: what is done, in which order, and where it belongs.
//!
//! The agent may die after any of them. What it then leaves has a name too, and one way on:
//!
//! | dies in | finds again | does |
//! |---|---|---|
//! | `Take` | a record without a sandbox | begins |
//! | `Sandbox` | [`Presence::Unlinked`] or [`Presence::Remains`](crate::sandbox::Presence::Remains) | attaches the network, or clears and begins another |
//! | `Run` | [`Progress::Noted`](crate::record::Progress::Noted) | takes the run back and begins it again |
//! | `Finish`, `Stop` | a record that says so | goes on to the end |
//! | `Away` | the same record | repeats: each of these steps may be repeated |
//!
//! [`Presence::Unlinked`]: crate::sandbox::Presence::Unlinked

/// What a step belongs to, and so how often it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Once, when the node takes the pod.
    Take,
    /// Once per pod process.
    Sandbox,
    /// Once per run of a container.
    Run,
    /// Once, when no container of the pod will run again.
    Finish,
    /// Once, when the pod must go.
    Stop,
    /// When a part of the pod goes, and all greater parts.
    Away(Part),
    /// Once, when nothing of the pod is left.
    Leave,
}

/// How much of a pod goes; each holds those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The pod process and what ran in it. The pod goes on with another, and keeps its volumes.
    Sandbox,
    /// All that a pod holds of the running node when its containers will never run again: memory, mounts and volumes.
    Runtime,
    /// What waited on disk for the deletion: logs.
    Whole,
}

macro_rules! steps {
    ($($step:ident: $stage:expr, $does:literal;)*) => {
        /// One step. Its effect is complete when [`Step::done`] is called, and not before.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Step {
            $(#[doc = $does] $step,)*
        }

        impl Step {
            /// All, in the order in which they come to pass.
            pub const ALL: &[Step] = &[$(Step::$step,)*];

            pub fn stage(self) -> Stage {
                match self { $(Step::$step => $stage,)* }
            }

            /// For errors: what failed.
            pub fn does(self) -> &'static str {
                match self { $(Step::$step => $does,)* }
            }
        }
    };
}

steps! {
    SaveRecord: Stage::Take, "save the pod's first record";
    MakeVolumes: Stage::Take, "make the pod's volumes";

    NoteSandbox: Stage::Sandbox, "note the pod's address and the number of its sandbox";
    WriteSetup: Stage::Sandbox, "write what the pod process is told";
    SpawnProcess: Stage::Sandbox, "start the pod process, which makes the namespaces";
    Connect: Stage::Sandbox, "connect to the pod process";
    AttachNetwork: Stage::Sandbox, "attach the pod's network";

    NoteRun: Stage::Run, "note a new run of a container";
    MountRootfs: Stage::Run, "mount the container's root file system";
    WriteConfig: Stage::Run, "write the container's configuration";
    CreateContainer: Stage::Run, "create the container";
    StartContainer: Stage::Run, "start the container";
    NoteStart: Stage::Run, "note that the container runs";
    NoteEnd: Stage::Run, "note how the container ended";
    DeleteContainer: Stage::Run, "have the pod process forget the container";
    RemoveRun: Stage::Run, "remove the files of a run";

    NoteFinish: Stage::Finish, "note that the pod is through";

    NoteStop: Stage::Stop, "note that the pod must go";
    SignalContainers: Stage::Stop, "signal the containers";
    AwaitEnds: Stage::Stop, "wait for the containers' ends";
    NoteEnds: Stage::Stop, "note how the containers ended";

    DetachNetwork: Stage::Away(Part::Sandbox), "detach the pod's network";
    KillProcesses: Stage::Away(Part::Sandbox), "kill what is left of the pod's processes";
    UnmountRuns: Stage::Away(Part::Sandbox), "unmount what the containers used";
    RemoveCgroups: Stage::Away(Part::Sandbox), "remove the pod's cgroups";
    RemoveSandboxFiles: Stage::Away(Part::Sandbox), "remove the sandbox's files";
    RemoveLayers: Stage::Away(Part::Sandbox), "remove the containers' writable layers";
    UnmountVolumes: Stage::Away(Part::Runtime), "unmount the pod's volumes";
    RemoveRunFolder: Stage::Away(Part::Runtime), "remove the pod's run folder";
    RemoveVolumes: Stage::Away(Part::Runtime), "remove the pod's volumes";
    ReturnAddress: Stage::Finish, "note that the address and the user ids are free";
    RemoveLogs: Stage::Away(Part::Whole), "remove the pod's logs";

    ReportRemoval: Stage::Leave, "tell the API server that the pod is gone";
    RemoveRecord: Stage::Leave, "remove the pod's record";
}

impl Step {
    /// The steps that take a part of a pod away, in order.
    pub fn taking_away(part: Part) -> impl Iterator<Item = Step> {
        Step::ALL.iter().copied().filter(move |step| matches!(step.stage(), Stage::Away(own) if own <= part))
    }

    /// The step's effect is there. In a test build the process may end here (see [`pod::faults`]).
    pub fn done(self) {
        pod::faults::reached("agent", self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greater_part_goes_on_where_the_smaller_ends() {
        let steps = |part| Step::taking_away(part).collect::<Vec<_>>();
        let (sandbox, runtime, whole) = (steps(Part::Sandbox), steps(Part::Runtime), steps(Part::Whole));
        assert_eq!(sandbox.first(), Some(&Step::DetachNetwork));
        assert!(runtime.starts_with(&sandbox) && whole.starts_with(&runtime));
        assert_eq!((sandbox.len(), runtime.len(), whole.len()), (6, 9, 10));
    }
}
