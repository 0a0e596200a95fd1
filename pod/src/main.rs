//! Entry point of the pod process; see the library.

fn main() {
    let Some(setup) = std::env::args_os().nth(1) else {
        eprintln!("amphipod-pod is started by the amphipod agent with a setup file");
        std::process::exit(2);
    };
    std::process::exit(pod::process::run(setup.as_ref()));
}
