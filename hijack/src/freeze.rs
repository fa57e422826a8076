//! Stopping every user thread of the process, and letting them go on.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use ulpm_protocol::manager::{FREEZE_COOKIE, FREEZE_SIGNAL, Failure};
use ulpm_sys::fmt::Text;
use ulpm_sys::proc::{Stat, decimal, hex};
use ulpm_sys::signal::{self, Action, SigInfo};
use ulpm_sys::{Errno, Scheduling, arch::nr};

use crate::capture::text::{Directory, read_file};
use crate::process::{self, PerProcess};
use crate::threads::{self, Stopped};
use crate::timed;
use crate::wrap::fork::LENT;

/// What went wrong, for the coordinator.
#[derive(Debug)]
pub(crate) struct Failed {
    /// Of what sort.
    pub(crate) failure: Failure,
    /// Error number or 0.
    pub(crate) errno: i32,
    /// In words.
    pub(crate) text: Box<Text<512>>,
}

impl Failed {
    pub(crate) fn new(failure: Failure, errno: i32, why: core::fmt::Arguments<'_>) -> Self {
        Self { failure, errno, text: Box::new(Text::of(why)) }
    }

    /// A system call that does not fail has failed.
    pub(crate) fn system(what: &str, errno: Errno) -> Self {
        Self::new(Failure::System, errno.raw(), format_args!("cannot {what}: {errno}"))
    }
}

/// What a thread was doing before it was asked to stop.
#[derive(Clone, Copy, Debug)]
struct Asked {
    tid: i32,
    /// The system call in which it stood.
    call: Option<Call>,
    at_ns: i64,
}

/// A system call in which a thread stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    number: usize,
    arguments: [usize; 6],
    sp: usize,
    pc: usize,
}

/// A thread that has not stopped after this long is asked again: it stood in the vDSO, or came to
/// block the signal.
const ASK_AGAIN_NS: i64 = 2_000_000;

/// Stops all user threads; returns how many there are, and whether the leading one has ended.
///
/// # Errors
///
/// [`Failed`] names the thread that did not stop in time; the process goes on.
pub(crate) fn freeze(
    own: &PerProcess,
    epoch: u32,
    deadline_ms: u32,
) -> Result<(u32, bool), Failed> {
    let deadline = ulpm_sys::monotonic_ns() + i64::from(deadline_ms) * 1_000_000;
    // Sequentially consistent, as is the other side in `wrap::exec`: either we see the exec that is
    // under way, or it sees the freeze and waits.
    own.freezing.store(1, Ordering::SeqCst);
    // Whoever was about to lose an old coordinator may have taken the new one's freeze for a part of that.
    own.thawed_epoch.store(epoch.saturating_sub(1), Ordering::Release);
    let borrowed = Borrowed::take(own);
    raise(ulpm_sys::gettid());
    let result = stop_all(own, epoch, deadline, &borrowed);
    if result.is_err() {
        borrowed.take_back_requests();
    } else {
        raise_stopped(own);
    }
    borrowed.give_back();
    result.inspect_err(|_| thaw(own, epoch))
}

/// Lets all threads go on.
pub(crate) fn thaw(own: &PerProcess, epoch: u32) {
    // Who has not given them back by then does so on its way.
    if threads::have_signals_given_back(own) {
        threads::forget_given_signals(own);
    }
    own.thawed_epoch.fetch_max(epoch, Ordering::AcqRel);
    threads::clear_records(own);
    lower();
    own.stopped.store(0, Ordering::Release);
    own.freezing.store(0, Ordering::SeqCst);
    own.thaw.fetch_add(1, Ordering::AcqRel);
    ulpm_sys::futex_wake_all(&own.thaw);
}

/// Threads that only run where nobody else wants to (SCHED_IDLE), and that are scheduled as others are until the thaw: on a
/// machine that has much to do they would not stop in time, nor take their signals. One that does not stop at once may see
/// that, so it is done to those only, and when all stand still.
struct Raised {
    list: UnsafeCell<[(i32, Scheduling); 256]>,
    count: AtomicUsize,
    /// The process whose threads they are: a forked child has a copy of its parent's list.
    pid: AtomicI32,
}
// SAFETY: used by the manager thread only.
unsafe impl Sync for Raised {}
static RAISED: Raised = Raised {
    list: UnsafeCell::new([(0, [0; 7]); 256]),
    count: AtomicUsize::new(0),
    pid: AtomicI32::new(0),
};

