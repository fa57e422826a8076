//! Makes faults at every named point of a migration, and prints a table of what came of them.
//!
//! Usage: `ulpm-test-faults COUNT [FIRST]`. Each runs in a process of its own; what one says that fails is kept in
//! `$ULPM_FAULTS_LOG`, or else the directory for temporary files.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use ulpm_tests::faults::{Case, Fault, case, run};
use ulpm_tests::{Result, ensure};

/// How many at once.
const AT_ONCE: usize = 6;

/// What one process says at its end.
const VERDICT: &str = "verdict: ";

fn main() -> Result {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, number] = &arguments[..]
        && flag == "--case"
    {
        let verdict = run(&case(number.parse()?))?;
        println!("{VERDICT}{:?} {}", verdict.outcome, verdict.still_ms);
        return Ok(());
    }
    let number = |at: usize| arguments.get(at).map(|text| text.parse::<usize>()).transpose();
    let count = number(0)?.ok_or("usage: ulpm-test-faults COUNT [FIRST]")?;
    let first = number(1)?.unwrap_or(0);
    let logs = std::env::var_os("ULPM_FAULTS_LOG").map_or_else(std::env::temp_dir, Into::into);
    let at_once = std::env::var("ULPM_FAULTS_AT_ONCE").ok().and_then(|text| text.parse().ok());
    let begun = Instant::now();
    let next = AtomicUsize::new(first);
    let table = Mutex::new(Table::default());
    std::thread::scope(|scope| {
        for _ in 0..at_once.unwrap_or(AT_ONCE) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= first + count {
                        return;
                    }
                    let case = case(number);
                    let (verdict, text) = judge(number);
                    if verdict.is_none() {
                        let log = logs.join(format!("ulpm-fault-{number}.log"));
                        println!("{case}: FAILED, see {}", log.display());
                        let _ = fs::write(log, text);
                    }
                    if let Ok(mut table) = table.lock() {
                        table.add(&case, verdict);
                    }
                }
            });
        }
    });
    let table = table.into_inner().map_err(|_| "a thread panicked")?;
    print!("{table}");
    println!("\n{count} faults from number {first} on in {} s", begun.elapsed().as_secs());
    ensure!(table.failed == 0, "{} failed", table.failed);
    Ok(())
}

/// Runs a case in a process of its own: what came of it, and what was said.
fn judge(number: usize) -> (Option<(String, u64)>, String) {
    let output = std::env::current_exe().and_then(|program| {
        Command::new(program).args(["--case", &number.to_string()]).stdin(Stdio::null()).output()
    });
    let output = match output {
        Ok(output) => output,
        Err(error) => return (None, error.to_string()),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = text.lines().rev().find_map(|line| line.strip_prefix(VERDICT));
    let verdict = said.filter(|_| output.status.success()).and_then(|said| {
        let (outcome, still) = said.split_once(' ')?;
        Some((outcome.to_owned(), still.parse().ok()?))
    });
    (verdict, text + &String::from_utf8_lossy(&output.stderr))
}

/// What came of all cases with one fault and one number of processes.
#[derive(Default)]
struct Row {
    outcomes: BTreeMap<String, usize>,
    still_ms: u64,
}

#[derive(Default)]
struct Table {
    rows: BTreeMap<(Fault, usize), Row>,
    failed: usize,
}

impl Table {
    fn add(&mut self, case: &Case, verdict: Option<(String, u64)>) {
        self.failed += usize::from(verdict.is_none());
        let row = self.rows.entry((case.fault, case.processes)).or_default();
        let (outcome, still_ms) = verdict.unwrap_or(("FAILED".into(), 0));
        *row.outcomes.entry(outcome).or_default() += 1;
        row.still_ms = row.still_ms.max(still_ms);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = ["Source", "Target", "Image", "Killed", "FAILED"];
        writeln!(
            f,
            "| fault | processes | cases | source goes on | target goes on | image, started as told | the process killed was all of it | lost or doubled, or not clear | stood still at most |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|")?;
        let mut sums = vec![0; columns.len()];
        for ((fault, processes), row) in &self.rows {
            let counts: Vec<usize> = columns
                .iter()
                .map(|&column| row.outcomes.get(column).copied().unwrap_or(0))
                .collect();
            for (sum, count) in sums.iter_mut().zip(&counts) {
                *sum += count;
            }
            let all: usize = counts.iter().sum();
            let counts: Vec<String> = counts.iter().map(ToString::to_string).collect();
            writeln!(
                f,
                "| {fault:?} | {processes} | {all} | {} | {} ms |",
                counts.join(" | "),
                row.still_ms
            )?;
        }
        let all: usize = sums.iter().sum();
        let sums: Vec<String> = sums.iter().map(ToString::to_string).collect();
        writeln!(f, "| all | | {all} | {} | |", sums.join(" | "))
    }
}
