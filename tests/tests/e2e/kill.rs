//! `kill -9` of every part of ULPM during each step: a running program or a restartable checkpoint is left, never two.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ulpm_tests::{
    DEADLINE, Guest, Lab, Process, Program, Random, Result, ensure, guest_path, processes, until,
};

/// Enough memory that an operation on it takes a while.
const MEGABYTES: &str = "96";

fn big() -> Program {
    Program::guest("random_memory", 1_000_000).arg(MEGABYTES)
}

/// Living processes of the guest `random_memory` in this lab.
fn instances(lab: &Lab) -> Result<Vec<Process>> {
    let program = guest_path("random_memory")?;
    let marker = format!("ULPM_TEST_LAB={}", lab.dir.display());
    Ok(processes()
        .into_iter()
        .filter(|process| {
            process.state != 'Z' && process.file("cmdline").starts_with(&*program.to_string_lossy())
        })
        .filter(|process| process.file("environ").contains(&marker))
        .collect())
}

/// Starts `ulpm_command` and, at a moment of its work, calls `kill`.
///
/// This is the one place where time is let pass: not to wait for something, but to choose a moment.
fn disturb(
    lab: &Lab,
    arguments: &[&str],
    random: &mut Random,
    span: Duration,
    kill: impl FnOnce(&mut std::process::Child) -> Result,
) -> Result {
    let mut command = lab.hosts[0].tool("ulpm_command");
    let mut child = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let moment = random.between(0, u64::try_from(span.as_micros())?.max(1));
    std::thread::sleep(Duration::from_micros(moment));
    println!("killing after {moment} µs of about {span:?}");
    kill(&mut child)?;
    until("ulpm_command to end", DEADLINE, || Ok(child.try_wait()?))?;
    Ok(())
}

fn goes_on(guest: &Guest<'_>) -> Result {
    let last = guest.last_step();
    guest.wait_step(last + 3)?;
    Ok(())
}

/// Waits until a new coordinator lists the job with all its processes.
fn is_listed(lab: &Lab, guest: &Guest<'_>) -> Result {
    until(format!("job {} to be listed again", guest.name), DEADLINE, || {
        let job = lab.job(guest.host_index(), &guest.name)?;
        let known = job.is_some_and(|job| {
            job["state"] == "running"
                && job["processes"].as_array().is_some_and(|all| !all.is_empty())
        });
        Ok(known.then_some(()))
    })
}

#[test]
fn coordinator_that_is_idle() -> Result {
    Lab::one_host(|lab| {
        let host = &lab.hosts[0];
        let program = Program::guest("tree64", 100_000);
        let guest = lab.launch(&program)?;
        guest.wait_step(3)?;
        for _ in 0..3 {
            host.kill_coordinator()?;
            goes_on(&guest)?;
            host.start_coordinator()?;
            is_listed(lab, &guest)?;
            let checkpoint = lab.checkpoint(&guest)?;
            ensure!(checkpoint.processes == 65, "{} processes", checkpoint.processes);
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
fn coordinator_that_is_gone_when_the_program_ends() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("counter", 60).arg("5"))?;
        guest.set_limit(20)?;
        guest.wait_step(3)?;
        lab.hosts[0].kill_coordinator()?;
        guest.set_free()?;
        guest.finish()?.expect_code(5)?;
        lab.hosts[0].start_coordinator()?;
        until("the job to be forgotten", DEADLINE, || {
            Ok(lab.job(0, &guest.name)?.is_none().then_some(()))
        })
    })
}

#[test]
fn coordinator_during_a_checkpoint() -> Result {
    Lab::one_host(|lab| {
        let mut random = Random::from_env();
        let guest = lab.launch(&big())?;
        guest.wait_step(2)?;
        let span = Duration::from_secs_f64(lab.checkpoint(&guest)?.total_ms / 1000.0);
        for _ in 0..6 {
            disturb(lab, &["--checkpoint", &guest.name], &mut random, span, |_| {
                lab.hosts[0].kill_coordinator()
            })?;
            goes_on(&guest)?;
            lab.hosts[0].start_coordinator()?;
            is_listed(lab, &guest)?;
            // What `latest` points to is whole, whatever was going on.
            let latest = lab.images().join(&guest.name).join("latest");
            lab.tool(0, "ulpm_restart", &["--check", &latest.to_string_lossy()])?.success()?;
            lab.checkpoint(&guest)?;
            goes_on(&guest)?;
        }
        guest.kill_tree()?;
        Ok(())
    })
}

#[test]
fn command_during_a_checkpoint() -> Result {
    Lab::one_host(|lab| {
        let mut random = Random::from_env();
        let guest = lab.launch(&big())?;
        guest.wait_step(2)?;
        let span = Duration::from_secs_f64(lab.checkpoint(&guest)?.total_ms / 1000.0);
        for _ in 0..6 {
            disturb(lab, &["--checkpoint", &guest.name], &mut random, span, |child| {
                Ok(child.kill()?)
            })?;
            goes_on(&guest)?;
            // The coordinator may be at it still, and says so; when it is done, all is as ever.
            until("a checkpoint to be possible", DEADLINE, || Ok(lab.checkpoint(&guest).ok()))?;
        }
        guest.kill_tree()?;
        Ok(())
    })
}

