//! Port ranges kept from the kernel's own choice, in the notation of `ip_local_reserved_ports`.

use std::fmt;

use crate::{Result, sysctl};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub fn count(&self) -> u16 {
        self.last.saturating_sub(self.first).saturating_add(1)
    }

    pub fn has(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// Keeps the kernel from choosing further ports: what answers there would get the answers to connections that show them.
pub(crate) fn reserve(ranges: impl Iterator<Item = PortRange>) -> Result<()> {
    let ranges: Vec<PortRange> = ranges.collect();
    if ranges.is_empty() {
        return Ok(());
    }
    sysctl::write(sysctl::RESERVED_PORTS, &merge(&sysctl::read(sysctl::RESERVED_PORTS)?, &ranges))
}

/// Gives ports back to the kernel's choice.
pub(crate) fn release(ports: &[u16]) -> Result<()> {
    if ports.is_empty() {
        return Ok(());
    }
    sysctl::write(sysctl::RESERVED_PORTS, &without(&sysctl::read(sysctl::RESERVED_PORTS)?, ports))
}

fn without(list: &str, ports: &[u16]) -> String {
    let mut ranges = ranges(list);
    for port in ports {
        let split = ranges.iter().position(|range| range.has(*port)).map(|at| (at, ranges.remove(at)));
        let Some((at, range)) = split else { continue };
        let before = (range.first < *port).then(|| PortRange { first: range.first, last: port - 1 });
        let after = (range.last > *port).then(|| PortRange { first: port + 1, last: range.last });
        ranges.splice(at..at, before.into_iter().chain(after));
    }
    shown(&ranges)
}

/// Adds ranges to a list such as `8080,30000-32767`; overlapping and touching ones become one.
pub(crate) fn merge(list: &str, add: &[PortRange]) -> String {
    let mut ranges: Vec<PortRange> = ranges(list).into_iter().chain(add.iter().copied()).collect();
    ranges.sort();
    let mut merged: Vec<PortRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.first <= last.last.saturating_add(1) => last.last = last.last.max(range.last),
            _ => merged.push(range),
        }
    }
    shown(&merged)
}

/// Those that a list names.
pub(crate) fn ranges(list: &str) -> Vec<PortRange> {
    list.trim().split(',').filter_map(parse).collect()
}

fn shown(ranges: &[PortRange]) -> String {
    ranges.iter().map(PortRange::to_string).collect::<Vec<_>>().join(",")
}

fn parse(text: &str) -> Option<PortRange> {
    let (first, last) = text.trim().split_once('-').unwrap_or((text.trim(), text.trim()));
    Some(PortRange { first: first.parse().ok()?, last: last.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_taken_out_wherever_they_stand() {
        assert_eq!(without("80,8080-8082,9100", &[80, 8081, 9100, 1]), "8080,8082");
        assert_eq!(without("8080-8081\n", &[8080]), "8081");
        assert_eq!(without("8080-8081\n", &[8081, 8080]), "");
        assert_eq!(without("65534-65535,1-2", &[65535, 1]), "65534,2");
    }

    #[test]
    fn ranges_are_merged_with_what_is_there() {
        let ours = [PortRange { first: 30_000, last: 32_767 }, PortRange { first: 50_000, last: 64_999 }];
        assert_eq!(merge("\n", &ours), "30000-32767,50000-64999");
        assert_eq!(merge("8080,32768-33000\n", &ours), "8080,30000-33000,50000-64999");
        assert_eq!(merge("30000-32767,50000-64999", &ours), "30000-32767,50000-64999");
        assert_eq!(merge("65535", &[PortRange { first: 65_000, last: 65_535 }]), "65000-65535");
    }
}
