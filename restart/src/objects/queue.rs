//! POSIX message queues.
//!
//! Like files they have names, and outlive those who have them open. One that a `kill -9` has left is taken over, with
//! the messages that were saved; one that is not there is made. Where somebody has the very queue open, as the job
//! itself before a move within one host, it is shared, as it is.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use ulpm_image::meta::{Description, Queue};
use ulpm_sys::mq::{self, Attributes};
use ulpm_sys::{Errno, oflag};

use crate::error::RestartError;
use crate::image_file::ImageFile;
use crate::ipc::place;

/// The queues of a job, while its descriptions are made.
#[derive(Debug)]
pub(super) struct Queues<'a> {
    images: &'a [ImageFile],
    /// Nothing that exists is to be changed.
    check: bool,
    /// By device and inode.
    made: HashMap<(u64, u64), Made<'a>>,
    /// Those that others have open, when it was looked.
    open: Option<HashSet<(u64, u64)>>,
    own: OwnQueues,
}

#[derive(Debug)]
struct Made<'a> {
    saved: &'a Queue,
    name: CString,
    file: File,
    /// It was made here, and gets its mode when all have it open.
    is_new: bool,
}

/// Queues that go where the job goes.
#[derive(Debug, Default)]
pub struct OwnQueues {
    /// Their inodes.
    pub inodes: Vec<u64>,
    /// The names of those that were made here: removed again if the restart fails.
    names: Vec<CString>,
}

impl OwnQueues {
    /// The job runs.
    pub fn keep(&mut self) {
        self.names.clear();
    }
}

impl Drop for OwnQueues {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = mq::unlink(name);
        }
    }
}

fn failed(saved: &Queue, what: impl Into<String>, errno: Errno) -> RestartError {
    RestartError::Object {
        text: format!("message queue /{}", String::from_utf8_lossy(&saved.name)),
        what: what.into(),
        source: io::Error::from_raw_os_error(errno.raw()),
    }
}

impl<'a> Queues<'a> {
    pub(super) fn new(images: &'a [ImageFile], check: bool) -> Self {
        Self { images, check, made: HashMap::new(), open: None, own: OwnQueues::default() }
    }

    /// A description of its own of a queue.
    pub(super) fn description(
        &mut self,
        description: &Description,
    ) -> Result<OwnedFd, RestartError> {
        let key = (description.dev, description.inode);
        if !self.made.contains_key(&key) {
            let mut saved = self.images.iter().flat_map(|image| &image.meta.queues);
            let saved = saved.find(|queue| (queue.dev, queue.inode) == key).ok_or_else(|| {
                RestartError::System {
                    what: "make a message queue that no process has saved",
                    source: io::ErrorKind::NotFound.into(),
                }
            })?;
            let made = self.make(saved)?;
            self.made.insert(key, made);
        }
        let Made { saved, name, .. } = &self.made[&key];
        let kept = oflag::ACCMODE | oflag::NONBLOCK;
        let flags = description.flags.cast_signed() & kept | oflag::CLOEXEC;
        let fd = mq::open(name, flags, None).map_err(|errno| failed(saved, "be opened", errno))?;
        Ok(owned(fd))
    }

    /// Gives the queues their modes, and takes away the names of those that had none.
    pub(super) fn finish(self) -> Result<OwnQueues, RestartError> {
        for Made { saved, name, file, is_new } in self.made.values() {
            if *is_new {
                file.set_permissions(Permissions::from_mode(saved.mode & 0o7777)).map_err(
                    |source| RestartError::System {
                        what: "set the mode of a message queue",
                        source,
                    },
                )?;
            }
            if saved.deleted {
                mq::unlink(name).map_err(|errno| failed(saved, "be unlinked", errno))?;
            }
        }
        let mut own = self.own;
        // Those whose names are gone need not be removed.
        let deleted = |name: &CString| {
            self.made.values().any(|made| made.saved.deleted && made.name == *name)
        };
        own.names.retain(|name| !deleted(name));
        Ok(own)
    }

