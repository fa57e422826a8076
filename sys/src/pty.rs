//! Terminals and pseudo-terminals: how they are set, and what waits in them.
//!
//! ```text
//!  master ── write ──▶ line discipline ──▶ input queue ── read ──▶ slave
//!         ◀── read ── output queue ◀────── line discipline ◀── write ──
//! ```
//!
//! There is no peeking into a terminal. [`Pty`] takes out what waits, and puts it in again so that it cannot be
//! told: it is used while everybody who has the terminal stands still, or before there is anybody.

use crate::arch::{nr, syscall};
use crate::{Errno, POLLHUP, POLLIN, POLLOUT, POLLPRI, PollFd, check, poll, read, write};

/// Requests of ioctl(2), from include/uapi/asm-generic/ioctls.h.
mod request {
    pub(super) const TCGETS2: usize = 0x802c_542a;
    pub(super) const TCSETS2: usize = 0x402c_542b;
    pub(super) const TCXONC: usize = 0x540a;
    pub(super) const TIOCEXCL: usize = 0x540c;
    pub(super) const TIOCSCTTY: usize = 0x540e;
    pub(super) const TIOCGPGRP: usize = 0x540f;
    pub(super) const TIOCSPGRP: usize = 0x5410;
    pub(super) const TIOCGWINSZ: usize = 0x5413;
    pub(super) const TIOCSWINSZ: usize = 0x5414;
    pub(super) const TIOCPKT: usize = 0x5420;
    pub(super) const TIOCNOTTY: usize = 0x5422;
    pub(super) const TIOCGSID: usize = 0x5429;
    pub(super) const TIOCGPTPEER: usize = 0x5441;
    pub(super) const TIOCGPTN: usize = 0x8004_5430;
    pub(super) const TIOCGDEV: usize = 0x8004_5432;
    pub(super) const TIOCGPKT: usize = 0x8004_5438;
    pub(super) const TIOCGPTLCK: usize = 0x8004_5439;
    pub(super) const TIOCGEXCL: usize = 0x8004_5440;
    pub(super) const TIOCSPTLCK: usize = 0x4004_5431;
}

/// Bits of [`Modes`] and places in its characters, from include/uapi/asm-generic/termbits.h.
mod bit {
    pub(super) const IXON: u32 = 0o2000;
    pub(super) const ICANON: u32 = 0o2;
    pub(super) const IEXTEN: u32 = 0o100_000;
    pub(super) const EXTPROC: u32 = 0o200_000;
    pub(super) const VEOF: usize = 4;
    pub(super) const VSTART: usize = 8;
    pub(super) const VSTOP: usize = 9;
    pub(super) const VEOL: usize = 11;
    pub(super) const VLNEXT: usize = 15;
    pub(super) const VEOL2: usize = 16;
}

/// How much the input queue of a terminal holds (`N_TTY_BUF_SIZE` of drivers/tty/n_tty.c).
const QUEUE: usize = 4096;
/// How long the kernel may take to carry something from one end to the other, in milliseconds.
const PATIENCE_MS: i32 = 1000;
/// What the queue takes before the kernel keeps the rest in buffers.
const FULL: usize = QUEUE - 1;
/// How much fits in again in steps of [`SMALL`] for certain: the queue, and 30 buffers.
const SAFE: usize = FULL + 30 * 512;
/// How much of more than that is put in in steps of [`LONG`]: the queue, and four buffers.
const IN_LONG_STEPS: usize = FULL + 4 * 2 * LONG;
/// MIN_TTYB_SIZE of drivers/tty/tty_buffer.c.
const SMALL: usize = 256;
/// TTY_BUFFER_PAGE of drivers/tty/tty_buffer.c.
const LONG: usize = 1792;

/// `struct termios2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Modes {
    /// Input, output, control and local modes.
    pub flags: [u32; 4],
    /// The line discipline, and behind it the special characters.
    pub characters: [u8; 20],
    /// Input and output speed.
    pub speeds: [u32; 2],
}

impl Modes {
    /// Whether a reader gets whole lines, and the terminal finds out by itself where they end.
    #[must_use]
    pub const fn canonical(&self) -> bool {
        self.flags[3] & (bit::ICANON | bit::EXTPROC) == bit::ICANON
    }

