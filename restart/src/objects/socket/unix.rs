//! Unix sockets, with what was in them.
//!
//! A socket that was accepted has its listener's name, so connections with a name are made through a
//! listener that is bound to it: the job's own, or one for the purpose. The file of a name that is taken by
//! another socket, maybe the frozen original of this one, is not touched before the job goes on: see
//! [`Names`].

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ulpm_image::meta::{Socket, SocketMessage, socket_state as state};
use ulpm_protocol::table::SocketName;
use ulpm_sys::socket::{self, af, so};

use super::Sockets;
use crate::error::{RestartError, system};
use crate::path_map::PathMap;

/// Directions of shutdown(2) that both ends have when one of them is closed.
const BOTH: u32 = 3;

/// The files of names.
///
/// A file is bound beside its place, as `.ulpm-N`, and goes to its place when the job is sure to run: at once
/// in a restart, at the first thaw in a hand-over, whose source may still go on.
#[derive(Debug, Default)]
pub struct Names {
    /// Where a file is now, and its place; none for one that is removed in the end.
    files: Vec<(PathBuf, Option<PathBuf>)>,
}

impl Names {
    /// Puts all files at their places.
    ///
    /// # Errors
    ///
    /// [`RestartError`] names the file.
    pub fn publish(&mut self) -> Result<(), RestartError> {
        for (from, to) in self.files.drain(..) {
            if let Some(to) = to {
                std::fs::rename(&from, &to).map_err(|error| {
                    RestartError::Socket(format!(
                        "cannot put {} at its place: {error}",
                        to.display()
                    ))
                })?;
            }
        }
        Ok(())
    }

    /// What the managers of the processes do when the job goes on: pairs of paths, each ended by a NUL.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let paths = self.files.iter().filter_map(|(from, to)| Some([from, to.as_ref()?]));
        paths.flatten().flat_map(|path| [path.as_os_str().as_bytes(), b"\0"].concat()).collect()
    }

    /// The files are somebody else's to put at their places.
    pub fn forget(&mut self) {
        self.files.clear();
    }

    /// Removes those that are not needed any more.
    fn remove_temporary(&mut self) {
        self.files.retain(|(from, to)| {
            if to.is_none() {
                let _ = std::fs::remove_file(from);
            }
            to.is_some()
        });
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        for (from, _) in &self.files {
            let _ = std::fs::remove_file(from);
        }
    }
}

/// What the unix sockets of a job need until they are complete.
#[derive(Debug, Default)]
pub(super) struct Unix {
    pub(super) names: Names,
    /// Ends that were closed, or are outside, by the inode of their other end; they are closed again when
    /// the queues have been filled.
    partners: HashMap<u64, OwnedFd>,
    /// Listeners by type and name; those of the job first.
    listeners: HashMap<(i32, Vec<u8>), OwnedFd>,
    /// Where a bound socket can be reached while it is made.
    reach: HashMap<Vec<u8>, Vec<u8>>,
    /// Sockets that were made as pairs, by inode.
    pairs: HashMap<u64, u64>,
}

fn has_name(address: &[u8]) -> bool {
    address.len() > 2
}

/// The name as text, for messages.
fn text(address: &[u8]) -> String {
    let name = address.get(2..).unwrap_or_default();
    match name.strip_prefix(b"\0") {
        Some(name) => format!("@{}", name.escape_ascii()),
        None => name.split(|&byte| byte == 0).next().unwrap_or_default().escape_ascii().to_string(),
    }
}

/// Who waits to be accepted, and by which listener.
fn waiting(all: &[&Socket]) -> HashMap<u64, u64> {
    let clients = |saved: &&Socket| {
        saved.waiting.iter().map(|&client| (client, saved.inode)).collect::<Vec<_>>()
    };
    all.iter().flat_map(clients).collect()
}

impl<'a> Sockets<'a> {
    /// By the inode of each socket, who its other end was when it connected: the kernel takes us for it.
    pub(super) fn credentials(&self) -> Vec<(u64, SocketName)> {
        let saved = |saved: &Socket| {
            let option = saved
                .options
                .iter()
                .find(|option| [option.level, option.name] == [so::SOL_SOCKET, so::PEERCRED])?;
            let words = option.value.first_chunk::<12>()?;
            Some(
                [0, 4, 8]
                    .map(|at| u32::from_le_bytes(std::array::from_fn(|byte| words[at + byte]))),
            )
        };
        let all = self.made.iter().filter_map(|(inode, made)| {
            let credentials = saved(self.saved.get(inode)?)?;
            let status = ulpm_sys::fstat(made.as_raw_fd()).ok()?;
            Some((status.ino, SocketName::of_credentials(credentials)))
        });
        all.collect()
    }

