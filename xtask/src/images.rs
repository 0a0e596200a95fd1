//! Test images made from the Debian packages of this machine, and a real registry to pull them from.
//!
//! Nothing is downloaded: busybox-static gives every image its shell, nginx-light (with the shared libraries that
//! `ldd` names) the servers. Layers are tar archives with fixed times, owners and order, so the same packages give
//! the same digests and a second run finds its work done. `skopeo` does the pushing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// How long a registry may take to listen.
const REGISTRY_START: Duration = Duration::from_secs(10);

/// One file of a layer, by its absolute path in the image.
enum Entry {
    Dir(u32),
    File(Vec<u8>, u32),
    Link(String),
}

/// The content of one layer, in path order.
type Tree = BTreeMap<String, Entry>;

/// An image to build: repository and tag, layers bottom up, and the `config` part of its OCI configuration.
struct Image {
    name: &'static str,
    tag: &'static str,
    layers: Vec<Rc<Layer>>,
    config: Value,
}

/// A finished layer; images share those they have in common.
struct Layer {
    diff_id: String,
    gzip: Vec<u8>,
}

impl Layer {
    fn new(tree: &Tree) -> Result<Rc<Layer>> {
        let tar = layer_tar(tree)?;
        Ok(Rc::new(Layer { diff_id: digest(&tar), gzip: gzip(&tar)? }))
    }
}

/// Builds every test image as OCI layouts below `out` and pushes what the registry at `registry` (`host:port`, plain
/// HTTP) doesn't already hold. `netns` names the network namespace (under `/run/netns`) the registry is reached from.
/// Returns the references pushed or found there, as `library/nginx:1.10`.
///
/// # Errors
/// As for [`build`] and [`push`].
pub fn images(registry: &str, netns: Option<&str>, out: &Path) -> Result<Vec<String>> {
    let layouts = build(out)?;
    push(registry, netns, &layouts)
}

/// An OCI layout on disk: its reference in a registry, its folder, its manifest's digest.
#[derive(Debug)]
pub struct Layout {
    pub reference: String,
    pub dir: PathBuf,
    pub manifest_digest: String,
}

/// Builds the layouts only.
///
/// # Errors
/// Where this machine lacks busybox or nginx, with the command that installs them, or `out` cannot be written.
pub fn build(out: &Path) -> Result<Vec<Layout>> {
    catalogue()?.into_iter().map(|image| write_layout(&image, out)).collect()
}

/// Pushes the layouts whose manifest the registry doesn't hold yet.
///
/// # Errors
/// Where skopeo is missing or the registry refuses a layout, in skopeo's words. Those before it are there, and a repeat
/// skips them.
pub fn push(registry: &str, netns: Option<&str>, layouts: &[Layout]) -> Result<Vec<String>> {
    for layout in layouts {
        let target = format!("docker://{registry}/{}", layout.reference);
        if remote_digest(&target, netns)?.as_deref() == Some(layout.manifest_digest.as_str()) {
            continue;
        }
        let source = format!("oci:{}", layout.dir.display());
        let output = in_netns(netns, "skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--preserve-digests", "--dest-tls-verify=false"])
            .args([&source, &target])
            .output()
            .context("run skopeo (apt-get install skopeo)")?;
        ensure!(output.status.success(), "push {target}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(layouts.iter().map(|layout| layout.reference.clone()).collect())
}

/// The digest of the manifest behind a reference; `None` when there is none or it cannot be read.
fn remote_digest(target: &str, netns: Option<&str>) -> Result<Option<String>> {
    let output = in_netns(netns, "skopeo")
        .args(["inspect", "--raw", "--tls-verify=false", target])
        .stderr(Stdio::null())
        .output()
        .context("run skopeo (apt-get install skopeo)")?;
    Ok(output.status.success().then(|| digest(&output.stdout)))
}

/// A registry that lives as long as this value.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    pub listen: String,
}

