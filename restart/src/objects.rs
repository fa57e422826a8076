//! Kernel objects that processes share, each made once before the tree is forked, and inherited.
//!
//! Everything lies at descriptor numbers that no process of the job uses, so that none is in the way
//! when a process puts its own descriptors at their numbers.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ulpm_image::meta::{Description, Region, description_kind, region_flag, region_kind};

use crate::error::{RestartError, system};
use crate::image_file::ImageFile;
use crate::path_map::PathMap;

/// Flags that say how a file was opened, and must not take effect when it is opened again.
const NOT_AGAIN: libc::c_int = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOFOLLOW;

/// What a region is mapped from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing.
    Anonymous,
    /// A file or memory object, at the region's own offset.
    Object(RawFd),
    /// This kernel's vDSO, or a copy of the old one.
    Vdso,
}

/// The objects.
#[derive(Debug)]
pub struct Objects {
    /// The first descriptor number that no process uses.
    pub base: RawFd,
    descriptions: HashMap<u64, RawFd>,
    /// For each image, by its place, and each of its regions, by its own.
    backings: Vec<Vec<Backing>>,
}

struct Builder<'a> {
    base: RawFd,
    images: &'a [ImageFile],
    paths: &'a PathMap,
    /// By device and inode.
    memory: HashMap<(u64, u64), RawFd>,
    /// By path, and whether it is to be written.
    files: HashMap<(PathBuf, bool), RawFd>,
    /// Files that are not here as they were, put together from what images carry of them.
    carried: HashMap<(u64, u64), RawFd>,
}

impl Objects {
    /// Makes all objects of a job.
    ///
    /// # Errors
    ///
    /// [`RestartError`] names the object that cannot be made.
    pub fn create(images: &[ImageFile], paths: &PathMap) -> Result<Self, RestartError> {
        let used = images.iter().flat_map(|image| &image.meta.descriptors);
        let highest = used.map(|descriptor| descriptor.fd).max().unwrap_or(0);
        let base = highest.max(9) + 1;
        raise_descriptor_limit(base)?;
        let mut builder = Builder {
            base,
            images,
            paths,
            memory: HashMap::new(),
            files: HashMap::new(),
            carried: HashMap::new(),
        };
        let backings = images
            .iter()
            .map(|image| {
                image.meta.regions.iter().map(|region| builder.backing(image, region)).collect()
            })
            .collect::<Result<_, _>>()?;
        let descriptions = builder.descriptions()?;
        Ok(Self { base, descriptions, backings })
    }

    /// The descriptor that stands for a description.
    #[must_use]
    pub fn description(&self, id: u64) -> Option<RawFd> {
        self.descriptions.get(&id).copied()
    }

    /// All descriptors.
    pub fn all(&self) -> impl Iterator<Item = RawFd> + '_ {
        let mut objects: Vec<RawFd> = self
            .backings
            .iter()
            .flatten()
            .filter_map(|backing| match backing {
                Backing::Object(fd) => Some(*fd),
                _ => None,
            })
            .collect();
        objects.sort_unstable();
        objects.dedup();
        objects.into_iter().chain(self.descriptions.values().copied())
    }

    /// What the regions of an image are mapped from.
    #[must_use]
    pub fn backings(&self, image: usize) -> &[Backing] {
        &self.backings[image]
    }
}

/// Makes room for our own descriptors above those of the job; each process gets its own limit back.
fn raise_descriptor_limit(base: RawFd) -> Result<(), RestartError> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let failed = |errno: nix::errno::Errno| RestartError::System {
        what: "raise the limit on open files",
        source: errno.into(),
    };
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(failed)?;
    }
    let base = u64::try_from(base).unwrap_or(0);
    if hard < base + 64 {
        setrlimit(Resource::RLIMIT_NOFILE, base + 1024, base + 1024).map_err(failed)?;
    }
    Ok(())
}