impl Raised {
    fn list(&self) -> &[(i32, Scheduling)] {
        // SAFETY: see above; it is let go of before anything is added.
        unsafe { &(&*self.list.get())[..self.count.load(Ordering::Relaxed)] }
    }
}

/// Has a thread run beside others, if it does not and if that is permitted (RLIMIT_NICE).
fn raise(tid: i32) {
    /// SCHED_IDLE; SCHED_OTHER is 0 (include/uapi/linux/sched.h). The size lies below.
    const IDLE: u64 = 5 << 32;
    const POLICY: u64 = 0xffff_ffff << 32;
    let Ok(before) = ulpm_sys::scheduling(tid) else { return };
    if before[0] & POLICY != IDLE {
        return;
    }
    let own = ulpm_sys::getpid();
    if RAISED.pid.swap(own, Ordering::Relaxed) != own {
        forget_raised();
    }
    let count = RAISED.count.load(Ordering::Relaxed);
    // SAFETY: see above.
    let Some(place) = (unsafe { &mut *RAISED.list.get() }).get_mut(count) else { return };
    let mut other = before;
    other[0] &= !POLICY;
    if ulpm_sys::set_scheduling(tid, &other).is_ok() {
        *place = (tid, before);
        RAISED.count.store(count + 1, Ordering::Relaxed);
    }
}

/// The same for all that stand still. They remember how they are scheduled without that, for a restart.
fn raise_stopped(own: &PerProcess) {
    for stopped in threads::stopped(own) {
        // SAFETY: the thread stands still.
        let stopped = unsafe { &mut *stopped };
        raise(stopped.tid);
        if let Some((_, before)) = RAISED.list().iter().find(|(tid, _)| *tid == stopped.tid) {
            stopped.scheduling = *before;
        }
    }
}

/// Has all be scheduled as they were.
fn lower() {
    let is_own = || RAISED.pid.load(Ordering::Relaxed) == ulpm_sys::getpid();
    for (tid, before) in RAISED.list().iter().filter(|_| is_own()) {
        let _ = ulpm_sys::set_scheduling(*tid, before);
    }
    forget_raised();
}

/// In a new process nobody is raised.
pub(crate) fn forget_raised() {
    RAISED.count.store(0, Ordering::Relaxed);
}

/// The program's SIGUSR2, or whichever signal was chosen, while a freeze is going on.
///
/// It is taken only where the program has left it at its default, and given back as soon as all
/// threads stand still.
struct Borrowed {
    signal: Option<i32>,
}

impl Borrowed {
    fn take(own: &PerProcess) -> Self {
        let none = Self { signal: None };
        let Some(table) = process::table() else { return none };
        let Ok(wanted) = i32::try_from(table.header().ckpt_signal.load(Ordering::Relaxed)) else {
            return none;
        };
        // An exec resets dispositions: a signal that arrives behind it would end the new program.
        if wanted == FREEZE_SIGNAL || own.signal_users.load(Ordering::SeqCst) != 0 {
            return none;
        }
        match signal::action(wanted, None) {
            Ok(action) if action.handler == signal::SIG_DFL => {
                LENT.store(1, Ordering::Relaxed);
                threads::install_handler(wanted);
                Self { signal: Some(wanted) }
            }
            _ => none,
        }
    }

    /// Withdraws what a thread that did not stop has not yet taken: at the default disposition it would end
    /// the program.
    fn take_back_requests(&self) {
        let ignore = Action { handler: signal::SIG_IGN, ..Action::default() };
        // The kernel drops what waits of a signal that becomes ignored.
        if let Some(signal) = self.signal
            && signal::action(signal, None).is_ok_and(|action| threads::is_ours(&action))
            && signal::action(signal, Some(&ignore)).is_ok()
        {
            threads::install_handler(signal);
        }
    }

