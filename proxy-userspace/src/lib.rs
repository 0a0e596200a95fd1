//! Services and EndpointSlices to BPF maps.
#![allow(unsafe_code)]

pub mod object;
pub mod sys;
