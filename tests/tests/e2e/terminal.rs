//! Terminals: those that a job makes itself, and programs on one that script(1) has made.

use ulpm_tests::{Guest, Lab, Program, Result, ensure, is_root};

use crate::whole_life;

whole_life! {
    pseudo_terminals => Program::guest("terminals", 200);
}

/// Starts `line` on a terminal of its own.
pub(crate) fn on_terminal<'lab>(
    lab: &'lab Lab,
    host: usize,
    name: &str,
    line: &str,
) -> Result<Guest<'lab>> {
    // A shell cannot trap what it finds ignored, as it is in a background job of another shell.
    let mut command = lab.hosts[host].command("env");
    command.args(["--default-signal=INT,QUIT", "script"]);
    command.args(["-qefc", line, "/dev/null"]).env("TERM", "vt100");
    lab.start_command(host, name, command)
}

const SHELL: &str = "stty -echo; test -t 0 && test -t 1 && echo on a terminal; while read -r line; do echo got $line; test $line = end && exit 6; done";

pub(crate) fn launch_line(lab: &Lab, name: &str, program: &str) -> String {
    let (launch, images) = (lab.bin.join("ulpm_launch"), lab.images());
    format!("{} -d {} --name {name} -- sh -c '{program}'", launch.display(), images.display())
}

/// Without a shell between script(1) and the command: the interrupt key would end it, and its status be seen.
fn exec(line: &str) -> String {
    format!("exec {line}")
}

/// Waits for text in what the terminal shows, where lines end in carriage return and line feed.
pub(crate) fn shows(guest: &Guest<'_>, text: &str) -> Result {
    ulpm_tests::until(format!("{text:?} on the terminal"), ulpm_tests::DEADLINE, || {
        Ok(guest.output().contains(text).then_some(()))
    })
    .map_err(|error| format!("{error}; it shows {:?}", guest.output()).into())
}

#[test]
fn program_on_a_terminal_is_restarted_on_another() -> Result {
    Lab::one_host(|lab| {
        let guest = on_terminal(lab, 0, "shell", &launch_line(lab, "shell", SHELL))?;
        shows(&guest, "on a terminal")?;
        guest.write("one\n")?;
        shows(&guest, "got one")?;
        let checkpoint = lab.checkpoint(&guest)?;
        guest.kill_tree()?;
        let restart =
            format!("{} {}", lab.bin.join("ulpm_restart").display(), checkpoint.path.display());
        let twin = on_terminal(lab, 0, "shell", &restart)?;
        twin.write("two\n")?;
        shows(&twin, "got two")?;
        twin.write("end\n")?;
        let finished = twin.finish()?;
        ensure!(finished.code == 6, "exit status {}: {}", finished.code, finished.stdout);
        Ok(())
    })
}

#[test]
fn interrupt_key_reaches_a_restarted_program() -> Result {
    Lab::one_host(|lab| {
        let program =
            r#"trap "echo interrupted; exit 7" INT; echo ready; while :; do sleep 0.05; done"#;
        let guest = on_terminal(lab, 0, "trap", &exec(&launch_line(lab, "trap", program)))?;
        shows(&guest, "ready")?;
        let checkpoint = lab.checkpoint(&guest)?;
        guest.write("\u{3}")?;
        shows(&guest, "interrupted")?;
        let finished = guest.finish()?;
        ensure!(finished.code == 7, "{finished:?}");
        let restart =
            format!("{} {}", lab.bin.join("ulpm_restart").display(), checkpoint.path.display());
        let twin = on_terminal(lab, 0, "trap", &exec(&restart))?;
        ulpm_tests::until("the restarted job to run", ulpm_tests::DEADLINE, || {
            Ok(lab.job(0, "trap")?.filter(|job| job["state"] == "running"))
        })?;
        twin.write("\u{3}")?;
        shows(&twin, "interrupted")?;
        let finished = twin.finish()?;
        ensure!(finished.code == 7, "{finished:?}");
        Ok(())
    })
}

