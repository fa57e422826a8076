//! System calls, one function each.
//!
//! A function is safe when every pointer that it hands to the kernel stems from a reference or slice
//! which outlives the call, and nothing that the call changes can break a promise of the language.
//! That argument holds for each `SAFETY` below that says "borrowed".

use core::ffi::CStr;
use core::sync::atomic::AtomicU32;

use crate::Errno;
use crate::arch::{nr, syscall};

/// Splits a result into value and error.
///
/// # Errors
///
/// The kernel's.
pub fn check(returned: usize) -> Result<usize, Errno> {
    Errno::check(returned)
}

/// A signed number as the register that carries it.
#[must_use]
pub const fn word(value: i32) -> usize {
    value as isize as usize
}

/// What a call that returns an int has left in its register.
#[expect(clippy::cast_possible_truncation, reason = "the kernel returns an int")]
pub(crate) const fn int(value: usize) -> i32 {
    value as i32
}

/// `AT_FDCWD`.
pub const AT_FDCWD: i32 = -100;

/// `open(2)` flags, from include/uapi/asm-generic/fcntl.h.
#[expect(missing_docs, reason = "open(2)")]
pub mod oflag {
    pub const RDONLY: i32 = 0;
    pub const WRONLY: i32 = 1;
    pub const RDWR: i32 = 2;
    pub const ACCMODE: i32 = 3;
    pub const CREAT: i32 = 0o100;
    pub const EXCL: i32 = 0o200;
    pub const TRUNC: i32 = 0o1000;
    pub const NONBLOCK: i32 = 0o4000;
    pub const DIRECT: i32 = 0o40000;
    pub const CLOEXEC: i32 = 0o2_000_000;
    pub const PATH: i32 = 0o10_000_000;
}

/// `mmap(2)` protection.
#[expect(missing_docs, reason = "mmap(2)")]
pub mod prot {
    pub const NONE: usize = 0;
    pub const READ: usize = 1;
    pub const WRITE: usize = 2;
    pub const EXEC: usize = 4;
}

/// `mmap(2)` flags.
#[expect(missing_docs, reason = "mmap(2)")]
pub mod map {
    pub const SHARED: usize = 1;
    pub const PRIVATE: usize = 2;
    pub const FIXED: usize = 0x10;
    pub const ANONYMOUS: usize = 0x20;
    pub const GROWSDOWN: usize = 0x100;
    pub const NORESERVE: usize = 0x4000;
    pub const STACK: usize = 0x20000;
    pub const FIXED_NOREPLACE: usize = 0x10_0000;
}

/// Writes some of `bytes`.
///
/// # Errors
///
/// The kernel's.
pub fn write(fd: i32, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::WRITE, [word(fd), bytes.as_ptr().addr(), bytes.len(), 0, 0, 0]) })
}

/// Writes `len` bytes of memory that need not be there.
///
/// # Errors
///
/// FAULT, where a reference could not have been made; else the kernel's.
pub fn write_memory(fd: i32, address: usize, len: usize) -> Result<usize, Errno> {
    // SAFETY: the kernel only reads, and checks the range itself.
    check(unsafe { syscall(nr::WRITE, [word(fd), address, len, 0, 0, 0]) })
}

/// Reads into `bytes`.
///
/// # Errors
///
/// The kernel's.
pub fn read(fd: i32, bytes: &mut [u8]) -> Result<usize, Errno> {
    let at = bytes.as_mut_ptr().addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::READ, [word(fd), at, bytes.len(), 0, 0, 0]) })
}

/// Opens `path`.
///
/// # Errors
///
/// The kernel's.
pub fn open(path: &CStr, flags: i32) -> Result<i32, Errno> {
    let path = path.as_ptr().addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::OPENAT, [word(AT_FDCWD), path, word(flags), 0o600, 0, 0]) }).map(int)
}

/// Closes `fd`.
pub fn close(fd: i32) {
    // SAFETY: no memory is involved. Linux releases the descriptor whatever it returns.
    unsafe { syscall(nr::CLOSE, [word(fd), 0, 0, 0, 0, 0]) };
}

/// A descriptor that is closed when it is dropped.
#[derive(Debug)]
pub struct OwnedFd(i32);

impl OwnedFd {
    /// Takes over a descriptor that nothing else closes.
    #[must_use]
    pub const fn new(fd: i32) -> Self {
        Self(fd)
    }

    /// Its number, for as long as it is open.
    #[must_use]
    pub const fn get(&self) -> i32 {
        self.0
    }
}

impl Drop for OwnedFd {
    fn drop(&mut self) {
        close(self.0);
    }
}

/// Closes all descriptors from `first` on, in a table of this thread's own if `unshare`.
///
/// # Errors
///
/// NOSYS before Linux 5.9.
pub fn close_range(first: u32, last: u32, unshare: bool) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    check(unsafe {
        let flags = if unshare { 2 } else { 0 };
        syscall(nr::CLOSE_RANGE, [first as usize, last as usize, flags, 0, 0, 0])
    })
    .map(drop)
}

/// Reads a symbolic link; a target that is longer than `buffer` is cut.
///
/// # Errors
///
/// The kernel's.
pub fn readlink<'a>(path: &CStr, buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
    let at = buffer.as_mut_ptr().addr();
    // SAFETY: borrowed.
    let len = check(unsafe {
        syscall(nr::READLINKAT, [word(AT_FDCWD), path.as_ptr().addr(), at, buffer.len(), 0, 0])
    })?;
    Ok(&buffer[..len])
}

/// Gives a file another name, which it takes from any other file.
///
/// # Errors
///
/// The kernel's.
pub fn rename(from: &CStr, to: &CStr) -> Result<(), Errno> {
    let here = word(AT_FDCWD);
    let [from, to] = [from, to].map(|path| path.as_ptr().addr());
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::RENAMEAT, [here, from, here, to, 0, 0]) }).map(drop)
}

/// Removes the name of a file.
///
/// # Errors
///
/// The kernel's.
pub fn unlink(path: &CStr) -> Result<(), Errno> {
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::UNLINKAT, [word(AT_FDCWD), path.as_ptr().addr(), 0, 0, 0, 0]) })
        .map(drop)
}

