//! One test's own world.

use std::fs;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::artifacts::{binaries, copy_tree};
use crate::guest::Running;
use crate::process::{kill_all, of_lab};
use crate::{DEADLINE, Feed, Guest, Host, Process, Program, Result, Wire, ensure, until};

/// A test that takes longer is ended, with everything that it has started.
const WATCHDOG: Duration = Duration::from_secs(170);

/// A directory, one or two hosts with a coordinator each, and what runs there.
#[derive(Debug)]
pub struct Lab {
    /// Everything of this lab lies in here.
    pub dir: PathBuf,
    /// ULPM's binaries.
    pub bin: PathBuf,
    /// The hosts; their coordinators run.
    pub hosts: Vec<Host>,
    /// What is between them, if it can be bad.
    pub wire: Option<Wire>,
    count: AtomicU32,
    reported: AtomicBool,
}

/// What a tool said.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// Exit status.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output of a tool that was to succeed.
    ///
    /// # Errors
    ///
    /// When its exit status is not 0.
    pub fn success(self) -> Result<String> {
        let Self { command, code, stdout, stderr } = self;
        ensure!(code == 0, "{command}: exit status {code}\n{stdout}{stderr}");
        Ok(stdout)
    }

    /// Standard error of a tool that was to fail in words that hold all of `words`.
    ///
    /// # Errors
    ///
    /// When it succeeded, was ended by a signal, or says something else.
    pub fn failure(self, words: &[&str]) -> Result<String> {
        let Self { command, code, stdout, stderr } = self;
        ensure!(code != 0, "{command}: was to fail\n{stdout}{stderr}");
        ensure!(code < 128 && code != 101, "{command}: exit status {code}\n{stdout}{stderr}");
        for word in words {
            ensure!(
                stderr.to_lowercase().contains(&word.to_lowercase()),
                "{command}: the message does not speak of {word:?}:\n{stderr}"
            );
        }
        Ok(stderr)
    }
}

/// What `--checkpoint --json` says.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// `DIR/NAME/GENERATION`.
    pub path: PathBuf,
    /// Its number.
    pub generation: u64,
    /// Processes in it.
    pub processes: u64,
    /// Bytes of all images.
    pub bytes: u64,
    /// How long the job stood still.
    pub freeze_ms: f64,
    /// From the request to a durable checkpoint.
    pub total_ms: f64,
}

/// What `--migrate --json` says.
#[derive(Clone, Debug)]
pub struct Migration {
    /// The job's id on the target.
    pub target_id: u64,
    /// Bytes of all images.
    pub bytes: u64,
    /// How long the job stood still.
    pub freeze_ms: f64,
    /// From the request to the thaw on the target.
    pub total_ms: f64,
}

impl Lab {
    /// Runs `test` in a lab with one host.
    ///
    /// # Errors
    ///
    /// What `test` fails with, or what was left over after it.
    pub fn one_host(test: impl FnOnce(&Self) -> Result) -> Result {
        Self::run(Self::new(1)?, test)
    }

    /// Runs `test` in a lab with two hosts: network namespaces where permitted, else two coordinators
    /// on the loopback.
    ///
    /// # Errors
    ///
    /// What `test` fails with, or what was left over after it.
    pub fn two_hosts(test: impl FnOnce(&Self) -> Result) -> Result {
        Self::run(Self::new(2)?, test)
    }

    /// Runs `test` in a lab whose coordinators do not run, and for which no binaries are built.
    ///
    /// # Errors
    ///
    /// As [`Self::one_host`].
    pub fn without_coordinator(test: impl FnOnce(&Self) -> Result) -> Result {
        Self::run(Self::new(0)?, test)
    }

