//! Which user a container runs as: the pod's word, else the image's, read against the image's own account files.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::image::Root;
use crate::model::{Container, PodSecurity};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

/// The image's `/etc/passwd` and `/etc/group`.
#[derive(Debug, Default)]
pub struct Accounts {
    pub passwd: String,
    pub group: String,
}

impl Accounts {
    /// Reads them below `rootfs`, where no link leads out. A missing file is an empty one.
    pub fn read(rootfs: &Path) -> Accounts {
        let text = |path: &str| {
            let mut text = String::new();
            let file = Root::open(rootfs).and_then(|root| root.open_inside(Path::new(path), libc::O_RDONLY));
            match file.map(|file| File::from(file).take(1 << 20).read_to_string(&mut text)) {
                Ok(Ok(_)) => text,
                _ => String::new(),
            }
        };
        Accounts { passwd: text("etc/passwd"), group: text("etc/group") }
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

pub fn resolve(
    pod: &PodSecurity,
    container: &Container,
    image_user: &str,
    accounts: &Accounts,
) -> Result<User, UserError> {
    let security = &container.security_context;
    let run_as_user = security.run_as_user.or(pod.run_as_user);
    let non_root = security.run_as_non_root.or(pod.run_as_non_root).unwrap_or(false);
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
    let more = pod.supplemental_groups.iter().chain(&pod.fs_group).copied();
    user.groups = [user.gid].into_iter().chain(std::mem::take(&mut user.groups)).chain(more).collect();
    user.groups.sort_unstable();
    user.groups.dedup();
    Ok(user)
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
    fn non_root_is_enforced() {
        let strict = json!({"runAsNonRoot": true});
        assert_eq!(resolve_with(strict.clone(), json!({}), ""), Err(UserError::Root));
        assert_eq!(resolve_with(strict.clone(), json!({"runAsUser": 0}), ""), Err(UserError::RootByUser));
        assert_eq!(resolve_with(strict.clone(), json!({}), "www"), Err(UserError::NonNumeric("www".into())));
        assert!(resolve_with(strict, json!({}), "33").is_ok());
    }
}
