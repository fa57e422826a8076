//! Making, joining and leaving a cluster.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use ulpm_cluster::{Authority, Cluster, ClusterError, Invitation, Role, join_request};
use ulpm_control::{Address, Client, ClientError, Reply, Request, exit, host};

use crate::network::{Caller, Network};
use crate::options::Options;

/// How long an invitation lasts, unless it is said.
pub(crate) const INVITATION_SECS: u64 = 3600;

/// Why somebody is not let in, or shown out.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The files of the cluster.
    #[error("the cluster cannot be changed")]
    Cluster(#[from] ClusterError),
    /// Nowhere to keep its files.
    #[error("there is no home directory: name the cluster's directory with --cluster")]
    NoHome,
    /// Nobody there who lets newcomers in.
    #[error(
        "no coordinator of this host listens for others, so nobody would let the newcomer in: start one with --listen first, or name it with -c"
    )]
    NobodyListens {
        /// Why.
        #[source]
        source: Option<ClientError>,
    },
    /// The host that invites does not answer.
    #[error("the host that has invited cannot be reached")]
    Unreachable {
        /// Why.
        source: ClientError,
    },
    /// It says no.
    #[error("the host that has invited says no")]
    Refused {
        /// Why.
        source: ClientError,
    },
    /// The addresses of this host are not known.
    #[error("the addresses of this host cannot be found")]
    Addresses {
        /// Why.
        source: io::Error,
    },
}

impl MembershipError {
    /// Exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Cluster(ClusterError::File { .. }) => exit::CANT_CREATE,
            Self::Cluster(ClusterError::Unknown(_) | ClusterError::None) => exit::NO_INPUT,
            Self::Cluster(ClusterError::Damaged { .. } | ClusterError::Token(_)) => exit::DATA,
            Self::Cluster(ClusterError::Name(_)) => exit::USAGE,
            Self::Cluster(_) | Self::Refused { .. } => exit::NO_PERMISSION,
            Self::NoHome => exit::CONFIG,
            Self::NobodyListens { .. } => exit::UNAVAILABLE,
            Self::Unreachable { .. } => exit::NO_HOST,
            Self::Addresses { .. } => exit::OS,
        }
    }
}

/// Does what the command line asks of a cluster; `None` if it asks nothing.
pub(crate) fn act(options: &Options) -> Result<Option<String>, MembershipError> {
    let dir = || options.cluster().ok_or(MembershipError::NoHome);
    let name = || {
        options.name.clone().unwrap_or_else(|| {
            let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
            let user = user.map_or_else(|| "user".into(), |user| user.name);
            format!("{user}@{}", host::name())
        })
    };
    if options.init_cluster {
        let (dir, name) = (dir()?, name());
        Authority::create(&dir, &name)?;
        return Ok(Some(format!(
            "made a cluster in {}; this host is {name}\n\
             next: ulpm_coordinator --listen 0.0.0.0 --daemon, then ulpm_coordinator --invite",
            dir.display()
        )));
    }
    if options.invite || options.revoke.is_some() {
        Cluster::open(&dir()?)?.ok_or(ClusterError::None)?;
    }
    if options.invite {
        return invite(options, &dir()?).map(Some);
    }
    if let Some(token) = &options.join_cluster {
        let (dir, name) = (dir()?, name());
        join(&dir, &name, &token.parse()?)?;
        return Ok(Some(format!("joined the cluster; this host is {name}, by {}", dir.display())));
    }
    if let Some(name) = &options.revoke {
        Authority::open(&dir()?)?.revoke(name)?;
        return Ok(Some(format!(
            "{name} is shown out; others learn of it when they next talk with this host"
        )));
    }
    Ok(None)
}

