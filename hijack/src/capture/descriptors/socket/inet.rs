//! Internet sockets: TCP and UDP, over IPv4 and IPv6.
//!
//! What one end of a connection has sent and the other has not received lies in the kernel's send queue, where
//! nobody may look without a privilege. So it is made to arrive, while both ends stand still: held back
//! segments are pushed on ([`save`]), and where the receiver's window is closed, its buffer is made larger for
//! as long as that takes ([`finish`]). What has arrived is looked at and left where it is.

use alloc::vec::Vec;

use ulpm_image::Meta;
use ulpm_image::meta::{Repair, Socket, SocketMessage, SocketOption, socket_state as state};
use ulpm_protocol::table::{SlotState, SocketName};
use ulpm_sys::fmt::Text;
use ulpm_sys::proc::decimal;
use ulpm_sys::socket::{self, af, ip, ipv6, so, sock, tcp, udp};
use ulpm_sys::{Errno, Timespec};

use super::diag::{self, Diag};
use super::{Context, Open, Subject, cannot, later, poll_now, read_options};
use crate::capture::text::{Directory, Lines};
use crate::connections;
use crate::freeze::Failed;

/// Protocols (include/uapi/linux/in.h).
const TCP: i32 = 6;
const UDP: i32 = 17;

/// Options of TCP that can be read and set.
const TCP_OPTIONS: &[i32] = &[
    tcp::NODELAY,
    tcp::CORK,
    tcp::KEEPIDLE,
    tcp::KEEPINTVL,
    tcp::KEEPCNT,
    tcp::SYNCNT,
    tcp::LINGER2,
    tcp::DEFER_ACCEPT,
    tcp::CONGESTION,
    tcp::THIN_LINEAR_TIMEOUTS,
    tcp::USER_TIMEOUT,
    tcp::FASTOPEN,
    tcp::NOTSENT_LOWAT,
    tcp::SAVE_SYN,
    tcp::FASTOPEN_CONNECT,
    tcp::INQ,
    tcp::TX_DELAY,
];

const UDP_OPTIONS: &[i32] =
    &[udp::CORK, udp::ENCAP, udp::NO_CHECK6_TX, udp::NO_CHECK6_RX, udp::SEGMENT, udp::GRO];

/// Options of IPv4, which sockets of IPv6 have too.
const IP_OPTIONS: &[i32] = &[
    ip::TOS,
    ip::TTL,
    ip::OPTIONS,
    ip::RECVOPTS,
    ip::RETOPTS,
    ip::PKTINFO,
    ip::MTU_DISCOVER,
    ip::RECVERR,
    ip::RECVTTL,
    ip::RECVTOS,
    ip::FREEBIND,
    ip::PASSSEC,
    ip::TRANSPARENT,
    ip::RECVORIGDSTADDR,
    ip::MINTTL,
    ip::BIND_ADDRESS_NO_PORT,
    ip::RECVFRAGSIZE,
    ip::RECVERR_RFC4884,
    ip::UNICAST_IF,
    ip::LOCAL_PORT_RANGE,
];

/// Those that a connection cannot use and does not let set.
const IP_DATAGRAM_OPTIONS: &[i32] =
    &[ip::MULTICAST_IF, ip::MULTICAST_TTL, ip::MULTICAST_LOOP, ip::MULTICAST_ALL];

const IPV6_DATAGRAM_OPTIONS: &[i32] =
    &[ipv6::MULTICAST_IF, ipv6::MULTICAST_HOPS, ipv6::MULTICAST_LOOP, ipv6::MULTICAST_ALL];

const IPV6_OPTIONS: &[i32] = &[
    ipv6::V6ONLY,
    ipv6::UNICAST_HOPS,
    ipv6::MTU_DISCOVER,
    ipv6::RECVERR,
    ipv6::RECVPKTINFO,
    ipv6::RECVHOPLIMIT,
    ipv6::RECVHOPOPTS,
    ipv6::RECVRTHDR,
    ipv6::RECVDSTOPTS,
    ipv6::RECVPATHMTU,
    ipv6::DONTFRAG,
    ipv6::RECVTCLASS,
    ipv6::TCLASS,
    ipv6::AUTOFLOWLABEL,
    ipv6::ADDR_PREFERENCES,
    ipv6::MINHOPCOUNT,
    ipv6::RECVORIGDSTADDR,
    ipv6::TRANSPARENT,
    ipv6::UNICAST_IF,
    ipv6::RECVFRAGSIZE,
    ipv6::FREEBIND,
    ipv6::RECVERR_RFC4884,
];

/// States of TCP (include/net/tcp_states.h).
mod tcp_state {
    pub(super) const ESTABLISHED: u8 = 1;
    pub(super) const SYN_SENT: u8 = 2;
    pub(super) const SYN_RECEIVED: u8 = 3;
    pub(super) const TIME_WAIT: u8 = 6;
    pub(super) const CLOSE: u8 = 7;
    pub(super) const CLOSE_WAIT: u8 = 8;
    pub(super) const LAST_ACK: u8 = 9;
    pub(super) const LISTEN: u8 = 10;
    pub(super) const CLOSING: u8 = 11;
    pub(super) const NEW_SYN_RECEIVED: u8 = 12;

