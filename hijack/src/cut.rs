//! Calls that a freeze has cut short.
//!
//! A write of much to a pipe or a terminal, a send on a stream, a receive with MSG_WAITALL, a large read of
//! /dev/zero: when a signal comes they return what they have done so far, and ours is a signal. On its way back to the
//! program such a thread first makes the rest of its call, in a few instructions of our own (`arch::rest`), and
//! comes back to the program with the sum. What these need to know lies in a [`Rest`] on the thread's stack.
//!
//! ```text
//!  program: write(1,000,000) ── freeze ─▶ 65,536 ─▶ rest: write(934,464) … ─▶ program: 1,000,000
//! ```
//!
//! Only what nothing but a signal cuts short is continued: a descriptor that blocks, of a kind that else takes or
//! gives all. If a handler of the program's is about to run, the call stays short, as it does natively; if one
//! comes in the rest, or that fails, the program is told what was done. The rest waits by ppoll(2), which also a handler
//! with SA_RESTART ends, and not inside of the calls: so an error of a connection waits for the program's next one.
//!
//! The same instructions wait for what is left of a socket's own timeout (SO_RCVTIMEO), where a call has done nothing
//! yet. When it has begun, nobody can be asked: the time counts anew from the first freeze that interrupts it.

use core::mem::offset_of;

use ulpm_sys::arch::{MachineContext, UserContext, nr};
use ulpm_sys::signal::SS_ONSTACK;
use ulpm_sys::socket::{af, get_int_option, get_option, msg, so, sock};
use ulpm_sys::{Errno, POLLIN, POLLOUT, PollFd, Timespec, fcntl, fstat, mode, oflag};

use crate::{arch, threads, timed};

/// The most that one call moves (MAX_RW_COUNT of include/linux/fs.h).
const MOST: usize = 0x7fff_f000;

/// `POLLERR` and `POLLNVAL`.
const FAILED: i16 = 8 | 32;
/// `POLLHUP`
const HUNG_UP: i16 = 16;

/// What `arch::rest` works by, and the program's registers.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Rest {
    /// Where the program goes on, and its stack pointer and arguments there.
    rip: usize,
    rsp: usize,
    arguments: [usize; 6],
    /// What the program's call returns in the end.
    total: usize,
    /// The call that does a part of the rest, its arguments, and how much it has to do.
    number: usize,
    now: [usize; 6],
    left: usize,
    /// `struct iovec` of the parts that come then, and how many they are.
    parts: usize,
    part_count: usize,
    /// What is waited for before each call, and until when: null for as long as it takes.
    poll: PollFd,
    timeout: usize,
    time: Timespec,
    /// 0: not waited for; 1: before each call; 2: before the program's call is made again.
    mode: usize,
    /// The most that one call on memory is to do, and the least after which there is another one.
    step: usize,
    enough: usize,
    /// What ends it when poll finds it.
    stop_at: usize,
    /// The program's call, and what it returns when the time is over.
    again: usize,
    late: usize,
}

/// Places in a [`Rest`], for the instructions that use them.
pub(crate) mod at {
    use super::{PollFd, Rest, offset_of};

    pub(crate) const RIP: usize = offset_of!(Rest, rip);
    pub(crate) const RSP: usize = offset_of!(Rest, rsp);
    pub(crate) const ARGUMENTS: usize = offset_of!(Rest, arguments);
    pub(crate) const TOTAL: usize = offset_of!(Rest, total);
    pub(crate) const NUMBER: usize = offset_of!(Rest, number);
    pub(crate) const NOW: usize = offset_of!(Rest, now);
    pub(crate) const LEFT: usize = offset_of!(Rest, left);
    pub(crate) const PARTS: usize = offset_of!(Rest, parts);
    pub(crate) const PART_COUNT: usize = offset_of!(Rest, part_count);
    pub(crate) const POLL: usize = offset_of!(Rest, poll);
    pub(crate) const FOUND: usize = offset_of!(Rest, poll) + offset_of!(PollFd, revents);
    pub(crate) const TIMEOUT: usize = offset_of!(Rest, timeout);
    pub(crate) const MODE: usize = offset_of!(Rest, mode);
    pub(crate) const STEP: usize = offset_of!(Rest, step);
    pub(crate) const ENOUGH: usize = offset_of!(Rest, enough);
    pub(crate) const STOP_AT: usize = offset_of!(Rest, stop_at);
    pub(crate) const AGAIN: usize = offset_of!(Rest, again);
    pub(crate) const LATE: usize = offset_of!(Rest, late);
}

