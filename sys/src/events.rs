//! Calls on eventfd, timerfd and epoll descriptors.

use crate::arch::{nr, syscall};
use crate::{Errno, Timespec, check, read, write};

/// Whether the file behind descriptor `fd` of process `pid[0]` is what the epoll instance behind descriptor
/// `epoll` of process `pid[1]` watches under the number `target`; `index` counts registrations with
/// that number, in the order of /proc/PID/fdinfo.
///
/// # Errors
///
/// NOENT: there is no such registration. BADF, PERM, SRCH; NOSYS without CONFIG_KCMP.
pub fn is_epoll_target(
    pid: [i32; 2],
    fd: i32,
    epoll: i32,
    target: i32,
    index: u32,
) -> Result<bool, Errno> {
    // struct kcmp_epoll_slot (include/uapi/linux/kcmp.h); 7 is KCMP_EPOLL_TFD.
    let slot = [epoll.cast_unsigned(), target.cast_unsigned(), index];
    let word = |value: i32| value as isize as usize;
    let at = slot.as_ptr().addr();
    // SAFETY: the kernel reads the slot, which outlives the call.
    check(unsafe { syscall(nr::KCMP, [word(pid[0]), word(pid[1]), 7, word(fd), at, 0]) })
        .map(|order| order == 0)
}

/// Whether an eventfd with this count is a semaphore, found by reading from it and putting back what was
/// taken: for kernels before 6.8, whose fdinfo does not say it.
///
/// Nobody may use it meanwhile. Whoever watches it with EPOLLET may be told of it once more.
///
/// # Errors
///
/// IO: somebody did use it.
pub fn probe_semaphore(fd: i32, count: u64) -> Result<bool, Errno> {
    let add = |value: u64| write(fd, &value.to_ne_bytes()).map(drop);
    // One read of two or more tells: 1 of a semaphore, all of another.
    let added = 2u64.saturating_sub(count);
    if added != 0 {
        add(added)?;
    }
    let take = || {
        let mut value = [0; 8];
        read(fd, &mut value).map(|_| u64::from_ne_bytes(value))
    };
    let is_semaphore = match take()? {
        1 => true,
        all if all == count + added => false,
        _ => return Err(Errno::IO),
    };
    if !is_semaphore {
        if count != 0 {
            add(count)?;
        }
    } else if added == 0 {
        add(1)?;
    } else if added == 2 {
        take()?;
    }
    Ok(is_semaphore)
}

/// Time to the next expiration of a timerfd, and its interval; a periodic timer that waits for its expiration
/// to be read is set going again, and counts what it has missed.
///
/// # Errors
///
/// BADF, INVAL.
pub fn timerfd_gettime(fd: i32) -> Result<[Timespec; 2], Errno> {
    // struct itimerspec: interval and value.
    let mut spec = [Timespec::default(); 2];
    let at = spec.as_mut_ptr().addr();
    // SAFETY: the kernel fills two timespecs, which outlive the call.
    check(unsafe { syscall(nr::TIMERFD_GETTIME, [fd.cast_unsigned() as usize, at, 0, 0, 0, 0]) })?;
    Ok([spec[1], spec[0]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probed_eventfd_keeps_its_count() {
        const EVENTFD2: usize = 290;
        for (count, semaphore) in
            [0, 1, 2, 7, u64::MAX - 1].iter().flat_map(|&count| [(count, false), (count, true)])
        {
            // SAFETY: no memory is involved. 0o4000 is EFD_NONBLOCK, 1 is EFD_SEMAPHORE.
            let fd = check(unsafe {
                syscall(EVENTFD2, [0, 0o4000 | usize::from(semaphore), 0, 0, 0, 0])
            });
            let fd = i32::try_from(fd.unwrap()).unwrap();
            if count != 0 {
                write(fd, &count.to_ne_bytes()).unwrap();
            }
            assert_eq!(probe_semaphore(fd, count), Ok(semaphore), "{count}");
            let path = std::format!("/proc/self/fdinfo/{fd}");
            let info = std::fs::read(path).unwrap();
            let found = crate::proc::value(&info, b"eventfd-count:").and_then(crate::proc::hex);
            assert_eq!(found, Some(count));
            crate::close(fd);
        }
    }
}
