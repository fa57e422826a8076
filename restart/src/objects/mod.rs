//! Kernel objects that processes share, each made once before the tree is forked, and inherited.
//!
//! Each kind of open file description is a module, with the one of the same name in
//! `hijack/src/capture/descriptors/` as its other half.
//!
//! Everything lies at descriptor numbers that no process of the job uses, so that none is in the way
//! when a process puts its own descriptors at their numbers.

pub(crate) mod epoll;
pub(crate) mod events;
mod file;
mod inotify;
pub(crate) mod late;
mod pipe;
mod queue;
mod socket;
mod terminal;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use ulpm_image::meta::{Description, Region, description_kind, region_flag, region_kind};
use ulpm_protocol::table::SocketName;
use ulpm_sys::proc::MapsLine;

use self::terminal::Terminals;
use crate::error::{RestartError, system};
use crate::image_file::ImageFile;
use crate::path_map::PathMap;

use queue::{OwnQueues, Queues};
use socket::Sockets;
pub use socket::{Circumstances, Names};
pub(crate) use terminal::{open_master, open_slave};

/// Flags that say how a file was opened, and must not take effect when it is opened again.
const NOT_AGAIN: libc::c_int = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOFOLLOW;

/// What a region is mapped from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing.
    Anonymous,
    /// A file or memory object, at the region's own offset.
    Object(RawFd),
    /// The same, and its content is there already.
    Filled(RawFd),
    /// This kernel's vDSO, or a copy of the old one.
    Vdso,
    /// A System V segment, which is attached.
    Segment,
}

/// The objects.
#[derive(Debug)]
pub struct Objects {
    /// The first descriptor number that no process uses.
    pub base: RawFd,
    descriptions: HashMap<u64, RawFd>,
    directories: HashMap<(u64, u64), RawFd>,
    /// Slaves, by the id of the process whose controlling terminal they become.
    controlling: HashMap<i32, RawFd>,
    addresses: Vec<(u64, SocketName)>,
    /// For each image, by its place, and each of its regions, by its own.
    backings: Vec<Vec<Backing>>,
    /// Files of unix sockets.
    pub names: Names,
    /// Message queues that go where the job goes.
    pub queues: OwnQueues,
}

/// Descriptions by their ids, controlling terminals by the ids of those who lead their sessions, the files of
/// unix sockets, and the addresses of others by their inodes.
type Made = (HashMap<u64, RawFd>, HashMap<i32, RawFd>, Names, Vec<(u64, SocketName)>);

struct Builder<'a> {
    base: RawFd,
    images: &'a [ImageFile],
    paths: &'a PathMap,
    /// By device and inode.
    memory: HashMap<(u64, u64), RawFd>,
    /// Those of them that cannot be filled through their mappings, likewise, and are filled now.
    filled: HashSet<(u64, u64)>,
    /// Descriptors of them for reading only, likewise.
    read_only: HashMap<(u64, u64), RawFd>,
    /// Objects whose own description is one of the job's, likewise.
    given: HashSet<(u64, u64)>,
    /// Directories that were deleted, likewise.
    directories: HashMap<(u64, u64), RawFd>,
    /// By path, and whether it is to be written.
    files: HashMap<(PathBuf, bool), RawFd>,
    /// Files that are not here as they were, put together from what images carry of them.
    carried: HashMap<(u64, u64), RawFd>,
    queues: Queues<'a>,
}

/// Refuses a job that is connected to programs outside of it.
///
/// # Errors
///
/// [`RestartError::Socket`] names the connection.
pub fn refuse_outside(images: &[ImageFile]) -> Result<(), RestartError> {
    Sockets::collect(images, Circumstances::default()).refuse_outside()
}

impl Objects {
    /// Makes all objects of a job.
    ///
    /// # Errors
    ///
    /// [`RestartError`] names the object that cannot be made.
    pub fn create(
        images: &[ImageFile],
        paths: &PathMap,
        circumstances: Circumstances,
    ) -> Result<Self, RestartError> {
        let used = images.iter().flat_map(|image| {
            let registered = image.meta.interests.iter().map(|interest| interest.fd);
            image.meta.descriptors.iter().map(|descriptor| descriptor.fd).chain(registered)
        });
        let highest = used.max().unwrap_or(0);
        let base = highest.max(9) + 1;
        raise_descriptor_limit(base)?;
        let mut builder = Builder {
            base,
            images,
            paths,
            memory: HashMap::new(),
            filled: HashSet::new(),
            read_only: HashMap::new(),
            given: HashSet::new(),
            directories: HashMap::new(),
            files: HashMap::new(),
            carried: HashMap::new(),
            queues: Queues::new(images, circumstances.check),
        };
        let backings = images
            .iter()
            .map(|image| {
                image.meta.regions.iter().map(|region| builder.backing(image, region)).collect()
            })
            .collect::<Result<_, _>>()?;
        let (descriptions, controlling, names, addresses) = builder.descriptions(circumstances)?;
        for image in images {
            for gone in &image.meta.deleted_cwd {
                let path = Path::new(std::ffi::OsStr::from_bytes(&image.meta.process.cwd));
                builder.deleted_directory((gone.dev, gone.inode), gone.mode, path)?;
            }
        }
        let Builder { directories, queues, .. } = builder;
        let queues = queues.finish()?;
        Ok(Self {
            base,
            descriptions,
            directories,
            controlling,
            addresses,
            backings,
            names,
            queues,
        })
    }

