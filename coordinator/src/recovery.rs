//! A job that has failed is restarted from its last complete generation.
//!
//! ```text
//!  a process has failed ──▶ LOG: recovering ──▶ table: Committed ──▶ all processes end ──▶ pause
//!                                                                                           │
//!  LOG: nothing ◀── table: None, thaw ◀── all wait ◀── ulpm_restart ◀── LOG: new table, Pending
//! ```
//!
//! The table's word decides whether an instance goes on, as in a hand-over: processes whose table says `Committed` or
//! `Pending` end when they lose their coordinator. Each attempt has a table of its own, so what may be left of an earlier
//! one can never be taken for it, and never goes on. A coordinator that finds `recovering` in the record of a job
//! starts over, unless the newest table says that the job goes on.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};
use ulpm_control::message::{JobOpened, Stream};
use ulpm_control::{OnFailure, exit};
use ulpm_protocol::manager::Thawed;
use ulpm_protocol::table::{Handover, is_failure};

use crate::error::JobError;
use crate::fault;
use crate::generation;
use crate::job::{Job, RESTART_TIMEOUT};
use crate::migrate::restart_command;
use crate::process::{self, Stat};
use crate::state::{self, Recovering};
use crate::watch::Watch;

/// Restarts are counted for that long.
const WINDOW: u64 = 3600;
/// The pause before the first restart; each is twice as long as the one before, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How often it is looked how an attempt goes.
const LOOK: Duration = Duration::from_millis(20);
/// How long the root's end is waited for when another process has failed.
const ROOTS_WORD: Duration = Duration::from_secs(3);
/// How long it takes at most until the end of a process is heard of.
const HEARSAY: Duration = Duration::from_millis(200);
/// How long no process is there before that is a failure, when nobody has said how the first one ended.
const GONE: Duration = Duration::from_secs(1);
/// How long whoever waits for the root may take to ask when it is not restarted.
const ASKERS_WORD: Duration = Duration::from_secs(5);

/// Why a job is to be restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JobFailure {
    /// In words.
    pub(crate) text: String,
    /// Whether it was the root that has failed, or the job as a whole.
    pub(crate) root: bool,
}

/// What whoever waits for a job's root is told.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// To become `ulpm_restart`.
    Restart { path: PathBuf, token: String },
}

/// Whoever waits for a job's root.
#[derive(Debug)]
pub(crate) struct Asker {
    pub(crate) notes: mpsc::UnboundedSender<String>,
    pub(crate) answer: oneshot::Sender<Verdict>,
}

/// One restart of a job that has failed.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) token: String,
    /// Told when all processes wait.
    ready: oneshot::Receiver<()>,
    /// Until `ulpm_restart` is there.
    tell_ready: Option<oneshot::Sender<()>>,
    /// Why it has come to nothing.
    pub(crate) failed: Option<String>,
}

/// What comes of an attempt.
enum Stop {
    /// There may be another one.
    Failed(String),
    /// There is none.
    GivenUp(String),
    /// Somebody has ended the job meanwhile.
    Over,
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The name of a signal.
fn signal_name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal)
        .map_or_else(|_| format!("signal {signal}"), |signal| signal.to_string())
}

impl Job {
    /// Whether the job is to be restarted when it fails.
    pub(crate) fn is_recoverable(&self) -> bool {
        let ended_well = self.table.table().ended().is_some_and(|status| !has_failed(status));
        self.meta.policy.recovery.on_failure != OnFailure::None
            && !self.moved
            && !self.meta.killed
            && !self.ended
            && self.exited.is_none()
            && !ended_well
    }

    /// Watches all members that are not watched yet, if somebody is to hear of it.
    pub(crate) fn watch(&mut self) {
        if !self.is_recoverable() {
            return;
        }
        for stat in self.members() {
            if self.watched.get(&stat.pid) == Some(&stat.start) {
                continue;
            }
            let Ok(watch) = Watch::begin(stat.pid, stat.start) else { continue };
            self.watched.insert(stat.pid, stat.start);
            let (pid, start) = (stat.pid, stat.start);
            let (events, command) = (self.sender.clone(), process::short_command(pid));
            tokio::spawn(async move {
                let status = watch.ended().await;
                if let Some(events) = events.upgrade() {
                    let _ = events.send(crate::job::Event::Ended { pid, start, status, command });
                }
            });
        }
    }