    /// Whether a program reads the keys as they come, as those do that use the whole screen.
    #[must_use]
    pub const fn by_key(&self) -> bool {
        self.flags[3] & bit::ICANON == 0
    }

    const fn character(&self, which: usize) -> u8 {
        self.characters[which + 1]
    }

    /// Modes in which nothing happens to what goes through, but for the keys that stop output and start it.
    ///
    /// These stay what they are. Turning them off would let output go on that they have stopped; and the kernel looks
    /// for them in what waits behind a full queue, also while they are being changed.
    fn quiet(&self) -> Self {
        self.quiet_but_for([0, 0, self.character(bit::VSTART), self.character(bit::VSTOP)])
            .with(bit::IXON, self.flags[0] & bit::IXON != 0)
    }

    /// The same with four characters that do something there: nothing waits behind a full queue.
    fn quiet_but_for(&self, special: [u8; 4]) -> Self {
        let [eof, next, start, stop] = special;
        let canonical = if self.canonical() { bit::ICANON | bit::IEXTEN } else { 0 };
        let mut quiet = Self {
            flags: [bit::IXON, 0, self.flags[2], canonical],
            characters: [0; 20],
            speeds: self.speeds,
        };
        quiet.characters[0] = self.characters[0];
        for (which, character) in [
            (bit::VEOF, eof),
            (bit::VLNEXT, next),
            (bit::VSTART, start),
            (bit::VSTOP, stop),
            (bit::VEOL, self.character(bit::VEOL)),
            (bit::VEOL2, self.character(bit::VEOL2)),
        ] {
            quiet.characters[which + 1] = character;
        }
        quiet
    }

    /// Whether a line that was read ends in a character that ends lines; else the end-of-file key has ended it.
    fn ends_line(&self, line: &[u8]) -> bool {
        line.last().is_some_and(|&last| {
            let others = [self.character(bit::VEOL), self.character(bit::VEOL2)];
            last == b'\n' || (last != 0 && others.contains(&last))
        })
    }

    /// The same as cfmakeraw(3) makes of them: every byte goes through as it is, one by one.
    #[must_use]
    pub const fn raw(mut self) -> Self {
        // From include/uapi/asm-generic/termbits.h, as termios(3) lists them: IGNBRK, BRKINT, PARMRK, ISTRIP, INLCR,
        // IGNCR, ICRNL, IXON; OPOST; CSIZE, PARENB, and CS8 instead; ISIG, ICANON, ECHO, ECHONL, IEXTEN.
        self.flags[0] &= !(0o1 | 0o2 | 0o10 | 0o40 | 0o100 | 0o200 | 0o400 | bit::IXON);
        self.flags[1] &= !0o1;
        self.flags[2] = self.flags[2] & !(0o60 | 0o400) | 0o60;
        self.flags[3] &= !(0o1 | bit::ICANON | 0o10 | 0o100 | bit::IEXTEN);
        // VTIME and VMIN.
        self.characters[5 + 1] = 0;
        self.characters[6 + 1] = 1;
        self
    }

    /// With an input mode on or off.
    const fn with(mut self, mode: u32, on: bool) -> Self {
        self.flags[0] = if on { self.flags[0] | mode } else { self.flags[0] & !mode };
        self
    }

    /// Four characters that mean nothing else.
    fn special(&self) -> [u8; 4] {
        let taken = [self.character(bit::VEOL), self.character(bit::VEOL2)];
        let mut free = (1..).filter(|byte| *byte != b'\n' && !taken.contains(byte));
        [(); 4].map(|()| free.next().unwrap_or(0))
    }
}

fn ioctl(fd: i32, request: usize, argument: usize) -> Result<i32, Errno> {
    let fd = fd.cast_unsigned() as usize;
    // SAFETY: the callers below pass numbers, or borrowed memory of the size that the request takes.
    let returned = check(unsafe { syscall(nr::IOCTL, [fd, request, argument, 0, 0, 0]) })?;
    Ok(i32::try_from(returned).unwrap_or(-1))
}

fn get(fd: i32, request: usize) -> Result<i32, Errno> {
    let mut value = 0i32;
    ioctl(fd, request, (&raw mut value).addr()).map(|_| value)
}

