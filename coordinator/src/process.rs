//! What /proc says of processes.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ulpm_control::host;
use ulpm_protocol::manager::MANAGER_COMM;

/// A line of /proc/PID/stat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: i32,
    pub(crate) comm: String,
    pub(crate) state: char,
    pub(crate) ppid: i32,
    pub(crate) pgrp: i32,
    pub(crate) session: i32,
    pub(crate) threads: u32,
    /// Ticks since boot.
    pub(crate) start: u64,
    /// Pages.
    pub(crate) rss: u64,
    /// As from wait(2), for a zombie.
    pub(crate) exit_code: i32,
}

impl Stat {
    /// Reads the line; `None` if it is none.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (pid, rest) = line.split_once(" (")?;
        // The name may hold anything, brackets too.
        let (comm, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The first of these is field 3 of proc(5).
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Self {
            pid: pid.parse().ok()?,
            comm: comm.into(),
            state: field(3)?.chars().next()?,
            ppid: field(4)?.parse().ok()?,
            pgrp: field(5)?.parse().ok()?,
            session: field(6)?.parse().ok()?,
            threads: field(20)?.parse().ok()?,
            start: field(22)?.parse().ok()?,
            rss: field(24)?.parse().unwrap_or(0),
            exit_code: field(52).and_then(|code| code.parse().ok()).unwrap_or(0),
        })
    }

    /// The process with this id; `None` if there is none.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Self::parse(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?))
    }

    /// Whether nothing is left of it but its status. (A leader that ended before its threads looks like
    /// a zombie, too.)
    pub(crate) fn is_zombie(&self) -> bool {
        matches!(self.state, 'X' | 'x') || (self.state == 'Z' && self.threads <= 1)
    }
}

/// Whether a process was stopped by a signal, or is about to stand still by one.
pub(crate) fn is_stopped(leader: &Stat) -> bool {
    match leader.state {
        'T' => true,
        // The leading thread has ended before the others.
        'Z' => threads(leader.pid).iter().any(|thread| thread.state == 'T'),
        _ => false,
    }
}

/// Whether a process stands still by a signal with all of its threads, or has ended. Before the last of them does, its
/// parent is still told that it was continued, and not yet that it has stopped.
pub(crate) fn has_stopped(pid: i32) -> bool {
    threads(pid).iter().all(|thread| matches!(thread.state, 'T' | 'Z' | 'X'))
}

/// Process ids in /proc.
pub(crate) fn all_pids() -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        pids.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(pids)
}

/// Threads of a process with their states, the leader first.
pub(crate) fn threads(pid: i32) -> Vec<Stat> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let tids = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let stats = tids.filter_map(|tid| {
        let line = fs::read(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
        Stat::parse(&String::from_utf8_lossy(&line))
    });
    let mut stats: Vec<_> = stats.collect();
    stats.sort_by_key(|stat| (stat.pid != pid, stat.pid));
    stats
}

/// Threads of the program, ours left out.
pub(crate) fn user_threads(pid: i32) -> Vec<Stat> {
    let ours = |stat: &Stat| stat.comm == MANAGER_COMM && stat.pid != pid;
    threads(pid)
        .into_iter()
        .filter(|stat| !ours(stat) && !matches!(stat.state, 'Z' | 'X'))
        .collect()
}

/// How children of processes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Search {
    /// By asking each thread of the parents; needs CONFIG_PROC_CHILDREN.
    Parents,
    /// By asking every process.
    Everybody,
}

/// The cheaper way to find the children of processes that have `threads` threads together.
pub(crate) fn search_for(threads: usize, pids: usize) -> Search {
    let can = Path::new("/proc/thread-self/children").exists();
    if can && threads < pids { Search::Parents } else { Search::Everybody }
}

/// All processes whose parent is one of `parents`.
pub(crate) fn children(parents: &HashMap<i32, u32>) -> io::Result<Vec<Stat>> {
    let pids = all_pids()?;
    let threads: usize = parents.values().map(|&threads| threads as usize).sum();
    let mut found = Vec::new();
    match search_for(threads, pids.len()) {
        Search::Everybody => {
            found.extend(pids.into_iter().filter_map(Stat::of));
        }
        Search::Parents => {
            for &parent in parents.keys() {
                let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
                for task in tasks.flatten() {
                    let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                    let pids = list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
                    found.extend(pids.filter_map(Stat::of));
                }
            }
        }
    }
    found.retain(|stat| parents.contains_key(&stat.ppid));
    Ok(found)
}

