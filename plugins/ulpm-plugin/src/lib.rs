//! What a plugin and ULPM agree on; the same as `plugins/include/ulpm_plugin.h`, to the byte.
//!
//! A plugin is a shared object that exports one [`Plugin`] under the name `ulpm_plugin`. `ulpm_launch --plugin PATH`
//! has the dynamic linker load it into every process of the job, before the program begins.
//!
//! ```text
//!  init ─ … pre-migrate ─ pre-freeze ─ frozen ─┬─ thaw after checkpoint ─────────────── … ─ exit
//!                                              ├─ thaw after abort
//!                                              └─ restored ─ thaw after restart ─ post-migrate
//! ```
//!
//! Plugins are called in the order of the command line on the way in, and in the opposite order on the way back
//! ([`event::RESTORED`], the thaws, [`event::POST_MIGRATE`], [`event::EXEC_FAILED`], [`event::EXIT`]).
//!
//! # Rules
//!
//! Every structure begins with its size, new fields go last, and a number is never used again for something else. A
//! plugin is called for events that it asks for, and no others. Which thread calls it, and what it may do there, stands
//! with each event.

#![no_std]

use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem::size_of;

/// Version of this interface: raised when something that was there changes its meaning.
pub const ABI: u32 = 1;

/// Name of the symbol that a plugin exports.
pub const SYMBOL: &str = "ulpm_plugin";

/// Events. *Helper*: a thread of the process that runs plugins only; all of libc may be called there, while the program
/// runs. *Program*: the thread of the program that makes the call; what POSIX permits there. *Manager*: a thread without
/// libc, while every other thread stands still: system calls only, no libc, no lock, no thread-local storage; such a
/// callback that crashes ends the process.
pub mod event {
    /// The program is about to begin, or was just executed. Program.
    pub const INIT: u32 = 1;
    /// The program ends by exit(3). Program.
    pub const EXIT: u32 = 2;
    /// A thread was started by pthread_create(3). Program: the new thread.
    pub const THREAD_START: u32 = 3;
    /// A thread returns or calls pthread_exit(3). Program: that thread.
    pub const THREAD_EXIT: u32 = 4;
    /// fork(3) has made `child`. Program.
    pub const FORK_PARENT: u32 = 5;
    /// In the child of fork(3). Program: its only thread.
    pub const FORK_CHILD: u32 = 6;
    /// The process is about to execute `path`. Program; async-signal-safe calls only, and not from a vfork(2) child.
    pub const BEFORE_EXEC: u32 = 7;
    /// The new program, after [`INIT`]. Program.
    pub const AFTER_EXEC: u32 = 8;
    /// It was not executed, and the old program goes on. Program; as [`BEFORE_EXEC`].
    pub const EXEC_FAILED: u32 = 9;
    /// The job is about to be saved. Helper. What is not 0 is a veto: the checkpoint is refused with the plugin's name and
    /// what it has written to `reason`.
    pub const PRE_FREEZE: u32 = 10;
    /// Every thread of this process stands still. Manager.
    pub const FROZEN: u32 = 11;
    /// The content of the checkpoint is fixed, and the program goes on. Helper.
    pub const THAW_CHECKPOINT: u32 = 12;
    /// The program goes on from an image. Helper.
    pub const THAW_RESTART: u32 = 13;
    /// There is no checkpoint, and the program goes on. Helper. Only for a plugin whose [`PRE_FREEZE`] was called.
    pub const THAW_ABORT: u32 = 14;
    /// The job is about to move, before [`PRE_FREEZE`]. Helper; may veto as that.
    pub const PRE_MIGRATE: u32 = 15;
    /// The job goes on on another host, after [`THAW_RESTART`]. Helper.
    pub const POST_MIGRATE: u32 = 16;
    /// The process was made from an image, and nobody goes on yet. Manager.
    pub const RESTORED: u32 = 17;

    /// One more than the highest.
    pub const COUNT: usize = 18;
    /// The bits of all that there are, and will be.
    pub const ALL: u64 = u64::MAX;

