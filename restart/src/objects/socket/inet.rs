//! Internet sockets: TCP and UDP, over IPv4 and IPv6.
//!
//! A connection is made anew, over the loopback: the whole job is on one host. The program goes on reading the
//! old addresses of its ends, which the job table keeps. An end whose other one is gone, or is no process of
//! the job, is connected to one of our own, which sends what the socket held and is closed.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use ulpm_image::meta::{Socket, SocketOption, socket_state as state};
use ulpm_protocol::table::{SocketAddress, SocketName};
use ulpm_sys::socket::{self, af, ip, ipv6, so, tcp};

use super::{Outside, Sockets, repair, set_options};
use crate::error::{RestartError, system};

/// `Socket::shutdown`.
const FOR_RECEIVING: u32 = 1;
const FOR_SENDING: u32 = 2;
const BY_THE_OTHER: u32 = 4;

/// How long the loopback may take to deliver.
const DEADLINE: Duration = Duration::from_secs(10);
/// Connections of a job that has ended linger for a minute, and keep a port.
const LINGER: Duration = Duration::from_secs(65);

/// What is made besides the sockets of the program.
#[derive(Debug, Default)]
pub(super) struct Inet {
    /// Ends in place of those that are gone, by the inode of the socket that they are connected to.
    gone: HashMap<u64, OwnedFd>,
    listeners: HashMap<(i32, bool, bool), OwnedFd>,
    /// By new inode.
    names: Vec<(u64, SocketName)>,
}

fn failed(text: String) -> RestartError {
    RestartError::Socket(text)
}

fn is_tcp(saved: &Socket) -> bool {
    is_inet(saved) && saved.kind == libc::SOCK_STREAM
}

fn is_raw(saved: &Socket) -> bool {
    is_inet(saved) && saved.kind == libc::SOCK_RAW
}

fn is_inet(saved: &Socket) -> bool {
    matches!(saved.domain, af::INET | af::INET6)
}

/// Reads a raw `sockaddr`.
pub(super) fn parse(name: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_le_bytes(*name.first_chunk()?));
    let port = u16::from_be_bytes([*name.get(2)?, *name.get(3)?]);
    if family == af::INET {
        let address: [u8; 4] = name.get(4..8)?.try_into().ok()?;
        return Some(SocketAddrV4::new(address.into(), port).into());
    }
    let word = |at: usize| Some(u32::from_le_bytes(name.get(at..at + 4)?.try_into().ok()?));
    let address: [u8; 16] = name.get(8..24)?.try_into().ok()?;
    let v6 = SocketAddrV6::new(address.into(), port, word(4)?, word(24)?);
    (family == af::INET6).then_some(v6.into())
}

/// Writes a raw `sockaddr`.
pub(super) fn raw(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(v4) => [&[2, 0, port[0], port[1]][..], &v4.ip().octets(), &[0; 8]].concat(),
        SocketAddr::V6(v6) => [
            &[10, 0, port[0], port[1]][..],
            &v6.flowinfo().to_le_bytes(),
            &v6.ip().octets(),
            &v6.scope_id().to_le_bytes(),
        ]
        .concat(),
    }
}

/// The same address for a socket of another family.
fn for_family(domain: i32, address: SocketAddr) -> SocketAddr {
    match (domain, address) {
        (af::INET6, SocketAddr::V4(v4)) => {
            SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
        }
        (af::INET, SocketAddr::V6(v6)) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddrV4::new(v4, v6.port()).into(),
            None if v6.ip().is_unspecified() => {
                SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, v6.port()).into()
            }
            None => address,
        },
        _ => address,
    }
}

/// Where a socket that is bound to `address` can be reached on this host, by one of family `domain`.
fn reachable(domain: i32, address: SocketAddr) -> SocketAddr {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V6(_) if domain == af::INET6 => Ipv6Addr::LOCALHOST.into(),
            _ => Ipv4Addr::LOCALHOST.into(),
        });
    }
    for_family(domain, address)
}

fn is_mapped(saved: &Socket) -> bool {
    let v4 = |name: &[u8]| match parse(name) {
        Some(SocketAddr::V6(v6)) => v6.ip().to_ipv4_mapped().is_some(),
        _ => true,
    };
    v4(&saved.local) || v4(&saved.peer)
}

