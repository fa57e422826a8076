//! The authority of a cluster: who is let in, and who is shown out.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::fcntl::{Flock, FlockArg};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams, SanType, SerialNumber,
};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::FromDer;

use crate::{Cluster, ClusterError, EVERY_HOST, INVITATION, MEMBER, files};

/// How long an authority, and a host, may keep its certificate.
const AUTHORITY_LIFE: Duration = Duration::days(30 * 365);
const HOST_LIFE: Duration = Duration::days(10 * 365);
/// Clocks of hosts may differ by so much.
const CLOCKS_DIFFER: Duration = Duration::hours(1);
/// Bytes of a serial number, which is random.
const SERIAL_LEN: usize = 16;

/// A certificate that was given out.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Issued {
    name: String,
    /// In hexadecimal digits.
    serial: String,
    revoked: bool,
}

/// The one that signs.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    ca: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

/// What a newcomer needs to ask for a certificate, once, within its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// `HOST:PORT` of the coordinator that lets it in.
    pub addresses: Vec<String>,
    pub(crate) ca: Vec<u8>,
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

fn random<const LEN: usize>() -> Result<[u8; LEN], ClusterError> {
    use std::io::Read;
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; LEN];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|source| ClusterError::File { path: path.into(), source })?;
    // A serial number is positive.
    bytes[0] &= 0x7f;
    Ok(bytes)
}

/// The number of a list of revoked certificates; each has a higher one than the last.
pub(crate) fn crl_number(der: &[u8]) -> Option<u64> {
    let (_, list) = x509_parser::revocation_list::CertificateRevocationList::from_der(der).ok()?;
    list.crl_number()?.try_into().ok()
}

fn parameters(
    uri: Option<String>,
    life: Duration,
    serial: [u8; SERIAL_LEN],
) -> Result<CertificateParams, ClusterError> {
    let mut params = CertificateParams::new(vec![EVERY_HOST.to_owned()])?;
    if let Some(uri) = uri {
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
    }
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCKS_DIFFER;
    params.not_after = now + life;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "ULPM");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn check_name(name: &str) -> Result<(), ClusterError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || ".@_-".contains(c);
    if name.is_empty() || name.len() > 128 || !name.chars().all(fits) {
        return Err(ClusterError::Name(name.into()));
    }
    Ok(())
}

