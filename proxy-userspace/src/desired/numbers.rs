//! What the API has words for, as packets show it.

use std::net::IpAddr;

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
