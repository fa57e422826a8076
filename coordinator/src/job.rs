//! One job: a task that owns its table, its managers and whatever is being done with it.
//!
//! Everything that happens to a job comes to this task as an [`Event`]. While a checkpoint or a migration
//! is going on it still takes events: those that concern the barrier are given to it, all others are
//! answered at once.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::future::Future;
use std::iter::successors;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid as RealPid;
use tokio::sync::{mpsc, oneshot};
use ulpm_control::manifest::{self, Manifest, ProcessEntry};
use ulpm_control::message::{self, Checkpointed, Migrated, Outside, Progress};
use ulpm_control::{JobId, OnFailure, host, place};
use ulpm_protocol::manager::{
    CAPTURE_HOLD, CAPTURE_REPAIR, CAPTURE_STOPPED, CAPTURE_SYNC, FREEZE_FORGET, FREEZE_MIGRATE,
    FREEZE_NOTE, FREEZE_SIGNAL, FREEZE_STOPPED, Failure, Thawed, ToManager, WRITER_COMM, Zombie,
};
use ulpm_protocol::table::{ENV_TABLE, Handover, SlotState, object_flag};
use ulpm_sys::ipc::Kind;

use crate::barrier::{Action, Capture, Captured, Freeze, Pid, Scan, Seen, Step, Stranger};
use crate::error::{JobError, describe};
use crate::generation::{self, GenerationError, Partial};
use crate::kernel::{self, Mapped};
use crate::manager::{ConnId, Hello, Manager, Said};
use crate::migrate::{Manner, check};
use crate::process::{self, Stat};
use crate::recovery::{Asker, Attempt, JobFailure, RECOVERING};
use crate::server::Shared;
use crate::state::{self, Finished, JobMeta, Parent};

/// Generations that are kept when nobody says otherwise: the newest, and one before it.
const DEFAULT_KEEP: u32 = 2;
/// How long an image may not grow.
pub(crate) const STUCK: Duration = Duration::from_secs(60);
/// How often a job is looked at that says nothing.
const TICK: Duration = Duration::from_secs(1);
/// How long the status of the root is waited for when no process is left.
const LAST_WORD: Duration = Duration::from_secs(5);
/// How long a process may take to stop behind a thaw. The next freeze waits that long if somebody has
/// continued it since.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// How long the processes of a restart may take.
pub(crate) const RESTART_TIMEOUT: Duration = Duration::from_secs(60);
/// How often progress is reported.
pub(crate) const PROGRESS: Duration = Duration::from_millis(250);

/// Something happens to a job.
#[derive(Debug)]
pub(crate) enum Event {
    Connected {
        hello: Hello,
        manager: Manager,
    },
    Said {
        pid: i32,
        conn: ConnId,
        said: Said,
    },
    Lost {
        pid: i32,
        conn: ConnId,
    },
    /// A process has ended that started at a time, with a status as from wait(2) if it is known.
    Ended {
        pid: i32,
        start: u64,
        status: Option<i32>,
        command: String,
    },
    Command(Command),
}

type Answer<T> = oneshot::Sender<Result<T, JobError>>;

/// What becomes of a job that is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// It goes on as soon as may be.
    GoOn,
    /// It goes on when the checkpoint is complete and durable.
    GoOnWhenDurable,
    /// It ends then, without going on before.
    End {
        /// What becomes of sockets that are connected to programs outside the job.
        outside: Outside,
    },
}

/// The parent of all threads of the kernel, where there are any to be seen.
const KTHREADD: i32 = 2;

/// Somebody wants something of a job.
#[derive(Debug)]
pub(crate) enum Command {
    Describe(oneshot::Sender<message::Job>),
    Checkpoint {
        keep: Option<u32>,
        then: Then,
        progress: mpsc::UnboundedSender<Progress>,
        answer: Answer<Checkpointed>,
    },
    Migrate {
        /// None: where the job was launched.
        target: Option<String>,
        manner: Manner,
        progress: mpsc::UnboundedSender<Progress>,
        answer: Answer<Migrated>,
    },
    Check {
        target: String,
        manner: Manner,
        /// Nothing is reported; it is held until all is done.
        progress: mpsc::UnboundedSender<Progress>,
        answer: Answer<message::Checked>,
    },
    Kill(Answer<()>),
    SetInterval(Option<u64>, Answer<()>),
    SetOnFailure {
        on_failure: OnFailure,
        max_restarts: Option<u32>,
        answer: Answer<()>,
    },
    /// Somebody waits for a tree of the job: the root's parent, by its process id, if that is given.
    LauncherCame(Option<i32>),
    LauncherWent,
    /// The root has ended, and not well, or could not be restarted: what becomes of the job?
    Outcome {
        status: Option<i32>,
        asker: Asker,
        /// Asked before: what had ended by then has been heard of.
        again: bool,
    },
    /// `ulpm_restart` is there, by its process id, to restart the job.
    Adopt {
        token: String,
        stdio: [message::Stream; 3],
        parent: Option<i32>,
        answer: Answer<(message::JobOpened, oneshot::Sender<()>)>,
    },
    /// The last coordinator died while it restarted the job.
    Resume,
    Started {
        pid: i32,
    },
    Exited {
        status: i32,
        answer: oneshot::Sender<()>,
    },
    /// The members of a restart are expected. `ready` is told when all are there; without it they go on
    /// at once, with it at [`Command::Release`].
    Restored {
        members: Vec<i32>,
        ready: Option<oneshot::Sender<()>>,
        answer: Answer<()>,
    },
    /// The hand-over is decided: restored members go on.
    Release(Answer<()>),
    /// The restart failed: nothing of it stays.
    Abandon(Answer<()>),
}

/// What the rest of the coordinator holds of a job.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub(crate) id: JobId,
    pub(crate) name: String,
    pub(crate) events: mpsc::UnboundedSender<Event>,
    table: Arc<Mutex<PathBuf>>,
}

impl Handle {
    /// Path of the job's table.
    pub(crate) fn table(&self) -> PathBuf {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a command; `None` if the job has ended.
    pub(crate) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        self.events.send(Event::Command(command(sender))).ok()?;
        receiver.await.ok()
    }
}

/// What concerns a barrier.
#[derive(Debug)]
pub(crate) enum Barrier {
    Connected(Pid),
    Lost(Pid),
    Said(Pid, Said),
}

/// A frozen process.
#[derive(Clone, Debug)]
pub(crate) struct FrozenProcess {
    pub(crate) pid: Pid,
    pub(crate) virt: i32,
    pub(crate) parent: i32,
    pub(crate) zombies: Vec<Zombie>,
    pub(crate) rss: u64,
}

/// A job that stands still.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) since: Instant,
    pub(crate) processes: Vec<FrozenProcess>,
}

impl Frozen {
    pub(crate) fn pids(&self) -> BTreeSet<Pid> {
        self.processes.iter().map(|process| process.pid).collect()
    }

    pub(crate) fn rss(&self) -> u64 {
        self.processes.iter().map(|process| process.rss).sum()
    }
}

/// Restored members that are waited for.
#[derive(Debug)]
struct Restoring {
    missing: BTreeSet<i32>,
    expected: usize,
    ready: Option<oneshot::Sender<()>>,
    answer: Answer<()>,
    held: bool,
    deadline: Instant,
}

/// A scan with what the barrier has no use for.
#[derive(Debug, Default)]
struct Look {
    scan: Scan,
    stats: HashMap<i32, Stat>,
    virt: HashMap<i32, i32>,
    zombies: Vec<Stat>,
}

