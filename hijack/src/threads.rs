//! User threads: how they stop, stand still, and go on, here or in a restarted process.
//!
//! A thread stops in the handler of the freeze signal. The kernel's signal frame on its stack holds
//! its registers, extended state included; [`Stopped`], on the same stack, holds what else the kernel
//! knows of it. Both are memory and travel in the image like the rest.
//!
//! ```text
//!  user code ──signal──▶ on_freeze ─▶ arch::park ─▶ wait_for_thaw   (thaw)
//!                            ▲                └──▶ restored          (a new thread, after a restart)
//!  user code ◀─sigreturn─────┴── both return through the end of park
//! ```

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use ulpm_protocol::manager::{FREEZE_COOKIE, FREEZE_SIGNAL};
use ulpm_sys::arch::{UserContext, nr, prctl, syscall};
use ulpm_sys::signal::{self, Action, AltStack, SigInfo, bit};
use ulpm_sys::{Errno, Processors, Scheduling, Timespec, pr};

use crate::process::{self, PerProcess};
use crate::wrap::fork::freeze_signals;
use crate::{arch, clock, critical, cut, manager, program, timed};

/// Threads that a process can have to be saved.
pub(crate) const MAX_THREADS: usize = 16384;

/// Signals that a stopped thread keeps in its record; what is more it keeps in a [`Chunk`].
const FEW: usize = 4;

/// A stopped thread, on its own stack.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Stopped {
    /// Stack pointer inside `arch::park`.
    pub(crate) sp: usize,
    /// The thread waits while the process's count of thaws is this.
    thaw: u32,
    /// The signal frame's context.
    pub(crate) context: *mut UserContext,
    /// The kernel's id.
    pub(crate) tid: i32,
    /// The id that the program sees.
    pub(crate) virt: i32,
    /// Thread pointer.
    pub(crate) fs: usize,
    gs: usize,
    /// Where the kernel clears the tid when the thread ends; glibc's `pd->tid`.
    pub(crate) tid_address: usize,
    robust_list: [usize; 2],
    alt_stack: AltStack,
    pub(crate) name: [u8; 16],
    timer_slack: usize,
    secure_bits: usize,
    parent_death_signal: i32,
    pub(crate) scheduling: Scheduling,
    /// Where it may run, as a place in [`AFFINITIES`] plus one; 0 if it may everywhere.
    affinity: usize,
    io_priority: usize,
    /// System call to be made again, because only our signal interrupted it.
    pub(crate) again: Option<usize>,
    /// System call behind which it stands, if it was seen in it: maybe our signal has cut it short.
    pub(crate) seen: Option<usize>,
    /// The process or group for which the thread waits, as the program knows it; 0 for none.
    pub(crate) waits_for: i32,
    /// Kind and id, as the program knows it, of the System V object for which the thread waits.
    object: Option<(u32, i32)>,
    pending: Held<FEW>,
    /// More of them; null for none.
    more: *mut Chunk,
}

/// Signals that a thread has taken, in order. The last of them may have waited for the process.
#[derive(Debug)]
struct Held<const N: usize> {
    len: usize,
    signals: [(SigInfo, bool); N],
}

impl<const N: usize> Held<N> {
    const NONE: Self = Self { len: 0, signals: [(SigInfo::zeroed(), false); N] };

    fn push(&mut self, signal: (SigInfo, bool)) {
        if let Some(slot) = self.signals.get_mut(self.len) {
            *slot = signal;
            self.len += 1;
        }
    }

    fn list(&self) -> &[(SigInfo, bool)] {
        self.signals.get(..self.len).unwrap_or(&[])
    }
}

/// A mapping of the thread's own, from when it takes many signals until it gives them back. It travels in the image
/// like all memory of the program.
#[derive(Debug)]
#[repr(C)]
struct Chunk {
    next: *mut Chunk,
    held: Held<{ (CHUNK - 24) / size_of::<(SigInfo, bool)>() }>,
}
const CHUNK: usize = 1 << 16;
const _: () = assert!(size_of::<Chunk>() <= CHUNK);

/// How many threads hold signals.
static HOLDING: AtomicU32 = AtomicU32::new(0);
/// A thread could not take all of its signals.
static LEFT_BEHIND: AtomicBool = AtomicBool::new(false);

/// Different sets of processors that the threads of a process are kept to.
struct Affinities(UnsafeCell<[Processors; 1024]>);
// SAFETY: written by the manager while all threads stand still; they read when they are restored, from
// memory that nobody writes before all have arrived.
unsafe impl Sync for Affinities {}
static AFFINITIES: Affinities = Affinities(UnsafeCell::new([[0; 16]; 1024]));

/// Where a stopped thread's [`Stopped`] is.
#[derive(Debug)]
pub(crate) struct Record(AtomicUsize);

static RECORDS: [Record; MAX_THREADS] = [const { Record(AtomicUsize::new(0)) }; MAX_THREADS];

