//! Faults for tests: what would have to happen at one moment of a hand-over, and hardly ever does.
//!
//! `ULPM_FAULT=kill:source.Record,stop:target.Release` ends this coordinator with SIGKILL before the source records its
//! decision, and stops it before a target lets the job go on; each once. The names are those of the actions in
//! `ulpm_protocol::handover`, and some moments between them: `source.Stream` and `target.Stream` in the middle of an image,
//! `target.Restart` when `ulpm_restart` has just been started, `target.Held` when all processes wait.
//!
//! `wait:target.Release=DIR` is for everything that has to come from outside: it makes the file `DIR/target.Release.reached`,
//! and nothing happens in this coordinator until there is `DIR/target.Release.go`. If that file holds `EIO`, the next
//! thing that is to be logged cannot be.
//!
//! `haste=20` divides the deadlines of hand-overs by 20, but leaves a second of each.

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};

/// Nobody waits longer than that for `.go`.
const WAIT_LIMIT: Duration = Duration::from_secs(60);

/// What is left of a deadline at least.
const SHORTEST: Duration = Duration::from_secs(1);

/// The log cannot be written, once.
static DISK_FAILS: AtomicBool = AtomicBool::new(false);

/// What stands behind the `=` of a fault, which is done with.
fn take(name: &str) -> Option<String> {
    static FAULTS: OnceLock<Mutex<Vec<(String, String)>>> = OnceLock::new();
    let asked = || {
        let text = std::env::var("ULPM_FAULT").unwrap_or_default();
        let pair = |fault: &str| {
            let (name, value) = fault.split_once('=').unwrap_or((fault, ""));
            (name.to_owned(), value.to_owned())
        };
        Mutex::new(text.split(',').map(pair).collect())
    };
    let mut faults = FAULTS.get_or_init(asked).lock().unwrap_or_else(PoisonError::into_inner);
    let at = faults.iter().position(|(asked, _)| asked == name)?;
    Some(faults.swap_remove(at).1)
}

/// Does what the environment asks for before `action`.
pub(crate) fn before(side: &str, action: impl Debug) {
    at(&format!("{side}.{action:?}"));
}

/// Does what the environment asks for at a moment.
pub(crate) fn at(point: &str) {
    if let Some(dir) = take(&format!("wait:{point}")) {
        wait(Path::new(&dir), point);
    }
    for (what, signal) in [("kill", Signal::SIGKILL), ("stop", Signal::SIGSTOP)] {
        if take(&format!("{what}:{point}")).is_some() {
            tracing::warn!("fault {what}:{point}");
            // What cannot be sent to oneself is not to be feared.
            let _ = raise(signal);
        }
    }
}

/// Waits, with everything else in this coordinator, until the test has done what it wanted to.
fn wait(dir: &Path, point: &str) {
    tracing::warn!("fault at {point}");
    let began = Instant::now();
    let go = dir.join(format!("{point}.go"));
    if std::fs::write(dir.join(format!("{point}.reached")), "").is_err() {
        return;
    }
    while began.elapsed() < WAIT_LIMIT {
        if let Ok(text) = std::fs::read_to_string(&go) {
            DISK_FAILS.store(text.trim() == "EIO", Ordering::Relaxed);
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether something can be logged.
pub(crate) fn disk() -> io::Result<()> {
    if DISK_FAILS.swap(false, Ordering::Relaxed) {
        return Err(nix::errno::Errno::EIO.into());
    }
    Ok(())
}

/// A deadline as the environment has it; a machine that has more to do keeps none of less than a second.
pub(crate) fn hurried(limit: Duration) -> Duration {
    static HASTE: OnceLock<u32> = OnceLock::new();
    let asked = || take("haste").and_then(|text| text.parse().ok()).filter(|&by| by > 0);
    (limit / *HASTE.get_or_init(|| asked().unwrap_or(1))).max(limit.min(SHORTEST))
}
