//! Which flows of the packet path have ended. Pure; the sweeper does what it says.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use proxy_common::{Backend, Flow, ICMP, Scope, TCP, Tuple, UDP};

use crate::desired::Frontend;
use crate::table::Table;

const SECOND: u64 = 1_000_000_000;
const TCP_IDLE: u64 = 24 * 3600 * SECOND;
/// Longer than an endpoint remembers a connection that it closed (60 s, by a timer that may be 4 s late, and our times are up to 1 s
/// old): its port behind the node must not be another's before.
const TCP_CLOSING: u64 = 75 * SECOND;
const DATAGRAMS_IDLE: u64 = 180 * SECOND;
const ECHO_IDLE: u64 = 30 * SECOND;
/// A flow that never had a reply.
const UNANSWERED: u64 = 60 * SECOND;

/// How long a flow may be silent.
pub fn idle_limit(tuple: &Tuple, flow: &Flow) -> u64 {
    match tuple.protocol {
        _ if flow.flags & Flow::CONFIRMED == 0 => UNANSWERED,
        TCP if flow.flags & Flow::CLOSING != 0 => TCP_CLOSING,
        TCP => TCP_IDLE,
        ICMP => ECHO_IDLE,
        _ => DATAGRAMS_IDLE,
    }
}

/// Whether both directions of a flow have been silent too long. One direction may be quiet for the other's sake.
pub fn has_expired(tuple: &Tuple, flow: &Flow, partner: Option<&Flow>, now: u64) -> bool {
    let seen = partner.map_or(flow.seen, |partner| partner.seen.max(flow.seen));
    now.saturating_sub(seen) > idle_limit(tuple, flow)
}

/// Whether a datagram flow leads to an endpoint that its service no longer has. TCP flows run on until they end.
pub fn is_stale(tuple: &Tuple, flow: &Flow, table: &Table) -> bool {
    if tuple.protocol != UDP {
        return false;
    }
    let (key, to) = match flow.flags & Flow::REPLY {
        0 => (*tuple, flow.to),
        _ => (flow.to.reversed(), tuple.reversed()),
    };
    let translated = (key.dst, key.dport) != (to.dst, to.dport);
    if !translated {
        return false;
    }
    let backend = Backend::new(to.dst, to.dport).bits();
    let addresses = [Ipv4Addr::from(key.dst.octets()), Ipv4Addr::UNSPECIFIED];
    let frontends = addresses.into_iter().flat_map(|addr| {
        let frontend = move |scope| Frontend { addr, port: key.dport.get(), protocol: key.protocol, scope };
        [frontend(Scope::Internal), frontend(Scope::External)]
    });
    let mut sets = frontends.filter_map(|frontend| table.endpoints(&frontend));
    !sets.any(|set| set.binary_search(&backend).is_ok())
}

/// How many flows each of these pods began, by address.
pub fn shares(flows: &[(Tuple, Flow)], pods: impl Iterator<Item = u32>) -> BTreeMap<u32, u64> {
    let mut shares: BTreeMap<u32, u64> = pods.map(|address| (address, 0)).collect();
    for (tuple, _) in flows.iter().filter(|(_, flow)| flow.flags & Flow::REPLY == 0) {
        if let Some(count) = shares.get_mut(&tuple.src.0) {
            *count += 1;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use proxy_common::{Ip4, Port};

    use super::*;
    use crate::desired::{EndpointSet, Entry};
    use crate::table::Limits;

    fn tuple(protocol: u8) -> Tuple {
        let address = |last| Ip4::new([10, 96, 0, last]);
        Tuple { src: address(9), dst: address(1), sport: Port::new(4000), dport: Port::new(53), protocol, pad: [0; 3] }
    }

    fn flow(protocol: u8, backend: u8, flags: u32) -> Flow {
        let to = Tuple { dst: Ip4::new([10, 244, 0, backend]), dport: Port::new(5353), ..tuple(protocol) };
        Flow { to, flags, seen: 1000 * SECOND }
    }

    #[test]
    fn silence_is_judged_by_both_directions() {
        let asking = flow(UDP, 1, Flow::CONFIRMED);
        let later = Flow { seen: 1170 * SECOND, ..asking };
        let now = 1200 * SECOND;
        assert!(has_expired(&tuple(UDP), &asking, None, now));
        assert!(!has_expired(&tuple(UDP), &asking, Some(&later), now));
    }

    #[test]
    fn a_closing_connection_goes_soon_and_an_open_one_stays() {
        let now = 1100 * SECOND;
        assert!(has_expired(&tuple(TCP), &flow(TCP, 1, Flow::CONFIRMED | Flow::CLOSING), None, now));
        assert!(!has_expired(&tuple(TCP), &flow(TCP, 1, Flow::CONFIRMED), None, now));
        assert!(has_expired(&tuple(TCP), &flow(TCP, 1, 0), None, now));
    }

    #[test]
    fn a_flow_counts_once_and_for_the_pod_that_began_it() {
        let asking = tuple(TCP);
        let flows = [(asking, flow(TCP, 1, 0)), (asking.reversed(), flow(TCP, 1, Flow::REPLY))];
        let other = Ip4::new([10, 244, 0, 1]).0;
        let counted = shares(&flows, [asking.src.0, other].into_iter());
        assert_eq!(counted, BTreeMap::from([(asking.src.0, 1), (other, 0)]));
    }

    #[test]
    fn datagrams_to_a_gone_endpoint_are_stale_in_both_directions() {
        let mut table = Table::new(Limits { slots: 4, backends: 4, frontends: 4 });
        let frontend = Frontend { addr: [10, 96, 0, 1].into(), port: 53, protocol: UDP, scope: Scope::Internal };
        let backends = vec![Backend::new(Ip4::new([10, 244, 0, 1]), Port::new(5353)).bits()];
        let set = EndpointSet { backends, ..Default::default() };
        let _ = table.change("dns", &[Entry { port: 53, protocol: UDP, frontends: vec![frontend], set }]);
        for (backend, stale) in [(1, false), (2, true)] {
            let asking = flow(UDP, backend, Flow::CONFIRMED);
            assert_eq!(is_stale(&tuple(UDP), &asking, &table), stale);
            let reply = Flow { to: tuple(UDP).reversed(), flags: Flow::REPLY, seen: 0 };
            assert_eq!(is_stale(&asking.to.reversed(), &reply, &table), stale);
        }
        assert!(!is_stale(&tuple(TCP), &flow(TCP, 2, 0), &table));
    }
}
