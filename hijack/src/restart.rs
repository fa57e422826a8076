//! The first steps of a restarted process.
//!
//! `ulpm_restart` has rebuilt the kernel's objects, the restorer the memory; then it jumps to
//! [`ulpm_restart_entry`] in the library as it lies in the image. What happens here was therefore
//! compiled with what was saved, and may rely on its layout.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ulpm_protocol::restart::RestartInfo;
use ulpm_sys::Errno;
use ulpm_sys::arch::{nr, prctl, syscall};

use crate::process;
use crate::threads::{self, Stopped};
use crate::{arch, manager};

/// The window to unmap once the leading thread has left it.
static WINDOW: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
static TIMERS: [[AtomicUsize; 2]; 3] = [const { [const { AtomicUsize::new(0) }; 2] }; 3];
static LIMITS: [[AtomicUsize; 3]; 4] = [const { [const { AtomicUsize::new(0) }; 3] }; 4];
static STOPPED: AtomicUsize = AtomicUsize::new(0);

/// Where the restorer jumps to.
///
/// # Safety
///
/// The calling thread is the only one of a process whose memory was restored from the image that this
/// code was saved in; `info` points into the restorer's window, as does the stack.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ulpm_restart_entry(info: *const RestartInfo) -> ! {
    // SAFETY: the caller vouches for it.
    let info = unsafe { &*info };
    // Everything, as in the handler that the threads will wait in; libc leaves out what it uses itself, and
    // so did ulpm_restart.
    ulpm_sys::signal::set_mask(ulpm_sys::signal::ALL);
    let Some(own) = process::own() else { crate::die("the image holds no process of a job") };
    let word = |value: u64| usize::try_from(value).unwrap_or(0);
    WINDOW[0].store(word(info.window[0]), Ordering::Relaxed);
    WINDOW[1].store(word(info.window[1]), Ordering::Relaxed);
    for (timer, saved) in TIMERS.iter().zip(info.timers) {
        timer[0].store(word(saved[0]), Ordering::Relaxed);
        timer[1].store(word(saved[1]), Ordering::Relaxed);
    }
    STOPPED.store(word(info.stopped), Ordering::Relaxed);
    for (limit, saved) in LIMITS.iter().zip(info.limits) {
        for (field, value) in limit.iter().zip(saved) {
            field.store(word(value), Ordering::Relaxed);
        }
    }
    process::set_restarted();
    // An older ulpm_restart says nothing of the vDSO, and offsets no clock.
    let vdso = if word(info.len) < size_of::<RestartInfo>() { [0; 2] } else { info.vdso.map(word) };
    own.outside_parent[0].store(info.outside_parent[0], Ordering::Relaxed);
    own.outside_parent[1].store(info.outside_parent[1], Ordering::Relaxed);
    own.thawed_epoch.store(0, Ordering::Relaxed);
    own.stopped.store(0, Ordering::Relaxed);
    threads::forget_restored();
    crate::freeze::forget_raised();
    crate::wrap::signals::stand_in_for_handlers();
    if let Some(table) = process::table() {
        crate::clock::restart(table, vdso);
        crate::locks::announce(&table);
    }

    let pid = process::virtual_pid(own);
    let mut leader = None;
    let mut count = 0;
    for stopped in threads::stopped(own) {
        count += 1;
        // SAFETY: the record is that of a thread which stood still in the image.
        if unsafe { (*stopped).virt } == pid {
            leader = Some(stopped);
        } else {
            // SAFETY: as above; nothing runs it.
            unsafe { clone(stopped) };
        }
    }
    if let Some(any) = leader.or_else(|| threads::stopped(own).next()) {
        // The manager begins with this thread's own: until now that of ulpm_restart, whose memory is gone. What a plugin's
        // callback reads there is what the compiler has put in (a stack protector's word).
        // SAFETY: the address was that thread's in the image.
        unsafe { syscall(nr::ARCH_PRCTL, [prctl::SET_FS, (*any).fs, 0, 0, 0, 0]) };
    }
    manager::start_restored(own, count);
    match leader {
        // SAFETY: as above; this thread has no other use any more.
        Some(leader) => unsafe { become_leader(leader) },
        // The leading thread had ended before the others: so it does again. It takes no window along,
        // which the first thaw unmaps.
        None => ulpm_sys::exit_thread(),
    }
}

/// # Safety
///
/// `stopped` is the record of a thread that nothing runs.
unsafe fn clone(stopped: *mut Stopped) {
    /// CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
    /// CLONE_SETTLS | CLONE_CHILD_CLEARTID: as pthread_create, which lets the kernel store the id
    /// too; the program knows the thread by its old one.
    const PTHREAD: usize =
        0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000 | 0x8_0000 | 0x20_0000;
    // SAFETY: the caller vouches for the record.
    let tid = unsafe {
        match clone_with_id(PTHREAD, stopped) {
            Some(tid) => tid,
            None => arch::clone_parked(
                PTHREAD,
                (*stopped).sp,
                (*stopped).tid_address,
                (*stopped).fs,
                stopped,
            ),
        }
    };
    if tid < 0 {
        crate::die(manager::NO_THREAD);
    }
}

