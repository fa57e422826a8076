//! What epoll instances watch.
//!
//! fdinfo lists the registrations, each with the number of the descriptor that was given when it was made. The
//! program may have closed that since, while a duplicate keeps the file open, or may have something else
//! there: kcmp(2) tells which descriptor leads to the file that is watched.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use ulpm_image::Meta;
use ulpm_image::meta::Interest;
use ulpm_sys::fmt::Text;
use ulpm_sys::proc::{decimal, hex};
use ulpm_sys::{Errno, events, oflag};

use super::{Found, Subject, describe, open_again};
use crate::capture::text::{Directory, Lines};
use crate::capture::unsupported;
use crate::freeze::Failed;

/// An epoll instance that this process saves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Epoll {
    /// Whose descriptor `fd` is: the program's, or the manager's if it was found under way in a socket.
    pub(super) task: i32,
    /// A descriptor of it.
    pub(super) fd: i32,
    /// `Description::id`.
    pub(super) description: u64,
}

/// One registration, as fdinfo tells it.
#[derive(Clone, Copy, Debug)]
struct Registration {
    fd: i32,
    events: u32,
    data: u64,
}

/// Saves what the instances watch. All descriptors of the process are known by now.
pub(super) fn save_all(
    subject: &Subject<'_>,
    task: i32,
    found: &Found,
    meta: &mut Meta,
) -> Result<(), Failed> {
    found.epolls.iter().try_for_each(|&epoll| save(subject, task, found, epoll, meta))
}

fn save(
    subject: &Subject<'_>,
    task: i32,
    found: &Found,
    epoll: Epoll,
    meta: &mut Meta,
) -> Result<(), Failed> {
    let path = Text::<64>::path(format_args!("/proc/{}/fdinfo/{}", epoll.task, epoll.fd));
    let fdinfo = ulpm_sys::open(path.c_str(), oflag::RDONLY | oflag::CLOEXEC)
        .map_err(|errno| Failed::system("read what an epoll instance watches", errno))?;
    let mut registrations: Vec<Registration> = Vec::new();
    let mut buffer = alloc::vec![0; 4096];
    let mut lines = Lines::new(fdinfo, &mut buffer);
    while let Some(line) = lines.next() {
        registrations.extend(parse(line));
    }
    ulpm_sys::close(fdinfo);
    let mut before: BTreeMap<i32, u32> = BTreeMap::new();
    for registration in &registrations {
        // Several files can be registered with one number, one after the other.
        let count = before.entry(registration.fd).or_default();
        let wanted = Wanted { subject, task, found, epoll, fd: registration.fd, index: *count };
        *count += 1;
        let Some(target) = wanted.find(meta)? else {
            return Err(unsupported(format_args!(
                "descriptor {} (epoll) watches a file that was registered as descriptor {} and that no \
                 process of the job has open any more; take it out with EPOLL_CTL_DEL before it is closed",
                epoll.fd, registration.fd
            )));
        };
        meta.interests.push(Interest {
            epoll: epoll.description,
            target,
            fd: registration.fd,
            events: registration.events,
            data: registration.data,
        });
    }
    Ok(())
}

/// `tfd: 3 events: 19 data: ffff pos:0 ino:40e sdev:10`
fn parse(line: &[u8]) -> Option<Registration> {
    let mut words = line.split(|&byte| byte == b' ').filter(|word| !word.is_empty());
    let mut after = |name: &[u8]| words.next().filter(|&word| word == name).and(words.next());
    Some(Registration {
        fd: i32::try_from(decimal(after(b"tfd:")?)?).ok()?,
        events: u32::try_from(hex(after(b"events:")?)?).ok()?,
        data: hex(after(b"data:")?)?,
    })
}

/// A registration whose file is looked for.
struct Wanted<'a> {
    subject: &'a Subject<'a>,
    task: i32,
    found: &'a Found,
    epoll: Epoll,
    fd: i32,
    index: u32,
}

impl Wanted<'_> {
    /// The description of the file; `None` if nobody has it open.
    fn find(&self, meta: &Meta) -> Result<Option<u64>, Failed> {
        // Nearly always it is what has that number now.
        let by_number = |fd: i32| meta.descriptors.binary_search_by_key(&fd, |one| one.fd).ok();
        let likely = by_number(self.fd).and_then(|index| meta.descriptors.get(index));
        let others = meta.descriptors.iter().filter(|descriptor| descriptor.fd != self.fd);
        for descriptor in likely.into_iter().chain(others) {
            if self.is(self.task, descriptor.fd)? {
                return Ok(Some(descriptor.description));
            }
        }
        for &(fd, description) in &self.found.under_way {
            if self.is(ulpm_sys::gettid(), fd)? {
                return Ok(Some(description));
            }
        }
        for slot in self.subject.table.slots() {
            let process = slot.real();
            if slot.is_member()
                && process != ulpm_sys::getpid()
                && let Some(found) = self.find_in(process)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Looks for the file in another process, which stands still as this one does.
    fn find_in(&self, process: i32) -> Result<Option<u64>, Failed> {
        let path = Text::<64>::path(format_args!("/proc/{process}/fd"));
        // It may have ended.
        let Ok(mut names) = Directory::open(path.c_str()) else { return Ok(None) };
        while let Some(name) = names.next() {
            let Some(fd) = decimal(name).and_then(|fd| i32::try_from(fd).ok()) else { continue };
            if !self.is(process, fd)? {
                continue;
            }
            let pidfd = ulpm_sys::pidfd_open(process)
                .map_err(|errno| Failed::system("open a pidfd of another process", errno))?;
            let found = open_again(process, pidfd, fd)
                .and_then(|open| describe(self.subject, process, &open));
            ulpm_sys::close(pidfd);
            return found.map(|description| Some(description.id));
        }
        Ok(None)
    }

    fn is(&self, task: i32, fd: i32) -> Result<bool, Failed> {
        let tasks = [task, self.epoll.task];
        match events::is_epoll_target(tasks, fd, self.epoll.fd, self.fd, self.index) {
            Ok(is) => Ok(is),
            // It has ended, or its leading thread has.
            Err(Errno::SRCH | Errno::BADF) if task != self.task => Ok(false),
            Err(errno) => Err(Failed::system("ask kcmp what an epoll instance watches", errno)),
        }
    }
}
