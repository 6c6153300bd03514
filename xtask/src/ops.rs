//! Every operation of `types::ops` has its file in meta-state and a test that names it; every promise of SEMANTICS.md
//! names a test that exists.

use anyhow::Result;
use std::path::Path;

fn variants(text: &str, name: &str) -> Result<Vec<String>> {
    let ast = syn::parse_file(text)?;
    Ok(ast
        .items
        .iter()
        .filter_map(|i| match i {
            syn::Item::Enum(e) if e.ident == name => {
                Some(e.variants.iter().map(|v| v.ident.to_string()).collect::<Vec<_>>())
            }
            _ => None,
        })
        .flatten()
        .collect())
}

fn all_text(dir: &Path) -> Result<String> {
    let mut out = String::new();
    if dir.exists() {
        for file in crate::rust_files(dir)? {
            out.push_str(&std::fs::read_to_string(file)?);
        }
    }
    Ok(out)
}

/// Problems in words.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let ops = std::fs::read_to_string(root.join("libs/types/src/ops.rs"))?;
    let tests = all_text(&root.join("libs/meta-state/tests"))?;
    for kind in ["Write", "Read"] {
        for op in variants(&ops, kind)? {
            if !tests.contains(&format!("{kind}::{op}")) && !tests.contains(&format!("{op} {{")) {
                out.push(format!("{kind}::{op}: no test in libs/meta-state/tests names it"));
            }
        }
    }
    out.extend(promises(root)?);
    Ok(out)
}

/// Each row of SEMANTICS.md ends in `` `test_name` `` cells that must exist somewhere in the tree.
fn promises(root: &Path) -> Result<Vec<String>> {
    let path = root.join("docs/SEMANTICS.md");
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(vec!["docs/SEMANTICS.md is missing".into()]) };
    let all = all_text(root)?;
    let mut out = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| l.starts_with("| ") && !l.contains("---")) {
        let Some(cell) = line.trim_end_matches('|').rsplit('|').next() else { continue };
        for test in cell.split('`').skip(1).step_by(2) {
            let name = test.rsplit("::").next().unwrap_or(test);
            if !all.contains(&format!("fn {name}(")) {
                out.push(format!("docs/SEMANTICS.md:{}: test `{test}` does not exist", i + 1));
            }
        }
    }
    Ok(out)
}
