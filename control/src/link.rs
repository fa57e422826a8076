//! How whoever waits for a job's root keeps in touch with the coordinator, and with its successors.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ulpm_protocol::table::{ENDED_AT, KEPT_ALIVE_AT, ended_mark};
use ulpm_sys::pty::Modes;

use crate::client::{Address, Client, ClientError, Wire};
use crate::message::{JobId, Reply, Request, Stdio};
use crate::session::{self, End, Party, Streams};
use crate::{exit, place};

/// How long one waits before asking for a coordinator again.
const RETRY: Duration = Duration::from_millis(200);
/// How long whoever has started the coordinator has to start the next one, with the options that it had.
const LEAVE: Duration = Duration::from_secs(5);

/// How long a coordinator that has died may take to come back by itself before one is started.
const COMES_BACK: Duration = Duration::from_secs(3);

/// The connection that belongs to a job.
///
/// It belongs to `ulpm_launch` or `ulpm_restart`, the parent of the job's root. When the root ends, its
/// parent asks for its [`JobLink::outcome`], for a job that goes on elsewhere, or once more, ends here as well; and if it has
/// ended, calls [`JobLink::exited`].
#[derive(Debug)]
pub struct JobLink {
    address: Address,
    client: Option<Client>,
    job: JobId,
    table: PathBuf,
}

/// What becomes of a job whose root has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has ended.
    Ended,
    /// It goes on elsewhere.
    Moved(String, Stdio),
    /// It is to go on from a checkpoint, by whoever has asked.
    Again {
        /// The generation's directory.
        path: PathBuf,
        /// For [`crate::message::Recovers`].
        token: String,
    },
}

/// An attempt to restart a job that has failed, which `ulpm_restart --recover JOB:TOKEN` makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovering {
    /// Which job.
    pub job: JobId,
    /// From [`Reply::Recover`].
    pub token: String,
}

impl std::fmt::Display for Recovering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.job, self.token)
    }
}

impl std::str::FromStr for Recovering {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.split_once(':');
        let found = split.and_then(|(job, token)| Some((job.parse().ok()?, token)));
        let (job, token) = found.ok_or("it takes JOB:TOKEN")?;
        Ok(Self { job: JobId(job), token: token.into() })
    }
}

impl Recovering {
    /// Becomes `ulpm_restart`, with the options of the one before if there was one; returns only why not.
    ///
    /// Whoever waits for this process, and its terminal, notice nothing.
    #[must_use]
    pub fn exec(&self, address: &Address, options: &[OsString], path: &Path) -> io::Error {
        let program = match place::find("ulpm_restart") {
            Ok(program) => program,
            Err(error) => return io::Error::other(error),
        };
        let mut command = Command::new(program);
        command.arg("-c").arg(address.to_string()).args(options);
        command.arg("--recover").arg(self.to_string()).arg(path);
        command.exec()
    }
}

impl JobLink {
    /// Takes the connection over which the job was opened.
    #[must_use]
    pub fn new(address: Address, client: Client, job: JobId, table: PathBuf) -> Self {
        Self { address, client: Some(client), job, table }
    }

    /// One of which the connection is still to be made.
    #[must_use]
    pub fn unconnected(address: Address, job: JobId) -> Self {
        Self { address, client: None, job, table: PathBuf::new() }
    }

    /// Says that the root runs. Nobody needs to know: a coordinator that cannot be reached does not matter.
    pub fn started(&mut self, pid: i32) {
        let job = self.job;
        self.tell(&Request::JobStarted { job, pid }, false);
    }

    /// Says how the root ended, with a status as from wait(2).
    pub fn exited(&mut self, status: i32) {
        let job = self.job;
        // For a coordinator that is not there to hear of it. Where there is no table any more, it has heard.
        if let Ok(table) = OpenOptions::new().write(true).open(&self.table) {
            let _ = table.write_all_at(&ended_mark(status), ENDED_AT);
        }
        self.tell(&Request::JobExited { job, status }, true);
    }

    /// Tells the coordinator something; when it has died, its successor if there is one.
    fn tell(&mut self, request: &Request, answer: bool) {
        for _ in 0..2 {
            let client = match self.client.take() {
                Some(client) => Some(client),
                None => Client::connect(&self.address).ok(),
            };
            let Some(mut client) = client else { return };
            let done = client
                .send(request)
                .and_then(|()| if answer { client.receive().map(drop) } else { Ok(()) });
            if matches!(done, Ok(()) | Err(ClientError::Refused(_))) {
                self.client = Some(client);
                return;
            }
        }
    }

    /// Whether the job is to be restarted when it fails.
    fn is_kept_alive(&self) -> bool {
        if self.table == PathBuf::new() {
            return true;
        }
        let mut word = [0; 4];
        let table = std::fs::File::open(&self.table);
        table.is_ok_and(|table| table.read_exact_at(&mut word, KEPT_ALIVE_AT).is_ok())
            && word != [0; 4]
    }

