//! The cache: what it knows after cut watches, forgotten history and errors.

use crate::{
    double::{Double, Fault, Served},
    masters::seat,
};
use fusefs_csi_driver::kube::{
    KubePods, PodSettings,
    cache::{Pace, PodCache},
    fuse_pod,
};
use std::{sync::Arc, time::Duration};

/// Short pauses.
pub const PACE: Pace = Pace {
    backoff_min: Duration::from_millis(5),
    backoff_max: Duration::from_millis(80),
    relist: Duration::from_secs(600),
};

/// Waits until something is so; asks again whenever the API server's objects change, and now and then.
pub async fn until(double: &Double, what: &str, so: impl FnMut() -> bool) {
    until_within(double, what, Duration::from_secs(20), so).await;
}

/// The same with another deadline.
pub async fn until_within(double: &Double, what: &str, limit: Duration, mut so: impl FnMut() -> bool) {
    let mut changes = double.changes();
    let waited = tokio::time::timeout(limit, async {
        while !so() {
            let _ = tokio::time::timeout(Duration::from_millis(10), changes.changed()).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}: pods {:#?}", double.all("pods").keys());
}

/// A fuse pod, put there by hand.
pub fn put(double: &Double, node: &str, volume: u64) {
    let pod = fuse_pod(&PodSettings::new("fuse", "image:1"), &seat(node, volume));
    double.put("pods", "fuse", serde_json::to_value(pod).expect("json"));
}

fn cache(served: &Served) -> (Arc<KubePods>, PodCache) {
    let pods = Arc::new(KubePods::new(served.client(), "fuse").patience(Duration::from_millis(500)));
    (pods.clone(), PodCache::follow(pods, PACE))
}

fn same(served: &Served, cache: &PodCache) -> bool {
    let there: Vec<_> = served.all("pods").into_keys().collect();
    cache.all().is_some_and(|known| known.into_keys().collect::<Vec<_>>() == there)
}

#[tokio::test]
async fn pods_are_listed_and_followed() {
    let served = Double::start().await;
    for n in 1..=5 {
        put(&served, "node-a", n);
    }
    served.put("pods", "fuse", serde_json::json!({ "metadata": { "name": "somebody-elses" }, "spec": {} }));
    let (_, cache) = cache(&served);
    until(&served, "listed", || cache.all().is_some_and(|p| p.len() == 5)).await;
    served.delete_now("pods", "somebody-elses");
    until(&served, "watching", || served.watching() == 1).await;
    put(&served, "node-b", 1);
    served.delete_now("pods", &seat("node-a", 1).pod());
    until(&served, "followed", || same(&served, &cache)).await;
    assert!(cache.live());
}

#[tokio::test]
async fn a_list_has_pages() {
    let served = Double::start().await;
    for n in 1..=1203 {
        put(&served, "node-a", n);
    }
    let (_, cache) = cache(&served);
    until(&served, "listed", || served.watching() == 1).await;
    assert!(same(&served, &cache));
    assert_eq!(served.calls("GET", "/pods"), 4, "three pages and a watch");
}

#[tokio::test]
async fn a_cut_watch_goes_on_where_it_ended() {
    let served = Double::start().await;
    let (_, cache) = cache(&served);
    until(&served, "watching", || served.watching() == 1).await;
    for n in 1..=20 {
        put(&served, "node-a", n);
        served.cut_watches();
    }
    until(&served, "followed", || same(&served, &cache)).await;
    // One list: nothing was lost between the watches.
    served.faults(|_, _, watching| if watching { Fault::None } else { Fault::Error });
    put(&served, "node-b", 1);
    until(&served, "followed", || same(&served, &cache)).await;
}

#[tokio::test]
async fn forgotten_history_and_errors_lead_to_a_new_list() {
    for fault in [Fault::Gone, Fault::Error, Fault::Cut, Fault::Conflict] {
        let served = Double::start().await;
        let (_, cache) = cache(&served);
        until(&served, "watching", || served.watching() == 1).await;
        served.faults(move |_, _, watching| if watching { fault } else { Fault::None });
        served.cut_watches();
        until(&served, "broken", || served.watching() == 0).await;
        put(&served, "node-a", 1);
        served.compact();
        put(&served, "node-a", 2);
        served.delete_now("pods", &seat("node-a", 1).pod());
        served.compact();
        served.heal();
        until(&served, "listed again", || same(&served, &cache)).await;
    }
}

#[tokio::test]
async fn what_was_known_stays_known_while_the_server_is_away() {
    let served = Double::start().await;
    put(&served, "node-a", 1);
    let (_, cache) = cache(&served);
    until(&served, "listed", || same(&served, &cache)).await;
    until(&served, "watching", || served.watching() == 1).await;
    served.faults(|_, _, _| Fault::Cut);
    served.cut_watches();
    until(&served, "noticed", || !cache.live()).await;
    assert_eq!(cache.all().expect("known").len(), 1);
    served.heal();
    until(&served, "back", || cache.live()).await;
}
