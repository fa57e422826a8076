//! System V shared memory, semaphores and message queues.
//!
//! Reasons: the *names* of objects, which a restart makes anew with other ids; and the *facts* which objects
//! the job uses, whether it has made them, and what a process owes to semaphores (SEM_UNDO), which the
//! kernel tells nobody. Before a restart ids are the real ones, and all that happens is a look at the job
//! table.

use core::ffi::{c_int, c_long, c_void};

use ulpm_protocol::table::{Table, object_flag};
use ulpm_sys::arch::nr;
use ulpm_sys::ipc::{self, Kind, Operation, Status, command};
use ulpm_sys::{Errno, Timespec, word};

use super::names;
use crate::critical::{holding_name, holding_object};
use crate::next::next;
use crate::{__errno_location, process, set_errno, timed};

next! {
    SHMGET = c"shmget": unsafe extern "C" fn(c_int, usize, c_int) -> c_int;
    SHMAT = c"shmat": unsafe extern "C" fn(c_int, *const c_void, c_int) -> *mut c_void;
    SHMCTL = c"shmctl": unsafe extern "C" fn(c_int, c_int, *mut Status) -> c_int;
    SEMGET = c"semget": unsafe extern "C" fn(c_int, c_int, c_int) -> c_int;
    SEMOP = c"semop": unsafe extern "C" fn(c_int, *mut Operation, usize) -> c_int;
    SEMTIMEDOP = c"semtimedop":
        unsafe extern "C" fn(c_int, *mut Operation, usize, *const Timespec) -> c_int;
    SEMCTL = c"semctl": unsafe extern "C" fn(c_int, c_int, c_int, ...) -> c_int;
    MSGGET = c"msgget": unsafe extern "C" fn(c_int, c_int) -> c_int;
    MSGSND = c"msgsnd": unsafe extern "C" fn(c_int, *const c_void, usize, c_int) -> c_int;
    MSGRCV = c"msgrcv": unsafe extern "C" fn(c_int, *mut c_void, usize, c_long, c_int) -> isize;
    MSGCTL = c"msgctl": unsafe extern "C" fn(c_int, c_int, *mut Status) -> c_int;
}

// In each wrapper below, what is passed on has the arguments of the caller, who vouches for them as the
// function's manual page demands. No value with a destructor is alive at that call.

fn last_error() -> c_int {
    // SAFETY: libc returns a valid pointer to this thread's own errno.
    unsafe { *__errno_location() }
}

fn restore_error(error: c_int) {
    // SAFETY: as above.
    unsafe { *__errno_location() = error };
}

fn fails_with(errno: Errno) -> c_int {
    set_errno(errno);
    -1
}

/// Takes note of an object; returns the id by which the program knows it.
fn note(table: Table, kind: Kind, real: c_int, key: c_int, flags: u32) -> c_int {
    let noted = table.note_object(kind as u32, real, key, flags).or_else(|_| {
        // Those that went when nobody looked, as segments do with their last attachment.
        for object in table.objects() {
            if let Some(kind) = Kind::from_raw(object.kind())
                && matches!(ipc::status(kind, object.real()), Err(Errno::INVAL | Errno::IDRM))
            {
                object.forget();
            }
        }
        table.note_object(kind as u32, real, key, flags)
    });
    noted.map_or_else(
        |_| {
            table.lose_object();
            real
        },
        |object| object.virt(),
    )
}

/// The real id behind one that the program passes. One that came to it from elsewhere is noted now.
fn real(table: Table, kind: Kind, id: c_int) -> c_int {
    if let Some(object) = table.object(kind as u32, id) {
        return object.real();
    }
    if id >= 0
        && let Ok(status) = ipc::status(kind, id)
    {
        note(table, kind, id, status.key, 0);
    }
    id
}

