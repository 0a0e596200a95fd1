//! PersistentVolumes.

use super::{Behaviour, DEFAULT, Deletion, Shows};
use crate::default::{nested, set, set_absent};

pub const BEHAVIOUR: Behaviour = Behaviour {
    defaults: &[("core.v1.PersistentVolume", |m| {
        nested(m, "spec", |s| {
            set(s, "persistentVolumeReclaimPolicy", "Retain");
            set_absent(s, "volumeMode", "Filesystem");
        });
        nested(m, "status", |s| set(s, "phase", "Pending"));
    })],
    delete: Deletion { shows: Shows::Object, ..Deletion::DEFAULT },
    inactive: Some("no volume is bound or mounted"),
    ..DEFAULT
};