#[test]
fn restart_at_any_moment() -> Result {
    Lab::one_host(|lab| {
        let mut random = Random::from_env();
        let guest = lab.launch(&big())?;
        guest.wait_step(2)?;
        let checkpoint = lab.checkpoint(&guest)?;
        guest.kill_tree()?;
        let path = checkpoint.path.to_string_lossy().into_owned();
        for _ in 0..8 {
            let mut command = lab.hosts[0].tool("ulpm_restart");
            let mut child =
                command.arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
            // Choosing a moment, as in `disturb`.
            std::thread::sleep(Duration::from_millis(random.between(0, 250)));
            child.kill()?;
            child.wait()?;
            // Half a job is no job: it ends, or it is whole and can be ended as one.
            until("nothing half to be left", DEADLINE, || {
                let running = instances(lab)?;
                let jobs = lab.hosts[0].status()?["jobs"].as_array().cloned().unwrap_or_default();
                if running.is_empty() && jobs.is_empty() {
                    return Ok(Some(()));
                }
                if jobs.iter().any(|job| job["state"] == "running") {
                    lab.tool(0, "ulpm_command", &["--kill", &guest.name])?.success()?;
                }
                Ok(None)
            })?;
        }
        let twin = lab.restart(&guest, &checkpoint.path)?;
        twin.wait_step(3)?;
        twin.kill_tree()?;
        Ok(())
    })
}

/// Complete checkpoints anywhere below `dir`.
fn manifests(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            manifests(&path, found);
        } else if path.file_name().is_some_and(|name| name == "manifest.json") {
            found.push(path);
        }
    }
}

