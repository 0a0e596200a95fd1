//! The command line: raw arguments (and the YAML file that stands for them) become validated settings.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use apiserver::Anonymous;
use apiserver::admission;
use apiserver::engine::{Family, ServiceNetwork};
use apiserver::{EtcdSettings, EtcdTls};
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::control_plane;
use crate::controllers::Selection;
use crate::machine::Machine;
use crate::{agent_command, doctor, names, reset, store_command, token_command, up};

use self::agent::AgentArguments;
use self::node::NodeArguments;

mod agent;
mod config;
mod node;
mod ranges;

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
#[expect(clippy::large_enum_variant, reason = "there is one, once")]
enum Command {
    /// Run the API server, controllers and scheduler
    #[command(args_override_self = true)]
    Server(ServerArguments),
    /// Run server and agent in one process: a cluster on this machine
    #[command(args_override_self = true)]
    Up(UpArguments),
    /// Run this machine's agent, as a node of a cluster whose server is elsewhere
    #[command(args_override_self = true)]
    Agent(AgentArguments),
    /// Make, list or delete the tokens with which machines join
    Token(token_command::Arguments),
    /// Say what this machine lacks for `up` (or `agent`) with the same flags, with the remedies
    #[command(args_override_self = true, args_conflicts_with_subcommands = true)]
    Doctor(DoctorArguments),
    /// Ask the node's DNS
    #[command(subcommand)]
    Dns(names::Command),
    /// Keep the sockets of DNS while the server is away; `up` starts this itself
    #[command(name = names::KEEPER, hide = true)]
    KeepDnsSockets,
    /// Check, compact, back up or restore the store
    Store(store_command::Arguments),
    /// Remove everything that `up` or `agent` ever made, data included
    Reset {
        /// The data folder that `up` or `agent` was given
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
    /// Address and port to serve on [default: 0.0.0.0:6443, or [::]:6443 where Services have IPv6 addresses]
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Address at which others reach this server [default: the address of --listen, or this machine's]
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// Addresses for Services: a range of IPv4, of IPv6, or one of each; by the first one's family everything is known
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/12", value_name = "CIDR[,CIDR]")]
    service_cidr: Vec<String>,
    /// Addresses for pods, of the same families in the same order
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10.244.0.0/16",
        visible_alias = "cluster-cidr",
        value_name = "CIDR[,CIDR]"
    )]
    pod_cidr: Vec<String>,
    #[command(flatten)]
    node_cidr: ranges::NodeCidr,
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
    #[command(flatten)]
    node: NodeArguments,
}

#[derive(Args)]
struct DoctorArguments {
    #[command(subcommand)]
    of: Option<Of>,
    #[command(flatten)]
    up: UpArguments,
}

#[derive(Subcommand)]
enum Of {
    /// The same for `agent`: this machine, and the way to its server
    #[command(args_override_self = true)]
    Agent(AgentArguments),
}

