//! Migration: a job is handed over to another host.
//!
//! ```text
//!  source                                target
//!    Offer ─────────────────────────────▶ checks what it lacks
//!    ◀───────────────────────────── Accept
//!    freeze, capture ═══ Image × n ═════▶ files of a partial generation
//!    Manifest ──────────────────────────▶ completes the generation, starts ulpm_restart --hold,
//!                                         makes the images durable meanwhile
//!    ◀─────────────────────────── Prepared   every process waits for its thaw
//!    record, table: Committed
//!    Commit ────────────────────────────▶ record, thaw
//!    ◀──────────────────────────── Running
//!    ends its processes
//! ```
//!
//! Whatever fails before the record is written thaws the source, and the target kills what it has
//! restored. After that the source never goes on, and a complete image lies on the target.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};
use ulpm_control::codec::{self, CodecError};
use ulpm_control::manifest::Manifest;
use ulpm_control::message::{JobId, Migrated, Offer, PeerMessage, Progress, Request};
use ulpm_control::{host, place};
use ulpm_protocol::manager::{CAPTURE_HOLD, ToManager};
use ulpm_protocol::table::Handover;

use crate::barrier::{Capture, Captured, Pid};
use crate::error::{JobError, Remote};
use crate::generation::{self, Partial};
use crate::job::{Barrier, Command, Frozen, Job, PROGRESS, STUCK, encode_zombies, millis};
use crate::process;
use crate::server::{Shared, keep_alive};
use crate::state::{self, ArrivedRecord, Finished, MovedRecord};
use crate::wire;

/// How long a connection to the target may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a plain answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the target may take to rebuild the job. It has shorter limits of its own.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(300);
/// How long the target waits for the source's decision.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long the source may take to record its decision. A target that has given up meanwhile would never be
/// told in time.
const DECIDE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long nothing may come from the source before it has sent all.
const SILENCE: Duration = Duration::from_secs(300);
/// Bytes of a chunk.
const CHUNK: usize = 256 * 1024;
/// The most that a chunk may hold.
const MAX_CHUNK: usize = 16 * 1024 * 1024;

/// A connection to another coordinator, whose messages are read by a task.
#[derive(Debug)]
struct Peer {
    messages: mpsc::UnboundedReceiver<Result<PeerMessage, CodecError>>,
    writer: OwnedWriteHalf,
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        let (mut reader, writer) = stream.into_split();
        let (sender, messages) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    message = wire::read(&mut reader) => message,
                    () = sender.closed() => return,
                };
                let last = message.is_err();
                if sender.send(message).is_err() || last {
                    return;
                }
            }
        });
        Self { messages, writer }
    }

    /// Sends a message; gives up when the other side takes nothing, and the connection is of no use then.
    async fn send(&mut self, message: &PeerMessage) -> Result<(), CodecError> {
        within(ANSWER_TIMEOUT, wire::write(&mut self.writer, message)).await
    }

    /// Whether the other side has said anything unasked, or has gone.
    fn said(&mut self) -> Option<Result<PeerMessage, CodecError>> {
        match self.messages.try_recv() {
            Ok(message) => Some(message),
            Err(mpsc::error::TryRecvError::Empty) => None,
            Err(mpsc::error::TryRecvError::Disconnected) => Some(Err(CodecError::Closed)),
        }
    }

    /// The next message.
    ///
    /// # Cancel safety
    ///
    /// Complete: a message that is not returned is returned next time.
    async fn next(&mut self) -> Result<PeerMessage, CodecError> {
        self.messages.recv().await.unwrap_or(Err(CodecError::Closed))
    }

    async fn next_within(&mut self, timeout: Duration) -> Result<PeerMessage, CodecError> {
        within(timeout, self.next()).await
    }
}

async fn within<T>(
    timeout: Duration,
    future: impl Future<Output = Result<T, CodecError>>,
) -> Result<T, CodecError> {
    let late = |_| CodecError::Io(io::ErrorKind::TimedOut.into());
    tokio::time::timeout(timeout, future).await.map_err(late)?
}

