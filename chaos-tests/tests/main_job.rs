//! The main job, with nothing mocked: 3 masters, 3 metanodes, a client and an S3 server that nobody here wrote, all as
//! processes, all killed.

use anyhow::{Context, Result, ensure};
use fusefs_chaos_tests::{
    stack::{Stack, eventually, sh},
    tree::{differences, manifest, source_tree},
};
use fusefs_local_cluster::Shape;
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    time::Duration,
};

const FILES: usize = 5_000;

fn decorate(tree: &Path) -> Result<()> {
    let sub = tree.join("links");
    fs::create_dir(&sub)?;
    fs::write(sub.join("a"), b"linked")?;
    for i in 0..20 {
        fs::hard_link(sub.join("a"), sub.join(format!("hard{i}")))?;
        symlink(format!("../links/hard{i}"), sub.join(format!("sym{i}")))?;
    }
    symlink("dangling/target", sub.join("dangling"))?;
    for (i, mode) in [0o600, 0o4755, 0o2750, 0o444, 0o000].into_iter().enumerate() {
        let f = sub.join(format!("mode{i}"));
        fs::write(&f, [i as u8; 70_000])?;
        fs::set_permissions(&f, fs::Permissions::from_mode(mode))?;
    }
    sh(&sub, "touch", &["-d", "2001-02-03 04:05:06.123456789 UTC", "mode0", "a"])?;
    Ok(())
}

fn git(at: &Path, tree: &Path) -> Result<()> {
    let repo = at.join("repo");
    fs::create_dir(&repo)?;
    let source = fs::read_dir(tree)?.flatten().find(|e| e.path().is_dir()).context("a directory to commit")?.path();
    sh(&repo, "cp", &["-r", &source.display().to_string(), "."])?;
    sh(&repo, "git", &["init", "-q"])?;
    sh(&repo, "git", &["add", "-A"])?;
    sh(&repo, "git", &["-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-q", "-m", "all"])?;
    sh(&repo, "git", &["fsck", "--full", "--strict"])?;
    ensure!(sh(&repo, "git", &["status", "--porcelain"])?.is_empty(), "git sees changes after a commit");
    Ok(())
}

fn cargo_build(at: &Path) -> Result<()> {
    let project = at.join("hello");
    fs::create_dir_all(project.join("src"))?;
    fs::write(
        project.join("Cargo.toml"),
        "[package]\nname = \"hello\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
    )?;
    fs::write(project.join("src/main.rs"), "fn main() { println!(\"built on fusefs\"); }\n")?;
    sh(&project, "cargo", &["build", "--offline", "--quiet", "--target-dir", "target"])?;
    ensure!(sh(&project, "target/debug/hello", &[])?.contains("built on fusefs"));
    Ok(())
}

fn sqlite(at: &Path, journal: &str) -> Result<String> {
    let db = at.join(format!("{journal}.db"));
    let script = format!(
        "PRAGMA journal_mode={journal}; PRAGMA synchronous=FULL; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); \
         WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<2000) INSERT INTO t SELECT n, hex(randomblob(64)) FROM c; \
         UPDATE t SET v = v || 'x' WHERE id % 3 = 0; DELETE FROM t WHERE id % 7 = 0;"
    );
    sh(at, "sqlite3", &[&db.display().to_string(), &script])?;
    check_sqlite(at, journal)
}

fn check_sqlite(at: &Path, journal: &str) -> Result<String> {
    let db = at.join(format!("{journal}.db")).display().to_string();
    let out = sh(at, "sqlite3", &[&db, "PRAGMA integrity_check; SELECT count(*), sum(length(v)) FROM t;"])?;
    ensure!(out.starts_with("ok\n"), "{journal}: {out}");
    Ok(out)
}

/// Directories near the root spread over the partitions; moving and linking between them crosses partitions from every
/// side.
fn cross(at: &Path) -> Result<()> {
    const WAYS: usize = 9;
    for i in 0..WAYS {
        for j in 0..3 {
            fs::create_dir_all(at.join(format!("cross{i}/sub{j}")))?;
            fs::write(at.join(format!("cross{i}/sub{j}/file")), format!("{i} {j}"))?;
        }
    }
    for i in 0..WAYS {
        let (from, to) = (at.join(format!("cross{i}")), at.join(format!("cross{}", (i + 1) % WAYS)));
        fs::rename(from.join("sub0"), to.join(format!("moved{i}")))?;
        fs::rename(from.join("sub1/file"), to.join(format!("file{i}")))?;
        fs::hard_link(to.join(format!("file{i}")), from.join(format!("link{i}")))?;
        fs::remove_dir(from.join("sub1"))?;
    }
    Ok(())
}

