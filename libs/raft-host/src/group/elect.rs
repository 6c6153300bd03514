//! Elections (PROTOCOL 24): openraft's own are off. A replica that misses its leader asks the others whether they miss
//! him too and whether its log would do; only then it campaigns.

use super::{Group, Inner};
use crate::{
    api::{Machine, Timers},
    net::{PeerAnswer, PeerBody, PreVote, raft_net::others},
};
use fusefs_types::{NodeId, cluster::Member};
use openraft::ServerState;
use std::{sync::Arc, sync::atomic::Ordering, time::Duration};
use tokio::time::Instant;

/// What a replica knows about its leader.
pub(crate) struct Election {
    /// Last append that was accepted here; `None` = no leader since the start.
    heard: Option<Instant>,
    /// No own attempt before this.
    next_try: Instant,
    /// The silence was noticed and the spread was added.
    armed: bool,
    /// Last change of leadership or term.
    changed: Instant,
    /// Last vote granted to somebody.
    granted: Option<Instant>,
    /// An own campaign was decided and has not reached openraft yet.
    pending: bool,
    rng: u64,
    asleep: bool,
}

impl Election {
    /// `led`: the stored vote is for another node's leadership; its lease may still run (PROTOCOL 23).
    pub(crate) fn new(seed: u64, led: bool) -> Self {
        let now = Instant::now();
        let heard = led.then_some(now);
        Election {
            heard,
            next_try: now,
            armed: false,
            changed: now,
            granted: None,
            pending: false,
            rng: seed | 1,
            asleep: false,
        }
    }

    pub(crate) fn asleep(&mut self, asleep: bool) {
        self.asleep = asleep;
        self.heard = Some(Instant::now());
    }

    pub(crate) fn changed(&mut self) {
        self.changed = Instant::now();
    }

    pub(crate) fn changed_within(&self, limit: Duration) -> bool {
        self.changed.elapsed() < limit
    }

    /// Notes an append. False while a campaign is decided: the append must not be acknowledged, because the vote that
    /// this replica is about to give itself would break the promise in the acknowledgement (the leader's lease).
    pub(crate) fn heard(&mut self) -> bool {
        if self.pending {
            return false;
        }
        self.heard = Some(Instant::now());
        self.armed = false;
        true
    }

    /// Decides to campaign, unless the leader was heard meanwhile.
    fn decide(&mut self, timers: &Timers, single: bool) -> bool {
        self.pending = single || self.misses_leader(timers);
        self.pending
    }

    pub(crate) fn granted(&mut self) {
        self.granted = Some(Instant::now());
    }

    /// 0..=`of`, different on every replica (xorshift, seeded by the host).
    fn jitter(&mut self, of: Duration) -> Duration {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        of.mul_f64((self.rng % 1024) as f64 / 1024.0)
    }

    /// Would this replica let somebody else campaign?
    fn misses_leader(&self, timers: &Timers) -> bool {
        self.heard.is_none_or(|at| at.elapsed() > timers.lease)
            && self.granted.is_none_or(|at| at.elapsed() > timers.lease / 2)
    }
}

impl<M: Machine> Group<M> {
    /// Called several times per second for every group.
    pub(crate) fn tend_election(&self, node_alive: &dyn Fn(NodeId) -> bool) {
        let inner = &self.0;
        let (leader_node, voters) = {
            let metrics = inner.metrics.borrow();
            if metrics.state == ServerState::Leader || inner.stopped().is_some() {
                return;
            }
            let membership = metrics.membership_config.membership();
            if !membership.voter_ids().any(|id| id == inner.key.replica.0) {
                return;
            }
            let leader = metrics.current_leader.and_then(|id| membership.get_node(&id)).map(|n| n.node);
            (leader, membership.voter_ids().count())
        };
        let dead = leader_node.is_some_and(|node| !node_alive(node));
        if !inner.election.lock().due(&inner.settings.timers, voters, leader_node.is_some(), dead) {
            return;
        }
        if !inner.campaigning.swap(true, Ordering::AcqRel) {
            let group = self.clone();
            tokio::spawn(async move {
                group.0.campaign().await;
                group.0.campaigning.store(false, Ordering::Release);
            });
        }
    }
}

