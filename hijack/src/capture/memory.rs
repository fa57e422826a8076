//! Mappings, and which of their pages have to be saved.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ulpm_image::Meta;
use ulpm_image::meta::{Region, region_flag as flag, region_kind as kind};
use ulpm_sys::fmt::Text;
use ulpm_sys::proc::{MapsLine, VmFlags};
use ulpm_sys::{Errno, FileStatus, PAGE, PageQuery, PageRegion, oflag, page_is, page_up, prot};

use super::text::{Directory, Lines};
use super::{Subject, unsupported};
use crate::freeze::Failed;
use crate::process;

/// Kinds of elections.
const SHARED_MEMORY: u64 = 3;
const CARRIED_FILE: u64 = 4;
const FILE_IN_MEMORY: u64 = 31;

/// What memfd_secret(2) has made is called so (mm/secretmem.c).
const SECRET: &[u8] = b"/secretmem (deleted)";

/// What io_setup(2) maps is called so (fs/aio.c). A forked child has the mapping, and nothing behind it.
const REQUESTS: &[u8] = b"/[aio] (deleted)";

/// A private mapping of a file beyond this length is not carried in the image.
const MAX_CARRIED: u64 = 128 << 20;
/// Nor is a writable one beyond this.
const MAX_CARRIED_WRITABLE: usize = 16 << 20;

/// Which pages of a region are saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Those that exist, without zeros: private anonymous memory.
    Present,
    /// Those that differ from the file, and if `base` also the others, marked as such.
    Changed {
        /// Bytes of the region that the file covers, if they are carried.
        base: usize,
    },
    /// All of the first so many bytes that are not zero.
    All(usize),
}

/// A region with content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Saved {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) protection: usize,
    pub(crate) content: Content,
    /// A forked writer would not see it as it is now.
    pub(crate) in_freeze: bool,
}

pub(super) fn collect(subject: &Subject<'_>, meta: &mut Meta) -> Result<Vec<Saved>, Failed> {
    crate::requests::forget_saved();
    let failed = |errno: Errno| Failed::system("read /proc/self/smaps", errno);
    let fd = ulpm_sys::open(c"/proc/self/smaps", oflag::RDONLY | oflag::CLOEXEC).map_err(failed)?;
    let mut buffer = alloc::vec![0; 64 * 1024];
    let mut lines = Lines::new(fd, &mut buffer);
    let mut saved = Vec::new();
    let mut result = Ok(());
    let mut name = Vec::new();
    let mut current: Option<MapsLine<'static>> = None;
    while let Some(line) = lines.next() {
        if let Some(parsed) = MapsLine::parse(line) {
            name.clear();
            name.extend_from_slice(parsed.name);
            current = Some(MapsLine { name: b"", ..parsed });
        } else if let Some(flags) = VmFlags::parse(line)
            && let Some(header) = current.take()
        {
            result = add(subject, meta, &mut saved, &MapsLine { name: &name, ..header }, flags);
            if result.is_err() {
                break;
            }
        }
    }
    ulpm_sys::close(fd);
    result.map(|()| saved)
}

