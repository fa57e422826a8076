//! Faults for tests: what would have to happen at one moment of a hand-over, and hardly ever does.
//!
//! `ULPM_FAULT=kill:source.Record,stop:target.Release` ends this coordinator with SIGKILL before the source records its
//! decision, and stops it before a target lets the job go on; each once. The names are those of the actions in
//! `ulpm_protocol::handover`.

use std::fmt::Debug;
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::sys::signal::{Signal, raise};

/// Does what the environment asks for before `action`.
pub(crate) fn before(side: &str, action: impl Debug) {
    static FAULTS: OnceLock<Mutex<Vec<String>>> = OnceLock::new();
    let asked = || {
        let text = std::env::var("ULPM_FAULT").unwrap_or_default();
        Mutex::new(text.split(',').map(str::to_owned).collect())
    };
    let mut faults = FAULTS.get_or_init(asked).lock().unwrap_or_else(PoisonError::into_inner);
    let name = format!("{side}.{action:?}");
    for (what, signal) in [("kill", Signal::SIGKILL), ("stop", Signal::SIGSTOP)] {
        let fault = format!("{what}:{name}");
        if let Some(at) = faults.iter().position(|asked| *asked == fault) {
            faults.swap_remove(at);
            tracing::warn!("fault {fault}");
            // What cannot be sent to oneself is not to be feared.
            let _ = raise(signal);
        }
    }
}
