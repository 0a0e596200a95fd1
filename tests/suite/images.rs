//! Images that are not there.

use anyhow::Result;
use e2e::{Space, until};

pub fn images(space: &Space<'_>) -> Result<()> {
    space.kubectl(&["run", "lost", "--image=nonesuch:1.0"])?;
    until("the image is said to be missing", || {
        let reason = space.get(&["pod", "lost"], "{.status.containerStatuses[0].state.waiting.reason}")?;
        Ok(matches!(reason.as_str(), "ErrImagePull" | "ImagePullBackOff"))
    })?;
    until("an event says why", || {
        let events = space.kubectl(&["get", "events", "--field-selector", "involvedObject.name=lost"])?;
        Ok(events.contains("Failed to pull image \"nonesuch:1.0\"")
            && events.contains("not found")
            && events.contains("Error: ImagePullBackOff"))
    })?;
    space.kubectl(&["set", "image", "pod/lost", "lost=nginx:1.14.2"])?;
    space.wait_ready(&["pod/lost"])
}
