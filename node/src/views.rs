//! What a node keeps of the kinds that its pods mount.

use api::view::Meta;
use client::views::{CONFIG_MAPS, SECRETS};
use client::{Resource, View};
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConfigMap {
    pub metadata: Meta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Secret {
    pub metadata: Meta,
}

impl View for ConfigMap {
    const RESOURCE: Resource = CONFIG_MAPS;

    fn uid(&self) -> &str {
        &self.metadata.uid
    }
}

impl View for Secret {
    const RESOURCE: Resource = SECRETS;

    fn uid(&self) -> &str {
        &self.metadata.uid
    }
}
