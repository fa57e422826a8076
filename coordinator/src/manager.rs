//! The coordinator's end of a connection to a manager thread.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;
use ulpm_protocol::manager::{
    Failure, FrameError, FrameHeader, FromManager, HEADER_LEN, MAX_PAYLOAD, ToManager,
};

/// A connection of this coordinator's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnId(u64);

static NEXT: AtomicU64 = AtomicU64::new(1);

/// What a manager says after `Hello`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Asks,
    Prepared,
    Wish { number: u32 },
    Frozen { threads: u32 },
    Snapped,
    Written { bytes: u64 },
    Failed { failure: Failure, errno: i32, text: String },
}

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) version: u32,
    pub(crate) job: u64,
    pub(crate) real: i32,
    pub(crate) virt: i32,
    pub(crate) restored: bool,
    pub(crate) stopped: bool,
}

/// A connected manager.
#[derive(Clone, Debug)]
pub(crate) struct Manager {
    pub(crate) id: ConnId,
    stream: Arc<UnixStream>,
}

impl Manager {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { id: ConnId(NEXT.fetch_add(1, Ordering::Relaxed)), stream: Arc::new(stream) }
    }

    /// Whether it is the process with that id, or speaks at least from our pid namespace: in one of its own, a process
    /// has an id that is somebody else's here.
    pub(crate) fn is(&self, pid: i32) -> bool {
        let peer = self.stream.peer_cred().ok().and_then(|peer| peer.pid());
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/pid")).ok();
        peer.is_some_and(|peer| {
            let its = namespace(&peer.to_string());
            peer == pid || its.is_some() && its == namespace("self")
        })
    }

    /// Sends a message, and a descriptor with its first byte.
    pub(crate) async fn send(
        &self,
        message: ToManager<'_>,
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let mut frame = Box::new([0; HEADER_LEN + MAX_PAYLOAD]);
        let len = message.encode(&mut frame);
        let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let mut sent = 0;
        while sent < len {
            let rights = [ControlMessage::ScmRights(&fds)];
            let rights = if sent == 0 && !fds.is_empty() { &rights[..] } else { &[] };
            let slice = [io::IoSlice::new(&frame[sent..len])];
            let send = || {
                let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
                Ok(sendmsg::<UnixAddr>(self.stream.as_raw_fd(), &slice, rights, flags, None)?)
            };
            sent += self.stream.async_io(Interest::WRITABLE, send).await?;
        }
        Ok(())
    }

    /// Fills `buffer`; false if the connection ends before that.
    async fn fill(&self, buffer: &mut [u8]) -> io::Result<bool> {
        let mut have = 0;
        while have < buffer.len() {
            self.stream.readable().await?;
            match self.stream.try_read(&mut buffer[have..]) {
                Ok(0) => return Ok(false),
                Ok(len) => have += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    async fn frame(&self, first: Option<[u8; 4]>) -> io::Result<Option<(u16, Vec<u8>)>> {
        let mut header = [0; HEADER_LEN];
        let have = first.map_or(0, |first| {
            header[..4].copy_from_slice(&first);
            4
        });
        if !self.fill(&mut header[have..]).await? {
            return Ok(None);
        }
        let header = FrameHeader::decode(header).map_err(invalid)?;
        let mut payload = vec![0; header.len];
        if !self.fill(&mut payload).await? {
            return Ok(None);
        }
        Ok(Some((header.kind, payload)))
    }

    /// Reads the first message, of which four bytes have been read.
    pub(crate) async fn hello(&self, first: [u8; 4]) -> io::Result<Option<Hello>> {
        let Some((kind, payload)) = self.frame(Some(first)).await? else { return Ok(None) };
        match FromManager::decode(kind, &payload).map_err(invalid)? {
            FromManager::Hello { version, job, real, virt, restored, stopped } => {
                Ok(Some(Hello { version, job, real, virt, restored, stopped }))
            }
            other => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a manager starts with {other:?} instead of Hello"),
            )),
        }
    }

    /// Reads the next message; `None` when the connection has ended.
    pub(crate) async fn next(&self) -> io::Result<Option<Said>> {
        let Some((kind, payload)) = self.frame(None).await? else { return Ok(None) };
        Ok(Some(match FromManager::decode(kind, &payload).map_err(invalid)? {
            FromManager::Hello { .. } => return Err(invalid(FrameError::Invalid(kind))),
            FromManager::Frozen { threads } => Said::Frozen { threads },
            FromManager::Asks => Said::Asks,
            FromManager::Prepared => Said::Prepared,
            FromManager::Wish { number } => Said::Wish { number },
            FromManager::Snapped => Said::Snapped,
            FromManager::Written { bytes } => Said::Written { bytes },
            FromManager::Failed { failure, errno, text } => {
                Said::Failed { failure, errno, text: String::from_utf8_lossy(text).into_owned() }
            }
        }))
    }
}

fn invalid(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
