//! Clocks that count from a boot, where no time namespace makes them go on as they stood.
//!
//! After such a restart the program's time is the kernel's plus an offset. Until then, and in a time namespace, the
//! offset is 0. A program reads clocks through the vDSO, of whose functions libc keeps pointers, and which others find
//! themselves: so the function that lies there becomes a jump to ours, which adds the offset to what the kernel's
//! says; none of its other ways costs anything before. Times that a program gives to the kernel come through the
//! wrappers below. Reason: a *name* that changes after a restart, that of a moment.
//!
//! A wait until such a time is given a copy in the thread's own slot, also while the offset is 0, for the next restart
//! may find the thread in it. Then each thread shifts the copies that it waits with.

#![expect(
    clippy::missing_safety_doc,
    reason = "what a caller has to keep stands in the manual page of the function of that name"
)]

use core::arch::naked_asm;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{
    AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering, compiler_fence,
};

use ulpm_protocol::table::Table;
use ulpm_sys::arch::{UserContext, nr, syscall};
use ulpm_sys::fmt::Text;
use ulpm_sys::proc::{MapsLine, decimal, value};
use ulpm_sys::vdso::{Functions, put_jump, redirect};
use ulpm_sys::{TimerSpec, Timespec, map, oflag, prot, word};

use crate::arch::thread_slot;
use crate::capture::text::{Lines, read_file};
use crate::critical::holding_name;
use crate::next::next;
use crate::process;

/// Clocks, from include/uapi/linux/time.h.
pub(crate) const MONOTONIC: c_int = 1;
const MONOTONIC_RAW: c_int = 4;
const MONOTONIC_COARSE: c_int = 6;
pub(crate) const BOOTTIME: c_int = 7;
const BOOTTIME_ALARM: c_int = 9;

/// Also `TFD_TIMER_ABSTIME`.
pub(crate) const TIMER_ABSTIME: c_int = 1;

/// The program's time less the kernel's, of CLOCK_MONOTONIC and CLOCK_BOOTTIME: seconds and nanoseconds.
static OFFSETS: [[AtomicI64; 2]; 2] = [const { [const { AtomicI64::new(0) }; 2] }; 2];
/// By how much the last restart has changed them, in nanoseconds.
static CHANGES: [AtomicI64; 2] = [const { AtomicI64::new(0) }; 2];
/// Counts restarts. Whoever has reckoned with an offset looks whether it is the same still.
static RESTARTS: AtomicU32 = AtomicU32::new(0);
/// `clock_gettime` of this kernel's vDSO, where ours stands before it.
static KERNELS: AtomicPtr<()> = AtomicPtr::new(BY_CALL);
/// Where this kernel's vDSO is, and its length, if that is not where the program believes it to be.
static MOVED: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// Which of the two offsets a clock has.
fn which(clock: c_int) -> Option<usize> {
    match clock {
        MONOTONIC | MONOTONIC_RAW | MONOTONIC_COARSE => Some(0),
        BOOTTIME | BOOTTIME_ALARM => Some(1),
        _ => None,
    }
}

fn offset(which: usize) -> Timespec {
    let [sec, nsec] = [0, 1].map(|i| OFFSETS[which][i].load(Ordering::Relaxed));
    Timespec { sec, nsec }
}

/// By how much the last restart has changed an offset.
fn change(which: usize) -> Timespec {
    Timespec::from_ns(CHANGES[which].load(Ordering::Relaxed))
}

/// Whether a futex operation waits until a time of CLOCK_MONOTONIC.
pub(crate) fn waits_until(operation: usize) -> bool {
    /// FUTEX_WAIT_BITSET, FUTEX_WAIT_REQUEUE_PI and FUTEX_LOCK_PI2.
    const UNTIL: [usize; 3] = [9, 11, 13];
    const FUTEX_CLOCK_REALTIME: usize = 0x100;
    UNTIL.contains(&(operation & FUTEX_COMMAND)) && operation & FUTEX_CLOCK_REALTIME == 0
}

/// What of a futex operation is not a flag.
pub(crate) const FUTEX_COMMAND: usize = 0x7f;

/// Whether any clock is shifted.
fn is_shifted() -> bool {
    OFFSETS.iter().flatten().any(|part| part.load(Ordering::Relaxed) != 0)
}

