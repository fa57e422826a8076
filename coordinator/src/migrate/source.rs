//! The source: a job leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::sync::mpsc;
use ulpm_control::codec::{self, CodecError};
use ulpm_control::host;
use ulpm_control::manifest::Manifest;
use ulpm_control::message::{
    Checked, Files, Finding, Home, JobId, Migrated, Needed, Offer, Outside, PeerMessage, Policy,
    Progress, Reply, Request, Ssh, Stdio, Verdict,
};
use ulpm_protocol::handover::{Message, Source, SourceAction, SourceEvent};
use ulpm_protocol::manager::{
    CAPTURE_FILES, CAPTURE_HOLD, CAPTURE_REPAIR, FREEZE_MIGRATE, Thawed, ToManager,
};
use ulpm_protocol::table::Handover;

use super::{ANSWER_TIMEOUT, Peer, SILENCE, check, unexpected, within};
use crate::barrier::{Capture, Captured, Pid};
use crate::error::{JobError, Remote};
use crate::fault::{self, hurried};
use crate::job::{Barrier, Frozen, Job, PROGRESS, Patience, STUCK, encode_zombies, millis};
use crate::network::{CONNECT_TIMEOUT, ConnectError, Link, Network, keep_alive, with_port};
use crate::process;
use crate::ssh::SCHEME;
use crate::state::{self, Finished, MovedRecord};
use crate::wire;

/// How long the target may take to rebuild the job. It has shorter limits of its own.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(300);
/// By when a process here has said that it failed, once the target misses its image.
const SAID_BY_THEN: Duration = Duration::from_millis(200);
/// Bytes of a chunk.
const CHUNK: usize = 256 * 1024;

/// Images on their way to the target; given up when dropped.
#[derive(Debug, Default)]
struct Transfer {
    sent: Arc<AtomicU64>,
    streams: Arc<Mutex<Vec<OwnedFd>>>,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        for stream in self.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = shutdown(stream.as_raw_fd(), Shutdown::Both);
        }
    }
}

/// Virtual id, and how many bytes were sent.
type Copied = (i32, io::Result<u64>);

impl Transfer {
    /// Starts to send what comes out of a pipe; the result goes to `done`.
    fn start(
        &self,
        target: &Target,
        token: &str,
        virt: i32,
        pipe: OwnedFd,
        done: &mpsc::UnboundedSender<Copied>,
    ) {
        let request = Request::Images { token: token.into() };
        let sent = Arc::clone(&self.sent);
        let streams = Arc::clone(&self.streams);
        let done = done.clone();
        let target = target.clone();
        tokio::task::spawn_blocking(move || {
            let result = send_image(&target, &request, virt, File::from(pipe), &sent, &streams);
            let _ = done.send((virt, result));
        });
    }
}

/// Where images go.
#[derive(Clone, Debug)]
enum Target {
    /// Each over a connection of its own.
    Tcp {
        address: SocketAddr,
        /// Between hosts of a cluster.
        tls: Option<Arc<rustls::ClientConfig>>,
    },
    /// All over one connection.
    Shared(Arc<Mutex<ImageLink>>),
}

/// A connection for images.
#[derive(Debug)]
struct ImageLink {
    stream: ulpm_cluster::Stream,
    /// It was said what it is for.
    opened: bool,
}

impl Target {
    fn connect(&self) -> io::Result<Arc<Mutex<ImageLink>>> {
        let (address, tls) = match self {
            Self::Shared(link) => return Ok(Arc::clone(link)),
            Self::Tcp { address, tls } => (address, tls),
        };
        let tcp = TcpStream::connect_timeout(address, hurried(CONNECT_TIMEOUT))?;
        keep_alive(&tcp);
        tcp.set_write_timeout(Some(hurried(STUCK)))?;
        tcp.set_nodelay(true)?;
        // The other side answers when it has all.
        tcp.set_read_timeout(Some(hurried(STUCK)))?;
        let stream = ulpm_cluster::Stream::connect(tcp, tls.clone())?;
        Ok(Arc::new(Mutex::new(ImageLink { stream, opened: false })))
    }