impl Registry {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("registry at {}: {error}", self.listen);
        }
    }
}

/// Starts Debian's `docker-registry` on `listen` (`ip:port`), keeping its content below `dir`, in the network
/// namespace named `netns` if one is given. Returns once it listens.
///
/// # Errors
/// Where `dir` cannot be written, `docker-registry` is missing, ends (with its log) or does not listen within ten
/// seconds. None runs then.
pub fn start_registry(listen: &str, netns: Option<&str>, dir: &Path) -> Result<Registry> {
    fs::create_dir_all(dir.join("data")).with_context(|| format!("create {}", dir.display()))?;
    let port: u16 =
        listen.rsplit(':').next().and_then(|port| port.parse().ok()).context("listen address has no port")?;
    let config = dir.join("config.yml");
    fs::write(&config, registry_config(listen, &dir.join("data")))?;
    let log = dir.join("registry.log");
    let child = in_netns(netns, "docker-registry")
        .arg("serve")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(fs::File::create(&log)?)
        .stderr(fs::OpenOptions::new().append(true).open(&log)?)
        .spawn()
        .context("run docker-registry (apt-get install docker-registry)")?;
    // Ends it where it comes to nothing.
    let mut registry = Registry { child, listen: listen.to_owned() };
    let deadline = Instant::now() + REGISTRY_START;
    while !listens(registry.pid(), port) {
        if let Some(status) = registry.child.try_wait()? {
            bail!("docker-registry on {listen} ended with {status}: {}", fs::read_to_string(&log)?.trim());
        }
        if Instant::now() > deadline {
            bail!("docker-registry does not listen on {listen} after {REGISTRY_START:?}; see {}", log.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(registry)
}

fn registry_config(listen: &str, data: &Path) -> String {
    let config = json!({
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": true}},
        "storage": {"filesystem": {"rootdirectory": data}},
        "http": {"addr": listen},
    });
    config.to_string()
}

/// Whether a socket listens on `port` in the network namespace of process `pid` (works across namespaces, where a
/// trial connection would not).
fn listens(pid: u32, port: u16) -> bool {
    let wanted = format!(":{port:04X}");
    ["tcp", "tcp6"].iter().any(|table| {
        let rows = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        rows.lines().skip(1).any(|row| {
            let mut fields = row.split_whitespace().skip(1);
            let local = fields.next().unwrap_or_default();
            local.ends_with(&wanted) && fields.nth(1) == Some("0A")
        })
    })
}

fn in_netns(netns: Option<&str>, program: &str) -> Command {
    let Some(netns) = netns else { return Command::new(program) };
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{netns}")).arg("--").arg(program);
    command
}

// ---- what the images hold ----

fn catalogue() -> Result<Vec<Image>> {
    let (busybox, nginx) = (Layer::new(&busybox()?)?, Layer::new(&nginx()?)?);
    let with_site = |site: Tree| Ok::<_, anyhow::Error>(vec![busybox.clone(), nginx.clone(), Layer::new(&site)?]);
    let mut images = vec![Image {
        name: "library/busybox",
        tag: "latest",
        layers: vec![busybox.clone()],
        config: json!({"Env": [PATH_ENV], "Cmd": ["sh"]}),
    }];
    for tag in ["latest", "1.10", "1.11", "1.14.2", "1.16.1"] {
        images.push(Image { name: "library/nginx", tag, layers: with_site(page(tag))?, config: nginx_config() });
    }
    images.push(Image {
        name: "library/hostname-server",
        tag: "1.0",
        layers: with_site(hostname_server())?,
        config: nginx_config(),
    });
    images.push(Image {
        name: "e2e-test-images/agnhost",
        tag: "2.56",
        layers: with_site(agnhost())?,
        config: json!({"Env": [PATH_ENV], "Entrypoint": ["/agnhost"], "Cmd": ["pause"]}),
    });
    Ok(images)
}

const PATH_ENV: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn nginx_config() -> Value {
    json!({
        "Env": [PATH_ENV],
        "Cmd": ["nginx", "-g", "daemon off;"],
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGQUIT",
    })
}

/// A shell with its tools, the account files and the folders every program expects.
fn busybox() -> Result<Tree> {
    let program = first_existing(&["/bin/busybox", "/usr/bin/busybox"], "apt-get install busybox-static")?;
    let mut tree = Tree::new();
    for (dir, mode) in
        [("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("home", 0o755), ("proc", 0o755), ("root", 0o700)]
    {
        tree.insert(dir.into(), Entry::Dir(mode));
    }
    for (dir, mode) in
        [("run", 0o755), ("sbin", 0o755), ("sys", 0o755), ("tmp", 0o1777), ("usr", 0o755), ("usr/bin", 0o755)]
    {
        tree.insert(dir.into(), Entry::Dir(mode));
    }
    for (dir, mode) in [("usr/sbin", 0o755), ("var", 0o755), ("var/log", 0o755), ("var/tmp", 0o1777)] {
        tree.insert(dir.into(), Entry::Dir(mode));
    }
    tree.insert("etc/passwd".into(), text("root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"));
    tree.insert("etc/group".into(), text("root:x:0:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n"));
    tree.insert("etc/nsswitch.conf".into(), text("passwd: files\ngroup: files\nhosts: files dns\n"));
    tree.insert("bin/busybox".into(), Entry::File(fs::read(&program)?, 0o755));
    let applets = Command::new(&program).arg("--list").output().context("run busybox --list")?;
    for applet in String::from_utf8(applets.stdout)?.lines().filter(|applet| *applet != "busybox") {
        tree.insert(format!("bin/{applet}"), Entry::Link("busybox".into()));
    }
    Ok(tree)
}

/// nginx with the shared libraries and the loader it names.
fn nginx() -> Result<Tree> {
    let program = first_existing(&["/usr/sbin/nginx"], "apt-get install nginx-light")?;
    let mut tree = Tree::new();
    add_host_file(&mut tree, &program, 0o755)?;
    for library in shared_objects(&program)? {
        add_host_file(&mut tree, &library, 0o755)?;
    }
    add_host_file(&mut tree, Path::new("/etc/nginx/mime.types"), 0o644)?;
    tree.insert("etc/nginx/nginx.conf".into(), text(NGINX_CONF));
    for dir in ["etc/nginx/conf.d", "usr/share/nginx/html", "var/lib/nginx", "var/log/nginx"] {
        add_parents(&mut tree, &format!("{dir}/x"));
    }
    tree.insert("var/log/nginx/access.log".into(), Entry::Link("/dev/stdout".into()));
    tree.insert("var/log/nginx/error.log".into(), Entry::Link("/dev/stderr".into()));
    Ok(tree)
}

const NGINX_CONF: &str = "\
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /var/log/nginx/error.log notice;
events { worker_connections 1024; }
http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /var/log/nginx/access.log;
    sendfile on;
    keepalive_timeout 65;
    include /etc/nginx/conf.d/*.conf;
}
";

fn page(tag: &str) -> Tree {
    let page = format!(
        "<!DOCTYPE html>\n<html>\n<head><title>Welcome to nginx!</title></head>\n<body>\n<h1>Welcome to nginx!</h1>\n<p>Version: nginx {tag}</p>\n</body>\n</html>\n"
    );
    let server = "server {\n    listen 80;\n    location / { root /usr/share/nginx/html; index index.html; }\n}\n";
    site(server, &[("usr/share/nginx/html/index.html", &page)])
}

fn hostname_server() -> Tree {
    site("server {\n    listen 80;\n    location / { default_type text/plain; return 200 \"$hostname\\n\"; }\n}\n", &[])
}

/// What the examples use of Kubernetes' own test image, under its name.
fn agnhost() -> Tree {
    let program = "#!/bin/sh\ncase $1 in\nserve-hostname) exec nginx -g 'daemon off;' ;;\npause) exec tail -f /dev/null ;;\nesac\necho \"this stand-in has no command $1\" >&2\nexit 1\n";
    let mut tree = hostname_server();
    tree.insert("agnhost".into(), Entry::File(program.as_bytes().to_vec(), 0o755));
    tree
}

fn site(server: &str, files: &[(&str, &str)]) -> Tree {
    let mut tree = Tree::new();
    for (path, content) in files.iter().chain(&[("etc/nginx/conf.d/default.conf", server)]) {
        add_parents(&mut tree, path);
        tree.insert((*path).into(), text(content));
    }
    tree
}

fn text(content: &str) -> Entry {
    Entry::File(content.as_bytes().to_vec(), 0o644)
}

fn first_existing(paths: &[&str], cure: &str) -> Result<PathBuf> {
    let found = paths.iter().map(PathBuf::from).find(|path| path.exists());
    found.with_context(|| format!("{} not found: {cure}", paths[0]))
}

/// Puts a file of this machine at the same path in the image, following links.
fn add_host_file(tree: &mut Tree, path: &Path, mode: u32) -> Result<()> {
    let content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let name = path.to_str().context("path is not text")?.trim_start_matches('/').to_owned();
    add_parents(tree, &name);
    tree.insert(name, Entry::File(content, mode));
    Ok(())
}

fn add_parents(tree: &mut Tree, path: &str) {
    for (end, _) in path.match_indices('/') {
        tree.entry(path[..end].to_owned()).or_insert(Entry::Dir(0o755));
    }
}

/// The libraries and the loader that `ldd` lists, by the path the loader looks them up.
fn shared_objects(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("run ldd")?;
    ensure!(output.status.success(), "ldd {}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().filter_map(ldd_path).collect())
}

/// `libz.so.1 => /lib/libz.so.1 (0x…)` or `/lib64/ld-linux.so.2 (0x…)`; the kernel's own vdso has no path.
fn ldd_path(line: &str) -> Option<PathBuf> {
    line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from)
}

// ---- OCI layout ----

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

fn write_layout(image: &Image, out: &Path) -> Result<Layout> {
    let reference = format!("{}:{}", image.name, image.tag);
    let dir = out.join(reference.replace(['/', ':'], "_"));
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for layer in &image.layers {
        diff_ids.push(layer.diff_id.clone());
        layers.push(write_blob(&blobs, LAYER_TYPE, &layer.gzip)?);
    }
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": image.config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": layers.iter().map(|_| json!({"created_by": "xtask images"})).collect::<Vec<_>>(),
    });
    let config = write_blob(&blobs, CONFIG_TYPE, config.to_string().as_bytes())?;
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers});
    let manifest = write_blob(&blobs, MANIFEST_TYPE, manifest.to_string().as_bytes())?;
    let manifest_digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
    Ok(Layout { reference, dir, manifest_digest })
}

fn write_blob(blobs: &Path, media_type: &str, content: &[u8]) -> Result<Value> {
    let digest = digest(content);
    let path = blobs.join(digest.trim_start_matches("sha256:"));
    if !path.exists() {
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(json!({"mediaType": media_type, "digest": digest, "size": content.len()}))
}

fn layer_tar(tree: &Tree) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, entry) in tree {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        match entry {
            Entry::Dir(mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                header.set_size(0);
                tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            Entry::File(content, mode) => {
                header.set_mode(*mode);
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, path, content.as_slice())?;
            }
            Entry::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                tar.append_link(&mut header, path, target)?;
            }
        }
    }
    Ok(tar.into_inner()?)
}

fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content)?;
    Ok(encoder.finish()?)
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(content))
}

/// The machine's architecture in OCI's (Go's) words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_lines() {
        assert_eq!(ldd_path("\tlibz.so.1 => /lib/libz.so.1 (0x00007f)"), Some("/lib/libz.so.1".into()));
        assert_eq!(ldd_path("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)"), Some("/lib64/ld-linux-x86-64.so.2".into()));
        assert_eq!(ldd_path("\tlinux-vdso.so.1 (0x00007f)"), None);
    }

    #[test]
    fn same_content_same_digest() {
        let tree = || page("1.10");
        assert_eq!(digest(&layer_tar(&tree()).unwrap()), digest(&layer_tar(&tree()).unwrap()));
        assert_ne!(digest(&layer_tar(&page("1.10")).unwrap()), digest(&layer_tar(&page("1.11")).unwrap()));
    }

    /// Whoever has the public registries gets these images from there, and a test cluster's registry has the same names.
    #[test]
    fn images_that_users_read_of_are_listed_with_their_source_and_served() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let read = |path: PathBuf| fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        let list = read(root.join("examples/images.tsv"));
        let listed: BTreeMap<_, _> =
            list.lines().filter(|line| !line.starts_with('#')).map(|line| line.split_once('\t').unwrap()).collect();
        assert!(listed.values().all(|source| !source.is_empty()));
        let examples = fs::read_dir(root.join("examples")).unwrap().map(|entry| entry.unwrap().path());
        let manifests = examples.filter(|path| path.extension().is_some_and(|end| end == "yaml"));
        for path in manifests.chain([root.join("README.md")]) {
            for image in named_images(&read(path.clone())) {
                assert!(listed.contains_key(&*image), "{} names {image}, which is not in images.tsv", path.display());
            }
        }
        let served: Vec<String> =
            catalogue().unwrap().iter().map(|image| format!("{}:{}", image.name, image.tag)).collect();
        for image in listed.keys() {
            let path = match image.split_once('/') {
                Some((host, path)) if host.contains('.') => path.to_owned(),
                Some(_) => (*image).to_owned(),
                None => format!("library/{image}"),
            };
            assert!(served.contains(&path), "the test registry lacks {image}");
        }
    }

    /// Of manifests (`image: x`) and of commands (`--image=x`, `set image … c=x:tag`).
    fn named_images(text: &str) -> Vec<String> {
        let mut found = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split([' ', '`', '"']).collect();
            let after = |mark: &str| words.iter().position(|word| *word == mark).and_then(|at| words.get(at + 1));
            found.extend(after("image:").map(|word| (*word).to_owned()));
            found.extend(words.iter().filter_map(|word| word.strip_prefix("--image=")).map(str::to_owned));
            if line.contains("set image") {
                found.extend(words.iter().filter_map(|word| word.split_once('=')).map(|(_, image)| image.to_owned()));
            }
        }
        found
    }

    #[test]
    fn parents_come_before_children() {
        let tree = page("latest");
        let names: Vec<_> = tree.keys().map(String::as_str).collect();
        assert_eq!(&names[..4], ["etc", "etc/nginx", "etc/nginx/conf.d", "etc/nginx/conf.d/default.conf"]);
    }

    #[test]
    fn pushed_once_and_found_the_second_time() {
        let dir = tempfile::tempdir().unwrap();
        let listen = format!("127.0.0.1:{}", free_port());
        let _registry = start_registry(&listen, None, &dir.path().join("registry")).unwrap();
        let pushed = images(&listen, None, &dir.path().join("layouts")).unwrap();
        assert!(pushed.contains(&"library/nginx:1.10".to_owned()), "{pushed:?}");
        let layouts = build(&dir.path().join("layouts")).unwrap();
        for layout in &layouts {
            let found = remote_digest(&format!("docker://{listen}/{}", layout.reference), None).unwrap();
            assert_eq!(found.as_deref(), Some(layout.manifest_digest.as_str()), "{}", layout.reference);
        }
    }

    fn free_port() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }
}
