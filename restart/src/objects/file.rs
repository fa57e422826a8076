//! Files, with and without a name, and the standard streams.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use ulpm_image::meta::Description;

use super::{Builder, NOT_AGAIN};
use crate::error::{RestartError, system};
use crate::image_file::ImageFile;

impl Builder<'_> {
    /// A description of its own of a file without a name.
    pub(super) fn deleted(&mut self, description: &Description) -> Result<OwnedFd, RestartError> {
        let object = self.memory(description.dev, description.inode)?;
        let flags =
            description.flags.cast_signed() & !(NOT_AGAIN | libc::O_DIRECT | libc::O_TMPFILE);
        let path = std::ffi::CString::new(format!("/proc/self/fd/{object}")).unwrap_or_default();
        let position = libc::off_t::try_from(description.position).unwrap_or(libc::off_t::MAX);
        // SAFETY: the path is NUL-terminated; the second call takes numbers only.
        unsafe {
            let fd = libc::open(path.as_ptr(), flags | libc::O_CLOEXEC);
            if fd < 0 || libc::lseek(fd, position, libc::SEEK_SET) < 0 {
                return Err(system("open a file without a name again"));
            }
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }

    pub(super) fn open(
        &self,
        image: &ImageFile,
        description: &Description,
    ) -> Result<OwnedFd, RestartError> {
        let path = self.paths.map(Path::new(std::ffi::OsStr::from_bytes(&description.path)));
        let flags = description.flags.cast_signed() & !(NOT_AGAIN | libc::O_ACCMODE);
        let access = description.flags.cast_signed() & libc::O_ACCMODE;
        let file = OpenOptions::new()
            .read(access != libc::O_WRONLY)
            .write(access != libc::O_RDONLY)
            .custom_flags(flags | libc::O_NOCTTY)
            .open(&path)
            .map_err(|source| RestartError::Open {
                pid: image.pid(),
                path: path.clone(),
                source,
            })?;
        let kind = description.mode & libc::S_IFMT;
        if (kind == libc::S_IFREG || kind == libc::S_IFDIR) && flags & libc::O_PATH == 0 {
            let position = libc::off_t::try_from(description.position).unwrap_or(libc::off_t::MAX);
            // SAFETY: the call takes numbers only.
            if unsafe { libc::lseek(file.as_raw_fd(), position, libc::SEEK_SET) } < 0 {
                return Err(system("set the position in a file"));
            }
        }
        Ok(file.into())
    }
}

/// One of our own standard streams; /dev/null for one that is closed.
pub(super) fn stream(description: &Description) -> Result<OwnedFd, RestartError> {
    let fd = RawFd::try_from(description.inode).unwrap_or(0).min(2);
    // SAFETY: the call takes numbers only.
    let duplicate = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if duplicate >= 0 {
        // SAFETY: the descriptor was just made and is nobody else's.
        return Ok(unsafe { OwnedFd::from_raw_fd(duplicate) });
    }
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    null.map(OwnedFd::from)
        .map_err(|source| RestartError::Read { path: "/dev/null".into(), source })
}
