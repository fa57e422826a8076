//! Faults at every named point of a migration, with a witness: the job is neither lost nor doubled.
//!
//! The witness is a file to which `guests/witness.c` appends a number at every step, with the kernel's name of the process
//! that took it. Each number stands there once, in order: two instances that go on write one twice, and one that goes
//! on from a state that it had before writes old ones again.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::process::{kill_hard, processes};
use crate::{
    DEADLINE, Guest, Lab, Process, Program, Random, Result, ensure, guest_path, is_root, until,
};

/// The deadlines of the hand-over are divided by this.
const HASTE: &str = "haste=20";
/// How long a fault stays that passes: longer than most of these deadlines then are.
const STAYS: Duration = Duration::from_millis(2000);
/// The same where the longest deadline is to pass, which is that of a target which waits for the decision.
const STAYS_LONG: Duration = Duration::from_millis(7500);

/// The same for the deadline of a link that is dead, as it is for users.
const STAYS_UNHURRIED: Duration = Duration::from_secs(12);

/// The points at which something goes wrong, in the order in which they come; each is a side and what it is about to do
/// (see `coordinator/src/fault.rs`).
pub const POINTS: [&str; 19] = [
    "source.Send(Offer)",
    "target.Send(Accept)",
    "source.Freeze",
    "source.Capture",
    "source.Stream",
    "target.Stream",
    "source.Send(Images)",
    "target.Rebuild",
    "target.Restart",
    "target.Held",
    "target.LogPrepared",
    "target.Send(Prepared)",
    "source.Record",
    "source.Decide",
    "source.Send(Commit)",
    "source.End",
    "target.LogTaken",
    "target.Release",
    "target.Send(Running)",
];

/// From here on there is a copy on the target.
const COPY: usize = 9;
/// From here on the source has decided.
const DECIDED: usize = 13;
/// Here the copy may go on.
const RELEASED: [&str; 2] = ["source.End", "target.Send(Running)"];

