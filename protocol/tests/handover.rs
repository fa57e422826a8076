//! Every order of messages, losses, repetitions and crashes of one hand-over.
//!
//! Around the two state machines stands a model of what they act upon: processes, job tables, records and
//! images, of which a coordinator's crash and a machine's leave different parts, and a network that loses,
//! delays and repeats what it likes.

use std::collections::BTreeSet;

use stateright::{Checker, Model, Property};
use ulpm_protocol::handover::{
    Log, Message, Source, SourceAction, SourceEvent, Target, TargetAction, TargetEvent, Word,
};

/// What the processes of a job on one host do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Processes {
    None,
    /// They stand still, on the source, or wait, on the target.
    Held,
    Run,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SourceHost {
    /// None: the coordinator is dead.
    machine: Option<Source>,
    doing: Option<SourceAction>,
    /// The connection broke, which it has not been told yet.
    lost: bool,
    /// It wants a connection.
    connecting: bool,
    processes: Processes,
    word: Word,
    record: bool,
    /// The machine was gone.
    crashed: bool,
    /// The job was let go on after it had been stopped.
    went_on: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TargetHost {
    machine: Option<Target>,
    doing: Option<TargetAction>,
    lost: bool,
    processes: Processes,
    word: Word,
    log: Log,
    /// A complete image; durable once that is logged.
    image: bool,
    crashed: bool,
    ran: bool,
    /// It asks for the decision now and then.
    asking: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    source: SourceHost,
    target: TargetHost,
    to_source: BTreeSet<Message>,
    to_target: BTreeSet<Message>,
    left: Faults,
}

/// How many faults there may still be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Faults {
    crashes: u8,
    losses: u8,
    repeats: u8,
    /// Things that cannot be done: a full disk, a process that cannot be stopped.
    refusals: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    ToSource(Message, Delivery),
    ToTarget(Message, Delivery),
    /// What is being done is done, or cannot be.
    SourceDoes {
        well: bool,
    },
    TargetDoes {
        well: bool,
    },
    SourceHearsOfLoss,
    TargetHearsOfLoss,
    SourceIsLate,
    TargetIsLate,
    SourceConnects,
    TargetAsks,
    SourceProcessDies,
    TargetProcessDies,
    SourceCrashes(Crash),
    TargetCrashes(Crash),
    SourceRecovers,
    TargetRecovers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Delivery {
    Arrives,
    /// And is on its way once more.
    ArrivesAndRepeats,
    IsLost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Crash {
    /// Not only the coordinator.
    machine: bool,
    /// What was being made durable is.
    done: bool,
}

const CRASHES: [Crash; 4] = [
    Crash { machine: false, done: false },
    Crash { machine: false, done: true },
    Crash { machine: true, done: false },
    Crash { machine: true, done: true },
];

/// A fault of the protocol itself, planted to see that the explorer finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// The target is told before the decision is recorded.
    CommitFirst,
    /// The target gives its image up when the source does not answer.
    ImpatientTarget,
    /// The source ends its processes when the target is prepared.
    EagerSource,
    /// The target takes the job without logging that.
    UnloggedRelease,
}

struct HandOver {
    flaw: Flaw,
    faults: Faults,
}

impl World {
    fn source_acts(&mut self, actions: &[SourceAction], flaw: Flaw) {
        let mut actions = actions.to_vec();
        if actions == [SourceAction::Record] {
            match flaw {
                Flaw::CommitFirst => actions.insert(0, SourceAction::Send(Message::Commit)),
                Flaw::EagerSource => actions.insert(0, SourceAction::End),
                _ => {}
            }
        }
        for action in actions {
            let host = &mut self.source;
            match action {
                SourceAction::Send(message) => {
                    self.to_target.insert(message);
                }
                SourceAction::Freeze | SourceAction::Capture | SourceAction::Record => {
                    host.doing = Some(action);
                }
                SourceAction::Forget => host.record = false,
                SourceAction::Decide => host.word = Word::Decided,
                SourceAction::End => host.processes = Processes::None,
                SourceAction::Thaw => {
                    // Whatever was being done for the hand-over is given up.
                    host.doing = None;
                    host.thaw();
                }
                SourceAction::Connect => host.connecting = true,
            }
        }
    }

    fn target_acts(&mut self, actions: &[TargetAction], flaw: Flaw) {
        let mut actions = actions.to_vec();
        if flaw == Flaw::ImpatientTarget
            && actions.starts_with(&[TargetAction::EndCopy, TargetAction::Tell])
        {
            actions = vec![TargetAction::EndCopy, TargetAction::Discard];
        }
        for action in actions {
            let host = &mut self.target;
            match action {
                TargetAction::Send(message) => {
                    self.to_source.insert(message);
                }
                TargetAction::Rebuild
                | TargetAction::LogPrepared
                | TargetAction::LogTaken
                | TargetAction::Release => {
                    host.doing = Some(action);
                }
                TargetAction::EndCopy => {
                    host.doing = None;
                    host.processes = Processes::None;
                }
                TargetAction::Tell => {}
                TargetAction::Ask => host.asking = true,
                TargetAction::Discard => {
                    host.asking = false;
                    host.image = false;
                    host.log = Log::Nothing;
                }
            }
        }
    }

    fn source_on(&mut self, event: SourceEvent, flaw: Flaw) {
        if let Some(machine) = &mut self.source.machine {
            let actions = machine.on(event);
            self.source_acts(actions, flaw);
        }
    }

    fn target_on(&mut self, event: TargetEvent, flaw: Flaw) {
        if let Some(machine) = &mut self.target.machine {
            let actions = machine.on(event);
            self.target_acts(actions, flaw);
        }
    }

    fn lose_connection(&mut self) {
        self.source.lost = self.source.machine.is_some();
        self.target.lost = self.target.machine.is_some();
    }

    /// It is clear where the job is, and somebody knows.
    fn is_settled(&self) -> bool {
        let on_source = self.source.processes == Processes::Run;
        let on_target = self.target.processes == Processes::Run;
        let saved = self.target.image && self.target.log != Log::Nothing;
        // Nobody is told to start what goes on elsewhere.
        if on_source && saved {
            return false;
        }
        // A machine that is gone takes along what only it had.
        let gone = self.source.crashed && !self.source.record || self.target.crashed;
        on_source || on_target || saved || gone
    }
}

impl SourceHost {
    fn thaw(&mut self) {
        if self.processes == Processes::Held {
            self.processes = Processes::Run;
            self.went_on = true;
        }
    }

    /// It waits for nothing but the disk then.
    fn records(&self) -> bool {
        self.doing == Some(SourceAction::Record)
    }

    /// The effect of what is being done, and its event.
    fn does(&mut self, well: bool) -> Option<SourceEvent> {
        Some(match (self.doing.take()?, well) {
            (SourceAction::Freeze, true) => {
                self.processes = Processes::Held;
                SourceEvent::Frozen
            }
            (SourceAction::Capture, true) => SourceEvent::Sent,
            (SourceAction::Record, true) => {
                self.record = true;
                SourceEvent::Recorded
            }
            (SourceAction::Record, false) => SourceEvent::NotRecorded,
            _ => SourceEvent::Failed,
        })
    }

    fn crashes(&mut self, crash: Crash) {
        if crash.done {
            let _ = self.does(true);
        }
        self.machine = None;
        self.doing = None;
        self.lost = false;
        self.connecting = false;
        if crash.machine {
            self.processes = Processes::None;
            self.word = Word::Gone;
            self.crashed = true;
        } else if self.word == Word::Decided {
            // The managers look at the table.
            self.processes = Processes::None;
        } else {
            self.thaw();
        }
    }
}

impl TargetHost {
    /// It waits for nothing else then.
    fn logs(&self) -> bool {
        use TargetAction::{LogPrepared, LogTaken, Release};
        matches!(self.doing, Some(LogPrepared | LogTaken | Release))
    }

    fn does(&mut self, well: bool) -> Option<TargetEvent> {
        Some(match (self.doing.take()?, well) {
            (TargetAction::Rebuild, true) => {
                self.processes = Processes::Held;
                self.word = Word::Undecided;
                self.image = true;
                TargetEvent::Rebuilt
            }
            (TargetAction::LogPrepared, true) => {
                self.log = Log::Prepared;
                TargetEvent::Logged
            }
            (TargetAction::LogTaken, true) => {
                self.log = Log::Taken;
                TargetEvent::Logged
            }
            (TargetAction::LogPrepared | TargetAction::LogTaken, false) => TargetEvent::NotLogged,
            (TargetAction::Release, true) => {
                self.word = Word::Decided;
                self.processes = Processes::Run;
                self.ran = true;
                TargetEvent::Released
            }
            _ => TargetEvent::Failed,
        })
    }

    fn crashes(&mut self, crash: Crash) {
        if crash.done {
            let _ = self.does(true);
        }
        self.machine = None;
        self.doing = None;
        self.lost = false;
        self.asking = false;
        if crash.machine {
            self.processes = Processes::None;
            self.word = Word::Gone;
            self.crashed = true;
            // What was not logged need not be durable.
            self.image &= self.log != Log::Nothing;
        } else if self.processes == Processes::Held {
            self.processes = Processes::None;
        }
    }
}

impl Model for HandOver {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let (machine, actions) = Source::offer();
        let source = SourceHost {
            machine: Some(machine),
            doing: None,
            lost: false,
            connecting: false,
            processes: Processes::Run,
            word: Word::Undecided,
            record: false,
            crashed: false,
            went_on: false,
        };
        let target = TargetHost {
            machine: Some(Target::Gone),
            doing: None,
            lost: false,
            processes: Processes::None,
            word: Word::Undecided,
            log: Log::Nothing,
            image: false,
            crashed: false,
            ran: false,
            asking: false,
        };
        let mut world = World {
            source,
            target,
            to_source: BTreeSet::new(),
            to_target: BTreeSet::new(),
            left: self.faults,
        };
        world.source_acts(actions, self.flaw);
        vec![world]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        let World { source, target, left, .. } = world;
        let deliveries = |listens: bool| {
            let arrives = listens.then_some(Delivery::Arrives);
            let repeats = (listens && left.repeats > 0).then_some(Delivery::ArrivesAndRepeats);
            let is_lost = (left.losses > 0).then_some(Delivery::IsLost);
            [arrives, repeats, is_lost].into_iter().flatten()
        };
        let source_listens = source.machine.is_some() && !source.records();
        for &message in &world.to_source {
            steps.extend(deliveries(source_listens).map(|how| Step::ToSource(message, how)));
        }
        let target_listens = target.machine.is_some() && !target.logs();
        for &message in &world.to_target {
            steps.extend(deliveries(target_listens).map(|how| Step::ToTarget(message, how)));
        }
        let wells = if left.refusals > 0 { &[true, false][..] } else { &[true] };
        if source.doing.is_some() {
            steps.extend(wells.iter().map(|&well| Step::SourceDoes { well }));
        }
        if target.doing.is_some() {
            steps.extend(wells.iter().map(|&well| Step::TargetDoes { well }));
        }
        let mut when = |holds: bool, step: Step| {
            if holds {
                steps.push(step);
            }
        };
        when(source_listens && source.lost, Step::SourceHearsOfLoss);
        when(target_listens && target.lost, Step::TargetHearsOfLoss);
        when(source.connecting && target.machine.is_some(), Step::SourceConnects);
        when(source.machine.is_none(), Step::SourceRecovers);
        when(target.machine.is_none(), Step::TargetRecovers);
        for crash in CRASHES {
            when(left.crashes > 0 && source.machine.is_some(), Step::SourceCrashes(crash));
            when(left.crashes > 0 && target.machine.is_some(), Step::TargetCrashes(crash));
        }
        let dies = |processes| left.crashes > 0 && processes == Processes::Held;
        when(source_listens && dies(source.processes), Step::SourceProcessDies);
        when(target_listens && dies(target.processes), Step::TargetProcessDies);
        // Last: in a world where nothing fails, these happen only when nothing else can.
        when(source_listens, Step::SourceIsLate);
        when(target_listens, Step::TargetIsLate);
        let kept = target.asking && target.machine == Some(Target::Kept);
        when(kept && source.machine.is_some(), Step::TargetAsks);
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        let flaw = self.flaw;
        match step {
            Step::ToSource(message, how) => {
                if how == Delivery::ArrivesAndRepeats {
                    world.left.repeats -= 1;
                } else {
                    world.to_source.remove(&message);
                }
                if how == Delivery::IsLost {
                    world.left.losses -= 1;
                } else {
                    world.source_on(SourceEvent::Got(message), flaw);
                }
            }
            Step::ToTarget(message, how) => {
                if how == Delivery::ArrivesAndRepeats {
                    world.left.repeats -= 1;
                } else {
                    world.to_target.remove(&message);
                }
                if how == Delivery::IsLost {
                    world.left.losses -= 1;
                } else if message == Message::Offer {
                    // It begins a hand-over; a repeated one begins another, which is not looked at here.
                    if world.target.machine == Some(Target::Gone) && how == Delivery::Arrives {
                        let (machine, actions) = Target::accept();
                        world.target.machine = Some(machine);
                        world.target_acts(actions, flaw);
                    }
                } else {
                    world.target_on(TargetEvent::Got(message), flaw);
                }
            }
            Step::SourceDoes { well } => {
                world.left.refusals -= u8::from(!well);
                let event = world.source.does(well)?;
                world.source_on(event, flaw);
            }
            Step::TargetDoes { well } => {
                world.left.refusals -= u8::from(!well);
                let event = world.target.does(well)?;
                world.target_on(event, flaw);
            }
            Step::SourceHearsOfLoss => {
                world.source.lost = false;
                world.source_on(SourceEvent::Lost, flaw);
            }
            Step::TargetHearsOfLoss => {
                world.target.lost = false;
                world.target_on(TargetEvent::Lost, flaw);
            }
            Step::SourceIsLate => world.source_on(SourceEvent::Late, flaw),
            Step::TargetIsLate => world.target_on(TargetEvent::Late, flaw),
            Step::SourceConnects => {
                world.source.connecting = false;
                world.source_on(SourceEvent::Connected, flaw);
            }
            Step::TargetAsks => {
                world.to_source.insert(Message::Ask);
            }
            Step::SourceProcessDies => {
                world.left.crashes -= 1;
                world.source_on(SourceEvent::Failed, flaw);
            }
            Step::TargetProcessDies => {
                world.left.crashes -= 1;
                world.target_on(TargetEvent::Failed, flaw);
            }
            Step::SourceCrashes(crash) => {
                world.left.crashes -= 1;
                world.source.crashes(crash);
                world.lose_connection();
            }
            Step::TargetCrashes(crash) => {
                world.left.crashes -= 1;
                world.target.crashes(crash);
                world.lose_connection();
            }
            Step::SourceRecovers => {
                let (machine, actions) = Source::recover(world.source.record, world.source.word);
                world.source.machine = Some(machine);
                world.source_acts(actions, flaw);
            }
            Step::TargetRecovers => {
                let log = match world.target.log {
                    Log::Taken if flaw == Flaw::UnloggedRelease => Log::Prepared,
                    log => log,
                };
                let (machine, actions) = Target::recover(log, world.target.word);
                world.target.machine = Some(machine);
                world.target_acts(actions, flaw);
            }
        }
        // What changes nothing need not be looked at again.
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two", |_, world: &World| {
                world.source.processes != Processes::Run || world.target.processes != Processes::Run
            }),
            Property::always("no history twice", |_, world: &World| {
                !(world.source.went_on && world.target.ran)
            }),
            Property::always("never none", |_, world: &World| {
                world.source.processes != Processes::None
                    || world.target.processes == Processes::Run
                    || world.target.image
                    || world.source.crashed
                    || world.target.crashed
            }),
            Property::always("never rebuilt while it runs", |_, world: &World| {
                world.target.processes != Processes::Run
                    || world.target.doing != Some(TargetAction::Rebuild)
            }),
            Property::always("it settles when nothing more fails", Self::settles),
            Property::sometimes("the target has it", |_, world: &World| {
                world.target.processes == Processes::Run
                    && world.source.machine == Some(Source::Done)
            }),
            Property::sometimes("the source keeps it", |_, world: &World| world.source.went_on),
        ]
    }
}

