//! The tools' end of a connection.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ulpm_cluster::Cluster;

use crate::codec::{self, CodecError};
use crate::message::{Refusal, Reply, Request};
use crate::{exit, place};

/// How long a coordinator may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection to another host may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a coordinator is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Path of its socket.
    Socket(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

impl Default for Address {
    fn default() -> Self {
        Self::Socket(place::socket())
    }
}

impl std::str::FromStr for Address {
    type Err = String;

    /// Reads a socket path, or `HOST:PORT`: something without a slash that ends in a port.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("the address is empty: give a socket path or HOST:PORT".into());
        }
        if !text.contains('/')
            && let Some((host, port)) = text.rsplit_once(':')
            && !host.is_empty()
            && port.bytes().all(|byte| byte.is_ascii_digit())
        {
            place::check_port(text)?;
            return Ok(Self::Tcp(text.into()));
        }
        let path = std::path::absolute(text).map_err(|error| error.to_string())?;
        Ok(Self::Socket(path))
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error(
        "no coordinator answers at {address}: start one with ulpm_coordinator or ulpm_launch, or name it with -c"
    )]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Somebody else's.
    #[error(
        "the coordinator at {address} is user {owner}'s, and talks to that user and root only: ask as {owner}, or name your own with -c"
    )]
    NotYours {
        /// Where.
        address: String,
        /// Whose.
        owner: String,
        /// Why.
        source: io::Error,
    },
    /// It could not be started.
    #[error("no coordinator answers at {address}, and none could be started")]
    Start {
        /// Where.
        address: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection is of no further use.
    #[error("the coordinator does not answer as it should")]
    Codec(#[from] CodecError),
    /// The coordinator says no.
    #[error(transparent)]
    Refused(Refused),
    /// An answer to something else.
    #[error("the coordinator gave an answer that does not fit the question: {0}")]
    Unexpected(String),
}

/// An error that came over the wire, as a chain.
#[derive(Debug)]
pub struct Refused {
    /// Exit code for the tool.
    pub code: u8,
    text: String,
    source: Option<Box<Refused>>,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|cause| cause as _)
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let code = refusal.code;
        let chain =
            refusal.chain.into_iter().rev().fold(None, |source: Option<Box<Self>>, text| {
                Some(Box::new(Self { code, text, source }))
            });
        chain.map_or_else(
            || Self { code, text: "the coordinator gave no reason".into(), source: None },
            |error| *error,
        )
    }
}

impl ClientError {
    /// Exit code for the tool.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotYours { .. } => exit::NO_PERMISSION,
            Self::Unreachable { .. } | Self::Start { .. } => exit::UNAVAILABLE,
            Self::Codec(CodecError::Version { .. } | CodecError::NotAFrame(_)) => exit::PROTOCOL,
            Self::Codec(CodecError::Closed | CodecError::Io(_)) => exit::UNAVAILABLE,
            Self::Codec(CodecError::Cluster) => exit::NO_PERMISSION,
            Self::Codec(_) | Self::Unexpected(_) => exit::PROTOCOL,
            Self::Refused(refused) => refused.code,
        }
    }

    /// Whether the connection is gone, so that it may help to connect again.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Codec(CodecError::Closed | CodecError::Io(_)))
    }
}

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(ulpm_cluster::Stream),
}

/// A connection that a coordinator passes on to somebody else.
#[derive(Debug)]
pub struct Wire(Stream);

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A connection to a coordinator.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buffer),
            Self::Tcp(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.flush(),
            Self::Tcp(stream) => stream.flush(),
        }
    }
}

