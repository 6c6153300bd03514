//! A journal that outlived its machine.

use super::{BOOT, Disk, Life, Torn};
use crate::rig::body;
use fusefs_data_path::{Settings, WriteContext, journal::Mode};
use fusefs_types::{Ino, SessionId};
use std::sync::atomic::Ordering::Relaxed;

const F: Ino = Ino(100);
const G: Ino = Ino(101);

async fn write(life: &Life, ino: Ino, at: u64, data: Vec<u8>) {
    let attr = life.sink.attr(ino).expect("attr");
    let cx = WriteContext { trunc_seq: attr.trunc_seq, change: attr.change, ..WriteContext::default() };
    life.path.write(ino, at, data.into(), cx).await.expect("write");
}

fn begin() -> Life {
    let life = Life::begin(Settings::default(), 1, Disk::new(4, 128 << 10));
    [F, G].iter().for_each(|i| _ = life.sink.create(*i));
    life
}

#[tokio::test(start_paused = true)]
async fn what_nobody_touched_comes_back() {
    let mut life = begin();
    write(&life, F, 0, body(900, 1)).await;
    life.path.fsync(F).await.expect("fsync");
    write(&life, F, 500, body(900, 2)).await;
    write(&life, G, 0, body(100, 3)).await;
    life.disk.kill();
    assert_eq!(life.reboot(life.disk.image()).await, []);
    life.path.sync_all().await.expect("sync");
    let mut want = body(900, 1);
    want.truncate(500);
    want.extend(body(900, 2));
    assert_eq!(life.sink.content(F, &life.bodies), want);
    assert_eq!(life.sink.content(G, &life.bodies), body(100, 3));
}

/// Power loss: the pages of the journal that say what became of the first write never reached the disk.
#[tokio::test(start_paused = true)]
async fn a_lost_end_of_the_journal_brings_no_old_bytes_back() {
    let whole = {
        let life = begin();
        write(&life, F, 0, body(900, 1)).await;
        let first = life.disk.writes();
        life.path.fsync(F).await.expect("fsync");
        write(&life, F, 0, body(900, 2)).await;
        life.path.fsync(F).await.expect("fsync");
        first..life.disk.writes() + 1
    };
    for lost_from in whole {
        let mut life = begin();
        let mut images = vec![life.disk.image()];
        let mut keep = |life: &Life| images.push(life.disk.image());
        write(&life, F, 0, body(900, 1)).await;
        keep(&life);
        life.path.fsync(F).await.expect("fsync");
        keep(&life);
        write(&life, F, 0, body(900, 2)).await;
        keep(&life);
        life.path.fsync(F).await.expect("fsync");
        keep(&life);
        life.disk.kill();
        let mut image = life.disk.image();
        // Every kind of loss: everything behind some byte is as it was at the start.
        let cut = 4096 + (lost_from as usize) * 170;
        image[0][cut..].fill(0);
        let left = life.reboot(image).await;
        life.path.sync_all().await.expect("sync");
        assert_eq!(life.sink.content(F, &life.bodies), body(900, 2), "cut at {cut}, left {left:?}");
        for image in &images {
            let left = life.reboot(image.clone()).await;
            life.path.sync_all().await.expect("sync");
            assert_eq!(life.sink.content(F, &life.bodies), body(900, 2), "left {left:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_somebody_changed_stays_in_the_journal() {
    let mut life = begin();
    write(&life, F, 0, body(900, 1)).await;
    write(&life, G, 0, body(100, 3)).await;
    life.disk.kill();
    life.sink.set_size(F, 5).expect("another client");
    assert_eq!(life.reboot(life.disk.image()).await, [F]);
    life.path.sync_all().await.expect("sync");
    assert_eq!(life.sink.content(F, &life.bodies), [0; 5]);
    assert_eq!(life.sink.content(G, &life.bodies), body(100, 3));
    life.disk.kill();
    assert_eq!(life.reboot(life.disk.image()).await, [F], "it can still be exported");
}

/// The first mount after the power loss came before the cluster: it had begun and never opened the session.
#[tokio::test(start_paused = true)]
async fn a_second_try_after_a_reboot_is_as_careful_as_the_first() {
    let mut life = begin();
    write(&life, F, 0, body(900, 1)).await;
    let lost = life.disk.image();
    life.path.fsync(F).await.expect("fsync");
    write(&life, F, 0, body(900, 2)).await;
    life.path.fsync(F).await.expect("fsync");
    life.disk.kill();
    let machine = Disk::from(lost);
    for _ in 0..3 {
        machine.open().expect("open").begin_replay(BOOT + 1).expect("begin");
    }
    assert_eq!(life.reboot(machine.image()).await, [F]);
    life.path.sync_all().await.expect("sync");
    assert_eq!(life.sink.content(F, &life.bodies), body(900, 2), "what was synced stays");
    assert_eq!(life.reboot(life.disk.image()).await, [F], "also once a try has written to the journal");
}

/// The disk does not know the newest client processes of before a power loss, whether they served or replayed.
#[tokio::test(start_paused = true)]
async fn no_number_of_a_client_process_comes_twice_after_a_power_loss() {
    let mut life = begin();
    let lost = life.disk.image();
    (0..5).for_each(|_| life.kill());
    let newest = life.path.journal().expect("journal").header().incarnation;
    let machine = Disk::from(lost);
    let (mode, first) = machine.open().expect("open").begin_replay(BOOT + 1).expect("begin");
    assert!(mode == Mode::Prefix && first > newest, "{first:?} after {newest:?}");
    let machine = Disk::from(machine.durable());
    let (_, second) = machine.open().expect("open").begin_replay(BOOT + 2).expect("begin");
    assert!(second > first, "{second:?} after {first:?}");
}

/// The session of the killed client is over: in another one, its commits would be executed again without notice.
#[tokio::test(start_paused = true)]
async fn commits_of_another_session_are_not_sent_again() {
    let mut life = begin();
    write(&life, F, 0, body(900, 1)).await;
    life.disk.kill_at(2, Torn::Nothing); // 1 = intent, 2 = done
    let disk = life.disk.clone();
    tokio::select! { biased; () = disk.died.notified() => {}, r = life.path.fsync(F) => panic!("{r:?}") }
    assert_eq!(life.sink.content(F, &life.bodies), body(900, 1), "executed");
    let ended = Disk::from(life.disk.image());
    ended.open().expect("open").set_session(SessionId(1), 0).expect("header");
    assert_eq!(life.reboot(ended.image()).await, [F], "the version is not what the journal knows");
    assert_eq!(life.path.journal().expect("journal").stats().resent.load(Relaxed), 0);
    life.disk.kill();
    life.restart_on(ended.image()).expect("restart");
    life.path.sync_all().await.expect("sync");
    assert_eq!(life.path.journal().expect("journal").stats().resent.load(Relaxed), 0);
    assert_eq!(life.sink.content(F, &life.bodies), body(900, 1));
    life.kill();
    let r = life.path.replayed();
    assert_eq!((r.writes, r.intents), (0, 0), "and the old commit is not pending any more");
}