/// Finds or makes an object by its key; `size` is what it must have at least.
fn get(
    kind: Kind,
    key: c_int,
    size: usize,
    flags: c_int,
    call: impl Fn(c_int, c_int) -> c_int,
) -> c_int {
    let Some(table) = process::table() else { return call(key, flags) };
    holding_name(|| {
        let before = last_error();
        let create = flags & ipc::CREAT != 0;
        // Another object has the key outside the job: here it is as if it had not.
        let hidden = if key == ipc::PRIVATE { None } else { table.hidden_object(kind as u32, key) };
        if let Some(object) = hidden {
            let gone = object.flags() & object_flag::REMOVED != 0;
            return match ipc::status(kind, object.real()) {
                Ok(_) if !gone && create && flags & ipc::EXCL != 0 => fails_with(Errno::EXIST),
                Ok(status)
                    if !gone && kind != Kind::Messages && size as u64 > status.size(kind) =>
                {
                    fails_with(Errno::INVAL)
                }
                Ok(_) if !gone => object.virt(),
                _ if !create => fails_with(Errno::NOENT),
                _ => match call(ipc::PRIVATE, flags) {
                    real @ 0.. => {
                        let flags = object_flag::CREATED | object_flag::HIDDEN;
                        let id = note(table, kind, real, key, flags);
                        restore_error(before);
                        id
                    }
                    error => error,
                },
            };
        }
        let (real, made) = if key == ipc::PRIVATE {
            (call(key, flags), true)
        } else if !create || flags & ipc::EXCL != 0 {
            (call(key, flags), create)
        } else {
            // Step by step, to learn whether it was made.
            loop {
                let made = call(key, flags | ipc::EXCL);
                if made >= 0 || last_error() != Errno::EXIST.raw() {
                    break (made, true);
                }
                let found = call(key, flags & !ipc::CREAT);
                if found >= 0 || last_error() != Errno::NOENT.raw() {
                    break (found, false);
                }
            }
        };
        if real < 0 {
            return real;
        }
        let id = note(table, kind, real, key, if made { object_flag::CREATED } else { 0 });
        restore_error(before);
        id
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn shmget(key: c_int, size: usize, flags: c_int) -> c_int {
    // SAFETY: see above.
    get(Kind::Memory, key, size, flags, |key, flags| unsafe { SHMGET.get()(key, size, flags) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn semget(key: c_int, count: c_int, flags: c_int) -> c_int {
    let size = usize::try_from(count).unwrap_or(0);
    // SAFETY: see above.
    get(Kind::Semaphores, key, size, flags, |key, flags| unsafe { SEMGET.get()(key, count, flags) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn msgget(key: c_int, flags: c_int) -> c_int {
    // SAFETY: see above.
    get(Kind::Messages, key, 0, flags, |key, flags| unsafe { MSGGET.get()(key, flags) })
}

/// Runs an operation on an object; `call` is given its real id.
fn on_object<R>(kind: Kind, id: c_int, call: impl FnOnce(c_int) -> R) -> R {
    match process::table() {
        Some(table) => holding_object(kind as u32, id, || {
            let before = last_error();
            let real = real(table, kind, id);
            restore_error(before);
            call(real)
        }),
        None => call(id),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn shmat(id: c_int, address: *const c_void, flags: c_int) -> *mut c_void {
    // SAFETY: see above.
    on_object(Kind::Memory, id, |real| unsafe { SHMAT.get()(real, address, flags) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn msgsnd(id: c_int, message: *const c_void, len: usize, flags: c_int) -> c_int {
    // SAFETY: see above.
    on_object(Kind::Messages, id, |real| unsafe { MSGSND.get()(real, message, len, flags) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn msgrcv(
    id: c_int,
    message: *mut c_void,
    len: usize,
    kind: c_long,
    flags: c_int,
) -> isize {
    // SAFETY: see above.
    on_object(Kind::Messages, id, |real| unsafe { MSGRCV.get()(real, message, len, kind, flags) })
}

/// Takes note of what operations that were done will be undone.
///
/// # Safety
///
/// `operations` points to `count` of them.
unsafe fn owe(id: c_int, operations: *const Operation, count: usize) {
    let (Some(own), Some(table)) = (process::own(), process::table()) else { return };
    // SAFETY: the caller vouches for them.
    let operations = unsafe { core::slice::from_raw_parts(operations, count) };
    for operation in operations {
        if operation.flags & ipc::UNDO == 0 || operation.change == 0 {
            continue;
        }
        let pid = process::virtual_pid(own);
        let adjust = -i32::from(operation.change);
        if table.add_debt(pid, id, operation.semaphore.into(), adjust).is_err() {
            table.lose_object();
        }
    }
}

fn operate(
    id: c_int,
    operations: *mut Operation,
    count: usize,
    call: impl FnOnce(c_int) -> c_int,
) -> c_int {
    on_object(Kind::Semaphores, id, |real| {
        let result = call(real);
        if result == 0 {
            // SAFETY: the kernel has read that many.
            unsafe { owe(id, operations, count) };
        }
        result
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn semop(id: c_int, operations: *mut Operation, count: usize) -> c_int {
    // SAFETY: see above.
    operate(id, operations, count, |real| unsafe { SEMOP.get()(real, operations, count) })
}

/// `semtimedop()`, which also waits for a relative time, see `timed`.
#[unsafe(no_mangle)]
unsafe extern "C" fn semtimedop(
    id: c_int,
    operations: *mut Operation,
    count: usize,
    timeout: *const Timespec,
) -> c_int {
    operate(id, operations, count, |real| {
        // SAFETY: see above.
        let call = || unsafe { SEMTIMEDOP.get()(real, operations, count, timeout) };
        // SAFETY: see above.
        match unsafe { timed::duration(timeout) } {
            0 => call(),
            ns => timed::until(ns, call),
        }
    })
}

/// What is common to the control calls; `call` is given the id, which `listed` commands take as an index.
fn control(
    kind: Kind,
    id: c_int,
    command: c_int,
    listed: [c_int; 2],
    call: impl FnOnce(c_int) -> c_int,
) -> c_int {
    let Some(table) = process::table() else { return call(id) };
    if listed.contains(&command) {
        return holding_name(|| {
            let found = call(id);
            let known = table.object_by_real(kind as u32, found);
            known.map_or(found, |object| object.virt())
        });
    }
    // Others are about the system, and may come with any number.
    let is_about_it = match kind {
        _ if command <= command::STAT => true,
        Kind::Memory => matches!(command, command::SHM_LOCK | command::SHM_UNLOCK),
        Kind::Semaphores => (command::SEM_GETPID..=command::SEM_SETALL).contains(&command),
        Kind::Messages => false,
    };
    holding_name(|| {
        let before = last_error();
        let real = if is_about_it { real(table, kind, id) } else { id };
        restore_error(before);
        let result = call(real);
        if result == 0 && command == command::RMID {
            removed(table, kind, id, real);
        }
        result
    })
}

/// Takes note that an object was removed.
fn removed(table: Table, kind: Kind, id: c_int, real: c_int) {
    let lives_on = kind == Kind::Memory && ipc::status(kind, real).is_ok();
    if let Some(object) = table.object(kind as u32, id) {
        if lives_on {
            object.add_flags(object_flag::REMOVED);
        } else if object.flags() & object_flag::HIDDEN != 0 {
            object.leave_key();
        } else {
            object.forget();
        }
    }
    if kind == Kind::Semaphores {
        table.cancel_debts(id, None);
    }
}

/// Puts into what the kernel says of an object the names that the program knows.
///
/// # Safety
///
/// `status` is what a successful STAT command has filled.
unsafe fn translate(kind: Kind, id: c_int, status: *mut Status) {
    let Some(table) = process::table().filter(|_| process::is_restarted()) else { return };
    // SAFETY: the caller vouches for it; the program's structure may end behind the ids.
    unsafe {
        if let Some(pids) = ipc::pids(kind, status) {
            pids.write((*pids).map(names::virt));
        }
        if let Some(object) = table.object(kind as u32, id)
            && object.flags() & (object_flag::HIDDEN | object_flag::REMOVED) == object_flag::HIDDEN
        {
            (&raw mut (*status).key).write(object.key());
        }
    }
}

/// A control call that may fill a structure, of a segment or a queue.
///
/// # Safety
///
/// As the call.
unsafe fn control_with_status(
    kind: Kind,
    id: c_int,
    command: c_int,
    argument: *mut Status,
    call: impl FnOnce(c_int) -> c_int,
) -> c_int {
    let listed = match kind {
        Kind::Memory => [command::SHM_STAT, command::SHM_STAT_ANY],
        _ => [command::MSG_STAT, command::MSG_STAT_ANY],
    };
    let result = control(kind, id, command, listed, call);
    if result >= 0 && (command == command::STAT || listed.contains(&command)) {
        let id = if command == command::STAT { id } else { result };
        // SAFETY: the kernel has filled it.
        unsafe { translate(kind, id, argument) };
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn shmctl(id: c_int, command: c_int, argument: *mut Status) -> c_int {
    // SAFETY: see above.
    unsafe {
        let call = |id| SHMCTL.get()(id, command, argument);
        control_with_status(Kind::Memory, id, command, argument, call)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn msgctl(id: c_int, command: c_int, argument: *mut Status) -> c_int {
    // SAFETY: see above.
    unsafe {
        let call = |id| MSGCTL.get()(id, command, argument);
        control_with_status(Kind::Messages, id, command, argument, call)
    }
}

/// `semctl(id, semaphore, command, …)`: the last argument is there for some commands only; it is a word
/// in a register, whatever it means, and is passed on as it came.
#[unsafe(no_mangle)]
unsafe extern "C" fn semctl(
    id: c_int,
    semaphore: c_int,
    command: c_int,
    argument: *mut Status,
) -> c_int {
    // SAFETY: see above.
    unsafe {
        let call = |id| SEMCTL.get()(id, semaphore, command, argument);
        control_semaphores(id, semaphore, command, argument, call)
    }
}

/// # Safety
///
/// As the call.
unsafe fn control_semaphores(
    id: c_int,
    semaphore: c_int,
    command: c_int,
    argument: *mut Status,
    call: impl FnOnce(c_int) -> c_int,
) -> c_int {
    let listed = [command::SEM_STAT, command::SEM_STAT_ANY];
    let result = control(Kind::Semaphores, id, command, listed, call);
    if result < 0 {
        return result;
    }
    match command {
        command::SEM_GETPID => return names::virt(result),
        command::SEM_SETVAL | command::SEM_SETALL => {
            let one = u32::try_from(semaphore).ok().filter(|_| command == command::SEM_SETVAL);
            if let Some(table) = process::table() {
                table.cancel_debts(id, one);
            }
        }
        command::STAT => {
            // SAFETY: the kernel has filled it.
            unsafe { translate(Kind::Semaphores, id, argument) };
        }
        _ if listed.contains(&command) => {
            // SAFETY: the kernel has filled it.
            unsafe { translate(Kind::Semaphores, result, argument) };
        }
        _ => {}
    }
    result
}

/// Makes a call by its number (see `raw`), which `call` does with the arguments that it is given.
///
/// # Safety
///
/// As the call.
#[expect(clippy::cast_possible_truncation, reason = "the kernel looks at as many bits")]
#[expect(clippy::cast_possible_wrap, reason = "the type of a message is signed")]
pub(super) unsafe fn by_number(
    number: usize,
    arguments: [usize; 5],
    call: impl Fn([usize; 4]) -> isize,
) -> isize {
    let [a, b, c, d, e] = arguments;
    let (id, command) = (a as c_int, b as c_int);
    let of = |id: c_int| call([word(id), b, c, d]);
    let operations = core::ptr::with_exposed_provenance_mut(b);
    let status = core::ptr::with_exposed_provenance_mut;
    let result = match number {
        nr::SHMGET | nr::SEMGET => {
            let kind = if number == nr::SHMGET { Kind::Memory } else { Kind::Semaphores };
            get(kind, id, b, c as c_int, |key, flags| call([word(key), b, word(flags), d]) as c_int)
        }
        nr::MSGGET => {
            let make = |key, flags| call([word(key), word(flags), c, d]) as c_int;
            get(Kind::Messages, id, 0, command, make)
        }
        nr::SHMAT => return on_object(Kind::Memory, id, of),
        // Those that wait go through libc: the code in front of the system call tells which one was interrupted.
        // SAFETY: the caller vouches for them.
        nr::MSGSND => unsafe { msgsnd(id, core::ptr::with_exposed_provenance(b), c, d as c_int) },
        // SAFETY: as above.
        nr::MSGRCV => unsafe {
            let message = core::ptr::with_exposed_provenance_mut(b);
            return msgrcv(id, message, c, d as c_long, e as c_int);
        },
        // SAFETY: as above.
        nr::SEMOP => unsafe { semop(id, operations, c) },
        // SAFETY: as above.
        nr::SEMTIMEDOP => unsafe {
            semtimedop(id, operations, c, core::ptr::with_exposed_provenance(d))
        },
        // SAFETY: as above.
        nr::SEMCTL => unsafe {
            control_semaphores(id, command, c as c_int, status(d), |id| of(id) as c_int)
        },
        _ => {
            let kind = if number == nr::SHMCTL { Kind::Memory } else { Kind::Messages };
            // SAFETY: as above.
            unsafe { control_with_status(kind, id, command, status(c), |id| of(id) as c_int) }
        }
    };
    result as isize
}
