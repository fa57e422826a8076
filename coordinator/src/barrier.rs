//! Waiting for every process of a job: the freeze, and the capture.
//!
//! Both are state machines: what was seen, what was said and the time go in, and what is to be done comes
//! out. The driver is in `job.rs`.
//!
//! ```text
//!              ┌──────────── manager lost (exec) ────────────┐
//!              ▼                                             │
//!  seen ─▶ Unreached ── Live: Wake ─▶ Woken ── connected ─▶ Asked ── frozen ─▶ Frozen
//!              └──────────────── connected: Freeze ──────────▲
//! ```
//!
//! A freeze is complete when every member is frozen in a scan that began after the last of them froze, and
//! that scan found nobody new. Frozen members cannot fork, so nobody can come after that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

/// The kernel's process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(pub i32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A member in a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which process.
    pub pid: Pid,
    /// Its parent, a member or not.
    pub parent: Pid,
    /// Its slot is `Live`: it runs our code, and may be sent the freeze signal.
    pub live: bool,
    /// It was stopped by a signal.
    pub stopped: bool,
    /// Its manager is connected.
    pub connected: bool,
    /// It is to run on for a moment when all others stand still: there is something that it has to do before it can be saved.
    pub last: bool,
}

/// A living child of a member that is no member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stranger {
    /// Which process.
    pub pid: Pid,
    /// Its parent, a member.
    pub parent: Pid,
}

/// The job at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Members that live.
    pub members: Vec<Seen>,
    /// Their children that are not under ULPM; `None` if nobody looked.
    pub strangers: Option<Vec<Stranger>>,
}

/// What the driver has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send the freeze signal, so that a manager starts.
    Wake(Pid),
    /// Send the freeze signal to every user thread, and then SIGCONT; after the thaw, the process is to be
    /// stopped again.
    WakeStopped(Pid),
    /// Send SIGCONT to a process that was stopped when it was frozen already; after the thaw, it is to be stopped
    /// again.
    Continue(Pid),
    /// Send `Freeze` to the manager.
    Freeze(Pid),
    /// Have the manager of a frozen process take note of its children that are stopped, and say `Frozen` again.
    Note(Pid),
}

/// What the driver waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Scan now, and give the result to [`Freeze::scanned`].
    Scan {
        /// With children that are no members: this scan may complete the freeze.
        children: bool,
    },
    /// Wait for an event, and scan at the given time.
    Wait(Instant),
    /// Every process of the job is frozen.
    Done,
    /// The time is up.
    TimedOut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It cannot be told yet: between execve and our constructor.
    Unreached,
    /// The signal is on its way; its manager will connect.
    Woken,
    /// It was told.
    Asked,
    /// It stands still.
    Frozen,
    /// It stands still, and takes note of its children that are stopped.
    Noting,
}

/// Who is missing when the time is up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// They did not stop.
    pub running: BTreeSet<Pid>,
    /// They are not under ULPM.
    pub strangers: BTreeSet<Stranger>,
    /// They have executed something that does not load our library.
    pub silent: BTreeSet<Pid>,
}

/// Shortest time between two scans while something happens that nobody tells: a process executes
/// something, or a stranger ends.
const SCAN_SOONEST: Duration = Duration::from_millis(1);
/// Shortest time while managers start, who will tell; only if their process ends instead nobody tells.
const SCAN_WOKEN: Duration = Duration::from_millis(5);
/// Shortest time while all have been told: only that one is stopped by a signal is to be found.
const SCAN_ASKED: Duration = Duration::from_millis(20);
/// Longest time between two scans.
const SCAN_LATEST: Duration = Duration::from_millis(50);

/// How long those who are frozen last run on alone: enough to accept what waits in a listener.
const ALONE: Duration = Duration::from_millis(20);

