//! Groups on a simulated network and simulated disks.

use crate::cluster::{Cluster, pause, simulate};
use bytes::Bytes;
use fusefs_raft_host::ProposeError;
use fusefs_types::ReplicaId;

#[test]
fn a_single_voter_elects_itself_and_survives_a_restart() {
    simulate(async {
        let mut c = Cluster::new(1, 1).await;
        c.leader(2000).await;
        assert_eq!(c.write("a").await, 1);
        assert_eq!(c.write("b").await, 2);
        c.crash(0);
        c.start(0).await;
        c.leader(2000).await;
        c.group(0).read_barrier().await.unwrap();
        assert_eq!(c.texts(0), ["a", "b"]);
        assert_eq!(&c.group(0).spec().label[..], b"label");
    });
}

#[test]
fn three_nodes_replicate_and_batch() {
    simulate(async {
        let c = Cluster::new(3, 2).await;
        let l = c.leader(3000).await;
        let group = c.group(l);
        let many = (0..100).map(|n| {
            let group = group.clone();
            tokio::spawn(async move { group.propose(Bytes::from(format!("{n}"))).await })
        });
        for task in many.collect::<Vec<_>>() {
            task.await.unwrap().unwrap();
        }
        let stats = group.stats();
        assert_eq!(stats.proposals, 100);
        assert!(stats.entries < 20, "{stats:?}");
        pause(500).await;
        for i in 0..3 {
            assert_eq!(c.texts(i).len(), 100);
            assert_eq!(c.texts(i), c.texts(l));
        }
        let follower = c.group((l + 1) % 3);
        let refused = follower.propose(Bytes::from_static(b"x")).await;
        assert!(matches!(refused, Err(ProposeError::NotLeader(Some(m))) if m.replica == ReplicaId(l as u64 + 1)));
    });
}

#[test]
fn leader_loss_heals_within_two_seconds() {
    for seed in 0..20 {
        simulate(async move {
            let mut c = Cluster::new(3, seed).await;
            let l = c.leader(3000).await;
            c.write("before").await;
            c.crash(l);
            let next = c.leader(2000).await;
            assert_ne!(next, l);
            assert_eq!(c.write("after").await, 2);
            c.start(l).await;
            pause(2000).await;
            assert_eq!(c.texts(l), ["before", "after"], "seed {seed}");
            let leader = c.group(next).status().leader.map(|m| m.replica);
            assert_eq!(
                leader,
                Some(ReplicaId(next as u64 + 1)),
                "seed {seed}: a returning node deposed a healthy leader"
            );
        });
    }
}

#[test]
fn a_lagging_follower_gets_a_snapshot_and_survives_a_restart() {
    simulate(async {
        let mut c = Cluster::empty(3, 5);
        c.checkpoint_bytes = 32 << 10;
        for i in 0..3 {
            c.start(i).await;
        }
        for i in 0..3 {
            c.create(i, 3).await;
        }
        let l = c.leader(3000).await;
        let lagging = (l + 1) % 3;
        let nodes: Vec<_> = c.nodes.iter().map(|n| n.id).collect();
        c.net.isolate(nodes[lagging], &nodes);
        for n in 0..300 {
            c.group(l).propose(Bytes::from(format!("{n} {}", "y".repeat(1000)))).await.unwrap();
        }
        c.group(l).checkpoint().await.unwrap();
        pause(3000).await;
        // Lossy on the way back: chunks are asked again from where they broke.
        c.net.set(fusefs_raft_host::MemNetSettings { loss_ppm: 50_000, ..Default::default() });
        c.net.heal();
        for _ in 0..200 {
            if c.texts(lagging).len() == 300 {
                break;
            }
            pause(500).await;
        }
        assert!(c.texts(lagging) == c.texts(l), "{} of 300, {:?}", c.texts(lagging).len(), c.statuses());
        c.net.set(Default::default());
        c.crash(lagging);
        c.start(lagging).await;
        pause(3000).await;
        assert!(c.texts(lagging) == c.texts(l), "{} of 300, {:?}", c.texts(lagging).len(), c.statuses());
    });
}