#[test]
fn terminal_is_put_right_when_the_program_moves_away() -> Result {
    Lab::two_hosts(|lab| {
        // An editor would do this: no echo, no lines.
        let program = "stty raw -echo; echo ready; exec sleep 1000";
        let line = format!("{}; stty -a | tr \";\" \"\\n\"", launch_line(lab, "raw", program));
        let guest = on_terminal(lab, 0, "raw", &line)?;
        shows(&guest, "ready")?;
        let migration = lab.migrate("raw", 0, 1)?;
        lab.tool(1, "ulpm_command", &["--kill", &migration.target_id.to_string()])?.success()?;
        let finished = guest.finish()?;
        let settings: Vec<&str> = finished.stdout.split_ascii_whitespace().collect();
        for wanted in ["echo", "icanon", "isig", "opost"] {
            ensure!(settings.contains(&wanted), "{wanted} is not set: {}", finished.stdout);
        }
        Ok(())
    })
}

#[test]
fn interactive_shell_has_the_terminal_after_a_restart() -> Result {
    Lab::one_host(|lab| {
        let (launch, images) = (lab.bin.join("ulpm_launch"), lab.images());
        let line = format!(
            "exec {} -d {} --name bash -- bash --norc -i",
            launch.display(),
            images.display()
        );
        let guest = on_terminal(lab, 0, "bash", &line)?;
        guest.write("echo one$((1+1))\n")?;
        shows(&guest, "one2")?;
        let checkpoint = lab.checkpoint(&guest)?;
        guest.kill_tree()?;
        // The directory of the job stands for its newest checkpoint.
        let job = checkpoint.path.parent().ok_or("a checkpoint without a job")?;
        let restart = format!("exec {} {}", lab.bin.join("ulpm_restart").display(), job.display());
        let twin = on_terminal(lab, 0, "bash", &restart)?;
        twin.write("echo two$((1+1))\n")?;
        shows(&twin, "two2")?;
        // Job control: the terminal goes to a command and comes back.
        twin.write("bash -c 'echo three$((1+1))'\n")?;
        shows(&twin, "three2")?;
        twin.write("exit 5\n")?;
        let finished = twin.finish()?;
        ensure!(finished.code == 5, "exit status {}: {}", finished.code, finished.stdout);
        Ok(())
    })
}

/// A program that uses the whole screen, of a terminal with 24 lines of 80 characters.
fn on_screen<'lab>(lab: &'lab Lab, name: &str, line: &str) -> Result<Guest<'lab>> {
    let settings = "stty -a | tr \";\" \"\\n\"";
    on_terminal(lab, 0, name, &format!("stty rows 24 cols 80; {line}; {settings}; exit $code"))
}

