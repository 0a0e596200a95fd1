//! What the flows of the packet path say together. Pure; the sweeper does what follows from it.

use std::collections::BTreeMap;

use proxy_common::{Addr, Flow, Member, Tuple};

/// How many flows that are answered and not over each of these pods began, by address.
pub fn shares<A: Addr>(flows: &[(Tuple<A>, Flow<A>)], pods: impl Iterator<Item = A>) -> BTreeMap<A, u64> {
    let mut shares: BTreeMap<A, u64> = pods.map(|address| (address, 0)).collect();
    for (tuple, _) in flows.iter().filter(|(_, flow)| flow.counts()) {
        if let Some(count) = shares.get_mut(&tuple.src) {
            *count += 1;
        }
    }
    shares
}

/// The endpoints whose answers must find a client that kept its address and port.
pub fn exposed<A: Addr>(flows: &[(Tuple<A>, Flow<A>)]) -> impl Iterator<Item = A::End> {
    let kept = flows.iter().filter(|(_, flow)| flow.snat == 0 && flow.endpoint() != Member::NONE);
    kept.map(|(_, flow)| flow.to.answerer())
}

#[cfg(test)]
mod tests {
    use proxy_common::{Ip4, Port, TCP};

    use super::*;

    fn tuple() -> Tuple {
        let address = |last| Ip4::new([10, 96, 0, last]);
        Tuple {
            src: address(9),
            dst: address(1),
            sport: Port::new(4000),
            dport: Port::new(53),
            protocol: TCP,
            pad: 0,
            rest: 0,
        }
    }

    fn flow(backend: u8) -> Flow {
        let to = Tuple { dst: Ip4::new([10, 244, 0, backend]), dport: Port::new(5353), ..tuple() };
        Flow { to, replied: 1, member: Member { index: 7, generation: 1 }.bits(), ..Flow::default() }
    }

    #[test]
    fn an_answered_flow_counts_for_the_pod_that_began_it_until_it_is_over() {
        let unanswered = Flow { replied: 0, ..flow(1) };
        let over = Flow { reset: 1, ..flow(1) };
        let flows = [(tuple(), flow(1)), (tuple().reversed(), flow(1)), (tuple(), unanswered), (tuple(), over)];
        let other = Ip4::new([10, 244, 0, 1]);
        let counted = shares(&flows, [tuple().src, other].into_iter());
        assert_eq!(counted, BTreeMap::from([(tuple().src, 1), (other, 0)]));
    }

    #[test]
    fn only_kept_sources_of_services_are_exposed() {
        let moved = Flow { snat: 5, ..flow(2) };
        let direct = Flow { member: Member::NONE.bits(), ..flow(3) };
        let exposed: Vec<u64> = exposed(&[(tuple(), flow(1)), (tuple(), moved), (tuple(), direct)]).collect();
        assert_eq!(exposed, [Ip4::new([10, 244, 0, 1]).end(Port::new(5353), TCP)]);
    }
}
