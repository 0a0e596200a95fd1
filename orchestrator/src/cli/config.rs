//! `--config FILE`: settings from YAML, as if they stood before those of the command line.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Command;
use serde_yaml::Value;

/// Puts the settings of a `--config` file before those of the command line, which then win.
///
/// # Errors
/// When the file cannot be read, is no YAML of that form, or names a setting that the command does not have.
pub fn with_file(root: &Command, arguments: Vec<OsString>) -> Result<Vec<OsString>> {
    let texts: Vec<&str> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
    let spaced = texts.windows(2).find(|pair| pair[0] == "--config").map(|pair| pair[1]);
    let joined = texts.iter().find_map(|text| text.strip_prefix("--config="));
    let Some(path) = spaced.or(joined) else { return Ok(arguments) };
    let settings = read_config(Path::new(path))?;
    let (command, depth) = commanded(root, &texts);
    let (head, tail) = arguments.split_at(arguments.len().min(depth));
    check_names(path, command, &settings)?;
    let flags = settings.into_iter().map(|(key, value)| OsString::from(format!("--{key}={value}")));
    Ok(head.iter().cloned().chain(flags).chain(tail.iter().cloned()).collect())
}

fn read_config(path: &Path) -> Result<Vec<(String, String)>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let value: Value = serde_yaml::from_str(&text).with_context(|| format!("{shown} is not YAML"))?;
    let Value::Mapping(map) = value else { bail!("{shown}: settings are wanted, one `name: value` a line") };
    map.into_iter()
        .map(|(key, value)| {
            let key = key.as_str().with_context(|| format!("{shown}: a setting's name is not text"))?.to_owned();
            let value =
                scalar(&value).with_context(|| format!("{shown}: {key} is neither a value nor a list of values"))?;
            Ok((key, value))
        })
        .collect()
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Sequence(items) => items.iter().map(scalar).collect::<Option<Vec<_>>>().map(|items| items.join(",")),
        _ => None,
    }
}

/// The command that is meant, and how many words lead to it, the program's name included.
fn commanded<'a>(root: &'a Command, words: &[&str]) -> (&'a Command, usize) {
    let (mut command, mut depth) = (root, 1);
    while let Some(next) = words.get(depth).and_then(|word| command.find_subcommand(word)) {
        (command, depth) = (next, depth + 1);
    }
    (command, depth)
}

/// A misspelt setting is named with its file, not as a flag nobody typed.
fn check_names(path: &str, command: &Command, settings: &[(String, String)]) -> Result<()> {
    let known: Vec<&str> =
        command.get_arguments().filter_map(|argument| argument.get_long()).filter(|name| *name != "config").collect();
    match settings.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        Some((name, _)) => bail!("{path}: there is no setting {name:?}; there are: {}", known.join(", ")),
        None => Ok(()),
    }
}
