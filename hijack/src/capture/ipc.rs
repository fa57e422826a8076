//! System V objects: shared memory, semaphores and message queues.
//!
//! The job table names those that the job uses, see `wrap::ipc`. One process of the job saves each. What is
//! in a segment lies in the regions of those who have it attached; only where that is nobody here it is
//! attached for a moment.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use ulpm_image::Meta;
use ulpm_image::meta::{IpcObject, Message, Region, region_flag, region_kind};
use ulpm_protocol::table::{Object, object_flag};
use ulpm_sys::ipc::{self, Kind, Status};
use ulpm_sys::proc::MapsLine;
use ulpm_sys::{Errno, oflag};

use super::text::{Lines, read_file};
use super::{Subject, unsupported};
use crate::freeze::Failed;
use crate::process;

/// The election of the process that saves an object.
const OBJECT: u64 = 30;

/// The longest segment that is saved though nobody has it attached, in bytes.
const MAX_UNATTACHED: u64 = 256 << 20;

/// Semaphores to which one process can owe something.
const MAX_DEBTS: usize = 512;

/// What the process owed to semaphores when it was saved: the program's id of the set, and the semaphore
/// and what is added to it in one number.
struct Owed([AtomicI32; 3]);
static OWED: [Owed; MAX_DEBTS] = [const { Owed([const { AtomicI32::new(0) }; 3]) }; MAX_DEBTS];
static OWED_LEN: AtomicUsize = AtomicUsize::new(0);

/// The kernel's id of the segment that may be mapped: it names it after the key, and numbers it by the id
/// (ipc/shm.c).
fn segment_of(line: &MapsLine<'_>) -> Option<i32> {
    let key = line.name.strip_prefix(b"/SYSV")?.strip_suffix(b" (deleted)")?;
    i32::try_from(line.inode).ok().filter(|_| line.shared && key.len() == 8)
}

/// Calls `found` with the kernel's id of each mapping of a segment.
fn for_segments(mut found: impl FnMut(i32)) {
    let Ok(fd) = ulpm_sys::open(c"/proc/self/maps", oflag::RDONLY | oflag::CLOEXEC) else { return };
    let mut buffer = alloc::vec![0; 16 * 1024];
    let mut lines = Lines::new(fd, &mut buffer);
    while let Some(line) = lines.next() {
        if let Some(line) = MapsLine::parse(line)
            && let Some(id) = segment_of(&line)
        {
            found(id);
        }
    }
    ulpm_sys::close(fd);
}

/// Keeps segments out of copies of the process that are forked from now on, or no longer: each would count as
/// attached to it. `regions` are what was found of the process.
pub(crate) fn keep_from_copies(regions: &[Region], keep: bool) {
    /// MADV_DONTFORK and MADV_DOFORK.
    const DONTFORK: usize = 10;
    const DOFORK: usize = 11;
    for region in regions {
        let ours =
            region.kind == region_kind::SEGMENT && region.flags & region_flag::DONT_FORK == 0;
        if let (true, Ok(start), Ok(len)) =
            (ours, usize::try_from(region.start), usize::try_from(region.end - region.start))
        {
            // SAFETY: this advice does not touch the content.
            let _ = unsafe { ulpm_sys::madvise(start, len, if keep { DONTFORK } else { DOFORK }) };
        }
    }
}

/// The program's id of the segment that is mapped, if it is one.
pub(super) fn segment(subject: &Subject<'_>, line: &MapsLine<'_>) -> Result<Option<u64>, Failed> {
    let Some(real) = segment_of(line) else { return Ok(None) };
    if gone(ipc::status(Kind::Memory, real)) {
        return Ok(None);
    }
    let noted = subject.table.note_object(Kind::Memory as u32, real, ipc::PRIVATE, 0);
    match noted {
        Ok(object) => Ok(Some(u64::from(object.virt().cast_unsigned()))),
        Err(_) => Err(too_many()),
    }
}

fn too_many() -> Failed {
    unsupported(format_args!("the job uses more System V objects than can be saved"))
}

fn gone(status: Result<Status, Errno>) -> bool {
    matches!(status, Err(Errno::INVAL | Errno::IDRM))
}

pub(super) fn collect(subject: &Subject<'_>, meta: &mut Meta) -> Result<(), Failed> {
    if subject.table.has_lost_objects() {
        return Err(too_many());
    }
    for object in subject.table.objects() {
        let Some(kind) = Kind::from_raw(object.kind()).filter(|_| object.real() >= 0) else {
            continue;
        };
        let status = ipc::status(kind, object.real());
        if gone(status) {
            object.forget();
            continue;
        }
        let key = [u64::from(object.kind()), u64::from(object.virt().cast_unsigned())];
        let known = |saved: &IpcObject| saved.kind == object.kind() && saved.id == object.virt();
        if meta.ipc.iter().any(known) || !subject.wins(OBJECT, &key)? {
            continue;
        }
        let saved = save(kind, object, status, meta)?;
        meta.ipc.push(saved);
    }
    note_debts(subject)
}