pub(super) fn option(saved: &Socket, level: i32, name: i32) -> Option<i32> {
    let found = saved.options.iter().find(|option| (option.level, option.name) == (level, name))?;
    found.value.first_chunk().map(|value| i32::from_le_bytes(*value))
}

pub(super) fn set_int(fd: &OwnedFd, level: i32, name: i32, value: i32) -> Result<(), RestartError> {
    socket::set_option(fd.as_raw_fd(), level, name, &value.to_le_bytes())
        .map_err(|errno| failed(format!("option {name} of level {level} cannot be set: {errno}")))
}

fn new(domain: i32, kind: i32) -> Result<OwnedFd, RestartError> {
    of_protocol(domain, kind, 0)
}

fn of_protocol(domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd, RestartError> {
    let fd = socket::socket(domain, kind | sock_cloexec(), protocol).map_err(|errno| {
        let version = if domain == af::INET6 { 6 } else { 4 };
        failed(match kind {
            libc::SOCK_RAW => format!("a raw socket, which needs CAP_NET_RAW: {errno}"),
            _ => format!("this host has no sockets of IPv{version}: {errno}"),
        })
    })?;
    // SAFETY: the descriptor was just made and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

const fn sock_cloexec() -> i32 {
    socket::sock::CLOEXEC
}

/// A new socket with the options that count before it is bound.
pub(super) fn new_like(saved: &Socket) -> Result<OwnedFd, RestartError> {
    // TCP and UDP are what their kinds of sockets have anyway.
    let fd = of_protocol(saved.domain, saved.kind, saved.protocol)?;
    let early = [
        (ipv6::LEVEL, ipv6::V6ONLY),
        (ip::LEVEL, ip::FREEBIND),
        (ip::LEVEL, ip::TRANSPARENT),
        (ip::LEVEL, ip::BIND_ADDRESS_NO_PORT),
        (so::SOL_SOCKET, so::REUSEADDR),
        (so::SOL_SOCKET, so::REUSEPORT),
    ];
    let options: Vec<SocketOption> = saved
        .options
        .iter()
        .filter(|option| early.contains(&(option.level, option.name)))
        .cloned()
        .collect();
    set_options(fd.as_raw_fd(), &options)?;
    Ok(fd)
}

pub(super) fn call(fd: RawFd, address: SocketAddr, function: BindOrConnect) -> io::Result<()> {
    let raw = raw(address);
    let len = libc::socklen_t::try_from(raw.len()).unwrap_or(0);
    // SAFETY: the address is as long as is said, and outlives the call.
    if unsafe { function(fd, raw.as_ptr().cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub(super) type BindOrConnect =
    unsafe extern "C" fn(libc::c_int, *const libc::sockaddr, libc::socklen_t) -> libc::c_int;

fn local_of(fd: &OwnedFd) -> Option<SocketAddr> {
    let mut buffer = [0; socket::ADDRESS_LEN];
    parse(socket::local_address(fd.as_raw_fd(), &mut buffer).ok()?)
}

fn peer_of(fd: &OwnedFd) -> Option<SocketAddr> {
    let mut buffer = [0; socket::ADDRESS_LEN];
    parse(socket::peer_address(fd.as_raw_fd(), &mut buffer).ok()?)
}

fn set_nonblocking(fd: &OwnedFd, on: bool) -> Result<(), RestartError> {
    // SAFETY: the call takes numbers only.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, if on { libc::O_NONBLOCK } else { 0 }) }
        < 0
    {
        return Err(system("set the flags of a socket"));
    }
    Ok(())
}

/// Waits until poll(2) finds one of `events`.
fn wait_for(fd: &OwnedFd, events: libc::c_short) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    let ms = libc::c_int::try_from(DEADLINE.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pointer is good for one structure.
    unsafe { libc::poll(&raw mut poll, 1, ms) > 0 }
}

/// Binds a socket where it was. Where that address is not this host's, to all of this host's; a client whose
/// port another program has, to any.
fn bind(saved: &Socket, fd: &OwnedFd) -> Result<(), RestartError> {
    let Some(wanted) = parse(&saved.local) else { return Ok(()) };
    if wanted.port() == 0 && wanted.ip().is_unspecified() {
        return Ok(());
    }
    let begin = Instant::now();
    let mut lingering = Lingering::default();
    let mut address = wanted;
    loop {
        let Err(error) = call(fd.as_raw_fd(), address, libc::bind) else { return Ok(()) };
        let code = error.raw_os_error().unwrap_or(0);
        if code == libc::EADDRNOTAVAIL && !address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => {
                    Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().into()
                }
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            });
            continue;
        }
        if code == libc::EADDRINUSE {
            if !is_tcp(saved) && saved.state == state::CONNECTED && address.port() != 0 {
                address.set_port(0);
                continue;
            }
            if is_tcp(saved) && begin.elapsed() < LINGER && only_lingers(address.port()) {
                lingering.end_or_tell(address);
                continue;
            }
            return Err(failed(format!(
                "address {wanted} is in use by another program: end that, or restart on another host"
            )));
        }
        return Err(failed(format!("cannot bind {wanted}: {error}")));
    }
}

/// What was done about connections that were closed and keep a port (TIME_WAIT).
///
/// A port is given again at once only where both the new socket and all those that are closed have SO_REUSEADDR.
#[derive(Debug, Default)]
struct Lingering {
    tried: bool,
    told: bool,
}

impl Lingering {
    /// Ends them, which root may, or waits a moment.
    fn end_or_tell(&mut self, address: SocketAddr) {
        if !std::mem::replace(&mut self.tried, true) {
            let mut buffer = vec![0; ulpm_sys::diag::BUFFER];
            if ulpm_sys::diag::end_lingering(address.port(), &mut buffer).is_ok() {
                return;
            }
        }
        if !std::mem::replace(&mut self.told, true) {
            eprintln!(
                "ulpm_restart: connections that were closed keep address {address} for up to a minute \
                 (TIME_WAIT), and the job had it without SO_REUSEADDR: waiting (root would not have to)"
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether a TCP port is taken by nothing but connections that were closed.
fn only_lingers(port: u16) -> bool {
    const CLOSED: [&str; 6] = ["04", "05", "06", "07", "09", "0B"];
    let suffix = format!(":{port:04X}");
    let mut found = false;
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in std::fs::read_to_string(file).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.get(1).is_some_and(|local| local.ends_with(&suffix)) {
                if !fields.get(3).is_some_and(|state| CLOSED.contains(state)) {
                    return false;
                }
                found = true;
            }
        }
    }
    found
}

fn listener(domain: i32, mapped: bool, v6only: bool) -> Result<OwnedFd, RestartError> {
    let fd = new(domain, libc::SOCK_STREAM)?;
    if domain == af::INET6 {
        set_int(&fd, ipv6::LEVEL, ipv6::V6ONLY, v6only.into())?;
    }
    let address: SocketAddr = match (domain, mapped) {
        (af::INET, _) => (Ipv4Addr::LOCALHOST, 0).into(),
        (_, true) => (Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 0).into(),
        _ => (Ipv6Addr::LOCALHOST, 0).into(),
    };
    call(fd.as_raw_fd(), address, libc::bind)
        .map_err(|error| failed(format!("cannot bind {}: {error}", address.ip())))?;
    // SAFETY: the call takes numbers only.
    if unsafe { libc::listen(fd.as_raw_fd(), 16) } < 0 {
        return Err(system("listen on the loopback"));
    }
    Ok(fd)
}

impl Inet {
    /// A listening socket of our own on the loopback, of this family.
    fn listener(
        &mut self,
        domain: i32,
        mapped: bool,
        v6only: bool,
    ) -> Result<&OwnedFd, RestartError> {
        match self.listeners.entry((domain, mapped, v6only)) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => Ok(entry.insert(listener(domain, mapped, v6only)?)),
        }
    }

    /// A connection over the loopback whose ends are like `one` and `other`.
    fn connection(
        &mut self,
        one: &Socket,
        other: &Socket,
    ) -> Result<(OwnedFd, OwnedFd), RestartError> {
        // A socket of IPv6 takes a connection of one of IPv4, by a mapped address.
        if one.domain == af::INET6 && other.domain == af::INET {
            return self.connection(other, one).map(|(other, one)| (one, other));
        }
        let mapped = other.domain == af::INET6 && (one.domain == af::INET || is_mapped(one));
        let v6only = option(other, ipv6::LEVEL, ipv6::V6ONLY) == Some(1);
        let (client, listener, address) = {
            let client = new_like(one)?;
            let listener = self.listener(other.domain, mapped, v6only)?;
            let address = local_of(listener).ok_or_else(|| system("ask for an address"))?;
            (client, listener, address)
        };
        let connected = |error| failed(format!("cannot connect over the loopback: {error}"));
        call(client.as_raw_fd(), for_family(one.domain, address), libc::connect)
            .map_err(connected)?;
        let own = local_of(&client).map(|own| for_family(af::INET6, own));
        loop {
            // SAFETY: the call takes numbers, and null for what is not asked for.
            let accepted = unsafe {
                libc::accept4(
                    listener.as_raw_fd(),
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    libc::SOCK_CLOEXEC,
                )
            };
            if accepted < 0 {
                return Err(system("accept a connection over the loopback"));
            }
            // SAFETY: the descriptor was just made and is nobody else's.
            let accepted = unsafe { OwnedFd::from_raw_fd(accepted) };
            // Anybody on this host can connect to us.
            let theirs = peer_of(&accepted).map(|peer| for_family(af::INET6, peer));
            let same = |a: SocketAddr, b: SocketAddr| (a.ip(), a.port()) == (b.ip(), b.port());
            if own.zip(theirs).is_some_and(|(own, theirs)| same(own, theirs)) {
                return Ok((client, accepted));
            }
        }
    }
}

impl<'a> Sockets<'a> {
    /// The other end of a connection, if it is in the job.
    fn other_tcp_end(&self, saved: &Socket) -> Option<&'a Socket> {
        let other = self.saved.get(&saved.peer_inode).copied();
        other.filter(|other| is_tcp(other) && other.peer_inode == saved.inode)
    }
}

impl Sockets<'_> {
    fn inet_sockets(&self) -> Vec<&Socket> {
        let mut all: Vec<&Socket> =
            self.saved.values().copied().filter(|saved| is_inet(saved)).collect();
        all.sort_by_key(|saved| saved.inode);
        all
    }

    /// Makes the internet sockets, and connects them.
    pub(super) fn make_inet(&mut self) -> Result<(), RestartError> {
        let all: Vec<Socket> = self.inet_sockets().into_iter().cloned().collect();
        for saved in &all {
            if is_tcp(saved) && !matches!(saved.state, state::UNCONNECTED | state::LISTENING) {
                continue;
            }
            let fd = new_like(saved)?;
            if is_tcp(saved) {
                set_int(&fd, so::SOL_SOCKET, so::REUSEADDR, 1)?;
            }
            bind(saved, &fd)?;
            self.made.insert(saved.inode, fd);
        }
        for saved in all.iter().filter(|saved| saved.state == state::LISTENING) {
            let Some(fd) = self.made.get(&saved.inode) else { continue };
            let backlog = libc::c_int::try_from(saved.backlog).unwrap_or(libc::c_int::MAX);
            // SAFETY: the call takes numbers only.
            if unsafe { libc::listen(fd.as_raw_fd(), backlog) } < 0 {
                return Err(system("listen"));
            }
        }
        for saved in all.iter().filter(|saved| saved.state == state::LISTENING) {
            self.connect_waiting(saved)?;
        }
        for saved in all.iter().filter(|saved| is_tcp(saved)) {
            self.connect_inet(saved)?;
        }
        self.inet.listeners.clear();
        self.datagrams(&all)?;
        self.note_names(&all)
    }

    /// Refuses connections to programs outside the job that have not ended.
    pub(super) fn refuse_inet_outside(&self) -> Result<(), RestartError> {
        let all = self.inet_sockets();
        let listening = || all.iter().filter(|saved| saved.state == state::LISTENING);
        let name =
            |address: &[u8]| parse(address).map_or_else(String::new, |found| found.to_string());
        let waiting: HashSet<u64> =
            listening().flat_map(|saved| saved.waiting.iter().copied()).collect();
        let stranger = |saved: &&&Socket| {
            saved.waiting.iter().any(|inode| *inode != 0 && !self.saved.contains_key(inode))
        };
        if let Some(saved) = listening().find(stranger) {
            return Err(outside(&format!("a connection to {}", name(&saved.local))));
        }
        let is_outside = |saved: &&&Socket| {
            is_tcp(saved)
                && saved.state == state::CONNECTED
                && saved.shutdown & BY_THE_OTHER == 0
                && saved.peer_inode != saved.inode
                && !waiting.contains(&saved.inode)
                && self.other_tcp_end(saved).is_none()
        };
        match all.iter().find(is_outside) {
            Some(saved) => Err(outside(&format!("a connection to {}", name(&saved.peer)))),
            None => Ok(()),
        }
    }

    /// Those who wait to be accepted connect again.
    fn connect_waiting(&mut self, listening: &Socket) -> Result<(), RestartError> {
        let Some(address) = self.made.get(&listening.inode).and_then(local_of) else {
            return Ok(());
        };
        for &inode in &listening.waiting {
            let saved = self.saved.get(&inode).copied();
            if inode != 0 && saved.is_none() {
                continue;
            }
            let fd = match saved {
                Some(saved) => new_like(saved)?,
                None => new(listening.domain, libc::SOCK_STREAM)?,
            };
            let domain = saved.map_or(listening.domain, |saved| saved.domain);
            set_nonblocking(&fd, true)?;
            match call(fd.as_raw_fd(), reachable(domain, address), libc::connect) {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
                    return Err(failed(format!("cannot connect to {address}: {error}")));
                }
                _ => {}
            }
            wait_for(&fd, libc::POLLOUT);
            if saved.is_some() {
                self.made.insert(inode, fd);
            }
        }
        Ok(())
    }

    /// Connects a TCP socket again, if it was connected.
    fn connect_inet(&mut self, saved: &Socket) -> Result<(), RestartError> {
        if self.made.contains_key(&saved.inode) {
            return Ok(());
        }
        if saved.state == state::CONNECTING {
            let fd = new_like(saved)?;
            self.made.insert(saved.inode, fd);
            return Ok(());
        }
        if saved.state == state::CLOSED && saved.shutdown == 0 {
            let fd = never_connected(saved)?;
            self.made.insert(saved.inode, fd);
            return Ok(());
        }
        if saved.peer_inode == saved.inode {
            self.made.insert(saved.inode, with_itself(saved)?);
            return Ok(());
        }
        if let Some(other) = self.other_tcp_end(saved) {
            let (own, theirs) = self.inet.connection(saved, other)?;
            self.made.insert(saved.inode, own);
            self.made.insert(other.inode, theirs);
            return Ok(());
        }
        let gone = saved.state == state::CLOSED || saved.shutdown & BY_THE_OTHER != 0;
        let name = || parse(&saved.peer).map_or_else(String::new, |peer| peer.to_string());
        match self.circumstances.outside {
            _ if gone => {}
            Outside::Reset | Outside::Refuse => {}
            Outside::Repair => match repair::connection(saved) {
                Ok(fd) => {
                    self.made.insert(saved.inode, fd);
                    return Ok(());
                }
                Err(why) => eprintln!(
                    "ulpm_restart: the connection to {} cannot be repaired, so the program finds it closed: {why}",
                    name()
                ),
            },
        }
        let (own, theirs) = self.inet.connection(saved, saved)?;
        self.made.insert(saved.inode, own);
        self.inet.gone.insert(saved.inode, theirs);
        Ok(())
    }

    /// Fills the receive queues of connections, and ends what was ended.
    pub(super) fn fill_inet(&mut self) -> Result<(), RestartError> {
        let all: Vec<Socket> =
            self.inet_sockets().into_iter().filter(|saved| is_tcp(saved)).cloned().collect();
        for saved in &all {
            let Some(own) = self.made.get(&saved.inode) else { continue };
            let from = match self.inet.gone.get(&saved.inode) {
                Some(gone) => Some(gone),
                None => self.made.get(&saved.peer_inode),
            };
            for message in &saved.messages {
                if let Some(from) = from {
                    send(from, own, &message.content)?;
                }
            }
        }
        for saved in &all {
            let Some(own) = self.made.get(&saved.inode) else { continue };
            let shut = |how| {
                // SAFETY: the call takes numbers only. What is closed already is as it should be.
                unsafe { libc::shutdown(own.as_raw_fd(), how) };
            };
            if let Some(gone) = self.inet.gone.remove(&saved.inode) {
                if saved.reset {
                    // SO_LINGER with no time: the end is a reset.
                    let linger = [1i32.to_le_bytes(), 0i32.to_le_bytes()].concat();
                    socket::set_option(gone.as_raw_fd(), so::SOL_SOCKET, so::LINGER, &linger)
                        .map_err(|errno| failed(format!("cannot set SO_LINGER: {errno}")))?;
                }
                drop(gone);
                wait_for(own, libc::POLLRDHUP);
            }
            if saved.shutdown & FOR_RECEIVING != 0 && saved.state == state::CONNECTED {
                shut(libc::SHUT_RD);
            }
            if saved.shutdown & FOR_SENDING != 0 && !saved.reset {
                shut(libc::SHUT_WR);
            }
        }
        for saved in all.iter().filter(|saved| saved.state == state::CONNECTING) {
            self.connect_later(saved)?;
        }
        Ok(())
    }

    /// Begins to connect, as the program had done.
    fn connect_later(&mut self, saved: &Socket) -> Result<(), RestartError> {
        let (Some(own), Some(mut peer)) = (self.made.get(&saved.inode), parse(&saved.peer)) else {
            return Ok(());
        };
        // One of the job may listen at another address now.
        let listens = self.saved.values().find(|other| {
            other.state == state::LISTENING && other.local == raw(for_family(other.domain, peer))
        });
        if let Some(here) = listens.and_then(|other| self.made.get(&other.inode)).and_then(local_of)
        {
            peer = reachable(saved.domain, here);
        }
        set_nonblocking(own, true)?;
        match call(own.as_raw_fd(), peer, libc::connect) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
                self.made.insert(saved.inode, never_connected(saved)?);
            }
            _ => {}
        }
        Ok(())
    }

    /// The options that are set again. A connection goes over the loopback, whatever device it went over.
    pub(super) fn options(saved: &Socket) -> Vec<SocketOption> {
        let was_connected =
            is_tcp(saved) && !matches!(saved.state, state::UNCONNECTED | state::LISTENING);
        let late = |option: &&SocketOption| {
            let SocketOption { level, name, .. } = **option;
            !(is_tcp(saved) && level == libc::IPPROTO_TCP && name == tcp::CONGESTION
                || was_connected && [level, name] == [so::SOL_SOCKET, so::BINDTODEVICE]
                || was_connected && [level, name] == [libc::IPPROTO_TCP, tcp::FASTOPEN_CONNECT]
                || [level, name] == [ipv6::LEVEL, ipv6::V6ONLY]
                || [level, name] == [so::SOL_SOCKET, so::PEERCRED]
                || is_inet(saved) && is_join(option))
        };
        saved.options.iter().filter(late).cloned().collect()
    }

    /// Sends the datagrams again that had not been read, and connects those that were connected.
    fn datagrams(&mut self, all: &[Socket]) -> Result<(), RestartError> {
        let all = || all.iter().filter(|saved| !is_tcp(saved));
        for saved in all() {
            if let Some(own) = self.made.get(&saved.inode) {
                set_options(own.as_raw_fd(), &Self::options(saved))?;
                let joins: Vec<SocketOption> =
                    saved.options.iter().filter(|option| is_join(option)).cloned().collect();
                set_options(own.as_raw_fd(), &joins)?;
            }
        }
        for saved in all() {
            let Some(own) = self.made.get(&saved.inode) else { continue };
            let Some(to) = local_of(own) else { continue };
            let mut lost = 0;
            for message in &saved.messages {
                let source = parse(&message.source).filter(|_| !is_raw(saved));
                let sent = source.is_some_and(|source| {
                    let sender = all().find(|other| !is_raw(other) && is_at(other, source));
                    match sender.and_then(|sender| Some((sender, self.made.get(&sender.inode)?))) {
                        Some((sender, fd)) => {
                            send_to(fd, reachable(sender.domain, to), &message.content)
                        }
                        None => send_from(saved.domain, source, to, &message.content),
                    }
                    .is_ok()
                });
                lost += u32::from(!sent);
            }
            if lost != 0 {
                // As datagrams may be.
                eprintln!(
                    "ulpm_restart: {lost} packets that were not read at {to} are lost: their senders are others"
                );
            }
        }
        for saved in all().filter(|saved| saved.state == state::CONNECTED) {
            let (Some(own), Some(peer)) = (self.made.get(&saved.inode), parse(&saved.peer)) else {
                continue;
            };
            let other = all().find(|other| !is_raw(saved) && !is_raw(other) && is_at(other, peer));
            let here = other.and_then(|other| self.made.get(&other.inode)).and_then(local_of);
            let to = match here {
                Some(here) if here.port() != peer.port() || !is_here(peer) => {
                    reachable(saved.domain, here)
                }
                _ => peer,
            };
            call(own.as_raw_fd(), to, libc::connect)
                .map_err(|error| failed(format!("cannot connect to {to}: {error}")))?;
            if saved.shutdown & FOR_RECEIVING != 0 {
                // SAFETY: the call takes numbers only.
                unsafe { libc::shutdown(own.as_raw_fd(), libc::SHUT_RD) };
            }
        }
        Ok(())
    }

    /// Takes note of the addresses that are not what the program knows.
    fn note_names(&mut self, all: &[Socket]) -> Result<(), RestartError> {
        for saved in all {
            let Some(fd) = self.made.get(&saved.inode) else { continue };
            let connected = matches!(saved.state, state::CONNECTED | state::CLOSED);
            let mut buffer = [0; socket::ADDRESS_LEN];
            let local = socket::local_address(fd.as_raw_fd(), &mut buffer) == Ok(&saved.local[..]);
            let peer = socket::peer_address(fd.as_raw_fd(), &mut buffer) == Ok(&saved.peer[..]);
            let name = SocketName {
                local: SocketAddress::new(if local { &[] } else { &saved.local }),
                peer: SocketAddress::new(if peer || !connected { &[] } else { &saved.peer }),
            };
            if name != SocketName::default() {
                let status = ulpm_sys::fstat(fd.as_raw_fd())
                    .map_err(|errno| failed(format!("cannot look at a socket: {errno}")))?;
                self.inet.names.push((status.ino, name));
            }
        }
        Ok(())
    }

    /// The addresses that the program knows and that are not the kernel's, by inode.
    pub(super) fn take_names(&mut self) -> Vec<(u64, SocketName)> {
        std::mem::take(&mut self.inet.names)
    }
}