/// Makes a thread with the id that the program knows it by, where the kernel grants that (with
/// `CAP_CHECKPOINT_RESTORE`, if it is free): then the kernel too finds it by what glibc has stored in mutexes.
///
/// # Safety
///
/// As [`clone`].
unsafe fn clone_with_id(flags: usize, stopped: *mut Stopped) -> Option<isize> {
    static REFUSED: AtomicBool = AtomicBool::new(false);
    if REFUSED.load(Ordering::Relaxed) {
        return None;
    }
    // SAFETY: the caller vouches for the record.
    let (virt, sp, tid_address, fs) =
        unsafe { ((*stopped).virt, (*stopped).sp, (*stopped).tid_address, (*stopped).fs) };
    let arguments = ulpm_sys::CloneArguments {
        flags: flags as u64,
        child_tid: tid_address as u64,
        // The kernel adds the two, and looks at nothing below.
        stack: (sp - ulpm_sys::PAGE) as u64,
        stack_size: ulpm_sys::PAGE as u64,
        tls: fs as u64,
        set_tid: (&raw const virt).addr() as u64,
        set_tid_size: 1,
        ..ulpm_sys::CloneArguments::default()
    };
    // SAFETY: as above.
    let returned = unsafe { arch::clone3_parked(&raw const arguments, stopped) };
    match ulpm_sys::check(returned.cast_unsigned()) {
        Ok(_) => Some(returned),
        Err(Errno::EXIST) => None,
        Err(_) => {
            REFUSED.store(true, Ordering::Relaxed);
            None
        }
    }
}

/// # Safety
///
/// `stopped` is the record of the leading thread, and the caller's stack is given up.
unsafe fn become_leader(stopped: *mut Stopped) -> ! {
    // SAFETY: the addresses were this thread's in the image.
    unsafe {
        syscall(nr::ARCH_PRCTL, [prctl::SET_FS, (*stopped).fs, 0, 0, 0, 0]);
        syscall(nr::SET_TID_ADDRESS, [(*stopped).tid_address, 0, 0, 0, 0, 0]);
        arch::become_parked(stopped)
    }
}

/// Whether the process stops when it first thaws.
pub(crate) fn will_stop() -> bool {
    STOPPED.load(Ordering::Relaxed) != 0
}

/// What remains to be done when all threads are back: nobody stands in the window any more, and time
/// begins to pass.
pub(crate) fn before_first_thaw() {
    let [start, len] = [0, 1].map(|i| WINDOW[i].load(Ordering::Relaxed));
    if len != 0 {
        // SAFETY: the window is the restorer's, and every thread has left it.
        unsafe { ulpm_sys::munmap(start, len) };
    }
    publish_names();
    if crate::seals::give_back().is_err() {
        crate::die("cannot seal a file of memfd_create(2) as it was");
    }
    for limit in &LIMITS {
        let [resource, current, maximum] = [0, 1, 2].map(|i| limit[i].load(Ordering::Relaxed));
        let limit = ulpm_sys::Limit { current: current as u64, maximum: maximum as u64 };
        ulpm_sys::set_limit(resource, limit);
    }
    for (which, timer) in TIMERS.iter().enumerate() {
        let [interval, value] = [0, 1].map(|i| timer[i].load(Ordering::Relaxed));
        if value != 0 || interval != 0 {
            // A periodic timer stands still from its end until its signal is taken: it ends at once.
            let value = value.max(1);
            let spec =
                [interval / 1_000_000, interval % 1_000_000, value / 1_000_000, value % 1_000_000];
            // SAFETY: the call reads a struct itimerval, which is four words.
            unsafe { syscall(nr::SETITIMER, [which, spec.as_ptr().addr(), 0, 0, 0, 0]) };
        }
    }
    crate::timers::arm();
    if STOPPED.swap(0, Ordering::Relaxed) != 0 {
        let _ = ulpm_sys::kill(ulpm_sys::getpid(), ulpm_sys::signal::SIGSTOP);
    }
}

/// Puts the files of the job's unix sockets at their places. Each process does all of them before it goes on,
/// so that none can come too early for another's.
fn publish_names() {
    use core::ffi::CStr;
    let Some(table) = process::table() else { return };
    let path = [table.path(), ulpm_protocol::restart::NAMES.as_bytes(), b"\0"].concat();
    let Ok(path) = CStr::from_bytes_with_nul(&path) else { return };
    let Ok(file) = ulpm_sys::open(path, ulpm_sys::oflag::RDONLY | ulpm_sys::oflag::CLOEXEC) else {
        return;
    };
    let mut names = alloc::vec![0; 1 << 20];
    let mut len = 0;
    while let Ok(more @ 1..) = ulpm_sys::read(file, &mut names[len..]) {
        len += more;
    }
    ulpm_sys::close(file);
    let mut rest = &names[..len];
    while let Ok(from) = CStr::from_bytes_until_nul(rest) {
        rest = &rest[from.to_bytes_with_nul().len()..];
        let Ok(to) = CStr::from_bytes_until_nul(rest) else { break };
        rest = &rest[to.to_bytes_with_nul().len()..];
        // It fails if another process was quicker.
        let _ = ulpm_sys::rename(from, to);
    }
    let _ = ulpm_sys::unlink(path);
}
