//! The answers that pods ask for all the time, from bytes to bytes: addresses of services, and that there are none. Pure.
//!
//! Everything else, and everything unusual about a question, is left to the general code. Both give the same answers, as a test
//! shows.

use std::net::IpAddr;

use hickory_proto::rr::Name;
use hickory_proto::serialize::binary::BinEncodable;

use crate::message::SOURCE_OPTION;
use crate::snapshot::{Records, Snapshot};
use crate::udp::PAYLOAD;
use crate::zone::{SOA_TIMES, TTL};

const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_SOA: u16 = 6;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;
const LONGEST_LABEL: u8 = 63;
const LONGEST_NAME: usize = 255;
const NO_ERROR: u8 = 0;
pub(crate) const NO_NAME: u8 = 3;
/// The name at the start of the question.
const QUESTION_NAME: u16 = 0xc000 | HEADER as u16;
/// Of an OPT record with nothing in it.
const OPT: usize = 11;

/// What was asked and what was said, as numbers of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Said {
    pub kind: u16,
    pub code: u8,
}

/// What is the same for all answers of a zone.
#[derive(Debug, Clone)]
pub(crate) struct Quick {
    /// `svc` and the domain, as messages carry them, in small letters.
    suffix: Vec<u8>,
    /// The domain's SOA record without its serial number and the times behind it.
    soa: Vec<u8>,
}

impl Quick {
    pub fn new(domain: &Name) -> Self {
        // A domain that made a zone has an encoding.
        let domain = domain.to_lowercase().to_bytes().unwrap_or_default();
        let below = |labels: &[&str]| {
            let mut name: Vec<u8> =
                labels.iter().flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
            name.extend_from_slice(&domain);
            name
        };
        let (server, mailbox) = (below(&["ns", "dns"]), below(&["hostmaster"]));
        let times = size_of_val(&SOA_TIMES) + 4;
        let mut soa = domain.clone();
        soa.extend(TYPE_SOA.to_be_bytes());
        soa.extend(CLASS_IN.to_be_bytes());
        soa.extend(TTL.to_be_bytes());
        soa.extend(((server.len() + mailbox.len() + times) as u16).to_be_bytes());
        soa.extend([server, mailbox].concat());
        Self { suffix: below(&["svc"]), soa }
    }

    /// Puts the answer into `answer`; none leaves the question to the general code.
    pub fn answer(&self, snapshot: &Snapshot, asked: &[u8], answer: &mut Vec<u8>) -> Option<Said> {
        let question = Question::read(asked)?;
        let (service, below) = self.service_labels(&question.name)?;
        let records = snapshot.service_by_labels(service);
        if records.is_some() && below {
            return None;
        }
        let mut writer = Writer { answer, question: &question, asked };
        let code = match records {
            Some(Records::External { .. }) => return None,
            Some(Records::ClusterIp { addresses, .. } | Records::Headless { addresses, .. })
                if !addresses.is_empty() =>
            {
                writer.addresses(addresses.iter(), &self.soa, snapshot.serial())
            }
            // A headless service has a name while it has endpoints.
            _ => writer.nothing(NO_NAME, &self.soa, snapshot.serial()),
        };
        let fits = answer.len() <= usize::from(question.limit.min(PAYLOAD));
        fits.then_some(Said { kind: question.kind, code })
    }

    /// The two labels of a service in a name of the zone, and whether others stand before them.
    fn service_labels<'a>(&self, name: &'a Labels) -> Option<(&'a [u8], bool)> {
        let below = name.bytes().strip_suffix(&*self.suffix)?;
        let mut starts = name.starts.iter().map(|start| usize::from(*start)).take_while(|start| *start < below.len());
        // The suffix must begin where a label does: its first byte is that label's length.
        let count = starts.by_ref().count();
        let second_last = count.checked_sub(2)?;
        let whole = name.starts.iter().any(|start| usize::from(*start) == below.len());
        let service = usize::from(*name.starts.get(second_last)?);
        whole.then_some((&below[service..], second_last > 0))
    }
}

/// A name in small letters, as messages carry it.
struct Labels {
    bytes: [u8; LONGEST_NAME],
    length: usize,
    starts: Starts,
}

/// Where the labels begin, bounded as names are.
struct Starts {
    at: [u8; 128],
    count: usize,
}

impl std::ops::Deref for Starts {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.at[..self.count]
    }
}

