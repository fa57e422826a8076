//! Objects that processes meet at by name: System V shared memory, semaphores and message queues.

use std::fs;

use ulpm_tests::{DEADLINE, Guest, Lab, Program, Result, ensure, until};

use crate::whole_life;

whole_life! {
    shared_memory => Program::guest("shm", 200);
    semaphores => Program::guest("sem", 200);
    messages => Program::guest("msg", 200);
    message_queues_that_tell_threads => Program::guest("mq_thread", 150);
    posix_message_queues => Program::guest("mq", 150);
    by_system_call => Program::guest("raw_ipc", 150);
    posix_shared_memory_and_semaphores => Program::guest("posix_shm", 200);
}

/// The guests, and the file that lists the objects that each has.
const GUESTS: [&str; 3] = ["shm", "sem", "msg"];

/// The kernel's id of the object to which the key leads that the guest has named, if there is one.
fn id(name: &str, launched: &Guest<'_>) -> Result<Option<i32>> {
    let key = until("the guest to name its key", DEADLINE, || {
        let errors = launched.errors();
        Ok(errors.lines().find_map(|line| line.strip_prefix("key ")?.parse::<i32>().ok()))
    })?;
    let listed = fs::read_to_string(format!("/proc/sysvipc/{name}"))?;
    let fields = |line: &str| -> Option<(i32, i32)> {
        let mut words = line.split_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    Ok(listed.lines().filter_map(fields).find(|&(found, _)| found == key).map(|(_, id)| id))
}

/// A guest that has its objects, and waits soon for what the test does.
fn started<'lab>(lab: &'lab Lab, name: &str) -> Result<Guest<'lab>> {
    let guest = lab.launch(&Program::guest(name, 60))?;
    guest.set_limit(30)?;
    guest.wait_step(5)?;
    Ok(guest)
}

fn ends_well(guest: &Guest<'_>) -> Result {
    guest.set_free()?;
    let finished = guest.finish()?.expect_code(0)?;
    ensure!(finished.stdout.contains("\nok "), "no result: {}", finished.stdout);
    Ok(())
}

#[test]
fn what_a_killed_job_leaves_is_taken_over() -> Result {
    Lab::one_host(|lab| {
        for name in GUESTS {
            let guest = started(lab, name)?;
            let checkpoint = lab.checkpoint(&guest)?;
            let before = id(name, &guest)?;
            ensure!(before.is_some(), "{name} has no object");
            guest.wait_step(guest.last_step() + 3)?;
            guest.kill_tree()?;
            for _ in 0..2 {
                ensure!(id(name, &guest)? == before, "{name}: it went with its processes");
                let again = lab.restart(&guest, &checkpoint.path)?;
                again.wait_step(10)?;
                ensure!(id(name, &guest)? == before, "{name}: not the one that was there");
                again.kill_tree()?;
            }
            let last = lab.restart(&guest, &checkpoint.path)?;
            ends_well(&last)?;
            ensure!(id(name, &guest)?.is_none(), "{name}: it is left over");
        }
        Ok(())
    })
}

/// As on another host, or after the next boot.
#[test]
fn files_in_memory_that_are_gone_are_made_again() -> Result {
    Lab::one_host(|lab| {
        let guest = started(lab, "posix_shm")?;
        let checkpoint = lab.checkpoint(&guest)?;
        guest.kill_tree()?;
        let errors = guest.errors();
        let name = errors.lines().find_map(|line| line.strip_prefix("name "));
        let name = name.ok_or("the guest has not said its name")?;
        fs::remove_file(format!("/dev/shm/ulpm-test-{name}-n"))?;
        fs::remove_file(format!("/dev/shm/sem.ulpm-test-{name}-a"))?;
        ends_well(&lab.restart(&guest, &checkpoint.path)?)
    })
}

/// Their names are gone with the job, so that a restart makes them.
#[test]
fn message_queues_go_with_a_job_that_is_killed_with_its_checkpoint() -> Result {
    Lab::one_host(|lab| {
        let mut guest = started(lab, "mq")?;
        for step in [7, 12, 17] {
            guest.set_limit(step)?;
            guest.wait_step(step)?;
            let checkpoint = lab.checkpoint_and_kill(&guest)?;
            guest = lab.restart(&guest, &checkpoint.path)?;
        }
        ends_well(&guest)
    })
}

#[test]
fn two_copies_have_objects_of_their_own() -> Result {
    Lab::one_host(|lab| {
        for name in GUESTS {
            let guest = started(lab, name)?;
            let checkpoint = lab.checkpoint(&guest)?;
            // The first runs on.
            let copies =
                [lab.restart(&guest, &checkpoint.path)?, lab.restart(&guest, &checkpoint.path)?];
            for copy in &copies {
                copy.wait_step(10)?;
            }
            for copy in [&guest, &copies[0], &copies[1]] {
                ends_well(copy)?;
            }
            ensure!(id(name, &guest)?.is_none(), "{name}: it is left over");
        }
        Ok(())
    })
}

#[test]
fn what_a_job_has_made_goes_where_it_goes() -> Result {
    Lab::two_hosts(|lab| {
        for name in GUESTS {
            let guest = started(lab, name)?;
            let checkpoint = lab.checkpoint_and_kill(&guest)?;
            ensure!(id(name, &guest)?.is_none(), "{name}: the saved one is left over");
            let again = lab.restart(&guest, &checkpoint.path)?;
            again.wait_step(10)?;
            let before = id(name, &guest)?;
            ensure!(before.is_some(), "{name}: its key leads nowhere");
            let moved = lab.migrate(&again.name, 0, 1)?;
            ensure!(id(name, &guest)? != before, "{name}: the source's is left over");
            let viewer = lab.follow_output(1, &moved.target_id.to_string(), &guest)?;
            again.set_free()?;
            again.finish()?.expect_code(0)?;
            let shown = viewer.finish()?.stdout;
            ensure!(shown.contains("ok "), "{name}: no result: {shown}");
            ensure!(id(name, &guest)?.is_none(), "{name}: it is left over");
        }
        Ok(())
    })
}
