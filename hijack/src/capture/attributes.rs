//! What the kernel knows of a process besides memory and descriptors.

use core::sync::atomic::Ordering;

use ulpm_image::Meta;
use ulpm_image::meta::{Action, DeletedDirectory, Limit, MemoryMap, Pending, Process, Timer};
use ulpm_protocol::table::SlotState;
use ulpm_sys::arch::{nr, syscall};
use ulpm_sys::proc::{Stat, decimal, hex, octal, value};
use ulpm_sys::{pr, signal};

use super::Subject;
use super::text::read_file;
use crate::freeze::Failed;
use crate::{clock, process, threads};

/// Takes the time at which the job's clocks are to go on. Timers that run on while the program stands still must have been
/// looked at before, or they would have expired more often than their clock allows.
pub(super) fn stop_clocks(meta: &mut Meta) {
    meta.process.monotonic_ns = clock::now_ns(clock::MONOTONIC);
    meta.process.boottime_ns = clock::now_ns(clock::BOOTTIME);
}

pub(super) fn collect(subject: &Subject<'_>, meta: &mut Meta) -> Result<(), Failed> {
    let mut status_buffer = [0; 16384]; // Groups may be many.
    let status = read_file(c"/proc/self/status", &mut status_buffer);
    let number = |name| value(status, name).and_then(|text| text.split(|b| *b == b'\t').next());
    // SAFETY: a capture is made by the manager while all threads of the program stand still.
    let (xfeatures, xstate_len) = unsafe { crate::arch::note_extended_state() };
    let real_group = ulpm_sys::getpgid(0).unwrap_or(0);
    let real_session = ulpm_sys::getsid(0).unwrap_or(0);
    let mut stat_buffer = [0; 2048];
    let stat = Stat::parse(read_file(c"/proc/self/stat", &mut stat_buffer));
    // Field 8 is the terminal's foreground group; -1 if there is no terminal.
    let foreground = stat.and_then(|stat| stat.number(8)).and_then(|id| i32::try_from(id).ok());
    meta.process = Process {
        job: subject.table.header().job,
        pid: process::virtual_pid(subject.own),
        ppid: crate::wrap::names::parent_pid(),
        pgid: subject.table.virtual_group(real_group),
        sid: subject.table.virtual_session(real_session),
        pgid_outside: subject.table.is_outside(real_group, SlotState::OutsideGroup),
        sid_outside: subject.table.is_outside(real_session, SlotState::OutsideSession),
        foreground: foreground == Some(real_group),
        stopped: subject.stopped,
        leader_gone: subject.leader_gone,
        comm: value(status, b"Name:").unwrap_or_default().to_vec(),
        exe: program().map_err(|e| Failed::system("read /proc/self/exe", e))?,
        cwd: link(c"/proc/self/cwd").map_err(|e| Failed::system("read /proc/self/cwd", e))?,
        umask: number(b"Umask:")
            .and_then(octal)
            .and_then(|mask| u32::try_from(mask).ok())
            .unwrap_or(0o022),
        personality: personality(),
        dumpable: subject.dumpable,
        subreaper: word(pr::GET_CHILD_SUBREAPER),
        // The manager, like every thread, has its own, and that from before when the program sets it.
        no_new_privs: number(b"NoNewPrivs:").and_then(decimal).unwrap_or(0),
        thp_disable: flag(pr::GET_THP_DISABLE),
        monotonic_ns: 0, // see `stop_clocks`
        boottime_ns: 0,
        groups: groups(status),
        oom_score_adj: oom_score_adj(),
        uid: first(number(b"Uid:")),
        gid: first(number(b"Gid:")),
        xfeatures,
        xstate_len,
        entry: (crate::restart::ulpm_restart_entry as *const ()).addr() as u64,
        table: subject.table.address() as u64,
        heap: [crate::heap::address() as u64, crate::heap::LEN as u64],
        vdso: [0, 1].map(|i| process::VDSO[i].load(Ordering::Relaxed) as u64),
    };
    if meta.process.cwd.ends_with(b" (deleted)") {
        let status = ulpm_sys::stat(c"/proc/self/cwd");
        let status = status.map_err(|e| Failed::system("look at the working directory", e))?;
        meta.deleted_cwd.push(DeletedDirectory {
            dev: status.dev,
            inode: status.ino,
            mode: status.mode & !ulpm_sys::mode::TYPE,
        });
    }
    threads::note_attributes(subject.own);
    memory_map(meta)?;
    meta.actions = (1..=signal::LAST)
        .filter_map(|signo| {
            let action = signal::action(signo, None).ok()?;
            (action != signal::Action::default()).then_some(Action {
                signal: signo.cast_unsigned(),
                handler: action.handler as u64,
                flags: action.flags,
                restorer: action.restorer as u64,
                mask: action.mask,
            })
        })
        .collect();
    meta.limits = (0..ulpm_sys::LIMITS)
        .map(|resource| {
            let limit = ulpm_sys::limit(resource).unwrap_or_default();
            Limit { current: limit.current, maximum: limit.maximum }
        })
        .collect();
    meta.timers = (0..3).map(interval_timer).collect();
    let until = ulpm_sys::monotonic_ns() + crate::timers::COLLECT_NS;
    let have_come = threads::collect_signals(subject.own, status, until);
    if !have_come || !threads::have_taken_all_signals() {
        return Err(super::not_now(format_args!(
            "its threads could not take the signals that wait for them: too many, or not in time"
        )));
    }
    let of_timers = crate::timers::collect(subject.own)?;
    let ours = crate::wrap::fork::freeze_signals(subject.table);
    // Asked again: the threads have taken what they could. What is left has come since, or finds no leading thread.
    let status = read_file(c"/proc/self/status", &mut status_buffer);
    let waiting = value(status, b"ShdPnd:").and_then(hex).unwrap_or(0) & !ours & !of_timers;
    meta.pending = (1..=signal::LAST)
        .filter(|&signo| waiting & signal::bit(signo) != 0)
        .map(|signo| Pending { signal: signo.cast_unsigned() })
        .collect();
    Ok(())
}

