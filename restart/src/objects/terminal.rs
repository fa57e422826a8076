//! Pseudo-terminals, with what was in them.
//!
//! Each gets the number that it had, if that is free: then names that programs remember stay good. They are filled
//! before anybody has them; who leads a session takes its own as controlling terminal in `tree.rs`.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use ulpm_image::meta::{Description, Master, Terminal, description_kind, flow};
use ulpm_sys::Errno;
use ulpm_sys::pty::{self, Flow, Pty};

use super::NOT_AGAIN;
use crate::error::{RestartError, system};
use crate::image_file::ImageFile;

/// How many pseudo-terminals are made in search of the numbers that are wanted.
const MOST: usize = 512;

/// The job's pseudo-terminals, and what is known of the other terminals that it had open.
#[derive(Debug)]
pub(super) struct Terminals<'a> {
    /// By the number that it had.
    made: HashMap<u32, Made<'a>>,
    /// By description.
    known: HashMap<u64, &'a Terminal>,
}

#[derive(Debug)]
struct Made<'a> {
    saved: &'a Master,
    master: OwnedFd,
    /// If it was open at some time: an end that keeps it alive until all are there.
    slave: Option<OwnedFd>,
}

impl<'a> Terminals<'a> {
    /// Makes all pseudo-terminals of the job, with what was in them.
    pub(super) fn make(images: &'a [ImageFile]) -> Result<Self, RestartError> {
        let terminals = images.iter().flat_map(|image| &image.meta.terminals);
        let known = terminals.map(|terminal| (terminal.description, terminal)).collect();
        let masters: Vec<&Master> = images.iter().flat_map(|image| &image.meta.masters).collect();
        let descriptions = || images.iter().flat_map(|image| &image.meta.descriptions);
        let flags = |master: &Master| {
            let mut found = descriptions();
            let found = found.find(|description| {
                description.kind == description_kind::MASTER
                    && description.inode == u64::from(master.index)
            });
            found.map_or(libc::O_RDWR, |description| description.flags.cast_signed())
        };
        let mut found = open_masters(masters.iter().map(|master| master.index).collect())?;
        let mut made = HashMap::new();
        for saved in masters {
            let Some(master) = found.remove(&saved.index) else { continue };
            let slave = fill(saved, master.as_raw_fd())
                .map_err(|errno| failed("fill a pseudo-terminal", errno))?;
            let kept = flags(saved) & (libc::O_NONBLOCK | libc::O_ASYNC | libc::O_APPEND);
            // SAFETY: the call takes numbers only.
            if unsafe { libc::fcntl(master.as_raw_fd(), libc::F_SETFL, kept) } < 0 {
                return Err(system("set the flags of a pseudo-terminal"));
            }
            made.insert(saved.index, Made { saved, master, slave });
        }
        Ok(Self { made, known })
    }

    pub(super) fn master(&self, description: &Description) -> Result<OwnedFd, RestartError> {
        let index = u32::try_from(description.inode).unwrap_or(u32::MAX);
        let made = self.made.get(&index).ok_or(RestartError::System {
            what: "find a pseudo-terminal in the images",
            source: io::ErrorKind::NotFound.into(),
        })?;
        made.master
            .try_clone()
            .map_err(|source| RestartError::System { what: "duplicate a descriptor", source })
    }

    /// A description of one of the job's own; `None` if it was another terminal.
    pub(super) fn own(&self, description: &Description) -> Result<Option<OwnedFd>, RestartError> {
        let index = self.known.get(&description.id).map_or(-1, |terminal| terminal.index);
        let Some(made) = u32::try_from(index).ok().and_then(|index| self.made.get(&index)) else {
            return Ok(None);
        };
        let Some(slave) = &made.slave else { return Ok(None) };
        let flags = again(description);
        let opened = if description.path == b"/dev/tty" {
            by_controlling(slave, flags)
        } else {
            open_slave(made.master.as_raw_fd(), flags)
        };
        opened.map(Some)
    }