    /// A member has ended that was watched.
    pub(crate) fn member_ended(
        &mut self,
        (pid, start): (i32, u64),
        status: Option<i32>,
        command: &str,
    ) {
        if self.watched.get(&pid) != Some(&start) {
            return; // Of an instance that was ended.
        }
        self.watched.remove(&pid);
        let virt = self.virtual_of(pid);
        let root = self.meta.root == Some(virt);
        if root {
            self.root_status = status;
            self.root_untold = status.is_none();
        }
        let Some(status) = status else { return };
        let signal = status & 0x7f;
        if is_failure(signal) && !self.is_own_doing(pid, signal) {
            let what = if root { "its first process" } else { "its process" };
            let name = signal_name(signal);
            self.fails(JobFailure {
                text: format!("{what} {virt} ({command}) was ended by {name}"),
                root,
            });
        }
    }

    /// Whether a process of the job has ended this one on purpose, by that signal.
    fn is_own_doing(&self, pid: i32, signal: i32) -> bool {
        use std::sync::atomic::Ordering;
        let slots = self.table.table().slots().iter();
        slots
            .filter(|slot| slot.real() == pid)
            .any(|slot| slot.killed.load(Ordering::Acquire) == signal)
    }

    /// The job has failed; what is to be done about it is done when nothing else is.
    pub(crate) fn fails(&mut self, failure: JobFailure) {
        if self.is_recoverable() && self.doing != RECOVERING && self.failure.is_none() {
            tracing::warn!("job {}: {}", self.meta.name, failure.text);
            self.failure = Some(failure);
        }
    }

    /// Somebody who waits for the root asks what becomes of the job. `status` is how the root ended; without one,
    /// a restart has failed.
    pub(crate) fn root_asks(&mut self, status: Option<i32>, asker: Asker, again: bool) {
        match (status, &mut self.attempt) {
            (None, Some(attempt)) if attempt.tell_ready.is_some() => {
                attempt.failed.get_or_insert_with(|| "it could not be restarted".into());
            }
            (Some(status), _) if self.doing != RECOVERING => {
                let root = self.meta.root.and_then(|virt| {
                    let mut slots = self.table.table().slots().iter();
                    slots.find(|slot| slot.virt() == virt).map(ulpm_protocol::table::Slot::real)
                });
                self.root_status = Some(status);
                if has_failed(status)
                    && !root.is_some_and(|pid| self.is_own_doing(pid, status & 0x7f))
                {
                    let name = signal_name(status & 0x7f);
                    let text = format!("its first process was ended by {name}");
                    self.fails(JobFailure { text, root: true });
                }
            }
            _ => {}
        }
        if !again && self.failure.is_none() && self.doing != RECOVERING && self.is_recoverable() {
            // It may have ended because another process has failed, of which we are about to hear.
            let events = self.sender.clone();
            tokio::spawn(async move {
                tokio::time::sleep(HEARSAY).await;
                if let Some(events) = events.upgrade() {
                    let command = crate::job::Command::Outcome { status, asker, again: true };
                    let _ = events.send(crate::job::Event::Command(command));
                }
            });
        } else if self.failure.is_some() || self.doing == RECOVERING {
            for text in &self.said {
                let _ = asker.notes.send(text.clone());
            }
            self.asker = Some(asker);
        }
    }

    /// Whether whoever waits for the root lives.
    pub(crate) fn parent_lives(&self) -> bool {
        self.meta.parent.is_some_and(|parent| {
            Stat::of(parent.pid).is_some_and(|stat| stat.start == parent.start && !stat.is_zombie())
        })
    }

    /// No process of the job is left, and nobody has said why; true if that is a failure.
    pub(crate) fn is_gone(&mut self) -> bool {
        if !self.is_recoverable() {
            return false;
        }
        if self.failure.is_some() || self.parent_lives() {
            return true; // It will ask.
        }
        match self.root_status.or(self.table.table().ended()) {
            Some(status) if !has_failed(status) => return false,
            Some(status) => {
                let name = signal_name(status & 0x7f);
                let text = format!("its first process was ended by {name}");
                self.fails(JobFailure { text, root: true });
            }
            // It may have ended well, and nobody could tell how.
            None if self.root_untold => return false,
            // Its end may be on its way to us.
            None if self.empty_since.get_or_insert_with(Instant::now).elapsed() < GONE => {}
            None => {
                let text = "nothing is left of it, and it has not come to its end".into();
                self.fails(JobFailure { text, root: true });
            }
        }
        true
    }