    /// The descriptor that stands for a description.
    #[must_use]
    pub fn description(&self, id: u64) -> Option<RawFd> {
        self.descriptions.get(&id).copied()
    }

    /// The terminal that a leader of a session is to control.
    #[must_use]
    pub fn controlling(&self, pid: i32) -> Option<RawFd> {
        self.controlling.get(&pid).copied()
    }

    /// A directory that was deleted, by device and inode.
    #[must_use]
    pub fn deleted_directory(&self, key: (u64, u64)) -> Option<RawFd> {
        self.directories.get(&key).copied()
    }

    /// By inode, the addresses by which the program knows its sockets, where these are not the real ones.
    #[must_use]
    pub fn socket_names(&self) -> &[(u64, SocketName)] {
        &self.addresses
    }

    /// All descriptors.
    pub fn all(&self) -> impl Iterator<Item = RawFd> + '_ {
        let mut objects: Vec<RawFd> = self
            .backings
            .iter()
            .flatten()
            .filter_map(|backing| match backing {
                Backing::Object(fd) | Backing::Filled(fd) => Some(*fd),
                _ => None,
            })
            .collect();
        objects.sort_unstable();
        objects.dedup();
        let others = self.descriptions.values().chain(self.controlling.values());
        objects.into_iter().chain(others.chain(self.directories.values()).copied())
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
            region_kind::FILE if region.flags & region_flag::SHARED != 0 => {
                Backing::Filled(self.file(image, region)?)
            }
            region_kind::FILE => Backing::Object(self.file(image, region)?),
            region_kind::SHARED_MEMORY => self.shared_memory(region)?,
            region_kind::VDSO => Backing::Vdso,
            region_kind::SEGMENT => Backing::Segment,
            _ => Backing::Anonymous,
        })
    }

    /// What a region of shared memory is mapped from.
    fn shared_memory(&mut self, region: &Region) -> Result<Backing, RestartError> {
        let key = (region.dev, region.inode);
        let fd = self.memory(key)?;
        let fd = match self.read_only.get(&key) {
            _ if region.flags & region_flag::READ_ONLY == 0 => fd,
            Some(&fd) => fd,
            None => {
                let file = File::open(format!("/proc/self/fd/{fd}")).map_err(|source| {
                    RestartError::System { what: "open shared memory for reading", source }
                })?;
                let fd = lift(file.into(), self.base)?;
                self.read_only.insert(key, fd);
                fd
            }
        };
        Ok(if self.filled.contains(&key) { Backing::Filled(fd) } else { Backing::Object(fd) })
    }

    /// Shared memory or a file without a name: as long as the file was, or the longest region reaches.
    fn memory(&mut self, key: (u64, u64)) -> Result<RawFd, RestartError> {
        if let Some(&fd) = self.memory.get(&key) {
            return Ok(fd);
        }
        let regions = || {
            let images = self.images.iter();
            let all = images.flat_map(|image| image.meta.regions.iter().map(move |r| (image, r)));
            all.filter(|(_, other)| {
                other.kind == region_kind::SHARED_MEMORY && (other.dev, other.inode) == key
            })
        };
        let mut files = self.images.iter().flat_map(|image| &image.meta.deleted);
        let object = if let Some(file) = files.find(|file| (file.dev, file.inode) == key) {
            self.filled.insert(key);
            self.nameless(file)?
        } else {
            let len = regions().map(|(_, other)| other.offset + (other.end - other.start)).max();
            let name = regions().find_map(|(_, other)| file::memory_name(&other.path));
            let name = name.as_deref().unwrap_or(c"ulpm-shared");
            let object = memory_object(name, len.unwrap_or(0))?;
            if regions().any(|(_, other)| other.flags & region_flag::READ_ONLY != 0) {
                self.filled.insert(key);
                for (image, region) in regions() {
                    copy_pages(image, region, &object, false).map_err(|source| {
                        RestartError::Read { path: image.path.clone(), source }
                    })?;
                }
            }
            object
        };
        let fd = lift(object.into(), self.base)?;
        self.memory.insert(key, fd);
        Ok(fd)
    }

    fn file(&mut self, image: &ImageFile, region: &Region) -> Result<RawFd, RestartError> {
        let path = self.paths.map(Path::new(std::ffi::OsStr::from_bytes(&region.path)));
        let shared = region.flags & region_flag::SHARED != 0;
        let writes = shared && region.protection & libc::PROT_WRITE.cast_unsigned() != 0;
        // It may be made writable, if the file may be written to here.
        let write = writes || shared && region.flags & region_flag::READ_ONLY == 0;
        if !shared && !is_as_it_was(&path, region) {
            return self.carried(image, region, path);
        }
        let key = (path, write);
        if let Some(&fd) = self.files.get(&key) {
            return Ok(fd);
        }
        if shared && !self.files.contains_key(&(key.0.clone(), !write)) {
            self.file_in_memory(region, &key.0).map_err(|source| RestartError::Open {
                pid: image.pid(),
                path: key.0.clone(),
                source,
            })?;
        }
        let open = |write| {
            let mut options = OpenOptions::new();
            options.read(true).write(write);
            file::open_own(&options, &key.0)
        };
        let opened = match open(write) {
            Err(_) if !writes => open(false),
            opened => opened,
        };
        let file = opened.map_err(|source| RestartError::Open {
            pid: image.pid(),
            path: key.0.clone(),
            source,
        })?;
        let fd = lift(file.into(), self.base)?;
        self.files.insert(key, fd);
        Ok(fd)
    }

    /// Gives a file that is in memory only, and mapped shared, the content that was saved: if it is not there, as
    /// on another host, or if it is the one that was saved and nobody has it mapped, as behind a `kill -9`.
    fn file_in_memory(&self, region: &Region, path: &Path) -> io::Result<()> {
        let parts: Vec<(&ImageFile, &Region)> = self
            .images
            .iter()
            .flat_map(|image| image.meta.regions.iter().map(move |part| (image, part)))
            .filter(|(_, part)| {
                let flags = region_flag::CARRIED | region_flag::SHARED;
                part.kind == region_kind::FILE
                    && part.flags & flags == flags
                    && (part.dev, part.inode) == (region.dev, region.inode)
            })
            .collect();
        if parts.is_empty() {
            return Ok(());
        }
        let file = match fs::metadata(path) {
            Ok(found) if found.ino() == region.inode && !is_mapped(region) => {
                OpenOptions::new().read(true).write(true).open(path)?
            }
            Ok(_) => return Ok(()),
            Err(_) => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create_new(true);
                std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
                options.open(path)?
            }
        };
        // What is not in the images is zero; what no part covers stays as it is, where it is.
        file.set_len(region.file_len)?;
        for (image, part) in parts {
            let len = (part.end - part.start).min(region.file_len.saturating_sub(part.offset));
            let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
            for (offset, extent) in &image.extents {
                if (part.start..part.end).contains(&extent.address) {
                    let at = usize::try_from(extent.address - part.start).unwrap_or(0);
                    let end = (at + extent.len()).min(data.len());
                    if at < end {
                        image.file.read_exact_at(&mut data[at..end], *offset)?;
                    }
                }
            }
            file.write_all_at(&data, part.offset)?;
        }
        Ok(())
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
                    && part.flags & (region_flag::CARRIED | region_flag::SHARED)
                        == region_flag::CARRIED
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
        let copied =
            parts.into_iter().try_for_each(|(image, part)| copy_pages(image, part, &file, true));
        copied.map_err(|source| RestartError::Read { path: image.path.clone(), source })?;
        let fd = lift(file.into(), self.base)?;
        self.carried.insert(key, fd);
        Ok(fd)
    }

    fn descriptions(&mut self, circumstances: Circumstances) -> Result<Made, RestartError> {
        let mut found = HashMap::new();
        let terminals = Terminals::make(self.images)?;
        let mut sockets = Sockets::collect(self.images, circumstances);
        sockets.make(self.paths)?;
        let mut pipes: HashMap<u64, [pipe::PipeEnd; 2]> = HashMap::new();
        for image in self.images {
            for description in &image.meta.descriptions {
                if found.contains_key(&description.id) || is_late(self.images, description) {
                    continue;
                }
                if description.kind == description_kind::FIFO {
                    for (id, fd) in self.fifo_ends(description)? {
                        found.insert(id, lift(fd, self.base)?);
                    }
                    continue;
                }
                let fd = match description.kind {
                    description_kind::PIPE => self.pipe_end(&mut pipes, description)?,
                    description_kind::SOCKET => sockets.description(description)?,
                    description_kind::EVENT => self.event(description)?,
                    description_kind::EPOLL => epoll::make(description)?,
                    description_kind::NOTIFIER => inotify::make()?,
                    description_kind::MASTER => terminals.master(description)?,
                    description_kind::TERMINAL => terminals.slave(description)?,
                    // The launcher's may be gone, and its name be one of the job's own by now.
                    description_kind::STREAM => match terminals.own(description)? {
                        Some(slave) => slave,
                        None => file::stream(description, circumstances.streams)?,
                    },
                    description_kind::DELETED => self.deleted(description)?,
                    description_kind::QUEUE => self.queues.description(description)?,
                    _ => self.open(image, description)?,
                };
                found.insert(description.id, lift(fd, self.base)?);
            }
        }
        let (names, addresses) = sockets.fill(&found, self.paths)?;
        self.finish_memory()?;
        // The last of all, so that our own doings are not told.
        inotify::watch_all(self.images, &found, self.paths)?;
        let mut controlling = HashMap::new();
        for (pid, slave) in terminals.finish()? {
            controlling.insert(pid, lift(slave, self.base)?);
        }
        Ok((found, controlling, names, addresses))
    }
}