    /// A description of one of the job's own, or of another terminal that cannot be opened here: then of one
    /// that has hung up.
    pub(super) fn slave(&self, description: &Description) -> Result<OwnedFd, RestartError> {
        if let Some(own) = self.own(description)? {
            return Ok(own);
        }
        let known = self.known.get(&description.id);
        let gone = || hung_up(again(description));
        if known.is_none_or(|terminal| terminal.hung_up) {
            return gone();
        }
        let is_name = description.path == b"/dev/tty";
        let controlling = known.is_some_and(|terminal| terminal.controlling);
        let path = match std::str::from_utf8(&description.path) {
            // The terminal from which the job was launched goes by the name of ours.
            Ok(_) if controlling && !is_name => controlling_name(),
            Ok(path) => Some(path.to_owned()),
            Err(_) => None,
        };
        let Some(path) = path.and_then(|path| std::ffi::CString::new(path).ok()) else {
            return gone();
        };
        // SAFETY: the path is NUL-terminated.
        let fd = unsafe { libc::open(path.as_ptr(), again(description) | libc::O_CLOEXEC) };
        if fd < 0 {
            return gone();
        }
        // SAFETY: the descriptor was just opened and is nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// What can be set only when all descriptions are there. Returns the controlling terminals of those who
    /// lead sessions; the slaves that nobody has open are closed.
    pub(super) fn finish(self) -> Result<Vec<(i32, OwnedFd)>, RestartError> {
        let mut controlling = Vec::new();
        for made in self.made.into_values() {
            let Made { saved, master, slave } = made;
            let master = master.as_raw_fd();
            let settings = [
                slave
                    .as_ref()
                    .filter(|_| saved.exclusive)
                    .map(|slave| pty::set_exclusive(slave.as_raw_fd())),
                saved.packet.then(|| pty::set_packet(master, true)),
                saved.locked.then(|| pty::set_locked(master, true)),
            ];
            for setting in settings.into_iter().flatten() {
                setting.map_err(|errno| failed("set a pseudo-terminal", errno))?;
            }
            if saved.session != 0 {
                controlling.extend(slave.map(|slave| (saved.session, slave)));
            }
        }
        Ok(controlling)
    }
}

fn failed(what: &'static str, errno: Errno) -> RestartError {
    RestartError::System { what, source: io::Error::from_raw_os_error(errno.raw()) }
}

/// Flags for opening a terminal again.
fn again(description: &Description) -> libc::c_int {
    description.flags.cast_signed() & !NOT_AGAIN | libc::O_NOCTTY
}

/// Opens a master for each number, by that number if it is free.
///
/// The lowest free number is what the kernel gives: those that are not wanted are given back.
fn open_masters(mut wanted: BTreeSet<u32>) -> Result<HashMap<u32, OwnedFd>, RestartError> {
    let mut found = HashMap::new();
    let mut others = Vec::new();
    while let Some(&highest) = wanted.last() {
        let (index, master) = match open_master() {
            Ok(opened) => opened,
            Err(_) if others.len() >= wanted.len() => break,
            Err(error) => return Err(error),
        };
        if wanted.remove(&index) {
            found.insert(index, master);
        } else {
            others.push(master);
            if (index > highest || others.len() > MOST) && others.len() >= wanted.len() {
                break;
            }
        }
    }
    found.extend(wanted.into_iter().zip(others));
    Ok(found)
}

pub(crate) fn open_master() -> Result<(u32, OwnedFd), RestartError> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the path is NUL-terminated.
    let fd = unsafe { libc::open(c"/dev/ptmx".as_ptr(), flags) };
    if fd < 0 {
        return Err(system("make a pseudo-terminal"));
    }
    // SAFETY: the descriptor was just opened and is nobody else's.
    let master = unsafe { OwnedFd::from_raw_fd(fd) };
    let index = pty::index(fd).map_err(|errno| failed("make a pseudo-terminal", errno))?;
    Ok((index, master))
}