pub(crate) struct Job {
    pub(crate) shared: Arc<Shared>,
    pub(crate) meta: JobMeta,
    pub(crate) table: Mapped,
    pub(crate) table_path: PathBuf,
    known_path: Arc<Mutex<PathBuf>>,
    /// Our own end of `events`.
    pub(crate) sender: mpsc::WeakUnboundedSender<Event>,
    events: mpsc::UnboundedReceiver<Event>,
    /// What has come while something else was waited for.
    kept: VecDeque<Event>,
    managers: HashMap<i32, Manager>,
    /// Those of them that want to be told before a freeze.
    asking: BTreeSet<i32>,
    /// What every freeze says now.
    freeze_flags: u32,
    /// Programs that wish a checkpoint, and the number of the wish.
    wishes: Vec<(Manager, u32)>,
    /// Connections on which images are announced. A process that goes on while its image is written may
    /// execute another program, whose manager is another; the forked writer keeps the first one's
    /// connection.
    writing: HashMap<i32, ConnId>,
    /// Managers whose process has gone on to another program while its image is written.
    replaced: Vec<Manager>,
    /// Members whose identity was proved, with their start times.
    proved: HashMap<i32, u64>,
    /// Processes that were stopped by a signal and were continued for a freeze, or are being restarted: the
    /// thaw stops them again. True if the manager knows, and does it.
    stopped: BTreeMap<Pid, bool>,
    /// Processes that the last thaw was to stop.
    stopping: BTreeSet<Pid>,
    /// Processes that had something left to do when they were to be saved: they, and what descends from them, are frozen
    /// last in the next attempt.
    pub(crate) last: BTreeSet<i32>,
    launchers: u32,
    pub(crate) doing: &'static str,
    last_error: Option<String>,
    restoring: Option<Restoring>,
    next_checkpoint: Option<Instant>,
    pub(crate) exited: Option<i32>,
    /// How the root has ended, as far as it was seen from here.
    pub(crate) root_status: Option<i32>,
    /// It has ended, and nobody can say how.
    pub(crate) root_untold: bool,
    /// Members whose end is waited for, with their start times.
    pub(crate) watched: HashMap<i32, u64>,
    /// The job is to be restarted.
    pub(crate) failure: Option<JobFailure>,
    pub(crate) attempt: Option<Attempt>,
    pub(crate) asker: Option<Asker>,
    /// What was said of the restart that is going on.
    pub(crate) said: Vec<String>,
    /// Somebody has ended it, or it was given up.
    pub(crate) ended: bool,
    /// When it was found that no process is left.
    pub(crate) empty_since: Option<Instant>,
    /// No process is expected yet.
    fresh: bool,
    pub(crate) over: bool,
    /// The target owns it.
    pub(crate) moved: bool,
}

/// How long a checkpoint or a move is tried again while something is in its way that may pass by itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// The first pause between two attempts; each is twice as long as the one before, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(80);
/// How far up the ancestors of a process are looked at: they are read one by one, and ids may be used again meanwhile.
const MAX_DEPTH: usize = 1000;

/// What is left of [`PATIENCE`].
#[derive(Debug)]
pub(crate) struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self { until: Instant::now() + PATIENCE, pause: FIRST_PAUSE }
    }

    /// Whether what went wrong may go right now. Waits for that, while the job goes on. The process that it was about is
    /// frozen last then.
    pub(crate) async fn may_try_again(&mut self, job: &mut Job, why: &JobError) -> bool {
        let JobError::Manager { failure: Failure::Again, pid, .. } = why else { return false };
        job.last.insert(*pid);
        self.pause(job, why).await
    }

    /// Waits before another attempt, while the job goes on; false if there have been enough.
    pub(crate) async fn pause(&mut self, job: &mut Job, why: &JobError) -> bool {
        if Instant::now() + self.pause > self.until {
            return false;
        }
        tracing::debug!("job {}: tried again in {:?}: {why}", job.meta.name, self.pause);
        let pause = tokio::time::sleep(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        job.meanwhile(&BTreeSet::new(), pause).await.is_ok()
    }
}

impl Job {
    /// Starts the task of a job, and lists it.
    pub(crate) fn start(shared: &Arc<Shared>, meta: JobMeta, table: Mapped, fresh: bool) -> Handle {
        let (sender, events) = mpsc::unbounded_channel();
        let table_path = shared.state.table(meta.id, meta.table);
        let known_path = Arc::new(Mutex::new(table_path.clone()));
        let (weak, table_known) = (sender.downgrade(), Arc::clone(&known_path));
        let handle =
            Handle { id: meta.id, name: meta.name.clone(), events: sender, table: table_known };
        let mut job = Self {
            shared: Arc::clone(shared),
            table_path,
            known_path,
            sender: weak,
            table,
            events,
            kept: VecDeque::new(),
            managers: HashMap::new(),
            asking: BTreeSet::new(),
            freeze_flags: 0,
            wishes: Vec::new(),
            writing: HashMap::new(),
            replaced: Vec::new(),
            proved: HashMap::new(),
            stopped: BTreeMap::new(),
            stopping: BTreeSet::new(),
            last: BTreeSet::new(),
            launchers: 0,
            doing: "running",
            last_error: None,
            restoring: None,
            next_checkpoint: None,
            exited: None,
            root_status: None,
            root_untold: false,
            watched: HashMap::new(),
            failure: None,
            attempt: None,
            asker: None,
            said: Vec::new(),
            ended: false,
            empty_since: None,
            fresh,
            over: false,
            moved: false,
            meta,
        };
        job.schedule();
        shared.list(handle.clone());
        tokio::spawn(job.run());
        handle
    }

    fn schedule(&mut self) {
        let interval = self.meta.policy.interval.filter(|&secs| secs > 0);
        self.next_checkpoint = interval.map(|secs| Instant::now() + Duration::from_secs(secs));
    }

    pub(crate) fn save(&self) {
        if let Err(error) = state::save(&self.shared.state.meta(self.meta.id), &self.meta) {
            tracing::warn!("job {}: cannot record it: {error}", self.meta.name);
        }
    }

    async fn run(mut self) {
        let mut next_tick = Instant::now() + TICK;
        while !self.over {
            let mut until = next_tick;
            for time in [self.next_checkpoint, self.restoring.as_ref().map(|r| r.deadline)] {
                until = time.map_or(until, |time| until.min(time));
            }
            match tokio::time::timeout_at(until.into(), self.event()).await {
                Ok(Some(event)) => self.idle(event).await,
                Ok(None) => break,
                Err(_) => {}
            }
            self.grant_wishes().await;
            // Also when events come all the time.
            if !self.over && Instant::now() >= until {
                self.tick().await;
                next_tick = Instant::now() + TICK;
            }
            if !self.over && self.doing == "running" && self.restoring.is_none() {
                self.recover().await;
            }
        }
        self.finish();
    }

    /// Saves the job, if programs of it wish that, and tells them.
    async fn grant_wishes(&mut self) {
        if self.wishes.is_empty() || self.doing != "running" || self.over {
            return;
        }
        let wishes = std::mem::take(&mut self.wishes);
        let (progress, _) = mpsc::unbounded_channel();
        let done = self.checkpoint(None, Then::GoOn, &progress).await;
        if let Err(error) = &done {
            let text = ulpm_control::chain(error).join(": ");
            tracing::warn!("job {}: a checkpoint that it wished failed: {text}", self.meta.name);
            self.last_error = Some(text);
        }
        let errno = if done.is_ok() { 0 } else { nix::errno::Errno::ECANCELED as i32 };
        for (manager, number) in wishes {
            // It may have ended since.
            let _ = manager.send(ToManager::Wished { number, errno }, None).await;
        }
    }

    async fn tick(&mut self) {
        let now = Instant::now();
        self.restart_deadline().await;
        if self.over {
            return;
        }
        if self.next_checkpoint.is_some_and(|time| now >= time) {
            let (progress, _) = mpsc::unbounded_channel();
            match self.checkpoint(None, Then::GoOn, &progress).await {
                Ok(done) => {
                    tracing::info!(
                        "job {}: periodic checkpoint {}",
                        self.meta.name,
                        done.path.display()
                    );
                    self.last_error = None;
                }
                Err(error) => {
                    let text = ulpm_control::chain(&error).join(": ");
                    tracing::warn!("job {}: periodic checkpoint failed: {text}", self.meta.name);
                    self.last_error = Some(text);
                }
            }
            self.schedule();
        }
        self.watch();
        self.end_if_empty();
    }

    /// Ends the job when no process of it lives, and none is expected.
    fn end_if_empty(&mut self) {
        if self.fresh || self.restoring.is_some() || self.doing != "running" {
            return;
        }
        if !self.look().scan.members.is_empty() {
            self.empty_since = None;
            return;
        }
        if self.is_gone() {
            return;
        }
        // Whoever waits for the root is about to say how it ended.
        let since = *self.empty_since.get_or_insert_with(Instant::now);
        let awaited = (self.launchers > 0 || self.meta.origin.is_some()) && self.exited.is_none();
        if !awaited || since.elapsed() >= LAST_WORD {
            self.over = true;
        }
    }

