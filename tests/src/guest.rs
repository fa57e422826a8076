//! A program that runs in a lab.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::capture::{complete_lines, has_line};
use crate::process::{self, Process, kill_all, kill_hard};
use crate::{Capture, DEADLINE, Host, Lab, Result, ensure, until};

/// A command with captured output.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stdout: Capture,
    pub(crate) stderr: Capture,
}

impl Running {
    pub(crate) fn start(mut command: Command, stdin: Stdio) -> Result<Self> {
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot run {command:?}: {error}"))?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let stderr = child.stderr.take().ok_or("no standard error")?;
        Ok(Self { child, stdout: Capture::of(stdout), stderr: Capture::of(stderr) })
    }

    /// Waits for its end; as a shell sees it, death by a signal is 128 and the signal's number.
    pub(crate) fn wait(&mut self, deadline: Duration) -> Result<i32> {
        use std::os::unix::process::ExitStatusExt;
        let status = until(format!("process {} to end", self.child.id()), deadline, || {
            Ok(self.child.try_wait()?)
        })?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }
}

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit status of `ulpm_launch`, `ulpm_restart` or the program itself.
    pub code: i32,
    /// Everything that was written to standard output.
    pub stdout: String,
    /// Everything that was written to standard error.
    pub stderr: String,
}

impl Finished {
    /// Checks the exit status.
    ///
    /// # Errors
    ///
    /// When it is another, with the end of what was written.
    pub fn expect_code(self, wanted: i32) -> Result<Self> {
        let Self { code, stdout, stderr } = &self;
        ensure!(
            *code == wanted,
            "exit status {code} instead of {wanted}; standard error:\n{stderr}\nstandard output ends in:\n{}",
            stdout.lines().rev().take(5).collect::<Vec<_>>().join("\n")
        );
        Ok(self)
    }
}

/// A program under `ulpm_launch` or `ulpm_restart`, or one that runs natively.
#[derive(Debug)]
pub struct Guest<'lab> {
    pub(crate) lab: &'lab Lab,
    /// Index of the host where it was started.
    pub(crate) host: usize,
    /// Name of the job.
    pub name: String,
    /// Its working directory.
    pub dir: PathBuf,
    pub(crate) limit: PathBuf,
    pub(crate) running: Mutex<Running>,
    pub(crate) stdin: Mutex<Option<ChildStdin>>,
    pub(crate) stdout: Capture,
    pub(crate) stderr: Capture,
}