/// `struct stat` of x86-64 (arch/x86/include/uapi/asm/stat.h).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[expect(missing_docs, reason = "stat(3type)")]
pub struct FileStatus {
    pub dev: u64,
    pub ino: u64,
    pub nlink: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pad: u32,
    pub rdev: u64,
    pub size: i64,
    pub block_len: i64,
    pub blocks: i64,
    times: [i64; 2],
    pub mtime: i64,
    pub mtime_ns: i64,
    rest: [i64; 5],
}

/// File type bits of a mode, from include/uapi/linux/stat.h.
#[expect(missing_docs, reason = "inode(7)")]
pub mod mode {
    pub const TYPE: u32 = 0o170_000;
    pub const SOCKET: u32 = 0o140_000;
    pub const REGULAR: u32 = 0o100_000;
    pub const DIRECTORY: u32 = 0o040_000;
    pub const CHARACTER: u32 = 0o020_000;
    pub const FIFO: u32 = 0o010_000;
}

/// What an open file is.
///
/// # Errors
///
/// BADF.
pub fn fstat(fd: i32) -> Result<FileStatus, Errno> {
    let mut status = FileStatus::default();
    let at = core::ptr::from_mut(&mut status).addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::FSTAT, [word(fd), at, 0, 0, 0, 0]) }).map(|_| status)
}

/// The magic number of the file system that an open file is on (include/uapi/linux/magic.h).
///
/// # Errors
///
/// BADF.
pub fn filesystem(fd: i32) -> Result<u64, Errno> {
    let mut status = [0u64; 15]; // struct statfs: 120 bytes, of which f_type is the first word
    let at = status.as_mut_ptr().addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::FSTATFS, [word(fd), at, 0, 0, 0, 0]) }).map(|_| status[0])
}

/// What the file at `path` is; links are followed.
///
/// # Errors
///
/// The kernel's.
pub fn stat(path: &CStr) -> Result<FileStatus, Errno> {
    let mut status = FileStatus::default();
    let at = core::ptr::from_mut(&mut status).addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::NEWFSTATAT, [word(AT_FDCWD), path.as_ptr().addr(), at, 0, 0, 0]) })
        .map(|_| status)
}

/// `fcntl` with a number as argument.
///
/// # Errors
///
/// The kernel's.
pub fn fcntl(fd: i32, command: i32, argument: usize) -> Result<i32, Errno> {
    // SAFETY: no memory is involved for the commands that take a number.
    check(unsafe { syscall(nr::FCNTL, [word(fd), word(command), argument, 0, 0, 0]) }).map(int)
}

/// Where data begins in a file, at or behind `from`.
///
/// # Errors
///
/// NXIO: there is none.
pub fn seek_data(fd: i32, from: usize) -> Result<usize, Errno> {
    // SAFETY: no memory is involved. 3 is SEEK_DATA.
    check(unsafe { syscall(nr::LSEEK, [word(fd), from, 3, 0, 0, 0]) })
}

/// Where a hole begins in a file, at or behind `from`; its end is one.
///
/// # Errors
///
/// NXIO: `from` is behind the end.
pub fn seek_hole(fd: i32, from: usize) -> Result<usize, Errno> {
    // SAFETY: no memory is involved. 4 is SEEK_HOLE.
    check(unsafe { syscall(nr::LSEEK, [word(fd), from, 4, 0, 0, 0]) })
}

/// Gives the calling thread a copy of its table of descriptors (unshare(2) with CLONE_FILES).
///
/// # Errors
///
/// NOMEM
pub fn unshare_descriptors() -> Result<(), Errno> {
    const FILES: usize = 0x400;
    // SAFETY: no memory is involved.
    check(unsafe { syscall(nr::UNSHARE, [FILES, 0, 0, 0, 0, 0]) }).map(drop)
}

/// Sets the position in a file.
///
/// # Errors
///
/// The kernel's, as of lseek(2).
pub fn seek(fd: i32, to: usize) -> Result<usize, Errno> {
    // SAFETY: no memory is involved.
    check(unsafe { syscall(nr::LSEEK, [word(fd), to, 0, 0, 0, 0]) })
}

/// `F_GETSIG`.
pub const F_GETSIG: i32 = 11;
/// `F_SETSIG`.
pub const F_SETSIG: i32 = 10;
/// `F_ADD_SEALS` (include/uapi/linux/fcntl.h).
pub const F_ADD_SEALS: i32 = 1033;
/// `F_GET_SEALS`.
pub const F_GET_SEALS: i32 = 1034;
/// `F_SEAL_FUTURE_WRITE`.
pub const F_SEAL_FUTURE_WRITE: i32 = 0x10;
/// `F_SETLEASE`.
pub const F_SETLEASE: i32 = 1024;

/// Takes a lock of flock(2), not waiting.
///
/// # Errors
///
/// AGAIN: others hold it. NOLCK.
pub fn flock(fd: i32, write: bool) -> Result<(), Errno> {
    // LOCK_SH or LOCK_EX, and LOCK_NB
    let operation = if write { 2 } else { 1 } | 4;
    // SAFETY: no memory is involved.
    check(unsafe { syscall(nr::FLOCK, [word(fd), operation, 0, 0, 0, 0]) }).map(drop)
}

/// Takes a lock of fcntl(2) on the bytes from a first to a last one, not waiting; the highest number stands for
/// the end of the file, wherever that is.
///
/// # Errors
///
/// AGAIN, ACCES: others hold it. BADF: the descriptor is not open for that. NOLCK.
pub fn lock_range(
    fd: i32,
    of_description: bool,
    write: bool,
    [start, end]: [u64; 2],
) -> Result<(), Errno> {
    /// `struct flock` of a 64-bit kernel.
    #[repr(C)]
    struct Flock {
        kind: i16,
        whence: i16,
        start: i64,
        len: i64,
        pid: i32,
    }
    const F_SETLK: i32 = 6;
    const F_OFD_SETLK: i32 = 37;
    let len = if end == u64::MAX { 0 } else { (end - start).saturating_add(1) };
    let lock = Flock {
        kind: i16::from(write), // F_RDLCK or F_WRLCK
        whence: 0,
        start: i64::try_from(start).unwrap_or(i64::MAX),
        len: i64::try_from(len).unwrap_or(0),
        pid: 0,
    };
    let command = if of_description { F_OFD_SETLK } else { F_SETLK };
    let at = (&raw const lock).addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::FCNTL, [word(fd), word(command), at, 0, 0, 0]) }).map(drop)
}

