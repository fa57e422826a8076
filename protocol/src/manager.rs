//! Messages between a manager thread and its coordinator.
//!
//! ```text
//!  manager                         coordinator
//!    │── Hello ───────────────────────▶│  once, after every connect
//!    │── Asks ────────────────────────▶│  only where there are plugins: ask before a freeze
//!    │◀───────────────────── Prepare ──│
//!    │── Prepared or Failed ──────────▶│
//!    │◀────────────────────── Freeze ──│  when every member that asks for it is prepared
//!    │── Frozen or Failed ────────────▶│  Failed: the manager has thawed its process
//!    │◀── Capture (+ descriptor) ──────│  when every member of the job is frozen
//!    │── Snapped ─────────────────────▶│  not with HOLD
//!    │◀──────────────────────── Thaw ──│  when every member has snapped
//!    │── Written or Failed ───────────▶│
//!    │◀──────────────── Thaw or End ───│  with HOLD only
//! ```
//!
//! A manager says `Wish` at any time when the program wants a checkpoint, and hears `Wished` when that is done or has failed.
//!
//! A restarted process says `Hello` with `restored` set once its threads exist, and waits for `Thaw`.
//! `Thaw` is right at every moment: before `Snapped` it aborts, and the image is left incomplete.
//! When the connection breaks the manager thaws its process, or ends it if the job table says that the
//! job was handed over, and connects again.
//!
//! A frame is its payload's length (`u32`), the kind (`u16`), two zero bytes, and the payload. All
//! numbers are little-endian. Zero is no kind.

/// Raised when a message changes its meaning.
pub const VERSION: u32 = 1;

/// Bytes of a frame before its payload.
pub const HEADER_LEN: usize = 8;

/// The most that a payload may hold.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// Signal that stops a thread which has another use for SIGUSR2, and that wakes a process which has no
/// manager yet: glibc's SIGSETXID. glibc lets no program block, wait for or handle it, so it is safe to
/// send to every member whose slot is live.
pub const FREEZE_SIGNAL: i32 = 33;
/// `si_value` of every freeze signal (`si_code` is SI_QUEUE): how the handler knows ours. The low 32
/// bits are 0, which only starts the manager of a process that has none, or the epoch of the freeze,
/// which also holds the thread until its process has thawed from that epoch.
pub const FREEZE_COOKIE: u64 = 0x756c_706d << 32;
/// Name (`comm`) of manager threads.
pub const MANAGER_COMM: &str = "ulpm-manager";
/// Name (`comm`) of the processes that write a snapshot while the program goes on.
pub const WRITER_COMM: &str = "ulpm-writer";

/// `Freeze`: the process was stopped (state T); the coordinator has sent the freeze signal to each of
/// its user threads and then SIGCONT. The manager stops it again when it thaws.
pub const FREEZE_STOPPED: u32 = 1;
/// `Freeze`, to a process that is frozen in the same epoch: it takes note of its children that are stopped, and of which
/// the program knows it, and says `Frozen` again.
pub const FREEZE_NOTE: u32 = 2;
/// `Freeze`, to a process that is about to be thawed: those of its children are stopped again that it has taken note
/// of; it takes what the kernel tells of them once more, and says `Frozen` with no threads.
pub const FREEZE_FORGET: u32 = 4;

/// `Prepare`, `Freeze`: the job is about to move.
pub const FREEZE_MIGRATE: u32 = 8;

/// How a thaw has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Thawed {
    /// There is no checkpoint.
    #[default]
    Aborted = 0,
    /// The content of a checkpoint is fixed.
    Saved = 1,
    /// The job came from another host.
    Moved = 2,
}

/// `Capture`: write inside the freeze and stay frozen until `Thaw` or `End`.
pub const CAPTURE_HOLD: u32 = 1;
/// `Capture`: the descriptor is a regular file, to be made durable before `Written`.
pub const CAPTURE_SYNC: u32 = 2;
/// `Capture`: as [`FREEZE_STOPPED`], for a process that was stopped after it was told to freeze.
pub const CAPTURE_STOPPED: u32 = 4;
/// `Capture`: with the content of the regular files that are open.
pub const CAPTURE_FILES: u32 = 8;
/// `Capture`: with what TCP connections to programs outside the job need to be repaired (TCP_REPAIR), where that is
/// permitted. Only with `CAPTURE_HOLD`.
pub const CAPTURE_REPAIR: u32 = 16;