/// Starts `program` in a directory with a file of numbered lines, does `before`, has it saved and killed, and restarts
/// it on another terminal, where it draws `screen` by itself, and goes on with `after`. Both terminals have their
/// modes again in the end.
fn draws_its_screen_again(
    program: &str,
    screen: &str,
    before: impl FnOnce(&Guest<'_>) -> Result,
    after: impl FnOnce(&Guest<'_>) -> Result,
) -> Result<String> {
    let mut file = String::new();
    Lab::one_host(|lab| {
        let path = lab.dir.join("lines");
        let lines: String = (1..=300).map(|number| format!("line {number}\n")).collect();
        std::fs::write(&path, lines)?;
        let (launch, images) = (lab.bin.join("ulpm_launch"), lab.images());
        let (launch, images) = (launch.display(), images.display());
        let program = program.replace("FILE", &path.to_string_lossy());
        let line = format!("{launch} -d {images} --name screen -- {program}; code=$?");
        let guest = on_screen(lab, "screen", &line)?;
        before(&guest)?;
        shows(&guest, screen)?;
        let checkpoint = lab.checkpoint_and_kill(&guest)?;
        modes_are_back(&guest.output())?;
        let restart = lab.bin.join("ulpm_restart");
        let line = format!("{} {}; code=$?", restart.display(), checkpoint.path.display());
        let twin = on_screen(lab, "screen", &line)?;
        shows(&twin, screen)?;
        after(&twin)?;
        let finished = twin.finish()?;
        ensure!(finished.code == 0, "exit status {}: {}", finished.code, finished.stdout);
        modes_are_back(&finished.stdout)?;
        file = std::fs::read_to_string(&path)?;
        Ok(())
    })?;
    Ok(file)
}

fn modes_are_back(shown: &str) -> Result {
    let settings: Vec<&str> = shown.split_ascii_whitespace().collect();
    for wanted in ["echo", "icanon", "isig", "icrnl", "opost"] {
        ensure!(settings.contains(&wanted), "{wanted} is not set: {shown}");
    }
    Ok(())
}

#[test]
fn less() -> Result {
    let further = |guest: &Guest<'_>| {
        guest.write(" ")?;
        shows(guest, "line 46")
    };
    draws_its_screen_again("less FILE", "line 46", further, |guest| {
        guest.write(" ")?;
        shows(guest, "line 69")?;
        guest.write("/line 250\n")?;
        shows(guest, "line 272")?;
        guest.write("q")
    })?;
    Ok(())
}

#[test]
fn vim() -> Result {
    let insert = |guest: &Guest<'_>| {
        shows(guest, "line 12")?;
        guest.write("O")?;
        guest.write("before the checkpoint")
    };
    let file = draws_its_screen_again(
        "vim.tiny -u NONE -n -i NONE FILE",
        "before the checkpoint",
        insert,
        |guest| {
            guest.write(" and after it\u{1b}")?;
            shows(guest, "and after it")?;
            guest.write("dG:wq\n")
        },
    )?;
    ensure!(file.is_empty(), "it was written: {file}");
    Ok(())
}

#[test]
fn nano() -> Result {
    let insert = |guest: &Guest<'_>| {
        shows(guest, "line 12")?;
        guest.write("before the checkpoint")
    };
    let file = draws_its_screen_again("nano -I FILE", "before the checkpoint", insert, |guest| {
        guest.write(" and after it\r")?;
        shows(guest, "and after it")?;
        guest.write("\u{18}y\r")
    })?;
    ensure!(file.starts_with("before the checkpoint and after it\nline 1\n"), "{file}");
    Ok(())
}

#[test]
fn top() -> Result {
    draws_its_screen_again("top -d 60", "load average", |_| Ok(()), |guest| guest.write("q"))?;
    Ok(())
}

#[test]
fn shell_goes_on_with_a_stopped_and_a_background_job() -> Result {
    Lab::one_host(|lab| {
        let (launch, images) = (lab.bin.join("ulpm_launch"), lab.images());
        let (launch, images) = (launch.display(), images.display());
        let line = format!("exec {launch} -d {images} --name bash -- bash --norc -i");
        let guest = on_terminal(lab, 0, "bash", &line)?;
        shows(&guest, "bash-")?;
        guest.write("sleep 1000 & cat\n")?;
        shows(&guest, "sleep 1000 & cat\r\n")?;
        guest.write("seen\n")?;
        shows(&guest, "seen\r\nseen\r\n")?;
        guest.write("\u{1a}")?;
        shows(&guest, "Stopped")?;
        let mut checkpoint = lab.checkpoint_and_kill(&guest)?;
        for restart in 1..=3 {
            let line = format!(
                "exec {} {}",
                lab.bin.join("ulpm_restart").display(),
                checkpoint.path.display()
            );
            let twin = on_terminal(lab, 0, "bash", &line)?;
            twin.write(&format!("jobs; echo told $(({restart}+1))\n"))?;
            shows(&twin, &format!("told {}", restart + 1))?;
            let jobs = twin.output();
            for (state, job) in [("Running", "sleep 1000"), ("Stopped", "cat")] {
                let listed = jobs.lines().any(|line| line.contains(state) && line.contains(job));
                ensure!(listed, "{job} is not listed as {state}: {jobs}");
            }
            // In the foreground it reads, and stops.
            twin.write("fg %2\n")?;
            shows(&twin, "\rcat\r\n")?;
            twin.write("again\n")?;
            shows(&twin, "again\r\nagain\r\n")?;
            if restart == 3 {
                twin.write("\u{4}")?;
                twin.write("kill %1; wait %1; echo ended $?; exit 5\n")?;
                shows(&twin, "ended 143")?;
                let finished = twin.finish()?;
                ensure!(finished.code == 5, "{finished:?}");
                return Ok(());
            }
            twin.write("\u{1a}")?;
            // `jobs` has said this before: the checkpoint may come at any moment of its stopping.
            shows(&twin, "Stopped                 cat\r\n")?;
            checkpoint = lab.checkpoint_and_kill(&twin)?;
        }
        Ok(())
    })
}

