//! Why a restart cannot go ahead.

use std::io;
use std::path::PathBuf;

use ulpm_control::manifest::ManifestError;
use ulpm_control::{Baseline, ClientError, exit, host};
use ulpm_image::ImageError;

/// Why a restart cannot go ahead.
///
/// A message states its own level and leaves `source` to the caller that prints the chain.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum RestartError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("image {} cannot be restarted", path.display())]
    Image { path: PathBuf, source: ImageError },
    #[error("the checkpoint cannot be used")]
    Manifest(#[from] ManifestError),
    #[error("images {} and {} are both of process {pid}", first.display(), second.display())]
    Twice { pid: i32, first: PathBuf, second: PathBuf },
    #[error("the job cannot be restarted here")]
    Coordinator(#[from] ClientError),
    #[error("the job table {} cannot be used: {text}", path.display())]
    Table { path: PathBuf, text: String },
    #[error("process {pid} cannot be restarted here: {text}")]
    Unfit { pid: i32, text: String },
    #[error("process {pid}: cannot open {}: bring the file here, or name its place with --map-path", path.display())]
    Open { pid: i32, path: PathBuf, source: io::Error },
    #[error(
        "this processor lacks {}, which the job's libraries may have chosen: start the job with ulpm_launch --cpu-baseline {}, or with GLIBC_TUNABLES={}, or restart with --force",
        .0.join(", "),
        Baseline::highest(&host::cpu().into_iter().collect()).name(),
        host::tunables_without(.0.iter().map(String::as_str))
    )]
    Cpu(Vec<String>),
    #[error(
        "this processor has more vector registers than process {pid} keeps room for when it looks up functions: start the job with LD_BIND_NOW=1, or restart with --force"
    )]
    Room { pid: i32 },
    #[error(
        "process {pid}: file {} has changed since the checkpoint, and no image carries it", path.display()
    )]
    Changed { pid: i32, path: PathBuf },
    #[error(
        "process {pid} has file {} open, and it has changed since the job was saved: {text}", path.display()
    )]
    FileChanged { pid: i32, path: PathBuf, text: String },
    #[error("file {}, which process {pid} has open and which came along with the job, cannot be put in place", path.display())]
    PutFile { pid: i32, path: PathBuf, source: io::Error },
    #[error(
        "{} was a named pipe and is none now: put it out of the way, or name another place with --map-path", path.display()
    )]
    NoFifo { path: PathBuf },
    #[error(
        "process {pid} held a lock on {}, which {holder} holds now: end that, or wait for it", path.display()
    )]
    Locked { pid: i32, path: PathBuf, holder: String },
    #[error("cannot {what}")]
    System { what: &'static str, source: io::Error },
    #[error("{text} cannot {what}")]
    Object { text: String, what: String, source: io::Error },
    #[error("process {pid} could not be rebuilt: {text}")]
    Rebuild { pid: i32, text: String },
    #[error("a socket of the job cannot be made again: {0}")]
    Socket(String),
    #[error("{0}")]
    Elsewhere(String),
    #[error("option --map-path {0:?}: it takes OLD=NEW, two absolute paths")]
    MapPath(String),
}

impl RestartError {
    /// The exit code, as `--help` lists them.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Read { source, .. } | Self::Open { source, .. }
                if source.kind() == io::ErrorKind::NotFound =>
            {
                exit::NO_INPUT
            }
            Self::Read { .. } => exit::IO,
            Self::Image { .. } | Self::Twice { .. } => exit::DATA,
            Self::Manifest(ManifestError::Missing(_)) => exit::NO_INPUT,
            Self::Manifest(ManifestError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                exit::NO_PERMISSION
            }
            Self::Manifest(_) => exit::DATA,
            Self::Coordinator(error) => error.exit_code(),
            Self::Table { .. }
            | Self::System { .. }
            | Self::Object { .. }
            | Self::Rebuild { .. }
            | Self::Socket(_) => exit::OS,
            Self::Unfit { .. }
            | Self::Changed { .. }
            | Self::FileChanged { .. }
            | Self::NoFifo { .. }
            | Self::Locked { .. }
            | Self::Cpu(_)
            | Self::Room { .. } => exit::CONFIG,
            Self::PutFile { .. } => exit::OS,
            Self::Open { .. } => exit::NO_PERMISSION,
            Self::Elsewhere(_) => exit::SOFTWARE,
            Self::MapPath(_) => exit::USAGE,
        }
    }
}

/// `cannot {what}: {last error}` for a call of libc's.
pub(crate) fn system(what: &'static str) -> RestartError {
    RestartError::System { what, source: io::Error::last_os_error() }
}
