//! Connections for threads that wait.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, ServerConnection, StreamOwned};

/// A connection to another coordinator.
#[derive(Debug)]
pub enum Stream {
    /// Within a host.
    Plain(TcpStream),
    /// To an ssh, or from one.
    Unix(UnixStream),
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

    /// Limits how long reading waits; `None` is for ever.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.set_read_timeout(timeout),
            Self::Unix(unix) => unix.set_read_timeout(timeout),
            Self::Client(stream) => stream.sock.set_read_timeout(timeout),
            Self::Server(stream) => stream.sock.set_read_timeout(timeout),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(tcp) => tcp.as_fd(),
            Self::Unix(unix) => unix.as_fd(),
            Self::Client(stream) => stream.sock.as_fd(),
            Self::Server(stream) => stream.sock.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Unix(unix) => unix.read(buffer),
            Self::Client(stream) => stream.read(buffer),
            Self::Server(stream) => stream.read(buffer),
        };
        // What we send says itself where it ends, so that an end without TLS's farewell is one like any other.
        match read {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            Err(error) => Err(crate::explained(error)),
            Ok(len) => Ok(len),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(buffer),
            Self::Unix(unix) => unix.write(buffer),
            Self::Client(stream) => stream.write(buffer),
            Self::Server(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Unix(unix) => unix.flush(),
            Self::Client(stream) => stream.flush(),
            Self::Server(stream) => stream.flush(),
        }
    }
}