/// `F_SETFL`.
pub const F_SETFL: i32 = 4;
/// `F_SETPIPE_SZ`.
pub const F_SETPIPE_SZ: i32 = 1031;
/// `F_GETPIPE_SZ`.
pub const F_GETPIPE_SZ: i32 = 1032;

/// `F_SETOWN_EX`.
const F_SETOWN_EX: i32 = 15;
/// `F_GETOWN_EX`.
const F_GETOWN_EX: i32 = 16;

/// `struct f_owner_ex` (include/uapi/asm-generic/fcntl.h): who is told that a descriptor is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Owner {
    /// `F_OWNER_TID` (0), `F_OWNER_PID` (1) or `F_OWNER_PGRP` (2).
    pub kind: i32,
    /// Thread, process or group; 0 for none.
    pub id: i32,
}

/// Who is told that a descriptor is ready.
///
/// # Errors
///
/// BADF.
pub fn owner(fd: i32) -> Result<Owner, Errno> {
    let mut owner = Owner::default();
    let at = core::ptr::from_mut(&mut owner).addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::FCNTL, [word(fd), word(F_GETOWN_EX), at, 0, 0, 0]) }).map(|_| owner)
}

/// Has `owner` be told that a descriptor is ready.
///
/// # Errors
///
/// SRCH.
pub fn set_owner(fd: i32, owner: Owner) -> Result<(), Errno> {
    let at = core::ptr::from_ref(&owner).addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::FCNTL, [word(fd), word(F_SETOWN_EX), at, 0, 0, 0]) }).map(drop)
}

/// A set of processors, of which 1024 are told apart, as libc does.
pub type Processors = [u64; 16];

/// Where a thread may run; 0 is the calling one.
///
/// # Errors
///
/// SRCH. INVAL: this machine may have more processors.
pub fn affinity(tid: i32) -> Result<Processors, Errno> {
    let mut set: Processors = [0; 16];
    let at = set.as_mut_ptr().addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::SCHED_GETAFFINITY, [word(tid), size_of_val(&set), at, 0, 0, 0]) })
        .map(|_| set)
}

/// Lets a thread run on those of these processors that there are.
///
/// # Errors
///
/// INVAL: there is none of them, and nothing has changed.
pub fn set_affinity(tid: i32, set: &Processors) -> Result<(), Errno> {
    let at = set.as_ptr().addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::SCHED_SETAFFINITY, [word(tid), size_of_val(set), at, 0, 0, 0]) })
        .map(drop)
}

/// `struct sched_attr` (include/uapi/linux/sched/types.h): the policy is in the upper half of the first word.
pub type Scheduling = [u64; 7];

/// How a thread is scheduled; 0 is the calling one.
///
/// # Errors
///
/// SRCH: it has ended.
pub fn scheduling(tid: i32) -> Result<Scheduling, Errno> {
    let mut attributes = Scheduling::default();
    let at = attributes.as_mut_ptr().addr();
    // SAFETY: borrowed.
    check(unsafe {
        syscall(nr::SCHED_GETATTR, [word(tid), at, size_of_val(&attributes), 0, 0, 0])
    })?;
    Ok(attributes)
}

/// Has a thread be scheduled so; 0 is the calling one.
///
/// # Errors
///
/// PERM: not without privileges; SRCH: it has ended.
pub fn set_scheduling(tid: i32, attributes: &Scheduling) -> Result<(), Errno> {
    let at = attributes.as_ptr().addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::SCHED_SETATTR, [word(tid), at, 0, 0, 0, 0]) }).map(drop)
}

/// I/O priority of a thread; 0 is the calling one. It is 0 for one that has not set any.
#[must_use]
pub fn io_priority(tid: i32) -> usize {
    // SAFETY: no memory is involved. 1 is IOPRIO_WHO_PROCESS.
    check(unsafe { syscall(nr::IOPRIO_GET, [1, word(tid), 0, 0, 0, 0]) }).unwrap_or(0)
}

/// Sets the calling thread's I/O priority.
///
/// # Errors
///
/// PERM.
pub fn set_io_priority(priority: usize) -> Result<(), Errno> {
    // SAFETY: no memory is involved. 1 is IOPRIO_WHO_PROCESS.
    check(unsafe { syscall(nr::IOPRIO_SET, [1, 0, priority, 0, 0, 0]) }).map(drop)
}

/// Makes a file's content durable.
///
/// # Errors
///
/// IO, NOSPC, DQUOT: what was written may be lost. INVAL: it is no file that can be synced.
pub fn fsync(fd: i32) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    check(unsafe { syscall(nr::FSYNC, [word(fd), 0, 0, 0, 0, 0]) }).map(drop)
}

/// Makes a pipe.
///
/// # Errors
///
/// MFILE, NFILE.
pub fn pipe(flags: i32) -> Result<[i32; 2], Errno> {
    let mut ends = [0i32; 2];
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::PIPE2, [ends.as_mut_ptr().addr(), word(flags), 0, 0, 0, 0]) })
        .map(|_| ends)
}

/// Duplicates pipe content without taking it, not waiting.
///
/// # Errors
///
/// AGAIN: there is nothing, or no room.
pub fn tee(from: i32, to: i32, len: usize) -> Result<usize, Errno> {
    // SAFETY: no memory is involved. 2 is SPLICE_F_NONBLOCK.
    check(unsafe { syscall(nr::TEE, [word(from), word(to), len, 2, 0, 0]) })
}

/// Moves what is in one pipe to another, not waiting: buffer by buffer, as they are.
///
/// # Errors
///
/// AGAIN: there is nothing, or no room.
pub fn splice_pipe(from: i32, to: i32, len: usize) -> Result<usize, Errno> {
    // SAFETY: no memory is involved. 2 is SPLICE_F_NONBLOCK.
    check(unsafe { syscall(nr::SPLICE, [word(from), 0, word(to), 0, len, 2]) })
}

