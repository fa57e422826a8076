//! Functions of libc that hand its own copy of a thread's id to the kernel.
//!
//! Reason: a *name* that changes after a restart. glibc keeps the id in its thread descriptor and in
//! the mutexes that a thread owns, so after a restart that copy stays the virtual one; where it would
//! reach the kernel, the real one is used instead. Before a restart the two are equal, and the calls
//! are passed on.

use core::ffi::{c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use ulpm_plugin::event;
use ulpm_sys::arch::{nr, syscall};
use ulpm_sys::{Errno, map, pr, prot, word};

use crate::critical::holding_name;
use crate::next::next;
use crate::{plugins, process, threads};

/// `pthread_t`: the address of the thread's descriptor, which is its thread pointer.
type Pthread = usize;
type Start = extern "C" fn(*mut c_void) -> *mut c_void;

#[link(name = "c")]
unsafe extern "C" {
    fn pthread_key_create(key: *mut u32, destructor: extern "C" fn(*mut c_void)) -> c_int;
    fn pthread_setspecific(key: u32, value: *const c_void) -> c_int;
    fn pthread_attr_init(attributes: *mut c_void) -> c_int;
    fn pthread_attr_destroy(attributes: *mut c_void) -> c_int;
    fn pthread_attr_setdetachstate(attributes: *mut c_void, state: c_int) -> c_int;
    fn pthread_attr_setstacksize(attributes: *mut c_void, size: usize) -> c_int;
}

next! {
    PTHREAD_CREATE = c"pthread_create":
        unsafe extern "C" fn(*mut Pthread, *const c_void, Start, *mut c_void) -> c_int;
    PTHREAD_KILL = c"pthread_kill": unsafe extern "C" fn(Pthread, c_int) -> c_int;
    PTHREAD_SIGQUEUE = c"pthread_sigqueue": unsafe extern "C" fn(Pthread, c_int, u64) -> c_int;
    PTHREAD_CANCEL = c"pthread_cancel": unsafe extern "C" fn(Pthread) -> c_int;
    PTHREAD_SETNAME_NP = c"pthread_setname_np": unsafe extern "C" fn(Pthread, *const i8) -> c_int;
    PTHREAD_GETNAME_NP = c"pthread_getname_np":
        unsafe extern "C" fn(Pthread, *mut i8, usize) -> c_int;
    PTHREAD_SETAFFINITY_NP = c"pthread_setaffinity_np":
        unsafe extern "C" fn(Pthread, usize, *const c_void) -> c_int;
    PTHREAD_GETAFFINITY_NP = c"pthread_getaffinity_np":
        unsafe extern "C" fn(Pthread, usize, *mut c_void) -> c_int;
    PTHREAD_GETATTR_NP = c"pthread_getattr_np":
        unsafe extern "C" fn(Pthread, *mut c_void) -> c_int;
    PTHREAD_SETSCHEDPRIO = c"pthread_setschedprio": unsafe extern "C" fn(Pthread, c_int) -> c_int;
    CLOCK_GETCPUCLOCKID = c"clock_getcpuclockid": unsafe extern "C" fn(c_int, *mut c_int) -> c_int;
    PTHREAD_SETSCHEDPARAM = c"pthread_setschedparam":
        unsafe extern "C" fn(Pthread, c_int, *const c_void) -> c_int;
    PTHREAD_GETSCHEDPARAM = c"pthread_getschedparam":
        unsafe extern "C" fn(Pthread, *mut c_int, *mut c_void) -> c_int;
    PTHREAD_GETCPUCLOCKID = c"pthread_getcpuclockid":
        unsafe extern "C" fn(Pthread, *mut c_int) -> c_int;
}

/// glibc's copy of a thread's id.
///
/// Where it lies in the descriptor is asked of the kernel, which clears it when the thread ends.
///
/// # Safety
///
/// `thread` is that of a thread which has not been joined.
unsafe fn copy_of_tid(thread: Pthread) -> &'static AtomicI32 {
    let mut own_address = 0usize;
    let mut own_fs = 0usize;
    // SAFETY: both calls store one word.
    unsafe {
        let _ = ulpm_sys::prctl(pr::GET_TID_ADDRESS, [(&raw mut own_address).addr(), 0]);
        let operation = ulpm_sys::arch::prctl::GET_FS;
        syscall(nr::ARCH_PRCTL, [operation, (&raw mut own_fs).addr(), 0, 0, 0, 0]);
    }
    let offset = own_address.wrapping_sub(own_fs);
    // SAFETY: every descriptor has it at the same place.
    unsafe { &*ptr::with_exposed_provenance::<AtomicI32>(thread.wrapping_add(offset)) }
}

