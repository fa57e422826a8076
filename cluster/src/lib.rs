//! Clusters: the hosts that may send each other jobs.
//!
//! A cluster has one authority, a key that signs the certificates of its hosts. Connections between hosts are
//! TLS 1.3, and both sides show a certificate. What a certificate is good for stands in it as a URI:
//! `ulpm:member:USER@HOST`, or `ulpm:invitation:ID` for a newcomer that may ask for a certificate, and do
//! nothing else.
//!
//! ```text
//!  ca.pem         certificate of the authority
//!  host.pem       certificate of this host, and
//!  host-key.pem   its key
//!  revoked.crl    certificates that count no more, signed by the authority
//!  allow          optional: the names of the members that may send jobs here, one on a line; * is any user or host
//!  ca-key.pem     the authority's key, on the host where the cluster was made
//!  issued.json    there too: the certificates that were given out
//!  invitations/   there too: those that nobody has used yet
//! ```

mod authority;
mod files;
mod stream;

pub use authority::{Authority, Invitation, join_request};
pub use stream::Stream;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Environment variable with the directory of the cluster's files.
pub const ENV_CLUSTER: &str = "ULPM_CLUSTER";

/// The DNS name in all certificates of hosts: who it is stands in the URI.
const EVERY_HOST: &str = "host.ulpm.invalid";
/// Prefixes of the URI.
const MEMBER: &str = "ulpm:member:";
const INVITATION: &str = "ulpm:invitation:";

/// Why a cluster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A file.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is not what it should be.
    #[error("{} is damaged: {text}; take it from a backup, or leave the cluster by removing the directory", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        text: String,
    },
    /// Keys that others can read are none.
    #[error("{} can be read by others: chmod 600 it, and think about who has read it", .0.display())]
    Readable(PathBuf),
    /// There is a cluster already.
    #[error("this host is in a cluster already, by {}: remove that directory to leave it", .0.display())]
    Exists(PathBuf),
    /// There is none.
    #[error(
        "this host is in no cluster: make one with ulpm_coordinator --init-cluster, or join one"
    )]
    None,
    /// Only where the authority's key is.
    #[error("only the host where the cluster was made can do that: {} is not here", .0.display())]
    NotAuthority(PathBuf),
    /// A name of a host that cannot stand in a certificate.
    #[error("{0:?} is no name for a host: use letters, digits and any of . _ - @")]
    Name(String),
    /// The host where the cluster was made stays in it.
    #[error(
        "{0} is this host, where the cluster was made: nobody could let others in or show them out without it"
    )]
    Own(String),
    /// No certificate of that name was given out.
    #[error("no host {0:?} has a certificate of this cluster")]
    Unknown(String),
    /// A token that is none, or has passed its time.
    #[error("the invitation cannot be used: {0}; ask for another with ulpm_coordinator --invite")]
    Token(String),
    /// What the TLS library says.
    #[error("the cluster's certificates cannot be used")]
    Tls(#[from] rustls::Error),
    /// What the certificate library says.
    #[error("a certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// What the TLS library says of its settings.
    #[error("the cluster's certificates cannot be used: {0}")]
    Verifier(String),
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// A host of the cluster, by its name.
    Member(String),
    /// A newcomer with an invitation.
    Invitation(String),
}

/// What a host needs to talk to others of its cluster.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    ca: CertificateDer<'static>,
    host: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    revoked: Option<CertificateRevocationListDer<'static>>,
    allow: Option<Vec<String>>,
    /// Lines of `allow` that say nothing.
    unusable: Vec<String>,
}

/// Where the cluster's files lie: `$ULPM_CLUSTER`, `$XDG_CONFIG_HOME/ulpm/cluster` or
/// `~/.config/ulpm/cluster`; `None` without a home.
#[must_use]
pub fn dir() -> Option<PathBuf> {
    let absolute =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(ENV_CLUSTER)
        .or_else(|| absolute("XDG_CONFIG_HOME").map(|dir| dir.join("ulpm/cluster")))
        .or_else(|| {
            let home = absolute("HOME").or_else(|| {
                let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok()??;
                Some(user.dir)
            })?;
            Some(home.join(".config/ulpm/cluster"))
        })
}

