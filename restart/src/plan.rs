//! The list of system calls that turns this process's memory into that of an image.

use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

use ulpm_image::PAGE;
use ulpm_image::meta::{Meta, Region, region_flag as flag, region_kind as kind};
use ulpm_protocol::restart::RestartInfo;
use ulpm_protocol::table;
use ulpm_restorer::Operation;
use ulpm_sys::arch::nr;
use ulpm_sys::vdso::{Functions, redirect};
use ulpm_sys::{ipc, map, page_up, prot};

use crate::image_file::ImageFile;
use crate::objects::Backing;
use crate::vdso::Vdso;

/// Everything that a process is rebuilt from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The image.
    pub image: &'a ImageFile,
    /// What its regions are mapped from.
    pub backings: &'a [Backing],
    /// The image file, at a descriptor that the process does not use.
    pub image_fd: RawFd,
    /// The job table, likewise.
    pub table_fd: RawFd,
    /// Where the restorer reports a failure, likewise.
    pub failure_fd: RawFd,
    /// The job table itself, which knows the System V segments.
    pub table: table::Table,
    /// Above it, every descriptor is ours.
    pub base: RawFd,
    /// What the process is told; the window is filled in here.
    pub info: RestartInfo,
}

/// Highest address of user space (47 bits), less the page that the kernel keeps free.
const USER_END: usize = (1 << 47) - PAGE;
/// Lowest address that is used for the window.
const USER_START: usize = 1 << 20;
const STACK_LEN: usize = 64 * 1024;

/// `struct prctl_mm_map` (include/uapi/linux/prctl.h).
#[derive(Debug)]
#[repr(C)]
struct MemoryMap {
    fields: [u64; 11],
    auxv: u64,
    auxv_len: u32,
    exe_fd: u32,
}

/// Addresses of the parts of the window.
#[derive(Clone, Copy, Debug)]
struct Window {
    start: usize,
    stack_end: usize,
    data: usize,
    old_vdso: usize,
    operations: usize,
    end: usize,
    /// Where this kernel's vDSO waits, and stays if it cannot go to its old address.
    vdso: usize,
    block_end: usize,
}

/// Rebuilds this process's memory and goes on in it; returns only if that cannot even be begun.
///
/// # Safety
///
/// The calling thread is the only one. All descriptors of `source` are open.
pub unsafe fn enter(source: &Source<'_>) -> String {
    // SAFETY: the caller vouches for the process.
    match unsafe { prepare(source) } {
        Ok((window, failure_fd)) => {
            let code = std::ptr::with_exposed_provenance::<()>(window.start);
            // SAFETY: the window begins with the restorer's code, which takes these arguments.
            let run: extern "C" fn(usize, usize) -> ! = unsafe { std::mem::transmute(code) };
            run(window.operations, failure_fd)
        }
        Err(text) => text,
    }
}