    fn unix_sockets(&self) -> Vec<&'a Socket> {
        let mut all: Vec<_> =
            self.saved.values().copied().filter(|saved| saved.domain == af::UNIX).collect();
        all.sort_by_key(|saved| saved.inode);
        all
    }

    /// The other end, if it is in the job.
    fn other_end(&self, saved: &Socket) -> Option<&'a Socket> {
        self.saved.get(&saved.peer_inode).copied().filter(|_| saved.peer_inode != 0)
    }

    /// Makes all unix sockets; datagram sockets are connected when their queues have been filled.
    pub(super) fn make_unix(&mut self, paths: &PathMap) -> Result<(), RestartError> {
        let all = self.unix_sockets();
        let waiting = waiting(&all);
        for saved in all.iter().filter(|saved| saved.state == state::LISTENING) {
            let fd = new_socket(saved.kind)?;
            self.bind(saved, &fd, paths)?;
            listen(&fd, saved.backlog)?;
            let copy = fd.try_clone().map_err(duplicated)?;
            self.unix.listeners.insert((saved.kind, saved.local.clone()), copy);
            self.made.insert(saved.inode, fd);
        }
        for saved in all.iter().filter(|saved| saved.kind == libc::SOCK_DGRAM) {
            self.make_datagram_pair(saved)?;
        }
        for saved in all.iter().filter(|saved| saved.kind == libc::SOCK_DGRAM) {
            self.make_datagram(saved)?;
        }
        for saved in all.iter().filter(|saved| saved.kind == libc::SOCK_DGRAM) {
            let fd = self.made[&saved.inode].try_clone().map_err(duplicated)?;
            self.bind(saved, &fd, paths)?;
        }
        for saved in &all {
            if self.made.contains_key(&saved.inode) || waiting.contains_key(&saved.inode) {
                continue;
            }
            if saved.state == state::CONNECTED {
                self.make_connected(saved, &all, paths)?;
            } else {
                let fd = new_socket(saved.kind)?;
                self.bind(saved, &fd, paths)?;
                self.made.insert(saved.inode, fd);
            }
        }
        for saved in all.iter().filter(|saved| saved.state == state::LISTENING) {
            for client in &saved.waiting {
                let fd = new_socket(saved.kind)?;
                if let Some(client) = self.saved.get(client).copied() {
                    self.bind(client, &fd, paths)?;
                }
                self.connect(&fd, &saved.local)?;
                if self.saved.contains_key(client) {
                    self.made.insert(*client, fd);
                }
            }
        }
        Ok(())
    }

    pub(super) fn refuse_unix_outside(&self) -> Result<(), RestartError> {
        let all = self.unix_sockets();
        let waiting = waiting(&all);
        let is_outside = |saved: &&&Socket| {
            let elsewhere = if saved.peer_inode == 0 {
                saved.kind != libc::SOCK_DGRAM
                    && saved.shutdown != BOTH
                    && !waiting.contains_key(&saved.inode)
            } else {
                !self.saved.contains_key(&saved.peer_inode)
            };
            saved.state == state::CONNECTED && elsewhere
        };
        let client = |(client, _): &(&u64, &u64)| !self.saved.contains_key(client);
        let found = all.iter().find(is_outside).map(|saved| text(&saved.peer));
        let found = found.or_else(|| waiting.iter().find(client).map(|_| String::new()));
        found.map_or(Ok(()), |name| {
            let name = if name.is_empty() { "a socket without a name".into() } else { name };
            Err(RestartError::Socket(format!(
                "it is connected to {name} outside the job; --outside-sockets reset lets the program see \
                 that the other end is gone"
            )))
        })
    }

    /// What has no name can be connected to as one end of a pair only.
    fn make_datagram_pair(&mut self, saved: &Socket) -> Result<(), RestartError> {
        let other = self.other_end(saved).filter(|other| !has_name(&other.local));
        let Some(other) = other
            .filter(|other| ![saved, other].iter().any(|end| self.made.contains_key(&end.inode)))
        else {
            return Ok(());
        };
        let [one, two] = pair(saved.kind)?;
        self.made.insert(saved.inode, one);
        self.made.insert(other.inode, two);
        self.unix.pairs.insert(saved.inode, other.inode);
        self.unix.pairs.insert(other.inode, saved.inode);
        Ok(())
    }

    fn make_datagram(&mut self, saved: &Socket) -> Result<(), RestartError> {
        if self.made.contains_key(&saved.inode) {
            return Ok(());
        }
        let fd = if saved.state == state::CONNECTED && self.other_end(saved).is_none() {
            let [one, two] = pair(saved.kind)?;
            self.unix.partners.insert(saved.inode, two);
            one
        } else {
            new_socket(saved.kind)?
        };
        self.made.insert(saved.inode, fd);
        Ok(())
    }

    /// A connection of which one end at least is in the job.
    fn make_connected(
        &mut self,
        saved: &'a Socket,
        all: &[&Socket],
        paths: &PathMap,
    ) -> Result<(), RestartError> {
        let listens = |address: &[u8]| {
            let key = (saved.kind, address.to_vec());
            has_name(address) && self.unix.listeners.contains_key(&key)
        };
        let Some(other) = self.other_end(saved) else {
            let shared = all.iter().filter(|one| one.local == saved.local).count() > 1;
            let made = if listens(&saved.local) || has_name(&saved.local) && shared {
                self.through(saved.kind, &saved.local, None, saved, paths)?
                    .map(|[end, partner]| [partner, end])
            } else if listens(&saved.peer) || saved.peer_inode == 0 && has_name(&saved.peer) {
                self.through(saved.kind, &saved.peer, Some(saved), saved, paths)?
            } else {
                None
            };
            let [one, partner] = match made {
                Some(ends) => ends,
                None => {
                    let ends = pair(saved.kind)?;
                    self.bind(saved, &ends[0], paths)?;
                    ends
                }
            };
            self.made.insert(saved.inode, one);
            self.unix.partners.insert(saved.inode, partner);
            return Ok(());
        };
        let (client, server) = match (has_name(&saved.local), has_name(&other.local)) {
            (false, false) => {
                let [one, two] = pair(saved.kind)?;
                self.made.insert(saved.inode, one);
                self.made.insert(other.inode, two);
                return Ok(());
            }
            (true, false) => (other, saved),
            (true, true) if listens(&saved.local) => (other, saved),
            _ => (saved, other),
        };
        let ends = self.through(saved.kind, &server.local, Some(client), server, paths)?;
        let [one, two] = ends.ok_or_else(|| {
            RestartError::Socket(format!(
                "the name {} is taken by another program",
                text(&server.local)
            ))
        })?;
        self.made.insert(client.inode, one);
        self.made.insert(server.inode, two);
        Ok(())
    }

    /// A connection through a listener with a name: its client and what the listener has accepted. `None` if
    /// the name is taken.
    fn through(
        &mut self,
        kind: i32,
        name: &[u8],
        client: Option<&Socket>,
        named: &Socket,
        paths: &PathMap,
    ) -> Result<Option<[OwnedFd; 2]>, RestartError> {
        let key = (kind, name.to_vec());
        if !self.unix.listeners.contains_key(&key) {
            let listener = new_socket(kind)?;
            // As the listener was, whose file is gone or nobody's.
            let gone = Socket {
                local: name.to_vec(),
                file: if named.local == name { named.file.clone() } else { Vec::new() },
                ..Socket::default()
            };
            if self.bind_as(&gone, &listener, paths, false).is_err() {
                return Ok(None);
            }
            listen(&listener, 1)?;
            self.unix.listeners.insert(key.clone(), listener);
        }
        let one = new_socket(kind)?;
        if let Some(client) = client {
            self.bind(client, &one, paths)?;
        }
        self.connect(&one, name)?;
        let listener = self.unix.listeners[&key].as_raw_fd();
        // SAFETY: the call is given no memory; the descriptor that it returns is nobody else's.
        let two = unsafe {
            let fd = libc::accept4(
                listener,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC,
            );
            if fd < 0 {
                return Err(system("accept a connection of the job's"));
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Some([one, two]))
    }

    /// Connects to a name of the job's.
    fn connect(&self, fd: &OwnedFd, name: &[u8]) -> Result<(), RestartError> {
        let address = self.unix.reach.get(name).map_or(name, Vec::as_slice);
        // A queue of connections that is full would make it wait.
        let result = nonblocking(fd, || call_with(fd, address, libc::connect));
        result.map_err(|error| {
            RestartError::Socket(format!("cannot connect to {} again: {error}", text(name)))
        })
    }

    fn bind(&mut self, saved: &Socket, fd: &OwnedFd, paths: &PathMap) -> Result<(), RestartError> {
        self.bind_as(saved, fd, paths, !saved.file.is_empty())
    }

    /// Gives a socket its name; with a file if that is to `stay`.
    fn bind_as(
        &mut self,
        saved: &Socket,
        fd: &OwnedFd,
        paths: &PathMap,
        stay: bool,
    ) -> Result<(), RestartError> {
        if !has_name(&saved.local) {
            return Ok(());
        }
        let failed = |error: io::Error| {
            let name = text(&saved.local);
            RestartError::Socket(match error.raw_os_error() {
                Some(libc::EADDRINUSE) => {
                    format!("its name {name} is taken by another program, which has to end first")
                }
                _ => format!("cannot bind it to {name}: {error}"),
            })
        };
        if saved.local[2] == 0 {
            return call_with(fd, &saved.local, libc::bind).map_err(failed);
        }
        let name = saved.local[2..].split(|&byte| byte == 0).next().unwrap_or_default();
        let was = if saved.file.is_empty() { name } else { &saved.file };
        let place = paths.map(Path::new(OsStr::from_bytes(was)));
        let (dir, _) = parts(&place);
        // A relative name stays what it is, seen from where it leads to the file.
        let is_relative = !name.starts_with(b"/");
        let address = if is_relative {
            saved.local.clone()
        } else {
            [&saved.local[..2], place.as_os_str().as_bytes(), b"\0"].concat()
        };
        let base = if is_relative {
            let up = was.len().saturating_sub(name.len()).max(1);
            let base = if saved.file.is_empty() { b"." } else { &was[..up] };
            Some(paths.map(Path::new(OsStr::from_bytes(base))))
        } else {
            None
        };
        let inode = nix::sys::stat::fstat(fd).map_or(0, |status| status.st_ino);
        let aside = dir.join(format!(".ulpm-{inode}"));
        let taken = std::fs::symlink_metadata(&place);
        if let Ok(taken) = &taken {
            if !taken.file_type().is_socket() {
                return Err(failed(io::ErrorKind::AlreadyExists.into()));
            }
            // In a hand-over it is the original, which stands still.
            if stay && !self.circumstances.hold && is_alive(&place, saved.kind) {
                return Err(failed(io::Error::from_raw_os_error(libc::EADDRINUSE)));
            }
            std::fs::rename(&place, &aside).map_err(failed)?;
        }
        let bound = inside(base.as_deref(), || call_with(fd, &address, libc::bind));
        let swapped = match (&taken, &bound) {
            (Ok(_), Ok(())) => exchange(&place, &aside),
            (Ok(_), Err(_)) => std::fs::rename(&aside, &place),
            (Err(_), Ok(())) => std::fs::rename(&place, &aside),
            (Err(_), Err(_)) => Ok(()),
        };
        bound.and(swapped).map_err(failed)?;
        if stay {
            let mode = std::fs::Permissions::from_mode(saved.file_mode);
            std::fs::set_permissions(&aside, mode).map_err(failed)?;
        }
        let reach = [&[1, 0][..], aside.as_os_str().as_bytes(), b"\0"].concat();
        self.unix.reach.insert(saved.local.clone(), reach);
        self.unix.names.files.push((aside, stay.then_some(place)));
        Ok(())
    }

    /// Puts into the queues what was in them, connects datagram sockets, and closes what was closed.
    pub(super) fn fill_unix(
        &mut self,
        descriptions: &HashMap<u64, RawFd>,
        paths: &PathMap,
    ) -> Result<(), RestartError> {
        let all = self.unix_sockets();
        // Room for what was sent with more than there is by default.
        for saved in &all {
            let size = |option: &&ulpm_image::meta::SocketOption| {
                option.level == so::SOL_SOCKET && option.name == so::SNDBUF
            };
            if let Some(option) = saved.options.iter().find(size) {
                let _ = super::set_one(self.made[&saved.inode].as_raw_fd(), option);
            }
        }
        for saved in &all {
            for message in &saved.messages {
                let rights: Vec<RawFd> = message
                    .descriptors
                    .iter()
                    .filter_map(|id| descriptions.get(id).copied())
                    .collect();
                if rights.len() != message.descriptors.len() {
                    return Err(RestartError::Socket(
                        "no image has what is under way in it".into(),
                    ));
                }
                self.send(saved, message, &rights, &all, paths)?;
            }
        }
        for saved in all.iter().filter(|saved| saved.kind == libc::SOCK_DGRAM) {
            self.connect_datagram(saved)?;
        }
        for saved in &all {
            let fd = &self.made[&saved.inode];
            match self.unix.partners.get(&saved.inode) {
                // An end that is closed before it has read everything makes this error.
                Some(_) if saved.reset && saved.kind != libc::SOCK_DGRAM => {
                    let _ = ulpm_sys::send(fd.as_raw_fd(), b"x");
                }
                Some(_) if saved.kind != libc::SOCK_DGRAM => {}
                _ => shut_down(fd, saved.shutdown)?,
            }
        }
        self.unix.partners.clear();
        self.unix.listeners.clear();
        self.unix.names.remove_temporary();
        Ok(())
    }

    fn send(
        &mut self,
        saved: &Socket,
        message: &SocketMessage,
        rights: &[RawFd],
        all: &[&Socket],
        paths: &PathMap,
    ) -> Result<(), RestartError> {
        let temporary;
        let mut to = None;
        let connected = self.unix.partners.get(&saved.inode);
        let from = if saved.kind != libc::SOCK_DGRAM {
            let other = self.other_end(saved).and_then(|other| self.made.get(&other.inode));
            connected.or(other)
        } else {
            let sender = all.iter().find(|other| {
                other.kind == libc::SOCK_DGRAM
                    && has_name(&message.source)
                    && other.local == message.source
            });
            let other = self.unix.pairs.get(&saved.inode).and_then(|other| self.made.get(other));
            let pair = other.or(connected);
            let sender = sender.and_then(|sender| self.made.get(&sender.inode));
            match (sender, pair) {
                (None, Some(pair)) if message.source.is_empty() => Some(pair),
                (Some(sender), Some(pair)) if sender.as_raw_fd() == pair.as_raw_fd() => Some(pair),
                (sender, pair) if !has_name(&saved.local) => pair.or(sender),
                (Some(sender), _) => {
                    to = Some(saved.local.clone());
                    Some(sender)
                }
                (None, _) => {
                    to = Some(saved.local.clone());
                    let fd = new_socket(saved.kind)?;
                    let gone = Socket { local: message.source.clone(), ..Socket::default() };
                    // A sender whose name cannot be had here comes without one.
                    let _ = self.bind_as(&gone, &fd, paths, false);
                    temporary = fd;
                    Some(&temporary)
                }
            }
        };
        let Some(from) = from else {
            return Err(RestartError::Socket(
                "nobody can have sent what is under way in it".into(),
            ));
        };
        let to = to.map(|name| self.unix.reach.get(&name).cloned().unwrap_or(name));
        let failed = |error| RestartError::Socket(format!("cannot fill its queue: {error}"));
        send_all(from, to.as_deref(), message, rights, saved.kind == libc::SOCK_STREAM)
            .map_err(failed)
    }

    /// Connects a datagram socket to what it was connected to.
    fn connect_datagram(&self, saved: &Socket) -> Result<(), RestartError> {
        let fd = &self.made[&saved.inode];
        let other = self.other_end(saved);
        let is_pair = self.unix.pairs.get(&saved.inode);
        if let Some(other) = other {
            if is_pair == Some(&other.inode) {
                return Ok(());
            }
            self.connect(fd, &other.local)?;
        } else if saved.state == state::CONNECTED && saved.peer_inode != 0 && has_name(&saved.peer)
        {
            // A service outside, such as the system's log. One that is not here is one that has ended.
            if call_with(fd, &saved.peer, libc::connect).is_ok() {
                return Ok(());
            }
        } else if is_pair.is_some() {
            // struct sockaddr with AF_UNSPEC
            call_with(fd, &[0; 16], libc::connect)
                .map_err(|source| RestartError::System { what: "disconnect a socket", source })?;
        }
        // The other one of the pair is told of that, and was told before.
        if let Some(other) = is_pair.and_then(|other| self.made.get(other)) {
            let _ = socket::get_int_option(other.as_raw_fd(), so::SOL_SOCKET, libc::SO_ERROR);
        }
        Ok(())
    }
}

