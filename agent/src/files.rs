//! The small files every container gets: `/etc/hosts`, `/etc/resolv.conf`. Pure text.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use crate::config::Config;
use crate::model::{Pod, PodSpec, VolumeMount};

/// What name resolution on the node looks like, and the cluster's.
#[derive(Clone, Debug, Default)]
pub struct Resolver<'a> {
    pub cluster_dns: Option<IpAddr>,
    pub cluster_domain: &'a str,
    /// The node's own resolv.conf.
    pub host: &'a str,
}

impl<'a> Resolver<'a> {
    pub fn of(config: &'a Config, host: &'a str) -> Self {
        Self { cluster_dns: config.cluster_dns, cluster_domain: &config.cluster_domain, host }
    }
}

/// The node's own resolv.conf; a node without one has no entries.
pub fn host_resolv() -> String {
    std::fs::read_to_string(RESOLV_CONF).unwrap_or_default()
}

const CLUSTER_FIRST: &str = "ClusterFirst";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// `/etc/resolv.conf` by dnsPolicy and dnsConfig.
pub fn resolv_conf(spec: &PodSpec, namespace: &str, resolver: &Resolver<'_>) -> String {
    conf(spec, namespace, resolver).text()
}

/// The search list of all containers of a pod that keeps the cluster's as it is, for those who want to know it for certain.
pub fn cluster_searches(spec: &PodSpec, namespace: &str, resolver: &Resolver<'_>) -> Option<Vec<String>> {
    let cluster = resolver.cluster_dns.is_some() && policy(spec) == CLUSTER_FIRST && !spec.host_network;
    let hides = |mount: &VolumeMount| Path::new(RESOLV_CONF).starts_with(&mount.mount_path);
    let mut mounts = spec.all_containers().chain(&spec.ephemeral_containers).flat_map(|one| &one.volume_mounts);
    let own = spec.dns_config.is_some() || mounts.any(hides);
    (cluster && !own).then(|| conf(spec, namespace, resolver).searches)
}

fn policy(spec: &PodSpec) -> &str {
    spec.dns_policy.as_deref().unwrap_or(CLUSTER_FIRST)
}

fn conf(spec: &PodSpec, namespace: &str, resolver: &Resolver<'_>) -> Conf {
    let policy = policy(spec);
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        CLUSTER_FIRST => !spec.host_network,
        _ => false,
    };
    let host = parse(resolver.host);
    let mut conf = match resolver.cluster_dns {
        Some(dns) if cluster => {
            let domain = resolver.cluster_domain;
            let own = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
            Conf {
                nameservers: vec![dns.to_string()],
                searches: own.into_iter().chain(host.searches).collect(),
                options: vec!["ndots:5".into()],
            }
        }
        _ if policy == "None" => Conf::default(),
        _ => host,
    };
    if let Some(config) = &spec.dns_config {
        conf.nameservers.extend(config.nameservers.iter().cloned());
        conf.searches.extend(config.searches.iter().cloned());
        for option in &config.options {
            let name = |text: &str| text.split(':').next().unwrap_or_default().to_owned();
            conf.options.retain(|known| name(known) != option.name);
            conf.options.push(match &option.value {
                Some(value) => format!("{}:{value}", option.name),
                None => option.name.clone(),
            });
        }
    }
    let mut seen = BTreeSet::new();
    conf.searches.retain(|domain| domain != "." && seen.insert(domain.clone()));
    conf
}

