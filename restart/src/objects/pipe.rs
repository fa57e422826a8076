//! Pipes with and without a name, with what was in them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ulpm_image::meta::{Description, Fifo, PACKET, Pipe, description_kind};

use super::{Builder, original_name};
use crate::error::{RestartError, system};

/// Flags of an open pipe that F_SETFL changes.
const LATER: libc::c_int = libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME;

/// O_LARGEFILE of the kernel, which open(2) sets in every 64-bit program and libc calls 0.
const O_LARGEFILE: libc::c_int = 0o100_000;

/// An end of a new pipe.
#[derive(Debug)]
pub(super) struct PipeEnd {
    file: File,
    /// Whether a description of the job is this one.
    given: bool,
}

impl Builder<'_> {
    pub(super) fn pipe_end(
        &self,
        pipes: &mut HashMap<u64, [PipeEnd; 2]>,
        description: &Description,
    ) -> Result<OwnedFd, RestartError> {
        let id = description.inode;
        let [read, write] = match pipes.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.pipe(id)?),
        };
        let end = match description.flags.cast_signed() & libc::O_ACCMODE {
            libc::O_WRONLY => write,
            _ => read,
        };
        let failed = |source| RestartError::System { what: "open the end of a pipe", source };
        // Only pipe2(2) makes descriptions without this flag, which a program can see.
        if description.flags.cast_signed() & O_LARGEFILE == 0 && !end.given {
            end.given = true;
            let own = end.file.try_clone().map_err(failed)?;
            set_flags(&own, description).map_err(failed)?;
            return Ok(own.into());
        }
        // Opened anew, so that each description has flags of its own; the pipe stays the same.
        let path = PathBuf::from(format!("/proc/self/fd/{}", end.file.as_raw_fd()));
        Ok(open_end(&path, description).map_err(failed)?.into())
    }

    /// A pipe with the content that one of its holders saved.
    fn pipe(&self, id: u64) -> Result<[PipeEnd; 2], RestartError> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(|errno| RestartError::System { what: "make a pipe", source: errno.into() })?;
        let (read, mut write) = (File::from(read), File::from(write));
        let saved =
            self.images.iter().flat_map(|image| &image.meta.pipes).find(|pipe| pipe.id == id);
        if let Some(pipe) = saved {
            fill(&mut write, pipe)?;
        }
        Ok([read, write].map(|file| PipeEnd { file, given: false }))
    }

    /// All ends of a named pipe that the job had open.
    ///
    /// None of the opens waits for the other end, which may be outside of the job, or gone.
    pub(super) fn fifo_ends(
        &self,
        first: &Description,
    ) -> Result<Vec<(u64, OwnedFd)>, RestartError> {
        let key = (first.dev, first.inode);
        let is_same = |other: &&Description| {
            other.kind == description_kind::FIFO && (other.dev, other.inode) == key
        };
        let mut ends: HashMap<u64, &Description> = HashMap::new();
        for image in self.images {
            ends.extend(image.meta.descriptions.iter().filter(is_same).map(|end| (end.id, end)));
        }
        let saved = self
            .images
            .iter()
            .flat_map(|image| &image.meta.fifos)
            .find(|fifo| (fifo.dev, fifo.inode) == key);
        let unknown = Fifo { mode: first.mode & 0o7777, ..Fifo::default() };
        let saved = saved.unwrap_or(&unknown);
        let path = self.paths.map(Path::new(std::ffi::OsStr::from_bytes(&first.path)));
        let place = FifoPlace::find(&path, saved)?;
        let failed = |source: io::Error| {
            let pid = self.images.first().map_or(0, crate::image_file::ImageFile::pid);
            RestartError::Open { pid, path: place.path.clone(), source }
        };

        // Whoever else has it open has kept it, with what is in it.
        let has_reader = open(&place.path, libc::O_WRONLY).is_ok();
        let mut keep = open(&place.path, libc::O_RDONLY).map_err(failed)?;
        let has_writer = match bytes_to_read(&keep) {
            // No writer: the end. One: there is nothing yet.
            0 => keep.read(&mut [0]).is_err(),
            _ => true,
        };
        let mut pump = None;
        if !has_reader && !has_writer {
            let mut writer = open(&place.path, libc::O_WRONLY).map_err(failed)?;
            fill(&mut writer, &saved.pipe)?;
            pump = Some(writer);
        }
        let mut found = Vec::new();
        // A reading end that is opened while there is no writer does not take that for their having gone.
        let reads = |end: &Description| end.flags.cast_signed() & libc::O_ACCMODE == libc::O_RDONLY;
        for hung_up in [true, false] {
            for (&id, end) in ends.iter().filter(|(_, end)| reads(end)) {
                if (end.position != 0) != hung_up {
                    continue;
                }
                if hung_up && pump.is_none() {
                    pump = open(&place.path, libc::O_WRONLY).ok();
                }
                found.push((id, open_end(&place.path, end).map_err(failed)?.into()));
            }
            pump = None;
        }
        for (id, end) in ends.into_iter().filter(|(_, end)| !reads(end)) {
            found.push((id, open_end(&place.path, end).map_err(failed)?.into()));
        }
        Ok(found)
    }
}

