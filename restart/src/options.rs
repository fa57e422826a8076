//! The command line.

use std::path::PathBuf;

use ulpm_control::link::Recovering;
use ulpm_control::message::{Files, Outside, Stdio};
use ulpm_control::{Address, place};

use crate::path_map::Mapping;

const AFTER: &str =
    "The exit status is that of the restarted program; 128+N when signal N ended it. When the \
job cannot be restarted, nothing of it is left running:
  64  the command line is wrong
  65  an image is damaged, or of another version or architecture
  66  a file that is needed does not exist
  69  there is no coordinator, and none can be started
  70  a fault in ULPM itself
  71  the operating system refused something
  74  reading failed
  76  the coordinator is of another version
  77  a file that is needed may not be opened
  78  this host lacks something that the job needs";

/// Restarts a job from a checkpoint.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "ulpm_restart", version, after_help = AFTER)]
pub struct Options {
    /// The coordinator: a socket path or HOST:PORT; started when there is none at a socket
    #[arg(short, long, value_name = "ADDR", env = place::ENV_COORDINATOR)]
    pub coordinator: Option<Address>,

    /// Directory for further checkpoints [default: the one that the checkpoint lies in]
    #[arg(short = 'd', long, value_name = "DIR")]
    pub ckpt_dir: Option<PathBuf>,

    /// Look for what was at OLD at NEW
    #[arg(long, value_name = "OLD=NEW", value_parser = parse_mapping)]
    pub map_path: Vec<Mapping>,

    /// Do not mind what this host's processor lacks
    #[arg(long)]
    pub force: bool,

    /// What becomes of a socket that was connected to a program outside the job
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub outside_sockets: Outside,

    /// What becomes of a regular file that the job has open, if it has changed since the checkpoint
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub files: Files,

    /// Keep the job's clocks by what its processes add to the host's, also where a time namespace could be made
    #[arg(long, env = "ULPM_NO_TIME_NAMESPACE", value_parser = clap::builder::FalseyValueParser::new())]
    pub no_time_namespace: bool,

    /// Only say whether the job can be restarted here
    #[arg(long)]
    pub check: bool,

    /// Only look for sockets that --outside-sockets refuse does not allow
    #[arg(long, hide = true)]
    pub only_outside: bool,

    /// Return as soon as the job runs
    #[arg(long)]
    pub detach: bool,

    /// Say what is done
    #[arg(short, long)]
    pub verbose: bool,

    /// The job waits for the commit of this hand-over
    #[arg(long, value_name = "TOKEN", hide = true)]
    pub hold: Option<String>,

    /// With --hold: where whoever has the job's terminal connects
    #[arg(long, value_name = "PATH", hide = true, requires = "hold")]
    pub session: Option<PathBuf>,

    /// The job has failed, and goes on from this checkpoint
    #[arg(long, value_name = "JOB:TOKEN", hide = true, conflicts_with_all = ["hold", "detach"])]
    pub recover: Option<Recovering>,

    /// What becomes of the job's standard streams when it moves on: `follow` connects them from there on to ours, `log`
    /// leaves them to the log that is kept there
    #[arg(long, value_name = "HOW", value_enum, default_value_t, overrides_with = "stdio")]
    pub stdio: Stdio,

    /// A checkpoint's directory, or all image files of one
    #[arg(value_name = "CHECKPOINT_DIR|IMAGE", required = true)]
    pub checkpoint: Vec<PathBuf>,
}

fn parse_mapping(text: &str) -> Result<Mapping, String> {
    text.parse().map_err(|error: crate::error::RestartError| error.to_string())
}
