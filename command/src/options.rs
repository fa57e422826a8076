//! The command line.

use std::path::PathBuf;

use ulpm_control::message::{Files, Outside, Stdio};
use ulpm_control::{Address, OnFailure, place};

/// Keys that are typed one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys(pub Vec<u8>);

impl Default for Keys {
    /// Ctrl-P Ctrl-Q.
    fn default() -> Self {
        Self(vec![16, 17])
    }
}

/// Reads `ctrl-p,ctrl-q`, `x` and the like.
fn parse_keys(text: &str) -> Result<Keys, String> {
    let key = |word: &str| {
        let word = word.trim();
        let lower = word.to_ascii_lowercase();
        match (lower.strip_prefix("ctrl-").map(str::as_bytes), word.as_bytes()) {
            (Some([key @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]), _) => {
                Ok(key & 31)
            }
            (None, [key @ b' '..=b'~']) => Ok(*key),
            _ => Err(format!("there is no key {word:?}: write a letter, or ctrl- and a letter")),
        }
    };
    text.split(',').map(key).collect::<Result<_, _>>().map(Keys)
}

/// Asks a coordinator to checkpoint, migrate, list and end jobs.
///
/// JOB is a job's name or id. Without one, the only job is meant; where several run, an error lists them.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "ulpm_command", version, after_help = ulpm_control::exit::HELP)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(
    ["status", "checkpoint", "migrate", "home", "check", "kill", "quit", "output", "attach", "inspect", "interval", "on_failure"]
)))]
// One of them at a time; only --checkpoint and --kill go together.
#[command(group(clap::ArgGroup::new("alone").args(
    ["status", "checkpoint", "migrate", "home", "check", "quit", "output", "attach", "inspect", "interval", "on_failure"]
)))]
pub struct Options {
    /// The coordinator: a socket path or HOST:PORT
    #[arg(short, long, value_name = "ADDR", env = place::ENV_COORDINATOR)]
    pub coordinator: Option<Address>,

    /// Host of the coordinator, instead of -c
    #[arg(short = 'n', long, value_name = "ADDRESS")]
    pub address: Option<String>,

    /// Port of the coordinator, instead of -c [default with -n: 3490]
    #[arg(short, long, value_name = "PORT")]
    pub port: Option<u16>,

    /// Print results as JSON
    #[arg(long)]
    pub json: bool,

    /// List jobs and their processes
    #[arg(long)]
    pub status: bool,

    /// Save the jobs; print the directory of the checkpoint, which is durable then
    #[arg(long)]
    pub checkpoint: bool,

    /// Move the jobs to the coordinator of another host, and go on there. HOST or HOST:PORT is of the cluster; what
    /// begins with ssh:// is reached by your own ssh, which starts a coordinator there if there is none
    #[arg(long, value_name = "HOST[:PORT] or ssh://[USER@]HOST[:PORT][/SOCKET]")]
    pub migrate: Option<String>,

    /// Bring a job back to the host that has launched it
    #[arg(long, value_name = "JOB", conflicts_with = "jobs")]
    pub home: Option<String>,

    /// Say whether the jobs could move there, and what is in the way; nothing is stopped. --migrate looks first, too
    #[arg(long, value_name = "HOST")]
    pub check: Option<String>,

    /// End the jobs, as by SIGKILL; with --checkpoint: as soon as they are saved, without their going on
    /// in between (if one cannot be saved, it goes on)
    #[arg(long, conflicts_with_all = ["status", "migrate", "home", "check", "quit", "output", "attach", "inspect", "interval", "on_failure"])]
    pub kill: bool,

    /// End the coordinator; programs go on, and the next coordinator finds them
    #[arg(short, long)]
    pub quit: bool,

    /// Print what a job has written since it came here by migration
    #[arg(long, value_name = "JOB", conflicts_with = "jobs")]
    pub output: Option<String>,

    /// Connect this terminal, or standard input and output, to a job that has come here by migration, until the job ends
    /// or the detach keys are typed. The exit status is that of the job if it ends, and 0 behind the detach keys. With -n the
    /// job is on that host; ssh://… as its ADDRESS is reached by your own ssh
    #[arg(long, value_name = "JOB", conflicts_with = "jobs")]
    pub attach: Option<String>,

    /// With --attach: the keys that end it and leave the job alone: letters, or ctrl- and a letter, with commas between
    #[arg(long, value_name = "KEYS", value_parser = parse_keys)]
    pub detach_keys: Option<Keys>,

