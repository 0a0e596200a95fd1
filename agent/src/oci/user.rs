//! Which user a container runs as: the pod's word, else the image's, read against the image's own account files.

use std::io::{self, Read as _};
use std::path::Path;

use crate::door::Folder;
use crate::model::{Container, PodSecurity};

#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    #[error("container has runAsNonRoot and image will run as root")]
    Root,
    #[error("container's runAsUser breaks non-root policy")]
    RootByUser,
    #[error("container has runAsNonRoot and image has non-numeric user ({0}), cannot verify user is non-root")]
    NonNumeric(String),
}

/// No image has that many accounts.
const MAX_BYTES: u64 = 8 << 20;

#[derive(Debug, thiserror::Error)]
#[error("read the image's {path}")]
pub struct AccountsError {
    path: &'static str,
    source: io::Error,
}

/// The image's `/etc/passwd` and `/etc/group`.
#[derive(Debug, Default)]
pub struct Accounts {
    pub passwd: String,
    pub group: String,
}

impl Accounts {
    /// Reads them below `rootfs`, where no link leads out. A missing file is an empty one.
    pub fn read(rootfs: &Path) -> Result<Accounts, AccountsError> {
        let text =
            |path: &'static str| read_text(rootfs, Path::new(path)).map_err(|source| AccountsError { path, source });
        Ok(Accounts { passwd: text("etc/passwd")?, group: text("etc/group")? })
    }

    /// The home folder of a user; one without an account gets the root.
    pub fn home(&self, uid: u32) -> String {
        let home = self.passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            (fields.get(2)?.parse() == Ok(uid)).then(|| fields.get(5).map(|home| (*home).to_owned()))?
        });
        home.filter(|home| !home.is_empty()).unwrap_or_else(|| "/".to_owned())
    }

    fn passwd_entry(&self, name: &str) -> Option<(String, u32, u32)> {
        self.passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
            (fields[0] == name || fields[2] == name).then(|| (fields[0].to_owned(), uid, gid))
        })
    }

    fn gid(&self, name: &str) -> Option<u32> {
        self.group.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            (fields[0] == name).then(|| fields.get(2)?.parse().ok()).flatten()
        })
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        let member = |line: &str| {
            let fields: Vec<&str> = line.split(':').collect();
            let members = fields.get(3)?;
            members.split(',').any(|name| name == user).then(|| fields.get(2)?.parse().ok()).flatten()
        };
        self.group.lines().filter_map(member).collect()
    }
}

fn read_text(rootfs: &Path, path: &Path) -> io::Result<String> {
    let file = match Folder::open(rootfs)?.open_regular(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(String::new());
        }
        file => file?,
    };
    let mut bytes = Vec::new();
    if file.take(MAX_BYTES + 1).read_to_end(&mut bytes)? as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {MAX_BYTES} bytes")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub fn resolve(
    pod: &PodSecurity,
    container: &Container,
    image_user: &str,
    accounts: &Accounts,
) -> Result<User, UserError> {
    let security = &container.security_context;
    let run_as_user = security.run_as_user.or(pod.run_as_user);
    let non_root = is_non_root(pod, container);
    let (user_part, group_part) = image_user.split_once(':').unwrap_or((image_user, ""));
    if non_root {
        match run_as_user {
            Some(0) => return Err(UserError::RootByUser),
            Some(_) => {}
            None => match user_part.parse::<u32>() {
                Ok(0) => return Err(UserError::Root),
                Ok(_) => {}
                Err(_) if user_part.is_empty() || user_part == "root" => return Err(UserError::Root),
                Err(_) => return Err(UserError::NonNumeric(user_part.to_owned())),
            },
        }
    }
    let wanted = run_as_user.map_or_else(|| user_part.to_owned(), |uid| uid.to_string());
    let mut user = by_name(&wanted, accounts)?;
    if run_as_user.is_none() && !group_part.is_empty() {
        user.gid = match group_part.parse() {
            Ok(gid) => gid,
            Err(_) => accounts.gid(group_part).ok_or_else(|| UserError::NoGroup(group_part.to_owned()))?,
        };
    }
    if let Some(gid) = security.run_as_group.or(pod.run_as_group) {
        user.gid = gid;
    }
    if pod.supplemental_groups_policy.as_deref() == Some("Strict") {
        user.groups.clear(); // the image's own word does not count
    }
    let more = pod.supplemental_groups.iter().chain(&pod.fs_group).copied();
    user.groups = [user.gid].into_iter().chain(std::mem::take(&mut user.groups)).chain(more).collect();
    user.groups.sort_unstable();
    user.groups.dedup();
    Ok(user)
}