/// Where a named pipe is; one whose name was gone has one until it is open.
struct FifoPlace {
    path: PathBuf,
    remove: bool,
    dir: Option<PathBuf>,
}

impl FifoPlace {
    fn find(path: &Path, fifo: &Fifo) -> Result<Self, RestartError> {
        let unusable = |source: io::Error| RestartError::Open { pid: 0, path: path.into(), source };
        if fifo.deleted {
            let original = original_name(path);
            if make_fifo(&original, fifo.mode).is_ok() {
                return Ok(Self { path: original, remove: true, dir: None });
            }
            let dir = super::temporary_directory()?;
            let path = dir.join("fifo");
            make_fifo(&path, fifo.mode).map_err(unusable)?;
            return Ok(Self { path, remove: true, dir: Some(dir) });
        }
        match std::fs::metadata(path) {
            Ok(found) if found.file_type().is_fifo() => {}
            Ok(_) => return Err(RestartError::NoFifo { path: path.into() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_fifo(path, fifo.mode).map_err(unusable)?;
            }
            Err(error) => return Err(unusable(error)),
        }
        Ok(Self { path: path.into(), remove: false, dir: None })
    }
}

impl Drop for FifoPlace {
    fn drop(&mut self) {
        if self.remove {
            let _ = std::fs::remove_file(&self.path);
        }
        if let Some(dir) = &self.dir {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

fn make_fifo(path: &Path, mode: u32) -> io::Result<()> {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(mode))?;
    // The mask of mode bits does not count.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Opens a pipe without waiting for its other end.
fn open(path: &Path, access: libc::c_int) -> io::Result<File> {
    OpenOptions::new()
        .read(access != libc::O_WRONLY)
        .write(access != libc::O_RDONLY)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

/// Opens an end of a pipe as it was open.
fn open_end(path: &Path, description: &Description) -> io::Result<File> {
    let file = open(path, description.flags.cast_signed() & libc::O_ACCMODE)?;
    set_flags(&file, description)?;
    Ok(file)
}

fn set_flags(file: &File, description: &Description) -> io::Result<()> {
    let flags = description.flags.cast_signed() & LATER;
    // SAFETY: the call takes numbers only.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn bytes_to_read(file: &File) -> usize {
    ulpm_sys::bytes_to_read(file.as_raw_fd()).unwrap_or(0)
}

/// Gives an empty pipe its capacity and content.
fn fill(write: &mut File, pipe: &Pipe) -> Result<(), RestartError> {
    if pipe.capacity == 0 {
        return Ok(());
    }
    let fd = write.as_raw_fd();
    let whole = [u32::try_from(pipe.content.len()).unwrap_or(0)];
    let parts = if pipe.parts.is_empty() { &whole[..] } else { &pipe.parts };
    let capacity = libc::c_int::try_from(pipe.capacity).unwrap_or(libc::c_int::MAX);
    // SAFETY: the call takes numbers only.
    let set = unsafe { libc::fcntl(fd, libc::F_SETPIPE_SZ, capacity) };
    // A user with many pipes gets no bigger ones: then it is enough that the content fits.
    if set < 0 {
        let error = system(
            "give a pipe the capacity that it had (see fs.pipe-max-size and fs.pipe-user-pages-soft)",
        );
        // SAFETY: as above.
        let actual = unsafe { libc::fcntl(fd, libc::F_GETPIPE_SZ) };
        let len = |part: &u32| (part & !PACKET) as usize;
        let needed: usize = parts.iter().map(|part| ulpm_sys::page_up(len(part))).sum();
        if usize::try_from(actual).is_ok_and(|actual| actual < needed) {
            return Err(error);
        }
    }
    let failed = |source| RestartError::System { what: "fill a pipe", source };
    // SAFETY: as above.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    let mut rest = &pipe.content[..];
    for part in parts {
        let packet = if part & PACKET == 0 { 0 } else { libc::O_DIRECT };
        // SAFETY: as above.
        unsafe { libc::fcntl(fd, libc::F_SETFL, flags & !libc::O_DIRECT | packet) };
        let len = ((part & !PACKET) as usize).min(rest.len());
        let (now, later) = rest.split_at(len);
        write.write_all(now).map_err(failed)?;
        rest = later;
    }
    // SAFETY: as above.
    unsafe { libc::fcntl(fd, libc::F_SETFL, flags) };
    Ok(())
}
