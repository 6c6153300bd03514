//! The object format: golden bytes, round trips, random and damaged input.

use bytes::Bytes;
use fusefs_data_path::layout::*;
use fusefs_types::{Ino, ObjectId, SessionId, ids::Incarnation};
use proptest::prelude::*;

fn id(counter: u64) -> ObjectId {
    ObjectId { session: SessionId(0x0123_4567_89ab_cdef), incarnation: Incarnation(3), counter }
}

fn encode_whole(id: &ObjectId, plain: &[u8]) -> Bytes {
    encode(id, Ino(42), plain.len() as u64, [plain].into_iter())
}

/// These bytes are the format: a change here is a new version.
#[test]
fn golden_object() {
    let b = encode_whole(&id(9), b"fusefs");
    let hex: String = b.iter().map(|x| format!("{x:02x}")).collect();
    assert_eq!(
        hex,
        "4655534546534f3101000000efcdab89674523010000000000000000030000000900000000000000\
         2a000000000000000600000000000000000001000ab60cb95f6e7f3e06000000667573656673"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_range_reads_back(len in 0usize..300_000, cuts in prop::collection::vec(0usize..300_000, 0..6),
                            from in 0u64..300_000, n in 1u64..200_000, seed in any::<u8>()) {
        let plain: Vec<u8> = (0..len).map(|i| (i as u8) ^ (i >> 7) as u8 ^ seed).collect();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(len)).chain([0, len]).collect();
        cuts.sort();
        let pieces = cuts.windows(2).map(|w| &plain[w[0]..w[1]]);
        let whole = encode(&id(1), Ino(7), len as u64, pieces);
        prop_assert_eq!(whole.len() as u64, encoded_len(len as u64));
        let header = decode_header(&whole).expect("header");
        prop_assert_eq!(header, Header { id: id(1), home: Ino(7), plain_len: len as u64 });
        if from < len as u64 {
            let frames = frames_of(from, n);
            let r = byte_range(&frames);
            let body = whole.slice(r.start as usize..whole.len().min(r.end as usize));
            let got = decode_frames(&id(1), &frames, &body).expect("verified").concat();
            let skip = (from - u64::from(frames.start) * FRAME) as usize;
            let to = (from + n).min(len as u64);
            prop_assert_eq!(&got[skip..skip + (to - from) as usize], &plain[from as usize..to as usize]);
        }
    }

    #[test]
    fn damage_is_detected(len in 1usize..200_000, at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<prop::sample::Index>()) {
        let whole = encode_whole(&id(1), &vec![7; len]);
        let frames = frames_of(0, len as u64);
        let mut bad = whole.to_vec();
        let at = at.index(bad.len());
        bad[at] ^= 1 << bit;
        let bad = Bytes::from(bad);
        if at < 64 {
            prop_assert!(decode_header(&bad).is_err());
        } else {
            prop_assert!(decode_frames(&id(1), &frames, &bad.slice(64..)).is_err());
        }
        // A cut at a frame's end is a shorter object: the reader compares with the extent. Any other cut is an error.
        let cut = cut.index(whole.len() - 64);
        let r = decode_frames(&id(1), &frames, &whole.slice(64..64 + cut));
        prop_assert!(r.is_err() || (cut as u64).is_multiple_of(STRIDE));
        prop_assert!(decode_frames(&id(2), &frames, &whole.slice(64..)).is_err(), "another object's body");
        let shifted = frames.start + 1..frames.end + 1;
        prop_assert!(decode_frames(&id(1), &shifted, &whole.slice(64..)).is_err(), "another frame's bytes");
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), magic in any::<bool>(), start in any::<u32>(), n in 0u32..5) {
        let mut b = bytes;
        if magic && b.len() >= 8 {
            b[..8].copy_from_slice(&MAGIC);
        }
        prop_assert!(decode_header(&b).is_err());
        let frames = start.min(u32::MAX - n)..start.min(u32::MAX - n) + n;
        let b = Bytes::from(b);
        let r = decode_frames(&id(1), &frames, &b);
        prop_assert!(r.is_err() || b.is_empty());
        let _ = byte_range(&frames_of(u64::MAX, u64::MAX));
        let _ = byte_range(&frames);
    }
}