impl Cluster {
    /// Reads the files of a cluster; `None` if this host is in none.
    ///
    /// # Errors
    ///
    /// [`ClusterError`]
    pub fn open(dir: &Path) -> Result<Option<Self>, ClusterError> {
        let Some(host) = files::read_pem(&dir.join("host.pem"))? else { return Ok(None) };
        let damaged = |name: &str, text: &str| ClusterError::Damaged {
            path: dir.join(name),
            text: text.into(),
        };
        let ca = files::read_pem(&dir.join("ca.pem"))?
            .ok_or_else(|| damaged("ca.pem", "it is missing"))?;
        let key_path = dir.join("host-key.pem");
        let key = files::read_secret(&key_path)?
            .ok_or_else(|| damaged("host-key.pem", "it is missing"))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| damaged("host-key.pem", &error.to_string()))?;
        let revoked =
            files::read(&dir.join("revoked.crl"))?.map(CertificateRevocationListDer::from);
        let mut unusable = Vec::new();
        let allow = files::read(&dir.join("allow"))?.map(|text| {
            let text = String::from_utf8_lossy(&text).into_owned();
            let mut names = Vec::new();
            for (number, line) in text.lines().enumerate() {
                let name = line.split('#').next().unwrap_or("").trim();
                if is_pattern(name) {
                    names.push(name.to_owned());
                } else if !name.is_empty() {
                    unusable.push(format!(
                        "line {} of {}: {name:?} is no USER@HOST, of letters, digits and any of . _ - @, or * for any; it \
                         lets nobody in",
                        number + 1,
                        dir.join("allow").display()
                    ));
                }
            }
            names
        });
        let dir = dir.to_owned();
        Ok(Some(Self { dir, ca: ca.into(), host: host.into(), key, revoked, allow, unusable }))
    }

    /// A newcomer's, for one connection to the host that has invited it.
    fn of_invitation(invitation: &Invitation) -> Self {
        Self {
            dir: PathBuf::new(),
            ca: invitation.ca.clone().into(),
            host: invitation.certificate.clone().into(),
            key: PrivateKeyDer::Pkcs8(invitation.key.clone().into()),
            revoked: None,
            allow: None,
            unusable: Vec::new(),
        }
    }

    /// The name of this host.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Damaged`]
    pub fn name(&self) -> Result<String, ClusterError> {
        match role(&self.host) {
            Some(Role::Member(name)) => Ok(name),
            _ => Err(ClusterError::Damaged {
                path: self.dir.join("host.pem"),
                text: "it is no certificate of a host".into(),
            }),
        }
    }

    /// Certificates that count no more, as the authority has signed them.
    #[must_use]
    pub fn revoked(&self) -> Option<&[u8]> {
        self.revoked.as_deref()
    }

    /// Whether a member may send jobs here.
    #[must_use]
    pub fn allows(&self, member: &str) -> bool {
        let Some(allow) = &self.allow else { return true };
        let parts = |name: &str| {
            let (user, host) = name.split_once('@').unwrap_or(("*", name));
            (user.to_owned(), host.to_owned())
        };
        let (user, host) = parts(member);
        allow.iter().map(|line| parts(line)).any(|(allowed_user, allowed_host)| {
            (allowed_user == "*" || allowed_user == user)
                && (allowed_host == "*" || allowed_host == host)
        })
    }

    /// Lines of the list of who may send jobs here that say nothing, in words.
    #[must_use]
    pub fn unusable(&self) -> &[String] {
        &self.unusable
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, ClusterError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone())?;
        Ok(Arc::new(roots))
    }

    fn server_verifier(&self) -> Result<Arc<WebPkiServerVerifier>, ClusterError> {
        WebPkiServerVerifier::builder_with_provider(self.roots()?, provider())
            .with_crls(self.revoked.clone())
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| ClusterError::Verifier(error.to_string()))
    }

    /// Settings for connections that are made here.
    ///
    /// # Errors
    ///
    /// [`ClusterError`]
    pub fn client(&self) -> Result<Arc<ClientConfig>, ClusterError> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_webpki_verifier(self.server_verifier()?)
            .with_client_auth_cert(vec![self.host.clone()], self.key.clone_key())?;
        Ok(Arc::new(config))
    }

    /// Settings for connections that come.
    ///
    /// # Errors
    ///
    /// [`ClusterError`]
    pub fn server(&self) -> Result<Arc<ServerConfig>, ClusterError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider())
            .with_crls(self.revoked.clone())
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| ClusterError::Verifier(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.host.clone()], self.key.clone_key())?;
        // A session that is taken up again would outlive the revocation of its certificate.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// Takes over a list of revoked certificates from another host, if it is a newer one of the authority's.
    ///
    /// # Errors
    ///
    /// [`ClusterError`]: the one that is here stays.
    pub fn learn(&self, revoked: &[u8]) -> Result<bool, ClusterError> {
        let newer = authority::crl_number(revoked)
            > self.revoked.as_deref().and_then(authority::crl_number);
        if !newer {
            return Ok(false);
        }
        let with = Self {
            revoked: Some(revoked.to_vec().into()),
            dir: self.dir.clone(),
            ca: self.ca.clone(),
            host: self.host.clone(),
            key: self.key.clone_key(),
            allow: None,
            unusable: Vec::new(),
        };
        // The verifier looks at the signature of a list when it looks a certificate up in it.
        match with.verify_host() {
            Ok(()) | Err(rustls::Error::InvalidCertificate(rustls::CertificateError::Revoked)) => {}
            Err(error) => return Err(error.into()),
        }
        files::write(&self.dir.join("revoked.crl"), revoked)?;
        Ok(true)
    }

    fn verify_host(&self) -> Result<(), rustls::Error> {
        let verifier =
            self.server_verifier().map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(&self.host, &[], &every_host(), &[], UnixTime::now()).map(drop)
    }
}

