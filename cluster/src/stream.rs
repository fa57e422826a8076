//! Connections for threads that wait.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, ServerConnection, StreamOwned};

/// A TCP connection, with TLS or without.
#[derive(Debug)]
pub enum Stream {
    /// Within a host.
    Plain(TcpStream),
    /// One that was made here.
    Client(Box<StreamOwned<ClientConnection, TcpStream>>),
    /// One that has come.
    Server(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Stream {
    /// Begins a conversation; `None` is without TLS.
    ///
    /// # Errors
    ///
    /// Also when the other side shows no certificate of the cluster.
    pub fn connect(tcp: TcpStream, config: Option<Arc<ClientConfig>>) -> io::Result<Self> {
        let Some(config) = config else { return Ok(Self::Plain(tcp)) };
        let connection =
            ClientConnection::new(config, crate::every_host()).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).map_err(crate::explained)?;
        }
        Ok(Self::Client(Box::new(stream)))
    }

    /// The connection underneath.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Client(stream) => &stream.sock,
            Self::Server(stream) => &stream.sock,
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp().as_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Client(stream) => stream.read(buffer),
            Self::Server(stream) => stream.read(buffer),
        };
        // What we send says itself where it ends, so that an end without TLS's farewell is one like any other.
        match read {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            other => other,
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(buffer),
            Self::Client(stream) => stream.write(buffer),
            Self::Server(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Client(stream) => stream.flush(),
            Self::Server(stream) => stream.flush(),
        }
    }
}
