//! Dependency direction of DESIGN 2 and the purity of the state crates, read from the manifests.

use anyhow::{Context, Result};
use std::path::Path;

/// (crate folder, fusefs crates it may use). Dev-dependencies are free except for the pure crates' async ones.
const EDGES: &[(&str, &[&str])] = &[
    ("libs/types", &[]),
    ("proto", &["types"]),
    ("libs/meta-state", &["types"]),
    ("libs/cluster-state", &["types"]),
    ("libs/raft-host", &["types", "proto"]),
    ("libs/data-path", &["types"]),
    ("libs/meta-client", &["types", "proto"]),
    ("master", &["types", "proto", "cluster-state", "raft-host", "data-path", "meta-client"]),
    ("metanode", &["types", "proto", "meta-state", "raft-host", "data-path", "meta-client"]),
    ("fuse-client", &["types", "proto", "meta-client", "data-path"]),
    ("csi-driver", &["types", "proto", "meta-client", "fuse-client"]),
    (
        "libs/local-cluster",
        &["types", "proto", "master", "metanode", "fuse-client", "meta-client", "raft-host", "data-path"],
    ),
    (
        "cli",
        &[
            "types",
            "proto",
            "local-cluster",
            "master",
            "metanode",
            "fuse-client",
            "meta-client",
            "data-path",
            "raft-host",
            "csi-driver",
        ],
    ),
    (
        "chaos-tests",
        &[
            "types",
            "proto",
            "local-cluster",
            "master",
            "metanode",
            "fuse-client",
            "meta-client",
            "meta-state",
            "raft-host",
            "data-path",
            "csi-driver",
        ],
    ),
    ("xtask", &[]),
];

/// What the pure crates may use besides `types`: data structures and checksums, nothing that waits or looks outside.
const PURE_ALLOWED: &[&str] = &["imbl", "bytes", "crc32c", "siphasher", "thiserror"];
const PURE: &[&str] = &["libs/meta-state", "libs/cluster-state"];

/// (library prefix, folders whose manifest may name it).
const OWNERS: &[(&str, &[&str])] = &[
    ("openraft", &["libs/raft-host"]),
    ("aws-", &["libs/data-path"]),
    ("protox", &["proto"]),
    ("tonic-prost-build", &["proto"]),
    ("fuser", &["fuse-client"]),
    ("clap", &["cli"]),
    ("tracing-subscriber", &["cli", "chaos-tests"]),
];

fn manifest(root: &Path, folder: &str) -> Result<toml::Table> {
    let path = root.join(folder).join("Cargo.toml");
    std::fs::read_to_string(&path)?.parse().with_context(|| path.display().to_string())
}

fn names(table: &toml::Table, section: &str) -> Vec<String> {
    table.get(section).and_then(|d| d.as_table()).map(|d| d.keys().cloned().collect()).unwrap_or_default()
}

/// Problems in words.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let workspace: toml::Table = std::fs::read_to_string(root.join("Cargo.toml"))?.parse()?;
    let members = workspace["workspace"]["members"].as_array().cloned().unwrap_or_default();
    for folder in members.iter().filter_map(|m| m.as_str()) {
        let Some((_, allowed)) = EDGES.iter().find(|(f, _)| *f == folder) else {
            out.push(format!("{folder}: not in the dependency table of xtask/src/edges.rs"));
            continue;
        };
        let table = manifest(root, folder)?;
        for dep in names(&table, "dependencies").into_iter().chain(names(&table, "build-dependencies")) {
            if let Some(ours) = dep.strip_prefix("fusefs-") {
                if !allowed.contains(&ours) {
                    out.push(format!("{folder}: may not depend on {dep}"));
                }
            } else if PURE.contains(&folder) && !PURE_ALLOWED.contains(&dep.as_str()) {
                out.push(format!("{folder}: pure crates may not depend on {dep}"));
            }
            for (lib, owners) in OWNERS {
                if (dep == *lib || (lib.ends_with('-') && dep.starts_with(lib))) && !owners.contains(&folder) {
                    out.push(format!("{folder}: only {} may name {dep}", owners.join(", ")));
                }
            }
        }
    }
    out.extend(pure_sources(root)?);
    Ok(out)
}

/// The pure crates' sources name no clock, file, thread or network.
fn pure_sources(root: &Path) -> Result<Vec<String>> {
    const BANNED: &[&str] = &["std::time", "std::fs", "std::net", "std::thread", "std::env", "tokio", "async fn"];
    let mut out = Vec::new();
    for folder in PURE {
        for path in crate::rust_files(&root.join(folder).join("src"))? {
            let text = std::fs::read_to_string(&path)?;
            for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim_start().starts_with("//")) {
                for word in BANNED.iter().filter(|w| line.contains(**w)) {
                    out.push(format!("{}:{}: a pure crate names {word}", path.strip_prefix(root)?.display(), i + 1));
                }
            }
        }
    }
    Ok(out)
}
