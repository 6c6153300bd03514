//! `fusefs journal`: what mounts could not write to the object store.

use super::{mount, volume::ask_for};
use crate::{
    args::{JournalCommand, MountOptions},
    cluster::{components, credential},
    show,
};
use anyhow::{Context, Result, bail, ensure};
use fusefs_data_path::journal::{Journal, Summary, discard, export, holder, inspect};
use fusefs_fuse_client::{
    client::ClientError,
    supervise::dirs,
    worker::{ends_session, journal::replay},
};
use fusefs_types::SessionId;
use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
};

/// Runs one of the commands.
pub fn run(command: JournalCommand) -> Result<()> {
    match command {
        JournalCommand::List { dir: Some(dir) } => list(&dir),
        JournalCommand::List { dir: None } => list_all(),
        JournalCommand::Export { dir, target } => {
            let summary = export(&free(&dir)?, &target).with_context(|| format!("exporting {}", dir.display()))?;
            println!("{} files written to {}", summary.files.len(), target.display());
            Ok(())
        }
        JournalCommand::Replay { dir, volume, yes, cluster } => {
            let files = free(&dir)?;
            tell(&dir, &inspect(&files)?);
            if !yes {
                ask_for(&volume, &format!("Write this to the volume {volume}?"))?;
            }
            let credential = credential(cluster.token_file.as_deref())?;
            let settings =
                mount::settings(&volume, Path::new("/"), cluster.master, credential, &MountOptions::default());
            super::runtime()?.block_on(replay_anyhow(&dir, settings))
        }
        JournalCommand::Discard { dir, yes } => {
            let files = free(&dir)?;
            tell(&dir, &inspect(&files)?);
            if !yes {
                ask_for("discard", "Forget this for ever?")?;
            }
            drop(files);
            discard(lock(&dir)?).with_context(|| format!("discarding {}", dir.display()))?;
            println!("nothing is pending in {} any more", dir.display());
            Ok(())
        }
    }
}

/// In the session of the dead mount, so that its commits are recognised; in a new one when the cluster has ended that.
async fn replay_anyhow(dir: &Path, settings: fusefs_fuse_client::ClientSettings) -> Result<()> {
    let journal = Journal::open(lock(dir)?)?;
    let session = journal.header().session;
    let mut written = replay(journal, session, &settings, components()).await;
    if let Err(ClientError::Master(refusal)) = &written
        && ends_session(refusal.error)
    {
        eprintln!("the mount's session is over ({}); writing in a new one", refusal.message);
        written = replay(Journal::open(lock(dir)?)?, SessionId(0), &settings, components()).await;
    }
    let bytes = written.with_context(|| format!("replaying {}; it is unchanged", dir.display()))?;
    println!("{} written to {}; {} may be removed", show::bytes(bytes), settings.volume, dir.display());
    Ok(())
}

/// The files, `journal.0` and up.
fn files(dir: &Path, write: bool) -> Result<Vec<File>> {
    let open = |n: usize| OpenOptions::new().read(true).write(write).open(dir.join(format!("journal.{n}")));
    let first = open(0).with_context(|| format!("{} holds no journal", dir.display()))?;
    Ok(std::iter::once(first).chain((1..).map_while(|n| open(n).ok())).collect())
}

/// The files of a journal that nobody works on.
fn free(dir: &Path) -> Result<Vec<File>> {
    let files = files(dir, false)?;
    if let Some(pid) = holder(&files[0])? {
        bail!("{} is in use by process {pid}; unmount first", dir.display());
    }
    Ok(files)
}

/// The files for changing them. The lock ends with the process.
fn lock(dir: &Path) -> Result<Vec<File>> {
    let files = files(dir, true)?;
    ensure!(holder(&files[0])?.is_none(), "{} is in use; unmount first", dir.display());
    Journal::lock(&files[0])?;
    Ok(files)
}

fn list(dir: &Path) -> Result<()> {
    let files = files(dir, false)?;
    if let Some(pid) = holder(&files[0])? {
        println!("{}: in use by process {pid}", dir.display());
        return Ok(());
    }
    match inspect(&files) {
        Ok(summary) => tell(dir, &summary),
        Err(e) => println!("{}: {e}", dir.display()),
    }
    Ok(())
}

fn tell(dir: &Path, s: &Summary) {
    println!("{}: mount {}, session {}", dir.display(), s.header.mount, s.header.session);
    if s.is_clean() {
        println!("  nothing is pending");
    }
    for f in &s.files {
        println!(
            "  inode {}: {} writes, {}, up to byte {}{}",
            f.ino,
            f.writes,
            show::bytes(f.bytes),
            f.end,
            if f.intents > 0 { ", a commit on its way" } else { "" }
        );
    }
}

/// Journals of this user's mounts, put aside ones included.
fn list_all() -> Result<()> {
    let root = dirs::state_root()?;
    let mut found: Vec<PathBuf> = Vec::new();
    for mount in children(&root) {
        found.extend(children(&mount).into_iter().filter(|d| d.join("journal.0").exists()));
        found.extend(Some(mount).filter(|d| d.join("journal.0").exists()));
    }
    found.sort();
    if found.is_empty() {
        println!("no journals in {}", root.display());
    }
    found.iter().try_for_each(|d| list(d))
}

fn children(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir)
        .map(|all| all.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect())
        .unwrap_or_default()
}