/// `flags` hold `O_CLOEXEC` if the description is to have it: other than open(2), this call leaves it there too, and
/// F_GETFL shows it.
pub(crate) fn open_slave(master: RawFd, flags: libc::c_int) -> Result<OwnedFd, RestartError> {
    let fd = pty::open_slave(master, flags).map_err(|errno| failed("open a terminal", errno))?;
    // SAFETY: the descriptor was just opened and is nobody else's.
    let slave = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the call takes numbers only.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(system("open a terminal"));
    }
    Ok(slave)
}

/// Gives a pseudo-terminal its size and modes and, if its slave was ever open, what was in it.
fn fill(saved: &Master, master: RawFd) -> Result<Option<OwnedFd>, Errno> {
    pty::set_locked(master, false)?;
    pty::set_size(master, saved.size.map(|number| u16::try_from(number).unwrap_or(0)))?;
    pty::set_modes(master, &saved.modes)?;
    if !saved.opened {
        return Ok(None);
    }
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let slave = pty::open_slave(master, flags)?;
    // SAFETY: the descriptor was just opened and is nobody else's.
    let kept = unsafe { OwnedFd::from_raw_fd(slave) };
    let pty = Pty { master, slave, modes: saved.modes };
    let mut rest = &saved.input[..];
    let lines: Vec<&[u8]> = saved
        .lines
        .iter()
        .map(|&len| {
            let (line, behind) = rest.split_at((len as usize).min(rest.len()));
            rest = behind;
            line
        })
        .collect();
    let flow = match saved.flow {
        flow::KEY => Flow::Key,
        flow::CALL => Flow::Call,
        _ => Flow::Going,
    };
    pty.put(lines.into_iter(), rest, &saved.output, flow)?;
    Ok(Some(kept))
}

/// A terminal whose other end is gone: reads find its end, writes fail.
fn hung_up(flags: libc::c_int) -> Result<OwnedFd, RestartError> {
    let (_, master) = open_master()?;
    pty::set_locked(master.as_raw_fd(), false)
        .map_err(|errno| failed("make a pseudo-terminal", errno))?;
    open_slave(master.as_raw_fd(), flags)
}

/// The name of our controlling terminal.
fn controlling_name() -> Option<String> {
    let tty = std::fs::File::open("/dev/tty").ok()?;
    let index = pty::slave_index(tty.as_raw_fd()).ok()?;
    Some(index.map_or("/dev/tty".into(), |index| format!("/dev/pts/{index}")))
}

/// Opens `/dev/tty` as a process does whose controlling terminal this is.
///
/// Such a process is forked: it shares our descriptors, makes a session, and leaves it before it ends, so that the
/// terminal does not hang up.
fn by_controlling(slave: &OwnedFd, flags: libc::c_int) -> Result<OwnedFd, RestartError> {
    // Its place, which the child puts what it opens at.
    let place = slave
        .try_clone()
        .map_err(|source| RestartError::System { what: "duplicate a descriptor", source })?;
    let clone = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: a fork in a process that has one thread; the child makes system calls and ends.
    let child = unsafe { libc::syscall(libc::SYS_clone, clone, 0, 0, 0, 0) };
    if child == 0 {
        // SAFETY: the path is NUL-terminated, the other calls take numbers.
        unsafe {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            let opened = libc::setsid() >= 0 && pty::make_controlling(slave.as_raw_fd()).is_ok();
            let fd = if opened { libc::open(c"/dev/tty".as_ptr(), flags) } else { -1 };
            let placed = fd >= 0 && libc::dup3(fd, place.as_raw_fd(), libc::O_CLOEXEC) >= 0;
            libc::close(fd);
            let _ = pty::give_up_controlling(slave.as_raw_fd());
            libc::_exit(i32::from(!placed));
        }
    }
    let mut status = -1;
    // SAFETY: the pointer is good for an int.
    let waited = child >= 0
        && unsafe { libc::waitpid(libc::pid_t::try_from(child).unwrap_or(-1), &raw mut status, 0) }
            >= 0;
    if waited && status == 0 { Ok(place) } else { Err(system("open /dev/tty for a process")) }
}