    /// Whether the other end's last byte has come, and is counted as one.
    pub(super) fn has_end(state: u8) -> bool {
        matches!(state, TIME_WAIT | CLOSE_WAIT | LAST_ACK | CLOSING)
    }
}

const POLLPRI: i16 = 2;
const POLLERR: i16 = 8;
const POLLRDHUP: i16 = 0x2000;

/// `Socket::shutdown`.
const FOR_RECEIVING: u32 = 1;
const FOR_SENDING: u32 = 2;
const BY_THE_OTHER: u32 = 4;

/// ioctl(2) requests: bytes that were not acknowledged, and of these that were not sent.
const SIOCOUTQ: usize = 0x5411;
const SIOCOUTQNSD: usize = 0x894b;

/// How long what is under way may take to arrive; then the program goes on for a moment, to read.
const DEADLINE_NS: i64 = 500_000_000;

/// More than this of the content of queues is not saved of a process, in bytes.
const MOST: usize = 256 << 20;

/// A TCP socket of this process whose content is still to be saved.
#[derive(Debug)]
pub(super) struct Unfinished {
    fd: i32,
    /// The descriptor is one of our own, and stays.
    kept: bool,
    /// Its place in `Meta::sockets`.
    index: usize,
    /// Its real names.
    local: Vec<u8>,
    peer: Vec<u8>,
}

/// What the kernel holds of internet sockets, looked up once for all of a process.
#[derive(Debug, Default)]
pub(super) struct Inet {
    unfinished: Vec<Unfinished>,
    /// Inodes of all sockets of the job, once one is asked for.
    of_job: Option<Vec<u64>>,
    /// Connections that nobody has accepted yet, once one is asked for.
    waiting: Option<Vec<(Endpoint, Known)>>,
    /// Connections that are being made, likewise.
    connecting: Option<Vec<(Endpoint, Known)>>,
    /// Bytes that were found in queues.
    content: usize,
    memberships: Option<Vec<Membership>>,
}

/// Says whether an internet socket can be saved, as far as its protocol tells.
pub(super) fn kind(open: &Open) -> Result<(), Failed> {
    match [super::int(open, so::TYPE)?, super::int(open, so::PROTOCOL)?] {
        [sock::STREAM, TCP] => {
            let mut name = [0; 16];
            match socket::get_option(open.ours, TCP, tcp::ULP, &mut name) {
                Ok(1..) => Err(cannot(open, "is a TCP socket with TLS or the like in the kernel")),
                _ => Ok(()),
            }
        }
        [sock::DGRAM, UDP] => Ok(()),
        [sock::RAW, _] => Ok(()),
        _ => Err(cannot(open, "is an internet socket of a protocol other than TCP and UDP")),
    }
}

/// Takes the state of an internet socket, but for the content of connections.
pub(super) fn save(
    subject: &Subject<'_>,
    open: &Open,
    saved: &mut Socket,
    context: &mut Context,
    index: usize,
) -> Result<(), Failed> {
    let (local, peer) = (saved.local.clone(), saved.peer.clone());
    if let Some(name) = subject.table.socket_name(saved.inode) {
        let SocketName { local, peer } = name;
        saved.local = local.bytes().to_vec();
        if !peer.bytes().is_empty() {
            saved.peer = peer.bytes().to_vec();
        }
    }
    read_options(open, so::SOL_SOCKET, &[so::BINDTODEVICE], &mut saved.options);
    read_options(open, ip::LEVEL, IP_OPTIONS, &mut saved.options);
    if saved.domain == af::INET6 {
        read_options(open, ipv6::LEVEL, IPV6_OPTIONS, &mut saved.options);
    }
    if saved.kind != sock::STREAM {
        if saved.kind == sock::RAW {
            read_options(open, ip::LEVEL, &[ip::HDRINCL], &mut saved.options);
            for (level, name) in socket::RAW_OPTIONS {
                read_options(open, level, &[name], &mut saved.options);
            }
        } else {
            read_options(open, UDP, UDP_OPTIONS, &mut saved.options);
        }
        read_options(open, ip::LEVEL, IP_DATAGRAM_OPTIONS, &mut saved.options);
        if saved.domain == af::INET6 {
            read_options(open, ipv6::LEVEL, IPV6_DATAGRAM_OPTIONS, &mut saved.options);
        }
        context.inet.memberships(open, saved)?;
        return datagrams(open, saved, context);
    }
    read_options(open, TCP, TCP_OPTIONS, &mut saved.options);
    let info = Info::of(open.ours).map_err(look)?;
    if info.state != tcp_state::LISTEN {
        push(open.ours);
    }
    context.inet.unfinished.push(Unfinished { fd: open.fd, kept: open.kept, index, local, peer });
    Ok(())
}

