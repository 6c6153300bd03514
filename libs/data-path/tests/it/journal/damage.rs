//! Torn tails, flipped bits, remains of earlier times.

use super::{Disk, Life};
use crate::rig::body;
use fusefs_data_path::{
    Settings, WriteContext,
    journal::{JournalError, ReplayStats},
};
use fusefs_types::Ino;

const F: Ino = Ino(100);
const FILE: u64 = 128 << 10;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("runtime")
}

/// A journal with `n` writes of which nothing is committed, and its image before the last one.
async fn pending(n: u64, len: usize) -> (Life, Vec<Vec<u8>>) {
    let life = Life::begin(Settings::default(), 1, Disk::new(4, FILE));
    life.sink.create(F);
    let mut before = life.disk.image();
    for i in 0..n {
        before = life.disk.image();
        let cx = WriteContext { unique: 2 * i + 2, ..WriteContext::default() };
        life.path.write(F, i * 1000, body(len, i as u8).into(), cx).await.expect("write");
    }
    life.disk.kill();
    (life, before)
}

fn changed(a: &[u8], b: &[u8]) -> std::ops::Range<usize> {
    let first = a.iter().zip(b).position(|(x, y)| x != y).expect("something was written");
    let last = a.iter().zip(b).rposition(|(x, y)| x != y).expect("something was written");
    first..last + 1
}

fn replay(life: &mut Life, image: Vec<Vec<u8>>) -> Result<ReplayStats, JournalError> {
    life.restart_on(image).map(|()| life.path.replayed())
}

#[test]
fn a_record_torn_at_any_byte_ends_the_replay() {
    runtime().block_on(async {
        let (mut life, before) = pending(3, 41).await;
        let after = life.disk.image();
        let record = changed(&before[0], &after[0]);
        assert!(record.len() > 80, "{record:?}");
        for cut in record.clone() {
            let mut image = before.clone();
            image[0][record.start..cut].copy_from_slice(&after[0][record.start..cut]);
            let r = replay(&mut life, image).expect("readable");
            assert_eq!(r.writes, 2, "torn after {} bytes", cut - record.start);
            // The next record overwrites the remains.
            life.path.write(F, 5000, body(10, 9).into(), WriteContext::default()).await.expect("write");
            life.kill();
            assert_eq!(life.path.replayed().writes, 3);
            life.disk.kill();
        }
        let r = replay(&mut life, after).expect("readable");
        assert_eq!((r.writes, r.torn), (3, 0));
        assert_eq!(life.path.read(F, 2000, 41).await.expect("read"), body(41, 2));
    });
}

#[test]
fn flipped_bits_are_found_or_do_not_matter() {
    runtime().block_on(async {
        let (mut life, before) = pending(4, 41).await;
        let after = life.disk.image();
        let last = changed(&before[0], &after[0]);
        let (mut refused, mut torn) = (0, 0);
        for at in 4096..last.end {
            let mut image = after.clone();
            image[0][at] ^= 1 << (at % 8);
            match replay(&mut life, image) {
                Err(JournalError::Corrupt { segment: 1, .. }) => {
                    assert!(at < last.start, "byte {at}");
                    refused += 1;
                }
                Err(e) => panic!("byte {at}: {e}"),
                Ok(r) if at >= last.start => {
                    assert_eq!(r.writes, 3, "byte {at}: damage of the last record looks like a torn one");
                    torn += 1;
                }
                Ok(r) => {
                    assert_eq!(r.writes, 4, "byte {at}");
                    assert!((at - 4096) % 128 >= 80 + 41, "only padding may change unnoticed: byte {at}");
                }
            }
        }
        assert!(refused == 3 * 121 && torn == 121, "{refused} {torn}");
    });
}

#[test]
fn damaged_heads_are_refused_or_replaced_by_the_older_copy() {
    runtime().block_on(async {
        let (mut life, _) = pending(2, 41).await;
        let after = life.disk.image();
        let mut answers = [0; 3];
        for at in 0..4096 {
            let mut image = after.clone();
            image[0][at] ^= 1 << (at % 8);
            match replay(&mut life, image) {
                Ok(r) if r.writes == 2 => answers[0] += 1,
                Ok(r) => panic!("byte {at}: {r:?}"),
                Err(JournalError::Version(_)) => answers[1] += 1,
                Err(JournalError::Corrupt { .. }) => answers[2] += 1,
                Err(e) => panic!("byte {at}: {e}"),
            }
        }
        // Two copies of the header, so damage of one does no harm; its version is believed, a segment's head is needed.
        assert!(answers[0] > 3900 && answers[1] > 0 && answers[2] > 0, "{answers:?}");
        let mut image = after.clone();
        image[0][..2048].fill(0);
        assert!(matches!(replay(&mut life, image), Err(JournalError::NoHeader)));
        let mut image = after.clone();
        image.pop();
        assert!(matches!(replay(&mut life, image), Err(JournalError::Shape(_))));
    });
}

/// Bytes that an application wrote are no records, even if they once were.
#[test]
fn remains_of_records_do_not_pass_for_records() {
    runtime().block_on(async {
        let (mut life, _) = pending(2, 41).await;
        let image = life.disk.image();
        let mut forged = image[0][4096..4096 + 256].repeat(20);
        forged.extend([7; 64]);
        replay(&mut life, image.clone()).expect("readable");
        let before = life.disk.image();
        life.path.write(F, 0, forged.clone().into(), WriteContext::default()).await.expect("write");
        let after = life.disk.image();
        let record = changed(&before[0], &after[0]);
        life.disk.kill();
        for cut in (record.start + 80..record.end).step_by(16) {
            let mut image = before.clone();
            image[0][record.start..cut].copy_from_slice(&after[0][record.start..cut]);
            assert_eq!(replay(&mut life, image).expect("torn, not damaged").writes, 2);
            life.disk.kill();
        }
        assert_eq!(replay(&mut life, after).expect("readable").writes, 3);
        assert_eq!(life.path.read(F, 0, forged.len()).await.expect("read"), forged);
    });
}

/// With a disk that takes no header, only the end of the header's file makes a journal void.
#[test]
fn a_journal_is_not_void_before_its_header_is_gone() {
    runtime().block_on(async {
        for (stuck, void) in [(None, true), (Some(1), true), (Some(0), false)] {
            let life = Life::begin(Settings::default(), 1, Disk::new(4, FILE));
            life.sink.create(F);
            life.path.write(F, 0, body(1000, 1).into(), WriteContext::default()).await.expect("write");
            life.disk.fail(true);
            stuck.into_iter().for_each(|file| life.disk.refuse_to_cut(file));
            let made = life.path.journal().expect("journal").make_void();
            assert_eq!(made.is_ok(), void, "file {stuck:?} cannot be cut: {made:?}");
            match life.disk.open().map(drop) {
                Err(JournalError::NoHeader) => assert!(void),
                Err(JournalError::Shape(_)) => assert!(!void),
                other => panic!("{other:?}: what was to be void can be read"),
            }
            life.disk.kill();
        }
    });
}
