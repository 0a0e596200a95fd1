//! The host's firewall, which is left alone.

use anyhow::{Result, ensure};
use e2e::Space;

pub fn no_firewall(space: &Space<'_>) -> Result<()> {
    let rules = space.cluster.node().run("nft", &["list", "ruleset"])?;
    ensure!(rules.trim().is_empty(), "{rules}");
    Ok(())
}