/// Saves the content of all connections of which this process holds an end.
///
/// `again` opens a descriptor of the program again.
pub(super) fn finish(
    subject: &Subject<'_>,
    context: &mut Context,
    meta: &mut Meta,
    again: impl Fn(i32) -> Result<i32, Failed>,
) -> Result<(), Failed> {
    let Context { inet, diag, .. } = context;
    for unfinished in core::mem::take(&mut inet.unfinished) {
        let Some(saved) = meta.sockets.get_mut(unfinished.index) else { continue };
        let Unfinished { fd, kept, .. } = unfinished;
        let ours = if kept { fd } else { again(fd)? };
        let open = Open::socket(fd, ours, kept, saved.inode);
        connection(subject, inet, diag, &open, &unfinished, saved)?;
    }
    Ok(())
}

fn look(errno: Errno) -> Failed {
    Failed::system("look at an internet socket", errno)
}

/// Sends what TCP holds back for a larger segment, and leaves the option that does so as it was.
fn push(fd: i32) {
    if !ulpm_sys::get_ioctl(fd, SIOCOUTQNSD).is_ok_and(|unsent| unsent > 0) {
        return;
    }
    let Ok(before) = socket::get_int_option(fd, TCP, tcp::NODELAY) else { return };
    for value in [1, before] {
        let _ = socket::set_option(fd, TCP, tcp::NODELAY, &value.to_le_bytes());
    }
}

/// Of `struct tcp_info` (include/uapi/linux/tcp.h).
#[derive(Clone, Copy, Debug, Default)]
struct Info {
    state: u8,
    /// Of a listening socket: those who wait to be accepted, and how many may.
    waiting: u32,
    backlog: u32,
    acknowledged: u64,
    received: u64,
    unsent: u32,
    sent: u64,
    sent_again: u64,
}

impl Info {
    fn of(fd: i32) -> Result<Self, Errno> {
        let mut bytes = [0; 256];
        let len = socket::get_option(fd, TCP, tcp::INFO, &mut bytes)?;
        Ok(Self::parse(&bytes[..len.min(256)]))
    }

    fn parse(bytes: &[u8]) -> Self {
        let long = |at: usize| {
            let [low, high] = [at, at + 4].map(|at| u64::from(diag::number(bytes, at)));
            high << 32 | low
        };
        Self {
            state: bytes.first().copied().unwrap_or(0),
            waiting: diag::number(bytes, 24),
            backlog: diag::number(bytes, 28),
            acknowledged: long(120),
            received: long(128),
            unsent: diag::number(bytes, 144),
            sent: long(200),
            sent_again: long(208),
        }
    }
}

/// What `inet_diag` (include/uapi/linux/inet_diag.h) says of a socket.
#[derive(Debug)]
struct Known {
    state: u8,
    /// 0 if no descriptor leads to it: it was closed, or not yet accepted.
    inode: u64,
    /// Received and not read, bytes; with one for the end, if that has come.
    received: u32,
    /// Sent and not acknowledged, or not sent yet.
    unacknowledged: u32,
    /// Address and port of the other end, as in [`endpoint`].
    peer: Endpoint,
    info: Info,
}

/// Address family, port and address, as they travel; a mapped address is one of IPv4.
type Endpoint = (i32, [u8; 2], [u8; 16]);

/// Reads a raw `sockaddr`.
fn endpoint(name: &[u8]) -> Option<Endpoint> {
    let family = i32::from(u16::from_le_bytes(*name.first_chunk()?));
    let port = [*name.get(2)?, *name.get(3)?];
    let mut address = [0; 16];
    if family == af::INET6 {
        address.copy_from_slice(name.get(8..24)?);
        if let [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4 @ ..] = address {
            address = [0; 16];
            address[..4].copy_from_slice(&v4);
            return Some((af::INET, port, address));
        }
    } else {
        address[..4].copy_from_slice(name.get(4..8)?);
    }
    Some((family, port, address))
}

/// `struct inet_diag_req_v2`: a question about the socket that has these two ends.
fn request(
    family: i32,
    states: u32,
    local: Option<&Endpoint>,
    peer: Option<&Endpoint>,
) -> [u8; 56] {
    /// `1 << (INET_DIAG_INFO - 1)`
    const SHOW_INFO: u8 = 2;
    let mut request = [0; 56];
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "families and protocols are small"
    )]
    {
        request[..3].copy_from_slice(&[family as u8, TCP as u8, SHOW_INFO]);
    }
    request[4..8].copy_from_slice(&states.to_le_bytes());
    for (end, port_at, address_at) in [(local, 8, 12), (peer, 10, 28)] {
        if let Some((_, port, address)) = end {
            request[port_at..port_at + 2].copy_from_slice(port);
            request[address_at..address_at + 16].copy_from_slice(address);
        }
    }
    // INET_DIAG_NOCOOKIE
    request[48..].fill(0xff);
    request
}

