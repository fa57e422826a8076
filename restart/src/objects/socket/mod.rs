//! Sockets: what all families have in common.
//!
//! Sockets of several processes belong together, so all of a job are made at once, before any other
//! description is asked for: [`Sockets::make`] makes each and brings it into its state, [`Sockets::fill`]
//! puts into the queues what was in them when every description exists that may be under way in one.

mod inet;
mod netlink;
mod repair;
mod unix;

use std::collections::HashMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};

use ulpm_control::message::Outside;
use ulpm_image::meta::{Description, Socket, SocketOption, description_kind};
use ulpm_protocol::table::SocketName;
use ulpm_sys::Errno;
use ulpm_sys::socket::{self, netlink as nl, so};

use crate::error::RestartError;
use crate::image_file::ImageFile;
use crate::path_map::PathMap;

pub use unix::Names;

/// How a restart is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Circumstances {
    /// See [`Outside`].
    pub outside: Outside,
    /// The job waits for the commit of a hand-over: the original may still go on.
    pub hold: bool,
    /// It is only looked whether the job can be restarted.
    pub check: bool,
    /// What the job gets as its launcher's standard streams.
    pub streams: [RawFd; 3],
}

/// All sockets of a job, by inode.
#[derive(Debug)]
pub(super) struct Sockets<'a> {
    saved: HashMap<u64, &'a Socket>,
    /// O_… flags of their descriptions.
    flags: HashMap<u64, u32>,
    made: HashMap<u64, OwnedFd>,
    circumstances: Circumstances,
    unix: unix::Unix,
    inet: inet::Inet,
}

impl<'a> Sockets<'a> {
    /// Collects them from all images.
    pub(super) fn collect(images: &'a [ImageFile], circumstances: Circumstances) -> Self {
        let metas = || images.iter().map(|image| &image.meta);
        let descriptions = metas().flat_map(|meta| &meta.descriptions);
        Self {
            saved: metas()
                .flat_map(|meta| &meta.sockets)
                .map(|saved| (saved.inode, saved))
                .collect(),
            flags: descriptions
                .filter(|description| description.kind == description_kind::SOCKET)
                .map(|description| (description.inode, description.flags))
                .collect(),
            made: HashMap::new(),
            circumstances,
            unix: unix::Unix::default(),
            inet: inet::Inet::default(),
        }
    }

    /// Refuses what is connected to programs outside the job.
    pub(super) fn refuse_outside(&self) -> Result<(), RestartError> {
        self.refuse_unix_outside()?;
        self.refuse_inet_outside()
    }

    /// Makes all of them.
    pub(super) fn make(&mut self, paths: &PathMap) -> Result<(), RestartError> {
        self.make_unix(paths)?;
        self.make_inet()?;
        self.make_netlink()?;
        if let Some(saved) = self.saved.values().find(|saved| !self.made.contains_key(&saved.inode))
        {
            let text = format!("socket {} is of family {}", saved.inode, saved.domain);
            return Err(RestartError::Socket(text));
        }
        Ok(())
    }

    /// A descriptor of the socket that stands for a description.
    pub(super) fn description(&self, description: &Description) -> Result<OwnedFd, RestartError> {
        let made = self.made.get(&description.inode);
        let made = made.ok_or_else(|| {
            RestartError::Socket(format!("no image has the state of socket {}", description.inode))
        })?;
        made.as_fd()
            .try_clone_to_owned()
            .map_err(|source| RestartError::System { what: "duplicate a socket", source })
    }

    /// Fills the receive queues, and gives each socket the options and flags that it had. `descriptions` are
    /// the descriptors that stand for all descriptions. Returns the files that unix sockets are bound to,
    /// and by inode the addresses by which the program knows its other sockets, where these are not the real ones.
    pub(super) fn fill(
        mut self,
        descriptions: &HashMap<u64, RawFd>,
        paths: &PathMap,
    ) -> Result<(Names, Vec<(u64, SocketName)>), RestartError> {
        self.fill_unix(descriptions, paths)?;
        self.fill_inet()?;
        self.fill_netlink();
        for (inode, made) in &self.made {
            if let Some(saved) = self.saved.get(inode) {
                set_options(made.as_raw_fd(), &Self::options(saved))?;
            }
            let flags = self.flags.get(inode).copied().unwrap_or(0).cast_signed();
            set_flags(made.as_raw_fd(), flags)?;
        }
        let mut names = self.take_names();
        names.append(&mut self.credentials());
        Ok((self.unix.names, names))
    }
}

/// The flags that fcntl(2) can set.
fn set_flags(fd: RawFd, flags: libc::c_int) -> Result<(), RestartError> {
    // SAFETY: the call takes numbers only.
    if unsafe { libc::fcntl(fd, libc::F_SETFL, flags & libc::O_NONBLOCK) } < 0 {
        return Err(crate::error::system("set the flags of a socket"));
    }
    Ok(())
}

/// Sets those options that the socket does not have already: so one that needs a privilege, or that this
/// kernel lacks, is missed only where the program had changed it.
fn set_options(fd: RawFd, options: &[SocketOption]) -> Result<(), RestartError> {
    for option in options {
        set_one(fd, option).map_err(|errno| {
            let SocketOption { level, name, .. } = option;
            RestartError::Socket(format!("option {name} of level {level} cannot be set: {errno}"))
        })?;
    }
    Ok(())
}

fn set_one(fd: RawFd, option: &SocketOption) -> Result<(), Errno> {
    match (option.level, option.name) {
        (so::SOL_SOCKET, so::FILTER) => return socket::set_filter(fd, &option.value),
        (nl::LEVEL, nl::LIST_MEMBERSHIPS) => return netlink::join(fd, option),
        _ => {}
    }
    let mut now = vec![0; option.value.len().max(64)];
    let SocketOption { level, name, value } = option;
    let is_so = |other: i32| *level == so::SOL_SOCKET && *name == other;
    match socket::get_option(fd, *level, *name, &mut now) {
        Ok(len) if now.get(..len) == Some(&value[..]) => return Ok(()),
        _ if !is_so(so::SNDBUF) && !is_so(so::RCVBUF) => {
            return socket::set_option(fd, *level, *name, value);
        }
        _ => {}
    }
    // The kernel doubles what it is told.
    let doubled = value.as_slice().try_into().map_or(0, i32::from_le_bytes);
    let half = (doubled / 2).to_le_bytes();
    socket::set_option(fd, *level, *name, &half)?;
    if socket::get_int_option(fd, *level, *name)? < doubled {
        // More than net.core.wmem_max or rmem_max: with a privilege it goes beyond (SO_SNDBUFFORCE is 32,
        // SO_RCVBUFFORCE 33); without it the program has a smaller buffer.
        let force = if *name == so::SNDBUF { 32 } else { 33 };
        let _ = socket::set_option(fd, *level, force, &half);
    }
    Ok(())
}
