//! Contexts for asynchronous requests (io_setup(2), libaio).
//!
//! What has ended stands in a ring, which is memory of the process. How many requests are under way the kernel does not tell: so
//! the wrappers keep this one *fact*, how many it was asked for. Those that read and write files end soon, which
//! a freeze waits for, and a checkpoint saves a context with nothing under way. A restarted process has the kernel make a ring, fill
//! it up to the old places by requests that mean nothing, puts the old events there, and moves it to where it was.

#![expect(
    clippy::missing_safety_doc,
    reason = "what a caller has to keep stands in the manual page of the function of that name"
)]

use core::ffi::{c_int, c_long, c_void};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use ulpm_sys::aio::Ring;
use ulpm_sys::arch::{nr, syscall};
use ulpm_sys::{Errno, OwnedFd, PAGE, Timespec, check, oflag, word};

use crate::capture::{not_now, unsupported};
use crate::critical::holding_name;
use crate::freeze::Failed;
use crate::timed;

/// Contexts that a process can have to be saved.
const MAX_CONTEXTS: usize = 512;
/// How long a freeze waits for requests to end.
const PATIENCE_NS: i64 = 1_000_000_000;

struct Context {
    /// Of its ring; 0 for none. It stays when the context has ended: a new one often comes to the same place.
    address: AtomicUsize,
    /// Requests that the kernel has taken.
    taken: AtomicU64,
    /// Threads that are handing over some.
    busy: AtomicU32,
    /// Length of its ring in the checkpoint; 0 if it is not in it.
    saved: AtomicUsize,
}

static CONTEXTS: [Context; MAX_CONTEXTS] = [const {
    Context {
        address: AtomicUsize::new(0),
        taken: AtomicU64::new(0),
        busy: AtomicU32::new(0),
        saved: AtomicUsize::new(0),
    }
}; MAX_CONTEXTS];

/// The place of a context, or a free one for it.
fn place(address: usize) -> Option<&'static Context> {
    let from = address / PAGE % MAX_CONTEXTS;
    let (before, after) = CONTEXTS.split_at(from);
    after.iter().chain(before).find(|context| {
        matches!(context.address.load(Ordering::Acquire), known if known == address || known == 0)
    })
}

fn known(address: usize) -> Option<&'static Context> {
    place(address).filter(|context| context.address.load(Ordering::Acquire) == address)
}

/// Takes note of a context that has just been made, and is nobody else's yet.
fn note(address: usize) {
    while let Some(context) = place(address) {
        let free =
            context.address.compare_exchange(0, address, Ordering::AcqRel, Ordering::Acquire);
        if free.is_ok() || free == Err(address) {
            context.taken.store(0, Ordering::Relaxed);
            context.busy.store(0, Ordering::Relaxed);
            return;
        }
    }
}

impl Context {
    /// Whether no request is under way: each that was taken fills one slot in the end, and there are never more under way
    /// than slots.
    fn is_done(&self, ring: Ring) -> bool {
        let [_, tail] = ring.ends();
        self.busy.load(Ordering::Acquire) == 0
            && self.taken.load(Ordering::Acquire) % u64::from(ring.slots().max(1))
                == u64::from(tail)
    }
}

/// io_setup, io_submit, io_getevents or io_pgetevents; returns what the kernel does.
///
/// # Safety
///
/// As that call.
pub(crate) unsafe fn by_number(number: usize, arguments: [usize; 6]) -> usize {
    // SAFETY: the caller vouches for the arguments. The number stands in the code of each call, where a freeze that
    // interrupts it finds it.
    unsafe {
        match number {
            nr::IO_SETUP => {
                let returned = syscall(nr::IO_SETUP, arguments);
                if check(returned).is_ok() {
                    note(
                        core::ptr::with_exposed_provenance::<usize>(arguments[1]).read_unaligned(),
                    );
                }
                returned
            }
            nr::IO_SUBMIT => submit(arguments),
            nr::IO_GETEVENTS => until(arguments, || syscall(nr::IO_GETEVENTS, arguments)),
            _ => until(arguments, || syscall(nr::IO_PGETEVENTS, arguments)),
        }
    }
}

/// # Safety
///
/// As the call.
unsafe fn submit(arguments: [usize; 6]) -> usize {
    // SAFETY: the caller vouches for the arguments.
    let call = || unsafe { syscall(nr::IO_SUBMIT, arguments) };
    let Some(context) = known(arguments[0]) else { return call() };
    context.busy.fetch_add(1, Ordering::AcqRel);
    // It holds no name, but is to be stopped there as seldom as may be.
    let returned = holding_name(call);
    context.taken.fetch_add(check(returned).unwrap_or(0) as u64, Ordering::AcqRel);
    context.busy.fetch_sub(1, Ordering::AcqRel);
    returned
}

/// Waits for events, maybe for a certain time.
///
/// # Safety
///
/// The fifth argument is null or points to a timespec.
unsafe fn until(arguments: [usize; 6], call: impl FnOnce() -> usize) -> usize {
    // SAFETY: the caller vouches for it.
    match unsafe { timed::duration(core::ptr::with_exposed_provenance(arguments[4])) } {
        0 => call(),
        ns => timed::until(ns, call),
    }
}

// libaio's functions return what the kernel does, and leave `errno` alone. The caller vouches for the arguments.

