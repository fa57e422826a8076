//! Other programs in the same process, and in new ones.
//!
//! Reasons: the *fact* that the new program belongs to the job, which its environment has to tell it
//! even when the caller passes another, and the *protection* of the moment between the end of the old
//! program's handlers and the arrival of the new one's.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;
use core::sync::atomic::Ordering;

use ulpm_plugin::event;
use ulpm_protocol::manager::FREEZE_SIGNAL;
use ulpm_protocol::table::{ENV_PLUGINS, ENV_TABLE, SlotState, Table};
use ulpm_sys::signal::{self, bit};
use ulpm_sys::{map, page_up, prot};

use super::fork;
use super::paths::program_for;
use crate::critical::holding_name;
use crate::next::next;
use crate::{plugins, process};

type Strings = *const *const c_char;

next! {
    EXECVE = c"execve": unsafe extern "C" fn(*const c_char, Strings, Strings) -> c_int;
    EXECVPE = c"execvpe": unsafe extern "C" fn(*const c_char, Strings, Strings) -> c_int;
    FEXECVE = c"fexecve": unsafe extern "C" fn(c_int, Strings, Strings) -> c_int;
    EXECVEAT = c"execveat":
        unsafe extern "C" fn(c_int, *const c_char, Strings, Strings, c_int) -> c_int;
    POSIX_SPAWN = c"posix_spawn": unsafe extern "C" fn(
        *mut c_int, *const c_char, *const c_void, *const c_void, Strings, Strings,
    ) -> c_int;
    POSIX_SPAWNP = c"posix_spawnp": unsafe extern "C" fn(
        *mut c_int, *const c_char, *const c_void, *const c_void, Strings, Strings,
    ) -> c_int;
}

#[link(name = "c")]
unsafe extern "C" {
    static mut environ: Strings;
}

/// An environment that names the job, made from one that may not.
///
/// Most environments do already, and are passed on as they are. Another is built in a mapping of its
/// own, for this may be a vfork child, a signal handler, or a process without a heap.
struct Environment {
    strings: Strings,
    /// Mapping to give back if the call returns.
    mapping: Option<(usize, usize)>,
}

