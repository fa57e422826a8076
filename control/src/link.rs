//! How whoever waits for a job's root keeps in touch with the coordinator, and with its successors.

use std::time::{Duration, Instant};

use ulpm_sys::pty::Modes;

use crate::client::{Address, Client, ClientError, Wire};
use crate::exit;
use crate::message::{JobId, Reply, Request, Stdio};
use crate::session::{self, End, Party, Streams};

/// How long one waits before asking for a coordinator again.
const RETRY: Duration = Duration::from_millis(200);
/// How long whoever has started the coordinator has to start the next one, with the options that it had.
const LEAVE: Duration = Duration::from_secs(5);

/// The connection that belongs to a job.
///
/// It belongs to `ulpm_launch` or `ulpm_restart`, the parent of the job's root. When the root ends, its
/// parent calls [`JobLink::exited`]; but when SIGKILL ended it, it asks [`JobLink::moved_to`] first, for
/// that is also how a job ends here that goes on elsewhere.
#[derive(Debug)]
pub struct JobLink {
    address: Address,
    client: Option<Client>,
    job: JobId,
}

impl JobLink {
    /// Takes the connection over which the job was opened.
    #[must_use]
    pub fn new(address: Address, client: Client, job: JobId) -> Self {
        Self { address, client: Some(client), job }
    }

    /// Says that the root runs. Nobody needs to know: a coordinator that cannot be reached does not matter.
    pub fn started(&mut self, pid: i32) {
        let job = self.job;
        self.tell(&Request::JobStarted { job, pid }, false);
    }

    /// Says how the root ended, with a status as from wait(2).
    pub fn exited(&mut self, status: i32) {
        let job = self.job;
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

    /// Where the job went, and what became of its standard streams, if its root did not just die but was moved.
    pub fn moved_to(&mut self) -> Option<(String, Stdio)> {
        for _ in 0..2 {
            let mut client = match self.client.take() {
                Some(client) => client,
                None => Client::connect_or_start(&self.address).ok()?,
            };
            let answer = client.call(&Request::Outcome { job: self.job });
            if let Ok(reply) = answer {
                self.client = Some(client);
                return match reply {
                    Reply::Moved { host, stdio } => Some((host, stdio)),
                    _ => None,
                };
            }
        }
        None
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
                        let answer = client.call(&Request::Outcome { job: self.job });
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
