//! Image files: reading and checking all of one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ulpm_image::{Batch, Crc32c, Extent, Header, ImageError, Meta, PAGE};

use crate::error::RestartError;

/// An image whose every byte was checked.
#[derive(Debug)]
pub struct ImageFile {
    /// Where it is.
    pub path: PathBuf,
    /// The open file.
    pub file: File,
    /// Everything but memory.
    pub meta: Meta,
    /// Pages, and where in the file they are.
    pub extents: Vec<(u64, Extent)>,
}

impl ImageFile {
    /// Opens an image and checks all of it.
    ///
    /// # Errors
    ///
    /// [`RestartError::Read`] and [`RestartError::Image`].
    pub fn open(path: &Path) -> Result<Self, RestartError> {
        let read = |source| RestartError::Read { path: path.into(), source };
        let image = |source| RestartError::Image { path: path.into(), source };
        let file = File::open(path).map_err(read)?;
        let len = file.metadata().map_err(read)?.len();
        let reader = Reader { file: &file, len };

        let mut page = [0; PAGE];
        match reader.fill(0, &mut page).map_err(read)? {
            // Too short to hold a header; what there is of it may still tell that it is no image.
            Err(_) if len < 8 || page[..8] != ulpm_image::MAGIC => {
                return Err(image(ImageError::NotAnImage));
            }
            result => result.map_err(image)?,
        }
        let header = Header::decode(&page).map_err(image)?;
        let meta_len = usize::try_from(header.meta_len).unwrap_or(usize::MAX);
        if header.meta_len > len {
            return Err(image(ImageError::Short { offset: PAGE as u64 }));
        }
        let mut meta = vec![0; meta_len.next_multiple_of(PAGE)];
        reader.fill(PAGE as u64, &mut meta).map_err(read)?.map_err(image)?;
        if Crc32c::of(&meta[..meta_len]) != header.meta_crc {
            let source = ImageError::Checksum { part: "metadata", offset: PAGE as u64 };
            return Err(image(source));
        }
        if let Some(&found) = meta[meta_len..].iter().find(|&&byte| byte != 0) {
            return Err(image(ImageError::Invalid { field: "padding", found: found.into() }));
        }
        let offset = (PAGE + meta.len()) as u64;
        let meta = Meta::decode(&meta[..meta_len]).map_err(image)?;
        let extents = reader.extents(offset).map_err(read)?.map_err(image)?;
        let inside = |extent: &Extent| {
            meta.regions.iter().any(|region| {
                region.start <= extent.address && extent.address + extent.len() as u64 <= region.end
            })
        };
        if let Some((_, stray)) = extents.iter().find(|(_, extent)| !inside(extent)) {
            return Err(image(ImageError::Invalid {
                field: "page outside of memory",
                found: stray.address,
            }));
        }
        Ok(Self { path: path.into(), file, meta, extents })
    }

    /// The process id that the program sees.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.meta.process.pid
    }
}

struct Reader<'a> {
    file: &'a File,
    len: u64,
}

/// Outside: reading failed. Inside: what was read is wrong.
type Checked<T> = std::io::Result<Result<T, ImageError>>;

impl Reader<'_> {
    fn fill(&self, offset: u64, bytes: &mut [u8]) -> Checked<()> {
        let available = self.len.saturating_sub(offset);
        if available < bytes.len() as u64 {
            let len = usize::try_from(available).unwrap_or(0);
            self.file.read_exact_at(&mut bytes[..len], offset)?;
            return Ok(Err(ImageError::Short { offset: self.len }));
        }
        self.file.read_exact_at(bytes, offset).map(Ok)
    }

    /// Walks through all batches and checks every page.
    fn extents(&self, mut offset: u64) -> Checked<Vec<(u64, Extent)>> {
        let mut extents = Vec::new();
        let mut pages = 0;
        let mut page = [0; PAGE];
        let mut data = Vec::new();
        loop {
            if let Err(error) = self.fill(offset, &mut page)? {
                return Ok(Err(error));
            }
            let batch = match Batch::decode(&page, offset) {
                Ok(batch) => batch,
                Err(error) => return Ok(Err(error)),
            };
            if batch.pages_before != pages {
                let found = batch.pages_before;
                return Ok(Err(ImageError::Invalid { field: "page count", found }));
            }
            offset += PAGE as u64;
            if batch.is_last() {
                let trailing = self.len - offset;
                return Ok(match trailing {
                    0 => Ok(extents),
                    found => Err(ImageError::Invalid { field: "length behind its end", found }),
                });
            }
            for &extent in batch.extents() {
                data.resize(extent.len(), 0);
                if let Err(error) = self.fill(offset, &mut data)? {
                    return Ok(Err(error));
                }
                if Crc32c::of(&data) != extent.crc {
                    return Ok(Err(ImageError::Checksum { part: "memory", offset }));
                }
                extents.push((offset, extent));
                offset += extent.len() as u64;
            }
            pages += batch.pages();
        }
    }
}
