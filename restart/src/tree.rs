//! Rebuilding the process tree.
//!
//! ```text
//!  ulpm_restart ──fork──▶ root ──fork──▶ its children …      parents as they were, so that wait works
//!       │                  └────fork──▶ its zombies, which end at once
//!       ├──fork──▶ an orphan
//!       └──fork──▶ the stand-in of a dead session leader ──fork──▶ an orphan of that session
//! ```
//!
//! A child inherits its session. One that had its parent's old session is forked before the parent
//! makes its own, all others after. Then all meet; whoever belongs to a group that another leads joins
//! it; all meet again; and each turns into what it was.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use ulpm_image::meta::{Description, Process, Zombie};
use ulpm_protocol::restart::RestartInfo;
use ulpm_protocol::table::{SlotState, Table};
use ulpm_sys::signal::Action;
use ulpm_sys::{Limit, pty};

use crate::error::{RestartError, system};
use crate::image_file::ImageFile;
use crate::objects::epoll::{self, Watch};
use crate::objects::late::Channels;
use crate::objects::{Objects, below_proc, events, is_late, lift, lift_file};
use crate::path_map::PathMap;
use crate::plan::{self, Source};

/// What every process of the tree needs to know. It is prepared once and inherited.
#[derive(Debug)]
pub struct Tree<'a> {
    images: &'a [ImageFile],
    objects: &'a Objects,
    paths: &'a PathMap,
    table: Table,
    table_fd: RawFd,
    failure_fd: RawFd,
    image_fds: Vec<RawFd>,
    by_pid: HashMap<i32, usize>,
    /// What each process has epoll watch, by the place of its image.
    watches: Vec<Vec<Watch<'a>>>,
    channels: Channels,
    /// Whether our own group has the terminal, to be given on.
    foreground: bool,
    meeting: &'static Meeting,
}

/// Where the processes meet: memory that they share.
#[derive(Debug, Default)]
#[repr(C)]
struct Meeting {
    /// Processes that exist.
    created: AtomicU32,
    /// Processes that are in their groups.
    grouped: AtomicU32,
}

/// A process that `ulpm_restart` itself has forked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forked {
    /// Real id.
    pub real: i32,
    /// Virtual id; 0 for a stand-in.
    pub virt: i32,
}

impl<'a> Tree<'a> {
    /// Prepares everything that can be prepared before the first fork.
    ///
    /// # Errors
    ///
    /// [`RestartError`]; nothing was forked.
    pub fn new(
        images: &'a [ImageFile],
        objects: &'a Objects,
        paths: &'a PathMap,
        table: Table,
        table_file: File,
        failures: File,
    ) -> Result<Self, RestartError> {
        let by_pid: HashMap<i32, usize> =
            images.iter().enumerate().map(|(index, image)| (image.pid(), index)).collect();
        let image_fds = images
            .iter()
            .map(|image| {
                let file = image.file.try_clone();
                let file = file.map_err(|source| RestartError::System {
                    what: "duplicate a descriptor",
                    source,
                })?;
                lift_file(file, objects.base)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            images,
            objects,
            paths,
            table,
            table_fd: lift_file(table_file, objects.base)?,
            failure_fd: lift_file(failures, objects.base)?,
            image_fds,
            by_pid,
            watches: epoll::assign(images, |id| objects.description(id).is_none()),
            channels: Channels::new(images, objects)?,
            foreground: terminal()
                .and_then(|tty| nix::unistd::tcgetpgrp(&tty).ok())
                .is_some_and(|group| group == nix::unistd::getpgrp()),
            meeting: Meeting::new()?,
        })
    }

    /// Forks the tree, and returns the processes whose parent we are. In each of the others this does
    /// not return.
    ///
    /// # Errors
    ///
    /// [`RestartError`]; what was forked before is left to the caller, who finds it in the table.
    pub fn fork(&self) -> Result<Vec<Forked>, RestartError> {
        self.name_outside()?;
        let mut forked = Vec::new();
        let mut orphans: HashMap<i32, Vec<usize>> = HashMap::new();
        for (index, image) in self.images.iter().enumerate() {
            let process = &image.meta.process;
            if self.by_pid.contains_key(&process.ppid) && process.ppid != process.pid {
                continue; // Its parent forks it.
            }
            // One that was not given its session by a leader who is dead: it leads one, or has the one of
            // whoever launched it, for which ours stands.
            if process.sid == process.pid || process.sid_outside {
                forked.push(self.fork_process(index)?);
            } else {
                orphans.entry(process.sid).or_default().push(index);
            }
        }
        for (sid, indices) in orphans {
            forked.push(self.fork_stand_in(sid, &indices)?);
        }
        Ok(forked)
    }

