//! The command line.

use std::path::PathBuf;

use ulpm_control::{Address, place};

use crate::limits::Limits;

/// Keeps the jobs of a user on a host, checkpoints them, and hands them over to other hosts.
///
/// ulpm_launch and ulpm_restart start one when it is needed; start it by hand to let it listen for other
/// hosts, or to run several side by side.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "ulpm_coordinator", version, after_help = ulpm_control::exit::HELP)]
pub struct Options {
    /// Socket for tools and programs [default: $XDG_RUNTIME_DIR/ulpm/coordinator.sock, or
    /// /tmp/ulpm-UID/coordinator.sock]; $ULPM_COORDINATOR if that is a path
    #[arg(short = 'c', long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Address for other hosts, such as 0.0.0.0:3490; without a port, 3490. Beyond the loopback only hosts of
    /// the cluster are listened to.
    #[arg(short = 'n', long, value_name = "HOST:PORT", value_parser = address)]
    pub listen: Option<String>,

    /// Port for other hosts, on all addresses unless --listen names one
    #[arg(short = 'p', long, value_name = "PORT")]
    pub port: Option<u16>,

    /// Directory for what outlives a coordinator [default: where the socket is, or SOCKET.d]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// So many jobs of other hosts may be here at a time
    #[arg(long, value_name = "N", help_heading = "Guests")]
    pub max_guests: Option<u32>,

    /// So much memory may jobs have together when they come from other hosts, such as 4G
    #[arg(long, value_name = "SIZE", value_parser = crate::limits::parse_size, help_heading = "Guests")]
    pub max_memory: Option<u64>,

    /// So much disk space may the images have of jobs that come from other hosts
    #[arg(long, value_name = "SIZE", value_parser = crate::limits::parse_size, help_heading = "Guests")]
    pub max_disk: Option<u64>,

    /// Make a cluster, of which this host is the first: hosts that may send each other jobs
    #[arg(long, group = "membership", help_heading = "Cluster")]
    pub init_cluster: bool,

    /// Print an invitation, good for one host to join the cluster. Whoever has it can join.
    #[arg(long, group = "membership", help_heading = "Cluster")]
    pub invite: bool,

    /// Seconds that an invitation lasts
    #[arg(long, value_name = "SECS", requires = "invite", default_value_t = crate::membership::INVITATION_SECS, value_parser = clap::value_parser!(u64).range(1..=30 * 86400), help_heading = "Cluster")]
    pub invitation_secs: u64,

    /// Join the cluster that has sent this invitation
    #[arg(long, group = "membership", value_name = "INVITATION", help_heading = "Cluster")]
    pub join_cluster: Option<String>,

    /// Show a host out of the cluster
    #[arg(long, group = "membership", value_name = "NAME", help_heading = "Cluster")]
    pub revoke: Option<String>,

    /// The name of this host in the cluster; USER@HOST unless it is said
    #[arg(long, value_name = "NAME", help_heading = "Cluster")]
    pub name: Option<String>,

    /// Directory of the cluster's keys [default: $ULPM_CLUSTER or ~/.config/ulpm/cluster]
    #[arg(long, value_name = "DIR", help_heading = "Cluster")]
    pub cluster: Option<PathBuf>,

    /// Seconds that a job may take to stop for a checkpoint
    #[arg(long, value_name = "SECS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub freeze_timeout: u64,

    /// Go to the background when ready
    #[arg(long)]
    pub daemon: bool,

    /// Say more; twice for even more
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// What ssh runs at its other end for another host's `ulpm_command --migrate ssh://…`: pass on what comes at standard
    /// input to the coordinator, which is started if there is none, and back
    #[arg(long, group = "membership", hide = true)]
    pub relay: bool,

    /// The background half of --daemon
    #[arg(long, hide = true)]
    pub detached: bool,
}

/// Reads where to listen.
fn address(text: &str) -> Result<String, String> {
    place::check_port(text).map(|()| text.to_owned())
}

impl Options {
    /// The socket for tools and programs.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        // The tools take an address of another host from it as well, where nobody can be started.
        let named = || match std::env::var(place::ENV_COORDINATOR).ok()?.parse() {
            Ok(Address::Socket(path)) => Some(path),
            _ => None,
        };
        self.socket.clone().or_else(named).unwrap_or_else(place::socket)
    }

    /// What jobs of other hosts may have.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { guests: self.max_guests, memory: self.max_memory, disk: self.max_disk }
    }

    /// Where the cluster's files are; `None` without a home.
    #[must_use]
    pub fn cluster(&self) -> Option<PathBuf> {
        let given = self.cluster.as_ref().and_then(|dir| std::path::absolute(dir).ok());
        given.or_else(ulpm_cluster::dir)
    }

    /// Where to listen for other hosts; `None` is nowhere.
    #[must_use]
    pub fn listen(&self) -> Option<String> {
        match (&self.listen, self.port) {
            (None, None) => None,
            (None, Some(port)) => Some(format!("0.0.0.0:{port}")),
            (Some(listen), port) => {
                let has_port = listen.rsplit_once(':').is_some_and(|(host, port)| {
                    port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
                });
                let port = port.unwrap_or(place::DEFAULT_PORT);
                Some(if has_port {
                    listen.clone()
                } else if listen.contains(':') && !listen.starts_with('[') {
                    format!("[{listen}]:{port}")
                } else {
                    format!("{listen}:{port}")
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[test]
    fn nothing_listens_unless_it_is_asked_for() {
        Options::command().debug_assert();
        let listen = |args: &[&str]| {
            Options::parse_from(std::iter::once("x").chain(args.iter().copied())).listen()
        };
        assert_eq!(listen(&[]), None);
        assert_eq!(listen(&["-p", "7"]).as_deref(), Some("0.0.0.0:7"));
        assert_eq!(listen(&["--listen", "b"]).as_deref(), Some("b:3490"));
        assert_eq!(listen(&["--listen", "b:0"]).as_deref(), Some("b:0"));
        assert_eq!(listen(&["--listen", "::1", "-p", "7"]).as_deref(), Some("[::1]:7"));
        Options::try_parse_from(["x", "--listen", "b:65536"]).unwrap_err();
    }
}
