//! Ends what has ended: flows past their deadline, places among shared ports that nobody has, endpoints that nobody is sent to.
//!
//! Programs begin and use flows meanwhile. What looks ended in a snapshot is read again right before it is taken out, and looked at
//! once more when it is out; whoever has taken a flow out gives its port back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

use proxy_common::*;

use super::maps::{Maps, Twins, snat_words};
use super::{Result, written};
use crate::family::Twin;
use crate::flows;
use crate::migrate::Migration;
use crate::sys::{self, Put, Words};

/// Places that no flow had at the last sweep, with their user: a flow that was just beginning has its place by the next.
type Suspected = HashMap<u32, u64>;

/// Those of both families.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    v4: Suspected,
    v6: Suspected,
}

impl Maps {
    pub fn sweep(&self, suspects: &mut Suspects) -> Result<()> {
        self.v4.sweep(&mut suspects.v4)?;
        self.v6.sweep(&mut suspects.v6)
    }

    /// Flows of another layout bring their ports with them.
    pub fn rebuild_ports(&self, migration: &Migration) -> Result<()> {
        self.v4.rebuild_ports(migration)?;
        self.v6.rebuild_ports(migration)
    }
}

impl<A: Twin> Twins<A> {
    fn sweep(&self, suspects: &mut Suspected) -> Result<()> {
        let now = sys::monotonic_nanoseconds();
        let places = self.places()?;
        let flows = self.flows.entries().map_err(written(A::FLOWS))?;
        for (key, flow) in &flows {
            if flow.has_expired(key.protocol, now) {
                self.end_if_expired(&places, key, now)?;
            }
        }
        self.sweep_exposed(&flows, now)?;
        *suspects = self.sweep_ports(&places, &flows, suspects)?;
        self.recount(&flows)
    }

    pub(super) fn end_if_expired(&self, places: &Places<A>, key: &Tuple<A>, now: u64) -> Result<()> {
        let ended = |flow: &Flow<A>| flow.has_expired(key.protocol, now);
        if self.flows.get(key).map_err(written(A::FLOWS))?.as_ref().is_some_and(ended) {
            self.take_out(places, key, ended)?;
        }
        Ok(())
    }

    /// Takes a flow out that had ended when it was looked at. One that has begun under its key since then goes back: its packets
    /// met a moment without it at worst.
    pub(super) fn take_out(&self, places: &Places<A>, key: &Tuple<A>, ended: impl Fn(&Flow<A>) -> bool) -> Result<()> {
        let Some(flow) = self.flows.take(key).map_err(written(A::FLOWS))? else { return Ok(()) };
        if !ended(&flow) {
            match self.flows.put(key, &flow, Put::New) {
                Ok(()) => return Ok(()),
                // Yet another has begun in that moment.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => return Err(written(A::FLOWS)(error)),
            }
        }
        if places.numbers().contains(&flow.snat) && places.key(flow.snat) == *key {
            places.user(flow.snat).store(0, Ordering::Release);
        }
        Ok(())
    }

    /// Endpoints whose clients are gone may be exposed under another address.
    fn sweep_exposed(&self, flows: &[(Tuple<A>, Flow<A>)], now: u64) -> Result<()> {
        let used: BTreeSet<A::End> = flows::exposed(flows).collect();
        let is_old = |bits| Exposed::<A>::epoch_of(now).wrapping_sub(A::from_exposed(bits).epoch) >= 2;
        for (endpoint, bits) in self.exposed.entries().map_err(written(A::EXPOSED))? {
            if !used.contains(&endpoint)
                && is_old(bits)
                && self.exposed.get(&endpoint).map_err(written(A::EXPOSED))?.is_some_and(is_old)
            {
                self.exposed.remove(&endpoint).map_err(written(A::EXPOSED))?;
            }
        }
        Ok(())
    }

