//! Descriptions that can be opened only when a process of the job exists again, such as that of a pidfd: one
//! of those who share it opens it and hands it to the others.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};

use super::{Objects, lift};
use crate::error::RestartError;
use crate::image_file::ImageFile;

/// Ways by which late descriptions come from the process that opens them to the others. They are made before
/// the tree is forked.
#[derive(Debug)]
pub(crate) struct Channels {
    by_description: HashMap<u64, Channel>,
}

#[derive(Debug)]
struct Channel {
    /// By the place of their image; the first opens it.
    holders: Vec<usize>,
    /// To give and to take; absent if there is nobody else.
    ends: Option<[RawFd; 2]>,
}

impl Channels {
    /// # Errors
    ///
    /// [`RestartError`] for want of descriptors.
    pub(crate) fn new(images: &[ImageFile], objects: &Objects) -> Result<Self, RestartError> {
        let mut by_description: HashMap<u64, Channel> = HashMap::new();
        for (index, image) in images.iter().enumerate() {
            for description in &image.meta.descriptions {
                if objects.description(description.id).is_none() {
                    let new = || Channel { holders: Vec::new(), ends: None };
                    by_description.entry(description.id).or_insert_with(new).holders.push(index);
                }
            }
        }
        for channel in by_description.values_mut().filter(|channel| channel.holders.len() > 1) {
            let kind = SockType::SeqPacket;
            let (give, take) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|errno| RestartError::System {
                    what: "make a socket pair",
                    source: errno.into(),
                })?;
            channel.ends = Some([lift(give, objects.base)?, lift(take, objects.base)?]);
        }
        Ok(Self { by_description })
    }

    /// All descriptors.
    pub(crate) fn all(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.by_description.values().filter_map(|channel| channel.ends).flatten()
    }

    /// Who opens a description.
    pub(crate) fn owner(&self, id: u64) -> Option<usize> {
        self.by_description.get(&id)?.holders.first().copied()
    }

    /// Hands a description to all others who share it.
    pub(crate) fn give(&self, id: u64, fd: RawFd) -> Result<(), String> {
        let Some(channel) = self.by_description.get(&id) else { return Ok(()) };
        let Some([give, _]) = channel.ends else { return Ok(()) };
        for _ in &channel.holders[1..] {
            let rights = [fd];
            let message = [ControlMessage::ScmRights(&rights)];
            let bytes = [IoSlice::new(&[0])];
            sendmsg::<()>(give, &bytes, &message, MsgFlags::MSG_NOSIGNAL, None)
                .map_err(|errno| format!("cannot hand on a descriptor: {errno}"))?;
        }
        Ok(())
    }

    /// Takes a description that another process opens.
    pub(crate) fn take(&self, id: u64) -> Result<OwnedFd, String> {
        let channel = self.by_description.get(&id).and_then(|channel| channel.ends);
        let [_, take] = channel.ok_or("unknown descriptor")?;
        let mut byte = [0];
        let mut bytes = [IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!(RawFd);
        let failed = |errno| format!("cannot take a descriptor: {errno}");
        let message = recvmsg::<()>(take, &mut bytes, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
            .map_err(failed)?;
        for control in message.cmsgs().map_err(failed)? {
            if let ControlMessageOwned::ScmRights(rights) = control
                && let Some(&fd) = rights.first()
            {
                // SAFETY: the kernel has just made it for us.
                return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        Err("no descriptor came from the process that shares it".into())
    }
}
