//! Services of which the kernel may hold something else than the table says, for a map refused a step. They are written anew, whole,
//! until everything holds; other services go on.

use std::collections::{BTreeMap, BTreeSet};

use super::{ProxyError, Result};
use crate::desired::ServiceName;
use crate::table::{Change, Op, Steps, Table, Waste};

#[derive(Debug, Default)]
pub(super) struct Doubts {
    services: BTreeMap<ServiceName, Doubt>,
    /// Places that services in doubt gave up: the kernel may still lead there.
    held: Waste,
    /// Steps that failed, those tried again among them.
    failures: u64,
}

#[derive(Debug)]
struct Doubt {
    why: String,
    /// What is to be taken away once all is written that shall be there.
    owed: Vec<Op>,
}

/// What became of a change's steps.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Services in doubt from now on, and why.
    pub doubtful: Vec<(ServiceName, ProxyError)>,
    /// Places that nobody needs once the programs running now have ended.
    pub waste: Waste,
}

impl Doubts {
    pub fn len(&self) -> usize {
        self.services.len()
    }

    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Why a service is in doubt, if it is.
    pub fn of(&self, name: &str) -> Option<&str> {
        self.services.get(name).map(|doubt| doubt.why.as_str())
    }

    /// Makes the steps of a change, each service's up to its first that fails.
    pub fn make(&mut self, change: &Change, table: &mut Table, run: impl Fn(&Op) -> Result<()>) -> Made {
        let (mut new, mut touched) = (BTreeMap::new(), BTreeSet::new());
        for (name, ops) in change.parts() {
            let left = match self.services.contains_key(name) {
                true => Some((ops, None)),
                false => ops.iter().enumerate().find_map(|(at, op)| Some((&ops[at..], Some(run(op).err()?)))),
            };
            let Some((left, error)) = left else { continue };
            touched.insert(name);
            let doubt = self.services.entry(name.to_owned());
            let doubt = doubt.or_insert_with(|| Doubt { why: String::new(), owed: Vec::new() });
            doubt.owed.extend(left.iter().filter(|op| op.takes_away()).cloned());
            if let Some(error) = error {
                self.failures += 1;
                doubt.why = causes::chain(&error);
                new.insert(name, error);
            }
        }
        for name in &touched {
            self.write_anew(name, table, &run);
        }
        let waste = table.take_waste();
        let mut made = Made::default();
        match touched.iter().any(|name| self.services.contains_key(*name)) {
            true => self.held.merge(waste),
            false => made.waste = waste,
        }
        made.waste.merge(self.released());
        let new = new.into_iter().filter(|(name, _)| self.services.contains_key(*name));
        made.doubtful = new.map(|(name, error)| (name.to_owned(), error)).collect();
        made
    }

    /// Tries all services in doubt again: those that hold now, and places that came free.
    pub fn mend(&mut self, table: &Table, run: impl Fn(&Op) -> Result<()>) -> (Vec<ServiceName>, Waste) {
        let names: Vec<ServiceName> = self.services.keys().cloned().collect();
        for name in &names {
            self.write_anew(name, table, &run);
        }
        let mended = names.into_iter().filter(|name| !self.services.contains_key(name)).collect();
        (mended, self.released())
    }

    /// Places are handed out again when nothing is in doubt any more.
    fn released(&mut self) -> Waste {
        if self.services.is_empty() { std::mem::take(&mut self.held) } else { Waste::default() }
    }

