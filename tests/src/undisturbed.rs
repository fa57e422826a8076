//! The procedure that most tests are: whatever is done to a program, its result is that of an undisturbed run.

use std::time::{Duration, Instant};

use crate::capture::join;
use crate::{DEADLINE, Finished, Guest, Lab, Pace, Program, Random, Result, ensure, until};

/// How far a program may run on before the test lets it, at most.
const AHEAD: u64 = 15;

/// What an undisturbed run says.
struct Native {
    result: String,
    code: i32,
    /// Processor time of the whole tree, in milliseconds.
    cpu_ms: u64,
    lines: usize,
}

impl Native {
    /// Steps for each of `parts` parts of the program's work: how many to wait for at most, and how far it may run on
    /// meanwhile. It may do so up to the checkpoint and behind the restart, and is not to be at its end before the last
    /// part is over.
    fn steps(&self, parts: u64) -> Result<(u64, u64)> {
        let part = u64::try_from(self.lines.saturating_sub(1))? / (parts + 1);
        ensure!(part >= 4, "{} steps are not enough for {parts} parts", self.lines);
        let ahead = ((part - 1) / 3).min(AHEAD);
        Ok(((part - 1 - 2 * ahead).min(10), ahead))
    }
}

fn run_natively(lab: &Lab, program: &Program) -> Result<Native> {
    let guest = lab.native(program)?;
    let mut cpu_ms = 0;
    until(format!("{} to end natively", program.name), DEADLINE, || {
        // Looked at before the end is: what has ended is gone from /proc once that was seen.
        cpu_ms = guest.cpu_ms().max(cpu_ms);
        Ok(guest.has_ended()?.then_some(()))
    })?;
    let Finished { code, stdout, stderr } = guest.finish()?;
    ensure!(code < 99, "{} fails natively with {code}:\n{stderr}", program.name);
    let result = program.result(&stdout, &guest.dir)?;
    ensure!(!result.is_empty(), "{} has no result natively", program.name);
    Ok(Native { result, code, cpu_ms, lines: stdout.lines().count() })
}

/// Processor time of one of `parts` parts of the program's work. It runs on from the moment that was chosen
/// until it is frozen, for a while on a machine that has much to do: so half of what would divide evenly.
fn cpu_part(native: &Native, parts: u64) -> u64 {
    native.cpu_ms / (2 * (parts + 1))
}

/// Waits for a pseudo-random moment of the next of `parts` parts of the program's work.
fn wait_moment(
    guest: &Guest<'_>,
    program: &Program,
    native: &Native,
    parts: u64,
    random: &mut Random,
    last: &mut u64,
) -> Result {
    match program.pace {
        Pace::Steps => {
            let (most, ahead) = native.steps(parts)?;
            let target = *last + random.between(1, most);
            guest.set_limit(target + ahead)?;
            *last = guest.wait_step(target)?;
        }
        Pace::Lines => {
            let part = u64::try_from(native.lines)? / (parts + 1);
            let count = random.between(1, part.max(2));
            guest.wait_lines(usize::try_from(count)?)?;
        }
        Pace::Cpu => {
            // What was spent until now went into launching or restarting it.
            let target = guest.cpu_ms() + random.between(0, cpu_part(native, parts)) + 1;
            until(format!("{target} ms of processor time"), DEADLINE, || {
                ensure!(!guest.has_ended()?, "it ended first: {}", guest.errors());
                Ok((guest.cpu_ms() >= target).then_some(()))
            })?;
        }
    }
    Ok(())
}

fn compare(
    program: &Program,
    native: &Native,
    found: &str,
    code: i32,
    guest: &Guest<'_>,
) -> Result {
    // First the exit status: what it says explains the rest.
    ensure!(
        code == native.code,
        "exit status {code} instead of {}:\n{}",
        native.code,
        guest.errors()
    );
    let result = program.result(found, &guest.dir)?;
    if result != native.result {
        let same = result.lines().zip(native.result.lines()).take_while(|(a, b)| a == b).count();
        let around = |text: &str| {
            let lines = text.lines().skip(same.saturating_sub(2)).take(6);
            lines.map(|line| format!("  {line}\n")).collect::<String>()
        };
        return Err(format!(
            "the result is not that of an undisturbed run; around line {}, natively:\n{}here:\n{}standard error:\n{}",
            same + 1,
            around(&native.result),
            around(&result),
            guest.errors(),
        )
        .into());
    }
    Ok(())
}

/// Checkpoint, `kill -9` of the whole job, restart: `generations` times in a row at pseudo-random moments, on each
/// host of the lab in its turn.
///
/// # Errors
///
/// When any of it fails, or the result is not that of an undisturbed run.
pub fn checkpointed_equals_native(lab: &Lab, program: &Program, generations: u64) -> Result {
    let native = run_natively(lab, program)?;
    let mut random = Random::from_env();
    let (mut last, mut output) = (0, String::new());
    let mut guest = lab.launch(program)?;
    for generation in 1..=generations {
        wait_moment(&guest, program, &native, generations, &mut random, &mut last)
            .map_err(|error| format!("before checkpoint {generation}: {error}"))?;
        let checkpoint = if program.changes_files {
            lab.checkpoint_and_kill(&guest)?
        } else {
            let checkpoint = lab.checkpoint(&guest)?;
            guest.kill_tree()?;
            checkpoint
        };
        ensure!(
            checkpoint.generation == generation,
            "generation {} instead of {generation}",
            checkpoint.generation
        );
        println!("generation {generation}: {checkpoint:?}");
        output = join(&output, &guest.output());
        let host = usize::try_from(generation)? % lab.hosts.len();
        guest = lab.restart_on(host, &guest, &checkpoint.path)?;
        guest.wait_running().map_err(|error| format!("restart {generation}: {error}"))?;
        if program.pace == Pace::Steps {
            // On a slow machine it was saved at the last step that it was allowed: there is to be one more.
            guest.set_limit(last + native.steps(generations)?.1 + 1)?;
            // It goes on from the checkpoint, which may be before what was seen last.
            last = guest
                .wait_step(1)
                .map_err(|error| format!("after restart {generation}: {error}"))?;
        }
    }
    guest.set_free()?;
    let finished = guest.finish()?;
    compare(program, &native, &join(&output, &finished.stdout), finished.code, &guest)
}