/// Whether a description is that of a process of the job (a pidfd, or a file below /proc/PID), so that it can
/// be opened only when that process exists again.
pub(crate) fn is_late(images: &[ImageFile], description: &Description) -> bool {
    let is_member = |pid| images.iter().any(|image| image.pid() == pid);
    events::process_of(images, description).is_some()
        || below_proc(description).is_some_and(|(pid, _)| is_member(pid))
}

/// The process id and the rest of a path below /proc/PID.
pub(crate) fn below_proc(description: &Description) -> Option<(i32, &str)> {
    let path = std::str::from_utf8(&description.path).ok()?;
    let (pid, rest) = path.strip_prefix("/proc/")?.split_once('/')?;
    Some((pid.parse().ok()?, rest))
}

/// Whether the file is the one that was mapped, as far as length and time of change tell.
fn is_as_it_was(path: &Path, region: &Region) -> bool {
    fs::metadata(path).is_ok_and(|found| {
        !found.is_file()
            || (found.len() == region.file_len
                && [found.mtime(), found.mtime_nsec()] == region.mtime)
    })
}

/// The name that an object had before it lost it.
fn original_name(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    let name = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    Path::new(std::ffi::OsStr::from_bytes(name)).into()
}

/// A directory for what gets a name only until it is open.
fn temporary_directory() -> Result<PathBuf, RestartError> {
    let template = std::env::temp_dir().join("ulpm-XXXXXX");
    nix::unistd::mkdtemp(&template).map_err(|errno| RestartError::System {
        what: "make a temporary directory",
        source: errno.into(),
    })
}

