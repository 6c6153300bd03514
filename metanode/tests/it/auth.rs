//! Strangers get nothing (PROTOCOL 50).

use crate::world::{CLUSTER, Client, VOLUME, World, create};
use bytes::Bytes;
use fusefs_types::{
    ClusterId, FsError, Ino, PartitionId, SessionId,
    auth::ClusterToken,
    cluster::NodeCall,
    ops::{NewNode, Read},
};

#[tokio::test(start_paused = true)]
async fn strangers_and_wrong_sessions_are_refused_before_anything_else() {
    let token = ClusterToken::new(b"0123456789abcdef0123").unwrap();
    let world = World::with_token(1, 1, Some(token.clone())).await;
    let client = Client::new(&world, 1);
    client.create(Ino::ROOT, "mine", NewNode::File).await.unwrap();
    let node = world.node(0);

    let good = client.envelope(Some(client.op()));
    let no_credential = fusefs_types::ops::Envelope { credential: Bytes::new(), ..good.clone() };
    let other_session = fusefs_types::ops::Envelope { session: SessionId(2), ..good.clone() };
    let wrong = fusefs_types::ops::Envelope { credential: Bytes::from_static(b"0123456789abcdef0124"), ..good.clone() };
    for bad in [no_credential, other_session, wrong] {
        let e = node.write(bad.clone(), create(Ino::ROOT, "x", NewNode::File)).await.unwrap_err();
        assert_eq!(e, FsError::Unauthenticated.into());
        let e = node.read(bad.clone(), PartitionId(0), Read::GetAttr { ino: Ino::ROOT }).await.unwrap_err();
        assert_eq!(e, FsError::Unauthenticated.into());
        let e = node.call(bad.clone(), NodeCall::Fsck(PartitionId(1))).await.unwrap_err();
        assert_eq!(e, FsError::Unauthenticated.into());
        assert_eq!(node.open_stream(&bad).err(), Some(FsError::Unauthenticated.into()));
    }
    // A session's own secret does not open the doors of masters and metanodes.
    let e = node.call(good.clone(), NodeCall::Fsck(PartitionId(1))).await.unwrap_err();
    assert_eq!(e, FsError::Unauthenticated.into());
    let elsewhere = fusefs_types::ops::Envelope { cluster: ClusterId(CLUSTER.0 + 1), ..good };
    let e = node.read(elsewhere, PartitionId(0), Read::GetAttr { ino: Ino::ROOT }).await.unwrap_err();
    assert_eq!(e, FsError::WrongCluster.into());
    let _ = VOLUME;
}
