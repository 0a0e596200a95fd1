//! DaemonSets.

use serde_json::json;

use super::{Behaviour, DEFAULT, Generation};
use crate::default::{Object, nested, set, set_absent, text as member};
use crate::selector::Labels;
use crate::table::cells::{or_none, template as columns};
use crate::value::number;

pub const BEHAVIOUR: Behaviour = Behaviour {
    defaults: &[("apps.v1.DaemonSet", default)],
    generation: Generation::Spec,
    pod: Some("/spec/template"),
    cells: Some(|o, _| {
        let status = |name: &str| json!(number(&o["status"][name]));
        let nodes = Labels::from_map(&o["spec"]["template"]["spec"]["nodeSelector"]).to_string();
        let mut out = vec![
            ("Desired", status("desiredNumberScheduled")),
            ("Current", status("currentNumberScheduled")),
            ("Ready", status("numberReady")),
            ("Up-to-date", status("updatedNumberScheduled")),
            ("Available", status("numberAvailable")),
            ("Node Selector", json!(or_none(nodes))),
        ];
        out.extend(columns(o));
        out
    }),
    inactive: Some("no pods are made for it"),
    ..DEFAULT
};

fn default(map: &mut Object) {
    nested(map, "spec", |spec| {
        nested(spec, "updateStrategy", |strategy| {
            set(strategy, "type", "RollingUpdate");
            if member(strategy, "type") == "RollingUpdate" {
                nested(strategy, "rollingUpdate", |rolling| {
                    set_absent(rolling, "maxUnavailable", 1);
                    set_absent(rolling, "maxSurge", 0);
                });
            }
        });
        set_absent(spec, "revisionHistoryLimit", 10);
    });
}
