//! A namespace of a case's own: made for it, and gone after it however it ended.

use std::ops::Deref;

use anyhow::{Context, Result};

use crate::{Cluster, Kubectl};

/// Where one case has all that it makes; kubectl's commands go there.
pub struct Space<'a> {
    pub cluster: &'a Cluster,
    kubectl: Kubectl,
}

impl<'a> Space<'a> {
    /// Makes the namespace.
    ///
    /// # Errors
    /// When the namespace is refused, as one is that is there or still going.
    pub fn new(cluster: &'a Cluster, name: &str) -> Result<Self> {
        cluster.kubectl(&["create", "namespace", name])?;
        Ok(Self { cluster, kubectl: cluster.within(name) })
    }

    /// Lets it go: nothing waits for that, and the next case may begin meanwhile.
    ///
    /// # Errors
    /// When kubectl cannot have it deleted; it stays then.
    pub fn leave(self) -> Result<()> {
        let outcome = self.remove();
        std::mem::forget(self);
        outcome
    }

    /// For a case that has removed it.
    pub fn left(self) {
        std::mem::forget(self);
    }

    fn remove(&self) -> Result<()> {
        let name = self.namespace();
        self.kubectl(&["delete", "namespace", name, "--wait=false"]).context("cannot remove the case's namespace")?;
        // A shell as PID 1 hears no SIGTERM: it would take the whole grace of 30 seconds.
        self.kubectl(&["delete", "pods", "--all", "--grace-period=1", "--wait=false"]).map(drop)
    }
}

impl Deref for Space<'_> {
    type Target = Kubectl;

    fn deref(&self) -> &Kubectl {
        &self.kubectl
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        // Only on the way out of a failure: what went wrong before matters more.
        if let Err(error) = self.remove() {
            eprintln!("{error:#}");
        }
    }
}
