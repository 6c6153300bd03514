//! Every message goes to the wire and back unchanged, and no bytes make a decoder panic.

mod make;

use fusefs_proto::{
    convert::{common, node, ops, stream, txn},
    metanode::v1 as pb,
};
use fusefs_types::{
    Extent, FileKind, FsError, Ino, Name, Source, limits,
    ops::{Body, Command, Commit, CommitFile, Create, NewNode, Piece, Reply, SetXattr, Write, XattrMode},
    txn::Internal,
};
use make::Make;
use proptest::prelude::*;
use prost::Message;

/// Through real bytes, not only through the generated structs.
fn wire<M: Message + Default>(m: &M) -> M {
    M::decode(&m.encode_to_vec()[..]).unwrap()
}

// A failing case is printed with its `seed`; replay: PROPTEST_CASES=1 and the seed pasted into `Make::new`.
proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn writes_round_trip(seed: u64) {
        let mut m = Make::new(seed);
        for variant in 0..Make::WRITES {
            let (envelope, write) = (m.envelope(), m.write(variant));
            let back = ops::from_write_request(wire(&ops::write_request(&envelope, &write)));
            prop_assert_eq!(back, Ok((envelope, write)));
        }
        for variant in 0..Make::WRITE_REPLIES {
            let reply = m.reply(|m| m.write_reply(variant));
            prop_assert_eq!(ops::from_write_response(wire(&ops::write_response(&reply))), Ok(reply));
        }
    }

    #[test]
    fn reads_round_trip(seed: u64) {
        let mut m = Make::new(seed);
        for variant in 0..Make::READS {
            let (envelope, partition, read) = (m.envelope(), m.partition(), m.read(variant));
            let back = ops::from_read_request(wire(&ops::read_request(&envelope, partition, &read)));
            prop_assert_eq!(back, Ok((envelope, partition, read)));
        }
        for variant in 0..Make::READ_REPLIES {
            let reply = m.reply(|m| m.read_reply(variant));
            prop_assert_eq!(ops::from_read_response(wire(&ops::read_response(&reply))), Ok(reply));
        }
    }

    #[test]
    fn commands_round_trip(seed: u64) {
        let mut m = Make::new(seed);
        let bodies = (0..Make::WRITES).map(|v| (true, v)).chain((0..Make::INTERNALS).map(|v| (false, v)));
        for (client, v) in bodies.collect::<Vec<_>>() {
            let body = if client { Body::Client(m.caller(), m.write(v)) } else { Body::Internal(m.internal(v)) };
            let command = Command { stamp: m.hlc(), level: m.u32(), body };
            prop_assert_eq!(txn::decode_command(&txn::encode_command(&command)), Ok(command));
        }
    }

    #[test]
    fn messages_between_nodes_round_trip(seed: u64) {
        let mut m = Make::new(seed);
        for part in 0..Make::PARTS {
            let (envelope, message) = (m.envelope(), m.txn_message(part));
            let back = txn::from_peer_request(wire(&txn::peer_request(&envelope, &message)));
            prop_assert_eq!(back, Ok((envelope, message)));
        }
        let reply = m.reply(Make::part_reply);
        prop_assert_eq!(txn::from_peer_response(wire(&txn::peer_response(&reply))), Ok(reply));
        for variant in 0..Make::NODE_CALLS {
            let (envelope, call) = (m.envelope(), m.node_call(variant));
            let back = node::from_node_request(wire(&node::node_request(&envelope, &call)));
            prop_assert_eq!(back, Ok((envelope, call)));
        }
        for variant in 0..Make::NODE_REPLIES {
            let reply = m.reply(|m| m.node_reply(variant));
            prop_assert_eq!(node::from_node_response(wire(&node::node_response(&reply))), Ok(reply));
        }
    }

    #[test]
    fn events_round_trip(seed: u64) {
        let mut m = Make::new(seed);
        for variant in 0..4 {
            let event = m.server_event(variant);
            prop_assert_eq!(stream::from_server_event(wire(&stream::server_event(&event))), Ok(event));
            let event = m.client_event(variant);
            prop_assert_eq!(stream::from_client_event(wire(&stream::client_event(&event))), Ok(event));
        }
    }
}

/// Feeds bytes to every decoder of the metanode service; only panics matter.
fn decode_all(bytes: &[u8]) {
    let _ = txn::decode_command(bytes);
    let _ = pb::WriteRequest::decode(bytes).map(ops::from_write_request);
    let _ = pb::WriteResponse::decode(bytes).map(ops::from_write_response);
    let _ = pb::ReadRequest::decode(bytes).map(ops::from_read_request);
    let _ = pb::ReadResponse::decode(bytes).map(ops::from_read_response);
    let _ = pb::PeerRequest::decode(bytes).map(txn::from_peer_request);
    let _ = pb::PeerResponse::decode(bytes).map(txn::from_peer_response);
    let _ = pb::NodeRequest::decode(bytes).map(node::from_node_request);
    let _ = pb::NodeResponse::decode(bytes).map(node::from_node_response);
    let _ = pb::ServerEvent::decode(bytes).map(stream::from_server_event);
    let _ = pb::ClientEvent::decode(bytes).map(stream::from_client_event);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_are_an_error_at_worst(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        decode_all(&bytes);
    }

    /// Valid messages with a few damaged bytes reach much deeper than noise.
    #[test]
    fn damaged_messages_are_an_error_at_worst(seed: u64, hits in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6)) {
        let mut m = Make::new(seed);
        let (writes, internals) = (m.below(Make::WRITES), m.below(Make::INTERNALS));
        let command = Command { stamp: m.hlc(), level: 1, body: Body::Internal(m.internal(internals)) };
        let (write, envelope) = (m.write(writes), m.envelope());
        let reads = m.below(Make::READ_REPLIES);
        let reply = m.reply(|m| m.read_reply(reads));
        for mut bytes in [
            txn::encode_command(&command).to_vec(),
            ops::write_request(&envelope, &write).encode_to_vec(),
            ops::read_response(&reply).encode_to_vec(),
        ] {
            for (at, value) in &hits {
                let len = bytes.len().max(1);
                if let Some(b) = bytes.get_mut(usize::from(*at) % len) {
                    *b = *value;
                }
            }
            decode_all(&bytes);
        }
    }
}

