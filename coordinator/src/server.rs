//! Sockets: who connects, what they ask, and who answers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot, watch};
use ulpm_cluster::Role;
use ulpm_control::codec::{self, CodecError};
use ulpm_control::manifest::check_name;
use ulpm_control::message::{
    Checked, Checkpointed, JobOpened, Migrated, MovedJob, OpenJob, PeerMessage, Policy, Progress,
    Refusal, Restart, Status, Stream,
};
use ulpm_control::{JobId, OnFailure, Recovery, Reply, Request, exit, host, place};
use ulpm_protocol::handover::Word;
use ulpm_protocol::manager;
use ulpm_protocol::table::{Handover, Slot, StreamId};

use crate::error::JobError;
use crate::generation;
use crate::job::{Command, Event, Handle, Job, Then};
use crate::kernel::Mapped;
use crate::limits::{Limits, Usage};
use crate::manager::Manager;
use crate::membership;
use crate::migrate::{self, Hold, Incoming, Manner};
use crate::network::{self, Caller, Link, Network};
use crate::process;
use crate::recovery::{Asker, Verdict};
use crate::state::{self, ArrivedRecord, Finished, JobMeta, MovedRecord, Stage, StateDir};
use crate::streams;
use crate::wire;

/// Logs of ended jobs that are kept.
const OUTPUTS: usize = 32;
/// Records of ended jobs that are kept.
const RECORDS: usize = 64;
/// How often a log is looked at that is followed.
const FOLLOW: Duration = Duration::from_millis(50);

/// How long a connection from another host may take to say what it is about.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// What all tasks share.
#[derive(Debug)]
pub struct Shared {
    pub(crate) state: StateDir,
    pub(crate) socket: PathBuf,
    pub(crate) host: String,
    pub(crate) deadline: Duration,
    pub(crate) network: Network,
    pub(crate) limits: Limits,
    listen: Mutex<Option<String>>,
    jobs: Mutex<BTreeMap<JobId, Handle>>,
    moved: Mutex<BTreeMap<JobId, Moved>>,
    arrived: Mutex<HashMap<String, Arrived>>,
    /// Hand-overs that came to nothing, of jobs that were seen to go on here.
    given_up: Mutex<HashSet<String>>,
    incoming: Mutex<HashMap<String, Incoming>>,
    /// Restarts that are to wait, by their hand-over.
    holds: Mutex<HashMap<String, Hold>>,
    quit: Notify,
}

#[derive(Debug)]
struct Moved {
    record: MovedRecord,
    finished: watch::Sender<Option<Finished>>,
}

#[derive(Debug)]
struct Arrived {
    record: ArrivedRecord,
    /// Whether the source has said that it has decided.
    decided: watch::Sender<bool>,
    /// Nobody works on it: there is only its image.
    kept: bool,
    finished: watch::Sender<Option<Finished>>,
}

pub(crate) fn stream_id(stream: Stream) -> StreamId {
    StreamId { dev: stream.dev, ino: stream.ino, open: stream.open }
}

/// Tells a job's table whether the job is to be restarted when it fails.
pub(crate) fn keep_alive(table: &Mapped, recovery: &Recovery) {
    let kept = u32::from(recovery.on_failure != OnFailure::None);
    table.table().header().kept_alive.store(kept, std::sync::atomic::Ordering::Release);
}

