//! The standard streams of a job that comes from another host: what stands here for the terminal or the pipes with which
//! it was launched there.
//!
//! Before anything else is made, this process makes them, forks the one that rebuilds the job, and becomes the *keeper*
//! itself: a program of its own (`ulpm_session`), which leads the session that the terminal controls, has the other ends
//! of all streams, and keeps what the job writes in a log and in reach of whoever has its terminal now.

mod keeper;
mod log;

pub use keeper::main as keep;

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use ulpm_control::session::{CHANNELS, ERROR, INPUT, OUTPUT, TERMINAL};
use ulpm_image::meta::{Description, Terminal, description_kind};
use ulpm_sys::Errno;
use ulpm_sys::pty;

use crate::error::{RestartError, system};
use crate::image_file::ImageFile;
use crate::objects::{open_master, open_slave};

/// What the keeper is called.
pub const KEEPER: &str = "ulpm_session";

/// The job's ends of its standard streams, in the process that rebuilds it.
#[derive(Debug)]
pub struct Session {
    streams: [OwnedFd; 3],
    running: File,
}

impl Session {
    /// The descriptors.
    #[must_use]
    pub fn streams(&self) -> [RawFd; 3] {
        [&self.streams[0], &self.streams[1], &self.streams[2]].map(|fd| fd.as_raw_fd())
    }

    /// Tells the keeper that the job goes on; it would take our end for that of a job that did not come about.
    pub fn goes_on(&mut self) {
        use std::io::Write as _;
        // SAFETY: the call takes numbers only.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0, 0, 0, 0) };
        // If it is gone it needs to know no more.
        let _ = self.running.write_all(b"!");
    }

    /// The descriptors, for whoever connects them to a job elsewhere.
    #[must_use]
    pub fn into_streams(self) -> [OwnedFd; 3] {
        self.streams
    }
}

/// What a stream is here.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Terminal,
    Pipe,
    Device(CString),
}

fn description(images: &[ImageFile], index: usize) -> Option<&Description> {
    let mut all = images.iter().flat_map(|image| &image.meta.descriptions);
    all.find(|found| found.kind == description_kind::STREAM && found.inode == index as u64)
}

fn terminal<'a>(images: &'a [ImageFile], description: &Description) -> Option<&'a Terminal> {
    let mut all = images.iter().flat_map(|image| &image.meta.terminals);
    let found = all.find(|terminal| terminal.description == description.id)?;
    let mut masters = images.iter().flat_map(|image| &image.meta.masters);
    let is_own = masters.any(|master| i32::try_from(master.index) == Ok(found.index));
    (!found.hung_up && !is_own).then_some(found)
}

fn kind(images: &[ImageFile], description: Option<&Description>) -> Kind {
    let null = || Kind::Device(c"/dev/null".into());
    let Some(description) = description else { return null() };
    if terminal(images, description).is_some() {
        return Kind::Terminal;
    }
    match description.mode & libc::S_IFMT {
        libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFREG => Kind::Pipe,
        libc::S_IFCHR if !description.path.starts_with(b"/dev/pts/") => {
            CString::new(&*description.path).map_or_else(|_| null(), Kind::Device)
        }
        _ => null(),
    }
}

fn pipe() -> Result<[OwnedFd; 2], RestartError> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|errno| RestartError::System { what: "make a pipe", source: errno.into() })?;
    Ok([reader, writer])
}

fn device(path: &std::ffi::CStr) -> Result<OwnedFd, RestartError> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()));
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    let opened = open(path).or_else(|_| open(Path::new("/dev/null")));
    opened.map(OwnedFd::from).map_err(|source| RestartError::Open {
        pid: 0,
        path: path.into(),
        source,
    })
}

fn failed(what: &'static str) -> impl Fn(Errno) -> RestartError {
    move |errno| RestartError::System {
        what,
        source: std::io::Error::from_raw_os_error(errno.raw()),
    }
}

/// Streams in the making: those of the job, and by channel their other ends.
#[derive(Debug, Default)]
struct Ends {
    own: [Option<OwnedFd>; 3],
    kept: [Option<OwnedFd>; CHANNELS],
    slave: Option<OwnedFd>,
}

impl Ends {
    fn make(images: &[ImageFile]) -> Result<Self, RestartError> {
        let mut ends = Self::default();
        let found = [0, 1, 2].map(|index| description(images, index));
        for index in 0..3 {
            let own = match kind(images, found[index]) {
                Kind::Device(path) => device(&path)?,
                Kind::Terminal => {
                    let saved = found[index].and_then(|found| terminal(images, found));
                    let slave = match (&ends.slave, saved) {
                        (None, Some(saved)) => {
                            ends.slave.insert(ends_of_terminal(&mut ends.kept, saved)?)
                        }
                        (Some(slave), _) => slave,
                        (None, None) => continue,
                    };
                    duplicate(slave)?
                }
                // One pipe for both keeps their order.
                Kind::Pipe
                    if index == 2
                        && is_same(found[1], found[2])
                        && ends.kept[usize::from(OUTPUT)].is_some() =>
                {
                    let output = ends.own[1].as_ref().map(duplicate).transpose()?;
                    output.map_or_else(|| device(c"/dev/null"), Ok)?
                }
                Kind::Pipe => {
                    let [reader, writer] = pipe()?;
                    let (own, kept) = if index == 0 { (reader, writer) } else { (writer, reader) };
                    let channel = [INPUT, OUTPUT, ERROR][index];
                    ends.kept[usize::from(channel)] = Some(kept);
                    own
                }
            };
            ends.own[index] = Some(own);
        }
        Ok(ends)
    }
}