    /// Runs `test` in a lab with two hosts that were booted so many seconds before this one. A restart on them makes
    /// a time namespace of the job's own only where it is so said, and permitted. Where there cannot be such hosts, it
    /// is said why, and `test` does not run.
    ///
    /// # Errors
    ///
    /// As [`Self::one_host`].
    pub fn two_hosts_with_clocks(
        clocks: [(u32, bool); 2],
        test: impl FnOnce(&Self) -> Result,
    ) -> Result {
        let mut lab = Self::new(2)?;
        for (host, (seconds, may_nest)) in lab.hosts.iter_mut().zip(clocks) {
            if let Err(why) = host.set_clock_ahead(seconds, may_nest) {
                println!("not tried, for there are no hosts with other clocks: {why}");
                return lab.close(false);
            }
        }
        Self::run(lab, test)
    }

    /// Runs `test` in a lab with two hosts, of which each has these faults (see `coordinator/src/fault.rs`). Root gets
    /// a wire between them that can be bad.
    ///
    /// # Errors
    ///
    /// As [`Self::one_host`].
    pub fn two_hosts_with_faults(faults: [&str; 2], test: impl FnOnce(&Self) -> Result) -> Result {
        let lab = if crate::is_root() {
            let mut lab = Self::new(0)?;
            lab.bin = binaries()?;
            lab.hosts.clear();
            fs::remove_dir_all(lab.dir.join("a"))?;
            match Host::on_a_wire(&lab.dir, &lab.bin) {
                Ok((hosts, wire)) => (lab.hosts, lab.wire) = (hosts, Some(wire)),
                Err(error) => {
                    fs::remove_dir_all(&lab.dir)?;
                    return Err(error);
                }
            }
            lab
        } else {
            Self::new(2)?
        };
        for (host, faults) in lab.hosts.iter().zip(faults) {
            host.set_faults(faults);
        }
        Self::run(lab, test)
    }

    fn run(lab: Self, test: impl FnOnce(&Self) -> Result) -> Result {
        let lab = Arc::new(lab);
        let (ended, watched) = channel::<()>();
        let watcher = Arc::downgrade(&lab);
        std::thread::spawn(move || {
            if watched.recv_timeout(WATCHDOG) == Err(RecvTimeoutError::Timeout)
                && let Some(lab) = watcher.upgrade()
            {
                println!("the test takes longer than {WATCHDOG:?}\n{}", lab.report());
                // Ends the test's process in any case.
                let _ = kill_all(|| of_lab(&lab.dir));
                std::process::exit(3);
            }
        });
        let result = catch_unwind(AssertUnwindSafe(|| -> Result {
            if !lab.bin.as_os_str().is_empty() {
                if let Some(host) = lab.hosts.first().filter(|host| host.is_namespace()) {
                    // Beyond the loopback, only hosts of a cluster are talked to.
                    let mut make = host.tool("ulpm_coordinator");
                    make.arg("--init-cluster");
                    lab.output(make)?.success()?;
                }
                for host in &lab.hosts {
                    host.start_coordinator()?;
                }
            }
            test(&lab)
        }));
        let failed = !matches!(result, Ok(Ok(())));
        if failed {
            lab.report_once();
        }
        let closed = lab.close(failed);
        drop(ended);
        match result {
            Ok(Ok(())) => closed,
            Ok(error) => error,
            Err(panic) => resume_unwind(panic),
        }
    }

    fn new(count: usize) -> Result<Self> {
        let bin = if count == 0 { PathBuf::new() } else { binaries()? };
        // Short, for the path of a socket has room for 107 bytes.
        let dir = nix::unistd::mkdtemp(&std::env::temp_dir().join("ulpm-e2e.XXXXXX"))?;
        for name in ["home", "tmp", "images", "work"] {
            fs::create_dir(dir.join(name))?;
        }
        let hosts = if count == 2 {
            Host::in_namespaces(&dir, &bin).or_else(|why| {
                println!("two hosts on the loopback, for there are no network namespaces: {why}");
                for name in ["a", "b"] {
                    // They are there if making the namespaces failed half-way.
                    let _ = fs::remove_dir_all(dir.join(name));
                }
                Host::on_loopback(&dir, &bin, count)
            })?
        } else {
            Host::on_loopback(&dir, &bin, 1)?
        };
        println!("lab {}", dir.display());
        Ok(Self {
            dir,
            bin,
            hosts,
            wire: None,
            count: AtomicU32::new(0),
            reported: AtomicBool::new(false),
        })
    }

