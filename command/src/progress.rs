//! A line on the terminal for whatever takes longer than a second.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use ulpm_control::message::Progress;

use crate::text;

/// How long nothing is shown.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Line {
    shown: bool,
    terminal: bool,
    verbose: bool,
    began: Instant,
    phase: String,
    phase_began: Instant,
}

impl Line {
    pub(crate) fn new(verbose: bool) -> Self {
        let now = Instant::now();
        Self {
            shown: false,
            terminal: io::stderr().is_terminal(),
            verbose,
            began: now,
            phase: String::new(),
            phase_began: now,
        }
    }

    /// Takes a report.
    pub(crate) fn report(&mut self, progress: &Progress) {
        let phase = format!("{}: {}", progress.job, progress.phase);
        if phase != self.phase {
            self.phase = phase;
            self.phase_began = Instant::now();
            if self.verbose && !self.terminal {
                eprintln!("ulpm_command: {}", self.phase);
            }
        }
        if self.terminal && self.began.elapsed() >= PATIENCE {
            let line = describe(progress, self.phase_began.elapsed());
            eprint!("\r\x1b[K{line}");
            let _ = io::stderr().flush();
            self.shown = true;
        }
    }

    /// Removes the line.
    pub(crate) fn clear(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
            self.shown = false;
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.clear();
    }
}

fn describe(progress: &Progress, elapsed: Duration) -> String {
    let mut line = format!("{}: {}", progress.job, progress.phase);
    if progress.done == 0 {
        return line;
    }
    line += &format!(" {}", text::bytes(progress.done));
    if progress.total > progress.done {
        line += &format!(" of about {}", text::bytes(progress.total));
    }
    let secs = elapsed.as_secs_f64();
    if secs < 0.1 {
        return line;
    }
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shown to people"
    )]
    {
        let rate = progress.done as f64 / secs;
        line += &format!(", {}/s", text::bytes(rate as u64));
        if progress.total > progress.done && rate > 0.0 {
            let left = (progress.total - progress.done) as f64 / rate;
            line += &format!(", {left:.0} s left");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_remaining_time_are_told() {
        let progress =
            |done, total| Progress { job: "a-1".into(), phase: "write".into(), done, total };
        let secs = Duration::from_secs(2);
        let line = describe(&progress(1 << 20, 4 << 20), secs);
        assert_eq!(line, "a-1: write 1.0 MiB of about 4.0 MiB, 512.0 KiB/s, 6 s left");
        assert_eq!(describe(&progress(1 << 20, 0), secs), "a-1: write 1.0 MiB, 512.0 KiB/s");
        assert_eq!(describe(&progress(0, 0), secs), "a-1: write");
    }
}
