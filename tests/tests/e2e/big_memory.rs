//! A gigabyte of random numbers moves between two hosts, and nothing of it touches the source's disk.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ulpm_tests::{Lab, Process, Program, Result, ensure, processes};

/// By process id and start: command, and what it had written when it was seen first and last.
type Written = BTreeMap<(i32, u64), (String, u64, u64)>;

/// What a process has caused to be written to a disk.
fn write_bytes(process: &Process) -> Option<u64> {
    let io = process.file("io");
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
}

/// Whether `process` is below the process with id `ancestor`, or is it.
fn is_below(process: &Process, ancestor: i32) -> bool {
    let mut pid = process.pid;
    while pid > 1 {
        if pid == ancestor {
            return true;
        }
        pid = Process::read(pid).map_or(0, |process| process.parent);
    }
    false
}

#[test]
fn a_gigabyte_moves_without_touching_the_disk() -> Result {
    Lab::two_hosts(|lab| {
        println!("network namespaces: {}", lab.hosts[0].is_namespace());
        let program = Program::guest("random_memory", 40).arg("1024");
        let native =
            lab.native(&program)?.finish_within(Duration::from_secs(60))?.expect_code(0)?;
        let guest = lab.launch(&program)?;
        guest.set_limit(10)?;
        guest.wait_step(5)?;

        // Every process of the source is looked at all the time, for it is gone when it has been moved.
        let target = lab.hosts[1].coordinator_pid().ok_or("no coordinator on the target")?;
        let marker = format!("ULPM_TEST_LAB={}", lab.dir.display());
        let written: Mutex<Written> = Mutex::default();
        let done = AtomicBool::new(false);
        let look = || {
            let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
            for process in processes() {
                if !process.file("environ").contains(&marker) || is_below(&process, target) {
                    continue;
                }
                if let Some(bytes) = write_bytes(&process) {
                    let entry = written
                        .entry((process.pid, process.start))
                        .or_insert_with(|| (process.file("cmdline"), bytes, bytes));
                    entry.2 = bytes;
                }
            }
        };
        look();
        let migration = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    look();
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            let begin = Instant::now();
            let migration = lab.migrate(&guest.name, 0, 1);
            println!("the move took {:?}: {migration:?}", begin.elapsed());
            done.store(true, Ordering::Relaxed);
            watcher.join().map_err(|_| "the watcher panicked")?;
            migration
        })?;
        look();
        ensure!(migration.bytes > 1 << 30, "only {} bytes were moved", migration.bytes);
        let mut total = 0;
        for (command, first, last) in
            written.lock().unwrap_or_else(PoisonError::into_inner).values()
        {
            println!("{} bytes by {command}", last - first);
            total += last - first;
        }
        // The coordinator's log of the hand-over is allowed; an image is a thousand times as much.
        ensure!(total < 1 << 20, "{total} bytes were written on the source's disk");

        guest.set_free()?;
        let viewer = lab.follow_output(1, &migration.target_id.to_string(), &guest)?;
        let launched = guest.finish_within(Duration::from_secs(60))?.expect_code(0)?;
        let shown = viewer.finish()?.expect_code(0)?;
        let whole = launched.stdout + &shown.stdout;
        ensure!(
            whole == native.stdout,
            "the output differs:\n{whole}\ninstead of\n{}",
            native.stdout
        );
        Ok(())
    })
}
