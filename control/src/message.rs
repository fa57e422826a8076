//! What is said.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;
use crate::{OnFailure, Recovery, raw_path};

/// Names a job for as long as its coordinator's state directory exists; never used again.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct JobId(pub u64);

impl std::fmt::Display for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a standard stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// Whether it is open.
    pub open: bool,
}

/// What becomes of a job's standard streams when it moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Stdio {
    /// They stay connected to the terminal or the pipes with which the job was launched
    #[default]
    Follow,
    /// What the job writes goes to a log, and who wants to type attaches to it
    Log,
}

/// How a job wants to be checkpointed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Directory under which `NAME/GENERATION` lie.
    #[serde(with = "raw_path")]
    pub ckpt_dir: PathBuf,
    /// Seconds between periodic checkpoints.
    pub interval: Option<u64>,
    /// Complete generations that are kept, at least 1.
    pub keep: Option<u32>,
    /// Signal that stops user threads which have no other use for it.
    pub ckpt_signal: u32,
    /// What becomes of its standard streams when it moves.
    #[serde(default)]
    pub stdio: Stdio,
    /// What happens when it fails.
    #[serde(default)]
    pub recovery: Recovery,
}

/// Asks for a new job, or to add a tree to one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenJob {
    /// The name; one is made of the program's when there is none.
    pub name: Option<String>,
    /// Program and arguments, for display.
    pub argv: Vec<String>,
    /// Where it starts, for display.
    #[serde(with = "raw_path")]
    pub cwd: PathBuf,
    /// How to checkpoint it.
    pub policy: Policy,
    /// Name or id of a job to join.
    pub join: Option<String>,
    /// Standard streams.
    pub stdio: [Stream; 3],
    /// Process group of the launcher, which the program shares at first.
    pub group: i32,
    /// Session of the launcher.
    pub session: i32,
}

/// Announces that a checkpoint is about to be restarted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// The job's name; changed when a living job has it.
    pub name: String,
    /// Program and arguments, for display.
    pub argv: Vec<String>,
    /// Where it started, for display.
    #[serde(with = "raw_path")]
    pub cwd: PathBuf,
    /// Generation of the checkpoint.
    pub generation: u64,
    /// How to checkpoint it.
    pub policy: Policy,
    /// Virtual ids of every process that will say `Hello`.
    pub members: Vec<i32>,
    /// Virtual id of the root.
    pub root: i32,
    /// Standard streams.
    pub stdio: [Stream; 3],
    /// Given by a coordinator that receives a migration.
    pub hold_token: Option<String>,
    /// The job that is to go on from this checkpoint, if it has failed.
    pub recovers: Option<Recovers>,
}

/// A job that has failed, and an attempt to restart it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovers {
    /// Which job.
    pub job: JobId,
    /// From [`Reply::Recover`]: good for one restart.
    pub token: String,
}

/// The job that was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOpened {
    /// Its id.
    pub job: JobId,
    /// Its name.
    pub name: String,
    /// The job table.
    #[serde(with = "raw_path")]
    pub table: PathBuf,
    /// Our library, for LD_PRELOAD.
    #[serde(with = "raw_path")]
    pub preload: PathBuf,
}

