//! Pseudo-terminals of the job's own, with what is in them; and how other terminals are set.
//!
//! A pseudo-terminal is saved by who has its master, which tells all about the slave as well. What waits in it
//! has to be read, and goes in again within the freeze. For that the slave is opened: were it not open otherwise,
//! the master would hear of its end afterwards, so it must have been open before.

use alloc::vec::Vec;

use ulpm_image::Meta;
use ulpm_image::meta::{Description, Master, Terminal, description_kind as kind, flow};
use ulpm_protocol::table::SlotState;
use ulpm_sys::fmt::Text;
use ulpm_sys::proc::decimal;
use ulpm_sys::pty::{self, Flow, Pty};
use ulpm_sys::{Errno, oflag};

use super::super::text::Directory;
use super::{Open, Subject, cannot};
use crate::freeze::Failed;

/// Device numbers of `/dev/ptmx` and `/dev/tty` (Documentation/admin-guide/devices.txt).
const PTMX: u64 = 0x502;
const TTY: u64 = 0x500;
/// Major numbers of slaves.
const SLAVES: core::ops::RangeInclusive<u64> = 136..=143;

/// O_NOCTTY of include/uapi/asm-generic/fcntl.h.
const NOCTTY: i32 = 0o400;

pub(super) fn kind(open: &Open) -> Result<u32, Failed> {
    let device = open.status.rdev;
    if device == PTMX {
        // Another path leads to the pseudo-terminals of another place.
        return match &open.path[..] {
            b"/dev/ptmx" | b"/dev/pts/ptmx" => Ok(kind::MASTER),
            _ => Err(cannot(open, "is the master of a pseudo-terminal that is not below /dev/pts")),
        };
    }
    if device == TTY {
        return Ok(kind::TERMINAL);
    }
    if !SLAVES.contains(&(device >> 8 & 0xfff)) {
        return Ok(kind::FILE);
    }
    // One that has hung up has no name any more, and needs none.
    let named = Text::<64>::path(format_args!("{}", open.path.escape_ascii()));
    let is_named = ulpm_sys::stat(named.c_str())
        .is_ok_and(|found| [found.dev, found.ino] == [open.status.dev, open.status.ino]);
    if is_named || pty::modes(open.ours) == Err(Errno::IO) {
        return Ok(kind::TERMINAL);
    }
    Err(cannot(open, "is a pseudo-terminal that is not below /dev/pts"))
}

/// N of `/dev/pts/N`, for a master.
pub(super) fn index(open: &Open) -> Result<u64, Failed> {
    pty::index(open.ours).map(u64::from).map_err(failed)
}

/// Takes note of a slave, of `/dev/tty`, or of a standard stream; does nothing if it is no terminal.
pub(super) fn save(open: &Open, description: &Description, meta: &mut Meta) {
    let index = pty::slave_index(open.ours);
    let hung_up = index == Err(Errno::IO);
    if index.is_err() && !hung_up {
        return;
    }
    let index = index.ok().flatten().and_then(|index| i32::try_from(index).ok());
    meta.terminals.push(Terminal {
        description: description.id,
        index: index.unwrap_or(-1),
        hung_up,
        controlling: pty::session(open.ours).is_ok(),
        modes: pty::modes(open.ours).unwrap_or_default(),
        size: pty::size(open.ours).unwrap_or_default().map(u32::from),
    });
}

pub(super) fn save_master(
    subject: &Subject<'_>,
    open: &Open,
    meta: &mut Meta,
) -> Result<(), Failed> {
    let master = open.ours;
    let index = pty::index(master).map_err(failed)?;
    let events = pty::events(master);
    let session = pty::session(master).ok();
    let foreground = pty::foreground(master).unwrap_or(0);
    let mut saved = Master {
        index,
        locked: pty::locked(master).map_err(failed)?,
        packet: pty::packet(master).map_err(failed)?,
        opened: events.hung_up || session.is_some() || slave(subject, index).is_some(),
        modes: pty::modes(master).map_err(failed)?,
        size: pty::size(master).map_err(failed)?.map(u32::from),
        session: session.map_or(0, |session| subject.table.virtual_session(session)),
        foreground: if foreground > 0 { subject.table.virtual_group(foreground) } else { 0 },
        ..Master::default()
    };
    if saved.packet && events.priority {
        let why = "has a status of packet mode that was not read";
        return Err(cannot(open, why));
    }
    if saved.opened {
        content(subject, open, &mut saved)?;
    } else if events.input {
        return Err(cannot(open, "holds output of a terminal that nobody has open"));
    }
    meta.masters.push(saved);
    Ok(())
}

fn failed(errno: Errno) -> Failed {
    Failed::system("look at a pseudo-terminal", errno)
}