    /// One connection for all, by ssh.
    fn shared(link: Link) -> io::Result<Self> {
        let stream = link.into_blocking()?;
        if let ulpm_cluster::Stream::Unix(unix) = &stream {
            unix.set_write_timeout(Some(hurried(STUCK)))?;
            unix.set_read_timeout(Some(hurried(STUCK)))?;
        }
        Ok(Self::Shared(Arc::new(Mutex::new(ImageLink { stream, opened: false }))))
    }
}

fn send_image(
    target: &Target,
    request: &Request,
    virt: i32,
    mut pipe: File,
    sent: &AtomicU64,
    streams: &Mutex<Vec<OwnedFd>>,
) -> io::Result<u64> {
    const HEAD: usize = 8;
    let link = target.connect()?;
    let lock = || link.lock().unwrap_or_else(PoisonError::into_inner);
    let handle = lock().stream.as_fd().try_clone_to_owned()?;
    streams.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
    let mut buffer = vec![0; HEAD + CHUNK];
    let mut total: u64 = 0;
    loop {
        let len = match pipe.read(&mut buffer[HEAD..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let prefix = u32::try_from(len).map_err(io::Error::other)?.to_le_bytes();
        buffer[..4].copy_from_slice(&virt.to_le_bytes());
        buffer[4..HEAD].copy_from_slice(&prefix);
        let mut link = lock();
        if !std::mem::replace(&mut link.opened, true) {
            link.stream.write_all(&codec::encode(request).map_err(io::Error::other)?)?;
        }
        link.stream.write_all(&buffer[..HEAD + len])?;
        if len == 0 {
            // Nobody else has the connection before the answer is there, so it is that to this image.
            link.stream.flush()?;
            link.stream.read_exact(&mut [0])?;
            return Ok(total);
        }
        drop(link);
        if total == 0 {
            fault::at("source.Stream");
        }
        total += len as u64;
        sent.fetch_add(len as u64, Ordering::Relaxed);
    }
}

/// How a job is moved.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    /// How the target is reached, if by ssh.
    pub(crate) ssh: Ssh,
    /// Leave the images on the target.
    pub(crate) keep_images: bool,
    /// Do not mind what the target's processor lacks.
    pub(crate) force: bool,
    /// What becomes of open files.
    pub(crate) files: Files,
    /// What becomes of sockets that are connected to programs outside the job.
    pub(crate) outside: Outside,
    /// What becomes of standard streams, where that is not what was said before.
    pub(crate) stdio: Option<Stdio>,
}

/// A hand-over that is going on, with what its actions need and find.
#[derive(Debug)]
struct Leaving<'a> {
    name: String,
    /// `HOST:PORT`.
    target: String,
    manner: Manner,
    progress: &'a mpsc::UnboundedSender<Progress>,
    began: Instant,
    peer: Option<Peer>,
    images_to: Option<Target>,
    /// Names the hand-over on the target.
    token: String,
    frozen: Option<Frozen>,
    manifest: Option<Manifest>,
    /// Where the image lies on the target.
    image: String,
    /// The job's id there, and where its images are kept.
    running: Option<(JobId, Option<String>)>,
    /// What the checks have found.
    findings: Vec<Finding>,
    /// Files that the target was asked for.
    paths: Vec<String>,
    /// The first thing that went wrong.
    why: Option<JobError>,
}

impl Leaving<'_> {
    fn because(&mut self, why: JobError, event: SourceEvent) -> SourceEvent {
        self.why.get_or_insert(why);
        event
    }

    fn lost(&mut self, source: CodecError) -> SourceEvent {
        let late =
            matches!(&source, CodecError::Io(error) if error.kind() == io::ErrorKind::TimedOut);
        let why = target_lost(&self.name, &self.target, source);
        self.because(why, if late { SourceEvent::Late } else { SourceEvent::Lost })
    }

    /// Whether the target has not accepted, and was asked for a file that was there for a moment only.
    fn asked_for_what_is_gone(&self) -> bool {
        let is_gone = |path: &String| std::fs::symlink_metadata(path).is_err();
        self.token.is_empty() && self.paths.iter().any(is_gone)
    }

    /// What a message, or its absence, means.
    fn heard(&mut self, message: Result<PeerMessage, CodecError>) -> SourceEvent {
        match message {
            Ok(PeerMessage::Accept { token, findings, .. }) => {
                self.token = token;
                self.findings.extend(findings);
                SourceEvent::Got(Message::Accept)
            }
            Ok(PeerMessage::Prepared { image }) => {
                self.image = image;
                SourceEvent::Got(Message::Prepared)
            }
            Ok(PeerMessage::Running { job, images }) => {
                self.running = Some((job, images));
                SourceEvent::Got(Message::Running)
            }
            Ok(PeerMessage::Refuse { code, chain, image: None }) => {
                let why = target_refused(&self.name, &self.target, code, chain);
                self.because(why, SourceEvent::Got(Message::Refuse))
            }
            Ok(PeerMessage::Refuse { chain, image: Some(image), .. }) => {
                let why = JobError::Lost {
                    name: self.name.clone(),
                    target: self.target.clone(),
                    image,
                    source: Remote::new(chain),
                };
                self.because(why, SourceEvent::Got(Message::Kept))
            }
            Ok(other) => self.lost(unexpected(&other)),
            Err(error) => self.lost(error),
        }
    }
}

