//! The formats of texts that schemas of custom resources may ask for; others are let through, as upstream does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use regex::Regex;

use crate::names::{dns_label, dns_subdomain};
use crate::time;

pub type Format = fn(&str) -> bool;

/// A format by its name, in which dashes count for nothing.
pub fn named(name: &str) -> Option<Format> {
    let name = name.replace('-', "");
    TABLE.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
}

/// A format that texts are held against.
pub fn is_known(name: &str) -> bool {
    named(name).is_some()
}

macro_rules! pattern {
    ($text:literal) => {
        |text: &str| {
            static PATTERN: LazyLock<Regex> = LazyLock::new(|| Regex::new($text).expect("a pattern of ours"));
            PATTERN.is_match(text)
        }
    };
}

const TABLE: [(&str, Format); 26] = [
    ("bsonobjectid", pattern!("^[0-9a-fA-F]{24}$")),
    ("uri", |text| text.starts_with('/') || pattern!("^[A-Za-z][A-Za-z0-9+.-]*:[^\\s#]+$")(text)),
    ("email", pattern!("^[^\\s@<>]+@[^\\s@<>]+$")),
    ("hostname", |text| {
        text.len() <= 255
            && pattern!("^[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})?(\\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})?)*\\.?$")(text)
    }),
    ("ipv4", |text| text.parse::<Ipv4Addr>().is_ok()),
    ("ipv6", |text| text.parse::<Ipv6Addr>().is_ok()),
    ("cidr", cidr),
    ("mac", pattern!("^([0-9A-Fa-f]{2}[:-]){5}([0-9A-Fa-f]{2})$|^([0-9A-Fa-f]{4}\\.){2}[0-9A-Fa-f]{4}$")),
    ("uuid", pattern!("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$")),
    ("uuid3", pattern!("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$")),
    ("uuid4", pattern!("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$")),
    ("uuid5", pattern!("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$")),
    ("isbn", |text| isbn10(text) || isbn13(text)),
    ("isbn10", isbn10),
    ("isbn13", isbn13),
    ("creditcard", |text| {
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        pattern!(
            "^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35\\d{3})\\d{11})$"
        )(&digits)
    }),
    ("ssn", pattern!("^\\d{3}[- ]?\\d{2}[- ]?\\d{4}$")),
    ("hexcolor", pattern!("^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$")),
    ("rgbcolor", pattern!("^rgb\\(\\s*\\d{1,3}\\s*,\\s*\\d{1,3}\\s*,\\s*\\d{1,3}\\s*\\)$")),
    ("byte", |text| STANDARD.decode(text).is_ok()),
    ("password", |_| true),
    ("date", |text| time::parse(&format!("{text}T00:00:00Z")).is_ok()),
    (
        "duration",
        pattern!(
            "^[+-]?(\\d+(\\.\\d*)?|\\.\\d+)\\s*(ns|us|µs|μs|ms|s|m|h|d|w|nano|nanos|nanosecond|nanoseconds|micro|micros|microsecond|microseconds|milli|millis|millisecond|milliseconds|second|seconds|minute|minutes|hour|hours|day|days|week|weeks)((\\d+(\\.\\d*)?|\\.\\d+)(ns|us|µs|μs|ms|s|m|h))*$|^0$"
        ),
    ),
    ("datetime", |text| time::parse(text).is_ok()),
    ("k8sshortname", |text| dns_label(text).is_empty()),
    ("k8slongname", |text| dns_subdomain(text).is_empty()),
];

fn cidr(text: &str) -> bool {
    let bits = |ip: IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    text.split_once('/').is_some_and(|(ip, length)| {
        ip.parse::<IpAddr>().is_ok_and(|ip| length.parse::<u8>().is_ok_and(|length| length <= bits(ip)))
    })
}

fn digits(text: &str) -> Vec<char> {
    text.chars().filter(|c| !matches!(c, '-' | ' ')).collect()
}

fn isbn10(text: &str) -> bool {
    let digits = digits(text);
    let value = |(at, c): (usize, &char)| match c {
        'X' if at == 9 => Some(10),
        c => c.to_digit(10),
    };
    let values: Option<Vec<u32>> = digits.iter().enumerate().map(value).collect();
    digits.len() == 10
        && values.is_some_and(|v| v.iter().zip((1..=10).rev()).map(|(v, w)| v * w).sum::<u32>() % 11 == 0)
}

fn isbn13(text: &str) -> bool {
    let digits = digits(text);
    let values: Option<Vec<u32>> = digits.iter().map(|c| c.to_digit(10)).collect();
    let weights = [1, 3].iter().cycle();
    digits.len() == 13 && values.is_some_and(|v| v.iter().zip(weights).map(|(v, w)| v * w).sum::<u32>() % 10 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_know_their_own() {
        for (name, fine, wrong) in [
            ("ipv4", "10.0.0.1", "10.0.0"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("date-time", "2020-01-02T03:04:05Z", "yesterday"),
            ("date", "2020-02-29", "2021-02-29"),
            ("uuid", "550e8400-e29b-41d4-a716-446655440000", "550e8400"),
            ("isbn", "0321751043", "0321751044"),
            ("isbn13", "978-0321751041", "978-0321751042"),
            ("duration", "22 ns", "soon"),
            ("byte", "aGk=", "a"),
            ("k8s-short-name", "a-b", "A"),
            ("mac", "00:11:22:33:44:55", "00:11"),
        ] {
            let format = named(name).unwrap();
            assert!(format(fine) && !format(wrong), "{name}");
        }
        assert!(named("odd").is_none() && TABLE.iter().all(|(name, _)| named(name).is_some()));
    }
}
