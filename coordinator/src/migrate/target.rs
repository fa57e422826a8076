//! The target: a job arrives.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use ulpm_control::codec::CodecError;
use ulpm_control::manifest::Manifest;
use ulpm_control::message::{
    Files, Finding, Home, JobId, Offer, Outside, PeerMessage, Request, Stdio, word,
};
use ulpm_control::{exit, place};
use ulpm_protocol::handover::{Log, Message, Target, TargetAction, TargetEvent, Word};

use super::{ANSWER_TIMEOUT, Peer, check, unexpected, within};
use crate::fault::{self, hurried};
use crate::generation::{self, Partial};
use crate::job::{Command, PROGRESS, RESTART_TIMEOUT, STUCK};
use crate::network::{Link, Network};
use crate::server::Shared;
use crate::state::{ArrivedRecord, Finished, Stage};
use crate::wire;

/// How long the source may take to decide. After that there is only the image, from which the job is rebuilt
/// if the decision comes after all.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(120);
/// The same once the connection is gone: the source will most probably go on.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long nothing may come from the source before it has sent all.
const QUIET: Duration = Duration::from_secs(300);
/// How long a target waits that has asked for the decision before it asks again, at first and at most.
const FIRST_QUESTION: Duration = Duration::from_millis(200);
const LATER_QUESTIONS: Duration = Duration::from_secs(30);
/// The most that a chunk may hold.
const MAX_CHUNK: usize = 16 * 1024 * 1024;

/// Virtual id, how many bytes came, and the file that has them.
type Received = (i32, io::Result<(u64, File)>);

/// Writes images that come over a connection, until that ends; tells of each that is complete.
///
/// # Errors
///
/// Also when the connection ends amid an image; with the process that it is of.
fn take_images(
    link: Link,
    dir: &Path,
    bytes: &AtomicU64,
    most: u64,
    images: &mpsc::UnboundedSender<Received>,
) -> Result<(), (i32, io::Error)> {
    let mut open: BTreeMap<i32, (File, u64)> = BTreeMap::new();
    let taken = take_chunks(link, dir, bytes, most, images, &mut open);
    // Where it is not known whose the next bytes are, one is named that lacks some.
    let whose = |virt| if virt == 0 { open.keys().next().copied().unwrap_or(0) } else { virt };
    taken.map_err(|(virt, error)| (whose(virt), error))
}

fn take_chunks(
    link: Link,
    dir: &Path,
    bytes: &AtomicU64,
    most: u64,
    images: &mpsc::UnboundedSender<Received>,
    open: &mut BTreeMap<i32, (File, u64)>,
) -> Result<(), (i32, io::Error)> {
    let unknown = |error| (0, error);
    let mut stream = link.into_blocking().map_err(unknown)?;
    stream.set_read_timeout(Some(hurried(STUCK))).map_err(unknown)?;
    let mut buffer = Vec::new();
    loop {
        let mut head = [0; 8];
        let first = stream.read(&mut head[..1]).map_err(unknown)?;
        if first == 0 {
            let ended = || (0, io::ErrorKind::UnexpectedEof.into());
            return if open.is_empty() { Ok(()) } else { Err(ended()) };
        }
        stream.read_exact(&mut head[1..]).map_err(unknown)?;
        let [v0, v1, v2, v3, l0, l1, l2, l3] = head;
        let virt = i32::from_le_bytes([v0, v1, v2, v3]);
        let failed = |error| (virt, error);
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if len > MAX_CHUNK {
            let text = format!("a chunk of {len} bytes");
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        if len == 0 {
            let image = open.remove(&virt).ok_or(io::ErrorKind::UnexpectedEof.into());
            let (file, total) = image.map_err(failed)?;
            let _ = images.send((virt, Ok((total, file))));
            stream.write_all(&[1]).and_then(|()| stream.flush()).map_err(unknown)?;
            continue;
        }
        if bytes.fetch_add(len as u64, Ordering::Relaxed) + len as u64 > most {
            let text = "its owner does not give jobs of others that much memory and disk space";
            return Err(failed(io::Error::new(io::ErrorKind::QuotaExceeded, text)));
        }
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        stream.read_exact(&mut buffer[..len]).map_err(failed)?;
        let (file, total) = match open.entry(virt) {
            Entry::Occupied(image) => image.into_mut(),
            Entry::Vacant(new) => {
                let mut options = std::fs::OpenOptions::new();
                std::os::unix::fs::OpenOptionsExt::mode(
                    options.write(true).create_new(true),
                    0o600,
                );
                let file = options.open(dir.join(Manifest::image_name(virt))).map_err(failed)?;
                new.insert((file, 0))
            }
        };
        file.write_all(&buffer[..len]).map_err(failed)?;
        if *total == 0 {
            fault::at("target.Stream");
        }
        *total += len as u64;
    }
}

/// A job that is on its way here.
#[derive(Debug)]
pub(crate) struct Incoming {
    dir: PathBuf,
    images: mpsc::UnboundedSender<Received>,
    /// Bytes of all images.
    bytes: Arc<AtomicU64>,
    /// About how many there will be.
    offered: u64,
    /// The most that there may be.
    most: u64,
}

impl Incoming {
    /// Bytes that it needs, in memory and on disk.
    pub(crate) fn need(&self) -> u64 {
        self.offered.max(self.bytes.load(Ordering::Relaxed))
    }
}

/// What `ulpm_restart --hold` is given.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) id: JobId,
    pub(crate) home: Option<Home>,
    pub(crate) ready: oneshot::Sender<()>,
}

