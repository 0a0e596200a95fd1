//! CustomResourceDefinitions.

use super::{Behaviour, DEFAULT, Generation, Version};

pub const BEHAVIOUR: Behaviour = Behaviour {
    generation: Generation::Spec,
    version: Version::Needed,
    inactive: Some("its resources are not served"),
    ..DEFAULT
};
