//! Why something cannot be done with a job.

use std::io;
use std::path::PathBuf;

use ulpm_control::codec::CodecError;
use ulpm_control::exit;
use ulpm_control::message::Refusal;
use ulpm_protocol::manager::Failure;

use crate::barrier::Missing;
use crate::generation::GenerationError;
use crate::process;

/// Why something cannot be done with a job.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Something else is being done with it.
    #[error("job {name} is busy ({doing}): try again when that is done")]
    Busy {
        /// The job.
        name: String,
        /// What is being done.
        doing: &'static str,
    },
    /// It is where it was launched.
    #[error("job {name} was launched here: there is nowhere to bring it home to")]
    AtHome {
        /// The job.
        name: String,
    },
    /// Its home cannot be reached from here.
    #[error(
        "job {name} was launched on {host}, whose coordinator listens nowhere: move it there with --migrate ssh://{host}, or bring it from there"
    )]
    NoWayHome {
        /// The job.
        name: String,
        /// The host.
        host: String,
    },
    /// There is no process left, or none yet.
    #[error("job {0} has no process: it has just ended, or has not started yet")]
    Empty(String),
    /// The freeze takes too long.
    #[error("job {name} did not stop within {secs} s: {detail}")]
    TimedOut {
        /// The job.
        name: String,
        /// The deadline.
        secs: u64,
        /// Who did not.
        detail: String,
    },
    /// A manager could not do what it was told.
    #[error("process {pid} ({command}) cannot be saved: {text}{}", errno_text(text, *errno))]
    Manager {
        /// Which process.
        pid: i32,
        /// Its command line.
        command: String,
        /// In the manager's words.
        text: String,
        /// Of what sort.
        failure: Failure,
        /// The cause, or 0.
        errno: i32,
    },
    /// A connection that is not to be lost.
    #[error("job {name} goes on: {text}")]
    Outside {
        /// The job.
        name: String,
        /// Which connection, in `ulpm_restart`'s words.
        text: String,
    },
    /// A process ended in between.
    #[error("process {pid} ({command}) ended while it was being saved: try again")]
    Died {
        /// Which process.
        pid: i32,
        /// Its command line.
        command: String,
    },
    /// Nothing is written any more.
    #[error("nothing was written for {secs} s: {what} hangs, or its device is too slow")]
    Stuck {
        /// The time.
        secs: u64,
        /// What is waited for.
        what: String,
    },
    /// A checkpoint directory cannot be written.
    #[error("the checkpoint cannot be written")]
    Generation(#[from] GenerationError),
    /// The system refuses something.
    #[error("{what}")]
    Io {
        /// What.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The target does not answer.
    #[error(
        "no coordinator answers at {target}: start one there with ulpm_coordinator --listen HOST:PORT"
    )]
    NoTarget {
        /// Where.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// The target answers, and does not know us, or we do not know it.
    #[error(
        "the coordinator at {target} and this host are not of one cluster: see --invite and --join-cluster of ulpm_coordinator"
    )]
    NotOurs {
        /// Where.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// The target is not reached by ssh.
    #[error("{target} is not reached")]
    Ssh {
        /// Where.
        target: String,
        /// Exit code for the tool.
        code: u8,
        /// Why.
        source: Remote,
    },
    /// The connection to the target is of no use.
    #[error(
        "the coordinator at {target} does not go on with the migration, so job {name} goes on here"
    )]
    TargetLost {
        /// The job.
        name: String,
        /// Where.
        target: String,
        /// Why.
        source: CodecError,
    },
    /// The target says no.
    #[error("{target} does not take job {name}, so it goes on here")]
    TargetRefused {
        /// The job.
        name: String,
        /// Where.
        target: String,
        /// Exit code for the tool.
        code: u8,
        /// Why.
        source: Remote,
    },
    /// What the check has found here is in the way.
    #[error("job {name} cannot move, so it goes on here")]
    Unfit {
        /// The job.
        name: String,
        /// Why.
        source: Remote,
    },
    /// The target has the job, and it does not run.
    #[error(
        "job {name} was handed over to {target} and did not go on there: restart it there with: ulpm_restart {image}"
    )]
    Lost {
        /// The job.
        name: String,
        /// Where.
        target: String,
        /// The image on the target.
        image: String,
        /// Why.
        source: Remote,
    },
    /// The target has the job, and has not said whether it runs.
    #[error(
        "job {name} was handed over to {target}, which has not confirmed it: look there with ulpm_command --status; if the job is not there, restart it there with: ulpm_restart {image}"
    )]
    InDoubt {
        /// The job.
        name: String,
        /// Where.
        target: String,
        /// The image on the target.
        image: String,
    },
    /// The restart takes too long.
    #[error("{missing} of {expected} restarted processes were not ready within {secs} s")]
    RestartTimedOut {
        /// How many are missing.
        missing: usize,
        /// Of how many.
        expected: usize,
        /// The deadline.
        secs: u64,
    },
    /// A restarted process ended before all were ready.
    #[error("process {virt} ended before the restart was complete")]
    RestartDied {
        /// Its virtual id.
        virt: i32,
    },
    /// The restart was given up.
    #[error("the restart was given up: {0}")]
    RestartGivenUp(String),
    /// Processes that SIGKILL does not end.
    #[error("{count} processes of job {name} do not end: they wait in the kernel")]
    Undying {
        /// The job.
        name: String,
        /// How many.
        count: usize,
    },
    /// It was saved and does not end. It does not go on either.
    #[error("the checkpoint {} is complete, but the job is not at its end", path.display())]
    SavedUndying {
        /// The checkpoint.
        path: PathBuf,
        /// Why.
        source: Box<JobError>,
    },
    /// It was moved.
    #[error("job {0} has been moved to another host")]
    Gone(String),
}

