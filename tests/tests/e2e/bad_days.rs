//! Full disks, two commands at once, jobs that are just ending: an error in words, and a program unharmed.

use std::fs;
use std::path::Path;
use std::process::Command;

use ulpm_tests::{Checkpoint, Guest, Lab, Program, Result, ensure, is_root};

/// Fails when there is anything below `dir` that a failed checkpoint left behind.
fn no_traces(dir: &Path, generations: usize) -> Result {
    for job in fs::read_dir(dir)?.flatten() {
        let mut complete = 0;
        for entry in fs::read_dir(job.path())?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "latest" {
                let manifest = entry.path().join("manifest.json");
                ensure!(manifest.is_file(), "latest points to what has no manifest");
            } else {
                let is_number = name.chars().all(|c| c.is_ascii_digit());
                ensure!(is_number, "{} was left over", entry.path().display());
                ensure!(
                    entry.path().join("manifest.json").is_file(),
                    "{name} is half a checkpoint"
                );
                complete += 1;
            }
        }
        ensure!(complete == generations, "{complete} generations instead of {generations}");
    }
    Ok(())
}

fn goes_on(guest: &Guest<'_>) -> Result {
    let last = guest.last_step();
    guest.wait_step(last + 3)?;
    Ok(())
}

/// A file system that is small, and gone with the value.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path, megabytes: u32) -> Result<Self> {
        fs::create_dir(at)?;
        let option = format!("size={megabytes}m");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &option, "ulpm"]).arg(at).status()?;
        ensure!(status.success(), "cannot mount a tmpfs");
        Ok(Self(at))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // A failure shows when the lab's directory cannot be removed.
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn full_disk() -> Result {
    if !is_root() {
        println!("only root may mount a small file system");
        return Ok(());
    }
    Lab::one_host(|lab| {
        let small = lab.dir.join("small");
        let _disk = SmallDisk::mount(&small, 40)?;
        // The last -d counts.
        let program = Program::guest("random_memory", 100_000).arg("24");
        let mut command = lab.hosts[0].tool("ulpm_launch");
        command.arg("-d").arg(&small).args(["--name", "big", "--"]);
        command.arg(ulpm_tests::guest_path("random_memory")?).args(&program.argv[1..]);
        let guest = lab.start_command(0, "big", command)?;
        guest.wait_step(2)?;
        lab.checkpoint(&guest)?;
        for _ in 0..2 {
            let output = lab.tool(0, "ulpm_command", &["--checkpoint", "big"])?;
            output.failure(&["space"])?;
            goes_on(&guest)?;
            no_traces(&small, 1)?;
        }
        guest.kill_tree()?;
        let twin = lab.restart(&guest, &small.join("big/latest"))?;
        twin.wait_step(3)?;
        twin.kill_tree()?;
        Ok(())
    })
}

#[test]
fn limit_on_the_size_of_files_does_not_end_the_program() -> Result {
    Lab::one_host(|lab| {
        let mut program = Program::guest("random_memory", 100_000).arg("8");
        program.argv.splice(0..0, ["prlimit".into(), "--fsize=1000000".into()]);
        let guest = lab.launch(&program)?;
        guest.wait_step(2)?;
        // Whoever writes the image may be bound by the limit or not; SIGXFSZ is for the program alone.
        let output = lab.tool(0, "ulpm_command", &["--checkpoint", &guest.name])?;
        if output.code == 0 {
            no_traces(&lab.images(), 1)?;
        } else {
            output.failure(&["large"])?;
            no_traces(&lab.images(), 0)?;
        }
        goes_on(&guest)?;
        guest.kill_tree()?;
        Ok(())
    })
}

#[test]
fn directory_that_cannot_be_written() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("counter", 100_000))?;
        guest.wait_step(2)?;
        let images = lab.images();
        fs::remove_dir_all(&images)?;
        fs::write(&images, "in the way")?;
        let output = lab.tool(0, "ulpm_command", &["--checkpoint", &guest.name])?;
        output.failure(&["images"])?;
        goes_on(&guest)?;
        fs::remove_file(&images)?;
        fs::create_dir(&images)?;
        lab.checkpoint(&guest)?;
        guest.kill_tree()?;
        Ok(())
    })
}

