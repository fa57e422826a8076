//! The manager thread: the coordinator's hand in the process.
//!
//! It is a thread that libc does not know. It blocks every signal, so that the program's never reach
//! it, and has a descriptor table of its own, so that the program neither sees nor closes what it
//! opens. It never touches thread-local storage: its thread pointer is that of the thread which
//! started it.

use core::sync::atomic::{AtomicU32, Ordering};

use ulpm_plugin::event;
use ulpm_protocol::manager::{
    CAPTURE_FILES, CAPTURE_HOLD, CAPTURE_REPAIR, CAPTURE_STOPPED, CAPTURE_SYNC, FREEZE_FORGET,
    FREEZE_MIGRATE, FREEZE_NOTE, FREEZE_SIGNAL, FREEZE_STOPPED, Failure, FrameHeader, FromManager,
    HEADER_LEN, MANAGER_COMM, Thawed, ToManager, VERSION, WRITER_COMM,
};
use ulpm_protocol::table::{Handover, Table, object_flag};
use ulpm_sys::arch::{nr, syscall};
use ulpm_sys::{Errno, OwnedFd, POLLIN, PollFd, Timespec, ipc, signal};

use crate::capture::write::Writer;
use crate::capture::{self, Subject};
use crate::freeze::{self, Failed};
use crate::plugins::Thaw;
use crate::private::PRIVATE;
use crate::process::{self, PerProcess};
use crate::{
    arch, connections, heap, notices, owners, plugins, program, requests, stops, threads, timers,
};

/// How long to wait before the coordinator's socket is tried again.
const RETRY_NS: i64 = 100_000_000;
/// How long the threads of a restarted process may take to appear.
const RESTORE_DEADLINE_NS: i64 = 30_000_000_000;

/// Why a restarted process has to end.
pub(crate) const NO_THREAD: &str =
    "cannot make a thread: the limit on processes (ulimit -u) may be too low";

/// User threads whose return a restarted process waits for; 0 in any other.
static RESTORING: AtomicU32 = AtomicU32::new(0);

/// Starts the manager thread, if there is none. Callable from any thread and any handler.
pub(crate) fn start(own: &PerProcess) {
    /// CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM
    const THREAD: usize = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;
    if own.has_manager.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return;
    }
    let mask = signal::set_mask(signal::ALL);
    let top = PRIVATE.stack.get().addr() + size_of_val(&PRIVATE.stack);
    // SAFETY: the stack is the manager's alone, and there was none.
    let tid = unsafe { arch::clone_thread(THREAD, top, run) };
    if tid < 0 {
        own.has_manager.store(0, Ordering::Release);
    }
    signal::set_mask(mask);
}

/// `PerProcess::has_manager` when the manager has a table of descriptors of its own.
const HAS_DESCRIPTORS: u32 = 2;

/// Waits for a manager that is just beginning to leave the program's descriptors. On any thread of the program.
pub(crate) fn wait_for_start(own: &PerProcess) {
    loop {
        match own.has_manager.load(Ordering::Acquire) {
            0 | HAS_DESCRIPTORS => return,
            now => {
                let _ = ulpm_sys::futex_wait(&own.has_manager, now, None);
            }
        }
    }
}

/// Starts the manager of a restarted process, which waits for `threads` user threads.
pub(crate) fn start_restored(own: &PerProcess, threads: u32) {
    RESTORING.store(threads, Ordering::Release);
    own.has_manager.store(0, Ordering::Release);
    start(own);
    if own.has_manager.load(Ordering::Acquire) == 0 {
        crate::die(NO_THREAD);
    }
}

