//! The command line: raw arguments (and the YAML file that stands for them) become validated settings.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use agent::config::DEFAULT_POD_MAX_PIDS;
use agent::image::Registries;
use anyhow::{Context, Result, bail, ensure};
use api::sysctl::Allowed;
use apiserver::Anonymous;
use apiserver::admission;
use apiserver::engine::ServiceNetwork;
use apiserver::{EtcdSettings, EtcdTls};
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use network::PortRange;
use proxy_userspace::ExternalIps;
use serde_yaml::Value;

use crate::control_plane;
use crate::controllers::Selection;
use crate::pod_ranges::PodRanges;
use crate::{doctor, names, reset, store_command, up};

#[derive(Parser)]
#[command(
    name = "amphipod",
    version,
    about = "A Kubernetes-compatible cluster in one binary",
    args_override_self = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the API server, controllers and scheduler
    #[command(args_override_self = true)]
    Server(ServerArguments),
    /// Run server and agent in one process: a cluster on this machine
    #[command(args_override_self = true)]
    Up(UpArguments),
    /// Say what this machine lacks for `up` with the same flags, with the remedies
    #[command(args_override_self = true)]
    Doctor(UpArguments),
    /// Ask the node's DNS
    #[command(subcommand)]
    Dns(names::Command),
    /// Keep the sockets of DNS while the server is away; `up` starts this itself
    #[command(name = names::KEEPER, hide = true)]
    KeepDnsSockets,
    /// Check, compact, back up or restore the store
    Store(store_command::Arguments),
    /// Remove everything that `up` ever made, data included
    Reset {
        /// The data folder that `up` was given
        #[arg(long, default_value = "/var/lib/amphipod")]
        data_dir: PathBuf,
    },
}

