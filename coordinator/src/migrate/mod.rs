//! Migration: a job is handed over to another host.
//!
//! ```text
//!  source                                target
//!    Offer ─────────────────────────────▶ checks what it lacks
//!    ◀───────────────────────────── Accept
//!    freeze, capture ═══ images ════════▶ files of a partial generation
//!    Manifest ──────────────────────────▶ completes the generation, starts ulpm_restart --hold,
//!                                         makes the images durable meanwhile, logs that it has them
//!    ◀─────────────────────────── Prepared   every process waits for its thaw
//!    record, table: Committed
//!    Commit ────────────────────────────▶ logs that the job is its own, thaw
//!    ◀──────────────────────────── Running
//!    ends its processes
//! ```
//!
//! What is done when is decided by the state machines in `ulpm_protocol::handover`; this module does it. A
//! source that is not answered says Commit again, as [`Request::Follow`], for as long as it takes.

pub(crate) mod check;
mod source;
mod target;

pub(crate) use source::{Manner, follow};
pub(crate) use target::{
    Hold, Incoming, findings, random_token, receive, receive_images_of, recover, restart_command,
    start_kept,
};

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::WriteHalf;
use tokio::sync::{Mutex, mpsc};
use ulpm_control::codec::CodecError;
use ulpm_control::message::PeerMessage;

use crate::fault::hurried;
use crate::network::Link;
use crate::wire;

/// How long a plain answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a source whose job stands still hears nothing of its target before it lets the job go on.
const SILENCE: Duration = Duration::from_secs(8);
/// How often a target says within that time that it is at work.
const BEATS: u32 = 4;

/// A connection to another coordinator, whose messages are read by a task.
#[derive(Debug)]
struct Peer {
    messages: mpsc::UnboundedReceiver<Result<PeerMessage, CodecError>>,
    writer: Arc<Mutex<WriteHalf<Link>>>,
}

impl Peer {
    fn new(link: Link) -> Self {
        let (mut reader, writer) = tokio::io::split(link);
        let (sender, messages) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    message = wire::read(&mut reader) => message,
                    () = sender.closed() => return,
                };
                let last = message.is_err();
                if sender.send(message).is_err() || last {
                    return;
                }
            }
        });
        Self { messages, writer: Arc::new(Mutex::new(writer)) }
    }

    /// Says every now and then that this side is at work, for as long as `self` lives.
    fn beat(&self) {
        let writer = Arc::downgrade(&self.writer);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(hurried(SILENCE) / BEATS).await;
                let Some(writer) = writer.upgrade() else { return };
                let mut writer = writer.lock().await;
                if wire::write(&mut *writer, &PeerMessage::Alive).await.is_err() {
                    return;
                }
            }
        });
    }

    /// Sends a message; gives up when the other side takes nothing, and the connection is of no use then.
    async fn send(&mut self, message: &PeerMessage) -> Result<(), CodecError> {
        let writing = async { wire::write(&mut *self.writer.lock().await, message).await };
        within(hurried(ANSWER_TIMEOUT), writing).await
    }

    /// What the other side has said unasked, other than that it is there; or that it has gone.
    fn said(&mut self) -> Option<Result<PeerMessage, CodecError>> {
        loop {
            return match self.messages.try_recv() {
                Ok(Ok(PeerMessage::Alive)) => continue,
                Ok(message) => Some(message),
                Err(mpsc::error::TryRecvError::Empty) => None,
                Err(mpsc::error::TryRecvError::Disconnected) => Some(Err(CodecError::Closed)),
            };
        }
    }

    /// The next message.
    ///
    /// # Cancel safety
    ///
    /// Complete: a message that is not returned is returned next time.
    async fn next(&mut self) -> Result<PeerMessage, CodecError> {
        self.messages.recv().await.unwrap_or(Err(CodecError::Closed))
    }

    async fn next_within(&mut self, timeout: Duration) -> Result<PeerMessage, CodecError> {
        within(timeout, self.next()).await
    }

    /// The next message that says more than that the other side is at work.
    async fn answer(&mut self, timeout: Duration) -> Result<PeerMessage, CodecError> {
        let answer = async {
            loop {
                match self.next_within(hurried(SILENCE)).await {
                    Ok(PeerMessage::Alive) => {}
                    other => return other,
                }
            }
        };
        within(timeout, answer).await
    }
}

/// The same for a plain answer.
pub(crate) async fn within_answer<T>(
    future: impl Future<Output = Result<T, CodecError>>,
) -> Result<T, CodecError> {
    within(hurried(ANSWER_TIMEOUT), future).await
}

async fn within<T>(
    timeout: Duration,
    future: impl Future<Output = Result<T, CodecError>>,
) -> Result<T, CodecError> {
    let late = |_| CodecError::Io(io::ErrorKind::TimedOut.into());
    tokio::time::timeout(timeout, future).await.map_err(late)?
}

fn unexpected(message: &PeerMessage) -> CodecError {
    CodecError::Payload(format!("{message:?} was not expected now"))
}
