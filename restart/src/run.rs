//! A restart from beginning to end.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
};
use ulpm_control::link::{JobLink, Outcome, Recovering, exit_code};
use ulpm_control::message::{Outside, Policy, Recovers, Restart, Stdio, Stream, word};
use ulpm_control::session::Streams;
use ulpm_control::{
    Address, Client, ClientError, JobId, Manifest, Recovery, Reply, Request, exit, host, place,
};
use ulpm_protocol::table::{Handover, SlotState, Table};
use ulpm_restorer::{FAILURE_LEN, Failure};
use ulpm_sys::arch::xsave::Layout;

use crate::clock::JobTime;
use crate::error::RestartError;
use crate::files::Files;
use crate::image_file::ImageFile;
use crate::ipc::Ipc;
use crate::locks;
use crate::objects::{self, Circumstances, Objects};
use crate::options::Options;
use crate::path_map::PathMap;
use crate::plugins;
use crate::session::Session;
use crate::terminal::{self, Given};
use crate::tree::{Forked, Tree, open_table};

/// What is to be restarted.
#[derive(Debug)]
struct Checkpoint {
    images: Vec<ImageFile>,
    root: i32,
    name: String,
    generation: u64,
    argv: Vec<String>,
    cwd: PathBuf,
    policy: Policy,
    /// Features of the processor that its programs may have chosen, as far as that is known.
    cpu: Vec<String>,
}

/// Restarts what the options name, waits for it, and returns the exit code.
///
/// # Errors
///
/// [`RestartError`]; nothing of the job is left running.
pub fn run(options: &Options) -> Result<u8, RestartError> {
    let result = restart(options);
    let (Err(error), Some(recovering)) = (&result, &options.recover) else { return result };
    // The coordinator decides whether it is tried again.
    ulpm_control::print_error("ulpm_restart", error);
    let mut link = JobLink::unconnected(address(options), recovering.job);
    match link.outcome(None, say) {
        Outcome::Again { path, token } => Err(again(options, recovering.job, token, &path)),
        _ => Ok(error.exit_code()),
    }
}

fn address(options: &Options) -> Address {
    options.coordinator.clone().unwrap_or_else(|| Address::Socket(place::socket()))
}

fn say(text: &str) {
    eprintln!("ulpm_restart: {text}");
}

/// Becomes the next attempt, with the same options; returns only why not.
fn again(options: &Options, job: JobId, token: String, path: &Path) -> RestartError {
    let mut same: Vec<OsString> = Vec::new();
    for (option, value) in [
        ("--outside-sockets", word(&options.outside_sockets)),
        ("--files", word(&options.files)),
        ("--stdio", word(&options.stdio)),
    ] {
        same.extend([option.into(), value.into()]);
    }
    if let Some(dir) = &options.ckpt_dir {
        same.extend(["--ckpt-dir".into(), dir.into()]);
    }
    for mapping in &options.map_path {
        same.extend(["--map-path".into(), mapping.to_argument()]);
    }
    let flags = [
        (options.force, "--force"),
        (options.no_time_namespace, "--no-time-namespace"),
        (options.verbose, "--verbose"),
    ];
    same.extend(flags.into_iter().filter(|(given, _)| *given).map(|(_, flag)| flag.into()));
    let source = Recovering { job, token }.exec(&address(options), &same, path);
    RestartError::System { what: "become the next attempt", source }
}

