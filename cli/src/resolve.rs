//! Settings of a role: defaults < file (TOML) < environment (`FUSEFS_*`) < flags, resolved once.

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use std::path::Path;

/// Builds settings `T` from a TOML file, `FUSEFS_<FIELD>` variables for `fields` (numbers and booleans are recognised),
/// and flags. An unknown key in the file is an error that names it.
pub fn settings<T: DeserializeOwned>(file: Option<&Path>, fields: &[&str], flags: toml::Table) -> Result<T> {
    let mut table = match file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("reading the settings file {}", path.display()))?;
            text.parse::<toml::Table>().with_context(|| format!("the settings file {}", path.display()))?
        }
        None => toml::Table::new(),
    };
    for field in fields {
        if let Ok(text) = std::env::var(format!("FUSEFS_{}", field.to_ascii_uppercase())) {
            table.insert((*field).to_owned(), value(&text));
        }
    }
    table.extend(flags);
    table.try_into().context("settings")
}

fn value(text: &str) -> toml::Value {
    text.parse::<i64>()
        .map(toml::Value::Integer)
        .or_else(|_| text.parse::<bool>().map(toml::Value::Boolean))
        .unwrap_or_else(|_| toml::Value::String(text.to_owned()))
}

/// A table of the flags that were given.
#[derive(Default)]
pub struct Flags(toml::Table);

impl Flags {
    /// Adds a flag unless it was left out.
    pub fn set(mut self, key: &str, v: Option<impl Into<toml::Value>>) -> Flags {
        if let Some(v) = v {
            self.0.insert(key.to_owned(), v.into());
        }
        self
    }
    /// Adds a path.
    pub fn path(self, key: &str, v: Option<&Path>) -> Flags {
        self.set(key, v.map(|p| p.display().to_string()))
    }
    /// Adds a list unless it is empty.
    pub fn list(self, key: &str, v: &[String]) -> Flags {
        self.set(key, (!v.is_empty()).then(|| v.iter().cloned().map(toml::Value::String).collect::<Vec<_>>()))
    }
    /// The table.
    pub fn table(self) -> toml::Table {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct S {
        listen: String,
        #[serde(default)]
        grace_ms: u64,
        #[serde(default)]
        peers: Vec<String>,
    }

    #[test]
    fn flags_win_over_the_file_and_unknown_keys_are_named() {
        let mut file = tempfile_in_target();
        write!(file.1, "listen = \"a:1\"\ngrace_ms = 5\n").unwrap();
        let s: S = settings(
            Some(&file.0),
            &[],
            Flags::default().set("listen", Some("b:2")).list("peers", &["x".into()]).table(),
        )
        .unwrap();
        assert_eq!(s, S { listen: "b:2".into(), grace_ms: 5, peers: vec!["x".into()] });
        writeln!(file.1, "lisen = 1").unwrap();
        let e = settings::<S>(Some(&file.0), &[], toml::Table::new()).unwrap_err();
        assert!(format!("{e:#}").contains("lisen"), "{e:#}");
        std::fs::remove_file(file.0).unwrap();
    }

    fn tempfile_in_target() -> (std::path::PathBuf, std::fs::File) {
        let path = std::env::temp_dir().join(format!("fusefs-settings-{}.toml", std::process::id()));
        let file = std::fs::File::create(&path).unwrap();
        (path, file)
    }
}
