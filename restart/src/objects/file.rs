//! Files, with and without a name, and the standard streams.

use std::ffi::CString;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use ulpm_image::meta::{
    DeletedFile, Description, MemoryFile, description_kind, region_flag, region_kind,
};

use super::{Builder, NOT_AGAIN, lift, memory_object, memory_object_with, original_name};
use crate::error::{RestartError, system};
use crate::image_file::ImageFile;

/// The name that a file of memfd_create(2) was given, from where the kernel says that it is.
pub(super) fn memory_name(path: &[u8]) -> Option<CString> {
    let name = path.strip_prefix(b"/memfd:")?;
    CString::new(name.strip_suffix(b" (deleted)").unwrap_or(name)).ok()
}

impl Builder<'_> {
    /// A description of its own of a file without a name.
    pub(super) fn deleted(&mut self, description: &Description) -> Result<OwnedFd, RestartError> {
        let key = (description.dev, description.inode);
        let is_directory = description.mode & libc::S_IFMT == libc::S_IFDIR;
        let object = if is_directory {
            let path = Path::new(std::ffi::OsStr::from_bytes(&description.path));
            self.deleted_directory(key, description.mode & 0o7777, path)?
        } else {
            self.memory(key)?
        };
        let mut flags = description.flags.cast_signed() & !NOT_AGAIN;
        if !is_directory {
            // The second is a part of how such a file is made, with a bit that asks for a directory.
            flags &= !(libc::O_DIRECT | libc::O_TMPFILE);
        }
        let path = std::ffi::CString::new(format!("/proc/self/fd/{object}")).unwrap_or_default();
        let position = libc::off_t::try_from(description.position).unwrap_or(libc::off_t::MAX);
        // Only the description that made a file without a name says so, and such a file may be given one.
        let wanted = libc::O_TMPFILE | libc::O_RDWR;
        // SAFETY: the calls take numbers only, and one path that is NUL-terminated.
        unsafe {
            let made = description.flags.cast_signed() & wanted == wanted
                && libc::fcntl(object, libc::F_GETFL) & wanted == wanted
                && self.given.insert(key);
            let fd = if made {
                let status = flags & (libc::O_APPEND | libc::O_NONBLOCK | libc::O_NOATIME);
                libc::fcntl(object, libc::F_SETFL, status);
                libc::fcntl(object, libc::F_DUPFD_CLOEXEC, 3)
            } else {
                libc::open(path.as_ptr(), flags | libc::O_CLOEXEC)
            };
            let only_names = flags & libc::O_PATH != 0;
            if fd < 0 || !only_names && libc::lseek(fd, position, libc::SEEK_SET) < 0 {
                return Err(system("open a file without a name again"));
            }
            let fd = OwnedFd::from_raw_fd(fd);
            if description.flags.cast_signed() & libc::O_DIRECT != 0 && !only_names {
                // Where the file is in memory now, the kernel may not know that, and nothing needs it.
                let status = flags & (libc::O_APPEND | libc::O_NONBLOCK | libc::O_NOATIME);
                libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, status | libc::O_DIRECT);
            }
            Ok(fd)
        }
    }

    /// A file without a name, with its content: in the file system that it was in, where that can be.
    pub(super) fn nameless(&self, file: &DeletedFile) -> Result<File, RestartError> {
        let mut descriptions = self.images.iter().flat_map(|image| &image.meta.descriptions);
        let known = descriptions.find(|other| {
            other.kind == description_kind::DELETED
                && (other.dev, other.inode) == (file.dev, file.inode)
        });
        let memory = self.memory_file((file.dev, file.inode));
        let made = known.filter(|_| memory.is_none()).and_then(|description| {
            let path = self.paths.map(Path::new(std::ffi::OsStr::from_bytes(&description.path)));
            // Only a file that was made without a name may be given one.
            let made_so = description.flags.cast_signed() & libc::O_TMPFILE == libc::O_TMPFILE;
            let exclusive = if made_so { 0 } else { libc::O_EXCL };
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE | exclusive);
            options.open(path.parent()?).ok()
        });
        let object = match (made, memory) {
            (Some(object), _) => object,
            (None, None) => memory_object(c"ulpm-deleted", 0)?,
            (None, Some(_)) => {
                let name = known.and_then(|description| memory_name(&description.path));
                let name = name.as_deref().unwrap_or(c"");
                memory_object_with(name, 0, libc::MFD_ALLOW_SEALING)?
            }
        };
        let failed = |source| RestartError::System { what: "fill a file without a name", source };
        object.set_len(file.len).map_err(failed)?;
        for part in &file.parts {
            object.write_all_at(&part.content, part.offset).map_err(failed)?;
        }
        Ok(object)
    }

    fn memory_file(&self, key: (u64, u64)) -> Option<&MemoryFile> {
        let mut files = self.images.iter().flat_map(|image| &image.meta.memory_files);
        files.find(|file| (file.dev, file.inode) == key)
    }

    /// Gives files without a name their modes and seals, when they have their content and are open for whatever they
    /// are open.
    pub(super) fn finish_memory(&self) -> Result<(), RestartError> {
        for (key, &object) in &self.memory {
            let mut descriptions = self.images.iter().flat_map(|image| &image.meta.descriptions);
            let known = descriptions.find(|other| {
                other.kind == description_kind::DELETED && (other.dev, other.inode) == *key
            });
            if let Some(description) = known
                // SAFETY: the call takes numbers only.
                && unsafe { libc::fchmod(object, description.mode & 0o7777) } < 0
            {
                return Err(system("set the mode of a file without a name"));
            }
            let Some(file) = self.memory_file(*key) else { continue };
            let mut regions = self.images.iter().flat_map(|image| &image.meta.regions);
            let is_mapped_for_writing = regions.any(|region| {
                region.kind == region_kind::SHARED_MEMORY
                    && (region.dev, region.inode) == *key
                    && region.flags & region_flag::READ_ONLY == 0
            });
            let mut seals = file.seals.cast_signed();
            if seals & libc::F_SEAL_FUTURE_WRITE != 0 && is_mapped_for_writing {
                // Each process adds them when all have their mappings.
                seals &= !(libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL);
            }
            // SAFETY: the call takes numbers only.
            if seals != 0 && unsafe { libc::fcntl(object, libc::F_ADD_SEALS, seals) } < 0 {
                return Err(system("seal a file of memfd_create(2)"));
            }
        }
        Ok(())
    }

    /// A directory that was deleted: made and removed again. It has a name for as long.
    pub(super) fn deleted_directory(
        &mut self,
        key: (u64, u64),
        mode: u32,
        path: &Path,
    ) -> Result<RawFd, RestartError> {
        if let Some(&fd) = self.directories.get(&key) {
            return Ok(fd);
        }
        let failed =
            |source| RestartError::System { what: "make a directory that was deleted", source };
        let original = original_name(&self.paths.map(path));
        let place = match std::fs::create_dir(&original) {
            Ok(()) => original,
            // Its name is taken, or the directory that it was in is gone too.
            Err(_) => super::temporary_directory()?,
        };
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&place);
        let removed = std::fs::remove_dir(&place);
        let file = opened.map_err(failed)?;
        removed.map_err(failed)?;
        file.set_permissions(Permissions::from_mode(mode)).map_err(failed)?;
        let fd = lift(file.into(), self.base)?;
        self.directories.insert(key, fd);
        Ok(fd)
    }

    pub(super) fn open(
        &self,
        image: &ImageFile,
        description: &Description,
    ) -> Result<OwnedFd, RestartError> {
        let path = self.paths.map(Path::new(std::ffi::OsStr::from_bytes(&description.path)));
        let mut flags = description.flags.cast_signed() & !(NOT_AGAIN | libc::O_ACCMODE);
        // A link itself.
        if flags & libc::O_PATH != 0 && description.mode & libc::S_IFMT == libc::S_IFLNK {
            flags |= libc::O_NOFOLLOW;
        }
        let access = description.flags.cast_signed() & libc::O_ACCMODE;
        let mut options = OpenOptions::new();
        options.read(access != libc::O_WRONLY).write(access != libc::O_RDONLY);
        options.custom_flags(flags | libc::O_NOCTTY);
        let file = open_own(&options, &path).map_err(|source| RestartError::Open {
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

/// Opens a file, also one whose owner we are and whose mode does not let us any more: who has made a file may write to it
/// whatever its mode, and git makes all of its objects so.
pub(super) fn open_own(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let refused = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => error,
        other => return other,
    };
    let Ok(found) = std::fs::metadata(path) else { return Err(refused) };
    if !found.is_file() || found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(refused);
    }
    let mode = found.permissions();
    std::fs::set_permissions(path, Permissions::from_mode(mode.mode() & 0o7777 | 0o600))?;
    let opened = options.open(path);
    std::fs::set_permissions(path, mode)?;
    opened
}

/// One of the standard streams that we have for the job; /dev/null for one that is closed.
pub(super) fn stream(
    description: &Description,
    streams: [RawFd; 3],
) -> Result<OwnedFd, RestartError> {
    let fd = streams[usize::try_from(description.inode).unwrap_or(0).min(2)];
    let waits = description.flags.cast_signed() & libc::O_NONBLOCK == 0;
    if !waits && let Some(opened) = without_waiting(fd, description) {
        return Ok(opened);
    }
    // SAFETY: the call takes numbers only.
    let duplicate = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if duplicate >= 0 {
        // SAFETY: the calls take numbers only.
        unsafe {
            // Others who have this terminal would notice; with what else there is, the program has done so before.
            if !waits && libc::isatty(fd) == 0 {
                let flags = libc::fcntl(fd, libc::F_GETFL);
                libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK);
            }
        }
        // SAFETY: the descriptor was just made and is nobody else's.
        return Ok(unsafe { OwnedFd::from_raw_fd(duplicate) });
    }
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    null.map(OwnedFd::from)
        .map_err(|source| RestartError::Read { path: "/dev/null".into(), source })
}

