//! The job table: what all members of a job and their coordinator see at any time.
//!
//! It is a file in the coordinator's private directory, mapped shared by every member, so that it
//! outlives them all and a new coordinator finds it again. Nothing in it is a lock: each field is
//! atomic, and each slot has one writer at a time.
//!
//! ```text
//!  0        header     one page: who the job is, how to reach its coordinator
//!  4096     slots      one for each process, hashed by real process id
//!  …        claims     elections: who saves what several processes share
//!  …        objects    System V objects that the job uses, and what processes owe to semaphores
//!  …        names      addresses that sockets had before a restart
//! ```
//!
//! A *real* id is the kernel's; a *virtual* one is what the program sees. They are equal until a
//! restart.

use core::mem::{offset_of, size_of};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering};

/// The first eight bytes of every table.
pub const MAGIC: [u8; 8] = *b"ULPMJOB\0";
/// Raised when a field changes its meaning.
pub const VERSION: u32 = 2;
/// Processes that a job can have at a time; a power of two.
pub const SLOTS: usize = 8192;
/// Objects that a job can share among its processes in one checkpoint; a power of two.
pub const CLAIMS: usize = 65536;
/// Virtual ids that are no real id start here: it is the kernel's `PID_MAX_LIMIT`.
pub const FIRST_FREE_VIRTUAL: i32 = 4 * 1024 * 1024;
/// Launchers with different standard streams that a job can have: the first, and those that joined.
pub const LAUNCHERS: usize = 16;
/// Sockets of a restarted job whose addresses are not what the program knows; a power of two.
pub const SOCKET_NAMES: usize = 8192;
/// Length of the file in bytes.
pub const LEN: usize = NAMES_AT + SOCKET_NAMES * size_of::<NamedSocket>();
/// Length in bytes of a table of releases that knew no objects.
pub const CLAIMS_END: usize = 4096 + SLOTS * size_of::<Slot>() + CLAIMS * size_of::<Claim>();
/// System V objects that a job can use at a time.
pub const OBJECTS: usize = 1024;
/// `Object::kind` of a POSIX message queue that the job has made, beside those of System V objects (1 to 3).
pub const QUEUE: u32 = 4;
/// Semaphores that all processes of a job together can owe something to.
pub const DEBTS: usize = 4096;

const NAMES_AT: usize = CLAIMS_END + OBJECTS * size_of::<Object>() + DEBTS * size_of::<Debt>();

/// Environment variable that holds the path of the job's table.
pub const ENV_TABLE: &str = "ULPM_JOB";
/// Environment variable that names the plugins: the file of their log, which may be empty, and the path of each, with colons
/// between.
pub const ENV_PLUGINS: &str = "ULPM_PLUGINS";

/// Where a hand-over stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Handover {
    /// None is decided: a member that loses its coordinator goes on.
    None = 0,
    /// On the source: the target owns the job. A member that loses its coordinator ends.
    Committed = 1,
    /// On the target: restored members wait for the source's decision. One that loses its
    /// coordinator ends; the image stays.
    Pending = 2,
}

/// What a standard stream of `ulpm_launch` is, so that a member's descriptor can be told to be it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamId {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// Whether the stream was open.
    pub open: bool,
}

/// A stream that stands in the table.
#[derive(Debug)]
#[repr(C)]
struct Stream {
    dev: AtomicU64,
    ino: AtomicU64,
    open: AtomicU64,
}

impl Stream {
    fn get(&self) -> StreamId {
        StreamId {
            open: self.open.load(Ordering::Acquire) != 0,
            dev: self.dev.load(Ordering::Relaxed),
            ino: self.ino.load(Ordering::Relaxed),
        }
    }

    fn set(&self, id: StreamId) {
        self.dev.store(id.dev, Ordering::Relaxed);
        self.ino.store(id.ino, Ordering::Relaxed);
        self.open.store(id.open.into(), Ordering::Release);
    }
}

/// The first page.
#[derive(Debug)]
#[repr(C)]
pub struct Header {
    magic: [u8; 8],
    version: u32,
    _reserved: u32,
    /// The job's id.
    pub job: u64,
    /// Raised by the coordinator before each freeze; the key of elections.
    pub epoch: AtomicU32,
    handover: AtomicU32,
    /// 1 once virtual ids may differ from real ones.
    pub restarted: AtomicU32,
    /// Signal that stops user threads which have no other use for it.
    pub ckpt_signal: AtomicU32,
    next_virtual: AtomicI32,
    /// Entries of `stdio` in use.
    launchers: AtomicU32,
    /// Standard input, output and error of each launcher.
    stdio: [[Stream; 3]; LAUNCHERS],
    socket: [u8; 256],
    preload: [u8; 1024],
    path: [u8; 1024],
    /// Restarted processes that have not taken their file locks again: no member goes on before all have.
    pub without_locks: AtomicU32,
    /// Entries of objects and debts that were ever used.
    objects_used: AtomicU32,
    debts_used: AtomicU32,
    /// 1 once an object or debt found no entry.
    objects_lost: AtomicU32,
    /// What the members add to the kernel's CLOCK_MONOTONIC and CLOCK_BOOTTIME, in nanoseconds; 0 where a time namespace
    /// does it.
    pub clock_offsets: [AtomicI64; 2],
    /// One more than the status of the root, as from wait(2), once its parent has waited for it. The parent writes it
    /// at [`ENDED_AT`] of the file, so that it is known also where no coordinator was there to hear of it.
    ended: AtomicU32,
    /// 1 while the job is to be restarted when it fails.
    pub kept_alive: AtomicU32,
}

/// Where `ended` stands in the file.
pub const ENDED_AT: u64 = offset_of!(Header, ended) as u64;
/// Where `kept_alive` stands in the file.
pub const KEPT_ALIVE_AT: u64 = offset_of!(Header, kept_alive) as u64;

