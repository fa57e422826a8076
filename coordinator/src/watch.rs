//! How a process has ended that is somebody else's child.

#![expect(unsafe_code, reason = "pidfd_open and its ioctl")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::process::Stat;

/// A process that is watched, which a later one with its id is not taken for.
#[derive(Debug)]
pub(crate) struct Watch {
    pid: i32,
    fd: AsyncFd<OwnedFd>,
}

/// `struct pidfd_info` of <linux/pidfd.h>, as far as Linux 6.15 knows it.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidfdInfo>() == 64);

/// `PIDFD_INFO_EXIT`.
const INFO_EXIT: u64 = 1 << 3;
/// `PIDFD_GET_INFO`: _IOWR(0xff, 11, struct pidfd_info).
const GET_INFO: libc::c_ulong = 0xc040_ff0b;

impl Watch {
    /// Watches the process with that id if it is the one that started then.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub(crate) fn begin(pid: i32, start: u64) -> io::Result<Self> {
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0);
        let fd = fd.ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel has just opened it for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if Stat::of(pid).is_none_or(|stat| stat.start != start) {
            return Err(io::ErrorKind::NotFound.into());
        }
        // SAFETY: an `OwnedFd` gives the same descriptor each time, and keeps it open until it is dropped.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { pid, fd })
    }

    /// Waits for its end. Returns its status as from wait(2); `None` where its parent has waited for it, and the kernel is
    /// older than Linux 6.15.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub(crate) async fn ended(&self) -> Option<i32> {
        // Readable when its last thread has ended.
        self.fd.readable().await.ok()?.retain_ready();
        // As long as it is a zombie, nobody else has its id; and what is told of one, if it is not reaped between the looks,
        // is told once more.
        for _ in 0..3 {
            if let Some(status) = self.reaped() {
                return Some(status);
            }
            if let Some(stat) = Stat::of(self.pid).filter(Stat::is_zombie) {
                return Some(stat.exit_code);
            }
        }
        None
    }

    fn reaped(&self) -> Option<i32> {
        let mut info = PidfdInfo { mask: INFO_EXIT, ..PidfdInfo::default() };
        // SAFETY: the kernel writes no more than the 64 bytes of which the request's number tells.
        let result = unsafe { libc::ioctl(self.fd.get_ref().as_raw_fd(), GET_INFO, &raw mut info) };
        (result == 0 && info.mask & INFO_EXIT != 0).then_some(info.exit_code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_child_is_told_before_and_after_it_was_waited_for() {
        let child =
            |script: &str| std::process::Command::new("sh").args(["-c", script]).spawn().unwrap();
        let watch = |child: &std::process::Child| {
            let pid = child.id().cast_signed();
            Watch::begin(pid, Stat::of(pid).unwrap().start).unwrap()
        };
        let mut first = child("kill -SEGV $$");
        let watched = watch(&first);
        assert_eq!(watched.ended().await.map(|status| status & 0x7f), Some(libc::SIGSEGV));
        first.wait().unwrap();
        let mut second = child("sleep 0.1; exit 3");
        let watched = watch(&second);
        second.wait().unwrap();
        // Nothing is told by older kernels.
        assert!(matches!(watched.ended().await, Some(0x300) | None));
    }
}