fn restart(options: &Options) -> Result<u8, RestartError> {
    let paths = PathMap(options.map_path.clone());
    let checkpoint = read(options)?;
    if options.outside_sockets == Outside::Refuse {
        objects::refuse_outside(&checkpoint.images)?;
    }
    if options.only_outside {
        return Ok(exit::OK);
    }
    check(&checkpoint)?;
    if !options.force {
        check_processor(&checkpoint)?;
    }
    plugins::check(&checkpoint.images)?;
    let follow = options.stdio == Stdio::Follow;
    let session = options.session.as_deref().filter(|_| options.hold.is_some());
    let mut session =
        session.map(|path| Session::begin(&checkpoint.images, path, follow)).transpose()?;
    let circumstances = Circumstances {
        outside: options.outside_sockets,
        hold: options.hold.is_some(),
        check: options.check,
        streams: session.as_ref().map_or([0, 1, 2], Session::streams),
    };
    let mut files = Files::look(&checkpoint.images, &paths, options.files, options.check)?;
    let mut objects = Objects::create(&checkpoint.images, &paths, circumstances)?;
    if options.hold.is_none() {
        // One that is moved may hold its locks until it has ended on the other host.
        locks::check(&checkpoint.images, &paths)?;
    }
    if options.check {
        let count = checkpoint.images.len();
        println!("{}: {count} processes can be restarted here", checkpoint.name);
        return Ok(exit::OK);
    }
    let address = address(options);
    let mut client = Client::connect_or_start(&address)?;
    let opened = match client.call(&Request::Restart(request(
        &checkpoint,
        options,
        circumstances.streams,
    )))? {
        Reply::JobOpened(opened) => opened,
        other => return Err(ClientError::Unexpected(format!("{other:?}")).into()),
    };
    let (table, table_file) = open_table(&opened.table)?;
    let environment = plugins::leave_environment(&checkpoint.images, &opened.table)?;
    if options.hold.is_some() {
        let names = objects.names.encode();
        let path = names_path(&opened.table);
        if !names.is_empty() {
            std::fs::write(&path, names).map_err(|source| RestartError::System {
                what: "note the names of sockets",
                source,
            })?;
        }
    } else {
        objects.names.publish()?;
    }
    let highest = checkpoint.images.iter().map(ImageFile::pid).max().unwrap_or(0);
    table.reserve_virtual(highest);
    for (inode, name) in objects.socket_names() {
        let named = table.name_socket(*inode, name);
        // Whoever asks for credentials that there was no room for is told the kernel's.
        if name.credentials().is_none() {
            named.map_err(|error| RestartError::Socket(error.to_string()))?;
        }
    }

    for &inode in &objects.queues.inodes {
        table.note_queue(inode);
    }

    let (failures, report) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|errno| RestartError::System { what: "make a pipe", source: errno.into() })?;
    let mut failures = File::from(failures);
    // No signal may reach a process of the tree before its handlers are there.
    let mut mask = SigSet::empty();
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask));
    let tree =
        Tree::new(&checkpoint.images, &objects, &paths, table, table_file, File::from(report))?;
    let saved = terminal::launchers(&checkpoint.images).filter(|_| !options.detach);
    let given = saved.and_then(|_| Given::find());
    let terminal = given.as_ref().zip(saved);
    // A job that comes from another host is still there.
    let mut ipc = Ipc::default();
    let made = ipc.create(&checkpoint.images, table, options.hold.is_some());
    let job_time = JobTime::enter(&checkpoint.images, table, !options.no_time_namespace);
    let forked = made.and_then(|()| files.cut()).and_then(|()| tree.fork());
    drop(job_time);
    tree.close(); // Ours of what was inherited, or no pipe would ever end.
    // It is set from the background too.
    mask.add(Signal::SIGTTOU);
    if let Some((given, saved)) = terminal {
        given.take_over(saved);
    }
    let result = forked.and_then(|forked| {
        let root = forked.iter().find(|forked| forked.virt == checkpoint.root).copied();
        forward_signals(root);
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None);
        match wait_until_running(&mut client, &mut failures, table) {
            // A job that came from another host, or has failed, has no other instance from the moment at which its table says that
            // it goes on here, also if the coordinator died before it could tell us.
            Err(error)
                if (options.hold.is_none() && options.recover.is_none())
                    || table.handover() != Handover::None =>
            {
                Err(error)
            }
            _ => Ok(root),
        }
    });
    let root = match result {
        Ok(root) => root,
        Err(error) => {
            let text = ulpm_control::chain(&error).join(": ");
            let _ = client.call(&Request::RestartFailed { text });
            kill_all(table);
            if let Some(given) = &given {
                given.put_back();
            }
            let _ = std::fs::remove_file(names_path(&opened.table));
            let _ = std::fs::remove_file(environment);
            return Err(error);
        }
    };
    if let Some(session) = &mut session {
        session.goes_on();
    }
    ipc.keep();
    files.keep();
    objects.names.forget();
    objects.queues.keep();
    if options.verbose {
        eprintln!("ulpm_restart: job {} ({}) runs", opened.name, opened.job);
    }
    if options.detach {
        return Ok(exit::OK);
    }
    let mut link = JobLink::new(address, client, opened.job, opened.table);
    if let Some((given, saved)) = terminal {
        given.redraw(saved);
    }
    let mut status = wait(root);
    if let Some(given) = &given {
        given.put_back();
    }
    match link.outcome(Some(status), say) {
        Outcome::Moved(host, stdio) => {
            status = if stdio == Stdio::Follow {
                // What waits in our streams is the job's, and goes to it first.
                let streams = session
                    .map_or_else(Streams::own, |session| Streams(session.into_streams().map(Some)));
                link.follow(&host, streams, given.map(|given| given.modes()))
            } else {
                link.wait_elsewhere(&host)
            }
            .map_err(RestartError::Elsewhere)?;
            return Ok(exit_code(status));
        }
        Outcome::Again { path, token } => {
            // What it had here is what the next attempt finds at the usual numbers.
            if let Some(session) = session {
                for (stream, number) in session.into_streams().into_iter().zip(0..) {
                    // SAFETY: the call takes numbers only.
                    unsafe { libc::dup2(stream.as_raw_fd(), number) };
                }
            }
            return Err(again(options, opened.job, token, &path));
        }
        Outcome::Ended => {}
    }
    link.exited(status);
    Ok(exit_code(status))
}