/// Images on their way to the target; given up when dropped.
#[derive(Debug, Default)]
struct Transfer {
    sent: Arc<AtomicU64>,
    streams: Arc<Mutex<Vec<StdTcpStream>>>,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        for stream in self.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Virtual id, and how many bytes were sent.
type Copied = (i32, io::Result<u64>);
/// Virtual id, how many bytes came, and the file that has them.
type Received = (i32, io::Result<(u64, File)>);

impl Transfer {
    /// Starts to send what comes out of a pipe; the result goes to `done`.
    fn start(
        &self,
        target: SocketAddr,
        token: &str,
        virt: i32,
        pipe: OwnedFd,
        done: &mpsc::UnboundedSender<Copied>,
    ) {
        let request = Request::Image { token: token.into(), virt };
        let sent = Arc::clone(&self.sent);
        let streams = Arc::clone(&self.streams);
        let done = done.clone();
        tokio::task::spawn_blocking(move || {
            let result = send_image(target, &request, File::from(pipe), &sent, &streams);
            let _ = done.send((virt, result));
        });
    }
}

fn send_image(
    target: SocketAddr,
    request: &Request,
    mut pipe: File,
    sent: &AtomicU64,
    streams: &Mutex<Vec<StdTcpStream>>,
) -> io::Result<u64> {
    let mut stream = StdTcpStream::connect_timeout(&target, CONNECT_TIMEOUT)?;
    stream.set_write_timeout(Some(STUCK))?;
    stream.set_nodelay(true)?;
    streams.lock().unwrap_or_else(PoisonError::into_inner).push(stream.try_clone()?);
    stream.write_all(&codec::encode(request).map_err(io::Error::other)?)?;
    let mut buffer = vec![0; 4 + CHUNK];
    let mut total: u64 = 0;
    loop {
        let len = match pipe.read(&mut buffer[4..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let prefix = u32::try_from(len).map_err(io::Error::other)?.to_le_bytes();
        buffer[..4].copy_from_slice(&prefix);
        stream.write_all(&buffer[..4 + len])?;
        if len == 0 {
            // The other side answers when it has all.
            stream.set_read_timeout(Some(STUCK))?;
            stream.read_exact(&mut [0])?;
            return Ok(total);
        }
        total += len as u64;
        sent.fetch_add(len as u64, Ordering::Relaxed);
    }
}

/// Writes an image that comes over a connection.
///
/// # Errors
///
/// Also when the connection ends before the image does.
fn receive_image(mut stream: StdTcpStream, mut file: &File, bytes: &AtomicU64) -> io::Result<u64> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(STUCK))?;
    let mut buffer = Vec::new();
    let mut total = 0;
    loop {
        let mut prefix = [0; 4];
        stream.read_exact(&mut prefix)?;
        let len = u32::from_le_bytes(prefix) as usize;
        if len > MAX_CHUNK {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a chunk of {len} bytes"),
            ));
        }
        if len == 0 {
            stream.write_all(&[1])?;
            return Ok(total);
        }
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        stream.read_exact(&mut buffer[..len])?;
        file.write_all(&buffer[..len])?;
        total += len as u64;
        bytes.fetch_add(len as u64, Ordering::Relaxed);
    }
}

/// Adds the default port where there is none.
fn with_port(target: &str) -> String {
    let has_port = match target.rsplit_once(':') {
        // An address of version 6 without brackets has no port.
        Some((host, port)) => {
            port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
        }
        None => false,
    };
    if has_port {
        target.into()
    } else if target.contains(':') && !target.starts_with('[') {
        format!("[{target}]:{}", place::DEFAULT_PORT)
    } else {
        format!("{target}:{}", place::DEFAULT_PORT)
    }
}

async fn connect(target: &str) -> io::Result<TcpStream> {
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(with_port(target)))
        .await
        .map_err(late)??;
    stream.set_nodelay(true)?;
    keep_alive(&stream);
    Ok(stream)
}

