//! Mount options: an allow-list. What is not on it is refused, so nothing reaches a command line by accident.

use crate::Fault;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Options with a number that the mount takes as `--NAME=NUMBER`.
const NUMBERS: &[&str] =
    &["attr-validity", "cache-inodes", "cache-mib", "write-buffer-mib", "threads", "io-timeout", "close-timeout"];
/// All flags together (limit of the specification).
const TOTAL_BYTES_MAX: usize = 4096;

/// Checked options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOptions {
    /// `ro`.
    pub read_only: bool,
    /// `noexec`.
    pub no_exec: bool,
    /// `noatime`.
    pub no_atime: bool,
    /// Options of the client, by name.
    pub numbers: BTreeMap<String, u64>,
}

impl MountOptions {
    /// Parses `mount_flags`; each may hold several options separated by commas.
    pub fn parse(flags: &[String]) -> Result<MountOptions, Fault> {
        if flags.iter().map(String::len).sum::<usize>() > TOTAL_BYTES_MAX {
            return Err(Fault::invalid(format!("the mount options are longer than {TOTAL_BYTES_MAX} bytes")));
        }
        let mut out = MountOptions::default();
        for word in flags.iter().flat_map(|f| f.split(',')).map(str::trim).filter(|w| !w.is_empty()) {
            out.take(word)?;
        }
        Ok(out)
    }

    fn take(&mut self, word: &str) -> Result<(), Fault> {
        match word {
            "rw" | "nosuid" | "nodev" | "defaults" => {} // always so
            "ro" => self.read_only = true,
            "noexec" => self.no_exec = true,
            "noatime" => self.no_atime = true,
            _ => {
                let known = word.split_once('=').filter(|(name, _)| NUMBERS.contains(name));
                let Some((name, value)) = known else {
                    // The option itself may be sensitive: it is not repeated.
                    return Err(Fault::invalid(format!(
                        "a mount option is not allowed; allowed are ro, noexec, noatime and NAME=NUMBER for {}",
                        NUMBERS.join(", ")
                    )));
                };
                let number =
                    value.parse().map_err(|_| Fault::invalid(format!("mount option {name} needs a number")))?;
                self.numbers.insert(name.to_owned(), number);
            }
        }
        Ok(())
    }

    /// The client's options as arguments of `fusefs mount`.
    pub fn arguments(&self) -> Vec<String> {
        self.numbers.iter().map(|(name, n)| format!("--{name}={n}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_options_pass() {
        let parse = |f: &[&str]| MountOptions::parse(&f.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        let o = parse(&["ro,noatime", "cache-mib=64", " noexec ", "", "nosuid"]).unwrap();
        assert!(o.read_only && o.no_exec && o.no_atime);
        assert_eq!(o.arguments(), ["--cache-mib=64"]);
        for bad in ["suid", "dev", "cache-mib", "cache-mib=x", "cache-mib=-1", "--token=x", "state-dir=/etc", "exec"] {
            let fault = parse(&[bad]).unwrap_err();
            assert_eq!(fault.code, tonic::Code::InvalidArgument);
            assert!(!fault.message.contains("token"), "{fault}");
        }
        assert!(parse(&[&"ro,".repeat(2000)]).is_err());
    }
}
