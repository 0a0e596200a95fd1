//! From a question to its answer: the zone first, then the cache, then other name servers.
//!
//! [`Names`] is a request handler as hickory's servers know it, so that whatever takes questions can be put before it. What takes
//! no other server is also answered at once, for threads that do not wait.

use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hickory_proto::op::{Header, HeaderCounts, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};

use crate::autopath::{Searches, Verdict, judge};
use crate::forward::{Flags, Forwarder, Found};
use crate::loops::Loops;
use crate::message::Answer;
use crate::metrics::{Asked, Counters, code_name};
use crate::quick::Quick;
use crate::snapshot::Snapshot;
use crate::zone::{Outcome, Resolved, Zone};

/// The time for all of a search list: resolvers wait five seconds for an answer.
const WALK: Duration = Duration::from_secs(3);

/// Whether each question is told to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryLog {
    On,
    Off,
}

impl From<bool> for QueryLog {
    fn from(wanted: bool) -> Self {
        if wanted { Self::On } else { Self::Off }
    }
}

#[derive(Debug)]
pub(crate) struct Names {
    pub zone: Zone,
    pub quick: Quick,
    pub snapshot: RwLock<Arc<Snapshot>>,
    pub forwarder: Arc<Forwarder>,
    pub loops: Arc<Loops>,
    pub searches: Searches,
    /// Questions answered from further along a search list.
    pub walked: AtomicU64,
    pub counters: Counters,
    pub log: QueryLog,
    /// What `hostname.bind` says.
    pub node: String,
}

impl Names {
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn publish(&self, snapshot: Snapshot) {
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }

    /// The answer when it takes no other server.
    pub fn answer_now(&self, request: &Request) -> Option<Answer> {
        let query = match only_query(request) {
            Ok(query) => query,
            Err(code) => return Some(Answer::empty(request, code)),
        };
        let denial = self.look(request, query).break_value()?;
        let Some(places) = self.places(request, query, &denial) else { return Some(denial) };
        for place in places {
            let said = self.look(request, &at(query, &place)).break_value()?;
            if let Verdict::End(answer) = judge(query, &denial, &place, said) {
                return Some(self.walked(*answer));
            }
        }
        Some(denial)
    }

    /// What is answered here, or what has to be asked of others.
    fn look<'a>(&self, request: &Request, query: &'a Query) -> ControlFlow<Answer, Onward<'a>> {
        if query.query_class() == DNSClass::CH {
            return ControlFlow::Break(self.about_the_server(request, query));
        }
        if self.loops.came_back(query.name()) {
            return ControlFlow::Break(Answer::empty(request, ResponseCode::Refused));
        }
        let Resolved { aliases, end } = self.zone.resolve(&self.snapshot(), query.name(), query.query_type());
        let Outcome::Elsewhere(name) = end else { return ControlFlow::Break(own(request, aliases, end)) };
        let onward = Onward { query, aliases, next: onward(query, name) };
        match self.forwarder.cached(&onward.next, Flags::of(request)) {
            Some(found) => ControlFlow::Break(elsewhere(request, onward, found)),
            None => ControlFlow::Continue(onward),
        }
    }

    async fn answer(&self, request: &Request) -> Answer {
        let query = match only_query(request) {
            Ok(query) => query,
            Err(code) => return Answer::empty(request, code),
        };
        let denial = self.ask(request, query).await;
        let Some(places) = self.places(request, query, &denial) else { return denial };
        match tokio::time::timeout(WALK, self.walk(request, query, &denial, places)).await {
            Ok(Some(answer)) => self.walked(answer),
            // The resolver goes there by itself.
            Ok(None) | Err(_) => denial,
        }
    }

    async fn ask(&self, request: &Request, query: &Query) -> Answer {
        let onward = match self.look(request, query) {
            ControlFlow::Break(answer) => return answer,
            ControlFlow::Continue(onward) => onward,
        };
        match self.forwarder.ask(&onward.next, Flags::of(request), client(request)).await {
            Ok(found) => elsewhere(request, onward, found),
            Err(error) => {
                let name = onward.query.name();
                tracing::debug!(%error, %name, "question not answered");
                let mut answer = Answer::empty(request, ResponseCode::ServFail);
                answer.source = self.forwarder.source_for(name);
                answer
            }
        }
    }

    async fn walk(&self, request: &Request, query: &Query, denial: &Answer, places: Vec<Name>) -> Option<Answer> {
        for place in places {
            let said = self.ask(request, &at(query, &place)).await;
            if let Verdict::End(answer) = judge(query, denial, &place, said) {
                return Some(*answer);
            }
        }
        None
    }

    /// Where else the name may be that the zone denies, for a client whose search list is known.
    fn places(&self, request: &Request, query: &Query, denial: &Answer) -> Option<Vec<Name>> {
        let denied = denial.metadata.response_code == ResponseCode::NXDomain && denial.answers.is_empty();
        let path = denied.then(|| self.searches.of(client(request)))?;
        path?.places(&self.snapshot(), query)
    }

    fn walked(&self, answer: Answer) -> Answer {
        self.walked.fetch_add(1, Ordering::Relaxed);
        answer
    }

    /// Names of class CHAOS tell about the server itself.
    fn about_the_server(&self, request: &Request, query: &Query) -> Answer {
        let text = match query.name().to_lowercase().to_ascii().as_str() {
            "version.bind." | "version.server." => concat!("Amphipod-", env!("CARGO_PKG_VERSION")),
            "hostname.bind." | "id.server." => &self.node,
            _ => return Answer::empty(request, ResponseCode::Refused),
        };
        let mut answer = Answer::authoritative(request, ResponseCode::NoError);
        if query.query_type() == RecordType::TXT {
            let mut record = Record::from_rdata(query.name().clone(), 0, RData::TXT(TXT::new(vec![text.into()])));
            record.dns_class = DNSClass::CH;
            answer.answers.push(record);
        }
        answer
    }

    /// Counts and tells what was asked and answered; the answer as it goes out.
    pub fn finish(&self, shard: usize, request: &Request, mut answer: Answer, since: Instant) -> Answer {
        let (code, took) = (answer.metadata.response_code, since.elapsed());
        let query = request.queries.queries().first().map(|query| query.original());
        let kind = query.map_or(RecordType::ZERO, Query::query_type);
        self.counters.count(shard, Asked { kind: kind.into(), protocol: request.protocol() }, code, took);
        if self.log == QueryLog::On {
            let (name, class) =
                query.map_or((Name::root(), DNSClass::NONE), |query| (query.name().clone(), query.query_class()));
            let (client, id, source, records) =
                (request.src(), answer.metadata.id, &answer.source, answer.answers.len());
            tracing::info!(%client, id, %name, %class, %kind, protocol = %request.protocol(), code = code_name(code), records, %source, ?took, "question");
        }
        answer.name_source(request);
        answer
    }
}

