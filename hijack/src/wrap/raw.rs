//! `syscall(2)` of libc, and calls on other processes' memory.
//!
//! Reasons: *names* that change after a restart, those of moments too, which reach the kernel here without the function
//! of libc that is wrapped elsewhere; the *fact* when a wait for a futex is to end, and what is asked of AIO contexts; and io_uring, whose rings nobody can save.

use core::arch::naked_asm;
use core::ffi::{c_int, c_uint, c_void};

use ulpm_sys::arch::{MachineContext, nr};
use ulpm_sys::{Errno, check, word};

use super::names::{self, real, real_group, real_or_group, real_task};
use super::{descriptors, ipc, queues, signals, wait};
use crate::critical::holding_name;
use crate::{clock, process, requests, set_errno, timed};

/// Numbers of calls that [`translated`] makes.
const TRANSLATED: [usize; 66] = [
    nr::GETPID,
    nr::GETPPID,
    nr::GETTID,
    nr::GETPGRP,
    nr::GETPGID,
    nr::GETSID,
    nr::SETPGID,
    nr::SETSID,
    nr::KILL,
    nr::TKILL,
    nr::TGKILL,
    nr::RT_SIGACTION,
    nr::RT_SIGTIMEDWAIT,
    nr::RT_SIGQUEUEINFO,
    nr::RT_TGSIGQUEUEINFO,
    nr::WAIT4,
    nr::WAITID,
    nr::PIDFD_OPEN,
    nr::GETPRIORITY,
    nr::SETPRIORITY,
    nr::IOPRIO_GET,
    nr::IOPRIO_SET,
    nr::SCHED_SETPARAM,
    nr::SCHED_GETPARAM,
    nr::SCHED_SETSCHEDULER,
    nr::SCHED_GETSCHEDULER,
    nr::SCHED_RR_GET_INTERVAL,
    nr::SCHED_SETAFFINITY,
    nr::SCHED_GETAFFINITY,
    nr::SCHED_SETATTR,
    nr::SCHED_GETATTR,
    nr::PRLIMIT64,
    nr::GET_ROBUST_LIST,
    nr::MIGRATE_PAGES,
    nr::MOVE_PAGES,
    nr::PROCESS_VM_READV,
    nr::PROCESS_VM_WRITEV,
    nr::KCMP,
    nr::PTRACE,
    nr::IO_URING_SETUP,
    nr::CLOCK_GETTIME,
    nr::CLOCK_NANOSLEEP,
    nr::FUTEX,
    nr::FUTEX_WAITV,
    nr::TIMER_CREATE,
    nr::TIMER_SETTIME,
    nr::TIMER_DELETE,
    nr::TIMERFD_SETTIME,
    nr::SYSINFO,
    nr::SHMGET,
    nr::SHMAT,
    nr::SHMCTL,
    nr::SEMGET,
    nr::SEMOP,
    nr::SEMTIMEDOP,
    nr::SEMCTL,
    nr::MSGGET,
    nr::MSGSND,
    nr::MSGRCV,
    nr::MSGCTL,
    nr::MQ_OPEN,
    nr::MQ_NOTIFY,
    nr::IO_SETUP,
    nr::IO_SUBMIT,
    nr::IO_GETEVENTS,
    nr::IO_PGETEVENTS,
];
/// Beyond the highest of them.
const END: usize = nr::FUTEX_WAITV + 1;

/// 1 at the numbers of such calls.
static IS_TRANSLATED: [u8; END] = {
    let mut is = [0; END];
    let mut i = 0;
    while i < TRANSLATED.len() {
        is[TRANSLATED[i]] = 1;
        i += 1;
    }
    is
};

/// Instructions that make the call whose number is the first argument of a function. The number stays in the red zone,
/// where [`number_of_call`] finds it: no code says which call it is.
macro_rules! call {
    () => {
        "
        mov rax, rdi
        mov rdi, rsi        # Each argument is one place on.
        mov rsi, rdx
        mov rdx, rcx
        mov r10, r8
        mov r8, r9
        mov r9, [rsp + 8]   # The sixth came on the stack.
        mov [rsp - 8], rax
        syscall
        "
    };
}

/// `syscall()`: makes the call as libc's does, on the caller's stack as it was, so that clone(2) and vfork(2)
/// return twice as they do natively; or goes on in [`translated`].
///
/// # Safety
///
/// As the call that is made.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn syscall() -> isize {
    naked_asm!(
        "cmp rdi, {end}",
        "jae 2f",
        "lea rax, [rip + {is_translated}]",
        "cmp byte ptr [rax + rdi], 0",
        "jne {translated}", // The arguments are where a function of seven expects them.
        concat!("2:", call!()),
        ".globl ulpm_syscall_returned",
        ".hidden ulpm_syscall_returned",
        "ulpm_syscall_returned:",
        "cmp rax, -4095",
        "jae 3f",
        "ret",
        "3: mov rdi, rax",
        "jmp {failed}",
        end = const END,
        is_translated = sym IS_TRANSLATED,
        translated = sym translated,
        failed = sym failed,
    )
}

