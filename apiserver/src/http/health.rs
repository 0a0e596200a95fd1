//! `/healthz`, `/livez` and `/readyz`: one answer for all checks or for one, with `?verbose` a line for each.

use super::path::Query;
use super::reply::{self, Reply};
use crate::shared::Shared;

const PROBES: [&str; 3] = ["healthz", "livez", "readyz"];

/// What has to work, under the name that `?exclude=` and paths take.
const CHECKS: [&str; 2] = ["ping", "store"];

/// Why a check fails.
async fn check(shared: &Shared, name: &str) -> Result<(), String> {
    match name {
        "store" if shared.engine.failure().borrow().is_some() => Err("it failed, and the server ends".into()),
        "store" => shared.engine.store().health().await,
        _ => Ok(()),
    }
}

/// The probe and the check that a path asks for; all checks when it names none.
fn parse(path: &str) -> Option<(&'static str, Option<&'static str>)> {
    let mut parts = path.trim_matches('/').splitn(2, '/');
    let asked = parts.next()?;
    let probe = PROBES.into_iter().find(|probe| *probe == asked)?;
    match parts.next() {
        None => Some((probe, None)),
        Some(check) => Some((probe, Some(CHECKS.into_iter().find(|name| *name == check)?))),
    }
}

/// Whether a path asks how the server is.
pub fn is_probe(path: &str) -> bool {
    parse(path).is_some()
}

/// `None` when the path asks for something else.
pub async fn answer(shared: &Shared, path: &str, query: &Query) -> Option<Reply> {
    let (probe, one) = parse(path)?;
    let excluded = |name: &str| query.all("exclude").any(|other| other == name);
    let mut lines = Vec::new();
    for name in CHECKS.into_iter().filter(|name| one.is_none_or(|one| one == *name)) {
        lines.push(match check(shared, name).await {
            _ if excluded(name) => (format!("[+]{name} excluded: ok\n"), true),
            Ok(()) => (format!("[+]{name} ok\n"), true),
            Err(why) => (format!("[-]{name} failed: {why}\n"), false),
        });
    }
    let well = lines.iter().all(|(_, well)| *well);
    let text: String = lines.into_iter().map(|(line, _)| line).collect();
    Some(match (well, one.is_none() && query.get("verbose").is_some()) {
        (true, false) => reply::text(200, "ok"),
        (true, true) => reply::text(200, format!("{text}{probe} check passed\n")),
        (false, _) => reply::text(500, format!("{text}{probe} check failed\n")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_a_probe_and_perhaps_a_check() {
        assert_eq!(parse("/livez"), Some(("livez", None)));
        assert_eq!(parse("/readyz/store/"), Some(("readyz", Some("store"))));
        assert!(is_probe("/healthz/ping") && !is_probe("/healthz/none") && !is_probe("/metrics"));
    }
}
