//! Numbers of pods that may be said as a part of all.

use serde_json::Value;

/// What becomes of a part of a pod.
#[derive(Debug, Clone, Copy)]
pub enum Rounding {
    Up,
    Down,
}

/// `value` as a number of pods: absolute, or a percentage of `total`.
pub fn resolve(value: &Value, total: i64, rounding: Rounding) -> i64 {
    let percent = value.as_str().and_then(|text| text.strip_suffix('%')).and_then(|text| text.parse::<i64>().ok());
    match (percent, rounding) {
        (Some(percent), Rounding::Up) => (percent * total + 99) / 100,
        (Some(percent), Rounding::Down) => percent * total / 100,
        (None, _) => value.as_i64().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_are_rounded() {
        assert_eq!(resolve(&json!("25%"), 5, Rounding::Up), 2);
        assert_eq!(resolve(&json!("25%"), 5, Rounding::Down), 1);
        assert_eq!(resolve(&json!(3), 5, Rounding::Up), 3);
        assert_eq!(resolve(&Value::Null, 5, Rounding::Up), 0);
    }
}