impl Guest<'_> {
    /// The host where it was started.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.lab.hosts[self.host]
    }

    /// Index of that host in its lab.
    #[must_use]
    pub fn host_index(&self) -> usize {
        self.host
    }

    /// What it has written to standard output so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.stdout.text()
    }

    /// What it, and `ulpm_launch` or `ulpm_restart`, have written to standard error so far.
    #[must_use]
    pub fn errors(&self) -> String {
        self.stderr.text()
    }

    /// Process id of `ulpm_launch` or `ulpm_restart` (of the program itself if it runs natively).
    #[must_use]
    pub fn launcher_pid(&self) -> i32 {
        self.running().child.id().cast_signed()
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a line of output that is `line`, or begins with it and a space.
    ///
    /// # Errors
    ///
    /// When the output ends first, or the deadline passes.
    pub fn wait_for(&self, line: &str) -> Result {
        let found = self
            .stdout
            .wait(&format!("line {line:?}"), DEADLINE, |text| has_line(text, line).then_some(()));
        found.map_err(|error| self.explain(&error.to_string()))
    }

    /// Waits for this many complete lines.
    ///
    /// # Errors
    ///
    /// As [`Self::wait_for`].
    pub fn wait_lines(&self, count: usize) -> Result {
        let found = self.stdout.wait(&format!("{count} lines"), DEADLINE, |text| {
            (complete_lines(text).count() >= count).then_some(())
        });
        found.map_err(|error| self.explain(&error.to_string()))
    }

    /// Number of the last step that it has printed; 0 before the first.
    #[must_use]
    pub fn last_step(&self) -> u64 {
        last_step(&self.stdout.text())
    }

    /// Waits for a step with at least this number, and returns the number that was found.
    ///
    /// # Errors
    ///
    /// As [`Self::wait_for`].
    pub fn wait_step(&self, step: u64) -> Result<u64> {
        let found = self.stdout.wait(&format!("step {step}"), DEADLINE, |text| {
            Some(last_step(text)).filter(|&last| last >= step)
        });
        found.map_err(|error| self.explain(&error.to_string()))
    }

    fn explain(&self, error: &str) -> Box<dyn std::error::Error + Send + Sync> {
        format!("{}: {error}; standard error:\n{}", self.name, self.errors()).into()
    }

    /// Lets it take steps up to this one.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn set_limit(&self, step: u64) -> Result {
        // Renamed into its place, so that nobody reads half a number.
        let half = self.limit.with_extension("half");
        fs::write(&half, step.to_string())?;
        Ok(fs::rename(half, &self.limit)?)
    }

    /// Lets it take all steps.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn set_free(&self) -> Result {
        self.set_limit(1 << 60)
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    ///
    /// When it is no pipe, or nobody reads it any more.
    pub fn write(&self, text: &str) -> Result {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        stdin.as_mut().ok_or("standard input is no pipe")?.write_all(text.as_bytes())?;
        Ok(())
    }

    /// Ends its standard input.
    pub fn close_stdin(&self) {
        *self.stdin.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The job's processes, as its coordinator lists them, and everything below the launcher.
    ///
    /// # Errors
    ///
    /// Never: without a coordinator, what is below the launcher is the answer.
    pub fn members(&self) -> Result<Vec<Process>> {
        let launcher = self.launcher_pid();
        let mut members = self.listed();
        members.insert(launcher);
        let mut found = process::tree(&members);
        found.retain(|process| process.pid != launcher && process.state != 'Z');
        Ok(found)
    }

    /// The job's processes, as its coordinator lists them.
    fn listed(&self) -> BTreeSet<i32> {
        let job = self.lab.job(self.host, &self.name).ok().flatten();
        let real = |entry: &serde_json::Value| entry["real"].as_i64()?.try_into().ok();
        let processes = job.as_ref().and_then(|job| job["processes"].as_array());
        processes.map(|all| all.iter().filter_map(real).collect()).unwrap_or_default()
    }

    /// Process id of the program itself, as the kernel knows it.
    ///
    /// # Errors
    ///
    /// When its coordinator lists no process of it.
    pub fn real_pid(&self) -> Result<i32> {
        let job = self.lab.job(self.host, &self.name)?.ok_or("the job is not listed")?;
        let first = job["processes"][0]["real"].as_i64().ok_or("the job has no process")?;
        Ok(i32::try_from(first)?)
    }

    /// Processor time of its processes, in milliseconds.
    #[must_use]
    pub fn cpu_ms(&self) -> u64 {
        let below = process::tree(&BTreeSet::from([self.launcher_pid()]));
        below.iter().map(|process| process.cpu_ms).sum()
    }

    /// Waits until its coordinator says that the job runs: that it was restarted, as a whole.
    ///
    /// # Errors
    ///
    /// When it ends first, or the deadline passes.
    pub fn wait_running(&self) -> Result {
        until(format!("job {} to run", self.name), DEADLINE, || {
            ensure!(!self.has_ended()?, "{} has ended: {}", self.name, self.errors());
            let job = self.lab.job(self.host, &self.name)?;
            Ok(job.filter(|job| job["state"] == "running").map(|_| ()))
        })
    }

    /// Kills every process of the job, and waits until its coordinator has forgotten it. Returns the exit
    /// status of `ulpm_launch` or `ulpm_restart`.
    ///
    /// # Errors
    ///
    /// When something is still there after the deadline.
    pub fn kill_tree(&self) -> Result<i32> {
        // First all stand still, so that none sees another die and says something about it. Not those above
        // the job: script(1) would stop with its child, and miss its end.
        for pid in self.listed() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
        }
        kill_all(|| self.members().unwrap_or_default())?;
        let code = self.running().wait(DEADLINE)?;
        self.wait_for_the_rest();
        self.wait_forgotten()?;
        Ok(code)
    }

    /// Waits for what it has written, and what may still lie in the pipes.
    fn wait_for_the_rest(&self) {
        // What it left running may hold the streams open; what it has written itself is there by then.
        let open = self.stdout.wait_end(Duration::from_secs(2)).is_err();
        if open {
            println!("{}: standard output is still open after the end", self.name);
        }
        let _ = self.stderr.wait_end(Duration::from_millis(if open { 10 } else { 2000 }));
    }

    /// Waits until its coordinator lists it no more.
    ///
    /// # Errors
    ///
    /// When that takes longer than the deadline.
    pub(crate) fn wait_forgotten(&self) -> Result {
        until(format!("job {} to be forgotten", self.name), DEADLINE, || {
            Ok(self.lab.job(self.host, &self.name)?.is_none().then_some(()))
        })
    }

    /// Whether it has ended.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn has_ended(&self) -> Result<bool> {
        Ok(self.running().child.try_wait()?.is_some())
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When that takes longer than the deadline.
    pub fn finish(&self) -> Result<Finished> {
        self.finish_within(DEADLINE)
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When that takes longer than `deadline`.
    pub fn finish_within(&self, deadline: Duration) -> Result<Finished> {
        let code =
            self.running().wait(deadline).map_err(|error| self.explain(&error.to_string()))?;
        self.wait_for_the_rest();
        Ok(Finished { code, stdout: self.output(), stderr: self.errors() })
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let mut running = self.running();
        if running.child.try_wait().is_ok_and(|status| status.is_none()) {
            // Only a test that has failed leaves it running.
            self.lab.report_once();
            let launcher = running.child.id().cast_signed();
            for process in process::tree(&BTreeSet::from([launcher])) {
                kill_hard(process.pid);
            }
            // It was killed; there is nothing to be done about a failure.
            let _ = running.child.wait();
        }
    }
}

/// Number of the last complete `step N` line; 0 if there is none.
pub(crate) fn last_step(text: &str) -> u64 {
    complete_lines(text)
        .filter_map(|line| {
            let rest = line.strip_prefix("step ")?;
            rest.split(' ').find(|word| !word.is_empty())?.parse().ok()
        })
        .last()
        .unwrap_or(0)
}
