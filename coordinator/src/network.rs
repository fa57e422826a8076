//! Connections to and from other hosts: TLS between members of a cluster, plain TCP within a host.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use ulpm_cluster::{Cluster, ClusterError, Role};
use ulpm_control::message::Ssh;
use ulpm_control::place;

use crate::fault::hurried;
use crate::ssh::{self, SshError};

/// How long a connection to another host may take.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The same by ssh, which may have to start a coordinator there.
const SSH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the kernel waits for a host that does not answer before it takes a connection for broken: first until it
/// asks whether the other is there, then from question to question, for so many of them; and for what was sent.
const KEEP_ALIVE: [u32; 3] = [3, 2, 3];
const UNANSWERED_MS: u32 = 9_000;
/// How long whoever connects may take to show a certificate.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// So many may be about to show one; further ones are turned away.
const STRANGERS: usize = 256;

/// Why there is no connection to another coordinator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Ssh(#[from] SshError),
}

/// Who has connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Somebody on this host, over the loopback.
    Local {
        /// Both ends of the connection, theirs first.
        ends: [SocketAddr; 2],
    },
    /// A host of the cluster, or somebody who was invited.
    Known(Role),
}

/// A connection to another coordinator.
#[derive(Debug)]
pub(crate) enum Link {
    Plain(TcpStream),
    /// To an ssh, or from one.
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Link {
    /// The other host; not known of one that came by ssh.
    pub(crate) fn from(&self) -> Option<IpAddr> {
        let tcp = match self {
            Self::Unix(_) => return None,
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        };
        Some(canonical(tcp.peer_addr().ok()?).ip())
    }

    /// The connection for a thread that waits.
    pub(crate) fn into_blocking(self) -> io::Result<ulpm_cluster::Stream> {
        let blocking = |tcp: TcpStream| {
            let tcp = tcp.into_std()?;
            tcp.set_nonblocking(false)?;
            io::Result::Ok(tcp)
        };
        Ok(match self {
            Self::Plain(tcp) => ulpm_cluster::Stream::Plain(blocking(tcp)?),
            Self::Unix(unix) => {
                let unix = unix.into_std()?;
                unix.set_nonblocking(false)?;
                ulpm_cluster::Stream::Unix(unix)
            }
            Self::Tls(tls) => match *tls {
                TlsStream::Client(stream) => {
                    let (tcp, connection) = stream.into_inner();
                    let stream = rustls::StreamOwned::new(connection, blocking(tcp)?);
                    ulpm_cluster::Stream::Client(Box::new(stream))
                }
                TlsStream::Server(stream) => {
                    let (tcp, connection) = stream.into_inner();
                    let stream = rustls::StreamOwned::new(connection, blocking(tcp)?);
                    ulpm_cluster::Stream::Server(Box::new(stream))
                }
            },
        })
    }
}

impl AsyncRead for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Self::Unix(unix) => Pin::new(unix).poll_read(context, buffer),
            // A frame says itself where it ends, so that an end without TLS's farewell is one like any other.
            Self::Tls(tls) => match Pin::new(tls).poll_read(context, buffer) {
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    Poll::Ready(Ok(()))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(ulpm_cluster::explained(error))),
                other => other,
            },
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(context, buffer),
            Self::Unix(unix) => Pin::new(unix).poll_write(context, buffer),
            Self::Tls(tls) => Pin::new(tls).poll_write(context, buffer),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Self::Unix(unix) => Pin::new(unix).poll_flush(context),
            Self::Tls(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Self::Unix(unix) => Pin::new(unix).poll_shutdown(context),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        }
    }
}

