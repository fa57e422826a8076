//! The hand-over of a job from one host to another, without the doing.
//!
//! Two state machines: events go in, actions come out, and nothing else happens here, so that every order of
//! messages, losses and crashes can be tried (`tests/handover.rs`). `docs/protocol.md` has the diagrams.
//!
//! # What holds at every instant
//!
//! - The source's processes go on, or the target's do: never both, and never first the one and then the other
//!   from the same image.
//! - From the moment at which the source's processes may end, a complete image lies on the target.
//!
//! # What decides
//!
//! The source *records* its decision durably, then says so in the job table (`Handover::Committed`), and only then
//! tells anybody. The table's word is what counts as long as the machine lives: it decides what managers do
//! whose coordinator dies. The record is what counts after the machine was gone.
//!
//! The target has a complete, durable image *logged* before it says that it is prepared, and *takes* the job in the
//! log before a process of it goes on.

/// What the two say to each other about one hand-over. Any of these may be lost, come late or come twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Message {
    /// Source: take this job.
    Offer,
    /// Target: images may come.
    Accept,
    /// Target: it has come to nothing here.
    Refuse,
    /// Source: all images were sent.
    Images,
    /// Target: every process is rebuilt and waits, and the image is durable.
    Prepared,
    /// Source: the job is the target's. Said again until it is answered.
    Commit,
    /// Target: the job goes on here, or has ended here since.
    Running,
    /// Target: it does not go on here, but its image is kept.
    Kept,
    /// Source: the job goes on there.
    Abort,
    /// Target: it has only the image, and asks whether it is to go on here or there.
    Ask,
}

/// Where a source stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The job was offered.
    Offered,
    /// The job is being stopped.
    Freezing,
    /// Its images are being made and sent.
    Sending,
    /// The target rebuilds it.
    Waiting,
    /// The decision is being recorded.
    Recording,
    /// The job is the target's, which has not said that it knows.
    Committed,
    /// The target has the job.
    Done,
    /// The target has at most its image: somebody has to be told.
    Told,
    /// The job goes on here.
    GoesOn,
}

/// What happens to a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// The target said something.
    Got(Message),
    /// The connection has ended.
    Lost,
    /// The time for this state is up.
    Late,
    /// The job stands still.
    Frozen,
    /// All images were sent.
    Sent,
    /// The job cannot be stopped or saved, or a process of it has ended.
    Failed,
    /// The decision is durable.
    Recorded,
    /// It could not be made durable.
    NotRecorded,
    /// There is a connection again.
    Connected,
}

/// What a source has to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceAction {
    /// Say this; if it cannot be said, that is all.
    Send(Message),
    /// Stop the job, and give `Frozen` or `Failed`.
    Freeze,
    /// Make the images and send them, and give `Sent` or `Failed`.
    Capture,
    /// Make the decision durable, and give `Recorded` or `NotRecorded`.
    Record,
    /// Remove what `Record` may have left.
    Forget,
    /// Say in the job table that the job is handed over.
    Decide,
    /// End the job's processes.
    End,
    /// Let the job go on.
    Thaw,
    /// Connect to the target again, and give `Connected` when there is a connection.
    Connect,
}

/// What the job table says after the coordinator has died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Word {
    /// Nothing, or that it waits: what `Decide` or `Release` writes was not written.
    Undecided,
    /// What `Decide` or `Release` writes.
    Decided,
    /// There is no table: the machine was gone, and every process with it.
    Gone,
}

impl Source {
    /// A new hand-over.
    #[must_use]
    pub const fn offer() -> (Self, &'static [SourceAction]) {
        (Self::Offered, &[SourceAction::Send(Message::Offer)])
    }

    /// The hand-over that a dead coordinator was at.
    #[must_use]
    pub const fn recover(recorded: bool, word: Word) -> (Self, &'static [SourceAction]) {
        use SourceAction::{Connect, End, Forget, Thaw};
        match (recorded, word) {
            (true, Word::Decided | Word::Gone) => (Self::Committed, &[End, Connect]),
            // Its managers have thawed it when they lost their coordinator.
            (true, Word::Undecided) => (Self::GoesOn, &[Forget, Thaw]),
            // It ended with its machine. Whoever asks for it gets no answer.
            (false, Word::Gone) => (Self::Told, &[]),
            (false, _) => (Self::GoesOn, &[Thaw]),
        }
    }