#[test]
fn a_restart_replays_only_the_log_after_the_checkpoint() {
    simulate(async {
        let mut c = Cluster::empty(1, 6);
        c.checkpoint_bytes = 16 << 10;
        c.start(0).await;
        c.create(0, 1).await;
        c.leader(2000).await;
        for n in 0..500 {
            c.group(0).propose(Bytes::from(format!("{n} {}", "z".repeat(500)))).await.unwrap();
            pause(5).await;
        }
        assert!(c.group(0).stats().checkpoints >= 3, "{:?}", c.group(0).stats());
        pause(2000).await;
        assert!(c.host(0).log_stats().segments <= 4, "{:?}", c.host(0).log_stats());
        let before = c.texts(0);
        c.crash(0);
        c.start(0).await;
        c.leader(2000).await;
        assert_eq!(c.texts(0), before);
    });
}

#[test]
fn a_damaged_checkpoint_refuses_to_serve() {
    simulate(async {
        let mut c = Cluster::empty(1, 7);
        c.checkpoint_bytes = 16 << 10;
        c.start(0).await;
        c.create(0, 1).await;
        c.leader(2000).await;
        for n in 0..100 {
            c.group(0).propose(Bytes::from(format!("{n} {}", "z".repeat(500)))).await.unwrap();
        }
        c.group(0).checkpoint().await.unwrap();
        pause(2000).await;
        c.crash(0);
        let disk = c.nodes[0].disk.clone();
        let name = fusefs_raft_host::Disk::list(&disk, "ckpt").unwrap().pop().unwrap();
        assert!(disk.flip(&format!("ckpt/{name}"), 3000, 4));
        c.start(0).await;
        assert!(c.host(0).groups().is_empty());
        assert_eq!(c.host(0).failed_groups().len(), 1, "the replica must say that it cannot serve");
    });
}

#[test]
fn a_failed_disk_stops_the_groups_on_it_and_the_others_go_on() {
    simulate(async {
        let c = Cluster::new(3, 8).await;
        let l = c.leader(3000).await;
        c.write("a").await;
        c.nodes[l].disk.fault(fusefs_raft_host::SimFault::SyncFails);
        let lost = c.group(l).propose(Bytes::from_static(b"b")).await;
        assert!(matches!(lost, Err(ProposeError::Stopped(_) | ProposeError::Unavailable)), "{lost:?}");
        pause(2500).await;
        assert!(c.group(l).status().stopped.is_some());
        assert!(c.host(l).disk_failure().is_some());
        let next = c.leader(2000).await;
        assert_ne!(next, l);
        c.write("c").await;
        c.group(next).read_barrier().await.unwrap();
        assert_eq!(c.texts(next).last().unwrap(), "c");
    });
}

#[test]
fn a_machine_that_stops_stops_its_replica() {
    simulate(async {
        let c = Cluster::new(1, 9).await;
        c.leader(2000).await;
        let answer = c.group(0).propose(Bytes::from_static(b"stop")).await;
        assert!(matches!(answer, Err(ProposeError::Stopped(_) | ProposeError::Unavailable)), "{answer:?}");
        pause(100).await;
        assert_eq!(c.group(0).status().stopped.as_deref(), Some("asked to"));
        assert!(matches!(c.group(0).propose(Bytes::new()).await, Err(ProposeError::Stopped(_))));
    });
}

#[test]
fn a_leader_without_quorum_says_so_and_reads_share_rounds() {
    simulate(async {
        let c = Cluster::new(3, 10).await;
        let l = c.leader(3000).await;
        let group = c.group(l);
        let reads: Vec<_> = (0..50)
            .map(|_| {
                let group = group.clone();
                tokio::spawn(async move { group.read_barrier().await })
            })
            .collect();
        for read in reads {
            read.await.unwrap().unwrap();
        }
        let stats = group.stats();
        assert!(stats.reads == 50 && stats.read_rounds < 10, "{stats:?}");
        let nodes: Vec<_> = c.nodes.iter().map(|n| n.id).collect();
        c.net.isolate(nodes[l], &nodes);
        assert!(group.read_barrier().await.is_err());
        pause(3000).await;
        assert_eq!(group.propose(Bytes::from_static(b"x")).await, Err(ProposeError::NotLeader(None)));
    });
}
