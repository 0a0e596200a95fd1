//! See ARCHITECTURE.md.
#[expect(dead_code, reason = "called once the commands exist")]
mod ebpf;
#[expect(dead_code, reason = "called once the commands exist")]
mod setup;
fn main() {}