/// # Safety
///
/// As [`enter`].
unsafe fn prepare(source: &Source<'_>) -> Result<(Window, usize), String> {
    let meta = &source.image.meta;
    let maps = std::fs::read_to_string("/proc/self/maps")
        .map_err(|error| format!("cannot read /proc/self/maps: {error}"))?;
    let vdso = Vdso::of_this_process(&maps).ok_or("this kernel has no vDSO")?;
    let old_vdso = old_vdso(source)?;

    let operations_len = (meta.regions.len() * 8 + source.image.extents.len() + 64) * 64;
    let auxv_len = meta.memory_map.auxv.len();
    let data_len = page_up(size_of::<RestartInfo>() + 2 * size_of::<MemoryMap>() + auxv_len + 64);
    let mut at = PAGE + STACK_LEN;
    let mut part = |len: usize| {
        let start = at;
        at += page_up(len);
        start
    };
    let (data, copy, operations) = (part(data_len), part(old_vdso.len()), part(operations_len));
    let home = part(vdso.len());
    let attachments = attachments(source)?;
    let start = hole(at, meta, &attachments, &maps, &vdso)
        .ok_or("no free range of addresses is long enough")?;
    let window = Window {
        start,
        stack_end: start + PAGE + STACK_LEN,
        data: start + data,
        old_vdso: start + copy,
        operations: start + operations,
        end: start + home,
        vdso: start + home,
        block_end: start + at,
    };
    let flags = map::PRIVATE | map::ANONYMOUS | map::FIXED_NOREPLACE;
    // SAFETY: the range is free.
    let mapped = unsafe { ulpm_sys::mmap(start, at, prot::READ | prot::WRITE, flags, -1, 0) };
    mapped.map_err(|errno| format!("cannot map the restorer's window: {errno}"))?;

    let stays = stays(source, &old_vdso, &vdso);
    let old_at = usize::try_from(meta.process.vdso[0]).unwrap_or(0);
    let code_at = if stays { old_at } else { window.vdso + (vdso.code - vdso.start) };
    let mut info = source.info;
    info.vdso = [code_at as u64, (vdso.end - vdso.code) as u64];
    info.len = size_of::<RestartInfo>() as u64;
    info.window = [start as u64, (window.end - start) as u64];
    let info_at = window.data;
    let memory_map_at = info_at + size_of::<RestartInfo>();
    let auxv_at = memory_map_at + 2 * size_of::<MemoryMap>();
    let auxv_len32 = u32::try_from(auxv_len).map_err(|_| "the auxiliary vector is too long")?;
    let exe = program_file(source).map_or(u32::MAX, RawFd::cast_unsigned);
    let memory_maps = [u32::MAX, exe].map(|exe_fd| MemoryMap {
        fields: meta.memory_map.fields,
        auxv: auxv_at as u64,
        auxv_len: auxv_len32,
        exe_fd,
    });
    let kernels = (&vdso, old_vdso.len(), stays);
    let list =
        operations_of(source, &window, &attachments, &maps, kernels, [memory_map_at, info_at])?;
    if list.len() * 64 > operations_len {
        return Err("the list of operations is longer than was reckoned".into());
    }
    let code = ulpm_restorer::code();
    // SAFETY: each part was reckoned to be as long as what is written to it, and the window is ours.
    unsafe {
        let pointer = std::ptr::with_exposed_provenance_mut::<u8>;
        pointer(start).copy_from_nonoverlapping(code.as_ptr(), code.len());
        pointer(info_at).cast::<RestartInfo>().write_unaligned(info);
        pointer(memory_map_at).cast::<[MemoryMap; 2]>().write_unaligned(memory_maps);
        pointer(auxv_at).copy_from_nonoverlapping(meta.memory_map.auxv.as_ptr(), auxv_len);
        let mut copy = old_vdso;
        if !stays && !copy.is_empty() {
            let own = vdso.bytes();
            let functions = Functions::of(own).ok_or("this kernel's vDSO cannot be read")?;
            redirect(&mut copy, |name| Some(code_at + functions.find(own, name)?))?;
        }
        pointer(window.old_vdso).copy_from_nonoverlapping(copy.as_ptr(), copy.len());
        pointer(window.operations)
            .cast::<Operation>()
            .copy_from_nonoverlapping(list.as_ptr(), list.len());
        if libc::mprotect(pointer(start).cast(), PAGE, libc::PROT_READ | libc::PROT_EXEC) != 0 {
            return Err("cannot make the restorer's code executable".into());
        }
    }
    let failure_fd = usize::try_from(source.failure_fd).unwrap_or(2);
    Ok((window, failure_fd))
}

/// The descriptor from which the program's own file is mapped.
fn program_file(source: &Source<'_>) -> Option<RawFd> {
    let meta = &source.image.meta;
    let is_program = |region: &Region| region.kind == kind::FILE && region.path == meta.process.exe;
    let index = meta.regions.iter().position(is_program)?;
    match source.backings[index] {
        Backing::Object(fd) => Some(fd),
        _ => None,
    }
}