/// Whether an option is a multicast group to join: that is done once.
fn is_join(option: &SocketOption) -> bool {
    matches!(option.level, ip::LEVEL | ipv6::LEVEL) && option.name == ip::JOIN_GROUP
}

fn outside(what: &str) -> RestartError {
    failed(format!(
        "{what} leads to a program outside the job: restart without --outside-sockets refuse, \
         and the program finds it closed"
    ))
}

/// Whether a socket was at this address.
fn is_at(saved: &Socket, address: SocketAddr) -> bool {
    let Some(local) = parse(&saved.local) else { return false };
    let same = for_family(af::INET6, local).ip() == for_family(af::INET6, address).ip();
    local.port() == address.port() && (local.ip().is_unspecified() || same)
}

/// Whether an address is this host's.
fn is_here(address: SocketAddr) -> bool {
    std::net::UdpSocket::bind((address.ip(), 0)).is_ok()
}

/// An address of the loopback with a port that nobody has, for a connection like `saved`.
fn any_port(saved: &Socket) -> SocketAddr {
    if saved.domain == af::INET6 && !is_mapped(saved) {
        (Ipv6Addr::LOCALHOST, 0).into()
    } else {
        for_family(saved.domain, (Ipv4Addr::LOCALHOST, 0).into())
    }
}

