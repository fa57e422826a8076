//! Jobs that fail, and are restarted from their last complete generation: never two at a time, and never none without a word.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ulpm_tests::{DEADLINE, Guest, Lab, Program, Result, ensure, processes, until};

/// A parent and two workers that check each other's work.
fn workers(steps: u64) -> Program {
    Program::script("python3", "workers.py", steps).option("--on-failure=restart")
}

fn expected(steps: u64) -> String {
    let total: u64 = (1..=steps).map(|step| step * step + (step + 1) * (step + 1)).sum();
    format!("ok workers {total}")
}

fn kill_9(pid: i32) -> Result {
    Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?)
}

/// Real ids of the job's processes, the root first.
fn members(lab: &Lab, guest: &Guest<'_>) -> Result<Vec<i32>> {
    let job = lab.job(guest.host_index(), &guest.name)?.ok_or("the job is not listed")?;
    let list = job["processes"].as_array().ok_or("no list of processes")?;
    let mut ids: Vec<(i64, i64)> = Vec::new();
    for process in list {
        let id = |name: &str| process[name].as_i64().ok_or("no id");
        ids.push((id("virt")?, id("real")?));
    }
    ids.sort_unstable();
    ids.into_iter().map(|(_, real)| Ok(i32::try_from(real)?)).collect()
}

fn restarts(lab: &Lab, guest: &Guest<'_>) -> Result<u64> {
    let job = lab.job(guest.host_index(), &guest.name)?.ok_or("the job is not listed")?;
    Ok(job["restarts"].as_u64().ok_or("--status does not tell of restarts")?)
}

fn wait_restarts(lab: &Lab, guest: &Guest<'_>, count: u64) -> Result {
    until(format!("restart {count} of {}", guest.name), DEADLINE, || {
        ensure!(!guest.has_ended()?, "it has ended: {}", guest.errors());
        let Some(job) = lab.job(guest.host_index(), &guest.name)? else { return Ok(None) };
        let done = job["restarts"].as_u64() == Some(count) && job["state"] == "running";
        Ok(done.then_some(()))
    })
}

/// Looks all the time how many processes of the program there are, until it is told to stop. (One that is being rebuilt
/// is none yet, and the copy that writes an image runs nothing of it.)
struct Watcher {
    stop: std::sync::Arc<AtomicBool>,
    thread: std::thread::JoinHandle<usize>,
}

impl Watcher {
    fn of(lab: &Lab) -> Self {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let (told, marker) = (stop.clone(), format!("ULPM_TEST_LAB={}", lab.dir.display()));
        let thread = std::thread::spawn(move || {
            let mut most = 0;
            while !told.load(Ordering::Relaxed) {
                let running = processes().into_iter().filter(|process| {
                    process.state != 'Z'
                        && process.file("cmdline").contains("workers.py")
                        && !process.file("comm").starts_with("ulpm-")
                        && process.file("maps").contains("/python3")
                        && process.file("environ").contains(&marker)
                });
                // Whoever starts it has it on its command line too, and is no Python.
                most = most.max(running.count());
                std::thread::sleep(Duration::from_millis(3));
            }
            most
        });
        Self { stop, thread }
    }

    fn most(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.thread.join().map_err(|_| "the watcher failed")?)
    }
}

/// Steps in the order in which they were taken: how often it went back, which each restart does at most once.
fn went_back(dir: &Path) -> Result<usize> {
    let text = fs::read_to_string(dir.join("witness"))?;
    let steps: Vec<i64> = text.lines().map(str::parse).collect::<std::result::Result<_, _>>()?;
    let pairs = || steps.iter().zip(steps.iter().skip(1));
    for (before, after) in pairs() {
        ensure!(after - before <= 1, "step {after} comes behind {before}");
    }
    Ok(pairs().filter(|(before, after)| after <= before).count())
}

/// A job that has taken 20 steps, was saved, and has taken some more.
fn saved<'lab>(lab: &'lab Lab, program: &Program) -> Result<(Guest<'lab>, PathBuf)> {
    let guest = lab.launch(program)?;
    guest.set_limit(20)?;
    guest.wait_step(20)?;
    let path = lab.checkpoint(&guest)?.path;
    guest.set_limit(30)?;
    guest.wait_step(30)?;
    Ok((guest, path))
}

fn finish(guest: &Guest<'_>, steps: u64) -> Result {
    guest.set_free()?;
    let done = guest.finish()?.expect_code(0)?;
    ensure!(
        done.stdout.lines().last() == Some(&*expected(steps)),
        "the result is wrong: {}",
        done.stdout
    );
    Ok(())
}