    fn close(&self, failed: bool) -> Result {
        let quit: Vec<String> = self
            .hosts
            .iter()
            .filter_map(|host| host.quit_coordinator().err().map(|error| error.to_string()))
            .collect();
        // What is about to end may do so.
        let mut left = Vec::new();
        let _ = until("everything to end", Duration::from_secs(if failed { 0 } else { 5 }), || {
            left = of_lab(&self.dir);
            Ok(left.is_empty().then_some(()))
        });
        let left: Vec<String> = left
            .iter()
            .map(|process| format!("{} {}", process.pid, process.file("cmdline")))
            .collect();
        kill_all(|| of_lab(&self.dir))?;
        fs::remove_dir_all(&self.dir)
            .map_err(|error| format!("cannot remove {}: {error}", self.dir.display()))?;
        if !failed {
            ensure!(quit.is_empty(), "{}", quit.join("\n"));
            ensure!(left.is_empty(), "these were left over: {}", left.join("; "));
        }
        Ok(())
    }

    /// Directory that `-d` names.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    /// A fresh working directory, and the number that names it.
    fn place(&self, program: &Program) -> Result<(u32, PathBuf)> {
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let dir = self.dir.join("work").join(number.to_string());
        match &program.folder {
            Some(folder) => copy_tree(folder, &dir)?,
            None => fs::create_dir(&dir)?,
        }
        Ok((number, dir))
    }

