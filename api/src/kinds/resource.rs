//! Kinds of `resource.k8s.io`: devices, and who claims them.

use super::{Behaviour, DEFAULT, Generation};

pub const SPEC: Behaviour = Behaviour { generation: Generation::Spec, ..DEFAULT };
