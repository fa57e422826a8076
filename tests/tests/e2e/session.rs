//! The session follows: what a moved job reads and writes, and from where.

use std::process::Command;
use std::time::Duration;

use ulpm_tests::{DEADLINE, Guest, Lab, Pace, Program, Result, ensure, until};

use crate::terminal::{launch_line, on_terminal, shows};

/// A program whose pipes follow it.
fn follows(argv: &[&str]) -> Program {
    Program::new(argv[0], argv, Pace::Lines).fed().option("--stdio=follow")
}

fn ends_well(guest: &Guest<'_>, output: &str) -> Result {
    guest.close_stdin();
    let finished = guest.finish()?.expect_code(0)?;
    ensure!(finished.stdout == output, "{:?} instead of {output:?}", finished.stdout);
    Ok(())
}

#[test]
fn a_calculator_at_pipes_moves_there_and_home() -> Result {
    Lab::two_hosts(|lab| {
        let guest = lab.launch(&follows(&["bc"]))?;
        guest.write("x=40\nx+1\n")?;
        guest.wait_for("41")?;
        lab.migrate(&guest.name, 0, 1)?;
        guest.write("x+2\n")?;
        guest.wait_for("42")?;
        let said = lab.tool(1, "ulpm_command", &["--home", &guest.name])?.success()?;
        ensure!(said.contains("goes on at"), "{said}");
        guest.write("x+3\n")?;
        guest.wait_for("43")?;
        // It is at home.
        let said = lab.tool(0, "ulpm_command", &["--home", &guest.name])?;
        ensure!(said.code == 64, "{}: {}", said.code, said.stderr);
        said.failure(&["was launched here"])?;
        lab.tool(0, "ulpm_command", &["--home", "nobody"])?.failure(&["nobody"])?;
        ends_well(&guest, "41\n42\n43\n")
    })
}

#[test]
fn exit_status_and_both_outputs_come_from_where_the_job_ends() -> Result {
    Lab::two_hosts(|lab| {
        let script = "echo out; echo err >&2; read -r a; echo out $a; echo err $a >&2; exit 7";
        let guest = lab.launch(&follows(&["sh", "-c", script]))?;
        guest.wait_for("out")?;
        lab.migrate(&guest.name, 0, 1)?;
        guest.write("there\n")?;
        let finished = guest.finish()?.expect_code(7)?;
        ensure!(finished.stdout == "out\nout there\n", "{}", finished.stdout);
        ensure!(finished.stderr == "err\nerr there\n", "{}", finished.stderr);
        // The log has what was written there.
        let log = lab.tool(1, "ulpm_command", &["--output", &guest.name])?.success()?;
        ensure!(log == "out there\nerr there\n", "{log:?}");
        Ok(())
    })
}

/// So many lines, each with its number.
fn numbers(count: u32) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for number in 0..count {
        let _ = writeln!(
            text,
            "{number:9} {:032x}",
            u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        );
    }
    text
}

