//! ValidatingAdmissionPolicies and their bindings.

use super::{Behaviour, DEFAULT, Generation};

pub const POLICY: Behaviour =
    Behaviour { generation: Generation::Body, inactive: Some("no request is held against it"), ..DEFAULT };
pub const BINDING: Behaviour =
    Behaviour { generation: Generation::Body, inactive: Some("no request is held against its policy"), ..DEFAULT };