    /// Starts a program natively.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn native(&self, program: &Program) -> Result<Guest<'_>> {
        let (number, dir) = self.place(program)?;
        let argv = program.resolved()?;
        let mut command = self.hosts[0].command(&argv[0]);
        command.args(&argv[1..]);
        self.start(program, 0, command, &format!("{}-native{number}", program.name), dir)
    }

    /// Starts a program under `ulpm_launch` on the first host.
    ///
    /// # Errors
    ///
    /// When `ulpm_launch` cannot be started. That the program runs is for the test to see.
    pub fn launch(&self, program: &Program) -> Result<Guest<'_>> {
        self.launch_on(0, program)
    }

    /// Starts a program under `ulpm_launch`.
    ///
    /// # Errors
    ///
    /// As [`Self::launch`].
    pub fn launch_on(&self, host: usize, program: &Program) -> Result<Guest<'_>> {
        let (number, dir) = self.place(program)?;
        let name = format!("{}-{number}", program.name);
        let mut command = self.hosts[host].tool("ulpm_launch");
        command.arg("-d").arg(self.images()).args(["--name", &name]);
        // Most tests look at what was written where.
        command.args(["--stdio", "log"]);
        command.args(&program.options).arg("--").args(program.resolved()?);
        self.start(program, host, command, &name, dir)
    }

    fn start(
        &self,
        program: &Program,
        host: usize,
        mut command: Command,
        name: &str,
        dir: PathBuf,
    ) -> Result<Guest<'_>> {
        let limit = dir.with_extension("limit");
        command
            .current_dir(&dir)
            .env("GUEST_LIMIT", &limit)
            .envs(program.env.iter().map(|(name, value)| (name, value)))
            .process_group(0);
        let piped = program.feed == Feed::Pipe;
        self.guest(host, command, name.into(), dir, limit, piped)
    }

    /// Starts any command as the launcher of a job.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start_command(
        &self,
        host: usize,
        name: &str,
        mut command: Command,
    ) -> Result<Guest<'_>> {
        let limit = self.dir.join("work").join(format!("{name}.limit"));
        command.env("GUEST_LIMIT", &limit).process_group(0);
        self.guest(host, command, name.into(), self.dir.clone(), limit, true)
    }

    fn guest(
        &self,
        host: usize,
        command: Command,
        name: String,
        dir: PathBuf,
        limit: PathBuf,
        piped: bool,
    ) -> Result<Guest<'_>> {
        println!("{name}: {command:?}");
        let stdin = if piped { Stdio::piped() } else { Stdio::null() };
        let mut running = Running::start(command, stdin)?;
        let stdin = Mutex::new(running.child.stdin.take());
        let (stdout, stderr) = (running.stdout.clone(), running.stderr.clone());
        let running = Mutex::new(running);
        Ok(Guest { lab: self, host, name, dir, limit, running, stdin, stdout, stderr })
    }

    /// Restarts a checkpoint of `guest` on the first host, with pipes as standard streams.
    ///
    /// # Errors
    ///
    /// When `ulpm_restart` cannot be started. That the program runs is for the test to see.
    pub fn restart<'lab>(&'lab self, guest: &Guest<'_>, checkpoint: &Path) -> Result<Guest<'lab>> {
        self.restart_on(0, guest, checkpoint)
    }

    /// Restarts a checkpoint of `guest`.
    ///
    /// # Errors
    ///
    /// As [`Self::restart`].
    pub fn restart_on<'lab>(
        &'lab self,
        host: usize,
        guest: &Guest<'_>,
        checkpoint: &Path,
    ) -> Result<Guest<'lab>> {
        self.restart_with(host, guest, checkpoint, &[])
    }

    /// Restarts a checkpoint of `guest`, with further options.
    ///
    /// # Errors
    ///
    /// As [`Self::restart`].
    pub fn restart_with<'lab>(
        &'lab self,
        host: usize,
        guest: &Guest<'_>,
        checkpoint: &Path,
        options: &[&str],
    ) -> Result<Guest<'lab>> {
        let mut command = self.hosts[host].tool("ulpm_restart");
        command.args(["--stdio", "log"]).args(options).arg(checkpoint).process_group(0);
        self.guest(host, command, guest.name.clone(), guest.dir.clone(), guest.limit.clone(), true)
    }

    /// `ulpm_command --output JOB --follow`, whose output is that of the job.
    ///
    /// # Errors
    ///
    /// When the command cannot be started.
    pub fn follow_output<'lab>(
        &'lab self,
        host: usize,
        job: &str,
        guest: &Guest<'_>,
    ) -> Result<Guest<'lab>> {
        let mut command = self.hosts[host].tool("ulpm_command");
        command.args(["--output", job, "--follow"]).process_group(0);
        self.guest(host, command, guest.name.clone(), guest.dir.clone(), guest.limit.clone(), false)
    }

    /// Processor time of a job, by its id, in milliseconds.
    ///
    /// # Errors
    ///
    /// When the host does not list it.
    pub fn job_cpu_ms(&self, host: usize, id: &str) -> Result<u64> {
        let status = self.hosts[host].status()?;
        let jobs = status["jobs"].as_array().ok_or("--status --json has no list of jobs")?;
        let job = jobs
            .iter()
            .find(|job| job["id"].as_u64().is_some_and(|number| number.to_string() == id))
            .ok_or_else(|| format!("job {id} is not listed"))?;
        let processes = job["processes"].as_array().ok_or("a job without processes")?;
        let pids = processes.iter().filter_map(|process| process["real"].as_i64()?.try_into().ok());
        Ok(pids.filter_map(Process::read).map(|process| process.cpu_ms).sum())
    }

    /// Runs one of ULPM's programs to its end.
    ///
    /// # Errors
    ///
    /// When it does not end in time.
    pub fn tool(&self, host: usize, name: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = self.hosts[host].tool(name);
        command.args(arguments);
        self.output(command)
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    ///
    /// When it does not end in time; it is killed then.
    pub fn output(&self, command: Command) -> Result<Output> {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let text = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let text = text.replace(&*self.dir.to_string_lossy(), "LAB");
        let mut running = Running::start(command, Stdio::null())?;
        let code = match running.wait(DEADLINE) {
            Ok(code) => code,
            Err(error) => {
                running.child.kill()?;
                running.child.wait()?;
                return Err(format!("{text}: {error}\n{}", running.stderr.text()).into());
            }
        };
        running.stdout.wait_end(DEADLINE)?;
        running.stderr.wait_end(DEADLINE)?;
        let (stdout, stderr) = (running.stdout.text(), running.stderr.text());
        println!("{text}: {code}\n{}", stderr.trim_end());
        Ok(Output { command: text, code, stdout, stderr })
    }

    /// What `--status --json` of a host says about a job; `None` if it does not list it.
    ///
    /// # Errors
    ///
    /// When the coordinator does not answer.
    pub fn job(&self, host: usize, name: &str) -> Result<Option<Value>> {
        let status = self.hosts[host].status()?;
        let jobs = status["jobs"].as_array().ok_or("--status --json has no list of jobs")?;
        Ok(jobs.iter().find(|job| job["name"] == name).cloned())
    }

    /// `ulpm_command --checkpoint` for one job.
    ///
    /// # Errors
    ///
    /// When the command fails, or what it names is not a complete checkpoint.
    pub fn checkpoint(&self, guest: &Guest<'_>) -> Result<Checkpoint> {
        self.checkpoint_with(guest, &[])
    }

    /// `ulpm_command --checkpoint --kill` for one job: it takes no further step after the checkpoint.
    ///
    /// # Errors
    ///
    /// As [`Self::checkpoint`], or when something of the job is left.
    pub fn checkpoint_and_kill(&self, guest: &Guest<'_>) -> Result<Checkpoint> {
        self.checkpoint_and_kill_with(guest, &[])
    }

    /// The same, with further options.
    ///
    /// # Errors
    ///
    /// As [`Self::checkpoint_and_kill`].
    pub fn checkpoint_and_kill_with(
        &self,
        guest: &Guest<'_>,
        options: &[&str],
    ) -> Result<Checkpoint> {
        let checkpoint = self.checkpoint_with(guest, &[&["--kill"], options].concat())?;
        let code = guest.finish()?.code;
        ensure!(code == 137, "exit status {code} instead of 137: {}", guest.errors());
        guest.wait_forgotten()?;
        Ok(checkpoint)
    }

    /// `ulpm_command --checkpoint` for one job, with further options.
    ///
    /// # Errors
    ///
    /// As [`Self::checkpoint`].
    pub fn checkpoint_with(&self, guest: &Guest<'_>, options: &[&str]) -> Result<Checkpoint> {
        let arguments = [&["--json", "--checkpoint"], options, &[&*guest.name]].concat();
        let said = self.tool(guest.host, "ulpm_command", &arguments)?;
        let checkpoint = Checkpoint::parse(&said.success()?)?;
        let path = &checkpoint.path;
        ensure!(path.join("manifest.json").is_file(), "{} has no manifest", path.display());
        let latest = path.parent().ok_or("a checkpoint without a job")?.join("latest");
        let points_to = latest.canonicalize().map_err(|error| format!("latest: {error}"))?;
        ensure!(points_to == path.canonicalize()?, "latest is {}", points_to.display());
        Ok(checkpoint)
    }

    /// `ulpm_command --migrate` for one job, by name or id, from host to host.
    ///
    /// # Errors
    ///
    /// When the command fails.
    pub fn migrate(&self, job: &str, from: usize, to: usize) -> Result<Migration> {
        self.migrate_with(job, from, to, &[])
    }

    /// The same, with further options.
    ///
    /// # Errors
    ///
    /// As [`Self::migrate`].
    pub fn migrate_with(
        &self,
        job: &str,
        from: usize,
        to: usize,
        options: &[&str],
    ) -> Result<Migration> {
        let target = self.hosts[to].address();
        let arguments = [&["--json", "--migrate", &target], options, &[job]].concat();
        let said = self.tool(from, "ulpm_command", &arguments)?;
        Migration::parse(&said.success()?)
    }

    /// Prints [`Self::report`], unless that was done: the first time is the nearest to the failure.
    pub(crate) fn report_once(&self) {
        if !self.reported.swap(true, Ordering::Relaxed) {
            println!("{}", self.report());
        }
    }

    /// What somebody needs who looks for the cause of a failure.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = String::from("======== report\n");
        for host in &self.hosts {
            let log = host.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            text += &format!("-------- host {}: coordinator's log, its end\n", host.name);
            for line in tail.iter().rev() {
                text += &format!("{line}\n");
            }
            for (name, output) in host.kept_outputs() {
                let tail: Vec<&str> = output.lines().rev().take(10).collect();
                text += &format!("-------- host {}: {name}, its end\n", host.name);
                for line in tail.iter().rev() {
                    text += &format!("{line}\n");
                }
            }
            match host.status() {
                Ok(status) => text += &format!("-------- host {}: {status:#}\n", host.name),
                Err(error) => text += &format!("-------- host {}: no status: {error}\n", host.name),
            }
        }
        let mut maps = 3;
        for process in of_lab(&self.dir) {
            let command = process.file("cmdline");
            text += &format!(
                "-------- process {} (parent {}): {command}\n",
                process.pid, process.parent
            );
            let mut threads: Vec<_> = fs::read_dir(format!("/proc/{}/task", process.pid))
                .map(|tasks| {
                    tasks.filter_map(|task| task.ok()?.file_name().into_string().ok()).collect()
                })
                .unwrap_or_default();
            threads.sort();
            for thread in threads.iter().take(12) {
                let of =
                    |name: &str| process.file(&format!("task/{thread}/{name}")).trim().to_owned();
                let status = of("status");
                let field = |name: &str| {
                    status
                        .lines()
                        .find_map(|line| line.strip_prefix(name))
                        .unwrap_or("")
                        .trim()
                        .to_owned()
                };
                text += &format!(
                    "  {thread} {} {} {} syscall {} blocked {} pending {} {}\n",
                    of("comm"),
                    field("State:"),
                    of("wchan"),
                    of("syscall"),
                    field("SigBlk:"),
                    field("SigPnd:"),
                    field("ShdPnd:"),
                );
            }
            if threads.len() > 12 {
                text += &format!("  and {} threads more\n", threads.len() - 12);
            }
            if !command.contains("ulpm_") && maps > 0 {
                maps -= 1;
                text += &format!("{}\n{}\n", process.file("environ"), process.file("maps"));
            }
        }
        text += "-------- images\n";
        list(&self.images(), &mut text);
        text
    }
}