impl Known {
    /// Reads `struct inet_diag_msg` and its attributes.
    fn parse(answer: &[u8]) -> Option<Self> {
        const INET_DIAG_INFO: u16 = 2;
        let (head, attributes) = answer.split_at_checked(72)?;
        let mut peer = (i32::from(head[0]), [head[6], head[7]], [0; 16]);
        peer.2.copy_from_slice(&head[24..40]);
        if let [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4 @ ..] = peer.2 {
            peer = (af::INET, peer.1, [0; 16]);
            peer.2[..4].copy_from_slice(&v4);
        } else if peer.0 == af::INET {
            peer.2[4..].fill(0);
        }
        let info = diag::attributes(attributes).find(|(kind, _)| *kind == INET_DIAG_INFO);
        Some(Self {
            state: head[1],
            inode: diag::number(head, 68).into(),
            received: diag::number(head, 56),
            unacknowledged: diag::number(head, 60),
            peer,
            info: info.map_or_else(Info::default, |(_, value)| Info::parse(value)),
        })
    }

    /// The socket that has these two ends, if it is on this host.
    fn find(diag: &mut Diag, local: &Endpoint, peer: &Endpoint) -> Result<Option<Self>, Failed> {
        let asked = request(local.0, u32::MAX, Some(local), Some(peer));
        let known = diag.ask(&asked, Self::parse)?;
        // A socket that listens at that address stands in for one that is not there.
        Ok(known.filter(|known| known.state != tcp_state::LISTEN && known.peer == *peer))
    }

    /// All in these states that `wanted` takes, of both families, with their own addresses.
    fn in_states(
        diag: &mut Diag,
        states: &[u8],
        wanted: fn(&Self) -> bool,
    ) -> Result<Vec<(Endpoint, Self)>, Failed> {
        let states = states.iter().fold(0, |set, state| set | 1 << state);
        let mut all = Vec::new();
        for family in [af::INET, af::INET6] {
            let asked = request(family, states, None, None);
            let found = diag.dump(&asked, |answer| {
                let Some(known) = Self::parse(answer).filter(wanted) else { return };
                let mut name = [0; 28];
                name[0] = answer[0];
                name[2..4].copy_from_slice(&answer[4..6]);
                let at = if i32::from(answer[0]) == af::INET6 { 8 } else { 4 };
                name[at..at + 16].copy_from_slice(&answer[8..24]);
                if at == 4 {
                    name[8..].fill(0);
                }
                if let Some(local) = endpoint(&name) {
                    all.push((local, known));
                }
            });
            if family == af::INET {
                found?;
            }
        }
        Ok(all)
    }

    /// Whether it is an end that nobody has accepted yet. One that was closed is in another state.
    fn waits(&self) -> bool {
        self.inode == 0
            && matches!(
                self.state,
                tcp_state::ESTABLISHED
                    | tcp_state::CLOSE_WAIT
                    | tcp_state::SYN_RECEIVED
                    | tcp_state::NEW_SYN_RECEIVED
            )
    }
}

fn connection(
    subject: &Subject<'_>,
    inet: &mut Inet,
    diag: &mut Diag,
    open: &Open,
    unfinished: &Unfinished,
    saved: &mut Socket,
) -> Result<(), Failed> {
    let info = Info::of(open.ours).map_err(look)?;
    match info.state {
        tcp_state::LISTEN => return listening(subject, inet, diag, open, unfinished, saved, info),
        tcp_state::SYN_SENT => return connecting(inet, diag, saved),
        tcp_state::CLOSE => {
            let found = poll_now(open.ours, POLLPRI | POLLRDHUP);
            // A socket that was never connected has no end of input.
            if found & POLLRDHUP == 0 {
                saved.state = state::UNCONNECTED;
                saved.peer = Vec::new();
                return Ok(());
            }
            saved.state = state::CLOSED;
            saved.reset = found & POLLERR != 0;
            if info.acknowledged != 0 || info.received != 0 {
                saved.shutdown = FOR_RECEIVING | FOR_SENDING;
            }
            return queue(inet, open, saved, found);
        }
        _ => {}
    }
    saved.state = state::CONNECTED;
    let ends = (endpoint(&unfinished.local), endpoint(&unfinished.peer));
    let (Some(local), Some(peer)) = ends else {
        return Err(cannot(open, "has a name that ULPM does not understand"));
    };
    let outside = subject.repairs
        && !unfinished.kept
        && !Known::find(diag, &peer, &local)?
            .is_some_and(|other| inet.is_of_job(subject, other.inode));
    let hushed = outside && hush(open, saved);
    let mut grown = None;
    let arrived = arrive(subject, inet, diag, open, [&local, &peer], &mut grown);
    let content = arrived.and_then(|other| {
        saved.peer_inode = other.map_or(0, |other| other.inode);
        if subject.holds && !unfinished.kept && other.is_some_and(|other| other.inside) {
            connections::note_inside(open.fd);
        }
        let found = poll_now(open.ours, POLLPRI | POLLRDHUP);
        let now = Info::of(open.ours).map_err(look)?.state;
        if now == tcp_state::CLOSE {
            saved.state = state::CLOSED;
            saved.reset = found & POLLERR != 0;
            saved.shutdown = FOR_RECEIVING | FOR_SENDING;
        } else {
            let ended = tcp_state::has_end(now);
            let receives = found & POLLRDHUP == 0 || ended;
            let sends = matches!(
                now,
                tcp_state::ESTABLISHED | tcp_state::CLOSE_WAIT | tcp_state::SYN_RECEIVED
            );
            saved.shutdown = if receives { 0 } else { FOR_RECEIVING }
                | if sends { 0 } else { FOR_SENDING }
                | if ended { BY_THE_OTHER } else { 0 };
        }
        queue(inet, open, saved, found)?;
        if hushed && now == tcp_state::ESTABLISHED && saved.shutdown == 0 {
            saved.repair.extend(repair(inet, open, saved)?);
        }
        Ok(())
    });
    if let Some(grown) = grown {
        grown.shrink(open.ours);
    }
    if hushed && saved.repair.is_empty() {
        let off = 0i32.to_le_bytes();
        let _ = socket::set_option(open.ours, so::SOL_SOCKET, so::DETACH_FILTER, &off);
    }
    content
}

