//! Under `ulpm_launch` and without a checkpoint, a program runs as if ULPM were not there.

use std::io::Write;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ulpm_tests::{Lab, Program, Result, ensure, guest_path};

/// Arguments of the guest `ends`, and the exit status that a shell sees.
const ENDS: [(&[&str], i32); 7] = [
    (&["exit", "0"], 0),
    (&["exit", "3"], 3),
    (&["exit", "255"], 255),
    (&["signal", "9"], 137),
    (&["signal", "15"], 143),
    (&["abort"], 134),
    (&["thread", "7"], 7),
];

#[test]
fn exit_status_is_the_programs() -> Result {
    Lab::one_host(|lab| {
        for (arguments, code) in ENDS {
            let mut program = Program::guest("ends", 0);
            program.argv.truncate(1);
            program.argv.extend(arguments.iter().map(|&argument| argument.to_owned()));
            let finished = lab.launch(&program)?.finish()?;
            ensure!(
                finished.code == code,
                "{arguments:?}: {} instead of {code}: {}",
                finished.code,
                finished.stderr
            );
            ensure!(finished.stdout.is_empty() && finished.stderr.is_empty(), "{finished:?}");
        }
        Ok(())
    })
}

#[test]
fn standard_streams_pass_through_unchanged() -> Result {
    Lab::one_host(|lab| {
        // Every byte value, and more than a pipe holds.
        let data: Vec<u8> = (0..300_000_u32).map(|i| (i ^ i >> 8) as u8).collect();
        let mut command = lab.hosts[0].tool("ulpm_launch");
        command.args(["--", "sh", "-c", "cat; printf 'to stderr' >&2; exit 4"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().ok_or("no stdin")?;
        let sent = data.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&sent));
        let output = child.wait_with_output()?;
        writer.join().map_err(|_| "the writer panicked")??;
        ensure!(output.stdout == data, "{} of {} bytes came back", output.stdout.len(), data.len());
        ensure!(output.stderr == b"to stderr", "{}", String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.code() == Some(4), "{}", output.status);
        Ok(())
    })
}

#[test]
fn closed_standard_streams_stay_closed() -> Result {
    Lab::one_host(|lab| {
        let run = |prefix: &str| -> Result<String> {
            let script = format!(
                "exec {prefix} ls -l /proc/self/fd 3>streams 0<&- 1>&- 2>/dev/null; exit 9"
            );
            // `ls` has no standard output, so what counts is that it fails natively and here alike.
            let mut command = lab.hosts[0].command("sh");
            command.args(["-c", &script]);
            let output = lab.output(command)?;
            Ok(format!("{} {}", output.code, output.stdout))
        };
        let native = run("")?;
        let launched = run(&format!("{} --", lab.bin.join("ulpm_launch").display()))?;
        ensure!(native == launched, "natively {native:?}, here {launched:?}");
        Ok(())
    })
}

/// The lines of the guest `presence`, run with `prefix` before it.
fn presence(lab: &Lab, mut command: Command, guest: bool) -> Result<Vec<String>> {
    if guest {
        command.arg("--").arg(guest_path("presence")?);
    }
    command.args(["an argument", ""]);
    let output = lab.output(command)?.success()?;
    // These two are how ULPM comes along when the program starts another.
    let ours = ["environment LD_PRELOAD=", "environment ULPM_JOB="];
    let lines = output.lines().filter(|line| !ours.iter().any(|ours| line.starts_with(ours)));
    Ok(lines.map(str::to_owned).collect())
}

#[test]
fn surroundings_are_what_they_are_natively() -> Result {
    Lab::one_host(|lab| {
        let native = presence(lab, lab.hosts[0].command(guest_path("presence")?), false)?;
        let launched = presence(lab, lab.hosts[0].tool("ulpm_launch"), true)?;
        let missing: Vec<_> = native.iter().filter(|line| !launched.contains(line)).collect();
        let more: Vec<_> = launched.iter().filter(|line| !native.contains(line)).collect();
        ensure!(
            missing.is_empty() && more.is_empty(),
            "natively and not here: {missing:#?}\nhere and not natively: {more:#?}"
        );
        Ok(())
    })
}

#[test]
fn a_signal_to_ulpm_launch_reaches_the_program() -> Result {
    Lab::one_host(|lab| {
        let script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
        let guest =
            lab.launch(&Program::new("trap", &["sh", "-c", script], ulpm_tests::Pace::Lines))?;
        guest.wait_for("ready")?;
        kill(Pid::from_raw(guest.launcher_pid()), Signal::SIGTERM)?;
        let finished = guest.finish()?.expect_code(5)?;
        ensure!(finished.stdout == "ready\ncaught\n", "{:?}", finished.stdout);
        Ok(())
    })
}

#[test]
fn programs_without_checkpoint_have_their_native_result() -> Result {
    Lab::one_host(|lab| {
        for name in [
            "exec_env",
            "exec_storm",
            "files",
            "fork_storm",
            "libc_contract",
            "mappings",
            "pipes",
            "signals",
            "sleeps",
            "thread_state",
            "zombies",
        ] {
            let program = Program::guest(name, 40);
            let native = lab.native(&program)?.finish()?.expect_code(0)?;
            let launched = lab.launch(&program)?.finish()?;
            let launched = launched.expect_code(0).map_err(|error| format!("{name}: {error}"))?;
            let notes = |text: &str| -> String {
                text.split_inclusive('\n').filter(|line| !line.starts_with("note ")).collect()
            };
            ensure!(
                notes(&native.stdout) == notes(&launched.stdout),
                "{name}: {}",
                launched.stdout
            );
            ensure!(launched.stderr.is_empty(), "{name}: {}", launched.stderr);
        }
        Ok(())
    })
}

#[test]
fn programs_under_jemalloc_and_stdbuf_keep_their_preloads() -> Result {
    Lab::one_host(|lab| {
        let mut command = lab.hosts[0].tool("ulpm_launch");
        command.args(["--", "stdbuf", "-o0", "env"]).env("LD_PRELOAD", "libjemalloc.so.2");
        let output = lab.output(command)?.success()?;
        let preload =
            output.lines().find(|line| line.starts_with("LD_PRELOAD=")).unwrap_or_default();
        ensure!(preload.contains("libjemalloc.so.2"), "{preload}");
        ensure!(preload.contains("libstdbuf.so"), "{preload}");
        Ok(())
    })
}