#[async_trait::async_trait]
impl RequestHandler for Names {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut response: R) -> ResponseInfo {
        let since = Instant::now();
        let mut answer = self.answer(request).await;
        answer = self.finish(self.counters.tasks(), request, answer, since);
        let nothing = Header { metadata: answer.metadata, counts: HeaderCounts::default() };
        if answer.fit(request).is_none() {
            return nothing.into();
        }
        match response.send_response(answer.response(request)).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(client = %request.src(), %error, "sending an answer failed");
                nothing.into()
            }
        }
    }
}

fn client(request: &Request) -> IpAddr {
    request.src().ip().to_canonical()
}

/// The one question of a message, or the code to refuse it with.
fn only_query(request: &Request) -> Result<&Query, ResponseCode> {
    if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Err(ResponseCode::BADVERS);
    }
    match (request.metadata.op_code, request.queries.queries()) {
        (OpCode::Query, [query]) => match (query.query_class(), query.query_type()) {
            (_, RecordType::AXFR | RecordType::IXFR) => Err(ResponseCode::Refused),
            (DNSClass::IN | DNSClass::CH, _) => Ok(query.original()),
            _ => Err(ResponseCode::Refused),
        },
        (OpCode::Query, _) => Err(ResponseCode::FormErr),
        _ => Err(ResponseCode::NotImp),
    }
}

/// A question that other servers are asked about: the client's, the aliases that led on from it, and what is asked of them.
struct Onward<'a> {
    query: &'a Query,
    aliases: Vec<Record>,
    next: Query,
}

/// The same question about another place of a search list, written as the client wrote it.
fn at(query: &Query, place: &Name) -> Query {
    let mut there = Query::query(place.clone(), query.query_type());
    there.set_query_class(query.query_class());
    there
}

/// The same question about what an alias leads to.
fn onward(query: &Query, name: Name) -> Query {
    at(query, &name.to_lowercase())
}

fn own(request: &Request, aliases: Vec<Record>, end: Outcome) -> Answer {
    let mut answer = Answer::authoritative(request, ResponseCode::NoError);
    match end {
        Outcome::Found(found) => {
            answer.answers = found.answers;
            answer.additionals = found.additionals;
            answer.rotate();
        }
        Outcome::NoData(soa) => answer.authorities.push(*soa),
        Outcome::NoName(soa) => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            answer.authorities.push(*soa);
        }
        // As others do: the aliases, and nothing behind them.
        Outcome::Circle => {}
        Outcome::Elsewhere(_) => return Answer::empty(request, ResponseCode::ServFail),
    }
    answer.answers.splice(0..0, aliases);
    answer
}

/// Another server's answer as ours, behind the aliases that led to it.
fn elsewhere(request: &Request, Onward { query, aliases, .. }: Onward<'_>, found: Found) -> Answer {
    let mut answer = Answer::empty(request, found.code);
    answer.metadata.authentic_data = found.authentic && aliases.is_empty();
    answer.answers = aliases;
    answer.answers.extend(found.answers);
    answer.authorities = found.authorities;
    answer.additionals = found.additionals;
    answer.source = found.source;
    answer.spell(query.name());
    answer
}