/// Whether a host has a job with which something is being done.
fn busy(lab: &Lab) -> Result<bool> {
    for host in &lab.hosts {
        let status = host.status()?;
        if let Some(jobs) = status["jobs"].as_array()
            && jobs.iter().any(|job| job["state"] != "running")
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// After a migration that somebody was killed in: one instance and no more, or an image that restarts.
fn one_is_left(lab: &Lab, guest: &Guest<'_>, what: &str) -> Result {
    let mut rounds = 0;
    until(format!("one instance to be left ({what})"), DEADLINE, || {
        let running = instances(lab)?;
        // It counts when it stays so, and nobody is at work any more: a second copy would show up within
        // these rounds.
        let busy = busy(lab)?;
        rounds = if running.len() == 1 && !busy { rounds + 1 } else { 0 };
        if rounds > 25 {
            return Ok(Some(()));
        }
        if !running.is_empty() || busy {
            return Ok(None);
        }
        // None runs. Then there is a whole image, on the target or on the source.
        let mut found = Vec::new();
        manifests(&lab.dir, &mut found);
        for manifest in found {
            let checkpoint = manifest.parent().ok_or("a manifest without a directory")?;
            let output =
                lab.tool(1, "ulpm_restart", &["--check", &checkpoint.to_string_lossy()])?;
            if output.code == 0 {
                let twin = lab.restart_on(1, guest, checkpoint)?;
                twin.wait_step(1)?;
                twin.kill_tree()?;
                return Ok(Some(()));
            }
        }
        Ok(None)
    })?;
    ensure!(instances(lab)?.len() <= 1, "{what}: two instances");
    Ok(())
}

/// Kills a party of a migration at a pseudo-random moment, several times over.
fn migration(what: &str, kill: impl Fn(&Lab, &mut std::process::Child) -> Result) -> Result {
    Lab::two_hosts(|lab| {
        let mut random = Random::from_env();
        let mut span = None;
        for round in 0..4 {
            let guest = lab.launch(&big())?;
            guest.wait_step(2)?;
            let span = match span {
                Some(span) => span,
                None => {
                    // How long it takes when nobody is killed.
                    let calm = lab.migrate(&guest.name, 0, 1)?;
                    lab.tool(1, "ulpm_command", &["--kill", &calm.target_id.to_string()])?
                        .success()?;
                    guest.finish()?;
                    let calm = Duration::from_secs_f64(calm.total_ms / 1000.0);
                    span = Some(calm);
                    continue;
                }
            };
            let target = lab.hosts[1].address();
            disturb(lab, &["--migrate", &target, &guest.name], &mut random, span, |child| {
                kill(lab, child)
            })?;
            for host in &lab.hosts {
                if host.coordinator_pid().is_none() {
                    host.start_coordinator()?;
                }
            }
            one_is_left(lab, &guest, &format!("{what}, round {round}"))?;
            for process in instances(lab)? {
                nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(process.pid),
                    nix::sys::signal::Signal::SIGKILL,
                )?;
            }
            until("the job to be forgotten", DEADLINE, || {
                let none = |host: usize| -> Result<bool> {
                    Ok(lab.hosts[host].status()?["jobs"].as_array().is_some_and(Vec::is_empty))
                };
                Ok((none(0)? && none(1)? && guest.has_ended()?).then_some(()))
            })?;
        }
        Ok(())
    })
}

#[test]
fn target_coordinator_during_a_migration() -> Result {
    migration("target killed", |lab, _| lab.hosts[1].kill_coordinator())
}

#[test]
fn source_coordinator_during_a_migration() -> Result {
    migration("source killed", |lab, _| lab.hosts[0].kill_coordinator())
}

#[test]
fn command_during_a_migration() -> Result {
    migration("command killed", |_, child| Ok(child.kill()?))
}

#[test]
fn restart_on_the_target_during_a_migration() -> Result {
    migration("ulpm_restart killed", |lab, _| {
        let program = lab.bin.join("ulpm_restart");
        // It may not have been started yet, or be done.
        for process in processes() {
            // By its command line: a restored program has its own again, but without privileges its
            // /proc/PID/exe stays ulpm_restart.
            if process.file("cmdline").starts_with(&*program.to_string_lossy())
                && process.file("environ").contains(&format!("ULPM_TEST_LAB={}", lab.dir.display()))
            {
                let _ = Command::new("kill").args(["-9", &process.pid.to_string()]).status()?;
            }
        }
        Ok(())
    })
}

/// Kills a coordinator at a named point of a migration: afterwards one instance goes on, and no more.
fn killed_before(side: usize, action: &str) -> Result {
    Lab::two_hosts(|lab| {
        let faults = format!("kill:{}.{action}", ["source", "target"][side]);
        lab.hosts[side].kill_coordinator()?;
        lab.hosts[side].start_faulty_coordinator(&faults)?;
        let faulty = lab.hosts[side].coordinator_pid().ok_or("no coordinator")?;
        let guest = lab.launch(&Program::guest("random_memory", 1_000_000).arg("2"))?;
        guest.wait_step(2)?;
        let target = lab.hosts[1].address();
        // What the command says depends on the moment.
        let said = lab.tool(0, "ulpm_command", &["--migrate", &target, &guest.name])?;
        println!("{} {}", said.code, said.stderr);
        // Whoever waits for the job may start another coordinator, which knows nothing of this lab's directories.
        until(format!("a coordinator after the fault {faults}"), DEADLINE, || {
            let stray = lab.hosts[side].status().ok().and_then(|status| status["pid"].as_i64());
            if stray == Some(faulty.into()) {
                return Ok(None);
            }
            if let Some(stray) = stray {
                kill_process(i32::try_from(stray)?)?;
            }
            lab.hosts[side].kill_coordinator()?;
            Ok(lab.hosts[side].start_coordinator().ok())
        })?;
        let mut rounds = 0;
        until(format!("one instance to go on after {faults}"), DEADLINE, || {
            let running = instances(lab)?;
            let busy = busy(lab)?;
            // A copy that waits counts as another.
            rounds = if running.len() == 1 && !busy { rounds + 1 } else { 0 };
            Ok((rounds > 25).then_some(()))
        })?;
        // Not only is it there.
        let pid = instances(lab)?.first().map(|process| process.pid).ok_or("it has gone")?;
        let mut before = None;
        until(format!("it to go on after {faults}"), DEADLINE, || {
            let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let spent: u64 = text
                .rsplit(')')
                .next()
                .and_then(|rest| rest.split_whitespace().nth(11)?.parse().ok())
                .unwrap_or(0);
            Ok((spent > *before.get_or_insert(spent)).then_some(()))
        })?;
        for process in instances(lab)? {
            kill_process(process.pid)?;
        }
        until("the job to be forgotten", DEADLINE, || Ok(guest.has_ended()?.then_some(())))
    })
}

fn kill_process(pid: i32) -> Result {
    use nix::sys::signal::{Signal, kill};
    Ok(kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL)?)
}

macro_rules! killed_before {
    ($($name:ident: $side:literal $action:literal;)+) => {
        mod coordinator_killed_before {
            $(
                #[test]
                fn $name() -> ulpm_tests::Result {
                    super::killed_before($side, $action)
                }
            )+
        }
    };
}

killed_before! {
    source_offers: 0 "Send(Offer)";
    source_freezes: 0 "Freeze";
    source_captures: 0 "Capture";
    source_says_that_all_was_sent: 0 "Send(Images)";
    source_records: 0 "Record";
    source_decides: 0 "Decide";
    source_commits: 0 "Send(Commit)";
    source_ends_its_processes: 0 "End";
    target_accepts: 1 "Send(Accept)";
    target_rebuilds: 1 "Rebuild";
    target_logs_the_image: 1 "LogPrepared";
    target_says_that_it_is_prepared: 1 "Send(Prepared)";
    target_logs_that_it_takes_the_job: 1 "LogTaken";
    target_releases: 1 "Release";
    target_says_that_it_runs: 1 "Send(Running)";
}
