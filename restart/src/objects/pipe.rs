//! Pipes, with what was in them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use ulpm_image::meta::Description;

use super::Builder;
use crate::error::{RestartError, system};

impl Builder<'_> {
    pub(super) fn pipe_end(
        &self,
        pipes: &mut HashMap<u64, [File; 2]>,
        description: &Description,
    ) -> Result<OwnedFd, RestartError> {
        let id = description.inode;
        let [read, write] = match pipes.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.pipe(id)?),
        };
        // Opened anew, so that each description has flags of its own; the pipe stays the same.
        let (end, mode) = match description.flags.cast_signed() & libc::O_ACCMODE {
            libc::O_RDONLY => (read, libc::O_RDONLY),
            libc::O_WRONLY => (write, libc::O_WRONLY),
            _ => (read, libc::O_RDWR),
        };
        let flags = description.flags.cast_signed() & (libc::O_NONBLOCK | libc::O_DIRECT);
        let path = format!("/proc/self/fd/{}", end.as_raw_fd());
        let path = std::ffi::CString::new(path).unwrap_or_default();
        // SAFETY: the path is NUL-terminated.
        let fd = unsafe { libc::open(path.as_ptr(), mode | flags | libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(system("open the end of a pipe"));
        }
        // SAFETY: the descriptor was just opened and is nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// A pipe with the content that one of its holders saved.
    fn pipe(&self, id: u64) -> Result<[File; 2], RestartError> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(|errno| RestartError::System { what: "make a pipe", source: errno.into() })?;
        let (read, mut write) = (File::from(read), File::from(write));
        let saved =
            self.images.iter().flat_map(|image| &image.meta.pipes).find(|pipe| pipe.id == id);
        if let Some(pipe) = saved {
            let capacity = libc::c_int::try_from(pipe.capacity).unwrap_or(libc::c_int::MAX);
            // SAFETY: the call takes numbers only.
            let set = unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, capacity) };
            // A user with many pipes gets no bigger ones: then it is enough that the content fits.
            if set < 0 {
                let error = system(
                    "give a pipe the capacity that it had (see fs.pipe-max-size and fs.pipe-user-pages-soft)",
                );
                // SAFETY: as above.
                let actual = unsafe { libc::fcntl(write.as_raw_fd(), libc::F_GETPIPE_SZ) };
                if usize::try_from(actual).is_ok_and(|actual| actual < pipe.content.len()) {
                    return Err(error);
                }
            }
            write
                .write_all(&pipe.content)
                .map_err(|source| RestartError::System { what: "fill a pipe", source })?;
        }
        Ok([read, write])
    }
}
