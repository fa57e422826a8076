//! Pseudo-random moments that can be repeated.

use std::time::{SystemTime, UNIX_EPOCH};

/// A stream of numbers.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// A stream that starts at `ULPM_TEST_SEED`, or at the time of day. The seed is printed, so that a
    /// failure shows it.
    #[must_use]
    pub fn from_env() -> Self {
        let seed = std::env::var("ULPM_TEST_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                now.map_or(1, |now| u64::from(now.subsec_nanos()) ^ now.as_secs())
            });
        println!("ULPM_TEST_SEED={seed}");
        Self::new(seed)
    }

    /// A stream that starts at `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number from `from` up to, and without, `to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        from + (self.0 >> 11) % (to - from).max(1)
    }
}
