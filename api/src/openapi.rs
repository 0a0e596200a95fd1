//! OpenAPI documents (v3 per group and version, v2 for all), generated from the table.

use serde_json::Value;

use crate::kind::Registry;

/// `/openapi/v3`: path of each document with its hash.
pub fn v3_index(registry: &Registry) -> Value {
    let _ = registry;
    Value::Null
}

/// `/openapi/v3/api/v1`, `/openapi/v3/apis/apps/v1`, …; `None` when there is no such group version.
pub fn v3(registry: &Registry, group: &str, version: &str) -> Option<Vec<u8>> {
    let _ = (registry, group, version);
    None
}

/// `/openapi/v2` as JSON.
pub fn v2(registry: &Registry) -> Vec<u8> {
    let _ = registry;
    Vec::new()
}
