//! The end at which the user is.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ulpm_sys::pty::{self, Modes};
use ulpm_sys::{Errno, POLLIN, POLLOUT, PollFd, oflag};

use super::{
    CHANNELS, Channel, ERROR, Frames, FromJob, INPUT, INPUT_WINDOW, OUTPUT, PART, TERMINAL, ToJob,
    WINDOW,
};
use crate::codec::CodecError;

/// How long one waits before connecting again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long output may take to come that the program has written before its end was heard of.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How often it is looked what time it is.
const TICK_MS: i32 = 200;

/// Standard input, output and error, as far as they are open.
#[derive(Debug)]
pub struct Streams(pub [Option<OwnedFd>; 3]);

impl Streams {
    /// Those of this process.
    #[must_use]
    pub fn own() -> Self {
        let copy = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned().ok();
        Self([copy(&io::stdin()), copy(&io::stdout()), copy(&io::stderr())])
    }
}

/// Who connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    /// Who has launched the job: stays until it has ended, and connects again where the connection is lost.
    Owner {
        /// How the terminal was before the job had it.
        modes: Option<Modes>,
        /// What the other host is called, for messages.
        host: String,
    },
    /// Somebody who looks in.
    Visitor {
        /// The keys that end it.
        detach: Vec<u8>,
    },
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The program has ended, with this exit code.
    Code(u8),
    /// What was heard over another way.
    Status(Result<i32, String>),
    /// The user has detached.
    Detached,
    /// A signal has ended it; the job goes on.
    Signal(i32),
    /// The connection is lost, or could not be made.
    Lost(String),
}

/// Input on its way.
#[derive(Debug)]
struct Source {
    fd: OwnedFd,
    channel: Channel,
    /// Number of the first byte of `kept`; those before it have reached the program.
    from: u64,
    kept: VecDeque<u8>,
    /// Up to where it was sent over this connection.
    sent: u64,
    ended: bool,
    end_told: bool,
    /// It is the terminal.
    is_keys: bool,
}

impl Source {
    fn new(fd: OwnedFd, channel: Channel, from: u64, is_keys: bool) -> Self {
        let kept = VecDeque::new();
        Self { fd, channel, from, kept, sent: from, ended: false, end_told: false, is_keys }
    }
}

/// Output on its way.
#[derive(Debug)]
struct Sink {
    fd: Option<OwnedFd>,
    /// It cannot be made not to wait; it is given little at a time.
    waits: bool,
    parts: VecDeque<(u64, Vec<u8>)>,
    closed_told: bool,
}

impl Sink {
    fn new(fd: Option<&OwnedFd>) -> Self {
        let (fd, waits) = fd.map_or((None, false), |fd| {
            let (fd, waits) = without_waiting(fd, oflag::WRONLY);
            (fd, waits)
        });
        Self { fd, waits, parts: VecDeque::new(), closed_told: false }
    }

    /// Writes what goes.
    fn write(&mut self) {
        while let Some((at, bytes)) = self.parts.front_mut() {
            let Some(fd) = &self.fd else {
                self.parts.clear();
                return;
            };
            let mut ask = [PollFd { fd: fd.as_raw_fd(), events: POLLOUT, revents: 0 }];
            if !ulpm_sys::poll(&mut ask, 0).is_ok_and(|ready| ready > 0) {
                return;
            }
            // So much fits where there is room at all (PIPE_BUF).
            let most = if self.waits { bytes.len().min(4096) } else { bytes.len() };
            match ulpm_sys::write(fd.as_raw_fd(), &bytes[..most]) {
                Ok(len) if len == bytes.len() => {
                    self.parts.pop_front();
                }
                Ok(len) => {
                    *at += len as u64;
                    bytes.drain(..len);
                }
                Err(Errno::AGAIN | Errno::INTR) => return,
                // Nobody reads it any more.
                Err(_) => self.fd = None,
            }
        }
    }
}