/// What stands in `ended` for a status as from wait(2).
#[must_use]
pub fn ended_mark(status: i32) -> [u8; 4] {
    status.cast_unsigned().wrapping_add(1).to_le_bytes()
}

/// Whether a process that this signal ends has failed: what nobody can be prepared for, and what the kernel sends
/// to whom has gone wrong.
#[must_use]
pub fn is_failure(signal: i32) -> bool {
    // SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGKILL, SIGSEGV, SIGSYS
    matches!(signal, 4 | 5 | 6 | 7 | 8 | 9 | 11 | 31)
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SlotState {
    /// Never used: a search ends here.
    Free = 0,
    /// Being filled.
    Busy = 1,
    /// A member that runs our code.
    Live = 2,
    /// A member between execve and our constructor: it must not be signalled.
    Exec = 3,
    /// Was a member; the slot can be used again, but a search goes on past it.
    Gone = 4,
    /// No process: a group or session id whose leader is dead, in a restarted job.
    Alias = 5,
    /// No process of the job: the group that its launcher was in. It may be 0: the id of a group that
    /// lies in another pid namespace.
    OutsideGroup = 6,
    /// Likewise, the session.
    OutsideSession = 7,
}

impl SlotState {
    fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::Free,
            2 => Self::Live,
            3 => Self::Exec,
            4 => Self::Gone,
            5 => Self::Alias,
            6 => Self::OutsideGroup,
            7 => Self::OutsideSession,
            _ => Self::Busy,
        }
    }
}

/// One process.
#[derive(Debug)]
#[repr(C)]
pub struct Slot {
    state: AtomicU32,
    real: AtomicI32,
    virt: AtomicI32,
    /// Virtual id of the process that created it.
    pub parent: AtomicI32,
    /// Signal by which a process of the job has ended it on purpose, or 0.
    pub killed: AtomicI32,
    _reserved: [u32; 3],
}

impl Slot {
    /// What the slot holds.
    pub fn state(&self) -> SlotState {
        SlotState::from_raw(self.state.load(Ordering::Acquire))
    }

    /// Changes what the slot holds.
    pub fn set_state(&self, state: SlotState) {
        self.state.store(state as u32, Ordering::Release);
    }

    /// The kernel's id.
    pub fn real(&self) -> i32 {
        self.real.load(Ordering::Acquire)
    }

    /// The id that programs see.
    pub fn virt(&self) -> i32 {
        self.virt.load(Ordering::Acquire)
    }

    /// Whether this is a process, and one of the job.
    pub fn is_member(&self) -> bool {
        matches!(self.state(), SlotState::Live | SlotState::Exec)
    }
}

/// One object in an election.
#[derive(Debug)]
#[repr(C)]
pub struct Claim {
    key: AtomicU64,
    owner: AtomicU64,
}

/// `Object::flags`.
pub mod object_flag {
    /// A process of the job has made it, so it goes where the job goes.
    pub const CREATED: u32 = 1;
    /// Its key was taken by another object when the job was restarted: only the job finds it by it.
    pub const HIDDEN: u32 = 2;
    /// It was removed and lives on for those who have it attached: no key leads to it.
    pub const REMOVED: u32 = 4;
}

/// A System V object that the job uses.
#[derive(Debug)]
#[repr(C)]
pub struct Object {
    /// [`FREE`], [`FILLING`] or [`USED`].
    state: AtomicU32,
    kind: AtomicU32,
    virt: AtomicI32,
    real: AtomicI32,
    key: AtomicI32,
    flags: AtomicU32,
    _reserved: u64,
}

const FREE: u32 = 0;
const FILLING: u32 = 1;
const USED: u32 = 2;

/// What an inode of a queue is called in the table.
fn queue_id(inode: u64) -> i32 {
    i32::try_from(inode & 0x7fff_ffff).unwrap_or(0)
}

impl Object {
    /// 1 for shared memory, 2 for semaphores, 3 for messages.
    pub fn kind(&self) -> u32 {
        self.kind.load(Ordering::Relaxed)
    }

    /// The id that programs see.
    pub fn virt(&self) -> i32 {
        self.virt.load(Ordering::Relaxed)
    }

    /// The kernel's id.
    pub fn real(&self) -> i32 {
        self.real.load(Ordering::Relaxed)
    }

    /// The key that programs know; 0 for none.
    pub fn key(&self) -> i32 {
        self.key.load(Ordering::Relaxed)
    }

    /// [`object_flag`] bits.
    pub fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// Sets [`object_flag`] bits.
    pub fn add_flags(&self, flags: u32) {
        self.flags.fetch_or(flags, Ordering::Relaxed);
    }

    /// Gives the entry up: there is no such object any more.
    pub fn forget(&self) {
        self.state.store(FREE, Ordering::Release);
    }

    /// Makes the entry say no more than that its key is not that of the object outside the job which has it.
    pub fn leave_key(&self) {
        self.add_flags(object_flag::REMOVED);
        self.virt.store(-1, Ordering::Relaxed);
        self.real.store(-1, Ordering::Relaxed);
    }
}

/// What the kernel adds to a semaphore when a process ends (SEM_UNDO), which it tells nobody.
#[derive(Debug)]
#[repr(C)]
pub struct Debt {
    /// Virtual id of the process; 0 for a free entry, -1 for one that is being filled.
    pid: AtomicI32,
    /// The program's id of the set.
    id: AtomicI32,
    semaphore: AtomicU32,
    adjust: AtomicI32,
}

impl Debt {
    /// The program's id of the set, the semaphore in it, and what is added to it.
    pub fn get(&self) -> (i32, u32, i32) {
        (
            self.id.load(Ordering::Relaxed),
            self.semaphore.load(Ordering::Relaxed),
            self.adjust.load(Ordering::Relaxed),
        )
    }
}

/// Longest address of a socket that is kept (`struct sockaddr_in6`).
pub const ADDRESS_LEN: usize = 28;

/// A raw `sockaddr` of IPv4 or IPv6; empty for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketAddress {
    bytes: [u8; ADDRESS_LEN],
    len: usize,
}