/// The old vDSO's bytes, from the image.
fn old_vdso(source: &Source<'_>) -> Result<Vec<u8>, String> {
    let Some(region) = source.image.meta.regions.iter().find(|region| region.kind == kind::VDSO)
    else {
        return Ok(Vec::new());
    };
    let word = |value: u64| usize::try_from(value).unwrap_or(0);
    let mut bytes = vec![0; word(region.end - region.start)];
    for (offset, extent) in &source.image.extents {
        if (region.start..region.end).contains(&extent.address) {
            let at = word(extent.address - region.start);
            let place =
                bytes.get_mut(at..at + extent.len()).ok_or("the image's vDSO is damaged")?;
            // The image's own file was closed with all descriptors that are not the process's.
            let read = ulpm_sys::pread(source.image_fd, place, word(*offset));
            if read != Ok(extent.len()) {
                return Err(format!("cannot read the image's vDSO: {read:?}"));
            }
        }
    }
    Ok(bytes)
}

/// Whether this kernel's vDSO can take the place of the old one, and tells the time that the program is to read.
fn stays(source: &Source<'_>, old: &[u8], new: &Vdso) -> bool {
    let meta = &source.image.meta;
    let offsets = &source.table.header().clock_offsets;
    if offsets.iter().any(|offset| offset.load(Ordering::Relaxed) != 0) {
        return false;
    }
    let at = usize::try_from(meta.process.vdso[0]).unwrap_or(0);
    let data = new.code - new.start;
    let free = at >= data
        && !meta.regions.iter().any(|region| {
            region.kind != kind::VDSO
                && (region.start as usize) < at + (new.end - new.code)
                && (region.end as usize) > at - data
        });
    old == new.bytes() && free
}

/// A range that neither the old nor the new memory uses, nor the place of the vDSO.
fn hole(
    len: usize,
    meta: &Meta,
    attachments: &[Attachment],
    maps: &str,
    vdso: &Vdso,
) -> Option<usize> {
    let mut taken: Vec<(usize, usize)> = maps
        .lines()
        .filter_map(|line| {
            let (start, end) = line.split_once(' ')?.0.split_once('-')?;
            let number = |digits| usize::from_str_radix(digits, 16).ok();
            Some((number(start)?, number(end)?))
        })
        .collect();
    let word = |value: u64| usize::try_from(value).unwrap_or(USER_END);
    taken.extend(meta.regions.iter().map(|region| (word(region.start), word(region.end))));
    taken.extend(attachments.iter().map(|at| (at.start, at.start + at.len)));
    let process = &meta.process;
    taken.push((word(process.table), word(process.table) + page_up(table::LEN)));
    let at = word(process.vdso[0]);
    taken.push((at.saturating_sub(vdso.len()), at + vdso.len()));
    taken.retain(|&(start, _)| start < USER_END); // Not the vsyscall page.
    taken.sort_unstable();
    // A growing stack or heap must not run into the vDSO that may stay in the hole: away from both, as
    // far as there is room. A program that has taken all the rest has left its own growth no more.
    [64 << 20, 1 << 20, 0].into_iter().find_map(|margin| highest_hole(&taken, len, margin))
}

/// The highest range between `taken` ones, in their order, that keeps `margin` from both neighbours: the
/// bottom belongs to programs that are not relocatable.
fn highest_hole(taken: &[(usize, usize)], len: usize, margin: usize) -> Option<usize> {
    let mut from = USER_START;
    let mut found = None;
    for &(start, end) in taken.iter().chain(&[(USER_END, USER_END)]) {
        if start.saturating_sub(from) >= len + 2 * margin {
            found = Some((start - margin - len) & !(PAGE - 1));
        }
        from = from.max(end);
    }
    found
}

/// A segment as it was attached, of which the program may have changed parts since.
#[derive(Clone, Copy, Debug)]
struct Attachment {
    start: usize,
    /// In whole pages.
    len: usize,
    /// The kernel's id.
    id: i32,
    flags: usize,
}

