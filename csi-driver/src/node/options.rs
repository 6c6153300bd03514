//! Mount options as they are recorded: what [`valid::MountOptions`] let through, sorted by who acts on it.

use crate::{Fault, valid};
use serde::{Deserialize, Serialize};

/// Checked options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOptions {
    /// `ro`.
    pub read_only: bool,
    /// `noexec`, of the pods' mounts.
    pub no_exec: bool,
    /// Arguments of `fusefs mount`, without `--read-only`.
    pub arguments: Vec<String>,
}

impl TryFrom<&valid::MountOptions> for MountOptions {
    type Error = Fault;

    fn try_from(o: &valid::MountOptions) -> Result<MountOptions, Fault> {
        if o.context.is_some() {
            return Err(Fault::invalid("the mount option context is not supported by this runtime"));
        }
        Ok(MountOptions {
            read_only: o.read_only,
            no_exec: o.bind.iter().any(|b| b == "noexec"), // the others are always set
            arguments: o.arguments().into_iter().filter(|a| a != "--read-only").collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_reach_those_who_act_on_them() {
        let parse = |flags: &[&str]| {
            let flags: Vec<String> = flags.iter().map(|f| (*f).to_owned()).collect();
            MountOptions::try_from(&valid::MountOptions::parse(&flags).unwrap())
        };
        let o = parse(&["ro,noexec,nosuid", "cache_mib=64"]).unwrap();
        assert_eq!(o, MountOptions { read_only: true, no_exec: true, arguments: vec!["--cache-mib=64".into()] });
        assert_eq!(parse(&["context=u:r:t:s0"]).unwrap_err().code, tonic::Code::InvalidArgument);
    }
}
