//! `system`, `popen` and `pclose`, which make and await children inside libc.
//!
//! Reasons: the *fact* that the child belongs to the job, which an environment that the program has
//! cleared does not tell it, and the child's *name*, which libc keeps and waits for without us.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use ulpm_sys::signal::{self, Action};
use ulpm_sys::{Errno, oflag};

use super::exec::{mend_environ, posix_spawn};
use super::wait::waitpid;
use crate::next::next;
use crate::{process, set_errno};

next! {
    SYSTEM = c"system": unsafe extern "C" fn(*const c_char) -> c_int;
    POPEN = c"popen": unsafe extern "C" fn(*const c_char, *const c_char) -> *mut c_void;
    PCLOSE = c"pclose": unsafe extern "C" fn(*mut c_void) -> c_int;
}

/// `posix_spawn_file_actions_t` of glibc on x86-64.
#[repr(C, align(8))]
struct FileActions([u8; 80]);

/// `posix_spawnattr_t` of glibc on x86-64.
#[repr(C, align(8))]
struct SpawnAttributes([u8; 336]);

#[link(name = "c")]
unsafe extern "C" {
    static environ: *const *const c_char;
    fn posix_spawn_file_actions_init(actions: *mut FileActions) -> c_int;
    fn posix_spawn_file_actions_destroy(actions: *mut FileActions) -> c_int;
    fn posix_spawn_file_actions_adddup2(actions: *mut FileActions, from: c_int, to: c_int)
    -> c_int;
    fn posix_spawn_file_actions_addclose(actions: *mut FileActions, fd: c_int) -> c_int;
    fn posix_spawnattr_init(attributes: *mut SpawnAttributes) -> c_int;
    fn posix_spawnattr_destroy(attributes: *mut SpawnAttributes) -> c_int;
    fn posix_spawnattr_setsigmask(attributes: *mut SpawnAttributes, set: *const u64) -> c_int;
    fn posix_spawnattr_setsigdefault(attributes: *mut SpawnAttributes, set: *const u64) -> c_int;
    fn posix_spawnattr_setflags(attributes: *mut SpawnAttributes, flags: i16) -> c_int;
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
    fn pthread_testcancel();
    fn fdopen(fd: c_int, mode: *const c_char) -> *mut c_void;
    fn fclose(stream: *mut c_void) -> c_int;
    fn fileno(stream: *mut c_void) -> c_int;
}

/// Calls of `system` that are under way, and what stood for SIGINT and SIGQUIT before the first of them.
struct Ignored {
    calls: UnsafeCell<u32>,
    before: UnsafeCell<[Action; 2]>,
}

// SAFETY: the cells are only touched by who holds the lock, which is the process's: a forked child finds
// it free, though another thread of its parent may have held it.
unsafe impl Sync for Ignored {}

static IGNORED: Ignored = Ignored {
    calls: UnsafeCell::new(0),
    before: UnsafeCell::new([Action { handler: 0, flags: 0, restorer: 0, mask: 0 }; 2]),
};

const SIGINT: c_int = 2;
const SIGQUIT: c_int = 3;

impl Ignored {
    /// Runs `change` alone; it is short, and every signal waits, a freeze too.
    fn alone<R>(&self, change: impl FnOnce(&mut u32, &mut [Action; 2]) -> R) -> R {
        let mask = signal::set_mask(signal::ALL);
        let own = process::own();
        while own.is_some_and(|own| own.system_lock.swap(1, Ordering::Acquire) != 0) {
            ulpm_sys::sched_yield();
        }
        // SAFETY: the lock is ours.
        let result = unsafe { change(&mut *self.calls.get(), &mut *self.before.get()) };
        if let Some(own) = own {
            own.system_lock.store(0, Ordering::Release);
        }
        signal::set_mask(mask);
        result
    }

    /// Ignores the two signals, and returns what is to stand for them in the child.
    fn begin(&self) -> [Action; 2] {
        self.alone(|calls, before| {
            if *calls == 0 {
                let ignore = Action { handler: signal::SIG_IGN, ..Action::default() };
                *before = [SIGINT, SIGQUIT]
                    .map(|signo| signal::action(signo, Some(&ignore)).unwrap_or_default());
            }
            *calls += 1;
            *before
        })
    }

