//! What inotify instances watch.
//!
//! fdinfo tells the inode of each watch. The path is one of those that the program has given
//! ([`watched`](crate::watched)), or that of something that the process has open, or is found by root through the
//! handle that fdinfo tells as well. Which path leads to which inode the kernel says in its own words: an
//! instance of our own watches it for a moment.
//!
//! Events that were not read are left where they are, for nobody can look at them without taking them.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ffi::CStr;

use ulpm_image::Meta;
use ulpm_image::meta::{FileWatch, Notifier, description_kind as kind};
use ulpm_sys::fmt::Text;
use ulpm_sys::proc::{decimal, hex};
use ulpm_sys::{FileStatus, inotify, oflag};

use super::Open;
use crate::capture::text::{Lines, read_file};
use crate::capture::unsupported;
use crate::freeze::Failed;
use crate::watched;

/// An inotify instance that this process saves.
#[derive(Debug)]
pub(super) struct Notifying {
    fd: i32,
    /// `Description::id`.
    description: u64,
    /// Whether it has events that were not read.
    unread: bool,
    watches: Vec<Watch>,
}

/// A watch, as fdinfo tells it.
#[derive(Clone, Debug)]
struct Watch {
    wd: i32,
    mask: u32,
    inode: Inode,
    handle: (i32, Vec<u8>),
}

/// Inode and file system, as the kernel counts them; stat(2) may say something else.
type Inode = (u64, u64);

impl Notifying {
    pub(super) fn new(open: &Open, description: u64) -> Result<Self, Failed> {
        let unread = ulpm_sys::bytes_to_read(open.ours)
            .map_err(|errno| Failed::system("look at an inotify instance", errno))?;
        let watches = watches(open.ours)?;
        Ok(Self { fd: open.fd, description, unread: unread != 0, watches })
    }
}

/// The watches of an instance.
fn watches(fd: i32) -> Result<Vec<Watch>, Failed> {
    let path = Text::<64>::path(format_args!("/proc/thread-self/fdinfo/{fd}"));
    let fdinfo = ulpm_sys::open(path.c_str(), oflag::RDONLY | oflag::CLOEXEC)
        .map_err(|errno| Failed::system("read what inotify watches", errno))?;
    let mut buffer = alloc::vec![0; 4096];
    let mut lines = Lines::new(fdinfo, &mut buffer);
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        if line.starts_with(b"inotify ") {
            found.push(parse(line));
        }
    }
    ulpm_sys::close(fdinfo);
    found.into_iter().collect::<Option<_>>().ok_or_else(|| {
        unsupported(format_args!(
            "an inotify instance cannot be saved: this kernel does not describe it in fdinfo"
        ))
    })
}

/// `inotify wd:1 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:…`
fn parse(line: &[u8]) -> Option<Watch> {
    /// Before Linux 5.19 bits of the kernel's own stood there too, and those for IN_ONESHOT and IN_EXCL_UNLINK did not.
    const BITS: u64 = 0x8400_0fff;
    let field = |name: &[u8]| {
        let mut words = line.split(|&byte| byte == b' ');
        words.find_map(|word| word.strip_prefix(name))
    };
    let number = |name: &[u8]| hex(field(name)?);
    let digits = field(b"f_handle:").unwrap_or(b"");
    let handle = digits.chunks_exact(2).filter_map(hex).filter_map(|byte| byte.try_into().ok());
    Some(Watch {
        wd: number(b"wd:")?.try_into().ok()?,
        mask: u32::try_from(number(b"mask:")? & BITS).ok()?,
        inode: (number(b"ino:")?, number(b"sdev:")?),
        handle: (
            number(b"fhandle-type:").and_then(|kind| kind.try_into().ok()).unwrap_or(0),
            handle.collect(),
        ),
    })
}

/// A way to a file that is watched.
#[derive(Clone, Debug, Default)]
struct Way {
    path: Vec<u8>,
    link: bool,
    target: u64,
}

/// Saves what the instances watch. All descriptors of the process are known by now.
pub(super) fn save_all(task: i32, notifying: &[Notifying], meta: &mut Meta) -> Result<(), Failed> {
    let mut wanted: BTreeMap<Inode, Option<Way>> = BTreeMap::new();
    for watch in notifying.iter().flat_map(|notifying| &notifying.watches) {
        wanted.insert(watch.inode, None);
    }
    if !wanted.is_empty() {
        let probe = Probe::new()?;
        let mut search = Search { left: wanted.len(), wanted, probe };
        search.noted();
        search.open(task, meta);
        for watch in notifying.iter().flat_map(|notifying| &notifying.watches) {
            search.by_handle(watch);
        }
        wanted = search.wanted;
    }
    for notifying in notifying {
        let description = notifying.description;
        meta.notifiers.push(Notifier { description, unread: notifying.unread });
        for watch in &notifying.watches {
            let Some(Some(way)) = wanted.get(&watch.inode) else {
                return Err(unsupported(format_args!(
                    "descriptor {} (inotify) watches a file (inode {}) whose path nobody knows any more, which \
                     cannot be saved; remove the watch before a checkpoint, or checkpoint as root",
                    notifying.fd, watch.inode.0
                )));
            };
            let status = status(way).unwrap_or_default();
            meta.watches.push(FileWatch {
                notifier: description,
                wd: watch.wd,
                mask: watch.mask,
                path: way.path.clone(),
                link: way.link,
                target: way.target,
                len: u64::try_from(status.size).unwrap_or(0),
                mtime: [status.mtime, status.mtime_ns],
            });
        }
    }
    Ok(())
}