    fn give_back(&self) {
        let Some(signal) = self.signal else { return };
        // Unless the program has meanwhile installed something of its own.
        if signal::action(signal, None).is_ok_and(|action| threads::is_ours(&action)) {
            let _ = signal::action(signal, Some(&Action::default()));
        }
        LENT.store(0, Ordering::Relaxed);
    }

    /// The signal to stop a thread with.
    fn for_thread(&self, tid: i32, call: Option<Call>) -> i32 {
        let Some(wanted) = self.signal else { return FREEZE_SIGNAL };
        // A thread in sigwait has the signal unblocked in the kernel, and would be handed it.
        if call.is_some_and(|call| call.number == nr::RT_SIGTIMEDWAIT) {
            return FREEZE_SIGNAL;
        }
        let mut buffer = [0; 1024];
        let path = Text::<64>::path(format_args!("/proc/self/task/{tid}/stat"));
        let stat = read_file(path.c_str(), &mut buffer);
        // Field 32 holds the blocked signals up to 31.
        let blocked = Stat::parse(stat).and_then(|stat| stat.number(32));
        if wanted <= 31 && blocked.is_some_and(|mask| mask & signal::bit(wanted) == 0) {
            wanted
        } else {
            FREEZE_SIGNAL
        }
    }
}

fn stop_all(
    own: &PerProcess,
    epoch: u32,
    deadline: i64,
    borrowed: &Borrowed,
) -> Result<(u32, bool), Failed> {
    // glibc installs its own handler when the first thread is created.
    threads::keep_handler();
    let pid = ulpm_sys::getpid();
    let manager = ulpm_sys::gettid();
    let info = |signo| SigInfo::queued(signo, FREEZE_COOKIE | u64::from(epoch));
    let mut asked: Vec<Asked> = Vec::new();
    loop {
        // In this order: a thread that this listing misses was created by one that has not stopped,
        // so then some thread of the listing is not among the stopped.
        let mut stopped: Vec<i32> = threads::stopped(own)
            // SAFETY: a record that is set is that of a thread which stands still.
            .map(|stopped| unsafe { (*stopped).tid })
            .collect();
        stopped.sort_unstable();
        let now = ulpm_sys::monotonic_ns();
        let mut missing = None;
        let mut users = 0u32;
        let mut leader_gone = false;
        let mut tasks =
            Directory::open(c"/proc/self/task").map_err(|e| Failed::system("list threads", e))?;
        while let Some(entry) = tasks.next() {
            let Some(tid) = decimal(entry).and_then(|tid| i32::try_from(tid).ok()) else {
                continue;
            };
            if tid == manager {
                continue;
            }
            if stopped.binary_search(&tid).is_ok() {
                users += 1;
                continue;
            }
            if tid == pid && has_ended(tid) {
                leader_gone = true;
                continue;
            }
            users += 1;
            missing = Some(tid);
            match asked.iter_mut().find(|asked| asked.tid == tid) {
                Some(again) if now - again.at_ns > ASK_AGAIN_NS => {
                    again.at_ns = now;
                    raise(tid);
                    let _ = signal::queue_to_thread(pid, tid, &info(FREEZE_SIGNAL));
                }
                Some(_) => {}
                None => {
                    let call = current_call(tid);
                    asked.push(Asked { tid, call, at_ns: now });
                    let _ =
                        signal::queue_to_thread(pid, tid, &info(borrowed.for_thread(tid, call)));
                }
            }
        }
        let tid = match missing {
            // The last thread has ended, so the process is about to: this thread will be, too.
            None if users == 0 => pid,
            None => {
                note_interrupted_calls(own, &asked);
                return Ok((users, leader_gone));
            }
            Some(tid) => tid,
        };
        if users as usize > threads::MAX_THREADS {
            return Err(too_many(users));
        }
        if now > deadline {
            return Err(late(tid));
        }
        threads::wait_stopped(own, users.max(1), (now + ASK_AGAIN_NS / 2).min(deadline + 1));
    }
}