/// Real and virtual ids of threads that were restored: (virtual << 32 | real), 0 for none.
static RESTORED: [AtomicU64; MAX_THREADS] = [const { AtomicU64::new(0) }; MAX_THREADS];
static RESTORED_LEN: AtomicUsize = AtomicUsize::new(0);

/// What stood for [`FREEZE_SIGNAL`] before us: glibc's handler, once it has one.
struct Chained(UnsafeCell<Action>);
// SAFETY: written by `install_handler` only: by the constructor, and by the manager while it holds
// every other thread. A handler that reads it runs before or after, not during.
unsafe impl Sync for Chained {}
static CHAINED: Chained =
    Chained(UnsafeCell::new(Action { handler: 0, flags: 0, restorer: 0, mask: 0 }));

/// The action that stops a thread.
///
/// Everything is blocked while a thread stands still; its alternate stack is used if it has one, as
/// glibc does for the same signal, for its own stack may be full.
fn freeze_action() -> Action {
    Action {
        handler: (on_freeze as extern "C" fn(i32, *const SigInfo, *mut UserContext) as *const ())
            .addr(),
        flags: signal::SA_SIGINFO | signal::SA_ONSTACK | signal::SA_RESTART | signal::SA_RESTORER,
        restorer: (arch::signal_return as *const ()).addr(),
        mask: signal::ALL,
    }
}

/// Makes our handler stand for `signal`, keeps whose place it takes, and returns it.
pub(crate) fn install_handler(signal: i32) -> Action {
    let ours = freeze_action();
    let old = signal::action(signal, Some(&ours)).unwrap_or_default();
    if signal == FREEZE_SIGNAL && old.handler != ours.handler {
        // SAFETY: see `Chained`.
        unsafe { *CHAINED.0.get() = old };
    }
    old
}

/// Puts our handler of [`FREEZE_SIGNAL`] back where glibc has installed its own.
pub(crate) fn keep_handler() {
    if signal::action(FREEZE_SIGNAL, None).is_ok_and(|action| !is_ours(&action)) {
        install_handler(FREEZE_SIGNAL);
    }
}

/// Whether `action` is our handler.
pub(crate) fn is_ours(action: &Action) -> bool {
    action.handler == freeze_action().handler
}

/// The stopped threads. Only while all stand still.
pub(crate) fn stopped(own: &PerProcess) -> impl Iterator<Item = *mut Stopped> {
    let count = own.records.load(Ordering::Acquire).min(MAX_THREADS);
    RECORDS[..count]
        .iter()
        .map(|record| record.0.load(Ordering::Acquire))
        .filter(|&address| address != 0)
        .map(core::ptr::with_exposed_provenance_mut)
}

/// The descriptors from which stopped threads were about to receive `len` bytes with `flags`, of no address.
pub(crate) fn that_receive(
    own: &PerProcess,
    len: usize,
    flags: usize,
) -> impl Iterator<Item = i32> {
    stopped(own).filter_map(move |stopped| {
        // SAFETY: the thread stands still, with its context on its stack.
        let (context, call) = unsafe {
            let context = &*(*stopped).context;
            (context, context.about_to_call())
        };
        let machine = &context.machine;
        let found =
            call == Some(nr::RECVFROM) && (machine.rdx, machine.r10, machine.r8) == (len, flags, 0);
        i32::try_from(machine.rdi).ok().filter(|_| found)
    })
}

/// Whether a signal is a request to stop.
fn is_freeze(info: &SigInfo) -> bool {
    info.code == signal::SI_QUEUE && info.value >> 32 == FREEZE_COOKIE >> 32
}

/// Handler of the freeze signals.
extern "C" fn on_freeze(signo: i32, info: *const SigInfo, context: *mut UserContext) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO both pointers, into the signal frame.
    let (info, context) = unsafe { (&*info, &mut *context) };
    let Some(own) = process::own().filter(|_| is_freeze(info)) else {
        return pass_on(signo, info, context);
    };
    #[expect(clippy::cast_possible_truncation, reason = "the low half is the epoch")]
    let epoch = info.value as u32;
    if epoch == 0 && program::woken(own) {
        return;
    }
    // Read before the epoch is looked at: a thaw that comes in between is not missed.
    let thaw = own.thaw.load(Ordering::Acquire);
    process::virtual_pid(own);
    cut::forget_interruption(context);
    manager::start(own);
    // A thread in the vDSO has to leave it first: its code will not be there after a restart under
    // another kernel, and it takes nanoseconds. The manager asks again.
    let in_vdso = clock::is_in_vdso(context.machine.rip);
    let over = epoch == 0 || epoch <= own.thawed_epoch.load(Ordering::Acquire);
    if over || in_vdso || critical::must_go_on(context) {
        // The signal queues: a thread that did not run for a while would be asked many times at once,
        // and lose the patience of `must_go_on` without having gone on.
        while let Some(other) = signal::take_pending(bit(signo)) {
            if !is_freeze(&other) {
                let _ = signal::queue_to_thread(ulpm_sys::getpid(), ulpm_sys::gettid(), &other);
                break;
            }
        }
        // SAFETY: the context is that of this thread, in its handler.
        if unsafe { context.returned(Errno::INTR) } {
            let number = timed::number_before(&context.machine);
            make_again(context, number.filter(|&number| timed::can_be_made_again(number)));
        } else {
            cut::go_on(context, None);
        }
        return;
    }
    stop(own, context, thaw);
}

