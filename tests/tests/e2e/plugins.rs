//! Plugins: what they are told, in which order, and what happens when they are not as they should be.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ulpm_tests::{
    DEADLINE, Guest, Lab, Pace, Program, Result, ensure, guest_path, program_path, until,
};

/// Processes of the guest `plugged`.
const TREE: usize = 8;

/// A program with plugins that log to the file that is returned.
fn with_plugins(lab: &Lab, program: Program, plugins: &[&Path]) -> (Program, PathBuf) {
    let log = lab.dir.join("plugins.log");
    let program = plugins.iter().fold(program, |program, plugin| {
        program.option("--plugin").option(plugin.to_string_lossy())
    });
    (program.option("--plugin-log").option(log.to_string_lossy()), log)
}

/// Waits until the log has so many lines that end so.
fn wait_told(log: &Path, end: &str, count: usize) -> Result {
    until(format!("{count} times {end:?} in the log"), DEADLINE, || {
        let text = fs::read_to_string(log).unwrap_or_default();
        Ok((text.lines().filter(|line| line.ends_with(end)).count() >= count).then_some(()))
    })
}

/// What each process was told, as plugin and event; processes that were told the same are counted.
fn told(log: &Path) -> Result<String> {
    let text = fs::read_to_string(log)?;
    let mut processes: Vec<(&str, String)> = Vec::new();
    for line in text.lines() {
        let (pid, event) = line.split_once(' ').ok_or("a line without a process")?;
        let known = processes.iter().position(|(other, _)| *other == pid);
        let index = known.unwrap_or_else(|| {
            processes.push((pid, String::new()));
            processes.len() - 1
        });
        processes[index].1 += &format!("  {event}\n");
    }
    let mut sequences: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, sequence) in &processes {
        *sequences.entry(sequence).or_default() += 1;
    }
    Ok(sequences.iter().map(|(sequence, count)| format!("{count}:\n{sequence}")).collect())
}

#[test]
fn a_plugin_in_c_and_one_in_rust_are_told_the_same_in_order() -> Result {
    Lab::two_hosts(|lab| {
        let veto = lab.dir.join("veto");
        let program = Program::guest("plugged", 40).env("PLUGIN_VETO", veto.to_string_lossy());
        let plugins = [lab.bin.join("libulpm_plugin_tell.so"), guest_path("plugin_told")?];
        let (program, log) = with_plugins(lab, program, &[&plugins[0], &plugins[1]]);
        let guest = lab.launch(&program)?;
        guest.set_limit(3)?;
        guest.wait_for("step 3")?;
        wait_told(&log, "told: after-exec", 1)?;
        let checkpoint = lab.checkpoint(&guest)?;
        wait_told(&log, "tell: thaw-checkpoint", TREE)?;
        let path = checkpoint.path.to_string_lossy().into_owned();
        let shown = lab.tool(0, "ulpm_command", &["--inspect", &path])?.success()?;
        let sections = shown.matches(", section of version 3: from told").count();
        ensure!(sections == TREE, "{sections} processes have the section of told");

        fs::write(&veto, "")?;
        let refused = lab.tool(0, "ulpm_command", &["--checkpoint", &guest.name])?;
        refused.failure(&["plugin told says no", "the file veto is there"])?;
        wait_told(&log, "tell: thaw-abort", TREE)?;
        fs::remove_file(&veto)?;

        let checkpoint = lab.checkpoint_and_kill(&guest)?;
        let twin = lab.restart(&guest, &checkpoint.path)?;
        twin.wait_running()?;
        wait_told(&log, "tell: thaw-restart", TREE)?;
        lab.migrate(&twin.name, 0, 1)?;
        wait_told(&log, "tell: post-migrate", TREE)?;
        twin.set_free()?;
        twin.finish()?.expect_code(0)?;

        let golden = include_str!("../../golden/plugins.txt");
        let told = told(&log)?;
        ensure!(told == golden, "the plugins were told\n{told}instead of\n{golden}");
        Ok(())
    })
}

/// Starts a counter whose plugin does something that it should not.
fn counter_with<'lab>(lab: &'lab Lab, does: &str) -> Result<(Guest<'lab>, PathBuf)> {
    let program = Program::guest("counter", 40).env("PLUGIN_DOES", does);
    let (program, log) = with_plugins(lab, program, &[&guest_path("plugin_told")?]);
    let guest = lab.launch(&program)?;
    guest.set_limit(3)?;
    guest.wait_for("step 3")?;
    Ok((guest, log))
}

fn checkpoint_is_refused(lab: &Lab, guest: &Guest<'_>, words: &[&str]) -> Result {
    let output = lab.tool(0, "ulpm_command", &["--checkpoint", &guest.name])?;
    ensure!(output.code == 1, "exit status {}: {}", output.code, output.stderr);
    output.failure(words).map(drop)
}

/// It goes on from a checkpoint to its end.
fn lives(lab: &Lab, guest: &Guest<'_>) -> Result {
    let checkpoint = lab.checkpoint_and_kill(guest)?;
    let twin = lab.restart(guest, &checkpoint.path)?;
    twin.set_free()?;
    twin.finish()?.expect_code(0).map(drop)
}

