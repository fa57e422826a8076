//! What the checks want to know of an ELF file.

use std::fs::File;
use std::os::unix::fs::FileExt;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
pub(crate) const PT_INTERP: u32 = 3;
/// `e_type` of a shared object.
pub(crate) const ET_DYN: u16 = 3;
const SHT_DYNSYM: u32 = 11;

/// Why a file is not one that can be loaded here.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// It is for another machine.
    Machine(String),
    /// Its headers are not what they should be.
    Damaged,
}

/// A segment.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    kind: u32,
    pub(crate) offset: u64,
    address: u64,
    pub(crate) len: u64,
}

/// A file for x86-64.
pub(crate) struct Elf<'a> {
    file: &'a File,
    head: &'a [u8],
    segments: Vec<Segment>,
}

fn u16_in(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_in(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_in(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl<'a> Elf<'a> {
    /// Reads the headers of a file that begins with `head`, an ELF header at least.
    pub(crate) fn open(file: &'a File, head: &'a [u8]) -> Result<Self, Unfit> {
        let other = |machine: String| Err(Unfit::Machine(machine));
        match (head.get(4), head.get(5), u16_in(head, 18)) {
            (Some(2), Some(1), 62) => {}
            (Some(1), _, 3) => return other("32-bit x86".into()),
            (Some(1), _, 62) => return other("x32".into()),
            (_, _, 183) => return other("aarch64".into()),
            (_, _, machine) => return other(format!("ELF machine {machine}")),
        }
        let table = head.get(32..40).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let (entry, count) = (usize::from(u16_in(head, 54)), usize::from(u16_in(head, 56)));
        if entry < 56 {
            return Err(Unfit::Damaged);
        }
        let mut bytes = vec![0; entry * count];
        let table = table.ok_or(Unfit::Damaged)?;
        file.read_exact_at(&mut bytes, table).map_err(|_| Unfit::Damaged)?;
        let segments = bytes.chunks_exact(entry).map(|header| Segment {
            kind: u32_in(header, 0),
            offset: u64_in(header, 8),
            address: u64_in(header, 16),
            len: u64_in(header, 32),
        });
        Ok(Self { file, head, segments: segments.collect() })
    }

    /// What sort of file it is (`e_type`).
    pub(crate) fn kind(&self) -> u16 {
        u16_in(self.head, 16)
    }

    /// The first segment of a kind.
    pub(crate) fn segment(&self, kind: u32) -> Option<Segment> {
        self.segments.iter().copied().find(|segment| segment.kind == kind)
    }

    /// Part of the file, up to 16 MiB.
    pub(crate) fn read(&self, offset: u64, len: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len.min(16 << 20)).ok()?];
        self.file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }

    /// What will lie at an address.
    pub(crate) fn read_address(&self, address: u64, len: u64) -> Option<Vec<u8>> {
        let loaded = self.segments.iter().find(|segment| {
            segment.kind == PT_LOAD
                && (segment.address..segment.address.saturating_add(segment.len)).contains(&address)
        })?;
        self.read(loaded.offset.checked_add(address - loaded.address)?, len)
    }

    /// Tags and values of the dynamic section.
    pub(crate) fn dynamic(&self) -> Option<Vec<(u64, u64)>> {
        let dynamic = self.segment(PT_DYNAMIC)?;
        let bytes = self.read(dynamic.offset, dynamic.len)?;
        Some(bytes.chunks_exact(16).map(|entry| (u64_in(entry, 0), u64_in(entry, 8))).collect())
    }

    /// The address of a symbol that it exports.
    pub(crate) fn exported(&self, name: &str) -> Option<u64> {
        let (entry, count) = (u16_in(self.head, 58), u16_in(self.head, 60));
        let sections = self.read(u64_in(self.head, 40), u64::from(entry) * u64::from(count))?;
        let sections: Vec<&[u8]> = sections.chunks_exact(usize::from(entry).max(64)).collect();
        let content = |section: &[u8]| self.read(u64_in(section, 24), u64_in(section, 32));
        let symbols = sections.iter().find(|section| u32_in(section, 4) == SHT_DYNSYM)?;
        let strings = content(sections.get(usize::try_from(u32_in(symbols, 40)).ok()?)?)?;
        content(symbols)?.chunks_exact(24).find_map(|symbol| {
            let text = strings.get(usize::try_from(u32_in(symbol, 0)).ok()?..)?;
            let is_it =
                text.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0));
            // Section 0: it is wanted from elsewhere.
            (is_it && u16_in(symbol, 6) != 0).then(|| u64_in(symbol, 8))
        })
    }
}