/// Makes a call, and returns what the kernel does.
///
/// # Safety
///
/// As the call that is made.
#[unsafe(naked)]
unsafe extern "C" fn make(
    number: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> usize {
    naked_asm!(call!(), ".globl ulpm_made", ".hidden ulpm_made", "ulpm_made:", "ret",)
}

/// # Safety
///
/// As the call that is made.
unsafe fn kernel(number: usize, [a, b, c, d, e, f]: [usize; 6]) -> usize {
    // SAFETY: the caller vouches for it.
    unsafe { make(number, a, b, c, d, e, f) }
}

/// The number of the call behind which a thread stands, if it was made here.
pub(crate) fn number_of_call(machine: &MachineContext) -> Option<usize> {
    unsafe extern "C" {
        fn ulpm_syscall_returned();
        fn ulpm_made();
    }
    let ours = [ulpm_syscall_returned as *const (), ulpm_made as *const ()];
    let place = core::ptr::with_exposed_provenance::<usize>(machine.rsp.wrapping_sub(8));
    // SAFETY: the thread has just written there, and nobody else uses its red zone.
    ours.iter().any(|at| at.addr() == machine.rip).then(|| unsafe { place.read() })
}

/// Sets `errno` for what the kernel returned.
extern "C" fn failed(returned: usize) -> isize {
    finish(returned)
}

fn finish(returned: usize) -> isize {
    match check(returned) {
        Ok(value) => value.cast_signed(),
        Err(errno) => {
            set_errno(errno);
            -1
        }
    }
}

/// Makes a call with the ids that the kernel knows, and returns those that the program knows.
///
/// # Safety
///
/// As the call that is made.
#[expect(clippy::cast_possible_truncation, reason = "the kernel looks at as many bits of an id")]
unsafe extern "C" fn translated(
    number: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> isize {
    let int = |value: usize| value as c_int;
    // SAFETY: the caller vouches for the arguments.
    let call = |[a, b, c]: [usize; 3]| finish(unsafe { kernel(number, [a, b, c, d, e, f]) });
    match number {
        nr::FUTEX
        | nr::FUTEX_WAITV
        | nr::CLOCK_GETTIME
        | nr::CLOCK_NANOSLEEP
        | nr::TIMERFD_SETTIME
        | nr::TIMER_CREATE
        | nr::TIMER_SETTIME
        | nr::TIMER_DELETE
        | nr::SYSINFO => {
            // SAFETY: the caller vouches for the arguments.
            unsafe { with_time(number, [a, b, c, d, e, f]) }
        }
        nr::GETPID => names::getpid() as isize,
        nr::GETPPID => names::getppid() as isize,
        nr::GETTID => names::gettid() as isize,
        nr::GETPGRP => names::getpgrp() as isize,
        nr::GETPGID => names::getpgid(int(a)) as isize,
        nr::GETSID => names::getsid(int(a)) as isize,
        nr::SETPGID => names::setpgid(int(a), int(b)) as isize,
        nr::SETSID => names::setsid() as isize,
        nr::KILL => names::kill(int(a), int(b)) as isize,
        nr::TGKILL => names::tgkill(int(a), int(b), int(c)) as isize,
        // SAFETY: the caller vouches for them.
        nr::RT_SIGACTION => unsafe {
            signals::by_number(int(a), pointer(b), pointer_mut(c), |new, old| {
                call([a, new.addr(), old.addr()])
            })
        },
        // SAFETY: as above.
        nr::RT_SIGTIMEDWAIT => unsafe {
            timed::wait_for_signal(pointer_mut(b), pointer(c), |info| call([a, info.addr(), c]))
        },
        nr::RT_SIGQUEUEINFO => holding_name(|| call([word(real(int(a))), b, c])),
        nr::RT_TGSIGQUEUEINFO => {
            holding_name(|| call([word(real(int(a))), word(real_task(int(b))), c]))
        }
        nr::WAIT4 => {
            let mut status: c_int = 0;
            let at = (&raw mut status).addr();
            holding_name(|| {
                let found = call([word(real_or_group(int(a))), at, c]);
                if found > 0 && b != 0 {
                    // SAFETY: the caller vouches for it.
                    unsafe { core::ptr::with_exposed_provenance_mut::<c_int>(b).write(status) };
                }
                wait::returned(found as c_int, status) as isize
            })
        }
        // Only the system call has a fifth argument, for the child's usage.
        // SAFETY: the caller vouches for it.
        nr::WAITID if e == 0 => unsafe {
            let info = core::ptr::with_exposed_provenance_mut(c);
            wait::waitid(a as c_uint, b as c_uint, info, int(d)) as isize
        },
        nr::PIDFD_OPEN => descriptors::pidfd_open(int(a), b as u32) as isize,
        nr::GETPRIORITY | nr::SETPRIORITY => {
            holding_name(|| call([a, word(names::real_who(a as c_uint, b as c_uint)), c]))
        }
        nr::IOPRIO_GET | nr::IOPRIO_SET => holding_name(|| {
            let who = match a {
                1 => real_task(int(b)),  // IOPRIO_WHO_PROCESS
                2 => real_group(int(b)), // IOPRIO_WHO_PGRP
                _ => int(b),
            };
            call([a, word(who), c])
        }),
        nr::PTRACE => holding_name(|| call([a, word(real_task(int(b))), c])),
        nr::KCMP => holding_name(|| call([word(real_task(int(a))), word(real_task(int(b))), c])),
        // Programs that get this answer do without, as on a kernel without it.
        nr::IO_URING_SETUP if process::own().is_some() => {
            set_errno(Errno::NOSYS);
            -1
        }
        nr::SHMGET..=nr::SHMCTL
        | nr::SEMGET..=nr::SEMCTL
        | nr::MSGGET..=nr::MSGCTL
        | nr::SEMTIMEDOP => {
            // SAFETY: as above. The other arguments have no names in them.
            let call =
                |[a, b, c, d]: [usize; 4]| finish(unsafe { kernel(number, [a, b, c, d, e, f]) });
            // SAFETY: the caller vouches for them.
            unsafe { ipc::by_number(number, [a, b, c, d, e], call) }
        }
        nr::MQ_OPEN => queues::open(int(b), |flags| call([a, word(flags), c])),
        nr::MQ_NOTIFY => {
            let event = core::ptr::with_exposed_provenance(b);
            // SAFETY: the caller vouches for it.
            unsafe { queues::notify(int(a), event, false, || call([a, b, c])) }
        }
        // SAFETY: the caller vouches for them.
        nr::IO_SETUP | nr::IO_SUBMIT | nr::IO_GETEVENTS | nr::IO_PGETEVENTS => unsafe {
            finish(requests::by_number(number, [a, b, c, d, e, f]))
        },
        nr::WAITID | nr::IO_URING_SETUP => call([a, b, c]),
        // All others have the id of a process or thread first.
        _ => holding_name(|| call([word(real_task(int(a))), b, c])),
    }
}

fn pointer<T>(address: usize) -> *const T {
    core::ptr::with_exposed_provenance(address)
}

fn pointer_mut<T>(address: usize) -> *mut T {
    core::ptr::with_exposed_provenance_mut(address)
}

/// Makes a call that takes or gives a time.
///
/// # Safety
///
/// As the call that is made.
#[expect(clippy::cast_possible_truncation, reason = "the kernel looks at as many bits")]
unsafe fn with_time(number: usize, [a, b, c, d, e, f]: [usize; 6]) -> isize {
    /// FUTEX_WAIT
    const WAIT: usize = 0;
    let int = |value: usize| value as c_int;
    // SAFETY: the caller vouches for the arguments. Where one is a time, it is a timespec.
    unsafe {
        let call = |c: usize, d: usize| finish(kernel(number, [a, b, c, d, e, f]));
        let until = |clock| clock::until(clock, pointer(d), |time| call(c, time.addr()));
        match number {
            nr::FUTEX if d != 0 && clock::waits_until(b) => until(clock::MONOTONIC),
            nr::FUTEX if d != 0 && b & clock::FUTEX_COMMAND == WAIT => {
                timed::until(timed::duration(pointer(d)), || call(c, d))
            }
            nr::FUTEX_WAITV => until(int(e)),
            nr::CLOCK_GETTIME => finish(word(clock::read(int(a), pointer_mut(b)))),
            nr::CLOCK_NANOSLEEP => {
                timed::sleep_by(int(a), int(b), pointer(c), |time| call(time.addr(), d))
            }
            nr::TIMERFD_SETTIME => {
                clock::timerfd_settime(int(a), int(b), pointer(c), pointer_mut(d)) as isize
            }
            nr::TIMER_CREATE => {
                let result = call(c, d);
                if result == 0 {
                    let id: c_int = *pointer(c);
                    clock::note_timer(id as isize, int(a));
                }
                result
            }
            nr::TIMER_SETTIME => {
                let clock = || clock::clock_of_timer(a.cast_signed());
                clock::set_timer(int(b), pointer(c), clock, |new| call(new.addr(), d))
            }
            nr::TIMER_DELETE => {
                clock::forget_timer(a.cast_signed());
                call(c, d)
            }
            nr::SYSINFO => clock::sysinfo(pointer_mut(a)) as isize,
            _ => call(c, d),
        }
    }
}

// The caller vouches for the arguments, as the manual page demands.

macro_rules! memory_of_another {
    ($($name:ident: $number:ident;)+) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(
            pid: c_int,
            local: *const c_void,
            local_count: usize,
            remote: *const c_void,
            remote_count: usize,
            flags: usize,
        ) -> isize {
            let (local, remote) = (local.addr(), remote.addr());
            // SAFETY: see above.
            unsafe {
                translated(nr::$number, word(pid), local, local_count, remote, remote_count, flags)
            }
        }
    )+};
}

memory_of_another! {
    process_vm_readv: PROCESS_VM_READV;
    process_vm_writev: PROCESS_VM_WRITEV;
}