/// From a tool, or another coordinator, to a coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// [`Reply::JobOpened`].
    OpenJob(OpenJob),
    /// The program runs. No reply.
    JobStarted {
        /// Which job.
        job: JobId,
        /// Real process id of the child.
        pid: i32,
    },
    /// The program ended. [`Reply::Done`].
    JobExited {
        /// Which job.
        job: JobId,
        /// As from wait(2).
        status: i32,
    },
    /// What becomes of a job whose root was ended by a signal: [`Reply::Ended`]; or [`Reply::Moved`] and, when it
    /// has ended elsewhere, [`Reply::Finished`]; or [`Reply::Note`] … and [`Reply::Recover`] or [`Reply::Ended`].
    Outcome {
        /// Which job.
        job: JobId,
        /// How its root ended, as from wait(2). `None` when it could not be restarted.
        status: Option<i32>,
    },
    /// [`Reply::JobOpened`], and when every process is there and goes on, [`Reply::Running`].
    Restart(Restart),
    /// The restart failed: every process of the new job is killed. [`Reply::Done`].
    RestartFailed {
        /// Why.
        text: String,
    },
    /// [`Reply::Status`].
    Status,
    /// Ends the jobs. [`Reply::Done`].
    Kill {
        /// Names or ids.
        jobs: Vec<String>,
    },
    /// [`Reply::Progress`], then [`Reply::Checkpointed`].
    Checkpoint {
        /// Names or ids; none: the only one.
        jobs: Vec<String>,
        /// Generations to keep, instead of the job's own choice.
        keep: Option<u32>,
        /// Write inside the freeze.
        freeze_until_durable: bool,
        /// Write inside the freeze, and end the jobs instead of letting them go on.
        kill: bool,
        /// What becomes of sockets that are connected to programs outside the job. Only with `kill`.
        outside: Outside,
    },
    /// [`Reply::Progress`], then [`Reply::Migrated`].
    Migrate {
        /// `HOST[:PORT]` of the other coordinator, or `ssh://[USER@]HOST[:PORT][/SOCKET]`; none: the host that has
        /// launched the job.
        target: Option<String>,
        /// Names or ids; none: the only one.
        jobs: Vec<String>,
        /// Leave the images on the target.
        keep_images: bool,
        /// Do not mind what the target's processor lacks.
        force: bool,
        /// What becomes of open files.
        files: Files,
        /// What becomes of sockets that are connected to programs outside the job.
        outside: Outside,
        /// How `ssh://` targets are reached.
        ssh: Ssh,
        /// What becomes of standard streams, where that is not what was said when the job was launched.
        stdio: Option<Stdio>,
    },
    /// Sets or ends periodic checkpoints. [`Reply::Done`].
    Interval {
        /// 0 ends them.
        secs: u64,
        /// Names or ids; none: the only one.
        jobs: Vec<String>,
    },
    /// The log of a job that came here by migration: [`Reply::Output`] …, [`Reply::Done`].
    Output {
        /// Name or id.
        job: Option<String>,
        /// Bytes to skip.
        offset: u64,
        /// Go on until the job has ended.
        follow: bool,
    },
    /// The coordinator ends; programs go on. [`Reply::Done`].
    Quit,
    /// From a coordinator that wants to move a job here. From here on, both sides send [`PeerMessage`].
    Offer(Box<Offer>),
    /// The connection's rest is images: chunks of the process's virtual id (`i32`), a `u32` length, and as many bytes. A
    /// length of 0 ends an image, which is answered by the byte 1 when all of it is there.
    Images {
        /// From [`PeerMessage::Accept`].
        token: String,
    },
    /// From the coordinator that a job came from: [`Reply::Finished`] when the job has ended.
    Follow {
        /// From [`PeerMessage::Accept`].
        token: String,
    },
    /// From a newcomer with an invitation to the cluster, who may ask for nothing else. [`Reply::Joined`].
    Join {
        /// The name that it is to have.
        name: String,
        /// A certificate signing request.
        request: Vec<u8>,
    },
    /// Whether the jobs could move. [`Reply::Checked`].
    Check {
        /// `HOST[:PORT]` of the other coordinator.
        target: String,
        /// Names or ids; none: the only one.
        jobs: Vec<String>,
        /// Do not mind what the target's processor lacks.
        force: bool,
        /// What becomes of open files.
        files: Files,
        /// What becomes of sockets that are connected to programs outside the job.
        outside: Outside,
        /// How `ssh://` targets are reached.
        ssh: Ssh,
    },
    /// From another coordinator: whether it would be told [`PeerMessage::Accept`]. [`Reply::Found`].
    CheckOffer(Box<Offer>),
    /// From a target that has only the image of a job: [`Reply::Decision`].
    Ask {
        /// From [`PeerMessage::Accept`].
        token: String,
    },
    /// From whoever has launched a job that was moved: [`Reply::Done`], and from there on both sides say what is in
    /// [`session`](crate::session).
    Streams {
        /// Which job.
        job: JobId,
    },
    /// The same from the coordinator that a job came from.
    Session {
        /// From [`PeerMessage::Accept`].
        token: String,
    },
    /// The same from somebody who looks in.
    Attach {
        /// Name or id; none: the only one.
        job: Option<String>,
        /// The coordinator that has it, `HOST[:PORT]` or `ssh://[USER@]HOST[:PORT][/SOCKET]`; none: this one.
        at: Option<String>,
        /// How `ssh://` is reached.
        ssh: Ssh,
    },
    /// Says what is to happen when the jobs fail. [`Reply::Done`].
    OnFailure {
        /// What.
        on_failure: OnFailure,
        /// Restarts within an hour, if that is to change.
        max_restarts: Option<u32>,
        /// Names or ids; none: the only one.
        jobs: Vec<String>,
    },
}

