//! Connected datagram sockets whose endpoint is one no more. Their packets pass no hook at the socket again, so they would go there for
//! ever: they are ended, and their programs connect anew.
//!
//! What is stale is told by what they were led to, not by what happened, so nothing is missed over restarts.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use proxy_common::{Member, UDP, generation_of};

use super::maps::Maps;
use crate::sys::{self, Datagrams, Diag, Put};

/// A call that chose the endpoint before it went may not have connected yet: it is looked for again.
const AGAIN: Duration = Duration::from_millis(300);
const LOOKS: u32 = 2;

/// A view of the sockets of each namespace that is translated, by its cookie.
#[derive(Debug, Default)]
pub(super) struct Views(Mutex<HashMap<u64, Diag>>);

impl Views {
    /// # Errors
    /// `EINVAL` and `EPERM` as for [`sys::inside`], else the kernel's, which gives no socket.
    pub fn add(&self, cookie: u64, netns: &File) -> io::Result<()> {
        let view = sys::inside(netns, Diag::open)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(cookie, view);
        Ok(())
    }

    pub fn remove(&self, cookie: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&cookie);
    }

    /// Ends every stale socket; how many.
    pub fn end_stale(&self, maps: &Maps) -> u64 {
        let mut ended = 0;
        self.each(maps, |view, socket, member| {
            if maps.is_gone(Member::from_bits(member)) {
                view.end(socket)?;
                ended += 1;
            }
            Ok(())
        });
        ended
    }

    /// Notes of sockets that live are not to give way to those of sockets that came and went since.
    pub fn keep_known(&self, maps: &Maps) {
        // One that is connected elsewhere just now is known to be led wrongly until it is closed, and at worst ended for that.
        self.each(maps, |_, socket, member| maps.led.put(&socket.cookie(), &member, Put::Any));
    }

    /// Every connected datagram socket that was led to an endpoint, with the endpoint's `Member` bits.
    fn each(&self, maps: &Maps, mut act: impl FnMut(&Diag, &Datagrams, u64) -> io::Result<()>) {
        let views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for view in views.values() {
            let mut look = || {
                for socket in view.connected()? {
                    if let Some(member) = maps.led.get(&socket.cookie())? {
                        act(view, &socket, member)?;
                    }
                }
                Ok::<_, io::Error>(())
            };
            if let Err(error) = look() {
                tracing::warn!(%error, "sockets may stay connected to endpoints that are gone");
            }
        }
    }
}

/// When to look, after endpoints went. At first there may be some that went while nobody ran.
#[derive(Debug)]
pub(super) struct Looks {
    left: u32,
    next: Instant,
}

impl Looks {
    pub fn begin() -> Self {
        Self { left: LOOKS, next: Instant::now() }
    }

    pub fn again(&mut self) {
        self.left = LOOKS;
    }

    pub fn due(&self) -> Option<Instant> {
        (self.left > 0).then_some(self.next)
    }

    /// Whether to look now.
    pub fn take(&mut self) -> bool {
        let now = Instant::now();
        if self.left == 0 || now < self.next {
            return false;
        }
        (self.left, self.next) = (self.left - 1, now + AGAIN);
        true
    }
}

impl Maps {
    fn is_gone(&self, member: Member) -> bool {
        self.backend_state(member.index).is_ok_and(|state| generation_of(state) != member.generation)
    }

    /// Whether the endpoint of a place is, or was, one of datagrams.
    pub(super) fn is_of_datagrams(&self, index: u32) -> bool {
        self.backend_state(index).is_ok_and(|state| (state >> 16) as u8 == UDP)
    }

    fn backend_state(&self, index: u32) -> io::Result<u64> {
        Ok(self.backend_words(index)?[super::maps::STATE].load(Ordering::Acquire))
    }
}