extern "C" fn run() -> ! {
    let mut name = [0; 16];
    name[..MANAGER_COMM.len()].copy_from_slice(MANAGER_COMM.as_bytes());
    ulpm_sys::set_thread_name(&name);
    // An empty descriptor table of its own. Without it (before Linux 5.9) our descriptors would be
    // the program's, so such a process cannot be saved, and the coordinator will say that no manager
    // has come.
    let left = notices::leave_descriptors();
    if let Some(own) = process::own() {
        own.has_manager.store(HAS_DESCRIPTORS, Ordering::Release);
        ulpm_sys::futex_wake_all(&own.has_manager);
    }
    let (Ok(()), Some(own), Some(table)) = (left, process::own(), process::table()) else {
        ulpm_sys::exit_thread()
    };
    let mut manager = Manager {
        own,
        table,
        socket: -1,
        frozen: None,
        restored: RESTORING.swap(0, Ordering::AcqRel),
        writer: None,
        looked_into: None,
        prepared: false,
        wished: 0,
        asks: false,
    };
    program::begin(own);
    if manager.restored != 0 {
        let deadline = ulpm_sys::monotonic_ns() + RESTORE_DEADLINE_NS;
        if !threads::wait_stopped(own, manager.restored, deadline) {
            crate::die("the threads of the restarted process did not come");
        }
        if let Err(why) = timers::make_again() {
            crate::die(why);
        }
        if let Err(why) = requests::make_again() {
            crate::die(why);
        }
        if owners::give_back(table).is_err() {
            crate::die("cannot give the descriptors of the restarted process their owners");
        }
        if notices::ask_again().is_err() {
            crate::die(
                "cannot ask for notice of messages as before: another process waits for them",
            );
        }
        // Nobody of the job goes on before the coordinator has heard of everyone.
        capture::ipc::settle();
        program::restarted(own);
        plugins::restored();
    }
    loop {
        if let Ok(socket) = ulpm_sys::connect_unix(table.socket()) {
            manager.socket = socket;
            manager.serve();
            ulpm_sys::close(socket);
        }
        manager.coordinator_is_gone();
        let pause = AtomicU32::new(0);
        let _ = ulpm_sys::futex_wait(&pause, 0, Some(Timespec::from_ns(RETRY_NS)));
    }
}

/// A freeze that is in force.
#[derive(Clone, Copy, Debug)]
struct Frozen {
    epoch: u32,
    threads: u32,
    stopped: bool,
    leader_gone: bool,
}

/// A forked writer: its process id, and a descriptor that tells its end.
#[derive(Clone, Copy, Debug)]
struct ForkedWriter {
    pid: i32,
    pidfd: i32,
}

/// The connection ended, or what came over it was not understood.
struct Disconnected;

impl From<Errno> for Disconnected {
    fn from(_: Errno) -> Self {
        Self
    }
}

struct Manager {
    own: &'static PerProcess,
    table: Table,
    socket: i32,
    frozen: Option<Frozen>,
    /// User threads of a restarted process that wait for their first thaw; 0 otherwise.
    restored: u32,
    writer: Option<ForkedWriter>,
    /// While the process is frozen.
    looked_into: Option<capture::LookedInto>,
    /// The plugins have been asked, and are to be told of the thaw.
    prepared: bool,
    /// The last wish of which the coordinator knows; 0 for none.
    wished: u32,
    /// The coordinator knows that it is to ask before a freeze.
    asks: bool,
}

impl Manager {
    /// Talks to the coordinator until the connection ends.
    fn serve(&mut self) {
        let hello = FromManager::Hello {
            version: VERSION,
            job: self.table.header().job,
            real: ulpm_sys::getpid(),
            virt: process::virtual_pid(self.own),
            restored: self.restored != 0,
            stopped: self.restored != 0 && crate::restart::will_stop(),
        };
        if self.send(&hello).is_err() {
            return;
        }
        (self.wished, self.asks) = (0, false);
        while self.wait_and_handle().is_ok() {}
    }

    /// Says what the program wants.
    fn tell_wishes(&mut self) -> Result<(), Disconnected> {
        if !self.asks && (plugins::has_helper(self.own) || program::holds(self.own)) {
            self.asks = true;
            self.send(&FromManager::Asks)?;
        }
        match program::unanswered(self.own) {
            Some(number) if number != self.wished => {
                self.wished = number;
                self.send(&FromManager::Wish { number })
            }
            _ => Ok(()),
        }
    }

    fn wait_and_handle(&mut self) -> Result<(), Disconnected> {
        self.tell_wishes()?;
        let writer = self.writer.map_or(-1, |writer| writer.pidfd);
        let mut fds = [
            PollFd { fd: self.socket, events: POLLIN, revents: 0 },
            PollFd { fd: writer, events: POLLIN, revents: 0 },
        ];
        match ulpm_sys::poll_signals(&mut fds, signal::ALL & !signal::bit(FREEZE_SIGNAL)) {
            Err(Errno::INTR) => return Ok(()), // See `program`.
            result => result?,
        };
        if fds[1].revents != 0 {
            self.reap_writer()?;
        }
        if fds[0].revents != 0 { self.handle_message() } else { Ok(()) }
    }

