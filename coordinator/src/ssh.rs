//! Another host's coordinator, reached by the user's own ssh.
//!
//! ```text
//!  this coordinator ── socket pair ── ssh ═══ sshd ── ulpm_coordinator --relay ── unix socket ── the other one
//! ```
//!
//! The relay starts a coordinator where none runs, says a line, and passes on what comes. What a login script of the
//! user prints before that line is skipped.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use ulpm_control::message::Ssh;
use ulpm_control::{Address, Client, ClientError, exit, place};

/// What begins a target that is reached so.
pub(crate) const SCHEME: &str = "ssh://";
/// What the relay says first.
const GREETING: &[u8] = b"ULPM relay 1\n";
/// The most that may come before that.
const MAX_NOISE: usize = 64 * 1024;
/// The most that is kept of what ssh says.
const MAX_SAID: usize = 4096;
/// How long ssh may take to end when its connection has.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why the other coordinator is not reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SshError {
    /// A target that is none.
    #[error("{0:?} is no target: write ssh://[USER@]HOST[:PORT][/SOCKET]")]
    Target(String),
    /// No program.
    #[error("{program} cannot be started: install ssh (openssh-client)")]
    NoSsh { program: String, source: io::Error },
    /// A host whose key is not known, or has changed.
    #[error(
        "ssh does not trust the key of {host}: call ssh {host} once by hand, and look at the key that it shows ({said})"
    )]
    HostKey { host: String, said: String },
    /// The user may not log in.
    #[error(
        "ssh is not let in at {host}: only keys and agents are of use here, for nobody can type a password; try ssh {host} true ({said})"
    )]
    Denied { host: String, said: String },
    /// No such host, or nobody who answers there.
    #[error("ssh cannot reach {host} ({said})")]
    NoHost { host: String, said: String },
    /// No ULPM.
    #[error(
        "there is no ulpm_coordinator at {host}: tried {tried}; name it with --remote-path ({said})"
    )]
    NoUlpm { host: String, tried: String, said: String },
    /// Another end.
    #[error("the relay at {host} has ended ({said})")]
    Relay { host: String, said: String },
}

impl SshError {
    /// Exit code for the tool.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Target(_) => exit::USAGE,
            Self::NoSsh { .. } | Self::NoUlpm { .. } | Self::Relay { .. } => exit::UNAVAILABLE,
            Self::HostKey { .. } | Self::Denied { .. } => exit::NO_PERMISSION,
            Self::NoHost { .. } => exit::NO_HOST,
        }
    }
}

/// A target.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// `[USER@]HOST`
    host: String,
    port: Option<u16>,
    /// The coordinator's, where it is not the user's own.
    socket: Option<String>,
}

impl Place {
    fn parse(target: &str) -> Option<Self> {
        let rest = target.strip_prefix(SCHEME)?;
        let (host, socket) = match rest.find('/') {
            Some(at) => (&rest[..at], Some(rest[at..].to_owned()).filter(|path| path != "/")),
            None => (rest, None),
        };
        let (host, port) = match host.rsplit_once(':') {
            // An address of version 6 stands in brackets.
            Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
            _ => (host, None),
        };
        let host: String = host.chars().filter(|c| !matches!(c, '[' | ']')).collect();
        // What ssh would take for an option is no host.
        let is_host = !host.is_empty() && !host.starts_with('-') && !host.ends_with('@');
        is_host.then_some(Self { host, port, socket })
    }
}

