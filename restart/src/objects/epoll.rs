//! Epoll instances.
//!
//! An instance is made before the tree is forked, as all shared objects are. What it watches is registered by
//! the processes, when everything exists that can be watched: the kernel knows a registration by the file
//! and the number of the descriptor that it was made with, and what waits for signals waits for those of the
//! process that registered it.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use ulpm_image::meta::{Description, Interest};

use crate::error::{RestartError, system};
use crate::image_file::ImageFile;

pub(super) fn make(description: &Description) -> Result<OwnedFd, RestartError> {
    // SAFETY: the calls take numbers only; the descriptor was just made and is nobody else's.
    unsafe {
        let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        if fd < 0 || libc::fcntl(fd, libc::F_SETFL, description.flags) < 0 {
            return Err(system("make an epoll instance"));
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A registration that a process is to make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch<'a> {
    pub(crate) interest: &'a Interest,
    /// The same process makes all registrations of the instance.
    alone: bool,
}

/// For each image, by its place, the registrations that its process is to make.
///
/// That is one which has both open, the watched file under the number that it was registered with if there is
/// such a one; of several the first in the tree, as the others have most likely inherited them.
pub(crate) fn assign<'a>(
    images: &'a [ImageFile],
    late: impl Fn(u64) -> bool,
) -> Vec<Vec<Watch<'a>>> {
    let mut holders: HashMap<u64, Vec<(usize, RawFd)>> = HashMap::new();
    for (index, image) in images.iter().enumerate() {
        for descriptor in &image.meta.descriptors {
            holders.entry(descriptor.description).or_default().push((index, descriptor.fd));
        }
    }
    let holders = |id| holders.get(&id).map_or(&[][..], Vec::as_slice);
    let choose = |interest: &Interest| {
        let targets = holders(interest.target);
        let has_epoll = |index| holders(interest.epoll).iter().any(|&(other, _)| other == index);
        let chosen = if late(interest.target) {
            targets.first()
        } else {
            let both = || targets.iter().filter(|&&(index, _)| has_epoll(index));
            let same = both().find(|&&(_, fd)| fd == interest.fd);
            same.or_else(|| both().next()).or(holders(interest.epoll).first())
        };
        // An instance that nobody has open is under way in a socket.
        chosen.or(targets.first()).map_or(0, |&(index, _)| index)
    };
    let mut assigned = vec![Vec::new(); images.len()];
    let mut by_instance: HashMap<u64, BTreeSet<usize>> = HashMap::new();
    for interest in images.iter().flat_map(|image| &image.meta.interests) {
        let index = choose(interest);
        by_instance.entry(interest.epoll).or_default().insert(index);
        assigned[index].push(Watch { interest, alone: true });
    }
    for watches in &mut assigned {
        for watch in &mut *watches {
            watch.alone = by_instance.get(&watch.interest.epoll).is_none_or(|all| all.len() == 1);
        }
        // Stable, and those that have fired first: see `register`.
        watches.sort_by_key(|watch| !has_fired(watch.interest));
    }
    assigned
}

/// Whether a one-shot registration has fired: it watches for nothing then, not even for an end or an error,
/// until the program sets it again.
fn has_fired(interest: &Interest) -> bool {
    let bit = |bits: libc::c_int| interest.events & bits.cast_unsigned() != 0;
    bit(libc::EPOLLONESHOT) && !bit(libc::EPOLLERR | libc::EPOLLHUP)
}

/// Registers `target` with `epoll` as the program did.
///
/// What has the interest's number is closed: the process has not put its descriptors at their numbers yet.
pub(crate) fn register(epoll: RawFd, target: RawFd, watch: Watch<'_>) -> Result<(), String> {
    let interest = watch.interest;
    let number = interest.fd;
    let mut event = libc::epoll_event { events: interest.events, u64: interest.data };
    // The kernel has no call for a registration that has fired. So it fires, by whatever the file is ready for,
    // while nothing else is registered whose event could be taken.
    let fires = has_fired(interest) && watch.alone;
    if fires {
        event.events |= (libc::EPOLLIN | libc::EPOLLOUT).cast_unsigned();
    }
    // SAFETY: the calls take numbers, and structures that live as long as the call.
    let made = unsafe {
        let placed = libc::dup3(target, number, libc::O_CLOEXEC) >= 0;
        let mut made =
            placed && libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, number, &raw mut event) >= 0;
        let mut taken = libc::epoll_event { events: 0, u64: 0 };
        if made && fires && libc::epoll_wait(epoll, &raw mut taken, 1, 0) == 0 {
            // It is ready for nothing: then an end or an error may be told too early.
            event.events = interest.events;
            made = libc::epoll_ctl(epoll, libc::EPOLL_CTL_MOD, number, &raw mut event) >= 0;
        }
        made
    };
    let error = std::io::Error::last_os_error();
    ulpm_sys::close(number);
    if made {
        return Ok(());
    }
    Err(format!("cannot have epoll watch descriptor {number} again: {error}"))
}
