//! From the command line to a coordinator that serves.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ulpm_cluster::Cluster;
use ulpm_control::{ClientError, exit, place};

use crate::membership::{self, MembershipError};
use crate::options::Options;
use crate::server::{self, Shared};
use crate::ssh;
use crate::state::{StateDir, StateError};

/// Why there is no coordinator.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No state directory.
    #[error("the coordinator cannot start")]
    State(#[from] StateError),
    /// No socket.
    #[error("cannot make the socket {}", path.display())]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No TCP.
    #[error("cannot listen on {address}: choose another address or port with --listen")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Who may talk to whom.
    #[error("the cluster")]
    Membership(#[from] MembershipError),
    /// Nobody may listen there.
    #[error(
        "cannot listen on {address} for other hosts without a cluster: whoever could connect would run programs as you"
    )]
    NoCluster {
        /// Where.
        address: String,
        /// Why.
        source: MembershipError,
    },
    /// The system refuses something.
    #[error("cannot {what}")]
    Io {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Nobody to pass anything on to.
    #[error(transparent)]
    Relay(ClientError),
    /// The background half ended.
    #[error("the coordinator ended before it was ready")]
    Daemon(u8),
}

impl RunError {
    /// Exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::State(StateError::Running(_)) => exit::TEMPORARY,
            Self::State(StateError::Unsafe { .. }) => exit::NO_PERMISSION,
            Self::State(StateError::Io { .. }) | Self::Socket { .. } => exit::CANT_CREATE,
            Self::Listen { .. } => exit::UNAVAILABLE,
            Self::Membership(error) | Self::NoCluster { source: error, .. } => error.exit_code(),
            Self::Io { .. } => exit::OS,
            Self::Relay(error) => error.exit_code(),
            Self::Daemon(code) => *code,
        }
    }
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::Io { what, source }
}

/// Runs a coordinator; with `--daemon`, until it is ready.
///
/// # Errors
///
/// [`RunError`]
pub fn run(options: &Options) -> Result<(), RunError> {
    if options.relay {
        return ssh::relay(&options.socket()).map_err(RunError::Relay);
    }
    if let Some(said) = membership::act(options)? {
        println!("{said}");
        return Ok(());
    }
    if options.daemon { start_daemon(options) } else { run_here(options) }
}

/// Starts the same program again as the background half, and waits for its word.
fn start_daemon(options: &Options) -> Result<(), RunError> {
    let cannot = io_error("start the background half");
    let program = std::env::current_exe().map_err(&cannot)?;
    let mut command = Command::new(program);
    command.arg("--detached").arg(format!("--freeze-timeout={}", options.freeze_timeout));
    let pairs = [
        ("--socket", &options.socket),
        ("--state-dir", &options.state_dir),
        ("--cluster", &options.cluster),
    ];
    for (name, path) in pairs {
        if let Some(path) = path {
            command.arg(name).arg(std::path::absolute(path).map_err(&cannot)?);
        }
    }
    if let Some(listen) = options.listen() {
        command.arg("--listen").arg(listen);
    }
    let limits = options.limits();
    let numbers = [
        ("--max-guests", limits.guests.map(u64::from)),
        ("--max-memory", limits.memory),
        ("--max-disk", limits.disk),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            command.arg(name).arg(number.to_string());
        }
    }
    for _ in 0..options.verbose {
        command.arg("--verbose");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .env_remove("LD_PRELOAD")
        .env_remove("ULPM_JOB")
        .spawn()
        .map_err(&cannot)?;
    let mut word = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut word).map_err(&cannot)?;
    }
    if word.starts_with("ready") {
        return Ok(());
    }
    let status = child.wait().map_err(&cannot)?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Err(RunError::Daemon(code.filter(|&code| code != 0).unwrap_or(exit::SOFTWARE)))
}

fn run_here(options: &Options) -> Result<(), RunError> {
    if options.detached {
        detach();
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    raise_limits();
    let socket =
        std::path::absolute(options.socket()).map_err(io_error("find the current directory"))?;
    let state_dir = match &options.state_dir {
        Some(path) => std::path::absolute(path).map_err(io_error("find the current directory"))?,
        None => place::state_dir_of(&socket),
    };
    let state = StateDir::open(&state_dir)?;
    let listener =
        bind(&socket).map_err(|source| RunError::Socket { path: socket.clone(), source })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io_error("start the event loop"))?;
    let log = state_dir.join("coordinator.log");
    let result = runtime.block_on(async {
        let unix =
            tokio::net::UnixListener::from_std(listener).map_err(io_error("use the socket"))?;
        let tcp = match options.listen() {
            Some(address) => {
                let failed = |source| RunError::Listen { address: address.clone(), source };
                let bound = tokio::net::TcpListener::bind(&address).await.map_err(failed)?;
                let at = bound.local_addr().map_err(failed)?;
                membership::may_listen(options.cluster().as_ref(), at)
                    .map_err(|source| RunError::NoCluster { address, source })?;
                Some(bound)
            }
            None => None,
        };
        if let Some(Ok(Some(cluster))) = options.cluster().map(|dir| Cluster::open(&dir)) {
            for line in cluster.unusable() {
                eprintln!("ulpm_coordinator: warning: {line}");
            }
        }
        // From here on nothing is said to the terminal of whoever started us.
        if options.detached {
            log_to(&log).map_err(io_error("write the log"))?;
        }
        start_tracing(options.verbose);
        tracing::info!("coordinator {} at {}", env!("CARGO_PKG_VERSION"), socket.display());
        let shared = Shared::new(
            state,
            socket.clone(),
            Duration::from_secs(options.freeze_timeout),
            options.cluster(),
            options.limits(),
        );
        shared.take_up();
        if options.detached {
            tell_ready().map_err(io_error("say that it is ready"))?;
        } else if let Some(tcp) = &tcp
            && let Ok(address) = tcp.local_addr()
        {
            // So that port 0 is of use.
            println!("listening on {address}");
        }
        let served = server::serve(&shared, unix, tcp).await;
        let _ = std::fs::remove_file(&socket);
        served.map_err(io_error("serve"))
    });
    // Whoever copies an image in a thread need not be waited for.
    runtime.shutdown_background();
    result
}

/// Leaves the session of whoever started us, and what they had open: a pipe that we hold would keep its
/// reader waiting.
fn detach() {
    let _ = nix::unistd::setsid();
    let _ = std::env::set_current_dir("/");
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|&fd| fd > 2) {
        let _ = nix::unistd::close(fd);
    }
}

/// Every process of a job has a connection.
fn raise_limits() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Binds the socket; the lock says that nobody lives behind an old one.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "a coordinator already answers there",
        ));
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
            std::fs::remove_file(path)?;
        }
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is no socket"));
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn log_to(path: &Path) -> io::Result<()> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    if log.metadata()?.len() > 16 * 1024 * 1024 {
        log.set_len(0)?;
    }
    nix::unistd::dup2_stderr(&log)?;
    Ok(())
}

fn start_tracing(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    let level = match verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("ULPM_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .try_init();
}

fn tell_ready() -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(b"ready\n")?;
    stdout.flush()?;
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}
