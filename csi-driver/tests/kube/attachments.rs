//! What is attached to a node.

use crate::double::{Double, Fault, Served};
use fusefs_csi_driver::{
    kube::{ApiError, Attachments},
    node::found,
};
use fusefs_types::cluster::AccessMode;
use serde_json::json;
use std::time::Duration;

fn attach(served: &Served, name: &str, attacher: &str, node: &str, volume: &str, attached: bool) {
    let object = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": { "name": name },
        "spec": { "attacher": attacher, "nodeName": node, "source": { "persistentVolumeName": volume } },
        "status": { "attached": attached, "attachmentMetadata": { "fusefs.io/attach": "7", "fusefs.io/access": "rw" } },
    });
    served.put("volumeattachments", "", object);
}

fn volume(served: &Served, name: &str, driver: &str, handle: &str) {
    let object = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name },
        "spec": { "accessModes": ["ReadWriteMany"], "mountOptions": ["noatime"],
            "csi": { "driver": driver, "volumeHandle": handle, "volumeAttributes": { "a": "b" } } },
    });
    served.put("persistentvolumes", "", object);
}

#[tokio::test]
async fn attached_volumes_of_a_node() {
    let served = Double::start().await;
    volume(&served, "pv-1", "csi.fusefs.io", "vol-1");
    volume(&served, "pv-2", "csi.fusefs.io", "home/users/jane doe");
    volume(&served, "pv-3", "other.example.org", "vol-3");
    for (name, attacher, node, volume, attached) in [
        ("a1", "csi.fusefs.io", "node-a", "pv-1", true),
        ("a2", "csi.fusefs.io", "node-a", "pv-2", false),
        ("a3", "csi.fusefs.io", "node-b", "pv-1", true),
        ("a4", "other.example.org", "node-a", "pv-3", true),
        ("a5", "csi.fusefs.io", "node-a", "pv-gone", true),
        ("a6", "csi.fusefs.io", "node-a", "pv-3", true),
    ] {
        attach(&served, name, attacher, node, volume, attached);
    }
    let attachments = Attachments::new(served.client()).patience(Duration::from_millis(500));
    let all = attachments.of_node("node-a").await.expect("listed");
    assert_eq!(all.iter().map(|a| a.volume.as_str()).collect::<Vec<_>>(), ["home/users/jane doe", "vol-1"]);
    assert_eq!(all[1].context["fusefs.io/attach"], "7");
    assert_eq!((all[1].persistent_volume.as_str(), all[1].attached, all[0].attached), ("pv-1", true, false));
    assert_eq!((&all[1].access_modes[0], &all[1].mount_options[0]), (&"ReadWriteMany".into(), &"noatime".into()));
    assert_eq!(attachments.volumes_of_node("node-a").await.expect("listed"), ["vol-1"]);
    assert_eq!(attachments.volumes_of_node("node-c").await.expect("listed"), [""; 0]);
    // What recovery makes of it: rights that are given and not being withdrawn.
    let right = found::Attachment {
        name: "vol-1".into(),
        part: String::new(),
        mode: AccessMode::MultiNodeMultiWriter,
        writer: true,
        generation: 7,
    };
    assert_eq!(found::Attachments::of_node(&attachments, "node-a").await.expect("listed"), [right]);

    // A part is never taken for the whole.
    served.faults(|_, path, _| if path.ends_with("pv-1") { Fault::Cut } else { Fault::None });
    assert!(matches!(attachments.of_node("node-a").await, Err(ApiError::Unavailable(_))));
    assert!(found::Attachments::of_node(&attachments, "node-a").await.is_err());
    served.faults(|_, path, _| if path.ends_with("attachments") { Fault::Slow(5000) } else { Fault::None });
    assert!(matches!(attachments.of_node("node-a").await, Err(ApiError::Unavailable(_))));
}