/// Where the managers find what they have to put in place when the job goes on.
fn names_path(table: &Path) -> PathBuf {
    let mut path = table.as_os_str().to_owned();
    path.push(ulpm_protocol::restart::NAMES);
    path.into()
}

fn read(options: &Options) -> Result<Checkpoint, RestartError> {
    match &options.checkpoint[..] {
        [dir] if dir.is_dir() => {
            // The directory of a job stands for its newest checkpoint.
            let latest = dir.join("latest");
            let is_job = !dir.join(ulpm_control::manifest::FILE_NAME).exists() && latest.is_dir();
            read_dir(if is_job { &latest } else { dir }, options)
        }
        files => read_files(files, options),
    }
}

fn read_dir(dir: &Path, options: &Options) -> Result<Checkpoint, RestartError> {
    let dir =
        dir.canonicalize().map_err(|source| RestartError::Read { path: dir.into(), source })?;
    let manifest = Manifest::read(&dir)?;
    let paths: Vec<PathBuf> =
        manifest.processes.iter().map(|process| dir.join(&process.file)).collect();
    let images = open_images(&paths)?;
    // DIR/NAME/GENERATION
    let own = dir.parent().and_then(Path::parent).map(Path::to_owned);
    Ok(Checkpoint {
        images,
        root: manifest.root,
        name: manifest.job,
        generation: manifest.generation,
        argv: manifest.argv,
        cwd: manifest.cwd,
        policy: Policy {
            ckpt_dir: ckpt_dir(options, own),
            interval: manifest.interval,
            keep: manifest.keep,
            recovery: manifest.recovery,
            ckpt_signal: manifest.ckpt_signal,
            stdio: options.stdio,
        },
        cpu: manifest.cpu,
    })
}

