//! Answers in other forms than JSON: YAML as `kubectl -o yaml` knows it, and protobuf.

mod proto;
mod yaml;

pub use self::proto::protobuf;
pub use self::yaml::yaml;