    /// Closes this process's own descriptors of what the tree has inherited.
    pub fn close(&self) {
        let own = [self.table_fd, self.failure_fd];
        for fd in own
            .into_iter()
            .chain(self.image_fds.iter().copied())
            .chain(self.channels.all())
            .chain(self.objects.all())
        {
            ulpm_sys::close(fd);
        }
    }

    /// Tells the table that our group and session stand for those from which the job was launched.
    fn name_outside(&self) -> Result<(), RestartError> {
        let real_group = ulpm_sys::getpgid(0).unwrap_or(0);
        let real_session = ulpm_sys::getsid(0).unwrap_or(0);
        // A job that others have joined from elsewhere gets one name for all its launchers.
        let processes = || self.images.iter().map(|image| &image.meta.process);
        let group = processes().find(|process| process.pgid_outside).map(|process| process.pgid);
        let session = processes().find(|process| process.sid_outside).map(|process| process.sid);
        self.table
            .name_outside(
                [real_group, group.unwrap_or(real_group)],
                [real_session, session.unwrap_or(real_session)],
            )
            .map_err(|error| RestartError::Table {
                path: String::from_utf8_lossy(self.table.path()).into_owned().into(),
                text: error.to_string(),
            })
    }

    fn fork_process(&self, index: usize) -> Result<Forked, RestartError> {
        let virt = self.images[index].pid();
        // SAFETY: this process has one thread, so the child may do whatever it likes.
        match unsafe { fork_as(virt) } {
            -1 => Err(system("fork")),
            0 => {
                let text = self.become_process(index);
                self.fail(index, &text)
            }
            real => Ok(Forked { real, virt }),
        }
    }

    /// Forks a process that leads session `sid` in place of its dead leader, for as long as it takes to
    /// fork the session's orphans.
    fn fork_stand_in(&self, sid: i32, orphans: &[usize]) -> Result<Forked, RestartError> {
        // SAFETY: as in `fork_process`.
        match unsafe { fork_as(sid) } {
            -1 => Err(system("fork")),
            0 => {
                let result = (|| {
                    // SAFETY: the call takes no argument.
                    if unsafe { libc::setsid() } < 0 {
                        return Err(system("make a session"));
                    }
                    let real = ulpm_sys::getpid();
                    let _ = self.table.insert_as(real, sid, 0, SlotState::Alias);
                    for &index in orphans {
                        self.fork_process(index)?;
                    }
                    Ok(())
                })();
                if let (Err(error), Some(&first)) = (result, orphans.first()) {
                    self.fail(first, &ulpm_control::chain(&error).join(": "));
                }
                // Its children become orphans, as they were, when the groups are as they were.
                self.meeting.wait_for(&self.meeting.grouped, self.images.len());
                // SAFETY: nothing of ours is to run at exit.
                unsafe { libc::_exit(0) }
            }
            real => Ok(Forked { real, virt: 0 }),
        }
    }

    /// Reports why a process could not be rebuilt, and ends it.
    fn fail(&self, index: usize, text: &str) -> ! {
        // Marked as text by its first word, which is no system call's number.
        let mut message = u64::MAX.to_le_bytes().to_vec();
        message.extend(self.images[index].pid().to_le_bytes());
        message.extend(text.as_bytes());
        // All of it at once, so that the texts of several processes do not mix.
        message.truncate(libc::PIPE_BUF - 1);
        message.push(0);
        let _ = ulpm_sys::write(self.failure_fd, &message);
        // SAFETY: nothing of ours is to run at exit.
        unsafe { libc::_exit(71) }
    }

    /// Turns the calling process into the one of an image; returns only why it cannot.
    fn become_process(&self, index: usize) -> String {
        match self.rebuild(index) {
            Ok(never) => match never {},
            Err(text) => text,
        }
    }

