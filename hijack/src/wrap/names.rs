//! Process, thread, group and session ids.
//!
//! Reason: *names* that change after a restart. `getpid` and its like answer from memory.

use core::ffi::{c_int, c_long, c_uint};
use core::sync::atomic::Ordering;

use ulpm_protocol::table::{Slot, is_failure};
use ulpm_sys::arch::{nr, syscall};
use ulpm_sys::{Errno, check, word};

use super::fork::VFORKING;
use crate::critical::holding_name;
use crate::next::next;
use crate::{libc_result, process, set_errno, threads};

next! {
    TCGETPGRP = c"tcgetpgrp": unsafe extern "C" fn(c_int) -> c_int;
    TCSETPGRP = c"tcsetpgrp": unsafe extern "C" fn(c_int, c_int) -> c_int;
    TCGETSID = c"tcgetsid": unsafe extern "C" fn(c_int) -> c_int;
    PTRACE = c"ptrace": unsafe extern "C" fn(c_uint, c_int, usize, usize) -> c_long;
    PRCTL = c"prctl": unsafe extern "C" fn(c_int, usize, usize, usize, usize) -> c_int;
}

/// The real id behind one that the program passes; itself for one that is not the job's.
pub(super) fn real(virt: c_int) -> c_int {
    match process::table() {
        Some(table) if virt > 0 && process::is_restarted() => table.real_of(virt),
        _ => virt,
    }
}

/// The same for a process group.
pub(super) fn real_group(virt: c_int) -> c_int {
    match process::table() {
        Some(table) if virt > 0 && process::is_restarted() => table.real_group(virt),
        _ => virt,
    }
}

/// `kill`'s and `waitpid`'s way of naming a group: a negative id.
pub(super) fn real_or_group(id: c_int) -> c_int {
    if id < -1 { -real_group(-id) } else { real(id) }
}

/// The id by which the program knows a real one.
pub(super) fn virt(real: c_int) -> c_int {
    match process::table() {
        Some(table) if real > 0 && process::is_restarted() => table.virtual_of(real),
        _ => real,
    }
}

/// The real id behind that of a process or a thread.
pub(super) fn real_task(virt: c_int) -> c_int {
    match threads::real_tid(virt) {
        same if same == virt => real(virt),
        thread => thread,
    }
}

/// The id by which the program knows a real process or thread.
pub(super) fn virt_task(real: c_int) -> c_int {
    match threads::virtual_tid(real) {
        same if same == real => virt(real),
        thread => thread,
    }
}

/// The same for a process group. It is 0 if the group lies in another pid namespace.
pub(super) fn virt_group(real: c_int) -> c_int {
    match process::table() {
        Some(table) if real >= 0 && process::is_restarted() => table.virtual_group(real),
        _ => real,
    }
}

/// The same for a session.
pub(super) fn virt_session(real: c_int) -> c_int {
    match process::table() {
        Some(table) if real >= 0 && process::is_restarted() => table.virtual_session(real),
        _ => real,
    }
}

fn call(number: usize, [a, b, c]: [c_int; 3]) -> Result<c_int, Errno> {
    let word = |value: c_int| value as isize as usize;
    // SAFETY: every call that is made here takes numbers only.
    let returned = unsafe { syscall(number, [word(a), word(b), word(c), 0, 0, 0]) };
    #[expect(clippy::cast_possible_truncation, reason = "the kernel returns an int")]
    check(returned).map(|value| value as c_int)
}