#[derive(Args)]
struct ServerArguments {
    /// Where the store and admin.kubeconfig live
    #[arg(long, default_value = "/var/lib/amphipod")]
    data_dir: PathBuf,
    /// Keep the cluster's state in an etcd (3.4 or newer) that servers share: etcd://HOST:PORT[,HOST:PORT…]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Certificate of the authority that etcd's certificates are from; with it, etcd is reached over TLS
    #[arg(long, value_name = "FILE")]
    store_ca: Option<PathBuf>,
    /// Client certificate for etcd
    #[arg(long, value_name = "FILE", requires_all = ["store_key", "store_ca"])]
    store_cert: Option<PathBuf>,
    /// Key of --store-cert
    #[arg(long, value_name = "FILE", requires = "store_cert")]
    store_key: Option<PathBuf>,
    /// Address and port to serve on
    #[arg(long, default_value = "0.0.0.0:6443")]
    listen: SocketAddr,
    /// Address at which others reach this server [default: the address of --listen, or this machine's]
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// Addresses for Services
    #[arg(long, default_value = "10.96.0.0/12")]
    service_cidr: String,
    /// Addresses for pods
    #[arg(long, default_value = "10.244.0.0/16", visible_alias = "cluster-cidr")]
    pod_cidr: String,
    /// Prefix length of each node's part of them [default: 24, or theirs if that is longer]
    #[arg(long, value_name = "BITS")]
    node_cidr_mask_size: Option<u8>,
    /// Domain of cluster names
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// Controllers to run: names, '*' for all, -NAME for all but one
    #[arg(long, value_delimiter = ',', default_value = "*", allow_hyphen_values = true)]
    controllers: Vec<String>,
    /// Let Services take the addresses in spec.externalIPs: whoever may write a Service then catches what others send there
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", action = ArgAction::Set)]
    allow_external_ips: bool,
    /// What requests without credentials get: what roles grant, only whether the server lives, or nothing
    #[arg(long, value_enum, default_value = "true")]
    anonymous_auth: AnonymousAuth,
    /// Users whose pods no pod security level holds back
    #[arg(long, value_delimiter = ',')]
    pod_security_exempt_users: Vec<String>,
    /// Namespaces in which pod security levels hold nothing back
    #[arg(long, value_delimiter = ',')]
    pod_security_exempt_namespaces: Vec<String>,
    /// Runtime classes whose pods no pod security level holds back
    #[arg(long, value_delimiter = ',')]
    pod_security_exempt_runtime_classes: Vec<String>,
    /// YAML file with these settings (`data-dir: /somewhere`); the command line wins
    #[arg(long)]
    config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AnonymousAuth {
    True,
    Probes,
    False,
}

impl From<AnonymousAuth> for Anonymous {
    fn from(flag: AnonymousAuth) -> Self {
        match flag {
            AnonymousAuth::True => Self::Allowed,
            AnonymousAuth::Probes => Self::ProbesOnly,
            AnonymousAuth::False => Self::Refused,
        }
    }
}

#[derive(Args)]
struct UpArguments {
    #[command(flatten)]
    server: ServerArguments,
    /// Sockets, namespaces and other run-time state; keep it short
    #[arg(long, default_value = "/run/amphipod")]
    run_dir: PathBuf,
    /// Name of this node [default: the machine's host name]
    #[arg(long)]
    node_name: Option<String>,
    /// IPv4 address of this node [default: the one that leads to the default route]
    #[arg(long)]
    node_ip: Option<Ipv4Addr>,
    /// The cgroup2 folder where socket hooks attach [default: the cgroup2 mount]
    #[arg(long)]
    cgroup_root: Option<PathBuf>,
    /// Parent of the pods' cgroups, below each hierarchy's mount
    #[arg(long, default_value = "amphipod")]
    pod_cgroup: String,
    /// Folder of pinned BPF objects; a BPF file system is mounted there if none is [default: bpf in the run folder]
    #[arg(long)]
    bpf_root: Option<PathBuf>,
    /// YAML file that says where registries are and how to reach them
    #[arg(long)]
    registries: Option<PathBuf>,
    /// How many processes a pod may have; -1 for as many as the machine
    #[arg(long, default_value_t = DEFAULT_POD_MAX_PIDS as i64, allow_negative_numbers = true)]
    pod_max_pids: i64,
    /// Kernel settings that pods may choose beside the safe ones; a trailing * stands for any end
    #[arg(long, value_delimiter = ',')]
    allowed_unsafe_sysctls: Vec<String>,
    /// Name servers for names outside the cluster: ADDRESS[:PORT] [default: those of /etc/resolv.conf]
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS")]
    dns_upstream: Vec<String>,
    /// Name servers of one zone and all names below it; may be given again for others
    #[arg(long, value_delimiter = ',', value_name = "ZONE=ADDRESS[,ADDRESS…]")]
    dns_stub: Vec<String>,
    /// Write every question to DNS into the log
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", action = ArgAction::Set)]
    dns_log: bool,
    /// Answer names that pods find along their search lists in one go; wrong for programs that ask for whole names of services
    /// that are not there
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", action = ArgAction::Set)]
    dns_autopath: bool,
}

/// Parses the command line and runs what it says.
///
/// # Errors
/// In words for whoever typed it: a setting that cannot be understood, or what the command itself could not do. clap
/// answers wrong flags itself, and exits.
pub fn run() -> Result<()> {
    let arguments = with_config(std::env::args_os().collect())?;
    start_log();
    match Arguments::parse_from(arguments).command {
        Command::Server(arguments) => {
            let control = arguments.settings()?;
            daemon()?.block_on(control_plane::run(control))
        }
        Command::Up(arguments) => {
            let (control, node) = arguments.settings()?;
            daemon()?.block_on(up::run(control, node))
        }
        Command::Doctor(arguments) => {
            let (control, node) = arguments.settings()?;
            doctor::run(&control, &node)
        }
        Command::Dns(command) => names::run(&command),
        Command::KeepDnsSockets => names::keep_sockets(),
        Command::Store(arguments) => store_command::run(&arguments),
        Command::Reset { data_dir } => runtime()?.block_on(reset::run(&data_dir)),
    }
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}

/// The runtime of a process that stays.
fn daemon() -> Result<tokio::runtime::Runtime> {
    crate::inherited::close().context("cannot close what was left open")?;
    runtime()
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

impl ServerArguments {
    fn settings(&self) -> Result<control_plane::Settings> {
        match self.advertise_address {
            Some(address) => self.settings_at(address),
            None if self.listen.ip().is_unspecified() => self.settings_at(local_address()?),
            None => self.settings_at(self.listen.ip()),
        }
    }

    fn settings_at(&self, advertise: IpAddr) -> Result<control_plane::Settings> {
        Ok(control_plane::Settings {
            data_dir: self.data_dir.clone(),
            etcd: self.etcd()?,
            listen: self.listen,
            advertise,
            services: service_network(&self.service_cidr)?,
            pods: vec![
                PodRanges::new(up::parse_cidr("--pod-cidr", &self.pod_cidr)?.into(), self.node_cidr_mask_size)
                    .context("--node-cidr-mask-size")?,
            ],
            domain: cluster_domain(&self.cluster_domain)?,
            controllers: Selection::parse(&self.controllers)?,
            names: Vec::new(),
            admission: self.admission(),
            anonymous: self.anonymous_auth.into(),
        })
    }
}

impl ServerArguments {
    /// Where `--store` leads.
    fn etcd(&self) -> Result<Option<EtcdSettings>> {
        let Some(url) = &self.store else {
            ensure!(self.store_ca.is_none(), "--store-ca is of use with --store only");
            return Ok(None);
        };
        let list = url.strip_prefix("etcd://").unwrap_or_default();
        let endpoints: Vec<String> = list.split(',').map(str::to_owned).collect();
        let is_address = |text: &String| {
            text.rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
        };
        ensure!(endpoints.iter().all(is_address), "--store {url}: etcd://HOST:PORT[,HOST:PORT…] is wanted");
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let identity = match (&self.store_cert, &self.store_key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        let tls = match &self.store_ca {
            Some(authority) => Some(EtcdTls { authority: read(authority)?, identity }),
            None => None,
        };
        Ok(Some(EtcdSettings { endpoints, tls }))
    }

    fn admission(&self) -> admission::Settings {
        admission::Settings {
            pod_security: admission::Exemptions {
                users: self.pod_security_exempt_users.clone(),
                namespaces: self.pod_security_exempt_namespaces.clone(),
                runtime_classes: self.pod_security_exempt_runtime_classes.clone(),
            },
            members: Vec::new(),
            external_ips: match self.allow_external_ips {
                true => admission::ExternalIps::Allowed,
                false => admission::ExternalIps::Inactive,
            },
        }
    }
}

impl UpArguments {
    fn settings(&self) -> Result<(control_plane::Settings, node::Settings)> {
        let ip = match (self.node_ip, self.server.listen.ip()) {
            (Some(ip), _) => ip,
            (None, IpAddr::V4(ip)) if !ip.is_unspecified() && !ip.is_loopback() => ip,
            _ => match local_address()? {
                IpAddr::V4(ip) => ip,
                IpAddr::V6(ip) => bail!("this machine is reached at {ip}: give an IPv4 address with --node-ip"),
            },
        };
        let name = match &self.node_name {
            Some(name) => name.clone(),
            None => host_name()?,
        };
        if !is_subdomain(&name) {
            bail!("node name {name:?}: lower case letters, digits, '-' and '.' are wanted; give one with --node-name");
        }
        let mut control = self.server.settings_at(self.server.advertise_address.unwrap_or(ip.into()))?;
        control.names.push(name.clone());
        let services = &control.services;
        let service_range = up::parse_cidr("--service-cidr", &self.server.service_cidr)?;
        let IpAddr::V4(cluster_dns) = services.dns() else { bail!("--service-cidr: an IPv4 prefix is wanted") };
        let settings = node::Settings {
            data_dir: self.server.data_dir.clone(),
            run_dir: self.run_dir.clone(),
            name,
            ip,
            pod_cidr: up::parse_cidr("--pod-cidr", &self.server.pod_cidr)?,
            service_cidr: service_range,
            node_ports: PortRange { first: *services.node_ports.start(), last: *services.node_ports.end() },
            cluster_dns,
            domain: control.domain.clone(),
            cgroup_root: self.cgroup_root.clone().map_or_else(cgroup2_mount, Ok)?,
            pod_cgroup: pod_cgroup(&self.pod_cgroup)?,
            bpf_root: self.bpf_root.clone().unwrap_or_else(|| self.run_dir.join("bpf")),
            registries: self.registries()?,
            external_ips: match self.server.allow_external_ips {
                true => ExternalIps::Served,
                false => ExternalIps::Ignored,
            },
            pod_max_pids: pod_max_pids(self.pod_max_pids)?,
            allowed_unsafe_sysctls: self.allowed_unsafe_sysctls()?,
            names: names::settings(&self.dns_upstream, &self.dns_stub, self.dns_log.into(), self.dns_autopath.into())?,
        };
        Ok((control, settings))
    }

    /// Read again by the agent: here a mistake is told before anything begins.
    fn registries(&self) -> Result<Option<PathBuf>> {
        if let Some(path) = &self.registries {
            Registries::load(path).with_context(|| format!("--registries {}", path.display()))?;
        }
        Ok(self.registries.clone())
    }

    fn allowed_unsafe_sysctls(&self) -> Result<Vec<String>> {
        Allowed::parse(&self.allowed_unsafe_sysctls).context("--allowed-unsafe-sysctls")?;
        Ok(self.allowed_unsafe_sysctls.clone())
    }
}

fn pod_max_pids(number: i64) -> Result<Option<u64>> {
    match number {
        -1 => Ok(None),
        1.. => Ok(Some(number.unsigned_abs())),
        _ => bail!(
            "--pod-max-pids {number}: a number of processes from 1 on is wanted, or -1 for as many as the machine"
        ),
    }
}

fn cluster_domain(text: &str) -> Result<String> {
    if !is_subdomain(text) {
        bail!(
            "--cluster-domain {text:?}: lower case letters, digits and '-' between single dots are wanted, as in cluster.local"
        );
    }
    Ok(text.to_owned())
}

/// A folder of our own: at the root itself the pods of other kubelets would count as strays, and be ended.
fn pod_cgroup(text: &str) -> Result<String> {
    let own = text.trim_start_matches('/').trim_end_matches('/');
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    if !own.split('/').all(plain) {
        bail!("--pod-cgroup {text:?}: a folder below the hierarchies' root is wanted, such as amphipod");
    }
    Ok(own.to_owned())
}

fn host_name() -> Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the host name")?;
    Ok(name.trim().to_lowercase())
}

/// An RFC 1123 subdomain.
fn is_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let ends = [bytes.first(), bytes.last()].into_iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric));
        ends && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    name.len() <= 253 && name.split('.').all(|part| part.len() <= 63 && label(part))
}

fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = pod::mounts::read().context("cannot read the mount table")?;
    let found = mounts.into_iter().find(|mount| mount.kind == "cgroup2").map(|mount| mount.point);
    found.context("no cgroup2 hierarchy is mounted: mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`")
}

/// The address from which this machine reaches the world; nothing is sent to find it.
fn local_address() -> Result<IpAddr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a socket")?;
    // A documentation address: only the route to it is looked up.
    match socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).and_then(|()| socket.local_addr()) {
        Ok(address) => Ok(address.ip()),
        Err(_) => bail!(
            "this machine has no default route to tell its address by: give one with --advertise-address (or --node-ip)"
        ),
    }
}

fn service_network(text: &str) -> Result<ServiceNetwork> {
    let range = up::parse_cidr("--service-cidr", text)?;
    ServiceNetwork::new(&[range.into()]).context("--service-cidr")
}

/// Puts the settings of a `--config` file before those of the command line, which then win.
fn with_config(arguments: Vec<OsString>) -> Result<Vec<OsString>> {
    let texts: Vec<&str> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
    let spaced = texts.windows(2).find(|pair| pair[0] == "--config").map(|pair| pair[1]);
    let joined = texts.iter().find_map(|text| text.strip_prefix("--config="));
    let Some(path) = spaced.or(joined) else { return Ok(arguments) };
    let settings = read_config(Path::new(path))?;
    let (head, tail) = arguments.split_at(arguments.len().min(2));
    check_names(path, head.get(1).and_then(|name| name.to_str()).unwrap_or_default(), &settings)?;
    let flags = settings.into_iter().map(|(key, value)| OsString::from(format!("--{key}={value}")));
    Ok(head.iter().cloned().chain(flags).chain(tail.iter().cloned()).collect())
}