    fn rebuild(&self, index: usize) -> Result<std::convert::Infallible, String> {
        let image = &self.images[index];
        let process = &image.meta.process;
        let real = ulpm_sys::getpid();
        let real_parent = ulpm_sys::getppid();
        self.table
            .insert_as(real, process.pid, process.ppid, SlotState::Live)
            .map_err(|error| error.to_string())?;

        let children: Vec<usize> = (0..self.images.len())
            .filter(|&child| {
                let child = &self.images[child].meta.process;
                child.ppid == process.pid && child.pid != process.pid
            })
            .collect();
        let leads = process.sid == process.pid;
        let after = |child: &usize| {
            let child = &self.images[*child].meta.process;
            child.sid == process.sid || child.sid == child.pid
        };
        let (after, before): (Vec<usize>, Vec<usize>) = children.into_iter().partition(after);
        if let (Some(&stray), false) = (before.first(), leads) {
            let stray = &self.images[stray].meta.process;
            return Err(format!(
                "its child {} is in session {}, whose leader has ended and which it does not share",
                stray.pid, stray.sid
            ));
        }
        let fork_all = |children: &[usize]| {
            children.iter().try_for_each(|&child| match self.fork_process(child) {
                Ok(_) => Ok(()),
                Err(error) => Err(ulpm_control::chain(&error).join(": ")),
            })
        };
        fork_all(&before)?;
        if leads {
            // SAFETY: the call takes no argument.
            if unsafe { libc::setsid() } < 0 {
                return Err(last("make a session"));
            }
            // Its children inherit it.
            if let Some(tty) = self.objects.controlling(process.pid) {
                pty::make_controlling(tty)
                    .map_err(|errno| format!("cannot take its controlling terminal: {errno}"))?;
            }
        } else if process.pgid == process.pid {
            ulpm_sys::setpgid(0, 0).map_err(|errno| format!("cannot lead a group: {errno}"))?;
        }
        fork_all(&after)?;
        for zombie in &image.meta.zombies {
            self.fork_zombie(zombie)?;
        }
        let helper = self.lead_dead_group(index)?;

        self.meeting.arrive(&self.meeting.created);
        self.meeting.wait_for(&self.meeting.created, self.images.len());
        self.join_group(process)?;
        self.meeting.arrive(&self.meeting.grouped);
        self.meeting.wait_for(&self.meeting.grouped, self.images.len());
        self.give_foreground(index);
        if let Some(helper) = helper {
            // SAFETY: it is our child, and waits for nothing else.
            unsafe {
                libc::kill(helper, libc::SIGKILL);
                libc::waitpid(helper, std::ptr::null_mut(), 0);
            }
        }

        // In this order: the process may have lowered its limit below a descriptor that it has.
        let late = self.open_late(index)?;
        self.arm_timers(index)?;
        self.watch(index, &late)?;
        self.place_descriptors(index, &late)?;
        self.set_attributes(index)?;
        // What the work above has left pending was not there. That of a zombie's end, if it was, a thread gives back.
        while ulpm_sys::signal::take_pending(ulpm_sys::signal::ALL).is_some() {}
        for pending in &image.meta.pending {
            let _ = ulpm_sys::kill(real, pending.signal.cast_signed());
        }
        let timers = |index: usize| {
            image.meta.timers.get(index).map_or([0; 2], |timer| [timer.interval_us, timer.value_us])
        };
        let is_member = self.by_pid.contains_key(&process.ppid) && process.ppid != process.pid;
        let source = Source {
            image,
            backings: self.objects.backings(index),
            image_fd: self.image_fds[index],
            table_fd: self.table_fd,
            failure_fd: self.failure_fd,
            table: self.table,
            base: self.objects.base,
            info: RestartInfo {
                outside_parent: if is_member { [0; 2] } else { [real_parent, process.ppid] },
                timers: [0, 1, 2].map(timers),
                stopped: u64::from(process.stopped),
                limits: LATE_LIMITS.map(|resource| {
                    let limit = image.meta.limits.get(resource);
                    let limit = limit.map_or([u64::MAX; 2], |limit| [limit.current, limit.maximum]);
                    [resource as u64, limit[0], limit[1]]
                }),
                ..RestartInfo::default()
            },
        };
        // SAFETY: this process has one thread, and the descriptors were opened for this.
        Err(unsafe { plan::enter(&source) })
    }

