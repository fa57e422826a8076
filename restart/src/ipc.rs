//! System V objects: shared memory, semaphores and message queues.
//!
//! They outlive their processes, and belong to the whole host. After a `kill -9` those of the job are still
//! there: they are taken over, with what the checkpoint says is in them, unless a living job has them. All
//! others are made anew. The kernel gives them other ids, and maybe another object has the key by now; the
//! job table says which is which.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use ulpm_image::meta::{IpcObject, region_kind};
use ulpm_protocol::table::{Table, object_flag};
use ulpm_sys::ipc::{self, Kind};
use ulpm_sys::{Errno, page_up};

use crate::error::RestartError;
use crate::image_file::ImageFile;
use crate::tree::open_table;

/// The objects of a job, until it runs.
#[derive(Debug, Default)]
pub struct Ipc {
    /// Those that were made here and now: removed again if the restart fails.
    made: Vec<(Kind, i32)>,
    /// Held so that two restarts of one checkpoint do not both take over what they find.
    lock: Option<File>,
}

impl Ipc {
    /// Takes over or makes all objects of a job, and tells the table. With `anew` none is taken over.
    ///
    /// # Errors
    ///
    /// [`RestartError`] names the object; those that were made are removed when `self` is dropped.
    pub fn create(
        &mut self,
        images: &[ImageFile],
        table: Table,
        anew: bool,
    ) -> Result<(), RestartError> {
        let mut objects: Vec<&IpcObject> =
            images.iter().flat_map(|image| &image.meta.ipc).collect();
        objects.sort_by_key(|object| (object.kind, object.id));
        objects.dedup_by_key(|object| (object.kind, object.id));
        let Some(first) = images.first().filter(|_| !objects.is_empty()) else { return Ok(()) };
        if let Ok(lock) = first.file.try_clone() {
            // On a file system without locks two restarts at once are the user's care.
            let _ = lock.lock();
            self.lock = Some(lock);
        }
        let place = place();
        for object in objects {
            let Some(kind) = Kind::from_raw(object.kind) else { continue };
            let failed = |what: &str, errno: Errno| RestartError::Object {
                text: format!("System V {} {}", kind.words(), object.id),
                what: what.into(),
                source: std::io::Error::from_raw_os_error(errno.raw()),
            };
            let here = object.place == place && !anew;
            let (real, hidden) = if here && let Some(found) = existing(kind, object) {
                if !object.created {
                    // Somebody else's: it stays as it is.
                    note(table, [object.id, found], object, object.hidden, false)?;
                    continue;
                }
                if let Ok(mut status) = ipc::status(kind, found) {
                    status.mode = status.mode & 0o777 | 0o600;
                    ipc::set(kind, found, &status)
                        .map_err(|errno| failed("be taken over", errno))?;
                }
                (found, object.hidden)
            } else {
                let (real, hidden) =
                    make(kind, object).map_err(|errno| failed("be made", errno))?;
                self.made.push((kind, real));
                (real, hidden)
            };
            self.fill(kind, real, object, images).map_err(|(what, errno)| failed(what, errno))?;
            note(table, [object.id, real], object, hidden, true)?;
        }
        Ok(())
    }

    /// Puts into an object what was saved.
    fn fill(
        &self,
        kind: Kind,
        real: i32,
        object: &IpcObject,
        images: &[ImageFile],
    ) -> Result<(), (&'static str, Errno)> {
        let filled = |errno| ("be filled", errno);
        match kind {
            Kind::Memory => self.fill_segment(real, object, images).map_err(filled)?,
            Kind::Semaphores => {
                let (pairs, _) = object.content.as_chunks::<2>();
                let values: Vec<u16> = pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
                ipc::set_semaphores(real, &values).map_err(filled)?;
            }
            Kind::Messages => {
                while ipc::take_message(real).is_ok() {}
                for message in &object.messages {
                    let mut buffer = vec![message.kind.cast_unsigned()];
                    buffer.extend(message.text.chunks(8).map(|bytes| {
                        let mut word = [0; 8];
                        word[..bytes.len()].copy_from_slice(bytes);
                        u64::from_ne_bytes(word)
                    }));
                    ipc::send_message(real, &buffer, message.text.len()).map_err(|errno| {
                        ("hold its messages (see kernel.msgmnb and kernel.msgmax)", errno)
                    })?;
                }
            }
        }
        let mut status = ipc::status(kind, real).map_err(filled)?;
        status.mode = object.mode & 0o777;
        if kind == Kind::Messages {
            status.set_queue_bytes(object.size);
        }
        let own = (status.uid, status.gid);
        (status.uid, status.gid) = (object.uid, object.gid);
        if ipc::set(kind, real, &status).is_err() {
            // To give it to somebody else may be forbidden here.
            (status.uid, status.gid) = own;
            ipc::set(kind, real, &status).map_err(|errno| ("get its permissions", errno))?;
        }
        if kind == Kind::Memory && object.mode & ipc::LOCKED != 0 {
            let _ = ipc::lock(real);
        }
        // One that goes with its last attachment is removed by those who have it attached, when they have.
        Ok(())
    }