/// An error of another host, as a chain.
#[derive(Debug)]
pub struct Remote {
    text: String,
    source: Option<Box<Remote>>,
}

impl Remote {
    /// Makes one of an error and its causes, outermost first.
    #[must_use]
    pub fn new(chain: Vec<String>) -> Self {
        let fold = |source: Option<Box<Self>>, text| Some(Box::new(Self { text, source }));
        let error = chain.into_iter().rev().fold(None, fold);
        error
            .map_or_else(|| Self { text: "it gave no reason".into(), source: None }, |error| *error)
    }
}

impl std::fmt::Display for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Remote {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|cause| cause as _)
    }
}

/// What the system says, unless the manager has said so already.
fn errno_text(text: &str, errno: i32) -> String {
    if errno == 0 || text.contains(&format!("errno {errno}")) {
        String::new()
    } else {
        format!(": {}", io::Error::from_raw_os_error(errno))
    }
}

impl JobError {
    /// Exit code for the tool.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Busy { .. } | Self::Empty(_) | Self::Died { .. } | Self::Gone(_) => {
                exit::TEMPORARY
            }
            Self::NoTarget { .. } | Self::NoWayHome { .. } => exit::NO_HOST,
            Self::AtHome { .. } => exit::USAGE,
            Self::Ssh { code, .. } => *code,
            Self::NotOurs { .. } | Self::TargetLost { source: CodecError::Cluster, .. } => {
                exit::NO_PERMISSION
            }
            Self::TargetLost { source: CodecError::Io(error), .. }
                if error.kind() == io::ErrorKind::PermissionDenied =>
            {
                exit::NO_PERMISSION
            }
            Self::TargetLost {
                source: CodecError::Version { .. } | CodecError::NotAFrame(_),
                ..
            } => exit::PROTOCOL,
            Self::TargetLost { .. } => exit::NO_HOST,
            Self::TargetRefused { code, .. } => *code,
            Self::Unfit { .. } => exit::UNFIT,
            Self::Generation(error) if error.what == "create" => exit::CANT_CREATE,
            Self::Generation(_) | Self::Stuck { .. } => exit::IO,
            Self::Manager { failure: Failure::Write, .. } => exit::IO,
            Self::Io { .. } => exit::OS,
            _ => exit::FAILED,
        }
    }

    /// What travels to the tool.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        Refusal { code: self.exit_code(), chain: ulpm_control::chain(self) }
    }
}

/// Says who is missing, and what each does.
pub(crate) fn describe(missing: &Missing) -> String {
    let mut parts = Vec::new();
    for stranger in &missing.strangers {
        parts.push(format!(
            "process {} ({}), a child of {}, is not under ULPM: is it static, setuid or another user's?",
            stranger.pid,
            process::exe(stranger.pid.0),
            stranger.parent
        ));
    }
    for pid in &missing.silent {
        let why = if process::is_privileged(pid.0) {
            "its file is setuid or setgid; behind setpriv --no-new-privs the kernel does not heed that"
        } else {
            "is it static, of another user, or just starting?"
        };
        let exe = process::exe(pid.0);
        parts.push(format!("process {pid} ({exe}) has not loaded ULPM's library: {why}"));
    }
    for pid in &missing.running {
        let stuck = process::user_threads(pid.0).into_iter().find(|thread| thread.state == 'D');
        let why = match stuck {
            Some(thread) => format!(
                "thread {} ({}) waits in the kernel and cannot be interrupted",
                thread.pid, thread.comm
            ),
            None => "it does not answer".into(),
        };
        parts.push(format!("process {pid} ({}): {why}", process::short_command(pid.0)));
    }
    if parts.is_empty() {
        parts.push("processes come and go faster than they can be frozen".into());
    }
    parts.join("; ")
}
