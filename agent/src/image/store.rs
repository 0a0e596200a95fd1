//! The image store: `blobs/sha256/<hex>` (manifests and configurations), `layers/<diff id>` (unpacked once, shared by
//! every image that has the layer), `l/<short>` (links short enough for many lower layers in one mount), `names.json`.
//!
//! A layer is unpacked beside its place and renamed into it after a sync, so a half-unpacked one is never seen.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::credentials::Credential;
use super::digest::{BadDigest, Digest};
use super::name::{ImageName, InvalidName};
use super::registry::{Descriptor, MAX_MANIFEST, Manifest, Registries, RegistryError, Source};
use super::unpack::{UnpackError, unpack_layer};
use crate::disk;
use crate::room::{NoRoom, Room};

#[derive(Debug)]
pub struct ImageStore {
    dir: PathBuf,
    registries: Registries,
    /// One pull per name at a time; the others wait and find it done.
    pulls: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    names: Mutex<BTreeMap<String, String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// An image whose layers are on disk.
#[derive(Clone, Debug)]
pub struct Image {
    /// The normalised name it was asked for by.
    pub name: String,
    /// `registry/repository@digest`, as `status.containerStatuses[].imageID`.
    pub id: String,
    pub config: ImageConfig,
    /// Unpacked layers, top first, as overlayfs wants them.
    pub layers: Vec<PathBuf>,
    /// How many bytes of layers the registry has for it.
    pub size: u64,
}

/// What an image says about running it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    pub user: String,
    pub env: Option<Vec<String>>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub working_dir: String,
    pub stop_signal: Option<String>,
    pub volumes: Option<BTreeMap<String, Value>>,
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    #[error("Container image {image:?} is not present with pull policy of Never")]
    NeverPull { image: String },
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("failed to unpack image {image:?}")]
    Unpack { image: String, source: UnpackError },
    #[error("image {image:?}: {what}")]
    Malformed { image: String, what: String },
    #[error("image {image:?}")]
    Digest { image: String, source: BadDigest },
    #[error("failed to pull and unpack image {image:?}")]
    NoRoom { image: String, source: NoRoom },
    #[error("image store at {path}")]
    Store { path: String, source: io::Error },
}

impl ImageStore {
    /// Opens the store of a folder, which is made where there is none. What was being unpacked when the last one ended
    /// is removed.
    ///
    /// # Errors
    /// [`ImageError::Store`] when the folder cannot be made, or `names.json` cannot be read.
    pub fn open(dir: &Path, registries: Registries) -> Result<ImageStore, ImageError> {
        let failed = |source| ImageError::Store { path: dir.display().to_string(), source };
        for folder in ["blobs/sha256", "layers", "l"] {
            fs::create_dir_all(dir.join(folder)).map_err(failed)?;
        }
        disk::remove_tree(&dir.join("tmp")).map_err(failed)?;
        fs::create_dir_all(dir.join("tmp")).map_err(failed)?;
        let names = match fs::read(dir.join("names.json")) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| failed(error.into()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(failed(error)),
        };
        Ok(ImageStore { dir: dir.to_owned(), registries, pulls: Mutex::default(), names: Mutex::new(names) })
    }

    /// The image as it lies on disk.
    ///
    /// # Errors
    /// [`ImageError::InvalidName`]; [`ImageError::Malformed`], [`ImageError::Digest`] or [`ImageError::Store`] when
    /// what lies there cannot be read. An image of which a part is missing is none.
    pub fn find(&self, name: &str) -> Result<Option<Image>, ImageError> {
        let name: ImageName = name.parse()?;
        let digest = self.names.lock().unwrap_or_else(PoisonError::into_inner).get(&name.to_string()).cloned();
        match digest {
            Some(digest) => self.load(&name, &read_digest(&name, &digest)?),
            None => Ok(None),
        }
    }

