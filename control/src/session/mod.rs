//! What passes between a job that runs without a terminal of its own host and whoever has its terminal or pipes.
//!
//! ```text
//!  terminal ── ulpm_launch ── coordinator ══ coordinator ── keeper ── pseudo-terminal, pipes ── job
//!                  └── ToJob, FromJob, passed on unseen by the coordinators ──┘
//! ```
//!
//! The keeper (`restart/src/session/`) holds the other ends of the job's standard streams and its log. All output has one
//! numbering, from the first byte on, over all channels; the owner says up to where it has written it out, and goes on
//! there when a connection has been lost. Input is numbered by channel, likewise in the other direction. So no byte is
//! lost or doubled by a connection that breaks, and neither side holds more than a [`WINDOW`].

mod client;

pub use client::{End, Party, Streams, follow};

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError, HEADER_LEN};

/// Most bytes of output that are under way.
pub const WINDOW: u64 = 256 * 1024;
/// The same of input, for each channel.
pub const INPUT_WINDOW: u64 = 64 * 1024;
/// Most bytes of a message's data.
pub const PART: usize = 16 * 1024;
/// The longest payload of a message.
const MAX_MESSAGE: usize = PART + 256;
/// How often a side that has nothing to say says that it is there.
pub const BEAT: Duration = Duration::from_secs(2);
/// How long the other side may say nothing.
pub const SILENCE: Duration = Duration::from_secs(10);

/// What a stream of bytes belongs to: an index into arrays.
pub type Channel = u8;
/// Standard input, a pipe.
pub const INPUT: Channel = 0;
/// Standard output, a pipe.
pub const OUTPUT: Channel = 1;
/// Standard error, a pipe.
pub const ERROR: Channel = 2;
/// The pseudo-terminal, in both directions.
pub const TERMINAL: Channel = 3;
/// How many there are.
pub const CHANNELS: usize = 4;

/// From whoever has the terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToJob {
    /// The first message. [`FromJob::Welcome`].
    Hello {
        /// It has the streams with which the job was launched, of whom there is one; else it only looks in.
        owner: bool,
        /// Owner: up to where it has the output.
        have: u64,
        /// Rows, columns, and pixels across and down, if it has a terminal.
        size: Option<[u16; 4]>,
    },
    /// Input.
    Data {
        /// Where to.
        channel: Channel,
        /// Number of the first byte in this channel.
        at: u64,
        /// At most [`PART`].
        bytes: Vec<u8>,
    },
    /// A pipe has ended.
    End {
        /// Which.
        channel: Channel,
    },
    /// Output up to here was written out.
    Taken {
        /// The first that was not.
        at: u64,
    },
    /// Nobody reads this output any more.
    Closed {
        /// Which.
        channel: Channel,
    },
    /// The terminal has another size.
    Size([u16; 4]),
    /// A signal for the program.
    Signal(i32),
    /// Said when there is nothing else to say.
    Alive,
}

/// From the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromJob {
    /// The answer to [`ToJob::Hello`].
    Welcome {
        /// Which channels there are.
        channels: [bool; CHANNELS],
        /// Up to where it has the owner's input.
        have: [u64; CHANNELS],
        /// Number of the first byte of output that comes.
        from: u64,
    },
    /// Output.
    Data {
        /// Where from.
        channel: Channel,
        /// Number of the first byte.
        at: u64,
        /// At most [`PART`].
        bytes: Vec<u8>,
    },
    /// Output from here on was not kept, for nobody was there to take it.
    Skipped {
        /// The first byte that is there.
        to: u64,
    },
    /// An output has ended. Comes behind all that it has written.
    End {
        /// Which.
        channel: Channel,
    },
    /// Input up to here was given to the program.
    Taken {
        /// Of which channel.
        channel: Channel,
        /// The first byte that was not.
        at: u64,
    },
    /// A key has stopped the program.
    Stopped,
    /// The program has ended, and all of its output was sent.
    Ended {
        /// As an exit code: 128+N for signal N.
        code: u8,
    },
    /// Said when there is nothing else to say.
    Alive,
}

