//! Whether anything is asked on a connection: one on which nothing is, is closed after a while, whatever its peer answers
//! to pings.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;

/// Requests of a connection.
pub struct Activity {
    state: Mutex<State>,
}

struct State {
    open: usize,
    /// When the last one began or ended.
    since: Instant,
}

/// Held while a request is answered, or its stream goes on.
pub struct Busy(Arc<Activity>);

impl Activity {
    pub fn new() -> Self {
        Self { state: Mutex::new(State { open: 0, since: Instant::now() }) }
    }

    fn change(&self, act: impl FnOnce(&mut usize)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut state.open);
        state.since = Instant::now();
    }

    pub fn begin(self: &Arc<Self>) -> Busy {
        self.change(|open| *open += 1);
        Busy(self.clone())
    }

    /// Counts from now on.
    pub fn touch(&self) {
        self.change(|_| ());
    }

    /// Ends when nothing was asked for as long as `limit` says, which may change meanwhile.
    pub async fn idle(&self, limit: impl Fn() -> Duration) {
        loop {
            let (open, since) = {
                let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                (state.open, state.since)
            };
            // While something is asked, the time begins at its end; looked at again when it could be over at the earliest.
            let from = if open > 0 { Instant::now() } else { since };
            let over = from + limit();
            if open == 0 && over <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(over).await;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.change(|open| *open -= 1);
    }
}

/// An answer on its way: its request lasts until it has been sent or dropped.
pub struct Sending {
    body: Body,
    _busy: Busy,
}

impl Sending {
    pub fn new(body: Body, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl hyper::body::Body for Sending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_counts_from_the_last_request() {
        let activity = Arc::new(Activity::new());
        let limit = || Duration::from_secs(30);
        let start = Instant::now();
        let busy = activity.begin();
        let ended = tokio::time::timeout(Duration::from_secs(100), activity.idle(limit)).await;
        assert!(ended.is_err(), "something is asked all the time");
        drop(busy);
        activity.idle(limit).await;
        assert_eq!(start.elapsed().as_secs(), 130);
    }
}