#[test]
fn a_worker_that_is_killed() -> Result {
    Lab::one_host(|lab| {
        let (guest, _) = saved(lab, &workers(60))?;
        let watcher = Watcher::of(lab);
        for round in 1..=3 {
            let victim = *members(lab, &guest)?.last().ok_or("no process")?;
            kill_9(victim)?;
            wait_restarts(lab, &guest, round)?;
            ensure!(members(lab, &guest)?.len() == 3, "not all processes are back");
        }
        finish(&guest, 60)?;
        let words = guest.errors();
        for word in ["was ended by SIGKILL", "it is restarted in 4 s (3 of 5 within an hour)"] {
            ensure!(words.contains(word), "the launcher does not speak of {word:?}:\n{words}");
        }
        ensure!(went_back(&guest.dir)? <= 3, "it went back too often");
        let most = watcher.most()?;
        ensure!(most <= 3, "{most} processes at a time");
        Ok(())
    })
}

#[test]
fn the_first_process_is_killed() -> Result {
    Lab::one_host(|lab| {
        let (guest, _) = saved(lab, &workers(60))?;
        let watcher = Watcher::of(lab);
        for round in 1..=2 {
            kill_9(members(lab, &guest)?[0])?;
            wait_restarts(lab, &guest, round)?;
        }
        // A restart of a restart is saved as ever.
        lab.checkpoint(&guest)?;
        guest.set_limit(40)?;
        guest.wait_step(40)?;
        kill_9(members(lab, &guest)?[0])?;
        finish(&guest, 60)?;
        ensure!(went_back(&guest.dir)? <= 3, "it went back too often");
        let most = watcher.most()?;
        ensure!(most <= 3, "{most} processes at a time");
        Ok(())
    })
}

#[test]
fn what_the_job_does_itself_is_no_failure() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&workers(60).arg("murder"))?;
        guest.set_limit(20)?;
        guest.wait_step(20)?;
        lab.checkpoint(&guest)?;
        guest.set_limit(50)?;
        guest.wait_step(50)?;
        ensure!(restarts(lab, &guest)? == 0, "it was restarted");
        finish(&guest, 60)?;
        ensure!(went_back(&guest.dir)? == 0, "it went back");
        Ok(())
    })
}

#[test]
fn one_that_crashes_again_and_again_is_given_up() -> Result {
    Lab::one_host(|lab| {
        let (guest, path) = saved(lab, &workers(60).option("--max-restarts=2").arg("crash"))?;
        let began = Instant::now();
        guest.set_free()?;
        let done = guest.finish()?.expect_code(139)?;
        ensure!(began.elapsed() >= Duration::from_secs(3), "there were no pauses");
        let dir = path.parent().ok_or("no parent")?.display().to_string();
        for word in [
            "was ended by SIGSEGV",
            "in 1 s (1 of 2 within an hour)",
            "in 2 s (2 of 2 within an hour)",
            "not restarted: it was restarted 2 times",
            &format!("ulpm_restart {dir}"),
        ] {
            ensure!(done.stderr.contains(word), "nothing is said of {word:?}:\n{}", done.stderr);
        }
        ensure!(went_back(&guest.dir)? == 2, "it went back {} times", went_back(&guest.dir)?);
        until("the job to be forgotten", DEADLINE, || {
            Ok(lab.job(0, &guest.name)?.is_none().then_some(()))
        })
    })
}

#[test]
fn without_a_checkpoint_it_is_said() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&workers(60))?;
        guest.set_limit(20)?;
        guest.wait_step(20)?;
        kill_9(members(lab, &guest)?[0])?;
        let done = guest.finish()?.expect_code(137)?;
        let word = "it has no complete checkpoint";
        ensure!(done.stderr.contains(word), "{}", done.stderr);
        Ok(())
    })
}

#[test]
fn ending_a_job_is_no_failure_and_the_choice_can_change() -> Result {
    Lab::one_host(|lab| {
        let (guest, _) = saved(lab, &workers(60))?;
        lab.tool(0, "ulpm_command", &["--on-failure", "none", &guest.name])?.success()?;
        let job = lab.job(0, &guest.name)?.ok_or("the job is not listed")?;
        ensure!(job["on_failure"] == "none", "{job}");
        lab.tool(0, "ulpm_command", &["--on-failure", "restart", &guest.name])?.success()?;
        lab.tool(0, "ulpm_command", &["--kill", &guest.name])?.success()?;
        guest.finish()?.expect_code(137)?;

        let (guest, _) = saved(lab, &workers(60))?;
        lab.tool(0, "ulpm_command", &["--checkpoint", "--kill", &guest.name])?.success()?;
        guest.finish()?.expect_code(137)?;
        until("the jobs to be forgotten", DEADLINE, || {
            Ok(lab.job(0, &guest.name)?.is_none().then_some(()))
        })
    })
}

