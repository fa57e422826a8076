//! The functions of liburing that make a ring, which come to the kernel without libc's `syscall`.
//!
//! Reason: a *fact* of the job, that no ring can be saved. Programs that get this answer do without, as on a
//! kernel without io_uring; see `raw` for those that ask the kernel themselves.

use core::ffi::{c_int, c_uint, c_void};

use ulpm_sys::Errno;

/// liburing returns errors as negative numbers, and leaves `errno` alone.
const NONE: c_int = -Errno::NOSYS.raw();

#[unsafe(no_mangle)]
extern "C" fn io_uring_setup(_entries: c_uint, _parameters: *mut c_void) -> c_int {
    NONE
}

#[unsafe(no_mangle)]
extern "C" fn io_uring_queue_init(_entries: c_uint, _ring: *mut c_void, _flags: c_uint) -> c_int {
    NONE
}

#[unsafe(no_mangle)]
extern "C" fn io_uring_queue_init_params(
    _entries: c_uint,
    _ring: *mut c_void,
    _parameters: *mut c_void,
) -> c_int {
    NONE
}

#[unsafe(no_mangle)]
extern "C" fn io_uring_queue_init_mem(
    _entries: c_uint,
    _ring: *mut c_void,
    _parameters: *mut c_void,
    _memory: *mut c_void,
    _len: usize,
) -> c_int {
    NONE
}