/// Images without their manifest: what it would have said is taken from the images as far as it goes.
fn read_files(files: &[PathBuf], options: &Options) -> Result<Checkpoint, RestartError> {
    let images = open_images(files)?;
    let pids: Vec<i32> = images.iter().map(ImageFile::pid).collect();
    let root = images
        .iter()
        .find(|image| !pids.contains(&image.meta.process.ppid))
        .or(images.first())
        .map_or(0, ImageFile::pid);
    let process = images.iter().find(|image| image.pid() == root).map(|image| &image.meta.process);
    let text = |bytes: Option<&Vec<u8>>| {
        bytes.map_or_else(String::new, |bytes| String::from_utf8_lossy(bytes).into_owned())
    };
    let comm = text(process.map(|process| &process.comm));
    let cwd = process.map_or(&b"/"[..], |process| &process.cwd);
    let cwd = PathBuf::from(std::ffi::OsStr::from_bytes(cwd));
    Ok(Checkpoint {
        images,
        root,
        name: format!("{}-restarted", comm.replace('/', "_")),
        generation: 0,
        argv: vec![comm],
        cwd,
        policy: Policy {
            ckpt_dir: ckpt_dir(options, None),
            interval: None,
            keep: None,
            recovery: Recovery::default(),
            ckpt_signal: libc::SIGUSR2.cast_unsigned(),
            stdio: options.stdio,
        },
        cpu: Vec::new(),
    })
}

fn ckpt_dir(options: &Options, own: Option<PathBuf>) -> PathBuf {
    let chosen =
        options.ckpt_dir.as_deref().map(|dir| std::path::absolute(dir).unwrap_or(dir.into()));
    chosen.or(own).or_else(place::ckpt_dir).unwrap_or_else(|| "/tmp".into())
}

/// Opens and checks images, as many at a time as there are processors.
fn open_images(paths: &[PathBuf]) -> Result<Vec<ImageFile>, RestartError> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(paths.len());
    let mut images: Vec<ImageFile> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|worker| {
                let own = paths.iter().skip(worker).step_by(workers);
                scope.spawn(move || {
                    own.map(|path| ImageFile::open(path)).collect::<Result<Vec<_>, _>>()
                })
            })
            .collect();
        let joined =
            handles.into_iter().map(|handle| handle.join().unwrap_or_else(|_| Ok(Vec::new())));
        joined.collect::<Result<Vec<_>, _>>()
    })?
    .into_iter()
    .flatten()
    .collect();
    images.sort_by_key(ImageFile::pid);
    let mut seen: HashMap<i32, &Path> = HashMap::new();
    for image in &images {
        if let Some(first) = seen.insert(image.pid(), &image.path) {
            let (first, second) = (first.into(), image.path.clone());
            return Err(RestartError::Twice { pid: image.pid(), first, second });
        }
    }
    Ok(images)
}

/// What can be told before anything is made.
fn check(checkpoint: &Checkpoint) -> Result<(), RestartError> {
    let uid = nix::unistd::geteuid().as_raw();
    for image in &checkpoint.images {
        let process = &image.meta.process;
        if process.uid != uid {
            let text = format!(
                "it belongs to user {} and you are user {uid}: restart it as that user",
                process.uid
            );
            return Err(RestartError::Unfit { pid: process.pid, text });
        }
    }
    let own = nix::unistd::getgroups().unwrap_or_default();
    let own: Vec<u32> = own.iter().map(|group| group.as_raw()).collect();
    let saved = checkpoint.images.iter().flat_map(|image| &image.meta.process.groups);
    let missing: BTreeSet<u32> = saved.copied().filter(|group| !own.contains(group)).collect();
    if uid != 0 && !missing.is_empty() {
        // What it has open it keeps; and no group of the user's own is one that it had given up, for only
        // root can do that.
        eprintln!(
            "ulpm_restart: the job had groups that you do not have here: {missing:?}; what only these may open, it cannot"
        );
    }
    let pages = |image: &ImageFile| -> u64 {
        image.extents.iter().filter(|(_, e)| !e.base).map(|(_, e)| u64::from(e.pages)).sum()
    };
    let needed: u64 = checkpoint.images.iter().map(pages).sum::<u64>() * ulpm_image::PAGE as u64;
    if let Some(available) = available_memory()
        && needed > available
    {
        let text =
            format!("the job needs {} MB of memory, {} MB are free", needed >> 20, available >> 20);
        return Err(RestartError::Unfit { pid: checkpoint.root, text });
    }
    Ok(())
}