#[test]
fn more() -> Result {
    Lab::one_host(|lab| {
        let path = lab.dir.join("lines");
        let lines: String = (1..=300).map(|number| format!("line {number}\n")).collect();
        std::fs::write(&path, lines)?;
        let program = format!("more {}", path.display());
        let (launch, images) = (lab.bin.join("ulpm_launch"), lab.images());
        let (launch, images) = (launch.display(), images.display());
        let line = format!("{launch} -d {images} --name screen -- {program}; code=$?");
        let guest = on_screen(lab, "screen", &line)?;
        shows(&guest, "--More--")?;
        let checkpoint = lab.checkpoint_and_kill(&guest)?;
        let restart = lab.bin.join("ulpm_restart");
        let line = format!("{} {}; code=$?", restart.display(), checkpoint.path.display());
        let twin = on_screen(lab, "screen", &line)?;
        ulpm_tests::until("the restarted job to run", ulpm_tests::DEADLINE, || {
            Ok(lab.job(0, "screen")?.filter(|job| job["state"] == "running"))
        })?;
        // It draws nothing by itself, but goes on where it was.
        twin.write(" ")?;
        shows(&twin, "line 40")?;
        twin.write("q")?;
        let finished = twin.finish()?;
        ensure!(!finished.stdout.contains("line 20\r"), "{}", finished.stdout);
        modes_are_back(&finished.stdout)
    })
}

/// A shell on a terminal that script(1) has made inside the job: nobody else holds its other end.
#[test]
fn script() -> Result {
    Lab::one_host(|lab| {
        let (launch, images) = (lab.bin.join("ulpm_launch"), lab.images());
        let (launch, images) = (launch.display(), images.display());
        let typescript = lab.dir.join("typescript");
        let line = format!(
            "exec {launch} -d {images} --name script -- script -qefc \"bash --norc -i\" {}",
            typescript.display()
        );
        let mut guest = on_terminal(lab, 0, "script", &line)?;
        shows(&guest, "bash-")?;
        for round in 1..=3 {
            guest.write(&format!("number=$((number+{round})); /bin/echo is $number.\n"))?;
            shows(&guest, &format!("is {}.", round * (round + 1) / 2))?;
            let checkpoint = lab.checkpoint_and_kill(&guest)?;
            let restart = lab.bin.join("ulpm_restart");
            let line = format!("exec {} {}", restart.display(), checkpoint.path.display());
            guest = on_terminal(lab, 0, "script", &line)?;
        }
        guest.write("exit $number\n")?;
        guest.finish()?.expect_code(6)?;
        let written = std::fs::read_to_string(&typescript)?;
        for wanted in ["is 1.", "is 3.", "is 6.", "exit $number"] {
            ensure!(written.contains(wanted), "{wanted} is not in the typescript: {written}");
        }
        Ok(())
    })
}

