//! StatefulSets.

use serde_json::json;

use super::{Behaviour, DEFAULT, Generation};
use crate::default::{Object, nested, set, set_absent, text as member};
use crate::table::cells::template as columns;
use crate::value::number;

pub const BEHAVIOUR: Behaviour = Behaviour {
    defaults: &[("apps.v1.StatefulSet", default)],
    generation: Generation::Spec,
    pod: Some("/spec/template"),
    cells: Some(|o, _| {
        let ready = format!("{}/{}", number(&o["status"]["readyReplicas"]), number(&o["spec"]["replicas"]));
        let mut out = vec![("Ready", json!(ready))];
        out.extend(columns(o));
        out
    }),
    inactive: Some("no pods are made for it"),
    ..DEFAULT
};

fn default(map: &mut Object) {
    nested(map, "spec", |spec| {
        set(spec, "podManagementPolicy", "OrderedReady");
        nested(spec, "updateStrategy", |strategy| {
            set(strategy, "type", "RollingUpdate");
            if member(strategy, "type") == "RollingUpdate" {
                nested(strategy, "rollingUpdate", |rolling| set_absent(rolling, "partition", 0));
            }
        });
        nested(spec, "persistentVolumeClaimRetentionPolicy", |policy| {
            set(policy, "whenDeleted", "Retain");
            set(policy, "whenScaled", "Retain");
        });
        set_absent(spec, "replicas", 1);
        set_absent(spec, "revisionHistoryLimit", 10);
    });
}
