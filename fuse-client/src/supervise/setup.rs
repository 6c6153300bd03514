//! How a supervisor comes to its mount: made fresh, or taken over from the keeper.

use super::{
    Adopted, Plan, SLOTS_MODE, SuperviseError,
    child::{KeeperProcess, Process},
    dirs::{self, Claim, Dirs},
    journal,
    record::{ClientRecord, EndRecord, Phase, names},
    run::{Found, Supervisor},
};
use crate::{
    fuse::{
        MountError, MountSettings, Unmounter,
        device::{Attached, attach, set_immutable},
        kernel::SlotFile,
        prepare_point,
    },
    keeper::{Channel, Item, Store, sys},
};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use std::{
    ffi::OsString,
    io,
    os::unix::fs::FileTypeExt,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

/// File in the state directory: the directory underneath is unwritable because of us.
const PROTECTED: &str = "protected";
/// How often an adopting supervisor looks whether its predecessor's lock is free (its last child may just be starting).
const CLAIM_TRIES: u32 = 100;

/// Mounts and starts keeper and client.
pub(super) fn fresh(plan: Plan) -> Result<Supervisor, SuperviseError> {
    let signals = signals()?;
    let point = prepare_point(&plan.mount.mountpoint)?;
    let (dirs, claim) = dirs::claim(&point, plan.state_dir.as_deref())
        .map_err(|e| SuperviseError::File("directories of the mount".into(), e))?;
    let mut store = items(&dirs.state, plan.journal_bytes, plan.slots, &plan.spec, plan.mount_id)?;
    store.put(names::BINARY, file(sys::executable(Path::new("/proc/self/exe"))?));
    let point = attach_into(&mut store, &dirs.state, &plan.mount, plan.protect)?;
    let undo = |e| {
        let _ = Unmounter::new(&point).detach(); // nobody serves it, and nobody ever will
        unprotect(&dirs);
        e
    };
    let mut supervisor = start(plan, dirs.clone(), claim, store, signals, point.clone()).map_err(undo)?;
    supervisor.start_client();
    Ok(supervisor)
}

pub(super) fn value(b: &[u8]) -> Item {
    Item { bytes: b.to_vec(), fd: None }
}

pub(super) fn file(fd: OwnedFd) -> Item {
    Item { bytes: Vec::new(), fd: Some(fd) }
}

/// What the processes of a new mount share, without the kernel connection.
pub(super) fn items(
    state: &Path,
    journal_bytes: u64,
    slots: bool,
    spec: &[u8],
    mount_id: u128,
) -> Result<Store, SuperviseError> {
    let mut store = Store::default();
    journal::open(state, journal_bytes, &mut store)?;
    store.put(names::HANDLES, file(sys::memfd(c"fusefs-handles")?));
    store.put(names::SLOTS, file(SlotFile::create()?.into()));
    if slots {
        store.put(names::RECOVERY, value(SLOTS_MODE));
    }
    store.put(names::SPEC, value(spec));
    store.put(names::MOUNT, value(&mount_id.to_le_bytes()));
    store.put(names::DIRS, value(state.as_os_str().as_bytes()));
    Ok(store)
}

/// Mounts, and answers the path as the kernel names it.
pub(super) fn attach_into(
    store: &mut Store,
    state: &Path,
    mount: &MountSettings,
    protect: bool,
) -> Result<PathBuf, SuperviseError> {
    let Attached { point, device, protected } = attach(mount, protect)?;
    if protected {
        let _ = std::fs::write(state.join(PROTECTED), point.as_os_str().as_bytes()); // cleared by hand then
    }
    store.put(names::FUSE, file(device));
    Ok(point)
}

fn start(
    plan: Plan,
    dirs: Dirs,
    claim: Claim,
    store: Store,
    signals: SignalFd,
    point: PathBuf,
) -> Result<Supervisor, SuperviseError> {
    let exe = sys::executable(Path::new("/proc/self/exe"))?;
    let stdin = parent_pipe(&plan)?;
    let args = adopt_args(&plan, &dirs);
    let listener = listen(&dirs)?;
    let keeper = KeeperProcess::start(exe.as_fd(), &dirs, &plan.common_args).map_err(SuperviseError::Keeper)?;
    if let Err(e) = keeper.entrust(&store, exe.as_fd(), stdin.as_ref().map(AsFd::as_fd), &args) {
        keeper.end(); // it must not keep a mount that nobody serves
        return Err(SuperviseError::Keeper(e));
    }
    let keeper = Some(keeper);
    Ok(Supervisor::new(plan, dirs, store, Found { claim, signals, point, exe, keeper, stdin, args, listener }))
}

pub(super) fn listen(dirs: &Dirs) -> io::Result<OwnedFd> {
    let socket = dirs.supervisor_socket();
    let _ = std::fs::remove_file(&socket); // our predecessor's
    sys::listener(&socket)
}

/// Takes over from the keeper; the client goes on if it lives.
pub(super) fn adopted(from: Adopted, plan: Plan) -> Result<Supervisor, SuperviseError> {
    let signals = signals()?;
    let Adopted { channel, store, dirs } = from;
    let claim = claim_again(&dirs)?;
    let exe = sys::executable(Path::new("/proc/self/exe"))?;
    let stdin = parent_pipe(&plan)?;
    let args = adopt_args(&plan, &dirs);
    let keeper = same_keeper(channel, exe.as_fd(), stdin.as_ref().map(AsFd::as_fd), &args);
    let record = store.bytes(names::CLIENT).and_then(ClientRecord::decode);
    let (point, listener) = (plan.mount.mountpoint.clone(), listen(&dirs)?);
    let found = Found { claim, signals, point, exe, keeper, stdin, args, listener };
    let mut s = Supervisor::new(plan, dirs, store, found);
    s.served = record.is_some_and(|r| r.phase != Phase::Starting) || s.store.get(names::INIT).is_some();
    match record.as_ref().and_then(Process::adopt) {
        Some(client) => s.adopt_client(client, record.map_or(Phase::Starting, |r| r.phase)),
        None if s.end_record().is_some() => {}
        None => s.start_client(),
    }
    Ok(s)
}

/// The keeper that everything was got from. None when it died meanwhile or does not answer: the loop starts another one,
/// from what we got.
fn same_keeper(
    channel: Channel,
    exe: BorrowedFd<'_>,
    stdin: Option<BorrowedFd<'_>>,
    args: &[OsString],
) -> Option<KeeperProcess> {
    let keeper = match KeeperProcess::adopt(channel) {
        Ok(keeper) => keeper,
        Err(error) => {
            tracing::warn!(%error, "the keeper died while its mount was taken over");
            return None;
        }
    };
    if let Err(error) = keeper.entrust(&Store::default(), exe, stdin, args) {
        tracing::warn!(%error, "the keeper does not take a new supervisor; it is replaced");
        keeper.kill();
        return None;
    }
    Some(keeper)
}

pub(super) fn claim_again(dirs: &Dirs) -> Result<Claim, SuperviseError> {
    for _ in 0..CLAIM_TRIES {
        if let Some(claim) = dirs::lock(&dirs.state)? {
            return Ok(claim);
        }
        // Nothing wakes us when the lock is let go.
        let _ = nix::poll::poll(&mut [], 10_u8);
    }
    Err(io::Error::other("another supervisor serves this mount").into())
}

/// A copy of our standard input, for ourselves and for those who follow us. Only a pipe or a socket can tell that the
/// parent is gone: whoever was started by a lone client has neither, and must not take that for the end.
pub(super) fn parent_pipe(plan: &Plan) -> io::Result<Option<OwnedFd>> {
    if !plan.exit_with_parent {
        return Ok(None);
    }
    let stdin = sys::duplicate(io::stdin())?;
    let kind = std::fs::File::from(stdin.try_clone()?).metadata()?.file_type();
    Ok((kind.is_fifo() || kind.is_socket()).then_some(stdin))
}

/// How the keeper starts us again.
fn adopt_args(plan: &Plan, dirs: &Dirs) -> Vec<OsString> {
    let head = [OsString::from("adopt"), "--runtime".into(), dirs.runtime.clone().into_os_string()];
    let tail = std::iter::once(OsString::from("--")).chain(plan.labels.iter().cloned());
    head.into_iter().chain(plan.common_args.iter().cloned()).chain(tail).collect()
}

pub(super) fn signals() -> io::Result<SignalFd> {
    let mut mask = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().for_each(|s| mask.add(s));
    mask.thread_block()?;
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Makes the directory underneath writable again if we had made it unwritable. Nothing may be mounted there any more.
pub(super) fn unprotect(dirs: &Dirs) {
    let marker = dirs.state.join(PROTECTED);
    let Ok(path) = std::fs::read(&marker) else { return };
    let point = Path::new(std::ffi::OsStr::from_bytes(&path));
    let mounted = crate::fuse::mountinfo::read().map_or(true, |l| crate::fuse::mountinfo::at(&l, point).is_some());
    if mounted {
        return; // somebody else's mount lies there now
    }
    match set_immutable(point, false) {
        Ok(_) => drop(std::fs::remove_file(marker)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => drop(std::fs::remove_file(marker)), // gone with the directory
        Err(error) => tracing::warn!(%error, point = %point.display(), "stays unwritable; see: chattr -i"),
    }
}

/// What a mount that did not come to be leaves: nothing.
pub(super) fn give_up(point: &Path) -> Result<(), MountError> {
    Unmounter::new(point).detach().map_err(|e| MountError::Other(point.to_owned(), e))
}

/// The end as the last client reported it.
pub(super) fn end_record(store: &Store) -> Option<EndRecord> {
    store.bytes(names::ENDED).and_then(EndRecord::decode)
}
