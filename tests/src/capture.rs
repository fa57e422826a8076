//! The output of a running program.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Result;

/// What a program has written so far. A thread of its own reads it.
#[derive(Clone, Debug, Default)]
pub struct Capture {
    inner: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Capture {
    /// Reads `source` until it ends.
    pub(crate) fn of(source: impl Read + Send + 'static) -> Self {
        let capture = Self::default();
        let shared = capture.clone();
        std::thread::spawn(move || shared.read(source));
        capture
    }

    fn read(&self, mut source: impl Read) {
        let mut buffer = vec![0; 65536];
        loop {
            let len = match source.read(&mut buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            let mut state = self.state();
            state.bytes.extend_from_slice(&buffer[..len]);
            state.ended = len == 0;
            self.inner.1.notify_all();
            if len == 0 {
                return;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything so far.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.state().bytes.clone()
    }

    /// Everything so far, as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.state().bytes).into_owned()
    }

    /// Waits until `found` gives a value for the text so far.
    ///
    /// # Errors
    ///
    /// When the output ends first, or `deadline` passes.
    pub(crate) fn wait<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut found: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + deadline;
        let mut state = self.state();
        loop {
            let text = String::from_utf8_lossy(&state.bytes);
            if let Some(value) = found(&text) {
                return Ok(value);
            }
            let last = text.lines().next_back().unwrap_or("");
            if state.ended {
                return Err(format!("output ended before {what}; its last line is {last:?}").into());
            }
            let now = Instant::now();
            if now >= end {
                return Err(
                    format!("no {what} within {deadline:?}; the last line is {last:?}").into()
                );
            }
            state = self
                .inner
                .1
                .wait_timeout(state, end - now)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }

    /// Waits until the output has ended.
    ///
    /// # Errors
    ///
    /// When that takes longer than `deadline`.
    pub fn wait_end(&self, deadline: Duration) -> Result {
        let end = Instant::now() + deadline;
        let mut state = self.state();
        while !state.ended {
            let now = Instant::now();
            if now >= end {
                return Err(format!("the output was still open after {deadline:?}").into());
            }
            state = self
                .inner
                .1
                .wait_timeout(state, end - now)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
        Ok(())
    }
}

/// Whether `text` holds the complete line `wanted`, or one that goes on with a space after it.
pub(crate) fn has_line(text: &str, wanted: &str) -> bool {
    complete_lines(text).any(|line| {
        line.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    })
}

/// The lines that have their end.
pub(crate) fn complete_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'))
}

/// Puts what was written before a kill and after a restart together.
///
/// Between the checkpoint and the kill a program went on, so the end of `before` may be said again. Lines
/// are unique, so the first line of `after` tells where that begins.
pub(crate) fn join(before: &str, after: &str) -> String {
    let Some(first) = after.split_inclusive('\n').next() else {
        return before.into();
    };
    let mut at = 0;
    for line in before.split_inclusive('\n') {
        if line == first {
            return format!("{}{after}", &before[..at]);
        }
        at += line.len();
    }
    format!("{before}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_output_has_each_line_once() {
        assert_eq!(join("1\n2\n3\n", "2\n3\n4\n"), "1\n2\n3\n4\n");
        assert_eq!(join("1\n2\n", "3\n"), "1\n2\n3\n");
        assert_eq!(join("", "1\n"), "1\n");
        assert_eq!(join("1\n", ""), "1\n");
    }

    #[test]
    fn a_line_counts_when_it_is_complete() {
        assert!(has_line("step 1\nstep 2 abc\n", "step 2"));
        assert!(!has_line("step 1\nstep 2", "step 2"));
        assert!(!has_line("step 20\n", "step 2"));
    }
}