impl Environment {
    /// # Safety
    ///
    /// `given` is null or a null-terminated array of C strings.
    unsafe fn of(given: Strings, table: Table) -> Self {
        let as_given = Self { strings: given, mapping: None };
        let plugins = plugins::list();
        // SAFETY: the caller vouches for the strings.
        unsafe {
            let mut count = 0;
            let mut text_len = 0;
            let (mut has_job, mut has_plugins, mut preload) = (false, plugins.is_empty(), None);
            for_each(given, |entry| {
                count += 1;
                text_len += entry.to_bytes_with_nul().len();
                if let Some(value) = variable(entry, ENV_TABLE.as_bytes()) {
                    has_job = value == table.path();
                }
                if let Some(value) = variable(entry, ENV_PLUGINS.as_bytes()) {
                    has_plugins = value == plugins;
                }
                if let Some(value) = variable(entry, b"LD_PRELOAD") {
                    preload = Some(value);
                }
            });
            let names_us = |value: &[u8]| {
                let names = |wanted: &[u8]| parts(value).any(|path| path == wanted);
                names(table.preload())
                    && plugins::paths(plugins).all(names)
                    && !parts(value).any(plugins::is_gone)
            };
            if has_job && has_plugins && preload.is_some_and(names_us) {
                return as_given;
            }
            let strings_len = (count + 4) * size_of::<*const c_char>();
            let own_len = table.path().len() + table.preload().len() + 2 * plugins.len() + 96;
            let len = page_up(strings_len + text_len + own_len);
            let protection = prot::READ | prot::WRITE;
            let flags = map::PRIVATE | map::ANONYMOUS;
            let Ok(start) = ulpm_sys::mmap(0, len, protection, flags, -1, 0) else {
                return as_given;
            };
            let mut next_string = ptr::with_exposed_provenance_mut::<*const c_char>(start);
            let mut next_byte = ptr::with_exposed_provenance_mut::<u8>(start + strings_len);
            let mut push = |string: *const c_char| {
                next_string.write(string);
                next_string = next_string.add(1);
            };
            let mut compose = |parts: &mut dyn Iterator<Item = &[u8]>| {
                let string = next_byte.cast_const().cast::<c_char>();
                for part in parts {
                    next_byte.copy_from_nonoverlapping(part.as_ptr(), part.len());
                    next_byte = next_byte.add(part.len());
                }
                next_byte.write(0);
                next_byte = next_byte.add(1);
                string
            };
            for_each(given, |entry| {
                let names = [ENV_TABLE.as_bytes(), b"LD_PRELOAD", ENV_PLUGINS.as_bytes()];
                // Without plugins of ours, that variable is nobody's business.
                let names = if plugins.is_empty() { &names[..2] } else { &names };
                let ours = names.iter().any(|name| variable(entry, name).is_some());
                if !ours {
                    push(entry.as_ptr());
                }
            });
            let mut name = |name: &[u8], value: &[&[u8]]| {
                let start = [name, b"="].into_iter();
                push(compose(&mut start.chain(value.iter().copied())));
            };
            name(ENV_TABLE.as_bytes(), &[table.path()]);
            if !plugins.is_empty() {
                name(ENV_PLUGINS.as_bytes(), &[plugins]);
            }
            // The list begins with the file of the log, and goes on with a colon.
            let beside = plugins.iter().position(|&byte| byte == b':');
            let beside = beside.map_or(&b""[..], |at| &plugins[at..]);
            match preload {
                Some(other) if names_us(other) => name(b"LD_PRELOAD", &[other]),
                other => {
                    let kept = parts(other.unwrap_or_default())
                        .filter(|path| !path.is_empty() && !plugins::is_gone(path))
                        .flat_map(|path| [&b":"[..], path]);
                    let ours = [&b"LD_PRELOAD="[..], table.preload(), beside];
                    push(compose(&mut ours.into_iter().chain(kept)));
                }
            }
            push(ptr::null());
            Self { strings: ptr::with_exposed_provenance(start), mapping: Some((start, len)) }
        }
    }

    fn give_back(&self) {
        if let Some((start, len)) = self.mapping {
            // SAFETY: the mapping is ours, and whoever read it has returned.
            unsafe { ulpm_sys::munmap(start, len) };
        }
    }
}

/// # Safety
///
/// `strings` is null or a null-terminated array of C strings.
unsafe fn for_each<'a>(strings: Strings, mut each: impl FnMut(&'a CStr)) {
    let mut entry = strings;
    // SAFETY: the caller vouches for the array.
    unsafe {
        while !entry.is_null() && !(*entry).is_null() {
            each(CStr::from_ptr(*entry));
            entry = entry.add(1);
        }
    }
}

/// The paths in LD_PRELOAD.
fn parts(preload: &[u8]) -> impl Iterator<Item = &[u8]> {
    preload.split(|&byte| byte == b':' || byte == b' ')
}

/// The value of an entry, if it is that of `name`.
fn variable<'a>(entry: &'a CStr, name: &[u8]) -> Option<&'a [u8]> {
    entry.to_bytes().strip_prefix(name)?.strip_prefix(b"=")
}

