//! Starts the program, waits, and ends as it ends.

use std::ffi::{CString, OsString};
use std::io::{self, IsTerminal};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, getpid, getsid};
use ulpm_control::client::ClientError;
use ulpm_control::link::{Outcome, Recovering, exit_code};
use ulpm_control::message::{JobOpened, OpenJob, Policy, Stdio, Stream};
use ulpm_control::session::Streams;
use ulpm_control::{Client, JobLink, Recovery, Reply, Request, exit, place};
use ulpm_protocol::table::{ENV_PLUGINS, ENV_TABLE};
use ulpm_sys::pty::{self, Modes};

use crate::check::{self, CheckError, Program};
use crate::options::Options;
use crate::os::{self, Image};
use crate::plugin::{self, PluginError};

/// Why the program was not started, or how it ended is not known.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It cannot run under ULPM.
    #[error("the program cannot be started under ULPM")]
    Check(#[from] CheckError),
    /// A plugin cannot be loaded.
    #[error("the program cannot be started with this plugin")]
    Plugin(#[from] PluginError),
    /// There is no coordinator, or it says no.
    #[error("the job cannot be opened")]
    Client(#[from] ClientError),
    /// Nowhere to put checkpoints.
    #[error("there is no home directory for checkpoints: choose one with --ckpt-dir")]
    NoCkptDir,
    /// The system refuses something.
    #[error("cannot {what}")]
    Os {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// execve(2) failed.
    #[error("{} cannot be executed", path.display())]
    Execute {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was moved, and its end is not known.
    #[error("{0}")]
    Lost(String),
}

impl LaunchError {
    /// Exit code of the tool.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Check(error) => error.exit_code(),
            Self::Plugin(error) => error.exit_code(),
            Self::Client(error) => error.exit_code(),
            Self::NoCkptDir => exit::CANT_CREATE,
            Self::Os { .. } => exit::OS,
            Self::Execute { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                exit::NOT_FOUND
            }
            Self::Execute { .. } => exit::CANNOT_EXECUTE,
            Self::Lost(_) => exit::SOFTWARE,
        }
    }
}

fn os_error<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> LaunchError {
    move |source| LaunchError::Os { what, source: source.into() }
}

/// Runs the program of the command line, and returns the code to exit with.
///
/// # Errors
///
/// [`LaunchError`]: the program was not started, or went on elsewhere and how it ended is not known.
pub fn run(options: &Options) -> Result<u8, LaunchError> {
    let Some(name) = options.command.first() else {
        return Err(CheckError::NotFound(OsString::new()).into());
    };
    let program = check::find(name)?;
    if let Some(table) = std::env::var_os(ENV_TABLE) {
        // We are in a job, and so will the program be.
        if options.verbose {
            eprintln!("ulpm_launch: already in the job of {}", table.display());
        }
        if !options.plugin.is_empty() {
            return Err(PluginError::InJob.into());
        }
        let image =
            image(&program, options, None, None).map_err(os_error("prepare the program"))?;
        return Err(LaunchError::Execute { path: program.path, source: image.execute().into() });
    }
    let plugins = plugin::environment(&options.plugin, options.plugin_log.as_deref())?;
    let address = options.coordinator.clone().unwrap_or_default();
    let request = Request::OpenJob(open_job(options)?);
    let mut client = Client::connect_or_start(&address)?;
    let opened = match client.call(&request)? {
        Reply::JobOpened(opened) => opened,
        other => return Err(ClientError::Unexpected(format!("{other:?}")).into()),
    };
    if options.verbose {
        eprintln!("ulpm_launch: job {} ({})", opened.name, opened.job);
    }
    let image = image(&program, options, Some(&opened), plugins)
        .map_err(os_error("prepare the program"))?;

    // The signals that come from here on are read one by one.
    let mask = SigSet::thread_get_mask().map_err(os_error("read the signal mask"))?;
    let all = SigSet::all();
    all.thread_block().map_err(os_error("block signals"))?;
    let signals =
        SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC).map_err(os_error("make a signalfd"))?;
    let terminal = os::terminal();
    let child = image
        .start(&mask)
        .map_err(|source| LaunchError::Execute { path: program.path.clone(), source })?;
    let mut link = JobLink::new(address.clone(), client, opened.job, opened.table.clone());
    link.started(child.as_raw());
    let status = wait(child, &signals)?;
    let say = |text: &str| eprintln!("ulpm_launch: job {}: {text}", opened.name);
    let outcome = link.outcome(Some(raw(status)), say);
    let was_killed = matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _));
    if was_killed || outcome != Outcome::Ended {
        if let Outcome::Moved(host, Stdio::Follow) = &outcome {
            let modes = terminal.map(|(_, modes)| modes);
            let followed = link.follow(host, Streams::own(), modes);
            return followed.map(exit_code).map_err(LaunchError::Lost);
        }
        put_terminal_right(terminal);
        if let Outcome::Again { path, token } = outcome {
            let _ = mask.thread_set_mask();
            let source = Recovering { job: opened.job, token }.exec(&address, &[], &path);
            return Err(LaunchError::Os { what: "become ulpm_restart", source });
        }
        if let Outcome::Moved(host, _) = outcome {
            // Nothing is to be passed on any more: ^C here ends this process, and the job goes on.
            let _ = mask.thread_set_mask();
            drop(signals);
            if io::stderr().is_terminal() {
                eprintln!(
                    "ulpm_launch: job {} goes on at {host}; ^C here leaves it alone",
                    opened.name
                );
            }
            return link.wait_elsewhere(&host).map(exit_code).map_err(LaunchError::Lost);
        }
    }
    link.exited(raw(status));
    Ok(exit_code(raw(status)))
}