/// From a coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// It cannot be done.
    Error(Refusal),
    /// The job that was opened.
    JobOpened(JobOpened),
    /// Every restarted process goes on.
    Running,
    /// The job has ended here.
    Ended,
    /// The job was moved.
    Moved {
        /// Where to.
        host: String,
        /// What becomes of its standard streams.
        stdio: Stdio,
    },
    /// A moved job has ended.
    Finished {
        /// As from wait(2), if it is known.
        status: Option<i32>,
        /// What is to be told to the user, or nothing.
        text: String,
    },
    /// Where a long request stands.
    Progress(Progress),
    /// All jobs.
    Status(Status),
    /// What was saved.
    Checkpointed(Vec<Checkpointed>),
    /// What was moved.
    Migrated(Vec<Migrated>),
    /// A part of a log.
    Output(Vec<u8>),
    /// The newcomer is a member of the cluster.
    Joined {
        /// Its certificate.
        certificate: Vec<u8>,
        /// Certificates that count no more.
        revoked: Option<Vec<u8>>,
    },
    /// Whether jobs could move.
    Checked(Vec<Checked>),
    /// What a target says of an offer.
    Found(Vec<Finding>),
    /// Whether a job is the target's; nothing if that is not decided, or not known.
    Decision(Option<bool>),
    /// Something to be told to whoever waits for the job.
    Note(String),
    /// The job has failed, and nothing of it is left: whoever is told this becomes `ulpm_restart`.
    Recover {
        /// The generation's directory.
        #[serde(with = "raw_path")]
        path: PathBuf,
        /// For [`Recovers`].
        token: String,
    },
}

/// Whether something is in the way of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing is.
    Ok,
    /// The job can move, and something will not be as it was, or may not.
    Warning,
    /// It cannot move.
    No,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::No => "no",
        })
    }
}

/// What one of the checks before a move has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at: `processor`, `memory`, …
    pub subject: String,
    /// Whether it is in the way.
    pub verdict: Verdict,
    /// What was found.
    pub text: String,
    /// What can be done about it; empty where there is nothing to do.
    pub way_out: String,
}

impl Finding {
    /// The subject of those that the owner of the target has set limits to.
    pub const LIMITS: &str = "limits";

    /// Cause and way out.
    #[must_use]
    pub fn sentence(&self) -> String {
        if self.way_out.is_empty() {
            self.text.clone()
        } else {
            format!("{}: {}", self.text, self.way_out)
        }
    }

    /// Exit code and words for what is in the way; `None` where nothing is.
    #[must_use]
    pub fn refusal(findings: &[Self]) -> Option<(u8, String)> {
        let mut code = crate::exit::LIMIT;
        let mut sentences = Vec::new();
        for finding in findings.iter().filter(|finding| finding.verdict == Verdict::No) {
            if finding.subject != Self::LIMITS {
                code = crate::exit::UNFIT;
            }
            sentences.push(finding.sentence());
        }
        (!sentences.is_empty()).then(|| (code, sentences.join("; ")))
    }
}

/// Whether a job could move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Name of the job.
    pub job: String,
    /// Its id.
    pub id: JobId,
    /// Where to.
    pub target: String,
    /// The worst of what was found.
    pub verdict: Verdict,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// Why something cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Exit code for the tool.
    pub code: u8,
    /// The error and its causes.
    pub chain: Vec<String>,
}