/// Whether the process has the file at `path` mapped: the proof that it is a member and no stranger who
/// was given the id of a dead one.
///
/// The device is not compared: the kernel shows another one there than in stat(2) on some file systems.
///
/// # Errors
///
/// If the kernel does not let us look.
pub(crate) fn has_mapped(pid: i32, path: &Path) -> io::Result<bool> {
    let maps = fs::read(format!("/proc/{pid}/maps"))?;
    let path = path.as_os_str().as_encoded_bytes();
    if maps.split(|&byte| byte == b'\n').any(|line| line.ends_with(path)) {
        return Ok(true);
    }
    // One that is about to end has no memory any more, and one that is being rebuilt has not all of it
    // yet: that proves nothing.
    let exe = fs::read_link(format!("/proc/{pid}/exe"))?;
    if maps.is_empty() || exe.file_name() == Some("ulpm_restart".as_ref()) {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(false)
}

/// Processes that have mapped a file whose path begins so, or were started with it as their job table, and may end: not
/// `ulpm_restart`, which only waits.
pub(crate) fn of_job(prefix: &Path) -> Vec<i32> {
    let prefix = prefix.as_os_str().as_encoded_bytes();
    let holds = |bytes: &[u8]| bytes.windows(prefix.len()).any(|window| window == prefix);
    let is_of_job = |pid: &i32| {
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        exe.file_name() != Some("ulpm_restart".as_ref())
            && ["maps", "environ"].iter().any(|name| {
                fs::read(format!("/proc/{pid}/{name}")).is_ok_and(|bytes| holds(&bytes))
            })
    };
    let me = std::process::id().cast_signed();
    let pids = all_pids().unwrap_or_default();
    pids.into_iter().filter(|&pid| pid != me).filter(is_of_job).collect()
}

/// Whether the process has a handler for a signal, which the kernel tells of every process.
pub(crate) fn catches(pid: i32, signal: i32) -> bool {
    let caught = status(pid, "SigCgt:").and_then(|digits| u64::from_str_radix(&digits, 16).ok());
    caught.is_some_and(|caught| caught >> (signal - 1) & 1 == 1)
}

/// What /proc/PID/status says behind a name.
fn status(pid: i32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned())
}

/// Command line for display; the name in brackets where there is none.
pub(crate) fn command(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ");
    if !line.is_empty() {
        let printable = line.chars().map(|c| if c.is_control() { ' ' } else { c });
        return printable.take(4096).collect();
    }
    match Stat::of(pid) {
        Some(stat) => format!("[{}]", stat.comm),
        None => format!("process {pid}"),
    }
}

/// The beginning of the command line, for messages.
pub(crate) fn short_command(pid: i32) -> String {
    let command = command(pid);
    match command.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &command[..end]),
        None => command,
    }
}

/// Whether a process runs a setuid or setgid program: the dynamic linker then loads only what it trusts.
pub(crate) fn is_privileged(pid: i32) -> bool {
    fs::metadata(format!("/proc/{pid}/exe")).is_ok_and(|meta| meta.mode() & 0o6000 != 0)
}

/// The executable, or as much as is known of it.
pub(crate) fn exe(pid: i32) -> String {
    match fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(path) => path.display().to_string(),
        Err(_) => command(pid),
    }
}

