//! Where things are on a server: paths and queries.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::object::Resource;
use crate::transport::{Selector, Target};

/// What stands in a path or query as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

pub(super) fn selected(selector: &Selector) -> String {
    format!("labelSelector={}&fieldSelector={}", encode(&selector.labels), encode(&selector.fields))
}

pub(super) fn root(resource: &Resource) -> String {
    let (group, version) = (encode(&resource.group), encode(&resource.version));
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

pub(super) fn path(target: Target<'_>) -> String {
    let mut path = root(target.resource);
    if !target.namespace.is_empty() {
        path += &format!("/namespaces/{}", encode(target.namespace));
    }
    for part in [&*target.resource.plural, target.name, target.subresource].into_iter().filter(|part| !part.is_empty())
    {
        path.push('/');
        path += &encode(part);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_selectors_are_encoded() {
        let (pods, deployments) = (Resource::core("pods"), Resource::new("apps", "deployments"));
        let target = |resource, namespace, name, subresource| Target { resource, namespace, name, subresource };
        assert_eq!(path(target(&pods, "ns", "a", "status")), "/api/v1/namespaces/ns/pods/a/status");
        assert_eq!(path(target(&deployments, "", "", "")), "/apis/apps/v1/deployments");
        assert_eq!(path(target(&pods, "", "a:b/c", "")), "/api/v1/pods/a%3Ab%2Fc");
        let selector = Selector { labels: "a in (b,c)".into(), fields: "spec.nodeName=n".into() };
        assert_eq!(selected(&selector), "labelSelector=a%20in%20%28b%2Cc%29&fieldSelector=spec.nodeName%3Dn");
    }
}