#[expect(clippy::cast_possible_truncation, reason = "an error or a small number, sign and all")]
const fn as_int(returned: usize) -> c_int {
    returned as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn io_setup(requests: c_int, context: *mut usize) -> c_int {
    let at = context.expose_provenance();
    // SAFETY: see above.
    as_int(unsafe { by_number(nr::IO_SETUP, [word(requests), at, 0, 0, 0, 0]) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn io_queue_init(requests: c_int, context: *mut usize) -> c_int {
    if requests <= 0 {
        return -Errno::INVAL.raw();
    }
    // SAFETY: see above.
    unsafe {
        context.write(0);
        io_setup(requests, context)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn io_submit(context: usize, count: c_long, list: *const c_void) -> c_int {
    let count = count.cast_unsigned() as usize;
    // SAFETY: see above.
    as_int(unsafe { by_number(nr::IO_SUBMIT, [context, count, list.addr(), 0, 0, 0]) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn io_getevents(
    context: usize,
    least: c_long,
    most: c_long,
    events: *mut c_void,
    timeout: *const Timespec,
) -> c_int {
    let [least, most] = [least, most].map(|number| number.cast_unsigned() as usize);
    let timeout = timeout.expose_provenance();
    let arguments = [context, least, most, events.addr(), timeout, 0];
    // SAFETY: see above.
    as_int(unsafe { by_number(nr::IO_GETEVENTS, arguments) })
}

/// Waits for a moment until no request is under way. While all threads stand still.
pub(crate) fn wait_until_done() {
    let deadline = ulpm_sys::monotonic_ns() + PATIENCE_NS;
    for context in &CONTEXTS {
        let address = context.address.load(Ordering::Acquire);
        let Some(ring) = Some(address).filter(|&address| address != 0).and_then(Ring::at) else {
            continue;
        };
        // Threads that are handing over some do not come on.
        while context.busy.load(Ordering::Acquire) == 0
            && !context.is_done(ring)
            && ulpm_sys::monotonic_ns() < deadline
        {
            let pause = AtomicU32::new(0);
            let _ = ulpm_sys::futex_wait(&pause, 0, Some(Timespec::from_ns(50_000)));
        }
    }
}

/// Begins a capture.
pub(crate) fn forget_saved() {
    for context in &CONTEXTS {
        context.saved.store(0, Ordering::Relaxed);
    }
}

/// Saves the context whose ring is mapped at `start`; false if there is none behind it, as in a forked child.
///
/// # Errors
///
/// [`Failed`]: requests are under way, or may be.
pub(crate) fn save(start: usize, len: usize) -> Result<bool, Failed> {
    let Some(ring) = Ring::at(start) else { return Ok(false) };
    let what = "a context for asynchronous input and output (io_setup, libaio)";
    let Some(context) = known(start).filter(|_| ring.length() == len) else {
        return Err(unsupported(format_args!(
            "{what} cannot be saved that was made without libc or libaio, or whose memory was changed; \
             end it with io_destroy before a checkpoint, or have the program work without"
        )));
    };
    if !context.is_done(ring) {
        return Err(not_now(format_args!(
            "{what} cannot be saved while requests are under way in it, and these do not end; \
             wait for them or cancel them before a checkpoint"
        )));
    }
    context.saved.store(len, Ordering::Relaxed);
    Ok(true)
}

/// Makes the contexts of a restarted process.
///
/// # Errors
///
/// What to tell the user.
pub(crate) fn make_again() -> Result<(), &'static str> {
    for context in &CONTEXTS {
        let len = context.saved.swap(0, Ordering::Relaxed);
        if len == 0 {
            continue;
        }
        let made = on_one_processor(|| make(context.address.load(Ordering::Relaxed), len));
        made.map_err(|errno| match errno {
            Errno::AGAIN => "cannot make a context of io_setup(2): there are too many, see sysctl fs.aio-max-nr",
            Errno::INVAL => "cannot make a context of io_setup(2): on this host, with so many processors, it is larger",
            _ => "cannot make a context of io_setup(2) as it was",
        })?;
    }
    Ok(())
}

fn make(address: usize, len: usize) -> Result<(), Errno> {
    // What the image held of it, as plain memory.
    // SAFETY: the old ring lies there, and all threads stand still.
    let [slots, head, tail] = [1, 2, 3].map(|index| unsafe {
        core::ptr::with_exposed_provenance::<u32>(address + 4 * index).read()
    });
    let null = OwnedFd::new(ulpm_sys::open(c"/dev/null", oflag::RDONLY | oflag::CLOEXEC)?);
    let ring = Ring::make(len)?;
    if ring.slots() != slots || head >= slots || tail >= slots {
        return Err(Errno::IO);
    }
    ring.fill(null.get(), head, true)?;
    ring.fill(null.get(), (tail + slots - head) % slots, false)?;
    // SAFETY: the old ring is as long, and is nothing but a copy.
    unsafe {
        ring.copy_slots(address);
        ulpm_sys::move_mapping(ring.address(), len, address)
    }
}

/// The kernel keeps some of a context's room back for each processor on which requests have ended.
fn on_one_processor<R>(call: impl FnOnce() -> R) -> R {
    let before = ulpm_sys::affinity(0);
    if let Ok(all) = before
        && let Some(index) = all.iter().position(|&word| word != 0)
    {
        let mut one = ulpm_sys::Processors::default();
        one[index] = all[index] & all[index].wrapping_neg();
        let _ = ulpm_sys::set_affinity(0, &one);
    }
    let result = call();
    if let Ok(all) = before {
        let _ = ulpm_sys::set_affinity(0, &all);
    }
    result
}
