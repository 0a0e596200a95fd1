//! Answers in other forms than JSON: YAML as `kubectl -o yaml` knows it, and protobuf.

mod proto;
mod yaml;

pub use self::proto::protobuf;
pub(crate) use self::proto::{put_bytes, put_varint};
pub use self::yaml::yaml;
