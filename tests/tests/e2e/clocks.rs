//! Clocks that count from a boot, on hosts that were booted at other times: they go on where they stood.

use std::process::{Command, Stdio};

use ulpm_tests::{
    Lab, Pace, Program, Result, checkpointed_equals_native, migrated_equals_native, program_path,
};

/// How long before this one the hosts were booted, in seconds: a day, and a month more.
const BOOTED: [u32; 2] = [86_400, 86_400 + 30 * 86_400];

/// What runs a program of which this host may have none.
fn if_there_is(interpreter: &str, test: impl FnOnce() -> Result) -> Result {
    let mut command = Command::new(interpreter);
    match command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => test(),
        _ => {
            println!("not tried, for there is no {interpreter}");
            Ok(())
        }
    }
}

/// Which hosts make a time namespace for the job, where that is permitted.
fn on_hosts(namespaces: [bool; 2], test: impl FnOnce(&Lab) -> Result) -> Result {
    let [a, b] = BOOTED;
    Lab::two_hosts_with_clocks([(a, namespaces[0]), (b, namespaces[1])], test)
}

/// For each program three tests: restarts on each of two hosts in its turn, and moves between them, without a time
/// namespace; and restarts with one on the second host only.
macro_rules! on_hosts_with_other_clocks {
    ($($name:ident: $interpreter:literal => $program:expr;)+) => {
        $(
            mod $name {
                use super::*;

                #[test]
                fn restarts_without_namespace() -> Result {
                    if_there_is($interpreter, || {
                        on_hosts([false, false], |lab| {
                            checkpointed_equals_native(lab, &$program, 5)
                        })
                    })
                }

                #[test]
                fn moves_without_namespace() -> Result {
                    if_there_is($interpreter, || {
                        on_hosts([false, false], |lab| migrated_equals_native(lab, &$program))
                    })
                }

                #[test]
                fn restarts_with_and_without_namespace() -> Result {
                    if_there_is($interpreter, || {
                        on_hosts([false, true], |lab| {
                            checkpointed_equals_native(lab, &$program, 5)
                        })
                    })
                }
            }
        )+
    };
}

/// Without the file in /tmp by which other Javas know it, and which they remove when it has ended.
fn java() -> Program {
    let path = program_path("Clocks.java");
    Program::new("java", &["java", "-XX:-UsePerfData", &path.to_string_lossy(), "150"], Pace::Steps)
}

on_hosts_with_other_clocks! {
    every_way: "true" => Program::guest("uptime", 150);
    cpp: "true" => Program::guest("steady", 150);
    handlers: "true" => Program::guest("on_clocks", 150);
    rust: "true" => Program::guest("instant", 150);
    python: "python3" => Program::script("python3", "clocks.py", 150);
    perl: "perl" => Program::script("perl", "clocks.pl", 150);
    node: "node" => Program::script("node", "clocks.js", 100);
    java: "java" => java();
}

#[test]
fn time_namespaces_only() -> Result {
    on_hosts([true, true], |lab| checkpointed_equals_native(lab, &Program::guest("uptime", 150), 5))
}

/// The first restart of all, whose waits were given to the kernel when nothing was shifted yet.
#[test]
fn checkpoints_all_the_time_and_one_restart() -> Result {
    on_hosts([false, false], |lab| {
        let mut guest = lab.launch(&Program::guest("uptime", 400))?;
        for step in [20, 40, 60, 80, 100] {
            guest.set_limit(step + 20)?;
            guest.wait_step(step)?;
            lab.checkpoint(&guest)?;
        }
        let checkpoint = lab.checkpoint_and_kill(&guest)?;
        guest = lab.restart_on(1, &guest, &checkpoint.path)?;
        guest.wait_running()?;
        for step in [130, 150, 170] {
            guest.set_limit(step + 20)?;
            guest.wait_step(step)?;
            lab.checkpoint(&guest)?;
        }
        guest.set_free()?;
        guest.finish()?.expect_code(0)?;
        Ok(())
    })
}