/// Where a long request stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Name of the job.
    pub job: String,
    /// What is going on: `freeze`, `write`, `send`, `restart`.
    pub phase: String,
    /// Bytes done.
    pub done: u64,
    /// About how many there are; 0 if nobody knows.
    pub total: u64,
}

/// All that a coordinator holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its host's name.
    pub host: String,
    /// Its process id.
    pub pid: u32,
    /// Its release.
    pub version: String,
    /// Its socket.
    #[serde(with = "raw_path")]
    pub socket: PathBuf,
    /// Where it listens for other hosts.
    pub listen: Option<String>,
    /// The jobs that run here.
    pub jobs: Vec<Job>,
    /// The jobs that were moved from here and have not ended.
    pub moved: Vec<MovedJob>,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Its name.
    pub name: String,
    /// `starting`, `running`, `checkpointing`, `migrating`, `restarting`, `recovering`.
    pub state: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Directory of its checkpoints.
    #[serde(with = "raw_path")]
    pub ckpt_dir: PathBuf,
    /// The newest complete generation, 0 if there is none.
    pub generation: u64,
    /// Seconds between periodic checkpoints.
    pub interval: Option<u64>,
    /// Why the last periodic checkpoint failed.
    pub last_error: Option<String>,
    /// What happens when it fails.
    pub on_failure: OnFailure,
    /// Restarts within the last hour.
    pub restarts: u32,
    /// As many within an hour are allowed.
    pub max_restarts: u32,
    /// What was said of its last failure.
    pub last_failure: Option<String>,
    /// Whether its output goes to a log here.
    pub has_output: bool,
    /// Its processes.
    pub processes: Vec<Process>,
}

/// What belongs to the user who asks, when a coordinator calls ssh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ssh {
    /// The program.
    pub program: String,
    /// Socket of the agent that has the keys (SSH_AUTH_SOCK).
    pub agent: Option<String>,
    /// `ulpm_coordinator` on the other host, or its directory.
    pub remote_path: Option<String>,
}

/// A job that was moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedJob {
    /// Its id here.
    pub id: JobId,
    /// Its name.
    pub name: String,
    /// Where it went.
    pub host: String,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The kernel's id.
    pub real: i32,
    /// The id that the program sees.
    pub virt: i32,
    /// Its command line.
    pub command: String,
    /// As in ps(1).
    pub state: String,
    /// Bytes in memory.
    pub rss: u64,
    /// Number of threads, ours not counted.
    pub threads: u32,
}

/// What was saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpointed {
    /// Name of the job.
    pub job: String,
    /// Its id.
    pub id: JobId,
    /// The generation's directory.
    #[serde(with = "raw_path")]
    pub path: PathBuf,
    /// Its number.
    pub generation: u64,
    /// Processes in it.
    pub processes: u32,
    /// Bytes of all images.
    pub bytes: u64,
    /// How long the job stood still.
    pub freeze_ms: f64,
    /// From the request to a durable checkpoint.
    pub total_ms: f64,
}

/// What was moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Migrated {
    /// Name of the job.
    pub job: String,
    /// Its id on the source.
    pub id: JobId,
    /// Its id on the target.
    pub target_id: JobId,
    /// The target.
    pub target: String,
    /// Processes.
    pub processes: u32,
    /// Bytes of all images.
    pub bytes: u64,
    /// From the freeze here to the thaw there.
    pub freeze_ms: f64,
    /// From the request to the thaw there.
    pub total_ms: f64,
    /// Where the images lie on the target, if they were kept.
    pub images: Option<String>,
    /// What the check before it has warned of.
    pub warnings: Vec<String>,
}

/// What becomes of a regular file that a job has open, if it is not as it was when the job was saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Files {
    /// The job goes on with the file as it is now
    #[default]
    Continue,
    /// One that the job writes to, and that has become longer, is cut to its old length
    Truncate,
    /// The job is not restarted
    Refuse,
    /// The file goes along with a job that moves: made where it is missing, put in place of one that the job writes to
    Ship,
}