fn set(fd: i32, request: usize, value: i32) -> Result<(), Errno> {
    ioctl(fd, request, (&raw const value).addr()).map(drop)
}

/// The modes of a terminal; for a master, those of its slave.
///
/// # Errors
///
/// NOTTY; IO: it has hung up.
pub fn modes(fd: i32) -> Result<Modes, Errno> {
    let mut modes = Modes::default();
    ioctl(fd, request::TCGETS2, (&raw mut modes).addr()).map(|_| modes)
}

/// Sets the modes at once.
///
/// # Errors
///
/// As [`modes`].
pub fn set_modes(fd: i32, modes: &Modes) -> Result<(), Errno> {
    ioctl(fd, request::TCSETS2, core::ptr::from_ref(modes).addr()).map(drop)
}

/// Rows, columns, and pixels across and down.
///
/// # Errors
///
/// As [`modes`].
pub fn size(fd: i32) -> Result<[u16; 4], Errno> {
    let mut size = [0u16; 4];
    ioctl(fd, request::TIOCGWINSZ, size.as_mut_ptr().addr()).map(|_| size)
}

/// Sets the size; the foreground group gets SIGWINCH if it is another.
///
/// # Errors
///
/// As [`modes`].
pub fn set_size(fd: i32, size: [u16; 4]) -> Result<(), Errno> {
    ioctl(fd, request::TIOCSWINSZ, size.as_ptr().addr()).map(drop)
}

/// The number N of `/dev/pts/N`, of its master.
///
/// # Errors
///
/// NOTTY
pub fn index(master: i32) -> Result<u32, Errno> {
    get(master, request::TIOCGPTN).map(i32::cast_unsigned)
}

/// The number N of `/dev/pts/N`, of any descriptor of it or of `/dev/tty`; `None` for a terminal of another kind.
///
/// # Errors
///
/// NOTTY; IO: it has hung up.
pub fn slave_index(fd: i32) -> Result<Option<u32>, Errno> {
    /// UNIX98_PTY_SLAVE_MAJOR of include/uapi/linux/major.h.
    const MAJOR: u32 = 136;
    let device = get(fd, request::TIOCGDEV)?.cast_unsigned();
    let minor = device & 0xff | device >> 12 & 0xf_ff00;
    Ok((device >> 8 & 0xfff == MAJOR).then_some(minor))
}

/// The group in the foreground; asked of a slave, only of one's own controlling terminal.
///
/// # Errors
///
/// NOTTY
pub fn foreground(fd: i32) -> Result<i32, Errno> {
    get(fd, request::TIOCGPGRP)
}

/// Puts a group in the foreground of one's own controlling terminal.
///
/// # Errors
///
/// NOTTY, PERM, SRCH.
pub fn set_foreground(fd: i32, group: i32) -> Result<(), Errno> {
    set(fd, request::TIOCSPGRP, group)
}

/// The session whose controlling terminal it is; asked of a slave, only of one's own.
///
/// # Errors
///
/// NOTTY
pub fn session(fd: i32) -> Result<i32, Errno> {
    get(fd, request::TIOCGSID)
}

/// Makes it the controlling terminal of the caller, who leads a session without one.
///
/// # Errors
///
/// PERM
pub fn make_controlling(slave: i32) -> Result<(), Errno> {
    ioctl(slave, request::TIOCSCTTY, 0).map(drop)
}

/// Gives up the controlling terminal; if the caller leads the session, the foreground group gets SIGHUP.
///
/// # Errors
///
/// NOTTY
pub fn give_up_controlling(slave: i32) -> Result<(), Errno> {
    ioctl(slave, request::TIOCNOTTY, 0).map(drop)
}

/// Packet mode of a master.
///
/// # Errors
///
/// NOTTY
pub fn packet(master: i32) -> Result<bool, Errno> {
    get(master, request::TIOCGPKT).map(|on| on != 0)
}

/// Sets packet mode; turning it on forgets a status that waits.
///
/// # Errors
///
/// NOTTY
pub fn set_packet(master: i32, on: bool) -> Result<(), Errno> {
    set(master, request::TIOCPKT, on.into())
}