    /// What an event is called in messages.
    #[must_use]
    pub const fn name(event: u32) -> &'static core::ffi::CStr {
        match event {
            INIT => c"init",
            EXIT => c"exit",
            THREAD_START => c"thread-start",
            THREAD_EXIT => c"thread-exit",
            FORK_PARENT => c"fork-parent",
            FORK_CHILD => c"fork-child",
            BEFORE_EXEC => c"before-exec",
            AFTER_EXEC => c"after-exec",
            EXEC_FAILED => c"exec-failed",
            PRE_FREEZE => c"pre-freeze",
            FROZEN => c"frozen",
            THAW_CHECKPOINT => c"thaw-checkpoint",
            THAW_RESTART => c"thaw-restart",
            THAW_ABORT => c"thaw-abort",
            PRE_MIGRATE => c"pre-migrate",
            POST_MIGRATE => c"post-migrate",
            RESTORED => c"restored",
            _ => c"?",
        }
    }
}

/// The bit of an event in [`Plugin::events`].
#[must_use]
pub const fn bit(event: u32) -> u64 {
    1 << event
}

/// What happens.
#[derive(Debug)]
#[repr(C)]
pub struct Event {
    /// Bytes of this structure.
    pub size: u32,
    /// Which of [`event`].
    pub number: u32,
    /// The process, as the program knows it.
    pub pid: i32,
    /// [`event::FORK_PARENT`]: the child, as the program knows it.
    pub child: i32,
    /// By when the callback is to return, in CLOCK_MONOTONIC nanoseconds; 0 for no time.
    pub deadline_ns: i64,
    /// Before an exec: the program, or null.
    pub path: *const c_char,
    /// Where a veto writes why, NUL-terminated; null where there is no veto.
    pub reason: *mut c_char,
    /// Bytes that fit there, with the NUL.
    pub reason_size: u64,
}

impl Event {
    /// Refuses the checkpoint; for callbacks of [`event::PRE_FREEZE`] and [`event::PRE_MIGRATE`] to return.
    #[must_use]
    pub fn veto(&self, reason: &str) -> c_int {
        let room = usize::try_from(self.reason_size).unwrap_or(0);
        if !self.reason.is_null() && room > 0 {
            let len = reason.len().min(room - 1);
            // SAFETY: whoever made the event vouches for `reason_size` bytes at `reason`.
            unsafe {
                self.reason.cast::<u8>().copy_from_nonoverlapping(reason.as_ptr(), len);
                self.reason.add(len).write(0);
            }
        }
        1
    }
}

/// What ULPM does for a plugin. Valid as long as the process.
///
/// Each function takes this structure first. Where not said otherwise, they may be called on any thread, in any event.
#[derive(Debug)]
#[repr(C)]
pub struct Services {
    /// Bytes of this structure.
    pub size: u32,
    /// [`ABI`]
    pub abi: u32,
    /// Adds a line to the log that `ulpm_launch --plugin-log FILE` names; does nothing without.
    pub log: Option<unsafe extern "C" fn(*const Self, *const c_char)>,
    /// Reads a variable of the environment that the job was last restarted in (that of `ulpm_restart`): its length, or
    /// -1 if there is none or the job was never restarted. As much as fits is stored, NUL-terminated.
    pub restart_variable:
        Option<unsafe extern "C" fn(*const Self, *const c_char, *mut c_char, u64) -> i64>,
    /// Changes a variable of the program's environment while all its threads stand still; null takes it away. 0, or -1
    /// if there is no memory. Only in [`event::RESTORED`].
    pub set_variable:
        Option<unsafe extern "C" fn(*const Self, *const c_char, *const c_char) -> c_int>,
    /// Asks for a checkpoint of the job, which comes when it can. 0, or -1 outside of a job.
    pub wish_checkpoint: Option<unsafe extern "C" fn(*const Self) -> c_int>,
    /// Sets the plugin's section of the image, with a version: what `ulpm_command --inspect` shows, and others may read. The
    /// memory is read when the process is saved, and stays the plugin's; it needs no section for itself, for all its memory
    /// comes back with the process. 0, or -1 for more than 1 MiB.
    pub set_section: Option<unsafe extern "C" fn(*const Self, u32, *const c_void, u64) -> c_int>,
}

