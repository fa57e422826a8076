//! The keeper of a job's standard streams: one loop that never waits for anybody in particular.
//!
//! What the job writes goes to the log, and from there to everybody who is connected, each at its own pace; it is read from
//! the job only as long as nobody is further behind than a window. What comes from them goes to the job. An owner that is
//! gone is waited for a moment, for its connection may come back; then the job goes on without.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use ulpm_control::codec::CodecError;
use ulpm_control::session::{
    CHANNELS, Channel, ERROR, Frames, FromJob, INPUT, INPUT_WINDOW, OUTPUT, PART, TERMINAL, ToJob,
    WINDOW, is_for_later,
};
use ulpm_sys::{POLLIN, POLLOUT, PollFd, pty};

use super::log::Log;
use super::taken_over;

/// How long a job may stand still for an owner that has lost its connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the last words of a job are kept for an owner that has lost its connection.
const LAST_WORDS: Duration = Duration::from_secs(30);
/// Who looks in sees so much of what was written before.
const TAIL: u64 = 8 * 1024;
/// How many may be connected.
const MOST_PARTIES: usize = 16;
/// How much is said to one party at a time.
const MOST_WAITING: usize = 4 * PART;
/// How long a program may take to see that the window has changed.
const LOOK: Duration = Duration::from_millis(200);
/// How often it is looked what time it is.
const TICK_MS: i32 = 250;

/// Somebody who is connected.
#[derive(Debug)]
struct Party {
    number: u64,
    frames: Frames<UnixStream>,
    greeted: bool,
    owner: bool,
    /// The next output that it is told.
    next: u64,
    /// Up to where it has written out.
    taken: u64,
    /// Up to where its input has come; the owner's is counted beyond its connection.
    have: [u64; CHANNELS],
    /// Up to where the program has it.
    given: [u64; CHANNELS],
    told_end: [bool; CHANNELS],
    told_code: bool,
    gone: bool,
}

/// Input on its way to the job.
#[derive(Debug)]
struct Part {
    /// The number of who it comes from.
    from: u64,
    owner: bool,
    bytes: Vec<u8>,
    written: usize,
}

#[derive(Debug)]
struct Keeper {
    path: PathBuf,
    listener: UnixListener,
    /// Tells that the job goes on.
    running: Option<File>,
    runs: bool,
    child: Option<Pid>,
    /// It, or the group that it leads.
    group: i32,
    signals: SignalFd,
    fds: [Option<File>; CHANNELS],
    /// Which of them there were.
    channels: [bool; CHANNELS],
    log: Log,
    input: [VecDeque<Part>; CHANNELS],
    input_ended: bool,
    parties: Vec<Party>,
    parties_ever: u64,
    owner_have: [u64; CHANNELS],
    owner_given: [u64; CHANNELS],
    owner_taken: u64,
    /// Since when the owner is away; nothing if it is not waited for.
    owner_away: Option<Instant>,
    /// Somebody has launched the job who wants its output.
    is_wanted: bool,
    /// Exit code of whoever has rebuilt the job, and waits for it.
    code: Option<u8>,
    /// Exit code of the job, and what its output was then.
    ended: Option<(u8, u64)>,
    ended_at: Option<Instant>,
    is_stopped: bool,
    /// When the terminal gets its size back.
    resize: Option<(Instant, [u16; 4])>,
}

/// The keeper's own program.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let number = |index: usize| words.get(index)?.to_str()?.parse::<i32>().ok();
    // SAFETY: whoever has executed us has left these open for us, and nobody here has looked at them before.
    let fd = |index| number(index).and_then(|fd| unsafe { taken_over(fd) });
    let begun = (|| {
        let all = SigSet::all();
        all.thread_block().ok()?;
        let path = PathBuf::from(words.get(8)?);
        let child = number(2)?;
        let fds = [4, 5, 6, 7].map(|index| fd(index).map(File::from));
        for fd in fds.iter().flatten() {
            no_waiting(fd.as_raw_fd());
        }
        Some(Keeper {
            log: Log::open(&path.with_extension("out")).ok()?,
            path,
            listener: fd(0)?.into(),
            running: fd(1).map(File::from),
            runs: false,
            child: Some(Pid::from_raw(child)),
            group: child,
            signals: SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
                .ok()?,
            channels: [0, 1, 2, 3].map(|index: usize| fds[index].is_some()),
            fds,
            input: [const { VecDeque::new() }; CHANNELS],
            input_ended: false,
            parties: Vec::new(),
            parties_ever: 0,
            owner_have: [0; CHANNELS],
            owner_given: [0; CHANNELS],
            owner_taken: 0,
            owner_away: (number(3)? != 0).then(Instant::now),
            is_wanted: number(3)? != 0,
            code: None,
            ended: None,
            ended_at: None,
            is_stopped: false,
            resize: None,
        })
    })();
    match begun {
        Some(keeper) => ExitCode::from(keeper.run()),
        None => ExitCode::FAILURE,
    }
}