/// Feeds `cat` all of a text, and does something meanwhile; every byte comes back once, in order.
fn streams(lab: &Lab, text: &str, meanwhile: impl FnOnce(&Guest<'_>) -> Result) -> Result {
    let guest = lab.launch(&follows(&["cat"]))?;
    guest.wait_running()?;
    std::thread::scope(|scope| {
        let feeding = scope.spawn(|| -> Result {
            for piece in text.as_bytes().chunks(16 * 1024) {
                guest.write(std::str::from_utf8(piece)?)?;
                std::thread::sleep(Duration::from_millis(1));
            }
            guest.close_stdin();
            Ok(())
        });
        let done = meanwhile(&guest);
        let fed = feeding.join().map_err(|_| "the feeding thread has panicked")?;
        done?;
        fed
    })?;
    let finished = guest.finish()?.expect_code(0)?;
    let at = finished.stdout.bytes().zip(text.bytes()).position(|(a, b)| a != b);
    ensure!(
        finished.stdout == text,
        "{} bytes of {}, the first that is wrong at {at:?}",
        finished.stdout.len(),
        text.len()
    );
    Ok(())
}

#[test]
fn a_long_stream_loses_no_byte_over_three_moves() -> Result {
    Lab::two_hosts(|lab| {
        streams(lab, &numbers(400_000), |guest| {
            for (from, to) in [(0, 1), (1, 0), (0, 1)] {
                std::thread::sleep(Duration::from_millis(200));
                lab.migrate(&guest.name, from, to)?;
            }
            Ok(())
        })
    })
}

#[test]
fn a_stream_survives_the_death_of_coordinators_and_a_dead_link() -> Result {
    Lab::two_hosts_with_faults(["", ""], |lab| {
        streams(lab, &numbers(600_000), |guest| {
            std::thread::sleep(Duration::from_millis(100));
            lab.migrate(&guest.name, 0, 1)?;
            for host in [0, 1] {
                std::thread::sleep(Duration::from_millis(300));
                lab.hosts[host].kill_coordinator()?;
                std::thread::sleep(Duration::from_millis(300));
                lab.hosts[host].start_coordinator()?;
            }
            if let Some(wire) = &lab.wire {
                std::thread::sleep(Duration::from_millis(300));
                wire.plug(false)?;
                std::thread::sleep(Duration::from_secs(3));
                wire.plug(true)?;
                std::thread::sleep(Duration::from_millis(500));
                wire.reset()?;
            }
            Ok(())
        })
    })
}

#[test]
fn a_program_that_nobody_reads_is_slowed_down_and_keeps_no_memory() -> Result {
    Lab::two_hosts(|lab| {
        // Nobody reads what it writes before it is told to.
        let line = format!(
            "{} -d {} --name yes -- sh -c 'echo ready >&2; read -r a </dev/null; exec yes' | (sleep 6; head -c 3000000)",
            lab.bin.join("ulpm_launch").display(),
            lab.images().display()
        );
        let mut command = lab.hosts[0].command("sh");
        command.args(["-c", &line]);
        let guest = lab.start_command(0, "yes", command)?;
        until("the job", DEADLINE, || Ok(guest.errors().contains("ready").then_some(())))?;
        let migration = lab.migrate("yes", 0, 1)?;
        let id = migration.target_id.to_string();
        std::thread::sleep(Duration::from_secs(1));
        let before = lab.job_cpu_ms(1, &id)?;
        std::thread::sleep(Duration::from_secs(1));
        let spent = lab.job_cpu_ms(1, &id)? - before;
        ensure!(spent < 100, "it went on for {spent} ms while nobody read");
        let finished = guest.finish()?;
        ensure!(finished.stdout == "y\n".repeat(1_500_000), "{} bytes", finished.stdout.len());
        // Its pipe is broken, as it would have been at home.
        until("yes to end", DEADLINE, || Ok(lab.job(1, "yes")?.is_none().then_some(())))?;
        Ok(())
    })
}

#[test]
fn without_its_launcher_the_job_goes_on_into_the_log() -> Result {
    Lab::two_hosts(|lab| {
        let script = "read -r a; i=0; while test $i -lt 40; do echo line $i; i=$((i+1)); sleep 0.05; done; echo the end";
        let guest = lab.launch(&follows(&["sh", "-c", script]))?;
        guest.wait_running()?;
        let migration = lab.migrate(&guest.name, 0, 1)?;
        guest.write("go\n")?;
        guest.wait_for("line 3")?;
        Command::new("kill").args(["-9", &guest.launcher_pid().to_string()]).status()?;
        let log = until("the log", DEADLINE, || {
            let log = lab.tool(1, "ulpm_command", &["--output", &guest.name])?.success()?;
            Ok(log.contains("the end").then_some(log))
        })?;
        let wanted: String = (0..40).map(|number| format!("line {number}\n")).collect();
        ensure!(log == wanted + "the end\n", "{log}");
        guest.finish()?;
        // Whoever could come back is waited for, and then nothing is left.
        let socket = lab.hosts[1].state_dir.join(format!("jobs/{}.sock", migration.target_id));
        until("the keeper to go", DEADLINE * 2, || Ok((!socket.exists()).then_some(())))?;
        Ok(())
    })
}

/// What the terminal on which a job was launched is called.
fn terminal_of(guest: &Guest<'_>) -> Result<String> {
    let output = guest.output();
    let line = output.lines().find_map(|line| line.trim().strip_prefix("it is "));
    Ok(line.ok_or("no name of a terminal")?.trim().to_owned())
}

#[test]
fn a_shell_keeps_its_terminal_over_moves() -> Result {
    Lab::two_hosts(|lab| {
        let line = format!(
            "stty rows 31 cols 83; echo it is $(tty); exec {} -d {} --name bash -- bash --norc -i",
            lab.bin.join("ulpm_launch").display(),
            lab.images().display()
        );
        let guest = on_terminal(lab, 0, "bash", &line)?;
        guest.write("echo one$((1+1))\n")?;
        shows(&guest, "one2")?;
        let tty = terminal_of(&guest)?;
        for (round, (from, to)) in [(0, 1), (1, 0), (0, 1)].into_iter().enumerate() {
            lab.migrate("bash", from, to)?;
            guest.write(&format!("echo round$(({round}+1)); stty size\n"))?;
            shows(&guest, &format!("round{}", round + 1))?;
            // Window size.
            let columns = (90 + round).to_string();
            let resized =
                Command::new("stty").args(["-F", &tty, "rows", "40", "cols", &columns]).status()?;
            ensure!(resized.success(), "stty: {resized}");
            until("the window's size", DEADLINE, || {
                guest.write("stty size\n")?;
                std::thread::sleep(Duration::from_millis(100));
                Ok(guest.output().contains(&format!("40 {columns}")).then_some(()))
            })?;
            // The interrupt key ends what is in the foreground, and the stop key stops it.
            guest.write("sleep 1000; echo interrupted$((round+1))\n")?;
            std::thread::sleep(Duration::from_millis(300));
            guest.write("\u{3}")?;
            guest.write(&format!("echo behind$(({round}+1))\n"))?;
            shows(&guest, &format!("behind{}", round + 1))?;
            guest.write("sleep 1001\n")?;
            std::thread::sleep(Duration::from_millis(300));
            guest.write("\u{1a}")?;
            guest.write(&format!("kill -9 %1; wait; echo killed$(({round}+1))\n"))?;
            shows(&guest, &format!("killed{}", round + 1))?;
        }
        guest.write("exit 5\n")?;
        let finished = guest.finish()?;
        ensure!(finished.code == 5, "exit status {}: {}", finished.code, finished.stdout);
        Ok(())
    })
}

#[test]
fn the_stop_key_gives_the_user_the_shell_back() -> Result {
    Lab::two_hosts(|lab| {
        let guest = on_terminal(lab, 0, "stopped", "exec bash --norc -i")?;
        let program = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.1; done";
        guest.write(&format!("{}\n", launch_line(lab, "stopped", program)))?;
        shows(&guest, "tick 3")?;
        lab.migrate("stopped", 0, 1)?;
        let last = |guest: &Guest<'_>| {
            guest
                .output()
                .lines()
                .filter_map(|l| l.trim().strip_prefix("tick ")?.parse().ok())
                .max()
                .unwrap_or(0u32)
        };
        let now = last(&guest);
        until("it to go on there", DEADLINE, || Ok((last(&guest) > now + 3).then_some(())))?;
        guest.write("\u{1a}")?;
        shows(&guest, "Stopped")?;
        guest.write("echo shell$((1+1))\n")?;
        shows(&guest, "shell2")?;
        let now = last(&guest);
        std::thread::sleep(Duration::from_millis(500));
        ensure!(last(&guest) == now, "it goes on while it is stopped");
        guest.write("fg\n")?;
        until("it to go on", DEADLINE, || Ok((last(&guest) > now + 3).then_some(())))?;
        guest.write("\u{3}")?;
        // What is typed before the shell is back goes to the job, wherever that is.
        std::thread::sleep(Duration::from_secs(1));
        guest.write("echo code $?\n")?;
        shows(&guest, "code 130")?;
        guest.write("stty -a | tr ';' '\\n'; exit 4\n")?;
        let finished = guest.finish()?;
        ensure!(finished.code == 4, "exit status {}: {}", finished.code, finished.stdout);
        for wanted in ["echo", "icanon", "isig", "opost"] {
            let found = finished.stdout.split_ascii_whitespace().any(|word| word == wanted);
            ensure!(found, "{wanted} is not set: {}", finished.stdout);
        }
        Ok(())
    })
}

