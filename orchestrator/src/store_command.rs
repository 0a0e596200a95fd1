//! `amphipod store`: look at the store of a data folder, make it smaller, copy it, put a copy in its place.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use apiserver::store_tools::{self, Beside, Report};
use clap::{Args, Subcommand};

#[derive(Args)]
pub struct Arguments {
    /// The data folder that `up` or `server` was given
    #[arg(long, default_value = "/var/lib/amphipod", global = true)]
    data_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Read all of the store and verify it; changes nothing, works beside a running server
    Check,
    /// Give space back to the file system; the server must be stopped
    Compact,
    /// Copy the store as it is at one moment; works beside a running server
    Backup {
        /// The file to write; it must not exist
        file: PathBuf,
    },
    /// Put a backup in the place of the store, which is kept under another name; the server must be stopped
    Restore {
        /// A file that `backup` wrote, or any store
        file: PathBuf,
    },
}

/// Does what the command says, and says what it did.
///
/// # Errors
/// What the tool says (see [`store_tools`]), or that there is no data folder to restore into.
pub fn run(arguments: &Arguments) -> Result<()> {
    let store = store_of(&arguments.data_dir);
    match &arguments.command {
        Command::Check => println!("{}", describe(&store, &store_tools::check(&store)?)),
        Command::Compact => {
            let (before, after) = store_tools::compact(&store)?;
            println!("{}: {} before, {} now", store.display(), size(before), size(after));
        }
        Command::Backup { file } => {
            let report = store_tools::backup(&store, file)?;
            let objects: usize = report.objects.values().sum();
            println!("{}: {objects} objects at revision {}", file.display(), report.revision);
        }
        Command::Restore { file } => {
            std::fs::metadata(&arguments.data_dir)
                .with_context(|| format!("there is no data folder {}", arguments.data_dir.display()))?;
            let restored = store_tools::restore(&store, file)?;
            println!("{}: {} objects, revisions go on from {}", store.display(), restored.objects, restored.revision);
            if let Some(aside) = restored.aside {
                println!("what was there before is {}", aside.display());
            }
        }
    }
    Ok(())
}

/// The store of a data folder.
pub fn store_of(data_dir: &Path) -> PathBuf {
    data_dir.join("store.redb")
}

fn describe(store: &Path, report: &Report) -> String {
    let mut lines: Vec<String> = report.objects.iter().map(|(kind, count)| format!("{count:>8} {kind}")).collect();
    lines.extend(report.unreadable.iter().map(|(key, why)| format!("cannot be read, and is set aside: {key}: {why}")));
    let looked = match report.beside {
        Beside::Nobody => "every page and every value verified",
        Beside::Server => "every value verified, beside a running server",
    };
    lines.push(format!(
        "{}: sound, {looked}: {} objects, {} of values in a file of {}, revision {}",
        store.display(),
        report.objects.values().sum::<usize>(),
        size(report.values),
        size(report.file),
        report.revision
    ));
    lines.join("\n")
}

fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} bytes"),
        10_000..=9_999_999 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_store_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let command = |command| Arguments { data_dir: folder.path().to_owned(), command };
        for wrong in [Command::Check, Command::Compact, Command::Backup { file: folder.path().join("b") }] {
            let error = format!("{:#}", run(&command(wrong)).unwrap_err());
            assert!(error.contains("store.redb") && error.contains("No such file"), "{error}");
        }
        let error = run(&command(Command::Restore { file: folder.path().join("b") })).unwrap_err();
        assert!(format!("{error:#}").contains("/b"), "{error:#}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was left behind");
    }
}