/// Takes out what is in a pseudo-terminal, and puts it in again.
fn content(subject: &Subject<'_>, open: &Open, saved: &mut Master) -> Result<(), Failed> {
    let master = open.ours;
    if saved.locked {
        pty::set_locked(master, false).map_err(failed)?;
    }
    let flags = oflag::RDWR | oflag::NONBLOCK | oflag::CLOEXEC | NOCTTY;
    let slave = match pty::open_slave(master, flags) {
        // Only root opens it again; but somebody has it open.
        Err(Errno::BUSY) => slave(subject, saved.index).and_then(duplicate).ok_or(Errno::BUSY),
        other => other,
    };
    let result = slave.and_then(|slave| {
        saved.exclusive = pty::exclusive(slave).unwrap_or(false);
        if saved.packet {
            pty::set_packet(master, false)?;
        }
        let result = in_foreground(slave, || out_and_in(master, slave, saved));
        if saved.packet {
            pty::set_packet(master, true)?;
        }
        ulpm_sys::close(slave);
        result
    });
    if saved.locked {
        pty::set_locked(master, true).map_err(failed)?;
    }
    result.map_err(|errno| Failed::system("copy what is in a pseudo-terminal", errno))
}

/// A process cannot read from its controlling terminal in the background. While all stand still, nobody sees who
/// is in the foreground.
fn in_foreground<T>(slave: i32, read: impl FnOnce() -> T) -> T {
    let own = ulpm_sys::getpgid(0).unwrap_or(0);
    let other = pty::foreground(slave).ok().filter(|&group| group != own);
    if other.is_some() {
        // The signal for doing so from the background is blocked.
        let _ = pty::set_foreground(slave, own);
    }
    let result = read();
    if let Some(group) = other {
        let _ = pty::set_foreground(slave, group);
    }
    result
}

fn out_and_in(master: i32, slave: i32, saved: &mut Master) -> Result<(), Errno> {
    let pty = Pty { master, slave, modes: saved.modes };
    let (lines, input, output) = (&mut saved.lines, &mut saved.input, &mut saved.output);
    let mut going = Flow::Going;
    let taken = (|| {
        pty.take_input(&mut |part, is_line| {
            if is_line {
                lines.push(u32::try_from(part.len()).unwrap_or(0));
            }
            input.extend_from_slice(part);
        })?;
        pty.take_output(&mut |part| output.extend_from_slice(part))?;
        going = pty.start()?;
        // What was typed while output stood still is echoed now.
        pty.take_output(&mut |part| output.extend_from_slice(part))
    })();
    // Also when something has failed: what came out is to be there again.
    let (complete, rest) = split(saved);
    let put = pty.put(complete.iter().copied(), rest, &saved.output, going);
    saved.flow = match going {
        Flow::Going => flow::GOING,
        Flow::Key => flow::KEY,
        Flow::Call => flow::CALL,
    };
    taken.and(put)
}

/// The lines that are complete, and what is behind them.
fn split(saved: &Master) -> (Vec<&[u8]>, &[u8]) {
    let mut rest = &saved.input[..];
    let mut lines = Vec::with_capacity(saved.lines.len());
    for &len in &saved.lines {
        let (line, behind) = rest.split_at((len as usize).min(rest.len()));
        lines.push(line);
        rest = behind;
    }
    (lines, rest)
}

/// A process of the job that has the slave open by name, and its descriptor.
fn slave(subject: &Subject<'_>, index: u32) -> Option<(i32, i32)> {
    let wanted = Text::<32>::of(format_args!("/dev/pts/{index}"));
    let slots = subject.table.slots().iter();
    slots.filter(|slot| slot.state() == SlotState::Live).find_map(|slot| {
        let pid = slot.real();
        let path = Text::<64>::path(format_args!("/proc/{pid}/fd"));
        let mut names = Directory::open(path.c_str()).ok()?;
        while let Some(name) = names.next() {
            let Some(fd) = decimal(name).and_then(|fd| i32::try_from(fd).ok()) else { continue };
            let link = Text::<64>::path(format_args!("/proc/{pid}/fd/{fd}"));
            let mut target = [0; 32];
            if ulpm_sys::readlink(link.c_str(), &mut target)
                .is_ok_and(|path| path == wanted.bytes())
            {
                return Some((pid, fd));
            }
        }
        None
    })
}

fn duplicate((pid, fd): (i32, i32)) -> Option<i32> {
    let pidfd = ulpm_sys::pidfd_open(pid).ok()?;
    let duplicate = ulpm_sys::pidfd_getfd(pidfd, fd);
    ulpm_sys::close(pidfd);
    duplicate.ok()
}