/// A signal that is not ours: glibc's own use of its signal, or the program's SIGUSR2 that arrived
/// while our handler stood in for the default action.
fn pass_on(signo: i32, info: &SigInfo, context: &mut UserContext) {
    if signo == FREEZE_SIGNAL {
        // SAFETY: see `Chained`.
        let chained = unsafe { *CHAINED.0.get() };
        if chained.handler > signal::SIG_IGN && chained.flags & signal::SA_SIGINFO != 0 {
            type Handler = extern "C" fn(i32, *const SigInfo, *mut UserContext);
            // SAFETY: glibc installed it as a handler of this type.
            let handler: Handler = unsafe { core::mem::transmute(chained.handler) };
            handler(signo, info, context);
        }
        return;
    }
    // The signal was at its default when we took it over: that is what it gets, once we return.
    let _ = signal::action(signo, Some(&Action::default()));
    let _ = ulpm_sys::tgkill(ulpm_sys::getpid(), ulpm_sys::gettid(), signo);
}

fn stop(own: &PerProcess, context: &mut UserContext, thaw: u32) {
    let index = own.records.fetch_add(1, Ordering::AcqRel);
    let Some(record) = RECORDS.get(index) else { return };
    let tid = ulpm_sys::gettid();
    let mut stopped = Stopped {
        sp: 0,
        thaw,
        context,
        tid,
        virt: virtual_tid(tid),
        fs: base(prctl::GET_FS),
        gs: base(prctl::GET_GS),
        tid_address: pointer_from(pr::GET_TID_ADDRESS),
        robust_list: robust_list(),
        alt_stack: signal::alt_stack(),
        name: ulpm_sys::thread_name(),
        // SAFETY: takes no argument.
        timer_slack: unsafe { ulpm_sys::prctl(pr::GET_TIMERSLACK, [0; 2]) }.unwrap_or(0),
        secure_bits: secure_bits(),
        parent_death_signal: parent_death_signal(),
        scheduling: ulpm_sys::scheduling(0).unwrap_or_default(),
        affinity: 0,
        io_priority: 0,
        again: None,
        seen: None,
        waits_for: 0,
        object: critical::awaited_object(context),
        pending: Held::NONE,
        more: core::ptr::null_mut(),
    };
    let place = (&raw mut stopped).expose_provenance();
    record.0.store(place, Ordering::Release);
    // SAFETY: `stopped` is this thread's own and stays where it is until `park` returns.
    unsafe { arch::park(&raw mut stopped) };
    // A thaw has cleared it, unless that came before it was set.
    let _ = record.0.compare_exchange(place, 0, Ordering::AcqRel, Ordering::Relaxed);
    go_on(&mut stopped);
}

/// Tells the manager, and waits for it to thaw the process.
pub(crate) extern "C" fn wait_for_thaw(stopped: *mut Stopped) {
    let Some(own) = process::own() else { return };
    // SAFETY: the record of the calling thread, on its own stack.
    let thaw = unsafe { (*stopped).thaw };
    own.stopped.fetch_add(1, Ordering::AcqRel);
    ulpm_sys::futex_wake_all(&own.stopped);
    let mut seen = thaw;
    loop {
        let now = own.thaw.load(Ordering::Acquire);
        if now == seen {
            let _ = ulpm_sys::futex_wait(&own.thaw, now, None);
        } else if own.collecting.load(Ordering::Acquire) != 0 {
            seen = now;
            match own.collecting.load(Ordering::Acquire) {
                LOCKS => crate::locks::take(),
                FLAGS => tell_flags(),
                // SAFETY: as above.
                GIVE_BACK => give_back_pending(unsafe { &*stopped }),
                // SAFETY: as above.
                _ => take_pending(unsafe { &mut *stopped }),
            }
            own.collected.fetch_add(1, Ordering::AcqRel);
            ulpm_sys::futex_wake_all(&own.collected);
        } else {
            return;
        }
    }
}

/// Has the stopped threads take the signals that wait for them, up to `until` (monotonic ns); false if not all did.
/// Only while all stand still: those of the other processes too, who could send to one that has taken some.
pub(crate) fn collect_all_signals(own: &PerProcess, until: i64) -> bool {
    let count = u32::try_from(stopped(own).count()).unwrap_or(u32::MAX);
    have_done(own, SIGNALS, count, until)
}