    fn handle_message(&mut self) -> Result<(), Disconnected> {
        // SAFETY: only the manager thread uses it, and only here.
        let payload = unsafe { &mut *PRIVATE.input.get() };
        let mut header = [0; HEADER_LEN];
        let (len, passed) = ulpm_sys::receive_with_fd(self.socket, &mut header)?;
        if len == 0 {
            return Err(Disconnected);
        }
        let sink = passed.map(OwnedFd::new);
        self.receive(&mut header[len..])?;
        let header = FrameHeader::decode(header).map_err(|_| Disconnected)?;
        let payload = &mut payload[..header.len];
        self.receive(payload)?;
        match ToManager::decode(header.kind, payload).map_err(|_| Disconnected)? {
            ToManager::Prepare { deadline_ms, flags } => match self.prepare(deadline_ms, flags) {
                Ok(()) => self.send(&FromManager::Prepared),
                Err(failed) => self.report(&failed),
            },
            ToManager::Freeze { epoch, deadline_ms, flags } => {
                self.freeze(epoch, deadline_ms, flags)
            }
            ToManager::Capture { flags, zombies } => self.capture(flags, zombies, sink.as_ref()),
            ToManager::Thaw(how) => {
                self.thaw(how);
                Ok(())
            }
            ToManager::Wished { number, errno } => {
                program::answer(self.own, number, errno);
                Ok(())
            }
            ToManager::End => {
                remove_objects(self.table);
                end()
            }
        }
    }

    /// Asks the plugins, unless they have been asked.
    fn prepare(&mut self, deadline_ms: u32, flags: u32) -> Result<(), Failed> {
        if !self.prepared {
            self.prepared = true;
            plugins::prepare(self.own, deadline_ms, flags & FREEZE_MIGRATE != 0)?;
            program::close(self.own, deadline_ms)?;
        }
        Ok(())
    }

    fn freeze(&mut self, epoch: u32, deadline_ms: u32, flags: u32) -> Result<(), Disconnected> {
        if flags & FREEZE_FORGET != 0 {
            stops::forget_repeated(&self.table, false);
            return self.send(&FromManager::Frozen { threads: 0 });
        }
        if let Some(frozen) = self.frozen.filter(|frozen| frozen.epoch == epoch)
            && flags & FREEZE_NOTE != 0
        {
            stops::note(&self.table);
            return self.send(&FromManager::Frozen { threads: frozen.threads });
        }
        if self.frozen.is_some() {
            self.thaw(Thawed::Aborted);
        }
        self.stop_writer();
        heap::reset();
        // One that was not there, or was executed, when the others were asked. None that was stopped can be asked.
        if flags & FREEZE_STOPPED == 0
            && let Err(failed) = self.prepare(deadline_ms, flags)
        {
            return self.report(&failed);
        }
        match freeze::freeze(self.own, epoch, deadline_ms) {
            Ok((threads, leader_gone)) => {
                plugins::tell_frozen(event::FROZEN);
                requests::wait_until_done();
                stops::clear();
                self.looked_into = Some(capture::LookedInto::allow());
                let stopped = flags & FREEZE_STOPPED != 0;
                self.frozen = Some(Frozen { epoch, threads, stopped, leader_gone });
                self.send(&FromManager::Frozen { threads })
            }
            Err(failed) => self.report(&failed),
        }
    }

    fn capture(
        &mut self,
        flags: u32,
        zombies: &[u8],
        sink: Option<&OwnedFd>,
    ) -> Result<(), Disconnected> {
        if let Some(frozen) = &mut self.frozen {
            frozen.stopped |= flags & CAPTURE_STOPPED != 0;
        }
        match self.try_capture(flags, zombies, sink) {
            Ok(Captured { snapped, writer, written }) => {
                self.writer = writer;
                if snapped {
                    self.send(&FromManager::Snapped)?;
                }
                written.map_or(Ok(()), |bytes| self.send(&FromManager::Written { bytes }))
            }
            Err(failed) => {
                self.thaw(Thawed::Aborted);
                self.report(&failed)
            }
        }
    }