    /// Takes an event.
    pub fn on(&mut self, event: SourceEvent) -> &'static [SourceAction] {
        use Message::{Abort, Accept, Ask, Commit, Images, Kept, Prepared, Refuse, Running};
        use SourceAction::{Capture, Connect, Decide, End, Forget, Freeze, Record, Send, Thaw};
        use SourceEvent as Event;
        let (next, actions): (Self, &'static [SourceAction]) = match (*self, event) {
            (Self::Offered, Event::Got(Accept)) => (Self::Freezing, &[Freeze]),
            (Self::Offered, Event::Got(Refuse) | Event::Lost | Event::Late | Event::Failed) => {
                (Self::GoesOn, &[Send(Abort)])
            }
            (Self::Freezing, Event::Frozen) => (Self::Sending, &[Capture]),
            (Self::Sending, Event::Sent) => (Self::Waiting, &[Send(Images)]),
            (Self::Waiting, Event::Got(Prepared)) => (Self::Recording, &[Record]),
            (
                Self::Freezing | Self::Sending | Self::Waiting,
                Event::Got(Refuse) | Event::Lost | Event::Late | Event::Failed,
            ) => (Self::GoesOn, &[Thaw, Send(Abort)]),
            (Self::Recording, Event::Recorded) => (Self::Committed, &[Decide, Send(Commit), End]),
            (Self::Recording, Event::NotRecorded) => (Self::GoesOn, &[Forget, Thaw, Send(Abort)]),
            (Self::Committed, Event::Got(Running)) => (Self::Done, &[]),
            // Prepared may have been said before it could know.
            (Self::Committed, Event::Got(Kept | Refuse)) => (Self::Told, &[]),
            (Self::Committed, Event::Lost | Event::Late) => (Self::Committed, &[Connect]),
            (Self::Committed, Event::Connected | Event::Got(Ask)) => {
                (Self::Committed, &[Send(Commit)])
            }
            // The target has not heard that it came to nothing.
            (Self::GoesOn, Event::Got(Accept | Prepared | Ask)) => (Self::GoesOn, &[Send(Abort)]),
            (state, _) => (state, &[]),
        };
        *self = next;
        actions
    }
}

/// Where a target stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Images come.
    Receiving,
    /// The job is being rebuilt from them, and they are being made durable.
    Rebuilding,
    /// That they are complete is being logged.
    Logging,
    /// Every process waits for the source's decision.
    Prepared,
    /// That the job is ours is being logged; its processes wait.
    Taking,
    /// The same, and there are no processes any more.
    TakingKept,
    /// The job is ours, and is being rebuilt from the image that was kept.
    Starting,
    /// The job is ours, and is being let go on.
    Releasing,
    /// The job is ours, and goes on or has gone on.
    Running,
    /// There is only the image, which is the source's decision to be waited for, or a person's.
    Kept,
    /// It came to nothing, and nothing of it is here.
    Gone,
}

/// What happens to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetEvent {
    /// The source said something.
    Got(Message),
    /// The connection has ended.
    Lost,
    /// The time for this state is up.
    Late,
    /// Every process is rebuilt and waits, and the images are durable.
    Rebuilt,
    /// What was being done cannot be done, or a process that waits has ended.
    Failed,
    /// The log is durable.
    Logged,
    /// It could not be made durable.
    NotLogged,
    /// The job goes on.
    Released,
}

/// What a target has to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetAction {
    /// Say this; if it cannot be said, that is all.
    Send(Message),
    /// Rebuild the job from its images, with all processes waiting, and give `Rebuilt` or `Failed`.
    Rebuild,
    /// Log that the images are complete, durably, and give `Logged` or `NotLogged`.
    LogPrepared,
    /// Log that the job is ours, durably, and give `Logged` or `NotLogged`.
    LogTaken,
    /// Say so in the job table, let the job go on, and give `Released`, or `Failed` if none of it has gone on.
    Release,
    /// End the processes that wait.
    EndCopy,
    /// Tell a person where the image is and how to start it. The source's decision may still come.
    Tell,
    /// Say `Ask` to the source, over connections of its own, until the decision comes.
    Ask,
    /// Remove images and log.
    Discard,
}