/// As `vim`, with the file that it keeps beside the one that is edited.
#[test]
fn vim_with_a_swap_file() -> Result {
    let insert = |guest: &Guest<'_>| {
        shows(guest, "line 12")?;
        guest.write("Obefore the checkpoint")
    };
    let file = draws_its_screen_again(
        "vim.tiny -u NONE -i NONE -c set\\ swapfile\\ updatecount=1 FILE",
        "before the checkpoint",
        insert,
        |guest| {
            guest.write(" and after it\u{1b}:preserve\n:sw\n")?;
            shows(guest, ".lines.swp")?;
            guest.write(":wq\n")
        },
    )?;
    ensure!(file.starts_with("before the checkpoint and after it\nline 1\n"), "{file}");
    Ok(())
}

#[test]
fn stopped_pipeline_is_continued_after_a_restart() -> Result {
    Lab::one_host(|lab| {
        let (launch, images) = (lab.bin.join("ulpm_launch"), lab.images());
        let (launch, images) = (launch.display(), images.display());
        let line = format!("exec {launch} -d {images} --name bash -- bash --norc -i");
        let mut guest = on_terminal(lab, 0, "bash", &line)?;
        shows(&guest, "bash-")?;
        guest.write("cat | sed -u s/line/LINE/ | sed -u s/^/got=/\n")?;
        shows(&guest, "got=/\r\n")?;
        for round in 1..=3 {
            guest.write(&format!("line {round}\n"))?;
            shows(&guest, &format!("got=LINE {round}\r\n"))?;
            guest.write("\u{1a}")?;
            shows(&guest, "Stopped")?;
            let checkpoint = lab.checkpoint_and_kill(&guest)?;
            let restart = lab.bin.join("ulpm_restart");
            let line = format!("exec {} {}", restart.display(), checkpoint.path.display());
            guest = on_terminal(lab, 0, "bash", &line)?;
            guest.write("fg\n")?;
            shows(&guest, "got=/\r\n")?;
        }
        guest.write("\u{4}")?;
        guest.write("exit 4\n")?;
        guest.finish()?.expect_code(4)?;
        Ok(())
    })
}
/// The server has the terminals of its windows, the client is attached to it over a unix socket; both are in the job.
#[test]
fn tmux() -> Result {
    if !is_root() {
        println!(
            "tmux starts the shell of the user's account, and nobody has none: the run as root shows this"
        );
        return Ok(());
    }
    Lab::one_host(|lab| {
        let (launch, images) = (lab.bin.join("ulpm_launch"), lab.images());
        let (launch, images) = (launch.display(), images.display());
        let socket = lab.dir.join("tmux");
        let tmux = format!("tmux -f /dev/null -S {}", socket.display());
        let line = format!(
            "{launch} -d {images} --name tmux -- {tmux} new-session \"bash --norc -i\"; code=$?"
        );
        let mut guest = on_screen(lab, "tmux", &line)?;
        shows(&guest, "bash-")?;
        guest.write("number=0\n")?;
        for round in 1..=3 {
            guest.write(&format!("number=$((number+{round})); /bin/echo is $number.\n"))?;
            shows(&guest, &format!("is {}.", round * (round + 1) / 2))?;
            if round == 2 {
                // Another window, and back by a key.
                guest.write("\u{2}c")?;
                shows(&guest, "1:")?;
                guest.write("\u{2}p")?;
            }
            let checkpoint = lab.checkpoint_and_kill(&guest)?;
            modes_are_back(&guest.output())?;
            let restart = lab.bin.join("ulpm_restart");
            let line = format!("{} {}; code=$?", restart.display(), checkpoint.path.display());
            guest = on_screen(lab, "tmux", &line)?;
            // Drawn again.
            shows(&guest, &format!("is {}.", round * (round + 1) / 2))?;
        }
        guest.write(&format!("{tmux} kill-server\n"))?;
        guest.finish()?.expect_code(1)?;
        Ok(())
    })
}