fn not_connected(target: &str, error: ConnectError) -> JobError {
    let target = target.into();
    match error {
        ConnectError::Io(source) if source.kind() == io::ErrorKind::PermissionDenied => {
            JobError::NotOurs { target, source }
        }
        ConnectError::Io(source) => JobError::NoTarget { target, source },
        ConnectError::Ssh(error) => JobError::Ssh {
            target,
            code: error.exit_code(),
            source: Remote::new(ulpm_control::chain(&error)),
        },
    }
}

fn target_lost(name: &str, target: &str, source: CodecError) -> JobError {
    JobError::TargetLost { name: name.into(), target: target.into(), source }
}

fn target_refused(name: &str, target: &str, code: u8, chain: Vec<String>) -> JobError {
    let (name, target) = (name.into(), target.into());
    JobError::TargetRefused { name, target, code, source: Remote::new(chain) }
}

impl Job {
    /// Hands the job over to another host.
    ///
    /// # Errors
    ///
    /// The job goes on here, unless `self.moved` is set.
    pub(crate) async fn migrate(
        &mut self,
        target: Option<&str>,
        manner: &Manner,
        progress: &mpsc::UnboundedSender<Progress>,
    ) -> Result<Migrated, JobError> {
        self.free_to_act()?;
        let home = target.is_none().then(|| self.home()).transpose()?;
        let target = target.or(home.as_deref()).unwrap_or_default();
        self.set_doing("migrating");
        let mut patience = Patience::new();
        let done = loop {
            let mut leaving = Leaving {
                name: self.meta.name.clone(),
                target: with_port(target),
                manner: manner.clone(),
                progress,
                began: Instant::now(),
                peer: None,
                images_to: None,
                token: String::new(),
                frozen: None,
                manifest: None,
                image: String::new(),
                running: None,
                findings: Vec::new(),
                paths: Vec::new(),
                why: None,
            };
            // The target has given up what it had of the last attempt, or does so when that connection ends.
            let done = self.hand_over(&mut leaving).await;
            match &done {
                Err(error) if patience.may_try_again(self, error).await => {}
                Err(error) if leaving.asked_for_what_is_gone() => {
                    if !patience.pause(self, error).await {
                        break done;
                    }
                }
                _ => break done,
            }
        };
        self.set_doing("running");
        self.last.clear();
        done
    }

    /// Where the job was launched.
    fn home(&self) -> Result<String, JobError> {
        let name = self.meta.name.clone();
        match &self.meta.home {
            None => Err(JobError::AtHome { name }),
            Some(Home { address: Some(address), .. }) => Ok(address.clone()),
            Some(Home { host, address: None, .. }) => {
                Err(JobError::NoWayHome { name, host: host.clone() })
            }
        }
    }

    async fn hand_over(&mut self, leaving: &mut Leaving<'_>) -> Result<Migrated, JobError> {
        let (mut machine, mut actions) = Source::offer();
        loop {
            let mut event = None;
            for &action in actions {
                tracing::debug!("job {}: {machine:?}: {action:?}", leaving.name);
                fault::before("source", action);
                event = self.act(leaving, action).await;
                if event.is_some() {
                    break;
                }
            }
            let in_doubt = actions.contains(&SourceAction::Connect);
            match machine {
                _ if in_doubt => return Err(self.in_doubt(leaving).await),
                Source::Done => return self.migrated(leaving).await,
                Source::Told => return Err(self.told(leaving).await),
                Source::GoesOn if event.is_none() => {
                    // With none it was never accepted.
                    if !leaving.token.is_empty() {
                        self.shared.gives_up(&leaving.token);
                    }
                    let nothing =
                        || target_lost(&leaving.name, &leaving.target, CodecError::Closed);
                    return Err(leaving.why.take().unwrap_or_else(nothing));
                }
                _ => {}
            }
            let event = match event {
                Some(event) => event,
                None => self.listen(leaving, machine).await,
            };
            tracing::debug!("job {}: {machine:?}: {event:?}", leaving.name);
            actions = machine.on(event);
        }
    }

