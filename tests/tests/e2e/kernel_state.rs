//! What the kernel knows of a process and its threads besides descriptors: timers, attributes, names.

use ulpm_tests::Program;

use crate::whole_life;

/// `timeout` with a timer of its own, which waits for a guest.
fn timeout() -> Program {
    let mut program = Program::guest("counter", 200);
    program.argv.splice(0..0, ["timeout".into(), "100".into()]);
    program
}

whole_life! {
    posix_timers => Program::guest("posix_timers", 150);
    attributes => Program::guest("attributes", 150);
    attributes_of_processes => Program::guest("process_state", 150);
    threads_that_run_when_nothing_else_does => Program::guest("idle_threads", 150);
    raw_calls => Program::guest("raw_calls", 100);
    senders => Program::guest("senders", 100);
    proc_paths => Program::guest("proc_paths", 100);
    uptime => Program::guest("uptime", 150);
    timeout_100 => timeout();
}
