//! Paging while volumes come and go.

use crate::rig::{Rig, code, request};
use fusefs_proto::csi::volume_capability::access_mode::Mode;
use std::collections::BTreeSet;
use tonic::Code;

/// New volumes while one list is read; more would make it endless with pages of one.
const NEW: i32 = 40;

#[tokio::test]
async fn pages_neither_repeat_nor_hide_under_churn() {
    let rig = Rig::new().await;
    // Names run against the order of creation.
    for n in 0..60 {
        rig.create(request(&format!("stays-{:02}", 99 - n))).await.expect("created");
        rig.create(request(&format!("goes-{n:02}"))).await.expect("created");
    }
    let stays: BTreeSet<String> = (0..60).map(|n| format!("stays-{:02}", 99 - n)).collect();
    for page in [1, 7, 100] {
        let (mut seen, mut token, mut round) = (Vec::new(), String::new(), 0);
        loop {
            let reply = rig.list(page, &token).await.expect("a page");
            assert!(reply.entries.len() <= page as usize);
            seen.extend(reply.entries.into_iter().map(|e| e.volume.expect("a volume").volume_id));
            // Between two pages: one listed volume goes, one not yet listed goes, new ones come.
            for victim in
                [seen.iter().find(|v| v.starts_with("goes")).cloned(), Some(format!("goes-{:02}", 59 - round % 60))]
            {
                rig.delete(&victim.unwrap_or_else(|| "none".into())).await.expect("deleted");
            }
            if round < NEW {
                rig.create(request(&format!("a-new-{page}-{round}"))).await.expect("created");
            }
            round += 1;
            token = reply.next_token;
            if token.is_empty() || round > 400 {
                break;
            }
        }
        assert!(round <= 400, "it ends");
        let distinct: BTreeSet<String> = seen.iter().cloned().collect();
        assert_eq!(distinct.len(), seen.len(), "page size {page}: something came twice");
        assert!(distinct.is_superset(&stays), "page size {page}: something was hidden");
    }
}

#[tokio::test]
async fn tokens_entries_and_nodes() {
    let rig = Rig::new().await;
    for name in ["pvc-1", "pvc-2", "pvc-3"] {
        rig.create(request(name)).await.expect("created");
    }
    for node in ["node-a", "node-b"] {
        rig.publish("pvc-2", node, Mode::MultiNodeMultiWriter, false).await.expect("attached");
    }
    assert_eq!(code(rig.list(-1, "").await), Code::InvalidArgument);
    for bad in ["x", "after-", "after-x", "0", "\u{1}", &"9".repeat(200)] {
        assert_eq!(code(rig.list(0, bad).await), Code::Aborted, "{bad:?}");
    }
    let all = rig.list(0, "").await.expect("all");
    assert_eq!((all.entries.len(), all.next_token.as_str()), (3, ""));
    let nodes: Vec<usize> =
        all.entries.iter().map(|e| e.status.as_ref().expect("status").published_node_ids.len()).collect();
    assert_eq!(nodes, [0, 2, 0]);
    let first = rig.list(2, "").await.expect("a page");
    assert_eq!(first.entries.len(), 2);
    // The volume that the token was cut at goes: the token still works.
    rig.unpublish("pvc-2", "").await.expect("detached");
    rig.delete("pvc-2").await.expect("deleted");
    let second = rig.list(2, &first.next_token).await.expect("the next page");
    assert_eq!((second.entries.len(), second.next_token.as_str()), (1, ""));
    assert_eq!(second.entries[0].volume, rig.get("pvc-3").await.expect("the same volume").volume);
}