/// The environment that the process was started with; `None` if it cannot be read, or is empty.
pub(crate) fn environment(pid: i32) -> Option<HashMap<String, String>> {
    let environ =
        fs::read(format!("/proc/{pid}/environ")).ok().filter(|environ| !environ.is_empty())?;
    let environ = String::from_utf8_lossy(&environ).into_owned();
    let pairs = environ.split('\0').filter_map(|entry| entry.split_once('='));
    Some(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// Features of this host's processor that one of these processes may have chosen when it was started.
pub(crate) fn chosen_features(pids: impl Iterator<Item = i32>) -> Vec<String> {
    let all = host::cpu();
    let mut chosen = BTreeSet::new();
    for pid in pids {
        let mut environment = environment(pid).unwrap_or_default();
        let tunables = environment.remove("GLIBC_TUNABLES").unwrap_or_default();
        let bind_now = environment.get("LD_BIND_NOW").is_some_and(|value| !value.is_empty());
        chosen.extend(host::without_tunables(all.clone(), &tunables, bind_now));
    }
    chosen.into_iter().collect()
}

/// The supplementary groups that one of these processes has.
pub(crate) fn groups(pids: impl Iterator<Item = i32>) -> Vec<u32> {
    let lines = pids.filter_map(|pid| status(pid, "Groups:"));
    let groups: BTreeSet<u32> = lines
        .flat_map(|line| line.split(' ').filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .collect();
    groups.into_iter().collect()
}

/// What a process may do, as far as a restart does not bring it back: it makes processes with the rights of
/// whoever calls it.
#[derive(Debug)]
pub(crate) struct Rights {
    /// Real, effective, saved and file system user.
    uids: Vec<u32>,
    gids: Vec<u32>,
    seccomp_filters: u32,
    capabilities: u64,
    namespaces: [Option<PathBuf>; NAMESPACES.len()],
}

const NAMESPACES: [&str; 4] = ["uts", "ipc", "pid", "user"];

impl Rights {
    /// Those of a process, by its id or `self`.
    pub(crate) fn of(pid: &str) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default()
        };
        let numbers =
            |name| field(name).split_whitespace().filter_map(|id| id.parse().ok()).collect();
        Some(Self {
            uids: numbers("Uid"),
            gids: numbers("Gid"),
            // A kernel without seccomp, or before 5.9, does not count filters.
            seccomp_filters: field("Seccomp_filters").trim().parse().unwrap_or(0),
            capabilities: u64::from_str_radix(field("CapEff").trim(), 16).unwrap_or(0),
            namespaces: NAMESPACES.map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()),
        })
    }

    /// Why a process with these rights would get others by a restart, if its coordinator has `own`.
    pub(crate) fn foreign_to(&self, own: &Self) -> Option<String> {
        let user = own.uids.get(1);
        if self.uids.iter().any(|uid| Some(uid) != user) {
            return Some(format!(
                "it has changed its user (real, effective, saved and file system user: {:?}), which a restart \
                 cannot do yet; start it as that user",
                self.uids
            ));
        }
        if self.gids.iter().any(|gid| Some(gid) != self.gids.first()) {
            return Some(format!(
                "its groups differ ({:?}), which a restart cannot do yet",
                self.gids
            ));
        }
        if self.seccomp_filters > own.seccomp_filters {
            return Some("it has a seccomp filter, which a restart cannot install yet".into());
        }
        if own.capabilities & !self.capabilities != 0 {
            return Some("it has given up capabilities, which a restart cannot do yet".into());
        }
        NAMESPACES.iter().zip(self.namespaces.iter().zip(&own.namespaces)).find_map(
            |(kind, namespaces)| {
                let (Some(its), Some(own)) = namespaces else { return None };
                (its != own).then(|| {
                    format!(
                        "it has a {kind} namespace of its own, which a restart cannot make yet; run \
                         ulpm_coordinator in there"
                    )
                })
            },
        )
    }
}

/// What a process has open: numbers, and what the kernel shows behind them.
pub(crate) fn descriptors(pid: i32) -> Vec<(i32, PathBuf)> {
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let number = |name: std::ffi::OsString| name.to_str()?.parse().ok();
    fds.flatten()
        .filter_map(|fd| Some((number(fd.file_name())?, fs::read_link(fd.path()).ok()?)))
        .collect()
}

/// Files with names that a process has mapped, and whether shared. Its job table is none of them.
pub(crate) fn mapped_files(pid: i32, table: &Path) -> BTreeSet<(PathBuf, bool)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let file = |line: &str| {
        // Addresses, rights, offset, device, inode; and behind blanks the path, which may hold any.
        let path = &line[line.find(" /")? + 1..];
        let shared = line.split_ascii_whitespace().nth(1)?.ends_with('s');
        let path = Path::new(path);
        (!is_special(path) && path != table).then(|| (path.to_owned(), shared))
    };
    maps.lines().filter_map(file).collect()
}