/// The freeze of a job.
#[derive(Debug)]
pub struct Freeze {
    members: BTreeMap<Pid, Phase>,
    strangers: BTreeSet<Stranger>,
    /// Something froze or came since the last scan began.
    dirty: bool,
    looked: bool,
    /// Somebody who is stopped, or is to be frozen last, waits until all others are frozen.
    deferred: bool,
    /// Who has taken note of the children that are stopped.
    noted: BTreeSet<Pid>,
    /// The last scan asked for nothing, and nobody has said anything since.
    idle: bool,
    /// Until when those who are frozen last run on, once the others are frozen.
    alone: Option<Instant>,
    deadline: Instant,
    next_scan: Instant,
    pause: Duration,
}

impl Freeze {
    /// Begins to freeze; [`Freeze::step`] asks for the first scan.
    #[must_use]
    pub fn new(now: Instant, timeout: Duration) -> Self {
        Self {
            members: BTreeMap::new(),
            strangers: BTreeSet::new(),
            dirty: true,
            looked: false,
            deferred: false,
            noted: BTreeSet::new(),
            idle: false,
            alone: None,
            deadline: now + timeout,
            next_scan: now,
            pause: SCAN_SOONEST,
        }
    }

    /// What to wait for.
    #[must_use]
    pub fn step(&self, now: Instant) -> Step {
        let all_frozen = self.members.values().all(|&phase| phase == Phase::Frozen);
        if all_frozen && !self.dirty && self.strangers.is_empty() {
            return Step::Done;
        }
        if now >= self.deadline {
            return Step::TimedOut;
        }
        let comes = |phase| matches!(phase, Phase::Woken | Phase::Asked | Phase::Noting);
        let alone = self.alone.is_some_and(|until| now < until);
        let turn = self.deferred && !self.idle && !self.any(comes) && !alone;
        if (all_frozen && self.dirty) || turn || now >= self.next_scan {
            // The first scan cannot complete anything.
            return Step::Scan { children: all_frozen && self.looked };
        }
        Step::Wait(self.next_scan.min(self.deadline))
    }

    /// Takes a scan that began after all events which were given before.
    pub fn scanned(&mut self, scan: &Scan, began: Instant, now: Instant) -> Vec<Action> {
        self.looked = true;
        match &scan.strangers {
            Some(strangers) => {
                self.dirty = false;
                self.strangers = strangers.iter().copied().collect();
            }
            // Who is left may all be frozen now, but that does not complete the freeze.
            None => self.dirty = true,
        }
        let alive: BTreeSet<Pid> = scan.members.iter().map(|seen| seen.pid).collect();
        self.members.retain(|pid, _| alive.contains(pid));
        let mut actions = Vec::new();
        let mut silent = Vec::new();
        // Those who are stopped have to be continued to be frozen, or to be saved, which no parent is to see. So nobody
        // of the others runs then, who could continue them, or stop them once more, between that and a parent's note.
        let runs = |seen: &&Seen| !seen.stopped && !self.stands(seen.pid);
        let others_run = scan.members.iter().any(|seen| runs(&seen));
        let rest_runs = scan.members.iter().any(|seen| !seen.last && runs(&seen));
        if others_run && !rest_runs {
            self.alone.get_or_insert(now + ALONE);
        }
        let last_run = rest_runs || self.alone.is_some_and(|until| now < until);
        let stopped: BTreeSet<Pid> =
            scan.members.iter().filter(|seen| seen.stopped).map(|seen| seen.pid).collect();
        self.deferred = false;
        for seen in &scan.members {
            let waits = if seen.stopped {
                others_run || !self.may_continue(seen, &stopped, &mut actions)
            } else {
                seen.last && last_run && !self.stands(seen.pid)
            };
            if waits {
                self.members.entry(seen.pid).or_insert(Phase::Unreached);
                self.deferred = true;
                continue;
            }
            if self.members.get(&seen.pid) == Some(&Phase::Woken) && seen.live && !seen.stopped {
                silent.push(Action::Wake(seen.pid));
            }
            let phase = self.members.entry(seen.pid).or_insert(Phase::Unreached);
            *phase = reach(*phase, seen, &mut actions);
        }
        // There will be another look, and more to do.
        self.dirty |= self.deferred;
        let floor = if !self.strangers.is_empty() || self.any(|phase| phase == Phase::Unreached) {
            SCAN_SOONEST
        } else if self.any(|phase| phase == Phase::Woken) {
            SCAN_WOKEN
        } else {
            SCAN_ASKED
        };
        self.pause =
            if actions.is_empty() { (self.pause * 2).clamp(floor, SCAN_LATEST) } else { floor };
        self.idle = actions.is_empty();
        // The signal may have come at the moment at which glibc installed a handler of its own.
        actions.append(&mut silent);
        // A scan of a big job takes long: leave it at least as much time to get somewhere.
        self.next_scan = now + self.pause.max(now.saturating_duration_since(began) * 2);
        if let Some(until) = self.alone.filter(|&until| now < until) {
            self.next_scan = self.next_scan.min(until);
        }
        actions
    }