/// Moves a descriptor above those of the job.
#[expect(clippy::needless_pass_by_value, reason = "the original is closed")]
pub(crate) fn lift(fd: OwnedFd, base: RawFd) -> Result<RawFd, RestartError> {
    // SAFETY: the call takes numbers only.
    let lifted = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, base) };
    if lifted < 0 {
        return Err(system("duplicate a descriptor"));
    }
    Ok(lifted)
}

impl Builder<'_> {
    fn backing(&mut self, image: &ImageFile, region: &Region) -> Result<Backing, RestartError> {
        Ok(match region.kind {
            region_kind::FILE => Backing::Object(self.file(image, region)?),
            region_kind::SHARED_MEMORY => Backing::Object(self.memory(region.dev, region.inode)?),
            region_kind::VDSO => Backing::Vdso,
            _ => Backing::Anonymous,
        })
    }

    /// Shared memory or a file without a name: as long as the file was, or the longest region reaches.
    fn memory(&mut self, dev: u64, inode: u64) -> Result<RawFd, RestartError> {
        let key = (dev, inode);
        if let Some(&fd) = self.memory.get(&key) {
            return Ok(fd);
        }
        let regions = self.images.iter().flat_map(|image| &image.meta.regions);
        let len = regions
            .filter(|other| {
                other.kind == region_kind::SHARED_MEMORY && (other.dev, other.inode) == key
            })
            .map(|other| other.offset + (other.end - other.start))
            .max()
            .unwrap_or(0);
        let mut files = self.images.iter().flat_map(|image| &image.meta.deleted);
        let content =
            files.find(|file| (file.dev, file.inode) == key).map(|file| &file.content[..]);
        let object = match content {
            Some(content) => {
                let object = memory_object(c"ulpm-deleted", content.len() as u64)?;
                object.write_all_at(content, 0).map_err(|source| RestartError::System {
                    what: "fill a memory object",
                    source,
                })?;
                object
            }
            None => memory_object(c"ulpm-shared", len)?,
        };
        let fd = lift(object.into(), self.base)?;
        self.memory.insert(key, fd);
        Ok(fd)
    }

    fn file(&mut self, image: &ImageFile, region: &Region) -> Result<RawFd, RestartError> {
        let path = self.paths.map(Path::new(std::ffi::OsStr::from_bytes(&region.path)));
        let shared = region.flags & region_flag::SHARED != 0;
        let write = shared && region.protection & libc::PROT_WRITE.cast_unsigned() != 0;
        if !shared && !is_as_it_was(&path, region) {
            return self.carried(image, region, path);
        }
        let key = (path, write);
        if let Some(&fd) = self.files.get(&key) {
            return Ok(fd);
        }
        let file = OpenOptions::new().read(true).write(write).open(&key.0).map_err(|source| {
            RestartError::Open { pid: image.pid(), path: key.0.clone(), source }
        })?;
        let fd = lift(file.into(), self.base)?;
        self.files.insert(key, fd);
        Ok(fd)
    }

    /// A file from what the images hold of it.
    fn carried(
        &mut self,
        image: &ImageFile,
        region: &Region,
        path: PathBuf,
    ) -> Result<RawFd, RestartError> {
        let key = (region.dev, region.inode);
        let parts = self.images.iter().flat_map(|image| {
            image.meta.regions.iter().map(move |part| (image, part)).filter(|(_, part)| {
                part.kind == region_kind::FILE
                    && part.flags & region_flag::CARRIED != 0
                    && (part.dev, part.inode) == key
            })
        });
        let covers = |(_, part): &(&ImageFile, &Region)| {
            part.offset <= region.offset
                && region.offset + (region.end - region.start)
                    <= part.offset + (part.end - part.start)
        };
        if !parts.clone().any(|part| covers(&part)) {
            return Err(if path.exists() {
                RestartError::Changed { pid: image.pid(), path }
            } else {
                let source = io::ErrorKind::NotFound.into();
                RestartError::Open { pid: image.pid(), path, source }
            });
        }
        if let Some(&fd) = self.carried.get(&key) {
            return Ok(fd);
        }
        let file = memory_object(c"ulpm-carried", region.file_len)?;
        let copied = parts.into_iter().try_for_each(|(image, part)| copy_base(image, part, &file));
        copied.map_err(|source| RestartError::Read { path: image.path.clone(), source })?;
        let fd = lift(file.into(), self.base)?;
        self.carried.insert(key, fd);
        Ok(fd)
    }

    fn descriptions(&mut self) -> Result<HashMap<u64, RawFd>, RestartError> {
        let mut found = HashMap::new();
        let mut pipes: HashMap<u64, [File; 2]> = HashMap::new();
        for image in self.images {
            for description in &image.meta.descriptions {
                if found.contains_key(&description.id) || self.process_of(description).is_some() {
                    continue;
                }
                let fd = match description.kind {
                    description_kind::PIPE => self.pipe_end(&mut pipes, description)?,
                    description_kind::STREAM => stream(description)?,
                    description_kind::DELETED => self.deleted(description)?,
                    _ => self.open(image, description)?,
                };
                found.insert(description.id, lift(fd, self.base)?);
            }
        }
        Ok(found)
    }

    /// The process of the job to which a file below /proc/PID belongs: it can be opened when that
    /// process exists again.
    fn process_of(&self, description: &Description) -> Option<i32> {
        let (pid, _) = below_proc(description)?;
        self.images.iter().any(|image| image.pid() == pid).then_some(pid)
    }

    fn pipe_end(
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

    /// A description of its own of a file without a name.
    fn deleted(&mut self, description: &Description) -> Result<OwnedFd, RestartError> {
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

    fn open(&self, image: &ImageFile, description: &Description) -> Result<OwnedFd, RestartError> {
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

/// The process id and the rest of a path below /proc/PID.
pub(crate) fn below_proc(description: &Description) -> Option<(i32, &str)> {
    let path = std::str::from_utf8(&description.path).ok()?;
    let (pid, rest) = path.strip_prefix("/proc/")?.split_once('/')?;
    Some((pid.parse().ok()?, rest))
}

/// One of our own standard streams; /dev/null for one that is closed.
fn stream(description: &Description) -> Result<OwnedFd, RestartError> {
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

/// Whether the file is the one that was mapped, as far as length and time of change tell.
fn is_as_it_was(path: &Path, region: &Region) -> bool {
    fs::metadata(path).is_ok_and(|found| {
        !found.is_file()
            || (found.len() == region.file_len
                && [found.mtime(), found.mtime_nsec()] == region.mtime)
    })
}

fn memory_object(name: &std::ffi::CStr, len: u64) -> Result<File, RestartError> {
    // SAFETY: the name is NUL-terminated.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(system("make a memory object"));
    }
    // SAFETY: the descriptor was just made and is nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    let sized = file.set_len(len);
    sized.map_err(|source| RestartError::System { what: "size a memory object", source })?;
    Ok(file)
}

/// Copies what an image carries of a file to its place in it.
fn copy_base(image: &ImageFile, part: &Region, file: &File) -> io::Result<()> {
    let mut data = Vec::new();
    for (offset, extent) in image.extents.iter().filter(|(_, extent)| extent.base) {
        if (part.start..part.end).contains(&extent.address) {
            data.resize(extent.len(), 0);
            image.file.read_exact_at(&mut data, *offset)?;
            file.write_all_at(&data, part.offset + (extent.address - part.start))?;
        }
    }
    Ok(())
}

/// Opens a file read-only, above the descriptors of the job.
pub(crate) fn lift_file(file: File, base: RawFd) -> Result<RawFd, RestartError> {
    // SAFETY: the descriptor is taken out of `file`.
    lift(unsafe { OwnedFd::from_raw_fd(file.into_raw_fd()) }, base)
}
