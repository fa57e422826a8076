//! Scheduling calls that take the id of a process or thread.
//!
//! Reason: *names* that change after a restart.

use core::ffi::{c_int, c_void};

use super::names::real_task as real; // A process's id is that of its leading thread.
use crate::critical::holding_name;
use crate::next::next;

next! {
    SCHED_GETAFFINITY = c"sched_getaffinity":
        unsafe extern "C" fn(c_int, usize, *mut c_void) -> c_int;
    SCHED_SETAFFINITY = c"sched_setaffinity":
        unsafe extern "C" fn(c_int, usize, *const c_void) -> c_int;
    SCHED_GETSCHEDULER = c"sched_getscheduler": unsafe extern "C" fn(c_int) -> c_int;
    SCHED_SETSCHEDULER = c"sched_setscheduler":
        unsafe extern "C" fn(c_int, c_int, *const c_void) -> c_int;
    SCHED_GETPARAM = c"sched_getparam": unsafe extern "C" fn(c_int, *mut c_void) -> c_int;
    SCHED_SETPARAM = c"sched_setparam": unsafe extern "C" fn(c_int, *const c_void) -> c_int;
    SCHED_RR_GET_INTERVAL = c"sched_rr_get_interval":
        unsafe extern "C" fn(c_int, *mut c_void) -> c_int;
    PRLIMIT64 = c"prlimit64":
        unsafe extern "C" fn(c_int, c_int, *const c_void, *mut c_void) -> c_int;
}

// The caller vouches for the pointers, as the manual pages demand.

#[unsafe(no_mangle)]
unsafe extern "C" fn sched_getaffinity(pid: c_int, len: usize, set: *mut c_void) -> c_int {
    // SAFETY: see above.
    holding_name(|| unsafe { SCHED_GETAFFINITY.get()(real(pid), len, set) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sched_setaffinity(pid: c_int, len: usize, set: *const c_void) -> c_int {
    // SAFETY: see above.
    holding_name(|| unsafe { SCHED_SETAFFINITY.get()(real(pid), len, set) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sched_getscheduler(pid: c_int) -> c_int {
    // SAFETY: see above.
    holding_name(|| unsafe { SCHED_GETSCHEDULER.get()(real(pid)) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sched_setscheduler(pid: c_int, policy: c_int, param: *const c_void) -> c_int {
    // SAFETY: see above.
    holding_name(|| unsafe { SCHED_SETSCHEDULER.get()(real(pid), policy, param) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sched_getparam(pid: c_int, param: *mut c_void) -> c_int {
    // SAFETY: see above.
    holding_name(|| unsafe { SCHED_GETPARAM.get()(real(pid), param) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sched_setparam(pid: c_int, param: *const c_void) -> c_int {
    // SAFETY: see above.
    holding_name(|| unsafe { SCHED_SETPARAM.get()(real(pid), param) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sched_rr_get_interval(pid: c_int, interval: *mut c_void) -> c_int {
    // SAFETY: see above.
    holding_name(|| unsafe { SCHED_RR_GET_INTERVAL.get()(real(pid), interval) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn prlimit64(
    pid: c_int,
    resource: c_int,
    new: *const c_void,
    old: *mut c_void,
) -> c_int {
    // SAFETY: see above.
    holding_name(|| unsafe { PRLIMIT64.get()(real(pid), resource, new, old) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn prlimit(
    pid: c_int,
    resource: c_int,
    new: *const c_void,
    old: *mut c_void,
) -> c_int {
    // SAFETY: see above. On x86-64 the two are one.
    unsafe { prlimit64(pid, resource, new, old) }
}
