//! File locks and leases.

use ulpm_image::Meta;
use ulpm_image::meta::{Lock, lock_kind as kind};
use ulpm_sys::fmt::Text;
use ulpm_sys::oflag;
use ulpm_sys::proc::decimal;

use super::super::text::Lines;
use super::{Open, unsupported};
use crate::freeze::Failed;
use crate::locks;

/// Notes what is locked through a descriptor, as fdinfo says: locks of its description, and of the process.
pub(super) fn collect(
    task: i32,
    open: &Open,
    description: u64,
    meta: &mut Meta,
) -> Result<(), Failed> {
    let failed = |errno| Failed::system("look for file locks", errno);
    let path = Text::<64>::path(format_args!("/proc/self/task/{task}/fdinfo/{}", open.fd));
    let fd = ulpm_sys::open(path.c_str(), oflag::RDONLY | oflag::CLOEXEC).map_err(failed)?;
    let mut buffer = alloc::vec![0; 4096];
    let mut lines = Lines::new(fd, &mut buffer);
    let mut result = Ok(());
    while let Some(line) = lines.next() {
        let Some(line) = line.strip_prefix(b"lock:") else { continue };
        result = match parse(line) {
            Some(mut lock) => {
                lock.description = description;
                if lock.kind == kind::LEASE {
                    let signal = ulpm_sys::fcntl(open.ours, ulpm_sys::F_GETSIG, 0).unwrap_or(0);
                    lock.signal = signal.cast_unsigned();
                }
                if locks::note(open.fd, &lock) {
                    meta.locks.push(lock);
                    Ok(())
                } else {
                    Err(unsupported(format_args!(
                        "it holds more than {} file locks, which cannot be saved",
                        locks::MAX
                    )))
                }
            }
            None => Err(unsupported(format_args!(
                "descriptor {} ({}) holds a lock or lease that cannot be saved, or not now: {}",
                open.fd,
                open.path.escape_ascii(),
                line.trim_ascii().escape_ascii()
            ))),
        };
        if result.is_err() {
            break;
        }
    }
    ulpm_sys::close(fd);
    result
}

/// `1: POSIX  ADVISORY  WRITE 1234 08:01:5678 0 EOF` (`lock_get_status` of fs/locks.c). A lease that is being
/// broken changes at any moment.
fn parse(line: &[u8]) -> Option<Lock> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (name, state, access) = (words.nth(1)?, words.next()?, words.next()?);
    let kind = match (name, state) {
        (b"FLOCK", _) => kind::FLOCK,
        (b"POSIX", _) => kind::PROCESS,
        (b"OFDLCK", _) => kind::DESCRIPTION,
        (b"LEASE", b"ACTIVE") => kind::LEASE,
        _ => return None,
    };
    let write = match access {
        b"WRITE" => true,
        b"READ" => false,
        _ => return None,
    };
    // Behind the holder's id, which may be that of another namespace, and the file.
    let start = decimal(words.nth(2)?)?;
    let end = match words.next()? {
        b"EOF" => u64::MAX,
        end => decimal(end)?,
    };
    Some(Lock { kind, write, start, end, ..Lock::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_locks() {
        let lock = parse(b"\t1: POSIX  ADVISORY  WRITE 1234 08:01:5678 8 EOF").unwrap();
        assert_eq!(
            (lock.kind, lock.write, lock.start, lock.end),
            (kind::PROCESS, true, 8, u64::MAX)
        );
        let lock = parse(b"\t2: OFDLCK ADVISORY  READ -1 00:2a:12 0 99").unwrap();
        assert_eq!(
            (lock.kind, lock.write, lock.start, lock.end),
            (kind::DESCRIPTION, false, 0, 99)
        );
        assert_eq!(
            parse(b"\t1: LEASE  ACTIVE    READ 7 00:2a:12 0 EOF").unwrap().kind,
            kind::LEASE
        );
        assert_eq!(parse(b"\t1: LEASE  BREAKING  UNLCK 7 00:2a:12 0 EOF"), None);
        assert_eq!(parse(b"\t1: FLOCK"), None);
    }
}
