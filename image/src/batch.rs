//! Pages of memory, in batches.

use crate::{Crc32c, ImageError, PAGE};

/// Extents in one batch.
pub const EXTENTS: usize = 253;
/// Pages in one extent: 1 MiB, so that a damaged or slow read is noticed soon.
pub const MAX_EXTENT_PAGES: u32 = 256;

const MAGIC: [u8; 4] = *b"BTCH";

/// A run of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Address of the first, in the process.
    pub address: u64,
    /// How many.
    pub pages: u32,
    /// Checksum of their content.
    pub crc: u32,
    /// Whether they are pages of a mapped file as it is on disk: needed only where that file is not.
    pub base: bool,
}

/// The bit of `pages` that holds [`Extent::base`].
const BASE: u32 = 1 << 31;

impl Extent {
    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.pages as usize * PAGE
    }

    /// Whether there are no pages; never so in an image.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.pages == 0
    }
}

/// One page that lists the extents whose pages follow it.
///
/// ```text
///  0  magic        4 bytes "BTCH"
///  4  count        u32    extents; 0 in the last batch
///  8  crc          u32    of the page with this field zero
/// 12  zero         u32
/// 16  pages so far u64    data pages in all batches before this one
/// 24  zeros        24 bytes
/// 48  extents      16 bytes each: address u64, pages u32 (bit 31: base), crc u32
/// ```
#[derive(Clone, Debug)]
pub struct Batch {
    extents: [Extent; EXTENTS],
    count: usize,
    /// Data pages in all batches before.
    pub pages_before: u64,
}

impl Batch {
    /// Without extents.
    #[must_use]
    pub const fn new(pages_before: u64) -> Self {
        Self {
            extents: [Extent { address: 0, pages: 0, crc: 0, base: false }; EXTENTS],
            count: 0,
            pages_before,
        }
    }

    /// Adds an extent; false if the batch is full.
    pub fn push(&mut self, extent: Extent) -> bool {
        let Some(slot) = self.extents.get_mut(self.count) else { return false };
        *slot = extent;
        self.count += 1;
        true
    }

    /// The extents.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents[..self.count]
    }

    /// Data pages of this batch.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.extents().iter().map(|extent| u64::from(extent.pages)).sum()
    }

    /// Whether this is the end of the image.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        self.count == 0
    }

    /// The page.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        page[..4].copy_from_slice(&MAGIC);
        #[expect(clippy::cast_possible_truncation, reason = "at most EXTENTS")]
        page[4..8].copy_from_slice(&(self.count as u32).to_le_bytes());
        page[16..24].copy_from_slice(&self.pages_before.to_le_bytes());
        for (extent, bytes) in self.extents().iter().zip(page[48..].chunks_exact_mut(16)) {
            bytes[..8].copy_from_slice(&extent.address.to_le_bytes());
            let pages = extent.pages | if extent.base { BASE } else { 0 };
            bytes[8..12].copy_from_slice(&pages.to_le_bytes());
            bytes[12..].copy_from_slice(&extent.crc.to_le_bytes());
        }
        let crc = Crc32c::of(&page);
        page[8..12].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Reads the page; `offset` is where it stood, for the message.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if it is no batch, or damaged, or lists pages that no process can have.
    pub fn decode(page: &[u8; PAGE], offset: u64) -> Result<Self, ImageError> {
        let u32_at =
            |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let mut blank = *page;
        blank[8..12].fill(0);
        if page[..4] != MAGIC || Crc32c::of(&blank) != u32_at(8) {
            return Err(ImageError::Checksum { part: "batch", offset });
        }
        let count = u32_at(4) as usize;
        if count > EXTENTS {
            return Err(ImageError::Invalid { field: "extent count", found: count as u64 });
        }
        let mut batch = Self::new(u64_at(16));
        for at in (48..).step_by(16).take(count) {
            let extent = Extent {
                address: u64_at(at),
                pages: u32_at(at + 8) & !BASE,
                crc: u32_at(at + 12),
                base: u32_at(at + 8) & BASE != 0,
            };
            if extent.pages == 0 || extent.pages > MAX_EXTENT_PAGES {
                return Err(ImageError::Invalid {
                    field: "extent length",
                    found: extent.pages.into(),
                });
            }
            let end = extent.address.checked_add(extent.len() as u64);
            if !extent.address.is_multiple_of(PAGE as u64) || end.is_none_or(|end| end > 1 << 47) {
                return Err(ImageError::Invalid { field: "extent address", found: extent.address });
            }
            batch.push(extent);
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_it_was_and_no_flipped_bit_goes_unnoticed() {
        let mut batch = Batch::new(77);
        assert!(batch.push(Extent { address: 0x7000_0000, pages: 3, crc: 5, base: false }));
        assert!(batch.push(Extent { address: 0x7100_0000, pages: 256, crc: 6, base: true }));
        let page = batch.encode();
        let back = Batch::decode(&page, 0).unwrap();
        assert_eq!((back.extents(), back.pages_before, back.pages()), (batch.extents(), 77, 259));
        for bit in 0..PAGE * 8 {
            let mut damaged = page;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Batch::decode(&damaged, 0).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_full_batch_takes_no_more_and_still_fits_a_page() {
        let mut batch = Batch::new(0);
        let extent = Extent { address: 4096, pages: 1, crc: 0, base: false };
        assert!((0..EXTENTS).all(|_| batch.push(extent)));
        assert!(!batch.push(extent));
        assert_eq!(Batch::decode(&batch.encode(), 0).unwrap().extents().len(), EXTENTS);
    }

    #[test]
    fn addresses_outside_of_user_space_are_refused() {
        let mut batch = Batch::new(0);
        batch.push(Extent { address: (1 << 47) - 4096, pages: 2, crc: 0, base: false });
        let error = Batch::decode(&batch.encode(), 0).unwrap_err();
        assert!(matches!(error, ImageError::Invalid { field: "extent address", .. }));
    }
}
