//! Everything about a process but its memory.

use alloc::vec::Vec;

use crate::ImageError;
use crate::wire::{Reader, Wire, record};

mod descriptors;
mod events;
mod files;
mod ipc;
mod sockets;
mod terminals;

pub use descriptors::*;
pub use events::*;
pub use files::*;
pub use ipc::*;
pub use sockets::*;
pub use terminals::*;

record! {
/// The process as a whole.
Process {
    /// Job that it was in when it was saved.
    job: u64,
    /// Process id that the program sees.
    pid: i32,
    /// Its parent's, likewise.
    ppid: i32,
    /// Process group, likewise.
    pgid: i32,
    /// Session, likewise.
    sid: i32,
    /// Whether the process group is that of whoever launched the job.
    pgid_outside: bool,
    /// Whether the session is that of whoever launched the job.
    sid_outside: bool,
    /// Whether its process group was in the foreground of its terminal.
    foreground: bool,
    /// Whether it was stopped (state T).
    stopped: bool,
    /// Whether its leading thread had ended while others went on.
    leader_gone: bool,
    /// Name of the leading thread.
    comm: Vec<u8>,
    /// Path of the program.
    exe: Vec<u8>,
    /// Working directory.
    cwd: Vec<u8>,
    /// Mask of mode bits.
    umask: u32,
    /// personality(2).
    personality: u64,
    /// PR_SET_DUMPABLE.
    dumpable: u64,
    /// PR_SET_CHILD_SUBREAPER.
    subreaper: u64,
    /// PR_SET_NO_NEW_PRIVS.
    no_new_privs: u64,
    /// CLOCK_MONOTONIC when it was saved, as the program reads it, in nanoseconds.
    monotonic_ns: i64,
    /// CLOCK_BOOTTIME, likewise.
    boottime_ns: i64,
    /// PR_SET_THP_DISABLE.
    thp_disable: u64,
    /// Supplementary groups.
    groups: Vec<u32>,
    /// oom_score_adj.
    oom_score_adj: i64,
    /// User and group: a restart as another is refused.
    uid: u32,
    /// See `uid`.
    gid: u32,
    /// CPU features that the kernel enabled in XCR0, and the size of their save area.
    xfeatures: u64,
    /// See `xfeatures`.
    xstate_len: u64,
    /// Address at which a restart goes on.
    entry: u64,
    /// Where the job table is mapped.
    table: u64,
    /// Private heap of the manager, as address and length: restored empty.
    heap: [u64; 2],
    /// Where the program believes the vDSO to be, and its length; 0 for none.
    vdso: [u64; 2],
}
}

record! {
/// Fields of `struct prctl_mm_map` (include/uapi/linux/prctl.h) up to `env_end`, in its order.
MemoryMap {
    /// start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end,
    /// env_start, env_end.
    fields: [u64; 11],
    /// The auxiliary vector.
    auxv: Vec<u8>,
}
}

record! {
/// A signal's disposition; see `struct kernel_sigaction`.
Action {
    /// Which signal.
    signal: u32,
    /// Handler.
    handler: u64,
    /// Flags.
    flags: u64,
    /// Restorer.
    restorer: u64,
    /// Mask.
    mask: u64,
}
}

record! {
/// A user thread. What is needed to go on lies in the process's memory; this is for the reader.
Thread {
    /// Thread id that the program sees.
    tid: i32,
    /// Name, padded with NULs.
    name: [u8; 16],
    /// System call in which it stood; -1 for none.
    syscall: i64,
}
}

/// `Region::flags`.
#[expect(missing_docs, reason = "named for the flags of mmap(2) and madvise(2)")]
pub mod region_flag {
    pub const SHARED: u32 = 1;
    pub const GROWS_DOWN: u32 = 1 << 1;
    pub const NO_RESERVE: u32 = 1 << 2;
    pub const HUGE_PAGE: u32 = 1 << 3;
    pub const NO_HUGE_PAGE: u32 = 1 << 4;
    pub const DONT_FORK: u32 = 1 << 5;
    pub const WIPE_ON_FORK: u32 = 1 << 6;
    pub const DONT_DUMP: u32 = 1 << 7;
    pub const MERGEABLE: u32 = 1 << 8;
    pub const LOCKED: u32 = 1 << 9;
    /// The image holds all pages of the mapped file, not only the changed ones.
    pub const CARRIED: u32 = 1 << 10;
    /// Shared, and cannot be made writable: it was mapped, or a System V segment attached, for reading only.
    pub const READ_ONLY: u32 = 1 << 11;
}

/// `Region::kind`.
pub mod region_kind {
    /// Anonymous, private.
    pub const ANONYMOUS: u32 = 1;
    /// A file, private or shared.
    pub const FILE: u32 = 2;
    /// Shared memory without a name that could be opened again: shared anonymous memory, or a file
    /// that was deleted. Regions with the same `dev` and `inode` are the same object.
    pub const SHARED_MEMORY: u32 = 3;
    /// The code of the vDSO as the program knows it.
    pub const VDSO: u32 = 4;
    /// A System V shared memory segment, whose id is `inode`, as the program knows it.
    pub const SEGMENT: u32 = 5;
}