/// Has nothing reach a connection any more, so that it stays as it is saved, and whoever sends sends again. False where
/// that cannot be, or where it cannot be repaired anyway.
fn hush(open: &Open, saved: &Socket) -> bool {
    let filter = |option: &SocketOption| {
        option.level == so::SOL_SOCKET && matches!(option.name, so::FILTER | so::LOCK_FILTER)
    };
    if saved.options.iter().any(filter) {
        return false;
    }
    let set = |value: i32| socket::set_option(open.ours, TCP, tcp::REPAIR, &value.to_le_bytes());
    let may = set(tcp::REPAIR_ON).is_ok() && set(tcp::REPAIR_OFF_SILENTLY).is_ok();
    if may {
        give_back_reuse(open, saved);
    }
    may && socket::set_filter(open.ours, &socket::DROP_ALL).is_ok()
}

/// The program's SO_REUSEADDR, which is lost with repair mode.
fn reuse(saved: &Socket) -> i32 {
    let mut all = saved.options.iter();
    let found = all.find(|one| (one.level, one.name) == (so::SOL_SOCKET, so::REUSEADDR));
    found.and_then(|one| one.value.first_chunk()).map_or(0, |value| i32::from_le_bytes(*value))
}

fn give_back_reuse(open: &Open, saved: &Socket) {
    let value = reuse(saved).to_le_bytes();
    let _ = socket::set_option(open.ours, so::SOL_SOCKET, so::REUSEADDR, &value);
}

/// Takes note of a connection that is saved by another descriptor: also this process has to make it go on.
pub(super) fn share(open: &Open) {
    if Info::of(open.ours).is_ok_and(|info| info.state == tcp_state::ESTABLISHED) {
        connections::note_repaired(open.fd, -1);
    }
}

/// Saves what repair mode tells, and leaves it again; `None` if the connection cannot be repaired.
fn repair(inet: &mut Inet, open: &Open, saved: &Socket) -> Result<Option<Repair>, Failed> {
    if !connections::note_repaired(open.fd, reuse(saved)) {
        return Ok(None);
    }
    let len = ulpm_sys::get_ioctl(open.ours, SIOCOUTQ).unwrap_or(0);
    inet.count(open, usize::try_from(len).unwrap_or(0))?;
    let set = |name, value: i32| socket::set_option(open.ours, TCP, name, &value.to_le_bytes());
    let read = || {
        set(tcp::REPAIR, tcp::REPAIR_ON)?;
        let get = |name| socket::get_int_option(open.ours, TCP, name).map(i32::cast_unsigned);
        let next = |queue| {
            set(tcp::REPAIR_QUEUE, queue)?;
            get(tcp::QUEUE_SEQ)
        };
        let receive_next = next(tcp::RECEIVE_QUEUE)?;
        let send_next = next(tcp::SEND_QUEUE)?;
        let mut sent = alloc::vec![0; usize::try_from(len).unwrap_or(0)];
        if !sent.is_empty() && socket::peek(open.ours, &mut sent)? != sent.len() {
            return Err(Errno::IO);
        }
        let mut info = [0; 8];
        socket::get_option(open.ours, TCP, tcp::INFO, &mut info)?;
        // tcpi_snd_wscale and tcpi_rcv_wscale.
        let scales = u32::from(info[6] & 15) | u32::from(info[6] >> 4) << 16;
        let mut window = [0; 20];
        let len = socket::get_option(open.ours, TCP, tcp::REPAIR_WINDOW, &mut window)?;
        Ok::<_, Errno>(Repair {
            send_next,
            receive_next,
            sent,
            segment: get(tcp::MAXSEG)?,
            options: info[5].into(),
            scales,
            timestamp: get(tcp::TIMESTAMP)?,
            window: window[..len.min(20)].to_vec(),
        })
    };
    let found = read().ok();
    let _ = set(tcp::REPAIR_QUEUE, tcp::NO_QUEUE);
    let _ = set(tcp::REPAIR, tcp::REPAIR_OFF_SILENTLY);
    give_back_reuse(open, saved);
    Ok(found)
}

/// The other end of a connection, on this host.
#[derive(Clone, Copy, Debug)]
struct Other {
    inode: u64,
    /// A process of the job has it.
    inside: bool,
}

