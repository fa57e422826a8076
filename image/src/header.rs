//! The first page of an image.

use crate::{Crc32c, ImageError, PAGE};

/// The first eight bytes of every image.
pub const MAGIC: [u8; 8] = *b"ULPMIMG\0";
/// The format that this release writes, and the only one that it reads.
pub const FORMAT_VERSION: u16 = 2;
/// EM_X86_64 of the ELF specification.
pub const ARCH_X86_64: u16 = 62;
/// The most that metadata may take, in bytes.
pub const MAX_META: u64 = 1 << 30;

/// The first page of an image.
///
/// ```text
///  0  magic     8 bytes
///  8  version   u16
/// 10  arch      u16
/// 12  zero      u32
/// 16  meta_len  u64    bytes of metadata, before padding
/// 24  meta_crc  u32
/// 28  crc       u32    of the page with this field zero
/// 32  zeros     to the end of the page
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of metadata.
    pub meta_len: u64,
    /// Its checksum.
    pub meta_crc: u32,
}

impl Header {
    /// The page.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        page[..8].copy_from_slice(&MAGIC);
        page[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        page[10..12].copy_from_slice(&ARCH_X86_64.to_le_bytes());
        page[16..24].copy_from_slice(&self.meta_len.to_le_bytes());
        page[24..28].copy_from_slice(&self.meta_crc.to_le_bytes());
        let crc = Crc32c::of(&page);
        page[28..32].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Reads the page.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if it is not the first page of an image that this release reads.
    pub fn decode(page: &[u8; PAGE]) -> Result<Self, ImageError> {
        let u16_at = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
        let u32_at =
            |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        if page[..8] != MAGIC {
            return Err(ImageError::NotAnImage);
        }
        // Version and architecture come before the checksum, so that an image of another version is
        // not called damaged.
        if u16_at(8) != FORMAT_VERSION {
            return Err(ImageError::Version(u16_at(8)));
        }
        if u16_at(10) != ARCH_X86_64 {
            return Err(ImageError::Architecture(u16_at(10)));
        }
        let mut blank = *page;
        blank[28..32].fill(0);
        if Crc32c::of(&blank) != u32_at(28) {
            return Err(ImageError::Checksum { part: "header", offset: 0 });
        }
        let meta_len = u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32;
        if meta_len > MAX_META {
            return Err(ImageError::Invalid { field: "metadata length", found: meta_len });
        }
        Ok(Self { meta_len, meta_crc: u32_at(24) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_an_error() {
        let header = Header { meta_len: 12345, meta_crc: 0xdead_beef };
        let page = header.encode();
        assert_eq!(Header::decode(&page), Ok(header));
        for bit in 0..PAGE * 8 {
            let mut damaged = page;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn another_version_is_named_as_such() {
        let mut page = Header { meta_len: 0, meta_crc: 0 }.encode();
        page[8] = 9;
        assert_eq!(Header::decode(&page), Err(ImageError::Version(9)));
    }
}