impl Client {
    /// Connects to a coordinator that runs.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unreachable`]
    pub fn connect(address: &Address) -> Result<Self, ClientError> {
        let stream = match address {
            Address::Socket(path) => UnixStream::connect(path).map(Stream::Unix),
            Address::Tcp(address) => {
                own_cluster().and_then(|tls| connect_tcp(address, tls)).map(Stream::Tcp)
            }
        };
        let unreachable =
            |source| ClientError::Unreachable { address: address.to_string(), source };
        match (stream, address) {
            (Ok(stream), _) => Ok(Self { stream }),
            (Err(source), Address::Socket(path))
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Err(ClientError::NotYours {
                    address: address.to_string(),
                    owner: owner(path),
                    source,
                })
            }
            (Err(source), _) => Err(unreachable(source)),
        }
    }

    /// Connects to the coordinator of another host, `HOST:PORT`, as somebody else than this host is.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unreachable`]
    pub fn connect_as(address: &str, cluster: &Cluster) -> Result<Self, ClientError> {
        let tls = cluster.client().map_err(io::Error::other);
        tls.and_then(|tls| connect_tcp(address, Some(tls)))
            .map(|stream| Self { stream: Stream::Tcp(stream) })
            .map_err(|source| ClientError::Unreachable { address: address.into(), source })
    }

    /// Connects to a coordinator, and starts it where nobody listens on a socket.
    ///
    /// Two who do this at once end up at the same one.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unreachable`] for `HOST:PORT`, else [`ClientError::Start`].
    pub fn connect_or_start(address: &Address) -> Result<Self, ClientError> {
        let error = match Self::connect(address) {
            Ok(client) => return Ok(client),
            Err(error @ ClientError::NotYours { .. }) => return Err(error),
            Err(error) => error,
        };
        let Address::Socket(path) = address else { return Err(error) };
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| ClientError::Start {
            address: address.to_string(),
            source,
        };
        let program = place::find("ulpm_coordinator").map_err(|error| failed(error.into()))?;
        let started = Command::new(&program)
            .arg("--daemon")
            .arg("--socket")
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .env_remove("LD_PRELOAD")
            .env_remove("ULPM_JOB")
            .output()
            .map_err(|error| failed(format!("{}: {error}", program.display()).into()))?;
        // One who lost the race against another failed, and there will be a coordinator all the same.
        let lost_race = Duration::from_secs(2);
        let timeout = if started.status.success() { START_TIMEOUT } else { lost_race };
        let deadline = Instant::now() + timeout;
        loop {
            match Self::connect(address) {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() >= deadline => {
                    let said = String::from_utf8_lossy(&started.stderr).trim().to_owned();
                    return Err(if said.is_empty() {
                        failed(error.into())
                    } else {
                        failed(said.into())
                    });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// The connection itself, to a coordinator on this host; `None` to others.
    #[must_use]
    pub fn into_unix(self) -> Option<UnixStream> {
        match self.stream {
            Stream::Unix(stream) => Some(stream),
            Stream::Tcp(_) => None,
        }
    }

    /// The connection itself, which does not wait any more.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn into_wire(self) -> io::Result<Wire> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let flags = OFlag::from_bits_retain(fcntl(&self.stream, FcntlArg::F_GETFL)?);
        fcntl(&self.stream, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Wire(self.stream))
    }

    /// Sends a request.
    ///
    /// # Errors
    ///
    /// [`ClientError::Codec`]: the connection is of no further use.
    pub fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        Ok(codec::write(&mut self.stream, request)?)
    }

    /// Waits for the next reply.
    ///
    /// # Errors
    ///
    /// [`ClientError::Refused`] is an answer, after which the connection goes on; after all others it is
    /// of no further use.
    pub fn receive(&mut self) -> Result<Reply, ClientError> {
        match codec::read(&mut self.stream)? {
            Reply::Error(refusal) => Err(ClientError::Refused(refusal.into())),
            reply => Ok(reply),
        }
    }

    /// Sends a request and waits for the reply.
    ///
    /// # Errors
    ///
    /// As [`Client::receive`].
    pub fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.send(request)?;
        self.receive()
    }

    /// Limits how long [`Client::receive`] waits; `None` is for ever.
    ///
    /// # Errors
    ///
    /// [`ClientError::Codec`] if the system refuses.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ClientError> {
        let done = match &self.stream {
            Stream::Unix(stream) => stream.set_read_timeout(timeout),
            Stream::Tcp(stream) => stream.set_read_timeout(timeout),
        };
        done.map_err(|error| CodecError::Io(error).into())
    }
}

/// The user to whom a socket belongs, or the directory that it is in, as far as we may look.
fn owner(socket: &std::path::Path) -> String {
    use std::os::unix::fs::MetadataExt;
    // What may be looked at and not entered, or not connected to, is somebody else's.
    let me = nix::unistd::geteuid();
    let found = socket.ancestors().find_map(|path| path.symlink_metadata().ok());
    let uid = found.map_or(me, |meta| nix::unistd::Uid::from_raw(meta.uid()));
    let user = nix::unistd::User::from_uid(uid).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

type Tls = std::sync::Arc<rustls::ClientConfig>;

/// What this host shows to others of its cluster; `None` outside of one.
fn own_cluster() -> io::Result<Option<Tls>> {
    let Some(dir) = ulpm_cluster::dir() else { return Ok(None) };
    let cluster = Cluster::open(&dir).map_err(io::Error::other)?;
    cluster.map(|cluster| cluster.client().map_err(io::Error::other)).transpose()
}

fn connect_tcp(address: &str, tls: Option<Tls>) -> io::Result<ulpm_cluster::Stream> {
    use std::net::ToSocketAddrs;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
                let stream = ulpm_cluster::Stream::connect(stream, tls)?;
                stream.set_read_timeout(None)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_or_a_host_with_a_port() {
        assert_eq!("b:3490".parse(), Ok(Address::Tcp("b:3490".into())));
        assert_eq!("[::1]:3490".parse(), Ok(Address::Tcp("[::1]:3490".into())));
        assert_eq!("/a/b:1".parse(), Ok(Address::Socket("/a/b:1".into())));
        assert!(matches!("sock".parse(), Ok(Address::Socket(_))));
        "".parse::<Address>().unwrap_err();
        "b:65536".parse::<Address>().unwrap_err();
    }

    #[test]
    fn a_refusal_keeps_its_chain() {
        let refused = Refused::from(Refusal { code: 75, chain: vec!["a".into(), "b".into()] });
        assert_eq!(crate::chain(&refused), ["a", "b"]);
    }
}
