//! Doors to the outside world. Nothing below the edges reads a clock or entropy except through these traits, so that
//! the seeded simulation can replace them (clippy.toml bans the raw calls).

/// Wall and boot clocks.
pub trait Clock: Send + Sync + 'static {
    /// Nanoseconds since 1970-01-01 UTC.
    fn wall_ns(&self) -> u64;
    /// Nanoseconds since boot, counting suspend (CLOCK_BOOTTIME): leases are measured with this one.
    fn boot_ns(&self) -> u64;
}

/// Entropy.
pub trait Rng: Send + Sync + 'static {
    /// 64 random bits.
    fn next_u64(&self) -> u64;
    /// 128 random bits, never 0.
    fn next_u128(&self) -> u128 {
        ((u128::from(self.next_u64()) << 64) | u128::from(self.next_u64())).max(1)
    }
}