fn read_config(path: &Path) -> Result<Vec<(String, String)>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let value: Value = serde_yaml::from_str(&text).with_context(|| format!("{shown} is not YAML"))?;
    let Value::Mapping(map) = value else { bail!("{shown}: settings are wanted, one `name: value` a line") };
    map.into_iter()
        .map(|(key, value)| {
            let key = key.as_str().with_context(|| format!("{shown}: a setting's name is not text"))?.to_owned();
            let value =
                scalar(&value).with_context(|| format!("{shown}: {key} is neither a value nor a list of values"))?;
            Ok((key, value))
        })
        .collect()
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Sequence(items) => items.iter().map(scalar).collect::<Option<Vec<_>>>().map(|items| items.join(",")),
        _ => None,
    }
}

/// A misspelt setting is named with its file, not as a flag nobody typed.
fn check_names(path: &str, command: &str, settings: &[(String, String)]) -> Result<()> {
    let root = Arguments::command();
    let Some(command) = root.find_subcommand(command) else { return Ok(()) };
    let known: Vec<&str> =
        command.get_arguments().filter_map(|argument| argument.get_long()).filter(|name| *name != "config").collect();
    match settings.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        Some((name, _)) => bail!("{path}: there is no setting {name:?}; there are: {}", known.join(", ")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<control_plane::Settings> {
        let arguments = with_config(arguments.iter().map(OsString::from).collect())?;
        match Arguments::try_parse_from(arguments)?.command {
            Command::Server(arguments) => arguments.settings(),
            _ => bail!("not the server command"),
        }
    }

    #[test]
    fn node_names_are_checked() {
        assert!(is_subdomain("node-1.example") && !is_subdomain("Node") && !is_subdomain("-a") && !is_subdomain("a_b"));
    }

    #[test]
    fn pods_have_a_cgroup_of_their_own() {
        assert_eq!(pod_cgroup("/system.slice/amphipod.service/").unwrap(), "system.slice/amphipod.service");
        for bad in ["", "/", "a//b", "../a", "."] {
            assert!(pod_cgroup(bad).unwrap_err().to_string().starts_with("--pod-cgroup"), "{bad}");
        }
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let text = "listen: 127.0.0.1:1\ncluster-domain: from.file\ncontrollers: ['*', -scheduler]\nallow-external-ips: true\nanonymous-auth: false\n";
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap();
        let settings = parse(&["amphipod", "server", "--config", path, "--listen", "127.0.0.1:2"]).unwrap();
        assert_eq!((settings.listen.port(), settings.domain.as_str()), (2, "from.file"));
        assert_eq!(settings.admission.external_ips, admission::ExternalIps::Allowed);
        assert_eq!(settings.anonymous, Anonymous::Refused);
        assert!(!settings.controllers.has("scheduler") && settings.controllers.has("namespace-controller"));
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, "lisen: x\n").unwrap();
        let error = parse(&["amphipod", "server", "--config", path.to_str().unwrap()]).unwrap_err().to_string();
        assert!(error.contains("there is no setting \"lisen\"") && error.contains("config.yaml"), "{error}");
        let cidr = parse(&["amphipod", "server", "--listen", "127.0.0.1:1", "--service-cidr", "10.0.0.0/30"]);
        assert!(cidr.unwrap_err().to_string().contains("out of range"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_before_anything_begins() {
        let dir = tempfile::tempdir().unwrap();
        let broken = dir.path().join("broken.yaml");
        std::fs::write(&broken, "registries:\n  docker.io: {endpoints: ['ftp://x']}\n").unwrap();
        let (broken, missing) = (broken.to_str().unwrap(), dir.path().join("missing.yaml"));
        for command in ["up", "doctor"] {
            for (flag, value, word) in [
                ("--registries", broken, "must start with http"),
                ("--registries", missing.to_str().unwrap(), "missing.yaml"),
                ("--pod-max-pids", "-5", "from 1 on"),
                ("--pod-max-pids", "0", "from 1 on"),
                ("--cluster-domain", "a..b", "between single dots"),
                ("--cluster-domain", "Cluster.local", "lower case"),
                ("--allowed-unsafe-sysctls", "kernel.core_pattern", "namespaced"),
            ] {
                let given = ["amphipod", command, "--node-ip", "192.0.2.1", "--node-name", "n", flag, value];
                let (Command::Up(arguments) | Command::Doctor(arguments)) =
                    Arguments::try_parse_from(given).unwrap().command
                else {
                    panic!("not {command}");
                };
                let error = format!("{:#}", arguments.settings().map(drop).unwrap_err());
                assert!(error.starts_with(flag) && error.contains(word), "{flag} {value}: {error}");
            }
        }
    }
}