    /// A child that ends as one has ended before, and waits to be waited for.
    fn fork_zombie(&self, zombie: &Zombie) -> Result<(), String> {
        // SAFETY: as in `fork_process`.
        let real = match unsafe { fork_as(zombie.pid) } {
            -1 => return Err(last("fork")),
            0 => end_as(zombie.status),
            real => real,
        };
        let group = if zombie.pgid == zombie.pid { real } else { self.table.real_of(zombie.pgid) };
        // It may have ended already, and its group may be gone: then nobody can tell.
        let _ = ulpm_sys::setpgid(real, group);
        self.table
            .insert_as(
                real,
                zombie.pid,
                self.table.virtual_of(ulpm_sys::getpid()),
                SlotState::Alias,
            )
            .map_err(|error| error.to_string())?;
        // SAFETY: the structure is plain data; the call fills it.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let id = libc::id_t::try_from(real).unwrap_or(0);
            libc::waitid(libc::P_PID, id, &raw mut info, libc::WEXITED | libc::WNOWAIT);
        }
        Ok(())
    }

    /// If a process is the first of a group whose leader is dead: makes a child that leads the group
    /// until all have joined.
    fn lead_dead_group(&self, index: usize) -> Result<Option<i32>, String> {
        let process = &self.images[index].meta.process;
        let group = process.pgid;
        let zombies = self.images.iter().flat_map(|image| &image.meta.zombies);
        let led = self.by_pid.contains_key(&group)
            || zombies.clone().any(|zombie| zombie.pid == group)
            || process.pgid_outside
            // The stand-in of a dead session leader leads its group too.
            || (group == process.sid && self.table.by_virtual(group).is_some());
        let first = self.images.iter().position(|image| image.meta.process.pgid == group);
        if led || first != Some(index) {
            return Ok(None);
        }
        // SAFETY: as in `fork_process`.
        match unsafe { fork_as(group) } {
            -1 => Err(last("fork")),
            0 => loop {
                // SAFETY: it only waits to be killed.
                unsafe { libc::pause() };
            },
            real => {
                ulpm_sys::setpgid(real, real)
                    .map_err(|errno| format!("cannot lead a group: {errno}"))?;
                self.table
                    .insert_as(real, group, 0, SlotState::Alias)
                    .map_err(|error| error.to_string())?;
                Ok(Some(real))
            }
        }
    }

    fn join_group(&self, process: &Process) -> Result<(), String> {
        let group = process.pgid;
        if group == process.pid || process.pgid_outside {
            return Ok(());
        }
        let real = self.table.real_of(group);
        if ulpm_sys::getpgid(0) == Ok(real) {
            return Ok(());
        }
        ulpm_sys::setpgid(0, real).map_err(|errno| format!("cannot join group {group}: {errno}"))
    }

    /// Puts the group in the foreground that was there: of the terminal that the process's session controls, or
    /// of the one that we have been given.
    ///
    /// SIGTTOU is blocked. A terminal that refuses is as good as none; so is a group that is gone.
    fn give_foreground(&self, index: usize) {
        let process = &self.images[index].meta.process;
        if let Some(tty) = self.objects.controlling(process.pid) {
            let mut masters = self.images.iter().flat_map(|image| &image.meta.masters);
            if let Some(master) = masters.find(|master| master.session == process.pid) {
                let _ = pty::set_foreground(tty, self.table.real_of(master.foreground));
            }
        }
        // One of a group does it, also when its leader is dead.
        let is_first = || {
            let mut others = self.images.iter().map(|image| &image.meta.process);
            others.position(|other| other.pgid == process.pgid) == Some(index)
        };
        if self.foreground
            && process.foreground
            && process.sid_outside
            && !process.pgid_outside
            && is_first()
            && let Some(tty) = terminal()
        {
            let _ = nix::unistd::tcsetpgrp(&tty, nix::unistd::getpgrp());
        }
    }

    fn set_attributes(&self, index: usize) -> Result<(), String> {
        let meta = &self.images[index].meta;
        let process = &meta.process;
        let mut cwd = self.paths.map(Path::new(std::ffi::OsStr::from_bytes(&process.cwd)));
        if let Some(gone) = meta.deleted_cwd.first()
            && let Some(fd) = self.objects.deleted_directory((gone.dev, gone.inode))
        {
            cwd = format!("/proc/self/fd/{fd}").into();
        }
        std::env::set_current_dir(&cwd)
            .map_err(|error| format!("cannot change to directory {}: {error}", cwd.display()))?;
        set_groups(&process.groups)?;
        // SAFETY: each call takes numbers, or structures that live as long as the call.
        unsafe {
            libc::umask(process.umask);
            libc::personality(process.personality);
            libc::prctl(libc::PR_SET_CHILD_SUBREAPER, process.subreaper, 0, 0, 0);
            if process.no_new_privs != 0 {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            }
            if process.thp_disable != 0 {
                libc::prctl(libc::PR_SET_THP_DISABLE, process.thp_disable, 0, 0, 0);
            }
            if process.dumpable < 2 {
                libc::prctl(libc::PR_SET_DUMPABLE, process.dumpable, 0, 0, 0);
            }
        }
        for (resource, limit) in meta.limits.iter().enumerate() {
            if !LATE_LIMITS.contains(&resource) {
                ulpm_sys::set_limit(
                    resource,
                    Limit { current: limit.current, maximum: limit.maximum },
                );
            }
        }
        if process.oom_score_adj != 0 {
            // Lowering it may be forbidden; then it stays what it is.
            let _ = std::fs::write("/proc/self/oom_score_adj", process.oom_score_adj.to_string());
        }
        // All others are at their default, whatever ulpm_restart and its runtime have made of them.
        for signo in 1..=ulpm_sys::signal::LAST {
            let saved = meta.actions.iter().find(|action| action.signal.cast_signed() == signo);
            let action = saved.map_or_else(Action::default, |saved| Action {
                handler: usize::try_from(saved.handler).unwrap_or(0),
                flags: saved.flags,
                restorer: usize::try_from(saved.restorer).unwrap_or(0),
                mask: saved.mask,
            });
            let _ = ulpm_sys::signal::action(signo, Some(&action));
        }
        Ok(())
    }

    /// Puts the descriptors at their numbers, and closes all others below ours.
    fn place_descriptors(&self, index: usize, late: &HashMap<u64, RawFd>) -> Result<(), String> {
        let mut next = 0;
        let meta = &self.images[index].meta;
        let asynchronous: Vec<u64> = meta
            .descriptions
            .iter()
            .filter(|description| description.flags.cast_signed() & libc::O_ASYNC != 0)
            .map(|description| description.id)
            .collect();
        for descriptor in &meta.descriptors {
            let from = self.standing_for(descriptor.description, late)?;
            let flags = if descriptor.cloexec { libc::O_CLOEXEC } else { 0 };
            // SAFETY: the call takes numbers only.
            if unsafe { libc::dup3(from, descriptor.fd, flags) } < 0 {
                return Err(last("put a descriptor at its number"));
            }
            if asynchronous.contains(&descriptor.description) {
                // Not by open(2), and by its number, which the signal names. Whom it tells comes later.
                // SAFETY: the calls take numbers only.
                unsafe {
                    let flags = libc::fcntl(descriptor.fd, libc::F_GETFL);
                    libc::fcntl(descriptor.fd, libc::F_SETFL, flags | libc::O_ASYNC);
                }
            }
            close_between(next, descriptor.fd);
            next = descriptor.fd + 1;
        }
        close_between(next, self.objects.base);
        Ok(())
    }
}