/// What a target has logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Log {
    /// Nothing.
    Nothing,
    /// `LogPrepared`.
    Prepared,
    /// `LogTaken`.
    Taken,
}

impl Target {
    /// A job was offered, and can be taken.
    #[must_use]
    pub const fn accept() -> (Self, &'static [TargetAction]) {
        (Self::Receiving, &[TargetAction::Send(Message::Accept)])
    }

    /// The hand-over that a dead coordinator was at. The processes that waited have ended with it.
    #[must_use]
    pub const fn recover(log: Log, word: Word) -> (Self, &'static [TargetAction]) {
        use TargetAction::{Ask, Discard, Rebuild, Tell};
        match (log, word) {
            (Log::Nothing, _) => (Self::Gone, &[Discard]),
            (Log::Prepared, _) => (Self::Kept, &[Tell, Ask]),
            (Log::Taken, Word::Decided) => (Self::Running, &[]),
            (Log::Taken, Word::Undecided) => (Self::Starting, &[Rebuild]),
            // It may have run, and nobody can tell how far.
            (Log::Taken, Word::Gone) => (Self::Kept, &[Tell]),
        }
    }

    /// Takes an event.
    pub fn on(&mut self, event: TargetEvent) -> &'static [TargetAction] {
        use Message::{Abort, Commit, Images, Kept, Prepared, Refuse, Running};
        use TargetAction::{
            Ask, Discard, EndCopy, LogPrepared, LogTaken, Rebuild, Release, Send, Tell,
        };
        use TargetEvent as Event;
        let (next, actions): (Self, &'static [TargetAction]) = match (*self, event) {
            (Self::Receiving, Event::Got(Images)) => (Self::Rebuilding, &[Rebuild]),
            (Self::Receiving, Event::Got(Abort) | Event::Lost | Event::Late | Event::Failed) => {
                (Self::Gone, &[Discard, Send(Refuse)])
            }
            (Self::Rebuilding, Event::Rebuilt) => (Self::Logging, &[LogPrepared]),
            (Self::Logging, Event::Logged) => (Self::Prepared, &[Send(Prepared)]),
            // The source has not decided, and will not without Prepared.
            (Self::Rebuilding, Event::Got(Abort) | Event::Failed | Event::Lost | Event::Late)
            | (Self::Logging, Event::NotLogged) => (Self::Gone, &[EndCopy, Discard, Send(Refuse)]),
            (Self::Prepared, Event::Got(Commit)) => (Self::Taking, &[LogTaken]),
            (Self::Prepared, Event::Got(Abort)) => (Self::Gone, &[EndCopy, Discard]),
            // It may have decided: the image stays whatever happens.
            (Self::Prepared, Event::Late | Event::Failed) => (Self::Kept, &[EndCopy, Tell, Ask]),
            (Self::Taking, Event::Logged) | (Self::Starting, Event::Rebuilt) => {
                (Self::Releasing, &[Release])
            }
            (Self::Releasing, Event::Released) => (Self::Running, &[Send(Running)]),
            (Self::Taking, Event::NotLogged | Event::Failed)
            | (Self::Starting, Event::Failed | Event::Late)
            | (Self::Releasing, Event::Failed) => (Self::Kept, &[EndCopy, Tell, Send(Kept)]),
            (Self::Kept, Event::Got(Commit)) => (Self::TakingKept, &[LogTaken]),
            (Self::Kept, Event::Got(Abort)) => (Self::Gone, &[Discard]),
            (Self::TakingKept, Event::Logged) => (Self::Starting, &[Rebuild]),
            (Self::TakingKept, Event::NotLogged) => (Self::Kept, &[Tell, Send(Kept)]),
            (Self::Running, Event::Got(Commit)) => (Self::Running, &[Send(Running)]),
            (Self::Gone, Event::Got(Images | Commit)) => (Self::Gone, &[Send(Refuse)]),
            (state, _) => (state, &[]),
        };
        *self = next;
        actions
    }
}
