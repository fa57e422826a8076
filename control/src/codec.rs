//! Frames: how a message looks on the wire.
//!
//! ```text
//!  0   magic    "ULPC"
//!  4   version  u16
//!  6   zero     u16
//!  8   length   u32, of the payload
//!  12  payload  bincode, standard configuration
//! ```
//!
//! All numbers are little-endian. The magic, read as a length, is larger than any frame of a manager
//! (`ulpm_protocol::manager`) may be, so that both kinds of connection can share one socket.

use std::io::{Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = *b"ULPC";
/// Raised when a message changes.
pub const VERSION: u16 = 5;
/// Bytes before the payload.
pub const HEADER_LEN: usize = 12;
/// The most that a payload may hold.
pub const MAX_PAYLOAD: usize = 16 * 1024 * 1024;

/// Why a frame cannot be taken or sent.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// It does not start with [`MAGIC`].
    #[error(
        "the other side does not speak ULPM's protocol: found {0:02x?} where a frame should start"
    )]
    NotAFrame([u8; 4]),
    /// It is the alert of somebody who wanted to hear TLS.
    #[error(
        "the other side is of a cluster, and talks to hosts of that only: see ulpm_coordinator --join-cluster"
    )]
    Cluster,
    /// Made by another version.
    #[error(
        "the other side speaks version {found} of the protocol and this is version {VERSION}: use the same release of ULPM on both sides"
    )]
    Version {
        /// Its version.
        found: u16,
    },
    /// Longer than [`MAX_PAYLOAD`].
    #[error("a message of {0} bytes is too long, at most {MAX_PAYLOAD} are allowed")]
    TooLong(usize),
    /// The payload is not what it should be.
    #[error("a message cannot be read: {0}")]
    Payload(String),
    /// The connection ended between two frames.
    #[error("the connection was closed")]
    Closed,
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_PAYLOAD>()
}

/// The frame of `message`.
///
/// # Errors
///
/// [`CodecError::TooLong`] and [`CodecError::Payload`]: there is no frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let payload = bincode::serde::encode_to_vec(message, config())
        .map_err(|error| CodecError::Payload(error.to_string()))?;
    if payload.len() > MAX_PAYLOAD {
        return Err(CodecError::TooLong(payload.len()));
    }
    let len = u32::try_from(payload.len()).map_err(|_| CodecError::TooLong(payload.len()))?;
    let mut frame = Vec::with_capacity(HEADER_LEN + payload.len());
    frame.extend(MAGIC);
    frame.extend(VERSION.to_le_bytes());
    frame.extend([0, 0]);
    frame.extend(len.to_le_bytes());
    frame.extend(payload);
    Ok(frame)
}

/// Tells what is no frame but an alert of TLS, which is shorter than a header.
///
/// # Errors
///
/// [`CodecError::Cluster`]
pub fn refuse_alert(start: &[u8]) -> Result<(), CodecError> {
    // RFC 8446, 5.1: content type 21 is an alert, and what stands for the version is 3.x.
    if start.starts_with(&[21, 3]) { Err(CodecError::Cluster) } else { Ok(()) }
}

/// Length of the payload that follows this header.
///
/// # Errors
///
/// [`CodecError`]: the connection is of no further use.
pub fn payload_len(header: [u8; HEADER_LEN]) -> Result<usize, CodecError> {
    let [m0, m1, m2, m3, v0, v1, _, _, l0, l1, l2, l3] = header;
    refuse_alert(&header)?;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(CodecError::NotAFrame([m0, m1, m2, m3]));
    }
    let version = u16::from_le_bytes([v0, v1]);
    if version != VERSION {
        return Err(CodecError::Version { found: version });
    }
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if len > MAX_PAYLOAD {
        return Err(CodecError::TooLong(len));
    }
    Ok(len)
}

/// Reads a payload.
///
/// # Errors
///
/// [`CodecError::Payload`] if it is not a `T`, or more than that.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, CodecError> {
    let (message, used) = bincode::serde::decode_from_slice(payload, config())
        .map_err(|error| CodecError::Payload(error.to_string()))?;
    if used != payload.len() {
        return Err(CodecError::Payload(format!("{} bytes are left over", payload.len() - used)));
    }
    Ok(message)
}

/// Writes a frame.
///
/// # Errors
///
/// [`CodecError`]: part of the frame may have been written.
pub fn write<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), CodecError> {
    to.write_all(&encode(message)?)?;
    to.flush()?;
    Ok(())
}

/// Reads a frame.
///
/// # Errors
///
/// [`CodecError::Closed`] where the connection ended before the first byte of a frame.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, CodecError> {
    let mut header = [0; HEADER_LEN];
    let mut have = 0;
    while have < HEADER_LEN {
        match from.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Err(CodecError::Closed),
            Ok(0) => {
                refuse_alert(&header[..have])?;
                return Err(CodecError::Io(std::io::ErrorKind::UnexpectedEof.into()));
            }
            Ok(len) => have += len,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let len = payload_len(header)?;
    let mut payload = Vec::new();
    from.take(len as u64).read_to_end(&mut payload)?;
    if payload.len() < len {
        return Err(CodecError::Io(std::io::ErrorKind::UnexpectedEof.into()));
    }
    decode(&payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{JobId, Reply, Request};

    #[test]
    fn a_message_comes_back_as_it_was_and_no_prefix_does() {
        let request = Request::Kill { jobs: vec!["python3-1".into()] };
        let frame = encode(&request).unwrap();
        let back: Request = read(&mut frame.as_slice()).unwrap();
        assert_eq!(back, request);
        for cut in 0..frame.len() {
            let result: Result<Request, _> = read(&mut &frame[..cut]);
            assert!(result.is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn the_bytes_of_version_5_are_pinned() {
        let frame = encode(&Request::Outcome { job: JobId(7), status: None }).unwrap();
        assert_eq!(frame, [b'U', b'L', b'P', b'C', 5, 0, 0, 0, 3, 0, 0, 0, 3, 7, 0]);
    }

    #[test]
    fn another_version_is_named() {
        let mut frame = encode(&Reply::Done).unwrap();
        frame[4] = 9;
        let error = read::<Reply>(&mut frame.as_slice()).unwrap_err();
        assert!(error.to_string().contains("version 9"), "{error}");
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_read() {
        let mut frame = encode(&Reply::Done).unwrap();
        frame[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(read::<Reply>(&mut frame.as_slice()), Err(CodecError::TooLong(_))));
    }

    #[test]
    fn a_claimed_length_inside_the_payload_allocates_nothing() {
        // A Kill whose list claims 2^60 entries.
        let payload = [7, 253, 0, 0, 0, 0, 0, 0, 0, 16];
        assert!(matches!(decode::<Request>(&payload), Err(CodecError::Payload(_))));
    }
}