    /// Whether `ensure` will ask a registry.
    ///
    /// # Errors
    /// Those of [`ImageStore::find`]; [`ImageError::NeverPull`] when it is not here and must not be pulled.
    pub fn must_pull(&self, name: &str, policy: PullPolicy) -> Result<bool, ImageError> {
        match policy {
            PullPolicy::Always => name.parse::<ImageName>().map(|_| true).map_err(ImageError::from),
            PullPolicy::IfNotPresent => Ok(self.find(name)?.is_none()),
            PullPolicy::Never => match self.find(name)? {
                Some(_) => Ok(false),
                None => Err(ImageError::NeverPull { image: name.to_owned() }),
            },
        }
    }

    /// Gets an image as the policy says, with the credentials of whoever wants it.
    ///
    /// # Errors
    /// Those of [`ImageStore::must_pull`], [`ImageError::Registry`], [`ImageError::Unpack`] and [`ImageError::NoRoom`].
    /// Layers that were complete by then are kept, so another try goes on from there.
    pub async fn ensure(
        &self,
        name: &str,
        policy: PullPolicy,
        credentials: &[Credential],
    ) -> Result<Image, ImageError> {
        if !self.must_pull(name, policy)?
            && let Some(image) = self.find(name)?
        {
            return Ok(image);
        }
        let name: ImageName = name.parse()?;
        let lock = {
            let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            pulls.entry(name.to_string()).or_default().clone()
        };
        let pulled = {
            let _pulling = lock.lock().await;
            self.pull_unless_there(&name, policy, credentials).await
        };
        drop(lock);
        // Names are others' to choose: one that nobody pulls is forgotten.
        let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.retain(|_, lock| Arc::strong_count(lock) > 1);
        pulled
    }

    async fn pull_unless_there(
        &self,
        name: &ImageName,
        policy: PullPolicy,
        credentials: &[Credential],
    ) -> Result<Image, ImageError> {
        if policy == PullPolicy::IfNotPresent
            && let Some(image) = self.find(&name.to_string())?
        {
            return Ok(image);
        }
        self.pull(name, credentials).await
    }

    async fn pull(&self, name: &ImageName, credentials: &[Credential]) -> Result<Image, ImageError> {
        let (manifest, source) = self.registries.manifest(name, credentials).await?;
        let digest = manifest.digest.clone();
        if let Some(image) = self.load(name, &digest)? {
            self.remember(name, &digest)?;
            return Ok(image);
        }
        self.keep_blob(&manifest)?;
        let manifest = self.of_this_platform(name, manifest, &source).await?;
        let manifest: Value = self.parse(name, &manifest.bytes)?;
        let config = self.config_blob(name, &manifest, &source).await?;
        let diff_ids = diff_ids(name, &config)?;
        let layers = manifest["layers"].as_array().into_iter().flatten();
        let layers = layers.map(|layer| descriptor(name, layer)).collect::<Result<Vec<_>, _>>()?;
        if layers.len() != diff_ids.len() {
            return Err(malformed(name, "the configuration does not list the manifest's layers"));
        }
        let mut missing: Vec<_> =
            layers.iter().zip(&diff_ids).filter(|(_, diff_id)| !self.layer_dir(diff_id).exists()).collect();
        missing.dedup_by_key(|(_, diff_id)| *diff_id);
        let wanted = missing.iter().fold(0_u64, |sum, (layer, _)| sum.saturating_add(layer.size));
        self.room(name, wanted)?;
        for (layer, diff_id) in missing {
            self.fetch_layer(name, layer, diff_id, &source).await?;
        }
        self.remember(name, &digest)?;
        self.load(name, &digest)?.ok_or_else(|| malformed(name, "a layer vanished while it was pulled"))
    }

