//! The paths of files that the program has inotify watch.
//!
//! The kernel tells by which inode it knows a file, and no path. So the paths are kept here, in memory of the
//! program's own that is saved with it. Which of them leads to which file is found out when it matters, by
//! asking the kernel: what stands here is only a guess, and may be old, half written, or overwritten.

use core::ffi::c_char;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use ulpm_sys::arch::{nr, syscall};
use ulpm_sys::fmt::Text;
use ulpm_sys::{AT_FDCWD, inotify, map, oflag, prot};

/// Bytes for paths. When they are used up, the oldest are overwritten.
const LEN: usize = 16 << 20;

/// O_NOFOLLOW of include/uapi/asm-generic/fcntl.h.
const NOFOLLOW: i32 = 0o400_000;

static ARENA: AtomicPtr<AtomicU8> = AtomicPtr::new(core::ptr::null_mut());
/// Bytes that were ever used.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Paths that were noted lately, by a hash.
static SEEN: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

/// Notes the path of a file that is to be watched with these bits. It need not exist.
///
/// Async-signal-safe, and without a lock, so that a forked child finds none held.
pub(crate) fn note(path: *const c_char, mask: u32) {
    let follow = if mask & inotify::bit::DONT_FOLLOW == 0 { 0 } else { NOFOLLOW };
    let flags = (oflag::PATH | oflag::CLOEXEC | follow) as usize;
    // SAFETY: the kernel looks at the pointer, and refuses one that is bad, as it is going to do for the
    // program. The descriptor is gone when the program goes on.
    let opened =
        unsafe { syscall(nr::OPENAT, [AT_FDCWD as isize as usize, path.addr(), flags, 0, 0, 0]) };
    let Ok(fd) = ulpm_sys::check(opened) else { return };
    let Ok(fd) = i32::try_from(fd) else { return };
    let link = Text::<64>::path(format_args!("/proc/thread-self/fd/{fd}"));
    let mut buffer = [0; 4096];
    let found = ulpm_sys::readlink(link.c_str(), &mut buffer);
    ulpm_sys::close(fd);
    if let Ok(path) = found {
        keep(path);
    }
}

fn keep(path: &[u8]) {
    let hash = path.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let seen = &SEEN[usize::try_from(hash >> 54).unwrap_or(0)];
    if seen.load(Ordering::Relaxed) == hash {
        return;
    }
    let Some(arena) = arena() else { return };
    let len = path.len() + 1;
    let at = USED.fetch_add(len, Ordering::Relaxed);
    if at / LEN != (at + len) / LEN {
        // What is overwritten from here on is to be noted again.
        SEEN.iter().for_each(|seen| seen.store(0, Ordering::Relaxed));
    }
    for (place, &byte) in (at..).zip(path.iter().chain(&[0])) {
        arena[place % LEN].store(byte, Ordering::Relaxed);
    }
    seen.store(hash, Ordering::Relaxed);
}

/// The memory, made when it is first needed.
fn arena() -> Option<&'static [AtomicU8]> {
    let mut found = ARENA.load(Ordering::Acquire);
    if found.is_null() {
        // SAFETY: nothing is at an address that the kernel chooses.
        let made = unsafe {
            ulpm_sys::mmap(
                0,
                LEN,
                prot::READ | prot::WRITE,
                map::PRIVATE | map::ANONYMOUS | map::NORESERVE,
                -1,
                0,
            )
        };
        let new = core::ptr::with_exposed_provenance_mut(made.ok()?);
        let null = core::ptr::null_mut();
        found = match ARENA.compare_exchange(null, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => new,
            Err(first) => {
                // SAFETY: nobody knows of it.
                unsafe { ulpm_sys::munmap(new.addr(), LEN) };
                first
            }
        };
    }
    // SAFETY: this many bytes are mapped there, zero at first, for as long as the process lives.
    Some(unsafe { core::slice::from_raw_parts(found, LEN) })
}

/// Calls `with` for each path, each with a NUL behind it, until it returns false.
///
/// Nobody may note one meanwhile.
pub(crate) fn each(mut with: impl FnMut(&[u8]) -> bool) {
    let arena = ARENA.load(Ordering::Acquire);
    if arena.is_null() {
        return;
    }
    let len = USED.load(Ordering::Relaxed).min(LEN);
    // SAFETY: as above; the program stands still.
    let bytes = unsafe { core::slice::from_raw_parts(arena.cast::<u8>(), len) };
    for path in bytes.split_inclusive(|&byte| byte == 0) {
        if path.first() == Some(&b'/') && path.last() == Some(&0) && !with(path) {
            return;
        }
    }
}