    /// Waits for what the target says next.
    async fn listen(&mut self, leaving: &mut Leaving<'_>, machine: Source) -> SourceEvent {
        let timeout = if machine == Source::Waiting { PREPARE_TIMEOUT } else { ANSWER_TIMEOUT };
        // What was handed over may end as it likes.
        let matters = match &leaving.frozen {
            Some(frozen) if machine != Source::Committed => frozen.pids(),
            _ => BTreeSet::new(),
        };
        let Some(peer) = &mut leaving.peer else { return leaving.lost(CodecError::Closed) };
        match self.meanwhile(&matters, peer.answer(hurried(timeout))).await {
            Ok(message) => {
                if let Ok(PeerMessage::Accept { token, revoked, .. }) = &message {
                    self.shared.network.learn(revoked.as_deref());
                    // The next coordinator has to know what it is asked for.
                    self.meta.offered = Some(token.clone());
                    self.save();
                }
                leaving.heard(message)
            }
            Err(why) => leaving.because(why, SourceEvent::Failed),
        }
    }

    /// Does what the hand-over asks for; gives what comes of it at once.
    async fn act(
        &mut self,
        leaving: &mut Leaving<'_>,
        action: SourceAction,
    ) -> Option<SourceEvent> {
        match action {
            SourceAction::Send(Message::Offer) => self.send_offer(leaving).await,
            SourceAction::Send(message) => {
                let message = match message {
                    Message::Images => PeerMessage::Manifest(Box::new(leaving.manifest.clone()?)),
                    Message::Commit => PeerMessage::Commit,
                    Message::Abort => PeerMessage::Abort,
                    _ => return None,
                };
                let sent = leaving.peer.as_mut()?.send(&message).await;
                // Whether an Abort arrives makes no difference here.
                let matters = !matches!(message, PeerMessage::Abort | PeerMessage::Commit);
                sent.err().filter(|_| matters).map(|error| leaving.lost(error))
            }
            SourceAction::Freeze => {
                self.report(leaving.progress, "freeze", 0, 0);
                Some(match self.freeze(FREEZE_MIGRATE).await {
                    Ok(frozen) => {
                        leaving.frozen = Some(frozen);
                        SourceEvent::Frozen
                    }
                    Err(why) => leaving.because(why, SourceEvent::Failed),
                })
            }
            SourceAction::Capture => Some(match self.capture_and_send(leaving).await {
                Ok(()) => SourceEvent::Sent,
                Err(why) => leaving.because(why, SourceEvent::Failed),
            }),
            SourceAction::Record => Some(self.record_move(leaving)),
            SourceAction::Forget => {
                let _ = std::fs::remove_file(self.shared.state.moved(self.meta.id));
                None
            }
            SourceAction::Decide => {
                self.table.table().set_handover(Handover::Committed);
                self.moved = true;
                tracing::info!(
                    "job {}: handed over to {}, token {}",
                    leaving.name,
                    leaving.target,
                    leaving.token
                );
                self.shared.moved_away(self.moved_record(leaving));
                None
            }
            SourceAction::End => {
                for process in leaving.frozen.iter().flat_map(|frozen| &frozen.processes) {
                    self.send(process.pid, ToManager::End).await;
                }
                None
            }
            SourceAction::Thaw => {
                self.thaw(Thawed::Aborted).await;
                None
            }
            // That goes on in the background.
            SourceAction::Connect => None,
        }
    }