    fn make(&mut self, saved: &'a Queue) -> Result<Made<'a>, RestartError> {
        let name = CString::new(&saved.name[..])
            .map_err(|_| failed(saved, "have a zero in its name", Errno::INVAL))?;
        if !saved.created {
            let file = open_any(&name).map_err(|errno| {
                failed(saved, "be opened: it was made by a program outside of the job", errno)
            })?;
            return Ok(Made { saved, name, file, is_new: false });
        }
        let made = match self.create(saved, name.clone())? {
            Some(made) => made,
            None if saved.deleted => {
                // Its name is taken. Nobody can open it by that anyway.
                let names = (0..1000).map(|i| format!("ulpm-{}-{i}", std::process::id()));
                let mut names = names.filter_map(|name| CString::new(name).ok());
                let made = names.find_map(|name| self.create(saved, name).transpose());
                made.ok_or_else(|| failed(saved, "be made", Errno::EXIST))??
            }
            None => self.existing(saved, name)?,
        };
        let status = made.file.metadata();
        let status = status
            .map_err(|source| RestartError::System { what: "look at a message queue", source })?;
        self.own.inodes.push(status.ino());
        Ok(made)
    }

    /// Makes a queue with its messages; `None` if there is one of that name.
    fn create(
        &mut self,
        saved: &'a Queue,
        name: CString,
    ) -> Result<Option<Made<'a>>, RestartError> {
        let attributes = Attributes::new(saved.max_messages, saved.message_size);
        let fd = match mq::open(&name, oflag::RDWR | oflag::CLOEXEC, Some((0o600, &attributes))) {
            Ok(fd) => fd,
            Err(Errno::EXIST) => return Ok(None),
            Err(errno) => {
                let what = format!(
                    "be made for {} messages of {} bytes (see fs.mqueue.* of sysctl, and ulimit -q)",
                    saved.max_messages, saved.message_size
                );
                return Err(failed(saved, what, errno));
            }
        };
        self.own.names.push(name.clone());
        let file = File::from(owned(fd));
        fill(saved, &file)?;
        Ok(Some(Made { saved, name, file, is_new: true }))
    }

    /// What there is under the name of a queue.
    fn existing(&mut self, saved: &'a Queue, name: CString) -> Result<Made<'a>, RestartError> {
        let at = |errno| failed(saved, "be opened", errno);
        let flags = oflag::RDWR | oflag::NONBLOCK | oflag::CLOEXEC;
        let file = File::from(owned(mq::open(&name, flags, None).map_err(at)?));
        let looked = |source| RestartError::System { what: "look at a message queue", source };
        let status = file.metadata().map_err(looked)?;
        let found = mq::attributes(file.as_raw_fd()).map_err(at)?;
        let same = saved.place == place() && saved.inode == status.ino();
        let open = self.open.get_or_insert_with(open_ones);
        if open.contains(&(status.dev(), status.ino())) {
            if !same {
                let what = "be made: its name is taken by one that others have open";
                return Err(failed(saved, what, Errno::EXIST));
            }
            // Whoever leaves it here for us sees that it is used. Its times are in whole seconds.
            if !self.check {
                let time = status.modified().map_err(looked)? + Duration::from_secs(1);
                file.set_modified(time).map_err(looked)?;
            }
            return Ok(Made { saved, name, file, is_new: false });
        }
        if !same && found.messages != 0 {
            let what = "be made: its name is taken by another with messages in it; remove that (mq_unlink)";
            return Err(failed(saved, what, Errno::EXIST));
        }
        if self.check {
            return Ok(Made { saved, name, file, is_new: false });
        }
        let size = |queue: &Attributes| (queue.max_messages, queue.message_size);
        if size(&found) != (saved.max_messages, saved.message_size) {
            mq::unlink(&name).map_err(at)?;
            return match self.create(saved, name)? {
                Some(made) => Ok(made),
                None => Err(failed(saved, "be made: somebody else has made it", Errno::EXIST)),
            };
        }
        let mut buffer = vec![0; usize::try_from(found.message_size).unwrap_or(0)];
        while mq::receive(file.as_raw_fd(), &mut buffer).is_ok() {}
        fill(saved, &file)?;
        Ok(Made { saved, name, file, is_new: true })
    }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the caller has just opened it, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Opens a queue of others, for whatever it may be opened.
fn open_any(name: &CString) -> Result<File, Errno> {
    let open = |access| mq::open(name, access | oflag::NONBLOCK | oflag::CLOEXEC, None);
    let opened = match open(oflag::RDONLY) {
        Err(Errno::ACCES) => open(oflag::WRONLY),
        other => other,
    };
    opened.map(|fd| File::from(owned(fd)))
}

fn fill(saved: &Queue, file: &File) -> Result<(), RestartError> {
    saved.messages.iter().try_for_each(|message| {
        mq::send(file.as_raw_fd(), &message.text, message.priority)
            .map_err(|errno| failed(saved, "hold its messages", errno))
    })
}

/// The queues that other processes have open, by device and inode, as far as we may see that.
fn open_ones() -> HashSet<(u64, u64)> {
    let own = std::process::id();
    let listed = fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = listed.filter(|entry| {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        pid.is_some_and(|pid| pid != own)
    });
    let descriptors = others.flat_map(|entry| fs::read_dir(entry.path().join("fd")));
    let links = descriptors.flatten().flatten().map(|entry| entry.path());
    // Their names have one slash, in front.
    let queues = links.filter(|link| {
        let target = fs::read_link(link).unwrap_or_default();
        target.parent().is_some_and(|parent| parent == Path::new("/"))
    });
    queues
        .filter_map(|link| fs::metadata(link).ok().map(|found| (found.dev(), found.ino())))
        .collect()
}
