//! Every step of a pod process's work, in order. It may die after any of them: the agent then kills what is left in the
//! pod's cgroup, and begins another sandbox.

macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Step {
            $($(#[$doc])* $step,)*
        }

        impl Step {
            pub const ALL: &[Step] = &[$(Step::$step,)*];
        }
    };
}

steps! {
    /// The lock that says it lives.
    TakeLock,
    JoinCgroup,
    MakeNamespaces,
    /// The first process of a shared PID namespace, if the pod wants one.
    StartInit,
    Listen,
    SayReady,
    OpenLog,
    CreateContainer,
    /// The container exists in the table of containers; the agent has no reply yet.
    KeepContainer,
    StartContainer,
    /// The program runs and its start is noted; the agent has no reply yet.
    NoteStart,
    /// A container's end is known here; the agent has not heard.
    NoteEnd,
    DeleteContainer,
    StartExec,
}

impl Step {
    /// The step's effect is there. In a test build the process may end here (see [`crate::faults`]).
    pub fn done(self) {
        crate::faults::reached("pod", self);
    }
}