#[test]
fn a_damaged_generation_is_passed_over() -> Result {
    Lab::one_host(|lab| {
        let (guest, first) = saved(lab, &workers(60))?;
        let second = lab.checkpoint(&guest)?.path;
        let images = fs::read_dir(&second)?.flatten().map(|entry| entry.path());
        let image = images.into_iter().find(|path| path.extension() == Some("ulpm".as_ref()));
        let image = image.ok_or("no image")?;
        let mut bytes = fs::read(&image)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&image, bytes)?;
        guest.set_limit(40)?;
        guest.wait_step(40)?;
        kill_9(members(lab, &guest)?[0])?;
        finish(&guest, 60)?;
        let generation = second.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let word = format!("generation {generation} is of no use, the one before is taken");
        ensure!(guest.errors().contains(&word), "{}", guest.errors());
        let text = fs::read_to_string(guest.dir.join("witness"))?;
        let again = text.lines().filter(|line| *line == "21").count();
        ensure!(again == 2, "it did not go on from {}", first.display());
        Ok(())
    })
}

/// The named points of a recovery.
const POINTS: [&str; 8] =
    ["Logged", "Ended", "Chosen", "Table", "Offered", "Ready", "GoesOn", "none"];

#[test]
fn the_coordinator_is_killed_at_every_point_of_a_recovery() -> Result {
    for point in POINTS {
        Lab::one_host(|lab| {
            let host = &lab.hosts[0];
            host.kill_coordinator()?;
            host.start_faulty_coordinator(&format!("kill:recovery.{point}"))?;
            let (guest, _) = saved(lab, &workers(60))?;
            let watcher = Watcher::of(lab);
            kill_9(members(lab, &guest)?[1])?;
            if point != "none" {
                until(format!("the coordinator to die at {point}"), DEADLINE, || {
                    Ok(lab.hosts[0].status().is_err().then_some(()))
                })?;
                let _ = host.kill_coordinator();
                host.start_coordinator()?;
            }
            finish(&guest, 60).map_err(|error| format!("{point}: {error}"))?;
            ensure!(went_back(&guest.dir)? <= 2, "{point}: it went back too often");
            let most = watcher.most()?;
            ensure!(most <= 3, "{point}: {most} processes at a time");
            until("the job to be forgotten", DEADLINE, || {
                Ok(lab.job(0, &guest.name)?.is_none().then_some(()))
            })
        })?;
    }
    Ok(())
}

#[test]
fn all_is_gone_and_the_next_coordinator_restarts_it() -> Result {
    Lab::one_host(|lab| {
        let (guest, _) = saved(lab, &workers(60))?;
        let all = members(lab, &guest)?;
        lab.hosts[0].kill_coordinator()?;
        kill_9(guest.launcher_pid())?;
        for &pid in &all {
            kill_9(pid)?;
        }
        guest.finish()?;
        guest.set_free()?;
        lab.hosts[0].start_coordinator()?;
        until("its log", DEADLINE, || {
            let job = lab.job(0, &guest.name)?;
            Ok(job.filter(|job| job["has_output"] == true).map(|_| ()))
        })?;
        let log = lab.follow_output(0, &guest.name, &guest)?;
        let done = log.finish()?;
        ensure!(done.stdout.contains(&expected(60)), "{}{}", done.stdout, done.stderr);
        ensure!(went_back(&guest.dir)? == 1, "it went back too often");
        Ok(())
    })
}

#[test]
fn one_that_came_to_its_end_without_a_coordinator_is_not_restarted() -> Result {
    Lab::one_host(|lab| {
        let (guest, _) = saved(lab, &workers(60))?;
        lab.hosts[0].kill_coordinator()?;
        finish(&guest, 60)?;
        lab.hosts[0].start_coordinator()?;
        until("the job to be forgotten", DEADLINE, || {
            Ok(lab.job(0, &guest.name)?.is_none().then_some(()))
        })?;
        ensure!(went_back(&guest.dir)? == 0, "it went back");
        Ok(())
    })
}