/// Waits until every stopped thread sleeps, so that none changes its stack any more.
pub(crate) fn wait_until_asleep(own: &PerProcess) {
    for stopped in threads::stopped(own) {
        // SAFETY: the record is that of a thread which stands still, or is about to.
        let tid = unsafe { (*stopped).tid };
        while current_call(tid).is_none_or(|call| call.number != nr::FUTEX) {
            ulpm_sys::sched_yield();
        }
    }
}

fn too_many(users: u32) -> Failed {
    let most = threads::MAX_THREADS;
    let why = format_args!("it has {users} threads, at most {most} can be saved");
    Failed::new(Failure::Unsupported, 0, why)
}

fn late(tid: i32) -> Failed {
    let mut buffer = [0; 1024];
    let path = Text::<64>::path(format_args!("/proc/self/task/{tid}/stat"));
    let stat = Stat::parse(read_file(path.c_str(), &mut buffer));
    let name = stat.map_or(&b"?"[..], |stat| stat.comm).escape_ascii();
    let state = stat.and_then(|stat| stat.field(3)).unwrap_or(b"?").escape_ascii();
    let call = current_call(tid).map_or("none", |call| nr::name(call.number));
    let why = format_args!(
        "thread {tid} ({name}) did not stop in time: state {state}, system call {call}; \
         try again when that call has returned"
    );
    Failed::new(Failure::Deadline, 0, why)
}

/// Whether a thread is a zombie, as a leading thread is that ended before the others.
fn has_ended(tid: i32) -> bool {
    let mut buffer = [0; 1024];
    let path = Text::<64>::path(format_args!("/proc/self/task/{tid}/stat"));
    Stat::parse(read_file(path.c_str(), &mut buffer)).and_then(|stat| stat.field(3)) == Some(b"Z")
}

/// The system call in which a thread stands, if it waits there.
fn current_call(tid: i32) -> Option<Call> {
    let mut buffer = [0; 256];
    let path = Text::<64>::path(format_args!("/proc/self/task/{tid}/syscall"));
    let line = read_file(path.c_str(), &mut buffer).trim_ascii_end();
    // "nr arg0 … arg5 sp pc"; "running", or "-1 sp pc" when it stands elsewhere in the kernel.
    let mut fields = line.split(|&byte| byte == b' ');
    let number = usize::try_from(decimal(fields.next()?)?).ok()?;
    let mut words = [0; 8];
    for word in &mut words {
        *word = usize::try_from(hex(fields.next()?)?).ok()?;
    }
    let [arguments @ .., sp, pc] = words;
    Some(Call { number, arguments, sp, pc })
}

/// Notes for each thread which system call has to be made again: one that ended with EINTR because of
/// us, or one that the kernel restarts and that names a process; and which one we may have cut short.
fn note_interrupted_calls(own: &PerProcess, asked: &[Asked]) {
    for stopped in threads::stopped(own) {
        // SAFETY: the thread stands still, and waits for us.
        let (stopped, context): (&mut Stopped, _) =
            unsafe { (&mut *stopped, &*(*stopped).context) };
        threads::note_awaited(stopped);
        let machine = &context.machine;
        let asked = asked.iter().find(|asked| asked.tid == stopped.tid);
        let arguments =
            [machine.rdi, machine.rsi, machine.rdx, machine.r10, machine.r8, machine.r9];
        stopped.seen = asked
            .and_then(|asked| asked.call)
            .filter(|call| [call.sp, call.pc] == [machine.rsp, machine.rip])
            .filter(|call| call.arguments == arguments)
            .map(|call| call.number)
            // So the kernel goes on with a wait that something has woken which was no signal in the end, such as a
            // freeze that was given up.
            .filter(|&number| number != nr::RESTART_SYSCALL);
        // SAFETY: the context is that of a thread in its handler.
        if unsafe { context.returned(Errno::INTR) } {
            // Else it entered the call after we looked.
            let number = stopped.seen.or_else(|| timed::number_before(machine));
            stopped.again = number.filter(|&number| timed::can_be_made_again(number));
        }
    }
}