/// A cluster as its files are, and what TLS needs of it.
#[derive(Debug)]
struct Loaded {
    stamp: Stamp,
    cluster: Arc<Cluster>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// When the files changed that may change.
type Stamp = [Option<(SystemTime, u64)>; 3];

fn stamp(dir: &Path) -> Stamp {
    ["host.pem", "revoked.crl", "allow"].map(|name| {
        let meta = std::fs::metadata(dir.join(name)).ok()?;
        Some((meta.modified().ok()?, meta.ino()))
    })
}

/// This host's part in the network.
#[derive(Debug)]
pub(crate) struct Network {
    dir: Option<PathBuf>,
    loaded: Mutex<Option<Arc<Loaded>>>,
    strangers: Arc<Semaphore>,
}

impl Network {
    /// With the files of a cluster in `dir`, or none.
    pub(crate) fn new(dir: Option<PathBuf>) -> Self {
        Self { dir, loaded: Mutex::default(), strangers: Arc::new(Semaphore::new(STRANGERS)) }
    }

    /// The cluster as it is now; `None` outside of one.
    fn loaded(&self) -> Result<Option<Arc<Loaded>>, ClusterError> {
        let Some(dir) = &self.dir else { return Ok(None) };
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(dir);
        if loaded.as_ref().is_none_or(|loaded| loaded.stamp != stamp) {
            *loaded = match Cluster::open(dir)? {
                Some(cluster) => {
                    for line in cluster.unusable() {
                        tracing::warn!("{line}");
                    }
                    Some(Arc::new(Loaded {
                        stamp,
                        client: cluster.client()?,
                        server: cluster.server()?,
                        cluster: Arc::new(cluster),
                    }))
                }
                None => None,
            };
        }
        Ok(loaded.clone())
    }

    /// The cluster that this host is in.
    pub(crate) fn cluster(&self) -> Result<Option<Arc<Cluster>>, ClusterError> {
        Ok(self.loaded()?.map(|loaded| Arc::clone(&loaded.cluster)))
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// Settings for connections of threads that wait.
    pub(crate) fn client(&self) -> Result<Option<Arc<ClientConfig>>, ClusterError> {
        Ok(self.loaded()?.map(|loaded| Arc::clone(&loaded.client)))
    }

    /// Takes over another host's list of revoked certificates.
    pub(crate) fn learn(&self, revoked: Option<&[u8]>) {
        let (Some(revoked), Ok(Some(cluster))) = (revoked, self.cluster()) else { return };
        match cluster.learn(revoked) {
            Ok(true) => tracing::info!("certificates of this cluster were revoked"),
            Ok(false) => {}
            Err(error) => {
                let chain = ulpm_control::chain(&error).join(": ");
                tracing::warn!("a list of revoked certificates is not taken: {chain}");
            }
        }
    }

    /// The list of revoked certificates, for others.
    pub(crate) fn revoked(&self) -> Option<Vec<u8>> {
        self.cluster().ok()??.revoked().map(<[u8]>::to_vec)
    }

    /// Connects to another coordinator.
    pub(crate) async fn connect(&self, target: &str, by: &Ssh) -> Result<Link, ConnectError> {
        if target.starts_with(ssh::SCHEME) {
            let connecting = tokio::time::timeout(SSH_TIMEOUT, ssh::connect(target, by));
            let late = |_| ConnectError::Io(io::ErrorKind::TimedOut.into());
            return Ok(Link::Unix(connecting.await.map_err(late)??));
        }
        Ok(self.connect_tcp(target).await?.0)
    }

    /// Connects to `HOST[:PORT]`; also gives the address that was found.
    pub(crate) async fn connect_tcp(&self, target: &str) -> io::Result<(Link, SocketAddr)> {
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let connecting = async {
            let tcp = TcpStream::connect(with_port(target)).await?;
            let address = tcp.peer_addr()?;
            tcp.set_nodelay(true)?;
            keep_alive(&tcp);
            let link = match self.client().map_err(io::Error::other)? {
                Some(config) => {
                    let connector = TlsConnector::from(config);
                    let tls = connector.connect(ulpm_cluster::every_host(), tcp);
                    Link::Tls(Box::new(tls.await.map_err(ulpm_cluster::explained)?.into()))
                }
                None => Link::Plain(tcp),
            };
            Ok((link, address))
        };
        tokio::time::timeout(hurried(CONNECT_TIMEOUT), connecting).await.map_err(late)?
    }

    /// Leave to shake hands with one more; `None` when too many are at it.
    pub(crate) fn admit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.strangers).try_acquire_owned().ok()
    }

