//! Inotify instances.
//!
//! Watches are numbered in ascending order, so a number comes back by using up those before it. What happened
//! between the checkpoint and the restart nobody has told the instance, and the events that were not read are
//! lost. Where either matters the program is told so by IN_Q_OVERFLOW, upon which it is to look at everything
//! again (inotify(7)). The kernel says that only when a queue is full: so it is filled, and emptied but for that.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use ulpm_image::meta::FileWatch;

use super::memory_object;
use crate::error::{RestartError, system};
use crate::image_file::ImageFile;
use crate::path_map::PathMap;

/// Bytes of an event without a name: struct inotify_event (include/uapi/linux/inotify.h).
const EVENT: usize = 16;
/// What a queue holds where the kernel does not say it.
const USUAL_LIMIT: u32 = 16384;
/// So many events we make, at most.
const HIGHEST_LIMIT: u32 = 4 << 20;

pub(super) fn make() -> Result<OwnedFd, RestartError> {
    // SAFETY: the call takes numbers only; the descriptor was just made and is nobody else's.
    unsafe {
        match libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) {
            fd if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(system("make an inotify instance (see fs.inotify.max_user_instances)")),
        }
    }
}

/// Has all instances watch what they did.
pub(super) fn watch_all(
    images: &[ImageFile],
    found: &HashMap<u64, RawFd>,
    paths: &PathMap,
) -> Result<(), RestartError> {
    let metas = || images.iter().map(|image| &image.meta);
    for notifier in metas().flat_map(|meta| &meta.notifiers) {
        let Some(&fd) = found.get(&notifier.description) else { continue };
        let mut watches: Vec<&FileWatch> = metas()
            .flat_map(|meta| &meta.watches)
            .filter(|watch| watch.notifier == notifier.description)
            .collect();
        watches.sort_unstable_by_key(|watch| watch.wd);
        let mut instance = Instance { fd, last: 0 };
        let mut lost = notifier.unread;
        let mut gone = Vec::new();
        for watch in watches {
            match instance.watch(watch, found, paths)? {
                Found::Same => {}
                Found::Changed => lost = true,
                Found::Gone(file) => gone.push(file),
            }
        }
        if lost {
            instance.overflow()?;
        } else {
            instance.forget()?;
        }
        // Only now, for this is an event that is told: the file is deleted.
        drop(gone);
        let mut descriptions = metas().flat_map(|meta| &meta.descriptions);
        let saved = descriptions.find(|description| description.id == notifier.description);
        // SAFETY: the call takes numbers only.
        if unsafe { libc::fcntl(fd, libc::F_SETFL, saved.map_or(0, |saved| saved.flags)) } < 0 {
            return Err(system("set the flags of an inotify instance"));
        }
    }
    Ok(())
}

/// What has become of a file that is to be watched.
enum Found {
    Same,
    Changed,
    /// It is not there. A file without a name is watched in its place, and deleted when that is closed.
    Gone(File),
}

struct Instance {
    fd: RawFd,
    /// The last number that was given to a watch.
    last: i32,
}

impl Instance {
    fn watch(
        &mut self,
        watch: &FileWatch,
        found: &HashMap<u64, RawFd>,
        paths: &PathMap,
    ) -> Result<Found, RestartError> {
        if self.last + 1 < watch.wd {
            let dummy = memory_object(c"ulpm-watched", 0)?;
            while self.last + 1 < watch.wd {
                self.add(&own(&dummy), libc::IN_ATTRIB).map_err(failed)?;
                self.remove(self.last);
                if self.last % 8192 == 0 {
                    self.forget()?;
                }
            }
        }
        let link = if watch.link { libc::IN_DONT_FOLLOW } else { 0 };
        let mask = watch.mask | link | libc::IN_MASK_CREATE;
        let path = match found.get(&watch.target) {
            Some(fd) => format!("/proc/self/fd/{fd}").into(),
            None => paths.map(Path::new(std::ffi::OsStr::from_bytes(&watch.path))),
        };
        let result = match self.add(&c_path(path.clone().into_os_string().into_vec()), mask) {
            Ok(()) => {
                let is_same = watch.mtime == [0; 2]
                    || fs::metadata(&path).is_ok_and(|status| {
                        status.len() == watch.len
                            && [status.mtime(), status.mtime_nsec()] == watch.mtime
                    });
                Ok(if is_same { Found::Same } else { Found::Changed })
            }
            // Gone, or what was another file is now one that is watched already.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::ENOTDIR | libc::EEXIST)
                ) =>
            {
                let file = memory_object(c"ulpm-deleted", 0)?;
                self.add(&own(&file), watch.mask).map(|()| Found::Gone(file))
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(found) if self.last == watch.wd => Ok(found),
            Ok(_) => Err(failed(io::Error::other("the kernel gave another number to a watch"))),
            Err(source) => Err(RestartError::Read { path, source }),
        }
    }

