//! A counter machine and fixed clocks for the tests.

use fusefs_raft_host::{Frozen, LogPos, Machine, Stop};
use fusefs_types::{Clock, Rng};
use std::{
    io::{self, Read, Write},
    sync::atomic::{AtomicU64, Ordering},
};

/// Keeps every command in order: enough to see loss, repetition and order.
#[derive(Clone, Default)]
pub struct Journal {
    pub entries: Vec<(LogPos, Vec<u8>)>,
}

impl Machine for Journal {
    type Reply = u64;

    fn apply(&mut self, at: LogPos, payload: &[u8]) -> Result<u64, Stop> {
        if payload == b"stop" {
            return Err(Stop("asked to".into()));
        }
        self.entries.push((at, payload.to_vec()));
        Ok(self.entries.len() as u64)
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(self.clone())
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let mut all = Vec::new();
        from.read_to_end(&mut all)?;
        self.entries.clear();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let word = |i: usize| u64::from_le_bytes(rest[i * 8..i * 8 + 8].try_into().unwrap());
            let (term, index, n, len) = (word(0), word(1), word(2) as u32, word(3) as usize);
            self.entries.push((LogPos { term, index, n }, rest[32..32 + len].to_vec()));
            rest = &rest[32 + len..];
        }
        Ok(())
    }
}

impl Frozen for Journal {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        for (at, payload) in &self.entries {
            for word in [at.term, at.index, u64::from(at.n), payload.len() as u64] {
                out.write_all(&word.to_le_bytes())?;
            }
            out.write_all(payload)?;
        }
        Ok(())
    }
}

/// Follows tokio's clock, which the simulated tests pause.
pub struct TestClock(tokio::time::Instant);

impl TestClock {
    pub fn new() -> Self {
        TestClock(tokio::time::Instant::now())
    }
}

impl Clock for TestClock {
    fn wall_ns(&self) -> u64 {
        1_700_000_000_000_000_000
    }
    fn boot_ns(&self) -> u64 {
        1 + self.0.elapsed().as_nanos() as u64
    }
}

/// splitmix64.
pub struct TestRng(AtomicU64);

impl TestRng {
    pub fn new(seed: u64) -> Self {
        TestRng(AtomicU64::new(seed))
    }
}

impl Rng for TestRng {
    fn next_u64(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
