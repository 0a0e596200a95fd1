//! Developer commands of the project.

use std::path::Path;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    match (args.next().as_deref(), args.next()) {
        (Some("images"), Some(registry)) => {
            for reference in images::images(&registry, None, Path::new("target/images"))? {
                println!("{registry}/{reference}");
            }
            Ok(())
        }
        _ => anyhow::bail!("usage: cargo xtask images HOST:PORT"),
    }
}
