//! `inotify_add_watch`, which takes a path and leaves an inode.
//!
//! Reason: a *fact* that the kernel cannot be asked later, the path of the file that is watched.

use core::ffi::{c_char, c_int};

use crate::next::next;
use crate::watched;

next! {
    INOTIFY_ADD_WATCH = c"inotify_add_watch":
        unsafe extern "C" fn(c_int, *const c_char, u32) -> c_int;
}

/// Notes where the file is, before it is watched: a freeze must not come between.
#[unsafe(no_mangle)]
unsafe extern "C" fn inotify_add_watch(fd: c_int, path: *const c_char, mask: u32) -> c_int {
    watched::note(path, mask);
    // SAFETY: the caller vouches for the string, as the manual page demands.
    unsafe { INOTIFY_ADD_WATCH.get()(fd, path, mask) }
}
