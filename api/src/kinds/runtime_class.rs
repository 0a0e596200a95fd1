//! RuntimeClasses.

use super::{Behaviour, DEFAULT};

pub const BEHAVIOUR: Behaviour = Behaviour { cells: Some(|o, _| vec![("Handler", o["handler"].clone())]), ..DEFAULT };