/// The attachments that the regions of segments are parts of.
fn attachments(source: &Source<'_>) -> Result<Vec<Attachment>, String> {
    let mut found: Vec<Attachment> = Vec::new();
    for region in source.image.meta.regions.iter().filter(|region| region.kind == kind::SEGMENT) {
        let unknown = || format!("the image does not know System V segment {}", region.inode);
        let virt = i32::try_from(region.inode).map_err(|_| unknown())?;
        let memory = ipc::Kind::Memory;
        let object = source.table.object(memory as u32, virt).ok_or_else(unknown)?;
        let id = object.real();
        let size = ipc::status(memory, id).map_err(|_| unknown())?.size(memory);
        let (start, _) = bounds(region);
        let offset = usize::try_from(region.offset).map_err(|_| unknown())?;
        let start = start.checked_sub(offset).ok_or_else(unknown)?;
        let exec = if region.protection as usize & prot::EXEC != 0 { ipc::EXEC } else { 0 };
        let read_only = if region.flags & flag::READ_ONLY != 0 { ipc::RDONLY } else { 0 };
        match found.iter_mut().find(|other| (other.start, other.id) == (start, id)) {
            Some(other) => other.flags |= exec,
            None => found.push(Attachment {
                start,
                len: page_up(usize::try_from(size).map_err(|_| unknown())?),
                id,
                flags: exec | read_only | ipc::REMAP,
            }),
        }
    }
    Ok(found)
}

/// Attaches the segments, and takes away what the program has taken away of them. Others may lie there now.
fn attach(attachments: &[Attachment], meta: &Meta, list: &mut Vec<Operation>) {
    for at in attachments {
        let id = at.id as isize as usize;
        list.push(Operation::exactly(at.start, nr::SHMAT, [id, at.start, at.flags, 0, 0, 0]));
        let mut reached = at.start;
        let end = at.start + at.len;
        let parts = meta.regions.iter().filter(|region| region.kind == kind::SEGMENT).map(bounds);
        let inside = parts.filter(|&(start, _)| (at.start..end).contains(&start));
        for (start, len) in inside.chain([(end, 0)]) {
            if start > reached {
                let gap = [reached, start - reached, 0, 0, 0, 0];
                list.push(Operation::succeed(nr::MUNMAP, gap));
            }
            reached = start + len;
        }
    }
}

/// The length of the job table where it is mapped: the library of an older release knew a shorter one, and
/// something may lie behind that.
fn table_len(meta: &Meta) -> usize {
    let at = meta.process.table;
    let next = meta.regions.iter().map(|region| region.start).find(|&start| start > at);
    next.map_or(table::LEN, |next| table::LEN.min(usize::try_from(next - at).unwrap_or(0)))
}

fn operations_of(
    source: &Source<'_>,
    window: &Window,
    attachments: &[Attachment],
    maps: &str,
    (vdso, old_vdso_len, stays): (&Vdso, usize, bool),
    [memory_map_at, info_at]: [usize; 2],
) -> Result<Vec<Operation>, String> {
    let meta = &source.image.meta;
    let fd = |fd: RawFd| fd as isize as usize;
    let mut list = Vec::with_capacity(meta.regions.len() * 8 + source.image.extents.len() + 64);

    // The kernel writes to libc's area whenever this thread returns to user mode.
    list.extend(end_rseq());
    // Out of the way, piece by piece: one call cannot move several mappings.
    let to_window = window.vdso.wrapping_sub(vdso.start);
    let pieces = kernel_mappings(maps, vdso);
    for &(start, end) in &pieces {
        list.push(move_mapping(start, end - start, start.wrapping_add(to_window)));
    }
    let below = [0, window.start, 0, 0, 0, 0];
    let above = [window.block_end, USER_END - window.block_end, 0, 0, 0, 0];
    list.push(Operation::succeed(nr::MUNMAP, below));
    list.push(Operation::succeed(nr::MUNMAP, above));

    attach(attachments, meta, &mut list);
    let mut loaded: Vec<u64> = source.image.extents.iter().map(|(_, at)| at.address).collect();
    loaded.sort_unstable();
    for (region, backing) in meta.regions.iter().zip(source.backings) {
        let first = loaded.partition_point(|&address| address < region.start);
        let is_empty = loaded.get(first).is_none_or(|&address| address >= region.end);
        list.extend(map_region(region, *backing, is_empty));
    }
    let table_at = usize::try_from(meta.process.table).map_err(|_| "no job table")?;
    let table_flags = map::SHARED | map::FIXED;
    let table_len = table_len(meta);
    let table =
        [table_at, table_len, prot::READ | prot::WRITE, table_flags, fd(source.table_fd), 0];
    list.push(Operation::exactly(table_at, nr::MMAP, table));

    list.extend(load(source));
    for (region, backing) in meta.regions.iter().zip(source.backings) {
        if region.kind != kind::VDSO {
            finish_region(region, *backing, &mut list);
        }
    }

    if let Some(region) = meta.regions.iter().find(|region| region.kind == kind::VDSO) {
        let at = usize::try_from(region.start).unwrap_or(0);
        if stays {
            let home = at.wrapping_sub(vdso.code);
            for &(start, end) in &pieces {
                let from = start.wrapping_add(to_window);
                list.push(move_mapping(from, end - start, start.wrapping_add(home)));
            }
        } else {
            list.push(move_mapping(window.old_vdso, old_vdso_len, at));
            list.push(Operation::succeed(
                nr::MPROTECT,
                [at, old_vdso_len, prot::READ | prot::EXEC, 0, 0, 0],
            ));
        }
    }
    let len = size_of::<MemoryMap>();
    // With the program's file, which needs CAP_CHECKPOINT_RESTORE; then without, which leaves it.
    let set = |at| [ulpm_sys::pr::SET_MM, ulpm_sys::pr::SET_MM_MAP, at, len, 0, 0];
    list.push(Operation::attempt(nr::PRCTL, set(memory_map_at + len)));
    list.push(Operation::succeed(nr::PRCTL, set(memory_map_at)));
    let last = u32::MAX as usize;
    list.push(Operation::succeed(nr::CLOSE_RANGE, [fd(source.base), last, 0, 0, 0, 0]));
    let entry = usize::try_from(meta.process.entry).map_err(|_| "no entry")?;
    list.push(Operation::jump(entry, window.stack_end, info_at));
    Ok(list)
}