fn no_waiting(fd: RawFd) {
    // SAFETY: the calls take numbers only; the description is ours alone.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK);
    }
}

fn index(channel: Channel) -> Option<usize> {
    Some(usize::from(channel)).filter(|&index| index < CHANNELS)
}

/// What somebody says that nobody says.
fn nonsense() -> CodecError {
    CodecError::Payload("it makes no sense".into())
}

impl Keeper {
    fn run(mut self) -> u8 {
        loop {
            self.wait();
            self.reap();
            if self.child.is_none() && !self.runs {
                // The job has not come about, or belongs to nobody.
                let _ = std::fs::remove_file(&self.path);
                return self.code.unwrap_or(1);
            }
            self.accept();
            self.hear();
            self.read_output();
            self.write_input();
            self.tell();
            self.look_at_the_time();
            if self.is_over() {
                let _ = std::fs::remove_file(&self.path);
                return self.code.unwrap_or(0);
            }
        }
    }

    /// Whether its owner is not so far behind that the job has to wait. Who only looks in is told from the log later.
    fn may_read(&self) -> bool {
        if self.ended.is_some() {
            return true;
        }
        let parties = self.parties.iter().filter(|party| party.greeted && party.owner);
        let parties = parties.map(|party| party.taken);
        let away = self.owner_away.map(|_| self.owner_taken);
        let last = parties.chain(away).min().unwrap_or(self.log.end());
        self.log.end() - last < WINDOW
    }