/// `fusefs volume show --json` lists operations and transactions of every partition.
fn partitions(stack: &Stack, volume: &str) -> Result<Vec<(u64, u64, u64)>> {
    let show: serde_json::Value = serde_json::from_str(&stack.fusefs(&["volume", "show", volume, "--json"])?)?;
    let list = show["partitions"].as_array().context("no partitions in volume show")?;
    let n = |p: &serde_json::Value, key: &str| p[key].as_u64().with_context(|| format!("{key} of {p}"));
    list.iter().map(|p| Ok((n(p, "id")?, n(p, "operations")?, n(p, "transactions")?))).collect()
}

#[test]
fn main_job_survives_the_loss_of_everything() -> Result<()> {
    let mut stack = Stack::start(Shape { masters: 3, metanodes: 3 })?;
    stack.fusefs(&["volume", "create", "work"])?;
    let client = stack.mount("work", &[])?;
    let source = fusefs_chaos_tests::stack::scratch()?;
    let files = source_tree(source.path(), FILES)?;
    decorate(source.path())?;
    let want = manifest(source.path())?;

    let at = stack.at(client).to_path_buf();
    let tree = at.join("tree");
    fs::create_dir(&tree)?;
    sh(&tree, "cp", &["-a", &format!("{}/.", source.path().display()), "."])?;
    cross(&at)?;
    git(&at, &tree)?;
    cargo_build(&at)?;
    let databases = [("delete", sqlite(&at, "delete")?), ("wal", sqlite(&at, "wal")?)];
    let before = manifest(&at)?;
    ensure!(
        differences(&want, &manifest(&tree)?).is_empty(),
        "the copy differs: {:#?}",
        differences(&want, &manifest(&tree)?)
    );

    let counters = partitions(&stack, "work")?;
    for (id, operations, transactions) in &counters {
        println!("partition {id}: {operations} operations, {transactions} cross-partition transactions");
    }
    ensure!(
        counters.len() == 3 && counters.iter().all(|c| c.1 > 0 && c.2 > 0),
        "a partition had no work: {counters:?}"
    );

    let killed = stack.kill_everything();
    ensure!(killed == 7, "7 processes should have been killed, {killed} were");
    stack.restart_everything()?;
    let after = manifest(&at)?;
    ensure!(
        differences(&before, &after).is_empty(),
        "after the loss of everything: {:#?}",
        differences(&before, &after)
    );
    sh(&at.join("repo"), "git", &["fsck", "--full", "--strict"])?;
    for (journal, content) in &databases {
        ensure!(&check_sqlite(&at, journal)? == content, "{journal} database changed");
    }
    println!("{files} files survived {killed} SIGKILLs");
    Ok(())
}

#[test]
fn losing_one_master_and_one_metanode_is_invisible() -> Result<()> {
    let mut stack = Stack::start(Shape { masters: 3, metanodes: 3 })?;
    stack.fusefs(&["volume", "create", "work"])?;
    let client = stack.mount("work", &[])?;
    let source = fusefs_chaos_tests::stack::scratch()?;
    source_tree(source.path(), 1_500)?;
    let want = manifest(source.path())?;
    let tree = stack.at(client).join("tree");
    fs::create_dir(&tree)?;
    let copy = std::thread::spawn({
        let (from, to) = (format!("{}/.", source.path().display()), tree.clone());
        move || sh(&to, "cp", &["-a", &from, "."])
    });
    // The kills fall into the copy: wait until it has made some files, and check that it was still running afterwards.
    eventually(Duration::from_secs(60), || Ok(fusefs_chaos_tests::tree::count(&tree).unwrap_or(0) > 100))?;
    ensure!(stack.servers.metanodes[0].kill() && stack.servers.masters[0].kill(), "the servers were not running");
    ensure!(!copy.is_finished(), "the copy ended before the kills: make it longer");
    copy.join().map_err(|_| anyhow::anyhow!("the copy panicked"))??;
    let have = manifest(&tree)?;
    ensure!(differences(&want, &have).is_empty(), "{:#?}", differences(&want, &have));
    println!("copied {} entries through the loss of metanode-0 and master-0", want.len());
    Ok(())
}