/// What is left of a call: a call, its arguments, and the parts behind it.
#[derive(Clone, Copy, Debug, Default)]
struct Plan {
    number: usize,
    arguments: [usize; 6],
    left: usize,
    parts: [usize; 2],
    /// Poll for this before each call, and stop at that.
    poll: Option<(i16, i16)>,
    /// The most that one call is to do; 0 if it does what it can.
    step: usize,
    /// The calls do not wait.
    is_nonblocking: bool,
    timeout: Option<Timespec>,
}

/// Has the thread that was interrupted at `context` make the rest of a call that was cut short.
///
/// `seen` is the number of the call in which the thread was seen before, with the registers that it still has.
pub(crate) fn go_on(context: &mut UserContext, seen: Option<usize>) {
    let done = context.machine.rax;
    // SAFETY: the context is that of this thread, in its handler.
    if done.wrapping_sub(1) >= MOST || !unsafe { context.follows_call() } {
        return;
    }
    if threads::a_handler_waits(context.mask) {
        return;
    }
    if let Some(rest) = rest_of(context) {
        rest.advance(done);
        start(&mut context.machine, rest);
        return;
    }
    // What was seen may have ended since, and another call with the same arguments been made at the same place,
    // such as a read of what was written. So that is enough where nothing can be read.
    let certain = timed::certain_number_before(&context.machine);
    let Some(number) = certain.or(seen) else { return };
    let Some(plan) = plan(&context.machine, number, done) else { return };
    if certain.is_none() && !is_written_to_only(context.machine.rdi) {
        return;
    }
    let rest = Rest { total: done, ..Rest::of(&context.machine, &plan, 0) };
    enter(context, rest);
}

/// Takes back what the kernel leaves at a socket where a call for several messages was interrupted: an error for the
/// next call.
pub(crate) fn forget_interruption(context: &UserContext) {
    /// SO_ERROR
    const ERROR: i32 = 4;
    // SAFETY: the context is that of this thread, in its handler.
    if context.machine.rax.wrapping_sub(1) >= MOST || !unsafe { context.follows_call() } {
        return;
    }
    let number = match rest_of(context) {
        Some(rest) => Some(rest.number),
        None => timed::certain_number_before(&context.machine),
    };
    if let Some(nr::SENDMMSG | nr::RECVMMSG) = number {
        let _ = get_int_option(descriptor(context.machine.rdi), so::SOL_SOCKET, ERROR);
    }
}

/// Has a rest go on that was interrupted before it has done anything.
pub(crate) fn resume(context: &mut UserContext) -> bool {
    let Some(rest) = rest_of(context) else { return false };
    start(&mut context.machine, rest);
    true
}

/// Has a call on a socket that has a timeout wait for what is left of that, before it is made again.
pub(crate) fn wait_with_timeout(context: &mut UserContext, number: usize) -> bool {
    let (events, option, late) = match number {
        nr::READ
        | nr::READV
        | nr::RECVFROM
        | nr::RECVMSG
        | nr::RECVMMSG
        | nr::ACCEPT
        | nr::ACCEPT4 => (POLLIN, so::RCVTIMEO, Errno::AGAIN),
        nr::WRITE | nr::WRITEV | nr::SENDTO | nr::SENDMSG | nr::SENDMMSG => {
            (POLLOUT, so::SNDTIMEO, Errno::AGAIN)
        }
        nr::CONNECT => (POLLOUT, so::SNDTIMEO, Errno::INPROGRESS),
        _ => return false,
    };
    let fd = descriptor(context.machine.rdi);
    let Some(Some(time)) = timeout(fd, option) else { return false };
    let plan = Plan { poll: Some((events, 0)), timeout: Some(time), ..Plan::default() };
    let rest = Rest {
        mode: 2,
        again: number,
        late: 0usize.wrapping_sub(late.raw().cast_unsigned() as usize),
        ..Rest::of(&context.machine, &plan, fd)
    };
    enter(context, rest);
    true
}

/// The rest whose call has just returned.
fn rest_of(context: &UserContext) -> Option<&'static mut Rest> {
    let rest = core::ptr::with_exposed_provenance_mut::<Rest>(context.machine.rsp);
    // SAFETY: at this place the stack pointer is that of the thread's `Rest`, which nobody else uses.
    (context.machine.rip == arch::rest_returned()).then(|| unsafe { &mut *rest })
}

/// Lets the thread go on with its rest when it returns from the handler.
fn start(machine: &mut MachineContext, rest: &Rest) {
    machine.rip = arch::rest_start();
    machine.rsp = core::ptr::from_ref(rest).expose_provenance();
}

