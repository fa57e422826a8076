//! Whether the file locks of a job can be had: the processes take them themselves, when they go on.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use ulpm_image::meta::{Description, Lock, description_kind, lock_kind};

use crate::error::RestartError;
use crate::image_file::ImageFile;
use crate::path_map::PathMap;

/// Looks for locks of others that exclude the job's.
///
/// # Errors
///
/// [`RestartError::Locked`] names the file.
pub fn check(images: &[ImageFile], paths: &PathMap) -> Result<(), RestartError> {
    for image in images {
        for lock in &image.meta.locks {
            let mut descriptions = image.meta.descriptions.iter();
            let Some(description) = descriptions.find(|other| other.id == lock.description) else {
                continue;
            };
            if let Some(holder) = holder(description, lock, paths) {
                let path = paths.map(Path::new(std::ffi::OsStr::from_bytes(&description.path)));
                return Err(RestartError::Locked { pid: image.pid(), path, holder });
            }
        }
    }
    Ok(())
}

/// Who holds a lock that excludes this one, if anybody does.
fn holder(description: &Description, lock: &Lock, paths: &PathMap) -> Option<String> {
    if description.kind != description_kind::FILE || lock.kind == lock_kind::LEASE {
        return None;
    }
    let path = paths.map(Path::new(std::ffi::OsStr::from_bytes(&description.path)));
    // What cannot be opened is told elsewhere.
    let file = File::open(path).ok()?;
    let fd = file.as_raw_fd();
    if lock.kind == lock_kind::FLOCK {
        // Closing the file gives it up again.
        let taken = ulpm_sys::flock(fd, lock.write);
        return (taken == Err(ulpm_sys::Errno::AGAIN)).then(|| "another program".into());
    }
    let len = if lock.end == u64::MAX { 0 } else { lock.end - lock.start + 1 };
    let mut wanted = libc::flock {
        l_type: if lock.write { libc::F_WRLCK } else { libc::F_RDLCK } as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: libc::off_t::try_from(lock.start).ok()?,
        l_len: libc::off_t::try_from(len).ok()?,
        l_pid: 0,
    };
    // SAFETY: the call reads and writes the structure only.
    let asked = unsafe { libc::fcntl(fd, libc::F_OFD_GETLK, &raw mut wanted) };
    (asked == 0 && i32::from(wanted.l_type) != libc::F_UNLCK).then(|| match wanted.l_pid {
        pid @ 1.. => format!("process {pid}"),
        _ => "another program".into(),
    })
}