/// Whether this host's processor has what the job's libraries may have chosen where they were loaded.
fn check_processor(checkpoint: &Checkpoint) -> Result<(), RestartError> {
    let here = host::cpu();
    let lacks: Vec<_> =
        checkpoint.cpu.iter().filter(|feature| !here.contains(*feature)).cloned().collect();
    if !lacks.is_empty() {
        return Err(RestartError::Cpu(lacks));
    }
    // Where XSAVEC is not chosen, libc's lazy binding saves with XSAVE: each component at its place, in
    // room that was reckoned where the program was started.
    let chosen = |name: &str| checkpoint.cpu.iter().any(|feature| feature == name);
    if chosen("xsave") && !chosen("xsavec") {
        /// STATE_SAVE_MASK of glibc: SSE, AVX, MPX's bounds and AVX-512.
        const SAVED: u64 = 0b1110_1110;
        let needed = Layout::here().end(SAVED) as u64;
        let too_small =
            |image: &&ImageFile| image.meta.process.xstate_len.next_multiple_of(64) < needed;
        if let Some(image) = checkpoint.images.iter().find(too_small) {
            return Err(RestartError::Room { pid: image.pid() });
        }
    }
    Ok(())
}

/// MemAvailable and SwapFree of /proc/meminfo, in bytes.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some((kib("MemAvailable:")? + kib("SwapFree:").unwrap_or(0)) << 10)
}

fn request(checkpoint: &Checkpoint, options: &Options, streams: [RawFd; 3]) -> Restart {
    Restart {
        name: checkpoint.name.clone(),
        argv: checkpoint.argv.clone(),
        cwd: checkpoint.cwd.clone(),
        generation: checkpoint.generation,
        policy: checkpoint.policy.clone(),
        members: checkpoint.images.iter().map(ImageFile::pid).collect(),
        root: checkpoint.root,
        stdio: streams.map(stream),
        hold_token: options.hold.clone(),
        recovers: options.recover.clone().map(|Recovering { job, token }| Recovers { job, token }),
    }
}

fn stream(fd: RawFd) -> Stream {
    ulpm_sys::fstat(fd).map_or(Stream::default(), |status| Stream {
        dev: status.dev,
        ino: status.ino,
        open: true,
    })
}

/// How often it is looked whether a process has died while it was rebuilt.
const LOOK_MS: u16 = 100;

/// Waits until the coordinator says that every process goes on.
fn wait_until_running(
    client: &mut Client,
    failures: &mut File,
    table: Table,
) -> Result<(), RestartError> {
    let mut rebuilt = false;
    loop {
        let (answered, failed) = {
            let mut fds = vec![PollFd::new(client.as_fd(), PollFlags::POLLIN)];
            if !rebuilt {
                fds.push(PollFd::new(failures.as_fd(), PollFlags::POLLIN));
            }
            // An interrupted poll found nothing.
            let _ = poll(&mut fds, PollTimeout::from(LOOK_MS));
            let found = |index: usize| fds.get(index).is_some_and(|fd| fd.any() == Some(true));
            (found(0), found(1))
        };
        if failed {
            let mut bytes = [0; libc::PIPE_BUF];
            match failures.read(&mut bytes) {
                Ok(0) => rebuilt = true, // Every process has left the restorer, or died in it.
                Ok(len) => return Err(failure(&bytes[..len])),
                Err(source) => {
                    return Err(RestartError::System { what: "hear of the processes", source });
                }
            }
        }
        if answered {
            return match client.receive()? {
                Reply::Running => Ok(()),
                other => Err(ClientError::Unexpected(format!("{other:?}")).into()),
            };
        }
        if let Some(pid) = dead_member(table) {
            let text = "it ended before it could go on".into();
            return Err(RestartError::Rebuild { pid, text });
        }
    }
}