/// Takes images of a job that is on its way here.
pub(crate) async fn receive_images_of(shared: &Shared, token: &str, link: Link) {
    let (dir, images, bytes, most) = {
        let incoming = shared.incoming();
        let Some(incoming) = incoming.get(token) else {
            tracing::warn!("images come that nobody waits for");
            return;
        };
        let bytes = Arc::clone(&incoming.bytes);
        (incoming.dir.clone(), incoming.images.clone(), bytes, incoming.most)
    };
    let _ = tokio::task::spawn_blocking(move || {
        if let Err((virt, error)) = take_images(link, &dir, &bytes, most, &images) {
            let _ = images.send((virt, Err(error)));
        }
    })
    .await;
}

/// Why this host does not take a job.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{text}")]
    Check { code: u8, text: String },
    #[error("the checkpoint directory cannot be used")]
    Generation(#[from] crate::generation::GenerationError),
    #[error("the image of process {virt} did not arrive")]
    Image { virt: i32, source: io::Error },
    #[error("the image of process {virt} has {found} bytes instead of {expected}")]
    Length { virt: i32, found: u64, expected: u64 },
    #[error("the images cannot be made durable")]
    Durable(#[source] io::Error),
    #[error("the manifest is wrong: {0}")]
    Manifest(String),
    #[error("ulpm_restart cannot be started there")]
    Spawn(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the job cannot be restarted there: {0}")]
    Restart(String),
    #[error("cannot record the job")]
    Record(#[source] io::Error),
    #[error("the source has gone")]
    Source(#[from] CodecError),
    #[error("the source has given up, and the job goes on there")]
    Aborted,
    #[error("the source has not decided in time; the image stays here, see the log")]
    Undecided,
}

impl Refused {
    /// Exit code for the tool.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Check { code, .. } => *code,
            Self::Image { source, .. } if source.kind() == io::ErrorKind::QuotaExceeded => {
                exit::LIMIT
            }
            _ => exit::FAILED,
        }
    }
}

/// What this host says of an offer.
pub(crate) fn findings(shared: &Shared, guests: &[(String, u64)], offer: &Offer) -> Vec<Finding> {
    let mut findings = check::at_target(offer);
    findings.push(shared.limits.finding(&shared.usage(guests), offer.bytes));
    findings
}

fn fits(shared: &Shared, guests: &[(String, u64)], offer: &Offer) -> Result<Vec<Finding>, Refused> {
    let findings = findings(shared, guests, offer);
    match Finding::refusal(&findings) {
        Some((code, text)) => Err(Refused::Check { code, text }),
        None => Ok(findings),
    }
}

/// A hand-over that is going on, with what its actions need and find.
struct Arriving {
    shared: Arc<Shared>,
    token: String,
    name: String,
    force: bool,
    files_how: Files,
    outside: Outside,
    keep_images: bool,
    stdio: Stdio,
    /// Where it was launched, if that is not here.
    home: Option<Home>,
    ckpt_dir: PathBuf,
    peer: Option<Peer>,
    /// What comes, until it is complete.
    coming: Option<Coming>,
    manifest: Option<Manifest>,
    /// Image files that are not durable yet.
    files: Vec<File>,
    image: PathBuf,
    id: JobId,
    /// There is only the image.
    is_kept: bool,
    /// The source has said that it has decided.
    is_decided: bool,
    /// Where the source can be asked.
    source: Option<String>,
    /// Becomes true when the source says over another connection that it has decided.
    decided: Option<watch::Receiver<bool>>,
    /// What the check has found.
    findings: Vec<Finding>,
    /// The first thing that went wrong.
    why: Option<Refused>,
}

/// Images on their way.
struct Coming {
    partial: Partial,
    images: mpsc::UnboundedReceiver<Received>,
    bytes: Arc<AtomicU64>,
}

/// Takes over a job: the other end of `Job::migrate`.
pub(crate) async fn receive(shared: &Arc<Shared>, link: Link, offer: Offer) {
    let source = link.from().zip(offer.port).map(|(from, port)| SocketAddr::new(from, port));
    let mut peer = Peer::new(link);
    peer.beat();
    shared.network.learn(offer.revoked.as_deref());
    let token = match random_token() {
        Ok(token) => token,
        Err(error) => {
            tracing::error!("cannot read random bytes: {error}");
            return;
        }
    };
    tracing::info!("job {} is offered by {}", offer.name, offer.host);
    // From here to the entry of this job among those that come nobody else is served.
    let guests = shared.guests().await;
    let begun = fits(shared, &guests, &offer).and_then(|findings| Ok((begin(&offer)?, findings)));
    let ((partial, ckpt_dir), findings) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let (code, chain) = (error.exit_code(), ulpm_control::chain(&error));
            tracing::warn!(
                "job {} of {} is not taken: {}",
                offer.name,
                offer.host,
                chain.join(": ")
            );
            let _ = peer.send(&PeerMessage::Refuse { code, chain, image: None }).await;
            return;
        }
    };
    let (sender, images) = mpsc::unbounded_channel();
    let bytes = Arc::new(AtomicU64::new(0));
    let incoming = Incoming {
        dir: partial.dir().to_owned(),
        images: sender,
        bytes: Arc::clone(&bytes),
        offered: offer.bytes,
        most: shared.limits.most(&shared.usage(&guests)),
    };
    shared.incoming().insert(token.clone(), incoming);
    let source = source.map(|source| source.to_string());
    let home = match offer.home {
        // It is here again.
        Some(home) if shared.has_sent(&home.token) => None,
        Some(home) => Some(home),
        None => {
            Some(Home { host: offer.host.clone(), address: source.clone(), token: token.clone() })
        }
    };
    let arriving = Arriving {
        shared: Arc::clone(shared),
        token,
        name: offer.name.clone(),
        force: offer.force,
        files_how: offer.files,
        outside: offer.outside,
        keep_images: offer.keep_images,
        stdio: offer.policy.stdio,
        home,
        ckpt_dir,
        peer: Some(peer),
        coming: Some(Coming { partial, images, bytes }),
        manifest: None,
        files: Vec::new(),
        image: PathBuf::new(),
        id: JobId(0),
        is_kept: false,
        is_decided: false,
        source,
        decided: None,
        findings,
        why: None,
    };
    let (machine, actions) = Target::accept();
    arriving.run(machine, actions).await;
}

