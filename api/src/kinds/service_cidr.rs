//! ServiceCIDRs: the ranges that Services take their addresses from.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT};
use crate::table::cells::joined;
use crate::validate::{At, Errors, is_cidr};
use crate::value::{items, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(|object, errors| ranges(&At::of(object, "spec").at("cidrs"), errors)),
    validate_update: Some(update),
    cells: Some(|o, _| vec![("CIDRs", json!(joined(&o["spec"]["cidrs"])))]),
    inactive: Some("addresses of Services come from the range that the server was started with"),
    none: &[Aspect::Defaults, Aspect::Warnings],
    ..DEFAULT
};

fn ranges(ranges: &At<'_>, errors: &mut Errors) {
    let list: Vec<&str> = items(ranges.value).map(text).collect();
    match list.len() {
        0 => return ranges.required("at least one CIDR required", errors),
        1 | 2 => {}
        _ => {
            let shown =
                crate::validate::internal::shown("networking.v1.ServiceCIDRSpec", &json!({"cidrs": ranges.value}));
            return ranges.invalid_as(shown, "may only hold up to 2 values", errors);
        }
    }
    ranges.items().for_each(|range| self::range(&range, errors));
    let families: Vec<bool> = list.iter().filter(|range| is_cidr(range)).map(|range| range.contains(':')).collect();
    if families.len() == 2 && families[0] == families[1] {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        ranges.invalid(why, errors);
    }
}

/// A range in its one canonical form.
fn range(range: &At<'_>, errors: &mut Errors) {
    let parsed = range.text().split_once('/').and_then(|(ip, bits)| {
        let ip: IpAddr = ip.parse().ok().filter(|_| is_cidr(range.text()))?;
        Some((ip, bits, bits.parse::<u32>().ok()?))
    });
    let Some((ip, digits, bits)) = parsed else {
        return range.invalid("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)", errors);
    };
    let network: IpAddr = match ip {
        IpAddr::V4(ip) => std::net::Ipv4Addr::from(ip.to_bits() & u32::MAX.checked_shl(32 - bits).unwrap_or(0)).into(),
        IpAddr::V6(ip) => {
            std::net::Ipv6Addr::from(ip.to_bits() & u128::MAX.checked_shl(128 - bits).unwrap_or(0)).into()
        }
    };
    if digits.len() > 1 && digits.starts_with('0') {
        range.invalid("must not have leading 0s in IP or prefix length", errors);
    } else if matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some()) {
        range.invalid("must not have an IPv4-mapped IPv6 address", errors);
    } else if network != ip {
        range.invalid("must not have bits set beyond the prefix length", errors);
    } else if format!("{network}/{bits}") != range.text() {
        range.invalid(format!("must be in canonical form (\"{network}/{bits}\")"), errors);
    }
}

/// A second family may be added; what is there stays.
fn update(new: &Value, old: &Value, errors: &mut Errors) {
    let (now, was) = (At::of(new, "spec").at("cidrs"), At::of(old, "spec").at("cidrs"));
    match (items(was.value).len(), items(now.value).len()) {
        (n, m) if n == m => now.items().zip(was.items()).for_each(|(now, was)| now.unchanged(&was, errors)),
        (1, 2) => {
            if let (Some(now), Some(was)) = (now.items().next(), was.items().next()) {
                now.unchanged(&was, errors);
            }
            ranges(&now, errors);
        }
        _ => now.invalid_as(now.value.clone(), "field is immutable", errors),
    }
}
