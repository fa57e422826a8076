//! Control frames over tokio.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use ulpm_control::codec::{self, CodecError, HEADER_LEN};

/// Reads a frame, not a byte more.
///
/// # Cancel safety
///
/// None: a frame may be lost.
pub(crate) async fn read<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> Result<T, CodecError> {
    let mut first = [0; 4];
    match from.read(&mut first[..1]).await? {
        0 => return Err(CodecError::Closed),
        _ => from.read_exact(&mut first[1..]).await?,
    };
    read_after(from, first).await
}

/// Reads a frame whose first four bytes have been read.
///
/// # Cancel safety
///
/// None: a frame may be lost.
pub(crate) async fn read_after<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    first: [u8; 4],
) -> Result<T, CodecError> {
    codec::refuse_alert(&first)?;
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&first);
    from.read_exact(&mut header[4..]).await?;
    let len = codec::payload_len(header)?;
    let mut payload = Vec::new();
    from.take(len as u64).read_to_end(&mut payload).await?;
    if payload.len() < len {
        return Err(CodecError::Io(std::io::ErrorKind::UnexpectedEof.into()));
    }
    codec::decode(&payload)
}

/// Writes a frame.
///
/// # Cancel safety
///
/// None: part of the frame may have been written.
pub(crate) async fn write<T: Serialize>(
    to: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), CodecError> {
    to.write_all(&codec::encode(message)?).await?;
    to.flush().await?;
    Ok(())
}