/// Whether the slave cannot be opened yet.
///
/// # Errors
///
/// NOTTY
pub fn locked(master: i32) -> Result<bool, Errno> {
    get(master, request::TIOCGPTLCK).map(|on| on != 0)
}

/// Says whether the slave can be opened.
///
/// # Errors
///
/// NOTTY
pub fn set_locked(master: i32, on: bool) -> Result<(), Errno> {
    set(master, request::TIOCSPTLCK, on.into())
}

/// Whether this end is used exclusively: only root can open it again.
///
/// # Errors
///
/// NOTTY
pub fn exclusive(fd: i32) -> Result<bool, Errno> {
    get(fd, request::TIOCGEXCL).map(|on| on != 0)
}

/// Says that this end is used exclusively.
///
/// # Errors
///
/// NOTTY
pub fn set_exclusive(fd: i32) -> Result<(), Errno> {
    ioctl(fd, request::TIOCEXCL, 0).map(drop)
}

/// Opens the slave of a master with these flags.
///
/// # Errors
///
/// IO: it is locked. BUSY: it is used exclusively.
pub fn open_slave(master: i32, flags: i32) -> Result<i32, Errno> {
    ioctl(master, request::TIOCGPTPEER, flags.cast_unsigned() as usize)
}

/// What there is to hear of one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the events of poll(2)")]
pub struct Events {
    pub input: bool,
    pub priority: bool,
    pub output: bool,
    pub hung_up: bool,
}

/// What there is to hear of one end, with everything that was on its way to it.
#[must_use]
pub fn events(fd: i32) -> Events {
    let mut fds = [PollFd { fd, events: POLLIN | POLLPRI | POLLOUT, revents: 0 }];
    let _ = poll(&mut fds, 0);
    let found = |event| fds[0].revents & event != 0;
    Events {
        input: found(POLLIN),
        priority: found(POLLPRI),
        output: found(POLLOUT),
        hung_up: found(POLLHUP),
    }
}

/// Waits until `done`, as long as the kernel may take.
fn wait_until(mut done: impl FnMut() -> bool) -> Result<(), Errno> {
    for _ in 0..PATIENCE_MS {
        if done() {
            return Ok(());
        }
        let _ = poll(&mut [], 1);
    }
    Err(Errno::TIMEDOUT)
}

/// Whether output goes from the slave to the master.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// It does.
    #[default]
    Going,
    /// The stop key has stopped it.
    Key,
    /// tcflow(3) has stopped it.
    Call,
}

/// Both ends of a pseudo-terminal. Packet mode is off, and the slave is not locked.
#[derive(Debug)]
pub struct Pty {
    /// The master.
    pub master: i32,
    /// The slave.
    pub slave: i32,
    /// Its modes, which are to be set again in the end.
    pub modes: Modes,
}

impl Pty {
    /// Takes the input out, in parts: the lines that are complete, each with whether it is one; then the rest.
    ///
    /// The modes are others afterwards.
    ///
    /// # Errors
    ///
    /// Those of reading; what was taken out before stays so.
    pub fn take_input(&self, part: &mut dyn FnMut(&[u8], bool)) -> Result<(), Errno> {
        let mut buffer = [0; QUEUE];
        // What is under way comes in before it is seen that nothing is there: under the modes for which it was meant.
        while events(self.slave).input {
            let len = read(self.slave, &mut buffer)?;
            part(&buffer[..len], self.modes.canonical());
        }
        // An unfinished line can be read only where there are no lines. With no line and no time to wait
        // for, a read returns what there is.
        let mut raw = self.modes.quiet();
        raw.flags[3] = 0;
        set_modes(self.master, &raw)?;
        take(self.slave, &mut |bytes| part(bytes, false))
    }

    /// Takes the output out.
    ///
    /// # Errors
    ///
    /// As [`Self::take_input`].
    pub fn take_output(&self, part: &mut dyn FnMut(&[u8])) -> Result<(), Errno> {
        take(self.master, part)
    }