/// Tells a job's table from where one of its trees is launched.
fn add_launcher(path: &Path, ask: &OpenJob) -> Result<(), Refusal> {
    let added = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .and_then(Mapped::open)
        .and_then(|table| {
            let table = table.table();
            let [group, session] = [ask.group, ask.session].map(|id| [id, table.virtual_for(id)]);
            table
                .name_outside(group, session)
                .and_then(|()| table.add_streams(ask.stdio.map(stream_id)))
                .map_err(io::Error::other)
        });
    added.map_err(|error| Refusal {
        code: exit::OS,
        chain: vec![format!("cannot enter the job table {}", path.display()), error.to_string()],
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Makes the state of a coordinator, without the jobs that its predecessor left.
    #[must_use]
    pub fn new(
        state: StateDir,
        socket: PathBuf,
        deadline: Duration,
        cluster: Option<PathBuf>,
        limits: Limits,
    ) -> Arc<Self> {
        Arc::new(Self {
            state,
            socket,
            host: host::name(),
            deadline,
            network: Network::new(cluster),
            limits,
            listen: Mutex::default(),
            jobs: Mutex::default(),
            moved: Mutex::default(),
            arrived: Mutex::default(),
            given_up: Mutex::default(),
            incoming: Mutex::default(),
            holds: Mutex::default(),
            quit: Notify::new(),
        })
    }

    pub(crate) fn list(&self, handle: Handle) {
        lock(&self.jobs).insert(handle.id, handle);
    }

    pub(crate) fn unlist(&self, id: JobId) {
        lock(&self.jobs).remove(&id);
    }

    pub(crate) fn job(&self, id: JobId) -> Option<Handle> {
        lock(&self.jobs).get(&id).cloned()
    }

    pub(crate) fn incoming(&self) -> MutexGuard<'_, HashMap<String, Incoming>> {
        lock(&self.incoming)
    }

    /// Jobs that have come here and live, by their hand-overs, with their memory in bytes.
    pub(crate) async fn guests(&self) -> Vec<(String, u64)> {
        let open: Vec<_> = {
            let arrived = lock(&self.arrived);
            let open = arrived.iter().filter(|(_, arrived)| arrived.record.finished.is_none());
            open.map(|(token, arrived)| (token.clone(), arrived.record.job)).collect()
        };
        let mut guests = Vec::new();
        for (token, id) in open {
            let Some(job) = self.job(id) else { continue };
            if let Some(job) = job.ask(Command::Describe).await {
                guests.push((token, job.processes.iter().map(|process| process.rss).sum()));
            }
        }
        guests
    }

    /// What jobs from other hosts have: these, and those that are on their way.
    pub(crate) fn usage(&self, guests: &[(String, u64)]) -> Usage {
        let incoming = lock(&self.incoming);
        let mut usage = Usage::default();
        for (_, memory) in guests.iter().filter(|(token, _)| !incoming.contains_key(token)) {
            usage.guests += 1;
            usage.memory += memory;
        }
        for coming in incoming.values() {
            usage.guests += 1;
            usage.memory += coming.need();
            usage.disk += coming.need();
        }
        let arrived = lock(&self.arrived);
        let kept = arrived.iter().filter(|(token, _)| !incoming.contains_key(*token));
        usage.disk += kept.map(|(_, arrived)| generation::size(&arrived.record.image)).sum::<u64>();
        usage
    }

    /// Lists a job that was handed over.
    pub(crate) fn moved_away(&self, record: MovedRecord) {
        let (finished, _) = watch::channel(record.finished.clone());
        lock(&self.moved).insert(record.id, Moved { record, finished });
    }

    /// Records how a job ended that was handed over, and tells whoever waits for it.
    pub(crate) fn moved_finished(&self, id: JobId, finished: Finished) {
        let origin = {
            let mut moved = lock(&self.moved);
            let Some(moved) = moved.get_mut(&id) else { return };
            moved.record.finished = Some(finished.clone());
            if let Err(error) = state::save(&self.state.moved(id), &moved.record) {
                tracing::warn!("job {}: cannot record its end: {error}", moved.record.name);
            }
            moved.finished.send_replace(Some(finished.clone()));
            moved.record.origin.clone()
        };
        if let Some(token) = origin {
            self.arrived_finished(&token, finished);
        }
    }

    /// Whether a job was handed over by that token.
    pub(crate) fn has_sent(&self, token: &str) -> bool {
        lock(&self.moved).values().any(|moved| moved.record.token == token)
    }

    /// The record of a job that was handed over.
    pub(crate) fn moved_record(&self, id: JobId) -> Option<MovedRecord> {
        lock(&self.moved).get(&id).map(|moved| moved.record.clone())
    }

    /// The record of a job that came here, or may come.
    pub(crate) fn arrived_record(&self, token: &str) -> Option<ArrivedRecord> {
        lock(&self.arrived).get(token).map(|arrived| arrived.record.clone())
    }

    /// Starts to ask the target how a job ended that was handed over to it.
    pub(crate) fn follow_moved(self: &Arc<Self>, id: JobId) {
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let record = lock(&shared.moved).get(&id).map(|moved| moved.record.clone());
            let Some(record) = record else { return };
            let finished = migrate::follow(&shared.network, &record).await;
            tracing::info!(
                "job {}, which went to {}, has ended: {finished:?}",
                record.name,
                record.target
            );
            shared.moved_finished(id, finished);
        });
    }

    /// Remembers a hand-over that came to nothing, of a job that goes on here.
    pub(crate) fn gives_up(&self, token: &str) {
        lock(&self.given_up).insert(token.into());
    }

    /// Whether a job that was offered elsewhere is there now; nothing if that is not decided, or not known. A job that has
    /// ended with the machine is not known, and nobody takes its image away.
    fn decision(&self, token: &str) -> Option<bool> {
        let told = |moved: &Moved| moved.record.finished.is_some();
        match lock(&self.moved).values().find(|moved| moved.record.token == token) {
            Some(moved) => (!told(moved)).then_some(true),
            None => lock(&self.given_up).contains(token).then_some(false),
        }
    }

    /// The port at which other hosts reach this one.
    pub(crate) fn port(&self) -> Option<u16> {
        lock(&self.listen).as_ref()?.rsplit_once(':')?.1.parse().ok()
    }

    /// Announces a restart that is to wait.
    pub(crate) fn expect_hold(&self, token: &str, hold: Hold) {
        lock(&self.holds).insert(token.into(), hold);
    }

    /// What a restart that waits belongs to; once.
    fn take_hold(&self, token: &str) -> Option<Hold> {
        lock(&self.holds).remove(token)
    }

    /// Lists a job that came here, or may come; tells when the source has decided.
    fn arrived(&self, record: ArrivedRecord, kept: bool) -> watch::Receiver<bool> {
        let (finished, _) = watch::channel(record.finished.clone());
        let (decided, is_decided) = watch::channel(false);
        let token = record.token.clone();
        lock(&self.arrived).insert(token, Arrived { record, decided, kept, finished });
        is_decided
    }

    /// Records that the image of a job has come.
    pub(crate) fn log_prepared(&self, record: ArrivedRecord) -> io::Result<watch::Receiver<bool>> {
        state::save(&self.state.arrived(&record.token), &record)?;
        Ok(self.arrived(record, false))
    }

    /// Records that a job belongs here.
    pub(crate) fn log_taken(&self, token: &str, job: JobId) -> io::Result<()> {
        let mut arrived = lock(&self.arrived);
        let arrived = arrived.get_mut(token).ok_or(io::ErrorKind::NotFound)?;
        let record = ArrivedRecord { job, stage: Stage::Taken, ..arrived.record.clone() };
        state::save(&self.state.arrived(token), &record)?;
        arrived.record = record;
        Ok(())
    }

    /// Nobody works on a job any more that may come here; true if its source has decided meanwhile.
    pub(crate) fn keep(&self, token: &str) -> bool {
        let mut arrived = lock(&self.arrived);
        let Some(arrived) = arrived.get_mut(token) else { return false };
        let decided = arrived.record.finished.is_none() && arrived.decided.send_replace(false);
        arrived.kept = !decided;
        decided
    }

    /// Forgets a job that did not come after all.
    pub(crate) fn forget_arrived(&self, token: &str) {
        if lock(&self.arrived).remove(token).is_some() {
            let _ = std::fs::remove_file(self.state.arrived(token));
        }
    }

    /// What is known of a job of which there is only the image; nothing if more is known by now.
    pub(crate) fn kept(&self, token: &str) -> Option<ArrivedRecord> {
        let arrived = lock(&self.arrived);
        let arrived = arrived.get(token)?;
        (arrived.kept && arrived.record.finished.is_none()).then(|| arrived.record.clone())
    }

    /// The source of a hand-over says that it has decided; returns where its end is told.
    pub(crate) fn decided(
        self: &Arc<Self>,
        token: &str,
    ) -> Option<watch::Receiver<Option<Finished>>> {
        let mut arrived = lock(&self.arrived);
        let arrived = arrived.get_mut(token)?;
        if arrived.record.finished.is_none() {
            if std::mem::take(&mut arrived.kept) {
                tokio::spawn(migrate::start_kept(Arc::clone(self), arrived.record.clone()));
            } else {
                arrived.decided.send_replace(true);
            }
        }
        Some(arrived.finished.subscribe())
    }

    /// Records how a job ended that came here; what is said first counts.
    pub(crate) fn arrived_finished(&self, token: &str, finished: Finished) {
        let mut arrived = lock(&self.arrived);
        let Some(arrived) = arrived.get_mut(token) else { return };
        if arrived.record.finished.is_some() {
            return;
        }
        arrived.record.finished = Some(finished.clone());
        if let Err(error) = state::save(&self.state.arrived(token), &arrived.record) {
            tracing::warn!("job {}: cannot record its end: {error}", arrived.record.name);
        }
        arrived.finished.send_replace(Some(finished));
    }

    /// Takes up what the last coordinator has left.
    pub fn take_up(self: &Arc<Self>) {
        let mut metas: Vec<JobMeta> = self.state.records("jobs");
        metas.sort_by_key(|meta| meta.id);
        let mut moved: Vec<MovedRecord> = self.state.records("moved");
        moved.sort_by_key(|record| record.id);
        let mut words = HashMap::new();
        for meta in metas {
            let _ = generation::remove_dead(&meta.policy.ckpt_dir.join(&meta.name));
            let origin = meta.origin.clone();
            if let (Some(handover), Some(origin)) = (self.take_up_job(meta, &mut moved), origin) {
                words.insert(origin, handover);
            }
        }
        let surplus = moved.len().saturating_sub(RECORDS);
        for (number, record) in moved.into_iter().enumerate() {
            if record.finished.is_some() && number < surplus {
                let _ = std::fs::remove_file(self.state.moved(record.id));
                continue;
            }
            let (id, open) = (record.id, record.finished.is_none());
            self.moved_away(record);
            if open {
                self.follow_moved(id);
            }
        }
        let mut arrived: Vec<ArrivedRecord> = self.state.records("arrived");
        arrived.sort_by_key(|record| record.job);
        let surplus = arrived.len().saturating_sub(RECORDS);
        for (number, record) in arrived.into_iter().enumerate() {
            if record.finished.is_some() && number < surplus {
                let _ = std::fs::remove_file(self.state.arrived(&record.token));
                continue;
            }
            self.take_up_arrived(record, &words);
        }
        let living = |id| self.job(id).is_some();
        self.state.forget_old_outputs(&living, OUTPUTS);
        self.remove_stray_tables();
    }

    /// Goes on with the arrival of a job, of which a table may have been found.
    fn take_up_arrived(self: &Arc<Self>, record: ArrivedRecord, words: &HashMap<String, Handover>) {
        let token = record.token.clone();
        let open = record.finished.is_none();
        self.arrived(record.clone(), false);
        let went_on =
            lock(&self.moved).values().any(|moved| moved.record.origin.as_ref() == Some(&token));
        if !open || went_on {
            return;
        }
        let word = match words.get(&token) {
            Some(Handover::Pending) => Word::Undecided,
            Some(_) => Word::Decided,
            None if record.stage == Stage::Prepared || record.job == JobId(0) => Word::Undecided,
            None => {
                let text = format!("how job {} ended on {} is not known", record.name, self.host);
                self.arrived_finished(&token, Finished { status: None, text });
                return;
            }
        };
        tokio::spawn(migrate::recover(Arc::clone(self), record, word));
    }

    /// Takes up a job by its table, and returns what that says of a hand-over.
    fn take_up_job(
        self: &Arc<Self>,
        mut meta: JobMeta,
        moved: &mut Vec<MovedRecord>,
    ) -> Option<Handover> {
        let path = self.state.table(meta.id, meta.table);
        let (id, name) = (meta.id, meta.name.clone());
        let was_handed_over = moved.iter().any(|record| record.id == id);
        let is_kept_alive =
            meta.policy.recovery.on_failure != OnFailure::None && !meta.killed && !was_handed_over;
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path);
        let table = match file.and_then(Mapped::open) {
            Ok(table) => table,
            // The machine went down while it was written. Not one that has come from another host: how far that was
            // stood in the table. Nor one that is not there: it is the first thing of an ended job to go.
            Err(error)
                if is_kept_alive
                    && error.kind() == io::ErrorKind::InvalidData
                    && meta.origin.is_none()
                    && process::of_job(&self.state.table_prefix(meta.id)).is_empty()
                    && self.remake_table(&path, &meta) =>
            {
                return self.take_up_job(meta, moved);
            }
            Err(error) => {
                tracing::warn!(
                    "job {}: its table {} is of no use: {error}",
                    meta.name,
                    path.display()
                );
                let _ = std::fs::remove_file(&path);
                let _ = std::fs::remove_file(self.state.meta(meta.id));
                return None;
            }
        };
        let handover = table.table().handover();
        if handover != Handover::Committed && was_handed_over {
            let lives = |slot: &Slot| slot.is_member() && process::Stat::of(slot.real()).is_some();
            if !table.table().slots().iter().any(lives) {
                // The machine went down, and the decision with it, which only the record outlives: the job may go on there.
                tracing::warn!("job {name} ({id}) was handed over, and nothing of it is left here");
                let _ = std::fs::remove_file(&path);
                let _ = std::fs::remove_file(self.state.meta(id));
                return None;
            }
            // The last coordinator died between its record and its decision.
            moved.retain(|record| record.id != id);
            let _ = std::fs::remove_file(self.state.moved(id));
        }
        // Which table was the last that a restart got, and whether its processes go on, tells how far that came.
        let is_restarting = is_kept_alive
            && meta.recovering.as_ref().is_some_and(|recovering| {
                handover != Handover::None || recovering.table == meta.table
            });
        if !is_restarting && meta.recovering.take().is_some() {
            // It went on, and the last coordinator died before it could say so. Later it would be taken for one that has not.
            let _ = crate::state::save(&self.state.meta(id), &meta);
        }
        let handle = Job::start(self, meta, table, false);
        tracing::info!("job {name} ({id}) is taken up, hand-over {handover:?}");
        if is_restarting {
            let _ = handle.events.send(Event::Command(Command::Resume));
            return None;
        }
        if handover != Handover::None {
            // Its processes end by themselves; this makes sure.
            let (sender, _) = oneshot::channel();
            let _ = handle.events.send(Event::Command(Command::Abandon(sender)));
        }
        Some(handover)
    }

    /// Puts a table in the place of one that is damaged, of a job that is to be restarted.
    fn remake_table(&self, path: &Path, meta: &JobMeta) -> bool {
        let _ = std::fs::remove_file(path);
        let made = self.make_table(path, meta);
        made.is_ok_and(|table| {
            table.table().header().restarted.store(1, std::sync::atomic::Ordering::Release);
            true
        })
    }

    fn remove_stray_tables(&self) {
        let Ok(entries) = std::fs::read_dir(self.state.path().join("jobs")) else { return };
        let tables: HashSet<PathBuf> = lock(&self.jobs).values().map(Handle::table).collect();
        for entry in entries.flatten() {
            let path = entry.path();
            let is_table = path.extension().is_some_and(|extension| extension == "table");
            if is_table && !tables.contains(&path) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// The jobs that are named; the only one if none is.
    pub(crate) fn resolve(&self, names: &[String]) -> Result<Vec<Handle>, Refusal> {
        let jobs = lock(&self.jobs);
        let refuse = |code, text: String| Err(Refusal { code, chain: vec![text] });
        if names.is_empty() {
            let mut all = jobs.values();
            return match (all.next(), all.next()) {
                (Some(only), None) => Ok(vec![only.clone()]),
                (None, _) => refuse(exit::NO_INPUT, "no job runs here".into()),
                _ => {
                    let list: Vec<_> =
                        jobs.values().map(|job| format!("{} ({})", job.name, job.id)).collect();
                    refuse(
                        exit::USAGE,
                        format!("several jobs run here, name one: {}", list.join(", ")),
                    )
                }
            };
        }
        let mut found: Vec<Handle> = Vec::new();
        for name in names {
            let id = name.parse().ok().map(JobId);
            let job = jobs.values().find(|job| job.name == *name || Some(job.id) == id);
            let Some(job) = job else {
                let list: Vec<_> = jobs.values().map(|job| job.name.as_str()).collect();
                let have = if list.is_empty() {
                    "none runs".into()
                } else {
                    format!("there are {}", list.join(", "))
                };
                return refuse(exit::NO_INPUT, format!("no job {name} runs here; {have}"));
            };
            if found.iter().all(|other| other.id != job.id) {
                found.push(job.clone());
            }
        }
        Ok(found)
    }

    /// A name for a job that has none, and a directory for its checkpoints that nobody else has.
    fn invent_name(&self, argv: &[String], ckpt_dir: &Path) -> Result<String, Refusal> {
        let program = argv.first().map(String::as_str).unwrap_or_default();
        let base =
            Path::new(program).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let clean: String = base
            .chars()
            .map(|c| if c.is_control() || c.is_whitespace() { '_' } else { c })
            .take(64)
            .collect();
        let clean = clean.trim_start_matches(['.', '-']);
        let clean = if clean.is_empty() { "job" } else { clean };
        let cannot = |error: io::Error| Refusal {
            code: exit::CANT_CREATE,
            chain: vec![
                format!(
                    "cannot use {} for checkpoints; choose another with --ckpt-dir",
                    ckpt_dir.display()
                ),
                error.to_string(),
            ],
        };
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
        builder.create(ckpt_dir).map_err(cannot)?;
        builder.recursive(false);
        for number in 1..=1_000_000 {
            let name = format!("{clean}-{number}");
            if lock(&self.jobs).values().any(|job| job.name == name) {
                continue;
            }
            match builder.create(ckpt_dir.join(&name)) {
                Ok(()) => return Ok(name),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(cannot(error)),
            }
        }
        Err(cannot(io::ErrorKind::AlreadyExists.into()))
    }

    /// What a tool is told of a job.
    pub(crate) fn opened(
        &self,
        job: JobId,
        name: &str,
        table: &Path,
    ) -> Result<JobOpened, Refusal> {
        let preload = place::find(place::PRELOAD).map_err(|error| Refusal {
            code: exit::UNAVAILABLE,
            chain: ulpm_control::chain(&error),
        })?;
        Ok(JobOpened { job, name: name.into(), table: table.into(), preload })
    }

    /// Makes a job table in which nobody is.
    pub(crate) fn make_table(&self, path: &Path, meta: &JobMeta) -> io::Result<Mapped> {
        use std::os::unix::ffi::OsStrExt;
        let preload = place::find(place::PRELOAD).map_err(io::Error::other)?;
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(
            options.read(true).write(true).create_new(true),
            0o600,
        );
        let paths = [self.socket.as_path(), &preload, path].map(|path| path.as_os_str().as_bytes());
        options
            .open(path)
            .and_then(|file| Mapped::create(file, meta.id.0, meta.policy.ckpt_signal, paths))
            .inspect(|table| keep_alive(table, &meta.policy.recovery))
            .inspect_err(|_| {
                let _ = std::fs::remove_file(path);
            })
    }

    /// Makes a job with a fresh table.
    fn create(
        self: &Arc<Self>,
        id: JobId,
        meta: JobMeta,
        stdio: [Stream; 3],
        restarted: bool,
        pending: bool,
    ) -> Result<(Handle, JobOpened), Refusal> {
        use std::os::unix::ffi::OsStrExt;
        let refuse = |text: String, error: io::Error| Refusal {
            code: exit::OS,
            chain: vec![text, error.to_string()],
        };
        let path = self.state.table(id, meta.table);
        let opened = self.opened(id, &meta.name, &path)?;
        let preload = opened.preload.as_os_str().as_bytes();
        if preload.iter().any(|byte| byte.is_ascii_whitespace() || *byte == b':') {
            return Err(Refusal {
                code: exit::CONFIG,
                chain: vec![format!(
                    "{} cannot be preloaded: its path holds a blank or a colon; install ULPM elsewhere",
                    opened.preload.display()
                )],
            });
        }
        let table = self
            .make_table(&path, &meta)
            .and_then(|table| {
                table.table().add_streams(stdio.map(stream_id)).map_err(io::Error::other)?;
                Ok(table)
            })
            .map_err(|error| {
                let _ = std::fs::remove_file(&path);
                refuse(format!("cannot make the job table {}", path.display()), error)
            })?;
        if restarted {
            table.table().header().restarted.store(1, std::sync::atomic::Ordering::Release);
        }
        if pending {
            table.table().set_handover(Handover::Pending);
        }
        if let Err(error) = state::save(&self.state.meta(id), &meta) {
            let _ = std::fs::remove_file(&path);
            return Err(refuse("cannot record the job".into(), error));
        }
        tracing::info!("job {} ({id}) is opened: {}", meta.name, meta.argv.join(" "));
        Ok((Job::start(self, meta, table, true), opened))
    }

    fn open(self: &Arc<Self>, ask: &OpenJob) -> Result<(Handle, JobOpened), Refusal> {
        if let Some(name) = &ask.join {
            let job = self.resolve(std::slice::from_ref(name))?.remove(0);
            let table = job.table();
            add_launcher(&table, ask)?;
            let opened = self.opened(job.id, &job.name, &table)?;
            return Ok((job, opened));
        }
        let name = match ask.name.clone() {
            Some(name) => {
                check_name(&name)
                    .map_err(|text| Refusal { code: exit::USAGE, chain: vec![text] })?;
                if lock(&self.jobs).values().any(|job| job.name == name) {
                    let text =
                        format!("a job {name} runs already: choose another name, or --join it");
                    return Err(Refusal { code: exit::USAGE, chain: vec![text] });
                }
                name
            }
            None => self.invent_name(&ask.argv, &ask.policy.ckpt_dir)?,
        };
        let id = self.new_id()?;
        let meta = JobMeta {
            id,
            name,
            argv: ask.argv.clone(),
            cwd: ask.cwd.clone(),
            policy: ask.policy.clone(),
            ..JobMeta::default()
        };
        let (handle, opened) = self.create(id, meta, ask.stdio, false, false)?;
        add_launcher(&opened.table, ask)?;
        Ok((handle, opened))
    }

    fn new_id(&self) -> Result<JobId, Refusal> {
        self.state.next_id().map_err(|error| Refusal {
            code: exit::OS,
            chain: vec!["cannot record a new job".into(), error.to_string()],
        })
    }

    /// A name for a restarted job: its own, unless a living job has that.
    fn free_name(&self, wanted: &str) -> String {
        let jobs = lock(&self.jobs);
        let taken = |name: &str| jobs.values().any(|job| job.name == name);
        if !taken(wanted) {
            return wanted.into();
        }
        // a-1, a-1.2, a-1.3: the copies of one checkpoint.
        let mut number = 2;
        loop {
            let name = format!("{wanted}.{number}");
            if !taken(&name) {
                return name;
            }
            number += 1;
        }
    }

    fn status(&self, jobs: Vec<ulpm_control::message::Job>) -> Status {
        let moved = lock(&self.moved);
        let open = moved.values().filter(|moved| moved.record.finished.is_none());
        Status {
            host: self.host.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            socket: self.socket.clone(),
            listen: lock(&self.listen).clone(),
            jobs,
            moved: open
                .map(|moved| MovedJob {
                    id: moved.record.id,
                    name: moved.record.name.clone(),
                    host: moved.record.target.clone(),
                })
                .collect(),
        }
    }

    /// The job whose log is meant, living or not.
    fn output_of(&self, name: Option<&str>) -> Result<JobId, Refusal> {
        let Some(name) = name else {
            return Ok(self.resolve(&[])?.remove(0).id);
        };
        if let Ok(found) = self.resolve(&[name.to_owned()]) {
            return Ok(found[0].id);
        }
        let id = name.parse().ok().map(JobId);
        let arrived = lock(&self.arrived);
        let records = arrived.values().map(|arrived| &arrived.record);
        let named =
            records.filter(|record| record.name == name || Some(record.job) == id).map(|r| r.job);
        named.max().ok_or_else(|| Refusal {
            code: exit::NO_INPUT,
            chain: vec![format!("no job {name} has come here by migration")],
        })
    }
}

/// Serves until somebody asks for the end.
///
/// # Errors
///
/// When the sockets cannot be made.
pub async fn serve(
    shared: &Arc<Shared>,
    unix: UnixListener,
    tcp: Option<TcpListener>,
) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    if let Some(tcp) = &tcp {
        let address = tcp.local_addr()?;
        tracing::info!("listening on {address}");
        *lock(&shared.listen) = Some(address.to_string());
    }
    let accept_tcp = async || match &tcp {
        Some(tcp) => tcp.accept().await,
        None => std::future::pending().await,
    };
    let me = nix::unistd::geteuid().as_raw();
    loop {
        tokio::select! {
            accepted = unix.accept() => match accepted {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if peer.uid() == me || peer.uid() == 0 => {
                        tokio::spawn(serve_unix(Arc::clone(shared), stream));
                    }
                    Ok(peer) => tracing::warn!("user {} was turned away", peer.uid()),
                    Err(error) => tracing::warn!("who connects is not known: {error}"),
                },
                Err(error) => out_of_descriptors(&error).await,
            },
            accepted = accept_tcp() => match accepted {
                Ok((stream, from)) => {
                    tracing::debug!("{from} connects");
                    let _ = stream.set_nodelay(true);
                    network::keep_alive(&stream);
                    match shared.network.admit() {
                        Some(leave) => {
                            tokio::spawn(serve_tcp(Arc::clone(shared), stream, leave));
                        }
                        None => tracing::warn!("{from} is turned away: too many connect at once"),
                    }
                }
                Err(error) => out_of_descriptors(&error).await,
            },
            () = shared.quit.notified() => break,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("the coordinator ends; programs go on");
    Ok(())
}

async fn out_of_descriptors(error: &io::Error) {
    tracing::warn!("cannot accept a connection: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn serve_unix(shared: Arc<Shared>, mut stream: UnixStream) {
    let mut first = [0; 4];
    if stream.read_exact(&mut first).await.is_err() {
        return;
    }
    if first == codec::MAGIC {
        match wire::read_after(&mut stream, first).await {
            // From another host, by the user's ssh.
            Ok(Request::Offer(offer)) => {
                migrate::receive(&shared, Link::Unix(stream), *offer).await;
            }
            Ok(Request::Images { token }) => {
                migrate::receive_images_of(&shared, &token, Link::Unix(stream)).await;
            }
            Ok(request) => {
                let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
                let (mut reader, mut writer) = stream.into_split();
                serve_tool(&shared, &mut reader, &mut writer, request, peer).await;
            }
            Err(error) => refuse_frame(&mut stream, &error).await,
        }
    } else {
        serve_manager(&shared, Manager::new(stream), first).await;
    }
}

/// Serves somebody who is not known yet, and may be anybody.
async fn serve_tcp(shared: Arc<Shared>, stream: TcpStream, leave: OwnedSemaphorePermit) {
    let from = stream.peer_addr().map_or_else(|_| "somebody".into(), |from| from.to_string());
    let (mut link, caller) = match shared.network.accept(stream).await {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::warn!("{from} is turned away: {error}");
            return;
        }
    };
    let Ok(first) = tokio::time::timeout(FIRST_WORD, wire::read(&mut link)).await else {
        tracing::warn!("{from} is turned away: it says nothing");
        return;
    };
    drop(leave);
    let request = match first {
        Ok(request) => request,
        Err(error) => return refuse_frame(&mut link, &error).await,
    };
    if let Err(refusal) = may_ask(&shared, &caller, &request) {
        tracing::warn!("{from} is turned away: {}", refusal.chain.join(": "));
        let _ = if matches!(request, Request::Offer(_)) {
            let Refusal { code, chain } = refusal;
            let refuse = PeerMessage::Refuse { code, chain, image: None };
            wire::write(&mut link, &refuse).await
        } else {
            wire::write(&mut link, &Reply::Error(refusal)).await
        };
        return;
    }
    match request {
        Request::Offer(offer) => migrate::receive(&shared, link, *offer).await,
        Request::Images { token } => migrate::receive_images_of(&shared, &token, link).await,
        Request::Join { name, request } => {
            let reply = match membership::admit(&shared.network, &caller, &name, &request) {
                Ok(reply) => reply,
                Err(error) => Reply::Error(Refusal {
                    code: exit::NO_PERMISSION,
                    chain: ulpm_control::chain(&error),
                }),
            };
            let _ = wire::write(&mut link, &reply).await;
        }
        request => {
            let (mut reader, mut writer) = tokio::io::split(link);
            serve_tool(&shared, &mut reader, &mut writer, request, None).await;
        }
    }
}

/// Whether somebody may ask for that.
fn may_ask(shared: &Shared, caller: &Caller, request: &Request) -> Result<(), Refusal> {
    let no = |text: String| Refusal { code: exit::NO_PERMISSION, chain: vec![text] };
    match (caller, request) {
        (Caller::Known(Role::Invitation(_)), Request::Join { .. }) => Ok(()),
        (Caller::Known(Role::Invitation(_)), _) => {
            Err(no("an invitation is good for joining the cluster, and nothing else".into()))
        }
        (_, Request::Join { .. }) => Err(no("only who was invited can join".into())),
        (Caller::Known(Role::Member(name)), _) => match shared.network.cluster() {
            Ok(Some(cluster)) if cluster.allows(name) => Ok(()),
            _ => Err(no(format!(
                "{name} may not send anything to {}: {} there does not have that name",
                shared.host,
                shared.network.dir().unwrap_or(Path::new("")).join("allow").display()
            ))),
        },
        // Whoever has the token has been let in before.
        (Caller::Local { .. }, Request::Images { .. }) => Ok(()),
        (Caller::Local { ends }, _) => {
            let me = nix::unistd::geteuid().as_raw();
            match network::owner(*ends) {
                Some(user) if user == me || user == 0 => Ok(()),
                Some(user) => Err(no(format!("user {user} has no business here"))),
                None => Err(no("which user connects is not known".into())),
            }
        }
    }
}

async fn refuse_frame(writer: &mut (impl AsyncWrite + Unpin), error: &CodecError) {
    if !matches!(error, CodecError::Closed) {
        tracing::debug!("a connection is of no use: {error}");
        let refusal = Refusal { code: exit::PROTOCOL, chain: ulpm_control::chain(error) };
        let _ = wire::write(writer, &Reply::Error(refusal)).await;
    }
}

async fn serve_manager(shared: &Shared, manager: Manager, first: [u8; 4]) {
    let hello = match manager.hello(first).await {
        Ok(Some(hello)) => hello,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!("a manager is not understood: {error}");
            return;
        }
    };
    if hello.version != manager::VERSION {
        tracing::warn!(
            "the manager of process {} speaks version {} and this is version {}",
            hello.real,
            hello.version,
            manager::VERSION
        );
        return;
    }
    let Some(job) = shared.job(JobId(hello.job)) else {
        tracing::debug!("process {} belongs to job {}, which is not known", hello.real, hello.job);
        return;
    };
    let (pid, conn) = (hello.real, manager.id);
    if job.events.send(Event::Connected { hello, manager: manager.clone() }).is_err() {
        return;
    }
    loop {
        let event = match manager.next().await {
            Ok(Some(said)) => Event::Said { pid, conn, said },
            Ok(None) => break,
            Err(error) => {
                tracing::debug!("the connection of process {pid} broke: {error}");
                break;
            }
        };
        if job.events.send(event).is_err() {
            return;
        }
    }
    let _ = job.events.send(Event::Lost { pid, conn });
}

