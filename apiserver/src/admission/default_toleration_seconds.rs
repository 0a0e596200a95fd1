//! A pod stays five minutes on a node that is in trouble, unless it says otherwise.

use api::status::Status;
use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Cluster, Member, Review};

const SECONDS: u32 = 300;
const TROUBLE: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

#[derive(Debug)]
pub(super) struct DefaultTolerationSeconds;

#[async_trait]
impl Member for DefaultTolerationSeconds {
    async fn mutate(&self, _: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        tolerate(&mut review.object["spec"]["tolerations"]);
        Ok(())
    }
}

fn tolerate(tolerations: &mut Value) {
    let covers = |toleration: &Value, key: &str| {
        let text = |field: &str| toleration[field].as_str().unwrap_or_default();
        (text("key").is_empty() || text("key") == key) && matches!(text("effect"), "" | "NoExecute")
    };
    let known = tolerations.as_array().map(Vec::as_slice).unwrap_or_default();
    let missing = TROUBLE.iter().filter(|key| !known.iter().any(|toleration| covers(toleration, key)));
    let added: Vec<Value> = missing
        .map(|key| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}))
        .collect();
    match tolerations.as_array_mut() {
        Some(list) => list.extend(added),
        None => *tolerations = json!(added),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_how_long_is_believed() {
        let of = |given: Value| {
            let mut tolerations = given;
            tolerate(&mut tolerations);
            tolerations.as_array().unwrap().len()
        };
        assert_eq!(of(Value::Null), 2);
        assert_eq!(of(json!([{"key": TROUBLE[0], "operator": "Exists", "effect": "NoExecute"}])), 2);
        assert_eq!(of(json!([{"key": TROUBLE[0], "operator": "Exists", "effect": "NoSchedule"}])), 3);
        assert_eq!(of(json!([{"operator": "Exists"}])), 1);
    }
}