    /// Removes what only a living job needs.
    fn finish(&mut self) {
        tracing::info!("job {} ({}) has ended", self.meta.name, self.meta.id);
        // First: a record without an end, and without a table, is that of a job which never went on.
        // One that has never gone on here is its hand-over's to speak of.
        let went_on = self.table.table().handover() != Handover::Pending;
        if went_on
            && !self.moved
            && let Some(token) = &self.meta.origin
        {
            let text = match self.exited {
                Some(_) => String::new(),
                None => {
                    format!("how job {} ended on {} is not known", self.meta.name, self.shared.host)
                }
            };
            self.shared.arrived_finished(token, Finished { status: self.exited, text });
        }
        let state = &self.shared.state;
        let _ = std::fs::remove_file(&self.table_path);
        let mut environment = self.table_path.clone().into_os_string();
        environment.push(ulpm_protocol::restart::ENVIRONMENT);
        let _ = std::fs::remove_file(environment);
        let _ = std::fs::remove_file(state.meta(self.meta.id));
        // Only if there is no checkpoint in it.
        let _ = std::fs::remove_dir(self.meta.policy.ckpt_dir.join(&self.meta.name));
        self.shared.unlist(self.meta.id);
    }

    /// The next event; `None` if there will be none.
    pub(crate) async fn event(&mut self) -> Option<Event> {
        match self.kept.pop_front() {
            Some(event) => Some(event),
            None => self.events.recv().await,
        }
    }

    /// Takes an event while nothing is being done.
    async fn idle(&mut self, event: Event) {
        match event {
            Event::Command(Command::Checkpoint { keep, then, progress, answer }) => {
                let done = self.checkpoint(keep, then, &progress).await;
                let _ = answer.send(done);
                self.end_if_empty();
            }
            Event::Command(Command::Migrate { target, manner, progress, answer }) => {
                let done = self.migrate(target.as_deref(), &manner, &progress).await;
                let _ = answer.send(done);
                if self.moved {
                    self.over = true;
                } else {
                    self.end_if_empty();
                }
            }
            Event::Command(Command::Check { target, manner, progress, answer }) => {
                let _ = answer.send(self.check_move(&target, &manner).await);
                drop(progress);
            }
            other => {
                self.aside(other).await;
            }
        }
    }

    /// Takes an event at any time; gives back what concerns a barrier.
    pub(crate) async fn aside(&mut self, event: Event) -> Option<Barrier> {
        match event {
            Event::Connected { hello, manager } if !manager.is(hello.real) => self.disown(&hello),
            Event::Connected { hello, manager } => {
                self.connected(&hello, manager).await;
                return Some(Barrier::Connected(Pid(hello.real)));
            }
            Event::Said { pid, conn, said } => {
                let heard = match self.writing.get(&pid) {
                    Some(&writing) => writing == conn,
                    None => self.managers.get(&pid).is_some_and(|manager| manager.id == conn),
                };
                match said {
                    Said::Asks if heard => {
                        self.asking.insert(pid);
                        return None;
                    }
                    Said::Wish { number } => {
                        let wishes = self.managers.get(&pid).filter(|manager| manager.id == conn);
                        self.wishes.extend(wishes.map(|manager| (manager.clone(), number)));
                        return None;
                    }
                    _ => {}
                }
                return heard.then_some(Barrier::Said(Pid(pid), said));
            }
            Event::Lost { pid, conn } => {
                let current = self.managers.get(&pid).is_some_and(|manager| manager.id == conn);
                let matters = self.writing.get(&pid).map_or(current, |&writing| writing == conn);
                if current {
                    self.managers.remove(&pid);
                    self.asking.remove(&pid);
                    self.lost_restored(pid).await;
                    self.end_if_empty();
                }
                return matters.then_some(Barrier::Lost(Pid(pid)));
            }
            Event::Ended { pid, start, status, command } => {
                self.member_ended((pid, start), status, &command);
            }
            Event::Command(command) => self.command(command).await,
        }
        None
    }

    /// Leaves alone what has the id here that a process of the job has in a pid namespace of its own.
    fn disown(&self, hello: &Hello) {
        tracing::warn!(
            "job {}: a process calls itself {} in a pid namespace of its own, and does not count",
            self.meta.name,
            hello.real
        );
        let is_member = process::has_mapped(hello.real, &self.table_path).unwrap_or(false);
        if !is_member && let Some(slot) = self.table.table().by_real(hello.real) {
            slot.set_state(SlotState::Gone);
        }
    }

    async fn connected(&mut self, hello: &Hello, manager: Manager) {
        // What is left of a restart that came to nothing has another table.
        let is_stray = self.attempt.is_some()
            && hello.restored
            && process::has_mapped(hello.real, &self.table_path).is_ok_and(|mapped| !mapped);
        if is_stray {
            let _ = manager.send(ToManager::End, None).await;
            return;
        }
        if let Some(stat) = Stat::of(hello.real) {
            self.proved.insert(hello.real, stat.start);
        }
        self.fresh = false;
        if self.doing == "running"
            && let Some(token) = &self.meta.offered
            && self.table.table().handover() == Handover::None
        {
            // The last coordinator died before it had decided.
            self.shared.gives_up(token);
        }
        self.asking.remove(&hello.real);
        if !hello.restored {
            self.watch();
        }
        if let Some(old) = self.managers.insert(hello.real, manager)
            && self.writing.get(&hello.real) == Some(&old.id)
        {
            self.replaced.push(old);
        }
        if self.table.table().handover() == Handover::Committed {
            self.send(Pid(hello.real), ToManager::End).await;
        } else if hello.restored {
            if hello.stopped {
                self.stopped.insert(Pid(hello.real), true);
            }
            match &mut self.restoring {
                Some(restoring) => {
                    restoring.missing.remove(&hello.virt);
                    self.restored_step().await;
                }
                // Its coordinator died after all were ready.
                None if self.table.table().handover() == Handover::None => {
                    self.thaw(Thawed::Aborted).await;
                }
                None => {}
            }
        }
    }

    /// Goes on with a restart when all its members are there.
    async fn restored_step(&mut self) {
        let Some(restoring) = &mut self.restoring else { return };
        if !restoring.missing.is_empty() || restoring.held {
            return;
        }
        if let Some(ready) = restoring.ready.take() {
            restoring.held = true;
            if ready.send(()).is_err() {
                self.fail_restart(JobError::RestartGivenUp("the migration was given up".into()))
                    .await;
            }
        } else {
            self.release(Thawed::Saved).await;
        }
    }

    async fn release(&mut self, how: Thawed) {
        // Before the thaw: a short program may end before all of that is done.
        if let Some(restoring) = self.restoring.take() {
            let _ = restoring.answer.send(Ok(()));
        }
        self.thaw(how).await;
        self.doing = "running";
        self.schedule();
    }

    async fn lost_restored(&mut self, pid: i32) {
        if self.restoring.is_none() {
            return;
        }
        let virt = self.virtual_of(pid);
        self.fail_restart(JobError::RestartDied { virt }).await;
    }

    pub(crate) fn virtual_of(&self, pid: i32) -> i32 {
        let table = self.table.table();
        table.slots().iter().find(|slot| slot.real() == pid).map_or(pid, |slot| slot.virt())
    }

    async fn fail_restart(&mut self, error: JobError) {
        let Some(restoring) = self.restoring.take() else { return };
        let _ = self.kill_all().await;
        self.restart_failed(&error.to_string());
        let _ = restoring.answer.send(Err(error));
    }

    /// A restart came to nothing. That of a job which has failed may be tried again.
    fn restart_failed(&mut self, text: &str) {
        match &mut self.attempt {
            Some(attempt) => {
                attempt.failed.get_or_insert_with(|| text.into());
            }
            // The word of an attempt that was given up before.
            None if self.doing == RECOVERING => {}
            None => self.over = true,
        }
    }

    /// Gives a restart up that takes too long.
    pub(crate) async fn restart_deadline(&mut self) {
        let now = Instant::now();
        if let Some(restoring) = self.restoring.as_ref().filter(|r| !r.held && now >= r.deadline) {
            let error = JobError::RestartTimedOut {
                missing: restoring.missing.len(),
                expected: restoring.expected,
                secs: RESTART_TIMEOUT.as_secs(),
            };
            self.fail_restart(error).await;
        }
    }

