//! Image references, normalised the way every Kubernetes runtime does.

use std::fmt;

use super::digest::Digest;

/// `registry/repository[:tag][@digest]`, all parts explicit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    pub registry: String,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

#[derive(Debug, thiserror::Error, PartialEq)]
#[error("couldn't parse image name {name:?}: {reason}")]
pub struct InvalidName {
    name: String,
    reason: &'static str,
}

const DEFAULT_REGISTRY: &str = "docker.io";

impl std::str::FromStr for ImageName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<ImageName, InvalidName> {
        let invalid = |reason| InvalidName { name: text.to_owned(), reason };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| invalid("invalid digest"))?)),
            None => (text, None),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if !tag.is_none_or(is_tag) {
            return Err(invalid("invalid tag"));
        }
        let (registry, repository) = split_registry(path);
        if !registry.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(invalid("invalid reference format"));
        }
        if !repository.split('/').all(is_component) {
            return Err(invalid(if path.chars().any(|c| c.is_ascii_uppercase()) {
                "repository name must be lowercase"
            } else {
                "invalid reference format"
            }));
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(ImageName { registry, repository, tag, digest })
    }
}

/// The first part is a registry when it looks like a host; short names belong to Docker's library.
fn split_registry(path: &str) -> (String, String) {
    match path.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => match host {
            "index.docker.io" | DEFAULT_REGISTRY if !rest.contains('/') => {
                (DEFAULT_REGISTRY.into(), format!("library/{rest}"))
            }
            "index.docker.io" => (DEFAULT_REGISTRY.into(), rest.into()),
            _ => (host.into(), rest.into()),
        },
        Some(_) => (DEFAULT_REGISTRY.into(), path.into()),
        None => (DEFAULT_REGISTRY.into(), format!("library/{path}")),
    }
}

/// Lower-case letters and digits, joined by single `.`, `_`, `__` or dashes.
fn is_component(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(alphanumeric)
        && part.ends_with(alphanumeric)
        && part.chars().all(|c| alphanumeric(c) || matches!(c, '.' | '_' | '-'))
        && !["..", "___", "._", "_."].iter().any(|bad| part.contains(bad))
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= 128 && tag.starts_with(word) && tag.chars().all(|c| word(c) || matches!(c, '.' | '-'))
}

impl ImageName {
    /// The name without tag and digest.
    pub fn path(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_explicit() {
        for (short, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.10", "docker.io/library/nginx:1.10"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("user/app:v1", "docker.io/user/app:v1"),
            ("localhost/app", "localhost/app:latest"),
            ("10.0.0.1:5000/a/b:x", "10.0.0.1:5000/a/b:x"),
            ("ghcr.io/a__b/c-d.e", "ghcr.io/a__b/c-d.e:latest"),
        ] {
            assert_eq!(short.parse::<ImageName>().unwrap().to_string(), full);
        }
        let digest = format!("nginx@sha256:{}", "a".repeat(64));
        assert_eq!(digest.parse::<ImageName>().unwrap().tag, None);
    }

    #[test]
    fn bad_names() {
        for bad in ["", "Nginx", "nginx:", "nginx:-x", "a//b", "nginx@sha256:12", "ng inx", "../x", "a/", "nginx:a/b:"]
        {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
    }
}