    /// An index names one manifest per platform.
    async fn of_this_platform(&self, name: &ImageName, top: Manifest, source: &Source) -> Result<Manifest, ImageError> {
        let value = self.parse(name, &top.bytes)?;
        let Some(digest) = platform_digest(&value) else { return Ok(top) };
        let digest = digest.ok_or_else(|| {
            malformed(name, &format!("no match for platform linux/{} in manifest: not found", architecture()))
        })?;
        let digest = read_digest(name, digest)?;
        let manifest = source.manifest_by_digest(&digest).await?;
        self.keep_blob(&manifest)?;
        Ok(manifest)
    }

    async fn config_blob(&self, name: &ImageName, manifest: &Value, source: &Source) -> Result<Value, ImageError> {
        let descriptor = descriptor(name, &manifest["config"])?;
        if descriptor.size > MAX_MANIFEST {
            let (image, what) = (name.to_string(), "the configuration");
            return Err(RegistryError::TooLarge { image, what, limit: MAX_MANIFEST }.into());
        }
        let mut bytes = Vec::new();
        source.blob(&descriptor, &mut bytes).await?;
        self.keep_blob(&Manifest { bytes: bytes.clone().into(), digest: descriptor.digest })?;
        self.parse(name, &bytes)
    }

    async fn fetch_layer(
        &self,
        name: &ImageName,
        descriptor: &Descriptor,
        diff_id: &Digest,
        source: &Source,
    ) -> Result<(), ImageError> {
        let work = self.dir.join("tmp").join(uuid::Uuid::new_v4().to_string());
        let unpacked = work.join("layer");
        fs::create_dir_all(&unpacked).map_err(|source| self.failed(source))?;
        let blob = work.join("blob");
        let file = tokio::fs::File::create(&blob).await.map_err(|source| self.failed(source))?;
        let fetched = source.blob(descriptor, tokio::io::BufWriter::with_capacity(1 << 18, file)).await;
        let outcome = match fetched {
            Ok(()) => self.unpack(name, &blob, &descriptor.media_type, diff_id, &unpacked).await,
            Err(error) => Err(error.into()),
        };
        let cleaned = disk::remove_tree_aside(work).await.map_err(|source| self.failed(source));
        outcome.and(cleaned)
    }

    async fn unpack(
        &self,
        name: &ImageName,
        blob: &Path,
        media_type: &str,
        diff_id: &Digest,
        unpacked: &Path,
    ) -> Result<(), ImageError> {
        let room = self.room(name, 0)?;
        let (blob, media_type) = (blob.to_owned(), media_type.to_owned());
        let (diff_id, unpacked, place) = (diff_id.clone(), unpacked.to_owned(), self.layer_dir(diff_id));
        let link = self.dir.join("l").join(short(&diff_id));
        let work = move || {
            unpack_layer(&blob, &media_type, &diff_id, &unpacked, room)?;
            settle(&unpacked, &place, &link).map_err(|source| UnpackError::Folder { source })
        };
        let unpacked = tokio::task::spawn_blocking(work).await;
        let unpacked = unpacked.map_err(|error| malformed(name, &format!("unpacking ended early: {error}")))?;
        unpacked.map_err(|source| ImageError::Unpack { image: name.to_string(), source })
    }

    /// What the disk has left, when that is more than `wanted`.
    fn room(&self, name: &ImageName, wanted: u64) -> Result<Room, ImageError> {
        let room = Room::at(&self.dir).map_err(|source| self.failed(source))?;
        let checked = room.check(&self.dir, wanted);
        checked.map_err(|source| ImageError::NoRoom { image: name.to_string(), source })?;
        Ok(room)
    }