/// Bytes that could be read from a pipe or terminal (FIONREAD).
///
/// # Errors
///
/// NOTTY.
pub fn bytes_to_read(fd: i32) -> Result<usize, Errno> {
    let mut bytes = 0i32;
    // SAFETY: borrowed; FIONREAD stores an int.
    check(unsafe {
        syscall(nr::IOCTL, [word(fd), 0x541b, core::ptr::from_mut(&mut bytes).addr(), 0, 0, 0])
    })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// A number that ioctl(2) stores as an int.
///
/// # Errors
///
/// NOTTY, INVAL: not for this kind of file.
pub fn get_ioctl(fd: i32, request: usize) -> Result<i32, Errno> {
    let mut value = 0i32;
    // SAFETY: borrowed; the requests that this is for store an int.
    check(unsafe { syscall(nr::IOCTL, [word(fd), request, (&raw mut value).addr(), 0, 0, 0]) })
        .map(|_| value)
}

/// Reads directory entries (`struct linux_dirent64`).
///
/// # Errors
///
/// The kernel's.
pub fn getdents(fd: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    let at = buffer.as_mut_ptr().addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::GETDENTS64, [word(fd), at, buffer.len(), 0, 0, 0]) })
}

/// Maps memory.
///
/// # Errors
///
/// The kernel's.
///
/// # Safety
///
/// With `map::FIXED`, what was at the address is nobody's any more.
pub unsafe fn mmap(
    address: usize,
    len: usize,
    protection: usize,
    flags: usize,
    fd: i32,
    offset: usize,
) -> Result<usize, Errno> {
    // SAFETY: the caller vouches for the address.
    check(unsafe { syscall(nr::MMAP, [address, len, protection, flags, word(fd), offset]) })
}

/// Unmaps memory.
///
/// # Safety
///
/// Nobody uses it any more.
pub unsafe fn munmap(address: usize, len: usize) {
    // SAFETY: the caller vouches for the range. It can fail only for want of a VMA to split.
    unsafe { syscall(nr::MUNMAP, [address, len, 0, 0, 0, 0]) };
}

/// Moves whole mappings to where something else may be, which is unmapped.
///
/// # Errors
///
/// The kernel's.
///
/// # Safety
///
/// Nobody uses what is moved under its old address, nor what is there now.
pub unsafe fn move_mapping(from: usize, len: usize, to: usize) -> Result<(), Errno> {
    /// MREMAP_MAYMOVE | MREMAP_FIXED
    const MOVE: usize = 3;
    // SAFETY: the caller vouches for both ranges.
    check(unsafe { syscall(nr::MREMAP, [from, len, len, MOVE, to, 0]) }).map(drop)
}

/// Gives advice on memory.
///
/// # Errors
///
/// The kernel's.
///
/// # Safety
///
/// Some advice drops the content.
pub unsafe fn madvise(address: usize, len: usize, advice: usize) -> Result<(), Errno> {
    // SAFETY: the caller vouches for the content.
    check(unsafe { syscall(nr::MADVISE, [address, len, advice, 0, 0, 0]) }).map(drop)
}

/// `MADV_DONTNEED`.
pub const MADV_DONTNEED: usize = 4;

/// The end of the heap.
#[must_use]
pub fn current_brk() -> usize {
    // SAFETY: 0 is no valid break, so nothing changes.
    unsafe { syscall(nr::BRK, [0; 6]) }
}

/// Process id.
#[must_use]
pub fn getpid() -> i32 {
    // SAFETY: no memory is involved.
    int(unsafe { syscall(nr::GETPID, [0; 6]) })
}

/// Process id of the parent.
#[must_use]
pub fn getppid() -> i32 {
    // SAFETY: no memory is involved.
    int(unsafe { syscall(nr::GETPPID, [0; 6]) })
}

/// Thread id.
#[must_use]
pub fn gettid() -> i32 {
    // SAFETY: no memory is involved.
    int(unsafe { syscall(nr::GETTID, [0; 6]) })
}

/// Process group of a process; 0 is the calling one.
///
/// # Errors
///
/// SRCH.
pub fn getpgid(pid: i32) -> Result<i32, Errno> {
    // SAFETY: no memory is involved.
    check(unsafe { syscall(nr::GETPGID, [word(pid), 0, 0, 0, 0, 0]) }).map(int)
}

/// Session of a process; 0 is the calling one.
///
/// # Errors
///
/// SRCH.
pub fn getsid(pid: i32) -> Result<i32, Errno> {
    // SAFETY: no memory is involved.
    check(unsafe { syscall(nr::GETSID, [word(pid), 0, 0, 0, 0, 0]) }).map(int)
}

/// Puts a process in a group.
///
/// # Errors
///
/// SRCH, PERM, ACCES.
pub fn setpgid(pid: i32, pgid: i32) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    check(unsafe { syscall(nr::SETPGID, [word(pid), word(pgid), 0, 0, 0, 0]) }).map(drop)
}

/// Sends a signal.
///
/// # Errors
///
/// SRCH, PERM, INVAL.
pub fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    check(unsafe { syscall(nr::KILL, [word(pid), word(signal), 0, 0, 0, 0]) }).map(drop)
}

/// Sends a signal to a thread.
///
/// # Errors
///
/// SRCH, PERM, INVAL.
pub fn tgkill(pid: i32, tid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    check(unsafe { syscall(nr::TGKILL, [word(pid), word(tid), word(signal), 0, 0, 0]) }).map(drop)
}

/// Ends the process.
pub fn exit_group(status: i32) -> ! {
    loop {
        // SAFETY: it does not return.
        unsafe { syscall(nr::EXIT_GROUP, [word(status), 0, 0, 0, 0, 0]) };
    }
}

/// Ends the calling thread.
pub fn exit_thread() -> ! {
    loop {
        // SAFETY: it does not return.
        unsafe { syscall(nr::EXIT, [0; 6]) };
    }
}

/// Lets others run.
pub fn sched_yield() {
    // SAFETY: no memory is involved.
    unsafe { syscall(nr::SCHED_YIELD, [0; 6]) };
}

