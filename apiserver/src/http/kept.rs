//! Documents that take long to make and large memory to keep: made once per set of kinds, kept compressed, and sent so to
//! clients that can read it.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::{Read, Write};
use std::sync::{Mutex, PoisonError};

use api::kind::Registry;
use api::status::Status;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;

use super::read::header_of;
use super::reply::{self, Reply};

/// By name; what another set of kinds gave is forgotten.
#[derive(Default)]
pub struct Documents {
    kept: Mutex<(u64, HashMap<String, Document>)>,
}

#[derive(Clone)]
pub struct Document {
    etag: HeaderValue,
    packed: Bytes,
}

impl Document {
    fn new(text: &[u8]) -> Result<Self, Status> {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let etag = format!("\"{:016X}\"", hasher.finish());
        let mut packer = GzEncoder::new(Vec::new(), Compression::default());
        packer.write_all(text).map_err(Status::internal)?;
        let packed = packer.finish().map_err(Status::internal)?.into();
        Ok(Self { etag: etag.parse().map_err(Status::internal)?, packed })
    }

    fn text(&self) -> Result<Vec<u8>, Status> {
        let mut text = Vec::new();
        GzDecoder::new(&*self.packed).read_to_end(&mut text).map_err(Status::internal)?;
        Ok(text)
    }

    /// The answer to a request for it: nothing to a client that has it already.
    pub fn answer(&self, parts: &Parts, content_type: &str) -> Result<Reply, Status> {
        let known = header_of(parts, header::IF_NONE_MATCH)
            .is_some_and(|tags| tags.split(',').any(|tag| tag.trim().as_bytes() == self.etag.as_bytes()));
        let mut reply = match (known, takes_gzip(parts)) {
            (true, _) => reply::bytes(304, content_type, Vec::new()),
            (false, true) => {
                let mut reply = reply::bytes(200, content_type, self.packed.clone());
                reply.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                reply
            }
            (false, false) => reply::bytes(200, content_type, self.text()?),
        };
        let headers = reply.headers_mut();
        headers.insert(header::ETAG, self.etag.clone());
        headers.insert(header::VARY, HeaderValue::from_static("Accept"));
        headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
        Ok(reply)
    }
}

fn takes_gzip(parts: &Parts) -> bool {
    let mut encodings = header_of(parts, header::ACCEPT_ENCODING).unwrap_or_default().split(',');
    // One that is named with a weight of nothing is refused.
    encodings.any(|encoding| {
        let (name, weight) = encoding.split_once(';').unwrap_or((encoding, ""));
        name.trim().eq_ignore_ascii_case("gzip") && !matches!(weight.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000")
    })
}

impl Documents {
    pub fn get(&self, name: &str, registry: &Registry, make: impl FnOnce() -> Vec<u8>) -> Result<Document, Status> {
        let generation = registry.generation();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.0 > generation {
            // The kinds changed while this request was on its way.
            drop(kept);
            return Document::new(&make());
        }
        if kept.0 < generation {
            *kept = (generation, HashMap::new());
        }
        if let Some(known) = kept.1.get(name) {
            return Ok(known.clone());
        }
        let made = Document::new(&make())?;
        kept.1.insert(name.to_owned(), made.clone());
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    fn parts(name: &'static str, value: &str) -> Parts {
        Request::builder().header(name, value).body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_document_goes_out_as_the_client_can_read_it() {
        let text = "text ".repeat(1000);
        let documents = Documents::default();
        let registry = Registry::builtin();
        let document = documents.get("a", &registry, || text.clone().into()).unwrap();
        assert!(document.packed.len() < 100 && document.text().unwrap() == text.as_bytes());
        let again = documents.get("a", &registry, || panic!("it is kept")).unwrap();
        let plain = again.answer(&parts("accept", "*/*"), "text/plain").unwrap();
        assert!(!plain.headers().contains_key(header::CONTENT_ENCODING));
        let packed = again.answer(&parts("accept-encoding", "br, gzip;q=0.5"), "text/plain").unwrap();
        assert_eq!(packed.headers()[header::CONTENT_ENCODING], "gzip");
        let refused = again.answer(&parts("accept-encoding", "gzip;q=0"), "text/plain").unwrap();
        assert!(!refused.headers().contains_key(header::CONTENT_ENCODING));
        let etag = plain.headers()[header::ETAG].to_str().unwrap().to_owned();
        assert_eq!(again.answer(&parts("if-none-match", &etag), "text/plain").unwrap().status(), 304);
    }
}
