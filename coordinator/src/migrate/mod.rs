//! Migration: a job is handed over to another host.
//!
//! ```text
//!  source                                target
//!    Offer ─────────────────────────────▶ checks what it lacks
//!    ◀───────────────────────────── Accept
//!    freeze, capture ═══ Image × n ═════▶ files of a partial generation
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

mod source;
mod target;

pub(crate) use source::{Manner, follow};
pub(crate) use target::{Hold, Incoming, receive, receive_image_of, recover, start_kept};

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use ulpm_control::codec::CodecError;
use ulpm_control::message::PeerMessage;
use ulpm_control::place;

use crate::server::keep_alive;
use crate::wire;

/// How long a connection to the target may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a plain answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to another coordinator, whose messages are read by a task.
#[derive(Debug)]
struct Peer {
    messages: mpsc::UnboundedReceiver<Result<PeerMessage, CodecError>>,
    writer: OwnedWriteHalf,
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        let (mut reader, writer) = stream.into_split();
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
        Self { messages, writer }
    }

    /// Sends a message; gives up when the other side takes nothing, and the connection is of no use then.
    async fn send(&mut self, message: &PeerMessage) -> Result<(), CodecError> {
        within(ANSWER_TIMEOUT, wire::write(&mut self.writer, message)).await
    }

    /// Whether the other side has said anything unasked, or has gone.
    fn said(&mut self) -> Option<Result<PeerMessage, CodecError>> {
        match self.messages.try_recv() {
            Ok(message) => Some(message),
            Err(mpsc::error::TryRecvError::Empty) => None,
            Err(mpsc::error::TryRecvError::Disconnected) => Some(Err(CodecError::Closed)),
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

/// Adds the default port where there is none.
fn with_port(target: &str) -> String {
    let has_port = match target.rsplit_once(':') {
        // An address of version 6 without brackets has no port.
        Some((host, port)) => {
            port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
        }
        None => false,
    };
    if has_port {
        target.into()
    } else if target.contains(':') && !target.starts_with('[') {
        format!("[{target}]:{}", place::DEFAULT_PORT)
    } else {
        format!("{target}:{}", place::DEFAULT_PORT)
    }
}

async fn connect(target: &str) -> io::Result<TcpStream> {
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(with_port(target)))
        .await
        .map_err(late)??;
    stream.set_nodelay(true)?;
    keep_alive(&stream);
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_added_where_there_is_none() {
        assert_eq!(with_port("b"), "b:3490");
        assert_eq!(with_port("b:1"), "b:1");
        assert_eq!(with_port("10.0.0.2"), "10.0.0.2:3490");
        assert_eq!(with_port("::1"), "[::1]:3490");
        assert_eq!(with_port("[::1]"), "[::1]:3490");
        assert_eq!(with_port("[::1]:7"), "[::1]:7");
    }
}