/// Copies this process's own memory from an address on; returns how many words could be read.
pub fn read_own_memory(from: usize, words: &mut [u64]) -> usize {
    // SAFETY: the words are borrowed.
    let read = unsafe { read_own(from, words.as_mut_ptr().addr(), size_of_val(words)) };
    read.unwrap_or(0) / size_of::<u64>()
}

/// Copies this process's own memory from an address on; returns how many bytes could be read.
pub fn read_own_bytes(from: usize, bytes: &mut [u8]) -> usize {
    // SAFETY: the bytes are borrowed.
    unsafe { read_own(from, bytes.as_mut_ptr().addr(), bytes.len()).unwrap_or(0) }
}

/// Whether this process's own memory can be read at an address; true also where the kernel does not say.
#[must_use]
pub fn is_readable(at: usize) -> bool {
    let mut byte = 0u8;
    // SAFETY: the byte is borrowed.
    unsafe { read_own(at, (&raw mut byte).addr(), 1) != Err(Errno::FAULT) }
}

/// # Safety
///
/// `to` may be written to for `len` bytes.
unsafe fn read_own(from: usize, to: usize, len: usize) -> Result<usize, Errno> {
    let (local, remote) = ([to, len], [from, len]);
    let [local, remote] = [local.as_ptr().addr(), remote.as_ptr().addr()];
    let own = word(crate::getpid());
    // SAFETY: the caller vouches for it; what cannot be read the kernel tells.
    check(unsafe { syscall(nr::PROCESS_VM_READV, [own, local, 1, remote, 1, 0]) })
}

/// Seconds and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Timespec {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nsec: i64,
}

impl Timespec {
    /// Of a count of nanoseconds.
    #[must_use]
    pub const fn from_ns(ns: i64) -> Self {
        Self { sec: ns.div_euclid(1_000_000_000), nsec: ns.rem_euclid(1_000_000_000) }
    }

    /// As a count of nanoseconds; what does not fit is cut to the largest.
    #[must_use]
    pub const fn as_ns(self) -> i64 {
        self.sec.saturating_mul(1_000_000_000).saturating_add(self.nsec)
    }

    /// The sum of two; `nsec` of both is in its bounds. What does not fit is cut.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        let nsec = self.nsec + other.nsec;
        let carry = (nsec >= 1_000_000_000) as i64;
        let sec = self.sec.saturating_add(other.sec).saturating_add(carry);
        Self { sec, nsec: nsec - carry * 1_000_000_000 }
    }

    /// The difference of two, likewise.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        let nsec = self.nsec - other.nsec;
        let borrow = (nsec < 0) as i64;
        let sec = self.sec.saturating_sub(other.sec).saturating_sub(borrow);
        Self { sec, nsec: nsec + borrow * 1_000_000_000 }
    }
}

/// CLOCK_MONOTONIC in nanoseconds, by a real system call.
#[must_use]
pub fn monotonic_ns() -> i64 {
    let mut now = Timespec::default();
    // SAFETY: borrowed.
    unsafe {
        syscall(nr::CLOCK_GETTIME, [1, core::ptr::from_mut(&mut now).addr(), 0, 0, 0, 0]);
    }
    now.as_ns()
}

/// The clock's time in nanoseconds, by a real system call.
///
/// # Errors
///
/// INVAL: there is no such clock.
pub fn clock_ns(clock: i32) -> Result<i64, Errno> {
    let mut now = Timespec::default();
    let at = core::ptr::from_mut(&mut now).addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::CLOCK_GETTIME, [word(clock), at, 0, 0, 0, 0]) }).map(|_| now.as_ns())
}

/// `struct sigevent` (include/uapi/asm-generic/siginfo.h).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct SigEvent {
    /// Passed with the signal.
    pub value: u64,
    /// Signal.
    pub signo: i32,
    /// `SIGEV_…`.
    pub notify: i32,
    /// Thread for `SIGEV_THREAD_ID`.
    pub tid: i32,
    rest: [i32; 11],
}

impl SigEvent {
    /// With all that the kernel looks at.
    #[must_use]
    pub const fn new(value: u64, signo: i32, notify: i32, tid: i32) -> Self {
        Self { value, signo, notify, tid, rest: [0; 11] }
    }

    /// For `SIGEV_THREAD`, of which libc knows: a function to be called in a thread with default attributes; `None` if
    /// it is to have others.
    #[must_use]
    pub fn function(&self) -> Option<u64> {
        let word = |low: i32, high: i32| {
            u64::from(low.cast_unsigned()) | u64::from(high.cast_unsigned()) << 32
        };
        (word(self.rest[1], self.rest[2]) == 0).then_some(word(self.tid, self.rest[0]))
    }
}

/// `struct itimerspec`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TimerSpec {
    /// From one expiration to the next; 0: there is one only.
    pub interval: Timespec,
    /// To the next expiration; 0: the timer is not armed.
    pub value: Timespec,
}

/// Makes a POSIX timer, not armed, and returns its number. `id` counts while PR_TIMER_CREATE_RESTORE_IDS is on.
///
/// # Errors
///
/// INVAL: no such clock, signal or thread. AGAIN: too many. BUSY: `id` is taken. PERM, OPNOTSUPP.
pub fn timer_create(clock: i32, event: &SigEvent, id: i32) -> Result<i32, Errno> {
    let mut id = id;
    let (event, at) = (core::ptr::from_ref(event).addr(), core::ptr::from_mut(&mut id).addr());
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::TIMER_CREATE, [word(clock), event, at, 0, 0, 0]) }).map(|_| id)
}

/// Arms a POSIX timer; `flags` is 0 for a relative time and 1 (TIMER_ABSTIME) for an absolute one.
///
/// # Errors
///
/// INVAL.
pub fn timer_settime(id: i32, flags: i32, spec: &TimerSpec) -> Result<(), Errno> {
    let at = core::ptr::from_ref(spec).addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::TIMER_SETTIME, [word(id), word(flags), at, 0, 0, 0]) }).map(drop)
}

