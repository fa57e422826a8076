//! The coordinator as a whole, with members that only pretend.
//!
//! A member is a `sleep` with a slot in the job table, and a thread of the test that is its manager. The
//! `ulpm_restart` that a target starts is this test program again, see [`fake_restart`].

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use ulpm_control::manifest::ProcessEntry;
use ulpm_control::message::{
    self, Checkpointed, Files, JobOpened, Migrated, Offer, OpenJob, Outside, PeerMessage, Policy,
    Restart, Ssh, Status, Stream,
};
use ulpm_control::{Address, Client, JobId, Manifest, Reply, Request, codec, exit};
use ulpm_protocol::manager::{
    Failure, FrameHeader, FromManager, HEADER_LEN, MAX_PAYLOAD, ToManager, VERSION, Zombie,
};
use ulpm_protocol::table::{Handover, LEN, SlotState, Table};

/// A directory, and coordinators in it.
struct Lab {
    dir: PathBuf,
    coordinators: Mutex<Vec<Child>>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Lab {
    fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("ulpm-fake-{}-{number}", std::process::id()));
        std::fs::create_dir_all(dir.join("lib")).unwrap();
        std::fs::write(dir.join("lib/libulpm_hijack.so"), "").unwrap();
        let script = format!(
            "#!/bin/sh\nFAKE_RESTART=\"$*\" exec {} --exact fake_restart --nocapture\n",
            std::env::current_exe().unwrap().display()
        );
        let path = dir.join("lib/ulpm_restart");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir, coordinators: Mutex::default() }
    }

    /// Starts a coordinator; returns its socket, and where it listens.
    fn coordinator(&self, name: &str) -> (Address, String) {
        self.coordinator_with(name, &[])
    }

    fn coordinator_with(&self, name: &str, options: &[&str]) -> (Address, String) {
        let socket = self.dir.join(name);
        let mut child = Command::new(env!("CARGO_BIN_EXE_ulpm_coordinator"))
            .arg("--socket")
            .arg(&socket)
            .args(["--listen", "127.0.0.1:0", "--freeze-timeout", "1"])
            .args(options)
            .env("ULPM_LIBDIR", self.dir.join("lib"))
            .stdout(Stdio::piped())
            .stderr(if std::env::var_os("FAKE_LOG").is_some() {
                Stdio::inherit()
            } else {
                Stdio::null()
            })
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.coordinators.lock().unwrap().push(child);
        let listen = line.trim().strip_prefix("listening on ").unwrap().to_owned();
        (Address::Socket(socket), listen)
    }

    fn kill_last_coordinator(&self) {
        let mut child = self.coordinators.lock().unwrap().pop().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn ckpt_dir(&self) -> PathBuf {
        self.dir.join("ckpt")
    }

    fn open(&self, client: &mut Client, name: &str) -> JobOpened {
        let request = Request::OpenJob(OpenJob {
            name: Some(name.into()),
            argv: vec!["sleep".into()],
            cwd: "/".into(),
            policy: self.policy(),
            join: None,
            stdio: [Stream::default(); 3],
            group: 0,
            session: 0,
        });
        match client.call(&request).unwrap() {
            Reply::JobOpened(opened) => opened,
            other => panic!("{other:?}"),
        }
    }

    fn policy(&self) -> Policy {
        Policy { ckpt_dir: self.ckpt_dir(), ckpt_signal: 12, ..Policy::default() }
    }

    /// Names of what lies in a job's checkpoint directory.
    fn files(&self, job: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.ckpt_dir().join(job)) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for mut child in self.coordinators.lock().unwrap().drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn map(path: &Path) -> Table {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping that is never removed; the coordinator has made a table of the file.
    unsafe {
        let base = mmap(None, NonZeroUsize::new(LEN).unwrap(), prot, MapFlags::MAP_SHARED, file, 0)
            .unwrap();
        Table::open(base.cast()).unwrap()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Obeys,
    FailsToCapture,
    NeverFreezes,
    DiesWhenFrozen,
    WritesSlowly,
}

/// What a manager was told, as words.
type Heard = mpsc::Receiver<String>;

struct Member {
    pid: i32,
    heard: Heard,
    /// Each time that it has said hello.
    connected: mpsc::Receiver<()>,
    sleep: Arc<Mutex<Child>>,
}

impl Member {
    fn start(table: &Path, manner: Manner) -> Self {
        Self::start_as(table, manner, None, "exec sleep 1000")
    }

    fn start_as(table_path: &Path, manner: Manner, restored_as: Option<i32>, script: &str) -> Self {
        let sleep = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = i32::try_from(sleep.id()).unwrap();
        let virt = restored_as.unwrap_or(pid);
        let table = map(table_path);
        table.insert_as(pid, virt, 1, SlotState::Live).unwrap();
        let sleep = Arc::new(Mutex::new(sleep));
        let (tell, heard) = mpsc::channel();
        let (said_hello, connected) = mpsc::channel();
        let theirs = Arc::clone(&sleep);
        std::thread::spawn(move || {
            let mut restored = restored_as.is_some();
            // As real managers do, it connects again whenever the connection breaks.
            while theirs.lock().unwrap().try_wait().unwrap().is_none() {
                let socket = String::from_utf8(table.socket().to_vec()).unwrap();
                if let Ok(stream) = UnixStream::connect(socket) {
                    let hello = FromManager::Hello {
                        version: VERSION,
                        job: table.header().job,
                        real: pid,
                        virt,
                        restored,
                        stopped: false,
                    };
                    say(&stream, hello);
                    let _ = said_hello.send(());
                    manage(&stream, manner, &theirs, &tell);
                    restored = false;
                }
                // Whose coordinator is gone goes on, unless the job was handed over.
                if table.handover() != Handover::None {
                    let _ = theirs.lock().unwrap().kill();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let member = Self { pid, heard, connected, sleep };
        member.wait_connected();
        member
    }

    /// Waits until it has said hello once more.
    fn wait_connected(&self) {
        self.connected.recv_timeout(Duration::from_secs(10)).unwrap();
    }

    /// Everything that was heard, until nothing comes for a while.
    fn heard(&self) -> Vec<String> {
        let mut all = Vec::new();
        while let Ok(word) = self.heard.recv_timeout(Duration::from_millis(200)) {
            all.push(word);
        }
        all
    }

    fn lives(&self) -> bool {
        self.sleep.lock().unwrap().try_wait().unwrap().is_none()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut sleep = self.sleep.lock().unwrap();
        let _ = sleep.kill();
        let _ = sleep.wait();
    }
}

fn say(mut stream: &UnixStream, message: FromManager<'_>) {
    let mut frame = Box::new([0; HEADER_LEN + MAX_PAYLOAD]);
    let len = message.encode(&mut frame);
    let _ = stream.write_all(&frame[..len]);
}

/// Reads one message, and the descriptor that comes with it.
fn hear(stream: &UnixStream) -> Option<(u16, Vec<u8>, Option<OwnedFd>)> {
    let mut header = [0; HEADER_LEN];
    let mut space = cmsg_space!([i32; 1]);
    let (len, fd) = {
        let mut slice = [IoSliceMut::new(&mut header)];
        let message =
            recvmsg::<()>(stream.as_raw_fd(), &mut slice, Some(&mut space), MsgFlags::MSG_WAITALL)
                .ok()?;
        let fd = message.cmsgs().unwrap().find_map(|part| match part {
            // SAFETY: the kernel has just made this descriptor for us.
            ControlMessageOwned::ScmRights(fds) => Some(unsafe { OwnedFd::from_raw_fd(fds[0]) }),
            _ => None,
        });
        (message.bytes, fd)
    };
    if len < HEADER_LEN {
        return None;
    }
    let header = FrameHeader::decode(header).unwrap();
    let mut payload = vec![0; header.len];
    let mut reader = stream;
    reader.read_exact(&mut payload).ok()?;
    Some((header.kind, payload, fd))
}

fn manage(stream: &UnixStream, manner: Manner, sleep: &Mutex<Child>, tell: &mpsc::Sender<String>) {
    while let Some((kind, payload, fd)) = hear(stream) {
        match ToManager::decode(kind, &payload).unwrap() {
            ToManager::Prepare { .. } | ToManager::Wished { .. } => {
                panic!("nobody has asked for it")
            }
            ToManager::Freeze { epoch, .. } => {
                let _ = tell.send(format!("freeze {epoch}"));
                match manner {
                    Manner::NeverFreezes => {}
                    Manner::DiesWhenFrozen => {
                        let mut sleep = sleep.lock().unwrap();
                        sleep.kill().unwrap();
                        sleep.wait().unwrap();
                        return;
                    }
                    _ => say(stream, FromManager::Frozen { threads: 1 }),
                }
            }
            ToManager::Capture { flags, zombies } => {
                let zombies: Vec<_> = Zombie::decode_all(zombies).map(|z| z.status).collect();
                let _ = tell.send(format!("capture {flags} {zombies:?}"));
                if manner == Manner::FailsToCapture {
                    let text = b"it has a thing that cannot be saved: remove it";
                    say(
                        stream,
                        FromManager::Failed { failure: Failure::Unsupported, errno: 0, text },
                    );
                    continue;
                }
                let mut file = File::from(fd.expect("a descriptor comes with Capture"));
                if flags & 1 == 0 {
                    say(stream, FromManager::Snapped);
                }
                if manner == Manner::WritesSlowly {
                    std::thread::sleep(Duration::from_millis(500));
                }
                let image = vec![7; 3 << 20];
                if file.write_all(&image).is_ok() {
                    drop(file);
                    say(stream, FromManager::Written { bytes: image.len() as u64 });
                }
            }
            ToManager::Thaw(_) => {
                let _ = tell.send("thaw".into());
            }
            ToManager::End => {
                let mut sleep = sleep.lock().unwrap();
                let _ = sleep.kill();
                let _ = sleep.wait();
                let _ = tell.send("end".into());
                return;
            }
        }
    }
}

fn checkpoint(address: &Address) -> Result<Checkpointed, ulpm_control::ClientError> {
    checkpoint_and(address, false, false)
}

fn checkpoint_and(
    address: &Address,
    freeze_until_durable: bool,
    kill: bool,
) -> Result<Checkpointed, ulpm_control::ClientError> {
    let mut client = Client::connect(address).unwrap();
    let jobs = Vec::new();
    client.send(&Request::Checkpoint {
        jobs,
        keep: None,
        freeze_until_durable,
        kill,
        outside: Outside::Reset,
    })?;
    loop {
        match client.receive()? {
            Reply::Progress(_) => {}
            Reply::Checkpointed(mut done) => return Ok(done.remove(0)),
            other => panic!("{other:?}"),
        }
    }
}

fn migrate(address: &Address, target: &str) -> Result<Migrated, ulpm_control::ClientError> {
    let mut client = Client::connect(address).unwrap();
    let (target, jobs) = (target.to_owned(), Vec::new());
    client.send(&Request::Migrate {
        target: Some(target),
        jobs,
        keep_images: false,
        force: false,
        files: Files::Continue,
        outside: Outside::Reset,
        ssh: Ssh::default(),
        stdio: None,
    })?;
    loop {
        match client.receive()? {
            Reply::Progress(_) => {}
            Reply::Migrated(mut done) => return Ok(done.remove(0)),
            other => panic!("{other:?}"),
        }
    }
}

fn status(address: &Address) -> Status {
    match Client::connect(address).unwrap().call(&Request::Status).unwrap() {
        Reply::Status(status) => status,
        other => panic!("{other:?}"),
    }
}

/// Waits until something is so.
fn until(what: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !so() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_checkpoint_is_complete_and_the_oldest_goes() {
    let lab = Lab::new();
    let (address, _) = lab.coordinator("a");
    let mut client = Client::connect(&address).unwrap();
    let job = lab.open(&mut client, "x-1");
    let members: Vec<_> = (0..5).map(|_| Member::start(&job.table, Manner::Obeys)).collect();
    for generation in 1..=3 {
        let done = checkpoint(&address).unwrap();
        assert_eq!((done.generation, done.processes, done.bytes), (generation, 5, 5 * (3 << 20)));
        assert_eq!(done.path, lab.ckpt_dir().join("x-1").join(generation.to_string()));
        let manifest = Manifest::read(&lab.ckpt_dir().join("x-1/latest")).unwrap();
        assert_eq!((manifest.generation, manifest.processes.len()), (generation, 5));
        for process in &manifest.processes {
            let len = std::fs::metadata(done.path.join(&process.file)).unwrap().len();
            assert_eq!(len, process.bytes);
        }
        assert!(done.freeze_ms < 500.0, "{}", done.freeze_ms);
    }
    assert_eq!(lab.files("x-1"), ["2", "3", "latest"]);
    let heard = members[0].heard();
    assert_eq!(heard[..3], ["freeze 1", "capture 2 []", "thaw"]);
}

#[test]
fn a_job_goes_on_when_its_checkpoint_is_durable_if_that_is_wanted() {
    let lab = Lab::new();
    let (address, _) = lab.coordinator("a");
    let mut client = Client::connect(&address).unwrap();
    let job = lab.open(&mut client, "x-1");
    let member = Member::start(&job.table, Manner::WritesSlowly);
    let done = checkpoint_and(&address, true, false).unwrap();
    assert!(done.freeze_ms >= 500.0, "{}", done.freeze_ms);
    assert_eq!(member.heard(), ["freeze 1", "capture 3 []", "thaw"]);
    assert!(member.lives());
}

#[test]
fn a_job_that_is_saved_and_killed_never_goes_on_in_between() {
    let lab = Lab::new();
    let (address, _) = lab.coordinator("a");
    let mut client = Client::connect(&address).unwrap();
    let job = lab.open(&mut client, "x-1");
    let members: Vec<_> = (0..3).map(|_| Member::start(&job.table, Manner::WritesSlowly)).collect();
    client.send(&Request::JobStarted { job: job.job, pid: members[0].pid }).unwrap();
    let done = checkpoint_and(&address, false, true).unwrap();
    assert!(members.iter().all(|member| !member.lives()));
    for member in &members {
        let heard = member.heard();
        assert_eq!(heard[..2], ["freeze 1", "capture 3 []"]);
        // Some are killed before they have said that they heard of it.
        assert!(!heard.contains(&"thaw".to_owned()), "{heard:?}");
    }
    let manifest = Manifest::read(&lab.ckpt_dir().join("x-1/latest")).unwrap();
    assert_eq!((done.generation, manifest.processes.len()), (1, 3));
    // The launcher learns that it was no move, says how its child ended, and that is the end.
    assert_eq!(
        client.call(&Request::Outcome { job: job.job, status: None }).unwrap(),
        Reply::Ended
    );
    assert_eq!(client.call(&Request::JobExited { job: job.job, status: 9 }).unwrap(), Reply::Done);
    until("the end of the job", || status(&address).jobs.is_empty());
    assert_eq!(lab.files("x-1"), ["1", "latest"]);
}

#[test]
fn a_job_that_cannot_be_saved_is_not_killed() {
    let lab = Lab::new();
    let (address, _) = lab.coordinator("a");
    let mut client = Client::connect(&address).unwrap();
    let job = lab.open(&mut client, "x-1");
    let good = Member::start(&job.table, Manner::Obeys);
    let bad = Member::start(&job.table, Manner::FailsToCapture);
    checkpoint_and(&address, false, true).unwrap_err();
    assert_eq!(good.heard(), ["freeze 1", "capture 3 []", "thaw"]);
    assert!(good.lives() && bad.lives());
    drop(bad);
    // `latest` cannot be made to point to what is complete otherwise.
    let latest = lab.ckpt_dir().join("x-1/latest");
    std::fs::create_dir_all(latest.join("in the way")).unwrap();
    checkpoint_and(&address, false, true).unwrap_err();
    assert_eq!(good.heard(), ["freeze 2", "capture 3 []", "thaw"]);
    assert!(good.lives());
    std::fs::remove_dir_all(latest).unwrap();
    checkpoint(&address).unwrap();
}

#[test]
fn a_member_that_cannot_be_saved_is_named_and_all_go_on() {
    let lab = Lab::new();
    let (address, _) = lab.coordinator("a");
    let mut client = Client::connect(&address).unwrap();
    let job = lab.open(&mut client, "x-1");
    let good = Member::start(&job.table, Manner::Obeys);
    let bad = Member::start(&job.table, Manner::FailsToCapture);
    let error = checkpoint(&address).unwrap_err().to_string();
    assert!(error.contains(&format!("process {} (sleep 1000)", bad.pid)), "{error}");
    assert!(error.contains("remove it"), "{error}");
    assert_eq!(good.heard().last().unwrap(), "thaw");
    assert!(good.lives() && bad.lives());
    assert_eq!(lab.files("x-1"), [""; 0]);
}

#[test]
fn a_member_that_does_not_stop_is_named_at_the_deadline() {
    let lab = Lab::new();
    let (address, _) = lab.coordinator("a");
    let mut client = Client::connect(&address).unwrap();
    let job = lab.open(&mut client, "x-1");
    let good = Member::start(&job.table, Manner::Obeys);
    let bad = Member::start(&job.table, Manner::NeverFreezes);
    let error = checkpoint(&address).unwrap_err().to_string();
    assert!(error.contains(&format!("process {} (sleep 1000)", bad.pid)), "{error}");
    assert!(!error.contains(&good.pid.to_string()), "{error}");
    assert_eq!(good.heard(), ["freeze 1", "thaw"]);
}

#[test]
fn a_child_that_is_not_under_ulpm_is_named() {
    let lab = Lab::new();
    let (address, _) = lab.coordinator("a");
    let mut client = Client::connect(&address).unwrap();
    let job = lab.open(&mut client, "x-1");
    let script = "sleep 60 & exec sleep 1000";
    let member = Member::start_as(&job.table, Manner::Obeys, None, script);
    let children = format!("/proc/{0}/task/{0}/children", member.pid);
    until("the child", || !std::fs::read_to_string(&children).unwrap().is_empty());
    let error = checkpoint(&address).unwrap_err().to_string();
    assert!(error.contains("is not under ULPM"), "{error}");
    for child in std::fs::read_to_string(children).unwrap().split_whitespace() {
        let child = nix::unistd::Pid::from_raw(child.parse().unwrap());
        nix::sys::signal::kill(child, nix::sys::signal::SIGKILL).unwrap();
    }
}

#[test]
fn a_member_that_dies_in_the_freeze_is_left_out() {
    let lab = Lab::new();
    let (address, _) = lab.coordinator("a");
    let mut client = Client::connect(&address).unwrap();
    let job = lab.open(&mut client, "x-1");
    let _good = Member::start(&job.table, Manner::Obeys);
    let _bad = Member::start(&job.table, Manner::DiesWhenFrozen);
    assert_eq!(checkpoint(&address).unwrap().processes, 1);
}

#[test]
fn a_zombie_is_passed_to_its_parent_with_its_status() {
    let lab = Lab::new();
    let (address, _) = lab.coordinator("a");
    let mut client = Client::connect(&address).unwrap();
    let job = lab.open(&mut client, "x-1");
    let member = Member::start_as(&job.table, Manner::Obeys, None, "(exit 3) & exec sleep 1000");
    until("the zombie", || {
        let children = format!("/proc/{0}/task/{0}/children", member.pid);
        let child = std::fs::read_to_string(children).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
        stat.is_ok_and(|stat| stat.contains(") Z "))
    });
    checkpoint(&address).unwrap();
    assert!(member.heard().contains(&format!("capture 2 [{}]", 3 << 8)));
}

#[test]
fn a_second_checkpoint_at_once_is_refused() {
    let lab = Lab::new();
    let (address, _) = lab.coordinator("a");
    let mut client = Client::connect(&address).unwrap();
    let job = lab.open(&mut client, "x-1");
    let _member = Member::start(&job.table, Manner::WritesSlowly);
    let first = std::thread::spawn({
        let address = address.clone();
        move || checkpoint(&address).map(drop)
    });
    until("the first checkpoint", || status(&address).jobs[0].state == "checkpointing");
    let error = checkpoint(&address).unwrap_err();
    assert_eq!(error.exit_code(), exit::TEMPORARY);
    assert!(error.to_string().contains("busy"), "{error}");
    first.join().unwrap().unwrap();
}

#[test]
fn the_next_coordinator_finds_the_job() {
    let lab = Lab::new();
    let (address, _) = lab.coordinator("a");
    let mut client = Client::connect(&address).unwrap();
    let job = lab.open(&mut client, "x-1");
    let member = Member::start(&job.table, Manner::Obeys);
    checkpoint(&address).unwrap();
    lab.kill_last_coordinator();
    assert!(member.lives());
    let (address, _) = lab.coordinator("a");
    // Until its manager was back, nothing but the table in its memory proved that it is a member.
    member.wait_connected();
    let found = status(&address);
    assert_eq!((found.jobs[0].id, found.jobs[0].generation), (job.job, 1));
    assert_eq!(checkpoint(&address).unwrap().generation, 2);
    drop(member);
    until("the end of the job", || status(&address).jobs.is_empty());
    assert!(!job.table.exists());
}

#[test]
fn a_job_moves_there_and_back_and_its_status_comes_home() {
    let lab = Lab::new();
    let (a, a_listens) = lab.coordinator("a");
    let (b, b_listens) = lab.coordinator("b");
    let mut launcher = Client::connect(&a).unwrap();
    let job = lab.open(&mut launcher, "x-1");
    let members: Vec<_> = (0..3).map(|_| Member::start(&job.table, Manner::Obeys)).collect();
    launcher.send(&Request::JobStarted { job: job.job, pid: members[0].pid }).unwrap();
    let done = migrate(&a, &b_listens).unwrap();
    assert_eq!((done.processes, done.bytes), (3, 3 * (3 << 20)));
    assert!(members.iter().all(|member| !member.lives()));
    assert_eq!(
        launcher.call(&Request::Outcome { job: job.job, status: None }).unwrap(),
        Reply::Moved { host: b_listens, stdio: message::Stdio::Follow }
    );
    let there = status(&b);
    assert_eq!((there.jobs[0].id, there.jobs[0].processes.len()), (done.target_id, 3));
    assert_eq!(there.jobs[0].processes.iter().filter(|p| p.virt == members[0].pid).count(), 1);
    until("the end here", || status(&a).jobs.is_empty());
    until("the images' removal", || lab.files("x-1").is_empty());
    assert_eq!(status(&a).moved[0].name, "x-1");

    let back = migrate(&b, &a_listens).unwrap();
    assert_eq!(status(&a).jobs[0].id, back.target_id);
    until("the end there", || status(&b).jobs.is_empty());
    // The fake restart says 7 when its root is killed.
    let processes = status(&a).jobs.remove(0).processes;
    let root = processes.iter().find(|process| process.virt == members[0].pid).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(root.real), nix::sys::signal::SIGTERM)
        .unwrap();
    let finished = launcher.receive().unwrap();
    assert_eq!(finished, Reply::Finished { status: Some(7 << 8), text: String::new() });
    let output = Client::connect(&a).unwrap().call(&Request::Output {
        job: Some(back.target_id.to_string()),
        offset: 0,
        follow: false,
    });
    assert!(
        matches!(output.unwrap(), Reply::Output(text) if text.ends_with(b"fake restart runs\n"))
    );
}

#[test]
fn a_target_that_cannot_restart_leaves_the_job_alone() {
    let lab = Lab::new();
    let (a, _) = lab.coordinator("a");
    let (b, b_listens) = lab.coordinator("b");
    let mut launcher = Client::connect(&a).unwrap();
    let job = lab.open(&mut launcher, "x-1");
    let member = Member::start(&job.table, Manner::Obeys);
    let restart = lab.dir.join("lib/ulpm_restart");
    std::fs::write(&restart, "#!/bin/sh\necho no memory for it >&2\nexit 1\n").unwrap();
    let error = migrate(&a, &b_listens).unwrap_err();
    let chain = ulpm_control::chain(&error).join(": ");
    assert!(chain.contains("no memory for it") && chain.contains("goes on here"), "{chain}");
    assert_eq!(member.heard(), ["freeze 1", "capture 1 []", "thaw"]);
    assert!(member.lives());
    assert_eq!(lab.files("x-1"), [""; 0]);
    assert!(status(&b).jobs.is_empty());
    // And nobody there at all.
    let error = migrate(&a, "127.0.0.1:1").unwrap_err();
    assert_eq!(error.exit_code(), exit::NO_HOST);
    // It can still be saved.
    checkpoint(&a).unwrap();
}

#[test]
fn a_target_that_dies_leaves_the_job_alone() {
    let lab = Lab::new();
    let (a, _) = lab.coordinator("a");
    let mut launcher = Client::connect(&a).unwrap();
    let job = lab.open(&mut launcher, "x-1");
    let member = Member::start(&job.table, Manner::Obeys);
    let restart = lab.dir.join("lib/ulpm_restart");
    std::fs::write(&restart, "#!/bin/sh\nexec sleep 100\n").unwrap();
    let (_, b_listens) = lab.coordinator("b");
    let moving = std::thread::spawn({
        let a = a.clone();
        move || migrate(&a, &b_listens).map(drop)
    });
    until("the capture", || lab.ckpt_dir().join("x-1/1/manifest.json").exists());
    lab.kill_last_coordinator();
    let error = moving.join().unwrap().unwrap_err();
    assert!(error.to_string().contains("goes on here"), "{error}");
    assert_eq!(member.heard().last().unwrap(), "thaw");
    checkpoint(&a).unwrap();
}

#[test]
fn a_job_is_killed_when_asked() {
    let lab = Lab::new();
    let (address, _) = lab.coordinator("a");
    let mut client = Client::connect(&address).unwrap();
    let job = lab.open(&mut client, "x-1");
    let other = lab.open(&mut client, "x-2");
    let member = Member::start(&job.table, Manner::Obeys);
    let spared = Member::start(&other.table, Manner::Obeys);
    let mut tool = Client::connect(&address).unwrap();
    let error = tool.call(&Request::Kill { jobs: Vec::new() }).unwrap_err();
    assert!(error.to_string().contains("x-1 (1), x-2 (2)"), "{error}");
    assert_eq!(tool.call(&Request::Kill { jobs: vec!["x-1".into()] }).unwrap(), Reply::Done);
    until("the end", || !member.lives());
    assert!(spared.lives());
    let error = tool.call(&Request::Kill { jobs: vec!["x-9".into()] }).unwrap_err();
    assert_eq!(error.exit_code(), exit::NO_INPUT);
}

/// A job that is offered, by hand.
fn offer(lab: &Lab, cpu: Vec<String>) -> Offer {
    Offer {
        version: "test".into(),
        host: "elsewhere".into(),
        format: ulpm_image::FORMAT_VERSION,
        arch: "x86_64".into(),
        kernel: String::new(),
        kernel_features: Vec::new(),
        cpu,
        cpu_here: Vec::new(),
        uid: nix::unistd::geteuid().as_raw(),
        groups: Vec::new(),
        name: "x-1".into(),
        policy: lab.policy(),
        processes: 1,
        bytes: 0,
        threads: 1,
        descriptors: 3,
        paths: Vec::new(),
        programs: Vec::new(),
        keep_images: false,
        force: false,
        files: Files::Continue,
        outside: Outside::Reset,
        revoked: None,
        port: None,
        home: None,
    }
}

/// The source's end of a hand-over, by hand, up to `Prepared`.
fn hand_over(lab: &Lab, target: &str, virt: i32) -> TcpStream {
    let mut peer = TcpStream::connect(target).unwrap();
    let offer = offer(lab, Vec::new());
    codec::write(&mut peer, &Request::Offer(Box::new(offer))).unwrap();
    let token = match codec::read(&mut peer).unwrap() {
        PeerMessage::Accept { token, .. } => token,
        other => panic!("{other:?}"),
    };
    let mut image = TcpStream::connect(target).unwrap();
    codec::write(&mut image, &Request::Images { token }).unwrap();
    for chunk in [&b"\x03\0\0\0abc"[..], b"\0\0\0\0"] {
        image.write_all(&[&virt.to_le_bytes(), chunk].concat()).unwrap();
    }
    image.read_exact(&mut [0]).unwrap();
    let manifest = Manifest {
        format: ulpm_control::manifest::FORMAT,
        ulpm_version: "test".into(),
        job: "x-1".into(),
        generation: 0,
        created: String::new(),
        host: "elsewhere".into(),
        arch: "x86_64".into(),
        kernel: String::new(),
        cpu: Vec::new(),
        argv: Vec::new(),
        cwd: "/".into(),
        root: virt,
        ckpt_signal: 12,
        interval: None,
        keep: None,
        recovery: ulpm_control::Recovery::default(),
        processes: vec![ProcessEntry {
            virt,
            parent: 0,
            file: Manifest::image_name(virt),
            bytes: 3,
            command: String::new(),
        }],
        freeze_ms: 0.0,
        total_ms: 0.0,
    };
    codec::write(&mut peer, &PeerMessage::Manifest(Box::new(manifest))).unwrap();
    let prepared: PeerMessage = codec::read(&mut peer).unwrap();
    assert!(matches!(prepared, PeerMessage::Prepared { .. }), "{prepared:?}");
    peer
}

#[test]
fn a_source_that_dies_before_it_commits_leaves_an_image_on_the_target() {
    let lab = Lab::new();
    let (address, listen) = lab.coordinator("b");
    let peer = hand_over(&lab, &listen, 77);
    assert_eq!(status(&address).jobs[0].processes.len(), 1);
    drop(peer);
    until("the end of what was restored", || status(&address).jobs.is_empty());
    until("the image", || lab.files("x-1") == ["1", "latest"]);
}

#[test]
fn a_source_that_dies_after_it_commits_finds_the_job_on_the_target() {
    let lab = Lab::new();
    let (address, listen) = lab.coordinator("b");
    let mut peer = hand_over(&lab, &listen, 77);
    codec::write(&mut peer, &PeerMessage::Commit).unwrap();
    drop(peer);
    until("the job's going on", || status(&address).jobs[0].state == "running");
    until("the image's removal", || lab.files("x-1").is_empty());
    let real = status(&address).jobs[0].processes[0].real;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(real), nix::sys::signal::SIGTERM).unwrap();
    until("the end", || status(&address).jobs.is_empty());
}

#[test]
fn a_source_that_dies_after_its_decision_never_goes_on_and_before_it_does() {
    let lab = Lab::new();
    let (address, _) = lab.coordinator("a");
    let mut client = Client::connect(&address).unwrap();
    let staying = lab.open(&mut client, "x-1");
    let leaving = lab.open(&mut client, "x-2");
    let stays = Member::start(&staying.table, Manner::Obeys);
    let leaves = Member::start(&leaving.table, Manner::Obeys);
    map(&leaving.table).set_handover(Handover::Committed);
    lab.kill_last_coordinator();
    // The record alone decides nothing; the table does.
    for job in [&staying, &leaving] {
        let record = format!(
            r#"{{"id": {}, "name": "x", "target": "127.0.0.1:1", "token": "00", "image": "there",
                "origin": null, "finished": null}}"#,
            job.job
        );
        std::fs::write(lab.dir.join(format!("a.d/moved/{}.json", job.job)), record).unwrap();
    }
    until("the end of what has left", || !leaves.lives());
    let (address, _) = lab.coordinator("a");
    // Until its manager was back, nothing but the table in its memory proved that it is a member.
    stays.wait_connected();
    let found = status(&address);
    assert_eq!(found.moved.iter().map(|job| job.id).collect::<Vec<_>>(), [leaving.job]);
    assert_eq!(found.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [staying.job]);
    assert!(stays.lives());
    let outcome = Client::connect(&address)
        .unwrap()
        .call(&Request::Outcome { job: leaving.job, status: None });
    assert!(matches!(outcome.unwrap(), Reply::Moved { .. }));
}

#[test]
fn an_image_that_is_cut_off_is_not_taken() {
    let lab = Lab::new();
    let (address, listen) = lab.coordinator("b");
    let mut peer = TcpStream::connect(&listen).unwrap();
    let offer = offer(&lab, vec!["no_such_feature".into()]);
    codec::write(&mut peer, &Request::Offer(Box::new(offer.clone()))).unwrap();
    let answer: PeerMessage = codec::read(&mut peer).unwrap();
    let lacks = |answer: &PeerMessage| match answer {
        PeerMessage::Refuse { chain, .. } => chain[0].contains("no_such_feature"),
        _ => false,
    };
    assert!(lacks(&answer), "{answer:?}");
    let mut peer = TcpStream::connect(&listen).unwrap();
    let offer = Offer { force: true, ..offer };
    codec::write(&mut peer, &Request::Offer(Box::new(offer))).unwrap();
    let PeerMessage::Accept { token, .. } = codec::read(&mut peer).unwrap() else {
        panic!("refused")
    };
    let mut image = TcpStream::connect(&listen).unwrap();
    codec::write(&mut image, &Request::Images { token }).unwrap();
    image.write_all(b"\x05\0\0\0\x03\0\0\0ab").unwrap();
    drop(image);
    let answer: PeerMessage = codec::read(&mut peer).unwrap();
    assert!(matches!(answer, PeerMessage::Refuse { image: None, .. }), "{answer:?}");
    assert_eq!(lab.files("x-1"), [""; 0]);
    assert!(status(&address).jobs.is_empty());
}

/// A source that offers little and sends much is stopped where the owner's limit is.
#[test]
fn more_than_the_owner_gives_is_not_taken() {
    let lab = Lab::new();
    let (address, listen) = lab.coordinator_with("b", &["--max-disk", "1M"]);
    let mut peer = TcpStream::connect(&listen).unwrap();
    let offer = offer(&lab, Vec::new());
    codec::write(&mut peer, &Request::Offer(Box::new(offer))).unwrap();
    let PeerMessage::Accept { token, .. } = codec::read(&mut peer).unwrap() else {
        panic!("refused")
    };
    let mut image = TcpStream::connect(&listen).unwrap();
    codec::write(&mut image, &Request::Images { token }).unwrap();
    let chunk =
        [&5_i32.to_le_bytes()[..], &(1_u32 << 18).to_le_bytes(), &vec![7; 1 << 18]].concat();
    // It hangs up sooner or later.
    let _ = (0..8).try_for_each(|_| image.write_all(&chunk));
    let answer: PeerMessage = codec::read(&mut peer).unwrap();
    let PeerMessage::Refuse { code, chain, image: None } = answer else { panic!("{answer:?}") };
    assert_eq!(code, exit::LIMIT, "{chain:?}");
    assert!(chain.join(": ").contains("its owner"), "{chain:?}");
    assert_eq!(lab.files("x-1"), [""; 0]);
    assert!(status(&address).jobs.is_empty());
}

/// Stands in for `ulpm_restart --hold`, when a coordinator starts this program as such; else nothing.
#[test]
fn fake_restart() {
    let Ok(arguments) = std::env::var("FAKE_RESTART") else { return };
    let words: Vec<_> = arguments.split(' ').collect();
    let after = |option: &str| words[words.iter().position(|word| *word == option).unwrap() + 1];
    let manifest = Manifest::read(Path::new(words.last().unwrap())).unwrap();
    let mut client = Client::connect(&after("-c").parse().unwrap()).unwrap();
    let request = Request::Restart(Restart {
        name: manifest.job.clone(),
        argv: manifest.argv.clone(),
        cwd: manifest.cwd.clone(),
        generation: manifest.generation,
        policy: Policy {
            ckpt_dir: after("-d").into(),
            interval: manifest.interval,
            keep: manifest.keep,
            ckpt_signal: manifest.ckpt_signal,
            stdio: message::Stdio::Follow,
            recovery: manifest.recovery.clone(),
        },
        members: manifest.processes.iter().map(|process| process.virt).collect(),
        root: manifest.root,
        stdio: [Stream::default(); 3],
        hold_token: Some(after("--hold").into()),
        recovers: None,
    });
    let Reply::JobOpened(opened) = client.call(&request).unwrap() else { panic!("no job") };
    assert_ne!(opened.job, JobId(0));
    let members: Vec<_> = manifest
        .processes
        .iter()
        .map(|process| {
            let member = Member::start_as(
                &opened.table,
                Manner::Obeys,
                Some(process.virt),
                "exec sleep 1000",
            );
            (process.virt, member)
        })
        .collect();
    assert_eq!(client.receive().unwrap(), Reply::Running);
    println!("fake restart runs");
    let (_, root) = members.iter().find(|(virt, _)| *virt == manifest.root).unwrap();
    while root.lives() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = client.call(&Request::JobExited { job: opened.job, status: 7 << 8 });
    std::process::exit(0);
}