    fn add(&mut self, path: &CString, mask: u32) -> io::Result<()> {
        // SAFETY: the path is NUL-terminated.
        let wd = unsafe { libc::inotify_add_watch(self.fd, path.as_ptr(), mask) };
        if wd < 0 {
            return Err(io::Error::last_os_error());
        }
        self.last = wd;
        Ok(())
    }

    fn remove(&self, wd: i32) {
        // SAFETY: the call takes numbers only. It fails for none that is there.
        unsafe { libc::inotify_rm_watch(self.fd, wd) };
    }

    fn unread(&self) -> usize {
        ulpm_sys::bytes_to_read(self.fd).unwrap_or(0)
    }

    /// Takes out what is told: our own doings.
    fn forget(&self) -> Result<(), RestartError> {
        let mut file = self.file()?;
        let mut events = [0; 65536];
        while self.unread() != 0 && matches!(file.read(&mut events), Ok(1..)) {}
        Ok(())
    }

    fn file(&self) -> Result<File, RestartError> {
        // SAFETY: the call takes numbers only; the descriptor is a new one.
        unsafe {
            match libc::fcntl(self.fd, libc::F_DUPFD_CLOEXEC, self.fd) {
                fd if fd >= 0 => Ok(File::from_raw_fd(fd)),
                _ => Err(system("duplicate a descriptor")),
            }
        }
    }

    /// Leaves the one event which says that others were lost.
    fn overflow(&mut self) -> Result<(), RestartError> {
        let mut file = self.file()?;
        // More than one turn is needed if something happens to the files meanwhile.
        for _ in 0..3 {
            self.fill()?;
            let mut events = [0; 4096];
            loop {
                if self.unread() <= EVENT {
                    return Ok(());
                }
                // One without a name, or if it has one, some.
                let len = match file.read(&mut events[..EVENT]) {
                    Ok(len) => len,
                    Err(_) => file.read(&mut events).map_err(failed)?,
                };
                if has_overflow(&events[..len]) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Makes more events than the queue holds. No two that follow each other are equal, or they would become one.
    fn fill(&mut self) -> Result<(), RestartError> {
        let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events");
        let limit = limit.ok().and_then(|limit| limit.trim().parse().ok()).unwrap_or(USUAL_LIMIT);
        let files = [memory_object(c"ulpm-watched", 0)?, memory_object(c"ulpm-watched", 0)?];
        let mut numbers = [0; 2];
        for (file, number) in files.iter().zip(&mut numbers) {
            self.add(&own(file), libc::IN_ATTRIB).map_err(failed)?;
            *number = self.last;
        }
        for turn in 0..limit.min(HIGHEST_LIMIT) / 2 + 1 {
            for file in &files {
                file.set_permissions(Permissions::from_mode(0o600 | turn & 1)).map_err(failed)?;
            }
        }
        // It is full, so that this is not told.
        for number in numbers {
            self.remove(number);
        }
        Ok(())
    }
}

/// Whether one of these events says that others were lost.
fn has_overflow(mut events: &[u8]) -> bool {
    while let Some((head, rest)) = events.split_first_chunk::<EVENT>() {
        let word =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if word(4) & libc::IN_Q_OVERFLOW != 0 {
            return true;
        }
        events = rest.get(word(12) as usize..).unwrap_or_default();
    }
    false
}

/// A path to a file that we have open.
fn own(file: &File) -> CString {
    c_path(format!("/proc/self/fd/{}", file.as_raw_fd()).into_bytes())
}

fn c_path(path: Vec<u8>) -> CString {
    CString::new(path).unwrap_or_default()
}

fn failed(source: io::Error) -> RestartError {
    RestartError::System { what: "have inotify watch files again", source }
}
