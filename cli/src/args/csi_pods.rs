//! Options of fuse pods, which the CSI controller makes with `--runtime pod`.

use super::parse_size;
use clap::{Args, ValueEnum};

/// When the image of fuse pods is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicyArg {
    /// Each time a container starts.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Never: the nodes have it.
    Never,
}

/// Options of fuse pods.
#[derive(Debug, Args)]
#[command(next_help_heading = "Fuse pods (Kubernetes, --runtime pod)")]
pub struct CsiPodArgs {
    /// Namespace for fuse pods. Nothing else should be in it, and only the driver should write to it.
    #[arg(long, value_name = "NAMESPACE")]
    pub fuse_namespace: Option<String>,
    /// Image of fuse pods: one with this program. Changing it changes running pods, one after another.
    #[arg(long, value_name = "IMAGE")]
    pub fuse_image: Option<String>,
    /// When the image is pulled.
    #[arg(long, value_enum, default_value = "IfNotPresent", value_name = "POLICY")]
    pub fuse_image_pull_policy: PullPolicyArg,
    /// Secrets of that namespace for pulling the image.
    #[arg(long, value_delimiter = ',', value_name = "SECRET,...")]
    pub fuse_image_pull_secrets: Vec<String>,
    /// Priority class of fuse pods. Empty: the cluster's default, and pods may be evicted.
    #[arg(long, default_value = "system-node-critical", value_name = "CLASS")]
    pub fuse_priority_class: String,
    /// Memory of a fuse pod: requested, and never exceeded.
    #[arg(long, value_parser = parse_size, default_value = "512MiB", value_name = "SIZE")]
    pub fuse_memory: u64,
    /// Processor share that a fuse pod requests. There is no limit.
    #[arg(long, default_value = "10m", value_parser = cpu, value_name = "QUANTITY")]
    pub fuse_cpu_request: String,
    /// Grace period of fuse pods. They end at once when asked to; this is for nodes that are very busy.
    #[arg(long, default_value_t = 600, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub fuse_grace: u32,
    /// Give each fuse pod a user namespace of its own (needs a cluster that has them).
    #[arg(long)]
    pub fuse_user_namespace: bool,
    /// Service account of fuse pods; it needs no rights, and its token is never mounted. Default: the namespace's default.
    #[arg(long, value_name = "NAME")]
    pub fuse_service_account: Option<String>,
    /// No service account of their own for fuse pods (the default).
    #[arg(long, conflicts_with = "fuse_service_account")]
    pub fuse_service_account_none: bool,
}

/// A quantity such as `100m` or `0.5`.
fn cpu(text: &str) -> Result<String, String> {
    let number = text.strip_suffix('m').unwrap_or(text);
    match number.parse::<f64>() {
        Ok(n) if n >= 0.0 && number.bytes().all(|b| b.is_ascii_digit() || b == b'.') => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is not a processor quantity; try 10m or 0.5")),
    }
}

#[cfg(test)]
mod tests {
    use super::cpu;

    #[test]
    fn processor_quantities() {
        for good in ["10m", "1", "0.5", "0"] {
            assert_eq!(cpu(good).as_deref(), Ok(good));
        }
        for bad in ["", "m", "-1", "1e3", "inf", "1 m", "10mm", "x"] {
            assert!(cpu(bad).is_err(), "{bad}");
        }
    }
}