    /// Lets stopped output go on, and says what had stopped it. The output queue is empty.
    ///
    /// # Errors
    ///
    /// TIMEDOUT: it does not go on.
    pub fn start(&self) -> Result<Flow, Errno> {
        if events(self.slave).output {
            return Ok(Flow::Going);
        }
        let special = self.modes.special();
        let mut quiet = self.modes.quiet_but_for(special);
        quiet.flags[3] = 0;
        set_modes(self.master, &quiet)?;
        self.key(special[2])?;
        for _ in 0..50 {
            if events(self.slave).output {
                return Ok(Flow::Key);
            }
            let _ = poll(&mut [], 1);
        }
        ioctl(self.slave, request::TCXONC, 1)?; // TCOON
        wait_until(|| events(self.slave).output).map(|()| Flow::Call)
    }

    /// Puts back what was taken out, lets output stand still as it did, and sets the modes: the last step. `lines` are
    /// those that were complete, `rest` what came behind them.
    ///
    /// The queues are empty, and output goes on.
    ///
    /// # Errors
    ///
    /// TIMEDOUT: the terminal does not take it.
    pub fn put<'a>(
        &self,
        lines: impl Iterator<Item = &'a [u8]>,
        rest: &[u8],
        output: &[u8],
        flow: Flow,
    ) -> Result<(), Errno> {
        let output = self.put_output(output);
        let input = self.put_input(lines, rest, flow);
        let held = match flow {
            Flow::Call => ioctl(self.slave, request::TCXONC, 0).map(drop), // TCOOFF
            Flow::Key | Flow::Going => Ok(()),
        };
        set_modes(self.master, &self.modes)?;
        output.and(input).and(held)
    }

    fn put_input<'a>(
        &self,
        lines: impl Iterator<Item = &'a [u8]>,
        rest: &[u8],
        flow: Flow,
    ) -> Result<(), Errno> {
        if !self.modes.canonical() {
            // What came in has none of the keys that stop output and start it, or they mean nothing.
            set_modes(self.master, &self.modes.quiet())?;
            if flow == Flow::Key {
                // Before anything is there that it would wait behind.
                self.key(self.modes.character(bit::VSTOP))?;
                wait_until(|| !events(self.slave).output)?;
            }
            return fill(self.master, self.slave, rest);
        }
        let mut lines = lines.peekable();
        if lines.peek().is_none() && rest.is_empty() && flow != Flow::Key {
            return Ok(());
        }
        let special = self.modes.special();
        let [eof, next, start, stop] = special;
        set_modes(self.master, &self.modes.quiet_but_for(special))?;
        let literally = |bytes: &[u8]| bytes.iter().try_for_each(|&byte| self.feed(&[next, byte]));
        for line in lines {
            if self.modes.ends_line(line)
                && let Some((end, line)) = line.split_last()
            {
                literally(line)?;
                self.feed(&[*end])?;
            } else {
                literally(line)?;
                self.feed(&[eof])?;
            }
        }
        literally(rest)?;
        // Two keys that leave nothing behind, of which one sees that they have come, and all before them.
        self.key(stop)?;
        wait_until(|| !events(self.slave).output)?;
        if flow == Flow::Key {
            return Ok(());
        }
        self.key(start)?;
        wait_until(|| events(self.slave).output)
    }

    fn put_output(&self, bytes: &[u8]) -> Result<(), Errno> {
        set_modes(self.master, &self.modes.quiet())?;
        fill(self.slave, self.master, bytes)
    }

    fn key(&self, key: u8) -> Result<(), Errno> {
        self.feed(&[key])
    }

    /// Writes to the master, a little at a time: nobody waits in a write to a terminal whose queue is full.
    fn feed(&self, bytes: &[u8]) -> Result<(), Errno> {
        for part in bytes.chunks(128) {
            let mut rest = part;
            while !rest.is_empty() {
                wait_until(|| events(self.master).output)?;
                rest = &rest[written(self.master, rest)?..];
            }
        }
        Ok(())
    }
}

