//! One case: a namespace of its own, its steps, and the removal of what they made.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use regex::{Captures, Regex};
use serde_json::{Value, json};

use crate::answer::{read, shape};
use crate::cases::{self, Step};
use crate::client::{Answer, Client, Credentials, Identity};
use crate::normal::Normal;

/// Names of media types in options.
const TYPES: [(&str, &str); 10] = [
    ("json", "application/json"),
    ("yaml", "application/yaml"),
    ("jsonpatch", "application/json-patch+json"),
    ("merge", "application/merge-patch+json"),
    ("strategic", "application/strategic-merge-patch+json"),
    ("apply", "application/apply-patch+yaml"),
    ("proto", "application/vnd.kubernetes.protobuf"),
    ("table", "application/json;as=Table;v=v1;g=meta.k8s.io"),
    ("partial", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"),
    ("partiallist", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"),
];

/// A step that waits for something is repeated this often, so far apart.
const REPEATS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

fn media(name: &str) -> &str {
    TYPES.iter().find(|(known, _)| *known == name).map_or(name, |(_, media)| media)
}

struct Run {
    client: Client,
    bases: Arc<Value>,
    variables: BTreeMap<String, String>,
    normal: Normal,
    made: Vec<String>,
}

/// One normalised answer per step.
pub async fn run(credentials: Arc<Credentials>, steps: Vec<Step>, bases: Arc<Value>) -> Vec<Value> {
    let random = || uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
    let (namespace, prefix) = (format!("t{}", random()), format!("x{}", random()));
    let normal = Normal::new(&[(&namespace, "${ns}"), (&prefix, "${x}")]);
    let variables = BTreeMap::from([("ns".to_owned(), namespace), ("x".to_owned(), prefix)]);
    let mut run = Run { client: Client::new(credentials), bases, variables, normal, made: Vec::new() };
    let needs_namespace =
        |step: &Step| step.path.contains('~') || format!("{}{}", step.path, step.body).contains("${ns}");
    if steps.iter().any(needs_namespace) {
        run.make_namespace().await;
    }
    let mut answers = Vec::new();
    for step in &steps {
        answers.push(run.step(step).await);
    }
    run.clean().await;
    answers
}

impl Run {
    async fn send(&mut self, method: &str, path: &str, media: &str, body: &[u8]) -> Answer {
        let headers = [
            ("user-agent", "tape/1".to_owned()),
            ("accept", "application/json".into()),
            ("content-type", media.into()),
        ];
        self.client.request(Identity::Admin, method, path, &headers, body).await
    }

    async fn make_namespace(&mut self) {
        let name = &self.variables["ns"];
        let space = format!("/api/v1/namespaces/{name}");
        let body = json!({"metadata": {"name": name}}).to_string();
        self.send("POST", "/api/v1/namespaces", "application/json", body.as_bytes()).await;
        let accounts = format!("{space}/serviceaccounts");
        self.send("POST", &accounts, "application/json", br#"{"metadata":{"name":"default"}}"#).await;
        self.made.extend([space, format!("{accounts}/default")]);
    }

    /// Replaces `${c*N}` by N times that character and `${name}` by a variable.
    fn fill(&self, text: &str) -> String {
        let repeated = Regex::new(r"\$\{(.)\*(\d+)\}").unwrap();
        let text = repeated.replace_all(text, |found: &Captures<'_>| found[1].repeat(found[2].parse().unwrap()));
        let named = Regex::new(r"\$\{(\w+)\}").unwrap();
        let value =
            |found: &Captures<'_>| self.variables.get(&found[1]).cloned().unwrap_or_else(|| found[0].to_owned());
        named.replace_all(&text, value).into_owned()
    }

    /// `~/pods` and `~apps/v1/deployments` are in the case's namespace.
    fn path(&self, path: &str) -> String {
        let full = match path.strip_prefix('~').map(|rest| rest.splitn(3, '/').collect::<Vec<_>>()) {
            None => path.to_owned(),
            Some(parts) => match parts.as_slice() {
                ["", ..] => format!("/api/v1/namespaces/${{ns}}/{}", &path[2..]),
                [group, version, rest] => format!("/apis/{group}/{version}/namespaces/${{ns}}/{rest}"),
                _ => panic!("no path: {path}"),
            },
        };
        self.fill(&full)
    }

    fn headers(&self, step: &Step, body: &[u8]) -> Vec<(&'static str, String)> {
        let option = |name: &str| step.option(name).map(|value| self.fill(value));
        let accept = option("accept").map(|list| list.split(',').map(media).collect::<Vec<_>>().join(","));
        let mut headers =
            vec![("user-agent", "tape/1".to_owned()), ("accept", accept.unwrap_or_else(|| "application/json".into()))];
        let named = step
            .options
            .iter()
            .find(|(word, _)| TYPES.iter().any(|(known, _)| known == word))
            .map(|(word, _)| media(word).to_owned());
        let default = || (!body.is_empty()).then(|| "application/json".to_owned());
        headers.extend(option("type").or(named).or_else(default).map(|media| ("content-type", media)));
        let token = option("token").filter(|token| token != "none");
        headers.extend(token.map(|token| ("authorization", format!("Bearer {token}"))));
        headers.extend(option("as").map(|name| ("impersonate-user", name)));
        let groups = option("groups").unwrap_or_default();
        headers.extend(
            groups.split(',').filter(|group| !group.is_empty()).map(|group| ("impersonate-group", group.to_owned())),
        );
        headers
    }

    async fn step(&mut self, step: &Step) -> Value {
        let path = self.path(&step.path);
        let body = cases::body(&step.body, &self.bases, |text| self.fill(text));
        let sent = String::from_utf8_lossy(&body).into_owned();
        self.normal.sent += &format!("{sent}{path}");
        let headers = self.headers(step, &body);
        let answer = self.ask(step, &path, &headers, &body).await;
        let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
        let raw = String::from_utf8_lossy(&answer.body);
        let value = read(&answer.body, header("content-type").unwrap_or_default());
        self.remember(step, &path, answer.code, &value);
        self.normal.learn_names(&sent, &raw);
        self.normal.learn(&value);
        let mut normal = self.normal.value(&value, "");
        for place in step.option("ignore").unwrap_or_default().split(',').filter(|place| !place.is_empty()) {
            cases::set(&mut normal, place, Value::Null);
        }
        let mut out = json!({"step": step.title(), "code": answer.code, "type": header("content-type")});
        let warnings: Vec<String> = answer
            .headers
            .get_all("warning")
            .iter()
            .filter_map(|text| text.to_str().ok())
            // What a server of ours says about itself no other one says.
            .filter(|text| !text.starts_with("299 - \"amphipod: "))
            .map(|text| self.normal.text(text))
            .collect();
        if !warnings.is_empty() {
            out["warnings"] = json!(warnings);
        }
        out["body"] = if step.option("shape").is_some() { shape(&normal) } else { normal };
        out
    }

    async fn ask(&mut self, step: &Step, path: &str, headers: &[(&str, String)], body: &[u8]) -> Answer {
        let identity = if step.option("token").is_some() { Identity::Anonymous } else { Identity::Admin };
        let mut left = REPEATS;
        loop {
            let answer = self.client.request(identity, &step.method, path, headers, body).await;
            left -= 1;
            let Some(wanted) = step.option("wait").filter(|_| left > 0) else { return answer };
            let text = String::from_utf8_lossy(&answer.body);
            let mut words = text.split(|c: char| !(c.is_alphanumeric() || "_.-".contains(c)));
            if wanted == answer.code.to_string() || words.any(|word| word == wanted) {
                return answer;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What was made, to remove it, and what later steps refer to.
    fn remember(&mut self, step: &Step, path: &str, code: u16, value: &Value) {
        if let Some(name) =
            value.pointer("/metadata/name").and_then(Value::as_str).filter(|name| code == 201 && !name.is_empty())
        {
            self.made.push(format!("{}/{name}", path.split('?').next().unwrap_or_default()));
        }
        for pair in step.option("save").unwrap_or_default().split(',').filter(|pair| !pair.is_empty()) {
            let (name, place) = pair.split_once(':').unwrap_or((pair, ""));
            let saved = match cases::get(value, place) {
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => format!("no-{name}"),
            };
            self.variables.insert(name.to_owned(), saved);
        }
    }

    async fn clean(&mut self) {
        let now = br#"{"gracePeriodSeconds":0,"propagationPolicy":"Background"}"#;
        while let Some(path) = self.made.pop() {
            let answer = self.send("DELETE", &path, "application/json", now).await;
            if !matches!(answer.code, 200 | 202) || !String::from_utf8_lossy(&answer.body).contains("\"finalizers\"") {
                continue;
            }
            self.send("PATCH", &path, "application/merge-patch+json", br#"{"metadata":{"finalizers":null}}"#).await;
            if let Some(name) = path.strip_prefix("/api/v1/namespaces/").filter(|name| !name.contains('/')) {
                let space = json!({"metadata": {"name": name}, "spec": {"finalizers": []}}).to_string();
                self.send("PUT", &format!("{path}/finalize"), "application/json", space.as_bytes()).await;
            }
        }
    }
}