/// A socket that is connected to itself.
fn with_itself(saved: &Socket) -> Result<OwnedFd, RestartError> {
    let fd = new_like(saved)?;
    let failed = |error| failed(format!("cannot connect a socket to itself: {error}"));
    call(fd.as_raw_fd(), any_port(saved), libc::bind).map_err(failed)?;
    let own = local_of(&fd).ok_or_else(|| system("ask for an address"))?;
    call(fd.as_raw_fd(), own, libc::connect).map_err(failed)?;
    Ok(fd)
}

/// A socket whose connect(2) was refused, and whose program has not been told.
fn never_connected(saved: &Socket) -> Result<OwnedFd, RestartError> {
    // A port at which nobody listens: it is bound for so long.
    let held = new(saved.domain, libc::SOCK_STREAM)?;
    let loopback = any_port(saved);
    call(held.as_raw_fd(), loopback, libc::bind)
        .map_err(|error| failed(format!("cannot bind {loopback}: {error}")))?;
    let nobody = local_of(&held).ok_or_else(|| system("ask for an address"))?;
    let fd = new_like(saved)?;
    set_nonblocking(&fd, true)?;
    // Its failure is what is wanted.
    let _ = call(fd.as_raw_fd(), nobody, libc::connect);
    wait_for(&fd, libc::POLLHUP);
    if !saved.reset && saved.state == state::CLOSED {
        let _ = socket::get_int_option(fd.as_raw_fd(), so::SOL_SOCKET, libc::SO_ERROR);
    }
    Ok(fd)
}