/// Puts as much in at one end as can have been there, to come out as it is at the other.
///
/// Behind the queue proper the kernel keeps buffers, each of which holds twice its length (drivers/tty/tty_buffer.c). It
/// allocates them while those in use are less than 8 KiB, as poll tells. Small ones that were used once it keeps for
/// later, and gives them out at any time: with enough of them, there is room for all that can have been there.
fn fill(into: i32, out_of: i32, bytes: &[u8]) -> Result<(), Errno> {
    let Some(used_once) = bytes.get(..SAFE) else {
        return fill_by(into, out_of, bytes, |_| (SMALL, Room::AsPolled));
    };
    fill_by(into, out_of, used_once, |_| (SMALL, Room::AsPolled))?;
    take(out_of, &mut |_| ())?;
    fill_by(into, out_of, bytes, |total| match total {
        ..FULL => (SMALL, Room::AsPolled),
        FULL..IN_LONG_STEPS => (LONG, Room::AsPolled),
        _ => (SMALL, Room::Kept),
    })
}

/// Where the kernel gets a buffer from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    AsPolled,
    Kept,
}

/// Puts in as much at a time as `step` says of how much is in already.
fn fill_by(
    into: i32,
    out_of: i32,
    mut bytes: &[u8],
    step: impl Fn(usize) -> (usize, Room),
) -> Result<(), Errno> {
    let queue = bytes.len().min(FULL);
    let mut total = 0;
    while !bytes.is_empty() {
        let (most, room) = step(total);
        let most = most.min(if total < FULL { FULL - total } else { usize::MAX });
        let mut len = 0;
        wait_until(|| {
            // The program's own master may wait in a write, and nobody reads.
            if room == Room::AsPolled && !events(into).output {
                return false;
            }
            len = written(into, &bytes[..most.min(bytes.len())]).unwrap_or(0);
            len != 0
        })?;
        bytes = &bytes[len..];
        total += len;
        let arrived = total.min(queue);
        wait_until(|| crate::bytes_to_read(out_of) == Ok(arrived))?;
    }
    Ok(())
}

/// Takes out all there is to read at one end, in parts.
fn take(out_of: i32, part: &mut dyn FnMut(&[u8])) -> Result<(), Errno> {
    let mut buffer = [0; QUEUE];
    // What is under way comes in before it is seen that nothing is there.
    while events(out_of).input {
        match read(out_of, &mut buffer)? {
            0 => break,
            len => part(&buffer[..len]),
        }
    }
    Ok(())
}