/// Puts `rest` on the program's stack, and lets the thread go on there.
///
/// Nothing of ours that lies on that stack is used after the handler's return, and what is below the stack pointer now
/// is not used before it either, but for the frames of a few functions.
fn enter(context: &mut UserContext, rest: Rest) {
    const RED_ZONE: usize = 128;
    const FRAMES: usize = 2048;
    let here = arch::stack_pointer();
    let alternate = &context.stack;
    let is_on_it = |sp: usize| sp.wrapping_sub(alternate.base) < alternate.len;
    let is_same_stack =
        is_on_it(here) == is_on_it(context.machine.rsp) || alternate.flags & SS_ONSTACK != 0;
    let below = if is_same_stack { here - FRAMES } else { context.machine.rsp - RED_ZONE };
    let place = core::ptr::with_exposed_provenance_mut::<Rest>(
        (below - size_of::<Rest>()) & !(align_of::<Rest>().max(16) - 1),
    );
    // SAFETY: below the red zone, and below the signal frame if that is on the same stack, there is the stack's
    // free part; the frame of the handler has just been larger.
    let rest = unsafe {
        place.write(rest);
        &mut *place
    };
    if rest.timeout != 0 {
        rest.timeout = (&raw const rest.time).addr();
    }
    start(&mut context.machine, rest);
}

impl Rest {
    fn of(machine: &MachineContext, plan: &Plan, fd: i32) -> Self {
        let fd = if plan.arguments[0] == 0 { fd } else { descriptor(plan.arguments[0]) };
        let (events, stop_at) = plan.poll.unwrap_or((0, 0));
        let [rip, rsp] = [machine.rip, machine.rsp];
        Self {
            rip,
            rsp,
            arguments: [machine.rdi, machine.rsi, machine.rdx, machine.r10, machine.r8, machine.r9],
            total: 0,
            number: plan.number,
            now: plan.arguments,
            left: plan.left,
            parts: plan.parts[0],
            part_count: plan.parts[1],
            poll: PollFd { fd, events, revents: 0 },
            timeout: usize::from(plan.timeout.is_some()),
            time: plan.timeout.unwrap_or_default(),
            mode: usize::from(plan.poll.is_some()),
            step: if plan.step == 0 { usize::MAX } else { plan.step },
            enough: match plan.step {
                _ if plan.is_nonblocking => 1,
                0 => usize::MAX,
                step => step,
            },
            stop_at: stop_at.cast_unsigned().into(),
            again: 0,
            late: 0,
        }
    }

    /// Takes note that `done` more was done.
    fn advance(&mut self, done: usize) {
        self.total += done;
        self.left = self.left.saturating_sub(done);
        advance(self.number, &mut self.now, done);
    }
}

/// What is left of `arguments` after `done`.
fn advance(number: usize, arguments: &mut [usize; 6], done: usize) {
    /// `struct mmsghdr`
    const MESSAGE: usize = 64;
    let [from, to, scale] = match number {
        nr::GETRANDOM => [0, 1, 1],
        nr::SENDFILE => [5, 3, 1], // The file's offset moves by itself; the sixth argument is none.
        nr::SENDMMSG | nr::RECVMMSG => [1, 2, MESSAGE],
        _ => [1, 2, 1],
    };
    arguments[from] = arguments[from].wrapping_add(done * scale);
    arguments[to] = arguments[to].wrapping_sub(done);
}

#[expect(clippy::cast_possible_truncation, reason = "the kernel takes an int")]
fn descriptor(register: usize) -> i32 {
    register as i32
}

/// `F_GETFL`
fn flags(fd: i32) -> i32 {
    fcntl(fd, 3, 0).unwrap_or(oflag::NONBLOCK)
}

/// Whether what can be done with a descriptor is to write to a pipe.
fn is_written_to_only(register: usize) -> bool {
    let fd = descriptor(register);
    flags(fd) & oflag::ACCMODE == oflag::WRONLY
        && fstat(fd).is_ok_and(|status| status.mode & mode::TYPE == mode::FIFO)
}

/// The timeout of a socket: `None` if it is none, or cannot be read.
fn timeout(fd: i32, option: i32) -> Option<Option<Timespec>> {
    let mut value = [0; 16]; // struct timeval
    (get_option(fd, so::SOL_SOCKET, option, &mut value) == Ok(16)).then_some(())?;
    let word = |at: usize| value[at..].first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes));
    let time = Timespec { sec: word(0), nsec: word(8) * 1000 };
    Some((time.as_ns() != 0).then_some(time))
}

/// What kind of descriptor takes or gives all unless a signal comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pipe,
    PacketPipe,
    Stream,
    /// A socket that keeps messages apart.
    Messages,
    Terminal,
    /// /dev/zero and its kin.
    Endless,
}

