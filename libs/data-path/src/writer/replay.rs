//! The journal of an earlier client process comes back into the queues.

use super::{
    Shared, WriteContext,
    file::{File, Logged, Sealed, Sending, Stamp, State, Status},
    segments::Segments,
};
use crate::journal::{Pending, PendingWrite, Recovered, Unfinished};
use fusefs_types::Ino;
use std::sync::{Arc, atomic::Ordering};

impl Shared {
    /// Puts everything that is not settled back: commits without an answer first, to be sent again as they were, then
    /// the other writes in order.
    pub(super) fn replay(self: &Arc<Self>, recovered: Recovered) {
        let unfinished: Vec<u64> =
            recovered.pending.values().flat_map(|p| p.intents.iter().map(|i| i.number)).collect();
        self.sink.resume(&unfinished);
        let stats = recovered.stats;
        if stats.writes + stats.intents > 0 {
            let (writes, bytes, intents) = (stats.writes, stats.bytes, stats.intents);
            tracing::info!(writes, bytes, intents, inodes = stats.inodes, "journal replayed");
        }
        for (ino, pending) in recovered.pending {
            self.restore(ino, pending);
        }
    }

    fn restore(self: &Arc<Self>, ino: Ino, mut pending: Pending) {
        let file = self.file(ino);
        let mut st = file.state.lock();
        let mut marks = pending.mtime_marks.into_iter().peekable();
        for write in pending.writes {
            while let Some(intent) = pending.intents.pop_front_if(|i| i.covers < write.lsn) {
                self.restore_intent(&file, &mut st, intent);
            }
            if marks.next_if(|m| *m < write.lsn).is_some() {
                self.close_batch(&mut st);
                while marks.next_if(|m| *m < write.lsn).is_some() {}
            }
            self.restore_write(&file, &mut st, write);
        }
        for intent in pending.intents {
            self.restore_intent(&file, &mut st, intent);
        }
        if marks.next().is_some() {
            self.close_batch(&mut st);
        }
        let waiting: Vec<u64> = st.sealed.iter().filter(|s| !s.committing).map(|s| s.seq).collect();
        for seq in waiting {
            self.start(&file, &mut st, seq);
        }
        if !st.resend.is_empty() {
            self.work(&file, &mut st);
        }
    }

    fn close_batch(&self, st: &mut State) {
        if let Some((_, delta)) = st.seal(self.inline_max()) {
            self.charge(delta);
        }
    }

    fn restore_write(self: &Arc<Self>, file: &File, st: &mut State, w: PendingWrite) {
        let len = w.bytes.len() as u64;
        let cx = WriteContext { trunc_seq: w.trunc_seq, kill_priv: w.kill_priv, ..WriteContext::default() };
        if st.must_seal(len, &cx) {
            self.close_batch(st);
        }
        let _ = self.credits.take(len); // the space was lent when the write was acknowledged (PROTOCOL 35)
        let stamp = Stamp { mtime: w.mtime, record: Some((w.lsn, w.place)) };
        let (overwritten, delta, opened) = st.put(w.offset, &w.bytes, &cx, stamp);
        self.charge(delta);
        if overwritten > 0 {
            self.credits.settle(overwritten);
        }
        if let Some(since) = opened {
            self.aging.lock().push_back((since, file.ino));
            self.aging_wake.notify_one();
        }
    }

    /// What came so far and belongs to no other commit belongs to this one.
    fn restore_intent(self: &Arc<Self>, file: &File, st: &mut State, intent: Unfinished) {
        self.close_batch(st);
        let taken: usize = st.resend.iter().map(|s| s.batches).sum();
        if st.sealed.len() == taken {
            st.sealed.push_back(placeholder(st.next_seq));
            st.next_seq += 1;
        }
        for s in st.sealed.iter_mut().skip(taken) {
            (s.committing, s.status, s.mtime) = (true, Status::Uploading, intent.file.mtime);
        }
        let batches = st.sealed.len() - taken;
        tracing::debug!(ino = %file.ino, number = intent.number, batches, "a commit is sent again");
        let Unfinished { number, covers, unique, file, place } = intent;
        let inline_bytes = 0;
        st.resend.push_back(Sending {
            number,
            batches,
            file,
            inline_bytes,
            covers,
            unique,
            resent: true,
            place: Some(place),
        });
    }

    /// A commit of an earlier client process was refused, so nothing of it was applied: its bytes go their way as if
    /// it had never been sent. (A partition refuses objects of an earlier incarnation that it does not know,
    /// PROTOCOL 33: they are uploaded again.)
    pub(super) fn restart(self: &Arc<Self>, file: &Arc<File>, batches: usize) {
        let inline_max = self.inline_max();
        let mut st = file.state.lock();
        let mut again = Vec::new();
        for s in st.sealed.iter_mut().take(batches) {
            s.committing = false;
            s.status = if s.data.bytes <= inline_max { Status::Inline } else { Status::Uploading };
            again.push(s.seq);
        }
        st.sealed.retain(|s| s.committing || s.data.bytes > 0);
        for seq in again {
            self.start(file, &mut st, seq);
        }
        drop(st);
        file.changed.notify_waiters();
    }

    pub(super) fn count_resent(&self) {
        if let Some(j) = &self.journal {
            j.journal.stats().resent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Stands in the queue for a commit without bytes of its own (holes), so that later writes wait for it.
fn placeholder(seq: u64) -> Sealed {
    Sealed {
        seq,
        data: Arc::new(Segments::default().freeze()),
        trunc_seq: 0,
        mtime: None,
        kill_priv: false,
        status: Status::Uploading,
        committing: true,
        cancelled: Arc::default(),
        logged: Logged::default(),
    }
}
