//! ComponentStatuses: how the server is, in an old form.

use serde_json::json;

use super::{Aspect, Behaviour, DEFAULT};

pub const BEHAVIOUR: Behaviour = Behaviour {
    cells: Some(|o, _| {
        let healthy = o["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Healthy");
        let text = |field: &str| json!(healthy.and_then(|c| c[field].as_str()).unwrap_or_default());
        let status = match healthy.and_then(|c| c["status"].as_str()) {
            Some("True") => "Healthy",
            Some("False") => "Unhealthy",
            _ => "Unknown",
        };
        vec![("Status", json!(status)), ("Message", text("message")), ("Error", text("error"))]
    }),
    deprecated: Some("v1 ComponentStatus is deprecated in v1.19+"),
    none: &[Aspect::Validation, Aspect::Defaults],
    ..DEFAULT
};