/// The calling process's user, for a siginfo.
pub(super) fn user() -> u32 {
    const GETUID: usize = 102;
    // SAFETY: the call takes nothing.
    u32::try_from(unsafe { syscall(GETUID, [0; 6]) }).unwrap_or(0)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn getpid() -> c_int {
    match process::own() {
        // A vfork child answers for itself, though it finds its parent's memory.
        Some(_) if VFORKING.load(Ordering::Relaxed) != 0 => virt(ulpm_sys::getpid()),
        Some(own) => process::virtual_pid(own),
        None => ulpm_sys::getpid(),
    }
}

/// The parent's id as the program sees it.
pub(crate) fn parent_pid() -> c_int {
    let real = ulpm_sys::getppid();
    let outside = process::own()
        .map_or([0; 2], |own| [0, 1].map(|i| own.outside_parent[i].load(Ordering::Relaxed)));
    if outside[0] == real && real != 0 { outside[1] } else { virt(real) }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn getppid() -> c_int {
    holding_name(parent_pid)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn gettid() -> c_int {
    holding_name(|| threads::virtual_tid(ulpm_sys::gettid()))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn getpgrp() -> c_int {
    holding_name(|| virt_group(ulpm_sys::getpgid(0).unwrap_or(0)))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn getpgid(pid: c_int) -> c_int {
    holding_name(|| libc_result(ulpm_sys::getpgid(real(pid)).map(virt_group)))
}

#[unsafe(no_mangle)]
extern "C" fn __getpgid(pid: c_int) -> c_int {
    getpgid(pid)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn getsid(pid: c_int) -> c_int {
    holding_name(|| libc_result(ulpm_sys::getsid(real(pid)).map(virt_session)))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn setpgid(pid: c_int, group: c_int) -> c_int {
    holding_name(|| libc_result(ulpm_sys::setpgid(real(pid), real_group(group)).map(|()| 0)))
}

#[unsafe(no_mangle)]
extern "C" fn setpgrp() -> c_int {
    libc_result(ulpm_sys::setpgid(0, 0).map(|()| 0))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn setsid() -> c_int {
    holding_name(|| libc_result(call(nr::SETSID, [0; 3]).map(virt)))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn kill(pid: c_int, signal: c_int) -> c_int {
    holding_name(|| {
        let real = real_or_group(pid);
        note_kill(real, signal);
        libc_result(call(nr::KILL, [real, signal, 0]))
    })
}

/// Notes whom the program ends on purpose by a signal that would be a failure otherwise: a *fact*, for the kernel tells
/// nobody later who has sent it. Takes a real id as kill(2) does.
fn note_kill(real: c_int, signal: c_int) {
    let Some(table) = process::table().filter(|_| is_failure(signal)) else { return };
    let note = |slot: &Slot| slot.killed.store(signal, Ordering::Release);
    let own = ulpm_sys::getpid();
    if real > 0 {
        // A process that signals itself does so to die of what has happened to it.
        if let Some(slot) = table.by_real(real).filter(|_| real != own) {
            note(slot);
        }
        return;
    }
    // A group, or everybody.
    let group = if real == 0 { ulpm_sys::getpgid(0).unwrap_or(0) } else { -real };
    for slot in table.slots().iter().filter(|slot| slot.is_member()) {
        // kill(-1) spares the caller.
        if (real == -1 && slot.real() != own) || ulpm_sys::getpgid(slot.real()) == Ok(group) {
            note(slot);
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn killpg(group: c_int, signal: c_int) -> c_int {
    if group < 0 {
        set_errno(Errno::INVAL);
        return -1;
    }
    kill(-group, signal)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn tgkill(pid: c_int, tid: c_int, signal: c_int) -> c_int {
    holding_name(|| {
        let own = process::own().map_or(0, process::virtual_pid);
        let tid = if pid == own { threads::real_tid(tid) } else { tid };
        if pid != own {
            note_kill(real(pid), signal);
        }
        libc_result(call(nr::TGKILL, [real(pid), tid, signal]))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sigqueue(pid: c_int, signal: c_int, value: u64) -> c_int {
    // The sender's id is part of the message; the kernel takes it as it is given.
    let own = getpid();
    let mut info = ulpm_sys::signal::SigInfo::queued(signal, value);
    (info.pid, info.uid) = (own, user());
    holding_name(|| {
        let real = real(pid);
        note_kill(real, signal);
        libc_result(ulpm_sys::signal::queue_to_process(real, &info).map(|()| 0))
    })
}

/// Whom `getpriority` and `setpriority` mean: a process, a group, or a user.
pub(super) fn real_who(which: c_uint, who: c_uint) -> c_int {
    const PRIO_PROCESS: c_uint = 0;
    const PRIO_PGRP: c_uint = 1;
    match which {
        PRIO_PROCESS => real_task(who.cast_signed()),
        PRIO_PGRP => real_group(who.cast_signed()),
        _ => who.cast_signed(),
    }
}

#[unsafe(no_mangle)]
extern "C" fn getpriority(which: c_uint, who: c_uint) -> c_int {
    const GETPRIORITY: usize = 140;
    // The kernel returns 20 - nice, so that no result looks like an error.
    holding_name(|| {
        let who = real_who(which, who);
        libc_result(call(GETPRIORITY, [which.cast_signed(), who, 0]).map(|value| 20 - value))
    })
}

#[unsafe(no_mangle)]
extern "C" fn setpriority(which: c_uint, who: c_uint, priority: c_int) -> c_int {
    const SETPRIORITY: usize = 141;
    holding_name(|| {
        let who = real_who(which, who);
        libc_result(call(SETPRIORITY, [which.cast_signed(), who, priority]))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcgetpgrp(fd: c_int) -> c_int {
    // SAFETY: passed on.
    holding_name(|| virt_group(unsafe { TCGETPGRP.get()(fd) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcsetpgrp(fd: c_int, group: c_int) -> c_int {
    // SAFETY: passed on.
    unsafe { TCSETPGRP.get()(fd, real_group(group)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcgetsid(fd: c_int) -> c_int {
    // SAFETY: passed on.
    holding_name(|| virt_session(unsafe { TCGETSID.get()(fd) }))
}

// The next two are variadic in C; on x86-64 one more integer or pointer comes in the next register all the same.

#[unsafe(no_mangle)]
unsafe extern "C" fn ptrace(request: c_uint, pid: c_int, address: usize, data: usize) -> c_long {
    // SAFETY: passed on.
    holding_name(|| unsafe { PTRACE.get()(request, real_task(pid), address, data) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn prctl(option: c_int, a: usize, b: usize, c: usize, d: usize) -> c_int {
    /// PR_SET_PTRACER names a process, or 0 for none, or -1 for any.
    const SET_PTRACER: c_int = 0x5961_6d61;
    // SAFETY: passed on.
    unsafe {
        if option != SET_PTRACER || !process::is_restarted() {
            return PRCTL.get()(option, a, b, c, d);
        }
        holding_name(|| {
            let id = c_int::try_from(a).map_or(a, |pid| word(real(pid)));
            PRCTL.get()(option, id, b, c, d)
        })
    }
}
