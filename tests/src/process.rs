//! What /proc says about processes, and ending those that a test started.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Result, until};

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its parent's id.
    pub parent: i32,
    /// As in ps(1).
    pub state: char,
    /// When it started, in ticks since boot: with `pid` it names one process for good.
    pub start: u64,
    /// Processor time of it and of the children that it has waited for, in milliseconds.
    pub cpu_ms: u64,
}

impl Process {
    /// Reads one; `None` if there is none.
    #[must_use]
    pub fn read(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in brackets, and may hold brackets itself.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            pid,
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            cpu_ms: (11..15).filter_map(number).sum::<u64>() * 10,
            start: number(19)?,
        })
    }

    /// Whether it runs still (a zombie does not).
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::read(self.pid).is_some_and(|now| now.start == self.start && now.state != 'Z')
    }

    /// A file of its folder in /proc, or an empty text.
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        fs::read(format!("/proc/{}/{name}", self.pid))
            .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
            .unwrap_or_default()
    }

    /// Its program.
    #[must_use]
    pub fn program(&self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/exe", self.pid)).ok()
    }

    fn belongs_to(&self, lab: &Path) -> bool {
        let environ = fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default();
        let marker = [b"ULPM_TEST_LAB=", lab.as_os_str().as_bytes()].concat();
        environ.split(|byte| *byte == 0).any(|entry| entry == marker)
            || fs::read_link(format!("/proc/{}/cwd", self.pid))
                .is_ok_and(|cwd| cwd.starts_with(lab))
    }
}

/// Whether a process with this id runs (a zombie does not).
#[must_use]
pub fn is_alive(pid: i32) -> bool {
    Process::read(pid).is_some_and(|process| process.state != 'Z')
}

/// All processes that can be seen.
#[must_use]
pub fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Process::read)
        .collect()
}

/// `roots` and everything below them.
pub(crate) fn tree(roots: &BTreeSet<i32>) -> Vec<Process> {
    let all = processes();
    let mut found = roots.clone();
    loop {
        let more: Vec<i32> = all
            .iter()
            .filter(|process| found.contains(&process.parent) && !found.contains(&process.pid))
            .map(|process| process.pid)
            .collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    all.into_iter().filter(|process| found.contains(&process.pid)).collect()
}

/// Living processes that were started in the lab with this directory, but for this one.
pub(crate) fn of_lab(lab: &Path) -> Vec<Process> {
    let own = std::process::id().cast_signed();
    let mut found: Vec<Process> = processes()
        .into_iter()
        .filter(|process| process.pid != own && process.state != 'Z' && process.belongs_to(lab))
        .collect();
    let roots = found.iter().map(|process| process.pid).collect();
    found.extend(tree(&roots).into_iter().filter(|process| process.state != 'Z'));
    found.sort();
    found.dedup_by_key(|process| process.pid);
    found
}

/// Sends SIGKILL. A process that is gone already is no error.
pub(crate) fn kill_hard(pid: i32) {
    // The result says only that it was gone.
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// Kills what `found` lists until it lists nothing more.
///
/// # Errors
///
/// When something is still there after ten seconds.
pub(crate) fn kill_all(mut found: impl FnMut() -> Vec<Process>) -> Result {
    let mut left = Vec::new();
    until("processes to end after SIGKILL", Duration::from_secs(10), || {
        left = found();
        for process in &left {
            kill_hard(process.pid);
        }
        Ok(left.is_empty().then_some(()))
    })
    .map_err(|error| format!("{error}: {left:?}").into())
}