/// Waits until everything that the other end has sent is in the receive queue; returns that end.
fn arrive(
    subject: &Subject<'_>,
    inet: &mut Inet,
    diag: &mut Diag,
    open: &Open,
    [local, peer]: [&Endpoint; 2],
    grown: &mut Option<Buffer>,
) -> Result<Option<Other>, Failed> {
    let deadline = ulpm_sys::monotonic_ns() + DEADLINE_NS;
    let mut pause_ns = 20_000;
    for attempt in 0u32.. {
        let Some(other) = Known::find(diag, peer, local)? else { return Ok(None) };
        if other.waits() {
            // Whoever listens there looks at what it has received.
            return Ok(None);
        }
        let own = Info::of(open.ours).map_err(look)?;
        let end = u64::from(tcp_state::has_end(own.state));
        let sent = other.info.sent.wrapping_sub(other.info.sent_again).wrapping_add(end);
        // An acknowledgement may wait, so what has come is counted too.
        let arrived = other.unacknowledged == 0
            || other.info.unsent == 0 && own.received == sent
            || own.state == tcp_state::CLOSE;
        let inside = (subject.holds || !arrived) && inet.is_of_job(subject, other.inode);
        if arrived || !inside {
            return Ok(Some(Other { inode: other.inode, inside }));
        }
        if ulpm_sys::monotonic_ns() > deadline {
            return Err(later(
                open,
                "has more under way to it than fits, and its program does not read: such a connection",
            ));
        }
        // Its buffer may be full. To look at a byte sends what there is to acknowledge, and a new window.
        if attempt == 2 && grown.is_none() {
            *grown = Buffer::grow(open.ours);
        }
        let mut byte = [0];
        let _ = socket::peek(open.ours, &mut byte);
        if attempt > 0 {
            let pause = core::sync::atomic::AtomicU32::new(0);
            let _ = ulpm_sys::futex_wait(&pause, 0, Some(Timespec::from_ns(pause_ns)));
            pause_ns = (pause_ns * 2).min(5_000_000);
        }
    }
    Ok(None)
}

/// A receive buffer that was made larger.
#[derive(Debug)]
struct Buffer {
    size: i32,
    lowest: i32,
    locked: i32,
}

impl Buffer {
    /// Which of the two sizes the program has chosen: `SOCK_RCVBUF_LOCK` (include/uapi/linux/socket.h).
    const RECEIVE_LOCK: i32 = 2;

    /// SO_RCVBUFFORCE
    const FORCE: i32 = 33;

    /// Raises SO_RCVLOWAT, for which the kernel makes room, up to what net.ipv4.tcp_rmem allows.
    fn grow(fd: i32) -> Option<Self> {
        let get = |name| socket::get_int_option(fd, so::SOL_SOCKET, name).ok();
        let set = |name, value: i32| {
            let _ = socket::set_option(fd, so::SOL_SOCKET, name, &value.to_le_bytes());
        };
        let before = Self {
            size: get(so::RCVBUF)?,
            lowest: get(so::RCVLOWAT)?,
            locked: get(so::BUF_LOCK).unwrap_or(0),
        };
        if before.locked & Self::RECEIVE_LOCK != 0 {
            set(so::BUF_LOCK, before.locked & !Self::RECEIVE_LOCK);
        }
        // Beyond what a connection grows to by itself only with CAP_NET_ADMIN.
        set(Self::FORCE, i32::MAX / 4);
        set(so::BUF_LOCK, before.locked & !Self::RECEIVE_LOCK);
        set(so::RCVLOWAT, i32::MAX / 2);
        set(so::RCVLOWAT, before.lowest);
        Some(before)
    }

    fn shrink(&self, fd: i32) {
        let set =
            |name, value: i32| socket::set_option(fd, so::SOL_SOCKET, name, &value.to_le_bytes());
        // Where the choice cannot be taken back (before Linux 5.15), it is left larger: as if it had been read.
        if set(so::BUF_LOCK, self.locked).is_ok() {
            // The kernel doubles what it is told.
            if set(Self::FORCE, self.size / 2).is_err() {
                let _ = set(so::RCVBUF, self.size / 2);
            }
            let _ = set(so::BUF_LOCK, self.locked);
        }
    }
}

/// Saves what is in a receive queue; `found` is what poll(2) says.
fn queue(inet: &mut Inet, open: &Open, saved: &mut Socket, found: i16) -> Result<(), Failed> {
    if found & POLLPRI != 0 {
        return Err(cannot(open, "holds urgent data (MSG_OOB), which"));
    }
    let len = ulpm_sys::bytes_to_read(open.ours).map_err(look)?;
    if len == 0 {
        return Ok(());
    }
    inet.count(open, len)?;
    // The program's SO_PEEK_OFF would be moved.
    let program = socket::get_int_option(open.ours, so::SOL_SOCKET, so::PEEK_OFF).unwrap_or(-1);
    let go_to = |offset: i32| {
        if program >= 0 {
            let _ =
                socket::set_option(open.ours, so::SOL_SOCKET, so::PEEK_OFF, &offset.to_le_bytes());
        }
    };
    go_to(-1);
    let mut content = alloc::vec![0; len];
    let peeked = socket::peek(open.ours, &mut content);
    go_to(program);
    if peeked.map_err(look)? != len {
        return Err(cannot(open, "holds urgent data (MSG_OOB), which"));
    }
    saved.messages.push(SocketMessage { content, ..SocketMessage::default() });
    Ok(())
}

