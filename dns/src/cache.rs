//! Answers of other servers, kept as long as they say, a bounded number of them.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::time::Instant;

/// Entries kept; the oldest give way.
const CAPACITY: usize = 10_000;
const LONGEST: u32 = 3600;
/// Names that do not exist are asked for again sooner.
const LONGEST_NEGATIVE: u32 = 30;

/// A question as far as its answer depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    /// In small letters.
    pub name: String,
    pub kind: u16,
    pub class: u16,
    pub dnssec: bool,
    pub checking_disabled: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Cache {
    entries: HashMap<Question, Entry>,
    order: VecDeque<(Question, Instant)>,
}

#[derive(Debug)]
struct Entry {
    answer: Message,
    stored: Instant,
    lifetime: Duration,
}

impl Cache {
    /// A live answer with its times to live shortened by its age.
    pub fn get(&self, question: &Question, now: Instant) -> Option<Message> {
        let entry = self.entries.get(question)?;
        let age = now.duration_since(entry.stored);
        if age >= entry.lifetime {
            return None;
        }
        let mut answer = entry.answer.clone();
        let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        for section in [&mut answer.answers, &mut answer.authorities, &mut answer.additionals] {
            for record in section {
                record.ttl = record.ttl.saturating_sub(seconds);
            }
        }
        Some(answer)
    }

    pub fn put(&mut self, question: Question, answer: &Message, now: Instant) {
        let Some(seconds) = lifetime(answer).filter(|seconds| *seconds > 0) else { return };
        let entry = Entry { answer: answer.clone(), stored: now, lifetime: Duration::from_secs(seconds.into()) };
        self.entries.insert(question.clone(), entry);
        self.order.push_back((question, now));
        while self.entries.len() > CAPACITY || self.order.len() > 2 * CAPACITY {
            let Some((oldest, stored)) = self.order.pop_front() else { break };
            if self.entries.get(&oldest).is_some_and(|entry| entry.stored == stored) {
                self.entries.remove(&oldest);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

/// How long an answer may be kept; none for failures and cut-off ones.
fn lifetime(answer: &Message) -> Option<u32> {
    if answer.metadata.truncation {
        return None;
    }
    match answer.metadata.response_code {
        ResponseCode::NoError if !answer.answers.is_empty() => {
            let shortest = answer.answers.iter().map(|record| record.ttl).min()?;
            Some(shortest.min(LONGEST))
        }
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let soa = answer.authorities.iter().find(|record| record.record_type() == RecordType::SOA)?;
            Some(negative_lifetime(soa).min(LONGEST_NEGATIVE))
        }
        _ => None,
    }
}

/// RFC 2308: the lesser of the record's own time and its minimum field.
fn negative_lifetime(soa: &Record) -> u32 {
    match &soa.data {
        RData::SOA(data) => soa.ttl.min(data.minimum),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{MessageType, OpCode};
    use hickory_proto::rr::Name;
    use hickory_proto::rr::rdata::{A, SOA};

    use super::*;

    fn question(name: &str) -> Question {
        Question { name: name.into(), kind: 1, class: 1, dnssec: false, checking_disabled: false }
    }

    fn answer(ttl: u32) -> Message {
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        message.answers.push(Record::from_rdata(Name::root(), ttl, RData::A(A::new(192, 0, 2, 1))));
        message
    }

    #[test]
    fn answers_age_and_end() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        cache.put(question("a"), &answer(10), start);
        let after = |seconds| {
            cache.get(&question("a"), start + Duration::from_secs(seconds)).map(|message| message.answers[0].ttl)
        };
        assert_eq!((after(0), after(4), after(10)), (Some(10), Some(6), None));
    }

    #[test]
    fn absence_is_kept_as_its_soa_says_and_failures_are_not() {
        let mut missing = Message::new(1, MessageType::Response, OpCode::Query);
        missing.metadata.response_code = ResponseCode::NXDomain;
        assert_eq!(lifetime(&missing), None);
        let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, 7);
        missing.authorities.push(Record::from_rdata(Name::root(), 300, RData::SOA(soa)));
        assert_eq!(lifetime(&missing), Some(7));
        missing.metadata.response_code = ResponseCode::ServFail;
        assert_eq!(lifetime(&missing), None);
        let mut cut = answer(10);
        cut.metadata.truncation = true;
        assert_eq!(lifetime(&cut), None);
    }

    #[test]
    fn the_oldest_give_way() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        for number in 0..CAPACITY + 5 {
            cache.put(question(&number.to_string()), &answer(60), start);
        }
        assert_eq!(cache.len(), CAPACITY);
        assert!(cache.get(&question("0"), start).is_none());
        assert!(cache.get(&question("9"), start).is_some());
    }
}