#[test]
fn a_plugin_that_crashes_before_a_freeze_has_that_checkpoint_refused_and_no_other() -> Result {
    for (does, signal) in [("pre-freeze=crash", 11), ("pre-freeze=abort", 6)] {
        Lab::one_host(|lab| {
            let (guest, _) = counter_with(lab, does)?;
            let crashed = format!("plugin told has crashed (signal {signal})");
            checkpoint_is_refused(lab, &guest, &[&crashed])?;
            lives(lab, &guest)
        })?;
    }
    Ok(())
}

#[test]
fn a_plugin_that_crashes_behind_a_thaw_is_told_no_more() -> Result {
    Lab::one_host(|lab| {
        let (guest, log) = counter_with(lab, "thaw-checkpoint=crash")?;
        lab.checkpoint(&guest)?;
        wait_told(&log, "told: thaw-checkpoint", 1)?;
        lab.checkpoint(&guest)?;
        let text = fs::read_to_string(&log)?;
        ensure!(text.matches("told: pre-freeze").count() == 1, "{text}");
        lives(lab, &guest)
    })
}

#[test]
fn a_plugin_that_blocks_has_checkpoints_refused_and_the_job_goes_on() -> Result {
    for event in ["pre-freeze", "thaw-checkpoint"] {
        Lab::one_host(|lab| {
            let (guest, _) = counter_with(lab, &format!("{event}=block"))?;
            if event == "thaw-checkpoint" {
                lab.checkpoint(&guest)?;
            }
            let words = format!("plugin told has not come back from {event}");
            checkpoint_is_refused(lab, &guest, &[&words])?;
            checkpoint_is_refused(lab, &guest, &[&words])?;
            guest.set_free()?;
            guest.finish()?.expect_code(0).map(drop)
        })?;
    }
    Ok(())
}

#[test]
fn what_is_no_plugin_is_refused_before_anything_is_started() -> Result {
    Lab::one_host(|lab| {
        let good = fs::read(guest_path("plugin_told")?)?;
        // The descriptor begins with its size and the version of the interface.
        let descriptor = [48, 0, 0, 0, 1, 0, 0, 0];
        let at = good.windows(8).position(|bytes| bytes == descriptor).ok_or("no descriptor")?;
        let other = |name: &str, change: &dyn Fn(&mut Vec<u8>)| -> Result<PathBuf> {
            let mut bytes = good.clone();
            change(&mut bytes);
            let path = lab.dir.join(name);
            fs::write(&path, bytes)?;
            Ok(path)
        };
        let cases: [(PathBuf, i32, &str); 8] = [
            (lab.dir.join("missing.so"), 66, "there is no plugin"),
            ("no-such-plugin".into(), 66, "there is no plugin no-such-plugin"),
            (other("arm.so", &|bytes| bytes[18] = 183)?, 78, "another machine (aarch64)"),
            (other("text.so", &|bytes| bytes[0] = b'x')?, 78, "no ELF file"),
            (other("short.so", &|bytes| bytes.truncate(100))?, 78, "damaged"),
            (other("new.so", &|bytes| bytes[at + 4] = 2)?, 76, "version 2 of the interface"),
            (lab.bin.join("libulpm_hijack.so"), 78, "does not export ulpm_plugin"),
            (other("a space.so", &|_| ())?, 78, "a colon or a space"),
        ];
        for (plugin, code, words) in cases {
            let plugin = plugin.to_string_lossy();
            let output = lab.tool(0, "ulpm_launch", &["--plugin", &plugin, "--", "echo", "ran"])?;
            ensure!(output.code == code, "{plugin}: {} instead of {code}", output.code);
            ensure!(output.stdout.is_empty(), "{plugin}: the program ran");
            output.failure(&[words])?;
        }
        Ok(())
    })
}