/// A descriptor of the same thing that does not wait, where that can be without others noticing; and whether it may wait.
fn without_waiting(fd: &OwnedFd, mode: i32) -> (Option<OwnedFd>, bool) {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let kind =
        ulpm_sys::fstat(fd.as_raw_fd()).map_or(0, |status| status.mode & ulpm_sys::mode::TYPE);
    // What is written to a file goes on where others have written.
    if [ulpm_sys::mode::FIFO, ulpm_sys::mode::CHARACTER].contains(&kind) {
        let mut options = std::fs::OpenOptions::new();
        options.read(mode != oflag::WRONLY).write(mode != oflag::RDONLY);
        options.custom_flags(oflag::NONBLOCK | NOCTTY);
        if let Ok(file) = options.open(path) {
            return (Some(file.into()), false);
        }
    }
    (fd.try_clone().ok(), true)
}

/// What stops a process whatever it has blocked.
const STOP: i32 = Signal::SIGSTOP as i32;
/// O_NOCTTY of include/uapi/asm-generic/fcntl.h.
const NOCTTY: i32 = 0o400;

/// The user's terminal.
#[derive(Debug)]
struct Tty {
    fd: OwnedFd,
    /// As it is to be in the end.
    before: Modes,
    is_raw: bool,
    size: Option<[u16; 4]>,
}

impl Tty {
    fn find(streams: &Streams, before: Option<Modes>) -> Option<Self> {
        let is_terminal = |fd: &&OwnedFd| pty::modes(fd.as_raw_fd()).is_ok();
        let stream = streams.0.iter().flatten().find(is_terminal)?;
        let (fd, _) = without_waiting(stream, oflag::RDWR);
        let fd = fd?;
        let before = before.or_else(|| pty::modes(fd.as_raw_fd()).ok())?;
        let size = pty::size(fd.as_raw_fd()).ok();
        Some(Self { fd, before, is_raw: false, size })
    }

    fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Whether we may read from it: one that is not our controlling terminal, or that has us in its foreground.
    fn is_ours(&self) -> bool {
        let own = ulpm_sys::getpgid(0).unwrap_or(0);
        match pty::foreground(self.raw()) {
            Ok(group) if group == own => true,
            // Whoever had it before us is gone.
            Ok(group) if group <= 0 || ulpm_sys::kill(-group, 0) == Err(Errno::SRCH) => {
                pty::set_foreground(self.raw(), own).is_ok()
            }
            Ok(_) => false,
            Err(_) => true,
        }
    }

    /// Lets keys go to the job, as far as we may.
    fn enter(&mut self) {
        if !self.is_raw && self.is_ours() {
            self.is_raw = pty::set_modes(self.raw(), &self.before.raw()).is_ok();
        }
    }

    fn leave(&mut self) {
        if std::mem::take(&mut self.is_raw) && self.is_ours() {
            let _ = pty::set_modes(self.raw(), &self.before);
        }
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        self.leave();
    }
}

/// One end of a session.
struct Client<'a, S> {
    party: Party,
    tty: Option<Tty>,
    streams: Streams,
    link: Option<Frames<S>>,
    /// What the keeper has said there is.
    channels: Option<[bool; CHANNELS]>,
    sources: Vec<Source>,
    sinks: [Sink; CHANNELS],
    /// Up to where output has come, and was said to be written.
    have: u64,
    told: u64,
    signals: SignalFd,
    status: Option<&'a Receiver<Result<i32, String>>>,
    code: Option<u8>,
    /// The keeper has answered over this connection.
    welcome: bool,
    was_stopped: bool,
    /// Keys of the detach sequence that were typed so far.
    matched: usize,
    end: Option<End>,
}