impl Services {
    /// Adds a line to the log.
    pub fn log(&self, text: &CStr) {
        if let Some(log) = self.log {
            // SAFETY: the function is ULPM's, and takes this and a string.
            unsafe { log(self, text.as_ptr()) };
        }
    }

    /// Asks for a checkpoint of the job; false outside of one.
    #[must_use]
    pub fn wish_checkpoint(&self) -> bool {
        // SAFETY: the function is ULPM's, and takes this.
        self.wish_checkpoint.is_some_and(|wish| unsafe { wish(self) } == 0)
    }
}

/// What is called for an event. 0 is success; see the events for anything else. It must not unwind.
pub type Callback = unsafe extern "C" fn(*const Event, *const Services) -> c_int;

/// What a plugin exports.
#[derive(Debug)]
#[repr(C)]
pub struct Plugin {
    /// Bytes of this structure.
    pub size: u32,
    /// [`ABI`]
    pub abi: u32,
    /// Its name, for messages.
    pub name: *const c_char,
    /// Its version, for messages.
    pub version: *const c_char,
    /// Events that it wants to be called for, as [`bit`]s.
    pub events: u64,
    /// How long each callback on the helper thread may take, in milliseconds; 0 for 2 seconds.
    pub deadline_ms: u32,
    /// [`REQUIRED`] or 0.
    pub flags: u32,
    /// What is called.
    pub callback: Option<Callback>,
}

// SAFETY: it is constant, and so is what it points to.
unsafe impl Sync for Plugin {}

/// `Plugin::flags`: a checkpoint is restarted only where the plugin's file is. Without, a warning is given: programs that
/// the job executes there go without it.
pub const REQUIRED: u32 = 1;

/// What [`Plugin::deadline_ms`] means by 0.
pub const DEFAULT_DEADLINE_MS: u32 = 2000;

impl Plugin {
    /// A descriptor. `events` are [`bit`]s.
    #[must_use]
    pub const fn new(
        name: &'static CStr,
        version: &'static CStr,
        events: u64,
        callback: Callback,
    ) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "some sixty bytes")]
        let size = size_of::<Self>() as u32;
        Self {
            size,
            abi: ABI,
            name: name.as_ptr(),
            version: version.as_ptr(),
            events,
            deadline_ms: 0,
            flags: 0,
            callback: Some(callback),
        }
    }
}

/// Exports a plugin: name and version as C strings, the events as [`bit`]s, and what is called for them.
///
/// ```ignore
/// ulpm_plugin::plugin!(c"hello", c"1.0", bit(event::INIT) | bit(event::EXIT), |event, services| {
///     services.log(if event.number == event::INIT { c"hello" } else { c"good bye" });
///     0
/// });
/// ```
#[macro_export]
macro_rules! plugin {
    ($name:expr, $version:expr, $events:expr, $callback:expr $(,)?) => {
        unsafe extern "C" fn ulpm_plugin_callback(
            event: *const $crate::Event,
            services: *const $crate::Services,
        ) -> core::ffi::c_int {
            let callback: fn(&$crate::Event, &$crate::Services) -> core::ffi::c_int = $callback;
            // SAFETY: ULPM calls it with both, which live longer than the call.
            unsafe { callback(&*event, &*services) }
        }

        /// The plugin's descriptor.
        #[allow(non_upper_case_globals, reason = "its name is part of the interface")]
        #[unsafe(no_mangle)]
        pub static ulpm_plugin: $crate::Plugin =
            $crate::Plugin::new($name, $version, $events, ulpm_plugin_callback);
    };
}