impl Election {
    /// Is it time for an attempt? Sets the time of the next one.
    fn due(&mut self, timers: &Timers, voters: usize, has_leader: bool, leader_dead: bool) -> bool {
        let now = Instant::now();
        if self.asleep {
            return false;
        }
        if voters > 1 {
            let patience = if has_leader && !leader_dead { timers.leader_silent } else { timers.lease };
            if self.heard.is_some_and(|at| now - at <= patience) {
                return false;
            }
            if !self.armed {
                // Replicas notice together; the spread keeps them from splitting the votes.
                self.armed = true;
                let spread = self.jitter(timers.lease / 2);
                self.next_try = self.next_try.max(now + spread);
            }
        }
        if now < self.next_try {
            return false;
        }
        let spread = if voters > 1 { self.jitter(timers.lease) } else { Duration::ZERO };
        self.next_try = now + timers.lease / 2 + spread;
        true
    }
}

impl<M: Machine> Inner<M> {
    /// Answers another replica's question.
    pub(crate) fn pre_vote(&self, ask: &PreVote) -> (bool, u64) {
        let (leads, term) = {
            let metrics = self.metrics.borrow();
            (metrics.state == ServerState::Leader, metrics.vote.leader_id.term)
        };
        let (_, last) = self.log.ends(self.key);
        let healthy_leader = leads && self.quorum_fresh();
        let granted = !healthy_leader
            && (leads || self.election.lock().misses_leader(&self.settings.timers))
            && ask.last_log >= last
            && self.stopped().is_none();
        (granted, term)
    }

    /// See [`Election::heard`].
    pub(crate) fn heard_leader(&self) -> bool {
        self.election.lock().heard()
    }

    pub(crate) fn granted_vote(&self) {
        self.election.lock().granted();
    }

    async fn campaign(&self) {
        let (members, configs, term) = {
            let metrics = self.metrics.borrow();
            let m = metrics.membership_config.membership();
            let members: Vec<Member> = m.nodes().map(|(id, node)| node.member(*id)).collect();
            (members, m.get_joint_config().clone(), metrics.vote.leader_id.term)
        };
        let me = self.key.replica.0;
        let mut granted = std::collections::BTreeSet::from([me]);
        let quorum = |granted: &std::collections::BTreeSet<u64>| {
            configs.iter().all(|c| c.iter().filter(|id| granted.contains(id)).count() * 2 > c.len())
        };
        let (_, last_log) = self.log.ends(self.key);
        let ask = PreVote { term: term + 1, last_log };
        let (tx, mut answers) = tokio::sync::mpsc::unbounded_channel();
        for to in others(members.into_iter(), self.key.replica) {
            let (links, ask, tx) = (Arc::clone(&self.links), ask.clone(), tx.clone());
            let limit = self.settings.timers.lease / 2;
            tokio::spawn(async move {
                let call = links.call(&to, PeerBody::PreVote(ask));
                if let Ok(Ok(reply)) = tokio::time::timeout(limit, call).await
                    && matches!(reply.0, PeerAnswer::PreVote(true, _))
                {
                    let _ = tx.send(to.replica.0);
                }
            });
        }
        drop(tx);
        while !quorum(&granted) {
            match answers.recv().await {
                Some(id) => granted.insert(id),
                None => return,
            };
        }
        let single = self.metrics.borrow().membership_config.voter_ids().count() == 1;
        let same_term = self.metrics.borrow().vote.leader_id.term == term;
        if same_term && self.election.lock().decide(&self.settings.timers, single) {
            tracing::info!("group {}: replica {me} campaigns for term {}", self.key.group, term + 1);
            let _ = self.raft.trigger().elect().await;
            // The trigger is only queued; what is answered behind it was looked at after it.
            let _ = self.raft.with_raft_state(|_| ()).await;
            self.election.lock().pending = false;
        }
    }
}