/// What becomes of a socket that was connected to a program outside the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Outside {
    /// The program finds that the other end is gone
    #[default]
    Reset,
    /// A TCP connection goes on, and its other end notices nothing (TCP_REPAIR): root only, and where its own address
    /// is still this host's; all others as with reset
    Repair,
    /// The job is not restarted
    Refuse,
}

/// The word for a choice on a command line.
#[must_use]
pub fn word(choice: &impl clap::ValueEnum) -> String {
    choice.to_possible_value().map_or_else(String::new, |value| value.get_name().into())
}

/// A file or directory that a job needs where it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needed {
    /// Its path.
    pub path: String,
    /// What has to be allowed: bits as for access(2).
    pub access: i32,
}

/// A job that wants to move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The release of the source.
    pub version: String,
    /// Name of the source's host.
    pub host: String,
    /// Version of the images.
    pub format: u16,
    /// Machine, as in uname(2).
    pub arch: String,
    /// Release of the kernel.
    pub kernel: String,
    /// What the job uses of the kernel that another may not have, by the names of `host::KERNEL`.
    pub kernel_features: Vec<String>,
    /// Features of the processor that programs may have chosen.
    pub cpu: Vec<String>,
    /// All of its features that programs may choose.
    pub cpu_here: Vec<String>,
    /// Effective user.
    pub uid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The job's name.
    pub name: String,
    /// How to checkpoint it.
    pub policy: Policy,
    /// How many processes it has, about.
    pub processes: u32,
    /// Bytes of memory, about.
    pub bytes: u64,
    /// How many threads they have together, about.
    pub threads: u32,
    /// One more than the highest descriptor in any of them.
    pub descriptors: u64,
    /// Files and directories that the job has open, or has mapped shared.
    pub paths: Vec<Needed>,
    /// Programs and libraries that it runs. Their memory goes along.
    pub programs: Vec<String>,
    /// Leave the images on the target.
    pub keep_images: bool,
    /// Do not mind what the target's processor lacks.
    pub force: bool,
    /// What becomes of open files.
    pub files: Files,
    /// What becomes of sockets that are connected to programs outside the job.
    pub outside: Outside,
    /// Certificates that count no more, as the source knows.
    pub revoked: Option<Vec<u8>>,
    /// The port at which the source can be asked for its decision, if there is one.
    pub port: Option<u16>,
    /// Where the job was launched, if not at the source.
    pub home: Option<Home>,
}

/// Where a job was launched that has moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// Name of that host.
    pub host: String,
    /// `HOST:PORT` of its coordinator, if that listens.
    pub address: Option<String>,
    /// Names the hand-over by which the job left it.
    pub token: String,
}

/// Between two coordinators, after [`Request::Offer`].
///
/// ```text
///  source                      target
///    │── Request::Offer ─────────▶│
///    │◀──────── Accept or Refuse ─│
///    │── Manifest ───────────────▶│  when all images were sent
///    │◀──────────────────── Alive ─│  every two seconds
///    │◀─────── Prepared or Refuse ─│  every process waits for its thaw
///    │── Commit or Abort ────────▶│  the source never goes on after Commit
///    │◀─────── Running or Refuse ─│
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// Images may come.
    Accept {
        /// Names this hand-over.
        token: String,
        /// Certificates that count no more, as the target knows.
        revoked: Option<Vec<u8>>,
        /// What the check has found.
        findings: Vec<Finding>,
    },
    /// It cannot go on.
    Refuse {
        /// Exit code for the tool.
        code: u8,
        /// The error and its causes.
        chain: Vec<String>,
        /// Where a complete image lies on the target, if one does.
        image: Option<String>,
    },
    /// All images were sent.
    Manifest(Box<Manifest>),
    /// Every process is rebuilt and waits.
    Prepared {
        /// Where the complete image lies on the target.
        image: String,
    },
    /// The job is the target's.
    Commit,
    /// The job goes on at the target.
    Running {
        /// Its id there.
        job: JobId,
        /// Where the images are, if they were kept.
        images: Option<String>,
    },
    /// The job goes on at the source.
    Abort,
    /// Target: it is at work still. Said every two seconds until the job runs.
    Alive,
}