/// Puts bytes into a receive queue, by the other end. The queue is made larger for as long as that takes.
fn send(from: &OwnedFd, to: &OwnedFd, content: &[u8]) -> Result<(), RestartError> {
    set_int(from, libc::IPPROTO_TCP, tcp::NODELAY, 1)?;
    let before = ulpm_sys::bytes_to_read(to.as_raw_fd()).unwrap_or(0);
    let deadline = Instant::now() + DEADLINE;
    let mut grown: Option<i32> = None;
    let mut sent = 0;
    loop {
        if let Some(rest @ [_, ..]) = content.get(sent..) {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: the bytes outlive the call.
            let more =
                unsafe { libc::send(from.as_raw_fd(), rest.as_ptr().cast(), rest.len(), flags) };
            match usize::try_from(more) {
                Ok(more) => {
                    sent += more;
                    continue;
                }
                Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(system("fill the queue of a connection")),
            }
        } else if ulpm_sys::bytes_to_read(to.as_raw_fd()).unwrap_or(0) >= before + content.len() {
            break;
        }
        if Instant::now() > deadline {
            return Err(failed(format!(
                "a connection held {} bytes that were not read, and takes only {sent} here: raise \
                 net.ipv4.tcp_rmem",
                content.len()
            )));
        }
        if grown.is_none() {
            grown = socket::get_int_option(to.as_raw_fd(), so::SOL_SOCKET, so::RCVBUF).ok();
            set_int(to, so::SOL_SOCKET, so::RCVLOWAT, i32::MAX / 2)?;
            set_int(to, so::SOL_SOCKET, so::RCVLOWAT, 1)?;
        }
        // To look at a byte announces the larger window.
        let _ = socket::peek(to.as_raw_fd(), &mut [0]);
        std::thread::sleep(Duration::from_micros(50));
    }
    if let Some(size) = grown {
        set_int(to, so::SOL_SOCKET, so::RCVBUF, size / 2)?;
        // The size is the kernel's to choose again (since Linux 5.15).
        let _ = set_int(to, so::SOL_SOCKET, so::BUF_LOCK, 0);
    }
    Ok(())
}