fn add(
    subject: &Subject<'_>,
    meta: &mut Meta,
    saved: &mut Vec<Saved>,
    line: &MapsLine<'_>,
    vm: VmFlags,
) -> Result<(), Failed> {
    let vdso = process::VDSO[0].load(Ordering::Relaxed);
    let is_vdso = line.start == vdso && vdso != 0;
    let kernels_own =
        matches!(line.name, b"[vvar]" | b"[vvar_vclock]" | b"[vsyscall]" | b"[uprobes]")
            || (line.name == b"[vdso]" && !is_vdso);
    if kernels_own || line.start == subject.table.address() {
        return Ok(());
    }
    if vm.hugetlb || vm.io || vm.uffd || vm.droppable {
        let why = match vm {
            VmFlags { hugetlb: true, .. } => "of huge pages (hugetlbfs)",
            VmFlags { io: true, .. } => "of a device",
            VmFlags { uffd: true, .. } => "that the program watches with userfaultfd",
            _ => "that the kernel may drop",
        };
        let (start, end, name) = (line.start, line.end, line.name.escape_ascii());
        return Err(unsupported(format_args!(
            "memory {start:#x}-{end:#x} {why} cannot be saved yet: {name}"
        )));
    }
    let protection = if line.read { prot::READ } else { 0 }
        | if line.write { prot::WRITE } else { 0 }
        | if line.exec { prot::EXEC } else { 0 };
    let mut region = Region {
        start: line.start as u64,
        end: line.end as u64,
        protection: u32::try_from(protection).unwrap_or(0),
        flags: flags(line, vm),
        kind: kind::ANONYMOUS,
        offset: line.offset,
        dev: line.dev,
        inode: line.inode,
        ..Region::default()
    };
    let content = if is_vdso {
        region.kind = kind::VDSO;
        region.offset = 0;
        Some(Content::All(line.end - line.start))
    } else if line.inode == 0 && !line.shared {
        region.offset = 0;
        Some(Content::Present)
    } else if let Some(id) = super::ipc::segment(subject, line)? {
        region.kind = kind::SEGMENT;
        region.inode = id;
        let parts = [line.dev, line.inode, line.offset, (line.end - line.start) as u64];
        let wins = subject.wins(SHARED_MEMORY, &parts)?;
        wins.then_some(Content::All(line.end - line.start))
    } else {
        file(subject, meta, line, &mut region)?
    };
    if let Some(content) = content {
        let in_freeze = line.shared || vm.dont_fork || vm.wipe_on_fork;
        saved.push(Saved { start: line.start, end: line.end, protection, content, in_freeze });
    }
    meta.regions.push(region);
    Ok(())
}

fn flags(line: &MapsLine<'_>, vm: VmFlags) -> u32 {
    [
        (line.shared, flag::SHARED),
        (vm.grows_down, flag::GROWS_DOWN),
        (vm.no_reserve, flag::NO_RESERVE),
        (vm.huge_page, flag::HUGE_PAGE),
        (vm.no_huge_page, flag::NO_HUGE_PAGE),
        (vm.dont_fork, flag::DONT_FORK),
        (vm.wipe_on_fork, flag::WIPE_ON_FORK),
        (vm.dont_dump, flag::DONT_DUMP),
        (vm.mergeable, flag::MERGEABLE),
        (vm.locked, flag::LOCKED),
        (line.shared && !vm.may_write, flag::READ_ONLY),
    ]
    .into_iter()
    .filter_map(|(set, flag)| set.then_some(flag))
    .sum()
}