fn invite(options: &Options, dir: &Path) -> Result<String, MembershipError> {
    let authority = Authority::open(dir)?;
    let socket = options.socket();
    let status = Client::connect(&Address::Socket(socket))
        .and_then(|mut client| client.call(&Request::Status))
        .map_err(|source| MembershipError::NobodyListens { source: Some(source) })?;
    let Reply::Status(status) = status else {
        return Err(MembershipError::NobodyListens { source: None });
    };
    let listen = status.listen.and_then(|listen| listen.parse::<SocketAddr>().ok());
    let listen = listen.ok_or(MembershipError::NobodyListens { source: None })?;
    let addresses = addresses(listen)?;
    let life = Duration::from_secs(options.invitation_secs);
    let invitation = authority.invite(addresses, life)?;
    Ok(format!("{invitation}"))
}

/// Where others find what listens at an address: for that of all interfaces, theirs.
fn addresses(listen: SocketAddr) -> Result<Vec<String>, MembershipError> {
    if !listen.ip().is_unspecified() {
        return Ok(vec![listen.to_string()]);
    }
    let found =
        getifaddrs().map_err(|errno| MembershipError::Addresses { source: errno.into() })?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for interface in found.filter(|found| found.flags.contains(InterfaceFlags::IFF_UP)) {
        let Some(address) = interface.address else { continue };
        let ip = address
            .as_sockaddr_in()
            .map(|v4| v4.ip().into())
            .or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()));
        let Some(ip) = ip else { continue };
        let link_local = matches!(ip, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !ip.is_loopback() && !link_local {
            addresses.push(SocketAddr::new(ip, listen.port()));
        }
    }
    // A token stays short: IPv4 goes first, and four ways in are enough.
    addresses.sort_by_key(SocketAddr::is_ipv6);
    addresses.truncate(4);
    if addresses.is_empty() {
        let text = "no interface has an address that others could use";
        let source = io::Error::new(io::ErrorKind::AddrNotAvailable, text);
        return Err(MembershipError::Addresses { source });
    }
    Ok(addresses.iter().map(ToString::to_string).collect())
}

fn join(dir: &Path, name: &str, invitation: &Invitation) -> Result<(), MembershipError> {
    Invitation::check(dir)?;
    let (key, request) = join_request(name)?;
    let cluster = invitation.cluster();
    let mut last = None;
    for address in &invitation.addresses {
        match Client::connect_as(address, &cluster) {
            Ok(mut client) => {
                let request = Request::Join { name: name.into(), request };
                return match client.call(&request) {
                    Ok(Reply::Joined { certificate, revoked }) => {
                        invitation.accept(dir, &key, &certificate, revoked.as_deref())?;
                        Ok(())
                    }
                    Ok(other) => Err(MembershipError::Refused {
                        source: ClientError::Unexpected(format!("{other:?}")),
                    }),
                    Err(source) => Err(MembershipError::Refused { source }),
                };
            }
            Err(error) => last = Some(error),
        }
    }
    Err(match last {
        Some(source) => MembershipError::Unreachable { source },
        None => ClusterError::Token("it names no host".into()).into(),
    })
}

/// Lets a newcomer in.
pub(crate) fn admit(
    network: &Network,
    caller: &Caller,
    name: &str,
    request: &[u8],
) -> Result<Reply, ClusterError> {
    let (Caller::Known(Role::Invitation(id)), Some(dir)) = (caller, network.dir()) else {
        return Err(ClusterError::Token("it is none".into()));
    };
    let certificate = Authority::open(dir)?.admit(id, name, request)?;
    tracing::info!("{name} has joined the cluster");
    Ok(Reply::Joined { certificate, revoked: network.revoked() })
}

/// Whether a coordinator may listen there: beyond the host, only members of a cluster are talked to.
pub(crate) fn may_listen(
    dir: Option<&PathBuf>,
    address: SocketAddr,
) -> Result<(), MembershipError> {
    let cluster = dir.map_or(Ok(None), |dir| Cluster::open(dir))?;
    if cluster.is_none() && !address.ip().to_canonical().is_loopback() {
        return Err(ClusterError::None.into());
    }
    Ok(())
}