fn send_to(fd: &OwnedFd, to: SocketAddr, content: &[u8]) -> io::Result<()> {
    let raw = raw(to);
    let len = libc::socklen_t::try_from(raw.len()).unwrap_or(0);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: bytes and address outlive the call.
    let sent = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            content.as_ptr().cast(),
            content.len(),
            flags,
            raw.as_ptr().cast(),
            len,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends a datagram from an address that no socket of the job has. If it is not this host's, only root can.
fn send_from(domain: i32, source: SocketAddr, to: SocketAddr, content: &[u8]) -> io::Result<()> {
    let from = new(domain, libc::SOCK_DGRAM).map_err(io::Error::other)?;
    let (source, mut to) = (for_family(domain, source), to);
    if call(from.as_raw_fd(), source, libc::bind).is_ok() {
        if to.ip().is_unspecified() {
            to.set_ip(source.ip());
        }
    } else {
        for (level, name) in [(ip::LEVEL, ip::TRANSPARENT), (ipv6::LEVEL, ipv6::TRANSPARENT)] {
            let _ = socket::set_option(from.as_raw_fd(), level, name, &1i32.to_le_bytes());
        }
        call(from.as_raw_fd(), source, libc::bind)?;
    }
    send_to(&from, reachable(domain, to), content)
}