    fn try_capture(
        &mut self,
        flags: u32,
        zombies: &[u8],
        sink: Option<&OwnedFd>,
    ) -> Result<Captured, Failed> {
        let (Some(frozen), Some(sink)) = (self.frozen, sink) else {
            return Err(Failed::system("capture a process that is not frozen", Errno::INVAL));
        };
        let subject = Subject {
            dumpable: self.looked_into.as_ref().map_or(1, |looked_into| looked_into.before),
            own: self.own,
            table: self.table,
            epoch: frozen.epoch,
            stopped: frozen.stopped,
            leader_gone: frozen.leader_gone,
            zombies,
            with_files: flags & CAPTURE_FILES != 0,
            holds: flags & CAPTURE_HOLD != 0,
            repairs: flags & (CAPTURE_HOLD | CAPTURE_REPAIR) == CAPTURE_HOLD | CAPTURE_REPAIR,
        };
        let (meta, saved) = capture::collect(&subject)?;
        let sync = flags & CAPTURE_SYNC != 0;
        let hold = flags & CAPTURE_HOLD != 0;
        let mut writer = Writer::start(sink.get(), &meta).map_err(write_failed)?;
        writer
            .regions(saved.iter().filter(|saved| saved.in_freeze), false)
            .map_err(write_failed)?;
        let rest = || saved.iter().filter(|saved| !saved.in_freeze);
        // While the whole job stands still: what others send to a thread that has taken its signals and not yet given
        // back all of them would come among them. The copy still holds them, for a restart.
        if !threads::have_signals_given_back(self.own) {
            return Err(Failed::new(
                Failure::Deadline,
                0,
                format_args!(
                    "its threads did not give back the signals that wait for them in time"
                ),
            ));
        }
        // Also when the program is to stay frozen: a thread that counts as stopped may still be on its
        // way into the wait, and changes its stack until it is there. The copy holds still.
        capture::ipc::keep_from_copies(&meta.regions, true);
        let forked = fork_writer();
        if !matches!(forked, Ok(None)) {
            capture::ipc::keep_from_copies(&meta.regions, false);
        }
        match forked {
            Ok(None) => {
                capture::let_go();
                let result = (|| {
                    writer.forked()?;
                    writer.regions(rest(), true)?;
                    writer.finish(sync)
                })();
                self.report_from_writer(result)
            }
            Ok(Some(forked)) => {
                threads::forget_given_signals(self.own);
                Ok(Captured { snapped: !hold, writer: Some(forked), written: None })
            }
            // No memory for a copy of the page tables, or none promised by a kernel that counts
            // strictly: write while the program stands still.
            Err(_) => {
                freeze::wait_until_asleep(self.own);
                let written = writer.regions(rest(), false);
                threads::forget_given_signals(self.own);
                written.map_err(write_failed)?;
                let bytes = writer.finish(sync).map_err(write_failed)?;
                Ok(Captured { snapped: !hold, writer: None, written: Some(bytes) })
            }
        }
    }

    /// The last act of a forked writer, which shares the manager's connection.
    fn report_from_writer(&mut self, result: Result<u64, Errno>) -> ! {
        let sent = match result {
            Ok(bytes) => self.send(&FromManager::Written { bytes }),
            Err(errno) => self.report(&write_failed(errno)),
        };
        ulpm_sys::exit_group(i32::from(sent.is_err()))
    }

