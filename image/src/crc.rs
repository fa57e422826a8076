//! CRC-32C (Castagnoli), with the CPU's instruction where there is one.

/// A checksum in the making.
///
/// Reflected polynomial 0x82f63b78, initial value and final inversion all ones (RFC 3720, appendix
/// B.4).
#[derive(Clone, Copy, Debug)]
pub struct Crc32c(u32);

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl Crc32c {
    /// Of no bytes yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(u32::MAX)
    }

    /// Of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> u32 {
        let mut crc = Self::new();
        crc.add(bytes);
        crc.value()
    }

    /// Adds `bytes`.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0 = if ulpm_sys::arch::has_sse42() {
            // SAFETY: the CPU has the instruction.
            unsafe { by_instruction(self.0, bytes) }
        } else {
            by_table(self.0, bytes)
        };
    }

    /// The checksum of all that was added.
    #[must_use]
    pub const fn value(self) -> u32 {
        !self.0
    }
}

/// # Safety
///
/// The CPU has SSE 4.2.
#[target_feature(enable = "sse4.2")]
unsafe fn by_instruction(mut crc: u32, bytes: &[u8]) -> u32 {
    use core::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u64};

    // The instruction has a latency of three cycles and a throughput of one: whole pages go through
    // three lanes at a time, which are joined by shifting the first two over the zeros behind them.
    const LANE: usize = 1360;
    let mut rest = bytes;
    while let Some((block, tail)) = rest.split_first_chunk::<{ 3 * LANE }>() {
        let (mut a, mut b, mut c) = (u64::from(crc), 0u64, 0u64);
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&block[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let mut at = 0;
        while at < LANE {
            a = _mm_crc32_u64(a, word(at));
            b = _mm_crc32_u64(b, word(LANE + at));
            c = _mm_crc32_u64(c, word(2 * LANE + at));
            at += 8;
        }
        let low = |lane: u64| (lane & u64::from(u32::MAX)) as u32;
        crc = shift_lane(shift_lane(low(a)) ^ low(b)) ^ low(c);
        rest = tail;
    }
    let (words, tail) = rest.as_chunks::<8>();
    for word in words {
        let wide = _mm_crc32_u64(u64::from(crc), u64::from_le_bytes(*word));
        crc = (wide & u64::from(u32::MAX)) as u32;
    }
    for &byte in tail {
        crc = _mm_crc32_u8(crc, byte);
    }
    crc
}

const POLYNOMIAL: u32 = 0x82f6_3b78;

const fn step_byte(mut crc: u32) -> u32 {
    let mut bit = 0;
    while bit < 8 {
        crc = (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
        bit += 1;
    }
    crc
}

static TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = step_byte(byte as u32);
        byte += 1;
    }
    table
};

/// What a CRC becomes when 1360 zero bytes follow, by each of its four bytes: the step is linear, so
/// the four parts add up.
static LANE_SHIFT: [[u32; 256]; 4] = {
    let mut bits = [0u32; 32];
    let mut bit = 0;
    while bit < 32 {
        let mut crc = 1u32 << bit;
        let mut byte = 0;
        while byte < 1360 {
            crc = step_byte(crc);
            byte += 1;
        }
        bits[bit] = crc;
        bit += 1;
    }
    let mut table = [[0; 256]; 4];
    let mut part = 0;
    while part < 4 {
        let mut byte = 0;
        while byte < 256 {
            let mut bit = 0;
            while bit < 8 {
                if byte >> bit & 1 == 1 {
                    table[part][byte] ^= bits[part * 8 + bit];
                }
                bit += 1;
            }
            byte += 1;
        }
        part += 1;
    }
    table
};

fn shift_lane(crc: u32) -> u32 {
    let [a, b, c, d] = crc.to_le_bytes();
    LANE_SHIFT[0][usize::from(a)]
        ^ LANE_SHIFT[1][usize::from(b)]
        ^ LANE_SHIFT[2][usize::from(c)]
        ^ LANE_SHIFT[3][usize::from(d)]
}

fn by_table(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, &byte| {
        let [low, ..] = crc.to_le_bytes();
        (crc >> 8) ^ TABLE[usize::from(low ^ byte)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(Crc32c::of(b"123456789"), 0xe306_9283); // RFC 3720's check value
        assert_eq!(Crc32c::of(&[0; 32]), 0x8a91_36aa); // RFC 3720, B.4
    }

    #[test]
    fn instruction_and_table_agree_at_every_length() {
        let bytes: Vec<u8> = (0..9000u32).map(|i| (i * 7 + (i >> 8)) as u8).collect();
        for len in (0..64).chain([4079, 4080, 4081, 8192, 9000]) {
            assert_eq!(Crc32c::of(&bytes[..len]), !by_table(u32::MAX, &bytes[..len]), "{len}");
        }
    }
}