    async fn send_offer(&mut self, leaving: &mut Leaving<'_>) -> Option<SourceEvent> {
        let (offer, findings) = self.offer(&leaving.manner);
        if let Some((_, text)) = Finding::refusal(&findings) {
            let name = leaving.name.clone();
            let why = JobError::Unfit { name, source: Remote::new(vec![text]) };
            return Some(leaving.because(why, SourceEvent::Failed));
        }
        leaving.findings = findings;
        leaving.paths = offer.paths.iter().map(|needed| needed.path.clone()).collect();
        let nobody = BTreeSet::new();
        let shared = Arc::clone(&self.shared);
        let (target, ssh) = (leaving.target.clone(), leaving.manner.ssh.clone());
        let network = &shared.network;
        let connecting = async {
            if target.starts_with(SCHEME) {
                // While nothing stands still yet: it takes its time.
                let link = network.connect(&target, &ssh).await?;
                let images_to = Target::shared(network.connect(&target, &ssh).await?)?;
                return Ok((link, images_to));
            }
            let (link, address) = network.connect_tcp(&target).await?;
            let tls = network.client().map_err(io::Error::other)?;
            Ok((link, Target::Tcp { address, tls }))
        };
        let connected = self.meanwhile(&nobody, connecting).await;
        let connected = connected
            .and_then(|connected| connected.map_err(|error| not_connected(&leaving.target, error)));
        let (mut link, images_to) = match connected {
            Ok(connected) => connected,
            Err(why) => return Some(leaving.because(why, SourceEvent::Failed)),
        };
        let offer = Request::Offer(Box::new(offer));
        let sent = within(hurried(ANSWER_TIMEOUT), wire::write(&mut link, &offer));
        let sent = self.meanwhile(&nobody, sent).await;
        leaving.images_to = Some(images_to);
        leaving.peer = Some(Peer::new(link));
        match sent {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(leaving.lost(error)),
            Err(why) => Some(leaving.because(why, SourceEvent::Failed)),
        }
    }

    async fn capture_and_send(&mut self, leaving: &mut Leaving<'_>) -> Result<(), JobError> {
        let Some(frozen) = leaving.frozen.take() else {
            return Err(target_lost(&leaving.name, &leaving.target, CodecError::Closed));
        };
        let sent = self.send_images(leaving, &frozen).await;
        if let Ok((capture, commands)) = &sent {
            let freeze_time = frozen.since.elapsed();
            // The target numbers its own generations.
            let manifest = self.manifest(&frozen, capture, commands, 0, freeze_time, leaving.began);
            leaving.manifest = Some(manifest);
            self.report(leaving.progress, "restart", 0, 0);
        }
        leaving.frozen = Some(frozen);
        sent.map(drop)
    }

    fn moved_record(&self, leaving: &Leaving<'_>) -> MovedRecord {
        MovedRecord {
            id: self.meta.id,
            name: leaving.name.clone(),
            target: leaving.target.clone(),
            ssh: leaving.manner.ssh.clone(),
            token: leaving.token.clone(),
            image: format!("{} on {}", leaving.image, leaving.target),
            origin: self.meta.origin.clone(),
            stdio: leaving.manner.stdio.unwrap_or(self.meta.policy.stdio),
            finished: None,
        }
    }

    /// Makes the decision durable, unless the target has given up meanwhile.
    fn record_move(&self, leaving: &mut Leaving<'_>) -> SourceEvent {
        if let Some(said) = leaving.peer.as_mut().and_then(Peer::said) {
            leaving.heard(said);
            return SourceEvent::NotRecorded;
        }
        let record = self.moved_record(leaving);
        match state::save(&self.shared.state.moved(self.meta.id), &record) {
            Ok(()) => SourceEvent::Recorded,
            Err(source) => {
                let what = "the hand-over cannot be recorded, so the job goes on here".into();
                leaving.because(JobError::Io { what, source }, SourceEvent::NotRecorded)
            }
        }
    }

    /// Makes sure that nothing is left here; returns how long the job stood still.
    async fn end_what_is_left(&mut self, leaving: &Leaving<'_>) -> Duration {
        let freeze_time = leaving.frozen.as_ref().map_or(Duration::ZERO, |f| f.since.elapsed());
        // Most end by themselves within that time, as they were told.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let _ = self.kill_all().await;
        self.remove_objects();
        freeze_time
    }

