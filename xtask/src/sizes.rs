//! Function and file sizes, as a ratchet: what is above the limit is listed with its size in `ratchet.toml` and may only
//! shrink; nothing new may join.

use anyhow::{Context, Result};
use std::{collections::BTreeMap, path::Path};
use syn::{spanned::Spanned, visit::Visit};

/// Longest function, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;
/// Longest file without its tests.
const FILE_LINES_MAX: usize = 600;

/// Sizes above the limits, by `path` or `path::function`.
type Oversize = BTreeMap<String, usize>;

struct Functions<'a> {
    file: &'a str,
    found: &'a mut Oversize,
}

fn is_test(attrs: &[syn::Attribute]) -> bool {
    attrs.iter().any(|a| {
        let path = a.path();
        path.segments.last().is_some_and(|s| s.ident == "test")
            || (path.is_ident("cfg") && quote_args(a).contains("test"))
    })
}

fn quote_args(a: &syn::Attribute) -> String {
    a.meta.require_list().map(|l| l.tokens.to_string()).unwrap_or_default()
}

impl Functions<'_> {
    fn measure(&mut self, name: &syn::Ident, sig: &syn::Signature, block: &syn::Block) {
        let lines = block.span().end().line - sig.span().start().line + 1;
        if lines > FUNCTION_LINES_MAX {
            self.found.insert(format!("{}::{name}", self.file), lines);
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, f: &'ast syn::ItemFn) {
        if !is_test(&f.attrs) {
            self.measure(&f.sig.ident, &f.sig, &f.block);
            syn::visit::visit_item_fn(self, f);
        }
    }
    fn visit_impl_item_fn(&mut self, f: &'ast syn::ImplItemFn) {
        self.measure(&f.sig.ident, &f.sig, &f.block);
        syn::visit::visit_impl_item_fn(self, f);
    }
    fn visit_item_mod(&mut self, m: &'ast syn::ItemMod) {
        if !is_test(&m.attrs) {
            syn::visit::visit_item_mod(self, m);
        }
    }
}

/// Lines of a file without `#[cfg(test)]` modules.
fn code_lines(text: &str, ast: &syn::File) -> usize {
    let tests: usize = ast
        .items
        .iter()
        .filter_map(|i| match i {
            syn::Item::Mod(m) if is_test(&m.attrs) => Some(m.span().end().line - m.span().start().line + 1),
            _ => None,
        })
        .sum();
    text.lines().count() - tests
}

fn is_test_path(path: &str) -> bool {
    path.split('/').any(|p| matches!(p, "tests" | "benches" | "examples" | "fuzz"))
        || path.ends_with("tests.rs")
        || path.ends_with("_test.rs")
}

fn measure(root: &Path) -> Result<Oversize> {
    let mut found = Oversize::new();
    for path in crate::rust_files(root)? {
        let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
        if is_test_path(&name) {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let ast = syn::parse_file(&text).with_context(|| format!("parsing {name}"))?;
        let lines = code_lines(&text, &ast);
        if lines > FILE_LINES_MAX {
            found.insert(name.clone(), lines);
        }
        Functions { file: &name, found: &mut found }.visit_file(&ast);
    }
    Ok(found)
}

fn ratchet(root: &Path) -> Result<Oversize> {
    let text = std::fs::read_to_string(root.join("xtask/ratchet.toml")).unwrap_or_default();
    let table: toml::Table = text.parse().context("xtask/ratchet.toml")?;
    Ok(table.into_iter().filter_map(|(k, v)| Some((k, v.as_integer()? as usize))).collect())
}

/// Problems in words.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let allowed = ratchet(root)?;
    let found = measure(root)?;
    let mut out = Vec::new();
    for (what, &lines) in &found {
        let limit = if what.contains("::") { FUNCTION_LINES_MAX } else { FILE_LINES_MAX };
        match allowed.get(what) {
            Some(&max) if lines <= max => {}
            Some(&max) => out.push(format!("{what}: {lines} lines, the ratchet allows {max}")),
            None => out.push(format!("{what}: {lines} lines, the limit is {limit}: split it by responsibility")),
        }
    }
    for what in allowed.keys().filter(|k| !found.contains_key(*k)) {
        out.push(format!("{what}: is within the limits now; remove it from xtask/ratchet.toml"));
    }
    Ok(out)
}

/// Rewrites the ratchet from the tree.
pub fn rewrite_ratchet(root: &Path) -> Result<()> {
    let mut text = String::from("# Sizes above the limits of xtask/src/sizes.rs. They may only shrink.\n");
    for (what, lines) in measure(root)? {
        text.push_str(&format!("\"{what}\" = {lines}\n"));
    }
    std::fs::write(root.join("xtask/ratchet.toml"), text)?;
    Ok(())
}