/// A key for this host, as PEM, and the request for its certificate, as DER.
///
/// # Errors
///
/// [`ClusterError`]
pub fn join_request(name: &str) -> Result<(String, Vec<u8>), ClusterError> {
    check_name(name)?;
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    let mut params = CertificateParams::new(vec![])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(&key)?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

impl Authority {
    /// Makes a cluster, of which this host is the first member.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Exists`] where this host is in one.
    pub fn create(dir: &Path, name: &str) -> Result<Self, ClusterError> {
        check_name(name)?;
        files::make_dir(dir)?;
        if dir.join("host.pem").exists() || dir.join("ca-key.pem").exists() {
            return Err(ClusterError::Exists(dir.to_owned()));
        }
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let serial: [u8; SERIAL_LEN] = random()?;
        let mut params = parameters(None, AUTHORITY_LIFE, serial)?;
        let id = data_encoding::HEXLOWER.encode(&serial[..4]);
        params.distinguished_name.push(DnType::CommonName, format!("ULPM cluster {id}"));
        params.subject_alt_names.clear();
        params.extended_key_usages.clear();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = params.self_signed(&key)?;
        files::write(&dir.join("ca-key.pem"), key.serialize_pem().as_bytes())?;
        files::write(&dir.join("ca.pem"), ca.pem().as_bytes())?;
        let authority = Self::open(dir)?;
        let (key, request) = join_request(name)?;
        let certificate = authority.issue(name, &request)?;
        authority.revoke_all()?;
        enter(dir, &key, &certificate, None)?;
        Ok(authority)
    }

    /// Opens the authority of the cluster that was made here.
    ///
    /// # Errors
    ///
    /// [`ClusterError::NotAuthority`] where it is not.
    pub fn open(dir: &Path) -> Result<Self, ClusterError> {
        let path = dir.join("ca-key.pem");
        let key = files::read_secret(&path)?.ok_or(ClusterError::NotAuthority(path))?;
        let ca_path = dir.join("ca.pem");
        let ca = files::read_pem(&ca_path)?
            .ok_or_else(|| ClusterError::Damaged { path: ca_path, text: "it is missing".into() })?;
        let key = KeyPair::from_pem(&key)?;
        let issuer = Issuer::from_ca_cert_der(&ca.as_slice().into(), key)?;
        Ok(Self { dir: dir.to_owned(), ca, issuer })
    }

    /// Nobody else changes what was given out, for as long as this is held.
    fn lock(&self) -> Result<Flock<std::fs::File>, ClusterError> {
        let path = self.dir.join("issued.lock");
        let failed = |source| ClusterError::File { path: path.clone(), source };
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))
    }

    fn issued(&self) -> Result<Vec<Issued>, ClusterError> {
        let path = self.dir.join("issued.json");
        let Some(text) = files::read(&path)? else { return Ok(Vec::new()) };
        serde_json::from_slice(&text)
            .map_err(|error| ClusterError::Damaged { path, text: error.to_string() })
    }

    fn keep(&self, issued: &[Issued]) -> Result<(), ClusterError> {
        let path = self.dir.join("issued.json");
        let text = serde_json::to_vec_pretty(issued)
            .map_err(|error| ClusterError::File { path: path.clone(), source: error.into() })?;
        files::write(&path, &text)
    }

    fn issue(&self, name: &str, request: &[u8]) -> Result<Vec<u8>, ClusterError> {
        check_name(name)?;
        let _lock = self.lock()?;
        let mut issued = self.issued()?;
        if issued.iter().any(|known| known.name == name && !known.revoked) {
            return Err(ClusterError::Token(format!(
                "there is a host {name} already: join with another --name, or have that one revoked"
            )));
        }
        let serial: [u8; SERIAL_LEN] = random()?;
        let mut signing = CertificateSigningRequestParams::from_der(&request.into())?;
        // Of what is asked for, only the key counts.
        signing.params = parameters(Some(format!("{MEMBER}{name}")), HOST_LIFE, serial)?;
        let certificate = signing.signed_by(&self.issuer)?;
        let serial = data_encoding::HEXLOWER.encode(&serial);
        issued.push(Issued { name: name.into(), serial, revoked: false });
        self.keep(&issued)?;
        Ok(certificate.der().to_vec())
    }

    /// Invites a host that asks at one of `addresses`, for `life`.
    ///
    /// # Errors
    ///
    /// [`ClusterError`]
    pub fn invite(
        &self,
        addresses: Vec<String>,
        life: std::time::Duration,
    ) -> Result<Invitation, ClusterError> {
        let life =
            Duration::try_from(life).map_err(|error| ClusterError::Token(error.to_string()))?;
        self.invite_for(addresses, life)
    }

    fn invite_for(
        &self,
        addresses: Vec<String>,
        life: Duration,
    ) -> Result<Invitation, ClusterError> {
        let serial: [u8; SERIAL_LEN] = random()?;
        let id = data_encoding::HEXLOWER.encode(&serial);
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let params = parameters(Some(format!("{INVITATION}{id}")), life, serial)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let pending = self.dir.join("invitations");
        files::make_dir(&pending)?;
        files::write(&pending.join(id), b"")?;
        Ok(Invitation {
            addresses,
            ca: self.ca.clone(),
            certificate: certificate.der().to_vec(),
            key: key.serialize_der(),
        })
    }

    /// Gives a certificate to a newcomer whose invitation was not used yet.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Token`] if it was.
    pub fn admit(&self, id: &str, name: &str, request: &[u8]) -> Result<Vec<u8>, ClusterError> {
        let path = self.dir.join("invitations").join(id);
        let used = || ClusterError::Token("it was used before".into());
        if !path.exists() {
            return Err(used());
        }
        let certificate = self.issue(name, request)?;
        // Of two that come at once, one finds it.
        std::fs::remove_file(&path).map_err(|_| used())?;
        Ok(certificate)
    }

    /// Shows a host out.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Unknown`] if there is none of that name.
    pub fn revoke(&self, name: &str) -> Result<(), ClusterError> {
        if Cluster::open(&self.dir)?.is_some_and(|own| own.name().is_ok_and(|own| own == name)) {
            return Err(ClusterError::Own(name.into()));
        }
        {
            let _lock = self.lock()?;
            let mut issued = self.issued()?;
            let of_name = issued.iter_mut().filter(|known| known.name == name && !known.revoked);
            let mut found = false;
            for known in of_name {
                known.revoked = true;
                found = true;
            }
            if !found {
                return Err(ClusterError::Unknown(name.into()));
            }
            self.keep(&issued)?;
        }
        self.revoke_all()
    }

    /// Signs the list of all that are revoked.
    fn revoke_all(&self) -> Result<(), ClusterError> {
        let now = OffsetDateTime::now_utc();
        let mut revoked_certs = Vec::new();
        for known in self.issued()?.iter().filter(|known| known.revoked) {
            let serial =
                data_encoding::HEXLOWER.decode(known.serial.as_bytes()).map_err(|error| {
                    ClusterError::Damaged {
                        path: self.dir.join("issued.json"),
                        text: error.to_string(),
                    }
                })?;
            revoked_certs.push(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&serial),
                revocation_time: now,
                reason_code: Some(RevocationReason::PrivilegeWithdrawn),
                invalidity_date: None,
            });
        }
        let path = self.dir.join("revoked.crl");
        let last = files::read(&path)?.as_deref().and_then(crl_number).unwrap_or(0);
        let list = CertificateRevocationListParams {
            this_update: now - CLOCKS_DIFFER,
            next_update: now + AUTHORITY_LIFE,
            crl_number: SerialNumber::from(last + 1),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        files::write(&path, list.signed_by(&self.issuer)?.der())
    }
}