    fn fill_segment(
        &self,
        real: i32,
        object: &IpcObject,
        images: &[ImageFile],
    ) -> Result<(), Errno> {
        /// MADV_REMOVE: the pages go, and read as zeros.
        const REMOVE: usize = 9;
        let at = ipc::attach(real, 0)?;
        let len = page_up(usize::try_from(object.size).map_err(|_| Errno::INVAL)?);
        // SAFETY: the segment was just attached there, nobody else knows the address, and it is `len`
        // bytes long: what maps it rounds up to pages.
        let memory = unsafe {
            if !self.made.contains(&(Kind::Memory, real))
                && ulpm_sys::madvise(at, len, REMOVE).is_err()
            {
                std::ptr::with_exposed_provenance_mut::<u8>(at).write_bytes(0, len);
            }
            std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut::<u8>(at), len)
        };
        let result = if object.has_content {
            let content = &object.content[..object.content.len().min(len)];
            memory[..content.len()].copy_from_slice(content);
            Ok(())
        } else {
            load(object, images, memory)
        };
        // SAFETY: `memory` is not used any more.
        unsafe { ipc::detach(at) };
        result
    }

    /// The job runs: its objects are its own now.
    pub fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for Ipc {
    fn drop(&mut self) {
        for &(kind, id) in &self.made {
            let _ = ipc::remove(kind, id);
        }
        if let Some(lock) = &self.lock {
            // The processes of the job may hold the same file.
            let _ = lock.unlock();
        }
    }
}

/// Reads what regions hold of a segment.
fn load(object: &IpcObject, images: &[ImageFile], memory: &mut [u8]) -> Result<(), Errno> {
    let id = u64::from(object.id.cast_unsigned());
    let mut reaches = 0;
    let mut regions: Vec<_> = images
        .iter()
        .flat_map(|image| image.meta.regions.iter().map(move |region| (image, region)))
        .filter(|(_, region)| region.kind == region_kind::SEGMENT && region.inode == id)
        .collect();
    regions.sort_by_key(|(_, region)| region.offset);
    for (image, region) in regions {
        if region.offset <= reaches {
            reaches = reaches.max(region.offset + (region.end - region.start));
        }
        for (offset, extent) in &image.extents {
            if !(region.start..region.end).contains(&extent.address) {
                continue;
            }
            let at = region.offset + (extent.address - region.start);
            let at = usize::try_from(at).map_err(|_| Errno::INVAL)?;
            let place = memory.get_mut(at..at + extent.len()).ok_or(Errno::INVAL)?;
            image.file.read_exact_at(place, *offset).map_err(|_| Errno::IO)?;
        }
    }
    // Nobody has saved all of it: its content is not known.
    if reaches < object.size { Err(Errno::NODATA) } else { Ok(()) }
}

/// Tells the table of an object; `own` says whether it goes where the job goes.
fn note(
    table: Table,
    ids: [i32; 2],
    object: &IpcObject,
    hidden: bool,
    own: bool,
) -> Result<(), RestartError> {
    let removed = object.kind == Kind::Memory as u32 && object.mode & ipc::DEST != 0;
    let flags = if own { object_flag::CREATED } else { 0 }
        | if hidden { object_flag::HIDDEN } else { 0 }
        | if removed { object_flag::REMOVED } else { 0 };
    let noted = table.insert_object(object.kind, ids, object.key, flags);
    noted.map(drop).map_err(|error| RestartError::Table {
        path: String::from_utf8_lossy(table.path()).into_owned().into(),
        text: error.to_string(),
    })
}

/// The saved object, if it is still there and nobody's.
fn existing(kind: Kind, object: &IpcObject) -> Option<i32> {
    let status = ipc::status(kind, object.real).ok()?;
    let key = if object.hidden { ipc::PRIVATE } else { object.key };
    let same_size = kind == Kind::Messages || status.size(kind) == object.size;
    let same = status.key == key && same_size && status.uid == object.uid;
    let taken = || object.created && is_used(kind, object.real);
    (same && !taken()).then_some(object.real)
}

/// Makes an object; the answer says whether another has its key.
fn make(kind: Kind, object: &IpcObject) -> Result<(i32, bool), Errno> {
    let size = usize::try_from(object.size).map_err(|_| Errno::INVAL)?;
    let flags = ipc::CREAT | ipc::EXCL | 0o600;
    if object.key != ipc::PRIVATE {
        match ipc::get(kind, object.key, size, flags) {
            Err(Errno::EXIST) => {}
            made => return made.map(|id| (id, false)),
        }
    }
    ipc::get(kind, ipc::PRIVATE, size, flags).map(|id| (id, object.key != ipc::PRIVATE))
}

/// Whether a process of some job that lives has an object in its table.
fn is_used(kind: Kind, real: i32) -> bool {
    let mut tables: BTreeSet<(PathBuf, i32)> = BTreeSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(maps) = fs::read(entry.path().join("maps")) else { continue };
        let maps = String::from_utf8_lossy(&maps);
        let paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
        let found = paths.filter(|path| path.ends_with(".table"));
        tables.extend(found.map(|path| (Path::new(path).to_owned(), pid)));
    }
    tables.into_iter().any(|(path, pid)| {
        open_table(&path).is_ok_and(|(table, _)| {
            table.by_real(pid).is_some() && table.object_by_real(kind as u32, real).is_some()
        })
    })
}

/// The boot and the namespace in which an object's id means something, as the library writes it.
pub(crate) fn place() -> Vec<u8> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let space = fs::read_link("/proc/self/ns/ipc").unwrap_or_default();
    format!("{} {}", boot.trim_end(), space.display()).into_bytes()
}