/// The state of a POSIX timer; its time is relative.
///
/// # Errors
///
/// INVAL.
pub fn timer_gettime(id: i32) -> Result<TimerSpec, Errno> {
    let mut spec = TimerSpec::default();
    let at = core::ptr::from_mut(&mut spec).addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::TIMER_GETTIME, [word(id), at, 0, 0, 0, 0]) }).map(|_| spec)
}

/// Deletes a POSIX timer.
pub fn timer_delete(id: i32) {
    // SAFETY: no memory is involved.
    unsafe { syscall(nr::TIMER_DELETE, [word(id), 0, 0, 0, 0, 0]) };
}

/// CLOCK_REALTIME in nanoseconds.
#[must_use]
pub fn realtime_ns() -> i64 {
    let mut now = Timespec::default();
    // SAFETY: borrowed. 0 is CLOCK_REALTIME.
    unsafe {
        syscall(nr::CLOCK_GETTIME, [0, core::ptr::from_mut(&mut now).addr(), 0, 0, 0, 0]);
    }
    now.as_ns()
}

/// Waits while `word` holds `expected`, for at most `timeout`; the word may be shared by processes.
///
/// # Errors
///
/// AGAIN: it holds something else. TIMEDOUT, INTR.
pub fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Timespec>) -> Result<(), Errno> {
    let timeout = timeout.as_ref().map_or(0, |timeout| core::ptr::from_ref(timeout).addr());
    let at = core::ptr::from_ref(word).addr();
    // SAFETY: borrowed. 0 is FUTEX_WAIT.
    check(unsafe { syscall(nr::FUTEX, [at, 0, expected as usize, timeout, 0, 0]) }).map(drop)
}

/// Wakes all who wait at `word`.
pub fn futex_wake_all(word: &AtomicU32) {
    let at = core::ptr::from_ref(word).addr();
    // SAFETY: the kernel only uses the address. 1 is FUTEX_WAKE.
    unsafe { syscall(nr::FUTEX, [at, 1, i32::MAX as usize, 0, 0, 0]) };
}

/// `prctl` operations, from include/uapi/linux/prctl.h.
#[expect(missing_docs, reason = "prctl(2)")]
pub mod pr {
    pub const SET_PDEATHSIG: usize = 1;
    pub const GET_PDEATHSIG: usize = 2;
    pub const GET_DUMPABLE: usize = 3;
    pub const SET_DUMPABLE: usize = 4;
    pub const SET_NAME: usize = 15;
    pub const GET_NAME: usize = 16;
    pub const SET_KEEPCAPS: usize = 8;
    pub const GET_SECUREBITS: usize = 27;
    pub const SET_SECUREBITS: usize = 28;
    pub const SET_TIMERSLACK: usize = 29;
    pub const GET_TIMERSLACK: usize = 30;
    pub const SET_MM: usize = 35;
    pub const SET_CHILD_SUBREAPER: usize = 36;
    pub const GET_CHILD_SUBREAPER: usize = 37;
    pub const SET_NO_NEW_PRIVS: usize = 38;
    pub const GET_NO_NEW_PRIVS: usize = 39;
    pub const GET_TID_ADDRESS: usize = 40;
    pub const GET_THP_DISABLE: usize = 42;
    pub const SET_MM_MAP: usize = 14;
    pub const TIMER_CREATE_RESTORE_IDS: usize = 77;
}

/// `prctl` with numbers.
///
/// # Errors
///
/// The kernel's.
///
/// # Safety
///
/// `arguments` are what the operation takes.
pub unsafe fn prctl(operation: usize, arguments: [usize; 2]) -> Result<usize, Errno> {
    let [a, b] = arguments;
    // SAFETY: the caller vouches for the arguments.
    check(unsafe { syscall(nr::PRCTL, [operation, a, b, 0, 0, 0]) })
}

/// Name of the calling thread, padded with NULs.
#[must_use]
pub fn thread_name() -> [u8; 16] {
    let mut name = [0; 16];
    // SAFETY: borrowed; the kernel writes 16 bytes.
    let _ = unsafe { prctl(pr::GET_NAME, [name.as_mut_ptr().addr(), 0]) };
    name
}

/// Names the calling thread.
pub fn set_thread_name(name: &[u8; 16]) {
    // SAFETY: borrowed; the kernel reads up to 16 bytes.
    let _ = unsafe { prctl(pr::SET_NAME, [name.as_ptr().addr(), 0]) };
}

/// A resource limit, soft and hard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Limit {
    /// Soft.
    pub current: u64,
    /// Hard.
    pub maximum: u64,
}

/// Number of resource limits (RLIM_NLIMITS).
pub const LIMITS: usize = 16;

/// A resource limit of the calling process.
///
/// # Errors
///
/// INVAL.
pub fn limit(resource: usize) -> Result<Limit, Errno> {
    let mut old = Limit::default();
    let at = core::ptr::from_mut(&mut old).addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::PRLIMIT64, [0, resource, 0, at, 0, 0]) }).map(|_| old)
}

/// Sets a resource limit of the calling process, as near as it may: a hard limit can only be raised by root.
pub fn set_limit(resource: usize, wanted: Limit) {
    let set = |limit: Limit| {
        let at = core::ptr::from_ref(&limit).addr();
        // SAFETY: borrowed.
        check(unsafe { syscall(nr::PRLIMIT64, [0, resource, at, 0, 0, 0]) })
    };
    if set(wanted).is_err()
        && let Ok(here) = limit(resource)
    {
        let _ = set(Limit {
            current: wanted.current.min(here.maximum),
            maximum: wanted.maximum.min(here.maximum),
        });
    }
}

/// Compares two open descriptors: whether they share one open file description.
///
/// # Errors
///
/// PERM, BADF, NOSYS without CONFIG_KCMP.
pub fn same_description(pid: [i32; 2], fd: [i32; 2]) -> Result<bool, Errno> {
    // SAFETY: no memory is involved. 0 is KCMP_FILE.
    check(unsafe {
        syscall(nr::KCMP, [word(pid[0]), word(pid[1]), 0, word(fd[0]), word(fd[1]), 0])
    })
    .map(|order| order == 0)
}