    /// Tells the log, `--status` and whoever waits.
    fn say(&mut self, text: &str) {
        tracing::warn!("job {}: {text}", self.meta.name);
        if let Some(asker) = &self.asker {
            let _ = asker.notes.send(text.into());
        }
        self.said.push(text.into());
        self.meta.last_failure = Some(text.into());
    }

    /// Restarts the job, or gives it up.
    pub(crate) async fn recover(&mut self) {
        let Some(failure) = self.failure.take() else { return };
        if !self.is_recoverable() {
            // It was ended or moved on purpose meanwhile.
            self.asker = None;
            return;
        }
        self.doing = RECOVERING;
        if !failure.root && !self.waits_for_root().await {
            // It has ended, and took that process along.
            self.asker = None;
            self.doing = "running";
            return;
        }
        let mut why = failure.text;
        let mut ended = self.look_for_members().is_empty();
        loop {
            match self.attempt(&why, &mut ended).await {
                Ok(()) => break,
                Err(Stop::Failed(text)) => why = text,
                Err(Stop::GivenUp(text)) => {
                    ended = ended || self.look_for_members().is_empty();
                    if ended {
                        self.wait_for_asker().await;
                    }
                    self.say(&format!("{why}; not restarted: {text}"));
                    self.meta.recovering = None;
                    self.save();
                    // Whoever waits says how the root has ended. What lives goes on as it would without us.
                    self.ended = ended;
                    self.over = ended;
                    break;
                }
                Err(Stop::Over) => {
                    self.over = true;
                    break;
                }
            }
        }
        self.attempt = None;
        self.asker = None;
        self.said.clear();
        self.doing = "running";
    }

    /// Whether the root lives, or has not ended well, which is then because of what has failed. A process that the kernel
    /// ends together with the root (PR_SET_PDEATHSIG) has not failed.
    async fn waits_for_root(&mut self) -> bool {
        let deadline = Instant::now() + ROOTS_WORD;
        loop {
            let lives = self.meta.root.is_none_or(|virt| {
                let members = self.look_for_members();
                members.iter().any(|pid| self.virtual_of(*pid) == virt)
            });
            if lives {
                return true;
            }
            if let Some(status) = self.exited.or(self.root_status) {
                return status != 0 && self.is_recoverable();
            }
            if Instant::now() >= deadline {
                return self.is_recoverable();
            }
            self.pass(LOOK).await;
        }
    }

    /// Gives whoever waits for the root the time to ask, so that he hears why it does not go on.
    async fn wait_for_asker(&mut self) {
        let deadline = Instant::now() + ASKERS_WORD;
        while self.asker.is_none() && self.parent_lives() && Instant::now() < deadline {
            self.pass(LOOK).await;
        }
    }

    fn look_for_members(&mut self) -> BTreeSet<i32> {
        self.members().into_iter().map(|stat| stat.pid).collect()
    }