impl Job {
    /// Hands the job over to another host.
    ///
    /// # Errors
    ///
    /// The job goes on here, unless `self.moved` is set.
    pub(crate) async fn migrate(
        &mut self,
        target: &str,
        keep_images: bool,
        force: bool,
        progress: &mpsc::UnboundedSender<Progress>,
    ) -> Result<Migrated, JobError> {
        self.free_to_act()?;
        self.set_doing("migrating");
        let done = self.migrate_steps(target, keep_images, force, progress).await;
        self.set_doing("running");
        done
    }

    fn offer(&mut self, keep_images: bool, force: bool) -> Offer {
        let mut paths = BTreeSet::new();
        let mut bytes = 0;
        let members = self.members();
        let streams = self.table.table().streams();
        let outputs: Vec<_> = streams
            .flat_map(|[_, output, error]| [output, error])
            .map(|id| (id.dev, id.ino))
            .collect();
        for stat in &members {
            paths.extend(process::open_paths(stat.pid, &outputs));
            bytes += stat.rss * 4096;
        }
        Offer {
            version: env!("CARGO_PKG_VERSION").into(),
            host: self.shared.host.clone(),
            arch: host::arch(),
            cpu: process::chosen_features(members.iter().map(|stat| stat.pid)),
            name: self.meta.name.clone(),
            policy: self.meta.policy.clone(),
            processes: u32::try_from(members.len()).unwrap_or(u32::MAX),
            bytes,
            paths: paths.iter().filter_map(|path| path.to_str().map(str::to_owned)).collect(),
            keep_images,
            force,
        }
    }

