//! What the API has words for, as packets show it.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use proxy_common::{Family, SCTP, TCP, UDP};

pub(super) fn family_of(ip: &IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// As in IP headers.
pub fn protocol_number(name: &str) -> Option<u8> {
    match name {
        "" | "TCP" => Some(TCP),
        "UDP" => Some(UDP),
        "SCTP" => Some(SCTP),
        _ => None,
    }
}

/// So many bits of an address; none for more than it has. What is set behind them is not looked at.
pub fn range(ip: IpAddr, length: u8) -> Option<IpNetwork> {
    let given = IpNetwork::new(ip, length).ok()?;
    IpNetwork::new(given.network(), length).ok()
}

/// From `ADDRESS/LENGTH`.
pub(super) fn parse_range(text: &str) -> Option<IpNetwork> {
    let (ip, length) = text.trim().split_once('/')?;
    range(ip.parse().ok()?, length.parse().ok()?)
}
