//! Kinds of `storage.k8s.io`: classes of volumes, drivers, and what is attached where.

use serde_json::json;

use super::{Behaviour, DEFAULT, Deletion, Shows};
use crate::default::set_absent;

const COMMON: Behaviour = Behaviour { delete: Deletion { shows: Shows::Object, ..Deletion::DEFAULT }, ..DEFAULT };

pub const CLASS: Behaviour = Behaviour {
    defaults: &[("storage.v1.StorageClass", |m| {
        set_absent(m, "reclaimPolicy", "Delete");
        set_absent(m, "volumeBindingMode", "Immediate");
    })],
    cells: Some(|o, _| {
        let expands = o["allowVolumeExpansion"].as_bool().unwrap_or(false);
        vec![
            ("Provisioner", o["provisioner"].clone()),
            ("ReclaimPolicy", o["reclaimPolicy"].clone()),
            ("VolumeBindingMode", o["volumeBindingMode"].clone()),
            ("AllowVolumeExpansion", json!(expands)),
        ]
    }),
    inactive: Some("no volume is provisioned"),
    ..COMMON
};
pub const DRIVER: Behaviour = COMMON;
pub const NODE: Behaviour = COMMON;
pub const ATTACHMENT: Behaviour = COMMON;