record! {
/// A mapping.
Region {
    /// First address.
    start: u64,
    /// Address behind the last.
    end: u64,
    /// PROT_… bits.
    protection: u32,
    /// `region_flag` bits.
    flags: u32,
    /// `region_kind`.
    kind: u32,
    /// Offset in the file or object.
    offset: u64,
    /// Device of the file or object.
    dev: u64,
    /// Its inode.
    inode: u64,
    /// The file's length when it was saved: with the time, how a changed file is known.
    file_len: u64,
    /// The file's modification time, seconds and nanoseconds.
    mtime: [i64; 2],
    /// The file's path.
    path: Vec<u8>,
}
}

record! {
/// A child that has ended and was not waited for.
Zombie {
    /// Process id that the program sees.
    pid: i32,
    /// Status as wait(2) gives it.
    status: i32,
    /// Process group.
    pgid: i32,
    /// Session.
    sid: i32,
}
}

record! {
/// Soft and hard limit.
Limit {
    /// Soft.
    current: u64,
    /// Hard.
    maximum: u64,
}
}

record! {
/// An interval timer of setitimer(2), in microseconds: interval and time to the next.
Timer {
    /// Interval.
    interval_us: u64,
    /// Remaining.
    value_us: u64,
}
}

record! {
/// A signal that came for the process after its threads had stopped. (What waited before lies in memory.)
Pending {
    /// Which.
    signal: u32,
}
}

/// `Plugin::flags`.
pub mod plugin_flag {
    /// The process is restarted only where the plugin's file is.
    pub const REQUIRED: u32 = 1;
}

record! {
/// A plugin that the process has loaded. Its code and memory go along like all memory; programs that the process
/// executes load its file again.
Plugin {
    /// Its name.
    name: Vec<u8>,
    /// Its version.
    version: Vec<u8>,
    /// Path of its file.
    path: Vec<u8>,
    /// `plugin_flag` bits.
    flags: u32,
    /// Version of its section.
    section_version: u32,
    /// Its section: what it wants others to read.
    section: Vec<u8>,
}
}

/// Everything about a process but its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The process as a whole.
    pub process: Process,
    /// Boundaries of code, data, heap, stack and arguments.
    pub memory_map: MemoryMap,
    /// All signal dispositions that are not the default.
    pub actions: Vec<Action>,
    /// User threads.
    pub threads: Vec<Thread>,
    /// Mappings, by address.
    pub regions: Vec<Region>,
    /// Descriptors, by number.
    pub descriptors: Vec<Descriptor>,
    /// What is behind them.
    pub descriptions: Vec<Description>,
    /// Pipes that this process saved.
    pub pipes: Vec<Pipe>,
    /// Files without a name that this process saved.
    pub deleted: Vec<DeletedFile>,
    /// Files with a name whose content goes along: those that this process saved.
    pub files: Vec<DeletedFile>,
    /// Seals of those that memfd_create(2) has made.
    pub memory_files: Vec<MemoryFile>,
    /// Named pipes that this process saved.
    pub fifos: Vec<Fifo>,
    /// Pseudo-terminals that this process saved.
    pub masters: Vec<Master>,
    /// Terminals that it has open.
    pub terminals: Vec<Terminal>,
    /// File locks, as far as descriptors lead to them.
    pub locks: Vec<Lock>,
    /// The working directory, if it was deleted.
    pub deleted_cwd: Vec<DeletedDirectory>,
    /// Children that have ended.
    pub zombies: Vec<Zombie>,
    /// Resource limits by number.
    pub limits: Vec<Limit>,
    /// The three interval timers.
    pub timers: Vec<Timer>,
    /// Signals that wait for the process.
    pub pending: Vec<Pending>,
    /// Counters of eventfd(2) that this process saved.
    pub counters: Vec<EventCounter>,
    /// Timers of timerfd_create(2) that it saved.
    pub event_timers: Vec<EventTimer>,
    /// Sets of signalfd(2) that it saved.
    pub event_signals: Vec<EventSignals>,
    /// Processes of pidfd_open(2) that it saved.
    pub event_processes: Vec<EventProcess>,
    /// What the epoll instances that it saved watch.
    pub interests: Vec<Interest>,
    /// Instances of inotify_init(2) that it saved.
    pub notifiers: Vec<Notifier>,
    /// What they watch.
    pub watches: Vec<FileWatch>,
    /// Sockets that this process saved.
    pub sockets: Vec<Socket>,
    /// System V objects that this process saved.
    pub ipc: Vec<IpcObject>,
    /// POSIX message queues that it saved.
    pub queues: Vec<Queue>,
    /// Plugins, in their order.
    pub plugins: Vec<Plugin>,
}

fn put_section(tag: u32, content: &impl Wire, out: &mut Vec<u8>) {
    tag.put(out);
    let at = out.len();
    0u32.put(out);
    content.put(out);
    let len = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
}

