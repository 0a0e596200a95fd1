//! APIServices: groups that another server answers for.

use super::{Behaviour, DEFAULT, Version};

pub const BEHAVIOUR: Behaviour =
    Behaviour { version: Version::Needed, inactive: Some("no request is forwarded"), ..DEFAULT };