/// Makes `reckon` again if a restart has come between, so that it has seen one offset only.
fn undivided<R>(reckon: impl Fn() -> R) -> R {
    loop {
        let restarts = RESTARTS.load(Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        let result = reckon();
        compiler_fence(Ordering::SeqCst);
        // A restart takes the place of this very thread: no other processor can be ahead.
        if RESTARTS.load(Ordering::Relaxed) == restarts {
            return result;
        }
    }
}

/// What the program would read now, in nanoseconds, by a real system call.
pub(crate) fn now_ns(clock: c_int) -> i64 {
    undivided(|| {
        let offset = which(clock).map_or(0, |which| offset(which).as_ns());
        ulpm_sys::clock_ns(clock).unwrap_or(0) + offset
    })
}

/// Reads a clock as the program is to see it; 0, or a negated error.
///
/// # Safety
///
/// `time` is good for a timespec.
pub(crate) unsafe extern "C" fn read(clock: c_int, time: *mut Timespec) -> c_int {
    let (result, now) = undivided(|| {
        let mut now = Timespec::default();
        // SAFETY: the pointer is good for one timespec.
        let result = unsafe { kernels(clock, &raw mut now) };
        (result, which(clock).map_or(now, |which| now.plus(offset(which))))
    });
    if result == 0 {
        // SAFETY: the caller vouches for it.
        unsafe { time.write(now) };
    }
    result
}

/// The kernel's own function, wherever it is now: one instruction, so that no thread is stopped between the
/// reading of its address and the jump.
#[unsafe(naked)]
unsafe extern "C" fn kernels(clock: c_int, time: *mut Timespec) -> c_int {
    naked_asm!("jmp qword ptr [rip + {kernels}]", kernels = sym KERNELS)
}

const BY_CALL: *mut () = by_call as unsafe extern "C" fn(c_int, *mut Timespec) -> c_int as *mut ();

/// The same without a vDSO.
unsafe extern "C" fn by_call(clock: c_int, time: *mut Timespec) -> c_int {
    // SAFETY: the caller vouches for the pointer.
    let returned = unsafe { syscall(nr::CLOCK_GETTIME, [word(clock), time.addr(), 0, 0, 0, 0]) };
    #[expect(clippy::cast_possible_truncation, reason = "0 or a negated error number")]
    let result = returned as c_int;
    result
}

/// Whether an address lies in the kernel's vDSO, or in that which the program knows: its code may be elsewhere
/// after a restart.
pub(crate) fn is_in_vdso(address: usize) -> bool {
    [&process::VDSO, &MOVED].into_iter().any(|[start, len]| {
        address.wrapping_sub(start.load(Ordering::Relaxed)) < len.load(Ordering::Relaxed)
    })
}

/// Takes the offsets of the job of which this process is a new program. Only this thread runs.
///
/// A process that has threads before its preloaded libraries are initialized is left as it is: none of them may be
/// in the vDSO while that is moved.
pub(crate) fn join(table: Table) {
    let offsets = job_offsets(table);
    if offsets != [0; 2]
        && is_single_threaded()
        && let Some(at) = move_vdso()
    {
        MOVED[0].store(at, Ordering::Relaxed);
        MOVED[1].store(process::VDSO[1].load(Ordering::Relaxed), Ordering::Relaxed);
        set(offsets);
    }
}

/// Takes the offsets of a restarted job; this kernel's vDSO is at `vdso`, with that length. Only this thread runs.
pub(crate) fn restart(table: Table, vdso: [usize; 2]) {
    let offsets = job_offsets(table);
    for (place, value) in MOVED.iter().zip(vdso) {
        place.store(value, Ordering::Relaxed);
    }
    for (which, change) in CHANGES.iter().enumerate() {
        change.store(offsets[which] - offset(which).as_ns(), Ordering::Relaxed);
    }
    set(offsets);
    RESTARTS.fetch_add(1, Ordering::Relaxed);
    KERNELS.store(BY_CALL, Ordering::Relaxed);
    // Where no offset is needed, the functions are the kernel's own, or jumps to them.
    if offsets != [0; 2] && take_over(vdso).is_none() {
        crate::die("the clocks of the restarted program cannot be made to go on");
    }
}

fn job_offsets(table: Table) -> [i64; 2] {
    [0, 1].map(|which| table.header().clock_offsets[which].load(Ordering::Relaxed))
}

fn set(offsets: [i64; 2]) {
    for (place, offset) in OFFSETS.iter().zip(offsets) {
        let Timespec { sec, nsec } = Timespec::from_ns(offset);
        place[0].store(sec, Ordering::Relaxed);
        place[1].store(nsec, Ordering::Relaxed);
    }
}

fn is_single_threaded() -> bool {
    let mut buffer = [0; 2048];
    let status = read_file(c"/proc/self/status", &mut buffer);
    value(status, b"Threads:").and_then(decimal) == Some(1)
}

const READ_CLOCK: &[u8] = b"__vdso_clock_gettime";

/// Whether a function of the vDSO is that which reads clocks.
fn reads_clock(name: &[u8]) -> bool {
    name == READ_CLOCK || name == b"clock_gettime"
}

fn own_address() -> usize {
    (read as unsafe extern "C" fn(c_int, *mut Timespec) -> c_int as *const ()).addr()
}

/// Takes note of the kernel's function.
fn note_kernels(code: &[u8]) {
    let place = Functions::of(code).and_then(|functions| functions.find(code, READ_CLOCK));
    let address = |place| core::ptr::with_exposed_provenance_mut(code.as_ptr().addr() + place);
    KERNELS.store(place.map_or(BY_CALL, address), Ordering::Relaxed);
}

/// Puts our function in the place of that in the vDSO which the program knows, and which is plain memory; `None` if
/// that is not possible.
fn take_over([kernels, kernels_len]: [usize; 2]) -> Option<()> {
    let [start, len] = [0, 1].map(|i| process::VDSO[i].load(Ordering::Relaxed));
    if start == 0 {
        return Some(()); // libc makes system calls.
    }
    // SAFETY: `ulpm_restart` has put both there, and nothing runs in them.
    unsafe {
        let kernels = core::ptr::with_exposed_provenance(kernels);
        note_kernels(core::slice::from_raw_parts(kernels, kernels_len));
        protect(start, len, prot::READ | prot::WRITE).ok()?;
        let known = core::ptr::with_exposed_provenance_mut(start);
        let known = core::slice::from_raw_parts_mut(known, len);
        let functions = Functions::of(known)?;
        let place = functions.find(known, READ_CLOCK)?;
        put_jump(known, place, Some(own_address()))?;
        protect(start, len, prot::READ | prot::EXEC).ok()?;
        keep_apart(start);
    }
    Some(())
}

/// Moves the kernel's vDSO with its data, and puts one in its place whose functions lead to that; returns where its
/// code is now.
fn move_vdso() -> Option<usize> {
    let [code, len] = [0, 1].map(|i| process::VDSO[i].load(Ordering::Relaxed));
    let mut pieces = [(0, 0); 4];
    let count = kernels_pieces(code, &mut pieces)?;
    let pieces = &pieces[..count];
    let (start, _) = *pieces.first()?;
    let flags = map::PRIVATE | map::ANONYMOUS;
    let remap = |from: usize, len: usize, to: usize| {
        // SAFETY: what lies at `to` is ours, and what is moved is used by nobody meanwhile.
        unsafe { ulpm_sys::move_mapping(from, len, to) }
    };
    // SAFETY: new mappings at addresses of the kernel's choice; the slices are of such, and of the vDSO, which is as
    // long as its header says.
    unsafe {
        let room = ulpm_sys::mmap(0, code + len - start, prot::NONE, flags, -1, 0).ok()?;
        let copy = ulpm_sys::mmap(0, len, prot::READ | prot::WRITE, flags, -1, 0).ok()?;
        let old = core::slice::from_raw_parts(core::ptr::with_exposed_provenance::<u8>(code), len);
        let new =
            core::slice::from_raw_parts_mut(core::ptr::with_exposed_provenance_mut(copy), len);
        new.copy_from_slice(old);
        let moved_code = room + (code - start);
        let functions = Functions::of(old)?;
        let target = |name: &[u8]| match reads_clock(name) {
            true => Some(own_address()),
            false => Some(moved_code + functions.find(old, name)?),
        };
        redirect(new, target).ok()?;
        protect(copy, len, prot::READ | prot::EXEC).ok()?;
        for &(from, end) in pieces {
            if remap(from, end - from, room + (from - start)).is_err() {
                crate::die("the vDSO cannot be moved");
            }
        }
        let moved = core::ptr::with_exposed_provenance(moved_code);
        note_kernels(core::slice::from_raw_parts(moved, len));
        if remap(copy, len, code).is_err() {
            crate::die("the vDSO cannot be replaced");
        }
        keep_apart(code);
        Some(moved_code)
    }
}

/// The mappings of the vDSO with `code` and of its data, in their order; how many there are.
fn kernels_pieces(code: usize, pieces: &mut [(usize, usize)]) -> Option<usize> {
    let fd = ulpm_sys::open(c"/proc/self/maps", oflag::RDONLY | oflag::CLOEXEC).ok()?;
    let mut buffer = [0; 4608]; // Longer than the longest line.
    let mut lines = Lines::new(fd, &mut buffer);
    let mut count = 0;
    let mut found = false;
    while let Some(line) = lines.next() {
        let Some(line) = MapsLine::parse(line) else { continue };
        let is_code = line.start == code;
        if is_code || (line.name.starts_with(b"[vvar") && line.start < code) {
            *pieces.get_mut(count)? = (line.start, line.end);
            count += 1;
            found |= is_code;
        }
    }
    ulpm_sys::close(fd);
    found.then_some(count)
}

/// Keeps what the program maps from growing together with our vDSO, below which the kernel's data were.
fn keep_apart(vdso: usize) {
    let flags = map::PRIVATE | map::ANONYMOUS | map::FIXED_NOREPLACE;
    // SAFETY: nothing is replaced: it fails if something is there, as after the restart before this one.
    let _ =
        unsafe { ulpm_sys::mmap(vdso - ulpm_sys::PAGE, ulpm_sys::PAGE, prot::NONE, flags, -1, 0) };
}

/// # Safety
///
/// Nobody needs what is taken away.
unsafe fn protect(start: usize, len: usize, protection: usize) -> Result<(), ulpm_sys::Errno> {
    // SAFETY: the caller vouches for it.
    ulpm_sys::check(unsafe { syscall(nr::MPROTECT, [start, len, protection, 0, 0, 0]) }).map(drop)
}

/// Places in the thread's slot: how many waits the thread is in, and the deadlines of the last [`MOST`], each with one
/// more than what [`which`] says. A wait that is left by cancellation or longjmp stays counted: nobody reads its
/// deadline any more, and its place is used again in its turn.
const WAITS: usize = 8;
const DEADLINES: usize = 9;
/// More than signal handlers that wait, each on top of the other.
const MOST: u64 = 8;

const _: () = assert!(DEADLINES + 3 * MOST as usize <= crate::arch::SLOT_LEN);

/// The deadlines of the calling thread.
fn deadlines() -> *mut [[u64; 3]; MOST as usize] {
    // SAFETY: they lie within the slot.
    unsafe { thread_slot().cast::<u64>().add(DEADLINES).cast() }
}

fn is_valid(time: Timespec) -> bool {
    time.sec >= 0 && (0..1_000_000_000).contains(&time.nsec)
}

/// A time of the program's as the kernel knows it. One before its boot is its first moment.
fn for_kernel(time: Timespec, offset: Timespec) -> Timespec {
    let time = time.minus(offset);
    if time.sec < 0 { Timespec::default() } else { time }
}

/// Runs `call`, which waits until a time of the program's, with that time as the kernel knows it.
///
/// # Safety
///
/// `deadline` is null or points to a timespec. The one that `call` gets is good until it returns.
pub(crate) unsafe fn until<R>(
    clock: c_int,
    deadline: *const Timespec,
    call: impl FnOnce(*const Timespec) -> R,
) -> R {
    // SAFETY: the caller vouches for it.
    let time = unsafe { deadline.as_ref() }.copied();
    let (Some(which), Some(time)) = (which(clock), time.filter(|&time| is_valid(time))) else {
        return call(deadline);
    };
    // SAFETY: the slot is the thread's own; a handler that comes in between leaves the count as it was.
    unsafe {
        let slot = thread_slot();
        let count = (*slot)[WAITS];
        (*slot)[WAITS] = count + 1;
        let place = &raw mut (*deadlines())[(count % MOST) as usize];
        undivided(|| {
            let time = for_kernel(time, offset(which));
            place.write_volatile([
                time.sec.cast_unsigned(),
                time.nsec.cast_unsigned(),
                which as u64 + 1,
            ]);
        });
        let result = call(place.cast::<Timespec>());
        (*place)[2] = 0;
        (*slot)[WAITS] = count;
        result
    }
}

/// Gives the deadlines of the calling thread, which was restored, their times in this kernel.
///
/// `again` is the call that it was interrupted in at `context`: libc too waits for a futex until a time of its own.
pub(crate) fn shift_deadlines(context: &UserContext, again: Option<usize>) {
    let machine = &context.machine;
    if again == Some(nr::FUTEX) && machine.r10 != 0 && waits_until(machine.rsi) {
        let own = deadlines().addr();
        let time = core::ptr::with_exposed_provenance_mut::<Timespec>(machine.r10);
        if !(own..own + size_of::<[[u64; 3]; MOST as usize]>()).contains(&machine.r10) {
            // SAFETY: the kernel has read a timespec there, and is to read it again.
            unsafe { time.write(for_kernel(time.read(), change(0))) };
        }
    }
    // SAFETY: the slot is the thread's own, and what was interrupted waits until this has returned.
    for entry in unsafe { &mut *deadlines() } {
        let [sec, nsec, tag] = *entry;
        let Some(which) = (tag as usize).checked_sub(1) else { continue };
        let time = Timespec { sec: sec.cast_signed(), nsec: nsec.cast_signed() };
        let time = for_kernel(time, change(which));
        *entry = [time.sec.cast_unsigned(), time.nsec.cast_unsigned(), tag];
    }
}

/// Runs `call`, which sets a timer, with the times as the kernel knows them; `clock` says which clock it has.
///
/// # Safety
///
/// `new` is null or points to a timer's times.
pub(crate) unsafe fn set_timer<R>(
    flags: c_int,
    new: *const TimerSpec,
    clock: impl FnOnce() -> Option<c_int>,
    call: impl FnOnce(*const TimerSpec) -> R,
) -> R {
    if flags & TIMER_ABSTIME == 0 {
        return call(new);
    }
    // Between the reckoning and the call no restart may come.
    holding_name(|| {
        // SAFETY: the caller vouches for it.
        let spec = unsafe { new.as_ref() }.copied();
        let set = |spec: &TimerSpec| is_valid(spec.value) && spec.value != Timespec::default();
        let Some(mut spec) = spec.filter(|spec| is_shifted() && set(spec)) else {
            return call(new);
        };
        let Some(which) = clock().and_then(which) else { return call(new) };
        spec.value = for_kernel(spec.value, offset(which));
        if spec.value == Timespec::default() {
            spec.value.nsec = 1; // It has passed; 0 would stop the timer.
        }
        call(&raw const spec)
    })
}

/// The clock of a timerfd, as the kernel says.
fn clock_of_timerfd(fd: c_int) -> Option<c_int> {
    let path = Text::<64>::path(format_args!("/proc/thread-self/fdinfo/{fd}"));
    let mut buffer = [0; 512];
    let clock = value(read_file(path.c_str(), &mut buffer), b"clockid:").and_then(decimal)?;
    c_int::try_from(clock).ok()
}

/// POSIX timers with such a clock: libc's handle of each, plus one, and the clock. Of the handle of one that calls a
/// function (SIGEV_THREAD) nobody but libc knows the number, by which the kernel could be asked.
static TIMERS: [(AtomicUsize, AtomicU8); 1024] =
    [const { (AtomicUsize::new(0), AtomicU8::new(0)) }; 1024];
/// Entries that were ever used.
static TIMERS_USED: AtomicUsize = AtomicUsize::new(0);

fn timer_entry(key: usize) -> Option<&'static (AtomicUsize, AtomicU8)> {
    let used = TIMERS_USED.load(Ordering::Acquire).min(TIMERS.len());
    TIMERS[..used].iter().find(|(handle, _)| handle.load(Ordering::Acquire) == key)
}