    fn end(&self) {
        self.alone(|calls, before| {
            *calls -= 1;
            if *calls == 0 {
                for (signo, action) in [SIGINT, SIGQUIT].into_iter().zip(before) {
                    let _ = signal::action(signo, Some(action));
                }
            }
        });
    }
}

/// `system()`: libc's own compares what its wait returns with the real id that it keeps, so this is
/// another, as POSIX describes it. A thread that is cancelled in it acts upon that when the command has
/// ended; libc's would end the command.
#[unsafe(no_mangle)]
unsafe extern "C" fn system(command: *const c_char) -> c_int {
    if command.is_null() || process::table().is_none() {
        // SAFETY: the caller vouches for the command.
        return unsafe { SYSTEM.get()(command) };
    }
    let before = IGNORED.begin();
    let mask = signal::block(signal::bit(signal::SIGCHLD));
    let mut cancel_state = 0;
    // SAFETY: the pointers are good for an int; 1 is PTHREAD_CANCEL_DISABLE.
    unsafe { pthread_setcancelstate(1, &raw mut cancel_state) };
    // SAFETY: the caller vouches for the command.
    let status = unsafe { run_shell(command, mask, before) };
    IGNORED.end();
    signal::set_mask(mask);
    // SAFETY: as above; a pending cancellation takes effect at the second call.
    unsafe {
        pthread_setcancelstate(cancel_state, ptr::null_mut());
        pthread_testcancel();
    }
    status
}

/// # Safety
///
/// `command` is a C string.
unsafe fn run_shell(command: *const c_char, mask: u64, before: [Action; 2]) -> c_int {
    const SETSIGDEF: i16 = 4;
    const SETSIGMASK: i16 = 8;
    let defaults = [SIGINT, SIGQUIT]
        .into_iter()
        .zip(before)
        .filter(|(_, action)| action.handler != signal::SIG_IGN)
        .fold(0, |set, (signo, _)| set | signal::bit(signo));
    let mut attributes = SpawnAttributes([0; 336]);
    let set = |mask: u64| {
        let mut set = [0u64; 16]; // sigset_t
        set[0] = mask;
        set
    };
    let mut child = 0;
    // SAFETY: the attributes are initialised before they are used and destroyed after; the sets and the
    // vectors, which end with null, live as long as the calls.
    let error = unsafe {
        posix_spawnattr_init(&raw mut attributes);
        posix_spawnattr_setsigmask(&raw mut attributes, set(mask).as_ptr());
        posix_spawnattr_setsigdefault(&raw mut attributes, set(defaults).as_ptr());
        posix_spawnattr_setflags(&raw mut attributes, SETSIGDEF | SETSIGMASK);
        let argv = [c"sh".as_ptr(), c"-c".as_ptr(), command, ptr::null()];
        let error = posix_spawn(
            &raw mut child,
            c"/bin/sh".as_ptr(),
            ptr::null(),
            (&raw const attributes).cast(),
            argv.as_ptr(),
            environ,
        );
        posix_spawnattr_destroy(&raw mut attributes);
        error
    };
    if error != 0 {
        return 127 << 8; // As if the shell had said that it cannot be executed.
    }
    await_child(child)
}

/// Waits for a child whatever else happens; returns its status, or -1 with `errno` set.
fn await_child(child: c_int) -> c_int {
    let mut status = 0;
    loop {
        // SAFETY: the status lives as long as the call.
        let waited = unsafe { waitpid(child, &raw mut status, 0) };
        if waited >= 0 {
            return status;
        }
        // SAFETY: libc returns a valid pointer to this thread's own errno.
        if unsafe { *crate::__errno_location() } != Errno::INTR.raw() {
            return -1;
        }
    }
}

/// A stream of ours and its child.
struct Opened {
    stream: AtomicPtr<c_void>,
    child: AtomicI32,
}

static OPENED: [Opened; 256] =
    [const { Opened { stream: AtomicPtr::new(ptr::null_mut()), child: AtomicI32::new(0) } }; 256];

/// Stands for a stream that is not there yet.
const RESERVED: *mut c_void = ptr::without_provenance_mut(1);

