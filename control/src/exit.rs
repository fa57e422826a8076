//! Exit codes of the tools: 0, 1, and those of sysexits(3).

/// Done.
pub const OK: u8 = 0;
/// What was asked for failed; the message says why.
pub const FAILED: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 64;
/// Data that was read is damaged, of another version, or of another architecture.
pub const DATA: u8 = 65;
/// A file or job that was named does not exist.
pub const NO_INPUT: u8 = 66;
/// The other host cannot take the job: what the check before the move found is in the message.
pub const UNFIT: u8 = 67;
/// A host that was named does not exist or does not answer.
pub const NO_HOST: u8 = 68;
/// There is no coordinator, and none can be started.
pub const UNAVAILABLE: u8 = 69;
/// A fault in ULPM itself.
pub const SOFTWARE: u8 = 70;
/// The operating system refused something that it should not.
pub const OS: u8 = 71;
/// The owner of the other host has set a limit that is in the way.
pub const LIMIT: u8 = 72;
/// A file cannot be created.
pub const CANT_CREATE: u8 = 73;
/// Reading or writing failed.
pub const IO: u8 = 74;
/// It may work when tried again: the job is busy, or was ending.
pub const TEMPORARY: u8 = 75;
/// The other side speaks another version of the protocol.
pub const PROTOCOL: u8 = 76;
/// Not allowed.
pub const NO_PERMISSION: u8 = 77;
/// The program cannot run under ULPM: static, setuid, for another machine.
pub const CONFIG: u8 = 78;
/// The program was found and cannot be executed.
pub const CANNOT_EXECUTE: u8 = 126;
/// The program was not found.
pub const NOT_FOUND: u8 = 127;

/// The paragraph on exit codes in every tool's `--help`.
pub const HELP: &str = "Exit codes (sysexits(3)):
  0   done
  1   failed; the message says why
  64  the command line is wrong
  65  data is damaged, of another version or architecture
  66  a file or job that was named does not exist
  67  the check before a move says no
  68  a host that was named does not answer
  69  there is no coordinator, and none can be started
  70  a fault in ULPM itself
  71  the operating system refused something
  72  a limit that the owner of the other host has set is in the way
  73  a file cannot be created
  74  reading or writing failed
  75  busy or ending; it may work when tried again
  76  the other side speaks another version
  77  not allowed
  78  the program cannot run under ULPM (static, setuid, other machine)";