/// Ends the registration of this thread's rseq area, where libc (2.35 and later) has made one.
fn end_rseq() -> Option<Operation> {
    const RSEQ_FLAG_UNREGISTER: usize = 1;
    const SIGNATURE: usize = 0x5305_3053; // RSEQ_SIG of glibc on x86
    // SAFETY: the names are NUL-terminated, and glibc defines the objects with these types.
    let (offset, size) = unsafe {
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>();
        let size = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()).cast::<u32>();
        (offset.as_ref()?, size.as_ref()?)
    };
    if *size == 0 {
        return None;
    }
    let mut thread_pointer = 0usize;
    let get = [ulpm_sys::arch::prctl::GET_FS, (&raw mut thread_pointer).addr(), 0, 0, 0, 0];
    // SAFETY: the call stores one word.
    unsafe { ulpm_sys::arch::syscall(nr::ARCH_PRCTL, get) };
    let area = thread_pointer.wrapping_add_signed(*offset);
    // Registered with the length that the kernel uses, or with the first one that there was.
    let len = (*size as usize).next_multiple_of(32).max(32);
    Some(Operation::succeed(nr::RSEQ, [area, len, RSEQ_FLAG_UNREGISTER, SIGNATURE, 0, 0]))
}

fn move_mapping(from: usize, len: usize, to: usize) -> Operation {
    // MREMAP_MAYMOVE | MREMAP_FIXED
    Operation::exactly(to, nr::MREMAP, [from, len, len, 3, to, 0])
}

/// The mappings of the vDSO and its data.
fn kernel_mappings(maps: &str, vdso: &Vdso) -> Vec<(usize, usize)> {
    maps.lines()
        .filter_map(|line| {
            let (start, end) = line.split_once(' ')?.0.split_once('-')?;
            let number = |digits| usize::from_str_radix(digits, 16).ok();
            Some((number(start)?, number(end)?))
        })
        .filter(|&(start, end)| vdso.start <= start && end <= vdso.end)
        .collect()
}

fn bounds(region: &Region) -> (usize, usize) {
    let word = |value: u64| usize::try_from(value).unwrap_or(0);
    (word(region.start), word(region.end - region.start))
}

