//! What the agent knows about a pod, fsynced before any kernel object of it exists. Everything else (paths, cgroups,
//! socket, namespaces) has a name derived from the UID, so a record is all that recovery needs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::uid::Uid;
use jiff::Timestamp;
use pod::protocol::IdRange;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::boundary::PodRef;
use crate::disk;
use crate::model::Resources;
use crate::oci::user::User;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub pod: PodRef,
    /// The pod as last seen, so that its containers restart while the API server is away.
    pub object: Arc<Value>,
    /// None yet, one, or one of each family; the first is the one by which the pod is known.
    #[serde(rename = "ip", with = "addresses", default)]
    pub ips: Vec<IpAddr>,
    /// What stands for its own users, when it has any.
    #[serde(default)]
    pub users: Option<IdRange>,
    /// When this node took the pod.
    pub started_at: Timestamp,
    /// How many sandboxes it has had; 0 before the first.
    #[serde(default)]
    pub sandboxes: u32,
    /// The boot of the machine in which the last one was begun.
    #[serde(default)]
    pub boot: String,
    /// The machine's resolv.conf when that one was begun: its containers keep it, whenever they start.
    #[serde(default)]
    pub host_resolv: Option<String>,
    #[serde(default)]
    pub containers: BTreeMap<String, ContainerRecord>,
    /// Set once, when the pod may never run again.
    #[serde(default)]
    pub finished: Option<Finished>,
    /// Set once, when the pod must go: the moment it was asked.
    #[serde(default)]
    pub stopping: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    pub succeeded: bool,
    pub reason: Option<String>,
    pub message: Option<String>,
    #[serde(default)]
    pub cause: Cause,
}

/// What ended a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// Its containers' ends, its deadline, or a limit of its own.
    #[default]
    Itself,
    /// This node did not take it: nothing of it was ever here.
    Rejected,
    /// The node ran short of something.
    Pressure,
}

impl Finished {
    /// By its containers, which all ended well.
    pub fn well() -> Finished {
        Finished { succeeded: true, reason: None, message: None, cause: Cause::Itself }
    }

    /// By a container that did not.
    pub fn badly() -> Finished {
        Finished { succeeded: false, ..Finished::well() }
    }

    pub fn failed(reason: &str, message: String, cause: Cause) -> Finished {
        Finished { succeeded: false, reason: Some(reason.to_owned()), message: Some(message), cause }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// How many runs it has had; also the number of the next one.
    pub runs: u32,
    pub current: Option<Run>,
    /// How the run before the current one ended.
    pub last: Option<End>,
    pub back_off: Option<BackOff>,
}

/// One run of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its name in the pod process: `web-0`.
    pub name: String,
    /// 64 hexadecimal digits, for `status.containerStatuses[].containerID`.
    pub id: String,
    pub image: String,
    pub image_id: String,
    /// The image as the pod asked for it then; empty from releases that did not note it.
    #[serde(default)]
    pub asked: String,
    /// It was stopped because the pod asks for another image by now.
    #[serde(default)]
    pub outdated: bool,
    /// As whom its first process began, and with which resources; not known of releases that did not note it.
    #[serde(default)]
    pub user: Option<User>,
    #[serde(default)]
    pub resources: Option<Resources>,
    pub stop_signal: Option<String>,
    /// The number of the sandbox it was begun in; 0 from releases that did not note it.
    #[serde(default)]
    pub sandbox: u32,
    pub started_at: Option<Timestamp>,
    pub end: Option<End>,
}

/// How far a run got.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress<'a> {
    /// Meant to begin. Whatever there is of it is not known to work: it is taken back, and begun anew.
    Noted,
    Running(Timestamp),
    Ended(&'a End),
}

impl Run {
    /// Whether the pod asks for another image than this run's.
    pub fn differs(&self, image: &str) -> bool {
        !self.asked.is_empty() && self.asked != image
    }

    pub fn was_in(&self, sandbox: u32) -> bool {
        self.sandbox == sandbox || self.sandbox == 0
    }

    pub fn progress(&self) -> Progress<'_> {
        match (&self.end, self.started_at) {
            (Some(end), _) => Progress::Ended(end),
            (None, Some(since)) => Progress::Running(since),
            (None, None) => Progress::Noted,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    pub exit_code: i32,
    pub reason: String,
    pub message: Option<String>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub id: String,
}

/// How long a container waits before its next run, and since when that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackOff {
    pub seconds: u32,
    pub since: Timestamp,
}

