//! ServiceCIDRs: the ranges that Services take their addresses from.

use serde_json::json;

use super::{Behaviour, DEFAULT};
use crate::table::cells::joined;

pub const BEHAVIOUR: Behaviour =
    Behaviour { cells: Some(|o, _| vec![("CIDRs", json!(joined(&o["spec"]["cidrs"])))]), ..DEFAULT };
