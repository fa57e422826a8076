//! Terminals: pseudo-terminals of the job's own, and how the launcher's was set.

use alloc::vec::Vec;

use ulpm_sys::pty::Modes;

use crate::wire::{Reader, Wire, record};

impl Wire for Modes {
    fn put(&self, out: &mut Vec<u8>) {
        self.flags.put(out);
        self.characters.put(out);
        self.speeds.put(out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, crate::ImageError> {
        Ok(Self {
            flags: Wire::take(reader)?,
            characters: Wire::take(reader)?,
            speeds: Wire::take(reader)?,
        })
    }
}

/// `Master::flow`.
pub mod flow {
    /// Output goes to the master.
    pub const GOING: u32 = 0;
    /// The stop key has stopped it.
    pub const KEY: u32 = 1;
    /// tcflow(3) has.
    pub const CALL: u32 = 2;
}

record! {
/// A pseudo-terminal whose master the job has, saved by one of those who have it.
Master {
    /// N of `/dev/pts/N`. It names the pseudo-terminal in the checkpoint.
    index: u32,
    /// The slave cannot be opened yet.
    locked: bool,
    /// Packet mode.
    packet: bool,
    /// Only root can open the slave again.
    exclusive: bool,
    /// The slave was open at some time.
    opened: bool,
    /// Modes of the slave.
    modes: Modes,
    /// Rows, columns, and pixels across and down.
    size: [u32; 4],
    /// The session whose controlling terminal it is, as the program knows it; 0 for none.
    session: i32,
    /// The group in the foreground, likewise.
    foreground: i32,
    /// What has stopped its output.
    flow: u32,
    /// Lengths of the lines in `input` that are complete.
    lines: Vec<u32>,
    /// What was to be read from the slave: lines, and what is behind them.
    input: Vec<u8>,
    /// What was to be read from the master.
    output: Vec<u8>,
}
}

record! {
/// What is behind a description of a terminal: of a slave, of `/dev/tty`, or of a standard stream.
Terminal {
    /// The description.
    description: u64,
    /// N of `/dev/pts/N`; -1 if it is a terminal of another kind, or has hung up.
    index: i32,
    /// It has hung up.
    hung_up: bool,
    /// It is the controlling terminal of the process that saved it.
    controlling: bool,
    /// Modes.
    modes: Modes,
    /// Rows, columns, and pixels across and down.
    size: [u32; 4],
}
}