/// The terminal, pipe or log that one of our streams is, opened anew for a program that does not wait for it: ours belongs
/// to others too, and the program's other streams may lead to it.
fn without_waiting(fd: RawFd, description: &Description) -> Option<OwnedFd> {
    let path = std::ffi::CString::new(format!("/proc/self/fd/{fd}")).ok()?;
    let link = std::fs::read_link(path.to_str().ok()?).ok()?;
    // SAFETY: the calls take numbers only.
    let (terminal, ours) = unsafe { (libc::isatty(fd) != 0, libc::fcntl(fd, libc::F_GETFL)) };
    // A file's offset is shared with whoever has opened it, unless all write at its end.
    if !terminal && !link.to_string_lossy().starts_with("pipe:") && ours & libc::O_APPEND == 0 {
        return None;
    }
    let kept = libc::O_ACCMODE | libc::O_NONBLOCK;
    let flags = description.flags.cast_signed() & kept | ours & libc::O_APPEND;
    // SAFETY: the path is NUL-terminated.
    let opened = unsafe { libc::open(path.as_ptr(), flags | libc::O_NOCTTY | libc::O_CLOEXEC) };
    // SAFETY: the descriptor was just opened and is nobody else's.
    (opened >= 0).then(|| unsafe { OwnedFd::from_raw_fd(opened) })
}
