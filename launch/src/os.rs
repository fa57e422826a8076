//! What safe Rust has no call for: fork, signal dispositions, descriptors by number, extended attributes.

#![expect(unsafe_code, reason = "fork, signal, getxattr")]

use std::ffi::{CStr, CString, c_int};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{ForkResult, Pid, execve, fork, pipe2, read, write};

/// Whether SIGPIPE was ignored when we were started. Rust ignores it before `main`, and a program that we
/// start has to have what it would have had.
static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);

/// Which standard streams were closed when we were started, a bit for each. Rust opens `/dev/null` in their
/// place before `main`.
static CLOSED: AtomicU8 = AtomicU8::new(0);

// The linker puts this pointer among the functions that the C library calls before `main`. It has the type
// that is called there (which may have more arguments), and makes only system calls.
#[unsafe(link_section = ".init_array")]
#[used]
static REMEMBER: extern "C" fn() = remember;

extern "C" fn remember() {
    // SAFETY: a null action only asks; `old` is as large as sigaction(2) wants, and zero is valid in it.
    let ignored = unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut old) == 0
            && old.sa_sigaction == libc::SIG_IGN
    };
    PIPE_IGNORED.store(ignored, Ordering::Relaxed);
    // SAFETY: F_GETFD reads a flag, and fails where nothing is open.
    let closed = |fd: &c_int| unsafe { libc::fcntl(*fd, libc::F_GETFD) } < 0;
    let bits = (0..3).filter(closed).fold(0, |bits, fd| bits | 1 << fd);
    CLOSED.store(bits, Ordering::Relaxed);
}

/// Whether a standard stream was closed when we were started.
fn was_closed(fd: c_int) -> bool {
    (0..3).contains(&fd) && CLOSED.load(Ordering::Relaxed) & 1 << fd != 0
}

/// Closes the standard streams again that were closed when we were started. Nothing may be printed any more.
fn close_streams_again() {
    for fd in (0..3).filter(|&fd| was_closed(fd)) {
        // SAFETY: behind this number is the `/dev/null` that Rust has opened there for good, which nobody
        // owns; everything that we open ourselves got a higher one.
        let _ = unsafe { libc::close(fd) };
    }
}

/// Gives SIGPIPE the disposition that it had when we were started.
fn put_sigpipe_back() {
    if !PIPE_IGNORED.load(Ordering::Relaxed) {
        // SAFETY: no handler of ours is replaced, for we have none.
        let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    }
}

/// A program that is ready to be executed.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) path: CString,
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
}

impl Image {
    /// Replaces this process, whose standard streams and SIGPIPE become what they were.
    ///
    /// When that fails, streams that were closed are `/dev/null` no more.
    pub(crate) fn execute(&self) -> nix::errno::Errno {
        put_sigpipe_back();
        close_streams_again();
        match execve::<&CStr, &CStr>(&self.path, &refs(&self.argv), &refs(&self.env)) {
            Ok(never) => match never {},
            Err(errno) => errno,
        }
    }

    /// Starts it as a child with the given signal mask.
    ///
    /// # Errors
    ///
    /// The error of fork(2) or execve(2); there is no child then.
    pub(crate) fn start(&self, mask: &SigSet) -> io::Result<Pid> {
        let (reader, writer) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // SAFETY: this process has one thread, so the child may do anything.
        match unsafe { fork() }? {
            ForkResult::Child => {
                let _ = mask.thread_set_mask();
                let errno = self.execute();
                let _ = write(&writer, &(errno as i32).to_ne_bytes());
                // SAFETY: ends the child without running what the parent has registered for its end.
                unsafe { libc::_exit(127) }
            }
            ForkResult::Parent { child } => {
                drop(writer);
                let mut bytes = [0; 4];
                match read(&reader, &mut bytes) {
                    Ok(4) => {
                        let _ = nix::sys::wait::waitpid(child, None);
                        Err(io::Error::from_raw_os_error(i32::from_ne_bytes(bytes)))
                    }
                    _ => Ok(child),
                }
            }
        }
    }
}

fn refs(list: &[CString]) -> Vec<&CStr> {
    list.iter().map(CString::as_c_str).collect()
}

/// Whether a file has capabilities.
pub(crate) fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: both strings end in zero; a null buffer of length 0 asks for the size only.
    let size = unsafe {
        libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0)
    };
    size > 0
}

/// `dev` and `ino` of a descriptor of this process, if it is open, and was when we were started.
pub(crate) fn stream(fd: c_int) -> Option<(u64, u64)> {
    if was_closed(fd) {
        return None;
    }
    // SAFETY: fstat(2) fills `stat`, which is large enough, or fails; zero is valid in it.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        (libc::fstat(fd, &raw mut stat) == 0).then_some((stat.st_dev, stat.st_ino))
    }
}

/// The terminal of this process, if it has one, and how it is set.
pub(crate) fn terminal() -> Option<(std::fs::File, ulpm_sys::pty::Modes)> {
    let tty = std::fs::OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
    let modes = ulpm_sys::pty::modes(std::os::fd::AsRawFd::as_raw_fd(&tty)).ok()?;
    Some((tty, modes))
}

/// Sends a signal that has no name, a real-time one.
pub(crate) fn send(pid: Pid, number: c_int) {
    // SAFETY: kill(2) touches no memory of ours.
    let _ = unsafe { libc::kill(pid.as_raw(), number) };
}