    /// Lets time pass, and takes events.
    async fn pass(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let _ = self.barrier_event(until).await;
        }
    }

    async fn attempt(&mut self, why: &str, ended: &mut bool) -> Result<(), Stop> {
        let allowed = self.meta.policy.recovery.max_restarts as usize;
        self.attempt = None;
        self.meta.restarts.retain(|&time| now().saturating_sub(time) < WINDOW);
        let done = self.meta.restarts.len();
        if self.generations().is_empty() {
            return Err(Stop::GivenUp("it has no complete checkpoint".into()));
        }
        if done >= allowed {
            return Err(Stop::GivenUp(format!(
                "it was restarted {done} times within the last hour, and --max-restarts is {allowed}{}",
                self.way_out()
            )));
        }
        // What is not logged is not begun.
        self.meta.restarts.push(now());
        self.meta.recovering = Some(Recovering { text: why.into(), table: self.meta.table });
        if let Err(error) = state::save(&self.shared.state.meta(self.meta.id), &self.meta) {
            return Err(Stop::GivenUp(format!("that cannot be logged: {error}{}", self.way_out())));
        }
        fault::at("recovery.Logged");
        if !*ended {
            self.say(&format!("{why}; what is left of it is ended"));
        }
        // Nothing is ended for a checkpoint that is of no use.
        let chosen = match self.choose().await {
            Err(stop @ (Stop::GivenUp(_) | Stop::Over)) => return Err(stop),
            chosen => chosen,
        };
        self.end_the_rest().await?;
        *ended = true;
        fault::at("recovery.Ended");
        let doubled = 1 << u32::try_from(done).unwrap_or(u32::MAX).min(16);
        let pause = (FIRST_PAUSE * doubled).min(LONGEST_PAUSE);
        let number = done + 1;
        self.say(&format!(
            "{why}; it is restarted in {} s ({number} of {allowed} within an hour)",
            pause.as_secs()
        ));
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.meta.killed {
            self.pass(LOOK).await;
        }
        let path = match chosen {
            Ok(path) => path,
            Err(_) => self.choose().await?,
        };
        fault::at("recovery.Chosen");
        self.restart_from(path).await
    }

    /// Restarts within the last hour.
    pub(crate) fn recent_restarts(&self) -> u32 {
        let recent = self.meta.restarts.iter().filter(|&&time| now().saturating_sub(time) < WINDOW);
        u32::try_from(recent.count()).unwrap_or(u32::MAX)
    }

    fn way_out(&self) -> String {
        let dir = self.meta.policy.ckpt_dir.join(&self.meta.name);
        format!("; restart it with: ulpm_restart {}", dir.display())
    }

    fn generations(&self) -> Vec<u64> {
        let dir = self.meta.policy.ckpt_dir.join(&self.meta.name);
        generation::generations(&dir).unwrap_or_default()
    }

    /// Ends every process of the job, and waits until the last one has gone.
    async fn end_the_rest(&mut self) -> Result<(), Stop> {
        // From here on, those that lose their coordinator end too.
        self.table.table().set_handover(Handover::Committed);
        let mut told = false;
        loop {
            let ended = self.kill_all().await;
            let left = process::of_job(&self.shared.state.table_prefix(self.meta.id));
            for &pid in &left {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
            if ended.is_ok() && left.is_empty() {
                break;
            }
            if !std::mem::replace(&mut told, true)
                && let Err(error) = ended
            {
                self.say(&format!("{error}; it is restarted when they have ended"));
            }
            self.pass(LOOK).await;
        }
        self.remove_objects();
        self.forget_members();
        if self.meta.killed { Err(Stop::Over) } else { Ok(()) }
    }

    /// The newest generation that can be restarted.
    async fn choose(&mut self) -> Result<PathBuf, Stop> {
        let dir = self.meta.policy.ckpt_dir.join(&self.meta.name);
        let failed = |error: std::io::Error| {
            Stop::Failed(format!("its checkpoint cannot be checked: {error}"))
        };
        for generation in self.generations().into_iter().rev() {
            let path = dir.join(generation.to_string());
            let mut check = restart_command(&self.shared, None).map_err(failed)?;
            check.arg("--check").arg(&path).process_group(0).kill_on_drop(true);
            check.stderr(Stdio::piped());
            let said = self.meanwhile(&BTreeSet::new(), check.output()).await;
            if self.meta.killed {
                return Err(Stop::Over);
            }
            let said = said.map_err(|error| Stop::Failed(error.to_string()))?.map_err(failed)?;
            if said.status.success() {
                return Ok(path);
            }
            let text = String::from_utf8_lossy(&said.stderr).trim().replace('\n', ";");
            let text = text.replace("ulpm_restart: ", "");
            let damaged = [exit::DATA, exit::NO_INPUT].map(i32::from);
            if !said.status.code().is_some_and(|code| damaged.contains(&code)) {
                return Err(Stop::Failed(format!("it cannot be restarted now: {text}")));
            }
            self.say(&format!(
                "generation {generation} is of no use, the one before is taken: {text}"
            ));
        }
        Err(Stop::GivenUp("none of its checkpoints is of use".into()))
    }

    /// Lets `ulpm_restart` make the processes, and lets them go on when all are there.
    async fn restart_from(&mut self, path: PathBuf) -> Result<(), Stop> {
        let cannot =
            |what: &str, error: &dyn std::fmt::Display| Stop::Failed(format!("{what}: {error}"));
        let token = crate::migrate::random_token()
            .map_err(|error| cannot("there is no random token", &error))?;
        let (tell_ready, ready) = oneshot::channel();
        self.new_table().map_err(|error| cannot("a new job table cannot be made", &error))?;
        fault::at("recovery.Table");
        self.attempt = Some(Attempt {
            token: token.clone(),
            ready,
            tell_ready: Some(tell_ready),
            failed: None,
        });
        let mut child = None;
        let mut offered: Option<Instant> = None;
        loop {
            let Some(attempt) = &mut self.attempt else { return Err(Stop::Over) };
            if self.meta.killed {
                return Err(Stop::Over);
            }
            if let Some(text) = attempt.failed.take() {
                return Err(Stop::Failed(text));
            }
            if attempt.ready.try_recv().is_ok() {
                break;
            }
            let adopted = attempt.tell_ready.is_none();
            match offered {
                None if self.asker.as_ref().is_some_and(|asker| !asker.answer.is_closed()) => {
                    if let Some(asker) = self.asker.take() {
                        let verdict = Verdict::Restart { path: path.clone(), token: token.clone() };
                        let _ = asker.answer.send(verdict);
                        offered = Some(Instant::now());
                        fault::at("recovery.Offered");
                    }
                }
                None if !self.parent_lives() => {
                    let recovering = format!("{}:{token}", self.meta.id);
                    let mut command = restart_command(&self.shared, Some(self.meta.id))
                        .map_err(|error| cannot("ulpm_restart cannot be started", &error))?;
                    command.arg("--recover").arg(recovering).arg(&path).process_group(0);
                    let spawned = command.spawn();
                    child = Some(
                        spawned
                            .map_err(|error| cannot("ulpm_restart cannot be started", &error))?,
                    );
                    offered = Some(Instant::now());
                    fault::at("recovery.Offered");
                }
                Some(since) if !adopted => {
                    let late = since.elapsed() > fault::hurried(RESTART_TIMEOUT);
                    let ended = match &mut child {
                        Some(child) => child.try_wait().is_ok_and(|status| status.is_some()),
                        None => !self.parent_lives(),
                    };
                    if late || ended {
                        let what = if late { "does nothing" } else { "has ended" };
                        return Err(Stop::Failed(format!("ulpm_restart {what}")));
                    }
                }
                _ => {}
            }
            self.restart_deadline().await;
            let _ = self.barrier_event(Instant::now() + LOOK).await;
        }
        if let Some(mut child) = child {
            tokio::spawn(async move {
                let _ = child.wait().await;
            });
        }
        fault::at("recovery.Ready");
        let number = self.meta.restarts.len();
        let generation = path.file_name().unwrap_or_default().display().to_string();
        if let Err(error) = self.go_on(Thawed::Saved).await {
            return Err(Stop::Failed(error.to_string()));
        }
        fault::at("recovery.GoesOn");
        self.attempt = None;
        self.meta.recovering = None;
        tracing::warn!("job {} goes on from generation {generation} ({number})", self.meta.name);
        let text = self.meta.last_failure.take().unwrap_or_default();
        self.meta.last_failure = Some(format!("{text}; it went on from generation {generation}"));
        self.save();
        self.watch();
        Ok(())
    }

    /// Takes a new table, in which nobody is, in the place of the old one.
    fn new_table(&mut self) -> std::io::Result<()> {
        let number = self.meta.table + 1;
        let path = self.shared.state.table(self.meta.id, number);
        let _ = std::fs::remove_file(&path);
        let table = self.shared.make_table(&path, &self.meta).map_err(std::io::Error::other)?;
        table.table().header().restarted.store(1, std::sync::atomic::Ordering::Release);
        table.table().set_handover(Handover::Pending);
        let before = std::mem::replace(&mut self.meta.table, number);
        if let Err(error) = state::save(&self.shared.state.meta(self.meta.id), &self.meta) {
            self.meta.table = before;
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        let _ = std::fs::remove_file(&self.table_path);
        self.table = table;
        self.set_table_path(path);
        self.root_status = None;
        self.root_untold = false;
        Ok(())
    }

    /// `ulpm_restart` is there for an attempt, and gets the job.
    pub(crate) fn adopt(
        &mut self,
        token: &str,
        stdio: [Stream; 3],
        parent: Option<i32>,
    ) -> Result<(JobOpened, oneshot::Sender<()>), JobError> {
        let given_up = || JobError::RestartGivenUp("another attempt is made".into());
        let attempt =
            self.attempt.as_mut().filter(|attempt| attempt.token == token).ok_or_else(given_up)?;
        let ready = attempt.tell_ready.take().ok_or_else(given_up)?;
        let added = self.table.table().add_streams(stdio.map(crate::server::stream_id));
        added.map_err(|error| JobError::RestartGivenUp(error.to_string()))?;
        self.set_parent(parent);
        let opened = self.shared.opened(self.meta.id, &self.meta.name, &self.table_path);
        Ok((opened.map_err(|refusal| JobError::RestartGivenUp(refusal.chain.join(": ")))?, ready))
    }
}

/// What the state of a job is called meanwhile.
pub(crate) const RECOVERING: &str = "recovering";

/// Whether a status as from wait(2) tells of a failure.
pub(crate) fn has_failed(status: i32) -> bool {
    is_failure(status & 0x7f)
}