/// Maps a region so that its pages can be loaded, if there are any.
fn map_region(region: &Region, backing: Backing, is_empty: bool) -> Vec<Operation> {
    let (start, len) = bounds(region);
    let has = |flag| region.flags & flag != 0;
    let mut flags = map::FIXED | if has(flag::SHARED) { map::SHARED } else { map::PRIVATE };
    if has(flag::NO_RESERVE) {
        flags |= map::NORESERVE;
    }
    let mut protection = region.protection as usize;
    let (fd, offset) = match backing {
        Backing::Vdso | Backing::Segment => return Vec::new(),
        Backing::Object(fd) | Backing::Filled(fd) => {
            (fd, usize::try_from(region.offset).unwrap_or(0))
        }
        Backing::Anonymous => {
            flags |= map::ANONYMOUS;
            if has(flag::GROWS_DOWN) {
                flags |= map::GROWSDOWN | map::STACK;
            }
            (-1, 0)
        }
    };
    // What is only reserved may be more than the kernel lets anybody write to.
    if loads(backing) && !is_empty {
        protection |= prot::READ | prot::WRITE;
    }
    let fd = fd as isize as usize;
    let mut list =
        vec![Operation::exactly(start, nr::MMAP, [start, len, protection, flags, fd, offset])];
    for (flag, advice) in [(flag::HUGE_PAGE, 14), (flag::NO_HUGE_PAGE, 15)] {
        if has(flag) {
            list.push(Operation::attempt(nr::MADVISE, [start, len, advice, 0, 0, 0]));
        }
    }
    list
}

/// Whether the pages of the image are read to a region. Others had their content when they were made.
fn loads(backing: Backing) -> bool {
    !matches!(backing, Backing::Filled(_) | Backing::Segment)
}

/// Reads the pages of the image to their places.
fn load<'a>(source: &'a Source<'_>) -> impl Iterator<Item = Operation> + 'a {
    let vdso = source.image.meta.regions.iter().find(|region| region.kind == kind::VDSO);
    let is_vdso = move |address| vdso.is_some_and(|vdso| (vdso.start..vdso.end).contains(&address));
    let image_fd = source.image_fd as isize as usize;
    let regions = source.image.meta.regions.iter().zip(source.backings);
    let filled: Vec<_> = regions.filter(|(_, backing)| !loads(**backing)).collect();
    let is_filled = move |address| {
        filled.iter().any(|(region, _)| (region.start..region.end).contains(&address))
    };
    source
        .image
        .extents
        .iter()
        // Unchanged pages of a file come with the file, or with what was put together in its place.
        .filter(move |(_, extent)| {
            !extent.base && !is_vdso(extent.address) && !is_filled(extent.address)
        })
        .map(move |&(offset, extent)| {
            let word = |value: u64| usize::try_from(value).unwrap_or(0);
            let arguments = [image_fd, word(extent.address), extent.len(), word(offset), 0, 0];
            Operation::exactly(extent.len(), nr::PREAD64, arguments)
        })
}

/// Gives a region its protection and what was asked for it.
fn finish_region(region: &Region, backing: Backing, list: &mut Vec<Operation>) {
    let (start, len) = bounds(region);
    let protection = region.protection as usize;
    if backing == Backing::Segment
        || loads(backing) && protection & (prot::READ | prot::WRITE) != prot::READ | prot::WRITE
    {
        list.push(Operation::succeed(nr::MPROTECT, [start, len, protection, 0, 0, 0]));
    }
    // include/uapi/asm-generic/mman-common.h
    for (flag, advice) in [
        (flag::DONT_FORK, 10),
        (flag::WIPE_ON_FORK, 18),
        (flag::DONT_DUMP, 16),
        (flag::MERGEABLE, 12),
    ] {
        if region.flags & flag != 0 {
            list.push(Operation::attempt(nr::MADVISE, [start, len, advice, 0, 0, 0]));
        }
    }
    if region.flags & flag::LOCKED != 0 {
        const MLOCK: usize = 149;
        list.push(Operation::attempt(MLOCK, [start, len, 0, 0, 0, 0]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_hole_with_room_on_both_sides() {
        let taken =
            [(USER_START, 0x1000_0000), (0x1010_0000, 0x2000_0000), (0x2001_0000, USER_END)];
        assert_eq!(highest_hole(&taken, 0x1000, 0x8000), Some(0x1010_0000 - 0x9000));
        assert_eq!(highest_hole(&taken, 0x1_0000, 0), Some(0x2000_0000));
        assert_eq!(highest_hole(&taken, 0x10_0000, 0x1000), None);
    }
}