fn kind(fd: i32) -> Option<Kind> {
    const MEMORY_DEVICES: u64 = 1; // MEM_MAJOR
    const TCP: [i32; 2] = [6, 262]; // IPPROTO_TCP, IPPROTO_MPTCP
    let flags = flags(fd);
    if flags & oflag::NONBLOCK != 0 {
        return None;
    }
    let status = fstat(fd).ok()?;
    let option = |name| get_int_option(fd, so::SOL_SOCKET, name).unwrap_or(-1);
    match status.mode & mode::TYPE {
        mode::FIFO if flags & oflag::DIRECT != 0 => Some(Kind::PacketPipe),
        mode::FIFO => Some(Kind::Pipe),
        mode::CHARACTER if status.rdev >> 8 == MEMORY_DEVICES => Some(Kind::Endless),
        mode::CHARACTER => ulpm_sys::pty::modes(fd).is_ok().then_some(Kind::Terminal),
        mode::SOCKET => match (option(so::TYPE), option(so::DOMAIN)) {
            (sock::STREAM, af::UNIX) => Some(Kind::Stream),
            (sock::STREAM, af::INET | af::INET6) => {
                TCP.contains(&option(so::PROTOCOL)).then_some(Kind::Stream)
            }
            (sock::DGRAM | sock::SEQPACKET, _) => Some(Kind::Messages),
            _ => None,
        },
        _ => None,
    }
}

/// Flags of a send or receive whose rest means the same as the beginning.
const CONFIRM: i32 = 0x800;
const DONTROUTE: i32 = 4;
const EOR: i32 = 0x80;
const WAITALL: i32 = 0x100;
const NOSIGNAL: i32 = 0x4000;
const MORE: i32 = 0x8000;

/// The rest of a call behind which a thread stands, that has done `done`; `None` if it is not to be continued.
fn plan(machine: &MachineContext, number: usize, done: usize) -> Option<Plan> {
    let given = [machine.rdi, machine.rsi, machine.rdx, machine.r10, machine.r8, machine.r9];
    let fd = descriptor(given[0]);
    match number {
        nr::GETRANDOM => same_call(number, given, given[1], done),
        nr::READ | nr::READV => {
            let (parts, len) = parts(number == nr::READV, given)?;
            (done < len && kind(fd)? == Kind::Endless).then_some(())?;
            part_calls(nr::READ, given[0], parts, done)
        }
        nr::WRITE | nr::WRITEV => {
            let (parts, len) = parts(number == nr::WRITEV, given)?;
            if done >= len {
                return None;
            }
            match kind(fd)? {
                Kind::Stream => stream(true, given[0], parts, done, 0),
                Kind::PacketPipe if number == nr::WRITEV => None, // It would make other packets.
                Kind::Messages => None,
                kind => {
                    // What is free for certain if anything is: one buffer of a pipe; a little of a terminal's.
                    let step = match kind {
                        Kind::Pipe | Kind::PacketPipe => ulpm_sys::PAGE,
                        Kind::Terminal => 128,
                        _ => 0,
                    };
                    let poll = (step != 0).then_some((POLLOUT, 0));
                    let plan = part_calls(nr::WRITE, given[0], parts, done)?;
                    Some(Plan { poll, step, ..plan })
                }
            }
        }
        nr::SENDTO | nr::RECVFROM => {
            (done < given[2].min(MOST) && kind(fd)? == Kind::Stream).then_some(())?;
            let parts = Parts::One([given[1], given[2]]);
            stream(number == nr::SENDTO, given[0], parts, done, descriptor(given[3]))
        }
        nr::SENDMSG | nr::RECVMSG => {
            let header = core::ptr::with_exposed_provenance::<[usize; 7]>(given[1]);
            // SAFETY: the kernel has just read a `struct msghdr` there.
            let [_, _, parts, count, control, _, _] = unsafe { header.read_unaligned() };
            let sends = number == nr::SENDMSG;
            // What else could come with the rest would be lost.
            (sends || control == 0).then_some(())?;
            let parts = Parts::Many([parts, count]);
            (done < parts.len() && kind(fd)? == Kind::Stream).then_some(())?;
            stream(sends, given[0], parts, done, descriptor(given[2]))
        }
        // With an offset of the caller's the kernel has moved that on.
        nr::SENDFILE => {
            (done < given[3].min(MOST) && kind(fd)? == Kind::Stream).then_some(())?;
            let plan = same_call(number, given, given[3], done)?;
            Some(Plan { poll: Some((POLLOUT, FAILED | HUNG_UP)), ..plan })
        }
        nr::SENDMMSG | nr::RECVMMSG => {
            /// MSG_WAITFORONE
            const ONE: i32 = 0x1_0000;
            let blocks = descriptor(given[3]) & (msg::DONTWAIT | ONE) == 0;
            let endless = number == nr::SENDMMSG || given[4] == 0;
            let option = if number == nr::SENDMMSG { so::SNDTIMEO } else { so::RCVTIMEO };
            let whole = done < given[2].min(1024) && kind(fd)? == Kind::Messages;
            (blocks && endless && whole && timeout(fd, option)?.is_none()).then_some(())?;
            let events = if number == nr::SENDMMSG { POLLOUT } else { POLLIN };
            let plan = same_call(number, given, given[2], done)?;
            Some(Plan { poll: Some((events, FAILED)), ..plan })
        }
        _ => None,
    }
}

