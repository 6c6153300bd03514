//! `mount.fusefs`: lets `mount -t fusefs VOLUME DIR -o master=HOST:PORT,...` and fstab work. Install it as a link to the
//! binary: `ln -s $(command -v fusefs) /sbin/mount.fusefs`.

use anyhow::{Result, bail};

/// Options that mount(8) and fstab use for themselves.
const IGNORED: &[&str] = &[
    "rw", "_netdev", "auto", "noauto", "user", "nouser", "users", "defaults", "nofail", "dev", "suid", "exec", "nodev",
    "nosuid", "noexec", "noatime", "relatime",
];
/// Our options that take a value, as flags of `fusefs mount`.
const VALUES: &[&str] = &[
    "master",
    "token_file",
    "attr_validity",
    "cache_inodes",
    "cache_mib",
    "write_buffer_mib",
    "threads",
    "io_timeout",
    "close_timeout",
    "state_dir",
    "journal_mib",
    "recovery",
];
/// Our options without a value.
const FLAGS: &[&str] = &["allow_other", "no_keeper", "no_watchdog", "no_protect"];

/// Translates `mount.fusefs SOURCE DIR [-sfnv] [-o OPTIONS]` into arguments of `fusefs`. Several masters are
/// joined by `+`, because commas separate options: `master=a:7000+b:7000`.
pub fn from_mount_helper(args: &[String]) -> Result<Vec<String>> {
    let (mut places, mut options) = (Vec::new(), Vec::new());
    let mut it = args.iter();
    while let Some(a) = it.next() {
        match a.as_str() {
            "-o" => options.extend(it.next().into_iter().flat_map(|o| o.split(',').map(String::from))),
            s if s.starts_with('-') => {}
            s => places.push(s.to_owned()),
        }
    }
    let [source, dir] = &places[..] else {
        bail!("usage: mount.fusefs VOLUME DIRECTORY [-o master=HOST:PORT+HOST:PORT,token_file=FILE,...]")
    };
    let volume = source.strip_prefix("fusefs#").unwrap_or(source);
    let mut out = vec!["fusefs".into(), "mount".into(), volume.into(), dir.clone(), "--background".into()];
    for o in options.iter().filter(|o| !o.is_empty()) {
        match o.split_once('=') {
            Some((k, v)) if VALUES.contains(&k) => {
                out.push(format!("--{}", k.replace('_', "-")));
                out.push(v.replace('+', ","));
            }
            None if o == "ro" => out.push("--read-only".into()),
            None if FLAGS.contains(&o.as_str()) => out.push(format!("--{}", o.replace('_', "-"))),
            None if IGNORED.contains(&o.as_str()) => {}
            _ if o.starts_with("x-") || o.starts_with("comment=") => {}
            _ => {
                bail!("mount.fusefs: unknown option `{o}`; known are ro, {}, {}=", FLAGS.join(", "), VALUES.join("=, "))
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::from_mount_helper;

    fn run(line: &str) -> Result<String, String> {
        let args: Vec<_> = line.split(' ').map(String::from).collect();
        from_mount_helper(&args).map(|v| v.join(" ")).map_err(|e| e.to_string())
    }

    #[test]
    fn fstab_lines_become_commands() {
        assert_eq!(
            run("home /mnt -o rw,_netdev,master=a:1+b:2,token_file=/t,ro,x-systemd.automount").unwrap(),
            "fusefs mount home /mnt --background --master a:1,b:2 --token-file /t --read-only"
        );
        assert!(run("home").is_err());
        assert!(run("home /mnt -o mistake=1").unwrap_err().contains("mistake"));
    }
}