/// Takes note of a timer's clock, before the program knows the timer.
pub(crate) fn note_timer(handle: isize, clock: c_int) {
    forget_timer(handle);
    let Some(clock) = which(clock).and_then(|_| u8::try_from(clock).ok()) else { return };
    let key = handle.cast_unsigned().wrapping_add(1);
    let take = |entry: &(AtomicUsize, AtomicU8)| {
        // Not the handle yet: nobody looks for this one.
        let taken = entry.0.compare_exchange(0, usize::MAX, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_ok() {
            entry.1.store(clock, Ordering::Relaxed);
            entry.0.store(key, Ordering::Release);
        }
        taken.is_ok()
    };
    let used = TIMERS_USED.load(Ordering::Acquire).min(TIMERS.len());
    if TIMERS[..used].iter().any(take) {
        return;
    }
    while let Some(entry) = TIMERS.get(TIMERS_USED.fetch_add(1, Ordering::AcqRel)) {
        if take(entry) {
            return;
        }
    }
    TIMERS_USED.store(TIMERS.len(), Ordering::Release);
}

/// Forgets a timer, which the program gives up.
pub(crate) fn forget_timer(handle: isize) {
    while let Some((key, _)) = timer_entry(handle.cast_unsigned().wrapping_add(1)) {
        key.store(0, Ordering::Release);
    }
}

/// The clock of a timer, if it is one that counts from a boot.
pub(crate) fn clock_of_timer(handle: isize) -> Option<c_int> {
    let (_, clock) = timer_entry(handle.cast_unsigned().wrapping_add(1))?;
    Some(clock.load(Ordering::Relaxed).into())
}

/// The clock of a condition variable: which of its bits says that it is CLOCK_MONOTONIC, libc is asked once.
///
/// # Safety
///
/// `cond` is that of a condition variable which was initialized.
unsafe fn clock_of_cond(cond: *const c_void) -> c_int {
    /// Where the byte with the bit is, plus one, and the bit; the first is beyond all for none.
    static PLACE: AtomicUsize = AtomicUsize::new(0);
    let mut place = PLACE.load(Ordering::Relaxed);
    if place == 0 {
        place = 0xff00;
        // Longer than both are.
        let (mut attributes, mut probe) = ([0u64; 2], [0u64; 8]);
        // SAFETY: the arguments are what the functions take; a condition variable that nobody uses is memory only.
        unsafe {
            let attributes: *mut c_void = (&raw mut attributes).cast();
            PTHREAD_CONDATTR_INIT.get()(attributes);
            PTHREAD_CONDATTR_SETCLOCK.get()(attributes, MONOTONIC);
            PTHREAD_COND_INIT.get()((&raw mut probe).cast(), attributes);
        }
        let mut bytes = probe.iter().flat_map(|word| word.to_ne_bytes()).enumerate();
        if let Some((at, bit)) = bytes.find(|&(_, byte)| byte != 0) {
            place = (at + 1) << 8 | usize::from(bit);
        }
        PLACE.store(place, Ordering::Relaxed);
    }
    let (at, bit) = ((place >> 8) - 1, place & 0xff);
    // SAFETY: the byte lies in the condition variable, and is only ever changed as a whole.
    let byte = |at| unsafe { &*cond.cast::<AtomicU8>().add(at) }.load(Ordering::Relaxed);
    if at < 48 && usize::from(byte(at)) & bit != 0 { MONOTONIC } else { 0 }
}

next! {
    PTHREAD_CONDATTR_INIT = c"pthread_condattr_init": unsafe extern "C" fn(*mut c_void) -> c_int;
    PTHREAD_CONDATTR_SETCLOCK = c"pthread_condattr_setclock":
        unsafe extern "C" fn(*mut c_void, c_int) -> c_int;
    PTHREAD_COND_INIT = c"pthread_cond_init":
        unsafe extern "C" fn(*mut c_void, *const c_void) -> c_int;
    PTHREAD_COND_TIMEDWAIT = c"pthread_cond_timedwait":
        unsafe extern "C" fn(*mut c_void, *mut c_void, *const Timespec) -> c_int;
    PTHREAD_COND_CLOCKWAIT = c"pthread_cond_clockwait":
        unsafe extern "C" fn(*mut c_void, *mut c_void, c_int, *const Timespec) -> c_int;
    PTHREAD_CLOCKJOIN_NP = c"pthread_clockjoin_np":
        unsafe extern "C" fn(usize, *mut *mut c_void, c_int, *const Timespec) -> c_int;
    TIMERFD_SETTIME = c"timerfd_settime":
        unsafe extern "C" fn(c_int, c_int, *const TimerSpec, *mut TimerSpec) -> c_int;
    SYSINFO = c"sysinfo": unsafe extern "C" fn(*mut i64) -> c_int;
}

// In each wrapper below, the call that is passed on has the arguments of the caller, who vouches for them as the
// function's manual page demands. No value with a destructor is alive at that call, so cancellation may unwind past it.

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_cond_timedwait(
    cond: *mut c_void,
    mutex: *mut c_void,
    deadline: *const Timespec,
) -> c_int {
    // SAFETY: see above.
    unsafe {
        let next = PTHREAD_COND_TIMEDWAIT.get();
        until(clock_of_cond(cond), deadline, |deadline| next(cond, mutex, deadline))
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_cond_clockwait(
    cond: *mut c_void,
    mutex: *mut c_void,
    clock: c_int,
    deadline: *const Timespec,
) -> c_int {
    // SAFETY: see above.
    unsafe {
        let next = PTHREAD_COND_CLOCKWAIT.get();
        until(clock, deadline, |deadline| next(cond, mutex, clock, deadline))
    }
}

/// Functions of an object, a clock, and a deadline.
macro_rules! clock_waits {
    ($($next:ident $name:ident $symbol:literal;)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name(
                object: *mut c_void,
                clock: c_int,
                deadline: *const Timespec,
            ) -> c_int {
                next! {
                    $next = $symbol:
                        unsafe extern "C" fn(*mut c_void, c_int, *const Timespec) -> c_int;
                }
                // SAFETY: see above.
                unsafe {
                    let next = $next.get();
                    until(clock, deadline, |deadline| next(object, clock, deadline))
                }
            }
        )*
    };
}

clock_waits! {
    SEM_CLOCKWAIT sem_clockwait c"sem_clockwait";
    MUTEX_CLOCKLOCK pthread_mutex_clocklock c"pthread_mutex_clocklock";
    RWLOCK_CLOCKRDLOCK pthread_rwlock_clockrdlock c"pthread_rwlock_clockrdlock";
    RWLOCK_CLOCKWRLOCK pthread_rwlock_clockwrlock c"pthread_rwlock_clockwrlock";
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_clockjoin_np(
    thread: usize,
    returned: *mut *mut c_void,
    clock: c_int,
    deadline: *const Timespec,
) -> c_int {
    // SAFETY: see above.
    unsafe {
        let next = PTHREAD_CLOCKJOIN_NP.get();
        until(clock, deadline, |deadline| next(thread, returned, clock, deadline))
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn timerfd_settime(
    fd: c_int,
    flags: c_int,
    new: *const TimerSpec,
    old: *mut TimerSpec,
) -> c_int {
    // SAFETY: see above.
    unsafe {
        let next = TIMERFD_SETTIME.get();
        set_timer(flags, new, || clock_of_timerfd(fd), |new| next(fd, flags, new, old))
    }
}

/// Functions of libc that add a timeout to what they read from CLOCK_MONOTONIC, and give the kernel the sum.
macro_rules! reckoned_waits {
    ($($next:ident $name:ident $symbol:literal;)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name(
                list: *const c_void,
                count: c_int,
                timeout: *const Timespec,
            ) -> c_int {
                next! {
                    $next = $symbol:
                        unsafe extern "C" fn(*const c_void, c_int, *const Timespec) -> c_int;
                }
                // SAFETY: see above.
                unsafe {
                    match timeout.as_ref() {
                        Some(&timeout) if is_shifted() && is_valid(timeout) && libc_reckons() => {
                            $next.get()(list, count, &raw const *&timeout.minus(offset(0)))
                        }
                        _ => $next.get()(list, count, timeout),
                    }
                }
            }
        )*
    };
}

reckoned_waits! {
    AIO_SUSPEND aio_suspend c"aio_suspend";
    AIO_SUSPEND64 aio_suspend64 c"aio_suspend64";
    GAI_SUSPEND gai_suspend c"gai_suspend";
}

/// Whether this libc does so: the versions before 2.34 give the kernel the timeout, or are not known to us.
fn libc_reckons() -> bool {
    #[link(name = "c")]
    unsafe extern "C" {
        safe fn gnu_get_libc_version() -> *const core::ffi::c_char;
    }
    // SAFETY: libc's own constant text.
    let version = unsafe { core::ffi::CStr::from_ptr(gnu_get_libc_version()) }.to_bytes();
    version.strip_prefix(b"2.").and_then(decimal).is_some_and(|minor| minor >= 34)
}

/// `sysinfo`: its first word is the time since the boot, in seconds.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sysinfo(info: *mut i64) -> c_int {
    holding_name(|| {
        // SAFETY: see above.
        unsafe {
            let result = SYSINFO.get()(info);
            if result == 0 && is_shifted() {
                let now = Timespec::from_ns(now_ns(BOOTTIME));
                info.write(now.sec + i64::from(now.nsec != 0));
            }
            result
        }
    })
}