    /// What becomes of the job, whose root has ended with this status, or could not be restarted. What is to be said
    /// meanwhile is given to `say`.
    pub fn outcome(&mut self, status: Option<i32>, say: impl Fn(&str)) -> Outcome {
        let is_kept_alive = status != Some(0) && self.is_kept_alive();
        // By SIGKILL a job ends here that was moved.
        if !is_kept_alive && status != Some(nix::libc::SIGKILL) {
            return Outcome::Ended;
        }
        let mut since = Instant::now();
        let request = Request::Outcome { job: self.job, status };
        loop {
            let client = match self.client.take() {
                Some(client) => Ok(client),
                None if is_kept_alive && since.elapsed() < COMES_BACK => {
                    Client::connect(&self.address)
                }
                None => match Client::connect_or_start(&self.address) {
                    Ok(client) => Ok(client),
                    Err(_) => return Outcome::Ended,
                },
            };
            let Ok(mut client) = client else {
                std::thread::sleep(RETRY);
                continue;
            };
            let mut answer = client.call(&request);
            loop {
                match &answer {
                    Ok(Reply::Note(text)) => say(text),
                    // What went on and ended at once was seen to end before this was read.
                    Ok(Reply::Running) => {}
                    _ => break,
                }
                answer = client.receive();
            }
            match answer {
                Ok(reply) => {
                    self.client = Some(client);
                    return match reply {
                        Reply::Moved { host, stdio } => Outcome::Moved(host, stdio),
                        Reply::Recover { path, token } => Outcome::Again { path, token },
                        _ => Outcome::Ended,
                    };
                }
                Err(ClientError::Refused(_)) => return Outcome::Ended,
                // It has died, and its successor knows.
                Err(_) => {
                    since = Instant::now();
                    std::thread::sleep(RETRY);
                }
            }
        }
    }

    /// Connects streams to a job that was moved, until it has ended there: those of whoever has launched it. `modes` is how
    /// the terminal was before.
    ///
    /// # Errors
    ///
    /// Why the status is not known, in words.
    pub fn follow(self, host: &str, streams: Streams, modes: Option<Modes>) -> Result<i32, String> {
        let (address, job) = (self.address.clone(), self.job);
        let (sender, status) = std::sync::mpsc::channel();
        // The other thread must not take any of them: it would be lost.
        let _ = nix::sys::signal::SigSet::all().thread_block();
        let mut link = self;
        let name = host.to_owned();
        // It ends with this process, if not before.
        std::thread::spawn(move || sender.send(link.wait_elsewhere(&name)));
        let connect = || connect(&address, &Request::Streams { job });
        let party = Party::Owner { modes, host: host.into() };
        match session::follow(party, streams, Some(&status), connect) {
            Ok(End::Code(code)) => Ok(status_of(code)),
            Ok(End::Status(status)) => status,
            Ok(End::Signal(signal)) => Ok(signal),
            Ok(End::Lost(text)) => Err(text),
            Ok(End::Detached) => Ok(0),
            Err(error) => Err(format!("the streams of the job cannot be followed: {error}")),
        }
    }

    /// Waits until a job that was moved has ended there. Returns its status as from wait(2).
    ///
    /// # Errors
    ///
    /// Why the status is not known, in words.
    pub fn wait_elsewhere(&mut self, host: &str) -> Result<i32, String> {
        let mut lost = Instant::now();
        loop {
            let answer = match &mut self.client {
                Some(client) => client.receive().inspect_err(|_| lost = Instant::now()),
                None => {
                    let connected = if lost.elapsed() < LEAVE {
                        Client::connect(&self.address)
                    } else {
                        Client::connect_or_start(&self.address)
                    };
                    connected.and_then(|mut client| {
                        let answer = client.call(&Request::Outcome { job: self.job, status: None });
                        self.client = Some(client);
                        answer
                    })
                }
            };
            match answer {
                Ok(Reply::Finished { status: Some(status), .. }) => return Ok(status),
                Ok(Reply::Finished { status: None, text }) => return Err(text),
                Ok(Reply::Moved { .. }) => {}
                Ok(_) | Err(ClientError::Refused(_)) => {
                    return Err(format!("how job {} ended at {host} is not known", self.job));
                }
                Err(_) => {
                    self.client = None;
                    std::thread::sleep(RETRY);
                }
            }
        }
    }
}

/// Connects to the keeper of a job's streams. The error says whether there will never be one.
///
/// # Errors
///
/// Why there is none, in words.
pub fn connect(address: &Address, request: &Request) -> Result<Wire, (String, bool)> {
    let failed = |error: ClientError| {
        // What is not there will not come; what cannot be reached may.
        let is_final =
            matches!(&error, ClientError::Refused(refused) if refused.code == exit::NO_INPUT);
        (crate::chain(&error).join(": "), is_final)
    };
    let mut client = Client::connect(address).map_err(failed)?;
    client.call(request).map_err(failed)?;
    client.into_wire().map_err(|error| (error.to_string(), true))
}

/// A status as from wait(2) for an exit code: 128+N for signal N.
#[must_use]
pub fn status_of(code: u8) -> i32 {
    match code.checked_sub(128) {
        Some(signal @ 1..=64) => i32::from(signal),
        _ => i32::from(code) << 8,
    }
}

/// The exit code that stands for a status as from wait(2): 128+N for signal N.
#[must_use]
pub fn exit_code(status: i32) -> u8 {
    let code = if status & 0x7f == 0 { (status >> 8) & 0xff } else { 128 + (status & 0x7f) };
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_becomes_an_exit_code() {
        for code in [0, 3, 127, 137, 143, 200, 255] {
            assert_eq!(exit_code(status_of(code)), code);
        }
        assert_eq!(exit_code(3 << 8), 3);
        assert_eq!(exit_code(15), 143);
        assert_eq!(exit_code(0x80 | 11), 139);
    }
}
