//! Ranges of addresses: one, or one of each family. Those of pods are of the families of Services, in their order.

use anyhow::{Context, Result, anyhow, bail, ensure};
use apiserver::engine::{Family, ServiceNetwork};
use clap::Args;
use ipnetwork::IpNetwork;

use crate::pod_ranges::{self, PodRanges};

/// How pods' ranges are cut into nodes' parts.
#[derive(Args, Default)]
pub struct NodeCidr {
    /// Prefix length of each node's part of the pods' addresses [default: 24, of IPv6 64, or theirs if that is longer]
    #[arg(long, value_name = "BITS")]
    node_cidr_mask_size: Option<u8>,
    /// The same for IPv4, where pods have addresses of both families
    #[arg(long, value_name = "BITS", conflicts_with = "node_cidr_mask_size")]
    node_cidr_mask_size_ipv4: Option<u8>,
    /// The same for IPv6
    #[arg(long, value_name = "BITS", conflicts_with = "node_cidr_mask_size")]
    node_cidr_mask_size_ipv6: Option<u8>,
}

impl NodeCidr {
    fn of(&self, family: Family) -> (&'static str, Option<u8>) {
        match family {
            Family::V4 => ("--node-cidr-mask-size-ipv4", self.node_cidr_mask_size_ipv4),
            Family::V6 => ("--node-cidr-mask-size-ipv6", self.node_cidr_mask_size_ipv6),
        }
    }
}

fn families(ranges: &[IpNetwork]) -> Vec<Family> {
    ranges.iter().map(|range| Family::of(&range.ip())).collect()
}

/// A flag's ranges; of addresses in them, only what is the ranges' counts.
fn parse(flag: &str, texts: &[String]) -> Result<Vec<IpNetwork>> {
    let one = |text: &String| {
        let range = text.contains('/').then(|| text.parse::<IpNetwork>().ok()).flatten();
        let known = "is no prefix such as 10.244.0.0/16 or fd00:10:244::/56";
        let range = range.with_context(|| format!("{flag} {}: {text:?} {known}", texts.join(",")))?;
        Ok(IpNetwork::new(range.network(), range.prefix())?)
    };
    texts.iter().map(one).collect()
}

/// # Errors
/// The flag and what it was given, unless that is one range, or one of each family, and of a usable size.
pub fn services(texts: &[String]) -> Result<ServiceNetwork> {
    ServiceNetwork::new(&parse("--service-cidr", texts)?).map_err(|bad| anyhow!("--service-cidr {bad}"))
}

/// # Errors
/// The flag and what it was given: when it is no range, or not of the families of Services in their order, shares addresses with
/// theirs, or cannot be cut into nodes' parts as asked.
pub fn pods(texts: &[String], parts: &NodeCidr, services: &ServiceNetwork) -> Result<Vec<PodRanges>> {
    let ranges = parse("--pod-cidr", texts)?;
    let (own, wanted) = (families(&ranges), services.families());
    if own != wanted {
        let names = |families: &[Family]| families.iter().map(|family| family.name()).collect::<Vec<_>>().join(",");
        let (own, wanted) = (names(&own), names(&wanted));
        bail!(
            "--pod-cidr {} is of {own}, and --service-cidr of {wanted}: the same families in the same order are wanted",
            texts.join(",")
        );
    }
    if let (2.., Some(_)) = (ranges.len(), parts.node_cidr_mask_size) {
        bail!(
            "--node-cidr-mask-size: pods have two ranges: say --node-cidr-mask-size-ipv4 and --node-cidr-mask-size-ipv6"
        );
    }
    for family in Family::ALL {
        let (flag, asked) = parts.of(family);
        ensure!(asked.is_none() || own.contains(&family), "{flag}: --pod-cidr has no range of {}", family.name());
    }
    for (pods, services) in ranges.iter().zip(services.ranges()) {
        let services = services.network();
        ensure!(
            !pod_ranges::overlap(*pods, services),
            "--pod-cidr {pods} and --service-cidr {services} share addresses"
        );
    }
    let cut = |range: IpNetwork| {
        let (flag, of_family) = parts.of(Family::of(&range.ip()));
        let (flag, bits) = match parts.node_cidr_mask_size {
            Some(bits) => ("--node-cidr-mask-size", Some(bits)),
            None => (flag, of_family),
        };
        PodRanges::new(range, bits).context(flag)
    };
    ranges.into_iter().map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &str) -> Vec<String> {
        texts.split(',').map(str::to_owned).collect()
    }

    fn cut(pods_given: &str, services_given: &str, parts: &NodeCidr) -> Result<Vec<String>> {
        let ranges = pods(&list(pods_given), parts, &services(&list(services_given))?)?;
        Ok(ranges.iter().filter_map(|range| range.part(1)).map(|part| part.to_string()).collect())
    }

    #[test]
    fn each_family_has_parts_of_its_own_length() {
        let (pods, services) = ("10.244.0.0/16,fd00:244::/56", "10.96.0.0/12,fd00:96::/108");
        assert_eq!(cut(pods, services, &NodeCidr::default()).unwrap(), ["10.244.1.0/24", "fd00:244:0:1::/64"]);
        let parts = NodeCidr { node_cidr_mask_size_ipv4: Some(26), ..NodeCidr::default() };
        assert_eq!(cut(pods, services, &parts).unwrap(), ["10.244.0.64/26", "fd00:244:0:1::/64"]);
        let alone = NodeCidr { node_cidr_mask_size: Some(72), ..NodeCidr::default() };
        assert_eq!(cut("fd00:244::/56", "fd00:96::/108", &alone).unwrap(), ["fd00:244:0:0:100::/72"]);
    }

    #[test]
    fn what_does_not_fit_is_said_with_its_flag() {
        let usual = NodeCidr::default();
        let one = NodeCidr { node_cidr_mask_size: Some(24), ..NodeCidr::default() };
        let v6 = NodeCidr { node_cidr_mask_size_ipv6: Some(64), ..NodeCidr::default() };
        let both = "10.96.0.0/12,fd00:96::/108";
        for (pods, services, parts, flag, word) in [
            ("10.244.0.0/16", "10.96.0.0", &usual, "--service-cidr", "is no prefix"),
            ("10.244.0.0", "10.96.0.0/12", &usual, "--pod-cidr", "is no prefix"),
            ("10.244.0.0/16", "10.96.0.0/12,10.112.0.0/12", &usual, "--service-cidr", "of one family"),
            ("10.244.0.0/16,10.245.0.0/16", both, &usual, "--pod-cidr", "the same families"),
            ("fd00:244::/56,10.244.0.0/16", both, &usual, "--pod-cidr", "in the same order"),
            ("10.244.0.0/16", both, &usual, "--pod-cidr", "of IPv4, and --service-cidr of IPv4,IPv6"),
            ("10.100.0.0/16", "10.96.0.0/12", &usual, "--pod-cidr", "share addresses"),
            ("fd00:244::/56", "fd00:96::/48", &usual, "--service-cidr", "out of range"),
            ("10.244.0.0/16,fd00:244::/56", both, &one, "--node-cidr-mask-size:", "two ranges"),
            ("10.244.0.0/16", "10.96.0.0/12", &v6, "--node-cidr-mask-size-ipv6", "no range of IPv6"),
            ("10.244.0.0/16,fd00:244::/40", both, &usual, "--node-cidr-mask-size-ipv6", "from /40 to /56"),
        ] {
            let error = format!("{:#}", cut(pods, services, parts).unwrap_err());
            assert!(error.starts_with(flag) && error.contains(word), "{pods} {services}: {error}");
        }
    }
}
