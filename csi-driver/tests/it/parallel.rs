//! Many calls at once on one volume.

use crate::rig::{Rig, code, request};
use fusefs_proto::csi::volume_capability::access_mode::Mode;
use futures::{StreamExt, stream::FuturesUnordered};
use std::sync::Arc;
use tonic::Code;

const CALLS: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_calls_on_one_volume_one_works_and_the_others_are_aborted() {
    let rig = Arc::new(Rig::new().await);
    let held = rig.fake.hold().await;
    let mut calls: FuturesUnordered<_> = (0..CALLS)
        .map(|_| {
            let rig = rig.clone();
            tokio::spawn(async move { code(rig.create(request("pvc-1")).await) })
        })
        .collect();
    for _ in 1..CALLS {
        assert_eq!(calls.next().await.expect("an answer").expect("no panic"), Code::Aborted);
    }
    // Other volumes are not in the way, and neither are calls that change nothing.
    let other = tokio::spawn({
        let rig = rig.clone();
        async move { rig.create(request("pvc-2")).await.map(|v| v.volume_id) }
    });
    drop(held);
    assert_eq!(calls.next().await.expect("the last").expect("no panic"), Code::Ok);
    assert_eq!(other.await.expect("no panic").expect("created"), "pvc-2");
    assert_eq!(rig.fake.volumes().len(), 2);
}

/// Every kind of call at once, each repeated until it is not Aborted, as orchestrators do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mixed_calls_converge() {
    let rig = Arc::new(Rig::new().await);
    rig.create(request("pvc-1")).await.expect("created");
    let tasks: Vec<_> = (0..CALLS)
        .map(|n| {
            let rig = rig.clone();
            tokio::spawn(async move {
                loop {
                    let got = match n % 4 {
                        0 => code(rig.create(request("pvc-1")).await),
                        1 => code(rig.publish("pvc-1", "node-a", Mode::SingleNodeWriter, false).await),
                        2 => code(rig.publish("pvc-1", "node-b", Mode::SingleNodeWriter, false).await),
                        _ => code(rig.expand("pvc-1", 1 << (20 + n / 4), 0).await),
                    };
                    if got != Code::Aborted {
                        return (n % 4, got);
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let mut attached = [0, 0];
    for task in tasks {
        match task.await.expect("no panic") {
            (1, Code::Ok) => attached[0] += 1,
            (2, Code::Ok) => attached[1] += 1,
            (1 | 2, got) => assert_eq!(got, Code::FailedPrecondition),
            (_, got) => assert_eq!(got, Code::Ok),
        }
    }
    assert!((attached[0] == 0) != (attached[1] == 0), "exactly one node has it: {attached:?}");
    let nodes = rig.get("pvc-1").await.expect("there").status.expect("status").published_node_ids;
    assert_eq!(nodes.len(), 1);
}

/// A caller that goes away frees the volume.
#[tokio::test]
async fn a_cancelled_call_does_not_lock_the_volume() {
    let rig = Arc::new(Rig::new().await);
    let held = rig.fake.hold().await;
    let stuck = tokio::spawn({
        let rig = rig.clone();
        async move { rig.create(request("pvc-1")).await.map(|_| ()) }
    });
    while rig.fake.calls.load(std::sync::atomic::Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(code(rig.create(request("pvc-1")).await), Code::Aborted);
    stuck.abort();
    drop(held);
    loop {
        match code(rig.create(request("pvc-1")).await) {
            Code::Aborted => tokio::task::yield_now().await,
            got => break assert_eq!(got, Code::Ok),
        }
    }
}