/// A mapping of something with an inode.
fn file(
    subject: &Subject<'_>,
    meta: &Meta,
    line: &MapsLine<'_>,
    region: &mut Region,
) -> Result<Option<Content>, Failed> {
    let len = line.end - line.start;
    let other_name = if line.shared { other_name(line) } else { None };
    let line = &match &other_name {
        Some(name) => MapsLine { name, ..*line },
        None => *line,
    };
    let status = same_file(line);
    let parts = [line.dev, line.inode, line.offset, len as u64];
    let Some(status) = status else {
        // Deleted, or never had a name.
        if line.shared {
            if line.name == SECRET {
                return Err(unsupported(format_args!(
                    "memory that is hidden from the kernel (memfd_secret) cannot be saved"
                )));
            }
            if line.name == REQUESTS && crate::requests::save(line.start, len)? {
                // The kernel's memory comes in its place again.
                *region = Region { flags: 0, dev: 0, inode: 0, offset: 0, ..region.clone() };
                return Ok(Some(Content::All(len)));
            }
            region.kind = kind::SHARED_MEMORY;
            region.path = line.name.to_vec();
            // What is saved with a descriptor that leads to it is all of it.
            let key = (line.dev, line.inode);
            if meta.deleted.iter().any(|file| (file.dev, file.inode) == key) {
                return Ok(None);
            }
            let wins = subject.wins(SHARED_MEMORY, &parts)?;
            return Ok(wins.then_some(Content::All(len)));
        }
        // From now on it is memory like any other.
        region.offset = 0;
        region.inode = 0;
        return Ok(Some(Content::All(len)));
    };
    region.kind = kind::FILE;
    region.path = line.name.to_vec();
    region.file_len = u64::try_from(status.size).unwrap_or(0);
    region.mtime = [status.mtime, status.mtime_ns];
    if line.shared {
        // What is in memory only goes with the job; other files are where they are.
        let covered = region.file_len.saturating_sub(line.offset).min(len as u64);
        if !in_memory_only(line) || covered == 0 || !subject.wins(FILE_IN_MEMORY, &parts)? {
            return Ok(None);
        }
        region.flags |= flag::CARRIED;
        return Ok(Some(Content::All(usize::try_from(covered).unwrap_or(len))));
    }
    let regular = status.mode & ulpm_sys::mode::TYPE == ulpm_sys::mode::REGULAR;
    let carried = regular
        && if line.write {
            len <= MAX_CARRIED_WRITABLE
        } else {
            region.file_len <= MAX_CARRIED && subject.wins(CARRIED_FILE, &parts)?
        };
    let mut base = 0;
    if carried {
        region.flags |= flag::CARRIED;
        // Beyond its end a file cannot be read.
        let covered = region.file_len.saturating_sub(line.offset);
        base = page_up(usize::try_from(covered).unwrap_or(len)).min(len);
    }
    Ok(Some(Content::Changed { base }))
}

/// The file at the mapping's path, if it is still the one that is mapped.
///
/// Only the inode is compared: on btrfs and overlayfs the device numbers of maps and stat differ.
fn same_file(line: &MapsLine<'_>) -> Option<FileStatus> {
    if !line.name.starts_with(b"/") || line.name.ends_with(b" (deleted)") {
        return None;
    }
    let path = Text::<4097>::path(format_args!("{}", core::str::from_utf8(line.name).ok()?));
    ulpm_sys::stat(path.c_str()).ok().filter(|status| status.ino == line.inode)
}

/// The name of a file that was made under another, as sem_open(3) does: the mapping shows that one, deleted.
fn other_name(line: &MapsLine<'_>) -> Option<Vec<u8>> {
    const FOLDER: &[u8] = b"/dev/shm/";
    line.name.strip_prefix(FOLDER)?.strip_suffix(b" (deleted)")?;
    let mut names = Directory::open(c"/dev/shm").ok()?;
    while let Some(name) = names.next() {
        let whole = [FOLDER, name].concat();
        let named = MapsLine { name: &whole, ..*line };
        if same_file(&named).is_some() {
            return Some(whole);
        }
    }
    None
}

/// Whether a file lies on a file system that the next boot finds empty, as those of shm_open(3) and sem_open(3).
fn in_memory_only(line: &MapsLine<'_>) -> bool {
    /// include/uapi/linux/magic.h
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    let Ok(path) = core::str::from_utf8(line.name) else { return false };
    let path = Text::<4097>::path(format_args!("{path}"));
    let Ok(fd) = ulpm_sys::open(path.c_str(), oflag::PATH | oflag::CLOEXEC) else { return false };
    let found = ulpm_sys::filesystem(fd);
    ulpm_sys::close(fd);
    found == Ok(TMPFS_MAGIC)
}

/// Finds the pages of a region that are to be saved, in runs by address; `base` says whether they are
/// unchanged pages of a file.
///
/// # Errors
///
/// What `run` returns, and what the kernel says of its page map.
pub(crate) fn runs<E: From<Errno>>(
    pagemap: i32,
    saved: &Saved,
    mut run: impl FnMut(usize, usize, bool) -> Result<(), E>,
) -> Result<(), E> {
    match saved.content {
        Content::All(len) => {
            let len = page_up(len).min(saved.end - saved.start);
            run(saved.start, saved.start + readable(saved.start, len), false)
        }
        Content::Present => {
            existing(pagemap, saved.start, saved.end, false, |start, end| run(start, end, false))
        }
        Content::Changed { base } => {
            let base_end = saved.start + base;
            let mut at = saved.start;
            existing(pagemap, saved.start, saved.end, true, |start, end| {
                if at < start.min(base_end) {
                    run(at, start.min(base_end), true)?;
                }
                at = end;
                run(start, end, false)
            })?;
            if at < base_end { run(at, base_end, true) } else { Ok(()) }
        }
    }
}

