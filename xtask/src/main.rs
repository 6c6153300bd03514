//! Project automation: `cargo run -p fusefs-xtask -- tidy` checks what a reviewer would tire of; `cargo test -p
//! fusefs-xtask` runs the same check.

mod edges;
mod ops;
mod sizes;

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => tidy(),
        Some("ratchet") => sizes::rewrite_ratchet(&root()),
        _ => bail!(
            "usage: xtask tidy      check sizes, dependency edges, purity and op coverage\n       xtask ratchet   rewrite xtask/ratchet.toml from the tree (only ever to lower numbers)"
        ),
    }
}

/// Workspace root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

fn tidy() -> Result<()> {
    let root = root();
    let mut problems = sizes::check(&root)?;
    problems.extend(edges::check(&root)?);
    problems.extend(ops::check(&root)?);
    if problems.is_empty() {
        println!("tidy: clean");
        return Ok(());
    }
    bail!("tidy: {} problem(s)\n{}", problems.len(), problems.join("\n"))
}

/// All tracked-looking `.rs` files below `dir` (target and hidden folders are skipped), sorted.
pub fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    let mut stack = vec![dir.to_path_buf()];
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    stack.push(path);
                }
            } else if name.ends_with(".rs") {
                out.push(path);
            }
        }
    }
    out.sort();
    Ok(out)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_is_tidy() {
        super::tidy().unwrap();
    }
}