    /// Finds out who has connected.
    pub(crate) async fn accept(&self, tcp: TcpStream) -> io::Result<(Link, Caller)> {
        let Some(loaded) = self.loaded().map_err(io::Error::other)? else {
            let ends = [tcp.peer_addr()?, tcp.local_addr()?].map(canonical);
            if !ends[0].ip().is_loopback() {
                let text = "this host is in no cluster, and talks to nobody else";
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
            }
            return Ok((Link::Plain(tcp), Caller::Local { ends }));
        };
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let shaking = TlsAcceptor::from(Arc::clone(&loaded.server)).accept(tcp);
        let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking).await.map_err(late)??;
        let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let role = certificate.and_then(ulpm_cluster::role).ok_or_else(|| {
            io::Error::new(io::ErrorKind::PermissionDenied, "a certificate without a name")
        })?;
        Ok((Link::Tls(Box::new(tls.into())), Caller::Known(role)))
    }
}

/// Lets the kernel find out when the other host has gone, also while there is nothing to be said.
pub(crate) fn keep_alive(stream: &impl AsFd) {
    let [idle, interval, count] = KEEP_ALIVE;
    let set = setsockopt(stream, sockopt::KeepAlive, &true)
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepIdle, &idle))
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepInterval, &interval))
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepCount, &count))
        .and_then(|()| setsockopt(stream, sockopt::TcpUserTimeout, &UNANSWERED_MS));
    if let Err(error) = set {
        tracing::debug!("no keep-alive: {error}");
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The user at the other end of a connection within this host.
pub(crate) fn owner(ends: [SocketAddr; 2]) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    tables.iter().filter_map(|path| std::fs::read_to_string(path).ok()).find_map(|table| {
        table.lines().skip(1).find_map(|line| {
            // proc_pid_net(5): sl, local and remote address, state, queues, timer, retransmissions, user.
            let mut words = line.split_ascii_whitespace().skip(1);
            let found = [end(words.next()?)?, end(words.next()?)?];
            (found == ends).then(|| words.nth(4)?.parse().ok())?
        })
    })
}

/// An address as the kernel's tables have it: words as they lie in memory, in hexadecimal digits.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let mut bytes = Vec::new();
    for at in (0..address.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(canonical(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?)))
}

/// Adds the default port where there is none.
pub(crate) fn with_port(target: &str) -> String {
    if target.starts_with(ssh::SCHEME) {
        return target.into();
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_added_where_there_is_none() {
        assert_eq!(with_port("b"), "b:3490");
        assert_eq!(with_port("b:1"), "b:1");
        assert_eq!(with_port("ssh://b"), "ssh://b");
        assert_eq!(with_port("10.0.0.2"), "10.0.0.2:3490");
        assert_eq!(with_port("::1"), "[::1]:3490");
        assert_eq!(with_port("[::1]"), "[::1]:3490");
        assert_eq!(with_port("[::1]:7"), "[::1]:7");
    }

    #[test]
    fn addresses_of_the_kernels_tables_are_read() {
        assert_eq!(end("0100007F:0DA2"), Some("127.0.0.1:3490".parse().unwrap()));
        let one = "00000000000000000000000001000000:0016";
        assert_eq!(end(one), Some("[::1]:22".parse().unwrap()));
        let mapped = "0000000000000000FFFF00000100007F:0016";
        assert_eq!(end(mapped), Some("127.0.0.1:22".parse().unwrap()));
        assert_eq!(end("xyz:1"), None);
    }

    #[test]
    fn whoever_connects_within_the_host_is_known() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(listen) else { continue };
            let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let ends = [stream.local_addr().unwrap(), stream.peer_addr().unwrap()];
            assert_eq!(owner(ends), Some(nix::unistd::geteuid().as_raw()));
        }
        let nobody = "127.0.0.1:1".parse().unwrap();
        assert_eq!(owner([nobody, nobody]), None);
    }
}