fn first(field: Option<&[u8]>) -> u32 {
    field.and_then(decimal).and_then(|id| u32::try_from(id).ok()).unwrap_or(u32::MAX)
}

fn link(path: &core::ffi::CStr) -> Result<alloc::vec::Vec<u8>, ulpm_sys::Errno> {
    let mut buffer = [0; 4096];
    ulpm_sys::readlink(path, &mut buffer).map(<[u8]>::to_vec)
}

/// The program's path; asked of the kernel once, before the first restart.
fn program() -> Result<alloc::vec::Vec<u8>, ulpm_sys::Errno> {
    if let Some(path) = process::program() {
        return Ok(path.to_bytes().to_vec());
    }
    let path = link(c"/proc/self/exe")?;
    process::set_program(&path);
    Ok(path)
}

/// An operation that returns its value.
pub(super) fn flag(operation: usize) -> u64 {
    // SAFETY: the operations that are used here take no argument.
    unsafe { ulpm_sys::prctl(operation, [0; 2]) }.unwrap_or(0) as u64
}

/// An operation that stores an int.
fn word(operation: usize) -> u64 {
    let mut stored = 0i32;
    // SAFETY: the pointer is good for an int.
    let _ = unsafe { ulpm_sys::prctl(operation, [(&raw mut stored).addr(), 0]) };
    u64::from(stored.cast_unsigned())
}

/// Supplementary groups, from the leading thread's status: the manager, of which libc does not know, still has
/// those from before when the program changes its own.
fn groups(status: &[u8]) -> alloc::vec::Vec<u32> {
    value(status, b"Groups:")
        .unwrap_or_default()
        .split(|&byte| byte == b' ')
        .filter_map(|group| decimal(group).and_then(|group| u32::try_from(group).ok()))
        .collect()
}

/// The leading thread's: each thread has its own, the manager that from before when the program changes it.
fn personality() -> u64 {
    let mut buffer = [0; 32];
    let text = read_file(c"/proc/self/personality", &mut buffer).trim_ascii_end();
    // SAFETY: the argument asks for the present value.
    let own = || unsafe { syscall(nr::PERSONALITY, [0xffff_ffff, 0, 0, 0, 0, 0]) } as u64;
    hex(text).unwrap_or_else(own)
}

fn oom_score_adj() -> i64 {
    let mut buffer = [0; 32];
    let text = read_file(c"/proc/self/oom_score_adj", &mut buffer).trim_ascii_end();
    let digits = text.strip_prefix(b"-");
    let magnitude =
        decimal(digits.unwrap_or(text)).and_then(|n| i64::try_from(n).ok()).unwrap_or(0);
    if digits.is_some() { -magnitude } else { magnitude }
}

fn interval_timer(which: usize) -> Timer {
    let mut value = [0u64; 4];
    // SAFETY: the call stores a struct itimerval, which is four words.
    unsafe { syscall(nr::GETITIMER, [which, value.as_mut_ptr().addr(), 0, 0, 0, 0]) };
    let [interval_sec, interval_us, sec, us] = value;
    Timer { interval_us: interval_sec * 1_000_000 + interval_us, value_us: sec * 1_000_000 + us }
}

/// The boundaries that the kernel keeps, from the fields of /proc/self/stat that proc_pid_stat(5)
/// numbers so.
fn memory_map(meta: &mut Meta) -> Result<(), Failed> {
    let mut buffer = [0; 2048];
    let missing =
        || super::unsupported(format_args!("/proc/self/stat lacks the memory boundaries"));
    let stat = Stat::parse(read_file(c"/proc/self/stat", &mut buffer)).ok_or_else(missing)?;
    let field = |number| stat.number(number).ok_or_else(missing);
    let mut auxv = [0; 1024];
    meta.memory_map = MemoryMap {
        fields: [
            field(26)?, // start_code
            field(27)?, // end_code
            field(45)?, // start_data
            field(46)?, // end_data
            field(47)?, // start_brk
            ulpm_sys::current_brk() as u64,
            field(28)?, // start_stack
            field(48)?, // arg_start
            field(49)?, // arg_end
            field(50)?, // env_start
            field(51)?, // env_end
        ],
        auxv: read_file(c"/proc/self/auxv", &mut auxv).to_vec(),
    };
    Ok(())
}