/// A word for the shell of the other host.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// What the other host's shell is to do, and the paths that it tries.
fn remote_command(place: &Place, remote_path: Option<&str>) -> (String, String) {
    let socket = match &place.socket {
        Some(socket) => format!(" --socket {}", quoted(socket)),
        None => String::new(),
    };
    let relay = format!("--relay{socket}");
    let Some(path) = remote_path else {
        let beside =
            place::find("ulpm_coordinator").unwrap_or_else(|_| PathBuf::from("ulpm_coordinator"));
        let beside = beside.display().to_string();
        let command = format!(
            "if command -v ulpm_coordinator >/dev/null 2>&1; then exec ulpm_coordinator {relay}; else exec {} {relay}; fi",
            quoted(&beside)
        );
        return (command, format!("ulpm_coordinator in the PATH that ssh gives, and {beside}"));
    };
    let file = Path::new(path);
    let program = if file.file_name().is_some_and(|name| name == "ulpm_coordinator") {
        path.to_owned()
    } else {
        file.join("ulpm_coordinator").display().to_string()
    };
    (format!("exec {} {relay}", quoted(&program)), program)
}

/// Connects to the coordinator of another host; starts one there if there is none.
pub(crate) async fn connect(target: &str, ssh: &Ssh) -> Result<UnixStream, SshError> {
    let place = Place::parse(target).ok_or_else(|| SshError::Target(target.into()))?;
    let (command, tried) = remote_command(&place, ssh.remote_path.as_deref());
    let program = if ssh.program.is_empty() { "ssh" } else { &ssh.program };
    let no_ssh = |source: io::Error| SshError::NoSsh { program: program.into(), source };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(no_ssh)?;
    let theirs = OwnedFd::from(theirs);
    let mut call = tokio::process::Command::new(program);
    call.args(["-T", "-x", "-a", "-e", "none"]);
    for option in [
        "BatchMode=yes",
        "ClearAllForwardings=yes",
        "ConnectTimeout=10",
        "ServerAliveInterval=5",
        "ServerAliveCountMax=4",
        "ControlMaster=no",
        "ControlPath=none",
    ] {
        call.arg("-o").arg(option);
    }
    if let Some(port) = place.port {
        call.arg("-p").arg(port.to_string());
    }
    if let Some(agent) = &ssh.agent {
        call.env("SSH_AUTH_SOCK", agent);
    }
    let child = call
        .arg("--")
        .arg(&place.host)
        .arg(&command)
        .stdin(theirs.try_clone().map_err(no_ssh)?)
        .stdout(theirs)
        .stderr(Stdio::piped())
        .process_group(0)
        .env_remove("LD_PRELOAD")
        .env_remove("ULPM_JOB")
        .kill_on_drop(true)
        .spawn();
    // It has the other end of the pair, whose end would not be seen.
    drop(call);
    let mut child = child.map_err(no_ssh)?;
    let said = Arc::new(Mutex::new(Vec::new()));
    let reading = child.stderr.take().map(|mut stderr| {
        let said = Arc::clone(&said);
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok(len @ 1..) = stderr.read(&mut buffer).await {
                let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                said.extend_from_slice(&buffer[..len]);
                let surplus = said.len().saturating_sub(MAX_SAID);
                said.drain(..surplus);
            }
        })
    });
    ours.set_nonblocking(true).map_err(no_ssh)?;
    let mut stream = UnixStream::from_std(ours).map_err(no_ssh)?;
    if greeted(&mut stream).await {
        tokio::spawn(async move {
            let _ = child.wait().await;
            let said = said.lock().unwrap_or_else(PoisonError::into_inner);
            tracing::debug!("ssh has ended: {}", String::from_utf8_lossy(&said).trim());
        });
        return Ok(stream);
    }
    drop(stream);
    let status = tokio::time::timeout(LAST_WORDS, child.wait()).await;
    if let Some(reading) = reading {
        // All that it has said.
        let _ = tokio::time::timeout(LAST_WORDS, reading).await;
    }
    let code = status.ok().and_then(Result::ok).and_then(|status| status.code());
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    let said = String::from_utf8_lossy(&said).trim().replace(['\r', '\n'], " ");
    Err(explained(place.host, tried, code, said))
}