impl HandOver {
    /// Whether everybody knows where the job is if from now on everything works.
    fn settles(&self, world: &World) -> bool {
        let calm = Self { flaw: self.flaw, faults: Faults::default() };
        let mut world = World { left: Faults::default(), ..world.clone() };
        for _ in 0..100 {
            let mut steps = Vec::new();
            calm.actions(&world, &mut steps);
            let Some(next) = steps.into_iter().find_map(|step| calm.next_state(&world, step))
            else {
                break;
            };
            world = next;
        }
        world.is_settled()
    }
}

/// The states that were visited, and the properties that do not hold.
fn explore(flaw: Flaw, faults: Faults) -> (usize, Vec<&'static str>) {
    let checker = HandOver { flaw, faults }.checker().threads(2).spawn_bfs().join();
    let held = |property: &Property<HandOver>| {
        let found = checker.discovery(property.name).is_some();
        found == (property.expectation == stateright::Expectation::Sometimes)
    };
    let broken: Vec<_> =
        checker.model().properties().iter().filter(|p| !held(p)).map(|p| p.name).collect();
    for name in &broken {
        if let Some(path) = checker.discovery(name) {
            println!("{name}: {:?}", path.into_actions());
        }
    }
    (checker.unique_state_count(), broken)
}

fn all_hold(faults: Faults) {
    let (states, broken) = explore(Flaw::None, faults);
    println!("{states} states with {faults:?}");
    assert!(states > 10_000, "{states} states are too few to mean anything");
    assert!(broken.is_empty(), "{broken:?}");
}

#[test]
fn three_crashes_and_three_losses() {
    all_hold(Faults { crashes: 3, losses: 3, ..Faults::default() });
}

#[test]
fn crashes_repeated_messages_and_full_disks() {
    all_hold(Faults { crashes: 2, losses: 1, repeats: 2, refusals: 2 });
}

#[test]
fn planted_faults_are_found() {
    let faults = Faults { crashes: 2, losses: 1, repeats: 1, refusals: 1 };
    for flaw in [Flaw::CommitFirst, Flaw::ImpatientTarget, Flaw::EagerSource, Flaw::UnloggedRelease]
    {
        let (_, broken) = explore(flaw, faults);
        assert!(!broken.is_empty(), "{flaw:?} was not found");
    }
}
