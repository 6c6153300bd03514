//! Access modes across nodes (§ the interface's ControllerPublishVolume), and that a node is fenced before another one
//! gets its volume.

use crate::rig::{Rig, code, request};
use fusefs_cluster_state::{Command, command::SessionEnded};
use fusefs_csi_driver::controller::{ACCESS_READ, ACCESS_WRITE, PUBLISH_ACCESS, PUBLISH_ATTACH};
use fusefs_proto::csi::{volume_capability::access_mode::Mode, *};
use fusefs_types::{FsError, SessionId};
use tonic::Code;

const MODES: [Mode; 7] = [
    Mode::SingleNodeWriter,
    Mode::SingleNodeReaderOnly,
    Mode::MultiNodeReaderOnly,
    Mode::MultiNodeSingleWriter,
    Mode::MultiNodeMultiWriter,
    Mode::SingleNodeSingleWriter,
    Mode::SingleNodeMultiWriter,
];

fn single(m: Mode) -> bool {
    !matches!(m, Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter)
}

#[tokio::test]
async fn every_pair_of_modes_on_one_and_two_nodes() {
    let rig = Rig::new().await;
    rig.create(request("pvc-1")).await.expect("created");
    for first in MODES {
        for second in MODES {
            let context = rig.publish("pvc-1", "node-a", first, false).await.expect("free");
            assert_eq!(rig.publish("pvc-1", "node-a", first, false).await.expect("again"), context);
            assert_eq!(code(rig.publish("pvc-1", "node-a", first, true).await), Code::AlreadyExists, "{first:?} ro");
            let same_node = if first == second { Code::Ok } else { Code::AlreadyExists };
            assert_eq!(code(rig.publish("pvc-1", "node-a", second, false).await), same_node, "{first:?} {second:?}");
            let other = rig.publish("pvc-1", "node-b", second, false).await;
            if single(first) || single(second) {
                let refused = other.expect_err("one node at a time");
                assert_eq!(refused.code(), Code::FailedPrecondition, "{first:?} {second:?}");
                assert!(refused.message().contains("node-a"), "{}", refused.message());
            } else {
                let read = matches!(second, Mode::MultiNodeReaderOnly)
                    || (first, second) == (Mode::MultiNodeSingleWriter, Mode::MultiNodeSingleWriter)
                    || (first, second) == (Mode::MultiNodeMultiWriter, Mode::MultiNodeSingleWriter);
                let want = if read { ACCESS_READ } else { ACCESS_WRITE };
                assert_eq!(other.expect("many nodes")[PUBLISH_ACCESS], want, "{first:?} {second:?}");
            }
            rig.unpublish("pvc-1", "").await.expect("from all nodes");
        }
    }
}

#[tokio::test]
async fn codes_of_attach_and_detach() {
    let rig = Rig::new().await;
    rig.create(request("pvc-1")).await.expect("created");
    let mode = Mode::SingleNodeWriter;
    assert_eq!(code(rig.publish("absent", "node-a", mode, false).await), Code::NotFound);
    assert_eq!(code(rig.publish("pvc-1", "node-z", mode, false).await), Code::NotFound, "nobody of that name");
    assert_eq!(code(rig.publish("pvc-1", "", mode, false).await), Code::InvalidArgument);
    assert_eq!(code(rig.publish("pvc-1", "../a", mode, false).await), Code::InvalidArgument);
    let r =
        ControllerPublishVolumeRequest { volume_id: "pvc-1".into(), node_id: "node-a".into(), ..Default::default() };
    assert_eq!(code(rig.controller.clone().controller_publish_volume(r).await), Code::InvalidArgument);
    for (id, node) in [("pvc-1", "node-a"), ("absent", "node-a"), ("pvc-1", "node-z"), ("../..", "n"), ("pvc-1", "../")]
    {
        rig.unpublish(id, node).await.expect("not attached is detached");
    }
    let read = rig.publish("pvc-1", "node-a", mode, true).await.expect("read-only");
    assert_eq!(read[PUBLISH_ACCESS], ACCESS_READ);
    // Directories of a volume are attached on their own.
    rig.publish("pvc-1/a", "node-a", mode, false).await.expect("a part");
    rig.publish("pvc-1/b", "node-b", mode, false).await.expect("another part, another node");
    assert_eq!(code(rig.publish("pvc-1/a", "node-b", mode, false).await), Code::FailedPrecondition);
    rig.unpublish("pvc-1/a", "node-a").await.expect("the part only");
    assert_eq!(code(rig.publish("pvc-1", "node-b", mode, false).await), Code::FailedPrecondition);
    assert_eq!(rig.get("pvc-1").await.expect("known").status.expect("status").published_node_ids, ["node-a"]);
    assert_eq!(rig.get("pvc-1/b").await.expect("known").status.expect("status").published_node_ids, ["node-b"]);
    assert_eq!(code(rig.get("absent").await), Code::NotFound);
}

#[tokio::test]
async fn detaching_ends_only_when_the_node_is_fenced() {
    let rig = Rig::new().await;
    rig.create(request("pvc-1")).await.expect("created");
    let mode = Mode::SingleNodeWriter;
    let generation =
        |c: &std::collections::HashMap<String, String>| c[PUBLISH_ATTACH].parse::<u64>().expect("a number");
    let a = generation(&rig.publish("pvc-1", "node-a", mode, false).await.expect("attached"));
    let partition = rig.fake.mount("pvc-1", 7, a).expect("mounted with the right");
    assert_eq!(rig.fake.mount("pvc-1", 8, a + 1), Err(FsError::Fenced), "no right, no session");
    // Force-detach: the node is still writing and does not answer.
    assert_eq!(code(rig.unpublish("pvc-1", "node-a").await), Code::Unavailable, "not before its partitions know");
    assert_eq!(code(rig.publish("pvc-1", "node-b", mode, false).await), Code::Aborted, "and nobody gets it meanwhile");
    assert_eq!(rig.fake.mount("pvc-1", 9, a), Err(FsError::Fenced), "the node cannot come back");
    let told = SessionEnded { session: SessionId(7), partitions: vec![partition], at_ns: 4 };
    rig.fake.apply(&Command::SessionEnded(told)).expect("told");
    rig.unpublish("pvc-1", "node-a").await.expect("fenced");
    let b = generation(&rig.publish("pvc-1", "node-b", mode, false).await.expect("handed over"));
    assert!(b > a);
    rig.fake.mount("pvc-1", 10, b).expect("mounted");
}
