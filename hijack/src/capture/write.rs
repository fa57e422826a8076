//! Writing the image.

use alloc::vec::Vec;

use ulpm_image::{Batch, Crc32c, Extent, Header, MAX_EXTENT_PAGES, Meta};
use ulpm_sys::arch::{nr, syscall};
use ulpm_sys::{Errno, OwnedFd, PAGE, oflag, page_up, prot};

use super::memory::{self, Saved};
use crate::private::without_private;

/// Data pages that are gathered before a batch is written: the checksum and the write of a page
/// should meet it in the cache.
const BATCH_PAGES: u64 = 1024;

/// An image that is being written to a descriptor.
#[derive(Debug)]
pub(crate) struct Writer {
    sink: i32,
    pagemap: OwnedFd,
    batch: Batch,
    written: u64,
}

impl Writer {
    /// Writes header and metadata.
    pub(crate) fn start(sink: i32, meta: &Meta) -> Result<Self, Errno> {
        let mut bytes = meta.encode();
        let header = Header { meta_len: bytes.len() as u64, meta_crc: Crc32c::of(&bytes) };
        bytes.resize(page_up(bytes.len()), 0);
        let mut writer = Self { sink, pagemap: pagemap()?, batch: Batch::new(0), written: 0 };
        let page = header.encode();
        writer.put(&[(page.as_ptr().addr(), PAGE), (bytes.as_ptr().addr(), bytes.len())])?;
        Ok(writer)
    }

    /// In a forked writer, whose page map is another.
    pub(crate) fn forked(&mut self) -> Result<(), Errno> {
        self.pagemap = pagemap()?;
        Ok(())
    }

    /// Writes the pages of regions.
    ///
    /// `own` says that this address space is the writer's own, so that protections need not be put
    /// back.
    pub(crate) fn regions<'a>(
        &mut self,
        regions: impl Iterator<Item = &'a Saved>,
        own: bool,
    ) -> Result<(), Errno> {
        for saved in regions {
            let len = saved.end - saved.start;
            let readable = saved.protection & prot::READ != 0;
            if !readable {
                protect(saved.start, len, saved.protection | prot::READ)?;
            }
            // The manager's own memory may have been joined with a mapping of the program's.
            let result = memory::runs(self.pagemap.get(), saved, |start, end, base| {
                without_private(start, end).try_for_each(|(start, end)| self.run(start, end, base))
            });
            if !readable && !own {
                let flushed = result.and_then(|()| self.flush());
                protect(saved.start, len, saved.protection)?;
                flushed?;
            } else {
                result?;
            }
        }
        self.flush()
    }

    /// Writes the last batch; returns the length of the image.
    pub(crate) fn finish(mut self, sync: bool) -> Result<u64, Errno> {
        self.flush()?;
        let last = self.batch.encode();
        self.put(&[(last.as_ptr().addr(), PAGE)])?;
        if sync {
            ulpm_sys::fsync(self.sink)?;
        }
        Ok(self.written)
    }

    /// Adds the pages of a run that are not zero; a file's are added as they are.
    fn run(&mut self, start: usize, end: usize, base: bool) -> Result<(), Errno> {
        let mut at = start;
        while at < end {
            let most = (end - at).min(MAX_EXTENT_PAGES as usize * PAGE);
            let len = if base { most } else { non_zero_prefix(at, most) };
            if len == 0 {
                at += PAGE;
                continue;
            }
            // SAFETY: the range is mapped and readable, and nothing writes to it: the program stands
            // still, or this is a copy of its memory.
            let bytes = unsafe {
                core::slice::from_raw_parts(core::ptr::with_exposed_provenance::<u8>(at), len)
            };
            let extent = Extent {
                address: at as u64,
                pages: u32::try_from(len / PAGE).unwrap_or(MAX_EXTENT_PAGES),
                crc: Crc32c::of(bytes),
                base,
            };
            if !self.batch.push(extent) {
                self.flush()?;
                self.batch.push(extent);
            }
            if self.batch.pages() >= BATCH_PAGES {
                self.flush()?;
            }
            at += len;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        if self.batch.is_last() {
            return Ok(());
        }
        let next = Batch::new(self.batch.pages_before + self.batch.pages());
        let batch = core::mem::replace(&mut self.batch, next);
        let page = batch.encode();
        let mut parts: Vec<(usize, usize)> = Vec::with_capacity(batch.extents().len() + 1);
        parts.push((page.as_ptr().addr(), PAGE));
        for extent in batch.extents() {
            parts.push((usize::try_from(extent.address).unwrap_or(0), extent.len()));
        }
        self.put(&parts)
    }

    /// Writes ranges of memory, one behind the other.
    fn put(&mut self, parts: &[(usize, usize)]) -> Result<(), Errno> {
        const WRITEV: usize = 20;
        let mut vectors: Vec<[usize; 2]> = parts.iter().map(|&(at, len)| [at, len]).collect();
        let mut rest = &mut vectors[..];
        while !rest.is_empty() {
            // SAFETY: the kernel reads the vectors, and from the ranges, which it checks itself.
            let returned = unsafe {
                let sink = self.sink.cast_unsigned() as usize;
                syscall(WRITEV, [sink, rest.as_ptr().addr(), rest.len(), 0, 0, 0])
            };
            let mut done = match ulpm_sys::check(returned) {
                Ok(0) => return Err(Errno::IO),
                Ok(done) => done,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            self.written += done as u64;
            while let Some(&mut [_, len]) = rest.first_mut()
                && len <= done
            {
                done -= len;
                rest = &mut rest[1..];
            }
            if let Some([at, len]) = rest.first_mut() {
                *at += done;
                *len -= done;
            }
        }
        Ok(())
    }
}

/// The page map of this process.
fn pagemap() -> Result<OwnedFd, Errno> {
    ulpm_sys::open(c"/proc/self/pagemap", oflag::RDONLY | oflag::CLOEXEC).map(OwnedFd::new)
}

fn protect(start: usize, len: usize, protection: usize) -> Result<(), Errno> {
    // SAFETY: reading is added, or what there was is put back.
    ulpm_sys::check(unsafe { syscall(nr::MPROTECT, [start, len, protection, 0, 0, 0]) }).map(drop)
}

/// Length of the pages at `start` before the first that is all zero.
fn non_zero_prefix(start: usize, len: usize) -> usize {
    let is_zero = |page: usize| {
        // SAFETY: as in `Writer::run`.
        let words = unsafe {
            core::slice::from_raw_parts(core::ptr::with_exposed_provenance::<u64>(page), PAGE / 8)
        };
        // Most pages that are not zero show it in their first words.
        words[..8].iter().all(|&word| word == 0)
            && words.iter().fold(0, |all, word| all | word) == 0
    };
    (start..start + len).step_by(PAGE).take_while(|&page| !is_zero(page)).count() * PAGE
}