/// Whether a word can stand in the list of who may send jobs here.
fn is_pattern(word: &str) -> bool {
    let part = |part: &str| {
        let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        part == "*" || !part.is_empty() && part.chars().all(letter)
    };
    word.split_once('@').map_or_else(|| part(word), |(user, host)| part(user) && part(host))
}

/// The name by which every host is greeted in TLS.
#[must_use]
pub fn every_host() -> ServerName<'static> {
    ServerName::DnsName(
        rustls::pki_types::DnsName::try_from(EVERY_HOST).unwrap_or_else(|_| unreachable!()),
    )
}

/// What a certificate says of whoever has it. It is to have been verified before.
#[must_use]
pub fn role(certificate: &CertificateDer<'_>) -> Option<Role> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    parsed.valid_uri_names().find_map(|uri| {
        let member = uri.strip_prefix(MEMBER).map(|name| Role::Member(name.into()));
        member.or_else(|| uri.strip_prefix(INVITATION).map(|id| Role::Invitation(id.into())))
    })
}

/// Says what TLS errors mean here that say little by themselves.
#[must_use]
pub fn explained(error: io::Error) -> io::Error {
    use rustls::AlertDescription as Alert;
    use rustls::CertificateError as Certificate;
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let text = match inner {
        Some(InvalidMessage(_)) => "it shows no certificate: it is in no cluster",
        Some(InvalidCertificate(Certificate::UnknownIssuer)) => "it is of another cluster",
        Some(InvalidCertificate(Certificate::Revoked)) => {
            "its certificate was revoked: it was shown out of the cluster"
        }
        Some(InvalidCertificate(Certificate::ExpiredContext { .. } | Certificate::Expired)) => {
            "its certificate has expired: look at the clocks of both hosts, or let it join again"
        }
        Some(AlertReceived(Alert::UnknownCA)) => {
            "it is of another cluster, and does not know this host"
        }
        Some(AlertReceived(Alert::CertificateRevoked)) => {
            "this host's certificate was revoked: it was shown out of the cluster"
        }
        Some(AlertReceived(Alert::CertificateExpired)) => {
            "the invitation, or this host's certificate, has expired: ask for another with ulpm_coordinator --invite"
        }
        _ => return error,
    };
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