    /// Whether a process is frozen and stays so.
    fn stands(&self, pid: Pid) -> bool {
        matches!(self.members.get(&pid), Some(Phase::Frozen | Phase::Noting))
    }

    /// Whether a process that is stopped can be continued without its parent seeing it. Has the parent take note of it,
    /// where it can; one that is stopped too has to be continued before.
    fn may_continue(
        &mut self,
        child: &Seen,
        stopped: &BTreeSet<Pid>,
        actions: &mut Vec<Action>,
    ) -> bool {
        let parent = child.parent;
        match self.members.get(&parent) {
            None => true,
            Some(_) if stopped.contains(&parent) => false,
            Some(Phase::Frozen) if self.noted.insert(parent) => {
                self.members.insert(parent, Phase::Noting);
                actions.push(Action::Note(parent));
                false
            }
            Some(phase) => *phase == Phase::Frozen,
        }
    }

    /// A manager has said `Hello`.
    pub fn connected(&mut self, pid: Pid) -> Vec<Action> {
        self.noted.remove(&pid);
        // Whatever it was: its connection may have broken, and it is back before that was heard of.
        self.members.insert(pid, Phase::Asked);
        vec![Action::Freeze(pid)]
    }

    /// A manager has said `Frozen`.
    pub fn frozen(&mut self, pid: Pid) {
        if let Some(phase) = self.members.get_mut(&pid) {
            *phase = Phase::Frozen;
            self.dirty = true;
            self.idle = false;
        }
    }

    /// A connection broke: the process ended, or executes something.
    pub fn lost(&mut self, pid: Pid, now: Instant) {
        if let Some(phase) = self.members.get_mut(&pid) {
            *phase = Phase::Unreached;
            self.next_scan = now;
            self.pause = SCAN_SOONEST;
            self.dirty = true;
            self.idle = false;
        }
    }

    fn any(&self, is: impl Fn(Phase) -> bool) -> bool {
        self.members.values().any(|&phase| is(phase))
    }

    /// Those who are frozen.
    #[must_use]
    pub fn members(&self) -> BTreeSet<Pid> {
        self.members
            .iter()
            .filter(|&(_, &phase)| phase == Phase::Frozen)
            .map(|(&pid, _)| pid)
            .collect()
    }

    /// Those who are waited for.
    #[must_use]
    pub fn missing(&self) -> Missing {
        let mut missing = Missing { strangers: self.strangers.clone(), ..Missing::default() };
        for (&pid, &phase) in &self.members {
            match phase {
                Phase::Frozen => {}
                Phase::Unreached => {
                    missing.silent.insert(pid);
                }
                Phase::Woken | Phase::Asked | Phase::Noting => {
                    missing.running.insert(pid);
                }
            }
        }
        missing
    }
}

