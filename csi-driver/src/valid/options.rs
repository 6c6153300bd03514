//! Mount options: an allow-list. What is not on it is refused, so a StorageClass cannot reach options that name files,
//! addresses or credentials of the node.

use super::text::MAP_BYTES_MAX;
use crate::Fault;
use std::collections::BTreeMap;

/// Options with a number: name, smallest, largest.
const NUMBERS: &[(&str, u64, u64)] = &[
    ("attr_validity", 0, 3_600_000),
    ("cache_inodes", 1_000, 100_000_000),
    ("cache_mib", 8, 1 << 20),
    ("write_buffer_mib", 8, 1 << 20),
    ("threads", 1, 64),
    ("io_timeout", 0, 86_400),
    ("close_timeout", 1, 3_600),
    ("journal_mib", 8, 1 << 20),
];
/// Options of the kernel that change nothing for fusefs and that charts like to set.
const HARMLESS: &[&str] = &["rw", "defaults", "noatime", "relatime", "nodiratime", "_netdev"];
/// Options of the bind mounts.
const BIND: &[&str] = &["nosuid", "nodev", "noexec"];

/// Options of one volume, each at most once, in order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `ro`.
    pub read_only: bool,
    /// `nosuid`, `nodev`, `noexec` of the pods' mounts.
    pub bind: Vec<String>,
    /// SELinux context, `context=...`.
    pub context: Option<String>,
    /// Options of `fusefs mount` that take a number.
    numbers: BTreeMap<&'static str, u64>,
}

impl MountOptions {
    /// Parses mount flags. One flag may hold several options separated by commas.
    pub fn parse(flags: &[String]) -> Result<MountOptions, Fault> {
        if flags.iter().map(String::len).sum::<usize>() > MAP_BYTES_MAX {
            return Err(Fault::invalid(format!("mount_flags are longer than {MAP_BYTES_MAX} bytes")));
        }
        let mut out = MountOptions::default();
        let (mut context_last, mut seen_rw) = (false, false);
        for option in flags.iter().flat_map(|f| f.split(',')).filter(|o| !o.is_empty()) {
            // An SELinux category list continues after a comma: context="system_u:object_r:x:s0:c1,c2".
            if context_last && category(option) {
                if let Some(c) = &mut out.context {
                    c.push(',');
                    c.push_str(option.trim_end_matches('"'));
                }
                continue;
            }
            context_last = false;
            seen_rw |= option == "rw";
            match option.split_once('=') {
                None if option == "ro" => out.read_only = true,
                None if HARMLESS.contains(&option) => {}
                None if BIND.contains(&option) => out.bind.push(option.to_owned()),
                Some(("context", label)) if out.context.is_none() => {
                    out.context = Some(context(label)?);
                    context_last = true;
                }
                Some((name, value)) => out.number(name, value)?,
                None => return Err(unknown()),
            }
        }
        if seen_rw && out.read_only {
            return Err(Fault::invalid("mount_flags ask for ro and rw at once"));
        }
        out.bind.sort();
        out.bind.dedup();
        Ok(out)
    }

    fn number(&mut self, name: &str, value: &str) -> Result<(), Fault> {
        let Some(&(name, least, most)) = NUMBERS.iter().find(|(n, ..)| *n == name) else { return Err(unknown()) };
        // `parse` would take a sign and would not mind 60 leading zeros.
        let digits = !value.is_empty() && value.len() <= 20 && value.bytes().all(|b| b.is_ascii_digit());
        let parsed = value.parse::<u64>().ok().filter(|n| digits && (least..=most).contains(n));
        let Some(n) = parsed else {
            return Err(Fault::invalid(format!("the mount option {name} takes a number from {least} to {most}")));
        };
        match self.numbers.insert(name, n) {
            Some(old) if old != n => Err(Fault::invalid(format!("the mount option {name} is given twice"))),
            _ => Ok(()),
        }
    }

    /// As arguments of `fusefs mount`: `--name=value`. Nothing secret can be among them.
    pub fn arguments(&self) -> Vec<String> {
        let mut out: Vec<String> =
            self.numbers.iter().map(|(name, n)| format!("--{}={n}", name.replace('_', "-"))).collect();
        if self.read_only {
            out.push("--read-only".into());
        }
        out
    }
}

/// The refusal names what is allowed, not what was sent: flags may be sensitive.
fn unknown() -> Fault {
    let numbers: Vec<&str> = NUMBERS.iter().map(|(n, ..)| *n).collect();
    Fault::invalid(format!(
        "unknown mount option; allowed are ro, {}, {}, context=LABEL and {}=NUMBER",
        HARMLESS.join(", "),
        BIND.join(", "),
        numbers.join("=NUMBER, ")
    ))
}

fn category(s: &str) -> bool {
    let s = s.trim_end_matches('"');
    s.len() <= 16 && s.strip_prefix('c').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// `user:role:type:level`, with or without quotes.
fn context(label: &str) -> Result<String, Fault> {
    let label = label.trim_matches('"');
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.:-".contains(c);
    let parts = label.split(':').count();
    if label.len() <= 255 && (3..=6).contains(&parts) && label.chars().all(plain) && !label.contains("::") {
        return Ok(label.to_owned());
    }
    Err(Fault::invalid("the mount option context takes an SELinux label user:role:type:level"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(s: &[&str]) -> Result<MountOptions, Fault> {
        MountOptions::parse(&s.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn allowed_options_become_arguments() {
        let o = parse(&["ro,noatime", "cache_mib=512", "nosuid", "io_timeout=0"]).expect("options");
        assert_eq!(o.arguments(), ["--cache-mib=512", "--io-timeout=0", "--read-only"]);
        assert_eq!(o.bind, ["nosuid"]);
        let o = parse(&["context=\"system_u:object_r:container_file_t:s0:c1,c22\""]).expect("a label");
        assert_eq!(o.context.as_deref(), Some("system_u:object_r:container_file_t:s0:c1,c22"));
        assert_eq!(parse(&[]).expect("none"), MountOptions::default());
    }

    #[test]
    fn everything_else_is_refused() {
        for bad in [
            "token_file=/etc/shadow",
            "master=evil:1",
            "state_dir=/",
            "allow_other",
            "suid",
            "dev",
            "exec",
            "bind",
            "remount",
            "fd=3",
            "rootmode=40000",
            "user_id=0",
            "cache_mib=",
            "cache_mib=-1",
            "cache_mib=+9",
            "cache_mib=9e9",
            "cache_mib=0x10",
            "cache_mib=99999999999999999999",
            "cache_mib=8 --log=debug",
            "ro=1",
            " ro",
            "RO",
            "--read-only",
            "-o",
            "context=a",
            "context=a:b:c\0",
            "context=a:b:../../x",
            "context=a::b:c",
            "cache_mib=16,cache_mib=17",
            "ro,rw",
            "rw,ro",
            "c1",
        ] {
            let refused = parse(&[bad]).expect_err(bad);
            assert_eq!(refused.code, tonic::Code::InvalidArgument, "{bad}");
            assert!(!refused.message.contains("shadow") && !refused.message.contains("evil"), "{bad}");
        }
        assert!(parse(&[&"noatime,".repeat(600)]).is_err(), "more than 4 KiB");
    }
}