    /// An image whose blobs and layers are all there.
    fn load(&self, name: &ImageName, digest: &Digest) -> Result<Option<Image>, ImageError> {
        let Some(mut manifest) = self.read_blob(name, digest)? else { return Ok(None) };
        if let Some(chosen) = platform_digest(&manifest) {
            let Some(chosen) = chosen else { return Ok(None) };
            let Some(inner) = self.read_blob(name, &read_digest(name, chosen)?)? else { return Ok(None) };
            manifest = inner;
        }
        let config_digest = descriptor(name, &manifest["config"])?.digest;
        let Some(config) = self.read_blob(name, &config_digest)? else { return Ok(None) };
        let diff_ids = diff_ids(name, &config)?;
        if !diff_ids.iter().all(|diff_id| self.layer_dir(diff_id).exists()) {
            return Ok(None);
        }
        let sizes = manifest["layers"].as_array().into_iter().flatten().filter_map(|layer| layer["size"].as_u64());
        let parsed = serde_json::from_value(config["config"].clone()).unwrap_or_default();
        Ok(Some(Image {
            name: name.to_string(),
            id: format!("{}@{digest}", name.path()),
            config: parsed,
            layers: diff_ids.iter().rev().map(|diff_id| self.dir.join("l").join(short(diff_id))).collect(),
            size: sizes.fold(0, u64::saturating_add),
        }))
    }