impl SocketAddress {
    /// Of raw bytes; what is too long to be one is none.
    #[must_use]
    pub fn new(raw: &[u8]) -> Self {
        let mut bytes = [0; ADDRESS_LEN];
        match bytes.get_mut(..raw.len()) {
            Some(start) => {
                start.copy_from_slice(raw);
                Self { bytes, len: raw.len() }
            }
            None => Self::default(),
        }
    }

    /// The raw bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len.min(ADDRESS_LEN)]
    }

    fn words(self) -> [u64; 4] {
        let mut raw = [0; 32];
        raw[..ADDRESS_LEN].copy_from_slice(&self.bytes);
        raw[ADDRESS_LEN] = u8::try_from(self.len).unwrap_or(0);
        core::array::from_fn(|word| {
            u64::from_le_bytes(core::array::from_fn(|byte| raw[word * 8 + byte]))
        })
    }

    fn from_words(words: [u64; 4]) -> Self {
        let mut raw = [0; 32];
        for (part, word) in raw.chunks_exact_mut(8).zip(words) {
            part.copy_from_slice(&word.to_le_bytes());
        }
        let mut bytes = [0; ADDRESS_LEN];
        bytes.copy_from_slice(&raw[..ADDRESS_LEN]);
        Self { bytes, len: raw[ADDRESS_LEN].into() }
    }
}

/// The names by which a program knows the two ends of a socket; an empty one is the real one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketName {
    /// What getsockname(2) is to say.
    pub local: SocketAddress,
    /// What getpeername(2) is to say.
    pub peer: SocketAddress,
}

/// `AF_UNIX`: by this family in place of an address a socket has credentials.
const UNIX: [u8; 2] = [1, 0];

impl SocketName {
    /// Of a unix socket: what SO_PEERCRED is to say, a process by the id that the program knows, user and group.
    #[must_use]
    pub fn of_credentials(credentials: [u32; 3]) -> Self {
        let mut raw = [0; 14];
        raw[..2].copy_from_slice(&UNIX);
        for (place, word) in raw[2..].chunks_exact_mut(4).zip(credentials) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        Self { local: SocketAddress::default(), peer: SocketAddress::new(&raw) }
    }

    /// These; `None` if it has addresses.
    #[must_use]
    pub fn credentials(&self) -> Option<[u32; 3]> {
        let words = self.peer.bytes().strip_prefix(&UNIX)?.first_chunk::<12>()?;
        let word = |at: usize| u32::from_le_bytes(core::array::from_fn(|byte| words[at + byte]));
        Some([word(0), word(4), word(8)])
    }
}

/// A socket that goes by other addresses than its own.
#[derive(Debug)]
#[repr(C)]
struct NamedSocket {
    /// Inode: no socket is ever given that of an earlier one.
    inode: AtomicU64,
    local: [AtomicU64; 4],
    peer: [AtomicU64; 4],
}

/// Why a file is not a table that we can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// It does not start with [`MAGIC`].
    NotATable,
    /// Made by another version.
    Version(u32),
    /// A path does not fit its field.
    PathTooLong,
    /// Every slot or claim is taken.
    Full,
    /// [`LAUNCHERS`] have joined.
    Launchers,
    /// [`SOCKET_NAMES`] sockets have other addresses.
    SocketNames,
}

impl core::fmt::Display for TableError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotATable => f.write_str("not a job table"),
            Self::Version(found) => write!(f, "job table has version {found}, this is {VERSION}"),
            Self::PathTooLong => f.write_str("path does not fit the job table"),
            Self::Launchers => {
                write!(
                    f,
                    "{LAUNCHERS} launchers with different standard streams have joined the job"
                )
            }
            Self::SocketNames => {
                write!(
                    f,
                    "more than {SOCKET_NAMES} connections cannot be given their addresses back"
                )
            }
            Self::Full => write!(f, "the job table is full ({SLOTS} processes)"),
        }
    }
}

impl core::error::Error for TableError {}

/// A table that is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    base: NonNull<u8>,
}