/// Goes on with a hand-over of which only the image was kept, when its source has decided.
pub(crate) async fn start_kept(shared: Arc<Shared>, record: ArrivedRecord) {
    take_up_kept(shared, &record, Message::Commit).await;
}

/// Goes on with the hand-over that the last coordinator was at.
pub(crate) async fn recover(shared: Arc<Shared>, record: ArrivedRecord, word: Word) {
    let log = match record.stage {
        Stage::Prepared => Log::Prepared,
        Stage::Taken => Log::Taken,
    };
    let (machine, actions) = Target::recover(log, word);
    Arriving::kept(shared, &record).run(machine, actions).await;
}

fn begin_to_ask(shared: Arc<Shared>, token: String, source: String) {
    tokio::spawn(ask(shared, token, source));
}

/// Asks the coordinator that has offered a job of which there is only the image what has become of it, until it says so or
/// nobody wants to know any more.
async fn ask(shared: Arc<Shared>, token: String, source: String) {
    let mut pause = FIRST_QUESTION;
    while let Some(record) = shared.kept(&token) {
        match ask_for_decision(&shared.network, &source, &token).await {
            Ok(Some(true)) => {
                shared.decided(&token);
                return;
            }
            Ok(Some(false)) => return discard_kept(shared, &record).await,
            Ok(None) => tracing::debug!("job {}: {source} has not decided", record.name),
            Err(error) => tracing::debug!("job {}: {source} does not say: {error}", record.name),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LATER_QUESTIONS);
    }
}

