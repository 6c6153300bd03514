//! The machine's real clock and entropy: the only implementations of [`Clock`] and [`Rng`] outside tests.

use fusefs_types::{Clock, Rng};
use nix::time::{ClockId, clock_gettime};

/// CLOCK_REALTIME and, where the kernel has it, CLOCK_BOOTTIME (macOS: CLOCK_MONOTONIC, which counts sleep there).
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

#[cfg(target_os = "linux")]
const BOOT: ClockId = ClockId::CLOCK_BOOTTIME;
#[cfg(not(target_os = "linux"))]
const BOOT: ClockId = ClockId::CLOCK_MONOTONIC;

fn read(clock: ClockId) -> u64 {
    // Neither clock can fail on the systems we support; 0 only makes leases expire.
    clock_gettime(clock).map_or(0, |t| t.tv_sec().max(0) as u64 * 1_000_000_000 + t.tv_nsec().max(0) as u64)
}

impl Clock for SystemClock {
    fn wall_ns(&self) -> u64 {
        read(ClockId::CLOCK_REALTIME)
    }
    fn boot_ns(&self) -> u64 {
        read(BOOT)
    }
}

/// The kernel's entropy.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRng;

impl Rng for SystemRng {
    #[allow(clippy::disallowed_methods)] // this is the door
    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        if getrandom::fill(&mut bytes).is_err() {
            // Without entropy identifiers could repeat, and a repeated id overwrites data.
            std::process::abort();
        }
        u64::from_le_bytes(bytes)
    }
}