/// The real id of a thread, in a process that was restarted; `None` if it was not, or the thread has ended.
///
/// # Safety
///
/// As [`copy_of_tid`].
unsafe fn other_tid(thread: Pthread) -> Option<c_int> {
    process::own().filter(|_| process::is_restarted())?;
    // SAFETY: the caller vouches for the thread.
    let copy = unsafe { copy_of_tid(thread) };
    let virt = copy.load(Ordering::Acquire);
    (virt > 0).then(|| threads::real_tid(virt))
}

/// A system call whose error is returned, as the pthread functions do.
///
/// # Safety
///
/// The arguments are what the call takes.
unsafe fn direct(number: usize, args: [usize; 6]) -> c_int {
    // SAFETY: the caller vouches for the arguments.
    match ulpm_sys::check(unsafe { syscall(number, args) }) {
        Ok(_) => 0,
        Err(errno) => errno.raw(),
    }
}

// The caller vouches for the arguments of each wrapper below, as the manual page of the function that
// it stands in front of demands.

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_kill(thread: Pthread, signal: c_int) -> c_int {
    // SAFETY: see above.
    holding_name(|| unsafe {
        match other_tid(thread) {
            None => PTHREAD_KILL.get()(thread, signal),
            Some(tid) => {
                direct(nr::TGKILL, [word(ulpm_sys::getpid()), word(tid), word(signal), 0, 0, 0])
            }
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_sigqueue(thread: Pthread, signal: c_int, value: u64) -> c_int {
    // SAFETY: see above.
    holding_name(|| unsafe {
        match other_tid(thread) {
            None => PTHREAD_SIGQUEUE.get()(thread, signal, value),
            Some(tid) => {
                let own = process::own().map_or(0, process::virtual_pid);
                let mut info = ulpm_sys::signal::SigInfo::queued(signal, value);
                (info.pid, info.uid) = (own, super::names::user());
                let sent = ulpm_sys::signal::queue_to_thread(ulpm_sys::getpid(), tid, &info);
                sent.err().map_or(0, Errno::raw)
            }
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_cancel(thread: Pthread) -> c_int {
    const SIGCANCEL: c_int = 32;
    // SAFETY: see above.
    holding_name(|| unsafe {
        let result = PTHREAD_CANCEL.get()(thread);
        // It has marked the thread; its signal went to the virtual id. glibc's handler looks at the
        // mark, and is there since the call.
        match other_tid(thread) {
            None => result,
            Some(tid) => {
                direct(nr::TGKILL, [word(ulpm_sys::getpid()), word(tid), word(SIGCANCEL), 0, 0, 0]);
                0
            }
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_setname_np(thread: Pthread, name: *const i8) -> c_int {
    // SAFETY: see above.
    holding_name(|| unsafe {
        let Some(tid) = other_tid(thread) else { return PTHREAD_SETNAME_NP.get()(thread, name) };
        let name = core::ffi::CStr::from_ptr(name).to_bytes();
        if name.len() > 15 {
            return 34; // ERANGE
        }
        with_comm(tid, ulpm_sys::oflag::WRONLY, |fd| ulpm_sys::write(fd, name).map(|_| 0))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_getname_np(thread: Pthread, name: *mut i8, len: usize) -> c_int {
    // SAFETY: see above.
    holding_name(|| unsafe {
        let Some(tid) = other_tid(thread) else {
            return PTHREAD_GETNAME_NP.get()(thread, name, len);
        };
        if len < 16 {
            return 34; // ERANGE
        }
        let name = core::slice::from_raw_parts_mut(name.cast::<u8>(), 16);
        with_comm(tid, ulpm_sys::oflag::RDONLY, |fd| {
            // The name and a line feed, which becomes its end.
            let len = ulpm_sys::read(fd, name)?;
            name[len.saturating_sub(1)] = 0;
            Ok(0)
        })
    })
}

fn with_comm(tid: c_int, flags: c_int, run: impl FnOnce(c_int) -> Result<c_int, Errno>) -> c_int {
    let path = ulpm_sys::fmt::Text::<64>::path(format_args!("/proc/self/task/{tid}/comm"));
    let result = ulpm_sys::open(path.c_str(), flags | ulpm_sys::oflag::CLOEXEC).and_then(|fd| {
        let result = run(fd);
        ulpm_sys::close(fd);
        result
    });
    result.unwrap_or_else(Errno::raw)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_setaffinity_np(
    thread: Pthread,
    len: usize,
    set: *const c_void,
) -> c_int {
    // SAFETY: see above.
    holding_name(|| unsafe {
        match other_tid(thread) {
            None => PTHREAD_SETAFFINITY_NP.get()(thread, len, set),
            Some(tid) => direct(nr::SCHED_SETAFFINITY, [word(tid), len, set.addr(), 0, 0, 0]),
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_getaffinity_np(
    thread: Pthread,
    len: usize,
    set: *mut c_void,
) -> c_int {
    // SAFETY: see above.
    holding_name(|| unsafe {
        let Some(tid) = other_tid(thread) else {
            return PTHREAD_GETAFFINITY_NP.get()(thread, len, set);
        };
        // The kernel fills as much as it knows; the rest is to be zero.
        let args = [word(tid), len.min(i32::MAX as usize), set.addr(), 0, 0, 0];
        match ulpm_sys::check(syscall(nr::SCHED_GETAFFINITY, args)) {
            Ok(filled) => {
                set.cast::<u8>().add(filled).write_bytes(0, len.saturating_sub(filled));
                0
            }
            Err(errno) => errno.raw(),
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_setschedparam(
    thread: Pthread,
    policy: c_int,
    param: *const c_void,
) -> c_int {
    const SCHED_SETSCHEDULER: usize = 144;
    // SAFETY: see above.
    holding_name(|| unsafe {
        match other_tid(thread) {
            None => PTHREAD_SETSCHEDPARAM.get()(thread, policy, param),
            Some(tid) => {
                direct(SCHED_SETSCHEDULER, [word(tid), word(policy), param.addr(), 0, 0, 0])
            }
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_getschedparam(
    thread: Pthread,
    policy: *mut c_int,
    param: *mut c_void,
) -> c_int {
    const SCHED_GETSCHEDULER: usize = 145;
    const SCHED_GETPARAM: usize = 143;
    // SAFETY: see above.
    holding_name(|| unsafe {
        let Some(tid) = other_tid(thread) else {
            return PTHREAD_GETSCHEDPARAM.get()(thread, policy, param);
        };
        match ulpm_sys::check(syscall(SCHED_GETSCHEDULER, [word(tid), 0, 0, 0, 0, 0])) {
            Ok(found) => {
                policy.write(c_int::try_from(found).unwrap_or(0));
                direct(SCHED_GETPARAM, [word(tid), param.addr(), 0, 0, 0, 0])
            }
            Err(errno) => errno.raw(),
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_getcpuclockid(thread: Pthread, clock: *mut c_int) -> c_int {
    // SAFETY: see above.
    holding_name(|| unsafe {
        let Some(tid) = other_tid(thread) else {
            return PTHREAD_GETCPUCLOCKID.get()(thread, clock);
        };
        // A thread's CPU clock: its id inverted, and CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED below it
        // (include/linux/posix-timers_types.h).
        clock.write((!tid << 3) | 6);
        0
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_setschedprio(thread: Pthread, priority: c_int) -> c_int {
    const SCHED_SETPARAM: usize = 142;
    // SAFETY: see above.
    holding_name(|| unsafe {
        match other_tid(thread) {
            None => PTHREAD_SETSCHEDPRIO.get()(thread, priority),
            Some(tid) => {
                let at = (&raw const priority).addr(); // struct sched_param holds just this.
                direct(SCHED_SETPARAM, [word(tid), at, 0, 0, 0, 0])
            }
        }
    })
}

/// `pthread_getattr_np()` asks for the thread's processors inside libc, by its copy of the id, when all else stands in the
/// attributes: after a restart nobody has that id, or another thread. So they are put in afterwards.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_getattr_np(thread: Pthread, attributes: *mut c_void) -> c_int {
    #[link(name = "c")]
    unsafe extern "C" {
        fn pthread_attr_setaffinity_np(
            attributes: *mut c_void,
            len: usize,
            set: *const c_void,
        ) -> c_int;
    }
    // SAFETY: see above.
    holding_name(|| unsafe {
        let result = PTHREAD_GETATTR_NP.get()(thread, attributes);
        match other_tid(thread) {
            Some(tid) if result == 0 || result == Errno::SRCH.raw() => {
                match ulpm_sys::affinity(tid) {
                    Ok(set) => {
                        let at = set.as_ptr().cast();
                        pthread_attr_setaffinity_np(attributes, size_of_val(&set), at)
                    }
                    Err(errno) => errno.raw(),
                }
            }
            _ => result,
        }
    })
}

/// `clock_getcpuclockid()`: a clock has the real id in it, as the kernel wants it.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_getcpuclockid(pid: c_int, clock: *mut c_int) -> c_int {
    // SAFETY: see above.
    holding_name(|| unsafe { CLOCK_GETCPUCLOCKID.get()(super::names::real(pid), clock) })
}

/// What a thread that is created after a restart is to run.
struct Created {
    start: Start,
    argument: *mut c_void,
}

/// `pthread_create`: passed on until a restart; after one, the new thread's id may be a number by which
/// another thread goes already, and is settled before its code runs.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut Pthread,
    attributes: *const c_void,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: see above.
    unsafe {
        if !process::is_restarted() && !plugins::wants_threads() {
            return create(thread, attributes, start, argument);
        }
        // A page of its own: this may be any thread, and the heap is the manager's.
        let flags = map::PRIVATE | map::ANONYMOUS;
        let page = ulpm_sys::mmap(0, ulpm_sys::PAGE, prot::READ | prot::WRITE, flags, -1, 0);
        let Ok(page) = page else { return Errno::AGAIN.raw() };
        let created = ptr::with_exposed_provenance_mut::<Created>(page);
        created.write(Created { start, argument });
        let result = create(thread, attributes, begin, created.cast());
        if result != 0 {
            ulpm_sys::munmap(page, ulpm_sys::PAGE);
        }
        result
    }
}

/// # Safety
///
/// As pthread_create(3).
unsafe fn create(
    thread: *mut Pthread,
    attributes: *const c_void,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: the caller vouches for the arguments.
    let result = unsafe { PTHREAD_CREATE.get()(thread, attributes, start, argument) };
    // glibc installs its own with the first thread of a process, and again with that of a forked child.
    if process::own().is_some() {
        threads::keep_handler();
    }
    result
}

extern "C" fn begin(created: *mut c_void) -> *mut c_void {
    // SAFETY: `pthread_create` above passes a `Created` in a page of its own, to be given back here.
    let Created { start, argument } = unsafe {
        let Created { start, argument } = created.cast::<Created>().read();
        ulpm_sys::munmap(created.addr(), ulpm_sys::PAGE);
        Created { start, argument }
    };
    let mut fs: Pthread = 0;
    // SAFETY: the call stores one word, the thread's own descriptor.
    unsafe {
        let operation = ulpm_sys::arch::prctl::GET_FS;
        syscall(nr::ARCH_PRCTL, [operation, (&raw mut fs).addr(), 0, 0, 0, 0]);
        if process::is_restarted() {
            holding_name(|| {
                threads::settle_new(ulpm_sys::gettid(), copy_of_tid(fs));
                0
            });
        }
    }
    if plugins::wants_threads() {
        note_end();
        plugins::tell(event::THREAD_START, 0, None);
    }
    start(argument)
}

/// Has the plugins told when this thread ends, in whatever way.
fn note_end() {
    /// The key whose destructor does that, plus one; 0 before there is one.
    static KEY: AtomicU32 = AtomicU32::new(0);
    let mut key = KEY.load(Ordering::Acquire);
    if key == 0 {
        let mut made = 0;
        // SAFETY: the call stores the key.
        if unsafe { pthread_key_create(&raw mut made, ended) } != 0 {
            return;
        }
        // One that another thread has made meanwhile will do; that keys are few is no matter for so rare a case.
        key = match KEY.compare_exchange(0, made + 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => made + 1,
            Err(other) => other,
        };
    }
    // SAFETY: the key is valid; the value only has to be none that is null.
    unsafe { pthread_setspecific(key - 1, (&raw const KEY).cast()) };
}

extern "C" fn ended(_: *mut c_void) {
    plugins::tell(event::THREAD_EXIT, 0, None);
}

/// Starts a thread of ours that libc knows, and that nobody joins; false if there can be none.
pub(crate) fn create_detached(start: Start) -> bool {
    const PTHREAD_CREATE_DETACHED: c_int = 1;
    const STACK: usize = 1 << 20;
    // `pthread_attr_t` has 56 bytes.
    let mut attributes = [0u64; 8];
    let at = attributes.as_mut_ptr().cast::<c_void>();
    let mut thread: Pthread = 0;
    // SAFETY: the attributes are initialized before they are used, and nothing else is read.
    unsafe {
        if pthread_attr_init(at) != 0 {
            return false;
        }
        pthread_attr_setdetachstate(at, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(at, STACK);
        let result = create(&raw mut thread, at, start, ptr::null_mut());
        pthread_attr_destroy(at);
        result == 0
    }
}
