//! Times as Kubernetes writes and reads them, and the ages kubectl prints.

use jiff::Timestamp;

/// RFC 3339 in whole seconds: `metav1.Time`.
pub fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// RFC 3339 with six decimals: `metav1.MicroTime`.
pub fn micro(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}