/// The same, unless no signal waits for any process of the user; `status` is /proc/self/status.
pub(crate) fn collect_signals(own: &PerProcess, status: &[u8], until: i64) -> bool {
    let queued = ulpm_sys::proc::value(status, b"SigQ:")
        .and_then(|used| used.split(|&byte| byte == b'/').next())
        .and_then(ulpm_sys::proc::decimal);
    queued == Some(0) || collect_all_signals(own, until)
}

/// Whether all signals that the threads found were taken, since this was last asked.
pub(crate) fn have_taken_all_signals() -> bool {
    !LEFT_BEHIND.swap(false, Ordering::AcqRel)
}

/// Has the stopped threads give back their signals, before any goes on: else one could miss what the other holds. They
/// still hold them, for an image. False if they have not.
pub(crate) fn have_signals_given_back(own: &PerProcess) -> bool {
    /// They have nothing else to do.
    const PATIENCE_NS: i64 = 5_000_000_000;
    if HOLDING.load(Ordering::Acquire) == 0 {
        return true;
    }
    let count = u32::try_from(stopped(own).count()).unwrap_or(u32::MAX);
    have_done(own, GIVE_BACK, count, ulpm_sys::monotonic_ns() + PATIENCE_NS)
}

/// Has the stopped threads hold no signals any more, which they have given back.
pub(crate) fn forget_given_signals(own: &PerProcess) {
    for stopped in stopped(own) {
        // SAFETY: the thread stands still.
        unsafe { (*stopped).forget_held() };
    }
}

/// Has the threads of a restarted process take its file locks, up to `until`; false if not all have come.
pub(crate) fn have_locks_taken(own: &PerProcess, until: i64) -> bool {
    have_done(own, LOCKS, own.stopped.load(Ordering::Acquire), until)
}

/// The flags of a descriptor (F_GETFD), which only those can ask for whose table it is in; `None` if they do not
/// answer up to `until`. Only while all stand still.
pub(crate) fn descriptor_flags(own: &PerProcess, fd: i32, until: i64) -> Option<i32> {
    ASKED[0].store(fd, Ordering::Relaxed);
    let count = u32::try_from(stopped(own).count()).unwrap_or(u32::MAX);
    have_done(own, FLAGS, count, until).then(|| ASKED[1].load(Ordering::Relaxed))
}

/// On a stopped thread. Each gets the same answer.
fn tell_flags() {
    /// F_GETFD
    const GET: i32 = 1;
    let flags = ulpm_sys::fcntl(ASKED[0].load(Ordering::Relaxed), GET, 0);
    ASKED[1].store(flags.unwrap_or(0), Ordering::Relaxed);
}

/// A descriptor, and its flags.
static ASKED: [AtomicI32; 2] = [const { AtomicI32::new(0) }; 2];

/// What stopped threads are to do: `PerProcess::collecting`.
const SIGNALS: u32 = 1;
const LOCKS: u32 = 2;
const FLAGS: u32 = 3;
const GIVE_BACK: u32 = 4;

/// Has `count` stopped threads do something, up to `until` (monotonic ns); false if not all have.
fn have_done(own: &PerProcess, what: u32, count: u32, until: i64) -> bool {
    own.collected.store(0, Ordering::Relaxed);
    own.collecting.store(what, Ordering::Release);
    own.thaw.fetch_add(1, Ordering::AcqRel);
    ulpm_sys::futex_wake_all(&own.thaw);
    let all = wait_for(&own.collected, count, until);
    own.collecting.store(0, Ordering::Release);
    all
}