/// `popen()`: libc's own keeps the child's real id where we cannot find it, so this is another, made of
/// `posix_spawn` and `fdopen` as POSIX describes it. With more than 256 streams open at a time, further
/// ones are libc's, and cannot be closed after a restart.
#[unsafe(no_mangle)]
unsafe extern "C" fn popen(command: *const c_char, mode: *const c_char) -> *mut c_void {
    let claim = || {
        OPENED.iter().find(|entry| {
            let free = ptr::null_mut();
            entry
                .stream
                .compare_exchange(free, RESERVED, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        })
    };
    let Some(entry) = process::table().and_then(|_| claim()) else {
        mend_environ();
        // SAFETY: the caller vouches for the strings.
        return unsafe { POPEN.get()(command, mode) };
    };
    // SAFETY: as above.
    let stream = unsafe { open_shell(command, mode, entry) };
    match stream {
        Ok(stream) => {
            entry.stream.store(stream, Ordering::Release);
            stream
        }
        Err(errno) => {
            entry.stream.store(ptr::null_mut(), Ordering::Release);
            set_errno(errno);
            ptr::null_mut()
        }
    }
}

/// # Safety
///
/// Both pointers are C strings.
unsafe fn open_shell(
    command: *const c_char,
    mode: *const c_char,
    entry: &Opened,
) -> Result<*mut c_void, Errno> {
    // SAFETY: the caller vouches for the strings.
    let (reads, keeps) = match unsafe { CStr::from_ptr(mode) }.to_bytes() {
        b"r" => (true, true),
        b"w" => (false, true),
        b"re" | b"er" => (true, false),
        b"we" | b"ew" => (false, false),
        _ => return Err(Errno::INVAL),
    };
    let [read, write] = ulpm_sys::pipe(oflag::CLOEXEC)?;
    let (ours, theirs, number) = if reads { (read, write, 1) } else { (write, read, 0) };
    // SAFETY: the descriptor is ours, and the mode a C string.
    let stream = unsafe { fdopen(ours, if reads { c"r" } else { c"w" }.as_ptr()) };
    if stream.is_null() {
        ulpm_sys::close(ours);
        ulpm_sys::close(theirs);
        return Err(Errno::NOMEM);
    }
    let mut actions = FileActions([0; 80]);
    let mut child = 0;
    // SAFETY: the actions are initialised before they are used and destroyed after; the vectors end
    // with null and live as long as the call.
    let error = unsafe {
        posix_spawn_file_actions_init(&raw mut actions);
        posix_spawn_file_actions_adddup2(&raw mut actions, theirs, number);
        // POSIX: streams of earlier calls are closed in the new child.
        for other in &OPENED {
            let stream = other.stream.load(Ordering::Acquire);
            if !stream.is_null() && stream != RESERVED {
                let fd = fileno(stream);
                if fd >= 0 && fd != number {
                    posix_spawn_file_actions_addclose(&raw mut actions, fd);
                }
            }
        }
        let argv = [c"sh".as_ptr(), c"-c".as_ptr(), command, ptr::null()];
        let error = posix_spawn(
            &raw mut child,
            c"/bin/sh".as_ptr(),
            (&raw const actions).cast(),
            ptr::null(),
            argv.as_ptr(),
            environ,
        );
        posix_spawn_file_actions_destroy(&raw mut actions);
        error
    };
    ulpm_sys::close(theirs);
    if error != 0 {
        // SAFETY: the stream is ours, and nobody else has it.
        unsafe { fclose(stream) };
        return Err(Errno::from_raw(error));
    }
    entry.child.store(child, Ordering::Relaxed);
    if keeps {
        const F_SETFD: c_int = 2;
        let _ = ulpm_sys::fcntl(ours, F_SETFD, 0);
    }
    Ok(stream)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pclose(stream: *mut c_void) -> c_int {
    let own = OPENED.iter().find(|entry| entry.stream.load(Ordering::Acquire) == stream);
    let Some(entry) = own.filter(|_| !stream.is_null()) else {
        // SAFETY: the caller vouches for the stream.
        return unsafe { PCLOSE.get()(stream) };
    };
    let child = entry.child.load(Ordering::Relaxed);
    entry.stream.store(ptr::null_mut(), Ordering::Release);
    // SAFETY: the stream is `popen`'s, and closed once.
    unsafe { fclose(stream) };
    await_child(child)
}
