//! What must hold for any bytes at all: no panic, no overflow of the stack, and nothing comes out that the rest of the
//! server could not read again.

use api::budget::{Budget, check_depth};
use api::custom::path::{Path, Search};
use api::decode::{self, Decoded, FieldValidation, MediaType};
use api::kind::{Kind, Registry};
use api::managed::{self, Conflicts, Writer};
use api::patch::{self, PatchType};
use api::selector::{Fields, Labels};
use bytes::BytesMut;
use serde_json::Value;
use tungstenite::WebSocket;
use tungstenite::protocol::{Role, WebSocketConfig};

#[path = "../../apiserver/src/http/streams/channels.rs"]
#[expect(dead_code, reason = "the server uses all of it")]
mod channels;
#[path = "../../apiserver/src/http/path.rs"]
#[expect(dead_code, reason = "the server uses all of it")]
mod request_path;
#[path = "../../apiserver/src/http/spdy.rs"]
#[expect(dead_code, reason = "the server uses all of it")]
mod spdy_frames;

/// The kinds whose types hold every shape that a field can have.
const KINDS: [(&str, &str); 8] = [
    ("", "pods"),
    ("", "services"),
    ("", "configmaps"),
    ("", "nodes"),
    ("apps", "deployments"),
    ("apps", "controllerrevisions"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    ("rbac.authorization.k8s.io", "clusterroles"),
];

/// The first byte chooses; the rest is what is read.
fn choose<'a, T: Copy>(bytes: &'a [u8], from: &[T]) -> Option<(T, &'a [u8])> {
    let (first, rest) = bytes.split_first()?;
    Some((from[usize::from(*first) % from.len()], rest))
}

fn kind((group, plural): (&str, &str)) -> std::sync::Arc<Kind> {
    Registry::builtin().find(group, "v1", plural).expect("a kind of the table")
}

fn text_is_read_again(value: &Value) {
    assert!(check_depth(value).is_ok());
    let again = serde_json::from_str::<Value>(&value.to_string());
    assert!(again.is_ok(), "{value} cannot be stored");
}

pub fn json(bytes: &[u8]) {
    if let Ok(node) = decode::json::parse(bytes) {
        text_is_read_again(&node.to_value());
    }
}

pub fn yaml(bytes: &[u8]) {
    if let Ok(yaml) = decode::yaml::parse(&String::from_utf8_lossy(bytes)) {
        let value = yaml.node.to_value();
        text_is_read_again(&value);
        let written = api::encode::yaml(&value);
        let again = decode::yaml::parse(&written).map(|yaml| yaml.node.to_value());
        assert!(again.is_ok(), "{again:?} {written:?}");
    }
}

/// A body in any encoding, through everything that looks at it before it is stored.
pub fn object(bytes: &[u8]) {
    let Some((place, rest)) = choose(bytes, &KINDS) else { return };
    let Some((media, body)) = choose(rest, &[MediaType::Json, MediaType::Yaml, MediaType::Protobuf]) else { return };
    let kind = kind(place);
    let Ok(Decoded { mut value, .. }) = decode::object(&kind, media, body, FieldValidation::Warn) else { return };
    api::default::apply(&kind, &mut value);
    let writer = Writer { manager: "fuzz", part: None, now: jiff::Timestamp::UNIX_EPOCH };
    managed::update(&kind, None, &mut value, writer);
    api::write::prepare_create(&kind, &mut value);
    let _complaints = (api::validate::create(&kind, &value), api::validate::warnings(&kind, &value));
    let _message = api::encode::protobuf(&kind.schema, &value);
    let stored = decode::canonical(&kind.gvk(), &kind.schema, &value);
    if check_depth(&stored).is_ok() {
        text_is_read_again(&stored);
    }
}

/// An object and a patch of it, apart by a zero byte.
pub fn patch(bytes: &[u8]) {
    let kinds = [Some(PatchType::Json), Some(PatchType::Merge), Some(PatchType::StrategicMerge), None];
    let Some((place, rest)) = choose(bytes, &KINDS) else { return };
    let Some((how, rest)) = choose(rest, &kinds) else { return };
    let Some(middle) = rest.iter().position(|byte| *byte == 0) else { return };
    let (kind, (current, body)) = (kind(place), (&rest[..middle], &rest[middle + 1..]));
    let Ok(current) = decode::object(&kind, MediaType::Json, current, FieldValidation::Ignore) else { return };
    match how {
        Some(how) => {
            let patched = patch::apply(&kind.gvk(), &kind.schema, how, &current.value, body, FieldValidation::Warn);
            if let Ok(patched) = patched {
                text_is_read_again(&patched.value);
            }
        }
        None => {
            let Ok(config) = decode::untyped(MediaType::Yaml, body) else { return };
            let writer = Writer { manager: "fuzz", part: None, now: jiff::Timestamp::UNIX_EPOCH };
            let _merged = managed::apply(&kind, Some(&current.value), &config, writer, Conflicts::Force);
        }
    }
}

pub fn selector(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(labels) = Labels::parse(&text) {
        let shown = labels.to_string();
        assert_eq!(Labels::parse(&shown).map(|again| again.to_string()), Ok(shown));
    }
    let _fields = Fields::parse(&kind(("", "pods")), &text);
}

pub fn path(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (path, query) = text.split_once('?').unwrap_or((&text, ""));
    let _path = request_path::Path::parse(path);
    let query = request_path::Query::parse(query);
    let _read = (query.flag("watch"), query.number::<u64>("limit"));
}

/// The path of a column and an object, apart by a zero byte.
pub fn column(bytes: &[u8]) {
    let Some(middle) = bytes.iter().position(|byte| *byte == 0) else { return };
    let Ok(path) = Path::parse(&String::from_utf8_lossy(&bytes[..middle])) else { return };
    let Ok(object) = decode::json::parse(&bytes[middle + 1..]) else { return };
    let object = object.to_value();
    let mut search = Search::default();
    let found = path.first(&object, &mut search);
    assert_eq!(found, path.first(&object, &mut Search::default()));
}

/// Frames as they come off a connection, in two pieces.
pub fn spdy(bytes: &[u8]) {
    let mut reader = spdy_frames::Reader::new();
    let mut buffer = BytesMut::new();
    for piece in bytes.chunks((bytes.len() / 2).max(1)) {
        buffer.extend_from_slice(piece);
        while let Ok(Some(frame)) = reader.take(&mut buffer) {
            if let spdy_frames::Frame::Open { headers, .. } = frame {
                let size: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
                // Bytes that are no UTF-8 grow when they become text.
                assert!(size <= 3 * Budget::CLIENT.headers);
            }
        }
    }
}

/// A client's WebSocket frames, and what their messages say to a process.
pub fn websocket(bytes: &[u8]) {
    let limit = Budget::CLIENT.frame;
    let config = WebSocketConfig::default().max_message_size(Some(limit)).max_frame_size(Some(limit));
    // Answers to pings and closes go nowhere.
    let stream = Client { sent: bytes };
    let mut socket = WebSocket::from_raw_socket(stream, Role::Server, Some(config));
    while let Ok(message) = socket.read() {
        let data = message.into_data();
        assert!(data.len() <= limit);
        if let Some(channels::Input::Data(input)) = channels::input(&data) {
            assert_eq!(input.len() + 1, data.len());
        }
    }
}

struct Client<'a> {
    sent: &'a [u8],
}

impl std::io::Read for Client<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.sent.read(buffer)
    }
}

impl std::io::Write for Client<'_> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