/// Gives a new thread what the kernel knew of the one that it replaces, and waits for the thaw.
pub(crate) extern "C" fn restored(stopped: *mut Stopped) {
    // SAFETY: `clone_parked` and `become_parked` pass the record of the thread that is replaced, on
    // the stack that is now the calling thread's.
    let stopped = unsafe { &mut *stopped };
    stopped.tid = ulpm_sys::gettid();
    stopped.thaw = process::own().map_or(0, |own| own.thaw.load(Ordering::Acquire));
    remember(stopped.virt, stopped.tid);
    let [head, len] = stopped.robust_list;
    let [rseq_offset, rseq_len] = [0, 1].map(|i| process::RSEQ[i].load(Ordering::Relaxed));
    // SAFETY: each call registers memory that was registered for the same purpose when the thread was
    // stopped, and that was restored since. What the kernel refuses, the thread goes on without, as
    // it would on a kernel that lacks it.
    unsafe {
        if stopped.gs != 0 {
            syscall(nr::ARCH_PRCTL, [prctl::SET_GS, stopped.gs, 0, 0, 0, 0]);
        }
        if head != 0 {
            syscall(nr::SET_ROBUST_LIST, [head, len, 0, 0, 0, 0]);
        }
        if rseq_len != 0 {
            register_rseq(stopped.fs.wrapping_add(rseq_offset), rseq_len);
        }
        // Also to say that there is none: the leading thread still has ulpm_restart's.
        let mut stack = stopped.alt_stack;
        stack.flags &= !signal::SS_ONSTACK;
        let _ = signal::set_alt_stack(&stack);
        let _ = ulpm_sys::prctl(pr::SET_TIMERSLACK, [stopped.timer_slack, 0]);
        if set_secure_bits(stopped.secure_bits).is_err() {
            crate::die("a thread cannot have its securebits(7) again without privileges");
        }
        if stopped.parent_death_signal > 0 {
            let signal = stopped.parent_death_signal.cast_unsigned() as usize;
            let _ = ulpm_sys::prctl(pr::SET_PDEATHSIG, [signal, 0]);
        }
        let _ = ulpm_sys::set_scheduling(0, &stopped.scheduling);
        // The kernel takes those that there are; if there is none, the thread may run everywhere.
        if let Some(set) =
            stopped.affinity.checked_sub(1).and_then(|i| (*AFFINITIES.0.get()).get(i))
        {
            let _ = ulpm_sys::set_affinity(0, set);
        }
        // PERM for what only root may have: then it stays what it is.
        if stopped.io_priority != 0 {
            let _ = ulpm_sys::set_io_priority(stopped.io_priority);
        }
    }
    ulpm_sys::set_thread_name(&stopped.name);
    // SAFETY: the context is in this thread's signal frame.
    if let Err(why) = unsafe { arch::fit_extended_state((*stopped.context).machine.fpstate) } {
        crate::die(why);
    }
    wait_for_the_same(stopped);
    // SAFETY: as above.
    clock::shift_deadlines(unsafe { &*stopped.context }, stopped.again);
    // Before anybody of the job goes on, who could send more.
    give_back_pending(stopped);
    stopped.forget_held();
    wait_for_thaw(stopped);
}

/// The register in which a call that waits for children has the id of one, or of a group.
///
/// # Safety
///
/// `context` is that of a thread in its handler.
unsafe fn awaited(context: &mut UserContext) -> Option<&mut usize> {
    // SAFETY: the caller vouches for it.
    let call = unsafe { context.about_to_call() };
    match call {
        Some(nr::WAIT4) => Some(&mut context.machine.rdi),
        // P_PID and P_PGID
        Some(nr::WAITID) if matches!(context.machine.rdi, 1 | 2) => Some(&mut context.machine.rsi),
        _ => None,
    }
}

/// Notes for whom a stopped thread waits: the kernel will restart the call, maybe in another process.
pub(crate) fn note_awaited(stopped: &mut Stopped) {
    // SAFETY: the thread stands in its handler.
    let register = unsafe { awaited(&mut *stopped.context) };
    let Some(table) = process::table() else { return };
    #[expect(clippy::cast_possible_truncation, reason = "the kernel takes an int")]
    let real = register.map_or(0, |register| *register as i32);
    stopped.waits_for = match real {
        -1 | 0 => 0,
        ..-1 => -table.virtual_group(-real),
        _ => table.virtual_of(real),
    };
}

/// Makes a restored thread wait for the same child or System V object, whatever its id is now.
fn wait_for_the_same(stopped: &mut Stopped) {
    if let (Some((kind, id)), Some(table)) = (stopped.object, process::table())
        && let Some(object) = table.object(kind, id)
    {
        // The first argument of all calls that wait for one, should it be made again.
        // SAFETY: the thread stands in its handler.
        unsafe { (*stopped.context).machine.rdi = object.real() as isize as usize };
    }
    let Some(table) = process::table().filter(|_| stopped.waits_for != 0) else { return };
    let real = match stopped.waits_for {
        group @ ..0 => -table.real_group(-group),
        pid => table.real_of(pid),
    };
    // SAFETY: the thread stands in its handler.
    if let Some(register) = unsafe { awaited(&mut *stopped.context) } {
        *register = real as isize as usize;
    }
}

/// # Safety
///
/// `area` is the calling thread's rseq area.
unsafe fn register_rseq(area: usize, len: usize) {
    const SIGNATURE: usize = 0x5305_3053; // RSEQ_SIG of glibc on x86
    // SAFETY: the caller vouches for the area.
    let returned = unsafe { syscall(nr::RSEQ, [area, len, 0, SIGNATURE, 0, 0]) };
    if ulpm_sys::check(returned).is_err() {
        // RSEQ_CPU_ID_REGISTRATION_FAILED in `cpu_id`: glibc falls back to getcpu.
        let cpu_id = core::ptr::with_exposed_provenance_mut::<i32>(area + 4);
        // SAFETY: as above; the field is the second word.
        unsafe { cpu_id.write(-2) };
    }
}