fn refused(write: &Write) -> FsError {
    let wire = ops::write(write);
    ops::from_write(Some(wire)).unwrap_err()
}

fn commit(pieces: Vec<Piece>) -> Write {
    let file = CommitFile { ino: Ino(2), trunc_seq: 0, pieces, mtime: None, grow_to: 0, kill_priv: false };
    Write::Commit(Commit { files: vec![file] })
}

fn create(node: NewNode, mode: u16) -> Write {
    let name = Name::new("a").unwrap();
    Write::Create(Create { parent: Ino(1), name, node, mode, uid: 0, gid: 0, exclusive: true })
}

#[test]
fn limits_answer_with_their_errno() {
    let inline = |n: usize| Piece::Inline { offset: 0, bytes: vec![0; n].into() };
    let zero = |offset, len| Piece::Extent(Extent { offset, len, codec: 0, source: Source::Zero });
    let xattr = |name: usize, value: usize| {
        let (name, value) = (vec![b'x'; name].into(), vec![0; value].into());
        Write::SetXattr(SetXattr { ino: Ino(1), name, value, mode: XattrMode::Any })
    };
    let cases = [
        (create(NewNode::Symlink(vec![b'x'; limits::SYMLINK_MAX + 1].into()), 0), FsError::NameTooLong),
        (create(NewNode::Symlink(Vec::new().into()), 0), FsError::Invalid),
        (create(NewNode::Special(FileKind::Directory, 0), 0), FsError::Invalid),
        (create(NewNode::File, 0o10000), FsError::Invalid),
        (xattr(limits::XATTR_NAME_MAX + 1, 0), FsError::Range),
        (xattr(0, 0), FsError::Range),
        (xattr(1, limits::XATTR_VALUE_MAX + 1), FsError::TooBig),
        (commit(vec![inline(limits::INLINE_COMMIT_BYTES_MAX + 1)]), FsError::Invalid),
        (commit(vec![zero(0, 1); limits::COMMIT_ITEMS_MAX + 1]), FsError::Invalid),
        (commit(vec![zero(0, 0)]), FsError::Invalid),
        (commit(vec![zero(limits::FILE_SIZE_MAX, 1)]), FsError::FileTooBig),
        (commit(vec![zero(u64::MAX, 2)]), FsError::FileTooBig),
    ];
    for (write, want) in &cases {
        assert_eq!(refused(write), *want, "{write:?}");
    }
    assert_eq!(ops::from_write(Some(ops::write(&xattr(255, 65536)))), Ok(xattr(255, 65536)));
}

#[test]
fn names_are_checked_on_the_way_in() {
    for (name, want) in [
        (&b""[..], FsError::Invalid),
        (b".", FsError::Invalid),
        (b"..", FsError::Invalid),
        (b"a/b", FsError::Invalid),
        (b"a\0b", FsError::Invalid),
        (&[b'n'; 256], FsError::NameTooLong),
    ] {
        let op = pb::read_op::Op::Lookup(pb::Lookup { parent: 1, name: name.to_vec().into() });
        assert_eq!(ops::from_read(Some(pb::ReadOp { op: Some(op) })), Err(want), "{name:?}");
    }
}

#[test]
fn what_a_newer_binary_sends_asks_for_an_upgrade() {
    // Field 9000 of the oneof: unknown here, so the oneof is empty.
    let unknown = [0xc2, 0xb2, 0x04, 0x00];
    let mut command =
        txn::command(&Command { stamp: Default::default(), level: 1, body: Body::Internal(Internal::TermStart) });
    command.body = None;
    let mut bytes = command.encode_to_vec();
    bytes.extend_from_slice(&unknown);
    assert_eq!(txn::decode_command(&bytes), Err(FsError::UpgradeNeeded));
    assert_eq!(txn::decode_command(&[0xff; 9]), Err(FsError::Corrupt));
    assert_eq!(ops::from_write(None), Err(FsError::UpgradeNeeded));
}

#[test]
fn refusals_keep_code_and_hints() {
    for error in FsError::ALL {
        assert_eq!(common::from_code(common::code(*error)), *error);
    }
    assert_eq!(common::from_code(70_000), FsError::Io);
    let reply: Reply<fusefs_types::ops::WriteReply> = Reply {
        head: Default::default(),
        result: Err(fusefs_types::ops::Refusal {
            error: FsError::NotLeader,
            leader: Some("10.0.0.1:7001".into()),
            map_generation: 9,
            backoff_ms: 5,
        }),
    };
    assert_eq!(ops::from_write_response(wire(&ops::write_response(&reply))), Ok(reply));
}

#[test]
fn a_small_create_is_a_small_command() {
    let mut m = Make::new(1);
    let body = Body::Client(m.caller_plain(), create(NewNode::File, 0o644));
    let bytes = txn::encode_command(&Command { stamp: m.hlc(), level: 1, body });
    assert!(bytes.len() < 128, "{} bytes", bytes.len());
}
