//! See ARCHITECTURE.md.
mod ebpf;
mod setup;

fn main() -> anyhow::Result<()> {
    match std::env::args().skip(1).collect::<Vec<_>>().join(" ").as_str() {
        "setup" => setup::setup(),
        "build-ebpf" => ebpf::build_ebpf(),
        "build-ebpf --check" => ebpf::check_ebpf(),
        other => anyhow::bail!("no such command: {other:?}"),
    }
}