async fn ask_for_decision(
    network: &Network,
    source: &str,
    token: &str,
) -> Result<Option<bool>, CodecError> {
    let (mut link, _) = network.connect_tcp(source).await?;
    wire::write(&mut link, &Request::Ask { token: token.into() }).await?;
    match within(hurried(ANSWER_TIMEOUT), wire::read(&mut link)).await? {
        ulpm_control::Reply::Decision(decision) => Ok(decision),
        other => Err(CodecError::Payload(format!("{other:?} was not expected"))),
    }
}

/// Removes an image that was kept of a job that goes on where it was.
async fn discard_kept(shared: Arc<Shared>, record: &ArrivedRecord) {
    tracing::info!("job {} goes on where it was; its image here is not needed", record.name);
    take_up_kept(shared, record, Message::Abort).await;
}

async fn take_up_kept(shared: Arc<Shared>, record: &ArrivedRecord, said: Message) {
    let mut machine = Target::Kept;
    let actions = machine.on(TargetEvent::Got(said));
    let mut arriving = Arriving::kept(shared, record);
    arriving.is_decided |= said == Message::Commit;
    arriving.run(machine, actions).await;
}

impl Arriving {
    fn kept(shared: Arc<Shared>, record: &ArrivedRecord) -> Self {
        let ckpt_dir = record.image.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
        Self {
            shared,
            token: record.token.clone(),
            name: record.name.clone(),
            // It was checked when it came.
            force: true,
            files_how: record.files,
            outside: record.outside,
            keep_images: record.keep_images,
            stdio: record.stdio,
            home: record.home.clone(),
            ckpt_dir: ckpt_dir.to_owned(),
            peer: None,
            coming: None,
            manifest: None,
            files: Vec::new(),
            image: record.image.clone(),
            id: record.job,
            is_kept: true,
            is_decided: record.stage == Stage::Taken,
            source: record.source.clone(),
            decided: None,
            findings: Vec::new(),
            why: None,
        }
    }

    async fn run(mut self, mut machine: Target, mut actions: &'static [TargetAction]) {
        loop {
            let mut event = None;
            for &action in actions {
                tracing::debug!("job {}: {machine:?}: {action:?}", self.name);
                fault::before("target", action);
                event = self.act(action).await;
                if event.is_some() {
                    break;
                }
            }
            let is_over = matches!(machine, Target::Gone | Target::Kept | Target::Running);
            let event = match event {
                Some(event) => event,
                None if is_over => break,
                None => self.listen(machine).await,
            };
            tracing::debug!("job {}: {machine:?}: {event:?}", self.name);
            self.is_decided |= event == TargetEvent::Got(Message::Commit);
            actions = machine.on(event);
        }
        self.shared.incoming().remove(&self.token);
        if let Some(why) = &self.why {
            let text = ulpm_control::chain(why).join(": ");
            tracing::warn!("job {} is not taken: {text}", self.name);
        }
        if machine == Target::Running {
            self.goes_on();
        }
    }