#[test]
fn two_checkpoints_at_once() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("random_memory", 100_000).arg("64"))?;
        guest.wait_step(2)?;
        for _ in 0..5 {
            let one = || lab.tool(0, "ulpm_command", &["--json", "--checkpoint", &guest.name]);
            let outputs = std::thread::scope(|scope| {
                let threads = [scope.spawn(one), scope.spawn(one), scope.spawn(one)];
                threads.map(|thread| thread.join().map_err(|_| "a thread panicked"))
            });
            let mut done = 0;
            for output in outputs {
                let output = output??;
                if output.code == 0 {
                    Checkpoint::parse(&output.stdout)?;
                    done += 1;
                } else {
                    output.failure(&[&guest.name, "again"])?;
                }
            }
            ensure!(done >= 1, "none of three checkpoints at once was made");
            goes_on(&guest)?;
        }
        let path = lab.images().join(&guest.name).join("latest");
        guest.kill_tree()?;
        let twin = lab.restart(&guest, &path)?;
        twin.wait_step(3)?;
        twin.kill_tree()?;
        Ok(())
    })
}

#[test]
fn job_that_is_just_ending() -> Result {
    Lab::one_host(|lab| {
        let mut made = 0;
        for round in 0..25 {
            let guest = lab.launch(&Program::guest("counter", 6).arg("3"))?;
            // At the first step, in the middle, after the last, or when it is gone.
            if round % 5 < 4 {
                guest.wait_step(1 + round % 5 * 2 - u64::from(round % 5 == 3))?;
            } else {
                guest.wait_for("ok counter")?;
            }
            let output = lab.tool(0, "ulpm_command", &["--checkpoint", &guest.name])?;
            if output.code == 0 {
                made += 1;
            } else {
                output.failure(&[&guest.name])?;
            }
            guest.finish()?.expect_code(3)?;
        }
        println!("{made} of 25 checkpoints were made");
        Ok(())
    })
}

#[test]
fn program_that_is_stopped_is_saved_as_stopped() -> Result {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("counter", 100))?;
        guest.wait_step(5)?;
        let pid = guest.real_pid()?;
        kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
        ulpm_tests::until("the program to stop", ulpm_tests::DEADLINE, || {
            let state = ulpm_tests::Process::read(pid).map(|process| process.state);
            Ok((state == Some('T')).then_some(()))
        })?;
        let checkpoint = lab.checkpoint(&guest)?;
        let state = ulpm_tests::Process::read(pid).map(|process| process.state);
        ensure!(state == Some('T'), "the checkpoint woke it: {state:?}");
        guest.kill_tree()?;
        let twin = lab.restart(&guest, &checkpoint.path)?;
        let pid =
            ulpm_tests::until("the restarted program to be stopped", ulpm_tests::DEADLINE, || {
                let Ok(pid) = twin.real_pid() else { return Ok(None) };
                let state = ulpm_tests::Process::read(pid).map(|process| process.state);
                Ok((state == Some('T')).then_some(pid))
            })?;
        ensure!(twin.last_step() == 0, "it ran: {}", twin.output());
        kill(Pid::from_raw(pid), Signal::SIGCONT)?;
        twin.finish()?.expect_code(0)?;
        Ok(())
    })
}

#[test]
fn thread_in_uninterruptible_sleep_is_named_and_unharmed() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("vfork_sleeper", 3))?;
        guest.set_limit(0)?;
        guest.wait_for("ok")?;
        let pid = guest.real_pid()?;
        ulpm_tests::until("the program to sleep", ulpm_tests::DEADLINE, || {
            let state = ulpm_tests::Process::read(pid).map(|process| process.state);
            Ok((state == Some('D')).then_some(()))
        })?;
        let said = lab.tool(0, "ulpm_command", &["--checkpoint", &guest.name])?;
        // The manager's words or the coordinator's, whoever is first at the deadline.
        let manager = said.stderr.contains("state D, system call VFORK");
        let words = if manager { "try again" } else { "cannot be interrupted" };
        said.failure(&["did not stop", words])?;
        no_traces(&lab.images(), 0)?;
        guest.set_free()?;
        guest.finish()?.expect_code(0)?;
        Ok(())
    })
}

/// Where no copy of the process can be forked, it writes its image itself.
#[test]
fn program_that_may_not_fork_is_saved_while_it_stands_still() -> Result {
    if is_root() {
        println!("root may always fork: the run as an unprivileged user shows this");
        return Ok(());
    }
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("random_memory", 1000).arg("16"))?;
        guest.wait_step(3)?;
        let pid = guest.real_pid()?.to_string();
        let status = Command::new("prlimit").args(["--pid", &pid, "--nproc=1"]).status()?;
        ensure!(status.success(), "prlimit: {status}");
        let checkpoint = lab.checkpoint(&guest)?;
        goes_on(&guest)?;
        guest.kill_tree()?;
        let twin = lab.restart(&guest, &checkpoint.path)?;
        twin.wait_step(6)?;
        twin.kill_tree()?;
        Ok(())
    })
}