    /// Two processors that begin one flow at once, or a kill in between, may leave a place without a flow. Gives the suspects.
    fn sweep_ports(
        &self,
        places: &Places<A>,
        flows: &[(Tuple<A>, Flow<A>)],
        suspects: &Suspected,
    ) -> Result<Suspected> {
        let had: BTreeSet<u32> = flows.iter().map(|(_, flow)| flow.snat).filter(|place| *place != 0).collect();
        let mut left = Suspected::new();
        for place in places.numbers() {
            let user = places.user(place).load(Ordering::Acquire);
            if user == 0 || had.contains(&place) {
                continue;
            }
            if suspects.get(&place) != Some(&user) {
                left.insert(place, user);
            } else if !self.is_had(places, place)? {
                // A program that took it over meanwhile has changed nothing here, but has a flow by now.
                let _ = places.user(place).compare_exchange(user, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
        Ok(left)
    }

    /// Whether the flow whose key a place holds has that place.
    fn is_had(&self, places: &Places<A>, place: u32) -> Result<bool> {
        let flow = self.flows.get(&places.key(place)).map_err(written(A::FLOWS))?;
        Ok(flow.is_some_and(|flow| flow.snat == place))
    }

    /// The places among the shared ports, for as long as somebody looks at them.
    pub(super) fn places(&self) -> Result<Places<A>> {
        self.snat.whole().map(|words| Places { words, family: PhantomData }).map_err(written(A::SNAT))
    }

    fn rebuild_ports(&self, migration: &Migration) -> Result<()> {
        if !migration.has(A::FLOWS, None) && !migration.has(A::SNAT, None) {
            return Ok(());
        }
        let places = self.places()?;
        for (key, flow) in self.flows.entries().map_err(written(A::FLOWS))? {
            if !places.numbers().contains(&flow.snat) {
                continue;
            }
            if places.user(flow.snat).load(Ordering::Acquire) == 0 {
                for (word, value) in places.key_words(flow.snat).iter().zip(A::words(&key).as_ref()) {
                    word.store(*value, Ordering::Relaxed);
                }
                let free =
                    places.user(flow.snat).compare_exchange(0, flow.to.remote(), Ordering::AcqRel, Ordering::Relaxed);
                if free.is_err() {
                    tracing::debug!(place = flow.snat, "a new connection was faster than one of an earlier layout");
                }
            }
        }
        Ok(())
    }

    /// Tells the programs how many flows each pod has: they only count up.
    fn recount(&self, flows: &[(Tuple<A>, Flow<A>)]) -> Result<()> {
        let pods = self.pods.entries().map_err(written(A::PODS))?;
        let shares: BTreeMap<A, u64> = flows::shares(flows, pods.iter().map(|(address, _)| *address));
        let mut rows = shares.iter();
        rows.try_for_each(|(address, flows)| self.shares.put(address, flows, Put::Any)).map_err(written(A::SHARES))
    }
}

/// The places among the shared ports; a flow has the index of its place plus one.
pub(super) struct Places<A> {
    words: Words,
    family: PhantomData<A>,
}

impl<A: Addr> Places<A> {
    const KEY: usize = std::mem::offset_of!(SnatPlace<A>, key) / 8;

    fn numbers(&self) -> RangeInclusive<u32> {
        1..=(self.words.len() / snat_words::<A>()) as u32
    }

    /// The words of a place, as flows have its number.
    fn place(&self, number: u32) -> &[AtomicU64] {
        &self.words[(number - 1) as usize * snat_words::<A>()..][..snat_words::<A>()]
    }

    /// The word that says who has a place.
    fn user(&self, number: u32) -> &AtomicU64 {
        &self.place(number)[0]
    }

    fn key_words(&self, number: u32) -> &[AtomicU64] {
        &self.place(number)[Self::KEY..][..size_of::<Tuple<A>>() / 8]
    }

    fn key(&self, place: u32) -> Tuple<A> {
        let mut words = A::Words::default();
        for (word, atomic) in words.as_mut().iter_mut().zip(self.key_words(place)) {
            *word = atomic.load(Ordering::Relaxed);
        }
        A::from_words(words)
    }
}