impl ContainerRecord {
    pub fn running(&self) -> bool {
        matches!(self.current.as_ref().map(Run::progress), Some(Progress::Running(_)))
    }

    pub fn end(&self) -> Option<&End> {
        self.current.as_ref().and_then(|run| run.end.as_ref())
    }

    pub fn restarts(&self) -> u32 {
        self.runs.saturating_sub(1)
    }
}

/// As releases of one family noted them, where there is one at most.
mod addresses {
    use super::*;

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Noted {
        One(Option<IpAddr>),
        Several(Vec<IpAddr>),
    }

    pub fn serialize<S: Serializer>(ips: &[IpAddr], serializer: S) -> Result<S::Ok, S::Error> {
        match ips {
            [] | [_] => Noted::One(ips.first().copied()),
            several => Noted::Several(several.to_vec()),
        }
        .serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
        Ok(match Noted::deserialize(deserializer)? {
            Noted::One(ip) => ip.into_iter().collect(),
            Noted::Several(ips) => ips,
        })
    }
}

/// The folder of records.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    pub fn open(dir: PathBuf) -> io::Result<Records> {
        disk::create_folder(&dir, 0o700)?;
        Ok(Records { dir })
    }

    fn path(&self, uid: &Uid) -> PathBuf {
        self.dir.join(format!("{uid}.json"))
    }

    pub fn write(&self, record: &Record) -> io::Result<()> {
        disk::write_durably(&self.path(&record.pod.uid), &serde_json::to_vec(record)?, 0o600)
    }

    pub fn read(&self, uid: &Uid) -> io::Result<Record> {
        read(&self.path(uid))
    }

    pub fn remove(&self, uid: &Uid) -> io::Result<()> {
        disk::remove_file(&self.path(uid))?;
        fs::File::open(&self.dir)?.sync_all()
    }

    /// Every record; one that cannot be read is set aside under another name, and reported.
    pub fn load(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for item in fs::read_dir(&self.dir)? {
            let path = item?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "unreadable pod record set aside");
                    fs::rename(&path, path.with_extension("unreadable"))?;
                }
            }
        }
        Ok(records)
    }
}

fn read(path: &Path) -> io::Result<Record> {
    let record: Record = serde_json::from_slice(&fs::read(path)?)?;
    match record.pod.uid.is_file_name() {
        true => Ok(record),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "its UID is no file name")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn record(uid: &str) -> Record {
        Record {
            pod: PodRef { namespace: "default".into(), name: "web".into(), uid: Uid::new(uid) },
            object: Arc::default(),
            ips: vec!["10.0.0.2".parse().unwrap()],
            users: None,
            started_at: "2024-01-01T00:00:00Z".parse().unwrap(),
            sandboxes: 1,
            boot: String::new(),
            host_resolv: None,
            containers: BTreeMap::new(),
            finished: None,
            stopping: None,
        }
    }

    #[test]
    fn records_come_back_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path().join("pods")).unwrap();
        records.write(&record("a")).unwrap();
        records.write(&record("b")).unwrap();
        records.remove(&Uid::new("a")).unwrap();
        let loaded = records.load().unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].pod.uid.as_str(), "b");
    }

    #[test]
    fn addresses_of_one_family_are_noted_as_they_always_were() {
        for (ips, noted) in [
            (&[][..], Value::Null),
            (&["10.0.0.2"], "10.0.0.2".into()),
            (&["10.0.0.2", "fd00::2"], serde_json::json!(["10.0.0.2", "fd00::2"])),
        ] {
            let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            let value = serde_json::to_value(Record { ips: ips.clone(), ..record("a") }).unwrap();
            assert_eq!(value["ip"], noted);
            assert_eq!(serde_json::from_value::<Record>(value).unwrap().ips, ips);
        }
    }

    #[test]
    fn an_unreadable_record_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path().to_owned()).unwrap();
        let astray = serde_json::to_string(&record("../x")).unwrap();
        for (name, text) in [("x", "{"), ("y", astray.as_str())] {
            fs::write(folder.path().join(name).with_extension("json"), text).unwrap();
            assert!(records.load().unwrap().is_empty());
            assert!(folder.path().join(name).with_extension("unreadable").exists());
        }
    }
}