    fn wait(&self) {
        let ask = |fd: RawFd, events| PollFd { fd, events, revents: 0 };
        let mut fds = vec![
            ask(self.listener.as_raw_fd(), POLLIN),
            ask(std::os::fd::AsRawFd::as_raw_fd(&self.signals), POLLIN),
        ];
        fds.extend(self.running.as_ref().map(|running| ask(running.as_raw_fd(), POLLIN)));
        let may_read = self.may_read();
        for (channel, fd) in self.fds.iter().enumerate() {
            let Some(fd) = fd else { continue };
            let reads = may_read && channel != usize::from(INPUT);
            let writes = !self.input[channel].is_empty();
            let events = if reads { POLLIN } else { 0 } | if writes { POLLOUT } else { 0 };
            // One of which nothing is wanted would tell that it has hung up all the time.
            if events != 0 {
                fds.push(ask(fd.as_raw_fd(), events));
            }
        }
        for party in &self.parties {
            let writes = party.frames.waiting() > 0;
            fds.push(ask(
                party.frames.stream().as_raw_fd(),
                POLLIN | if writes { POLLOUT } else { 0 },
            ));
        }
        let _ = ulpm_sys::poll(&mut fds, TICK_MS);
    }

    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        if let Some(running) = &mut self.running {
            let mut byte = [0];
            let mut fds = [PollFd { fd: running.as_raw_fd(), events: POLLIN, revents: 0 }];
            if ulpm_sys::poll(&mut fds, 0).is_ok_and(|found| found > 0) {
                self.runs = matches!(running.read(&mut byte), Ok(1));
                self.running = None;
                self.owner_away = self.owner_away.map(|_| Instant::now());
            }
        }
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED;
        while let Some(child) = self.child {
            let (code, is_killed) = match waitpid(child, Some(flags)) {
                Ok(WaitStatus::Exited(_, code)) => (u8::try_from(code).unwrap_or(u8::MAX), false),
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    (u8::try_from(128 + signal as i32).unwrap_or(u8::MAX), true)
                }
                Ok(WaitStatus::Stopped(..)) => {
                    self.is_stopped = true;
                    for party in self.parties.iter_mut().filter(|party| party.greeted) {
                        let _ = party.frames.push(&FromJob::Stopped);
                    }
                    continue;
                }
                Ok(WaitStatus::Continued(_)) => {
                    self.is_stopped = false;
                    continue;
                }
                _ => return,
            };
            self.child = None;
            self.code = Some(code);
            // The job may go on without it.
            if !is_killed {
                self.end(code);
            }
        }
        let code = self.code.filter(|_| self.ended.is_none());
        if let Some(code) = code.filter(|_| !self.has_output()) {
            self.end(code);
        }
    }

    /// The job has ended.
    fn end(&mut self, code: u8) {
        // What it has written last is there.
        for channel in [OUTPUT, ERROR, TERMINAL] {
            let most = self.log.end() + 64 * WINDOW;
            while self.read_channel(channel) && self.log.end() < most {}
        }
        self.ended = Some((code, self.log.end()));
        self.ended_at = Some(Instant::now());
    }

    /// Whether more output can come.
    fn has_output(&self) -> bool {
        [OUTPUT, ERROR, TERMINAL].iter().any(|&channel| self.fds[usize::from(channel)].is_some())
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.parties.len() >= MOST_PARTIES || stream.set_nonblocking(true).is_err() {
                continue;
            }
            self.parties_ever += 1;
            self.parties.push(Party {
                number: self.parties_ever,
                frames: Frames::new(stream),
                greeted: false,
                owner: false,
                next: 0,
                taken: 0,
                have: [0; CHANNELS],
                given: [0; CHANNELS],
                told_end: [false; CHANNELS],
                told_code: false,
                gone: false,
            });
        }
    }

    fn hear(&mut self) {
        for place in 0..self.parties.len() {
            let heard = self.hear_one(place);
            self.parties[place].gone |= heard.is_err();
        }
        let lost_owner = self.parties.iter().any(|party| party.gone && party.owner);
        self.parties.retain(|party| !party.gone);
        if lost_owner && !self.parties.iter().any(|party| party.owner) {
            self.owner_away = Some(Instant::now());
        }
    }

    fn hear_one(&mut self, place: usize) -> Result<(), CodecError> {
        self.parties[place].frames.pull()?;
        while let Some(message) = self.parties[place].frames.take::<ToJob>()? {
            self.heard(place, message)?;
        }
        Ok(())
    }

    fn heard(&mut self, place: usize, message: ToJob) -> Result<(), CodecError> {
        let greeted = self.parties[place].greeted;
        match message {
            ToJob::Hello { owner, have, size } if !greeted => {
                self.greet(place, owner, have, size)?;
            }
            ToJob::Alive => {}
            _ if !greeted => return Err(nonsense()),
            ToJob::Hello { .. } => return Err(nonsense()),
            ToJob::Data { channel, at, bytes } => self.take_input(place, channel, at, bytes)?,
            ToJob::End { channel } => {
                if self.parties[place].owner && channel == INPUT {
                    self.input_ended = true;
                }
            }
            ToJob::Taken { at } => {
                let party = &mut self.parties[place];
                if at < party.taken || at > party.next {
                    return Err(nonsense());
                }
                party.taken = at;
                if party.owner {
                    self.owner_taken = at;
                }
            }
            ToJob::Closed { channel } => {
                if self.parties[place].owner && [OUTPUT, ERROR].contains(&channel) {
                    // The program finds that out when it writes.
                    self.fds[usize::from(channel)] = None;
                }
            }
            ToJob::Size(size) => self.resize(size),
            ToJob::Signal(signal) => self.signal(signal),
        }
        Ok(())
    }

    fn greet(
        &mut self,
        place: usize,
        owner: bool,
        have: u64,
        size: Option<[u16; 4]>,
    ) -> Result<(), CodecError> {
        let (first, end) = (self.log.first(), self.log.end());
        let from = if owner { have } else { end.saturating_sub(TAIL) };
        if from > end {
            return Err(nonsense());
        }
        let from = from.max(first);
        if owner {
            // There is one. Who comes back is sooner than the news that its last connection is gone.
            for other in self.parties.iter_mut().filter(|other| other.owner) {
                other.gone = true;
                other.owner = false;
            }
            self.owner_away = None;
            self.is_wanted = true;
            self.owner_taken = from;
        }
        let party = &mut self.parties[place];
        (party.greeted, party.owner) = (true, owner);
        (party.next, party.taken) = (from, from);
        if owner {
            party.have = self.owner_have;
            party.given = self.owner_given;
        }
        let welcome = FromJob::Welcome { channels: self.channels, have: party.have, from };
        party.frames.push(&welcome)?;
        if owner && from > have {
            party.frames.push(&FromJob::Skipped { to: from })?;
        }
        for channel in [INPUT, TERMINAL] {
            let at = party.given[usize::from(channel)];
            party.frames.push(&FromJob::Taken { channel, at })?;
        }
        if self.is_stopped {
            party.frames.push(&FromJob::Stopped)?;
        }
        if let Some(size) = size {
            self.show(size, !owner);
        }
        Ok(())
    }

    fn master(&self) -> Option<RawFd> {
        self.fds[usize::from(TERMINAL)].as_ref().map(|master| master.as_raw_fd())
    }

    fn resize(&mut self, size: [u16; 4]) {
        self.resize = None;
        if let Some(master) = self.master() {
            let _ = pty::set_size(master, size);
        }
    }

    /// Gives the terminal the size of one that is new to what is on it, and has programs that use the whole of it draw
    /// that again.
    fn show(&mut self, size: [u16; 4], is_new: bool) {
        let Some(master) = self.master() else { return };
        let draws = is_new && pty::modes(master).is_ok_and(|modes| modes.by_key());
        let [rows, columns, across, down] = size;
        if draws && rows > 1 && pty::size(master) == Ok(size) {
            let _ = pty::set_size(master, [rows - 1, columns, across, down]);
            self.resize = Some((Instant::now() + LOOK, size));
        } else {
            self.resize(size);
        }
    }

    fn signal(&self, signal: i32) {
        let foreground = self.master().and_then(|master| pty::foreground(master).ok());
        let foreground = foreground.filter(|&group| group > 0).unwrap_or(self.group);
        match signal {
            // As the terminal would.
            libc::SIGINT | libc::SIGQUIT | libc::SIGTSTP => {
                let _ = ulpm_sys::kill(-foreground, signal);
            }
            // As a shell does.
            libc::SIGCONT => {
                let _ = ulpm_sys::kill(-self.group, signal);
                if foreground != self.group {
                    let _ = ulpm_sys::kill(-foreground, signal);
                }
            }
            libc::SIGTERM | libc::SIGUSR1 | libc::SIGUSR2 => {
                if let Some(child) = self.child {
                    let _ = ulpm_sys::kill(child.as_raw(), signal);
                }
            }
            _ => {}
        }
    }

    fn take_input(
        &mut self,
        place: usize,
        channel: Channel,
        at: u64,
        bytes: Vec<u8>,
    ) -> Result<(), CodecError> {
        let index = index(channel).filter(|&index| self.channels[index]).ok_or_else(nonsense)?;
        if ![INPUT, TERMINAL].contains(&channel) {
            return Err(nonsense());
        }
        let party = &mut self.parties[place];
        if at != party.have[index] {
            return Err(nonsense());
        }
        party.have[index] += bytes.len() as u64;
        if party.have[index] - party.given[index] > 2 * INPUT_WINDOW {
            return Err(nonsense());
        }
        if party.owner {
            self.owner_have = party.have;
        }
        let (from, owner) = (party.number, party.owner);
        self.input[index].push_back(Part { from, owner, bytes, written: 0 });
        Ok(())
    }

    /// Reads some of an output; false if there is none.
    fn read_channel(&mut self, channel: Channel) -> bool {
        let mut buffer = [0; PART];
        let place = &mut self.fds[usize::from(channel)];
        let Some(fd) = place else { return false };
        match fd.read(&mut buffer) {
            Ok(0) => *place = None,
            Ok(len) => {
                self.log.append(channel, &buffer[..len]);
                return true;
            }
            Err(error) if is_for_later(&error) => {}
            // A terminal that nobody has open any more.
            Err(_) => *place = None,
        }
        false
    }

    fn read_output(&mut self) {
        for channel in [OUTPUT, ERROR, TERMINAL] {
            for _ in 0..4 {
                if !self.may_read() || !self.read_channel(channel) {
                    break;
                }
            }
        }
    }

    fn write_input(&mut self) {
        for channel in [INPUT, TERMINAL] {
            self.write_channel(usize::from(channel));
        }
        if self.input_ended && self.input[usize::from(INPUT)].is_empty() {
            self.fds[usize::from(INPUT)] = None;
        }
    }

    fn write_channel(&mut self, channel: usize) {
        while let Some(part) = self.input[channel].front_mut() {
            let written = match &mut self.fds[channel] {
                Some(fd) => fd.write(&part.bytes[part.written..]),
                // Nobody reads it any more.
                None => Ok(part.bytes.len() - part.written),
            };
            let len = match written {
                Ok(len) => len,
                Err(error) if is_for_later(&error) => return,
                Err(_) => {
                    self.fds[channel] = None;
                    continue;
                }
            };
            part.written += len;
            let (from, owner) = (part.from, part.owner);
            if part.written == part.bytes.len() {
                self.input[channel].pop_front();
            }
            if owner {
                self.owner_given[channel] += len as u64;
            }
            let mut parties = self.parties.iter_mut();
            let giver = parties.find(|party| party.number == from || owner && party.owner);
            if let Some(party) = giver {
                party.given[channel] += len as u64;
                let at = party.given[channel];
                let channel = u8::try_from(channel).unwrap_or(INPUT);
                let _ = party.frames.push(&FromJob::Taken { channel, at });
            }
        }
    }

    fn tell(&mut self) {
        for party in self.parties.iter_mut().filter(|party| !party.gone) {
            let told = tell_one(&self.log, &self.fds, &self.channels, self.ended, party);
            party.gone |= told.is_err();
        }
    }

    fn look_at_the_time(&mut self) {
        if self.owner_away.is_some_and(|since| self.runs && since.elapsed() > PATIENCE) {
            self.owner_away = None;
        }
        if let Some((_, size)) = self.resize.take_if(|(at, _)| Instant::now() >= *at) {
            self.resize(size);
        }
    }

    fn is_over(&self) -> bool {
        let Some(ended_at) = self.ended_at else { return false };
        if self.has_output() {
            return false;
        }
        if let Some(owner) = self.parties.iter().find(|party| party.owner) {
            // It goes when it has all.
            return owner.gone;
        }
        let has_all = self.owner_taken >= self.log.end();
        let looked_in =
            self.parties.iter().any(|party| !party.told_code || party.frames.waiting() > 0);
        let late = ended_at.elapsed() > LAST_WORDS;
        late || !looked_in && (has_all || !self.is_wanted)
    }
}