/// A socket that listens, and those who wait to be accepted.
fn listening(
    subject: &Subject<'_>,
    inet: &mut Inet,
    diag: &mut Diag,
    open: &Open,
    unfinished: &Unfinished,
    saved: &mut Socket,
    info: Info,
) -> Result<(), Failed> {
    saved.state = state::LISTENING;
    saved.peer = Vec::new();
    saved.backlog = info.backlog;
    if info.waiting == 0 {
        return Ok(());
    }
    let Some((_, port, address)) = endpoint(&unfinished.local) else { return Ok(()) };
    let all = match inet.waiting.take() {
        Some(all) => all,
        None => {
            let states = [tcp_state::ESTABLISHED, tcp_state::CLOSE_WAIT];
            Known::in_states(diag, &states, Known::waits)?
        }
    };
    for (local, waits) in &all {
        let is_other = local.1 != port
            || address != [0; 16] && address != local.2
            || saved.domain == af::INET && local.0 != af::INET;
        if is_other {
            continue;
        }
        let client = Known::find(diag, &waits.peer, local)?.map(|client| client.inode);
        // What a client outside the job has sent ends with its connection at a restart.
        if waits.received > u32::from(tcp_state::has_end(waits.state))
            && client.is_some_and(|inode| inet.is_of_job(subject, inode))
        {
            return Err(later(
                open,
                "has a connection to accept over which something has come already, which",
            ));
        }
        // An end on another host is one that no image has.
        saved.waiting.push(client.unwrap_or(u64::MAX));
    }
    inet.waiting = Some(all);
    Ok(())
}

/// A connect(2) that is under way: its address is known to `inet_diag` only.
fn connecting(inet: &mut Inet, diag: &mut Diag, saved: &mut Socket) -> Result<(), Failed> {
    saved.state = state::CONNECTING;
    if inet.connecting.is_none() {
        inet.connecting = Some(Known::in_states(diag, &[tcp_state::SYN_SENT], |_| true)?);
    }
    let mut all = inet.connecting.iter().flatten();
    let Some((_, known)) = all.find(|(_, known)| known.inode == saved.inode) else { return Ok(()) };
    let (family, port, address) = known.peer;
    let mut name = Vec::new();
    if saved.domain == af::INET {
        name.extend([af::INET as u8, 0, port[0], port[1]]);
        name.extend(&address[..4]);
        name.extend([0; 8]);
    } else {
        name.extend([af::INET6 as u8, 0, port[0], port[1], 0, 0, 0, 0]);
        if family == af::INET {
            name.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
            name.extend(&address[..4]);
        } else {
            name.extend(address);
        }
        name.extend([0; 4]);
    }
    saved.peer = name;
    Ok(())
}

/// Datagrams that wait to be read.
fn datagrams(open: &Open, saved: &mut Socket, context: &mut Context) -> Result<(), Failed> {
    saved.state = if saved.peer.is_empty() { state::UNCONNECTED } else { state::CONNECTED };
    let found = poll_now(open.ours, ulpm_sys::POLLIN | POLLRDHUP);
    if found & POLLRDHUP != 0 && saved.state == state::CONNECTED {
        saved.shutdown = FOR_RECEIVING;
    }
    saved.reset = found & POLLERR != 0;
    // Sent datagrams leave at once, over the loopback; one that is being put together stays.
    let mut pause_ns = 50_000;
    while ulpm_sys::get_ioctl(open.ours, SIOCOUTQ).is_ok_and(|bytes| bytes > 0) {
        if pause_ns > 50_000_000 {
            return Err(cannot(
                open,
                "holds a datagram that is not complete (MSG_MORE, UDP_CORK), which",
            ));
        }
        let pause = core::sync::atomic::AtomicU32::new(0);
        let _ = ulpm_sys::futex_wait(&pause, 0, Some(Timespec::from_ns(pause_ns)));
        pause_ns *= 2;
    }
    // To look takes an error away: then the datagrams, which may get lost at any time, are left out.
    if found & ulpm_sys::POLLIN == 0 || saved.reset {
        return Ok(());
    }
    let Context { inet, buffer, .. } = context;
    let mut peek = super::Peek::new(open.ours, buffer).map_err(look)?;
    while let Some(peeked) = peek.next(0, |_| ()).map_err(look)? {
        inet.count(open, peeked.len)?;
        saved.messages.push(SocketMessage {
            content: peek.content(peeked.len).to_vec(),
            source: peeked.source,
            ..SocketMessage::default()
        });
    }
    Ok(())
}

impl Inet {
    fn count(&mut self, open: &Open, len: usize) -> Result<(), Failed> {
        self.content += len;
        if self.content > MOST {
            return Err(cannot(
                open,
                "is one of many sockets that together hold more than is saved: it",
            ));
        }
        Ok(())
    }