/// The same call, for what is left of `len`.
fn same_call(number: usize, given: [usize; 6], len: usize, done: usize) -> Option<Plan> {
    let len = len.min(MOST);
    (done < len).then_some(())?;
    let mut plan = Plan { number, arguments: given, left: len - done, ..Plan::default() };
    advance(number, &mut plan.arguments, done);
    Some(plan)
}

/// Memory of the program's: address and length; or a list of such, and its length.
#[derive(Clone, Copy)]
enum Parts {
    One([usize; 2]),
    Many([usize; 2]),
}

impl Parts {
    /// # Safety
    ///
    /// The kernel has just read that list.
    fn of(&self) -> &[[usize; 2]] {
        match self {
            Self::One(part) => core::slice::from_ref(part),
            Self::Many([list, count]) => {
                let list = core::ptr::with_exposed_provenance::<[usize; 2]>(*list);
                // SAFETY: the kernel has just read a list of `struct iovec` there, at most 1024.
                unsafe { core::slice::from_raw_parts(list, (*count).min(1024)) }
            }
        }
    }

    fn len(&self) -> usize {
        let sum = self.of().iter().fold(0usize, |sum, [_, len]| sum.saturating_add(*len));
        sum.min(MOST)
    }
}

fn parts(is_list: bool, given: [usize; 6]) -> Option<(Parts, usize)> {
    let [_, at, len, ..] = given;
    let parts = if is_list { Parts::Many([at, len]) } else { Parts::One([at, len]) };
    let len = parts.len();
    (len != 0).then_some((parts, len))
}

/// A call for the rest of the part in which a call has stopped, and the same for each part behind it.
fn part_calls(number: usize, fd: usize, parts: Parts, done: usize) -> Option<Plan> {
    let list = parts.of();
    let mut before = 0;
    let index = list.iter().position(|[_, len]| {
        before += len;
        before > done
    })?;
    let [address, len] = list[index];
    let left = before - done;
    let rest = &list[index + 1..];
    let arguments = [fd, address + (len - left), left, 0, 0, 0];
    // The length of a list that is too long for one call is cut where the kernel would: in its parts, if need be.
    let behind = match parts {
        Parts::Many(_) => [rest.as_ptr().expose_provenance(), rest.len()],
        Parts::One(_) => [0, 0],
    };
    let left = left.min(MOST);
    Some(Plan { number, arguments, left, parts: behind, ..Plan::default() })
}

/// The rest of a send on a stream, or a receive from one.
fn stream(sends: bool, fd: usize, parts: Parts, done: usize, flags: i32) -> Option<Plan> {
    let (number, known, needed, timeout_option) = if sends {
        (nr::SENDTO, NOSIGNAL | MORE | EOR | CONFIRM | DONTROUTE, 0, so::SNDTIMEO)
    } else {
        (nr::RECVFROM, NOSIGNAL | WAITALL | msg::CMSG_CLOEXEC, WAITALL, so::RCVTIMEO)
    };
    (flags & !known == 0 && flags & needed == needed).then_some(())?;
    // A poll would wait for so much.
    let least = || get_int_option(descriptor(fd), so::SOL_SOCKET, so::RCVLOWAT);
    (sends || least() == Ok(1)).then_some(())?;
    let mut plan = part_calls(number, fd, parts, done)?;
    // Who has gone meanwhile is told by the program's next call, as natively.
    let flags = (flags & !WAITALL) | msg::DONTWAIT | if sends { NOSIGNAL } else { 0 };
    plan.arguments[3] = flags.cast_unsigned() as usize;
    plan.poll = Some(if sends { (POLLOUT, FAILED | HUNG_UP) } else { (POLLIN, FAILED) });
    plan.is_nonblocking = true;
    plan.timeout = timeout(descriptor(fd), timeout_option)?;
    Some(plan)
}