/// The last steps in the handler, after which the kernel returns to the program.
fn go_on(stopped: &mut Stopped) {
    give_back_pending(stopped);
    stopped.forget_held();
    // SAFETY: the context is in this thread's signal frame, which lies above on its stack.
    let context = unsafe { &mut *stopped.context };
    // SAFETY: as above.
    if unsafe { context.returned(Errno::INTR) } {
        // Of a freeze that has failed nobody has taken notes.
        let before = || timed::number_before(&context.machine);
        let number = stopped.again.or_else(|| before().filter(|&n| timed::can_be_made_again(n)));
        make_again(context, number);
    } else {
        cut::go_on(context, stopped.seen);
    }
}

/// Makes the program's call again that only we have interrupted.
fn make_again(context: &mut UserContext, number: Option<usize>) {
    if a_handler_waits(context.mask) || cut::resume(context) {
        return;
    }
    if let Some(number) = number {
        timed::continue_call(context, number);
        if !cut::wait_with_timeout(context, number) {
            context.rewind(number);
        }
    }
}

/// Whether a signal that has a handler will be delivered when the mask becomes `mask`: then the call
/// ends with EINTR, as it would have without us.
pub(crate) fn a_handler_waits(mask: u64) -> bool {
    let ours = process::table().map_or(0, freeze_signals);
    let waiting = signal::pending() & !mask & !ours;
    (1..=signal::LAST).filter(|&signo| waiting & bit(signo) != 0).any(|signo| {
        signal::action(signo, None).is_ok_and(|action| action.handler > signal::SIG_IGN)
    })
}

/// Takes the pending signals that a restarted process would lose.
///
/// The leading thread takes those of the process as well. Their order is kept, and they are given back
/// before the thread goes on.
fn take_pending(stopped: &mut Stopped) {
    let waiting = signal::pending();
    if waiting == 0 {
        return;
    }
    let (mut own, mut shared) = pending_sets();
    let leads = stopped.tid == ulpm_sys::getpid();
    let wanted = if leads { waiting } else { own };
    let wanted = wanted & !bit(signal::SIGKILL) & !bit(signal::SIGSTOP);
    let table = process::table();
    // The kernel hands out the thread's own signals first. Another thread takes none that the process has too: the
    // one that it would get is not its own any more when those have come to an end.
    while (leads || own & wanted != 0) && stopped.has_room() {
        let is_shared = own & wanted == 0;
        let Some(mut info) = signal::take_pending(wanted) else { break };
        if own & wanted != 0 && shared & wanted != 0 {
            (own, shared) = pending_sets();
        }
        // A second freeze signal that came while the first was being handled.
        if is_freeze(&info) {
            continue;
        }
        // What the kernel has filled in; in a message the sender names itself.
        if info.is_from_kernel() {
            info.pid = table.map_or(info.pid, |table| table.virtual_of(info.pid));
        }
        stopped.hold((info, is_shared));
    }
}

/// Which signals wait for the calling thread, and which for its process.
fn pending_sets() -> (u64, u64) {
    let mut buffer = [0; 2048];
    let status = crate::capture::text::read_file(c"/proc/thread-self/status", &mut buffer);
    let set = |name| ulpm_sys::proc::value(status, name).and_then(ulpm_sys::proc::hex).unwrap_or(0);
    (set(b"SigPnd:"), set(b"ShdPnd:"))
}

impl Stopped {
    /// Sees to it that one more signal can be held.
    fn has_room(&mut self) -> bool {
        if self.pending.len < FEW {
            return true;
        }
        let mut last = &raw mut self.more;
        // SAFETY: each is null or a chunk that the thread has mapped, and nobody else uses while it does this.
        unsafe {
            while !(*last).is_null() {
                let chunk = &mut **last;
                if chunk.held.len < chunk.held.signals.len() {
                    return true;
                }
                last = &raw mut chunk.next;
            }
            // Zeroed memory is an empty chunk.
            let access = ulpm_sys::prot::READ | ulpm_sys::prot::WRITE;
            let flags = ulpm_sys::map::PRIVATE | ulpm_sys::map::ANONYMOUS;
            match ulpm_sys::mmap(0, CHUNK, access, flags, -1, 0) {
                Ok(address) => {
                    *last = core::ptr::with_exposed_provenance_mut(address);
                    true
                }
                Err(_) => {
                    LEFT_BEHIND.store(true, Ordering::Release);
                    false
                }
            }
        }
    }

    /// Holds one more signal; there is room.
    fn hold(&mut self, signal: (SigInfo, bool)) {
        if self.pending.len < FEW {
            if self.pending.len == 0 {
                HOLDING.fetch_add(1, Ordering::AcqRel);
            }
            return self.pending.push(signal);
        }
        let mut chunk = self.more;
        // SAFETY: as above; the last of them has room.
        while let Some(place) = unsafe { chunk.as_mut() } {
            if place.next.is_null() {
                place.held.push(signal);
            }
            chunk = place.next;
        }
    }