fn save(
    kind: Kind,
    object: &Object,
    status: Result<Status, Errno>,
    meta: &Meta,
) -> Result<IpcObject, Failed> {
    let real = object.real();
    let failed = |errno| {
        let what = kind.words();
        unsupported(format_args!(
            "System V {what} {real} cannot be read ({errno}): give its owner read permission, or remove it"
        ))
    };
    let status = status.map_err(failed)?;
    let flags = object.flags() & (object_flag::HIDDEN | object_flag::REMOVED);
    let hidden = flags == object_flag::HIDDEN;
    let mut saved = IpcObject {
        kind: object.kind(),
        id: object.virt(),
        real,
        place: place(),
        key: if hidden { object.key() } else { status.key },
        hidden,
        created: object.flags() & object_flag::CREATED != 0,
        mode: status.mode,
        uid: status.uid,
        gid: status.gid,
        size: status.size(kind),
        ..IpcObject::default()
    };
    match kind {
        Kind::Memory => segment_content(&mut saved, &status, meta).map_err(failed)?,
        Kind::Semaphores => {
            let mut values = alloc::vec![0u16; usize::try_from(saved.size).unwrap_or(0)];
            ipc::semaphores(real, &mut values).map_err(failed)?;
            saved.content = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        }
        Kind::Messages => saved.messages = messages(real, &status).map_err(failed)?,
    }
    Ok(saved)
}

/// The boot and the namespace in which an object's id means something.
pub(super) fn place() -> Vec<u8> {
    let (mut boot, mut link) = ([0; 64], [0; 64]);
    let boot = read_file(c"/proc/sys/kernel/random/boot_id", &mut boot).trim_ascii_end();
    let space = ulpm_sys::readlink(c"/proc/self/ns/ipc", &mut link).unwrap_or_default();
    [boot, b" ", space].concat()
}

fn segment_content(saved: &mut IpcObject, status: &Status, meta: &Meta) -> Result<(), Errno> {
    let id = u64::from(saved.id.cast_unsigned());
    // All of it, in one piece or in several with different protection.
    let mut reaches = 0;
    let attached = meta.regions.iter().filter(|r| r.kind == region_kind::SEGMENT && r.inode == id);
    for region in attached {
        if region.offset == reaches {
            reaches += region.end - region.start;
        }
    }
    if reaches >= saved.size {
        return Ok(());
    }
    if saved.size > MAX_UNATTACHED {
        // Whoever has it attached has it in a region; a restart looks for it.
        return if status.attachments() == 0 { Err(Errno::FBIG) } else { Ok(()) };
    }
    let at = ipc::attach(saved.real, ipc::RDONLY)?;
    let len = usize::try_from(saved.size).unwrap_or(0);
    // SAFETY: the segment is mapped there and as long as that; the job stands still, and whoever else
    // writes to it does so through other mappings, from which bytes may be read at any time.
    unsafe {
        saved.content.extend_from_slice(core::slice::from_raw_parts(
            core::ptr::with_exposed_provenance::<u8>(at),
            len,
        ));
        ipc::detach(at);
    }
    saved.has_content = true;
    Ok(())
}

/// Copies the messages of a queue, which stay in it.
fn messages(id: i32, status: &Status) -> Result<Vec<Message>, Errno> {
    let count = usize::try_from(status.messages()).unwrap_or(0);
    let room = usize::try_from(status.message_bytes()).unwrap_or(0);
    let mut buffer = alloc::vec![0u64; 1 + room.div_ceil(8)];
    let mut messages = Vec::with_capacity(count);
    for place in 0..count {
        let len = ipc::copy_message(id, place, &mut buffer)?;
        let mut text: Vec<u8> = Vec::with_capacity(len);
        text.extend(buffer[1..].iter().flat_map(|word| word.to_ne_bytes()).take(len));
        messages.push(Message { kind: buffer[0].cast_signed(), text });
    }
    Ok(messages)
}

/// Keeps what the process owes to semaphores where a restart finds it.
fn note_debts(subject: &Subject<'_>) -> Result<(), Failed> {
    let mut len = 0;
    for debt in subject.table.debts(process::virtual_pid(subject.own)) {
        let (id, semaphore, adjust) = debt.get();
        if adjust == 0 {
            continue;
        }
        let Some(owed) = OWED.get(len) else {
            return Err(unsupported(format_args!(
                "it has SEM_UNDO operations on more than {MAX_DEBTS} semaphores"
            )));
        };
        for (field, value) in owed.0.iter().zip([id, semaphore.cast_signed(), adjust]) {
            field.store(value, Ordering::Relaxed);
        }
        len += 1;
    }
    OWED_LEN.store(len, Ordering::Relaxed);
    Ok(())
}

/// What is left to be done in a restarted process: it owes what it owed, and removes the segments that it has
/// attached and that were removed before. Only while all of the job stands still.
pub(crate) fn settle() {
    let (Some(own), Some(table)) = (process::own(), process::table()) else { return };
    if table.objects().any(|object| object.flags() & object_flag::REMOVED != 0) {
        for_segments(|id| {
            let object = table.object_by_real(Kind::Memory as u32, id);
            if object.is_some_and(|object| object.flags() & object_flag::REMOVED != 0) {
                let _ = ipc::remove(Kind::Memory, id);
            }
        });
    }
    let pid = process::virtual_pid(own);
    for owed in &OWED[..OWED_LEN.load(Ordering::Relaxed).min(MAX_DEBTS)] {
        let [id, semaphore, adjust] = [0, 1, 2].map(|i| owed.0[i].load(Ordering::Relaxed));
        let Some(object) = table.object(Kind::Semaphores as u32, id) else { continue };
        let (Ok(number), Ok(change)) = (u16::try_from(semaphore), i16::try_from(adjust)) else {
            continue;
        };
        if ipc::owe(object.real(), number, change).is_err() {
            crate::die("cannot restore the SEM_UNDO operations of the process");
        }
        let _ = table.add_debt(pid, id, u32::from(number), adjust);
    }
}