/// Makes this host a member, with what the authority has signed.
fn enter(
    dir: &Path,
    key: &str,
    certificate: &[u8],
    revoked: Option<&[u8]>,
) -> Result<(), ClusterError> {
    files::write(&dir.join("host-key.pem"), key.as_bytes())?;
    if let Some(revoked) = revoked {
        files::write(&dir.join("revoked.crl"), revoked)?;
    }
    // Last, for it says that this host is a member.
    files::write(&dir.join("host.pem"), pem("CERTIFICATE", certificate).as_bytes())
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

impl Invitation {
    /// What the newcomer talks to the cluster with, until it is a member.
    #[must_use]
    pub fn cluster(&self) -> Cluster {
        Cluster::of_invitation(self)
    }

    /// Makes this host a member, with what the authority has signed.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Exists`] where this host is in a cluster.
    pub fn accept(
        &self,
        dir: &Path,
        key: &str,
        certificate: &[u8],
        revoked: Option<&[u8]>,
    ) -> Result<(), ClusterError> {
        Self::check(dir)?;
        files::make_dir(dir)?;
        files::write(&dir.join("ca.pem"), pem("CERTIFICATE", &self.ca).as_bytes())?;
        enter(dir, key, certificate, revoked)
    }

    /// Whether this host can join a cluster.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Exists`]
    pub fn check(dir: &Path) -> Result<(), ClusterError> {
        if dir.join("host.pem").exists() {
            return Err(ClusterError::Exists(dir.to_owned()));
        }
        Ok(())
    }
}

/// The beginning of a token, with its version.
const TOKEN: &str = "ulpm1.";

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::new();
        let addresses = self.addresses.iter().map(String::as_bytes);
        for part in [&self.ca[..], &self.certificate, &self.key].into_iter().chain(addresses) {
            let len = u16::try_from(part.len()).map_err(|_| fmt::Error)?;
            bytes.extend(len.to_le_bytes());
            bytes.extend(part);
        }
        write!(f, "{TOKEN}{}", data_encoding::BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for Invitation {
    type Err = ClusterError;

    fn from_str(text: &str) -> Result<Self, ClusterError> {
        let wrong = || ClusterError::Token("it is not what --invite has printed".into());
        let text = text.trim().strip_prefix(TOKEN).ok_or_else(wrong)?;
        let bytes = data_encoding::BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| wrong())?;
        let mut parts = Vec::new();
        let mut rest = &bytes[..];
        while let Some((len, behind)) = rest.split_first_chunk() {
            let len = usize::from(u16::from_le_bytes(*len));
            let (part, behind) = behind.split_at_checked(len).ok_or_else(wrong)?;
            parts.push(part.to_vec());
            rest = behind;
        }
        let mut parts = parts.into_iter();
        let mut next = || parts.next().ok_or_else(wrong);
        let (ca, certificate, key) = (next()?, next()?, next()?);
        let addresses: Result<Vec<String>, _> = parts.map(String::from_utf8).collect();
        let addresses = addresses.map_err(|_| wrong())?;
        let fits = |address: &String| address.parse::<std::net::SocketAddr>().is_ok();
        if !rest.is_empty() || addresses.is_empty() || !addresses.iter().all(fits) {
            return Err(wrong());
        }
        Ok(Self { addresses, ca, certificate, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;

    struct Dirs(PathBuf);

    impl Dirs {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("ulpm-cluster-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            Self(dir)
        }
    }

    impl Drop for Dirs {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn joined(dirs: &Dirs, authority: &Authority, name: &str) -> Cluster {
        let life = std::time::Duration::from_secs(60);
        let token = authority.invite(vec!["127.0.0.1:1".into()], life).unwrap().to_string();
        let invitation: Invitation = token.parse().unwrap();
        assert_eq!(invitation.addresses, ["127.0.0.1:1"]);
        let Some(Role::Invitation(id)) = crate::role(&invitation.cluster().host) else {
            panic!("no invitation");
        };
        let (key, request) = join_request(name).unwrap();
        let certificate = authority.admit(&id, name, &request).unwrap();
        let again = authority.admit(&id, "other", &request).unwrap_err();
        assert!(matches!(again, ClusterError::Token(_)), "{again}");
        let dir = dirs.0.join(name);
        invitation.accept(&dir, &key, &certificate, None).unwrap();
        Cluster::open(&dir).unwrap().unwrap()
    }

    /// Lets two ends shake hands in memory.
    fn talk(client: &Cluster, server: &Cluster) -> Result<Option<Role>, rustls::Error> {
        use rustls::{ClientConnection, ServerConnection};
        let mut client =
            ClientConnection::new(client.client().unwrap(), crate::every_host()).unwrap();
        let mut server = ServerConnection::new(server.server().unwrap()).unwrap();
        for _ in 0..10 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok(server.peer_certificates().and_then(|chain| crate::role(&chain[0])))
    }

    #[test]
    fn members_know_each_other_and_nobody_else() {
        let dirs = Dirs::new("members");
        let authority = Authority::create(&dirs.0.join("first"), "ann@first").unwrap();
        let first = Cluster::open(&dirs.0.join("first")).unwrap().unwrap();
        assert_eq!(first.name().unwrap(), "ann@first");
        let second = joined(&dirs, &authority, "ann@second");
        let member = |name: &str| Some(Role::Member(name.into()));
        assert_eq!(talk(&second, &first).unwrap(), member("ann@second"));
        assert_eq!(talk(&first, &second).unwrap(), member("ann@first"));
        Authority::create(&dirs.0.join("stranger"), "ann@first").unwrap();
        let stranger = Cluster::open(&dirs.0.join("stranger")).unwrap().unwrap();
        talk(&stranger, &first).unwrap_err();
        talk(&first, &stranger).unwrap_err();
        let again = Authority::create(&dirs.0.join("first"), "x");
        assert!(matches!(again, Err(ClusterError::Exists(_))));
    }

    #[test]
    fn who_was_shown_out_stays_out() {
        let dirs = Dirs::new("revoked");
        let authority = Authority::create(&dirs.0.join("first"), "first").unwrap();
        let second = joined(&dirs, &authority, "second");
        let third = joined(&dirs, &authority, "third");
        talk(&second, &third).unwrap();
        authority.revoke("second").unwrap();
        assert!(matches!(authority.revoke("second"), Err(ClusterError::Unknown(_))));
        assert!(matches!(authority.revoke("first"), Err(ClusterError::Own(_))));
        let first = Cluster::open(&dirs.0.join("first")).unwrap().unwrap();
        talk(&second, &first).unwrap_err();
        // Others learn of it, and of nothing else.
        let list = first.revoked().unwrap();
        let mut forged = list.to_vec();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        third.learn(&forged).unwrap_err();
        assert!(third.learn(list).unwrap());
        let third = Cluster::open(&dirs.0.join("third")).unwrap().unwrap();
        assert!(!third.learn(list).unwrap());
        talk(&second, &third).unwrap_err();
        talk(&third, &first).unwrap();
        // One that has come back under its name is another.
        let back = joined(&Dirs(dirs.0.join("again")), &authority, "second");
        talk(&back, &first).unwrap();
    }

    #[test]
    fn an_invitation_lasts_its_time() {
        let dirs = Dirs::new("time");
        let authority = Authority::create(&dirs.0, "first").unwrap();
        let first = Cluster::open(&dirs.0).unwrap().unwrap();
        let invite = |secs| {
            authority.invite_for(vec!["127.0.0.1:1".into()], Duration::seconds(secs)).unwrap()
        };
        let role = talk(&invite(60).cluster(), &first).unwrap();
        assert!(matches!(role, Some(Role::Invitation(_))));
        talk(&invite(-2).cluster(), &first).unwrap_err();
    }

    #[test]
    fn names_and_tokens_that_are_none_are_refused() {
        for name in ["", "a b", "a/b", "ä"] {
            assert!(matches!(check_name(name), Err(ClusterError::Name(_))), "{name}");
        }
        for token in ["", "ulpm1.", "ulpm1.!", "ulpm2.AAAA", "ulpm1.AAAA"] {
            assert!(matches!(token.parse::<Invitation>(), Err(ClusterError::Token(_))), "{token}");
        }
    }

    #[test]
    fn a_list_says_who_may_send() {
        let dirs = Dirs::new("allow");
        Authority::create(&dirs.0, "first").unwrap();
        let allows = |list: Option<&str>, member: &str| {
            let path = dirs.0.join("allow");
            let _ = std::fs::remove_file(&path);
            if let Some(list) = list {
                std::fs::write(&path, list).unwrap();
            }
            Cluster::open(&dirs.0).unwrap().unwrap().allows(member)
        };
        assert!(allows(None, "ann@a"));
        assert!(!allows(Some("# nobody\n"), "ann@a"));
        assert!(allows(Some("ann@a # me\n"), "ann@a"));
        assert!(!allows(Some("ann@a\n"), "bob@a"));
        assert!(allows(Some("*@a\nbob@*\n"), "ann@a"));
        assert!(allows(Some("*@a\nbob@*\n"), "bob@b"));
        assert!(!allows(Some("*@a\nbob@*\n"), "ann@b"));
        assert!(allows(Some("a\n"), "ann@a"));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dirs = Dirs::new("readable");
        Authority::create(&dirs.0, "first").unwrap();
        let key = dirs.0.join("host-key.pem");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Cluster::open(&dirs.0), Err(ClusterError::Readable(_))));
    }
}