    fn write_anew(&mut self, name: &str, table: &Table, run: impl Fn(&Op) -> Result<()>) {
        let Some(mut doubt) = self.services.remove(name) else { return };
        let (mut failed, mut sets_hold) = (Vec::new(), true);
        for Steps { set, frontends } in table.steps_of(name) {
            match set.iter().try_for_each(&run) {
                Ok(()) => failed.extend(frontends.iter().filter_map(|op| run(op).err())),
                Err(error) => {
                    sets_hold = false;
                    failed.push(error);
                }
            }
        }
        // What is taken away too early is missed by those whom the kernel still leads there.
        if sets_hold {
            doubt.owed.retain(|op| {
                let is_anothers = match op {
                    Op::RemoveFrontend { frontend } => table.endpoints(frontend).is_some(),
                    Op::RemoveRange { slot, range } => table.has_range(*slot, range),
                    _ => false,
                };
                let error = if is_anothers { None } else { run(op).err() };
                let stays = error.is_some();
                failed.extend(error);
                stays
            });
        }
        self.failures += failed.len() as u64;
        if let Some(error) = failed.first() {
            doubt.why = causes::chain(error);
            self.services.insert(name.to_owned(), doubt);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;

    use proxy_common::{Scope, TCP};

    use super::*;
    use crate::desired::{EndpointSet, Entry, Frontend, Target};
    use crate::table::Limits;

    const LIMITS: Limits = Limits { slots: 8, members: 16, backends: 16, frontends: 8, ranges: 8 };

    fn entry(service: u8, endpoints: &[u8]) -> Entry {
        let frontend = Frontend { addr: [10, 96, 0, service].into(), port: 80, protocol: TCP, scope: Scope::Internal };
        let backends = endpoints.iter().map(|last| Target { ip: [10, 244, 0, *last].into(), port: 8080 }).collect();
        Entry {
            port: 80,
            protocol: TCP,
            frontends: vec![frontend],
            set: EndpointSet { backends, ..Default::default() },
        }
    }

    /// A kernel that refuses some steps, and notes the others.
    #[derive(Default)]
    struct Kernel(RefCell<Vec<Op>>);

    impl Kernel {
        fn run(&self, refuses: fn(&Op) -> bool) -> impl Fn(&Op) -> Result<()> {
            move |op| match refuses(op) {
                true => Err(ProxyError::Write { map: "SOME", source: io::Error::from_raw_os_error(libc::E2BIG) }),
                false => {
                    self.0.borrow_mut().push(op.clone());
                    Ok(())
                }
            }
        }

        fn has(&self, wanted: impl Fn(&Op) -> bool) -> bool {
            self.0.borrow().iter().any(wanted)
        }
    }

    fn puts(op: &Op) -> bool {
        matches!(op, Op::PutFrontend { .. })
    }

    fn flips(op: &Op) -> bool {
        matches!(op, Op::FlipSlot { .. })
    }

    #[test]
    fn a_failed_service_is_told_of_once_and_written_until_it_holds() {
        let (mut table, mut doubts, kernel) = (Table::new(LIMITS), Doubts::default(), Kernel::default());
        let change = table.change("default/a", &[entry(1, &[1])]);
        let made = doubts.make(&change, &mut table, kernel.run(puts));
        assert_eq!(made.doubtful.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["default/a"]);
        assert!(doubts.of("default/a").is_some_and(|why| why.contains("SOME") && why.contains("too long")));
        let tries = doubts.failures();
        // It fails again, and is told of no more; what of it can be written is.
        let change = table.change("default/a", &[entry(1, &[2])]);
        kernel.0.take();
        assert!(doubts.make(&change, &mut table, kernel.run(puts)).doubtful.is_empty());
        assert!(kernel.has(flips) && doubts.failures() > tries);
        // Others go on.
        let change = table.change("default/b", &[entry(2, &[3])]);
        assert!(doubts.make(&change, &mut table, kernel.run(|_| false)).doubtful.is_empty());
        assert_eq!(doubts.len(), 1);
        let (mended, waste) = doubts.mend(&table, kernel.run(|_| false));
        assert_eq!((mended, doubts.len()), (vec!["default/a".to_owned()], 0));
        assert!(kernel.has(puts) && !waste.is_empty());
        let change = table.change("default/a", &[]);
        assert_eq!(doubts.make(&change, &mut table, kernel.run(|op| op.takes_away())).doubtful.len(), 1);
    }

    #[test]
    fn places_that_the_kernel_may_lead_to_are_not_handed_out() {
        let (mut table, mut doubts, kernel) = (Table::new(LIMITS), Doubts::default(), Kernel::default());
        let change = table.change("default/a", &[entry(1, &[1])]);
        doubts.make(&change, &mut table, kernel.run(|_| false));
        let change = table.change("default/a", &[entry(1, &[2])]);
        assert!(doubts.make(&change, &mut table, kernel.run(flips)).waste.is_empty());
        // The old endpoint is still led to.
        let retires = |op: &Op| matches!(op, Op::RetireBackend { .. });
        assert!(!kernel.has(retires));
        let (_, waste) = doubts.mend(&table, kernel.run(|_| false));
        assert!(kernel.has(retires) && !waste.is_empty());
    }

    #[test]
    fn an_address_that_is_anothers_by_then_stays() {
        let (mut table, mut doubts, kernel) = (Table::new(LIMITS), Doubts::default(), Kernel::default());
        for (name, entries) in [("default/a", vec![entry(1, &[1])]), ("default/b", vec![entry(1, &[2])])] {
            let change = table.change(name, &entries);
            doubts.make(&change, &mut table, kernel.run(|_| false));
        }
        let change = table.change("default/a", &[]);
        let removes = |op: &Op| matches!(op, Op::RemoveFrontend { .. });
        let made = doubts.make(&change, &mut table, kernel.run(removes));
        // The other has the address now: there is nothing left to take away.
        assert!(made.doubtful.is_empty() && doubts.len() == 0 && !kernel.has(removes));
        assert!(table.endpoints(&entry(1, &[]).frontends[0]).is_some());
    }
}