/// Calls an exec with an environment that names the job.
///
/// From the moment at which the kernel resets the handlers until our constructor has run, a freeze
/// signal would end the process. The one that can come is blocked over that time, and the process's
/// slot says that nobody should send one.
///
/// # Safety
///
/// `path` is null or a C string, `given` null or a null-terminated array of them.
unsafe fn exec(path: *const c_char, given: Strings, call: impl FnOnce(Strings) -> c_int) -> c_int {
    let (Some(own), Some(table)) = (process::own(), process::table()) else { return call(given) };
    // A vfork child shares all this with its parent, who is not the one that goes away; it has no slot.
    let slot = || table.by_real(ulpm_sys::getpid());
    let tell = |number| {
        if plugins::wants(ulpm_plugin::bit(number)) && slot().is_some() {
            // SAFETY: the caller vouches for the path.
            plugins::tell(number, 0, (!path.is_null()).then(|| unsafe { CStr::from_ptr(path) }));
        }
    };
    tell(event::BEFORE_EXEC);
    let mut mask = signal::block(bit(FREEZE_SIGNAL));
    if slot().is_some() {
        // See `freeze::freeze` for the other side.
        own.signal_users.fetch_add(1, Ordering::SeqCst);
        while own.freezing.load(Ordering::SeqCst) != 0 {
            // Let it happen first.
            own.signal_users.fetch_sub(1, Ordering::SeqCst);
            signal::set_mask(mask);
            ulpm_sys::sched_yield();
            mask = signal::block(bit(FREEZE_SIGNAL));
            own.signal_users.fetch_add(1, Ordering::SeqCst);
        }
    }
    // From here on we cannot be frozen, so neither the slot nor the table's path becomes another's.
    let slot = slot();
    // SAFETY: the caller vouches for the strings.
    let environment = unsafe { Environment::of(given, table) };
    if let Some(slot) = slot {
        slot.set_state(SlotState::Exec);
    }
    let result = call(environment.strings);
    if let Some(slot) = slot {
        slot.set_state(SlotState::Live);
        own.signal_users.fetch_sub(1, Ordering::SeqCst);
    }
    signal::set_mask(mask);
    environment.give_back();
    tell(event::EXEC_FAILED);
    result
}

// In each wrapper below, the strings and pointers that are passed on are the caller's, who vouches for
// them as the function's manual page demands.

