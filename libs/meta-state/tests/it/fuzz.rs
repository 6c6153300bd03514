//! Random bytes to every decoder: an error or a record that encodes to the same bytes, never a panic.

use fusefs_meta_state::record::wire::Wire;
use fusefs_meta_state::{Partition, record::*};
use fusefs_types::{
    Attr,
    ops::{Write, WriteReply},
    txn::{Part, PartReply},
};
use proptest::prelude::*;

fn record<R: Record>(bytes: &[u8]) {
    if let Ok(r) = R::decode(bytes) {
        let mut out = vec![];
        r.encode(&mut out);
        assert!(R::decode(&out).is_ok());
    }
    if let Ok(k) = R::decode_key(bytes) {
        let mut out = vec![];
        R::encode_key(&k, &mut out);
        assert_eq!(out, bytes);
    }
}

fn wire<W: Wire>(bytes: &[u8]) {
    if let Ok(w) = W::get(&mut fusefs_meta_state::codec::Get(bytes)) {
        w.put(&mut vec![]);
    }
}

fn all(bytes: &[u8]) {
    record::<Inode>(bytes);
    record::<Dentry>(bytes);
    record::<StoredExtent>(bytes);
    record::<Xattr>(bytes);
    record::<Object>(bytes);
    record::<Dead>(bytes);
    record::<Blob>(bytes);
    record::<Session>(bytes);
    record::<Reply>(bytes);
    record::<Lock>(bytes);
    record::<Orphan>(bytes);
    record::<Pin>(bytes);
    record::<OutboxItem>(bytes);
    record::<TxnRecord>(bytes);
    record::<Participant>(bytes);
    record::<FileLock>(bytes);
    wire::<Attr>(bytes);
    wire::<Write>(bytes);
    wire::<WriteReply>(bytes);
    wire::<Part>(bytes);
    wire::<PartReply>(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn records(version in 0u8..3, kind in 0u8..16, mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        all(&bytes);
        bytes.splice(0..0, [version, kind]);
        all(&bytes);
    }
    #[test]
    fn streams(mut bytes in prop::collection::vec(any::<u8>(), 0..400), frame in 0u8..5) {
        assert!(Partition::read_from(&mut &bytes[..]).is_err());
        // With a right magic and a right checksum the payload itself is met.
        bytes.splice(0..0, [frame, 1, 0]);
        let mut stream = b"FUSEFSMP".to_vec();
        for _ in 0..2 {
            stream.extend((bytes.len() as u32).to_le_bytes());
            stream.extend(crc32c::crc32c(&bytes).to_le_bytes());
            stream.extend(&bytes);
        }
        assert!(Partition::read_from(&mut &stream[..]).is_err());
    }
}
