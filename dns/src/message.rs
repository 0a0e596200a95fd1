//! What is said in answer to a question, and its form on the wire.

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Metadata, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, Record};
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::Request;
use hickory_server::zone_handler::{MessageResponse, MessageResponseBuilder};

use crate::udp::PAYLOAD;

/// Longest datagram for clients that say nothing of what they take.
const PLAIN_PAYLOAD: u16 = 512;
/// EDNS option for local use: who sends it, empty, is told where the answer comes from.
pub(crate) const SOURCE_OPTION: u16 = 65_053;

/// Where an answer comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Zone,
    Cache,
    /// One of the node's own name servers.
    Forward,
    /// The name servers of one zone.
    Stub(Name),
}

impl std::fmt::Display for Source {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Zone => out.write_str("zone"),
            Self::Cache => out.write_str("cache"),
            Self::Forward => out.write_str("forward"),
            Self::Stub(zone) => write!(out, "stub {zone}"),
        }
    }
}

type Records<'a> = std::slice::Iter<'a, Record>;
type Response<'a> = MessageResponse<'a, 'a, Records<'a>, Records<'a>, std::option::IntoIter<&'a Record>, Records<'a>>;

/// An answer without the question.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub metadata: Metadata,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
    pub edns: Option<Edns>,
    pub source: Source,
}

impl Answer {
    /// With this code and no record.
    pub fn empty(request: &Request, code: ResponseCode) -> Self {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.recursion_available = true;
        metadata.response_code = code;
        let edns = request.edns.as_ref().map(|_| {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD).set_version(0);
            edns
        });
        let [answers, authorities, additionals] = [(); 3].map(|()| Vec::new());
        Self { metadata, answers, authorities, additionals, edns, source: Source::Zone }
    }

    pub fn authoritative(request: &Request, code: ResponseCode) -> Self {
        let mut answer = Self::empty(request, code);
        answer.metadata.authoritative = true;
        answer
    }

    /// Clients take the first address: each gets another one first.
    pub fn rotate(&mut self) {
        if self.answers.len() > 1 {
            let by = usize::from(self.metadata.id) % self.answers.len();
            self.answers.rotate_left(by);
        }
    }

    /// Names equal to the one asked for are written as it was: who mixes capitals into a question may look for them.
    pub fn spell(&mut self, name: &Name) {
        for record in self.answers.iter_mut().filter(|record| record.name == *name) {
            record.name = name.clone();
        }
    }

    /// Who asks is told where the answer comes from.
    pub fn name_source(&mut self, request: &Request) {
        let asks = request.edns.as_ref().is_some_and(|edns| edns.option(EdnsCode::Unknown(SOURCE_OPTION)).is_some());
        if let (true, Some(edns)) = (asks, &mut self.edns) {
            edns.options_mut().insert(EdnsOption::Unknown(SOURCE_OPTION, self.source.to_string().into_bytes()));
        }
    }

    /// The message in no more bytes than its client takes: what does not fit is left out and, where it is part of the answer,
    /// said to be.
    pub fn fit(&mut self, request: &Request) -> Option<Vec<u8>> {
        let limit = limit(request);
        loop {
            let bytes = match self.bytes(request) {
                Ok(bytes) if bytes.len() <= limit => return Some(bytes),
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::warn!(%error, "an answer cannot be encoded");
                    return None;
                }
            };
            if !self.shorten() {
                tracing::warn!(length = bytes.len(), limit, "an answer cannot be made to fit");
                return None;
            }
        }
    }

    /// Leaves something out; false if there is nothing.
    fn shorten(&mut self) -> bool {
        if !self.additionals.is_empty() {
            self.additionals.clear();
        } else if !self.authorities.is_empty() && !self.answers.is_empty() {
            self.authorities.clear();
        } else if !self.answers.is_empty() {
            self.metadata.truncation = true;
            self.answers.truncate(self.answers.len() * 3 / 4);
        } else {
            return false;
        }
        true
    }

    fn bytes(&self, request: &Request) -> Result<Vec<u8>, ProtoError> {
        let mut bytes = Vec::with_capacity(PLAIN_PAYLOAD.into());
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(u16::MAX);
        self.response(request).destructive_emit(&mut encoder)?;
        Ok(bytes)
    }

    /// As hickory's response handlers send it.
    pub fn response<'a>(&'a self, request: &'a Request) -> Response<'a> {
        let builder = MessageResponseBuilder::new(&request.queries, self.edns.as_ref());
        builder.build(self.metadata, &self.answers, &self.authorities, None, &self.additionals)
    }
}

/// The longest message that this client takes, and every path lets through.
fn limit(request: &Request) -> usize {
    match request.protocol() {
        Protocol::Udp => {
            let said = request.edns.as_ref().map_or(PLAIN_PAYLOAD, Edns::max_payload);
            said.clamp(PLAIN_PAYLOAD, PAYLOAD).into()
        }
        _ => u16::MAX.into(),
    }
}

/// A message that cannot be read, but says what it is: a question. Anything shorter, and any answer, hears nothing.
pub(crate) fn malformed(bytes: &[u8]) -> Option<Vec<u8>> {
    const RESPONSE: u8 = 0x80;
    const FORMAT_ERROR: u8 = 1;
    let header = bytes.first_chunk::<12>().filter(|header| header[2] & RESPONSE == 0)?;
    // Of the question's flags, what it is and whether it wants recursion.
    let kept = header[2] & 0x79;
    let mut answer = vec![header[0], header[1], RESPONSE | kept, FORMAT_ERROR];
    answer.resize(12, 0);
    Some(answer)
}
