//! Names on the command line: the flags that say where those outside the cluster are asked for, and `amphipod dns`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use dns::{Autopath, QueryLog, Stub};
use node::Names;

const PORT: u16 = 53;
/// The command that is not for people: this process keeps the sockets of DNS.
pub const KEEPER: &str = "keep-dns-sockets";

#[derive(Subcommand)]
pub enum Command {
    /// Ask this node's DNS for a name
    Query {
        /// A whole name, or an address whose name is wanted
        name: String,
        /// Type of the records
        #[arg(default_value = "A")]
        kind: String,
        /// The server to ask [default: the node's own]
        #[arg(long, value_name = "ADDRESS[:PORT]")]
        server: Option<String>,
        /// The run folder that `up` was given
        #[arg(long, default_value = "/run/amphipod")]
        run_dir: PathBuf,
    },
}

/// Answers go to standard output, what is said about them to standard error.
///
/// # Errors
/// When no node runs here, the server's address cannot be understood, or it does not answer; a name that is not there
/// is an answer.
pub fn run(command: &Command) -> Result<()> {
    let Command::Query { name, kind, server: chosen, run_dir } = command;
    let address = match chosen {
        Some(text) => server(text).context("--server")?,
        None => node::dns_address(run_dir).context("no node of this machine says where its DNS is")?,
    };
    let reply = dns::query(address, name, kind)?;
    reply.records.iter().for_each(|record| println!("{record}"));
    eprintln!("; {} from {} in {:.1} ms", reply.code, reply.source, reply.took.as_secs_f64() * 1e3);
    Ok(())
}

/// Becomes the keeper of sockets.
///
/// # Errors
/// When what was left open cannot be closed, or no sockets are handed over.
pub fn keep_sockets() -> Result<()> {
    crate::inherited::close().context("cannot close what was left open")?;
    dns::keep_sockets().context("the sockets of DNS are kept no more")
}

/// `stubs` are the parts between commas: one with a zone begins a stub, one without goes on with it.
///
/// # Errors
/// The flag and the part of it that is no address, or comes before any zone.
pub fn settings(upstreams: &[String], stubs: &[String], log: QueryLog, autopath: Autopath) -> Result<Names> {
    let upstreams = upstreams.iter().map(|text| server(text).context("--dns-upstream")).collect::<Result<Vec<_>>>()?;
    Ok(Names {
        upstreams: (!upstreams.is_empty()).then_some(upstreams),
        stubs: parse_stubs(stubs).context("--dns-stub")?,
        log,
        autopath,
        // The very binary that runs, wherever its file is by then.
        keeper: Some(("/proc/self/exe".into(), vec![KEEPER.into()])),
    })
}

fn parse_stubs(parts: &[String]) -> Result<Vec<Stub>> {
    let mut all: Vec<Stub> = Vec::new();
    for part in parts {
        let address = match part.split_once('=') {
            Some((zone, address)) => {
                let stub = Stub::of(zone).with_context(|| format!("{zone:?} is no domain name"))?;
                ensure!(!stub.zone.is_root(), "{part:?}: name servers for all names are given with --dns-upstream");
                ensure!(all.iter().all(|other| other.zone != stub.zone), "{zone:?} is given twice");
                all.push(stub);
                address
            }
            None => part,
        };
        let stub = all.last_mut().with_context(|| format!("{part:?}: ZONE=ADDRESS[,ADDRESS…] is wanted"))?;
        stub.servers.push(server(address)?);
    }
    Ok(all)
}

fn server(text: &str) -> Result<SocketAddr> {
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT)).or_else(|_| text.parse());
    address.with_context(|| format!("{text:?} is neither an address nor ADDRESS:PORT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(stubs: &[&str]) -> Result<Vec<String>> {
        let stubs: Vec<String> = stubs.iter().map(|text| (*text).to_owned()).collect();
        let stubs = settings(&[], &stubs, QueryLog::Off, Autopath::Off)?.stubs;
        Ok(stubs.iter().map(|stub| format!("{} {:?}", stub.zone, stub.servers)).collect())
    }

    #[test]
    fn a_stub_goes_on_until_the_next_zone() {
        let stubs = parse(&["corp=10.0.0.1", "10.0.0.2:5353", "Lab.Corp.=fd00::1", "[fd00::2]:54"]).unwrap();
        assert_eq!(stubs, ["corp. [10.0.0.1:53, 10.0.0.2:5353]", "lab.corp. [[fd00::1]:53, [fd00::2]:54]"]);
    }

    #[test]
    fn what_is_no_server_or_zone_is_refused_by_name() {
        for (stubs, word) in [
            (&["10.0.0.1"][..], "ZONE=ADDRESS"),
            (&["corp=dns.corp"], "dns.corp"),
            (&["corp="], "neither an address"),
            (&[".=10.0.0.1"], "--dns-upstream"),
            (&["corp=10.0.0.1", "CORP.=10.0.0.2"], "twice"),
            (&["a..b=10.0.0.1"], "no domain name"),
        ] {
            let error = format!("{:#}", parse(stubs).unwrap_err());
            assert!(error.starts_with("--dns-stub") && error.contains(word), "{error}");
        }
        let error = settings(&["name".into()], &[], QueryLog::Off, Autopath::Off).map(drop).unwrap_err();
        assert!(format!("{error:#}").starts_with("--dns-upstream"));
    }
}