fn reach(phase: Phase, seen: &Seen, actions: &mut Vec<Action>) -> Phase {
    let &Seen { pid, live, stopped, connected, .. } = seen;
    match phase {
        Phase::Unreached if connected => {
            if stopped {
                actions.push(Action::WakeStopped(pid));
            }
            actions.push(Action::Freeze(pid));
            Phase::Asked
        }
        Phase::Unreached if live => {
            actions.push(if stopped { Action::WakeStopped(pid) } else { Action::Wake(pid) });
            Phase::Woken
        }
        // It was stopped before the signal or our message reached it.
        Phase::Woken | Phase::Asked if stopped => {
            actions.push(Action::WakeStopped(pid));
            phase
        }
        // It was stopped by one that was not frozen yet.
        Phase::Frozen if stopped => {
            actions.push(Action::Continue(pid));
            phase
        }
        other => other,
    }
}

/// What one process does in a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saving {
    /// It stands still and is being read.
    Capturing,
    /// Its image's content is fixed.
    Snapped,
    /// Its image is complete.
    Written(u64),
}

/// Where a capture stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Captured {
    /// Some are being read.
    Capturing,
    /// All contents are fixed: thaw.
    Snapped,
    /// All images are complete; with HOLD, this is the time to thaw.
    Written {
        /// Bytes of all images.
        bytes: u64,
    },
}

/// The capture of a job.
#[derive(Debug)]
pub struct Capture {
    members: BTreeMap<Pid, Saving>,
}

/// Something that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("process {0} has reported what it was not asked for")]
pub struct Unexpected(pub Pid);