    async fn migrate_steps(
        &mut self,
        target: &str,
        keep_images: bool,
        force: bool,
        progress: &mpsc::UnboundedSender<Progress>,
    ) -> Result<Migrated, JobError> {
        let began = Instant::now();
        let target = with_port(target);
        let name = self.meta.name.clone();
        let nobody = BTreeSet::new();
        let no_target = |source| JobError::NoTarget { target: target.clone(), source };
        let lost =
            |source| JobError::TargetLost { name: name.clone(), target: target.clone(), source };
        let refused = |chain| JobError::TargetRefused {
            name: name.clone(),
            target: target.clone(),
            source: Remote::new(chain),
        };

        let mut stream = self.meanwhile(&nobody, connect(&target)).await?.map_err(no_target)?;
        let address = stream.peer_addr().map_err(no_target)?;
        let offer = Request::Offer(Box::new(self.offer(keep_images, force)));
        let sent = within(ANSWER_TIMEOUT, wire::write(&mut stream, &offer));
        self.meanwhile(&nobody, sent).await?.map_err(lost)?;
        let mut peer = Peer::new(stream);
        let answer = self.meanwhile(&nobody, peer.next_within(ANSWER_TIMEOUT)).await?;
        let token = match answer.map_err(lost)? {
            PeerMessage::Accept { token } => token,
            PeerMessage::Refuse { chain, .. } => return Err(refused(chain)),
            other => return Err(lost(unexpected(&other))),
        };

        self.report(progress, "freeze", 0, 0);
        let frozen = self.freeze().await?;
        // From here on an error must thaw.
        let prepared = async {
            let (capture, commands) = self
                .send_images(&frozen, address, &token, &mut peer, progress, &lost, &refused)
                .await?;
            let freeze_time = frozen.since.elapsed();
            let manifest = self.manifest(
                &frozen,
                &capture,
                &commands,
                // The target numbers its own.
                0,
                freeze_time,
                began,
            );
            let bytes = manifest.bytes();
            peer.send(&PeerMessage::Manifest(Box::new(manifest))).await.map_err(lost)?;
            self.report(progress, "restart", 0, 0);
            let answer = self.meanwhile(&frozen.pids(), peer.next_within(PREPARE_TIMEOUT)).await?;
            let image = match answer.map_err(lost)? {
                PeerMessage::Prepared { image } => image,
                PeerMessage::Refuse { chain, .. } => return Err(refused(chain)),
                other => return Err(lost(unexpected(&other))),
            };
            let prepared = Instant::now();
            let record = MovedRecord {
                id: self.meta.id,
                name: name.clone(),
                target: target.clone(),
                token: token.clone(),
                image: format!("{image} on {target}"),
                origin: self.meta.origin.clone(),
                finished: None,
            };
            // COMMIT: the record first, for the table's word decides whether it counts.
            let saved = state::save(&self.shared.state.moved(self.meta.id), &record);
            let decided = match (saved, peer.said()) {
                (Err(source), _) => Err(JobError::Io {
                    what: "the hand-over cannot be recorded, so the job goes on here".into(),
                    source,
                }),
                // The target has given up meanwhile.
                (_, Some(Ok(PeerMessage::Refuse { chain, .. }))) => Err(refused(chain)),
                (_, Some(Ok(other))) => Err(lost(unexpected(&other))),
                (_, Some(Err(error))) => Err(lost(error)),
                // Or may have, before it hears of us.
                (Ok(()), None) if prepared.elapsed() > DECIDE_TIMEOUT => {
                    Err(lost(CodecError::Io(io::ErrorKind::TimedOut.into())))
                }
                (Ok(()), None) => Ok(()),
            };
            if decided.is_err() {
                let _ = std::fs::remove_file(self.shared.state.moved(self.meta.id));
            }
            decided?;
            Ok((record, image, bytes))
        };
        let (record, image, bytes) = match prepared.await {
            Ok(prepared) => prepared,
            Err(error) => {
                self.thaw().await;
                return Err(error);
            }
        };
        self.table.table().set_handover(Handover::Committed);
        self.moved = true;
        tracing::info!("job {name}: handed over to {target}, token {token}");
        self.shared.moved_away(record);
        let sent = peer.send(&PeerMessage::Commit).await;
        for process in &frozen.processes {
            self.send(process.pid, ToManager::End).await;
        }
        let answer = match sent {
            Ok(()) => {
                let answer = self.meanwhile(&nobody, peer.next_within(ANSWER_TIMEOUT)).await;
                answer.unwrap_or(Err(CodecError::Closed))
            }
            Err(error) => Err(error),
        };
        let freeze_time = frozen.since.elapsed();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let _ = self.kill_all().await;
        match answer {
            Ok(PeerMessage::Running { job, images }) => {
                self.shared.follow_moved(self.meta.id);
                Ok(Migrated {
                    job: name,
                    id: self.meta.id,
                    target_id: job,
                    target,
                    processes: u32::try_from(frozen.processes.len()).unwrap_or(u32::MAX),
                    bytes,
                    freeze_ms: millis(freeze_time),
                    total_ms: millis(began.elapsed()),
                    images,
                })
            }
            Ok(PeerMessage::Refuse { chain, image: found }) => {
                let error = JobError::Lost {
                    name,
                    target,
                    image: found.unwrap_or(image),
                    source: Remote::new(chain),
                };
                let text = ulpm_control::chain(&error).join(": ");
                self.shared.moved_finished(self.meta.id, Finished { status: None, text });
                Err(error)
            }
            Ok(_) | Err(_) => {
                self.shared.follow_moved(self.meta.id);
                Err(JobError::InDoubt { name, target, image })
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one step of one function")]
    async fn send_images(
        &mut self,
        frozen: &Frozen,
        address: SocketAddr,
        token: &str,
        peer: &mut Peer,
        progress: &mpsc::UnboundedSender<Progress>,
        lost: &impl Fn(CodecError) -> JobError,
        refused: &impl Fn(Vec<String>) -> JobError,
    ) -> Result<(Capture, BTreeMap<Pid, String>), JobError> {
        let transfer = Transfer::default();
        let (done, mut copied) = mpsc::unbounded_channel();
        for process in &frozen.processes {
            let (reader, writer) = pipe()?;
            transfer.start(address, token, process.virt, reader, &done);
            let zombies = encode_zombies(&process.zombies);
            let flags = CAPTURE_HOLD | self.capture_flags(process.pid);
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
        let mut report = Instant::now() + PROGRESS;
        loop {
            if missing.is_empty() && matches!(capture.state(), Captured::Written { .. }) {
                break;
            }
            tokio::select! {
                event = self.events.recv() => {
                    let Some(event) = event else { continue };
                    if let Some(event) = self.aside(event).await {
                        // Also one whose image is complete: a process without a coordinator goes on.
                        if let Barrier::Lost(pid) = event
                            && frozen.pids().contains(&pid)
                        {
                            return Err(self.died(pid));
                        }
                        self.captured(&mut capture, event)?;
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
                        let answer = peer.next_within(Duration::from_millis(500)).await;
                        return Err(match answer {
                            Ok(PeerMessage::Refuse { chain, .. }) => refused(chain),
                            _ => lost(error.into()),
                        });
                    }
                },
                message = peer.next() => {
                    return Err(match message {
                        Ok(PeerMessage::Refuse { chain, .. }) => refused(chain),
                        Ok(other) => lost(unexpected(&other)),
                        Err(error) => lost(error),
                    });
                }
                () = tokio::time::sleep_until(report.into()) => {}
            }
            if Instant::now() < report {
                continue;
            }
            report = Instant::now() + PROGRESS;
            let sent = transfer.sent.load(Ordering::Relaxed);
            self.report(progress, "send", sent, frozen.rss());
            if sent != last.0 {
                last = (sent, Instant::now());
            } else if last.1.elapsed() > STUCK {
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
}

fn unexpected(message: &PeerMessage) -> CodecError {
    CodecError::Payload(format!("{message:?} was not expected now"))
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

/// A job that is on its way here.
#[derive(Debug)]
pub(crate) struct Incoming {
    dir: PathBuf,
    images: mpsc::UnboundedSender<Received>,
    /// Bytes of all images.
    bytes: Arc<AtomicU64>,
    hold: Option<Hold>,
}

/// What `ulpm_restart --hold` is given.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) id: JobId,
    pub(crate) ready: oneshot::Sender<()>,
}

/// Takes an image of a job that is on its way here.
pub(crate) async fn receive_image_of(shared: &Shared, token: &str, virt: i32, stream: TcpStream) {
    let (dir, images, bytes) = {
        let incoming = shared.incoming();
        let Some(incoming) = incoming.get(token) else {
            tracing::warn!("an image comes that nobody waits for");
            return;
        };
        (incoming.dir.clone(), incoming.images.clone(), Arc::clone(&incoming.bytes))
    };
    let _ = tokio::task::spawn_blocking(move || {
        let path = dir.join(Manifest::image_name(virt));
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
        let stream = stream.into_std();
        let result =
            options.open(path).and_then(|file| Ok((receive_image(stream?, &file, &bytes)?, file)));
        let _ = images.send((virt, result));
    })
    .await;
}

/// What the restart of `--hold` belongs to; once.
pub(crate) fn take_hold(shared: &Shared, token: &str) -> Option<Hold> {
    shared.incoming().get_mut(token)?.hold.take()
}

/// Why this host does not take a job.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("it is a {here} machine, and the job's programs are for {there}")]
    Arch { here: String, there: String },
    #[error(
        "its processor lacks {}, which the job's libraries may have chosen: start the job with GLIBC_TUNABLES={}, or migrate with --force",
        .0.join(", "),
        host::tunables_without(.0.iter().map(String::as_str))
    )]
    Cpu(Vec<String>),
    #[error("{} does not exist there, and the job has it open", .0.join(", "))]
    Paths(Vec<String>),
    #[error("it has {have} MiB of memory free, and the job needs about {need} MiB")]
    Memory { have: u64, need: u64 },
    #[error("{} has {have} MiB free, and the images need about {need} MiB", path.display())]
    Disk { path: PathBuf, have: u64, need: u64 },
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
}

fn check(offer: &Offer) -> Result<(), Refused> {
    let here = host::arch();
    if here != offer.arch {
        return Err(Refused::Arch { here, there: offer.arch.clone() });
    }
    if !offer.force {
        let have: BTreeSet<_> = host::cpu().into_iter().collect();
        let lacks: Vec<_> = offer.cpu.iter().filter(|cpu| !have.contains(*cpu)).cloned().collect();
        if !lacks.is_empty() {
            return Err(Refused::Cpu(lacks));
        }
    }
    let lacks: Vec<_> = offer.paths.iter().filter(|path| !Path::new(path).exists()).collect();
    if !lacks.is_empty() {
        let more = lacks.len().saturating_sub(5);
        let mut list: Vec<_> = lacks.into_iter().take(5).cloned().collect();
        if more > 0 {
            list.push(format!("{more} more"));
        }
        return Err(Refused::Paths(list));
    }
    let have = available_memory();
    if have < offer.bytes {
        return Err(Refused::Memory { have: have >> 20, need: offer.bytes >> 20 });
    }
    Ok(())
}

fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    if text.is_empty() { u64::MAX } else { (kib("MemAvailable:") + kib("SwapFree:")) * 1024 }
}

fn check_disk(dir: &Path, need: u64) -> Result<(), Refused> {
    let Ok(stat) = nix::sys::statvfs::statvfs(dir) else { return Ok(()) };
    let have = stat.blocks_available() * stat.fragment_size();
    if have < need {
        return Err(Refused::Disk { path: dir.into(), have: have >> 20, need: need >> 20 });
    }
    Ok(())
}

/// Takes over a job: the other end of [`Job::migrate`].
pub(crate) async fn receive(shared: &Arc<Shared>, stream: TcpStream, offer: Offer) {
    let mut peer = Peer::new(stream);
    let token = match random_token() {
        Ok(token) => token,
        Err(error) => {
            tracing::error!("cannot read random bytes: {error}");
            return;
        }
    };
    tracing::info!("job {} is offered by {}", offer.name, offer.host);
    let result = receive_steps(shared, &mut peer, &offer, &token).await;
    shared.incoming().remove(&token);
    if let Err((error, image)) = result {
        let chain = ulpm_control::chain(&error);
        tracing::warn!("job {} of {} is not taken: {}", offer.name, offer.host, chain.join(": "));
        if let Some(image) = &image {
            tracing::warn!("its image stays; restart it with: ulpm_restart {}", image.display());
        }
        let image = image.map(|image| image.display().to_string());
        let _ = peer.send(&PeerMessage::Refuse { chain, image }).await;
    }
}

type Failed = (Refused, Option<PathBuf>);

async fn receive_steps(
    shared: &Arc<Shared>,
    peer: &mut Peer,
    offer: &Offer,
    token: &str,
) -> Result<(), Failed> {
    let no_image = |error: Refused| (error, None);
    check(offer).map_err(no_image)?;
    let (partial, ckpt_dir) = begin(offer).map_err(no_image)?;
    let (images, mut arrived) = mpsc::unbounded_channel();
    let bytes = Arc::new(AtomicU64::new(0));
    let incoming =
        Incoming { dir: partial.dir().to_owned(), images, bytes: Arc::clone(&bytes), hold: None };
    shared.incoming().insert(token.into(), incoming);
    peer.send(&PeerMessage::Accept { token: token.into() })
        .await
        .map_err(|e| no_image(e.into()))?;

    // The images, and the manifest that says how many there are.
    let mut have = BTreeMap::new();
    let mut files = Vec::new();
    let mut manifest: Option<Manifest> = None;
    let mut last = (0, Instant::now());
    let mut manifest = loop {
        if let Some(manifest) = manifest.take_if(|manifest| manifest.processes.len() <= have.len())
        {
            break manifest;
        }
        tokio::select! {
            message = peer.next() => match message {
                Ok(PeerMessage::Manifest(sent)) => {
                    sent.check().map_err(|text| no_image(Refused::Manifest(text)))?;
                    manifest = Some(*sent);
                }
                Ok(other) => return Err(no_image(unexpected(&other).into())),
                Err(error) => return Err(no_image(error.into())),
            },
            Some((virt, result)) = arrived.recv() => {
                let (len, file) =
                    result.map_err(|source| no_image(Refused::Image { virt, source }))?;
                have.insert(virt, len);
                files.push(file);
            }
            () = tokio::time::sleep(PROGRESS) => {
                let now = bytes.load(Ordering::Relaxed);
                if now != last.0 {
                    last = (now, Instant::now());
                } else if last.1.elapsed() > SILENCE {
                    return Err(no_image(CodecError::Io(io::ErrorKind::TimedOut.into()).into()));
                }
            }
        }
    };
    for process in &mut manifest.processes {
        let virt = process.virt;
        let found = have.get(&virt).copied().unwrap_or(0);
        if process.bytes != found && process.bytes != 0 || found == 0 {
            let expected = process.bytes;
            return Err(no_image(Refused::Length { virt, found, expected }));
        }
        process.bytes = found;
    }
    manifest.generation = partial.generation();

    // A complete generation, so that it can be restarted by hand if it comes to that.
    let finish = tokio::task::spawn_blocking({
        let (manifest, keep) = (manifest.clone(), offer.keep_images);
        move || partial.finish(&manifest, keep)
    });
    let image = finish
        .await
        .map_err(|error| no_image(Refused::Record(error.into())))?
        .map_err(|error| no_image(error.into()))?;

    let id = shared.state.next_id().map_err(|error| {
        generation::remove(&image);
        no_image(Refused::Record(error))
    })?;
    let discard = |error| {
        generation::remove(&image);
        if let Some(parent) = image.parent() {
            let _ = std::fs::remove_dir(parent);
        }
        let _ = std::fs::remove_file(shared.state.output(id));
        (error, None)
    };
    // The images become durable while the job is rebuilt from them; the source waits for both.
    let durable = tokio::task::spawn_blocking(move || files.iter().try_for_each(File::sync_all));
    let rebuilt = rebuild(shared, peer, token, id, offer.force, (&image, &ckpt_dir)).await;
    let durable = durable.await.unwrap_or_else(|error| Err(error.into()));
    if let Err(error) = rebuilt.and(durable.map_err(Refused::Durable)) {
        // The source goes on, and so the image is of no use.
        abandon(shared, id).await;
        return Err(discard(error));
    }

    // From here on the source may have decided.
    let keep = |error| (error, Some(image.clone()));
    let shown = image.display().to_string();
    let mut decided = peer.send(&PeerMessage::Prepared { image: shown.clone() }).await;
    if decided.is_ok() {
        decided = match peer.next_within(COMMIT_TIMEOUT).await {
            Ok(PeerMessage::Commit) => Ok(()),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(error),
        };
    }
    if let Err(error) = decided {
        abandon(shared, id).await;
        let _ = generation::make_latest(&image);
        return Err(keep(error.into()));
    }
    let record = ArrivedRecord {
        token: token.into(),
        job: id,
        name: offer.name.clone(),
        image: image.clone(),
        finished: None,
    };
    if let Err(error) = state::save(&shared.state.arrived(token), &record) {
        // It runs all the same; only its status may not find its way home.
        tracing::error!("cannot record that job {} came here: {error}", offer.name);
    }
    shared.arrived(record);
    let released = match shared.job(id) {
        Some(job) => job.ask(Command::Release).await,
        None => None,
    };
    if let Some(Ok(())) = released {
        let images = if offer.keep_images {
            Some(shown)
        } else {
            let image = image.clone();
            tokio::task::spawn_blocking(move || {
                generation::remove(&image);
                if let Some(parent) = image.parent() {
                    let _ = std::fs::remove_dir(parent);
                }
            });
            None
        };
        tracing::info!("job {} of {} goes on here as job {id}", offer.name, offer.host);
        // If the source has gone it will ask with Follow.
        let _ = peer.send(&PeerMessage::Running { job: id, images }).await;
        return Ok(());
    }
    abandon(shared, id).await;
    let _ = generation::make_latest(&image);
    let text = format!("it ended before it could go on; restart it with: ulpm_restart {shown}");
    shared.arrived_finished(token, Finished { status: None, text: text.clone() });
    Err(keep(Refused::Restart(text)))
}

fn begin(offer: &Offer) -> Result<(Partial, PathBuf), Refused> {
    ulpm_control::manifest::check_name(&offer.name).map_err(Refused::Manifest)?;
    let wanted = offer.policy.ckpt_dir.clone();
    let (partial, dir) = match (Partial::create(&wanted, &offer.name), place::ckpt_dir()) {
        (Ok(partial), _) => (partial, wanted),
        (Err(_), Some(dir)) => (Partial::create(&dir, &offer.name)?, dir),
        (Err(error), None) => return Err(error.into()),
    };
    check_disk(partial.dir(), offer.bytes)?;
    Ok((partial, dir))
}

/// Starts `ulpm_restart` and waits until every process waits for its thaw.
async fn rebuild(
    shared: &Arc<Shared>,
    peer: &mut Peer,
    token: &str,
    id: JobId,
    force: bool,
    (image, ckpt_dir): (&Path, &Path),
) -> Result<(), Refused> {
    let (ready, is_ready) = oneshot::channel();
    match shared.incoming().get_mut(token) {
        Some(incoming) => incoming.hold = Some(Hold { id, ready }),
        None => return Err(Refused::Restart("it was given up".into())),
    }
    let output = shared.state.output(id);
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(options.append(true).create(true), 0o600);
    let log = options.open(&output).map_err(|error| Refused::Spawn(error.into()))?;
    let log2 = log.try_clone().map_err(|error| Refused::Spawn(error.into()))?;
    let program = place::find("ulpm_restart").map_err(|error| Refused::Spawn(error.into()))?;
    let mut child = tokio::process::Command::new(program)
        .arg("-c")
        .arg(&shared.socket)
        .arg("--hold")
        .arg(token)
        .args(force.then_some("--force"))
        .arg("-d")
        .arg(ckpt_dir)
        .arg(image)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log2)
        .process_group(0)
        .env_remove("LD_PRELOAD")
        .env_remove("ULPM_JOB")
        .spawn()
        .map_err(|error| Refused::Spawn(error.into()))?;
    let said = || {
        let text = std::fs::read(&output).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).trim().replace('\n', ": ");
        let tail: String = text.chars().rev().take(2000).collect();
        tail.chars().rev().collect::<String>()
    };
    let timeout = tokio::time::sleep(crate::job::RESTART_TIMEOUT + Duration::from_secs(10));
    tokio::pin!(timeout);
    let result = tokio::select! {
        biased;
        ready = is_ready => ready.map_err(|_| Refused::Restart(said())),
        status = child.wait() => {
            let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            Err(Refused::Restart(format!("ulpm_restart ended with {status}: {}", said())))
        }
        message = peer.next() => Err(match message {
            Ok(other) => unexpected(&other).into(),
            Err(error) => error.into(),
        }),
        () = &mut timeout => Err(Refused::Restart(format!("it took too long: {}", said()))),
    };
    if result.is_err() {
        // If it lives it cannot do anything useful any more.
        let _ = child.start_kill();
    }
    tokio::spawn(async move {
        let _ = child.wait().await;
    });
    result
}

async fn abandon(shared: &Shared, id: JobId) {
    if let Some(job) = shared.job(id) {
        let _ = job.ask(Command::Abandon).await;
    }
}

fn random_token() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Asks the coordinator that has a job how it ended, until it says so.
pub(crate) async fn follow(record: &MovedRecord) -> Finished {
    let mut pause = Duration::from_millis(100);
    loop {
        match ask_how_it_ended(record).await {
            Ok(finished) => return finished,
            Err(error) => {
                tracing::debug!("job {}: {} does not say: {error}", record.name, record.target);
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

async fn ask_how_it_ended(record: &MovedRecord) -> Result<Finished, CodecError> {
    let mut stream = connect(&record.target).await?;
    wire::write(&mut stream, &Request::Follow { token: record.token.clone() }).await?;
    match wire::read(&mut stream).await? {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_added_where_there_is_none() {
        assert_eq!(with_port("b"), "b:3490");
        assert_eq!(with_port("b:1"), "b:1");
        assert_eq!(with_port("10.0.0.2"), "10.0.0.2:3490");
        assert_eq!(with_port("::1"), "[::1]:3490");
        assert_eq!(with_port("[::1]"), "[::1]:3490");
        assert_eq!(with_port("[::1]:7"), "[::1]:7");
    }
}