fn is_same(one: Option<&Description>, other: Option<&Description>) -> bool {
    one.zip(other).is_some_and(|(one, other)| one.path == other.path)
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, RestartError> {
    fd.try_clone().map_err(|source| RestartError::System { what: "duplicate a descriptor", source })
}

/// A pseudo-terminal as the terminal was; returns the end that the job gets.
fn ends_of_terminal(
    kept: &mut [Option<OwnedFd>; CHANNELS],
    saved: &Terminal,
) -> Result<OwnedFd, RestartError> {
    let (_, master) = open_master()?;
    let fd = master.as_raw_fd();
    let size = saved.size.map(|number| u16::try_from(number).unwrap_or(0));
    pty::set_locked(fd, false)
        .and_then(|()| pty::set_modes(fd, &saved.modes))
        .and_then(|()| pty::set_size(fd, size))
        .map_err(failed("make a pseudo-terminal"))?;
    let slave = open_slave(fd, libc::O_RDWR | libc::O_NOCTTY)?;
    kept[usize::from(TERMINAL)] = Some(master);
    Ok(slave)
}

/// Listens at a path of any length.
fn listen(path: &Path) -> Result<UnixListener, RestartError> {
    let failed =
        |source| RestartError::System { what: "listen for whoever has the job's terminal", source };
    let dir = path.parent().unwrap_or(Path::new("."));
    let dir = File::open(dir).map_err(failed)?;
    let name = path.file_name().unwrap_or_default();
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(short).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

impl Session {
    /// Makes the streams of a job, and lets a keeper have their other ends; returns in a new process.
    ///
    /// `path` is where the keeper listens; its log lies beside it. `follow` says that whoever has launched the job is going to
    /// connect.
    ///
    /// # Errors
    ///
    /// [`RestartError`]: nothing is left.
    pub fn begin(images: &[ImageFile], path: &Path, follow: bool) -> Result<Self, RestartError> {
        let Ends { own, kept, slave } = Ends::make(images)?;
        let [input, output, error] = own.map(|fd| fd.map_or_else(|| device(c"/dev/null"), Ok));
        let streams = [input?, output?, error?];
        let listener = listen(path)?;
        let [is_running, running] = pipe()?;
        // SAFETY: the calls take numbers only.
        if unsafe { libc::getsid(0) != libc::getpid() && libc::setsid() < 0 } {
            return Err(system("begin a session"));
        }
        if let Some(slave) = &slave {
            pty::make_controlling(slave.as_raw_fd())
                .map_err(failed("make a pseudo-terminal the controlling one"))?;
        }
        // The keeper takes none; it begins with this mask.
        let mut mask = SigSet::empty();
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask));
        let keeper = ulpm_sys::getpid();
        // SAFETY: this process has one thread, so the child may do anything.
        match unsafe { libc::fork() } {
            -1 => Err(system("fork")),
            0 => {
                let _ = ulpm_sys::setpgid(0, 0);
                if let Some(slave) = &slave {
                    let _ = pty::set_foreground(slave.as_raw_fd(), ulpm_sys::getpid());
                }
                // SAFETY: the call takes numbers only.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
                if ulpm_sys::getppid() != keeper {
                    ulpm_sys::exit_group(1);
                }
                let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None);
                Ok(Self { streams, running: File::from(running) })
            }
            child => {
                let _ = ulpm_sys::setpgid(child, child);
                drop((streams, slave, running));
                let fds = kept.map(|fd| fd.map_or(-1, pass_on));
                let [input, output, error, terminal] = fds.map(|fd| fd.to_string());
                let words = [
                    KEEPER.to_owned(),
                    pass_on(listener.into()).to_string(),
                    pass_on(is_running).to_string(),
                    child.to_string(),
                    u8::from(follow).to_string(),
                    input,
                    output,
                    error,
                    terminal,
                ];
                let mut arguments: Vec<CString> =
                    words.into_iter().filter_map(|word| CString::new(word).ok()).collect();
                arguments.extend(CString::new(path.as_os_str().as_bytes()));
                let _ = nix::unistd::execv(c"/proc/self/exe", &arguments);
                // The other one ends with us.
                ulpm_sys::exit_group(1)
            }
        }
    }
}

/// Lets a program that this process executes have a descriptor.
fn pass_on(fd: OwnedFd) -> RawFd {
    let fd = fd.into_raw_fd();
    // SAFETY: the call takes numbers only.
    let _ = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    fd
}

/// Takes over a descriptor that was passed on.
///
/// # Safety
///
/// Nobody else may own it.
unsafe fn taken_over(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: the call takes numbers only.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: as the caller says.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}