    /// Lets the processes of a restart go on that all wait.
    ///
    /// # Errors
    ///
    /// They are ended.
    pub(crate) async fn go_on(&mut self, thawed: Thawed) -> Result<(), JobError> {
        // One that was killed while it waited may not have been missed yet. From here on they go on, and
        // whoever dies then has died of his own.
        let is_dead = |pid: i32| Stat::of(pid).is_none_or(|stat| stat.is_zombie());
        let dead = self.managers.keys().copied().find(|&pid| is_dead(pid));
        if let Some(pid) = dead {
            let virt = self.virtual_of(pid);
            self.fail_restart(JobError::RestartDied { virt }).await;
            return Err(JobError::RestartDied { virt });
        }
        if self.restoring.as_ref().is_some_and(|restoring| restoring.held) {
            self.table.table().set_handover(Handover::None);
            self.release(thawed).await;
            return Ok(());
        }
        Err(JobError::Empty(self.meta.name.clone()))
    }

    /// Notes who waits for the root.
    pub(crate) fn set_parent(&mut self, pid: Option<i32>) {
        let stat = pid.and_then(Stat::of);
        self.meta.parent = stat.map(|stat| Parent { pid: stat.pid, start: stat.start });
    }

    /// Its table is another one from now on.
    pub(crate) fn set_table_path(&mut self, path: PathBuf) {
        self.known_path.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&path);
        self.table_path = path;
    }

    /// Forgets members that were ended.
    pub(crate) fn forget_members(&mut self) {
        self.managers.clear();
        self.asking.clear();
        self.proved.clear();
        self.stopped.clear();
        self.stopping.clear();
        self.watched.clear();
    }

    async fn command(&mut self, command: Command) {
        let busy = |doing| JobError::Busy { name: self.meta.name.clone(), doing };
        match command {
            Command::Describe(answer) => {
                let _ = answer.send(self.describe());
            }
            Command::Checkpoint { answer, .. } => {
                let _ = answer.send(Err(busy(self.doing)));
            }
            Command::Migrate { answer, .. } => {
                let _ = answer.send(Err(busy(self.doing)));
            }
            Command::Check { answer, .. } => {
                let _ = answer.send(Err(busy(self.doing)));
            }
            Command::Kill(answer) => {
                // Logged first: the next coordinator does not take it for a failure.
                self.meta.killed = true;
                if self.meta.policy.recovery.on_failure != OnFailure::None {
                    self.save();
                }
                let done = self.kill_all().await;
                self.fresh = false;
                let _ = answer.send(done);
                self.end_if_empty();
            }
            Command::SetInterval(interval, answer) => {
                self.meta.policy.interval = interval;
                self.save();
                self.schedule();
                let _ = answer.send(Ok(()));
            }
            Command::SetOnFailure { on_failure, max_restarts, answer } => {
                let recovery = &mut self.meta.policy.recovery;
                recovery.on_failure = on_failure;
                recovery.max_restarts = max_restarts.unwrap_or(recovery.max_restarts);
                crate::server::keep_alive(&self.table, recovery);
                self.save();
                self.watch();
                let _ = answer.send(Ok(()));
            }
            Command::LauncherCame(parent) => {
                self.launchers += 1;
                if parent.is_some() {
                    self.set_parent(parent);
                    self.save();
                }
            }
            Command::Outcome { status, asker, again } => self.root_asks(status, asker, again),
            Command::Adopt { token, stdio, parent, answer } => {
                let _ = answer.send(self.adopt(&token, stdio, parent));
            }
            Command::Resume => {
                self.fresh = false;
                let recovering = self.meta.recovering.take();
                let text = recovering.map_or_else(
                    || "its coordinator and its processes have ended together".into(),
                    |recovering| recovering.text,
                );
                self.fails(JobFailure { text, root: true });
            }
            Command::LauncherWent => {
                self.launchers = self.launchers.saturating_sub(1);
                if self.launchers == 0 {
                    self.fresh = false;
                    self.end_if_empty();
                }
            }
            Command::Started { pid } => {
                // The first tree's root is the job's.
                if self.meta.root.is_none() {
                    self.meta.root = Some(pid);
                    self.save();
                }
            }
            Command::Exited { status, answer } => {
                self.fresh = false;
                if !self.moved {
                    self.exited = self.exited.or(Some(status));
                    if let Some(token) = self.meta.origin.clone() {
                        let finished = Finished { status: self.exited, text: String::new() };
                        self.shared.arrived_finished(&token, finished);
                    }
                }
                let _ = answer.send(());
                self.end_if_empty();
            }
            Command::Restored { members, ready, answer } => {
                self.fresh = false;
                if self.attempt.is_none() {
                    self.doing = "restarting";
                }
                self.restoring = Some(Restoring {
                    expected: members.len(),
                    missing: members.into_iter().collect(),
                    ready,
                    answer,
                    held: false,
                    deadline: Instant::now() + crate::fault::hurried(RESTART_TIMEOUT),
                });
            }
            Command::Release(answer) => {
                let result = self.go_on(Thawed::Moved).await;
                let _ = answer.send(result);
            }
            Command::Abandon(answer) => {
                // One that has been told to go on is nobody's to end any more, whoever has died since:
                // after a commit it is the only instance.
                let waits = self.restoring.take().is_some();
                let is_late =
                    self.doing == RECOVERING || self.table.table().handover() == Handover::None;
                if !waits && is_late {
                    let _ = answer.send(Ok(()));
                    return;
                }
                let done = self.kill_all().await;
                self.remove_objects();
                self.restart_failed("it was given up");
                let _ = answer.send(done);
            }
        }
    }

    fn describe(&mut self) -> message::Job {
        let look = self.look();
        let page = 4096;
        let processes = look.scan.members.iter().filter_map(|seen| {
            let stat = look.stats.get(&seen.pid.0)?;
            Some(message::Process {
                real: seen.pid.0,
                virt: look.virt.get(&seen.pid.0).copied().unwrap_or(seen.pid.0),
                command: process::command(seen.pid.0),
                state: stat.state.to_string(),
                rss: stat.rss * page,
                threads: stat.threads.saturating_sub(u32::from(seen.connected)),
            })
        });
        let mut processes: Vec<_> = processes.collect();
        processes.sort_by_key(|process| process.real);
        let parent = self.meta.policy.ckpt_dir.join(&self.meta.name);
        let generations = generation::generations(&parent).unwrap_or_default();
        message::Job {
            id: self.meta.id,
            name: self.meta.name.clone(),
            state: if self.fresh { "starting".into() } else { self.doing.into() },
            argv: self.meta.argv.clone(),
            ckpt_dir: self.meta.policy.ckpt_dir.clone(),
            generation: generations.last().copied().unwrap_or(0),
            interval: self.meta.policy.interval,
            last_error: self.last_error.clone(),
            on_failure: self.meta.policy.recovery.on_failure,
            restarts: self.recent_restarts(),
            max_restarts: self.meta.policy.recovery.max_restarts,
            last_failure: self.meta.last_failure.clone(),
            has_output: self.shared.state.output(self.meta.id).exists(),
            processes,
        }
    }

    /// Whether the process is the member that the table says, and not a stranger with its id.
    fn prove(&mut self, stat: &Stat, state: SlotState) -> Option<bool> {
        if self.proved.get(&stat.pid) == Some(&stat.start) {
            return Some(true);
        }
        let mapped = process::has_mapped(stat.pid, &self.table_path);
        let proof = match mapped {
            Ok(true) => Some(true),
            // Its memory is new, and our library not there yet. (Nor is its environment, for a moment.)
            Ok(false) if state == SlotState::Exec => match process::environment(stat.pid) {
                Some(environment) => {
                    let table = environment.get(ENV_TABLE).map(Path::new);
                    Some(table == Some(&self.table_path))
                }
                None => None,
            },
            // It has begun to execute something since we looked at its slot.
            Ok(false)
                if self
                    .table
                    .table()
                    .by_real(stat.pid)
                    .is_none_or(|slot| slot.state() != state) =>
            {
                None
            }
            Ok(false) => Some(false),
            // A thread of the kernel: a member has that id in a pid namespace of its own.
            Err(_) if stat.ppid == KTHREADD => Some(false),
            // It lets nobody look at it (PR_SET_DUMPABLE). A program that it has executed behind our back, such as a
            // setuid one, would have no handler.
            Err(_)
                if state == SlotState::Live
                    && self.proved.contains_key(&stat.ppid)
                    && process::catches(stat.pid, FREEZE_SIGNAL) =>
            {
                Some(true)
            }
            Err(_) => None,
        };
        if proof == Some(true) {
            self.proved.insert(stat.pid, stat.start);
        }
        proof
    }

    /// Looks who lives, without their children.
    fn look(&mut self) -> Look {
        let mut look = Look::default();
        let mut members = Vec::new();
        for slot in self.table.table().slots() {
            let state = slot.state();
            match state {
                SlotState::Free | SlotState::Busy => continue,
                SlotState::Live | SlotState::Exec => members.push((slot.real(), state)),
                SlotState::Gone | SlotState::Alias => {}
                SlotState::OutsideGroup | SlotState::OutsideSession => continue,
            }
            // A member's name is better than that of a dead one.
            if slot.is_member() {
                look.virt.insert(slot.real(), slot.virt());
            } else {
                look.virt.entry(slot.real()).or_insert(slot.virt());
            }
        }
        for (pid, state) in members {
            let stat = Stat::of(pid);
            let proof = match &stat {
                Some(stat) if stat.is_zombie() => continue,
                Some(stat) => self.prove(stat, state),
                None => Some(false),
            };
            let Some(stat) = stat.filter(|_| proof != Some(false)) else {
                self.proved.remove(&pid);
                // Seen twice: it may have executed a program, and be a member again, between our looks
                // at its slot and at its memory.
                let gone = Stat::of(pid).is_none()
                    || process::has_mapped(pid, &self.table_path).is_ok_and(|mapped| !mapped);
                if let Some(slot) =
                    self.table.table().by_real(pid).filter(|slot| gone && slot.state() == state)
                {
                    slot.set_state(SlotState::Gone);
                }
                continue;
            };
            look.scan.members.push(Seen {
                pid: Pid(pid),
                parent: Pid(stat.ppid),
                // One that we may not look at is never signalled.
                live: state == SlotState::Live && proof == Some(true),
                stopped: process::is_stopped(&stat),
                connected: self.managers.contains_key(&pid),
                last: false,
            });
            look.stats.insert(pid, stat);
        }
        for seen in &mut look.scan.members {
            let ancestors =
                successors(look.stats.get(&seen.pid.0), |stat| look.stats.get(&stat.ppid));
            seen.last = ancestors.take(MAX_DEPTH).any(|stat| self.last.contains(&stat.pid));
        }
        look
    }

    /// Children of members that are no members themselves.
    pub(crate) fn strangers(&mut self) -> Vec<Stranger> {
        self.look_around().scan.strangers.unwrap_or_default()
    }

    /// Members that live.
    pub(crate) fn members(&mut self) -> Vec<Stat> {
        self.look().stats.into_values().collect()
    }

    /// Looks who lives, with their children.
    fn look_around(&mut self) -> Look {
        let mut look = self.look();
        let parents = look.stats.values().map(|stat| (stat.pid, stat.threads)).collect();
        let children = process::children(&parents).unwrap_or_else(|error| {
            tracing::warn!("cannot read /proc: {error}");
            Vec::new()
        });
        let mut strangers = Vec::new();
        for child in children {
            if child.is_zombie() {
                look.zombies.push(child);
            } else if !look.stats.contains_key(&child.pid) && child.comm != WRITER_COMM {
                let stranger = Stranger { pid: Pid(child.pid), parent: Pid(child.ppid) };
                strangers.push(stranger);
            }
        }
        look.scan.strangers = Some(strangers);
        look
    }

    pub(crate) async fn send(&self, pid: Pid, message: ToManager<'_>) {
        self.send_with(pid, message, None).await;
    }

    pub(crate) async fn send_with(
        &self,
        pid: Pid,
        message: ToManager<'_>,
        fd: Option<std::os::fd::BorrowedFd<'_>>,
    ) {
        if let Some(manager) = self.managers.get(&pid.0)
            && let Err(error) = manager.send(message, fd).await
        {
            // Its end will be heard of, too.
            tracing::debug!("job {}: cannot reach the manager of {pid}: {error}", self.meta.name);
        }
    }

    /// Waits for what concerns a barrier, until a time; answers all else meanwhile.
    pub(crate) async fn barrier_event(&mut self, until: Instant) -> Option<Barrier> {
        loop {
            let event = tokio::time::timeout_at(until.into(), self.event()).await;
            match event {
                Ok(Some(event)) => {
                    if let Some(concerning) = self.aside(event).await {
                        return Some(concerning);
                    }
                }
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Waits for something else, and answers all that has nothing to do with a barrier meanwhile.
    ///
    /// Gives up when a process that `matters` ends.
    pub(crate) async fn meanwhile<T>(
        &mut self,
        matters: &BTreeSet<Pid>,
        future: impl Future<Output = T>,
    ) -> Result<T, JobError> {
        tokio::pin!(future);
        loop {
            tokio::select! {
                biased;
                done = &mut future => return Ok(done),
                event = self.event() => {
                    let Some(event) = event else { return Ok(future.await) };
                    match self.aside(event).await {
                        Some(Barrier::Lost(pid)) if matters.contains(&pid) => {
                            return Err(self.died(pid));
                        }
                        Some(Barrier::Said(pid, Said::Failed { failure, errno, text }))
                            if matters.contains(&pid) =>
                        {
                            return Err(self.failed(pid, failure, errno, text));
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    pub(crate) fn died(&self, pid: Pid) -> JobError {
        JobError::Died { pid: pid.0, command: process::short_command(pid.0) }
    }

    pub(crate) fn failed(&self, pid: Pid, failure: Failure, errno: i32, text: String) -> JobError {
        JobError::Manager {
            pid: pid.0,
            command: process::short_command(pid.0),
            text,
            failure,
            errno,
        }
    }

    /// Tells those who have asked for it that a freeze is coming, and waits until they are ready for it.
    async fn prepare(&mut self) -> Result<(), JobError> {
        let timeout = self.shared.deadline;
        let until = Instant::now() + timeout;
        // Who is stopped can do nothing, and is not asked.
        let runs = |pid: &i32| Stat::of(*pid).is_some_and(|stat| !process::is_stopped(&stat));
        let asking = self.asking.iter().copied().filter(runs).map(Pid);
        let mut waiting: BTreeSet<Pid> = asking.collect();
        for &pid in &waiting {
            let deadline_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
            self.send(pid, ToManager::Prepare { deadline_ms, flags: self.freeze_flags }).await;
        }
        while !waiting.is_empty() {
            match self.barrier_event(until).await {
                Some(Barrier::Said(pid, Said::Prepared) | Barrier::Lost(pid)) => {
                    waiting.remove(&pid);
                }
                // The last word of one that still wrote is another.
                Some(Barrier::Said(
                    pid,
                    Said::Failed { failure: failure @ Failure::Unsupported, errno, text },
                )) => return Err(self.failed(pid, failure, errno, text)),
                Some(_) => {}
                None if Instant::now() < until => {}
                None => {
                    let late = waiting.first().map_or(0, |pid| pid.0);
                    return Err(JobError::TimedOut {
                        name: self.meta.name.clone(),
                        secs: timeout.as_secs(),
                        detail: format!(
                            "the plugins of process {late} ({}) do not answer",
                            process::short_command(late)
                        ),
                    });
                }
            }
        }
        Ok(())
    }

    /// Freezes every process; [`FREEZE_MIGRATE`] or nothing is said to it.
    ///
    /// On an error everybody goes on.
    pub(crate) async fn freeze(&mut self, flags: u32) -> Result<Frozen, JobError> {
        self.wait_for_stops().await;
        self.check_surroundings()?;
        self.freeze_flags = flags & FREEZE_MIGRATE;
        if let Err(error) = self.prepare().await {
            self.thaw(Thawed::Aborted).await;
            return Err(error);
        }
        let since = Instant::now();
        let timeout = self.shared.deadline;
        let mut barrier = Freeze::new(since, timeout);
        match self.freeze_with(&mut barrier, timeout).await {
            Ok(look) => {
                let virt = |pid: i32| look.virt.get(&pid).copied();
                let mut processes = Vec::new();
                for pid in barrier.members() {
                    let Some(stat) = look.stats.get(&pid.0) else { continue };
                    let zombies = look.zombies.iter().filter(|zombie| zombie.ppid == pid.0);
                    let zombies = zombies.map(|zombie| Zombie {
                        virt: virt(zombie.pid).unwrap_or(zombie.pid),
                        status: zombie.exit_code,
                        pgid: virt(zombie.pgrp).unwrap_or(zombie.pgrp),
                        sid: virt(zombie.session).unwrap_or(zombie.session),
                    });
                    processes.push(FrozenProcess {
                        pid,
                        virt: virt(pid.0).unwrap_or(pid.0),
                        parent: if look.stats.contains_key(&stat.ppid) {
                            virt(stat.ppid).unwrap_or(0)
                        } else {
                            0
                        },
                        zombies: zombies.collect(),
                        rss: stat.rss * 4096,
                    });
                }
                if processes.is_empty() {
                    self.thaw(Thawed::Aborted).await;
                    return Err(JobError::Empty(self.meta.name.clone()));
                }
                tracing::debug!(
                    "job {}: {} processes are frozen after {:?}",
                    self.meta.name,
                    processes.len(),
                    since.elapsed()
                );
                Ok(Frozen { since, processes })
            }
            Err(error) => {
                self.thaw(Thawed::Aborted).await;
                Err(error)
            }
        }
    }

    /// Refuses, before anybody is asked to stop, what could not stop or come back.
    fn check_surroundings(&mut self) -> Result<(), JobError> {
        let look = self.look_around();
        look.stats.keys().try_for_each(|&pid| self.check_tracer(pid))?;
        let strangers = look.scan.strangers.unwrap_or_default();
        match strangers.iter().find(|stranger| process::has_pid_namespace(stranger.pid.0)) {
            Some(stranger) => {
                let text = format!("it {}; {}", check::NAMESPACE, check::NAMESPACE_WAY_OUT);
                Err(self.failed(stranger.pid, Failure::Unsupported, 0, text))
            }
            None => Ok(()),
        }
    }

    /// Refuses a process that is traced: its tracer would have to let it stop. That may be for a moment only.
    fn check_tracer(&self, pid: i32) -> Result<(), JobError> {
        let Some(tracer) = process::tracer(pid) else { return Ok(()) };
        let text = format!("it {}; {}", check::traced_by(tracer), check::TRACER_WAY_OUT);
        Err(self.failed(Pid(pid), Failure::Again, 0, text))
    }

    async fn freeze_with(
        &mut self,
        barrier: &mut Freeze,
        timeout: Duration,
    ) -> Result<Look, JobError> {
        let header = self.table.table().header();
        let epoch = header.epoch.fetch_add(1, std::sync::atomic::Ordering::AcqRel) + 1;
        self.table
            .forget_claims()
            .map_err(|source| JobError::Io { what: "cannot clear the job table".into(), source })?;
        let deadline = Instant::now() + timeout;
        let mut look = Look::default();
        loop {
            let now = Instant::now();
            match barrier.step(now) {
                Step::Done => return Ok(look),
                Step::TimedOut => {
                    return Err(JobError::TimedOut {
                        name: self.meta.name.clone(),
                        secs: timeout.as_secs(),
                        detail: describe(&barrier.missing()),
                    });
                }
                Step::Scan { children } => {
                    look = if children { self.look_around() } else { self.look() };
                    tracing::trace!(
                        "job {}: looked at {} processes in {:?}",
                        self.meta.name,
                        look.stats.len(),
                        now.elapsed()
                    );
                    let held = look.stats.values().filter(|stat| stat.state == 't');
                    held.map(|stat| stat.pid).try_for_each(|pid| self.check_tracer(pid))?;
                    let actions = barrier.scanned(&look.scan, now, Instant::now());
                    self.perform(&actions, epoch, deadline).await;
                }
                Step::Wait(until) => match self.barrier_event(until).await {
                    Some(Barrier::Connected(pid)) => {
                        let actions = barrier.connected(pid);
                        self.perform(&actions, epoch, deadline).await;
                    }
                    Some(Barrier::Lost(pid)) => barrier.lost(pid, Instant::now()),
                    Some(Barrier::Said(pid, Said::Frozen { threads: 1.. })) => barrier.frozen(pid),
                    // Nobody saves in a freeze: that is the last word of an attempt which was given up.
                    Some(Barrier::Said(pid, Said::Failed { failure, errno, text }))
                        if !matches!(failure, Failure::Write | Failure::Again) =>
                    {
                        return Err(self.failed(pid, failure, errno, text));
                    }
                    Some(Barrier::Said(pid, said)) => {
                        tracing::debug!("job {}: {pid} says {said:?} late", self.meta.name);
                    }
                    None => {}
                },
            }
        }
    }

    async fn perform(&mut self, actions: &[Action], epoch: u32, deadline: Instant) {
        for &action in actions {
            match action {
                Action::Wake(pid) => self.wake(pid),
                Action::WakeStopped(pid) => {
                    for thread in process::user_threads(pid.0) {
                        self.signal(pid, thread.pid, epoch);
                    }
                    self.let_run(pid);
                }
                Action::Continue(pid) => self.let_run(pid),
                Action::Freeze(pid) | Action::Note(pid) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let flags = match action {
                        Action::Note(_) => FREEZE_NOTE,
                        _ if self.tell_stopped(pid) => FREEZE_STOPPED | self.freeze_flags,
                        _ => self.freeze_flags,
                    };
                    let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
                    self.send(pid, ToManager::Freeze { epoch, deadline_ms, flags }).await;
                }
            }
        }
    }

    /// Continues a process that was stopped. The thaw stops it again.
    fn let_run(&mut self, pid: Pid) {
        self.stopped.entry(pid).or_insert(false);
        let _ = kill(RealPid::from_raw(pid.0), Signal::SIGCONT);
    }

    /// Continues frozen processes that were stopped by somebody outside of the job, or by the kernel: their managers
    /// are to work.
    pub(crate) fn let_stopped_run(&mut self, frozen: &Frozen) {
        for process in &frozen.processes {
            if Stat::of(process.pid.0).is_some_and(|stat| process::is_stopped(&stat)) {
                self.let_run(process.pid);
            }
        }
    }

    /// Sends the freeze signal to one thread of a process, so that its manager starts.
    fn wake(&self, pid: Pid) {
        let leader = Stat::of(pid.0);
        if leader.is_some_and(|stat| stat.state != 'Z') {
            self.signal(pid, pid.0, 0);
        } else if let Some(thread) = process::user_threads(pid.0).first() {
            self.signal(pid, thread.pid, 0);
        }
    }

    fn signal(&self, pid: Pid, tid: i32, epoch: u32) {
        // Between our look at the table and now it may have begun to execute something.
        let live =
            self.table.table().by_real(pid.0).is_some_and(|slot| slot.state() == SlotState::Live);
        if live && let Err(error) = kernel::send_freeze_signal(pid.0, tid, epoch) {
            tracing::debug!("job {}: cannot signal {pid}: {error}", self.meta.name);
        }
    }

    /// Refuses what a restart would give other rights.
    pub(crate) fn check_rights(&self, frozen: &Frozen) -> Result<(), JobError> {
        let own = process::Rights::of("self");
        let foreign = frozen.processes.iter().find_map(|found| {
            let rights = process::Rights::of(&found.pid.to_string())?;
            Some((found.pid, rights.foreign_to(own.as_ref()?)?))
        });
        match foreign {
            Some((pid, text)) => Err(self.failed(pid, Failure::Unsupported, 0, text)),
            None => Ok(()),
        }
    }

    /// What a manager has to know for its capture besides the kind of that.
    pub(crate) fn capture_flags(&mut self, pid: Pid) -> u32 {
        if self.tell_stopped(pid) { CAPTURE_STOPPED } else { 0 }
    }

    /// Whether the thaw is to stop a process again: then its manager is being told.
    fn tell_stopped(&mut self, pid: Pid) -> bool {
        self.stopped.get_mut(&pid).map(|told| *told = true).is_some()
    }

    /// Lets everybody go on: first those who stop at once, so that no parent sees its child run meanwhile.
    pub(crate) async fn thaw(&mut self, how: Thawed) {
        let stopped = std::mem::take(&mut self.stopped);
        let (first, then): (Vec<_>, Vec<_>) =
            self.managers.keys().map(|&pid| Pid(pid)).partition(|pid| stopped.contains_key(pid));
        for (pid, told) in stopped {
            // It hears of the thaw when it is continued.
            if !told {
                let _ = kill(RealPid::from_raw(pid.0), Signal::SIGSTOP);
            }
            self.stopping.insert(pid);
        }
        let any = !first.is_empty();
        for pid in first {
            self.send(pid, ToManager::Thaw(how)).await;
        }
        self.wait_for_stops().await;
        if any {
            self.have_stops_forgotten(&then).await;
        }
        for pid in then {
            self.send(pid, ToManager::Thaw(how)).await;
        }
    }

    /// Has processes forget what the kernel tells once more of children that are stopped again. Before any of them goes
    /// on: what is stopped then is to be told.
    async fn have_stops_forgotten(&mut self, pids: &[Pid]) {
        let epoch = self.table.table().header().epoch.load(std::sync::atomic::Ordering::Acquire);
        let message = ToManager::Freeze { epoch, deadline_ms: 0, flags: FREEZE_FORGET };
        for &pid in pids {
            self.send(pid, message).await;
        }
        let mut missing: BTreeSet<Pid> = pids.iter().copied().collect();
        let until = Instant::now() + STOP_LIMIT;
        while !missing.is_empty() {
            let event = tokio::time::timeout_at(until.into(), self.events.recv()).await;
            let Ok(Some(event)) = event else { return };
            match &event {
                Event::Said { pid, said: Said::Frozen { threads: 0 }, .. } => {
                    missing.remove(&Pid(*pid));
                }
                Event::Lost { pid, .. } => {
                    missing.remove(&Pid(*pid));
                    self.kept.push_back(event);
                }
                _ => self.kept.push_back(event),
            }
        }
    }

    /// Waits until those are stopped again that the last thaw was to stop: their parents, and another freeze, would
    /// take them for running ones.
    async fn wait_for_stops(&mut self) {
        let began = Instant::now();
        let mut stopping = std::mem::take(&mut self.stopping);
        while began.elapsed() < STOP_LIMIT {
            stopping.retain(|pid| !process::has_stopped(pid.0));
            if stopping.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Removes the System V objects that the job has made: it has ended here, and goes on from an image that
    /// holds them. The managers do so too, unless they are killed first.
    pub(crate) fn remove_objects(&self) {
        for object in self.table.table().objects() {
            if object.flags() & object_flag::CREATED != 0
                && let Some(kind) = Kind::from_raw(object.kind())
            {
                let _ = ulpm_sys::ipc::remove(kind, object.real());
            }
        }
    }

    /// Ends every process with SIGKILL.
    pub(crate) async fn kill_all(&mut self) -> Result<(), JobError> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let members = self.look().scan.members;
            if members.is_empty() {
                return Ok(());
            }
            // First all stand still, so that none sees another die and acts upon it.
            for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
                // Only those whose identity was proved.
                for seen in members.iter().filter(|seen| self.proved.contains_key(&seen.pid.0)) {
                    let _ = kill(RealPid::from_raw(seen.pid.0), signal);
                }
            }
            if Instant::now() >= deadline {
                let count = members.len();
                return Err(JobError::Undying { name: self.meta.name.clone(), count });
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn checkpoint(
        &mut self,
        keep: Option<u32>,
        then: Then,
        progress: &mpsc::UnboundedSender<Progress>,
    ) -> Result<Checkpointed, JobError> {
        self.free_to_act()?;
        self.doing = "checkpointing";
        let mut patience = Patience::new();
        let done = loop {
            let done = self.checkpoint_steps(keep, then, progress).await;
            match &done {
                Err(error) if patience.may_try_again(self, error).await => {}
                _ => break done,
            }
        };
        self.doing = "running";
        self.last.clear();
        done
    }

    /// Refuses where there is nothing to save, or somebody saves already.
    pub(crate) fn free_to_act(&mut self) -> Result<(), JobError> {
        if self.moved {
            return Err(JobError::Gone(self.meta.name.clone()));
        }
        if self.doing != "running" {
            return Err(JobError::Busy { name: self.meta.name.clone(), doing: self.doing });
        }
        if self.look().scan.members.is_empty() {
            return Err(JobError::Empty(self.meta.name.clone()));
        }
        Ok(())
    }

    pub(crate) fn set_doing(&mut self, doing: &'static str) {
        self.doing = doing;
    }

    async fn checkpoint_steps(
        &mut self,
        keep: Option<u32>,
        then: Then,
        progress: &mpsc::UnboundedSender<Progress>,
    ) -> Result<Checkpointed, JobError> {
        let hold = then != Then::GoOn;
        let began = Instant::now();
        let partial = Partial::create(&self.meta.policy.ckpt_dir, &self.meta.name)?;
        // Files are made before the freeze for those who are there already.
        let mut files = BTreeMap::new();
        let look = self.look();
        for seen in &look.scan.members {
            let virt = look.virt.get(&seen.pid.0).copied().unwrap_or(seen.pid.0);
            files.insert(virt, partial.image(virt)?);
        }
        self.report(progress, "freeze", 0, 0);
        let frozen = self.freeze(0).await?;
        let result = self.capture_files(&frozen, &partial, &mut files, then, progress).await;
        let (mut freeze_time, capture, commands) = match result {
            Ok(captured) => captured,
            Err(error) => {
                self.thaw(Thawed::Aborted).await;
                return Err(error);
            }
        };
        let manifest =
            self.manifest(&frozen, &capture, &commands, partial.generation(), freeze_time, began);
        let bytes = manifest.bytes();
        let generation = partial.generation();
        let finish = tokio::task::spawn_blocking({
            let manifest = manifest.clone();
            move || partial.finish(&manifest, true)
        });
        let path = if hold {
            let finished = self.finish_in_freeze(finish).await;
            if matches!(then, Then::End { .. }) && finished.is_ok() {
                self.end_frozen(&frozen).await;
            } else {
                let how = if finished.is_ok() { Thawed::Saved } else { Thawed::Aborted };
                self.thaw(how).await;
            }
            freeze_time = frozen.since.elapsed();
            finished?
        } else {
            self.meanwhile(&BTreeSet::new(), finish).await?.map_err(joined)??
        };
        if matches!(then, Then::End { .. }) {
            self.ended = true;
            if let Err(source) = self.kill_all().await {
                return Err(JobError::SavedUndying { path, source: Box::new(source) });
            }
            self.remove_objects();
        }
        let keep = keep.or(self.meta.policy.keep).unwrap_or(DEFAULT_KEEP);
        let parent = self.meta.policy.ckpt_dir.join(&self.meta.name);
        // Removing gigabytes takes a while, and nobody needs to wait for it.
        let pruned = tokio::task::spawn_blocking(move || generation::prune(&parent, keep));
        let _ = self.meanwhile(&BTreeSet::new(), pruned).await?;
        Ok(Checkpointed {
            job: self.meta.name.clone(),
            id: self.meta.id,
            path,
            generation,
            processes: u32::try_from(frozen.processes.len()).unwrap_or(u32::MAX),
            bytes,
            freeze_ms: millis(freeze_time),
            total_ms: millis(began.elapsed()),
        })
    }

    /// Waits for the end of what completes a checkpoint, but not for ever: everybody is frozen.
    async fn finish_in_freeze(
        &mut self,
        finish: tokio::task::JoinHandle<Result<PathBuf, GenerationError>>,
    ) -> Result<PathBuf, JobError> {
        let finish = tokio::time::timeout(STUCK, finish);
        match self.meanwhile(&BTreeSet::new(), finish).await? {
            Ok(done) => Ok(done.map_err(joined)??),
            Err(_) => {
                let what = self.meta.policy.ckpt_dir.display().to_string();
                Err(JobError::Stuck { secs: STUCK.as_secs(), what })
            }
        }
    }

    /// Tells every frozen process to end.
    ///
    /// The table says so first: managers whose coordinator dies now end too, and do not thaw a part of the
    /// job; and the next coordinator kills what is left. So does this one, but not before they have had the time to
    /// end their connections so that nothing is left of these.
    async fn end_frozen(&mut self, frozen: &Frozen) {
        self.table.table().set_handover(Handover::Committed);
        for process in &frozen.processes {
            self.send(process.pid, ToManager::End).await;
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        while !self.look().scan.members.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn manifest(
        &self,
        frozen: &Frozen,
        capture: &Capture,
        commands: &BTreeMap<Pid, String>,
        generation: u64,
        freeze_time: Duration,
        began: Instant,
    ) -> Manifest {
        let root = self.meta.root.filter(|root| frozen.processes.iter().any(|p| p.virt == *root));
        let orphan = || frozen.processes.iter().filter(|p| p.parent == 0).map(|p| p.virt).min();
        let any = || frozen.processes.first().map_or(0, |p| p.virt);
        Manifest {
            format: manifest::FORMAT,
            ulpm_version: env!("CARGO_PKG_VERSION").into(),
            job: self.meta.name.clone(),
            generation,
            created: host::now(),
            host: self.shared.host.clone(),
            arch: host::arch(),
            kernel: host::kernel(),
            cpu: process::chosen_features(frozen.processes.iter().map(|p| p.pid.0)),
            argv: self.meta.argv.clone(),
            cwd: self.meta.cwd.clone(),
            root: root.or_else(orphan).unwrap_or_else(any),
            ckpt_signal: self.meta.policy.ckpt_signal,
            interval: self.meta.policy.interval,
            keep: self.meta.policy.keep,
            recovery: self.meta.policy.recovery.clone(),
            processes: frozen
                .processes
                .iter()
                .map(|process| ProcessEntry {
                    virt: process.virt,
                    parent: process.parent,
                    file: Manifest::image_name(process.virt),
                    bytes: capture.bytes_of(process.pid).unwrap_or(0),
                    command: commands.get(&process.pid).cloned().unwrap_or_default(),
                })
                .collect(),
            freeze_ms: millis(freeze_time),
            total_ms: millis(began.elapsed()),
        }
    }

    /// Captures every process to its file, and thaws them as soon as may be, if they go on before the image is durable.
    async fn capture_files(
        &mut self,
        frozen: &Frozen,
        partial: &Partial,
        files: &mut BTreeMap<i32, std::fs::File>,
        then: Then,
        progress: &mpsc::UnboundedSender<Progress>,
    ) -> Result<(Duration, Capture, BTreeMap<Pid, String>), JobError> {
        let needed: BTreeSet<i32> = frozen.processes.iter().map(|process| process.virt).collect();
        files.retain(|virt, _| {
            let keep = needed.contains(virt);
            if !keep {
                partial.discard(*virt);
            }
            keep
        });
        let flags = CAPTURE_SYNC
            | match then {
                Then::GoOn => 0,
                Then::End { outside: Outside::Repair } => CAPTURE_HOLD | CAPTURE_REPAIR,
                Then::GoOnWhenDurable | Then::End { .. } => CAPTURE_HOLD,
            };
        self.writing = self.managers.iter().map(|(&pid, manager)| (pid, manager.id)).collect();
        let result = self.capture_to(frozen, partial, files, flags, progress).await;
        self.writing.clear();
        self.replaced.clear();
        if result.is_ok() && then == (Then::End { outside: Outside::Refuse }) {
            let path = |&virt: &i32| partial.dir().join(Manifest::image_name(virt));
            self.refuse_outside(files.keys().map(path).collect()).await?;
        }
        result
    }

    /// Refuses images of sockets that are connected to programs outside the job.
    async fn refuse_outside(&mut self, images: Vec<PathBuf>) -> Result<(), JobError> {
        let cannot =
            |source| JobError::Io { what: "ulpm_restart cannot look at the images".into(), source };
        let program =
            place::find("ulpm_restart").map_err(|error| cannot(std::io::Error::other(error)))?;
        let mut look = tokio::process::Command::new(program);
        look.args(["--only-outside", "--outside-sockets", "refuse"]).args(images);
        look.env_remove("LD_PRELOAD").env_remove("ULPM_JOB").kill_on_drop(true);
        let looked = tokio::time::timeout(STUCK, look.output());
        let said = match self.meanwhile(&BTreeSet::new(), looked).await? {
            Ok(said) => said.map_err(cannot)?,
            Err(_) => return Err(cannot(std::io::ErrorKind::TimedOut.into())),
        };
        if said.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&said.stderr).trim().replace("ulpm_restart: ", "");
        Err(JobError::Outside { name: self.meta.name.clone(), text: text.replace('\n', "; ") })
    }

    async fn capture_to(
        &mut self,
        frozen: &Frozen,
        partial: &Partial,
        files: &mut BTreeMap<i32, std::fs::File>,
        flags: u32,
        progress: &mpsc::UnboundedSender<Progress>,
    ) -> Result<(Duration, Capture, BTreeMap<Pid, String>), JobError> {
        let hold = flags & CAPTURE_HOLD != 0;
        for process in &frozen.processes {
            let file = match files.entry(process.virt) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(partial.image(process.virt)?),
            };
            let zombies = encode_zombies(&process.zombies);
            let flags = flags | self.capture_flags(process.pid);
            let message = ToManager::Capture { flags, zombies: &zombies };
            self.send_with(process.pid, message, Some(file.as_fd())).await;
        }
        let mut capture = Capture::new(&frozen.pids());
        // The managers work meanwhile.
        let commands = self.commands(frozen);
        self.check_rights(frozen)?;
        let total = frozen.rss();
        let mut freeze_time = None;
        let mut last = (0, Instant::now());
        let mut report = Instant::now() + PROGRESS;
        loop {
            match capture.state() {
                Captured::Capturing => {}
                Captured::Written { .. } if hold => break,
                Captured::Snapped if hold => {}
                Captured::Snapped | Captured::Written { .. } if freeze_time.is_none() => {
                    freeze_time = Some(frozen.since.elapsed());
                    self.thaw(Thawed::Saved).await;
                    continue;
                }
                Captured::Snapped => {}
                Captured::Written { .. } => break,
            }
            if let Some(event) = self.barrier_event(report).await {
                self.captured(&mut capture, event)?;
                if Instant::now() < report {
                    continue;
                }
            }
            report = Instant::now() + PROGRESS;
            if freeze_time.is_none() {
                self.let_stopped_run(frozen);
            }
            let done =
                files.values().map(|file| file.metadata().map_or(0, |meta| meta.len())).sum();
            self.report(progress, "write", done, total);
            if done != last.0 {
                last = (done, Instant::now());
            } else if last.1.elapsed() > STUCK {
                let what = partial.dir().display().to_string();
                return Err(JobError::Stuck { secs: STUCK.as_secs(), what });
            }
        }
        Ok((freeze_time.unwrap_or_else(|| frozen.since.elapsed()), capture, commands))
    }

    /// Gives an event to a capture.
    pub(crate) fn captured(
        &mut self,
        capture: &mut Capture,
        event: Barrier,
    ) -> Result<(), JobError> {
        let taken = match event {
            Barrier::Said(pid, Said::Snapped) => capture.snapped(pid).map(|_| ()),
            Barrier::Said(pid, Said::Written { bytes }) => capture.written(pid, bytes).map(|_| ()),
            Barrier::Said(pid, Said::Failed { failure, errno, text }) => {
                return Err(self.failed(pid, failure, errno, text));
            }
            Barrier::Lost(pid) if capture.needs(pid) => return Err(self.died(pid)),
            Barrier::Lost(_)
            | Barrier::Connected(_)
            | Barrier::Said(
                _,
                Said::Frozen { .. } | Said::Asks | Said::Prepared | Said::Wish { .. },
            ) => Ok(()),
        };
        if let Err(error) = taken {
            tracing::warn!("job {}: {error}", self.meta.name);
        }
        Ok(())
    }

    pub(crate) fn commands(&self, frozen: &Frozen) -> BTreeMap<Pid, String> {
        frozen
            .processes
            .iter()
            .map(|process| (process.pid, process::command(process.pid.0)))
            .collect()
    }

    pub(crate) fn report(
        &self,
        progress: &mpsc::UnboundedSender<Progress>,
        phase: &str,
        done: u64,
        total: u64,
    ) {
        let job = self.meta.name.clone();
        let _ = progress.send(Progress { job, phase: phase.into(), done, total });
    }
}

pub(crate) fn encode_zombies(zombies: &[Zombie]) -> Vec<u8> {
    zombies.iter().flat_map(Zombie::encode).collect()
}

pub(crate) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

pub(crate) fn joined(error: tokio::task::JoinError) -> JobError {
    JobError::Io { what: "a task of the coordinator failed".into(), source: error.into() }
}