impl Capture {
    /// Begins a capture of `members`, which are frozen.
    #[must_use]
    pub fn new(members: &BTreeSet<Pid>) -> Self {
        Self { members: members.iter().map(|&pid| (pid, Saving::Capturing)).collect() }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> Captured {
        let mut sum: u64 = 0;
        let mut state = Captured::Written { bytes: 0 };
        for saving in self.members.values() {
            match saving {
                Saving::Capturing => return Captured::Capturing,
                Saving::Snapped => state = Captured::Snapped,
                Saving::Written(bytes) => sum = sum.saturating_add(*bytes),
            }
        }
        if state == Captured::Snapped { state } else { Captured::Written { bytes: sum } }
    }

    /// A manager has said `Snapped`.
    ///
    /// # Errors
    ///
    /// [`Unexpected`]: nothing has changed.
    pub fn snapped(&mut self, pid: Pid) -> Result<Captured, Unexpected> {
        self.advance(pid, Saving::Snapped)
    }

    /// A manager has said `Written`, which implies `Snapped`.
    ///
    /// # Errors
    ///
    /// [`Unexpected`]: nothing has changed.
    pub fn written(&mut self, pid: Pid, bytes: u64) -> Result<Captured, Unexpected> {
        self.advance(pid, Saving::Written(bytes))
    }

    /// Whether the image of this process is not complete, so that its end matters.
    #[must_use]
    pub fn needs(&self, pid: Pid) -> bool {
        matches!(self.members.get(&pid), Some(Saving::Capturing | Saving::Snapped))
    }

    /// Bytes of the image of a process, once complete.
    #[must_use]
    pub fn bytes_of(&self, pid: Pid) -> Option<u64> {
        match self.members.get(&pid) {
            Some(Saving::Written(bytes)) => Some(*bytes),
            _ => None,
        }
    }

    fn advance(&mut self, pid: Pid, to: Saving) -> Result<Captured, Unexpected> {
        let saving = self.members.get_mut(&pid).ok_or(Unexpected(pid))?;
        match (*saving, to) {
            (Saving::Capturing, _) | (Saving::Snapped, Saving::Written(_)) => *saving = to,
            // The copy that writes the image of a small process may be quicker than its manager.
            (Saving::Written(_), Saving::Snapped) => {}
            _ => return Err(Unexpected(pid)),
        }
        Ok(self.state())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn seen(pid: i32) -> Seen {
        let [stopped, connected, last] = [false; 3];
        Seen { pid: Pid(pid), parent: Pid(0), live: true, stopped, connected, last }
    }

    fn scan(members: &[Seen]) -> Scan {
        Scan { members: members.to_vec(), strangers: Some(Vec::new()) }
    }

    fn freeze() -> (Freeze, Instant) {
        let now = Instant::now();
        (Freeze::new(now, TIMEOUT), now)
    }

    #[test]
    fn a_connected_process_is_told_and_a_silent_one_is_woken_first() {
        let (mut freeze, now) = freeze();
        assert!(matches!(freeze.step(now), Step::Scan { .. }));
        let both = scan(&[Seen { connected: true, ..seen(1) }, seen(2)]);
        let actions = freeze.scanned(&both, now, now);
        assert_eq!(actions, [Action::Freeze(Pid(1)), Action::Wake(Pid(2))]);
        let actions = freeze.connected(Pid(2));
        assert_eq!(actions, [Action::Freeze(Pid(2))]);
        freeze.frozen(Pid(1));
        assert!(matches!(freeze.step(now), Step::Wait(_)));
        freeze.frozen(Pid(2));
        assert_eq!(
            freeze.step(now),
            Step::Scan { children: true },
            "a child may have come before the last one froze"
        );
        assert!(freeze.scanned(&both, now, now).is_empty());
        assert_eq!(freeze.step(now), Step::Done);
        assert_eq!(freeze.members(), BTreeSet::from([Pid(1), Pid(2)]));
    }

    #[test]
    fn a_child_that_appears_late_is_frozen_too() {
        let (mut freeze, now) = freeze();
        freeze.scanned(&scan(&[seen(1)]), now, now);
        freeze.connected(Pid(1));
        freeze.frozen(Pid(1));
        let actions = freeze.scanned(&scan(&[seen(1), seen(2)]), now, now);
        assert_eq!(actions, [Action::Wake(Pid(2))]);
        assert!(matches!(freeze.step(now), Step::Wait(_)));
    }

    #[test]
    fn who_is_stopped_is_frozen_when_all_others_are() {
        let (mut freeze, now) = freeze();
        let both = scan(&[
            Seen { connected: true, ..seen(1) },
            Seen { connected: true, stopped: true, ..seen(2) },
        ]);
        assert_eq!(freeze.scanned(&both, now, now), [Action::Freeze(Pid(1))]);
        assert!(matches!(freeze.step(now), Step::Wait(_)));
        freeze.frozen(Pid(1));
        assert!(matches!(freeze.step(now), Step::Scan { .. }), "its turn has come");
        let actions = freeze.scanned(&both, now, now);
        assert_eq!(actions, [Action::WakeStopped(Pid(2)), Action::Freeze(Pid(2))]);
        freeze.frozen(Pid(2));
        freeze.scanned(&both, now, now);
        assert_eq!(freeze.step(now), Step::Done);
    }

    #[test]
    fn who_stops_when_it_was_told_is_continued_when_all_others_are_frozen() {
        let (mut freeze, now) = freeze();
        let one = Seen { connected: true, ..seen(1) };
        let other = Seen { connected: true, ..seen(2) };
        freeze.scanned(&scan(&[one, other]), now, now);
        let stops = scan(&[one, Seen { stopped: true, ..other }]);
        assert_eq!(freeze.scanned(&stops, now, now), []);
        freeze.frozen(Pid(1));
        assert_eq!(freeze.scanned(&stops, now, now), [Action::WakeStopped(Pid(2))]);
    }

    #[test]
    fn who_is_stopped_when_it_was_frozen_is_continued_when_all_others_are_frozen() {
        let (mut freeze, now) = freeze();
        let one = Seen { connected: true, ..seen(1) };
        let other = Seen { connected: true, parent: Pid(1), ..seen(2) };
        let third = Seen { connected: true, ..seen(3) };
        freeze.scanned(&scan(&[one, other, third]), now, now);
        freeze.frozen(Pid(1));
        freeze.frozen(Pid(2));
        let stops = scan(&[one, Seen { stopped: true, ..other }, third]);
        assert_eq!(freeze.scanned(&stops, now, now), [], "the third may do something yet");
        freeze.frozen(Pid(3));
        assert!(matches!(freeze.step(now), Step::Scan { children: true }));
        assert_eq!(freeze.scanned(&stops, now, now), [Action::Note(Pid(1))]);
        assert!(matches!(freeze.step(now), Step::Wait(_)));
        freeze.frozen(Pid(1));
        assert!(matches!(freeze.step(now), Step::Scan { children: true }));
        assert_eq!(freeze.scanned(&stops, now, now), [Action::Continue(Pid(2))]);
        assert_eq!(freeze.step(now), Step::Done);
    }

    #[test]
    fn of_stopped_processes_the_parent_is_frozen_first_and_notes_its_children() {
        let (mut freeze, now) = freeze();
        let parent = Seen { connected: true, stopped: true, ..seen(1) };
        let child = Seen { connected: true, stopped: true, parent: Pid(1), ..seen(2) };
        let actions = freeze.scanned(&scan(&[parent, child]), now, now);
        assert_eq!(actions, [Action::WakeStopped(Pid(1)), Action::Freeze(Pid(1))]);
        freeze.frozen(Pid(1));
        let parent = Seen { stopped: false, ..parent };
        let both = scan(&[parent, child]);
        assert!(matches!(freeze.step(now), Step::Scan { .. }));
        assert_eq!(freeze.scanned(&both, now, now), [Action::Note(Pid(1))]);
        freeze.frozen(Pid(1));
        let actions = freeze.scanned(&both, now, now);
        assert_eq!(actions, [Action::WakeStopped(Pid(2)), Action::Freeze(Pid(2))]);
    }

    #[test]
    fn who_has_something_to_do_runs_on_for_a_moment_when_all_others_are_frozen() {
        let (mut freeze, now) = freeze();
        let members = scan(&[
            Seen { connected: true, ..seen(1) },
            Seen { connected: true, last: true, ..seen(2) },
        ]);
        assert_eq!(freeze.scanned(&members, now, now), [Action::Freeze(Pid(1))]);
        freeze.frozen(Pid(1));
        assert!(matches!(freeze.step(now), Step::Scan { .. }), "its moment begins");
        assert_eq!(freeze.scanned(&members, now, now), []);
        let Step::Wait(until) = freeze.step(now) else { panic!("it has no moment") };
        assert!(until <= now + ALONE);
        assert_eq!(freeze.scanned(&members, now, now + ALONE), [Action::Freeze(Pid(2))]);
        freeze.frozen(Pid(2));
        freeze.scanned(&members, now, now + ALONE);
        assert_eq!(freeze.step(now + ALONE), Step::Done);
    }

    #[test]
    fn a_process_that_ends_is_not_waited_for() {
        let (mut freeze, now) = freeze();
        freeze.scanned(&scan(&[seen(1), seen(2)]), now, now);
        freeze.connected(Pid(1));
        freeze.frozen(Pid(1));
        freeze.lost(Pid(2), now);
        freeze.scanned(&scan(&[Seen { connected: true, ..seen(1) }]), now, now);
        assert_eq!(freeze.step(now), Step::Done);
    }

    #[test]
    fn a_scan_without_children_completes_nothing() {
        let (mut freeze, now) = freeze();
        freeze.scanned(&scan(&[seen(1), seen(2)]), now, now);
        freeze.connected(Pid(1));
        freeze.frozen(Pid(1));
        let quick = Scan { members: vec![seen(1)], strangers: None };
        freeze.scanned(&quick, now, now);
        assert_eq!(freeze.step(now), Step::Scan { children: true });
    }

    #[test]
    fn a_process_that_executes_is_not_signalled_and_frozen_when_it_is_back() {
        let (mut freeze, now) = freeze();
        let connected = Seen { connected: true, ..seen(1) };
        freeze.scanned(&scan(&[connected]), now, now);
        freeze.lost(Pid(1), now);
        let exec = Seen { live: false, ..seen(1) };
        assert!(freeze.scanned(&scan(&[exec]), now, now).is_empty());
        assert_eq!(freeze.missing().silent, BTreeSet::from([Pid(1)]));
        assert_eq!(freeze.connected(Pid(1)), [Action::Freeze(Pid(1))]);
    }

    #[test]
    fn a_stopped_process_is_woken() {
        let (mut freeze, now) = freeze();
        let stopped = Seen { stopped: true, ..seen(1) };
        let actions = freeze.scanned(&scan(&[stopped]), now, now);
        assert_eq!(actions, [Action::WakeStopped(Pid(1))]);
        let actions = freeze.connected(Pid(1));
        assert_eq!(actions, [Action::Freeze(Pid(1))]);
        let late = Seen { connected: true, ..seen(2) };
        freeze.scanned(&scan(&[stopped, late]), now, now);
        let late = Seen { stopped: true, ..late };
        let actions = freeze.scanned(&scan(&[late]), now, now);
        assert_eq!(actions, [Action::WakeStopped(Pid(2))], "it was stopped after it was told");
    }

    #[test]
    fn a_stranger_is_waited_for_until_the_deadline_and_then_named() {
        let (mut freeze, now) = freeze();
        let stranger = Stranger { pid: Pid(9), parent: Pid(1) };
        let mut with = scan(&[seen(1)]);
        freeze.scanned(&with, now, now);
        freeze.connected(Pid(1));
        freeze.frozen(Pid(1));
        with.strangers = Some(vec![stranger]);
        freeze.scanned(&with, now, now);
        assert!(matches!(freeze.step(now), Step::Wait(_)));
        assert_eq!(freeze.step(now + TIMEOUT), Step::TimedOut);
        assert_eq!(freeze.missing().strangers, BTreeSet::from([stranger]));
        with.strangers = Some(Vec::new());
        freeze.scanned(&with, now, now);
        assert_eq!(freeze.step(now), Step::Done, "it has ended");
    }

    #[test]
    fn scans_become_rarer_while_nothing_happens() {
        let (mut freeze, mut now) = freeze();
        let all = scan(&[seen(1)]);
        freeze.scanned(&all, now, now);
        let mut last = Duration::ZERO;
        for _ in 0..8 {
            let Step::Wait(until) = freeze.step(now) else { panic!("nothing has happened") };
            assert!(until - now >= last);
            last = until - now;
            now = until;
            freeze.scanned(&all, now, now);
        }
        assert_eq!(last, SCAN_LATEST);
    }

    #[test]
    fn a_capture_thaws_when_all_have_snapped_and_ends_when_all_are_written() {
        let mut capture = Capture::new(&BTreeSet::from([Pid(1), Pid(2)]));
        assert_eq!(capture.snapped(Pid(1)), Ok(Captured::Capturing));
        assert_eq!(capture.snapped(Pid(1)), Err(Unexpected(Pid(1))));
        assert_eq!(capture.written(Pid(1), 5), Ok(Captured::Capturing));
        assert_eq!(capture.written(Pid(1), 5), Err(Unexpected(Pid(1))));
        assert_eq!(capture.snapped(Pid(3)), Err(Unexpected(Pid(3))));
        assert_eq!(capture.snapped(Pid(2)), Ok(Captured::Snapped));
        assert!(capture.needs(Pid(2)) && !capture.needs(Pid(1)));
        assert_eq!(capture.written(Pid(2), 7), Ok(Captured::Written { bytes: 12 }));
    }

    #[test]
    fn a_copy_may_have_written_before_its_manager_says_that_it_works() {
        let mut capture = Capture::new(&BTreeSet::from([Pid(1), Pid(2)]));
        assert_eq!(capture.written(Pid(1), 5), Ok(Captured::Capturing));
        assert_eq!(capture.snapped(Pid(1)), Ok(Captured::Capturing));
        assert_eq!(capture.bytes_of(Pid(1)), Some(5));
        assert_eq!(capture.snapped(Pid(2)), Ok(Captured::Snapped));
    }

    #[test]
    fn a_held_capture_goes_straight_to_written() {
        let mut capture = Capture::new(&BTreeSet::from([Pid(1)]));
        assert_eq!(capture.written(Pid(1), 5), Ok(Captured::Written { bytes: 5 }));
        assert_eq!(capture.bytes_of(Pid(1)), Some(5));
    }
}