#[test]
fn vim_goes_on_on_the_same_screen() -> Result {
    Lab::two_hosts(|lab| {
        let path = lab.dir.join("text");
        std::fs::write(&path, "first\n")?;
        let line = format!(
            "stty rows 24 cols 80; exec {} -d {} --name vim -- vim -u NONE -n {}",
            lab.bin.join("ulpm_launch").display(),
            lab.images().display(),
            path.display()
        );
        let guest = on_terminal(lab, 0, "vim", &line)?;
        shows(&guest, "first")?;
        guest.write("Gosecond\u{1b}")?;
        shows(&guest, "second")?;
        lab.migrate("vim", 0, 1)?;
        guest.write("Gothird\u{1b}")?;
        shows(&guest, "third")?;
        lab.migrate("vim", 1, 0)?;
        guest.write("Gofourth\u{1b}:wq\n")?;
        guest.finish()?.expect_code(0)?;
        let text = std::fs::read_to_string(&path)?;
        ensure!(text == "first\nsecond\nthird\nfourth\n", "{text:?}");
        Ok(())
    })
}

#[test]
fn somebody_attaches_and_detaches_from_any_host() -> Result {
    Lab::two_hosts(|lab| {
        let script = "while read -r line; do echo got $line; test $line = end && exit 9; done";
        let guest = on_terminal(
            lab,
            0,
            "shell",
            &launch_line(lab, "shell", script).replace(" -- ", " --stdio log -- "),
        )?;
        guest.write("one\n")?;
        shows(&guest, "got one")?;
        let said = lab.tool(0, "ulpm_command", &["--attach", "shell"])?;
        ensure!(said.code == 66, "{}: {}", said.code, said.stderr);
        said.failure(&["nothing to attach to before it has moved"])?;
        lab.migrate("shell", 0, 1)?;
        let command = lab.bin.join("ulpm_command");
        let command = command.display();
        // Here, and from the other host; with the keys that are usual, and with others.
        let here = on_terminal(lab, 1, "here", &format!("{command} --attach shell"))?;
        here.write("two\n")?;
        shows(&here, "got two")?;
        here.write("\u{10}\u{11}")?;
        shows(&here, "detached")?;
        here.finish()?.expect_code(0)?;
        let address = lab.hosts[1].address();
        let (host, port) = address.rsplit_once(':').ok_or("no port")?;
        let line = format!("{command} -n {host} -p {port} --detach-keys ctrl-],x --attach shell");
        let there = on_terminal(lab, 0, "there", &line)?;
        // What was written before.
        shows(&there, "got two")?;
        there.write("three\n")?;
        shows(&there, "got three")?;
        there.write("\u{1d}x")?;
        there.finish()?.expect_code(0)?;
        // With pipes: what the job's end says is said.
        let last = on_terminal(lab, 1, "last", &format!("{command} --attach shell"))?;
        last.write("end\n")?;
        shows(&last, "got end")?;
        let finished = last.finish()?;
        ensure!(finished.code == 9, "{finished:?}");
        ensure!(guest.finish()?.code == 9, "the launcher does not say how it ended");
        Ok(())
    })
}

#[test]
fn a_visitor_at_pipes_types_into_the_job_of_an_owner() -> Result {
    Lab::two_hosts(|lab| {
        let guest = lab.launch(&follows(&["bc"]))?;
        guest.write("x=1\n")?;
        guest.wait_running()?;
        lab.migrate(&guest.name, 0, 1)?;
        guest.write("x+1\n")?;
        guest.wait_for("2")?;
        let mut command = lab.hosts[1].tool("ulpm_command");
        command.args(["--attach", &guest.name]);
        let visitor = lab.start_command(1, "visitor", command)?;
        visitor.wait_for("2")?;
        visitor.write("x+2\n")?;
        visitor.wait_for("3")?;
        guest.wait_for("3")?;
        visitor.close_stdin();
        guest.write("x+3\n")?;
        visitor.wait_for("4")?;
        guest.wait_for("4")?;
        guest.close_stdin();
        guest.finish()?.expect_code(0)?;
        visitor.finish()?.expect_code(0)?;
        Ok(())
    })
}