/// A tool's connection: what it has to do with jobs while it lasts.
struct Session {
    launched: Vec<Handle>,
    /// Process id of the tool, if it is of this host.
    peer: Option<i32>,
}

impl Drop for Session {
    fn drop(&mut self) {
        for job in &self.launched {
            let _ = job.events.send(Event::Command(Command::LauncherWent));
        }
    }
}

async fn serve_tool(
    shared: &Arc<Shared>,
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    first: Request,
    peer: Option<i32>,
) {
    let mut session = Session { launched: Vec::new(), peer };
    let mut request = first;
    loop {
        let answered = answer(shared, &mut session, reader, writer, request).await;
        if let Err(error) = answered {
            tracing::debug!("a tool's connection ended: {error}");
            return;
        }
        request = match wire::read(reader).await {
            Ok(request) => request,
            Err(error) => {
                refuse_frame(writer, &error).await;
                return;
            }
        };
    }
}

async fn answer(
    shared: &Arc<Shared>,
    session: &mut Session,
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    request: Request,
) -> Result<(), CodecError> {
    let reply = match request {
        Request::OpenJob(ask) => match shared.open(&ask) {
            Ok((job, opened)) => {
                let parent = session.peer.filter(|_| ask.join.is_none());
                let _ = job.events.send(Event::Command(Command::LauncherCame(parent)));
                session.launched.push(job);
                Reply::JobOpened(opened)
            }
            Err(refusal) => Reply::Error(refusal),
        },
        Request::JobStarted { job, pid } => {
            if let Some(job) = shared.job(job) {
                let _ = job.events.send(Event::Command(Command::Started { pid }));
            }
            return Ok(());
        }
        Request::JobExited { job, status } => {
            if let Some(job) = shared.job(job) {
                let _ = job.ask(|answer| Command::Exited { status, answer }).await;
            }
            Reply::Done
        }
        Request::Outcome { job, status } => return outcome(shared, job, status, writer).await,
        Request::Restart(ask) => return restart(shared, ask, session, reader, writer).await,
        Request::RestartFailed { .. } => Reply::Done,
        Request::Status => {
            let handles: Vec<_> = lock(&shared.jobs).values().cloned().collect();
            let mut jobs = Vec::new();
            for handle in handles {
                jobs.extend(handle.ask(Command::Describe).await);
            }
            Reply::Status(shared.status(jobs))
        }
        Request::Kill { jobs } => on_each(shared, &jobs, Command::Kill).await,
        Request::Interval { secs, jobs } => {
            let interval = Some(secs).filter(|&secs| secs > 0);
            on_each(shared, &jobs, |answer| Command::SetInterval(interval, answer)).await
        }
        Request::OnFailure { on_failure, max_restarts, jobs } => {
            on_each(shared, &jobs, |answer| Command::SetOnFailure {
                on_failure,
                max_restarts,
                answer,
            })
            .await
        }
        Request::Checkpoint { jobs, keep, freeze_until_durable, kill, outside } => {
            let then = match (kill, freeze_until_durable) {
                (true, _) => Then::End { outside },
                (false, true) => Then::GoOnWhenDurable,
                (false, false) => Then::GoOn,
            };
            let command = |progress, answer| Command::Checkpoint { keep, then, progress, answer };
            match on_all::<Checkpointed>(shared, &jobs, writer, command).await? {
                Ok(done) => Reply::Checkpointed(done),
                Err(refusal) => Reply::Error(refusal),
            }
        }
        Request::Migrate { target, jobs, keep_images, force, files, outside, ssh, stdio } => {
            let manner = Manner { ssh, keep_images, force, files, outside, stdio };
            let command = |progress, answer| Command::Migrate {
                target: target.clone(),
                manner: manner.clone(),
                progress,
                answer,
            };
            match on_all::<Migrated>(shared, &jobs, writer, command).await? {
                Ok(done) => Reply::Migrated(done),
                Err(refusal) => Reply::Error(refusal),
            }
        }
        Request::Check { target, jobs, force, files, outside, ssh } => {
            let manner = Manner { ssh, keep_images: false, force, files, outside, stdio: None };
            let command = |progress, answer| Command::Check {
                target: target.clone(),
                manner: manner.clone(),
                progress,
                answer,
            };
            match on_all::<Checked>(shared, &jobs, writer, command).await? {
                Ok(done) => Reply::Checked(done),
                Err(refusal) => Reply::Error(refusal),
            }
        }
        Request::CheckOffer(offer) => {
            let guests = shared.guests().await;
            Reply::Found(migrate::findings(shared, &guests, &offer))
        }
        Request::Output { job, offset, follow } => match shared.output_of(job.as_deref()) {
            Ok(id) => output(shared, id, offset, follow, writer).await?,
            Err(refusal) => Reply::Error(refusal),
        },
        Request::Quit => {
            let handles: Vec<_> = lock(&shared.jobs).values().cloned().collect();
            let mut busy = Vec::new();
            for handle in handles {
                let job = handle.ask(Command::Describe).await;
                busy.extend(
                    job.filter(|job| !matches!(job.state.as_str(), "running" | "starting")),
                );
            }
            match busy.first() {
                Some(job) => Reply::Error(Refusal {
                    code: exit::TEMPORARY,
                    chain: vec![format!(
                        "job {} is {}: try again when that is done",
                        job.name, job.state
                    )],
                }),
                None => {
                    wire::write(writer, &Reply::Done).await?;
                    shared.quit.notify_one();
                    return Ok(());
                }
            }
        }
        Request::Follow { token } => match shared.decided(&token) {
            Some(waiting) => finished(waiting, reader).await?,
            None => Reply::Error(Refusal {
                code: exit::NO_INPUT,
                chain: vec!["no job has come here by that hand-over".into()],
            }),
        },
        Request::Ask { token } => Reply::Decision(shared.decision(&token)),
        Request::Streams { job } => match streams::of_moved(shared, job).await {
            Ok(link) => return streams::pass_on(link, reader, writer).await,
            Err(refusal) => Reply::Error(refusal),
        },
        Request::Session { token } => match streams::of_arrived(shared, &token).await {
            Ok(link) => return streams::pass_on(link, reader, writer).await,
            Err(refusal) => Reply::Error(refusal),
        },
        Request::Attach { job, at, ssh } => match streams::of_job(shared, job, at, &ssh).await {
            Ok(link) => return streams::pass_on(link, reader, writer).await,
            Err(refusal) => Reply::Error(refusal),
        },
        Request::Offer(_) | Request::Images { .. } | Request::Join { .. } => {
            Reply::Error(Refusal {
                code: exit::PROTOCOL,
                chain: vec!["jobs come over connections of their own".into()],
            })
        }
    };
    wire::write(writer, &reply).await
}

