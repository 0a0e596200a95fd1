//! FlowSchemas and PriorityLevelConfigurations.

use super::{Behaviour, DEFAULT, Generation, Version};

const COMMON: Behaviour = Behaviour { generation: Generation::Spec, version: Version::Needed, ..DEFAULT };

pub const SCHEMA: Behaviour = Behaviour { inactive: Some("requests are not classified by it"), ..COMMON };
pub const LEVEL: Behaviour = Behaviour { inactive: Some("requests are not limited by it"), ..COMMON };
