//! Waiting for children.
//!
//! Reasons: the *names* of children, and the *fact* that one is gone, which frees its slot.

use core::ffi::{c_int, c_uint, c_void};

use ulpm_protocol::table::SlotState;
use ulpm_sys::signal::SigInfo;

use super::names;
use crate::critical::holding_name;
use crate::next::next;
use crate::process;

next! {
    WAIT4 = c"wait4": unsafe extern "C" fn(c_int, *mut c_int, c_int, *mut c_void) -> c_int;
    WAITPID = c"waitpid": unsafe extern "C" fn(c_int, *mut c_int, c_int) -> c_int;
    WAITID = c"waitid": unsafe extern "C" fn(c_uint, c_uint, *mut SigInfo, c_int) -> c_int;
}

/// Takes note of what a wait has returned, and gives the child's name.
pub(super) fn returned(real: c_int, status: c_int) -> c_int {
    let Some(table) = process::table().filter(|_| real > 0) else { return real };
    let virt = names::virt(real);
    // Neither stopped (0x7f) nor continued (0xffff): it has ended.
    let ended = status & 0x7f != 0x7f && status != 0xffff;
    if ended && let Some(slot) = table.by_real(real) {
        // Its process group may live on, and is known by its id.
        slot.set_state(if virt == real { SlotState::Gone } else { SlotState::Alias });
    }
    virt
}

// The calls are cancellation points: no value with a destructor is alive when they are passed on. The
// caller vouches for the pointers, as the manual page demands.

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int {
    let mut own_status = 0;
    // SAFETY: see above.
    holding_name(|| unsafe {
        let real = WAITPID.get()(names::real_or_group(pid), &raw mut own_status, options);
        if real > 0 && !status.is_null() {
            status.write(own_status);
        }
        returned(real, own_status)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int {
    // SAFETY: see above.
    unsafe { waitpid(pid, status, options) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wait(status: *mut c_int) -> c_int {
    // SAFETY: see above.
    unsafe { waitpid(-1, status, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wait4(
    pid: c_int,
    status: *mut c_int,
    options: c_int,
    usage: *mut c_void,
) -> c_int {
    let mut own_status = 0;
    // SAFETY: see above.
    holding_name(|| unsafe {
        let real = WAIT4.get()(names::real_or_group(pid), &raw mut own_status, options, usage);
        if real > 0 && !status.is_null() {
            status.write(own_status);
        }
        returned(real, own_status)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn wait3(status: *mut c_int, options: c_int, usage: *mut c_void) -> c_int {
    // SAFETY: see above.
    unsafe { wait4(-1, status, options, usage) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn waitid(
    which: c_uint,
    id: c_uint,
    info: *mut SigInfo,
    options: c_int,
) -> c_int {
    const P_PID: c_uint = 1;
    const P_PGID: c_uint = 2;
    const WNOWAIT: c_int = 0x0100_0000;
    /// CLD_EXITED, CLD_KILLED and CLD_DUMPED: the codes of a child that has ended.
    const ENDED: core::ops::RangeInclusive<c_int> = 1..=3;
    let mut own_info = SigInfo::zeroed();
    own_info.code = 0;
    // SAFETY: see above.
    holding_name(|| unsafe {
        let id = match which {
            P_PID => names::real(id.cast_signed()).cast_unsigned(),
            P_PGID => names::real_group(id.cast_signed()).cast_unsigned(),
            _ => id,
        };
        let result = WAITID.get()(which, id, &raw mut own_info, options);
        if result == 0 && own_info.pid > 0 {
            let ended = ENDED.contains(&own_info.code) && options & WNOWAIT == 0;
            own_info.pid =
                if ended { returned(own_info.pid, 0) } else { names::virt(own_info.pid) };
        }
        if result == 0 && !info.is_null() {
            info.write(own_info);
        }
        result
    })
}