/// Whether nothing in a container may run as root.
pub fn is_non_root(pod: &PodSecurity, container: &Container) -> bool {
    container.security_context.run_as_non_root.or(pod.run_as_non_root).unwrap_or(false)
}

fn by_name(name: &str, accounts: &Accounts) -> Result<User, UserError> {
    let name = if name.is_empty() { "0" } else { name };
    match (accounts.passwd_entry(name), name.parse()) {
        (Some((login, uid, gid)), _) => Ok(User { uid, gid, groups: accounts.groups_of(&login) }),
        (None, Ok(uid)) => Ok(User { uid, gid: 0, groups: Vec::new() }),
        (None, Err(_)) => Err(UserError::NoUser(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resolve_with(pod: serde_json::Value, container: serde_json::Value, image: &str) -> Result<User, UserError> {
        let accounts = Accounts {
            passwd: "root:x:0:0::/root:/bin/sh\nwww:x:33:34::/:/bin/sh\n".into(),
            group: "root:x:0:\nwww:x:34:\nextra:x:50:www,other\n".into(),
        };
        let container = serde_json::from_value(json!({"securityContext": container})).unwrap();
        resolve(&serde_json::from_value(pod).unwrap(), &container, image, &accounts)
    }

    #[test]
    fn image_users() {
        let user = |uid, gid, groups: &[u32]| Ok(User { uid, gid, groups: groups.into() });
        assert_eq!(resolve_with(json!({}), json!({}), ""), user(0, 0, &[0]));
        assert_eq!(resolve_with(json!({}), json!({}), "www"), user(33, 34, &[34, 50]));
        assert_eq!(resolve_with(json!({}), json!({}), "1000"), user(1000, 0, &[0]));
        assert_eq!(resolve_with(json!({}), json!({}), "www:root"), user(33, 0, &[0, 50]));
        assert_eq!(resolve_with(json!({}), json!({}), "nobody"), Err(UserError::NoUser("nobody".into())));
    }

    #[test]
    fn the_pod_decides() {
        let pod = json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 7, "supplementalGroups": [9]});
        let user = resolve_with(pod, json!({"runAsUser": 33}), "www").unwrap();
        assert_eq!(user, User { uid: 33, gid: 2, groups: vec![2, 7, 9, 50] });
    }

    #[test]
    fn strict_groups_are_the_pods_alone() {
        let pod = |policy: &str| json!({"supplementalGroups": [9], "supplementalGroupsPolicy": policy});
        assert_eq!(resolve_with(pod("Merge"), json!({}), "www").unwrap().groups, [9, 34, 50]);
        assert_eq!(resolve_with(pod("Strict"), json!({}), "www").unwrap().groups, [9, 34]);
    }

    #[test]
    fn homes() {
        let accounts = Accounts { passwd: "root:x:0:0::/root:/bin/sh\nodd:x:5:5::\n".into(), group: String::new() };
        assert_eq!([0, 5, 1000].map(|uid| accounts.home(uid)), ["/root", "/", "/"]);
    }

    #[test]
    fn non_root_is_enforced() {
        let strict = json!({"runAsNonRoot": true});
        assert_eq!(resolve_with(strict.clone(), json!({}), ""), Err(UserError::Root));
        assert_eq!(resolve_with(strict.clone(), json!({"runAsUser": 0}), ""), Err(UserError::RootByUser));
        assert_eq!(resolve_with(strict.clone(), json!({}), "www"), Err(UserError::NonNumeric("www".into())));
        assert!(resolve_with(strict, json!({}), "33").is_ok());
    }
}