    /// Whether a socket is one of a process of the job; one that was closed counts as such.
    fn is_of_job(&mut self, subject: &Subject<'_>, inode: u64) -> bool {
        inode == 0
            || self
                .of_job
                .get_or_insert_with(|| sockets_of_job(subject))
                .binary_search(&inode)
                .is_ok()
    }

    /// Finds the multicast groups that a socket has joined. The kernel lists those of the host, and says of
    /// each whether the socket is in it.
    fn memberships(&mut self, open: &Open, saved: &mut Socket) -> Result<(), Failed> {
        for membership in self.memberships.get_or_insert_with(Membership::list) {
            let level = if membership.family == af::INET { ip::LEVEL } else { ipv6::LEVEL };
            if membership.family == af::INET6 && saved.domain == af::INET {
                continue;
            }
            // struct group_filter: interface, the group, mode, count of sources.
            let mut filter = [0; 144];
            filter[..136].copy_from_slice(&membership.request());
            if socket::get_option(open.ours, level, ip::MSFILTER, &mut filter).is_err() {
                continue;
            }
            /// MCAST_EXCLUDE
            const ALL_BUT: u32 = 0;
            if [diag::number(&filter, 136), diag::number(&filter, 140)] != [ALL_BUT, 0] {
                return Err(cannot(
                    open,
                    "has joined a multicast group for certain sources only: it",
                ));
            }
            let value = membership.request().to_vec();
            saved.options.push(SocketOption { level, name: ip::JOIN_GROUP, value });
        }
        Ok(())
    }
}

/// A multicast group that somebody on this host has joined.
#[derive(Debug)]
struct Membership {
    family: i32,
    interface: u32,
    address: [u8; 16],
}

impl Membership {
    fn list() -> Vec<Self> {
        let mut all = Vec::new();
        let mut interface = 0;
        each_line(c"/proc/net/igmp", |line| {
            let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
            let Some(first) = fields.next() else { return };
            if let Some(index) = decimal(first) {
                // An interface. Hexadecimal digits only may look like a number too, but a group is indented.
                if line.first().is_some_and(|byte| !byte.is_ascii_whitespace()) {
                    interface = u32::try_from(index).unwrap_or(0);
                    return;
                }
            }
            if let Some(group) = ulpm_sys::proc::hex(first) {
                let mut address = [0; 16];
                // As the kernel holds it, so its bytes are in order.
                address[..4].copy_from_slice(&u32::try_from(group).unwrap_or(0).to_le_bytes());
                if address[0] & 0xf0 == 0xe0 {
                    all.push(Self { family: af::INET, interface, address });
                }
            }
        });
        each_line(c"/proc/net/igmp6", |line| {
            let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
            let parsed = (|| {
                let interface = u32::try_from(decimal(fields.next()?)?).ok()?;
                let digits = fields.nth(1)?;
                let mut address = [0; 16];
                for (byte, pair) in address.iter_mut().zip(digits.chunks_exact(2)) {
                    *byte = u8::try_from(ulpm_sys::proc::hex(pair)?).ok()?;
                }
                Some(Self { family: af::INET6, interface, address })
            })();
            all.extend(parsed);
        });
        all
    }

    /// `struct group_req`: interface, padding, and the group as `sockaddr_storage`.
    fn request(&self) -> [u8; 136] {
        let mut request = [0; 136];
        request[..4].copy_from_slice(&self.interface.to_le_bytes());
        if self.family == af::INET {
            request[8] = af::INET as u8;
            request[12..16].copy_from_slice(&self.address[..4]);
        } else {
            request[8] = af::INET6 as u8;
            request[16..32].copy_from_slice(&self.address);
        }
        request
    }
}

fn each_line(path: &core::ffi::CStr, mut each: impl FnMut(&[u8])) {
    let flags = ulpm_sys::oflag::RDONLY | ulpm_sys::oflag::CLOEXEC;
    let Ok(fd) = ulpm_sys::open(path, flags) else { return };
    let mut buffer = [0; 4096];
    let mut lines = Lines::new(fd, &mut buffer);
    while let Some(line) = lines.next() {
        each(line);
    }
    ulpm_sys::close(fd);
}

/// Inodes of all sockets that the processes of the job have open.
fn sockets_of_job(subject: &Subject<'_>) -> Vec<u64> {
    let mut inodes = Vec::new();
    for slot in subject.table.slots().iter().filter(|slot| slot.state() == SlotState::Live) {
        let path = Text::<64>::path(format_args!("/proc/{}/fd", slot.real()));
        let Ok(mut names) = Directory::open(path.c_str()) else { continue };
        while let Some(name) = names.next() {
            let Some(fd) = decimal(name) else { continue };
            let path = Text::<64>::path(format_args!("/proc/{}/fd/{fd}", slot.real()));
            let mut link = [0; 64];
            let target = ulpm_sys::readlink(path.c_str(), &mut link).unwrap_or_default();
            let inode = target.strip_prefix(b"socket:[").and_then(|rest| rest.strip_suffix(b"]"));
            inodes.extend(inode.and_then(decimal));
        }
    }
    inodes.sort_unstable();
    inodes
}
