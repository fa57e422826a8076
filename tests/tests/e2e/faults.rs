//! Faults at named points of a migration: 100 of those that `scripts/faults` makes by the thousand.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ulpm_tests::faults::{self, Fault, Outcome};
use ulpm_tests::{Result, ensure, is_root};

/// How many there are, and how many at once.
const CASES: usize = 100;
const AT_ONCE: usize = 6;
/// No further one begins after this.
const ENOUGH: Duration = Duration::from_secs(80);

#[test]
fn a_hundred_faults_lose_nothing_and_double_nothing() -> Result {
    let all = faults::every_one();
    // Spread over all points, faults and sizes, and other ones each time.
    let shift = usize::try_from(std::process::id())?;
    let step = all.len() / CASES;
    let begun = Instant::now();
    let (next, tried) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= CASES || begun.elapsed() > ENOUGH {
                        return;
                    }
                    let case = faults::case((turn * step + shift) % all.len());
                    let done = faults::run(&case);
                    tried.fetch_add(1, Ordering::Relaxed);
                    if let Err(error) = done
                        && let Ok(mut failures) = failures.lock()
                    {
                        failures.push(format!("{case}: {error}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_default();
    println!("{} faults in {:?}", tried.into_inner(), begun.elapsed());
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// With the deadlines that users have.
#[test]
fn a_dead_link_holds_the_job_for_no_longer_than_is_said() -> Result {
    if !is_root() {
        println!("the link of this test is one of root's: the run as root shows this");
        return Ok(());
    }
    let all = faults::every_one();
    let dies = |point: &str| {
        let found = all
            .iter()
            .find(|case| case.fault == Fault::BlackHole && faults::POINTS[case.point] == point);
        found.copied().ok_or_else(|| format!("nothing happens at {point}"))
    };
    for point in ["source.Stream", "target.Rebuild"] {
        let verdict = faults::run(&faults::Case { hurried: false, ..dies(point)? })?;
        ensure!(verdict.outcome == Outcome::Source, "{point}: {:?}", verdict.outcome);
        // What is said, and what a busy machine takes.
        ensure!(verdict.still_ms < 11_500, "{point}: it stood still for {} ms", verdict.still_ms);
        println!("{point}: it stood still for {} ms", verdict.still_ms);
    }
    Ok(())
}