impl Tree<'_> {
    /// The descriptor that stands for a description.
    fn standing_for(&self, id: u64, late: &HashMap<u64, RawFd>) -> Result<RawFd, String> {
        let found = self.objects.description(id).or_else(|| late.get(&id).copied());
        found.ok_or_else(|| "unknown descriptor".into())
    }

    /// What could not be opened before the processes of the job existed: all others have it from the first of
    /// those that share it.
    fn open_late(&self, index: usize) -> Result<HashMap<u64, RawFd>, String> {
        let mut late = HashMap::new();
        let mut others = Vec::new();
        for description in &self.images[index].meta.descriptions {
            let id = description.id;
            if self.objects.description(id).is_some() || !is_late(self.images, description) {
                continue;
            }
            if self.channels.owner(id) != Some(index) {
                others.push(id);
                continue;
            }
            let opened = match events::process_of(self.images, description) {
                Some(pid) => self.open_process(pid, description)?,
                None => self.open_below_proc(description)?,
            };
            self.channels.give(id, opened)?;
            late.insert(id, opened);
        }
        // When everybody has given what is to be given, nobody waits for somebody who waits.
        for id in others {
            let taken = self.channels.take(id)?;
            late.insert(id, lift(taken, self.objects.base).map_err(|error| error.to_string())?);
        }
        Ok(late)
    }

    /// Sets those timers of timerfd going of which this process is the first holder.
    fn arm_timers(&self, index: usize) -> Result<(), String> {
        let holds = |image: &ImageFile, id| {
            image.meta.descriptors.iter().any(|descriptor| descriptor.description == id)
        };
        for saved in self.images.iter().flat_map(|image| &image.meta.event_timers) {
            let id = saved.description;
            if let Some(fd) = self.objects.description(id)
                && self.images.iter().position(|image| holds(image, id)).unwrap_or(0) == index
            {
                events::arm(fd, saved).map_err(|error| ulpm_control::chain(&error).join(": "))?;
            }
        }
        Ok(())
    }

    /// Has the epoll instances watch what they watched.
    fn watch(&self, index: usize, late: &HashMap<u64, RawFd>) -> Result<(), String> {
        self.watches[index].iter().try_for_each(|&watch| {
            let epoll = self.standing_for(watch.interest.epoll, late)?;
            let target = self.standing_for(watch.interest.target, late)?;
            epoll::register(epoll, target, watch)
        })
    }

    fn open_process(&self, pid: i32, description: &Description) -> Result<RawFd, String> {
        let real = self.table.real_of(pid);
        let fd = ulpm_sys::pidfd_open(real)
            .map_err(|errno| format!("cannot open a pidfd of process {pid}: {errno}"))?;
        // SAFETY: the descriptor was just made and is nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the call takes numbers only.
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, description.flags) };
        lift(fd, self.objects.base).map_err(|error| error.to_string())
    }

    /// Opens a file that belongs to a process of the job, which exists again by now.
    fn open_below_proc(&self, description: &Description) -> Result<RawFd, String> {
        let (pid, rest) = below_proc(description).ok_or("unknown descriptor")?;
        let path = format!("/proc/{}/{rest}", self.table.real_of(pid));
        let access = description.flags.cast_signed() & libc::O_ACCMODE;
        let file = File::options()
            .read(access != libc::O_WRONLY)
            .write(access != libc::O_RDONLY)
            .open(&path)
            .map_err(|error| format!("cannot open {path}: {error}"))?;
        let fd = lift_file(file, self.objects.base).map_err(|error| error.to_string())?;
        let position = libc::off_t::try_from(description.position).unwrap_or(0);
        // What such a file cannot do, it could not do before. The call takes numbers only.
        // SAFETY: see above.
        unsafe { libc::lseek(fd, position, libc::SEEK_SET) };
        Ok(fd)
    }
}