/// A descriptor for a process.
///
/// # Errors
///
/// SRCH.
pub fn pidfd_open(pid: i32) -> Result<i32, Errno> {
    // SAFETY: no memory is involved.
    check(unsafe { syscall(nr::PIDFD_OPEN, [word(pid), 0, 0, 0, 0, 0]) }).map(int)
}

/// A duplicate of a descriptor of the process behind `pidfd`.
///
/// # Errors
///
/// BADF: it has no such descriptor. PERM, MFILE.
pub fn pidfd_getfd(pidfd: i32, fd: i32) -> Result<i32, Errno> {
    // SAFETY: no memory is involved.
    check(unsafe { syscall(nr::PIDFD_GETFD, [word(pidfd), word(fd), 0, 0, 0, 0]) }).map(int)
}

/// `struct pollfd`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PollFd {
    /// Descriptor; negative ones are passed over.
    pub fd: i32,
    /// Asked for.
    pub events: i16,
    /// Found.
    pub revents: i16,
}

/// `POLLIN`.
pub const POLLIN: i16 = 1;
/// `POLLPRI`.
pub const POLLPRI: i16 = 2;
/// `POLLOUT`.
pub const POLLOUT: i16 = 4;
/// `POLLHUP`.
pub const POLLHUP: i16 = 16;

/// Waits for descriptors; a negative timeout waits forever.
///
/// # Errors
///
/// INTR.
pub fn poll(fds: &mut [PollFd], timeout_ms: i32) -> Result<usize, Errno> {
    let at = fds.as_mut_ptr().addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::POLL, [at, fds.len(), word(timeout_ms), 0, 0, 0]) })
}

/// Waits for descriptors without end, or for a signal of which `mask` has no bit.
///
/// # Errors
///
/// INTR: there was one.
pub fn poll_signals(fds: &mut [PollFd], mask: u64) -> Result<usize, Errno> {
    let at = fds.as_mut_ptr().addr();
    let mask_at = core::ptr::from_ref(&mask).addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::PPOLL, [at, fds.len(), 0, mask_at, size_of::<u64>(), 0]) })
}

/// A stream socket that is connected to the unix socket at `path`, closed on exec.
///
/// # Errors
///
/// NAMETOOLONG; NOENT, CONNREFUSED: nobody listens.
pub fn connect_unix(path: &[u8]) -> Result<i32, Errno> {
    let mut address = [0u8; 110];
    if path.len() > 107 {
        return Err(Errno::NAMETOOLONG);
    }
    address[0] = 1; // AF_UNIX
    address[2..2 + path.len()].copy_from_slice(path);
    // SAFETY: no memory is involved. 1 is AF_UNIX, 0o2000001 is SOCK_STREAM | SOCK_CLOEXEC.
    let fd = check(unsafe { syscall(nr::SOCKET, [1, 0o2_000_001, 0, 0, 0, 0]) }).map(int)?;
    // SAFETY: borrowed.
    let returned = unsafe {
        syscall(nr::CONNECT, [word(fd), address.as_ptr().addr(), path.len() + 3, 0, 0, 0])
    };
    match check(returned) {
        Ok(_) => Ok(fd),
        Err(errno) => {
            close(fd);
            Err(errno)
        }
    }
}

/// Sends bytes without raising SIGPIPE.
///
/// # Errors
///
/// PIPE, CONNRESET: the other end is gone.
pub fn send(fd: i32, bytes: &[u8]) -> Result<usize, Errno> {
    let at = bytes.as_ptr().addr();
    // SAFETY: borrowed. 0x4000 is MSG_NOSIGNAL.
    check(unsafe { syscall(nr::SENDTO, [word(fd), at, bytes.len(), 0x4000, 0, 0]) })
}

/// Receives bytes, and a descriptor if one comes with them.
///
/// # Errors
///
/// The kernel's.
pub fn receive_with_fd(fd: i32, bytes: &mut [u8]) -> Result<(usize, Option<i32>), Errno> {
    /// `struct msghdr`.
    #[repr(C)]
    struct Message {
        name: usize,
        name_len: usize,
        vectors: usize,
        vector_count: usize,
        control: usize,
        control_len: usize,
        flags: i32,
    }
    /// `struct cmsghdr` with room for one descriptor.
    #[derive(Default)]
    #[repr(C, align(8))]
    struct Control {
        len: usize,
        level: i32,
        kind: i32,
        fd: i32,
        pad: i32,
    }
    let vector = [bytes.as_mut_ptr().addr(), bytes.len()];
    let mut control = Control::default();
    let mut message = Message {
        name: 0,
        name_len: 0,
        vectors: vector.as_ptr().addr(),
        vector_count: 1,
        control: core::ptr::from_mut(&mut control).addr(),
        control_len: size_of::<Control>(),
        flags: 0,
    };
    // SAFETY: borrowed: the message points to `vector`, which points to `bytes`, and to `control`.
    // 0x40000000 is MSG_CMSG_CLOEXEC.
    let len = check(unsafe {
        let at = core::ptr::from_mut(&mut message).addr();
        syscall(nr::RECVMSG, [word(fd), at, 0x4000_0000, 0, 0, 0])
    })?;
    // SOL_SOCKET and SCM_RIGHTS are both 1.
    let passed =
        (control.len == 20 && control.level == 1 && control.kind == 1).then_some(control.fd);
    Ok((len, passed))
}

/// Waits for one child; `options` are WNOHANG and so on.
///
/// # Errors
///
/// CHILD.
pub fn wait4(pid: i32, options: usize) -> Result<(i32, i32), Errno> {
    let mut status = 0i32;
    let at = core::ptr::from_mut(&mut status).addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::WAIT4, [word(pid), at, options, 0, 0, 0]) })
        .map(|pid| (int(pid), status))
}

/// Whether a child has stopped and this is still to be told; if `take`, it has been told by this.
///
/// # Errors
///
/// CHILD.
pub fn stopped_child(pid: i32, take: bool) -> Result<bool, Errno> {
    /// P_PID; WNOHANG | WSTOPPED, WNOWAIT (include/uapi/linux/wait.h).
    const PID: usize = 1;
    const STOPPED: usize = 1 | 2;
    const LEAVE: usize = 0x0100_0000;
    let mut info = crate::signal::SigInfo::zeroed();
    let options = if take { STOPPED } else { STOPPED | LEAVE };
    let at = (&raw mut info).addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::WAITID, [PID, word(pid), at, options, 0, 0]) })?;
    Ok(info.pid != 0)
}