/// What a process, or the restorer in its place, has written.
fn failure(bytes: &[u8]) -> RestartError {
    if let Some(rest) = bytes.strip_prefix(&u64::MAX.to_le_bytes())
        && let Some((pid, text)) = rest.split_first_chunk()
    {
        // The first to fail counts; the others may have failed because of it.
        let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
        let text = String::from_utf8_lossy(text).into_owned();
        return RestartError::Rebuild { pid: i32::from_le_bytes(*pid), text };
    }
    let text = match <[u8; FAILURE_LEN]>::try_from(&bytes[..bytes.len().min(FAILURE_LEN)]) {
        Ok(bytes) => Failure::decode(bytes).to_string(),
        Err(_) => "it gave no reason".into(),
    };
    RestartError::Rebuild { pid: 0, text }
}

fn members(table: Table) -> impl Iterator<Item = (i32, i32)> {
    let members: Vec<(i32, i32)> = table
        .slots()
        .iter()
        .filter(|slot| slot.state() == SlotState::Live)
        .map(|slot| (slot.real(), slot.virt()))
        .collect();
    members.into_iter()
}

fn dead_member(table: Table) -> Option<i32> {
    members(table).find_map(|(real, virt)| {
        let stat = std::fs::read(format!("/proc/{real}/stat")).unwrap_or_default();
        let state = ulpm_sys::proc::Stat::parse(&stat).and_then(|stat| stat.field(3));
        matches!(state, None | Some(b"Z")).then_some(virt)
    })
}

/// Ends every process of the job, and everything else that we have forked.
fn kill_all(table: Table) {
    for (real, _) in members(table) {
        let _ = ulpm_sys::kill(real, libc::SIGKILL);
    }
    let children = format!("/proc/self/task/{}/children", std::process::id());
    let listed = std::fs::read_to_string(children).unwrap_or_default();
    for child in listed.split_whitespace().filter_map(|pid| pid.parse().ok()) {
        let _ = ulpm_sys::kill(child, libc::SIGKILL);
    }
    // SAFETY: the call takes numbers only.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

static ROOT: AtomicI32 = AtomicI32::new(0);

extern "C" fn forward(signal: libc::c_int) {
    let root = ROOT.load(Ordering::Relaxed);
    if root > 0 {
        let _ = ulpm_sys::kill(root, signal);
    }
}

/// What the terminal sends goes to the program as well as to us; what is sent to us goes on to it.
fn forward_signals(root: Option<Forked>) {
    ROOT.store(root.map_or(0, |root| root.real), Ordering::Relaxed);
    let install = |signal, handler| {
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler reads an atomic and makes a system call.
        let _ = unsafe { sigaction(signal, &action) };
    };
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        install(signal, SigHandler::SigIgn);
    }
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
        install(signal, SigHandler::Handler(forward));
    }
}

/// Waits for the root, or for all if it is not ours; returns its wait status.
fn wait(root: Option<Forked>) -> i32 {
    loop {
        let mut status = 0;
        // SAFETY: the pointer is good for an int.
        let real = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        if real < 0 && std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return 0;
        }
        if root.is_some_and(|root| root.real == real) {
            return status;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_the_restorer_and_one_in_words() {
        let mut text = u64::MAX.to_le_bytes().to_vec();
        text.extend(42i32.to_le_bytes());
        text.extend(b"no luck");
        assert_eq!(failure(&text).to_string(), "process 42 could not be rebuilt: no luck");
        let mut raw = [0u8; FAILURE_LEN];
        raw[0] = 3;
        raw[56..].copy_from_slice(&(-9i64).to_le_bytes());
        assert!(failure(&raw).to_string().contains("CLOSE"), "{}", failure(&raw));
    }
}
