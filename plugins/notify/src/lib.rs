//! Runs a command at events.
//!
//! ```sh
//! ULPM_NOTIFY='logger "$ULPM_EVENT of $ULPM_PROCESS"' ulpm_launch --plugin notify PROGRAM
//! ```
//!
//! `ULPM_NOTIFY` is given to `sh -c` when a process of the job was saved, restarted or has moved, or at the events that
//! `ULPM_NOTIFY_EVENTS` names, with commas between. Of those of the helper thread, that is. The command finds the
//! event's name in `ULPM_EVENT` and the process's id in `ULPM_PROCESS`; it is not of the job, nobody waits for it, and its
//! standard streams are /dev/null.

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::OnceLock;

use ulpm_plugin::{Event, Services, bit, event};

/// What is run.
const ENV_COMMAND: &str = "ULPM_NOTIFY";
/// When.
const ENV_EVENTS: &str = "ULPM_NOTIFY_EVENTS";

/// Events of the helper thread.
const EVENTS: [u32; 6] = [
    event::PRE_FREEZE,
    event::THAW_CHECKPOINT,
    event::THAW_RESTART,
    event::THAW_ABORT,
    event::PRE_MIGRATE,
    event::POST_MIGRATE,
];

struct Chosen {
    events: u64,
    command: CString,
    /// The environment of the command, without the two variables that tell it what has happened.
    environment: Vec<CString>,
}

static CHOSEN: OnceLock<Option<Chosen>> = OnceLock::new();

ulpm_plugin::plugin!(
    c"notify",
    c"1.0",
    bit(event::INIT) | EVENTS_MASK,
    |event: &Event, services: &Services| {
        if event.number == event::INIT {
            CHOSEN.get_or_init(|| choose(services));
        } else if let Some(Some(chosen)) = CHOSEN.get()
            && chosen.events & bit(event.number) != 0
        {
            run(chosen, event);
        }
        0
    }
);

const EVENTS_MASK: u64 = {
    let (mut mask, mut index) = (0, 0);
    while index < EVENTS.len() {
        mask |= bit(EVENTS[index]);
        index += 1;
    }
    mask
};

fn choose(services: &Services) -> Option<Chosen> {
    let command = CString::new(std::env::var(ENV_COMMAND).ok()?).ok()?;
    let usual = bit(event::THAW_CHECKPOINT) | bit(event::THAW_RESTART) | bit(event::POST_MIGRATE);
    let events = std::env::var(ENV_EVENTS).map_or(usual, |names| {
        names.split(',').fold(0, |mask, name| {
            let is_it = |number: &&u32| event::name(**number).to_bytes() == name.trim().as_bytes();
            let known = EVENTS.iter().find(is_it);
            if known.is_none() {
                services.log(c"ULPM_NOTIFY_EVENTS names an event that notify is not told");
            }
            known.map_or(mask, |&number| mask | bit(number))
        })
    });
    // Whatever makes a program one of the job.
    let ours = ["LD_PRELOAD", "ULPM_JOB", "ULPM_PLUGINS"];
    let environment =
        std::env::vars_os().filter(|(name, _)| !ours.iter().any(|own| name == own)).filter_map(
            |(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok(),
        );
    Some(Chosen { events, command, environment: environment.collect() })
}

fn run(chosen: &Chosen, event: &Event) {
    let what = event::name(event.number).to_string_lossy();
    let added = [format!("ULPM_EVENT={what}"), format!("ULPM_PROCESS={}", event.pid)]
        .map(|variable| CString::new(variable).unwrap_or_default());
    let arguments = [c"sh", c"-c", &chosen.command].map(CStr::as_ptr);
    let arguments = [arguments[0], arguments[1], arguments[2], std::ptr::null()];
    let environment: Vec<*const c_char> = chosen
        .environment
        .iter()
        .chain(&added)
        .map(|text| text.as_ptr())
        .chain([std::ptr::null()])
        .collect();
    outside::run(c"/bin/sh", &arguments, &environment);
}

/// A process that the program does not see: system calls, for libc's functions are those of a process of the job.
mod outside {
    use super::{CStr, c_char, c_int};

    const CLOSE: usize = 3;
    const DUP2: usize = 33;
    const CLONE: usize = 56;
    const EXECVE: usize = 59;
    const EXIT: usize = 60;
    const WAIT4: usize = 61;
    const SETSID: usize = 112;
    const OPEN: usize = 2;
    const RT_SIGPROCMASK: usize = 14;
    const CLOSE_RANGE: usize = 436;
    const O_RDWR: usize = 2;
    /// Of children that send no signal at their end.
    const WCLONE: usize = 0x8000_0000;

    fn call(number: usize, arguments: [usize; 4]) -> usize {
        let returned;
        // SAFETY: a system call changes no memory but what its arguments name, which is this module's.
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") number => returned,
                in("rdi") arguments[0], in("rsi") arguments[1], in("rdx") arguments[2],
                in("r10") arguments[3], in("r8") 0usize,
                lateout("rcx") _, lateout("r11") _,
                options(nostack),
            );
        }
        returned
    }

    /// A copy of this process, without CLONE_VM and without a signal at its end.
    fn fork() -> usize {
        call(CLONE, [0; 4])
    }

    pub(crate) fn run(
        program: &CStr,
        arguments: &[*const c_char; 4],
        environment: &[*const c_char],
    ) {
        let child = fork();
        if child == 0 {
            // Its parent ends at once, so that no process of the job has a child that is not of it.
            if fork() == 0 {
                execute(program, arguments, environment);
            }
            call(EXIT, [0; 4]);
        } else if child.cast_signed() > 0 {
            call(WAIT4, [child, 0, WCLONE, 0]);
        }
    }

    fn execute(program: &CStr, arguments: &[*const c_char; 4], environment: &[*const c_char]) {
        call(SETSID, [0; 4]);
        let null = call(OPEN, [c"/dev/null".as_ptr().addr(), O_RDWR, 0, 0]);
        for stream in 0..3 {
            call(DUP2, [null, stream, 0, 0]);
        }
        if call(CLOSE_RANGE, [3, u32::MAX as usize, 0, 0]) != 0 {
            for fd in 3..1024 {
                call(CLOSE, [fd, 0, 0, 0]);
            }
        }
        let nothing = 0u64;
        const SIG_SETMASK: c_int = 2;
        call(RT_SIGPROCMASK, [SIG_SETMASK as usize, (&raw const nothing).addr(), 0, 8]);
        let [program, arguments, environment] =
            [program.as_ptr().addr(), arguments.as_ptr().addr(), environment.as_ptr().addr()];
        call(EXECVE, [program, arguments, environment, 0]);
    }
}