/// Tells a party what it has not been told, as far as it takes it.
fn tell_one(
    log: &Log,
    fds: &[Option<File>; CHANNELS],
    channels: &[bool; CHANNELS],
    ended: Option<(u8, u64)>,
    party: &mut Party,
) -> Result<(), CodecError> {
    if !party.greeted {
        let (_, late) = party.frames.is_due();
        return if late { Err(nonsense()) } else { Ok(()) };
    }
    loop {
        while party.frames.waiting() < MOST_WAITING && party.next - party.taken < WINDOW {
            if party.next < log.first() {
                party.next = log.first();
                party.taken = party.next;
                party.frames.push(&FromJob::Skipped { to: party.next })?;
            }
            let Some((channel, bytes)) = log.read(party.next) else { break };
            let at = party.next;
            party.next += bytes.len() as u64;
            party.frames.push(&FromJob::Data { channel, at, bytes })?;
        }
        if party.next == log.end() {
            for channel in [OUTPUT, ERROR, TERMINAL] {
                let index = usize::from(channel);
                if channels[index] && fds[index].is_none() && !party.told_end[index] {
                    party.told_end[index] = true;
                    party.frames.push(&FromJob::End { channel })?;
                }
            }
        }
        if let Some((code, _)) = ended.filter(|(_, at)| party.next >= *at && !party.told_code) {
            party.told_code = true;
            party.frames.push(&FromJob::Ended { code })?;
        }
        let (due, late) = party.frames.is_due();
        if late {
            return Err(CodecError::Io(io::ErrorKind::TimedOut.into()));
        }
        if due {
            party.frames.push(&FromJob::Alive)?;
        }
        let before = party.frames.waiting();
        party.frames.flush()?;
        let more = party.next < log.end() && party.next - party.taken < WINDOW;
        if before == 0 || party.frames.waiting() > 0 || !more {
            return Ok(());
        }
    }
}