#[test]
fn a_plugin_that_is_missing_at_a_restart_is_named_and_only_one_that_is_required_is_needed() -> Result
{
    for required in [false, true] {
        Lab::one_host(|lab| {
            let mut plugin = fs::read(guest_path("plugin_told")?)?;
            let at = plugin.windows(8).position(|bytes| bytes == [48, 0, 0, 0, 1, 0, 0, 0]);
            // `flags` is at 36 in the descriptor.
            plugin[at.ok_or("no descriptor")? + 36] = u8::from(required);
            let path = lab.dir.join("told.so");
            fs::write(&path, plugin)?;
            // It executes others, which go without.
            let (program, _) =
                with_plugins(lab, Program::guest("surroundings", 20), &[path.as_path()]);
            let guest = lab.launch(&program)?;
            guest.set_limit(3)?;
            guest.wait_for("step 3")?;
            let checkpoint = lab.checkpoint_and_kill(&guest)?;
            fs::rename(&path, lab.dir.join("told.away"))?;
            if required {
                let path = checkpoint.path.to_string_lossy().into_owned();
                let refused = lab.tool(0, "ulpm_restart", &[&path])?;
                refused.failure(&["plugin told 1.0", "is not here, and wants to be required"])?;
                return Ok(());
            }
            let twin = lab.restart(&guest, &checkpoint.path)?;
            twin.set_free()?;
            let finished = twin.finish()?.expect_code(0)?;
            ensure!(
                finished.stderr.lines().count() == 1
                    && finished.stderr.contains("programs that the job starts go without it"),
                "{}",
                finished.stderr
            );
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_program_asks_for_checkpoints_and_holds_them_back() -> Result {
    Lab::one_host(|lab| {
        let program = Program::guest("asks", 20);
        lab.native(&program.clone().arg("natively"))?.finish()?.expect_code(0)?;
        let guest = lab.launch(&program)?;
        guest.set_limit(2)?;
        guest.wait_for("step 2")?;
        until("the refusal of a checkpoint", DEADLINE, || {
            let job = lab.job(0, &guest.name)?.ok_or("the job is not listed")?;
            let error = job["last_error"].as_str().unwrap_or_default();
            Ok(error.contains("has held checkpoints back").then_some(()))
        })?;
        guest.set_limit(4)?;
        guest.wait_for("step 4")?;
        let checkpoint = lab.checkpoint_and_kill(&guest)?;
        let twin = lab.restart(&guest, &checkpoint.path)?;
        twin.set_free()?;
        twin.finish()?.expect_code(0).map(drop)
    })
}

#[test]
fn a_python_program_saves_itself_and_knows_when_it_was_restarted() -> Result {
    Lab::one_host(|lab| {
        let modules = lab.dir.join("modules");
        fs::create_dir(&modules)?;
        fs::copy(guest_path("plugin_python")?, modules.join("ulpm.so"))?;
        let script = program_path("checkpoints_itself.py");
        let argv = ["/usr/bin/python3", &script.to_string_lossy(), &modules.to_string_lossy()];
        let mut guest = lab.launch(&Program::new("itself", &argv, Pace::Lines))?;
        let latest = lab.images().join(&guest.name).join("latest");
        for step in [7, 19, 31] {
            guest.wait_for(&format!("step {step}"))?;
            // Not by SIGSTOP first, as `kill_tree` does: it is being saved all the time, and would be saved as stopped.
            kill(Pid::from_raw(guest.real_pid()?), Signal::SIGKILL)?;
            guest.finish()?.expect_code(137)?;
            until("the end of the job", DEADLINE, || {
                Ok(lab.job(0, &guest.name)?.is_none().then_some(()))
            })?;
            guest = lab.restart(&guest, &latest.canonicalize()?)?;
        }
        let finished = guest.finish()?.expect_code(0)?;
        ensure!(finished.stdout.contains("restarted"), "{}", finished.stdout);
        ensure!(finished.stdout.ends_with("ok restarts 3\n"), "{}", finished.stdout);
        Ok(())
    })
}

#[test]
fn chosen_variables_are_read_anew_and_a_command_is_told() -> Result {
    Lab::one_host(|lab| {
        let told = lab.dir.join("told");
        let command = format!("echo \"$ULPM_EVENT ${{LD_PRELOAD-}}\" >> {}", told.display());
        let program = Program::guest("surroundings", 40)
            .env("ULPM_ENVIRON", "CHOSEN,ADDED,LEFT")
            .env("ULPM_NOTIFY", command)
            .env("CHOSEN", "one")
            .env("LEFT", "behind");
        let guest = lab.launch(
            &program.option("--plugin").option("environ").option("--plugin").option("notify"),
        )?;
        guest.set_limit(3)?;
        guest.wait_for("step 3")?;
        guest.wait_for("variables one - behind")?;
        lab.checkpoint(&guest)?;
        wait_told(&told, "thaw-checkpoint ", 1)?;
        let checkpoint = lab.checkpoint_and_kill(&guest)?;
        let mut command = lab.hosts[0].tool("ulpm_restart");
        command.env("CHOSEN", "two, and longer").env("ADDED", "").env_remove("LEFT");
        command.arg(&checkpoint.path);
        let twin = lab.start_command(0, &guest.name, command)?;
        guest.set_free()?;
        twin.wait_for("variables two, and longer  behind")?;
        twin.finish()?.expect_code(0)?;
        wait_told(&told, "thaw-restart ", 1)
    })
}

/// Runs each block of commands in docs/plugins.md as it is printed, in a directory where the sources lie.
#[test]
fn the_commands_in_the_documentation_work_as_printed() -> Result {
    let sources = program_path("../..");
    let Ok(text) = fs::read_to_string(sources.join("docs/plugins.md")) else {
        println!("the documentation is not here: the run as root shows this");
        return Ok(());
    };
    Lab::one_host(|lab| {
        let dir = lab.dir.join("docs");
        fs::create_dir(&dir)?;
        std::os::unix::fs::symlink(sources.join("plugins"), dir.join("plugins"))?;
        let blocks: Vec<&str> =
            text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        ensure!(blocks.len() >= 4, "only {} blocks of commands", blocks.len());
        for block in blocks {
            let mut command = lab.hosts[0].command("sh");
            command.args(["-euc", block]).current_dir(&dir);
            command.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", lab.bin.display()));
            lab.output(command)?.success()?;
        }
        Ok(())
    })
}