    async fn migrated(&mut self, leaving: &mut Leaving<'_>) -> Result<Migrated, JobError> {
        let freeze_time = self.end_what_is_left(leaving).await;
        self.shared.follow_moved(self.meta.id);
        let Some((target_id, images)) = leaving.running.take() else {
            return Err(self.in_doubt(leaving).await);
        };
        let processes = leaving.frozen.as_ref().map_or(0, |frozen| frozen.processes.len());
        let warned = |finding: &&Finding| finding.verdict == Verdict::Warning;
        let warnings = leaving.findings.iter().filter(warned).map(Finding::sentence).collect();
        Ok(Migrated {
            job: leaving.name.clone(),
            id: self.meta.id,
            target_id,
            target: leaving.target.clone(),
            processes: u32::try_from(processes).unwrap_or(u32::MAX),
            bytes: leaving.manifest.as_ref().map_or(0, Manifest::bytes),
            freeze_ms: millis(freeze_time),
            total_ms: millis(leaving.began.elapsed()),
            images,
            warnings,
        })
    }

    /// The target has only the image.
    async fn told(&mut self, leaving: &mut Leaving<'_>) -> JobError {
        self.end_what_is_left(leaving).await;
        let in_doubt = || JobError::InDoubt {
            name: leaving.name.clone(),
            target: leaving.target.clone(),
            image: leaving.image.clone(),
        };
        let error = leaving.why.take().unwrap_or_else(in_doubt);
        let text = ulpm_control::chain(&error).join(": ");
        self.shared.moved_finished(self.meta.id, Finished { status: None, text });
        error
    }

    /// The target has not said that it knows: it is told again for as long as it takes.
    async fn in_doubt(&mut self, leaving: &Leaving<'_>) -> JobError {
        self.end_what_is_left(leaving).await;
        self.shared.follow_moved(self.meta.id);
        JobError::InDoubt {
            name: leaving.name.clone(),
            target: leaving.target.clone(),
            image: leaving.image.clone(),
        }
    }

