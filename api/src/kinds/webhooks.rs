//! Configurations of admission webhooks.

use super::{Behaviour, DEFAULT, Generation};

const COMMON: Behaviour = Behaviour { generation: Generation::Body, inactive: Some("no webhook is called"), ..DEFAULT };

pub const MUTATING: Behaviour = COMMON;
pub const VALIDATING: Behaviour = COMMON;
