//! What a request path means.

/// A path of the API, taken apart; nothing is looked up yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Path {
    /// `/api`, `/apis`, `/apis/GROUP`, `/api/v1`, `/apis/GROUP/VERSION`.
    Discovery(Discovery),
    Resource(ResourcePath),
    /// Everything else.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    Core,
    Groups,
    Group(String),
    Resources { group: String, version: String },
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourcePath {
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub plural: String,
    pub name: String,
    pub subresource: String,
    /// What follows the subresource (`proxy/a/b`).
    pub rest: String,
    /// The old form `/api/v1/watch/…`.
    pub watch: bool,
}

impl Path {
    pub fn parse(path: &str) -> Self {
        let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["api"] => Self::Discovery(Discovery::Core),
            ["apis"] => Self::Discovery(Discovery::Groups),
            ["apis", group] => Self::Discovery(Discovery::Group((*group).into())),
            ["api", version] => {
                Self::Discovery(Discovery::Resources { group: String::new(), version: (*version).into() })
            }
            ["apis", group, version] => {
                Self::Discovery(Discovery::Resources { group: (*group).into(), version: (*version).into() })
            }
            ["api", version, rest @ ..] => Self::Resource(resource("", version, rest)),
            ["apis", group, version, rest @ ..] => Self::Resource(resource(group, version, rest)),
            _ => Self::Other,
        }
    }
}

fn resource(group: &str, version: &str, rest: &[&str]) -> ResourcePath {
    let (watch, rest) = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
        _ => (false, rest),
    };
    // `namespaces/NAME/status` is about the namespace; `namespaces/NAME/pods` is about what is in it.
    let (namespace, rest) = match rest {
        ["namespaces", name, plural, more @ ..]
            if !(group.is_empty() && matches!(*plural, "status" | "finalize") && more.is_empty()) =>
        {
            (*name, &rest[2..])
        }
        _ => ("", rest),
    };
    let part = |index: usize| rest.get(index).copied().unwrap_or_default().to_owned();
    ResourcePath {
        group: group.into(),
        version: version.into(),
        namespace: namespace.into(),
        plural: part(0),
        name: part(1),
        subresource: part(2),
        rest: rest.get(3..).unwrap_or_default().join("/"),
        watch,
    }
}

/// Percent-decoding of one path segment or query part; what is no valid escape stays as it is.
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The parameters of a query, in order.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (plus(k), plus(v))).collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A flag as Kubernetes reads it: there, and neither `false` nor `0`.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !matches!(value, "false" | "0"))
    }

    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.get(name)?.parse().ok()
    }
}

fn plus(text: &str) -> String {
    decode(&text.replace('+', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str) -> ResourcePath {
        match Path::parse(path) {
            Path::Resource(resource) => resource,
            other => panic!("{path} is {other:?}"),
        }
    }

    #[test]
    fn namespaces_are_objects_and_places() {
        let pods = of("/api/v1/namespaces/a/pods/b/log");
        assert_eq!((&*pods.namespace, &*pods.plural, &*pods.name, &*pods.subresource), ("a", "pods", "b", "log"));
        let space = of("/api/v1/namespaces/a/finalize");
        assert_eq!(
            (&*space.namespace, &*space.plural, &*space.name, &*space.subresource),
            ("", "namespaces", "a", "finalize")
        );
        assert_eq!(of("/api/v1/namespaces/a").name, "a");
        assert!(of("/api/v1/watch/namespaces/a/configmaps/c").watch);
        assert_eq!(of("/apis/apps/v1/deployments").plural, "deployments");
    }

    #[test]
    fn what_is_not_a_resource_is_told_apart() {
        assert_eq!(Path::parse("/apis/apps"), Path::Discovery(Discovery::Group("apps".into())));
        assert_eq!(Path::parse("/nowhere"), Path::Other);
        assert_eq!(
            Path::parse("/api/v1/"),
            Path::Discovery(Discovery::Resources { group: String::new(), version: "v1".into() })
        );
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("labelSelector=app+in+(x,y),%21tier&watch=1&watch=0&limit=5&dryRun");
        assert_eq!(query.get("labelSelector"), Some("app in (x,y),!tier"));
        assert!(query.flag("watch") && query.flag("dryRun") && !query.flag("none"));
        assert_eq!(query.number("limit"), Some(5));
        assert_eq!(decode("100%zz%2"), "100%zz%2");
    }
}