    /// Takes note of a writer's end, and speaks for one that could not.
    fn reap_writer(&mut self) -> Result<(), Disconnected> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        ulpm_sys::close(writer.pidfd);
        match ulpm_sys::wait4(writer.pid, ulpm_sys::WCLONE) {
            Ok((_, 0)) => Ok(()),
            Ok((_, status)) => self.report(&Failed::new(
                Failure::Write,
                0,
                format_args!(
                    "the process that wrote the image was ended (wait status {status:#x}), \
                     maybe for want of memory"
                ),
            )),
            Err(_) => Ok(()),
        }
    }

    /// Ends a writer whose image nobody waits for.
    fn stop_writer(&mut self) {
        if let Some(writer) = self.writer.take() {
            let _ = ulpm_sys::kill(writer.pid, signal::SIGKILL);
            let _ = ulpm_sys::wait4(writer.pid, ulpm_sys::WCLONE);
            ulpm_sys::close(writer.pidfd);
        }
    }

    fn thaw(&mut self, how: Thawed) {
        let restored = self.restored != 0;
        self.let_go_on();
        if core::mem::take(&mut self.prepared) || restored {
            program::open(self.own);
            plugins::thawed(
                self.own,
                match how {
                    Thawed::Moved if restored => Thaw::Moved,
                    _ if restored => Thaw::Restarted,
                    Thawed::Saved => Thaw::Saved,
                    _ => Thaw::Aborted,
                },
            );
        }
    }

    fn let_go_on(&mut self) {
        self.looked_into = None;
        capture::let_go();
        if core::mem::take(&mut self.restored) != 0 {
            // If this stops us, it returns when the next freeze has begun: what that holds stays held.
            crate::locks::take_all(self.own, &self.table);
            stops::forget_repeated(&self.table, crate::restart::will_stop());
            crate::restart::before_first_thaw();
            connections::go_on();
            freeze::thaw(self.own, 0);
        } else if let Some(frozen) = self.frozen.take() {
            connections::go_on();
            stops::forget_repeated(&self.table, frozen.stopped);
            if frozen.stopped {
                // Takes effect before this call returns; what follows happens after a SIGCONT.
                let _ = ulpm_sys::kill(ulpm_sys::getpid(), signal::SIGSTOP);
            }
            freeze::thaw(self.own, frozen.epoch);
        } else if self.own.records.load(Ordering::Acquire) != 0 {
            // Threads that were held before the freeze came, which will not come any more.
            freeze::thaw(self.own, self.table.header().epoch.load(Ordering::Acquire));
        }
    }

    /// Without a coordinator the process goes on, unless it was handed over, or is a copy that was
    /// never told to run.
    fn coordinator_is_gone(&mut self) {
        let handover = self.table.handover();
        if handover == Handover::Committed || handover == Handover::Pending && self.restored != 0 {
            remove_objects(self.table);
            end();
        }
        self.stop_writer(); // Nobody waits for its image.
        if self.restored == 0 {
            self.thaw(Thawed::Aborted);
            // Threads may wait that were stopped before there was a manager.
            let epoch = self.table.header().epoch.load(Ordering::Acquire);
            freeze::thaw(self.own, epoch);
        }
    }

    fn report(&mut self, failed: &Failed) -> Result<(), Disconnected> {
        let Failed { failure, errno, text } = failed;
        self.send(&FromManager::Failed { failure: *failure, errno: *errno, text: text.bytes() })
    }

    fn send(&mut self, message: &FromManager<'_>) -> Result<(), Disconnected> {
        // SAFETY: only the manager thread, or its forked copy, uses it, and only here.
        let buffer = unsafe { &mut *PRIVATE.out.get() };
        let len = message.encode(buffer);
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            let sent = ulpm_sys::send(self.socket, rest)?;
            rest = &rest[sent..];
        }
        Ok(())
    }

    fn receive(&self, mut rest: &mut [u8]) -> Result<(), Disconnected> {
        while !rest.is_empty() {
            match ulpm_sys::read(self.socket, rest)? {
                0 => return Err(Disconnected),
                len => rest = &mut rest[len..],
            }
        }
        Ok(())
    }
}

/// How far a capture has come.
struct Captured {
    /// The process may go on, and the coordinator is to be told.
    snapped: bool,
    /// A forked writer is at work, and will say when it is done.
    writer: Option<ForkedWriter>,
    /// The image is complete, and has so many bytes.
    written: Option<u64>,
}

fn write_failed(errno: Errno) -> Failed {
    Failed::new(Failure::Write, errno.raw(), format_args!("cannot write the image: {errno}"))
}

/// Forks a copy of the process that has only the calling thread; `None` in the copy.
///
/// It sends no SIGCHLD, so the program's wait calls do not see it.
fn fork_writer() -> Result<Option<ForkedWriter>, Errno> {
    const CLONE_PIDFD: usize = 0x1000;
    let mut pidfd = -1i32;
    // SAFETY: a plain fork: the copy goes on in its own memory, on its own copy of this stack.
    let pid = ulpm_sys::check(unsafe {
        syscall(nr::CLONE, [CLONE_PIDFD, 0, (&raw mut pidfd).addr(), 0, 0, 0])
    })?;
    if pid == 0 {
        let mut name = [0; 16];
        name[..WRITER_COMM.len()].copy_from_slice(WRITER_COMM.as_bytes());
        ulpm_sys::set_thread_name(&name);
        return Ok(None);
    }
    Ok(Some(ForkedWriter { pid: i32::try_from(pid).unwrap_or(-1), pidfd }))
}

/// Removes the System V objects and message queues that the job has made, and that a checkpoint or another host has now.
fn remove_objects(table: Table) {
    notices::unlink_own();
    for object in table.objects().filter(|object| object.flags() & object_flag::CREATED != 0) {
        if let Some(kind) = ipc::Kind::from_raw(object.kind()) {
            let _ = ipc::remove(kind, object.real());
        }
    }
}

/// Ends the process as if it had never been here: no handler, no buffered output.
fn end() -> ! {
    connections::end();
    let _ = ulpm_sys::kill(ulpm_sys::getpid(), signal::SIGKILL);
    ulpm_sys::exit_group(0)
}