/// Parses the command line and runs what it says.
///
/// # Errors
/// In words for whoever typed it: a setting that cannot be understood, or what the command itself could not do. clap
/// answers wrong flags itself, and exits.
pub fn run() -> Result<()> {
    let arguments = config::with_file(&Arguments::command(), std::env::args_os().collect())?;
    start_log();
    match Arguments::parse_from(arguments).command {
        Command::Server(arguments) => {
            let control = arguments.settings()?;
            daemon()?.block_on(control_plane::run(control))
        }
        Command::Up(arguments) => {
            let (control, machine) = arguments.settings()?;
            daemon()?.block_on(up::run(control, machine))
        }
        Command::Agent(arguments) => {
            let settings = arguments.settings()?;
            daemon()?.block_on(agent_command::run(settings))
        }
        Command::Token(arguments) => runtime()?.block_on(token_command::run(&arguments)),
        Command::Doctor(DoctorArguments { of: Some(Of::Agent(arguments)), .. }) => {
            let settings = arguments.settings()?;
            runtime()?.block_on(agent_command::examine(&settings))
        }
        Command::Doctor(DoctorArguments { up, .. }) => {
            let (control, machine) = up.settings()?;
            doctor::run(&up::look(&control, &machine))
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
        self.settings_of(|listen, family| match listen.is_unspecified() {
            true => node::local_address(node::anywhere(family)),
            false => Ok(listen),
        })
    }

    /// `own` is where others reach this machine, unless a flag says it: of where it listens and the cluster's first family.
    fn settings_of(&self, own: impl FnOnce(IpAddr, Family) -> Result<IpAddr>) -> Result<control_plane::Settings> {
        let services = ranges::services(&self.service_cidr)?;
        let pods = ranges::pods(&self.pod_cidr, &self.node_cidr, &services)?;
        let (listen, first) = (self.listen(&services), services.families()[0]);
        let advertise = self.advertise_address.map_or_else(|| own(listen.ip(), first), Ok)?;
        ensure!(
            Family::of(&advertise) == first,
            "others reach this server at {advertise}, and Services are known by {}: give an address of that with --advertise-address",
            first.name()
        );
        Ok(control_plane::Settings {
            data_dir: self.data_dir.clone(),
            etcd: self.etcd()?,
            listen,
            advertise,
            services,
            pods,
            domain: cluster_domain(&self.cluster_domain)?,
            controllers: Selection::parse(&self.controllers)?,
            names: Vec::new(),
            admission: self.admission(),
            anonymous: self.anonymous_auth.into(),
        })
    }
}

impl ServerArguments {
    fn listen(&self, services: &ServiceNetwork) -> SocketAddr {
        let any = match services.range(Family::V6) {
            Some(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
            None => Ipv4Addr::UNSPECIFIED.into(),
        };
        self.listen.unwrap_or((any, control_plane::PORT).into())
    }

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
    fn settings(&self) -> Result<(control_plane::Settings, Machine)> {
        let listen = self.server.listen.map(|listen| listen.ip());
        let told = listen.filter(|ip| !ip.is_unspecified() && !ip.is_loopback());
        let machine = self.node.machine(&self.server.data_dir, || Ok(told))?;
        let own = |_, family| match machine.ips.iter().find(|ip| Family::of(ip) == family) {
            Some(ip) => Ok(ip),
            None => node::local_address(node::anywhere(family)),
        };
        let mut control = self.server.settings_of(own)?;
        control.names.push(machine.name.clone());
        Ok((control, machine))
    }
}

fn cluster_domain(text: &str) -> Result<String> {
    if !node::is_subdomain(text) {
        bail!(
            "--cluster-domain {text:?}: lower case letters, digits and '-' between single dots are wanted, as in cluster.local"
        );
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<control_plane::Settings> {
        let arguments = config::with_file(&Arguments::command(), arguments.iter().map(OsString::from).collect())?;
        match Arguments::try_parse_from(arguments)?.command {
            Command::Server(arguments) => arguments.settings(),
            _ => bail!("not the server command"),
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
    fn the_first_range_says_by_which_family_everything_is_known() {
        let of = |flags: &[&str]| parse(&[&["amphipod", "server"], flags].concat());
        let v4 = of(&["--advertise-address", "192.0.2.1"]).unwrap();
        assert_eq!((v4.listen.to_string(), v4.cluster().pods.len()), ("0.0.0.0:6443".into(), 1));
        let (v4_first, v6_first) = ("10.96.0.0/12,fd00:96::/112", "fd00:96::/112,10.96.0.0/12");
        let (pods4, pods6) = ("10.244.0.0/16,fd00:244::/56", "fd00:244::/56,10.244.0.0/16");
        let both = of(&["--advertise-address", "192.0.2.1", "--service-cidr", v4_first, "--pod-cidr", pods4]).unwrap();
        assert_eq!(
            (both.listen.to_string(), both.cluster().dns.to_string()),
            ("[::]:6443".into(), "10.96.0.10".into())
        );
        let first = of(&["--listen", "[2001:db8::1]:6443", "--service-cidr", v6_first, "--pod-cidr", pods6]).unwrap();
        assert_eq!((first.advertise, first.cluster().dns.to_string()), (first.listen.ip(), "fd00:96::a".into()));
        let other = of(&["--advertise-address", "192.0.2.1", "--service-cidr", v6_first, "--pod-cidr", pods6]);
        assert!(other.unwrap_err().to_string().contains("known by IPv6"));
    }

    #[test]
    fn a_node_has_an_address_of_each_family() {
        let of =
            |flags: &[&str]| match Arguments::try_parse_from([&["amphipod", "up"], flags].concat()).unwrap().command {
                Command::Up(arguments) => arguments.settings(),
                _ => panic!("not up"),
            };
        let (services, pods) = ("10.96.0.0/12,fd00:96::/112", "10.244.0.0/16,fd00:244::/56");
        let dual = ["--service-cidr", services, "--pod-cidr", pods, "--node-ip", "2001:db8::1,192.0.2.1"];
        let (control, machine) = of(&dual).unwrap();
        let node = machine.in_cluster(&control.cluster(), None);
        assert_eq!(node.ips.iter().map(IpAddr::to_string).collect::<Vec<_>>(), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(control.advertise, node.ips[0]);
        let (control, machine) = of(&["--node-ip", "192.0.2.1,2001:db8::1"]).unwrap();
        assert_eq!(machine.in_cluster(&control.cluster(), None).ips, [control.advertise], "nobody asked for IPv6");
        let twice = of(&["--node-ip", "192.0.2.1,192.0.2.2"]).map(drop).unwrap_err().to_string();
        assert!(twice.starts_with("--node-ip") && twice.contains("one family"), "{twice}");
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
                let arguments = match Arguments::try_parse_from(given).unwrap().command {
                    Command::Up(arguments) | Command::Doctor(DoctorArguments { up: arguments, .. }) => arguments,
                    _ => panic!("not {command}"),
                };
                let error = format!("{:#}", arguments.settings().map(drop).unwrap_err());
                assert!(error.starts_with(flag) && error.contains(word), "{flag} {value}: {error}");
            }
        }
    }
}