/// Waits for the relay's first line.
async fn greeted(stream: &mut UnixStream) -> bool {
    let mut heard = Vec::new();
    let mut byte = [0];
    while heard.len() < MAX_NOISE {
        match stream.read(&mut byte).await {
            Ok(1..) => heard.push(byte[0]),
            _ => return false,
        }
        if heard.ends_with(GREETING) {
            return true;
        }
    }
    false
}

/// What it means that ssh has ended.
fn explained(host: String, tried: String, code: Option<i32>, said: String) -> SshError {
    let speaks_of = |words: &[&str]| words.iter().any(|word| said.contains(word));
    match code {
        // The shell's own: not found, or not to be executed.
        Some(126 | 127) => SshError::NoUlpm { host, tried, said },
        Some(255) if speaks_of(&["Host key verification failed", "IDENTIFICATION HAS CHANGED"]) => {
            SshError::HostKey { host, said }
        }
        Some(255) if speaks_of(&["Permission denied", "Too many authentication failures"]) => {
            SshError::Denied { host, said }
        }
        Some(255) => SshError::NoHost { host, said },
        _ => SshError::Relay { host, said },
    }
}

/// Passes on what comes from an ssh to the coordinator of this host, and back.
pub(crate) fn relay(socket: &Path) -> Result<(), ClientError> {
    let client = Client::connect_or_start(&Address::Socket(socket.to_owned()))?;
    let Some(coordinator) = client.into_unix() else { return Ok(()) };
    let pass = |coordinator: std::os::unix::net::UnixStream| -> io::Result<()> {
        let mut to = coordinator.try_clone()?;
        std::thread::spawn(move || {
            // An end on either side is an end.
            let _ = copy(&mut io::stdin().lock(), &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        let mut stdout = io::stdout().lock();
        stdout.write_all(GREETING)?;
        stdout.flush()?;
        copy(&mut &coordinator, &mut stdout)
    };
    pass(coordinator).map_err(|error| ulpm_control::codec::CodecError::Io(error).into())
}

/// Passes bytes on as they come.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let len = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&buffer[..len])?;
        to.flush()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_a_host_and_maybe_more() {
        let parse = |target| Place::parse(target).map(|p| (p.host, p.port, p.socket));
        assert_eq!(parse("ssh://b"), Some(("b".into(), None, None)));
        assert_eq!(parse("ssh://ann@b:22/"), Some(("ann@b".into(), Some(22), None)));
        assert_eq!(parse("ssh://b/run/sock"), Some(("b".into(), None, Some("/run/sock".into()))));
        assert_eq!(parse("ssh://ann@[::1]:7"), Some(("ann@::1".into(), Some(7), None)));
        for bad in
            ["b", "ssh://", "ssh://-oProxyCommand=x", "ssh://b:port", "ssh:///sock", "ssh://ann@"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn words_for_a_shell_stay_words() {
        assert_eq!(quoted("a b'c"), "'a b'\\''c'");
        let place = Place::parse("ssh://b/s k").unwrap();
        let (command, tried) = remote_command(&place, Some("/opt/ulpm"));
        assert_eq!(command, "exec '/opt/ulpm/ulpm_coordinator' --relay --socket '/s k'");
        assert_eq!(tried, "/opt/ulpm/ulpm_coordinator");
        assert_eq!(remote_command(&place, Some("/x/ulpm_coordinator")).1, "/x/ulpm_coordinator");
    }

    #[test]
    fn what_ssh_says_is_told_apart() {
        let what = |code, said: &str| explained("b".into(), "x".into(), Some(code), said.into());
        assert!(matches!(what(127, "sh: not found"), SshError::NoUlpm { .. }));
        assert!(matches!(what(255, "Host key verification failed."), SshError::HostKey { .. }));
        assert!(matches!(
            what(255, "a@b: Permission denied (publickey)."),
            SshError::Denied { .. }
        ));
        assert!(matches!(what(255, "Connection refused"), SshError::NoHost { .. }));
        assert!(matches!(what(69, "no socket"), SshError::Relay { .. }));
    }
}