    fn because(&mut self, why: Refused, event: TargetEvent) -> TargetEvent {
        self.why.get_or_insert(why);
        event
    }

    /// What a message means that was not waited for, or its absence.
    fn interrupted(&mut self, message: Result<PeerMessage, CodecError>) -> TargetEvent {
        match message {
            Ok(PeerMessage::Abort) => {
                self.because(Refused::Aborted, TargetEvent::Got(Message::Abort))
            }
            Ok(other) => self.because(unexpected(&other).into(), TargetEvent::Lost),
            Err(error) => self.because(error.into(), TargetEvent::Lost),
        }
    }

    async fn listen(&mut self, machine: Target) -> TargetEvent {
        match machine {
            Target::Receiving => self.take_images().await,
            Target::Prepared => self.wait_for_decision().await,
            // All other states end with what is done in them.
            _ => TargetEvent::Late,
        }
    }

    /// Waits for the images, and the manifest that says how many there are.
    async fn take_images(&mut self) -> TargetEvent {
        let (Some(mut coming), Some(mut peer)) = (self.coming.take(), self.peer.take()) else {
            return TargetEvent::Failed;
        };
        let taken = self.take_images_from(&mut coming, &mut peer).await;
        self.coming = Some(coming);
        self.peer = Some(peer);
        match taken {
            Ok(manifest) => {
                self.manifest = Some(manifest);
                TargetEvent::Got(Message::Images)
            }
            Err(event) => event,
        }
    }

    async fn take_images_from(
        &mut self,
        coming: &mut Coming,
        peer: &mut Peer,
    ) -> Result<Manifest, TargetEvent> {
        let mut have = BTreeMap::new();
        let mut manifest: Option<Manifest> = None;
        let mut last = (0, Instant::now());
        let mut manifest = loop {
            if let Some(manifest) =
                manifest.take_if(|manifest| manifest.processes.len() <= have.len())
            {
                break manifest;
            }
            tokio::select! {
                message = peer.next() => match message {
                    Ok(PeerMessage::Manifest(sent)) => {
                        if let Err(text) = sent.check() {
                            let why = Refused::Manifest(text);
                            return Err(self.because(why, TargetEvent::Failed));
                        }
                        manifest = Some(*sent);
                    }
                    other => return Err(self.interrupted(other)),
                },
                Some((virt, result)) = coming.images.recv() => match result {
                    Ok((len, file)) => {
                        have.insert(virt, len);
                        self.files.push(file);
                    }
                    Err(source) => {
                        let why = Refused::Image { virt, source };
                        return Err(self.because(why, TargetEvent::Failed));
                    }
                },
                () = tokio::time::sleep(PROGRESS) => {
                    let now = coming.bytes.load(Ordering::Relaxed);
                    if now != last.0 {
                        last = (now, Instant::now());
                    } else if last.1.elapsed() > hurried(QUIET) {
                        let late = CodecError::Io(io::ErrorKind::TimedOut.into());
                        return Err(self.because(late.into(), TargetEvent::Late));
                    }
                }
            }
        };
        for process in &mut manifest.processes {
            let virt = process.virt;
            let found = have.get(&virt).copied().unwrap_or(0);
            if process.bytes != found && process.bytes != 0 || found == 0 {
                let why = Refused::Length { virt, found, expected: process.bytes };
                return Err(self.because(why, TargetEvent::Failed));
            }
            process.bytes = found;
        }
        manifest.generation = coming.partial.generation();
        Ok(manifest)
    }

