//! The two things that safe Rust has no call for: mapping a job table, and the freeze signal.

#![expect(unsafe_code, reason = "mmap and rt_tgsigqueueinfo")]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use ulpm_protocol::manager::{FREEZE_COOKIE, FREEZE_SIGNAL};
use ulpm_protocol::table::{LEN, Table};

/// A job table that stays mapped for as long as this lives.
#[derive(Debug)]
pub(crate) struct Mapped {
    table: Table,
    base: NonNull<u8>,
    file: File,
}

// SAFETY: the mapping belongs to the process and not to a thread, and `Table` is `Send`.
unsafe impl Send for Mapped {}
// SAFETY: all access goes through `Table`, which is `Sync`.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps an existing table.
    pub(crate) fn open(file: File) -> io::Result<Self> {
        if file.metadata()?.len() != LEN as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a job table of another length",
            ));
        }
        let base = map(&file)?;
        // SAFETY: `map` gives LEN bytes, shared and writable; they stay until `self` is dropped, which
        // hands out the table by reference only. The file has LEN bytes, and nobody shortens it.
        let table = unsafe { Table::open(base) }.map_err(|error| invalid(&error));
        // On an error the mapping stays, which costs address space once.
        Ok(Self { table: table?, base, file })
    }

    /// Makes a table of an empty file.
    pub(crate) fn create(
        file: File,
        job: u64,
        ckpt_signal: u32,
        paths: [&[u8]; 3],
    ) -> io::Result<Self> {
        file.set_len(LEN as u64)?;
        reserve(&file)?;
        let base = map(&file)?;
        // SAFETY: as in `open`; the file was empty, so all bytes are zero, and its name is not yet
        // known to anybody.
        let table = unsafe { Table::create(base, job, ckpt_signal, paths) };
        Ok(Self { table: table.map_err(|error| invalid(&error))?, base, file })
    }

    /// The table.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// Forgets all elections, so that the table cannot fill up with them.
    pub(crate) fn forget_claims(&self) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let (offset, len) = Table::claims_range();
        // What was reserved stays so, which rules out a hole.
        let zeroed = match (libc::off_t::try_from(offset), libc::off_t::try_from(len)) {
            (Ok(offset), Ok(len)) => {
                let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE;
                fallocate(self.file.as_fd(), flags, offset, len).is_ok()
            }
            _ => false,
        };
        if zeroed { Ok(()) } else { self.file.write_all_at(&vec![0; len], offset as u64) }
    }
}

/// Takes all the room that a table ever needs: on a disk that is full, a page for which there is none ends whoever
/// touches it, which is every process of the job.
fn reserve(file: &File) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let len = libc::off_t::try_from(LEN).map_err(io::Error::other)?;
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        Err(Errno::EOPNOTSUPP) => file.write_all_at(&vec![0; LEN], 0),
        other => Ok(other?),
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: `base` is a mapping of LEN bytes that we made; `table` cannot be used any more.
        let _ = unsafe { munmap(self.base.cast(), LEN) };
    }
}

fn map(file: &File) -> io::Result<NonNull<u8>> {
    let len = NonZeroUsize::new(LEN).expect("a table is not empty");
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: no address is asked for, so nothing that exists is replaced.
    let base = unsafe { mmap(None, len, prot, MapFlags::MAP_SHARED, file, 0) }?;
    Ok(base.cast())
}

fn invalid(error: &ulpm_protocol::table::TableError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// `siginfo_t` as the kernel lays it out for a queued signal on 64-bit machines.
#[repr(C)]
struct QueuedSignal {
    signo: i32,
    errno: i32,
    code: i32,
    _pad: i32,
    pid: i32,
    uid: u32,
    value: u64,
    _rest: [u64; 12],
}

const _: () = assert!(size_of::<QueuedSignal>() == 128);

/// Sends the freeze signal with our cookie to one thread.
///
/// With `epoch` 0 it only starts the manager; else it holds the thread until the thaw from that epoch.
pub(crate) fn send_freeze_signal(pid: i32, tid: i32, epoch: u32) -> io::Result<()> {
    let info = QueuedSignal {
        signo: FREEZE_SIGNAL,
        errno: 0,
        code: -1, // SI_QUEUE
        _pad: 0,
        pid: nix::unistd::getpid().as_raw(),
        uid: nix::unistd::getuid().as_raw(),
        value: FREEZE_COOKIE | u64::from(epoch),
        _rest: [0; 12],
    };
    let info: *const QueuedSignal = &raw const info;
    // SAFETY: rt_tgsigqueueinfo(2) reads 128 bytes from `info`, which is that long, and writes nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, FREEZE_SIGNAL, info) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_table_has_all_its_room_from_the_start() {
        let dir = TestDir::new();
        let path = dir.path().join("table");
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path);
        let table =
            Mapped::create(file.unwrap(), 1, 12, [b"socket", b"preload", b"table"]).unwrap();
        let room = || std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!(room() >= LEN as u64, "{} of {LEN} bytes", room());
        table.forget_claims().unwrap();
        assert!(room() >= LEN as u64, "{} of {LEN} bytes", room());
    }
}