#[derive(Debug, Default)]
struct Conf {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

fn parse(text: &str) -> Conf {
    let mut conf = Conf::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => conf.nameservers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => conf.searches = words.map(str::to_owned).collect(),
            Some("options") => conf.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    conf
}

impl Conf {
    fn text(self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in self.nameservers.iter().take(3) {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

/// `/etc/hosts`; with hostNetwork the node's own entries come first.
pub fn hosts(pod: &Pod, hostname: Option<&str>, ips: &[IpAddr], domain: &str, host_file: &str) -> String {
    let mut text = if pod.spec.host_network {
        format!("# Kubernetes-managed hosts file (host network).\n{host_file}")
    } else {
        String::from(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        )
    };
    if let Some(hostname) = hostname {
        let full = pod
            .spec
            .subdomain
            .as_ref()
            .map(|subdomain| format!("{hostname}.{subdomain}.{}.svc.{domain}\t", pod.metadata.namespace))
            .unwrap_or_default();
        ips.iter().for_each(|ip| text.push_str(&format!("{ip}\t{full}{hostname}\n")));
    }
    if !pod.spec.host_aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in &pod.spec.host_aliases {
            text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn conf(spec: Value) -> String {
        let resolver = Resolver {
            cluster_dns: Some("10.96.0.10".parse().unwrap()),
            cluster_domain: "cluster.local",
            host: "# mine\nnameserver 1.1.1.1\nsearch example.com\noptions edns0\n",
        };
        resolv_conf(&serde_json::from_value(spec).unwrap(), "shop", &resolver)
    }

    #[test]
    fn policies() {
        assert_eq!(
            conf(json!({})),
            "search shop.svc.cluster.local svc.cluster.local cluster.local example.com\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        let host = "search example.com\nnameserver 1.1.1.1\noptions edns0\n";
        assert_eq!(conf(json!({"dnsPolicy": "Default"})), host);
        assert_eq!(conf(json!({"hostNetwork": true})), host);
        assert!(conf(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"})).contains("10.96.0.10"));
    }

    #[test]
    fn a_search_list_is_told_only_where_it_is_certain() {
        let searches = |spec: Value| {
            let resolver = Resolver {
                cluster_dns: Some("10.96.0.10".parse().unwrap()),
                cluster_domain: "cluster.local",
                host: "search example.com . cluster.local\n",
            };
            cluster_searches(&serde_json::from_value(spec).unwrap(), "shop", &resolver)
        };
        let mounts = |path: &str| json!([{"name": "c", "volumeMounts": [{"name": "v", "mountPath": path}]}]);
        let known = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.com"].map(str::to_owned);
        for spec in [json!({}), json!({"dnsPolicy": "ClusterFirst", "containers": mounts("/etc/other")})] {
            assert_eq!(searches(spec.clone()).as_deref(), Some(&known[..]), "{spec}");
        }
        for spec in [
            json!({"hostNetwork": true}),
            json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
            json!({"dnsPolicy": "Default"}),
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.96.0.10"], "searches": known}}),
            json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
            json!({"containers": mounts("/etc/resolv.conf/")}),
            json!({"initContainers": mounts("/etc")}),
            json!({"ephemeralContainers": mounts("/etc/resolv.conf")}),
        ] {
            assert_eq!(searches(spec.clone()), None, "{spec}");
        }
    }

    #[test]
    fn own_configuration_is_added_and_wins() {
        let config =
            json!({"nameservers": ["8.8.8.8"], "searches": ["x"], "options": [{"name": "ndots", "value": "2"}]});
        assert_eq!(
            conf(json!({"dnsPolicy": "None", "dnsConfig": config})),
            "search x\nnameserver 8.8.8.8\noptions ndots:2\n"
        );
        assert!(conf(json!({"dnsConfig": config})).ends_with("options ndots:2\n"));
    }

    #[test]
    fn hosts_file() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"subdomain": "sub", "hostAliases": [{"ip": "9.9.9.9", "hostnames": ["a", "b"]}]}}))
        .unwrap();
        let ips = ["10.0.0.2", "fd00::2"].map(|ip| ip.parse().unwrap());
        let text = hosts(&pod, Some("p"), &ips, "cluster.local", "");
        let own = "10.0.0.2\tp.sub.n.svc.cluster.local\tp\nfd00::2\tp.sub.n.svc.cluster.local\tp\n";
        assert!(text.contains(own) && text.ends_with("9.9.9.9\ta\tb\n"), "{text}");
    }
}
