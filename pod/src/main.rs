//! Entry point of the pod process; see the library.

fn main() {
    std::process::exit(pod::process::run());
}