/// Why a frame cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The payload would be longer than [`MAX_PAYLOAD`].
    TooLong(u32),
    /// A kind that this version does not know.
    UnknownKind(u16),
    /// The payload ends before its fields do.
    Short(u16),
    /// A field holds what it must not.
    Invalid(u16),
}

impl core::fmt::Display for FrameError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooLong(len) => {
                write!(f, "frame of {len} bytes, at most {MAX_PAYLOAD} are allowed")
            }
            Self::UnknownKind(kind) => write!(f, "unknown message kind {kind}"),
            Self::Short(kind) => write!(f, "message of kind {kind} is cut short"),
            Self::Invalid(kind) => write!(f, "message of kind {kind} holds an invalid field"),
        }
    }
}

impl core::error::Error for FrameError {}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of payload that follow.
    pub len: usize,
    /// What they are.
    pub kind: u16,
}

impl FrameHeader {
    /// Reads the first [`HEADER_LEN`] bytes of a frame.
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLong`]: the connection is of no further use.
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let [a, b, c, d, e, f, _, _] = bytes;
        let len = u32::from_le_bytes([a, b, c, d]);
        if len as usize > MAX_PAYLOAD {
            return Err(FrameError::TooLong(len));
        }
        Ok(Self { len: len as usize, kind: u16::from_le_bytes([e, f]) })
    }

    fn encode(self) -> [u8; HEADER_LEN] {
        let [a, b, c, d] = u32::try_from(self.len).unwrap_or(u32::MAX).to_le_bytes();
        let [e, f] = self.kind.to_le_bytes();
        [a, b, c, d, e, f, 0, 0]
    }
}

/// Why a manager could not do what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Failure {
    /// A thread did not stop in time.
    Deadline = 1,
    /// Something in the process cannot be saved.
    Unsupported = 2,
    /// Writing the image failed.
    Write = 3,
    /// A system call failed that does not fail.
    System = 4,
    /// Something cannot be saved at this moment, but may be soon, when the program has run on.
    Again = 5,
}

impl Failure {
    fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Deadline,
            2 => Self::Unsupported,
            3 => Self::Write,
            4 => Self::System,
            5 => Self::Again,
            _ => return None,
        })
    }
}

/// From a manager to its coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromManager<'a> {
    /// Who is connecting.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// The job's id, as in its table.
        job: u64,
        /// The kernel's process id.
        real: i32,
        /// The process id that the program sees.
        virt: i32,
        /// Whether the process was just restarted, and waits for `Thaw`.
        restored: bool,
        /// Whether it will stop itself at that `Thaw`, for it was stopped when it was saved.
        stopped: bool,
    },
    /// The process has something to do before it can be frozen, and wants to be told by `Prepare`.
    Asks,
    /// It may be frozen.
    Prepared,
    /// The program wishes a checkpoint.
    Wish {
        /// Which wish of this process; the last of several.
        number: u32,
    },
    /// Every user thread stands still.
    Frozen {
        /// How many there are.
        threads: u32,
    },
    /// The image's content is fixed; the process may go on.
    Snapped,
    /// The whole image was written, and made durable if that was asked for.
    Written {
        /// Length of the image in bytes.
        bytes: u64,
    },
    /// The freeze or the capture failed.
    Failed {
        /// Of what sort.
        failure: Failure,
        /// The `errno`, or 0.
        errno: i32,
        /// In words: the thing, the cause, the way out.
        text: &'a [u8],
    },
}

/// A zombie child of the process that is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zombie {
    /// The process id that the program sees.
    pub virt: i32,
    /// The status, as wait(2) will give it.
    pub status: i32,
    /// The process group, as the program sees it.
    pub pgid: i32,
    /// The session, as the program sees it.
    pub sid: i32,
}

/// Bytes of one [`Zombie`] in a payload.
pub const ZOMBIE_LEN: usize = 16;

impl Zombie {
    /// The bytes of this entry in a `Capture` payload.
    #[must_use]
    pub fn encode(&self) -> [u8; ZOMBIE_LEN] {
        let mut bytes = [0; ZOMBIE_LEN];
        for (field, value) in
            bytes.chunks_exact_mut(4).zip([self.virt, self.status, self.pgid, self.sid])
        {
            field.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// Reads the entries of a `Capture` payload.
    pub fn decode_all(bytes: &[u8]) -> impl Iterator<Item = Self> + '_ {
        bytes.chunks_exact(ZOMBIE_LEN).map(|entry| {
            let mut fields = Fields { bytes: entry, kind: 0 };
            let mut next = || fields.i32().unwrap_or_default();
            Self { virt: next(), status: next(), pgid: next(), sid: next() }
        })
    }
}

/// From a coordinator to a manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToManager<'a> {
    /// A freeze is coming: do what is to be done before it. To one that has said `Asks`.
    Prepare {
        /// How long it may take.
        deadline_ms: u32,
        /// `FREEZE_…` bits.
        flags: u32,
    },
    /// Stop every user thread.
    Freeze {
        /// Number of this freeze in the job; the key of elections.
        epoch: u32,
        /// How long it may take.
        deadline_ms: u32,
        /// `FREEZE_…` bits.
        flags: u32,
    },
    /// Save the process to the descriptor that comes with this message.
    Capture {
        /// `CAPTURE_…` bits.
        flags: u32,
        /// [`Zombie`] entries, encoded.
        zombies: &'a [u8],
    },
    /// Go on.
    Thaw(Thawed),
    /// The answer to `Wish`.
    Wished {
        /// Of which.
        number: u32,
        /// 0: the checkpoint is durable.
        errno: i32,
    },
    /// End the process at once, as by SIGKILL: it was handed over.
    End,
}

const HELLO: u16 = 1;
const FROZEN: u16 = 2;
const SNAPPED: u16 = 3;
const WRITTEN: u16 = 4;
const FAILED: u16 = 5;
const ASKS: u16 = 6;
const PREPARED: u16 = 7;
const WISH: u16 = 8;
const FREEZE: u16 = 33;
const CAPTURE: u16 = 34;
const THAW: u16 = 35;
const END: u16 = 36;
const PREPARE: u16 = 37;
const WISHED: u16 = 38;

impl<'a> FromManager<'a> {
    /// Writes the frame into `buffer` and returns its length; a text that is too long is cut.
    pub fn encode(&self, buffer: &mut [u8; HEADER_LEN + MAX_PAYLOAD]) -> usize {
        let mut out = Writer::new(buffer);
        let kind = match *self {
            Self::Hello { version, job, real, virt, restored, stopped } => {
                out.put(&version.to_le_bytes());
                out.put(&job.to_le_bytes());
                out.put(&real.to_le_bytes());
                out.put(&virt.to_le_bytes());
                out.put(&[u8::from(restored), u8::from(stopped)]);
                HELLO
            }
            Self::Frozen { threads } => {
                out.put(&threads.to_le_bytes());
                FROZEN
            }
            Self::Asks => ASKS,
            Self::Prepared => PREPARED,
            Self::Wish { number } => {
                out.put(&number.to_le_bytes());
                WISH
            }
            Self::Snapped => SNAPPED,
            Self::Written { bytes } => {
                out.put(&bytes.to_le_bytes());
                WRITTEN
            }
            Self::Failed { failure, errno, text } => {
                out.put(&(failure as u32).to_le_bytes());
                out.put(&errno.to_le_bytes());
                out.put(text);
                FAILED
            }
        };
        out.finish(kind)
    }

    /// Reads a payload.
    ///
    /// # Errors
    ///
    /// [`FrameError`]: the frame is to be dropped, and the connection with it.
    pub fn decode(kind: u16, payload: &'a [u8]) -> Result<Self, FrameError> {
        let mut fields = Fields { bytes: payload, kind };
        Ok(match kind {
            HELLO => Self::Hello {
                version: fields.u32()?,
                job: fields.u64()?,
                real: fields.i32()?,
                virt: fields.i32()?,
                restored: fields.bool()?,
                stopped: fields.bool()?,
            },
            FROZEN => Self::Frozen { threads: fields.u32()? },
            ASKS => Self::Asks,
            PREPARED => Self::Prepared,
            WISH => Self::Wish { number: fields.u32()? },
            SNAPPED => Self::Snapped,
            WRITTEN => Self::Written { bytes: fields.u64()? },
            FAILED => Self::Failed {
                failure: Failure::from_raw(fields.u32()?).ok_or(FrameError::Invalid(kind))?,
                errno: fields.i32()?,
                text: fields.bytes,
            },
            _ => return Err(FrameError::UnknownKind(kind)),
        })
    }
}

impl<'a> ToManager<'a> {
    /// Writes the frame into `buffer` and returns its length; zombies that do not fit are cut.
    pub fn encode(&self, buffer: &mut [u8; HEADER_LEN + MAX_PAYLOAD]) -> usize {
        let mut out = Writer::new(buffer);
        let kind = match *self {
            Self::Wished { number, errno } => {
                out.put(&number.to_le_bytes());
                out.put(&errno.to_le_bytes());
                WISHED
            }
            Self::Prepare { deadline_ms, flags } => {
                out.put(&deadline_ms.to_le_bytes());
                out.put(&flags.to_le_bytes());
                PREPARE
            }
            Self::Freeze { epoch, deadline_ms, flags } => {
                out.put(&epoch.to_le_bytes());
                out.put(&deadline_ms.to_le_bytes());
                out.put(&flags.to_le_bytes());
                FREEZE
            }
            Self::Capture { flags, zombies } => {
                out.put(&flags.to_le_bytes());
                out.put(zombies);
                CAPTURE
            }
            Self::Thaw(how) => {
                out.put(&(how as u32).to_le_bytes());
                THAW
            }
            Self::End => END,
        };
        out.finish(kind)
    }

    /// Reads a payload.
    ///
    /// # Errors
    ///
    /// [`FrameError`]: the frame is to be dropped, and the connection with it.
    pub fn decode(kind: u16, payload: &'a [u8]) -> Result<Self, FrameError> {
        let mut fields = Fields { bytes: payload, kind };
        Ok(match kind {
            FREEZE => Self::Freeze {
                epoch: fields.u32()?,
                deadline_ms: fields.u32()?,
                flags: fields.u32()?,
            },
            CAPTURE => Self::Capture { flags: fields.u32()?, zombies: fields.bytes },
            // An older coordinator says nothing of how.
            THAW => Self::Thaw(match fields.u32() {
                Ok(1) => Thawed::Saved,
                Ok(2) => Thawed::Moved,
                _ => Thawed::Aborted,
            }),
            WISHED => Self::Wished { number: fields.u32()?, errno: fields.i32()? },
            PREPARE => Self::Prepare { deadline_ms: fields.u32()?, flags: fields.u32()? },
            END => Self::End,
            _ => return Err(FrameError::UnknownKind(kind)),
        })
    }
}

struct Writer<'a> {
    buffer: &'a mut [u8; HEADER_LEN + MAX_PAYLOAD],
    at: usize,
}

impl<'a> Writer<'a> {
    fn new(buffer: &'a mut [u8; HEADER_LEN + MAX_PAYLOAD]) -> Self {
        Self { buffer, at: HEADER_LEN }
    }

    fn put(&mut self, bytes: &[u8]) {
        let room = &mut self.buffer[self.at..];
        let len = bytes.len().min(room.len());
        room[..len].copy_from_slice(&bytes[..len]);
        self.at += len;
    }

    fn finish(self, kind: u16) -> usize {
        let header = FrameHeader { len: self.at - HEADER_LEN, kind }.encode();
        self.buffer[..HEADER_LEN].copy_from_slice(&header);
        self.at
    }
}

struct Fields<'a> {
    bytes: &'a [u8],
    kind: u16,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (field, rest) = self.bytes.split_first_chunk().ok_or(FrameError::Short(self.kind))?;
        self.bytes = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.take().map(u32::from_le_bytes)
    }

    fn i32(&mut self) -> Result<i32, FrameError> {
        self.take().map(i32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.take().map(u64::from_le_bytes)
    }

    fn bool(&mut self) -> Result<bool, FrameError> {
        match self.take()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [_] => Err(FrameError::Invalid(self.kind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(frame: &[u8]) -> (FrameHeader, &[u8]) {
        let (header, payload) = frame.split_first_chunk().unwrap();
        (FrameHeader::decode(*header).unwrap(), payload)
    }

    #[test]
    fn every_message_comes_back_as_it_was_and_no_prefix_does() {
        let mut buffer = [0; HEADER_LEN + MAX_PAYLOAD];
        let hello = FromManager::Hello {
            version: VERSION,
            job: 7,
            real: 100,
            virt: 50,
            restored: true,
            stopped: false,
        };
        for message in [
            hello,
            FromManager::Frozen { threads: 3 },
            FromManager::Asks,
            FromManager::Prepared,
            FromManager::Wish { number: 3 },
            FromManager::Snapped,
            FromManager::Written { bytes: 1 << 40 },
            FromManager::Failed { failure: Failure::Write, errno: 28, text: b"disk full" },
        ] {
            let len = message.encode(&mut buffer);
            let (header, payload) = parts(&buffer[..len]);
            assert_eq!(header.len, payload.len());
            assert_eq!(FromManager::decode(header.kind, payload), Ok(message));
        }
        let len = hello.encode(&mut buffer);
        let (header, payload) = parts(&buffer[..len]);
        for cut in 0..payload.len() {
            assert_eq!(
                FromManager::decode(header.kind, &payload[..cut]),
                Err(FrameError::Short(header.kind))
            );
        }
    }

    #[test]
    fn the_bytes_of_version_1_are_pinned() {
        let mut buffer = [0; HEADER_LEN + MAX_PAYLOAD];
        let len = ToManager::Freeze { epoch: 2, deadline_ms: 10_000, flags: FREEZE_STOPPED }
            .encode(&mut buffer);
        assert_eq!(
            buffer[..len],
            [12, 0, 0, 0, 33, 0, 0, 0, 2, 0, 0, 0, 0x10, 0x27, 0, 0, 1, 0, 0, 0]
        );
    }

    #[test]
    fn a_thaw_says_how_and_one_of_an_older_coordinator_does_not() {
        let mut buffer = [0; HEADER_LEN + MAX_PAYLOAD];
        for how in [Thawed::Aborted, Thawed::Saved, Thawed::Moved] {
            let len = ToManager::Thaw(how).encode(&mut buffer);
            let (header, payload) = parts(&buffer[..len]);
            assert_eq!(ToManager::decode(header.kind, payload), Ok(ToManager::Thaw(how)));
            let old = ToManager::decode(header.kind, &[]);
            assert_eq!(old, Ok(ToManager::Thaw(Thawed::Aborted)));
        }
    }

    #[test]
    fn zombies_travel_with_a_capture() {
        let mut buffer = [0; HEADER_LEN + MAX_PAYLOAD];
        let zombie = Zombie { virt: 12, status: 9, pgid: 10, sid: 1 };
        let len = ToManager::Capture { flags: CAPTURE_HOLD, zombies: &zombie.encode() }
            .encode(&mut buffer);
        let (header, payload) = parts(&buffer[..len]);
        let Ok(ToManager::Capture { flags: CAPTURE_HOLD, zombies }) =
            ToManager::decode(header.kind, payload)
        else {
            panic!("not a capture");
        };
        assert!(Zombie::decode_all(zombies).eq([zombie]));
    }

    #[test]
    fn a_length_from_the_wire_is_capped() {
        assert_eq!(
            FrameHeader::decode([0, 0, 0, 1, 1, 0, 0, 0]),
            Err(FrameError::TooLong(1 << 24))
        );
    }
}