/// Forks; the child gets a certain id where the kernel grants that (with `CAP_CHECKPOINT_RESTORE`, if it is
/// free), and any other else.
///
/// With the old id a process is known by it to everybody: to the kernel, which looks up what glibc has
/// stored in a mutex, and to others who were told it.
///
/// # Safety
///
/// The calling process has one thread.
unsafe fn fork_as(id: i32) -> i32 {
    let mut own_tid = 0usize;
    // SAFETY: the call stores one word.
    let found = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut own_tid, 0, 0, 0) };
    if found == 0 && id > 0 {
        // As libc's fork: the child's copy of its thread id, which libc keeps there, becomes right.
        let flags = libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
        let arguments = ulpm_sys::CloneArguments {
            flags: u64::from(flags.cast_unsigned()),
            child_tid: own_tid as u64,
            exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
            set_tid: (&raw const id).addr() as u64,
            set_tid_size: 1,
            ..ulpm_sys::CloneArguments::default()
        };
        // SAFETY: the caller vouches for the process, whose memory is copied.
        if let Ok(child) = unsafe { ulpm_sys::clone3(&arguments) } {
            return child;
        }
    }
    // SAFETY: as above.
    unsafe { libc::fork() }
}

/// Limits on memory and threads, which a process exceeds for a moment while it is rebuilt, or on whose way down
/// it may have been already.
const LATE_LIMITS: [usize; 4] = [
    libc::RLIMIT_AS as usize,
    libc::RLIMIT_DATA as usize,
    libc::RLIMIT_MEMLOCK as usize,
    libc::RLIMIT_NPROC as usize,
];

