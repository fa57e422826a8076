//! The image format: what one process is saved as.
//!
//! ```text
//!  0           header           one page, see [`Header`]
//!  4096        metadata         `meta_len` bytes, padded with zeros to a whole page
//!  …           batch            one page of extents, see [`Batch`], then their pages in that order
//!  …           batch            …
//!  end-4096    last batch       no extents; it repeats the count of all data pages
//! ```
//!
//! All numbers are little-endian. Everything starts at a multiple of 4096 bytes, so that data can be
//! mapped from the file, and nothing refers backwards, so that an image can be written to a stream.
//!
//! Every byte is covered by a CRC-32C: the header by its own, the metadata by one in the header, a
//! batch's page by its own, and each extent by one in its batch. A CRC of 32 bits detects every single
//! flipped bit and every burst of up to 32 bits; a missing end is detected by the missing last batch.
//!
//! The metadata is a list of sections (tag `u32`, length `u32`, payload), one for each field of
//! [`Meta`]. A section whose tag has bit 31 set may be skipped by a reader that does not know it.
//! Within a section a number takes its width, a list is a `u32` count and its items, and a struct is
//! its fields in order; see [`meta`].

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod batch;
mod crc;
mod error;
mod header;
pub mod meta;
mod wire;

pub use batch::{Batch, EXTENTS, Extent, MAX_EXTENT_PAGES};
pub use crc::Crc32c;
pub use error::ImageError;
pub use header::{ARCH_X86_64, FORMAT_VERSION, Header, MAGIC, MAX_META};
pub use meta::Meta;

/// The unit of everything in an image.
pub const PAGE: usize = 4096;
