//! Where a volume's pod is, with and without an API server.

use crate::{
    double::{Double, Fault, Served, pause},
    masters::{pod_of, seat},
    watches::{PACE, put, until},
};
use fusefs_csi_driver::{
    kube::{KubePodFinder, KubePods},
    runtime::pod::HostFinder,
};
use serde_json::json;
use std::{sync::Arc, time::Duration};

fn finder(served: &Served) -> KubePodFinder {
    let pods = KubePods::new(served.client(), "fuse").of_node("node-a").patience(Duration::from_millis(500));
    KubePodFinder::start(Arc::new(pods), "node-a", PACE)
}

#[tokio::test]
async fn pods_of_this_node_are_found_and_stay_known() {
    let served = Double::start().await;
    let finder = finder(&served);
    until(&served, "watching", || served.watching() == 1).await;
    assert_eq!(finder.find_pod("vol-1").await, Ok(None));
    let mut changes = finder.changes();
    put(&served, "node-b", 1);
    put(&served, "node-a", 1);
    changes.changed().await.expect("told");
    let found = finder.find_pod("vol-1").await.expect("an answer").expect("a pod");
    assert_eq!((found.name.as_str(), found.uid.as_str()), (pod_of("node-a", 1).as_str(), "uid-2"));
    assert!(!found.running && !found.ending);
    let socket = finder.find("vol-1").await.expect("an answer").expect("a socket");
    assert_eq!(Some(socket), fusefs_csi_driver::runtime::pod::dial::socket_path("uid-2"));
    crate::reconcile::run(&served, &found.name);
    changes.changed().await.expect("told");
    assert!(finder.find_pod("vol-1").await.expect("an answer").expect("a pod").running);

    served.faults(|_, _, _| Fault::Cut);
    served.cut_watches();
    until(&served, "cut", || served.watching() == 0).await;
    let known = finder.find_pod("vol-1").await.expect("known").expect("a pod");
    assert_eq!((known.uid, known.running), ("uid-2".to_owned(), true));
    let fault = finder.find_pod("vol-2").await.expect_err("nobody can say");
    assert_eq!(fault.code, tonic::Code::Unavailable);

    // A new pod of the same name, unseen by the watch: asked for by name.
    served.delete_now("pods", &pod_of("node-a", 1));
    put(&served, "node-a", 1);
    served.faults(|_, _, watching| if watching { Fault::Error } else { Fault::None });
    let mut seen = finder.find_pod("vol-1").await;
    while seen.as_ref().is_ok_and(|p| p.as_ref().is_some_and(|p| p.uid != "uid-3")) {
        pause(20).await;
        seen = finder.find_pod("vol-1").await;
    }
    assert_eq!(seen.expect("an answer").expect("a pod").uid, "uid-3");
    let asked = served.calls("GET", &pod_of("node-a", 1));
    for _ in 0..100 {
        assert!(finder.find("vol-1").await.expect("an answer").is_some());
    }
    assert!(
        served.calls("GET", &pod_of("node-a", 1)) <= asked + 1,
        "mounts that nobody serves do not flood the server"
    );
}

#[tokio::test]
async fn an_ending_pod_is_told_and_a_foreign_one_refused() {
    let served = Double::start().await;
    put(&served, "node-a", 1);
    put(&served, "node-a", 2);
    served.delete_gracefully("pods", &pod_of("node-a", 1));
    served.change("pods", &pod_of("node-a", 2), |p| p["metadata"]["annotations"]["fusefs.io/volume"] = json!("other"));
    let finder = finder(&served);
    until(&served, "watching", || served.watching() == 1).await;
    assert!(finder.find_pod("vol-1").await.expect("an answer").expect("a pod").ending);
    assert_eq!(finder.find_pod("vol-2").await.expect_err("refused").code, tonic::Code::FailedPrecondition);
    assert_eq!(seat("node-a", 2).pod(), pod_of("node-a", 2));
}
