//! Services and EndpointSlices to BPF maps.

pub mod desired;
#[expect(unsafe_code, reason = "checks and mounts that only system calls give")]
pub mod object;
#[expect(unsafe_code, reason = "wrappers of bpf(2) and its kin")]
pub mod sys;
pub mod table;