fn duplicated(source: io::Error) -> RestartError {
    RestartError::System { what: "duplicate a socket", source }
}

fn new_socket(kind: i32) -> Result<OwnedFd, RestartError> {
    // SAFETY: the call takes numbers only; the descriptor that it returns is nobody else's.
    unsafe {
        let fd = libc::socket(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0);
        if fd < 0 { Err(system("make a unix socket")) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

fn pair(kind: i32) -> Result<[OwnedFd; 2], RestartError> {
    let mut ends = [-1; 2];
    // SAFETY: the call stores two descriptors, which are nobody else's.
    unsafe {
        if libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr()) < 0 {
            return Err(system("make a pair of unix sockets"));
        }
        Ok(ends.map(|fd| OwnedFd::from_raw_fd(fd)))
    }
}

fn listen(fd: &OwnedFd, backlog: u32) -> Result<(), RestartError> {
    let backlog = libc::c_int::try_from(backlog).unwrap_or(libc::c_int::MAX);
    // SAFETY: the call takes numbers only.
    if unsafe { libc::listen(fd.as_raw_fd(), backlog) } < 0 {
        return Err(system("listen at a unix socket"));
    }
    Ok(())
}

fn shut_down(fd: &OwnedFd, directions: u32) -> Result<(), RestartError> {
    let how = match directions {
        1 => libc::SHUT_RD,
        2 => libc::SHUT_WR,
        BOTH => libc::SHUT_RDWR,
        _ => return Ok(()),
    };
    // SAFETY: the call takes numbers only.
    let done = unsafe { libc::shutdown(fd.as_raw_fd(), how) };
    if done < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::ENOTCONN) {
        return Err(system("shut a unix socket down"));
    }
    Ok(())
}

type WithAddress =
    unsafe extern "C" fn(libc::c_int, *const libc::sockaddr, libc::socklen_t) -> libc::c_int;

/// bind(2) or connect(2) with a raw address, which may be longer than it could have been given.
fn call_with(fd: &OwnedFd, address: &[u8], call: WithAddress) -> io::Result<()> {
    /// The longest `struct sockaddr_un`.
    const MOST: usize = 110;
    let mut dir = None;
    let short = if address.len() > MOST && address.get(2) != Some(&0) {
        let path = PathBuf::from(std::ffi::OsString::from_vec(
            address[2..].split(|&byte| byte == 0).next().unwrap_or_default().to_vec(),
        ));
        let (parent, name) = parts(&path);
        let open = dir.insert(std::fs::File::open(parent)?);
        let path = format!("/proc/self/fd/{}/", open.as_raw_fd());
        [&address[..2], path.as_bytes(), name.as_bytes(), b"\0"].concat()
    } else {
        address.to_vec()
    };
    let len = libc::socklen_t::try_from(short.len()).unwrap_or(0);
    // SAFETY: the address is as long as the call is told.
    let done = unsafe { call(fd.as_raw_fd(), short.as_ptr().cast(), len) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Directory and name.
fn parts(path: &Path) -> (&Path, &OsStr) {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    (dir.unwrap_or(Path::new(".")), path.file_name().unwrap_or_default())
}

/// Does something in a working directory.
fn inside(dir: Option<&Path>, does: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let Some(dir) = dir else { return does() };
    let before = std::fs::File::open(".")?;
    std::env::set_current_dir(dir)?;
    let result = does();
    nix::unistd::fchdir(&before)?;
    result
}

fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let path = |path: &Path| CString::new(path.as_os_str().as_bytes());
    let (one, other) = (path(one)?, path(other)?);
    let here = libc::AT_FDCWD;
    // SAFETY: the paths are NUL-terminated.
    let done =
        unsafe { libc::renameat2(here, one.as_ptr(), here, other.as_ptr(), libc::RENAME_EXCHANGE) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether a file leads to a socket that exists. One of another type does not connect to it, but is told.
fn is_alive(path: &Path, kind: i32) -> bool {
    let other = if kind == libc::SOCK_DGRAM { libc::SOCK_STREAM } else { libc::SOCK_DGRAM };
    let address = [&[1, 0][..], path.as_os_str().as_bytes(), b"\0"].concat();
    let Ok(fd) = new_socket(other) else { return true };
    match call_with(&fd, &address, libc::connect) {
        Err(error) => error.raw_os_error() != Some(libc::ECONNREFUSED),
        Ok(()) => true,
    }
}

fn nonblocking(fd: &OwnedFd, does: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: the calls take numbers only.
    let set = |flags: libc::c_int| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) };
    set(libc::O_NONBLOCK);
    let result = does();
    set(0);
    result
}

/// Sends a message, or all bytes of a stream, the descriptors with the first of them.
fn send_all(
    from: &OwnedFd,
    to: Option<&[u8]>,
    message: &SocketMessage,
    rights: &[RawFd],
    is_stream: bool,
) -> io::Result<()> {
    let mut own = None;
    let mut sent = 0;
    loop {
        let rights = if sent == 0 { rights } else { &[] };
        match send_some(from, to, &message.content[sent..], rights, &message.credentials) {
            Ok(more) => sent += more,
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && own.is_none() => {
                own = Some(grow(from)?);
            }
            Err(error) => return Err(error),
        }
        if !is_stream || sent >= message.content.len() {
            break;
        }
    }
    if let Some(own) = own {
        shrink(from, own);
    }
    Ok(())
}

const SO_SNDBUFFORCE: i32 = 32;

/// More room to send from: pieces of another length need more of it. Returns what there was.
fn grow(fd: &OwnedFd) -> io::Result<[i32; 2]> {
    let fd = fd.as_raw_fd();
    let get = |name| {
        socket::get_int_option(fd, so::SOL_SOCKET, name)
            .map_err(|errno| io::Error::from_raw_os_error(errno.raw()))
    };
    let own = [get(so::SNDBUF)?, get(so::BUF_LOCK).unwrap_or(0)];
    let most = (64i32 << 20).to_le_bytes();
    if socket::set_option(fd, so::SOL_SOCKET, SO_SNDBUFFORCE, &most).is_err() {
        let _ = socket::set_option(fd, so::SOL_SOCKET, so::SNDBUF, &most);
    }
    Ok(own)
}

fn shrink(fd: &OwnedFd, [size, locked]: [i32; 2]) {
    let set = |name, value: i32| {
        let _ = socket::set_option(fd.as_raw_fd(), so::SOL_SOCKET, name, &value.to_le_bytes());
    };
    set(so::SNDBUF, size / 2);
    set(so::BUF_LOCK, locked);
}

fn send_some(
    from: &OwnedFd,
    to: Option<&[u8]>,
    bytes: &[u8],
    rights: &[RawFd],
    credentials: &[u32],
) -> io::Result<usize> {
    let rights_bytes: Vec<u8> = rights.iter().flat_map(|fd| fd.to_ne_bytes()).collect();
    let send = |credentials: Option<[u32; 3]>| {
        let mut control = Vec::new();
        if !rights.is_empty() {
            put_control(&mut control, libc::SCM_RIGHTS, &rights_bytes);
        }
        if let Some(credentials) = credentials {
            let bytes: Vec<u8> = credentials.iter().flat_map(|word| word.to_ne_bytes()).collect();
            put_control(&mut control, libc::SCM_CREDENTIALS, &bytes);
        }
        let mut vector =
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: plain data, for which zeros are valid; what it points to outlives the call, and is only
        // read by it.
        let sent = unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = &raw mut vector;
            header.msg_iovlen = 1;
            if let Some(to) = to {
                header.msg_name = to.as_ptr().cast_mut().cast();
                header.msg_namelen = libc::socklen_t::try_from(to.len()).unwrap_or(0);
            }
            if !control.is_empty() {
                header.msg_control = control.as_mut_ptr().cast();
                header.msg_controllen = control.len() * 8;
            }
            libc::sendmsg(
                from.as_raw_fd(),
                &raw const header,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    };
    let &[_, user, group] = credentials else { return send(None) };
    // Only root may name another process, and that one had another number: the kernel is told ours.
    let pid = std::process::id();
    match send(Some([pid, user, group])) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let [user, group] = [nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()];
            send(Some([pid, user, group]))
        }
        result => result,
    }
}

/// A `struct cmsghdr` with its data, in words.
fn put_control(control: &mut Vec<u64>, kind: libc::c_int, data: &[u8]) {
    let mut bytes = (16 + data.len() as u64).to_ne_bytes().to_vec();
    bytes.extend(libc::SOL_SOCKET.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let words = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_ne_bytes));
    control.extend(words);
}