/// What is said of a point that was not come to.
const NOT_REACHED: &str = "was not reached";

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9` of the source's coordinator.
    KillSource,
    /// `kill -9` of the target's coordinator.
    KillTarget,
    /// Both at once.
    KillBoth,
    /// `kill -9` of `ulpm_restart` on the target.
    KillRestart,
    /// `kill -9` of a process of the job on the source.
    KillProcess,
    /// `kill -9` of a process of the copy on the target.
    KillCopy,
    /// `kill -9` of `ulpm_command`.
    KillCommand,
    /// `kill -9` of `ulpm_launch`.
    KillLaunch,
    /// The source's coordinator stops for longer than deadlines are.
    StopSource,
    /// The target's coordinator stops for longer than deadlines are.
    StopTarget,
    /// No room where the target keeps images.
    FullImages,
    /// No room in the source's state directory.
    FullSource,
    /// No room in the target's state directory.
    FullTarget,
    /// The next thing that this side logs cannot be written.
    Eio,
    /// Both ends of the link go down.
    Cut,
    /// Packets disappear.
    BlackHole,
    /// All connections between the hosts are reset.
    Reset,
    /// 1 Mbit/s.
    Slow,
    /// 200 ms more each way.
    Far,
    /// 5 % of the packets are lost.
    Lossy,
}

impl Fault {
    const ALL: [Self; 20] = [
        Self::KillSource,
        Self::KillTarget,
        Self::KillBoth,
        Self::KillRestart,
        Self::KillProcess,
        Self::KillCopy,
        Self::KillCommand,
        Self::KillLaunch,
        Self::StopSource,
        Self::StopTarget,
        Self::FullImages,
        Self::FullSource,
        Self::FullTarget,
        Self::Eio,
        Self::Cut,
        Self::BlackHole,
        Self::Reset,
        Self::Slow,
        Self::Far,
        Self::Lossy,
    ];

    /// Whether it can be made without privileges.
    fn is_for_everybody(self) -> bool {
        self < Self::FullImages || self == Self::Eio
    }

    /// Whether there is anything at that point to which it can happen.
    fn fits(self, point: usize) -> bool {
        match self {
            Self::KillRestart => point + 1 >= COPY,
            Self::KillCopy => point >= COPY,
            Self::Eio => !POINTS[point].ends_with("Stream"),
            _ => true,
        }
    }
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Its number.
    pub number: usize,
    /// When: an index of [`POINTS`].
    pub point: usize,
    /// What.
    pub fault: Fault,
    /// How many processes the job has.
    pub processes: usize,
    /// How long after the point.
    pub after: Duration,
    /// Whether deadlines are shorter than they are for users.
    pub hurried: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, point, fault, processes, after, .. } = *self;
        write!(f, "{number}: {fault:?} at {}, {processes} processes", POINTS[point])?;
        if after.is_zero() { Ok(()) } else { write!(f, ", {after:?} later") }
    }
}

/// Every fault at every point, for a job of one process and for one of 32.
#[must_use]
pub fn every_one() -> Vec<Case> {
    let mut cases = Vec::new();
    for processes in [1, 32] {
        for fault in Fault::ALL {
            for point in 0..POINTS.len() {
                if fault.fits(point) && (is_root() || fault.is_for_everybody()) {
                    let number = cases.len();
                    let (after, hurried) = (Duration::ZERO, true);
                    cases.push(Case { number, point, fault, processes, after, hurried });
                }
            }
        }
    }
    cases
}

/// Fault number `number`: first every one there is, then the same a little after their points.
#[must_use]
pub fn case(number: usize) -> Case {
    let all = every_one();
    let after = if number < all.len() {
        Duration::ZERO
    } else {
        let mut random = Random::new(u64::try_from(number).unwrap_or(0));
        Duration::from_micros(random.between(0, 40_000))
    };
    Case { number, after, ..all[number % all.len()] }
}

/// Where a job is after a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It goes on where it was.
    Source,
    /// It goes on where it was to go.
    Target,
    /// A complete image lay on the target, and it went on when it was started as a person was told.
    Image,
    /// The process that was killed was all of it.
    Killed,
}

/// What came of a case.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    /// Where the job is.
    pub outcome: Outcome,
    /// The longest time without a step, in milliseconds.
    pub still_ms: u64,
}

/// Makes a fault, and sees to it that the job is neither lost nor doubled.
///
/// # Errors
///
/// When it is, or nobody can tell.
pub fn run(case: &Case) -> Result<Verdict> {
    println!("{case}");
    // A machine that has much else to do may keep no deadline, so that the point is not reached.
    for _ in 0..2 {
        match attempt(case) {
            Err(error) if error.to_string().contains(NOT_REACHED) => println!("{error}"),
            verdict => return verdict,
        }
    }
    attempt(case)
}

fn attempt(case: &Case) -> Result<Verdict> {
    let mut verdict = Err("the case did not run".into());
    // The directory is not known before the lab is there.
    let signs = nix::unistd::mkdtemp(&std::env::temp_dir().join("ulpm-signs.XXXXXX"))?;
    let point = POINTS[case.point];
    let haste = if case.hurried { HASTE } else { "" };
    let wait = format!("{haste},wait:{point}={}", signs.display());
    let faults = if point.starts_with("source") { [&*wait, haste] } else { [haste, &*wait] };
    let ran = Lab::two_hosts_with_faults(faults, |lab| {
        let mut trial = Trial::begin(lab, *case, &signs)?;
        let judged = trial.run();
        trial.repair()?;
        verdict = Ok(judged?);
        trial.end()
    });
    fs::remove_dir_all(&signs)?;
    ran?;
    verdict
}

/// A case that is being tried.
struct Trial<'lab> {
    lab: &'lab Lab,
    case: Case,
    signs: &'lab Path,
    witness: PathBuf,
    guest: Guest<'lab>,
    /// The job's processes on the source.
    originals: BTreeSet<i32>,
    full: Vec<PathBuf>,
    mounted: Vec<Mount>,
    stopped: Vec<i32>,
}

impl<'lab> Trial<'lab> {
    fn begin(lab: &'lab Lab, case: Case, signs: &'lab Path) -> Result<Self> {
        let witness = lab.dir.join("witness");
        let channels = if lab.hosts[0].is_namespace() { "put" } else { "pu" };
        let mut mounted = Vec::new();
        let full = match case.fault {
            Fault::FullImages => Some((lab.images(), 2)),
            Fault::FullSource => Some((lab.hosts[0].state_dir.clone(), 0)),
            Fault::FullTarget => Some((lab.hosts[1].state_dir.clone(), 1)),
            _ => None,
        };
        if let Some((dir, host)) = full {
            if host < 2 {
                lab.hosts[host].kill_coordinator()?;
            }
            mounted.push(Mount::new(dir)?);
            if host < 2 {
                lab.hosts[host].start_coordinator()?;
            }
        }
        let program = Program::guest("witness", 1_000_000)
            .arg(witness.to_string_lossy())
            .arg(case.processes.to_string())
            .arg(channels);
        let guest = lab.launch(&program)?;
        let trial = Self {
            lab,
            case,
            signs,
            witness,
            guest,
            originals: BTreeSet::new(),
            full: Vec::new(),
            mounted,
            stopped: Vec::new(),
        };
        Ok(trial)
    }

    fn run(&mut self) -> Result<Verdict> {
        // Each has taken a step.
        self.wait_step(self.case.processes + 3)?;
        self.originals = self.instances()?.iter().map(|process| process.pid).collect();
        ensure!(self.originals.len() == self.case.processes, "{:?}", self.originals);
        let target = self.lab.hosts[1].address();
        let log = fs::File::create(self.said())?;
        let mut command = self.lab.hosts[0].tool("ulpm_command");
        command.args(["--migrate", &target, &self.guest.name]).stdin(Stdio::null());
        let mut command = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        let done = self.disturb(&mut command);
        if done.is_err() {
            command.kill()?;
        }
        done?;
        self.repair()?;
        let ended = until("ulpm_command to end", DEADLINE, || Ok(command.try_wait()?));
        if ended.is_err() {
            command.kill()?;
            command.wait()?;
        }
        ended?;
        let outcome = self.settle()?;
        if outcome == Outcome::Source {
            self.no_image_is_left()?;
        }
        Ok(Verdict { outcome, still_ms: self.testimony()? })
    }

    /// What `ulpm_command` says.
    fn said(&self) -> PathBuf {
        self.lab.dir.join("said")
    }

    /// Makes the fault at its point, and waits until it has done what it can do.
    fn disturb(&mut self, command: &mut Child) -> Result {
        let point = POINTS[self.case.point];
        let reached = self.signs.join(format!("{point}.reached"));
        until(format!("the point {point}"), DEADLINE, || {
            if let Some(status) = command.try_wait()?
                && !reached.exists()
            {
                let said = fs::read_to_string(self.said())?;
                return Err(format!("{point} {NOT_REACHED}: {status}: {said}").into());
            }
            Ok(reached.exists().then_some(()))
        })?;
        if self.case.after.is_zero() {
            self.fault(command)?;
        }
        // Renamed into its place, so that nobody reads half of it.
        let half = self.signs.join("half");
        fs::write(&half, if self.case.fault == Fault::Eio { "EIO" } else { "" })?;
        fs::rename(half, self.signs.join(format!("{point}.go")))?;
        if !self.case.after.is_zero() {
            std::thread::sleep(self.case.after);
            self.fault(command)?;
        }
        // Nothing is waited for here: this is how long it lasts.
        match self.case.fault {
            _ if !self.case.hurried => std::thread::sleep(STAYS_UNHURRIED),
            Fault::StopSource if self.case.point >= 11 => std::thread::sleep(STAYS_LONG),
            Fault::StopSource
            | Fault::StopTarget
            | Fault::Cut
            | Fault::BlackHole
            | Fault::Slow
            | Fault::Far
            | Fault::Lossy => std::thread::sleep(STAYS),
            Fault::FullImages | Fault::FullSource | Fault::FullTarget => {
                let _ = until("ulpm_command to end", STAYS, || Ok(command.try_wait()?));
            }
            _ => {}
        }
        Ok(())
    }

    fn fault(&mut self, command: &mut Child) -> Result {
        let host = |index: usize| {
            self.lab.hosts[index].coordinator_pid().ok_or("no coordinator runs".to_owned())
        };
        let wire = || self.lab.wire.as_ref().ok_or("there is no wire".to_owned());
        match self.case.fault {
            Fault::KillSource => self.lab.hosts[0].kill_coordinator()?,
            Fault::KillTarget => self.lab.hosts[1].kill_coordinator()?,
            Fault::KillBoth => {
                self.lab.hosts[0].kill_coordinator()?;
                self.lab.hosts[1].kill_coordinator()?;
            }
            Fault::KillRestart => {
                let program = self.lab.bin.join("ulpm_restart");
                for process in self.of_lab(&program) {
                    kill_hard(process.pid);
                }
            }
            // The last: with several, not the one that the others live by.
            Fault::KillProcess => self.kill_one(self.originals.last().copied())?,
            Fault::KillCopy => {
                let copies = self.instances()?.into_iter().map(|process| process.pid);
                self.kill_one(copies.filter(|pid| !self.originals.contains(pid)).max())?;
            }
            Fault::KillCommand => command.kill()?,
            Fault::KillLaunch => kill_hard(self.guest.launcher_pid()),
            Fault::StopSource | Fault::StopTarget => {
                let pid = host(usize::from(self.case.fault == Fault::StopTarget))?;
                signal(pid, Signal::SIGSTOP);
                self.stopped.push(pid);
            }
            Fault::FullImages | Fault::FullSource | Fault::FullTarget => {
                for Mount(dir) in &self.mounted {
                    fill(dir)?;
                    self.full.push(dir.clone());
                }
            }
            Fault::Eio => {}
            Fault::Cut => wire()?.plug(false)?,
            Fault::BlackHole => wire()?.set("dead")?,
            Fault::Reset => wire()?.reset()?,
            Fault::Slow => wire()?.set("rate 1000000")?,
            Fault::Far => wire()?.set("delay 200")?,
            Fault::Lossy => wire()?.set("loss 5")?,
        }
        Ok(())
    }

    fn kill_one(&self, pid: Option<i32>) -> Result {
        let pid = pid.ok_or("there is no process that could be killed")?;
        kill_hard(pid);
        until("a process to be dead", DEADLINE, || Ok((!crate::is_alive(pid)).then_some(())))
    }

    /// Makes everything as it was: room on the disks, a good link, and a coordinator on each host.
    fn repair(&mut self) -> Result {
        for dir in self.full.drain(..) {
            resize(&dir, "1g")?;
        }
        for pid in self.stopped.drain(..) {
            signal(pid, Signal::SIGCONT);
        }
        match (self.case.fault, &self.lab.wire) {
            (Fault::Cut, Some(wire)) => wire.plug(true)?,
            (_, Some(wire)) => wire.set("ok")?,
            _ => {}
        }
        for host in &self.lab.hosts {
            if host.coordinator_pid().is_some() {
                continue;
            }
            host.set_faults(HASTE);
            // Whoever waits for the job may start another coordinator, which does not know where to listen.
            until(format!("a coordinator on host {}", host.name), DEADLINE, || {
                let stray = host.status().ok().and_then(|status| status["pid"].as_i64());
                if let Some(stray) = stray.and_then(|pid| i32::try_from(pid).ok()) {
                    kill_hard(stray);
                }
                // It is gone already.
                let _ = host.kill_coordinator();
                Ok(host.start_coordinator().ok())
            })?;
        }
        Ok(())
    }

    /// Living processes of a program in this lab.
    fn of_lab(&self, program: &Path) -> Vec<Process> {
        let program = program.to_string_lossy();
        let marker = format!("ULPM_TEST_LAB={}", self.lab.dir.display());
        let all = processes().into_iter().filter(|process| process.state != 'Z');
        // By its command line: without privileges the /proc/PID/exe of a restored program stays ulpm_restart.
        all.filter(|process| process.file("cmdline").starts_with(&*program))
            .filter(|process| process.file("environ").contains(&marker))
            .collect()
    }

    /// Living processes of the job, wherever they are.
    fn instances(&self) -> Result<Vec<Process>> {
        Ok(self.of_lab(&guest_path("witness")?))
    }

    /// Complete lines of the witness: number, who, process and time.
    fn lines(&self) -> Result<Vec<[i64; 4]>> {
        let text = fs::read_to_string(&self.witness).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let line = |line: &str| -> Result<[i64; 4]> {
            let fields: Vec<i64> =
                line.split(' ').map(str::parse).collect::<std::result::Result<_, _>>()?;
            <[i64; 4]>::try_from(fields).map_err(|_| format!("the witness says {line:?}").into())
        };
        whole.lines().map(line).collect()
    }

    fn wait_step(&self, count: usize) -> Result {
        until(format!("step {count}"), DEADLINE, || {
            ensure!(!self.guest.has_ended()?, "the job has ended: {}", self.guest.errors());
            Ok((self.lines()?.len() >= count).then_some(()))
        })
    }

    /// The hosts that list the job, and whether something is being done with it.
    fn listed(&self) -> Result<(Vec<usize>, bool)> {
        let mut hosts = Vec::new();
        let mut busy = false;
        for (index, host) in self.lab.hosts.iter().enumerate() {
            let status = host.status()?;
            for job in status["jobs"].as_array().into_iter().flatten() {
                hosts.push(index);
                busy |= job["state"] != "running";
            }
        }
        Ok((hosts, busy))
    }

    /// Whether the source waits for the target to say how the job ended there.
    fn is_in_doubt(&self) -> Result<bool> {
        let status = self.lab.hosts[0].status()?;
        Ok(status["moved"].as_array().is_some_and(|moved| !moved.is_empty()))
    }

    /// How many processes the job may have now.
    fn is_whole(&self, count: usize) -> bool {
        let all = self.case.processes;
        let may_lack = matches!(self.case.fault, Fault::KillProcess | Fault::KillCopy) && all > 1;
        count == all || may_lack && count + 1 == all
    }

    /// Whether a process that was killed was the whole job, and nothing else of it could be expected to go on.
    fn was_killed(&self) -> bool {
        let late = !self.case.after.is_zero();
        self.case.processes == 1
            && match self.case.fault {
                Fault::KillProcess => self.case.point < DECIDED,
                Fault::KillCopy => late || RELEASED.contains(&POINTS[self.case.point]),
                _ => false,
            }
    }

    /// Waits until it is clear where the job is, and stays so.
    fn settle(&self) -> Result<Outcome> {
        let began = Instant::now();
        let mut last = (Vec::new(), Vec::new());
        let (mut rounds, mut steps) = (0, 0);
        until(format!("the job to be somewhere after {}", self.case), DEADLINE, || {
            let found: Vec<i32> = self.instances()?.iter().map(|process| process.pid).collect();
            let (hosts, busy) = self.listed()?;
            let now = (found, hosts);
            if now != last || busy {
                (last, rounds, steps) = (now, 0, self.lines()?.len());
                return Ok(None);
            }
            rounds += 1;
            let (found, hosts) = &now;
            if found.is_empty() && hosts.is_empty() {
                // Somebody may start it still.
                if rounds < 20 || self.is_in_doubt()? && began.elapsed() < DEADLINE / 2 {
                    return Ok(None);
                }
                return if self.was_killed() {
                    Ok(Some(Outcome::Killed))
                } else {
                    self.start_as_told().map(Some)
                };
            }
            let goes_on = self.lines()?.len() > steps + self.case.processes.min(8) + 2;
            let [host] = hosts[..] else { return Ok(None) };
            let there = if host == 0 { Outcome::Source } else { Outcome::Target };
            Ok((rounds > 12 && goes_on && self.is_whole(found.len())).then_some(there))
        })
        .map_err(|error| {
            let found = self.instances().map(|all| all.len());
            format!("{error}: {found:?} processes, {:?}", self.listed()).into()
        })
    }

    /// Waits until the target has nothing of a job that goes on where it was, which somebody could start once more.
    fn no_image_is_left(&self) -> Result {
        let arrived = self.lab.hosts[1].state_dir.join("arrived");
        until("the target to hear that it does not need its image", DEADLINE, || {
            let logged = fs::read_dir(&arrived)?.flatten();
            Ok((logged.filter(|entry| entry.path().extension() == Some("json".as_ref())).count()
                == 0)
                .then_some(()))
        })
    }

    /// Does what a person was told to do who asked where the job is.
    fn start_as_told(&self) -> Result<Outcome> {
        let said = fs::read_to_string(self.said()).unwrap_or_default();
        let heard = [said, self.guest.errors(), self.lab.hosts[1].log(), self.lab.hosts[0].log()];
        let mut commands = heard.iter().flat_map(|text| text.lines()).filter_map(|line| {
            let (_, rest) = line.split_once(" with: ulpm_restart ")?;
            rest.split_whitespace().next().map(PathBuf::from)
        });
        let Some(image) = commands.next_back() else {
            return Err("the job runs nowhere, and nobody was told of an image".into());
        };
        println!("the job runs nowhere; ulpm_restart {} was told", image.display());
        let before = self.lines()?.len();
        let twin = self.lab.restart_on(1, &self.guest, &image)?;
        let went_on = until("the restarted job to go on", DEADLINE, || {
            ensure!(!twin.has_ended()?, "what was told does not work: {}", twin.errors());
            Ok((self.lines()?.len() > before + self.case.processes + 3).then_some(()))
        });
        for process in self.instances()? {
            kill_hard(process.pid);
        }
        twin.finish()?;
        went_on.map(|()| Outcome::Image)
    }

    /// Whether every number stands there once, in order; returns the longest time between two, in milliseconds.
    fn testimony(&self) -> Result<u64> {
        let lines = self.lines()?;
        let dies = matches!(self.case.fault, Fault::KillProcess | Fault::KillCopy);
        let mut missing = 0;
        let mut still = 0;
        for pair in lines.windows(2) {
            let ([last, _, _, then], [next, who, pid, now]) = (pair[0], pair[1]);
            ensure!(next > last, "doubled: {next} after {last}, by {who}, process {pid}");
            missing += next - last - 1;
            still = still.max(now - then);
        }
        // Whoever was killed may have been about to write, and writes none of its numbers after that.
        let each = i64::try_from(self.case.processes)?;
        let lost = lines.windows(2).any(|pair| pair[1][0] - pair[0][0] > 2);
        ensure!(missing == 0 || dies && each > 1 && !lost, "lost: {missing} numbers are missing");
        Ok(u64::try_from(still)?)
    }

    /// Ends the job.
    fn end(&mut self) -> Result {
        until("the job to be forgotten", DEADLINE, || {
            for process in self.instances()? {
                kill_hard(process.pid);
            }
            let (hosts, _) = self.listed()?;
            Ok((hosts.is_empty() && self.guest.has_ended()?).then_some(()))
        })?;
        for host in &self.lab.hosts {
            host.quit_coordinator()?;
        }
        self.mounted.clear();
        Ok(())
    }
}

/// A file system of its own in a lab, for as long as this lives.
struct Mount(PathBuf);

impl Mount {
    fn new(dir: PathBuf) -> Result<Self> {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1g,mode=700", "none"])
            .arg(&dir)
            .status()?;
        ensure!(status.success(), "cannot mount a tmpfs: {status}");
        Ok(Self(dir))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // It goes as soon as nobody uses it.
        let status = Command::new("umount").arg("-l").arg(&self.0).status();
        if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
            println!("cannot unmount {}: {status:?}", self.0.display());
        }
    }
}

fn signal(pid: i32, signal: Signal) {
    // If it is gone, that is seen later.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
}

/// Leaves no room in a tmpfs.
fn fill(dir: &Path) -> Result {
    let mut spare = 0;
    until(format!("{} to be full", dir.display()), DEADLINE, || {
        let stat = nix::sys::statvfs::statvfs(dir)?;
        let used = (stat.blocks() - stat.blocks_free()) * stat.fragment_size();
        // It cannot become smaller than what is in it, which may grow meanwhile.
        let done = resize(dir, &(used.max(4096) + spare).to_string()).is_ok();
        spare += 4096;
        Ok(done.then_some(()))
    })
}

fn resize(dir: &Path, size: &str) -> Result {
    let option = format!("remount,size={size}");
    let output = Command::new("mount").args(["-o", &option]).arg(dir).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