    /// Lets go of the signals that it holds.
    fn forget_held(&mut self) {
        if self.pending.len == 0 {
            return;
        }
        self.pending.len = 0;
        let mut chunk = core::mem::replace(&mut self.more, core::ptr::null_mut());
        // SAFETY: the chunks are the thread's own mappings, and nothing in them is used any more.
        unsafe {
            while let Some(place) = chunk.as_ref() {
                let next = place.next;
                ulpm_sys::munmap(chunk.expose_provenance(), CHUNK);
                chunk = next;
            }
        }
        HOLDING.fetch_sub(1, Ordering::AcqRel);
    }

    /// All signals that it holds, in order.
    fn held(&self) -> impl Iterator<Item = (SigInfo, bool)> {
        // SAFETY: as above.
        let first = unsafe { self.more.as_ref() };
        // SAFETY: as above.
        let chunks = core::iter::successors(first, |chunk| unsafe { chunk.next.as_ref() });
        let more = chunks.flat_map(|chunk| chunk.held.list());
        self.pending.list().iter().chain(more).copied()
    }
}

fn give_back_pending(stopped: &Stopped) {
    // What has come since is not in the image, and maybe of a timer that ends again after a restart: it stays where it is.
    let pid = ulpm_sys::getpid();
    let table = process::table();
    for (mut info, is_shared) in stopped.held() {
        // The program knows the sender so; but glibc ignores a cancellation that another process has sent.
        if info.signo < signal::FIRST_REALTIME && info.signo > signal::LAST_STANDARD {
            info.pid = table.map_or(info.pid, |table| table.real_of(info.pid));
        } else if process::is_restarted() && info.is_from_kernel() {
            info.set_named();
        }
        // A thread may send to itself what claims to come from the kernel; and the leading thread
        // to its process, whose id is its own.
        let sent = if is_shared && stopped.tid == pid {
            signal::queue_to_process(pid, &info)
        } else {
            signal::queue_to_thread(pid, stopped.tid, &info)
        };
        if sent == Err(Errno::AGAIN) {
            let _ = ulpm_sys::tgkill(pid, stopped.tid, info.signo);
        }
    }
}

/// Notes where each stopped thread may run, and its I/O priority. Only on the manager thread, in a freeze.
pub(crate) fn note_attributes(own: &PerProcess) {
    // All processors that the process could be given: what the kernel leaves of "all" for this thread.
    let everywhere = ulpm_sys::affinity(0).ok().and_then(|before| {
        ulpm_sys::set_affinity(0, &[u64::MAX; 16]).ok()?;
        let all = ulpm_sys::affinity(0);
        let _ = ulpm_sys::set_affinity(0, &before);
        all.ok()
    });
    // SAFETY: see `Affinities`.
    let known = unsafe { &mut *AFFINITIES.0.get() };
    let mut len = 0;
    for stopped in stopped(own) {
        // SAFETY: the thread stands still.
        let stopped = unsafe { &mut *stopped };
        stopped.io_priority = ulpm_sys::io_priority(stopped.tid);
        stopped.affinity = 0;
        let Ok(set) = ulpm_sys::affinity(stopped.tid) else { continue };
        if everywhere.is_none_or(|everywhere| everywhere == set) {
            continue;
        }
        let place = known[..len].iter().position(|other| *other == set).or_else(|| {
            *known.get_mut(len)? = set;
            len += 1;
            Some(len - 1)
        });
        stopped.affinity = place.map_or(0, |place| place + 1);
    }
}

/// Whether a stopped thread has taken the signal of a POSIX timer. Only while all stand still.
pub(crate) fn hold_timer_signal(own: &PerProcess, id: i32) -> bool {
    stopped(own).any(|stopped| {
        // SAFETY: the thread stands still.
        let stopped = unsafe { &*stopped };
        // The timer's number lies where other signals have their sender.
        stopped.held().any(|(info, _)| info.code == signal::SI_TIMER && info.pid == id)
    })
}

fn base(operation: usize) -> usize {
    let mut base = 0usize;
    // SAFETY: both operations that are used here store one word.
    unsafe { syscall(nr::ARCH_PRCTL, [operation, (&raw mut base).addr(), 0, 0, 0, 0]) };
    base
}

fn pointer_from(operation: usize) -> usize {
    let mut pointer = 0usize;
    // SAFETY: PR_GET_TID_ADDRESS stores one word.
    let _ = unsafe { ulpm_sys::prctl(operation, [(&raw mut pointer).addr(), 0]) };
    pointer
}

fn secure_bits() -> usize {
    // SAFETY: takes no argument.
    unsafe { ulpm_sys::prctl(pr::GET_SECUREBITS, [0; 2]) }.unwrap_or(0)
}

/// Anybody may set one of them, PR_SET_KEEPCAPS.
fn set_secure_bits(bits: usize) -> Result<(), Errno> {
    /// SECBIT_KEEP_CAPS (include/uapi/linux/securebits.h)
    const KEEP: usize = 1 << 4;
    let (operation, value) = match secure_bits() ^ bits {
        0 => return Ok(()),
        KEEP => (pr::SET_KEEPCAPS, usize::from(bits & KEEP != 0)),
        _ => (pr::SET_SECUREBITS, bits),
    };
    // SAFETY: no memory is involved.
    unsafe { ulpm_sys::prctl(operation, [value, 0]) }.map(drop)
}