fn written(fd: i32, bytes: &[u8]) -> Result<usize, Errno> {
    match write(fd, bytes) {
        Err(Errno::INTR | Errno::AGAIN) => Ok(0),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Pty {
        let flags = crate::oflag::RDWR | crate::oflag::NONBLOCK | crate::oflag::CLOEXEC | 0o400;
        let master = crate::open(c"/dev/ptmx", flags).expect("a master");
        set_locked(master, false).expect("unlocked");
        let slave = open_slave(master, flags).expect("a slave");
        Pty { master, slave, modes: modes(slave).expect("its modes") }
    }

    fn close(pty: &Pty) {
        crate::close(pty.slave);
        crate::close(pty.master);
    }

    /// Takes everything out of it and puts it in again, and says what was there.
    fn through(pty: &Pty) -> (Vec<Vec<u8>>, Vec<u8>, Vec<u8>, Flow) {
        let (mut lines, mut rest, mut output) = (Vec::new(), Vec::new(), Vec::new());
        let mut part = |bytes: &[u8], line| {
            if line { lines.push(bytes.to_vec()) } else { rest.extend_from_slice(bytes) }
        };
        pty.take_input(&mut part).expect("input is taken out");
        pty.take_output(&mut |bytes| output.extend_from_slice(bytes)).expect("output is");
        let flow = pty.start().expect("it goes on");
        pty.put(lines.iter().map(Vec::as_slice), &rest, &output, flow).expect("it is put in");
        assert_eq!(modes(pty.slave), Ok(pty.modes));
        (lines, rest, output, flow)
    }

    #[test]
    fn lines_and_what_follows_come_out_as_they_went_in_again_and_again() {
        let pty = open();
        // The end-of-file key ends a line, alone and behind text; a quoted line feed does not.
        let keys = b"one\ntwo\x04three\x16\nfour\n\x04unfini\x7fshed";
        assert_eq!(write(pty.master, keys), Ok(keys.len()));
        wait_until(|| crate::bytes_to_read(pty.slave) == Ok(18)).expect("the lines");
        write(pty.slave, b"said\n").expect("output");
        let before = through(&pty);
        let lines: [&[u8]; 4] = [b"one\n", b"two", b"three\nfour\n", b""];
        assert_eq!(before.0, lines);
        assert_eq!(before.1, b"unfinshed");
        assert!(before.2.ends_with(b"said\r\n"), "{}", before.2.escape_ascii());
        assert_eq!(through(&pty), before);
        close(&pty);
    }

    #[test]
    fn keys_that_mean_something_pass_unharmed_where_they_mean_nothing() {
        let mut pty = open();
        pty.modes = Modes { flags: [0, 0, pty.modes.flags[2], 0], ..pty.modes };
        set_modes(pty.master, &pty.modes).expect("raw");
        let keys: Vec<u8> = (0..=255).collect();
        assert_eq!(write(pty.master, &keys), Ok(256));
        assert_eq!(through(&pty), (Vec::new(), keys.clone(), Vec::new(), Flow::Going));
        assert_eq!(through(&pty).1, keys);
        close(&pty);
    }

    /// Filled and read by halves in steps of many lengths, so that the kernel's buffers are used as unevenly as they can
    /// be; and every byte is there, also those that would stop output in other modes.
    #[test]
    fn a_terminal_that_is_full_time_and_again_loses_nothing_and_is_not_stopped() {
        let mut pty = open();
        pty.modes.flags = [0, 0, pty.modes.flags[2], 0];
        set_modes(pty.master, &pty.modes).expect("raw");
        let byte = |at: usize| at.wrapping_mul(2_654_435_761).to_le_bytes()[1];
        let (mut written, mut was_read, mut state) = (0, 0, 12345u64);
        let mut below = |end: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from((state >> 11) % end).expect("small")
        };
        for round in 0..150 {
            for _ in 0..below(40) {
                let len = if round % 2 == 0 { 2048 } else { 1 + below(2048) };
                let bytes: Vec<u8> = (written..written + len).map(byte).collect();
                written += super::written(pty.master, &bytes).expect("a terminal");
                if below(4) == 0 {
                    let mut buffer = [0; 700];
                    let some = &mut buffer[..1 + below(700)];
                    let len = read(pty.slave, some).unwrap_or(0);
                    assert!(some[..len].iter().copied().eq((was_read..).take(len).map(byte)));
                    was_read += len;
                }
            }
            let (_, rest, _, flow) = through(&pty);
            assert_eq!((rest.len(), flow), (written - was_read, Flow::Going), "round {round}");
            assert!(rest.iter().copied().eq((was_read..).take(rest.len()).map(byte)), "{round}");
        }
        close(&pty);
    }

    #[test]
    fn stopped_output_stays_stopped_by_the_same_hand() {
        let pty = open();
        write(pty.slave, b"before").expect("output");
        write(pty.master, b"\x13").expect("the stop key");
        wait_until(|| !events(pty.slave).output).expect("it stops");
        let stopped = through(&pty);
        assert_eq!((&stopped.2[..], stopped.3), (&b"before"[..], Flow::Key));
        assert_eq!(through(&pty), stopped);
        write(pty.master, b"\x11").expect("the start key");
        wait_until(|| events(pty.slave).output).expect("it goes on");
        ioctl(pty.slave, request::TCXONC, 0).expect("tcflow");
        let stopped = through(&pty);
        assert_eq!(stopped.3, Flow::Call);
        assert_eq!(through(&pty), stopped);
        close(&pty);
    }

    #[test]
    fn a_full_terminal_takes_all_of_it_again() {
        let mut pty = open();
        pty.modes.flags[3] &= !(bit::ICANON | 0o10); // ECHO
        pty.modes.flags[1] = 0;
        set_modes(pty.master, &pty.modes).expect("raw");
        for at_once in [1000, 256, 20_000, 3000] {
            let mut put = 0;
            let text = vec![b'x'; at_once];
            while let Ok(len) = write(pty.slave, &text) {
                put += len;
                let _ = poll(&mut [], 1);
            }
            let found = through(&pty);
            assert_eq!(found.2.len(), put);
            assert_eq!(through(&pty), found);
            pty.take_output(&mut |_| ()).expect("it is emptied");
        }
        close(&pty);
    }
}