    fn remember(&self, name: &ImageName, digest: &Digest) -> Result<(), ImageError> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.get(&name.to_string()).is_some_and(|known| known == digest.as_str()) {
            return Ok(());
        }
        names.insert(name.to_string(), digest.to_string());
        let text = serde_json::to_vec_pretty(&*names).map_err(|error| self.failed(error.into()))?;
        disk::write_durably(&self.dir.join("names.json"), &text, 0o644).map_err(|source| self.failed(source))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.dir.join("layers").join(diff_id.hex())
    }

    fn keep_blob(&self, blob: &Manifest) -> Result<(), ImageError> {
        disk::write_durably(&self.blob_path(&blob.digest), &blob.bytes, 0o644).map_err(|source| self.failed(source))
    }

    /// A blob as JSON; `None` when it isn't here, or no longer what its name says.
    fn read_blob(&self, name: &ImageName, digest: &Digest) -> Result<Option<Value>, ImageError> {
        match fs::read(self.blob_path(digest)) {
            Ok(bytes) if Digest::of(&bytes) == *digest => self.parse(name, &bytes).map(Some),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn parse(&self, name: &ImageName, bytes: &[u8]) -> Result<Value, ImageError> {
        serde_json::from_slice(bytes).map_err(|error| malformed(name, &error.to_string()))
    }

    fn failed(&self, source: io::Error) -> ImageError {
        ImageError::Store { path: self.dir.display().to_string(), source }
    }
}

fn malformed(name: &ImageName, what: &str) -> ImageError {
    ImageError::Malformed { image: name.to_string(), what: what.to_owned() }
}

/// Syncs an unpacked layer and renames it into its place. Another pull may have been quicker: then this one is surplus.
fn settle(unpacked: &Path, place: &Path, link: &Path) -> io::Result<()> {
    sync_tree(unpacked)?;
    match fs::rename(unpacked, place) {
        Err(_) if place.exists() => disk::remove_tree(unpacked)?,
        other => other?,
    }
    disk::remove_file(link)?;
    std::os::unix::fs::symlink(Path::new("../layers").join(place.file_name().unwrap_or_default()), link)
}

fn sync_tree(path: &Path) -> io::Result<()> {
    #[expect(unsafe_code, reason = "syncfs has no safe form in std")]
    fn syncfs(file: &fs::File) -> io::Result<()> {
        use std::os::fd::AsRawFd as _;
        // SAFETY: a valid descriptor.
        if unsafe { libc::syncfs(file.as_raw_fd()) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
    syncfs(&fs::File::open(path)?)
}

fn short(diff_id: &Digest) -> &str {
    &diff_id.hex()[..20]
}

fn read_digest(name: &ImageName, text: &str) -> Result<Digest, ImageError> {
    text.parse().map_err(|source| ImageError::Digest { image: name.to_string(), source })
}

/// What each layer is, unpacked.
fn diff_ids(name: &ImageName, config: &Value) -> Result<Vec<Digest>, ImageError> {
    let list = config["rootfs"]["diff_ids"].as_array().into_iter().flatten();
    list.map(|diff_id| read_digest(name, diff_id.as_str().unwrap_or_default())).collect()
}

fn descriptor(name: &ImageName, value: &Value) -> Result<Descriptor, ImageError> {
    let digest = read_digest(name, value["digest"].as_str().unwrap_or_default())?;
    let media_type = value["mediaType"].as_str().unwrap_or_default().to_owned();
    let size = value["size"].as_u64().ok_or_else(|| malformed(name, &format!("{digest} has no size")))?;
    Ok(Descriptor { media_type, digest, size })
}

/// `None`: no index. `Some(None)`: an index without this platform.
fn platform_digest(manifest: &Value) -> Option<Option<&str>> {
    let entries = manifest["manifests"].as_array()?;
    let fits =
        |entry: &&Value| entry["platform"]["os"] == "linux" && entry["platform"]["architecture"] == architecture();
    Some(entries.iter().find(fits).and_then(|entry| entry["digest"].as_str()))
}

/// This machine in Go's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_index_yields_this_platform() {
        let entry =
            |arch: &str, digest: &str| json!({"digest": digest, "platform": {"os": "linux", "architecture": arch}});
        let index = json!({"manifests": [entry("s390x", "a"), entry(architecture(), "b")]});
        assert_eq!(platform_digest(&index), Some(Some("b")));
        assert_eq!(platform_digest(&json!({"manifests": [entry("s390x", "a")]})), Some(None));
        assert_eq!(platform_digest(&json!({"layers": []})), None);
    }

    #[test]
    fn no_image_names_a_file_that_is_no_digest() {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(folder.path(), Registries::default()).unwrap();
        let name: ImageName = "a".parse().unwrap();
        let layer = folder.path().join("layers").join(Digest::of(b"layer").hex());
        fs::create_dir(layer).unwrap();
        let keep = |value: Value| {
            let bytes = value.to_string().into_bytes();
            let digest = Digest::of(&bytes);
            store.keep_blob(&Manifest { bytes: bytes.into(), digest: digest.clone() }).unwrap();
            digest
        };
        let image = |diff_id: &str| {
            let config = keep(json!({"rootfs": {"diff_ids": [diff_id]}}));
            let manifest = json!({"config": {"digest": config.to_string(), "size": 1}, "layers": []});
            store.load(&name, &keep(manifest))
        };
        assert!(image(Digest::of(b"layer").as_str()).unwrap().is_some());
        for bad in ["sha256:/", "/", "sha256:..", "", "sha256:../blobs"] {
            assert!(matches!(image(bad), Err(ImageError::Digest { .. })), "{bad}");
        }
        for bad in [json!({"config": {"digest": "sha256:/", "size": 1}}), json!({"config": {}}), json!({})] {
            assert!(matches!(store.load(&name, &keep(bad)), Err(ImageError::Digest { .. })));
        }
        let index = |digest: &str| json!({"manifests": [{"digest": digest, "platform": {"os": "linux", "architecture": architecture()}}]});
        assert!(matches!(store.load(&name, &keep(index("sha256:/"))), Err(ImageError::Digest { .. })));
    }

    #[tokio::test]
    async fn names_that_nobody_pulls_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let text = "registries:\n  none.example:\n    endpoints: ['http://127.0.0.1:1']\n";
        let store = ImageStore::open(folder.path(), serde_yaml::from_str(text).unwrap()).unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        for name in ["none.example/a", "none.example/b"] {
            assert!(store.ensure(name, PullPolicy::Always, &[]).await.is_err());
        }
        assert!(store.pulls.lock().unwrap().is_empty());
    }

    #[test]
    fn policies_without_a_registry() {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(folder.path(), Registries::default()).unwrap();
        assert!(matches!(store.must_pull("a", PullPolicy::Never), Err(ImageError::NeverPull { .. })));
        assert!(store.must_pull("a", PullPolicy::IfNotPresent).unwrap());
        assert!(matches!(store.must_pull("A", PullPolicy::Always), Err(ImageError::InvalidName(_))));
    }
}