    /// Waits for the source's decision, which may also come over another connection.
    async fn wait_for_decision(&mut self) -> TargetEvent {
        let Some(mut decided) = self.decided.clone() else { return TargetEvent::Failed };
        let Some(job) = self.shared.job(self.id) else { return TargetEvent::Failed };
        let mut deadline = Instant::now() + hurried(COMMIT_TIMEOUT);
        loop {
            let said = async {
                match &mut self.peer {
                    Some(peer) => peer.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = said => match message {
                    Ok(PeerMessage::Commit) => return TargetEvent::Got(Message::Commit),
                    Ok(PeerMessage::Abort) => {
                        return self.because(Refused::Aborted, TargetEvent::Got(Message::Abort));
                    }
                    _ => {
                        self.peer = None;
                        deadline = deadline.min(Instant::now() + hurried(RECONNECT_TIMEOUT));
                    }
                },
                Ok(_) = decided.wait_for(|&decided| decided) => {
                    return TargetEvent::Got(Message::Commit);
                }
                () = job.events.closed() => {
                    let why = Refused::Restart("a process of it ended".into());
                    return self.because(why, TargetEvent::Failed);
                }
                () = tokio::time::sleep_until(deadline.into()) => {
                    return self.because(Refused::Undecided, TargetEvent::Late);
                }
            }
        }
    }

    /// Does what the hand-over asks for; gives what comes of it at once.
    async fn act(&mut self, action: TargetAction) -> Option<TargetEvent> {
        match action {
            TargetAction::Send(message) => {
                let message = self.message(message)?;
                if let Some(peer) = &mut self.peer
                    && peer.send(&message).await.is_err()
                {
                    // If the source is told nothing it asks.
                    self.peer = None;
                }
                None
            }
            TargetAction::Rebuild => {
                if self.is_decided {
                    // The decision came over another connection, and the end of this one ends nothing any more.
                    self.peer = None;
                }
                Some(match self.rebuild().await {
                    Ok(()) => TargetEvent::Rebuilt,
                    Err(event) => event,
                })
            }
            TargetAction::LogPrepared => {
                let record = ArrivedRecord {
                    token: self.token.clone(),
                    job: self.id,
                    name: self.name.clone(),
                    image: self.image.clone(),
                    keep_images: self.keep_images,
                    files: self.files_how,
                    outside: self.outside,
                    source: self.source.clone(),
                    stdio: self.stdio,
                    home: self.home.clone(),
                    stage: Stage::Prepared,
                    finished: None,
                };
                Some(match self.shared.log_prepared(record) {
                    Ok(decided) => {
                        self.decided = Some(decided);
                        TargetEvent::Logged
                    }
                    Err(error) => self.because(Refused::Record(error), TargetEvent::NotLogged),
                })
            }
            TargetAction::LogTaken => {
                // Without a job that waits, there is none yet.
                let job = if self.is_kept { JobId(0) } else { self.id };
                Some(match self.shared.log_taken(&self.token, job) {
                    Ok(()) => TargetEvent::Logged,
                    Err(error) => self.because(Refused::Record(error), TargetEvent::NotLogged),
                })
            }
            TargetAction::Release => {
                if self.is_kept
                    && let Err(error) = self.shared.log_taken(&self.token, self.id)
                {
                    return Some(self.because(Refused::Record(error), TargetEvent::Failed));
                }
                let released = match self.shared.job(self.id) {
                    Some(job) => job.ask(Command::Release).await,
                    None => None,
                };
                Some(match released {
                    Some(Ok(())) => TargetEvent::Released,
                    _ => {
                        let why = Refused::Restart("it ended before it could go on".into());
                        self.because(why, TargetEvent::Failed)
                    }
                })
            }
            TargetAction::EndCopy => {
                if let Some(job) = self.shared.job(self.id) {
                    let _ = job.ask(Command::Abandon).await;
                }
                self.is_kept = true;
                None
            }
            TargetAction::Tell => {
                let _ = generation::make_latest(&self.image);
                let (name, image) = (&self.name, self.image.display());
                match &self.source {
                    _ if self.is_decided => tracing::warn!(
                        "job {name}: its image stays; restart it with: ulpm_restart {image}"
                    ),
                    Some(source) => tracing::warn!(
                        "job {name}: its image stays until {source} says whether the job goes on there; if that host \
                         is gone for good, restart it with: ulpm_restart {image}"
                    ),
                    None => tracing::warn!(
                        "job {name}: its image stays; if the job does not go on where it came from, restart it with: \
                         ulpm_restart {image}"
                    ),
                }
                // The decision may have come meanwhile.
                self.shared.keep(&self.token).then_some(TargetEvent::Got(Message::Commit))
            }
            TargetAction::Ask => {
                if let Some(source) = self.source.clone() {
                    begin_to_ask(Arc::clone(&self.shared), self.token.clone(), source);
                }
                None
            }
            TargetAction::Discard => {
                self.coming = None;
                self.shared.forget_arrived(&self.token);
                if self.image != Path::new("") {
                    self.remove_image();
                    let _ = std::fs::remove_file(self.shared.state.output(self.id));
                    let _ = std::fs::remove_file(self.shared.state.session(self.id));
                }
                None
            }
        }
    }

    /// What is said to the source.
    fn message(&mut self, message: Message) -> Option<PeerMessage> {
        let chain = || {
            let nothing = || vec!["it has come to nothing".into()];
            self.why.as_ref().map_or_else(nothing, |why| ulpm_control::chain(why))
        };
        let code = self.why.as_ref().map_or(exit::FAILED, Refused::exit_code);
        let image = || self.image.display().to_string();
        Some(match message {
            Message::Accept => PeerMessage::Accept {
                token: self.token.clone(),
                revoked: self.shared.network.revoked(),
                findings: std::mem::take(&mut self.findings),
            },
            Message::Prepared => PeerMessage::Prepared { image: image() },
            Message::Running => {
                PeerMessage::Running { job: self.id, images: self.keep_images.then(image) }
            }
            Message::Refuse => PeerMessage::Refuse { code, chain: chain(), image: None },
            Message::Kept => {
                let text = format!(
                    "{}; restart it with: ulpm_restart {}",
                    chain().join(": "),
                    self.image.display()
                );
                // Whoever asks later is told the same.
                self.shared.arrived_finished(&self.token, Finished { status: None, text });
                PeerMessage::Refuse { code, chain: chain(), image: Some(image()) }
            }
            _ => return None,
        })
    }

    /// Completes the generation, starts `ulpm_restart`, and waits until every process waits for its thaw.
    async fn rebuild(&mut self) -> Result<(), TargetEvent> {
        // A complete generation, so that it can be restarted by hand if it comes to that.
        if let (Some(coming), Some(manifest)) = (self.coming.take(), self.manifest.take()) {
            let keep = self.keep_images;
            let finish =
                tokio::task::spawn_blocking(move || coming.partial.finish(&manifest, keep));
            self.image = match finish.await {
                Ok(Ok(image)) => image,
                Ok(Err(error)) => return Err(self.because(error.into(), TargetEvent::Failed)),
                Err(error) => {
                    return Err(self.because(Refused::Record(error.into()), TargetEvent::Failed));
                }
            };
        }
        self.id = match self.shared.state.next_id() {
            Ok(id) => id,
            Err(error) => {
                return Err(self.because(Refused::Record(error), TargetEvent::Failed));
            }
        };
        // The images become durable while the job is rebuilt from them; the source waits for both.
        let files = std::mem::take(&mut self.files);
        let durable =
            tokio::task::spawn_blocking(move || files.iter().try_for_each(File::sync_all));
        let rebuilt = self.restart().await;
        let durable = durable.await.unwrap_or_else(|error| Err(error.into()));
        rebuilt?;
        durable.map_err(|error| self.because(Refused::Durable(error), TargetEvent::Failed))
    }

    fn remove_image(&self) {
        generation::remove(&self.image);
        if let Some(parent) = self.image.parent() {
            let _ = std::fs::remove_dir(parent);
        }
    }

    /// What remains to be done for a job that goes on here.
    fn goes_on(self) {
        tracing::info!("job {} goes on here as job {}", self.name, self.id);
        if !self.keep_images {
            tokio::task::spawn_blocking(move || self.remove_image());
        }
    }

    /// Starts `ulpm_restart`, and waits until every process waits for its thaw.
    async fn restart(&mut self) -> Result<(), TargetEvent> {
        let (ready, is_ready) = oneshot::channel();
        self.shared.expect_hold(&self.token, Hold { id: self.id, home: self.home.clone(), ready });
        let output = self.shared.state.output(self.id);
        let mut child = match self.spawn_restart() {
            Ok(child) => child,
            Err(error) => {
                return Err(self.because(Refused::Spawn(error.into()), TargetEvent::Failed));
            }
        };
        let said = || {
            let text = std::fs::read(&output).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).trim().replace('\n', ": ");
            let tail: String = text.chars().rev().take(2000).collect();
            tail.chars().rev().collect::<String>()
        };
        let timeout = tokio::time::sleep(hurried(RESTART_TIMEOUT + Duration::from_secs(10)));
        tokio::pin!(timeout);
        let peer = &mut self.peer;
        let interrupted = async {
            match peer {
                Some(peer) => peer.next().await,
                None => std::future::pending().await,
            }
        };
        fault::at("target.Restart");
        let failed = tokio::select! {
            biased;
            ready = is_ready => ready.err().map(|_| Ok(Refused::Restart(said()))),
            status = child.wait() => {
                let status =
                    status.map_or_else(|error| error.to_string(), |status| status.to_string());
                Some(Ok(Refused::Restart(format!("ulpm_restart ended with {status}: {}", said()))))
            }
            message = interrupted => Some(Err(message)),
            () = &mut timeout => {
                Some(Ok(Refused::Restart(format!("it took too long: {}", said()))))
            }
        };
        if failed.is_some() {
            // If it lives it cannot do anything useful any more.
            let _ = child.start_kill();
        }
        tokio::spawn(async move {
            let _ = child.wait().await;
        });
        fault::at("target.Held");
        match failed {
            None => Ok(()),
            Some(Ok(why)) => Err(self.because(why, TargetEvent::Failed)),
            Some(Err(message)) => Err(self.interrupted(message)),
        }
    }

