//! When each container of a pod that ends is told to, and when it is killed: decided here, from times and from what has
//! happened; carried out by `stop`.
//!
//! Every container ends on its own, at the same time as all others: first its preStop hook, then it waits for its turn,
//! then comes its stop signal, and SIGKILL when the grace period is over. Hook and turn are waited for within that period.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::{Container, PodSpec};

/// After SIGKILL only a process stuck in the kernel remains.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// For whom a container waits, and who for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    Main,
    /// Ends after all main containers, and after the sidecars that are listed behind it.
    Sidecar(usize),
    /// An ephemeral container, or an init container that is not through yet.
    Apart,
}

impl Place {
    /// Of each container of a pod that can run.
    pub fn of_all(spec: &PodSpec) -> impl Iterator<Item = (&Container, Place)> {
        let main = spec.containers.iter().map(|container| (container, Place::Main));
        let apart = spec.ephemeral_containers.iter().map(|container| (container, Place::Apart));
        let init = spec.init_containers.iter().enumerate().rev().map(|(number, container)| {
            (container, if container.is_sidecar() { Place::Sidecar(number) } else { Place::Apart })
        });
        main.chain(apart).chain(init)
    }

    fn waits_for(self, other: Place) -> bool {
        match (self, other) {
            (Place::Sidecar(_), Place::Main) => true,
            (Place::Sidecar(own), Place::Sidecar(other)) => other > own,
            _ => false,
        }
    }
}

/// How far a container's end has come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Hook,
    Turn,
    /// It has its stop signal, and this much time whatever was used up before.
    Told {
        least: Instant,
    },
    Killed {
        until: Instant,
    },
    /// It has ended, or nobody waits for it any longer.
    Over,
}

/// The first thing that is waited for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum First {
    Hook,
    Turn,
}

#[derive(Debug)]
pub struct Ending {
    pub name: String,
    pub run: String,
    place: Place,
    phase: Phase,
}

impl Ending {
    pub fn new(name: String, run: String, place: Place, first: First) -> Ending {
        let phase = match first {
            First::Hook => Phase::Hook,
            First::Turn => Phase::Turn,
        };
        Ending { name, run, place, phase }
    }
}

/// The time that there is.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The end of the grace period; a pod's may become shorter while it ends.
    pub deadline: Instant,
    /// What a container gets between its stop signal and SIGKILL, whatever was used up before.
    pub least: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Signal {
    Stop,
    Kill,
}

/// The containers that end; what is said of one names it by its number here.
#[derive(Debug)]
pub struct Endings(pub Vec<Ending>);

impl Endings {
    /// A hook is through, however it went.
    pub fn hook_over(&mut self, number: usize) {
        if let Some(ending) = self.0.get_mut(number).filter(|ending| ending.phase == Phase::Hook) {
            ending.phase = Phase::Turn;
        }
    }

    /// Containers may end at any time, told to or not.
    pub fn see(&mut self, runs: impl Fn(&str) -> bool) {
        for ending in self.0.iter_mut().filter(|ending| !runs(&ending.run)) {
            ending.phase = Phase::Over;
        }
    }

    /// Who gets which signal by now.
    pub fn step(&mut self, now: Instant, limits: Limits) -> Vec<(usize, Signal)> {
        let mut signals = Vec::new();
        while let Some((number, next)) = self.due(now, limits) {
            match next {
                Phase::Told { .. } => signals.push((number, Signal::Stop)),
                Phase::Killed { .. } => signals.push((number, Signal::Kill)),
                Phase::Hook | Phase::Turn | Phase::Over => {}
            }
            self.0[number].phase = next;
        }
        signals
    }

    fn due(&self, now: Instant, limits: Limits) -> Option<(usize, Phase)> {
        self.0.iter().enumerate().find_map(|(number, ending)| Some((number, self.next(ending, now, limits)?)))
    }

    /// Phases only go forward, so this ends.
    fn next(&self, ending: &Ending, now: Instant, limits: Limits) -> Option<Phase> {
        let time_is_up = now >= self.until(ending, limits)?;
        match ending.phase {
            Phase::Hook => time_is_up.then_some(Phase::Turn),
            Phase::Turn => (time_is_up || self.has_turn(ending)).then(|| Phase::Told { least: now + limits.least }),
            Phase::Told { .. } => time_is_up.then(|| Phase::Killed { until: now + KILL_PATIENCE }),
            Phase::Killed { .. } => time_is_up.then_some(Phase::Over),
            Phase::Over => None,
        }
    }

    fn has_turn(&self, ending: &Ending) -> bool {
        !self.0.iter().any(|other| other.phase != Phase::Over && ending.place.waits_for(other.place))
    }

    fn until(&self, ending: &Ending, limits: Limits) -> Option<Instant> {
        match ending.phase {
            Phase::Hook | Phase::Turn => Some(limits.deadline),
            Phase::Told { least } => Some(limits.deadline.max(least)),
            Phase::Killed { until } => Some(until),
            Phase::Over => None,
        }
    }