/// Whether a process has the file of a region mapped, under whatever name.
fn is_mapped(region: &Region) -> bool {
    let listed = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut maps = listed.filter_map(|entry| fs::read(entry.path().join("maps")).ok());
    maps.any(|maps| {
        let mut lines = maps.split(|&byte| byte == b'\n').filter_map(MapsLine::parse);
        lines.any(|line| (line.dev, line.inode) == (region.dev, region.inode))
    })
}

fn memory_object(name: &std::ffi::CStr, len: u64) -> Result<File, RestartError> {
    memory_object_with(name, len, 0)
}

/// The same with flags of memfd_create(2).
fn memory_object_with(
    name: &std::ffi::CStr,
    len: u64,
    flags: libc::c_uint,
) -> Result<File, RestartError> {
    /// Not known before Linux 6.3, where every such file may be executed. Without it, a host may ask that it may not.
    const MFD_EXEC: libc::c_uint = 0x10;
    let make = |flags| {
        // SAFETY: the name is NUL-terminated.
        unsafe { libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC) }
    };
    let fd = match make(flags | MFD_EXEC) {
        -1 => make(flags),
        fd => fd,
    };
    if fd < 0 {
        return Err(system("make a memory object"));
    }
    // SAFETY: the descriptor was just made and is nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    let sized = file.set_len(len);
    sized.map_err(|source| RestartError::System { what: "size a memory object", source })?;
    Ok(file)
}

/// Copies what an image has of a file to its place in it: the unchanged pages that it carries if `base`, else what was
/// in a mapping.
fn copy_pages(image: &ImageFile, part: &Region, file: &File, base: bool) -> io::Result<()> {
    let mut data = Vec::new();
    for (offset, extent) in image.extents.iter().filter(|(_, extent)| extent.base == base) {
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