/// Adds every file below `dir`, with its length.
fn list(dir: &Path, text: &mut String) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let Ok(status) = entry.path().symlink_metadata() else { continue };
        *text += &format!("{} {}\n", entry.path().display(), status.len());
        if status.is_dir() {
            list(&entry.path(), text);
        }
    }
}

/// The one thing that a listing in JSON names, whether it stands in a list or alone.
fn single(text: &str) -> Result<Value> {
    let value: Value =
        serde_json::from_str(text).map_err(|error| format!("{error} in {text:?}"))?;
    Ok(match value {
        Value::Array(mut all) if all.len() == 1 => all.remove(0),
        other => other,
    })
}

fn whole(value: &Value, key: &str) -> Result<u64> {
    value[key].as_u64().ok_or_else(|| format!("no number {key:?} in {value}").into())
}

fn real(value: &Value, key: &str) -> Result<f64> {
    value[key].as_f64().ok_or_else(|| format!("no number {key:?} in {value}").into())
}

impl Checkpoint {
    /// Reads what `--checkpoint --json` says about one job.
    ///
    /// # Errors
    ///
    /// When something is missing.
    pub fn parse(text: &str) -> Result<Self> {
        let value = single(text)?;
        Ok(Self {
            path: value["path"].as_str().ok_or("no path in what --checkpoint says")?.into(),
            generation: whole(&value, "generation")?,
            processes: whole(&value, "processes")?,
            bytes: whole(&value, "bytes")?,
            freeze_ms: real(&value, "freeze_ms")?,
            total_ms: real(&value, "total_ms")?,
        })
    }
}

impl Migration {
    /// Reads what `--migrate --json` says about one job.
    ///
    /// # Errors
    ///
    /// When something is missing.
    pub fn parse(text: &str) -> Result<Self> {
        let value = single(text)?;
        Ok(Self {
            target_id: whole(&value, "target_id")?,
            bytes: whole(&value, "bytes")?,
            freeze_ms: real(&value, "freeze_ms")?,
            total_ms: real(&value, "total_ms")?,
        })
    }
}