    fn spawn_restart(&self) -> io::Result<tokio::process::Child> {
        restart_command(&self.shared, Some(self.id))?
            .arg("--hold")
            .arg(&self.token)
            .args(self.force.then_some("--force"))
            .arg("--files")
            .arg(word(&self.files_how))
            .arg("--outside-sockets")
            .arg(word(&self.outside))
            .arg("--stdio")
            .arg(word(&self.stdio))
            .arg("--session")
            .arg(self.shared.state.session(self.id))
            .arg("-d")
            .arg(&self.ckpt_dir)
            .arg(&self.image)
            .spawn()
    }
}

/// `ulpm_restart`, for a job whose output goes to its log.
pub(crate) fn restart_command(
    shared: &Shared,
    job: Option<JobId>,
) -> io::Result<tokio::process::Command> {
    let program = place::find("ulpm_restart").map_err(io::Error::other)?;
    let mut command = tokio::process::Command::new(program);
    command.arg("-c").arg(&shared.socket);
    command.env_remove("LD_PRELOAD").env_remove("ULPM_JOB");
    let null = std::process::Stdio::null;
    command.stdin(null()).stdout(null()).stderr(null());
    if let Some(job) = job {
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(options.append(true).create(true), 0o600);
        let log = options.open(shared.state.output(job))?;
        command.stdout(log.try_clone()?).stderr(log);
    }
    Ok(command)
}

fn begin(offer: &Offer) -> Result<(Partial, PathBuf), Refused> {
    ulpm_control::manifest::check_name(&offer.name).map_err(Refused::Manifest)?;
    let mut failed = None;
    for dir in check::image_dirs(offer) {
        match Partial::create(&dir, &offer.name) {
            Ok(partial) => return Ok((partial, dir)),
            // What the user has asked for matters more than what there is otherwise.
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    Err(failed.map_or_else(|| Refused::Manifest("no checkpoint directory".into()), Into::into))
}

pub(crate) fn random_token() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