/// Connects a terminal or pipes to a job until it has ended, or one is told not to.
///
/// All signals are blocked meanwhile, and are what the caller has found blocked afterwards. `connect` makes a connection that
/// the keeper is at the other end of; its error is for the user, and final if it says so. An owner learns by `status` how the
/// job has ended where the keeper is not there to say it.
///
/// # Errors
///
/// What the system refuses.
pub fn follow<S: Read + Write + AsFd>(
    party: Party,
    streams: Streams,
    status: Option<&Receiver<Result<i32, String>>>,
    mut connect: impl FnMut() -> Result<S, (String, bool)>,
) -> io::Result<End> {
    let all = SigSet::all();
    let mask = all.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
    let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let modes = match &party {
        Party::Owner { modes, .. } => *modes,
        Party::Visitor { .. } => None,
    };
    let tty = Tty::find(&streams, modes);
    let terminal = tty.as_ref().map(|tty| &tty.fd).or(streams.0[1].as_ref());
    let sinks = [
        Sink::new(None),
        Sink::new(streams.0[1].as_ref()),
        Sink::new(streams.0[2].as_ref()),
        Sink::new(terminal),
    ];
    let mut client = Client {
        party,
        tty,
        streams,
        link: None,
        channels: None,
        sources: Vec::new(),
        sinks,
        have: 0,
        told: 0,
        signals,
        status,
        code: None,
        welcome: false,
        was_stopped: false,
        matched: 0,
        end: None,
    };
    let end = client.run(&mut connect);
    // The terminal is as it was before anything else is said.
    drop(client);
    mask.thread_set_mask()?;
    Ok(end)
}