/// Gives the process its supplementary groups. Whoever may not keeps the user's own, as any program of the user
/// that is started here.
fn set_groups(saved: &[u32]) -> Result<(), String> {
    if same_groups(saved) || !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let groups: Vec<_> = saved.iter().map(|&group| nix::unistd::Gid::from_raw(group)).collect();
    nix::unistd::setgroups(&groups)
        .map_err(|errno| format!("cannot set its supplementary groups {saved:?}: {errno}"))
}

/// Whether these are our own supplementary groups.
fn same_groups(saved: &[u32]) -> bool {
    let sorted = |mut groups: Vec<u32>| {
        groups.sort_unstable();
        groups.dedup();
        groups
    };
    let own = nix::unistd::getgroups().unwrap_or_default();
    sorted(own.iter().map(|group| group.as_raw()).collect()) == sorted(saved.to_vec())
}

/// The controlling terminal.
fn terminal() -> Option<File> {
    File::options().read(true).write(true).open("/dev/tty").ok()
}

/// Closes the descriptors from `first` to before `end`.
fn close_between(first: RawFd, end: RawFd) {
    if first < end
        && let (Ok(first), Ok(last)) = (u32::try_from(first), u32::try_from(end - 1))
    {
        let _ = ulpm_sys::close_range(first, last, false);
    }
}

/// Ends the calling process with a wait status.
fn end_as(status: i32) -> ! {
    // SAFETY: the process has nothing to lose.
    unsafe {
        if libc::WIFSIGNALED(status) {
            let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
            let signal = libc::WTERMSIG(status);
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, signal);
            libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        }
        libc::_exit(libc::WEXITSTATUS(status))
    }
}

fn last(what: &'static str) -> String {
    format!("cannot {what}: {}", std::io::Error::last_os_error())
}

impl Meeting {
    fn new() -> Result<&'static Self, RestartError> {
        // SAFETY: a new mapping, shared with whoever is forked; zeros are valid counters.
        unsafe {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let page = libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0);
            if page == libc::MAP_FAILED {
                return Err(system("map shared memory"));
            }
            Ok(&*page.cast())
        }
    }

    fn arrive(&self, counter: &AtomicU32) {
        counter.fetch_add(1, Ordering::AcqRel);
        ulpm_sys::futex_wake_all(counter);
    }

    /// Waits until `count` have arrived. If one fails, `ulpm_restart` kills all the others.
    fn wait_for(&self, counter: &AtomicU32, count: usize) {
        loop {
            let now = counter.load(Ordering::Acquire);
            if now as usize >= count {
                return;
            }
            let _ = ulpm_sys::futex_wait(counter, now, None);
        }
    }
}

/// Opens the file of a job table.
pub(crate) fn open_table(path: &Path) -> Result<(Table, File), RestartError> {
    use std::ptr::NonNull;
    let invalid = |text: String| RestartError::Table { path: path.into(), text };
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|source| RestartError::Read { path: path.into(), source })?;
    let len = ulpm_protocol::table::LEN;
    if file.metadata().map_or(0, |data| data.len()) < len as u64 {
        return Err(invalid("it is too short".into()));
    }
    // SAFETY: a new mapping of as many bytes as the file has; it is never unmapped.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = file.as_raw_fd();
        let base = libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, fd, 0);
        let base =
            NonNull::new(base.cast::<u8>()).filter(|base| base.as_ptr().cast() != libc::MAP_FAILED);
        let table = Table::open(base.ok_or_else(|| system("map the job table"))?);
        Ok((table.map_err(|error| invalid(error.to_string()))?, file))
    }
}