/// `struct clone_args` (include/uapi/linux/sched.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[expect(missing_docs, reason = "clone3(2)")]
pub struct CloneArguments {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

/// Forks by clone3(2); 0 in the child.
///
/// # Errors
///
/// With an id to set: PERM without `CAP_CHECKPOINT_RESTORE`, EXIST if it is in use.
///
/// # Safety
///
/// The calling thread is the only one, and `arguments` do not share its memory with the child.
pub unsafe fn clone3(arguments: &CloneArguments) -> Result<i32, Errno> {
    let at = core::ptr::from_ref(arguments).addr();
    // SAFETY: borrowed; the caller vouches for the rest.
    check(unsafe { syscall(nr::CLONE3, [at, size_of::<CloneArguments>(), 0, 0, 0, 0]) }).map(int)
}

/// `WNOHANG`.
pub const WNOHANG: usize = 1;
/// `__WCLONE`: children that send no SIGCHLD.
pub const WCLONE: usize = 0x8000_0000;

/// Ranges that PAGEMAP_SCAN found.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct PageRegion {
    /// First address.
    pub start: u64,
    /// Address behind the last.
    pub end: u64,
    /// `PAGE_IS_…` bits.
    pub categories: u64,
}

/// Categories of PAGEMAP_SCAN, from include/uapi/linux/fs.h.
#[expect(missing_docs, reason = "Documentation/admin-guide/mm/pagemap.rst")]
pub mod page_is {
    pub const FILE: u64 = 1 << 2;
    pub const PRESENT: u64 = 1 << 3;
    pub const SWAPPED: u64 = 1 << 4;
    pub const PFN_ZERO: u64 = 1 << 5;
    pub const GUARD: u64 = 1 << 8;
}

/// What PAGEMAP_SCAN is to look for: pages for which every bit of `all` and some of `any` is set,
/// after the bits of `inverted` were turned over.
#[derive(Clone, Copy, Debug, Default)]
pub struct PageQuery {
    /// Bits that are turned over first.
    pub inverted: u64,
    /// Bits that must all be set.
    pub all: u64,
    /// Bits of which one must be set.
    pub any: u64,
    /// Bits that are reported and that split ranges.
    pub reported: u64,
}

/// Finds pages in `start..end`; returns how many regions were filled and where the walk ended.
///
/// # Errors
///
/// NOTTY before Linux 6.7.
pub fn pagemap_scan(
    pagemap: i32,
    [start, end]: [usize; 2],
    query: PageQuery,
    regions: &mut [PageRegion],
) -> Result<(usize, usize), Errno> {
    /// `struct pm_scan_arg`.
    #[repr(C)]
    struct Scan {
        size: u64,
        flags: u64,
        start: u64,
        end: u64,
        walk_end: u64,
        vec: u64,
        vec_len: u64,
        max_pages: u64,
        category_inverted: u64,
        category_mask: u64,
        category_anyof_mask: u64,
        return_mask: u64,
    }
    let mut scan = Scan {
        size: size_of::<Scan>() as u64,
        flags: 0,
        start: start as u64,
        end: end as u64,
        walk_end: 0,
        vec: regions.as_mut_ptr().addr() as u64,
        vec_len: regions.len() as u64,
        max_pages: 0,
        category_inverted: query.inverted,
        category_mask: query.all,
        category_anyof_mask: query.any,
        return_mask: query.reported,
    };
    // _IOWR('f', 16, struct pm_scan_arg)
    const PAGEMAP_SCAN: usize = 0xc060_6610;
    // SAFETY: borrowed.
    let found = check(unsafe {
        syscall(
            nr::IOCTL,
            [word(pagemap), PAGEMAP_SCAN, core::ptr::from_mut(&mut scan).addr(), 0, 0, 0],
        )
    })?;
    Ok((found, usize::try_from(scan.walk_end).unwrap_or(end)))
}

/// Reads at an offset.
///
/// # Errors
///
/// The kernel's.
pub fn pread(fd: i32, bytes: &mut [u8], offset: usize) -> Result<usize, Errno> {
    let at = bytes.as_mut_ptr().addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::PREAD64, [word(fd), at, bytes.len(), offset, 0, 0]) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_memory_that_was_touched_is_found() {
        let pagemap = open(c"/proc/self/pagemap", oflag::RDONLY).unwrap();
        // SAFETY: a fresh mapping; it is written inside its bounds and unmapped once.
        let base = unsafe {
            let flags = map::PRIVATE | map::ANONYMOUS;
            let base = mmap(0, 16 * 4096, prot::READ | prot::WRITE, flags, -1, 0).unwrap();
            core::ptr::with_exposed_provenance_mut::<u8>(base + 5 * 4096).write(1);
            base
        };
        let mut regions = [PageRegion::default(); 8];
        let query = PageQuery {
            inverted: page_is::PFN_ZERO,
            all: page_is::PFN_ZERO,
            any: page_is::PRESENT | page_is::SWAPPED,
            reported: page_is::PRESENT,
        };
        if let Ok((found, end)) =
            pagemap_scan(pagemap, [base, base + 16 * 4096], query, &mut regions)
        {
            assert_eq!((found, end), (1, base + 16 * 4096));
            assert_eq!(regions[0].start, (base + 5 * 4096) as u64);
        }
        // SAFETY: see above.
        unsafe { munmap(base, 16 * 4096) };
        close(pagemap);
    }

    #[test]
    fn a_pipe_is_teed_without_taking_anything() {
        let [from, into] = pipe(oflag::CLOEXEC).unwrap();
        let [copy, copy_in] = pipe(oflag::CLOEXEC).unwrap();
        write(into, b"hello").unwrap();
        assert_eq!(tee(from, copy_in, 100), Ok(5));
        let mut bytes = [0; 8];
        assert_eq!(read(copy, &mut bytes), Ok(5));
        assert_eq!(bytes_to_read(from), Ok(5));
        for end in [from, into, copy, copy_in] {
            close(end);
        }
    }
}