/// Waits until a job has ended elsewhere, or the other side goes.
async fn finished(
    mut waiting: watch::Receiver<Option<Finished>>,
    reader: &mut (impl AsyncRead + Unpin),
) -> Result<Reply, CodecError> {
    let mut byte = [0];
    tokio::select! {
        done = waiting.wait_for(Option::is_some) => {
            let done = done.map(|done| done.clone()).ok().flatten().unwrap_or_default();
            Ok(Reply::Finished { status: done.status, text: done.text })
        }
        // Nothing is to be said while one waits.
        _ = reader.read(&mut byte) => Err(CodecError::Closed),
    }
}

async fn outcome(
    shared: &Arc<Shared>,
    id: JobId,
    status: Option<i32>,
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<(), CodecError> {
    if let Some(Verdict::Restart { path, token }) = verdict(shared, id, status, writer).await? {
        return wire::write(writer, &Reply::Recover { path, token }).await;
    }
    let moved = lock(&shared.moved)
        .get(&id)
        .map(|moved| (moved.record.clone(), moved.finished.subscribe()));
    let Some((record, mut waiting)) = moved else {
        return wire::write(writer, &Reply::Ended).await;
    };
    let MovedRecord { target: host, stdio, .. } = record;
    wire::write(writer, &Reply::Moved { host, stdio }).await?;
    let done = waiting.wait_for(Option::is_some).await.map(|done| done.clone()).ok().flatten();
    let done = done.unwrap_or_default();
    wire::write(writer, &Reply::Finished { status: done.status, text: done.text }).await
}

/// What a job that is here has to say to whoever waits for its root, and has seen it end.
async fn verdict(
    shared: &Shared,
    id: JobId,
    status: Option<i32>,
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<Option<Verdict>, CodecError> {
    let Some(job) = shared.job(id) else { return Ok(None) };
    let (notes, mut said) = mpsc::unbounded_channel();
    let (answer, answered) = oneshot::channel();
    let command = Command::Outcome { status, asker: Asker { notes, answer }, again: false };
    let _ = job.events.send(Event::Command(command));
    while let Some(text) = said.recv().await {
        wire::write(writer, &Reply::Note(text)).await?;
    }
    Ok(answered.await.ok())
}

async fn on_each(
    shared: &Shared,
    names: &[String],
    command: impl Fn(oneshot::Sender<Result<(), JobError>>) -> Command,
) -> Reply {
    let jobs = match shared.resolve(names) {
        Ok(jobs) => jobs,
        Err(refusal) => return Reply::Error(refusal),
    };
    for job in jobs {
        if let Some(Err(error)) = job.ask(&command).await {
            return Reply::Error(error.refusal());
        }
    }
    Reply::Done
}

/// Does something with several jobs at once, and reports on the way. The first error counts.
async fn on_all<T>(
    shared: &Shared,
    names: &[String],
    writer: &mut (impl AsyncWrite + Unpin),
    command: impl Fn(mpsc::UnboundedSender<Progress>, oneshot::Sender<Result<T, JobError>>) -> Command,
) -> Result<Result<Vec<T>, Refusal>, CodecError> {
    let jobs = match shared.resolve(names) {
        Ok(jobs) => jobs,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let (progress, mut reports) = mpsc::unbounded_channel();
    let mut answers = Vec::new();
    for job in &jobs {
        let (sender, answer) = oneshot::channel();
        let _ = job.events.send(Event::Command(command(progress.clone(), sender)));
        answers.push((job.name.clone(), answer));
    }
    drop(progress);
    // Ends when every job has dropped its sender.
    let mut broken = None;
    while let Some(report) = reports.recv().await {
        if broken.is_none() {
            broken = wire::write(writer, &Reply::Progress(report)).await.err();
        }
    }
    if let Some(error) = broken {
        return Err(error);
    }
    let mut done = Vec::new();
    let mut first_error = None;
    for (name, answer) in answers {
        match answer.await.unwrap_or(Err(JobError::Empty(name))) {
            Ok(result) => done.push(result),
            Err(error) => first_error = first_error.or(Some(error.refusal())),
        }
    }
    Ok(first_error.map_or(Ok(done), Err))
}

async fn output(
    shared: &Shared,
    id: JobId,
    offset: u64,
    follow: bool,
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<Reply, CodecError> {
    use std::os::unix::fs::MetadataExt as _;
    use tokio::io::AsyncSeekExt;
    let path = shared.state.output(id);
    let mut file = match tokio::fs::File::open(&path).await {
        Ok(file) => file,
        Err(error) => {
            return Ok(Reply::Error(Refusal {
                code: exit::NO_INPUT,
                chain: vec![
                    format!("job {id} has no log: its output goes to where it was started"),
                    error.to_string(),
                ],
            }));
        }
    };
    let mut buffer = vec![0; 64 * 1024];
    let mut skip = offset;
    // The keeper begins another log when one has become too long.
    if let Ok(mut older) = tokio::fs::File::open(shared.state.older_output(id)).await {
        let len = older.metadata().await?.len();
        older.seek(io::SeekFrom::Start(skip.min(len))).await?;
        skip = skip.saturating_sub(len);
        send_rest(&mut older, &mut buffer, writer).await?;
    }
    file.seek(io::SeekFrom::Start(skip)).await?;
    loop {
        let living = shared.job(id).is_some();
        send_rest(&mut file, &mut buffer, writer).await?;
        let is_same = |now: &std::fs::Metadata, then: &std::fs::Metadata| now.ino() == then.ino();
        if let Ok(now) = tokio::fs::metadata(&path).await
            && !is_same(&now, &file.metadata().await?)
        {
            // What came to the last one since it was read is still in it.
            send_rest(&mut file, &mut buffer, writer).await?;
            file = tokio::fs::File::open(&path).await?;
            continue;
        }
        if !follow || !living {
            return Ok(Reply::Done);
        }
        tokio::time::sleep(FOLLOW).await;
    }
}

/// Sends what is left of a log.
async fn send_rest(
    file: &mut tokio::fs::File,
    buffer: &mut [u8],
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<(), CodecError> {
    loop {
        let len = file.read(buffer).await?;
        if len == 0 {
            return Ok(());
        }
        wire::write(writer, &Reply::Output(buffer[..len].to_vec())).await?;
    }
}

async fn restart(
    shared: &Arc<Shared>,
    ask: Restart,
    session: &mut Session,
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<(), CodecError> {
    let refuse = |code, text: String| Reply::Error(Refusal { code, chain: vec![text] });
    if let Err(text) = check_name(&ask.name) {
        return wire::write(writer, &refuse(exit::DATA, text)).await;
    }
    let hold = match &ask.hold_token {
        Some(token) => match shared.take_hold(token) {
            Some(hold) => Some((token.clone(), hold)),
            None => {
                let text = "the migration that this restart is part of was given up".into();
                return wire::write(writer, &refuse(exit::TEMPORARY, text)).await;
            }
        },
        None => None,
    };
    if let Some(recovers) = &ask.recovers {
        let adopted = match shared.job(recovers.job) {
            Some(job) => {
                let (token, stdio, parent) = (recovers.token.clone(), ask.stdio, session.peer);
                let adopt = |answer| Command::Adopt { token, stdio, parent, answer };
                job.ask(adopt).await.map(|adopted| (job, adopted))
            }
            None => None,
        };
        return match adopted {
            Some((job, Ok((opened, ready)))) => {
                tracing::info!("job {} is tried from generation {}", opened.name, ask.generation);
                rebuild(job, opened, ask.members, Some(ready), session, reader, writer).await
            }
            Some((_, Err(error))) => wire::write(writer, &Reply::Error(error.refusal())).await,
            None => {
                let text = "the job is not there any more".into();
                wire::write(writer, &refuse(exit::TEMPORARY, text)).await
            }
        };
    }
    let id = match &hold {
        Some((_, hold)) => Ok(hold.id),
        None => shared.new_id(),
    };
    let created = id.and_then(|id| {
        let policy = Policy { keep: ask.policy.keep, ..ask.policy.clone() };
        let meta = JobMeta {
            id,
            name: shared.free_name(&ask.name),
            argv: ask.argv.clone(),
            cwd: ask.cwd.clone(),
            policy,
            root: Some(ask.root),
            origin: hold.as_ref().map(|(token, _)| token.clone()),
            home: hold.as_ref().and_then(|(_, hold)| hold.home.clone()),
            ..JobMeta::default()
        };
        shared.create(id, meta, ask.stdio, true, hold.is_some())
    });
    let (job, opened) = match created {
        Ok(created) => created,
        Err(refusal) => return wire::write(writer, &Reply::Error(refusal)).await,
    };
    tracing::info!("job {} is generation {} of {}", opened.name, ask.generation, ask.name);
    let ready = hold.map(|(_, Hold { ready, .. })| ready);
    rebuild(job, opened, ask.members, ready, session, reader, writer).await
}

/// Accompanies `ulpm_restart` from the moment at which it knows its job until that goes on.
async fn rebuild(
    job: Handle,
    opened: JobOpened,
    members: Vec<i32>,
    ready: Option<oneshot::Sender<()>>,
    session: &mut Session,
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<(), CodecError> {
    let refuse = |code, text: String| Reply::Error(Refusal { code, chain: vec![text] });
    let (sender, restored) = oneshot::channel();
    let command = Command::Restored { members, ready, answer: sender };
    let _ = job.events.send(Event::Command(command));
    if let Err(error) = wire::write(writer, &Reply::JobOpened(opened)).await {
        let _ = job.ask(Command::Abandon).await;
        return Err(error);
    }
    tokio::select! {
        biased;
        done = restored => match done {
            Ok(Ok(())) => {
                let _ = job.events.send(Event::Command(Command::LauncherCame(session.peer)));
                session.launched.push(job);
                wire::write(writer, &Reply::Running).await
            }
            Ok(Err(error)) => wire::write(writer, &Reply::Error(error.refusal())).await,
            Err(_) => wire::write(writer, &refuse(exit::FAILED, "the restart was given up".into())).await,
        },
        request = wire::read::<Request>(reader) => {
            let _ = job.ask(Command::Abandon).await;
            match request {
                Ok(Request::RestartFailed { text }) => {
                    tracing::warn!("a restart failed: {text}");
                    wire::write(writer, &Reply::Done).await
                }
                Ok(_) => {
                    let text = "a restart is not complete, and nothing else can be asked".into();
                    wire::write(writer, &refuse(exit::PROTOCOL, text)).await
                }
                Err(error) => Err(error),
            }
        }
    }
}