impl Labels {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

struct Question {
    name: Labels,
    kind: u16,
    /// Where the question ends.
    end: usize,
    edns: bool,
    /// Longest answer that the client takes.
    limit: u16,
}

impl Question {
    /// One question about addresses of class IN, and at most an OPT record of version 0 beside it.
    fn read(asked: &[u8]) -> Option<Self> {
        let header = asked.first_chunk::<HEADER>()?;
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        // A query, not cut off; of the flags only "recursion desired" and "checking disabled".
        let plain = header[2] & !1 == 0 && header[3] & !0x10 == 0;
        if !plain || (count(4), count(6), count(8)) != (1, 0, 0) || count(10) > 1 {
            return None;
        }
        let name = read_name(asked.get(HEADER..)?)?;
        let end = HEADER + name.length + 4;
        let word = |at: usize| Some(u16::from_be_bytes([*asked.get(at)?, *asked.get(at + 1)?]));
        let (kind, class) = (word(end - 4)?, word(end - 2)?);
        if class != CLASS_IN || !matches!(kind, TYPE_A | TYPE_AAAA) {
            return None;
        }
        let edns = count(10) == 1;
        let mut limit = 512;
        if edns {
            let opt = asked.get(end..)?;
            let length = usize::from(word(end + 9)?);
            // Root name, type, and version 0; one option alone asks for something that this server does.
            let plain = opt[0] == 0 && word(end + 1)? == TYPE_OPT && opt[6] == 0 && opt.len() == OPT + length;
            if !plain || has_option(&opt[OPT..], SOURCE_OPTION) {
                return None;
            }
            limit = word(end + 3)?.max(512);
        } else if asked.len() != end {
            return None;
        }
        Some(Self { name, kind, end, edns, limit })
    }
}

/// Whether these options hold this one, or are no options at all.
fn has_option(mut options: &[u8], wanted: u16) -> bool {
    while let Some((head, rest)) = options.split_first_chunk::<4>() {
        let [code, length] = [[head[0], head[1]], [head[2], head[3]]].map(u16::from_be_bytes);
        match rest.get(usize::from(length)..) {
            Some(next) if code != wanted => options = next,
            _ => return true,
        }
    }
    !options.is_empty()
}

fn read_name(bytes: &[u8]) -> Option<Labels> {
    let mut name = Labels { bytes: [0; LONGEST_NAME], length: 0, starts: Starts { at: [0; 128], count: 0 } };
    loop {
        let length = *bytes.get(name.length)?;
        let end = name.length + 1 + usize::from(length);
        if length > LONGEST_LABEL || end > LONGEST_NAME {
            return None;
        }
        let label = bytes.get(name.length..end)?;
        for (small, byte) in name.bytes[name.length..end].iter_mut().zip(label) {
            *small = byte.to_ascii_lowercase();
        }
        // A length is no letter.
        name.bytes[name.length] = length;
        if length == 0 {
            name.length = end;
            return Some(name);
        }
        *name.starts.at.get_mut(name.starts.count)? = name.length as u8;
        name.starts.count += 1;
        name.length = end;
    }
}

struct Writer<'a> {
    answer: &'a mut Vec<u8>,
    question: &'a Question,
    asked: &'a [u8],
}

impl Writer<'_> {
    /// Addresses of the family asked for, each client with another one first; or that there are none. The answer's code.
    fn addresses<'a>(&mut self, all: impl Iterator<Item = &'a IpAddr> + Clone, soa: &[u8], serial: u32) -> u8 {
        let wanted = all.filter(|address| match self.question.kind {
            TYPE_A => address.is_ipv4(),
            _ => address.is_ipv6(),
        });
        let count = wanted.clone().count();
        if count == 0 {
            return self.nothing(NO_ERROR, soa, serial);
        }
        self.begin(NO_ERROR, count as u16, 0);
        let first = usize::from(u16::from_be_bytes([self.asked[0], self.asked[1]])) % count;
        for address in wanted.clone().skip(first).chain(wanted.take(first)) {
            self.answer.extend(QUESTION_NAME.to_be_bytes());
            self.answer.extend(self.question.kind.to_be_bytes());
            self.answer.extend(CLASS_IN.to_be_bytes());
            self.answer.extend(TTL.to_be_bytes());
            match address {
                IpAddr::V4(ip) => {
                    self.answer.extend([0, 4]);
                    self.answer.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    self.answer.extend([0, 16]);
                    self.answer.extend(ip.octets());
                }
            }
        }
        self.end();
        NO_ERROR
    }

    fn nothing(&mut self, code: u8, soa: &[u8], serial: u32) -> u8 {
        self.begin(code, 0, 1);
        self.answer.extend_from_slice(soa);
        self.answer.extend(serial.to_be_bytes());
        self.answer.extend(SOA_TIMES.iter().flat_map(|time| time.to_be_bytes()));
        self.end();
        code
    }

    fn begin(&mut self, code: u8, answers: u16, authorities: u16) {
        const RESPONSE: u8 = 0x80;
        const AUTHORITATIVE: u8 = 0x04;
        const RECURSION_AVAILABLE: u8 = 0x80;
        let asked = self.asked;
        self.answer.clear();
        self.answer.extend_from_slice(&asked[..2]);
        self.answer.extend([asked[2] | RESPONSE | AUTHORITATIVE, asked[3] | RECURSION_AVAILABLE | code]);
        for count in [1, answers, authorities, u16::from(self.question.edns)] {
            self.answer.extend(count.to_be_bytes());
        }
        self.answer.extend_from_slice(&asked[HEADER..self.question.end]);
    }

    fn end(&mut self) {
        if self.question.edns {
            self.answer.push(0);
            self.answer.extend(TYPE_OPT.to_be_bytes());
            self.answer.extend(PAYLOAD.to_be_bytes());
            self.answer.extend([0; 6]);
        }
    }
}
