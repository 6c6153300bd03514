//! Does an application notice that processes of the mount are killed? A workload that verifies itself continuously, in a
//! process of its own, so that it can be put into another mount namespace and be killed itself.
//!
//! * [`work`] runs the jobs: one thread each (fcntl locks: one process each), everything derived from one seed.
//! * [`io`] is the only way to the file system: every call is timed, every unexpected errno is recorded. Nothing is
//!   retried, `EINTR` least of all. It can corrupt calls on purpose ([`plant`]), which proves that the jobs notice.
//! * [`shadow`] is what must be in the tree afterwards, also after every client was mounted again.
//! * [`worker`] starts and judges a workload process, [`cli`] is its command line.

pub mod cli;
pub mod io;
pub mod jobs;
pub mod mounted;
pub mod nemesis;
pub mod plant;
pub mod proxy;
pub mod record;
pub mod shadow;
pub mod work;
pub mod worker;

/// SplitMix64: small, seedable, the same everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// From a seed and a stream number.
    pub fn new(seed: u64, stream: u64) -> Rng {
        let mut rng = Rng(seed ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93));
        rng.next();
        rng
    }
    /// 64 bits.
    #[allow(clippy::should_implement_trait)] // endless
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Below `n`, which is at least 1.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    /// In `low..high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low)
    }
    /// True in `percent` of the calls.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    /// Fills `buf`.
    pub fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
    /// `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut out = vec![0; n];
        self.fill(&mut out);
        out
    }
}

/// Nanoseconds of CLOCK_MONOTONIC: comparable between processes.
pub fn now_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}