    /// Whether the job could move.
    pub(crate) async fn check_move(
        &mut self,
        target: &str,
        manner: &Manner,
    ) -> Result<Checked, JobError> {
        let target = with_port(target);
        let (offer, mut findings) = self.offer(manner);
        let shared = Arc::clone(&self.shared);
        let asking = async {
            let connected = shared.network.connect(&target, &manner.ssh).await;
            let mut link = connected.map_err(|error| not_connected(&target, error))?;
            let lost = |source| target_lost(&self.meta.name, &target, source);
            let request = Request::CheckOffer(Box::new(offer));
            within(ANSWER_TIMEOUT, wire::write(&mut link, &request)).await.map_err(lost)?;
            match within(ANSWER_TIMEOUT, wire::read(&mut link)).await.map_err(lost)? {
                Reply::Found(there) => Ok(there),
                Reply::Error(refusal) => {
                    let (code, chain) = (refusal.code, refusal.chain);
                    Err(target_refused(&self.meta.name, &target, code, chain))
                }
                other => Err(lost(CodecError::Payload(format!("{other:?} was not expected")))),
            }
        };
        findings.extend(asking.await?);
        let verdict = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok);
        Ok(Checked { job: self.meta.name.clone(), id: self.meta.id, target, verdict, findings })
    }

    /// What the target has to know of the job, and what of it cannot be saved.
    fn offer(&mut self, manner: &Manner) -> (Offer, Vec<Finding>) {
        let mut needed = BTreeMap::new();
        let mut programs = BTreeSet::new();
        let mut kernel = BTreeSet::new();
        let (mut bytes, mut threads, mut descriptors) = (0, 0, 0);
        let members = self.members();
        let streams = self.table.table().streams();
        let outputs: Vec<_> = streams
            .flat_map(|[_, output, error]| [output, error])
            .map(|id| (id.dev, id.ino))
            .collect();
        let mut findings = Vec::new();
        for stat in &members {
            let look = check::look_at(stat.pid, &outputs, &self.table_path);
            for (path, access) in look.needed {
                // A file that goes along needs the directory that it is to be in.
                let (path, access) = match path.parent() {
                    Some(parent) if manner.files == Files::Ship && !path.is_dir() => {
                        (parent.to_owned(), 0)
                    }
                    _ => (path, access),
                };
                *needed.entry(path).or_insert(0) |= access;
            }
            programs.extend(look.programs);
            kernel.extend(look.kernel);
            findings.extend(look.refused);
            bytes += stat.rss * 4096;
            threads += stat.threads;
            descriptors = descriptors.max(look.descriptors);
        }
        for object in self.table.table().objects() {
            let queue = object.kind() == ulpm_protocol::table::QUEUE;
            kernel.insert(if queue { "POSIX message queues" } else { "System V objects" });
        }
        findings.extend(check::rights(members.iter().map(|stat| stat.pid)));
        findings.extend(check::strangers(&self.strangers()));
        if findings.is_empty() {
            findings.push(check::no_objections(members.len()));
        }
        let path = |(path, access): (std::path::PathBuf, i32)| {
            Some(Needed { path: path.to_str()?.to_owned(), access })
        };
        let offer = Offer {
            version: env!("CARGO_PKG_VERSION").into(),
            host: self.shared.host.clone(),
            format: ulpm_image::FORMAT_VERSION,
            arch: host::arch(),
            kernel: host::kernel(),
            kernel_features: kernel.into_iter().map(str::to_owned).collect(),
            cpu: process::chosen_features(members.iter().map(|stat| stat.pid)),
            cpu_here: host::cpu(),
            uid: nix::unistd::geteuid().as_raw(),
            groups: process::groups(members.iter().map(|stat| stat.pid)),
            name: self.meta.name.clone(),
            policy: Policy {
                stdio: manner.stdio.unwrap_or(self.meta.policy.stdio),
                ..self.meta.policy.clone()
            },
            processes: u32::try_from(members.len()).unwrap_or(u32::MAX),
            bytes,
            threads,
            descriptors,
            paths: needed.into_iter().filter_map(path).collect(),
            programs: programs.into_iter().collect(),
            keep_images: manner.keep_images,
            force: manner.force,
            files: manner.files,
            outside: manner.outside,
            revoked: self.shared.network.revoked(),
            port: self.shared.port(),
            home: self.meta.home.clone(),
        };
        (offer, findings)
    }

    /// Captures the job, and sends what it is captured to.
    async fn send_images(
        &mut self,
        leaving: &mut Leaving<'_>,
        frozen: &Frozen,
    ) -> Result<(Capture, BTreeMap<Pid, String>), JobError> {
        let (name, target) = (leaving.name.clone(), leaving.target.clone());
        let lost = |source| target_lost(&name, &target, source);
        let refused = |code, chain| target_refused(&name, &target, code, chain);
        let files = if leaving.manner.files == Files::Ship { CAPTURE_FILES } else { 0 };
        let repair = if leaving.manner.outside == Outside::Repair { CAPTURE_REPAIR } else { 0 };
        let Leaving { peer: Some(peer), images_to: Some(images_to), token, progress, .. } = leaving
        else {
            return Err(lost(CodecError::Closed));
        };
        let transfer = Transfer::default();
        let (done, mut copied) = mpsc::unbounded_channel();
        for process in &frozen.processes {
            let (reader, writer) = pipe()?;
            transfer.start(images_to, token, process.virt, reader, &done);
            let zombies = encode_zombies(&process.zombies);
            let flags = CAPTURE_HOLD | files | repair | self.capture_flags(process.pid);
            let message = ToManager::Capture { flags, zombies: &zombies };
            self.send_with(process.pid, message, Some(writer.as_fd())).await;
        }
        drop(done);
        let mut capture = Capture::new(&frozen.pids());
        let commands = self.commands(frozen);
        self.check_rights(frozen)?;
        let mut missing: BTreeMap<i32, Pid> =
            frozen.processes.iter().map(|process| (process.virt, process.pid)).collect();
        let mut lens: BTreeMap<Pid, u64> = BTreeMap::new();
        let mut last = (0, Instant::now());
        let mut heard = Instant::now();
        let mut report = Instant::now() + PROGRESS;
        loop {
            if missing.is_empty() && matches!(capture.state(), Captured::Written { .. }) {
                break;
            }
            tokio::select! {
                event = self.event() => {
                    let Some(event) = event else { continue };
                    if let Some(event) = self.aside(event).await {
                        self.capture_goes_on(&mut capture, frozen, event)?;
                    }
                }
                Some((virt, result)) = copied.recv() => match result {
                    Ok(len) => {
                        if let Some(pid) = missing.remove(&virt) {
                            lens.insert(pid, len);
                        }
                    }
                    Err(error) => {
                        // The target says why, if it can.
                        let why = match peer.answer(Duration::from_millis(500)).await {
                            Ok(PeerMessage::Refuse { code, chain, .. }) => refused(code, chain),
                            _ => lost(error.into()),
                        };
                        return Err(self.own_failure(&mut capture, frozen).await.unwrap_or(why));
                    }
                },
                message = peer.next() => match message {
                    Ok(PeerMessage::Alive) => heard = Instant::now(),
                    Ok(PeerMessage::Refuse { code, chain, .. }) => {
                        let own = self.own_failure(&mut capture, frozen).await;
                        return Err(own.unwrap_or_else(|| refused(code, chain)));
                    }
                    Ok(other) => return Err(lost(unexpected(&other))),
                    Err(error) => return Err(lost(error)),
                },
                () = tokio::time::sleep_until(report.into()) => {}
            }
            if Instant::now() < report {
                continue;
            }
            report = Instant::now() + PROGRESS;
            self.let_stopped_run(frozen);
            if heard.elapsed() > hurried(SILENCE) {
                return Err(lost(CodecError::Io(io::ErrorKind::TimedOut.into())));
            }
            let sent = transfer.sent.load(Ordering::Relaxed);
            self.report(progress, "send", sent, frozen.rss());
            if sent != last.0 {
                last = (sent, Instant::now());
            } else if last.1.elapsed() > hurried(STUCK) {
                return Err(JobError::Stuck { secs: STUCK.as_secs(), what: "the target".into() });
            }
        }
        for (&pid, &len) in &lens {
            // A manager that does not count says 0.
            let said = capture.bytes_of(pid).unwrap_or(0);
            if said != len && said != 0 {
                return Err(JobError::Io {
                    what: format!(
                        "the image of process {pid} was cut short: {len} of {said} bytes were sent"
                    ),
                    source: io::ErrorKind::UnexpectedEof.into(),
                });
            }
        }
        Ok((capture, commands))
    }

    fn capture_goes_on(
        &mut self,
        capture: &mut Capture,
        frozen: &Frozen,
        event: Barrier,
    ) -> Result<(), JobError> {
        // Also one whose image is complete: a process without a coordinator goes on.
        if let Barrier::Lost(pid) = event
            && frozen.pids().contains(&pid)
        {
            return Err(self.died(pid));
        }
        self.captured(capture, event)
    }

    /// What the target misses may be what a process here could not give, and has said or is about to say: that tells more, and
    /// whether to try again.
    async fn own_failure(&mut self, capture: &mut Capture, frozen: &Frozen) -> Option<JobError> {
        let until = Instant::now() + SAID_BY_THEN;
        while let Some(event) = self.barrier_event(until).await {
            if let Err(why) = self.capture_goes_on(capture, frozen, event) {
                return Some(why);
            }
        }
        None
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), JobError> {
    let refused = |errno: nix::errno::Errno| JobError::Io {
        what: "cannot make a pipe".into(),
        source: errno.into(),
    };
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(refused)?;
    // A bigger pipe is faster; a smaller one will do.
    let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(1 << 20));
    Ok((reader, writer))
}

/// Asks the coordinator that was given a job how it ended, until it says so. To it, the question also says that
/// the hand-over is decided.
pub(crate) async fn follow(network: &Network, record: &MovedRecord) -> Finished {
    let mut pause = Duration::from_millis(100);
    loop {
        match ask_how_it_ended(network, record).await {
            Ok(finished) => return finished,
            Err(error) => {
                tracing::debug!("job {}: {} does not say: {error}", record.name, record.target);
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

async fn ask_how_it_ended(network: &Network, record: &MovedRecord) -> Result<Finished, CodecError> {
    let connected = network.connect(&record.target, &record.ssh).await;
    let mut link = connected.map_err(io::Error::other)?;
    wire::write(&mut link, &Request::Follow { token: record.token.clone() }).await?;
    match wire::read(&mut link).await? {
        ulpm_control::Reply::Finished { status, text } => Ok(Finished { status, text }),
        ulpm_control::Reply::Error(_) => Ok(Finished {
            status: None,
            text: format!(
                "job {} was handed over to {} and is not known there: restart it with: ulpm_restart {}",
                record.name, record.target, record.image
            ),
        }),
        other => Err(CodecError::Payload(format!("{other:?} was not expected"))),
    }
}