#[unsafe(no_mangle)]
unsafe extern "C" fn execve(path: *const c_char, argv: Strings, envp: Strings) -> c_int {
    // SAFETY: see above.
    unsafe {
        let path = program_for(path).map_or(path, CStr::as_ptr);
        exec(path, envp, |envp| EXECVE.get()(path, argv, envp))
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn execv(path: *const c_char, argv: Strings) -> c_int {
    // SAFETY: see above.
    unsafe { execve(path, argv, environ) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn execvpe(file: *const c_char, argv: Strings, envp: Strings) -> c_int {
    // SAFETY: see above.
    unsafe { exec(file, envp, |envp| EXECVPE.get()(file, argv, envp)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn execvp(file: *const c_char, argv: Strings) -> c_int {
    // SAFETY: see above.
    unsafe { exec(file, environ, |envp| EXECVPE.get()(file, argv, envp)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fexecve(fd: c_int, argv: Strings, envp: Strings) -> c_int {
    // SAFETY: see above.
    unsafe { exec(ptr::null(), envp, |envp| FEXECVE.get()(fd, argv, envp)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn execveat(
    dir: c_int,
    path: *const c_char,
    argv: Strings,
    envp: Strings,
    flags: c_int,
) -> c_int {
    // SAFETY: see above.
    unsafe { exec(path, envp, |envp| EXECVEAT.get()(dir, path, argv, envp, flags)) }
}

/// The argument list of `execl` and its kin: six words that came in registers, then the caller's stack.
///
/// Defining a function with a variable number of arguments is not stable in Rust; a few lines of
/// assembly lay the register arguments down in order and hand both parts over.
#[repr(C)]
struct Listed {
    registers: [usize; 6],
    /// A saved word and the return address, which the caller's stack arguments follow.
    between: [usize; 2],
}

impl Listed {
    /// Calls `run` with the arguments from the second on as an array, and with the word behind their
    /// terminating null.
    ///
    /// # Safety
    ///
    /// `this` was laid down by [`execl`] and its kin, and the list ends with a null pointer.
    unsafe fn collect(this: *const Self, run: impl FnOnce(Strings, usize) -> c_int) -> c_int {
        let word = |index: usize| {
            let skip = if index < 6 { 0 } else { 2 };
            // SAFETY: the caller vouches for the list up to its end, and the word behind it is the
            // environment of execle, or is not used.
            unsafe { this.cast::<usize>().add(index + skip).read() }
        };
        let count = (1..).take_while(|&index| word(index) != 0).count();
        let len = page_up((count + 1) * size_of::<usize>());
        let flags = map::PRIVATE | map::ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let mapped = unsafe { ulpm_sys::mmap(0, len, prot::READ | prot::WRITE, flags, -1, 0) };
        let start = match mapped {
            Ok(start) => start,
            Err(errno) => return crate::libc_result(Err(errno)),
        };
        let array = ptr::with_exposed_provenance_mut::<usize>(start);
        for index in 0..count {
            // SAFETY: the mapping has room for `count` words and a null.
            unsafe { array.add(index).write(word(index + 1)) };
        }
        let result = run(array.cast(), word(count + 2));
        // SAFETY: the call has returned, and the mapping is ours.
        unsafe { ulpm_sys::munmap(start, len) };
        result
    }
}

macro_rules! listed {
    ($($name:ident => $run:ident;)*) => {$(
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        unsafe extern "C" fn $name() -> c_int {
            core::arch::naked_asm!(
                "push rbp",      // Keeps the stack aligned for the call.
                "push r9",       // The register arguments, so that they lie in order.
                "push r8",
                "push rcx",
                "push rdx",
                "push rsi",
                "push rdi",
                "mov rdi, rsp",
                "call {run}",
                "add rsp, 48",
                "pop rbp",
                "ret",
                run = sym $run,
            )
        }
    )*};
}

listed! {
    execl => run_execl;
    execlp => run_execlp;
    execle => run_execle;
}

unsafe extern "C" fn run_execl(list: *const Listed) -> c_int {
    // SAFETY: see `Listed::collect`.
    unsafe {
        let path = ptr::with_exposed_provenance((*list).registers[0]);
        Listed::collect(list, |argv, _| execv(path, argv))
    }
}

unsafe extern "C" fn run_execlp(list: *const Listed) -> c_int {
    // SAFETY: see `Listed::collect`.
    unsafe {
        let file = ptr::with_exposed_provenance((*list).registers[0]);
        Listed::collect(list, |argv, _| execvp(file, argv))
    }
}

unsafe extern "C" fn run_execle(list: *const Listed) -> c_int {
    // SAFETY: see `Listed::collect`; the environment stands behind the list's end.
    unsafe {
        let path = ptr::with_exposed_provenance((*list).registers[0]);
        Listed::collect(list, |argv, envp| execve(path, argv, ptr::with_exposed_provenance(envp)))
    }
}

/// Calls a spawn with an environment that names the job, and gives the child its name.
///
/// # Safety
///
/// `given` is null or a null-terminated array of C strings; `pid` is null or valid.
unsafe fn spawn(
    pid: *mut c_int,
    given: Strings,
    call: impl FnOnce(*mut c_int, Strings) -> c_int,
) -> c_int {
    let Some(table) = process::table() else { return call(pid, given) };
    // The table's path is a name, too.
    holding_name(|| {
        // SAFETY: the caller vouches for the strings.
        let environment = unsafe { Environment::of(given, table) };
        let mut real = 0;
        let result = call(&raw mut real, environment.strings);
        if result == 0 && !pid.is_null() {
            // SAFETY: the caller vouches for the pointer.
            unsafe { pid.write(fork::spawned(real)) };
        }
        environment.give_back();
        result
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn posix_spawn(
    pid: *mut c_int,
    path: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    argv: Strings,
    envp: Strings,
) -> c_int {
    // SAFETY: see above.
    unsafe {
        let path = program_for(path).map_or(path, CStr::as_ptr);
        spawn(pid, envp, |pid, envp| POSIX_SPAWN.get()(pid, path, actions, attributes, argv, envp))
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn posix_spawnp(
    pid: *mut c_int,
    file: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    argv: Strings,
    envp: Strings,
) -> c_int {
    // SAFETY: see above.
    unsafe {
        spawn(pid, envp, |pid, envp| POSIX_SPAWNP.get()(pid, file, actions, attributes, argv, envp))
    }
}

/// Makes sure that `environ` names the job, for what passes it on inside libc.
///
/// If it does not, the program has cleared it, and gets it back with our two variables in it.
pub(super) fn mend_environ() {
    let Some(table) = process::table() else { return };
    // SAFETY: libc keeps `environ` a null-terminated array of C strings, or null. A program that
    // changes it while another thread calls `system` has undefined behaviour without us.
    unsafe { environ = Environment::of(environ, table).strings };
}