    /// When to look again if nothing happens before; never when all are over.
    pub fn wake_at(&self, limits: Limits) -> Option<Instant> {
        self.0.iter().filter_map(|ending| self.until(ending, limits)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: u64 = 10;

    /// A container of a case: its place, how many seconds its hook takes, and how many it takes to end once told.
    type Case = (&'static str, Place, Option<u64>, u64);
    const NEVER: u64 = 1000;

    /// What happens in which second, as a client of the pod would see it. The grace period ends at `deadline(second)`.
    fn played(cases: &[Case], deadline: impl Fn(u64) -> u64) -> String {
        let began = Instant::now();
        let at = |second| began + Duration::from_secs(second);
        let first = |hook: Option<u64>| if hook.is_some() { First::Hook } else { First::Turn };
        let ending = |case: &Case| Ending::new(case.0.into(), case.0.into(), case.1, first(case.2));
        let mut endings = Endings(cases.iter().map(ending).collect());
        let (mut ends, mut told) = (vec![NEVER; cases.len()], Vec::new());
        for second in 0.. {
            for (number, _) in cases.iter().enumerate().filter(|(_, case)| case.2 == Some(second)) {
                endings.hook_over(number);
            }
            let runs = |run: &str| cases.iter().zip(&ends).any(|(case, end)| case.0 == run && second < *end);
            endings.see(runs);
            let limits = Limits { deadline: at(deadline(second)), least: Duration::from_secs(2) };
            for (number, signal) in endings.step(at(second), limits) {
                let (name, _, _, takes) = cases[number];
                told.push(format!("{second} {signal:?} {name}").to_lowercase());
                ends[number] = ends[number].min(if signal == Signal::Kill { second + 1 } else { second + takes });
            }
            match endings.wake_at(limits) {
                Some(wake) => assert!(wake > at(second), "{told:?}"),
                None => return told.join(", "),
            }
        }
        unreachable!()
    }

    #[test]
    fn each_container_ends_at_its_time() {
        use Place::{Apart, Main, Sidecar};
        let table: [(&[Case], &str); 10] = [
            (&[("a", Main, None, 1), ("b", Main, None, 1)], "0 stop a, 0 stop b"),
            // A hook holds up its own container alone.
            (&[("a", Main, Some(4), 1), ("b", Main, None, 1)], "0 stop b, 4 stop a"),
            (&[("a", Main, None, NEVER)], "0 stop a, 10 kill a"),
            // What the hook leaves of the grace period, and two seconds at least.
            (&[("a", Main, Some(7), NEVER)], "7 stop a, 10 kill a"),
            (&[("a", Main, Some(9), NEVER)], "9 stop a, 11 kill a"),
            (&[("a", Main, Some(NEVER), NEVER)], "10 stop a, 12 kill a"),
            // Sidecars from the last to the first, after the main containers; their hooks run meanwhile.
            (
                &[("a", Main, None, 2), ("s", Sidecar(0), Some(1), 1), ("t", Sidecar(2), None, 3)],
                "0 stop a, 2 stop t, 5 stop s",
            ),
            (&[("a", Main, None, 2), ("s", Sidecar(0), Some(6), 1)], "0 stop a, 6 stop s"),
            // They wait within the grace period, like everything else.
            (
                &[("a", Main, None, NEVER), ("s", Sidecar(0), None, NEVER), ("t", Sidecar(1), None, 1)],
                "0 stop a, 10 kill a, 10 stop s, 10 stop t, 12 kill s",
            ),
            // Nobody waits for those, nor they for anybody.
            (
                &[("e", Apart, None, NEVER), ("a", Main, None, 1), ("s", Sidecar(0), None, 1)],
                "0 stop e, 0 stop a, 1 stop s, 10 kill e",
            ),
        ];
        for (cases, expected) in table {
            assert_eq!(played(cases, |_| GRACE), expected, "{cases:?}");
        }
    }

    #[test]
    fn a_grace_period_may_become_shorter() {
        let cases = [("a", Place::Main, None, NEVER), ("s", Place::Sidecar(0), Some(NEVER), NEVER)];
        let told = played(&cases, |second| if second < 5 { GRACE } else { 1 });
        assert_eq!(told, "0 stop a, 5 kill a, 5 stop s, 7 kill s");
    }

    #[test]
    fn whoever_survives_its_kill_is_not_waited_for_for_ever() {
        let began = Instant::now();
        let mut endings = Endings(vec![Ending::new("a".into(), "a".into(), Place::Main, First::Turn)]);
        let limits = Limits { deadline: began, least: Duration::ZERO };
        assert_eq!(endings.step(began, limits), [(0, Signal::Stop), (0, Signal::Kill)]);
        assert_eq!(endings.wake_at(limits), Some(began + KILL_PATIENCE));
        assert_eq!(endings.step(began + KILL_PATIENCE, limits), []);
        assert_eq!(endings.wake_at(limits), None);
    }

    #[test]
    fn an_end_that_comes_by_itself_gives_others_their_turn() {
        let began = Instant::now();
        let ending = |name: &str, place, first| Ending::new(name.into(), name.into(), place, first);
        let mut endings =
            Endings(vec![ending("a", Place::Main, First::Hook), ending("s", Place::Sidecar(0), First::Turn)]);
        let limits = Limits { deadline: began + Duration::from_secs(GRACE), least: Duration::from_secs(2) };
        assert_eq!(endings.step(began, limits), []);
        endings.see(|run| run != "a");
        endings.hook_over(0);
        assert_eq!(endings.step(began, limits), [(1, Signal::Stop)], "the hook's end says nothing any more");
    }
}