fn open_job(options: &Options) -> Result<OpenJob, LaunchError> {
    let ckpt_dir = match &options.ckpt_dir {
        Some(dir) => std::path::absolute(dir).map_err(os_error("find the current directory"))?,
        None => place::ckpt_dir().ok_or(LaunchError::NoCkptDir)?,
    };
    let stream = |fd| match os::stream(fd) {
        Some((dev, ino)) => Stream { dev, ino, open: true },
        None => Stream::default(),
    };
    Ok(OpenJob {
        name: options.name.clone(),
        argv: options.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        cwd: std::env::current_dir().unwrap_or_default(),
        policy: Policy {
            ckpt_dir,
            interval: options.interval,
            keep: options.keep,
            ckpt_signal: options.ckpt_signal,
            stdio: options.stdio,
            recovery: Recovery {
                on_failure: options.on_failure,
                max_restarts: options.max_restarts,
            },
        },
        join: options.join.clone(),
        stdio: [stream(0), stream(1), stream(2)],
        group: getpgrp().as_raw(),
        session: getsid(None).map_or(0, Pid::as_raw),
    })
}

/// Puts together what execve(2) takes; with a job, our library goes along.
fn image(
    program: &Program,
    options: &Options,
    job: Option<&JobOpened>,
    plugins: Option<[Vec<u8>; 2]>,
) -> io::Result<Image> {
    let command = &options.command;
    let c_string = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::from);
    let mut argv = Vec::new();
    let mut path = program.path.as_os_str();
    if program.by_shell {
        argv.push(c_string(b"/bin/sh")?);
        argv.push(c_string(path.as_bytes())?);
        path = "/bin/sh".as_ref();
    } else {
        argv.extend(command.first().map(|word| c_string(word.as_bytes())).transpose()?);
    }
    for word in command.iter().skip(1) {
        argv.push(c_string(word.as_bytes())?);
    }
    let mut env = Vec::new();
    let baseline =
        options.cpu_baseline.map(|level| level.environment(|name| std::env::var_os(name)));
    let baseline = baseline.unwrap_or_default();
    for (name, value) in &baseline {
        if options.verbose {
            eprintln!("ulpm_launch: {name}={}", value.display());
        }
        env.push(c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat())?);
    }
    for (name, value) in std::env::vars_os() {
        if baseline.iter().any(|(ours, _)| name == *ours) {
            continue;
        }
        if job.is_some() && [ENV_TABLE, ENV_PLUGINS, "LD_PRELOAD"].iter().any(|ours| name == *ours)
        {
            continue;
        }
        env.push(c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat())?);
    }
    if let Some(job) = job {
        let mut preload = b"LD_PRELOAD=".to_vec();
        preload.extend(job.preload.as_os_str().as_bytes());
        if let Some([variable, beside]) = plugins {
            preload.extend(beside);
            env.push(c_string(&variable)?);
        }
        if let Some(old) = std::env::var_os("LD_PRELOAD").filter(|old| !old.is_empty()) {
            preload.push(b':');
            preload.extend(old.as_bytes());
        }
        env.push(c_string(&preload)?);
        let table = job.table.as_os_str().as_bytes();
        env.push(c_string(&[ENV_TABLE.as_bytes(), b"=", table].concat())?);
    }
    Ok(Image { path: c_string(path.as_bytes())?, argv, env })
}

/// Waits for the child's end, stops when it stops, and passes on what is sent to us alone.
fn wait(child: Pid, signals: &SignalFd) -> Result<WaitStatus, LaunchError> {
    let cannot = os_error("wait for the program");
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            Ok(status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) => return Ok(status),
            Ok(WaitStatus::Stopped(_, signal)) if signal != Signal::SIGSTOP => {
                // From the terminal: so that the shell sees its job stopped; it continues the whole
                // group. One that somebody has stopped by SIGSTOP is continued alone, or killed.
                let _ = kill(getpid(), Signal::SIGSTOP);
                continue;
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(cannot(errno)),
        }
        let info = match signals.read_signal() {
            Ok(Some(info)) => info,
            Ok(None) | Err(Errno::EINTR | Errno::EAGAIN) => continue,
            Err(errno) => return Err(cannot(errno)),
        };
        // The terminal sends to the whole group, so the program has it already.
        let by_process = info.ssi_code <= 0 && info.ssi_pid != child.as_raw().cast_unsigned();
        let number = info.ssi_signo.cast_signed();
        if by_process && number != libc::SIGCHLD {
            match Signal::try_from(number) {
                Ok(signal) => {
                    let _ = kill(child, signal);
                }
                Err(_) => os::send(child, number),
            }
        }
    }
}

fn put_terminal_right(terminal: Option<(std::fs::File, Modes)>) {
    let Some((tty, modes)) = terminal else { return };
    // We may be in the background now, for whoever took the foreground is gone; SIGTTOU is blocked.
    let _ = nix::unistd::tcsetpgrp(&tty, nix::unistd::getpgrp());
    let _ = pty::set_modes(tty.as_raw_fd(), &modes);
}

fn raw(status: WaitStatus) -> i32 {
    match status {
        WaitStatus::Exited(_, code) => (code & 0xff) << 8,
        WaitStatus::Signaled(_, signal, core) => signal as i32 | if core { 0x80 } else { 0 },
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_travels_as_a_number() {
        let pid = Pid::from_raw(1);
        let exited = WaitStatus::Exited(pid, 3);
        let killed = WaitStatus::Signaled(pid, Signal::SIGTERM, false);
        assert_eq!((exit_code(raw(exited)), exit_code(raw(killed))), (3, 143));
    }
}