    /// Show what is in an image, or in a checkpoint's directory
    #[arg(long, value_name = "IMAGE", conflicts_with = "jobs")]
    pub inspect: Option<PathBuf>,

    /// Checkpoint the jobs every SECS seconds; 0: no more
    #[arg(long, value_name = "SECS")]
    pub interval: Option<u64>,

    /// What happens from now on when a process of the jobs is ended by SIGKILL, or by a signal that tells of a crash, which
    /// no process of the job has sent
    #[arg(long, value_name = "restart|none")]
    pub on_failure: Option<OnFailure>,

    /// With --on-failure: give up after N restarts within an hour
    #[arg(long, value_name = "N")]
    pub max_restarts: Option<u32>,

    /// With --checkpoint: keep N checkpoints from now on this time, instead of the job's own choice
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: Option<u32>,

    /// With --checkpoint: let the jobs go on only when the checkpoint is durable
    #[arg(long)]
    pub freeze_until_durable: bool,

    /// With --migrate or --home: what becomes of the jobs' terminals and pipes [default: what ulpm_launch was told, which
    /// is follow where it was told nothing]
    #[arg(long, value_name = "HOW", value_enum)]
    pub stdio: Option<Stdio>,

    /// With --migrate or --home: leave the images on the target
    #[arg(short = 's', long)]
    pub keep_images: bool,

    /// With --migrate and --check: do not mind what the target's processor lacks
    #[arg(long)]
    pub force: bool,

    /// With --migrate and --check: what becomes of a file that the job has open, if it is not the same on the target
    /// [default: continue]
    #[arg(long, value_name = "HOW", value_enum)]
    pub files: Option<Files>,

    /// With --migrate and --check: what becomes of a socket that is connected to a program outside the job
    /// [default: reset]; with --checkpoint --kill: `repair` saves what `ulpm_restart --outside-sockets repair` needs, and `refuse` ends
    /// nothing where there is one
    #[arg(long, value_name = "HOW", value_enum)]
    pub outside_sockets: Option<Outside>,

    /// With --migrate or --check and ssh://: ulpm_coordinator on that host, or its directory [default: what is in the
    /// PATH that ssh gives, or where it is here]
    #[arg(long, value_name = "PATH")]
    pub remote_path: Option<String>,

    /// With --output: go on until the job has ended
    #[arg(long)]
    pub follow: bool,

    /// Say what is going on, also where standard error is no terminal
    #[arg(short, long)]
    pub verbose: bool,

    /// Names or ids of jobs
    #[arg(value_name = "JOB")]
    pub jobs: Vec<String>,
}