/// Migration A → B → A → B at pseudo-random moments.
///
/// # Errors
///
/// As [`there_and_back`].
pub fn migrated_equals_native(lab: &Lab, program: &Program) -> Result {
    there_and_back(lab, program, 3)
}

/// Migration to and fro, `moves` times at pseudo-random moments. The program's output is what
/// `ulpm_launch` and the logs on the hosts hold, one after the other, and nothing twice.
///
/// # Errors
///
/// When any of it fails, or the result is not that of an undisturbed run.
pub fn there_and_back(lab: &Lab, program: &Program, moves: u64) -> Result {
    let native = run_natively(lab, program)?;
    let mut random = Random::from_env();
    let launched = lab.launch(program)?;
    let mut viewers: Vec<Guest<'_>> = Vec::new();
    let (mut last, mut host, mut job) = (0, 0, launched.name.clone());
    for step in 1..=moves {
        let here: &Guest<'_> = viewers.last().unwrap_or(&launched);
        if program.pace == Pace::Cpu && step > 1 {
            // A viewer's own time says nothing about the job's.
            let target = random.between(0, cpu_part(&native, moves)) + 1;
            until(format!("{target} ms of processor time"), DEADLINE, || {
                Ok((lab.job_cpu_ms(host, &job)? >= target).then_some(()))
            })?;
        } else {
            wait_moment(here, program, &native, moves, &mut random, &mut last)
                .map_err(|error| format!("before move {step}: {error}"))?;
        }
        let target = 1 - host;
        let migration = lab.migrate(&job, host, target)?;
        println!("move {step}: {migration:?}");
        host = target;
        job = migration.target_id.to_string();
        viewers.push(lab.follow_output(host, &job, &launched)?);
    }
    launched.set_free()?;
    let finished = launched.finish()?;
    let mut output = finished.stdout;
    for viewer in &viewers {
        let shown = viewer.finish_within(Duration::from_secs(10))?.expect_code(0)?;
        output += &shown.stdout;
    }
    compare(program, &native, &output, finished.code, &launched)
}

/// How long a program is to be checkpointed all the time: three seconds, or what `ULPM_TEST_SECONDS` says.
///
/// # Errors
///
/// When that is no number.
pub fn all_the_time() -> Result<Duration> {
    let seconds = std::env::var("ULPM_TEST_SECONDS").unwrap_or_else(|_| "3".into());
    Ok(Duration::from_secs(seconds.parse()?))
}

/// One checkpoint after the other without a pause, for [`all_the_time`], of a program that checks itself at each step.
///
/// # Errors
///
/// When a checkpoint fails, or the program does not go on behind the last.
pub fn one_checkpoint_after_the_other(lab: &Lab, program: &Program) -> Result {
    let guest = lab.launch(program)?;
    guest.wait_step(1)?;
    let end = Instant::now() + all_the_time()?;
    let mut count = 0;
    while Instant::now() < end {
        lab.checkpoint(&guest)?;
        count += 1;
    }
    let last = guest.last_step();
    println!("{count} checkpoints, {last} steps");
    guest.wait_step(last + 5)?;
    guest.kill_tree()?;
    Ok(())
}

/// A checkpoint every 50 ms, for [`all_the_time`]; the program is run as often as it takes, and each of its results
/// is that of an undisturbed run.
///
/// # Errors
///
/// When a checkpoint fails, or a result is another one.
pub fn under_continuous_checkpoints(lab: &Lab, program: &Program) -> Result {
    const INTERVAL: Duration = Duration::from_millis(50);
    let native = run_natively(lab, program)?;
    let program = program.clone().option("--keep").option("2");
    let end = Instant::now() + all_the_time()?;
    let (mut checkpoints, mut longest_ms, mut runs) = (0, 0.0_f64, 0);
    // On a slow machine the time may be over before the program runs.
    while Instant::now() < end || checkpoints == 0 && runs < 10 {
        let guest = lab.launch(&program)?;
        guest.set_free()?;
        until("the job to have begun", DEADLINE, || {
            let job = lab.job(0, &guest.name)?;
            let has_begun = job
                .is_some_and(|job| job["processes"].as_array().is_some_and(|all| !all.is_empty()));
            Ok((guest.has_ended()? || has_begun).then_some(()))
        })?;
        while !guest.has_ended()? && (Instant::now() < end || checkpoints == 0) {
            let next = Instant::now() + INTERVAL;
            match lab.checkpoint(&guest) {
                Ok(checkpoint) => {
                    checkpoints += 1;
                    longest_ms = longest_ms.max(checkpoint.freeze_ms);
                }
                // It may end under the checkpoint.
                Err(error) => until("it to end", Duration::from_secs(2), || {
                    Ok(guest.has_ended()?.then_some(()))
                })
                .map_err(|_| format!("checkpoint {}: {error}", checkpoints + 1))?,
            }
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        let Finished { code, stdout, .. } = guest.finish()?;
        compare(&program, &native, &stdout, code, &guest)?;
        runs += 1;
    }
    println!("{checkpoints} checkpoints of {runs} runs, the longest freeze {longest_ms} ms");
    ensure!(checkpoints > 0, "no checkpoint was made");
    Ok(())
}
