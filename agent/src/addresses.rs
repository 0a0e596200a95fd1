//! The pods' addresses on this node.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use ipnetwork::IpNetwork;

/// The node's pod addresses: a pod has one of each range. The least recently used comes first, so that a released one rests.
#[derive(Debug)]
pub struct Addresses {
    ranges: Mutex<Vec<Pool>>,
}

/// Those of one range.
#[derive(Debug)]
struct Pool {
    range: IpNetwork,
    /// Places in the range that nobody had yet; one of IPv6 has far too many to list.
    fresh: Range<u128>,
    /// Found in use at the start: fresh ones are others.
    taken: BTreeSet<IpAddr>,
    released: VecDeque<IpAddr>,
}

impl Addresses {
    pub fn new(ranges: &[IpNetwork], taken: &BTreeSet<IpAddr>) -> Addresses {
        let pool = |range: &IpNetwork| {
            let taken = taken.iter().copied().filter(|ip| range.contains(*ip)).collect();
            Pool { range: *range, fresh: usable(*range), taken, released: VecDeque::new() }
        };
        Addresses { ranges: Mutex::new(ranges.iter().map(pool).collect()) }
    }

    /// One of each range, in their order; nothing where one of them has none.
    pub fn take(&self) -> Option<Vec<IpAddr>> {
        let mut pools = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let taken: Vec<IpAddr> = pools.iter_mut().map_while(Pool::take).collect();
        if taken.len() == pools.len() && !taken.is_empty() {
            return Some(taken);
        }
        taken.into_iter().zip(pools.iter_mut()).for_each(|(ip, pool)| pool.released.push_back(ip));
        None
    }

    pub fn release(&self, ips: &[IpAddr]) {
        let mut pools = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        for ip in ips {
            // None of the node's ranges, where it had another before.
            if let Some(pool) = pools.iter_mut().find(|pool| pool.range.contains(*ip)) {
                pool.released.push_back(*ip);
            }
        }
    }
}

impl Pool {
    fn take(&mut self) -> Option<IpAddr> {
        let fresh = self.fresh.by_ref().map(|place| at(self.range, place)).find(|ip| !self.taken.contains(ip));
        fresh.or_else(|| self.released.pop_front())
    }
}

/// Places in order: not the network's own, not the first (the gateway's by custom), not the last of IPv4 (the broadcast one).
fn usable(range: IpNetwork) -> Range<u128> {
    match range {
        IpNetwork::V4(range) => 2..(1_u128 << (32 - range.prefix())).saturating_sub(1),
        IpNetwork::V6(range) => 2..1_u128.checked_shl((128 - range.prefix()).into()).unwrap_or(u128::MAX),
    }
}

fn at(range: IpNetwork, place: u128) -> IpAddr {
    match range {
        IpNetwork::V4(range) => Ipv4Addr::from(u32::from(range.network()) | place as u32).into(),
        IpNetwork::V6(range) => Ipv6Addr::from(u128::from(range.network()) | place).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(ranges: &[&str], taken: &[&str]) -> Addresses {
        let ranges: Vec<IpNetwork> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        Addresses::new(&ranges, &taken.iter().map(|ip| ip.parse().unwrap()).collect())
    }

    fn take(addresses: &Addresses) -> Option<Vec<String>> {
        Some(addresses.take()?.iter().map(IpAddr::to_string).collect())
    }

    #[test]
    fn addresses_rest_after_use() {
        let addresses = addresses(&["10.0.0.7/29"], &["10.0.0.2"]);
        let first = addresses.take().unwrap();
        assert_eq!(first, ["10.0.0.3".parse::<IpAddr>().unwrap()]);
        addresses.release(&first);
        let rest: Vec<_> = (0..4).map(|_| take(&addresses).unwrap().remove(0)).collect();
        assert_eq!(rest, ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.3"]);
        assert_eq!(take(&addresses), None);
        addresses.release(&["192.0.2.1".parse().unwrap()]);
        assert_eq!(take(&addresses), None, "it is none of the node's");
    }

    #[test]
    fn a_pod_has_one_of_each_range_or_none() {
        let addresses = addresses(&["fd00:10:244:1::/64", "10.0.0.0/30"], &["fd00:10:244:1::3"]);
        let pod = take(&addresses).unwrap();
        assert_eq!(pod, ["fd00:10:244:1::2", "10.0.0.2"]);
        assert_eq!(take(&addresses), None);
        addresses.release(&["10.0.0.2".parse().unwrap()]);
        assert_eq!(take(&addresses).unwrap(), ["fd00:10:244:1::5", "10.0.0.2"], "the other one came back");
    }
}