/// How much of a mapping can be read: what is behind the end of its file cannot, and the reader would be killed (SIGBUS).
fn readable(start: usize, len: usize) -> usize {
    let can_read = |page: usize| ulpm_sys::is_readable(start + page * PAGE);
    let (mut readable, mut all) = (0, len / PAGE);
    if all == 0 || can_read(all - 1) {
        return len;
    }
    while readable < all {
        let page = usize::midpoint(readable, all);
        if can_read(page) { readable = page + 1 } else { all = page }
    }
    readable * PAGE
}

/// Runs of pages that exist and are not the shared zero page; of those that are the process's own if
/// `own`, and not a file's.
fn existing<E: From<Errno>>(
    pagemap: i32,
    start: usize,
    end: usize,
    own: bool,
    mut run: impl FnMut(usize, usize) -> Result<(), E>,
) -> Result<(), E> {
    let unwanted = page_is::PFN_ZERO | if own { page_is::FILE } else { 0 };
    let query = |guard| PageQuery {
        inverted: unwanted | guard,
        all: unwanted | guard,
        any: page_is::PRESENT | page_is::SWAPPED,
        reported: page_is::PRESENT | page_is::SWAPPED,
    };
    let mut found = [PageRegion::default(); 128];
    let mut at = start;
    // Kernels before 6.15 do not know guard pages, and refuse the bit.
    let mut guard = page_is::GUARD;
    while at < end {
        let (count, walked) =
            match ulpm_sys::pagemap_scan(pagemap, [at, end], query(guard), &mut found) {
                Ok(result) => result,
                Err(Errno::INVAL) if guard != 0 => {
                    guard = 0;
                    continue;
                }
                Err(Errno::NOTTY | Errno::INVAL) => {
                    return existing_by_pagemap(pagemap, at, end, own, run);
                }
                Err(errno) => return Err(errno.into()),
            };
        for region in &found[..count] {
            let bound = |value| usize::try_from(value).unwrap_or(end);
            run(bound(region.start), bound(region.end))?;
        }
        if walked <= at {
            break;
        }
        at = walked;
    }
    Ok(())
}

/// As [`existing`] for kernels before 6.7, from the bits of pagemap entries
/// (Documentation/admin-guide/mm/pagemap.rst).
fn existing_by_pagemap<E: From<Errno>>(
    pagemap: i32,
    start: usize,
    end: usize,
    own: bool,
    mut run: impl FnMut(usize, usize) -> Result<(), E>,
) -> Result<(), E> {
    const FILE_OR_SHARED: u64 = 1 << 61;
    const SWAPPED: u64 = 1 << 62;
    const PRESENT: u64 = 1 << 63;
    let mut buffer = [0; 4096];
    let mut open: Option<usize> = None;
    let mut at = start;
    while at < end {
        let wanted = ((end - at) / PAGE).min(buffer.len() / 8) * 8;
        let got = ulpm_sys::pread(pagemap, &mut buffer[..wanted], at / PAGE * 8)?;
        if got == 0 {
            break;
        }
        let (entries, _) = buffer[..got].as_chunks::<8>();
        for entry in entries {
            let entry = u64::from_le_bytes(*entry);
            let exists = entry & (PRESENT | SWAPPED) != 0 && !(own && entry & FILE_OR_SHARED != 0);
            match (exists, open) {
                (true, None) => open = Some(at),
                (false, Some(from)) => {
                    run(from, at)?;
                    open = None;
                }
                _ => {}
            }
            at += PAGE;
        }
    }
    match open {
        Some(from) => run(from, at),
        None => Ok(()),
    }
}