fn status(way: &Way) -> Option<FileStatus> {
    if way.link || way.target != 0 {
        return None;
    }
    let path = [&way.path[..], b"\0"].concat();
    ulpm_sys::stat(CStr::from_bytes_with_nul(&path).ok()?).ok()
}

struct Search {
    wanted: BTreeMap<Inode, Option<Way>>,
    /// How many are not found yet.
    left: usize,
    probe: Probe,
}

impl Search {
    /// Whether this is a file that is wanted; takes note of the way to it.
    fn offer(&mut self, path: &CStr, follow: bool, way: impl FnOnce() -> Option<Way>) {
        let found = self.probe.inode(path, follow).and_then(|inode| self.wanted.get_mut(&inode));
        if let Some(place @ None) = found
            && let Some(way) = way()
        {
            *place = Some(way);
            self.left -= 1;
        }
    }

    /// Tries the paths that the program has given.
    fn noted(&mut self) {
        watched::each(|path| {
            if let Ok(path) = CStr::from_bytes_with_nul(path) {
                let way = |link| Some(Way { path: path.to_bytes().to_vec(), link, target: 0 });
                self.offer(path, true, || way(false));
                if self.left > 0 {
                    self.offer(path, false, || way(true));
                }
            }
            self.left > 0
        });
    }

    /// Tries what the process has open, and its working directory.
    fn open(&mut self, task: i32, meta: &Meta) {
        let described = |id| meta.descriptions.iter().find(|description| description.id == id);
        for descriptor in &meta.descriptors {
            if self.left == 0 {
                return;
            }
            let Some(description) = described(descriptor.description) else { continue };
            let target = match description.kind {
                kind::FILE => 0,
                kind::DELETED => description.id,
                _ => continue,
            };
            let link = Text::<64>::path(format_args!("/proc/{task}/fd/{}", descriptor.fd));
            let path = if target == 0 { description.path.clone() } else { Vec::new() };
            self.offer(link.c_str(), true, || Some(Way { path, link: false, target }));
        }
        if self.left > 0 {
            self.offer(c"/proc/self/cwd", true, || {
                let mut buffer = [0; 4096];
                let path = ulpm_sys::readlink(c"/proc/self/cwd", &mut buffer).ok()?;
                let path = path.to_vec();
                (!path.ends_with(b" (deleted)")).then_some(Way { path, ..Way::default() })
            });
        }
    }

    /// Has the kernel open the file by its handle, which only root may.
    fn by_handle(&mut self, watch: &Watch) {
        if self.left == 0 || !matches!(self.wanted.get(&watch.inode), Some(None)) {
            return;
        }
        let Some(mount) = mount_of(watch.inode.1) else { return };
        let (kind, bytes) = &watch.handle;
        if let Ok(fd) = inotify::open_by_handle(mount, *kind, bytes) {
            let link = Text::<64>::path(format_args!("/proc/thread-self/fd/{fd}"));
            let mut buffer = [0; 4097];
            let len = ulpm_sys::readlink(link.c_str(), &mut buffer[..4096]).map_or(0, <[u8]>::len);
            if let Ok(path) = CStr::from_bytes_until_nul(&buffer[..=len]) {
                let path_bytes = path.to_bytes().to_vec();
                self.offer(path, true, || Some(Way { path: path_bytes, ..Way::default() }));
            }
            ulpm_sys::close(fd);
        }
        ulpm_sys::close(mount);
    }
}

/// Opens a place at which a file system is mounted.
fn mount_of(device: u64) -> Option<i32> {
    let mut buffer = alloc::vec![0; 1 << 16];
    let mounts = read_file(c"/proc/thread-self/mountinfo", &mut buffer);
    // 36 35 98:0 / /mnt rw …; the kernel keeps 20 bits for the minor number.
    mounts.split(|&byte| byte == b'\n').find_map(|line| {
        let mut words = line.split(|&byte| byte == b' ');
        let mut numbers = words.nth(2)?.split(|&byte| byte == b':');
        let mut number = || decimal(numbers.next()?);
        if number()? << 20 | number()? != device {
            return None;
        }
        let path = [words.nth(1)?, b"\0"].concat();
        let path = CStr::from_bytes_with_nul(&path).ok()?;
        ulpm_sys::open(path, oflag::RDONLY | oflag::CLOEXEC).ok()
    })
}

/// An instance of our own, which watches one file at a time.
struct Probe {
    fd: i32,
}

impl Probe {
    fn new() -> Result<Self, Failed> {
        let fd = inotify::new().map_err(|errno| {
            Failed::system("look at what inotify watches (fs.inotify.max_user_instances)", errno)
        })?;
        Ok(Self { fd })
    }

    /// The inode that a path leads to.
    fn inode(&self, path: &CStr, follow: bool) -> Option<Inode> {
        let follow = if follow { 0 } else { inotify::bit::DONT_FOLLOW };
        let wd = inotify::watch(self.fd, path, inotify::bit::DELETE_SELF | follow).ok()?;
        let found = watches(self.fd).ok().and_then(|watches| Some(watches.first()?.inode));
        inotify::forget(self.fd, wd);
        found
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        ulpm_sys::close(self.fd);
    }
}
