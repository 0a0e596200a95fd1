//! Events about Services, written aside: what the kernel shall hold waits for no server.

use client::events::{Recorder, Reference};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Events that may wait to be written. Further ones are held back: they would say the same of other Services.
const MOST: usize = 256;
/// There is no room for it.
pub const FULL: &str = "ServicePathFull";
/// The kernel refused a change; it is tried again.
pub const NOT_UPDATED: &str = "ServicePathNotUpdated";

/// What a Service's owner is told.
#[derive(Debug, PartialEq, Eq)]
pub struct Complaint {
    pub about: Reference,
    pub reason: &'static str,
    pub message: String,
}

#[derive(Debug, Clone)]
pub struct Complaints(mpsc::Sender<Complaint>);

impl Complaints {
    /// Writes events as they come, for as long as somebody has complaints.
    pub fn start(recorder: Recorder, tasks: &mut JoinSet<()>) -> Self {
        let (complaints, mut waiting) = Self::queue();
        tasks.spawn(async move {
            while let Some(Complaint { about, reason, message }) = waiting.recv().await {
                recorder.warning(&about, reason, &message).await;
            }
        });
        complaints
    }

    pub(super) fn queue() -> (Self, mpsc::Receiver<Complaint>) {
        let (queue, waiting) = mpsc::channel(MOST);
        (Self(queue), waiting)
    }

    pub fn add(&self, complaint: Complaint) {
        if let Err(error) = self.0.try_send(complaint) {
            let complaint = error.into_inner();
            tracing::warn!(service = complaint.about.name, message = complaint.message, "event held back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_takes_no_event_holds_nobody_up() {
        let (complaints, mut waiting) = Complaints::queue();
        let complaint = |number: usize| Complaint {
            about: Reference::new("v1", "Service", &Default::default()),
            reason: FULL,
            message: number.to_string(),
        };
        (0..MOST + 9).for_each(|number| complaints.add(complaint(number)));
        let kept = std::iter::from_fn(|| waiting.try_recv().ok());
        assert!(kept.eq((0..MOST).map(complaint)));
    }
}
