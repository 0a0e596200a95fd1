//! APIServices: groups that another server answers for.

use serde_json::json;

use super::{Aspect, Behaviour, DEFAULT, Version};
use crate::value::{items, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    version: Version::Needed,
    cells: Some(|o, _| {
        let service = &o["spec"]["service"];
        let shown = match service.is_null() {
            true => "Local".to_owned(),
            false => format!("{}/{}", text(&service["namespace"]), text(&service["name"])),
        };
        let available = items(&o["status"]["conditions"]).find(|c| c["type"] == "Available");
        let available = available.map_or("Unknown".to_owned(), |c| match (text(&c["status"]), text(&c["reason"])) {
            ("True", _) => "True".to_owned(),
            (status, reason) => format!("{status} ({reason})"),
        });
        vec![("Service", json!(shown)), ("Available", json!(available))]
    }),
    inactive: Some("no request is forwarded"),
    none: &[Aspect::Warnings],
    missing: &[
        (Aspect::Validation, "names, priorities, and the service behind"),
        (Aspect::Defaults, "the port of the service"),
    ],
    ..DEFAULT
};