macro_rules! sections {
    ($($tag:literal $field:ident,)* optional $($may_tag:literal $may_field:ident,)*) => {
        impl Meta {
            /// The sections.
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                let mut out = Vec::new();
                $(put_section($tag, &self.$field, &mut out);)*
                $(
                    if !self.$may_field.is_empty() {
                        put_section($may_tag, &self.$may_field, &mut out);
                    }
                )*
                out
            }

            /// Reads sections, in any order.
            ///
            /// # Errors
            ///
            /// [`ImageError`] for a section that is missing, unknown and not optional, or not what it
            /// should be.
            pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
                let mut meta = Self::default();
                let mut seen = 0u64;
                let mut reader = Reader::new(bytes);
                while !reader.bytes.is_empty() {
                    let tag = u32::take(&mut reader)?;
                    let len = u32::take(&mut reader)?;
                    let mut section = Reader::new(reader.take(len as usize)?);
                    match tag {
                        $($tag => {
                            meta.$field = Wire::take(&mut section)?;
                            seen |= 1 << $tag;
                        })*
                        $($may_tag => meta.$may_field = Wire::take(&mut section)?,)*
                        _ if tag & 1 << 31 != 0 => {}
                        _ => return Err(ImageError::UnknownSection(tag)),
                    }
                }
                $(
                    if seen & (1 << $tag) == 0 {
                        return Err(ImageError::Missing(stringify!($field)));
                    }
                )*
                meta.check()?;
                Ok(meta)
            }
        }
    };
}

// Tags are never used again for something else.
sections! {
    1 process,
    2 memory_map,
    3 actions,
    4 threads,
    5 regions,
    6 descriptors,
    7 descriptions,
    8 pipes,
    9 zombies,
    10 limits,
    11 timers,
    12 pending,
    13 deleted,
    14 counters,
    15 event_timers,
    16 event_signals,
    17 event_processes,
    18 interests,
    21 sockets,
    25 masters,
    26 terminals,
    27 fifos,
    28 locks,
    29 deleted_cwd,
    30 ipc,
    31 files,
    40 notifiers,
    41 watches,
    42 memory_files,
    43 queues,
    // Not there where there is nothing to say; with the highest bit, for readers that do not know them.
    optional
    0x8000_0001 plugins,
}

impl Meta {
    /// What no decoder of single fields can see.
    fn check(&self) -> Result<(), ImageError> {
        let mut previous_end = 0;
        for region in &self.regions {
            let aligned =
                (region.start | region.end | region.offset).is_multiple_of(crate::PAGE as u64);
            if !aligned || region.start < previous_end || region.end <= region.start {
                return Err(ImageError::Invalid { field: "region", found: region.start });
            }
            if region.end > 1 << 47 {
                return Err(ImageError::Invalid { field: "region end", found: region.end });
            }
            if !matches!(region.kind, region_kind::ANONYMOUS..=region_kind::SEGMENT) {
                return Err(ImageError::Invalid {
                    field: "region kind",
                    found: region.kind.into(),
                });
            }
            previous_end = region.end;
        }
        for descriptor in &self.descriptors {
            let known = self.descriptions.iter().any(|file| file.id == descriptor.description);
            if descriptor.fd < 0 || !known {
                let found = u64::from(descriptor.fd.cast_unsigned());
                return Err(ImageError::Invalid { field: "descriptor", found });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Meta {
        Meta {
            process: Process { pid: 42, comm: b"sim".to_vec(), ..Process::default() },
            regions: alloc::vec![Region {
                start: 0x1000,
                end: 0x3000,
                kind: region_kind::ANONYMOUS,
                ..Region::default()
            }],
            descriptors: alloc::vec![Descriptor { fd: 3, cloexec: true, description: 8 }],
            descriptions: alloc::vec![Description {
                id: 8,
                kind: description_kind::FILE,
                path: b"/etc/passwd".to_vec(),
                ..Description::default()
            }],
            ..Meta::default()
        }
    }

    #[test]
    fn comes_back_as_it_was() {
        assert_eq!(Meta::decode(&sample().encode()), Ok(sample()));
    }

    #[test]
    fn no_prefix_is_accepted_and_none_panics() {
        let bytes = sample().encode();
        for cut in 0..bytes.len() {
            assert!(Meta::decode(&bytes[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_huge_count_reserves_nothing() {
        let bytes = [3u32.to_le_bytes(), 4u32.to_le_bytes(), u32::MAX.to_le_bytes()].concat();
        assert!(matches!(Meta::decode(&bytes), Err(ImageError::Short { .. })));
    }

    #[test]
    fn an_optional_section_is_skipped_and_another_is_not() {
        let mut bytes = sample().encode();
        for tag in [0x8000_7fffu32, 99] {
            bytes.extend([tag.to_le_bytes(), 0u32.to_le_bytes()].concat());
            assert_eq!(Meta::decode(&bytes).is_ok(), tag != 99);
        }
    }

    #[test]
    fn overlapping_regions_are_refused() {
        let mut meta = sample();
        meta.regions.push(meta.regions[0].clone());
        assert_eq!(
            Meta::decode(&meta.encode()),
            Err(ImageError::Invalid { field: "region", found: 0x1000 })
        );
    }
}
