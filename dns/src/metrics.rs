//! What was asked, answered and forwarded, counted, in Prometheus' text form; named after CoreDNS' metrics.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_server::net::xfer::Protocol;

use crate::quick::Said;

/// Types counted by name; others together.
const TYPES: [(u16, &str); 14] = [
    (1, "A"),
    (28, "AAAA"),
    (33, "SRV"),
    (12, "PTR"),
    (16, "TXT"),
    (5, "CNAME"),
    (2, "NS"),
    (6, "SOA"),
    (15, "MX"),
    (35, "NAPTR"),
    (43, "DS"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (255, "ANY"),
];
const CODES: [&str; 6] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];
const OTHER: &str = "other";
/// Upper bounds in µs: CoreDNS', each twice the one before.
const FIRST_BOUND: u64 = 250;
const BOUNDS: usize = 16;

pub(crate) struct Asked {
    pub kind: u16,
    pub protocol: Protocol,
}

/// A shard for each thread, so that none waits for another's cache line, and one for all tasks.
#[derive(Debug)]
pub(crate) struct Counters {
    shards: Vec<Shard>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    /// By transport, then type.
    asked: [[AtomicU64; TYPES.len() + 1]; 2],
    answered: [AtomicU64; CODES.len() + 1],
    /// By time, not summed up; the last beyond all bounds.
    took: [AtomicU64; BOUNDS + 1],
    total_ns: AtomicU64,
}

impl Counters {
    pub fn new(threads: usize) -> Self {
        Self { shards: std::iter::repeat_with(Shard::default).take(threads + 1).collect() }
    }

    /// The tasks' shard.
    pub fn tasks(&self) -> usize {
        self.shards.len() - 1
    }

    pub fn count(&self, shard: usize, asked: Asked, code: ResponseCode, took: Duration) {
        let shard = &self.shards[shard];
        let transport = usize::from(asked.protocol != Protocol::Udp);
        shard.asked[transport][type_index(asked.kind)].fetch_add(1, Relaxed);
        shard.answered[code_index(u16::from(code))].fetch_add(1, Relaxed);
        shard.time(took, 1);
    }

    /// Answers to datagrams given together.
    pub fn count_batch(&self, shard: usize, said: &[Said], took: Duration) {
        let shard = &self.shards[shard];
        for said in said {
            shard.asked[0][type_index(said.kind)].fetch_add(1, Relaxed);
            shard.answered[code_index(said.code.into())].fetch_add(1, Relaxed);
        }
        shard.time(took, said.len() as u64);
    }

    fn sum(&self, pick: impl Fn(&Shard) -> &AtomicU64) -> u64 {
        self.shards.iter().map(|shard| pick(shard).load(Relaxed)).sum()
    }

    pub fn text(&self) -> String {
        let mut out = String::from("# TYPE amphipod_dns_requests_total counter\n");
        for (transport, protocol) in ["udp", "tcp"].iter().enumerate() {
            for (index, name) in TYPES.iter().map(|(_, name)| *name).chain([OTHER]).enumerate() {
                let count = self.sum(|shard| &shard.asked[transport][index]);
                if count > 0 {
                    let _ =
                        writeln!(out, "amphipod_dns_requests_total{{proto=\"{protocol}\",type=\"{name}\"}} {count}");
                }
            }
        }
        out += "# TYPE amphipod_dns_responses_total counter\n";
        for (index, name) in CODES.into_iter().chain([OTHER]).enumerate() {
            let count = self.sum(|shard| &shard.answered[index]);
            let _ = writeln!(out, "amphipod_dns_responses_total{{rcode=\"{name}\"}} {count}");
        }
        out += "# TYPE amphipod_dns_request_duration_seconds histogram\n";
        let mut below = 0;
        for index in 0..=BOUNDS {
            below += self.sum(|shard| &shard.took[index]);
            let bound = match index {
                BOUNDS => "+Inf".to_owned(),
                _ => (bound_us(index) as f64 / 1e6).to_string(),
            };
            let _ = writeln!(out, "amphipod_dns_request_duration_seconds_bucket{{le=\"{bound}\"}} {below}");
        }
        let total = self.sum(|shard| &shard.total_ns) as f64 / 1e9;
        let _ = writeln!(
            out,
            "amphipod_dns_request_duration_seconds_sum {total}\namphipod_dns_request_duration_seconds_count {below}"
        );
        out
    }
}

impl Shard {
    fn time(&self, took: Duration, count: u64) {
        if count == 0 {
            return;
        }
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let index = (0..BOUNDS).find(|index| us <= bound_us(*index)).unwrap_or(BOUNDS);
        self.took[index].fetch_add(count, Relaxed);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.total_ns.fetch_add(ns.saturating_mul(count), Relaxed);
    }
}

/// As name servers' tools write it.
pub(crate) fn code_name(code: ResponseCode) -> String {
    let number = u16::from(code);
    CODES.get(usize::from(number)).map_or_else(|| format!("RCODE{number}"), |name| (*name).to_owned())
}

fn bound_us(index: usize) -> u64 {
    FIRST_BOUND << index
}

fn type_index(kind: u16) -> usize {
    TYPES.iter().position(|(number, _)| *number == kind).unwrap_or(TYPES.len())
}

fn code_index(code: u16) -> usize {
    usize::from(code).min(CODES.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_and_tasks_count_is_told_as_one() {
        let counters = Counters::new(1);
        counters.count_batch(0, &[Said { kind: 1, code: 0 }, Said { kind: 28, code: 3 }], Duration::from_micros(251));
        let asked = Asked { kind: 257, protocol: Protocol::Tcp };
        counters.count(counters.tasks(), asked, ResponseCode::BADVERS, Duration::from_secs(60));
        let text = counters.text();
        for line in [
            "amphipod_dns_requests_total{proto=\"udp\",type=\"A\"} 1",
            "amphipod_dns_requests_total{proto=\"udp\",type=\"AAAA\"} 1",
            "amphipod_dns_requests_total{proto=\"tcp\",type=\"other\"} 1",
            "amphipod_dns_responses_total{rcode=\"NOERROR\"} 1",
            "amphipod_dns_responses_total{rcode=\"NXDOMAIN\"} 1",
            "amphipod_dns_responses_total{rcode=\"other\"} 1",
            "amphipod_dns_request_duration_seconds_bucket{le=\"0.00025\"} 0",
            "amphipod_dns_request_duration_seconds_bucket{le=\"0.0005\"} 2",
            "amphipod_dns_request_duration_seconds_bucket{le=\"8.192\"} 2",
            "amphipod_dns_request_duration_seconds_bucket{le=\"+Inf\"} 3",
            "amphipod_dns_request_duration_seconds_count 3",
        ] {
            assert!(text.lines().any(|told| told == line), "{line}\n{text}");
        }
    }
}