impl<S: Read + Write + AsFd> Client<'_, S> {
    fn is_owner(&self) -> bool {
        matches!(self.party, Party::Owner { .. })
    }

    fn run(&mut self, connect: &mut dyn FnMut() -> Result<S, (String, bool)>) -> End {
        let mut pause = FIRST_PAUSE;
        let mut next = Instant::now();
        let mut last_words: Option<(Instant, i32)> = None;
        let mut refused: Option<String> = None;
        loop {
            if self.link.is_none() && refused.is_none() && Instant::now() >= next {
                match connect() {
                    Ok(stream) => match self.greet(stream) {
                        Ok(()) => pause = FIRST_PAUSE,
                        Err(error) => self.lost(&error),
                    },
                    Err((text, is_final)) => {
                        if !self.is_owner() {
                            return End::Lost(text);
                        }
                        if is_final {
                            refused = Some(text);
                        }
                    }
                }
                next = Instant::now() + pause;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            self.wait();
            if let Err(error) = self.talk() {
                self.lost(&error);
                next = Instant::now() + pause;
            }
            self.hear_signals();
            if let Some(end) = self.end.take() {
                return end;
            }
            if let Some(code) = self.code
                && self.sinks.iter().all(|sink| sink.parts.is_empty())
            {
                return End::Code(code);
            }
            // The status may come sooner than the last output, and that not at all.
            if last_words.is_none()
                && let Some(status) = self.status
            {
                match status.try_recv() {
                    Ok(Ok(status)) => last_words = Some((Instant::now() + LAST_WORDS, status)),
                    Ok(Err(text)) => return End::Status(Err(text)),
                    Err(TryRecvError::Empty) => {}
                    Err(TryRecvError::Disconnected) => {
                        return End::Lost("nobody says how the job ended".into());
                    }
                }
            }
            if let Some((until, status)) = last_words {
                let is_writing = self.sinks.iter().any(|sink| !sink.parts.is_empty());
                if refused.is_some() || !is_writing && Instant::now() >= until {
                    return End::Status(Ok(status));
                }
            }
        }
    }

    fn greet(&mut self, stream: S) -> Result<(), CodecError> {
        let mut frames = Frames::new(stream);
        let size = self.tty.as_ref().and_then(|tty| pty::size(tty.raw()).ok());
        if let Some(tty) = &mut self.tty {
            tty.size = size;
        }
        frames.push(&ToJob::Hello { owner: self.is_owner(), have: self.have, size })?;
        frames.flush()?;
        self.link = Some(frames);
        self.welcome = false;
        Ok(())
    }

    /// The connection is of no use any more.
    fn lost(&mut self, error: &CodecError) {
        if self.link.take().is_none() || self.end.is_some() || self.code.is_some() {
            return;
        }
        match &self.party {
            // The keeper lets go of one that has been stopped for long.
            Party::Visitor { .. } if std::mem::take(&mut self.was_stopped) => {}
            Party::Visitor { .. } => {
                self.end = Some(End::Lost(format!("the connection to the job is lost: {error}")));
            }
            Party::Owner { host, .. } => {
                // Until it is back, keys do what they did here.
                if let Some(tty) = &mut self.tty
                    && tty.is_raw
                {
                    tty.leave();
                    let text = format!(
                        "ulpm: the connection to {host} is lost and is made again as soon as it can be; ^C here leaves the job alone\r\n"
                    );
                    let _ = ulpm_sys::write(tty.raw(), text.as_bytes());
                }
            }
        }
    }

    /// Whether a source is read now.
    fn reads(&self, source: &Source) -> bool {
        let may = !source.is_keys || self.tty.as_ref().is_some_and(|tty| tty.is_raw);
        !source.ended && may && (source.kept.len() as u64) < INPUT_WINDOW && self.link.is_some()
    }

    fn wait(&mut self) {
        let ask = |fd: RawFd, events| PollFd { fd, events, revents: 0 };
        let mut fds = vec![ask(self.signals.as_fd().as_raw_fd(), POLLIN)];
        if let Some(link) = &self.link {
            let writes = if link.waiting() > 0 { POLLOUT } else { 0 };
            fds.push(ask(link.stream().as_fd().as_raw_fd(), POLLIN | writes));
        }
        for source in self.sources.iter().filter(|source| self.reads(source)) {
            fds.push(ask(source.fd.as_raw_fd(), POLLIN));
        }
        for sink in self.sinks.iter().filter(|sink| !sink.parts.is_empty()) {
            fds.extend(sink.fd.as_ref().map(|fd| ask(fd.as_raw_fd(), POLLOUT)));
        }
        let _ = ulpm_sys::poll(&mut fds, TICK_MS);
    }

    fn talk(&mut self) -> Result<(), CodecError> {
        if let Some(link) = &mut self.link {
            link.pull()?;
        }
        while let Some(link) = &mut self.link
            && let Some(message) = link.take::<FromJob>()?
        {
            self.heard(message)?;
        }
        for sink in &mut self.sinks {
            sink.write();
        }
        if let Some(channels) = self.channels
            && channels[usize::from(TERMINAL)]
            && self.link.is_some()
            && let Some(tty) = &mut self.tty
        {
            tty.enter();
        }
        self.read_sources();
        self.say()
    }

    fn heard(&mut self, message: FromJob) -> Result<(), CodecError> {
        let nonsense = || CodecError::Payload("it makes no sense".into());
        match message {
            FromJob::Welcome { channels, have, from } => {
                if self.channels.is_none() {
                    self.channels = Some(channels);
                    self.find_sources(channels, have);
                }
                if !self.is_owner() {
                    self.have = from;
                }
                let is_owner = self.is_owner();
                self.welcome = true;
                for source in &mut self.sources {
                    // What has come there, and what has not.
                    let have = have[usize::from(source.channel)];
                    if !is_owner {
                        // It is somebody else by now.
                        source.kept.clear();
                        source.from = have;
                    }
                    if have < source.from || have > source.from + source.kept.len() as u64 {
                        return Err(nonsense());
                    }
                    source.sent = have;
                    source.end_told = false;
                }
                self.told = self.have;
                for sink in &mut self.sinks {
                    sink.closed_told = false;
                }
            }
            FromJob::Data { channel, at, bytes } => {
                let held: usize = self
                    .sinks
                    .iter()
                    .flat_map(|sink| &sink.parts)
                    .map(|(_, part)| part.len())
                    .sum();
                let sink = self.sinks.get_mut(usize::from(channel)).ok_or_else(nonsense)?;
                if at != self.have || held as u64 > 2 * WINDOW {
                    return Err(nonsense());
                }
                self.have += bytes.len() as u64;
                sink.parts.push_back((at, bytes));
            }
            FromJob::Skipped { to } => {
                if self.is_owner() && to > self.have {
                    let text = format!(
                        "\r\nulpm: {} bytes of output were written while nobody was here to take them; what is left of them is in the log: ulpm_command --output\r\n",
                        to - self.have
                    );
                    let _ = io::stderr().write_all(text.as_bytes());
                }
                self.have = self.have.max(to);
            }
            FromJob::Taken { channel, at } => {
                for source in self.sources.iter_mut().filter(|source| source.channel == channel) {
                    let Some(len) = at.checked_sub(source.from) else { continue };
                    let len = usize::try_from(len).map_err(|_| nonsense())?;
                    if len > source.kept.len() {
                        return Err(nonsense());
                    }
                    source.kept.drain(..len);
                    source.from = at;
                }
            }
            FromJob::Stopped => self.stop(),
            FromJob::Ended { code } => self.code = Some(code),
            FromJob::End { .. } | FromJob::Alive => {}
        }
        Ok(())
    }

    /// Finds out what input there is for the channels that the job has.
    fn find_sources(&mut self, channels: [bool; CHANNELS], have: [u64; CHANNELS]) {
        let has = |channel: Channel| channels[usize::from(channel)];
        let mut add = |fd: Option<OwnedFd>, channel: Channel| {
            let from = have[usize::from(channel)];
            self.sources.extend(fd.map(|fd| Source::new(fd, channel, from, false)));
        };
        let input =
            || self.streams.0[0].as_ref().and_then(|fd| without_waiting(fd, oflag::RDONLY).0);
        match &self.party {
            Party::Owner { .. } => {
                if has(INPUT) {
                    add(input(), INPUT);
                }
            }
            // Of a visitor there is one input.
            Party::Visitor { .. } => {
                let is_tty =
                    self.streams.0[0].as_ref().is_some_and(|fd| pty::modes(fd.as_raw_fd()).is_ok());
                if has(TERMINAL) && !is_tty {
                    add(input(), TERMINAL);
                } else if has(INPUT) && !has(TERMINAL) {
                    add(input(), INPUT);
                }
            }
        }
        if has(TERMINAL) && self.sources.iter().all(|source| source.channel != TERMINAL) {
            let keys = self.tty.as_ref().and_then(|tty| tty.fd.try_clone().ok());
            let from = have[usize::from(TERMINAL)];
            self.sources.extend(keys.map(|fd| Source::new(fd, TERMINAL, from, true)));
        }
    }

    fn read_sources(&mut self) {
        for place in 0..self.sources.len() {
            let source = &self.sources[place];
            if !self.reads(source) || !is_ready(source.fd.as_raw_fd()) {
                continue;
            }
            let mut buffer = [0; PART];
            let room = usize::try_from(INPUT_WINDOW).unwrap_or(PART) - source.kept.len();
            let most = room.min(PART);
            match ulpm_sys::read(source.fd.as_raw_fd(), &mut buffer[..most]) {
                Ok(0) => self.sources[place].ended = true,
                Ok(len) => self.typed(place, &buffer[..len]),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => self.sources[place].ended = true,
            }
        }
    }

    /// Takes input, but for the keys that end a visit.
    fn typed(&mut self, place: usize, bytes: &[u8]) {
        let keys = match &self.party {
            Party::Visitor { detach } if self.sources[place].is_keys => &detach[..],
            _ => &[],
        };
        for &byte in bytes {
            if keys.get(self.matched) == Some(&byte) {
                self.matched += 1;
                if self.matched == keys.len() {
                    self.end = Some(End::Detached);
                    return;
                }
                continue;
            }
            let held = &keys[..std::mem::take(&mut self.matched)];
            self.sources[place].kept.extend(held);
            if keys.first() == Some(&byte) {
                self.matched = 1;
            } else {
                self.sources[place].kept.push_back(byte);
            }
        }
    }

    /// Says what there is to say.
    fn say(&mut self) -> Result<(), CodecError> {
        let is_owner = self.is_owner();
        let Some(link) = &mut self.link else { return Ok(()) };
        let (due, late) = link.is_due();
        if late {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        if self.welcome {
            for source in &mut self.sources {
                let end = source.from + source.kept.len() as u64;
                while source.sent < end && link.waiting() < 4 * PART {
                    let skip = usize::try_from(source.sent - source.from).unwrap_or(0);
                    let bytes: Vec<u8> =
                        source.kept.iter().skip(skip).take(PART).copied().collect();
                    let at = source.sent;
                    source.sent += bytes.len() as u64;
                    link.push(&ToJob::Data { channel: source.channel, at, bytes })?;
                }
                if source.ended && source.sent == end && !source.end_told {
                    source.end_told = true;
                    link.push(&ToJob::End { channel: source.channel })?;
                }
            }
            let first = |sink: &Sink| sink.parts.front().map(|(at, _)| *at);
            let written = self.sinks.iter().filter_map(first).min().unwrap_or(self.have);
            if written > self.told {
                self.told = written;
                link.push(&ToJob::Taken { at: written })?;
            }
            for channel in [OUTPUT, ERROR] {
                let sink = &mut self.sinks[usize::from(channel)];
                if is_owner && sink.fd.is_none() && !std::mem::replace(&mut sink.closed_told, true)
                {
                    link.push(&ToJob::Closed { channel })?;
                }
            }
        }
        if due {
            link.push(&ToJob::Alive)?;
        }
        Ok(link.flush()?)
    }

    fn say_size(&mut self) {
        let (Some(tty), Some(link)) = (&mut self.tty, &mut self.link) else { return };
        let size = pty::size(tty.raw()).ok();
        if size != tty.size
            && let Some(size) = size
        {
            tty.size = Some(size);
            // A connection of no use is found out in its turn.
            let _ = link.push(&ToJob::Size(size));
        }
    }

    /// The program has been stopped, so that the user has the shell again; waits until the user goes on with it.
    fn stop(&mut self) {
        if !self.is_owner() && self.tty.is_none() {
            return;
        }
        if let Some(tty) = &mut self.tty {
            tty.leave();
        }
        let _ = ulpm_sys::kill(ulpm_sys::getpid(), STOP);
        while let Ok(Some(_)) = self.signals.read_signal() {}
        self.was_stopped = true;
        self.say_size();
        if let Some(link) = &mut self.link {
            let _ = link.push(&ToJob::Signal(Signal::SIGCONT as i32));
        }
    }

    fn hear_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = info.ssi_signo.cast_signed();
            match Signal::try_from(number) {
                Ok(Signal::SIGWINCH) => self.say_size(),
                Ok(Signal::SIGHUP) => self.end = Some(End::Signal(number)),
                Ok(Signal::SIGTERM) if !self.is_owner() => self.end = Some(End::Signal(number)),
                Ok(
                    signal @ (Signal::SIGINT
                    | Signal::SIGQUIT
                    | Signal::SIGTERM
                    | Signal::SIGTSTP
                    | Signal::SIGUSR1
                    | Signal::SIGUSR2),
                ) => match &mut self.link {
                    Some(link) if self.welcome => {
                        let _ = link.push(&ToJob::Signal(number));
                    }
                    _ if signal == Signal::SIGTSTP => {
                        let _ = ulpm_sys::kill(ulpm_sys::getpid(), STOP);
                    }
                    _ => self.end = Some(End::Signal(number)),
                },
                _ => {}
            }
        }
    }
}

/// Whether something is to be read at once.
fn is_ready(fd: RawFd) -> bool {
    let mut fds = [PollFd { fd, events: POLLIN, revents: 0 }];
    ulpm_sys::poll(&mut fds, 0).is_ok_and(|ready| ready > 0)
}
