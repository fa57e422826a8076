//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use ulpm_control::message::Stdio;
use ulpm_control::recovery::MAX_RESTARTS;
use ulpm_control::{Address, Baseline, OnFailure, place};

const AFTER: &str =
    "The exit status is that of PROGRAM, also when it was migrated and ended on another \
host; 128+N when signal N ended it. When PROGRAM cannot be started:
  64  the command line is wrong
  66  the job to join, or a plugin, does not exist
  69  there is no coordinator, and none can be started
  70  a fault in ULPM itself, or how PROGRAM ended elsewhere is not known
  71  the operating system refused something
  73  the checkpoint directory cannot be created
  76  the coordinator, or a plugin, is of another version
  78  PROGRAM cannot run under ULPM (static, setuid, other machine), or a plugin is none
  126 PROGRAM cannot be executed
  127 PROGRAM was not found";

/// Starts PROGRAM so that it can be checkpointed and migrated.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "ulpm_launch", version, after_help = AFTER)]
pub struct Options {
    /// The coordinator: a socket path or HOST:PORT; started when there is none at a socket
    #[arg(short, long, value_name = "ADDR", env = place::ENV_COORDINATOR)]
    pub coordinator: Option<Address>,

    /// Directory for checkpoints [default: $XDG_STATE_HOME/ulpm or ~/.local/state/ulpm]
    #[arg(short = 'd', long, value_name = "DIR")]
    pub ckpt_dir: Option<PathBuf>,

    /// Checkpoint every SECS seconds
    #[arg(short, long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    pub interval: Option<u64>,

    /// Keep N checkpoints [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: Option<u32>,

    /// What happens when a process of the job is ended by SIGKILL, or by a signal that tells of a crash, which no process
    /// of the job has sent: `restart` ends what is left of it, and goes on from the last checkpoint
    #[arg(long, value_name = "restart|none", default_value_t)]
    pub on_failure: OnFailure,

    /// With --on-failure: give up after N restarts within an hour
    #[arg(long, value_name = "N", default_value_t = MAX_RESTARTS)]
    pub max_restarts: u32,

    /// Name of the job [default: made of the program's]
    #[arg(long, value_name = "NAME", conflicts_with = "join")]
    pub name: Option<String>,

    /// Add the program to a job that runs
    #[arg(long, value_name = "JOB", conflicts_with_all = ["ckpt_dir", "interval", "keep", "on_failure", "max_restarts"])]
    pub join: Option<String>,

    /// Let the program use no more of the processor than this level has, so that it can move to older ones: by what
    /// glibc, OpenBLAS, OpenSSL, MKL, oneDNN, PyTorch, Arrow, GnuTLS and NumPy heed in the environment. Programs that
    /// ask the processor themselves, such as Java, node and libgmp, are not bound by it
    #[arg(long, value_name = "LEVEL", value_enum)]
    pub cpu_baseline: Option<Baseline>,

    /// What becomes of the program's terminal or pipes when it moves to another host
    #[arg(long, value_name = "HOW", value_enum, default_value_t, overrides_with = "stdio")]
    pub stdio: Stdio,

    /// Signal that stops threads, where the program has no use for it
    #[arg(long, value_name = "SIG", default_value = "USR2", value_parser = parse_signal)]
    pub ckpt_signal: u32,

    /// Load a plugin into every process of the job: a shared object, or the name of one that comes with ULPM. May be given
    /// several times; they are called in this order
    #[arg(long, value_name = "PATH")]
    pub plugin: Vec<PathBuf>,

    /// Where plugins log
    #[arg(long, value_name = "FILE", requires = "plugin")]
    pub plugin_log: Option<PathBuf>,

    /// Say what is done
    #[arg(short, long)]
    pub verbose: bool,

    /// The program and its arguments
    #[arg(value_name = "PROGRAM", required = true, trailing_var_arg = true)]
    pub command: Vec<OsString>,
}

/// Reads a signal's name or number.
fn parse_signal(text: &str) -> Result<u32, String> {
    let number = match text.parse::<i32>() {
        Ok(number) => number,
        Err(_) => {
            let upper = text.to_ascii_uppercase();
            let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
            let signal: Signal = name.parse().map_err(|_| format!("there is no signal {text}"))?;
            signal as i32
        }
    };
    let kernel = [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGCONT, Signal::SIGCHLD];
    let fault = [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGTRAP];
    if kernel.iter().chain(&fault).any(|&signal| signal as i32 == number)
        || !(1..=64).contains(&number)
    {
        return Err(format!(
            "signal {text} cannot be used: take USR2 or another that programs do not need"
        ));
    }
    if number == 32 || number == 33 {
        return Err(format!("signal {text} belongs to the C library"));
    }
    u32::try_from(number).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[test]
    fn options_end_where_the_program_begins() {
        Options::command().debug_assert();
        let options = Options::parse_from(["x", "-i", "5", "ls", "-l", "--name", "a"]);
        assert_eq!(options.interval, Some(5));
        assert_eq!(options.command, ["ls", "-l", "--name", "a"]);
        let options = Options::parse_from(["x", "--", "-odd", "--"]);
        assert_eq!(options.command, ["-odd", "--"]);
        Options::try_parse_from(["x", "--no-such-option", "ls"]).unwrap_err();
    }

    #[test]
    fn signals_have_names_and_numbers_and_some_are_refused() {
        assert_eq!(parse_signal("usr2"), Ok(12));
        assert_eq!(parse_signal("SIGUSR1"), Ok(10));
        assert_eq!(parse_signal("40"), Ok(40));
        for bad in ["KILL", "33", "0", "65", "nonsense", "SEGV"] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }
}