// SAFETY: the table consists of atomics, and of bytes that are written before it is shared.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    /// Takes a mapping of [`LEN`] bytes.
    ///
    /// # Errors
    ///
    /// [`TableError`] if the first page is not that of a table of this version.
    ///
    /// # Safety
    ///
    /// `base` points to [`LEN`] bytes, page-aligned, mapped shared and writable for as long as the
    /// table or any copy of it is used.
    pub unsafe fn open(base: NonNull<u8>) -> Result<Self, TableError> {
        let table = Self { base };
        let header = table.header();
        if header.magic != MAGIC {
            return Err(TableError::NotATable);
        }
        if header.version != VERSION {
            return Err(TableError::Version(header.version));
        }
        Ok(table)
    }

    /// Makes a table of a mapping whose bytes are all zero.
    ///
    /// `socket` is the coordinator's, `preload` the value that LD_PRELOAD needs for our library to
    /// be loaded, `path` the table's own.
    ///
    /// # Errors
    ///
    /// [`TableError::PathTooLong`]: nothing was written.
    ///
    /// # Safety
    ///
    /// As [`Table::open`], and nobody else has the mapping yet.
    pub unsafe fn create(
        base: NonNull<u8>,
        job: u64,
        ckpt_signal: u32,
        [socket, preload, path]: [&[u8]; 3],
    ) -> Result<Self, TableError> {
        // SAFETY: the caller gives us the only view of `LEN` zero bytes, for which the header's
        // fields are all valid.
        let header = unsafe { base.cast::<Header>().as_mut() };
        let fits = |field: &[u8], value: &[u8]| value.len() < field.len();
        if !fits(&header.socket, socket)
            || !fits(&header.preload, preload)
            || !fits(&header.path, path)
        {
            return Err(TableError::PathTooLong);
        }
        header.socket[..socket.len()].copy_from_slice(socket);
        header.preload[..preload.len()].copy_from_slice(preload);
        header.path[..path.len()].copy_from_slice(path);
        header.job = job;
        *header.ckpt_signal.get_mut() = ckpt_signal;
        *header.next_virtual.get_mut() = FIRST_FREE_VIRTUAL;
        header.version = VERSION;
        header.magic = MAGIC;
        Ok(Self { base })
    }

    /// Address of the mapping.
    #[must_use]
    pub fn address(&self) -> usize {
        self.base.as_ptr().addr()
    }

    /// The first page.
    #[must_use]
    pub fn header(&self) -> &Header {
        // SAFETY: `open` and `create` vouch for the mapping; the fields that change are atomic.
        unsafe { self.base.cast().as_ref() }
    }

    /// Path of the coordinator's socket.
    #[must_use]
    pub fn socket(&self) -> &[u8] {
        until_nul(&self.header().socket)
    }

    /// What LD_PRELOAD needs to name.
    #[must_use]
    pub fn preload(&self) -> &[u8] {
        until_nul(&self.header().preload)
    }

    /// Path of the table itself.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        until_nul(&self.header().path)
    }

    /// Where a hand-over stands.
    #[must_use]
    pub fn handover(&self) -> Handover {
        match self.header().handover.load(Ordering::Acquire) {
            1 => Handover::Committed,
            2 => Handover::Pending,
            _ => Handover::None,
        }
    }

    /// Decides a hand-over.
    pub fn set_handover(&self, handover: Handover) {
        self.header().handover.store(handover as u32, Ordering::Release);
    }

    /// How the root has ended, as from wait(2), if its parent has said so.
    #[must_use]
    pub fn ended(&self) -> Option<i32> {
        let mark = u32::from_le(self.header().ended.load(Ordering::Acquire));
        (mark != 0).then(|| mark.wrapping_sub(1).cast_signed())
    }

    /// Every slot, used or not.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        // SAFETY: the slots follow the first page, inside the mapping, and are atomics.
        unsafe { core::slice::from_raw_parts(self.base.add(4096).cast().as_ptr(), SLOTS) }
    }

    fn claims(&self) -> &[Claim] {
        // SAFETY: as above; the claims follow the slots.
        unsafe {
            let first = self.base.add(4096 + SLOTS * size_of::<Slot>());
            core::slice::from_raw_parts(first.cast().as_ptr(), CLAIMS)
        }
    }

    /// The part of the file that holds the claims, as offset and length: a hole punched there
    /// forgets all elections.
    #[must_use]
    pub const fn claims_range() -> (usize, usize) {
        (4096 + SLOTS * size_of::<Slot>(), CLAIMS * size_of::<Claim>())
    }

    /// The slot of the process with this real id, dead ones and aliases excluded.
    #[must_use]
    pub fn by_real(&self, real: i32) -> Option<&Slot> {
        for slot in self.probe(real) {
            match slot.state() {
                SlotState::Free => return None,
                SlotState::Live | SlotState::Exec if slot.real() == real => return Some(slot),
                _ => {}
            }
        }
        None
    }

    /// The slot with this virtual id; an alias too.
    #[must_use]
    pub fn by_virtual(&self, virt: i32) -> Option<&Slot> {
        if !self.is_restarted() {
            return self.by_real(virt);
        }
        self.slots().iter().find(|slot| {
            slot.virt() == virt && (slot.is_member() || slot.state() == SlotState::Alias)
        })
    }

    fn is_restarted(&self) -> bool {
        self.header().restarted.load(Ordering::Relaxed) != 0
    }

    /// The virtual id of a process, group or session; its real one if the table does not know it.
    ///
    /// A slot that was given up still counts until it is used again: a parent asks for the name of a
    /// child that it has just waited for, and that others may already have seen to be gone.
    #[must_use]
    pub fn virtual_of(&self, real: i32) -> i32 {
        self.name_of(real, None)
    }

    /// The virtual id of a group; its real one if the table does not know it.
    #[must_use]
    pub fn virtual_group(&self, real: i32) -> i32 {
        self.name_of(real, Some(SlotState::OutsideGroup))
    }

    /// The virtual id of a session; its real one if the table does not know it.
    #[must_use]
    pub fn virtual_session(&self, real: i32) -> i32 {
        self.name_of(real, Some(SlotState::OutsideSession))
    }

    fn name_of(&self, real: i32, outside: Option<SlotState>) -> i32 {
        if !self.is_restarted() {
            return real;
        }
        let mut fallback = None;
        for slot in self.probe(real) {
            match slot.state() {
                SlotState::Free => break,
                _ if slot.real() != real => {}
                SlotState::Live | SlotState::Exec | SlotState::Alias => return slot.virt(),
                SlotState::Gone => fallback = fallback.or(Some(slot.virt())),
                state if Some(state) == outside => fallback = Some(slot.virt()),
                _ => {}
            }
        }
        fallback.unwrap_or(real)
    }

    /// The real id of a process, group or session; the id itself if the table does not know it.
    #[must_use]
    pub fn real_of(&self, virt: i32) -> i32 {
        if !self.is_restarted() {
            return virt;
        }
        self.by_virtual(virt).map_or(virt, Slot::real)
    }

    /// The real id of a group; the id itself if the table does not know it.
    #[must_use]
    pub fn real_group(&self, virt: i32) -> i32 {
        if !self.is_restarted() {
            return virt;
        }
        let outside = || {
            let mut slots = self.slots().iter();
            slots.find(|slot| slot.virt() == virt && slot.state() == SlotState::OutsideGroup)
        };
        self.by_virtual(virt).or_else(outside).map_or(virt, Slot::real)
    }

    /// Takes note of a launcher's standard streams. Only the coordinator does, one at a time.
    ///
    /// # Errors
    ///
    /// [`TableError::Launchers`]
    pub fn add_streams(&self, streams: [StreamId; 3]) -> Result<(), TableError> {
        if self.streams().any(|known| known == streams) {
            return Ok(());
        }
        let header = self.header();
        let used = header.launchers.load(Ordering::Relaxed);
        let free = header.stdio.get(used as usize).ok_or(TableError::Launchers)?;
        for (place, id) in free.iter().zip(streams) {
            place.set(id);
        }
        header.launchers.store(used + 1, Ordering::Release);
        Ok(())
    }

    /// The standard streams of each launcher.
    pub fn streams(&self) -> impl Iterator<Item = [StreamId; 3]> {
        let header = self.header();
        let used = header.launchers.load(Ordering::Acquire) as usize;
        header.stdio.iter().take(used).map(|streams| [0, 1, 2].map(|i| streams[i].get()))
    }

    /// Takes note of the group and session of a launcher, which a program shares at first: by their
    /// real ids, and those by which the job knows them.
    ///
    /// # Errors
    ///
    /// [`TableError::Full`]
    pub fn name_outside(&self, group: [i32; 2], session: [i32; 2]) -> Result<(), TableError> {
        self.insert_as(group[0], group[1], 0, SlotState::OutsideGroup)?;
        self.insert_as(session[0], session[1], 0, SlotState::OutsideSession)?;
        Ok(())
    }

    /// Whether a launcher's group ([`SlotState::OutsideGroup`]) or session
    /// ([`SlotState::OutsideSession`]) has this real id.
    #[must_use]
    pub fn is_outside(&self, real: i32, kind: SlotState) -> bool {
        self.probe(real)
            .map(|slot| (slot.state(), slot.real()))
            .take_while(|(state, _)| *state != SlotState::Free)
            .any(|found| found == (kind, real))
    }

    /// Adds a process, or returns the slot that it has.
    ///
    /// Parent and child both call this after a fork, whoever comes first; both must come before
    /// either can be frozen. The virtual id is the real one unless another member goes by it. A slot
    /// of the same real id with another parent is that of a dead process, and is filled anew; so is an
    /// alias, for the kernel gives nobody the id of a group or session that exists.
    ///
    /// # Errors
    ///
    /// [`TableError::Full`]
    pub fn insert(&self, real: i32, parent: i32, state: SlotState) -> Result<&Slot, TableError> {
        let virt = self.virtual_for(real);
        self.insert_as(real, virt, parent, state)
    }

    /// As [`Table::insert`], with a virtual id that is known.
    ///
    /// # Errors
    ///
    /// [`TableError::Full`]
    pub fn insert_as(
        &self,
        real: i32,
        virt: i32,
        parent: i32,
        state: SlotState,
    ) -> Result<&Slot, TableError> {
        // One who was killed while it filled a slot must not hold up all others.
        const PATIENCE: u32 = 1 << 20;
        let member = matches!(state, SlotState::Live | SlotState::Exec);
        let mut spins = 0;
        'again: loop {
            let mut reusable = None;
            for slot in self.probe(real) {
                let found = slot.state();
                match found {
                    SlotState::Live | SlotState::Exec if slot.real() == real => {
                        if !member || slot.parent.load(Ordering::Relaxed) == parent {
                            return Ok(slot);
                        }
                        reusable = Some((slot, found));
                        break;
                    }
                    SlotState::Alias | SlotState::OutsideGroup | SlotState::OutsideSession
                        if slot.real() == real && (member || found == state) =>
                    {
                        reusable = Some((slot, found));
                        break;
                    }
                    // Somebody fills it, maybe with this very process: look again.
                    SlotState::Busy if spins < PATIENCE => {
                        spins += 1;
                        core::hint::spin_loop();
                        continue 'again;
                    }
                    SlotState::Gone => reusable = reusable.or(Some((slot, SlotState::Gone))),
                    SlotState::Free => {
                        reusable = reusable.or(Some((slot, SlotState::Free)));
                        break;
                    }
                    _ => {}
                }
            }
            let Some((slot, was)) = reusable else { return Err(TableError::Full) };
            let taken = slot.state.compare_exchange(
                was as u32,
                SlotState::Busy as u32,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if taken.is_ok() {
                slot.real.store(real, Ordering::Relaxed);
                slot.virt.store(virt, Ordering::Relaxed);
                slot.parent.store(parent, Ordering::Relaxed);
                slot.killed.store(0, Ordering::Relaxed);
                slot.set_state(state);
                return Ok(slot);
            }
        }
    }

    /// A virtual id for a process or thread that the kernel calls `real`.
    #[must_use]
    pub fn virtual_for(&self, real: i32) -> i32 {
        if !self.is_restarted() || self.by_virtual(real).is_none() {
            return real;
        }
        self.fresh_virtual()
    }

    /// A virtual id that is no real one, and nobody else's.
    #[must_use]
    pub fn fresh_virtual(&self) -> i32 {
        self.header().next_virtual.fetch_add(1, Ordering::Relaxed)
    }

    /// Starts the virtual ids that are no real ones above `virt`.
    pub fn reserve_virtual(&self, virt: i32) {
        self.header().next_virtual.fetch_max(virt.saturating_add(1), Ordering::Relaxed);
    }

    /// Elects the owner of an object for the current epoch: the first who asks.
    ///
    /// `owner` is any number that is not 0. Returns the winner's. `key` names the object and the
    /// epoch; 0 and the object's hash collisions are the caller's to keep apart.
    ///
    /// # Errors
    ///
    /// [`TableError::Full`]
    pub fn claim(&self, key: u64, owner: u64) -> Result<u64, TableError> {
        let key = key.max(1);
        let claims = self.claims();
        let start = hash(key);
        for step in 0..CLAIMS {
            let claim = &claims[(start + step) & (CLAIMS - 1)];
            let found =
                match claim.key.compare_exchange(0, key, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => key,
                    Err(other) => other,
                };
            if found == key {
                let won =
                    claim.owner.compare_exchange(0, owner, Ordering::AcqRel, Ordering::Acquire);
                return Ok(won.err().unwrap_or(owner));
            }
        }
        Err(TableError::Full)
    }

    fn all_objects(&self) -> &[Object] {
        // SAFETY: as above; the objects follow the claims.
        unsafe {
            let first = self.base.add(CLAIMS_END);
            core::slice::from_raw_parts(first.cast().as_ptr(), OBJECTS)
        }
    }

    fn all_debts(&self) -> &[Debt] {
        // SAFETY: as above; the debts follow the objects.
        unsafe {
            let first = self.base.add(CLAIMS_END + OBJECTS * size_of::<Object>());
            core::slice::from_raw_parts(first.cast().as_ptr(), DEBTS)
        }
    }

    /// The System V objects that the job uses; one may be there twice.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        let used = self.header().objects_used.load(Ordering::Acquire) as usize;
        let all = &self.all_objects()[..used.min(OBJECTS)];
        all.iter().filter(|object| object.state.load(Ordering::Acquire) == USED)
    }

    /// The object with this virtual id.
    #[must_use]
    pub fn object(&self, kind: u32, virt: i32) -> Option<&Object> {
        self.objects().find(|object| object.virt() == virt && object.kind() == kind)
    }

    /// The object with this real id.
    #[must_use]
    pub fn object_by_real(&self, kind: u32, real: i32) -> Option<&Object> {
        self.objects().find(|object| object.real() == real && object.kind() == kind)
    }

    /// The object to which a key leads in this job only; one that was removed, if there is no other.
    #[must_use]
    pub fn hidden_object(&self, kind: u32, key: i32) -> Option<&Object> {
        let hidden = self.objects().filter(|object| {
            let flags = object.flags() & object_flag::HIDDEN;
            object.key() == key && object.kind() == kind && flags != 0
        });
        hidden.min_by_key(|object| object.flags() & object_flag::REMOVED)
    }

    /// Takes note of an object that the kernel calls `real`; it keeps its virtual id if it has one.
    ///
    /// # Errors
    ///
    /// [`TableError::Full`]: its virtual id is not known.
    pub fn note_object(
        &self,
        kind: u32,
        real: i32,
        key: i32,
        flags: u32,
    ) -> Result<&Object, TableError> {
        if let Some(known) = self.object_by_real(kind, real) {
            known.add_flags(flags);
            return Ok(known);
        }
        let mut virt = real;
        if self.is_restarted() {
            // Above what the kernel gives to most: an index below 32768 and a count of uses above it.
            let mut fresh = 0x7000_0000;
            while self.object(kind, virt).is_some() {
                virt = fresh;
                fresh += 1;
            }
        }
        let ours = self.insert_object(kind, [virt, real], key, flags)?;
        // Another may have come at the same time: the first entry counts.
        match self.object_by_real(kind, real) {
            Some(first) if !core::ptr::eq(first, ours) => {
                ours.forget();
                first.add_flags(flags);
                Ok(first)
            }
            _ => Ok(ours),
        }
    }

    /// Adds an object whose virtual and real id are known.
    ///
    /// # Errors
    ///
    /// [`TableError::Full`]
    pub fn insert_object(
        &self,
        kind: u32,
        [virt, real]: [i32; 2],
        key: i32,
        flags: u32,
    ) -> Result<&Object, TableError> {
        let objects = self.all_objects();
        let free = objects.iter().position(|object| {
            let (free, filling) = (FREE, FILLING);
            let exchange =
                object.state.compare_exchange(free, filling, Ordering::AcqRel, Ordering::Relaxed);
            exchange.is_ok()
        });
        let (Some(index), true) = (free, virt >= 0) else {
            return Err(TableError::Full);
        };
        let object = &objects[index];
        object.kind.store(kind, Ordering::Relaxed);
        object.virt.store(virt, Ordering::Relaxed);
        object.real.store(real, Ordering::Relaxed);
        object.key.store(key, Ordering::Relaxed);
        object.flags.store(flags, Ordering::Relaxed);
        object.state.store(USED, Ordering::Release);
        let used = u32::try_from(index + 1).unwrap_or(u32::MAX);
        self.header().objects_used.fetch_max(used, Ordering::AcqRel);
        Ok(object)
    }

    /// Takes note of a POSIX message queue that the job has made. Of very many the first are forgotten, and count as
    /// made by others: nobody tells when a queue is gone.
    pub fn note_queue(&self, inode: u64) {
        let mut known = self.objects().filter(|object| object.kind() == QUEUE);
        if let (Some(first), Some(_)) = (known.next(), known.nth(OBJECTS / 4)) {
            first.forget();
        }
        let _ = self.note_object(QUEUE, queue_id(inode), 0, object_flag::CREATED);
    }

    /// Whether the job has made a POSIX message queue.
    #[must_use]
    pub fn has_made_queue(&self, inode: u64) -> bool {
        self.object_by_real(QUEUE, queue_id(inode)).is_some()
    }

    /// Says that an object or a debt found no entry: a restart would lose it.
    pub fn lose_object(&self) {
        self.header().objects_lost.store(1, Ordering::Relaxed);
    }

    /// Whether an object or a debt has ever found no entry.
    #[must_use]
    pub fn has_lost_objects(&self) -> bool {
        self.header().objects_lost.load(Ordering::Relaxed) != 0
    }

    fn used_debts(&self) -> &[Debt] {
        let used = self.header().debts_used.load(Ordering::Acquire) as usize;
        &self.all_debts()[..used.min(DEBTS)]
    }

    /// What a process owes to semaphores.
    pub fn debts(&self, pid: i32) -> impl Iterator<Item = &Debt> {
        self.used_debts().iter().filter(move |debt| debt.pid.load(Ordering::Acquire) == pid)
    }

    /// Adds to what a process owes to a semaphore. Two threads that come first at once make two entries,
    /// whose sum counts.
    ///
    /// # Errors
    ///
    /// [`TableError::Full`]
    pub fn add_debt(
        &self,
        pid: i32,
        id: i32,
        semaphore: u32,
        adjust: i32,
    ) -> Result<(), TableError> {
        let same = |debt: &&Debt| {
            let (known, known_semaphore, _) = debt.get();
            known == id && known_semaphore == semaphore
        };
        if let Some(debt) = self.debts(pid).find(same) {
            debt.adjust.fetch_add(adjust, Ordering::Relaxed);
            return Ok(());
        }
        for round in 0..2 {
            for (index, debt) in self.all_debts().iter().enumerate() {
                let owner = debt.pid.load(Ordering::Relaxed);
                // Those of the dead are looked for when there is no other.
                let free =
                    owner == 0 || round == 1 && owner > 0 && self.by_virtual(owner).is_none();
                let take = || {
                    debt.pid
                        .compare_exchange(owner, -1, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok()
                };
                if free && take() {
                    debt.id.store(id, Ordering::Relaxed);
                    debt.semaphore.store(semaphore, Ordering::Relaxed);
                    debt.adjust.store(adjust, Ordering::Relaxed);
                    debt.pid.store(pid, Ordering::Release);
                    let used = u32::try_from(index + 1).unwrap_or(u32::MAX);
                    self.header().debts_used.fetch_max(used, Ordering::AcqRel);
                    return Ok(());
                }
            }
        }
        Err(TableError::Full)
    }

    /// Forgets what is owed to a semaphore of a set, or to all of them: its value was set.
    pub fn cancel_debts(&self, id: i32, semaphore: Option<u32>) {
        for debt in self.used_debts() {
            let (known, known_semaphore, _) = debt.get();
            if known == id && semaphore.is_none_or(|semaphore| semaphore == known_semaphore) {
                debt.adjust.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Forgets what a process owed that had this virtual id before.
    pub fn forget_debts(&self, pid: i32) {
        for debt in self.debts(pid) {
            debt.pid.store(0, Ordering::Release);
        }
    }

    fn named_sockets(&self) -> &[NamedSocket] {
        // SAFETY: as above; the names follow the claims.
        unsafe {
            core::slice::from_raw_parts(self.base.add(NAMES_AT).cast().as_ptr(), SOCKET_NAMES)
        }
    }

    /// Takes note of the addresses that a socket goes by. Only `ulpm_restart` does, before a process of the
    /// job runs.
    ///
    /// # Errors
    ///
    /// [`TableError::SocketNames`]
    pub fn name_socket(&self, inode: u64, name: &SocketName) -> Result<(), TableError> {
        let sockets = self.named_sockets();
        let start = hash(inode);
        // Not to the last place, so that a search ends.
        let free = (0..SOCKET_NAMES - SOCKET_NAMES / 8)
            .map(|step| &sockets[(start + step) & (SOCKET_NAMES - 1)])
            .find(|socket| socket.inode.load(Ordering::Relaxed) == 0)
            .ok_or(TableError::SocketNames)?;
        for (kept, address) in [(&free.local, name.local), (&free.peer, name.peer)] {
            for (word, value) in kept.iter().zip(address.words()) {
                word.store(value, Ordering::Relaxed);
            }
        }
        free.inode.store(inode, Ordering::Release);
        Ok(())
    }

    /// The addresses that a socket goes by; `None` if they are its own.
    #[must_use]
    pub fn socket_name(&self, inode: u64) -> Option<SocketName> {
        if !self.is_restarted() {
            return None;
        }
        let sockets = self.named_sockets();
        let start = hash(inode);
        for step in 0..SOCKET_NAMES {
            let socket = &sockets[(start + step) & (SOCKET_NAMES - 1)];
            match socket.inode.load(Ordering::Acquire) {
                0 => return None,
                found if found == inode => {
                    let words = |kept: &[AtomicU64; 4]| {
                        SocketAddress::from_words(
                            [0, 1, 2, 3].map(|word| kept[word].load(Ordering::Relaxed)),
                        )
                    };
                    return Some(SocketName {
                        local: words(&socket.local),
                        peer: words(&socket.peer),
                    });
                }
                _ => {}
            }
        }
        None
    }

    fn probe(&self, real: i32) -> impl Iterator<Item = &Slot> {
        let slots = self.slots();
        let start = hash(u64::from(real.cast_unsigned()));
        (0..SLOTS).map(move |step| &slots[(start + step) & (SLOTS - 1)])
    }
}

/// Spreads keys over a power of two (Fibonacci hashing).
fn hash(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

const _: () = assert!(size_of::<Header>() <= 4096 && offset_of!(Header, job) == 16);
const _: () = assert!(size_of::<Slot>() == 32 && size_of::<Claim>() == 16);
const _: () = assert!(size_of::<Object>() == 32 && size_of::<Debt>() == 16);
const _: () = assert!(size_of::<NamedSocket>() == 72);

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let layout = std::alloc::Layout::from_size_align(LEN, 4096).unwrap();
        // SAFETY: the layout is not empty; the memory is leaked, so the table stays valid.
        unsafe {
            let base = NonNull::new(std::alloc::alloc_zeroed(layout)).unwrap();
            let paths: [&[u8]; 3] = [b"/sock", b"/lib.so", b"/table"];
            Table::create(base, 9, 12, paths).unwrap()
        }
    }

    #[test]
    fn parent_and_child_get_the_same_slot() {
        let table = table();
        let first = table.insert(100, 1, SlotState::Live).unwrap();
        let second = table.insert(100, 1, SlotState::Live).unwrap();
        assert!(core::ptr::eq(first, second));
        first.set_state(SlotState::Gone);
        assert!(table.by_real(100).is_none());
    }

    #[test]
    fn a_real_id_that_is_taken_as_a_virtual_one_gets_another() {
        let table = table();
        table.header().restarted.store(1, Ordering::Relaxed);
        table.insert_as(500, 100, 1, SlotState::Live).unwrap();
        let new = table.insert(100, 100, SlotState::Live).unwrap();
        assert_eq!((new.real(), new.virt()), (100, FIRST_FREE_VIRTUAL));
        assert_eq!(table.by_virtual(100).unwrap().real(), 500);
    }

    #[test]
    fn a_group_and_a_session_from_outside_may_have_one_real_id_and_two_names() {
        let table = table();
        table.header().restarted.store(1, Ordering::Relaxed);
        table.name_outside([700, 300], [700, 0]).unwrap();
        assert_eq!((table.virtual_group(700), table.virtual_session(700)), (300, 0));
        assert_eq!(
            (table.virtual_of(700), table.real_group(300), table.real_of(300)),
            (700, 700, 300)
        );
        assert!(table.is_outside(700, SlotState::OutsideSession));
        table.insert(700, 1, SlotState::Live).unwrap();
        assert_eq!(table.virtual_group(700), 700, "the id was given to a process of the job");
    }

    #[test]
    fn the_name_of_a_dead_leader_goes_when_its_id_is_used_again() {
        let table = table();
        table.header().restarted.store(1, Ordering::Relaxed);
        table.insert_as(500, 100, 0, SlotState::Alias).unwrap();
        assert_eq!(table.virtual_of(500), 100);
        table.insert(500, 1, SlotState::Live).unwrap();
        assert_eq!(table.virtual_of(500), 500);
    }

    #[test]
    fn a_slot_behind_a_dead_one_is_still_found_and_dead_ones_are_used_again() {
        let table = table();
        for pid in 1..=3 * SLOTS as i32 {
            table.insert(pid, 1, SlotState::Live).unwrap();
            if pid > 1000 {
                table.by_real(pid - 1000).unwrap().set_state(SlotState::Gone);
            }
        }
        assert_eq!(table.slots().iter().filter(|slot| slot.is_member()).count(), 1000);
    }

    #[test]
    fn a_full_table_says_so() {
        let table = table();
        for pid in 1..=SLOTS as i32 {
            table.insert(pid, 1, SlotState::Live).unwrap();
        }
        assert_eq!(table.insert(i32::MAX, 1, SlotState::Live).unwrap_err(), TableError::Full);
    }

    #[test]
    fn objects_have_two_names_after_a_restart() {
        let table = table();
        assert_eq!(table.note_object(1, 5, 77, object_flag::CREATED).unwrap().virt(), 5);
        assert_eq!(table.note_object(1, 5, 77, 0).unwrap().flags(), object_flag::CREATED);
        assert_eq!(table.objects().count(), 1);
        table.object(1, 5).unwrap().forget();
        assert!(table.object(1, 5).is_none());

        table.header().restarted.store(1, Ordering::Relaxed);
        table.insert_object(1, [5, 9], 77, object_flag::HIDDEN).unwrap();
        assert_eq!(table.object(1, 5).unwrap().real(), 9);
        assert_eq!(table.note_object(1, 5, 0, 0).unwrap().virt(), 0x7000_0000);
        assert_eq!(table.note_object(2, 5, 0, 0).unwrap().virt(), 5, "of another kind");
        assert_eq!(table.hidden_object(1, 77).unwrap().virt(), 5);
        assert!(table.hidden_object(2, 77).is_none());
        table.insert_object(2, [6, 6], 77, object_flag::HIDDEN).unwrap();
        table.object(2, 6).unwrap().leave_key();
        assert!(table.hidden_object(2, 77).unwrap().flags() & object_flag::REMOVED != 0);
        table.insert_object(2, [8, 8], 77, object_flag::HIDDEN).unwrap();
        assert_eq!(table.hidden_object(2, 77).unwrap().virt(), 8);
        for real in 1000..1000 + OBJECTS as i32 - 5 {
            table.note_object(3, real, 0, 0).unwrap();
        }
        assert_eq!(table.note_object(3, 1, 0, 0).unwrap_err(), TableError::Full);
    }

    #[test]
    fn debts_are_added_up_and_those_of_the_dead_make_room() {
        let table = table();
        table.insert(10, 1, SlotState::Live).unwrap();
        table.add_debt(10, 3, 0, 2).unwrap();
        table.add_debt(10, 3, 0, -5).unwrap();
        table.add_debt(10, 3, 1, 1).unwrap();
        assert_eq!(table.debts(10).map(Debt::get).collect::<Vec<_>>(), [(3, 0, -3), (3, 1, 1)]);
        table.cancel_debts(3, Some(0));
        assert_eq!(table.debts(10).map(Debt::get).collect::<Vec<_>>(), [(3, 0, 0), (3, 1, 1)]);
        for semaphore in 0..2 * DEBTS as u32 {
            table.add_debt(11, 3, semaphore, 1).unwrap();
        }
        assert_eq!(table.debts(10).count(), 2);
        table.forget_debts(10);
        assert_eq!(table.debts(10).count(), 0);
    }

    #[test]
    fn a_socket_goes_by_its_old_addresses_until_the_area_is_full() {
        let table = table();
        let name = SocketName {
            local: SocketAddress::new(b"sixteen bytes, v4"),
            peer: SocketAddress::new(&[7; ADDRESS_LEN]),
        };
        table.name_socket(4711, &name).unwrap();
        assert_eq!(table.socket_name(4711), None, "before a restart nothing is translated");
        table.header().restarted.store(1, Ordering::Relaxed);
        assert_eq!(table.socket_name(4711), Some(name));
        assert_eq!(table.socket_name(4712), None);
        assert_eq!(SocketAddress::new(&[1; ADDRESS_LEN + 1]).bytes(), b"");
        let full = (5000..5000 + SOCKET_NAMES as u64)
            .find_map(|inode| table.name_socket(inode, &name).err());
        assert_eq!(full, Some(TableError::SocketNames));
        assert_eq!(table.socket_name(1), None);
    }

    #[test]
    fn the_first_claim_wins() {
        let table = table();
        assert_eq!(table.claim(77, 1), Ok(1));
        assert_eq!(table.claim(77, 2), Ok(1));
        assert_eq!(table.claim(78, 2), Ok(2));
    }
}