/// Whether a process runs in another pid namespace than we do. The kernel says so of every process.
pub(crate) fn has_pid_namespace(pid: i32) -> bool {
    // An id for each namespace, from that of /proc to its own.
    let depth = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        Some(ids.split_whitespace().count())
    };
    let its = depth(&pid.to_string());
    its.is_some() && its > depth("self")
}

/// Who traces a process.
pub(crate) fn tracer(pid: i32) -> Option<i32> {
    status(pid, "TracerPid:")?.parse().ok().filter(|&tracer| tracer != 0)
}

/// Whether a path leads to nothing that another host could have.
fn is_special(path: &Path) -> bool {
    let special = ["/proc", "/sys", "/dev"];
    !path.is_absolute()
        || special.iter().any(|dir| path.starts_with(dir))
        || path.as_os_str().as_encoded_bytes().ends_with(b" (deleted)")
}

/// Current directory and regular files that a process has open, as far as they have names, with what it has to be
/// allowed to do with them: bits as for access(2).
///
/// Standard output and error are left out where they are of those that `replaced` names by device and inode:
/// a job that moves gets others.
pub(crate) fn open_paths(pid: i32, replaced: &[(u64, u64)]) -> Vec<(PathBuf, i32)> {
    let mut paths = Vec::new();
    paths.extend(fs::read_link(format!("/proc/{pid}/cwd")).map(|path| (path, libc::X_OK)));
    if let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) {
        for fd in fds.flatten() {
            let regular = fs::metadata(fd.path()).is_ok_and(|meta| {
                let is_output = fd.file_name() == "1" || fd.file_name() == "2";
                (meta.is_file() || meta.is_dir())
                    && !(is_output && replaced.contains(&(meta.dev(), meta.ino())))
            });
            // What is called by a name that leads elsewhere here, as a message queue, nobody has to have there.
            let is_there = |path: &Path| {
                let id = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
                id(path).is_some_and(|found| Some(found) == id(&fd.path()))
            };
            if regular
                && let Ok(path) = fs::read_link(fd.path())
                && is_there(&path)
            {
                let info =
                    fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", fd.file_name().display()));
                paths.push((path, access(&info.unwrap_or_default())));
            }
        }
    }
    paths.retain(|(path, _)| !is_special(path));
    paths
}

/// What access(2) has to allow for a file to be opened as a descriptor is that has this fdinfo.
fn access(info: &str) -> i32 {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok()).unwrap_or(0);
    match flags & libc::O_ACCMODE {
        _ if flags & libc::O_PATH != 0 => libc::F_OK,
        libc::O_WRONLY => libc::W_OK,
        libc::O_RDWR => libc::R_OK | libc::W_OK,
        _ => libc::R_OK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let mut line = String::from("42 (a) b (c) ) T 1 2 3");
        for number in 7..=52 {
            line += &format!(" {number}");
        }
        let stat = Stat::parse(&line).unwrap();
        assert_eq!((stat.pid, stat.comm.as_str(), stat.state), (42, "a) b (c) ", 'T'));
        assert_eq!((stat.ppid, stat.pgrp, stat.session), (1, 2, 3));
        assert_eq!((stat.threads, stat.start, stat.rss, stat.exit_code), (20, 22, 24, 52));
        assert!(Stat::parse("42 (a").is_none());
    }

    #[test]
    fn a_file_is_to_be_opened_as_it_is() {
        assert_eq!(access("pos:\t0\nflags:\t0100000\nmnt_id:\t1\n"), libc::R_OK);
        assert_eq!(access("pos:\t0\nflags:\t02102001\n"), libc::W_OK);
        assert_eq!(access("flags:\t0100002\n"), libc::R_OK | libc::W_OK);
        assert_eq!(access("flags:\t012000000\n"), libc::F_OK);
    }

    #[test]
    fn this_process_is_found_with_its_child() {
        let me = std::process::id() as i32;
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = children(&HashMap::from([(me, 1000)])).unwrap();
        let few = children(&HashMap::from([(me, 1)])).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        for found in [found, few] {
            assert!(found.iter().any(|stat| stat.pid == child.id() as i32));
        }
        assert!(!Stat::of(me).unwrap().is_zombie());
    }
}