fn parent_death_signal() -> i32 {
    let mut signal = 0i32;
    // SAFETY: PR_GET_PDEATHSIG stores an int.
    let _ = unsafe { ulpm_sys::prctl(pr::GET_PDEATHSIG, [(&raw mut signal).addr(), 0]) };
    signal
}

fn robust_list() -> [usize; 2] {
    let (mut head, mut len) = (0usize, 0usize);
    // SAFETY: the call stores two words.
    unsafe {
        let args = [0, (&raw mut head).addr(), (&raw mut len).addr(), 0, 0, 0];
        syscall(nr::GET_ROBUST_LIST, args);
    }
    [head, len]
}

/// Waits until `count` threads stand still, or `until` (monotonic ns); true if they do.
pub(crate) fn wait_stopped(own: &PerProcess, count: u32, until: i64) -> bool {
    wait_for(&own.stopped, count, until)
}

fn wait_for(counter: &AtomicU32, count: u32, until: i64) -> bool {
    loop {
        let now = counter.load(Ordering::Acquire);
        if now >= count {
            return true;
        }
        let left = until - ulpm_sys::monotonic_ns();
        if left <= 0 {
            return false;
        }
        let _ = ulpm_sys::futex_wait(counter, now, Some(Timespec::from_ns(left)));
    }
}

fn remember(virt: i32, real: i32) {
    let entry = u64::from(virt.cast_unsigned()) << 32 | u64::from(real.cast_unsigned());
    let index = RESTORED_LEN.fetch_add(1, Ordering::AcqRel);
    if let Some(slot) = RESTORED.get(index) {
        slot.store(entry, Ordering::Release);
    }
}

/// Forgets the threads of the restart before this one.
pub(crate) fn forget_restored() {
    RESTORED_LEN.store(0, Ordering::Release);
}

fn restored_ids() -> impl Iterator<Item = (i32, i32, &'static AtomicU64)> {
    RESTORED[..RESTORED_LEN.load(Ordering::Acquire).min(MAX_THREADS)].iter().map(|slot| {
        let entry = slot.load(Ordering::Acquire);
        #[expect(clippy::cast_possible_truncation, reason = "two halves")]
        let halves = ((entry >> 32) as i32, entry as i32);
        (halves.0, halves.1, slot)
    })
}

/// The thread id that the program sees for a real one of this process.
pub(crate) fn virtual_tid(real: i32) -> i32 {
    if !process::is_restarted() {
        return real;
    }
    restored_ids().find(|&(_, tid, _)| tid == real).map_or(real, |(virt, ..)| virt)
}

/// The real thread id behind one that the program sees.
pub(crate) fn real_tid(virt: i32) -> i32 {
    if !process::is_restarted() {
        return virt;
    }
    restored_ids().find(|&(seen, ..)| seen == virt).map_or(virt, |(_, real, _)| real)
}

/// Gives the only thread of a new process the id by which the program knows the process, in place of
/// those that were copied from the process that it was forked from.
pub(crate) fn settle_leader(virt: i32, real: i32) {
    forget_restored();
    if virt != real {
        remember(virt, real);
        let address = pointer_from(pr::GET_TID_ADDRESS);
        if address != 0 {
            // SAFETY: glibc's copy of the thread's id, which it keeps for as long as the thread lives.
            let copy = unsafe { &*core::ptr::with_exposed_provenance::<AtomicI32>(address) };
            copy.store(virt, Ordering::Release);
        }
    }
}

/// Settles the id of a thread that was created after a restart, before its code runs: `real` may be a
/// number that belonged to a restored thread which has ended, or by which one goes.
///
/// `pthread_tid` is glibc's copy of the id.
pub(crate) fn settle_new(real: i32, pthread_tid: &AtomicI32) {
    // The process was saved and restarted since the thread was made: it has its name already.
    if pthread_tid.load(Ordering::Acquire) != real {
        return;
    }
    for (_, tid, slot) in restored_ids() {
        if tid == real {
            slot.store(0, Ordering::Release);
        }
    }
    let taken = restored_ids().any(|(virt, ..)| virt == real);
    if let Some(table) = process::table()
        && (taken || table.by_virtual(real).is_some_and(|slot| slot.real() != real))
    {
        let virt = table.fresh_virtual();
        remember(virt, real);
        pthread_tid.store(virt, Ordering::Release);
    }
}

/// Forgets the stopped threads, which are about to go on.
pub(crate) fn clear_records(own: &PerProcess) {
    let count = own.records.load(Ordering::Acquire).min(MAX_THREADS);
    for record in &RECORDS[..count] {
        record.0.store(0, Ordering::Release);
    }
    own.records.store(0, Ordering::Release);
}
