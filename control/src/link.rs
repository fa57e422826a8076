//! How whoever waits for a job's root keeps in touch with the coordinator, and with its successors.

use std::time::Duration;

use crate::client::{Address, Client, ClientError};
use crate::message::{JobId, Reply, Request};

/// How long one waits before asking for a coordinator again.
const RETRY: Duration = Duration::from_millis(200);

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

    /// Where the job went, if its root did not just die but was moved.
    pub fn moved_to(&mut self) -> Option<String> {
        for _ in 0..2 {
            let mut client = match self.client.take() {
                Some(client) => client,
                None => Client::connect_or_start(&self.address).ok()?,
            };
            let answer = client.call(&Request::Outcome { job: self.job });
            if let Ok(reply) = answer {
                self.client = Some(client);
                return match reply {
                    Reply::Moved { host } => Some(host),
                    _ => None,
                };
            }
        }
        None
    }

    /// Waits until a job that was moved has ended there. Returns its status as from wait(2).
    ///
    /// # Errors
    ///
    /// Why the status is not known, in words.
    pub fn wait_elsewhere(&mut self, host: &str) -> Result<i32, String> {
        loop {
            let answer = match &mut self.client {
                Some(client) => client.receive(),
                None => Client::connect_or_start(&self.address).and_then(|mut client| {
                    let answer = client.call(&Request::Outcome { job: self.job });
                    self.client = Some(client);
                    answer
                }),
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
        assert_eq!(exit_code(3 << 8), 3);
        assert_eq!(exit_code(15), 143);
        assert_eq!(exit_code(0x80 | 11), 139);
    }
}