/// A connection over which messages go, and which is never waited for.
#[derive(Debug)]
pub struct Frames<S> {
    stream: S,
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
    heard: Instant,
    said: Instant,
}

impl<S: Read + Write> Frames<S> {
    /// Takes over a connection that does not wait (O_NONBLOCK).
    #[must_use]
    pub fn new(stream: S) -> Self {
        let now = Instant::now();
        Self { stream, input: Vec::new(), output: Vec::new(), written: 0, heard: now, said: now }
    }

    /// The connection.
    #[must_use]
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Reads what has come, up to a few messages.
    ///
    /// # Errors
    ///
    /// Also when the connection has ended.
    pub fn pull(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4 * PART];
        // Until there is no more: a connection with TLS may hold what poll(2) does not tell.
        let mut has_read = false;
        while self.input.len() < 8 * PART {
            match self.stream.read(&mut buffer) {
                // What has come before is heard first.
                Ok(0) if has_read => break,
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => {
                    has_read = true;
                    self.heard = Instant::now();
                    self.input.extend_from_slice(&buffer[..len]);
                }
                Err(error) if is_for_later(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next message that has come whole.
    ///
    /// # Errors
    ///
    /// [`CodecError`]: the connection is of no further use.
    pub fn take<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CodecError> {
        let Some((header, rest)) = self.input.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let len = codec::payload_len(*header)?;
        if len > MAX_MESSAGE {
            return Err(CodecError::TooLong(len));
        }
        let Some(payload) = rest.get(..len) else { return Ok(None) };
        let message = codec::decode(payload)?;
        self.input.drain(..HEADER_LEN + len);
        Ok(Some(message))
    }

    /// Adds a message to those that are to be sent.
    ///
    /// # Errors
    ///
    /// [`CodecError`]: it cannot be.
    pub fn push<T: Serialize>(&mut self, message: &T) -> Result<(), CodecError> {
        self.output.extend(codec::encode(message)?);
        self.said = Instant::now();
        Ok(())
    }

    /// Sends what goes.
    ///
    /// # Errors
    ///
    /// The connection has ended.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => self.written += len,
                Err(error) if is_for_later(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(())
    }

    /// Bytes that are to be sent.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.output.len() - self.written
    }

    /// Whether it is time to say something, and whether the other side is silent for too long.
    #[must_use]
    pub fn is_due(&self) -> (bool, bool) {
        (self.said.elapsed() >= BEAT, self.heard.elapsed() >= SILENCE)
    }
}

/// Whether an error says that there is nothing for now.
#[must_use]
pub fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn messages_arrive_whole_and_in_order_whatever_the_pieces() {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let (mut near, mut far) = (Frames::new(near), Frames::new(far));
        let part = |at: u64| FromJob::Data {
            channel: OUTPUT,
            at,
            bytes: vec![u8::try_from(at % 251).unwrap(); PART],
        };
        for at in 0..40 {
            near.push(&part(at)).unwrap();
        }
        let mut next = 0;
        while next < 40 {
            near.flush().unwrap();
            far.pull().unwrap();
            while let Some(message) = far.take::<FromJob>().unwrap() {
                assert_eq!(message, part(next));
                next += 1;
            }
        }
        assert_eq!(near.waiting(), 0);
        drop(near);
        assert!(far.pull().is_err(), "an end");
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_before_it_has_come() {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let message = ToJob::Data { channel: 0, at: 0, bytes: vec![0; 2 * MAX_MESSAGE] };
        let frame = codec::encode(&message).unwrap();
        (&near).write_all(&frame[..HEADER_LEN]).unwrap();
        let mut far = Frames::new(far);
        far.pull().unwrap();
        assert!(matches!(far.take::<ToJob>(), Err(CodecError::TooLong(_))));
    }
}
