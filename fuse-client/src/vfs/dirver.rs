//! Is everything that happened in a directory since we listed it our own doing?
//!
//! A directory counts the commands that changed its entries: the entry version, carried as `Attr::trunc_seq` of
//! directories. This client knows which versions its own mutations produced. While every version above the listed one is
//! its own, its list of names is complete and an absent name needs no question; a gap means that somebody else was here.

use std::collections::BTreeSet;

/// Out-of-order own versions remembered per directory; beyond it completeness is given up.
const OWN_MAX: usize = 4096;

/// What is known about one directory. Times are boot-clock nanoseconds.
#[derive(Debug, Default)]
pub(super) struct DirVersion {
    /// Changes whenever a name of the directory was dropped for room (given by the cache).
    pub epoch: u64,
    /// All names are in the dentry cache.
    complete: bool,
    /// Version as of which it became complete; what was learned about names before that is void.
    base: u64,
    /// Every change up to this version is in the dentry cache.
    seen: u64,
    /// Own versions above `seen`.
    own: BTreeSet<u64>,
    /// Own mutations that ended well without telling their version.
    unnumbered: u64,
    /// Own mutations on their way.
    in_flight: u64,
    /// Absent names may be answered until then.
    until: u64,
    /// Highest version seen in any reply: replies with a lower one are old news.
    latest: u64,
}

impl DirVersion {
    /// Nothing known; `epoch` is the cache's.
    pub fn with_epoch(epoch: u64) -> DirVersion {
        DirVersion { epoch, ..DirVersion::default() }
    }

    /// Whether the whole directory is known and checked recently enough.
    pub fn answers(&self, now: u64) -> bool {
        self.complete && now < self.until
    }

    /// End of the validity of a complete directory.
    pub fn until(&self) -> u64 {
        if self.complete { self.until } else { 0 }
    }

    /// Version as of which the directory became complete, if it is and was checked recently enough.
    pub fn base(&self, now: u64) -> Option<u64> {
        self.answers(now).then_some(self.base)
    }

    /// Whether all names are known, checked recently or not.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// A reply with this version is not older than what was seen already, so its names may be cached.
    pub fn is_current(&self, version: u64) -> bool {
        version >= self.latest
    }

    /// All names are known as of `version`.
    pub fn set_complete(&mut self, version: u64, until: u64) {
        let behind = version < self.latest || self.unnumbered > 0;
        self.complete = !behind;
        self.base = version;
        self.seen = version;
        self.latest = self.latest.max(version);
        self.until = until;
        self.unnumbered = 0;
        self.own = self.own.split_off(&(version + 1));
    }

    /// Names may be missing from now on.
    pub fn give_up(&mut self) {
        self.complete = false;
        self.own.clear();
        self.unnumbered = 0;
    }

    /// An own mutation starts. Returns the highest version seen so far, for [`DirVersion::end_changed`].
    pub fn begin(&mut self) -> u64 {
        self.in_flight += 1;
        self.latest
    }

    /// An own mutation that began at `began` changed the directory to `version` (None: the reply did not say).
    pub fn end_changed(&mut self, began: u64, version: Option<u64>, until: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.latest = self.latest.max(version.unwrap_or(began + 1));
        if !self.complete {
            return;
        }
        match version {
            Some(v) if v > self.seen => {
                self.own.insert(v);
                self.advance(until);
                if self.own.len() > OWN_MAX {
                    self.give_up();
                }
            }
            Some(_) => {}
            None => self.unnumbered += 1,
        }
    }

    /// An own mutation changed nothing here.
    pub fn end_unchanged(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Nobody knows what an own mutation did.
    pub fn end_unknown(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.give_up();
    }

    /// A reply showed `version`, true at some moment not before `until - validity`.
    pub fn observe(&mut self, version: u64, until: u64) {
        self.latest = self.latest.max(version);
        if !self.complete || version < self.seen {
            return;
        }
        if version == self.seen {
            if self.unnumbered == 0 {
                self.until = self.until.max(until);
            }
            return;
        }
        let known = self.own.range(..=version).count() as u64;
        let gap = version - self.seen;
        if gap > known + self.unnumbered + self.in_flight {
            self.give_up();
        } else if self.in_flight == 0 && gap == known + self.unnumbered {
            self.seen = version;
            self.unnumbered = 0;
            self.own = self.own.split_off(&(version + 1));
            self.until = self.until.max(until);
        }
    }

    fn advance(&mut self, until: u64) {
        let before = self.seen;
        while self.own.first() == Some(&(self.seen + 1)) {
            self.own.pop_first();
            self.seen += 1;
        }
        if self.seen > before {
            self.until = self.until.max(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> DirVersion {
        let mut d = DirVersion::default();
        d.set_complete(10, 100);
        d
    }

    #[test]
    fn own_changes_extend_the_validity_and_foreign_ones_end_it() {
        let mut d = complete();
        d.begin();
        d.end_changed(10, Some(11), 150);
        assert!(d.answers(149) && !d.answers(150));
        d.begin();
        d.end_changed(10, Some(13), 190); // 12 is not ours, or not here yet
        assert!(!d.answers(150));
        d.observe(13, 200);
        assert!(!d.answers(0), "12 was somebody else's");
    }

    #[test]
    fn parallel_own_changes_may_arrive_out_of_order() {
        let mut d = complete();
        d.begin();
        d.begin();
        d.end_changed(10, Some(12), 160);
        assert!(d.answers(99) && !d.answers(120), "11 is still under way: not proven beyond the old validity");
        d.observe(12, 170);
        assert!(d.answers(99), "the gap may be ours");
        d.end_changed(10, Some(11), 150);
        assert!(d.answers(149));
    }

    #[test]
    fn a_rename_without_a_version_is_checked_by_the_next_reply() {
        let mut d = complete();
        d.begin();
        d.end_changed(10, None, 0);
        assert!(d.answers(99), "still inside the old validity");
        d.observe(11, 180);
        assert!(d.answers(179));
        d.begin();
        d.end_changed(10, None, 0);
        d.observe(13, 250);
        assert!(!d.answers(0), "two changes, one of them ours");
    }

    #[test]
    fn old_replies_are_recognised_and_do_not_verify() {
        let mut d = complete();
        d.begin();
        d.end_changed(10, Some(11), 150);
        assert!(!d.is_current(10) && d.is_current(11));
        d.observe(10, 500);
        assert!(!d.answers(400));
        d.set_complete(10, 300);
        assert!(!d.answers(200), "a listing older than our own change is not complete");
    }

    #[test]
    fn an_unknown_outcome_gives_up() {
        let mut d = complete();
        d.begin();
        d.end_unknown();
        assert!(!d.answers(0));
    }
}