impl Options {
    /// Checks that no option is given which has no meaning for what is asked. (clap's `requires` does
    /// not say so where the missing option excludes the one that is there.)
    ///
    /// # Errors
    ///
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        let leaves = self.migrate.is_some() || self.home.is_some();
        let moves = leaves || self.check.is_some();
        let misplaced = [
            (self.keep.is_some() && !self.checkpoint, "--keep", "--checkpoint"),
            (
                self.freeze_until_durable && !self.checkpoint,
                "--freeze-until-durable",
                "--checkpoint",
            ),
            (self.keep_images && !leaves, "--keep-images", "--migrate or --home"),
            (self.stdio.is_some() && !leaves, "--stdio", "--migrate or --home"),
            (self.detach_keys.is_some() && self.attach.is_none(), "--detach-keys", "--attach"),
            (self.force && !moves, "--force", "--migrate or --check"),
            (self.files.is_some() && !moves, "--files", "--migrate or --check"),
            (
                self.outside_sockets.is_some() && !moves && !(self.checkpoint && self.kill),
                "--outside-sockets",
                "--migrate, --check, or --checkpoint --kill,",
            ),
            (
                self.remote_path.is_some() && self.ssh_target().is_none(),
                "--remote-path",
                "--migrate, --check or --attach with ssh://",
            ),
            (
                self.max_restarts.is_some() && self.on_failure.is_none(),
                "--max-restarts",
                "--on-failure",
            ),
            (self.follow && self.output.is_none(), "--follow", "--output"),
            (self.quit && !self.jobs.is_empty(), "JOB", "something other than --quit"),
        ];
        if let Some(target) = self.migrate.as_deref().or(self.check.as_deref())
            && !target.starts_with("ssh://")
        {
            place::check_port(target)?;
        }
        match misplaced.iter().find(|(wrong, ..)| *wrong) {
            Some((_, option, with)) => Err(format!("{option} goes with {with} only")),
            None => Ok(()),
        }
    }

    /// The target, if ssh leads to it.
    #[must_use]
    pub fn ssh_target(&self) -> Option<&str> {
        let at = self.address.as_deref().filter(|_| self.attach.is_some());
        let target = self.migrate.as_deref().or(self.check.as_deref()).or(at);
        target.filter(|target| target.starts_with("ssh://"))
    }

    /// The coordinator that is meant.
    #[must_use]
    pub fn address(&self) -> Address {
        // The variable is only a default.
        if self.address.is_none()
            && self.port.is_none()
            && let Some(address) = &self.coordinator
        {
            return address.clone();
        }
        match (&self.address, self.port) {
            (None, None) => Address::default(),
            (host, port) => {
                let host = host.as_deref().unwrap_or("localhost");
                let host = if host.contains(':') && !host.starts_with('[') {
                    format!("[{host}]")
                } else {
                    host.to_owned()
                };
                Address::Tcp(format!("{host}:{}", port.unwrap_or(place::DEFAULT_PORT)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    fn parse(args: &[&str]) -> Result<Options, clap::Error> {
        Options::try_parse_from(std::iter::once("x").chain(args.iter().copied()))
    }

    #[test]
    fn one_thing_is_asked_at_a_time() {
        Options::command().debug_assert();
        parse(&[]).unwrap_err();
        parse(&["--status", "--kill"]).unwrap_err();
        parse(&["--kill", "--interval", "3"]).unwrap_err();
        parse(&["--checkpoint", "--migrate", "b"]).unwrap_err();
        parse(&["--kill"]).unwrap();
        parse(&["--check", "b", "--migrate", "b"]).unwrap_err();
        parse(&["--check", "b", "--force", "a-1"]).unwrap().check().unwrap();
        let options = parse(&["--kill", "a-1", "--checkpoint"]).unwrap();
        assert!(options.kill && options.checkpoint);
        let options = parse(&["--migrate", "b:7", "a-1", "a-2", "-s"]).unwrap();
        assert_eq!(options.jobs, ["a-1", "a-2"]);
        assert!(options.keep_images);
        parse(&["--status", "-s"]).unwrap().check().unwrap_err();
        parse(&["--migrate", "b", "-s"]).unwrap().check().unwrap();
        parse(&["--checkpoint", "--files", "ship"]).unwrap().check().unwrap_err();
        parse(&["--checkpoint", "--outside-sockets", "repair"]).unwrap().check().unwrap_err();
        for with in [&["--checkpoint", "--kill"], &["--migrate", "b"]] {
            let options = parse(&[with, &["--outside-sockets", "repair"][..]].concat()).unwrap();
            options.check().unwrap();
        }
        parse(&["--migrate", "b:65536"]).unwrap().check().unwrap_err();
        parse(&["--migrate", "b", "--remote-path", "/x"]).unwrap().check().unwrap_err();
        parse(&["--migrate", "ssh://b", "--remote-path", "/x"]).unwrap().check().unwrap();
        let options = parse(&["--migrate", "b", "--files", "ship"]).unwrap();
        options.check().unwrap();
        assert_eq!(options.files, Some(Files::Ship));
    }

    #[test]
    fn keys_are_written_as_elsewhere() {
        assert_eq!(parse_keys("ctrl-p,ctrl-q"), Ok(Keys::default()));
        assert_eq!(parse_keys("Ctrl-],x"), Ok(Keys(vec![29, b'x'])));
        for wrong in ["", "ctrl-", "ctrl-pp", "ab", "ctrl-p,"] {
            assert!(parse_keys(wrong).is_err(), "{wrong}");
        }
        parse(&["--status", "--detach-keys", "x"]).unwrap().check().unwrap_err();
        parse(&["--attach", "a", "--detach-keys", "x"]).unwrap().check().unwrap();
        parse(&["--attach", "a", "--output", "a"]).unwrap_err();
        parse(&["--home", "a", "--stdio", "log"]).unwrap().check().unwrap();
        parse(&["--status", "--stdio", "log"]).unwrap().check().unwrap_err();
    }

    #[test]
    fn the_letters_of_the_first_ulpm_name_an_address() {
        let address = |args: &[&str]| parse(args).unwrap().address();
        assert_eq!(address(&["-q", "-p", "7"]), Address::Tcp("localhost:7".into()));
        assert_eq!(address(&["-q", "-n", "b"]), Address::Tcp("b:3490".into()));
        assert_eq!(address(&["-q", "-n", "::1", "-p", "7"]), Address::Tcp("[::1]:7".into()));
    }
}
