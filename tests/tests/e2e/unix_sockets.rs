//! Unix sockets.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::{UnixDatagram, UnixListener};

use ulpm_tests::{
    Guest, Lab, Program, Result, checkpointed_equals_native, ensure, is_root,
    migrated_equals_native, one_checkpoint_after_the_other, there_and_back,
};

use crate::whole_life;

whole_life! {
    streams => Program::guest("unix_streams", 200).arg("paths");
    messages => Program::guest("unix_messages", 200).arg("paths");
    rights => Program::guest("unix_rights", 200);
}

/// Abstract names, which two hosts in one network namespace share: the frozen original has them when the copy
/// is made. Without root the two hosts of a test are such ones.
fn abstract_names(program: &Program) -> Result {
    Lab::one_host(|lab| checkpointed_equals_native(lab, program, 5))?;
    if !is_root() {
        println!(
            "only root can make two hosts with names of their own: the run as root shows the moves"
        );
        return Ok(());
    }
    Lab::two_hosts(|lab| migrated_equals_native(lab, program))
}

#[test]
fn streams_with_abstract_names() -> Result {
    abstract_names(&Program::guest("unix_streams", 200))
}

#[test]
fn messages_to_abstract_names() -> Result {
    abstract_names(&Program::guest("unix_messages", 200))
}

/// A server and a log, as a program outside the job would be, which answer with "hello".
fn outside(lab: &Lab) -> Result<[String; 2]> {
    let paths = ["server", "log"].map(|name| lab.dir.join(name).to_string_lossy().into_owned());
    let server = UnixListener::bind(&paths[0])?;
    let log = UnixDatagram::bind(&paths[1])?;
    std::thread::spawn(move || -> std::io::Result<()> {
        loop {
            let (mut client, _) = server.accept()?;
            client.write_all(b"hello")?;
            std::thread::spawn(move || std::io::copy(&mut client, &mut std::io::sink()));
        }
    });
    std::thread::spawn(move || while log.recv(&mut [0; 16]).is_ok() {});
    Ok(paths)
}

#[test]
fn an_end_outside_the_job_is_gone_after_a_restart() -> Result {
    Lab::one_host(|lab| {
        let paths = outside(lab)?;
        let program = Program::guest("unix_outside", 60).arg(&paths[0]).arg(&paths[1]);
        let guest = lab.launch(&program)?;
        guest.set_limit(20)?;
        guest.wait_step(5)?;
        let checkpoint = lab.checkpoint(&guest)?;
        // A checkpoint that goes on changes nothing.
        guest.wait_step(15)?;
        guest.kill_tree()?;
        let dir = checkpoint.path.to_string_lossy().into_owned();
        let said = lab.tool(0, "ulpm_restart", &["--outside-sockets", "refuse", &dir])?;
        said.failure(&["outside the job", "--outside-sockets reset", &paths[0]])?;
        let twin = lab.restart(&guest, &checkpoint.path)?;
        twin.set_free()?;
        let finished = twin.finish()?.expect_code(0)?;
        ensure!(finished.stdout.contains("ok unix_outside gone\n"), "{}", finished.stdout);
        Ok(())
    })
}

#[test]
fn a_thousand_connections_twenty_checkpoints() -> Result {
    let program = Program::guest("unix_many", 260).arg("1000");
    Lab::one_host(|lab| checkpointed_equals_native(lab, &program, 20))
}

#[test]
fn a_thousand_connections_five_moves() -> Result {
    let program = Program::guest("unix_many", 100).arg("1000");
    Lab::two_hosts(|lab| there_and_back(lab, &program, 5))
}

/// The descriptors that the manager of each process has open, which are not the program's.
fn of_managers(guest: &Guest<'_>) -> Result<Vec<usize>> {
    let mut counts = Vec::new();
    for process in guest.members()? {
        for thread in fs::read_dir(format!("/proc/{}/task", process.pid))?.flatten() {
            if fs::read_to_string(thread.path().join("comm"))?.trim_end() == "ulpm-manager" {
                counts.push(fs::read_dir(thread.path().join("fd"))?.count());
            }
        }
    }
    ensure!(!counts.is_empty(), "no process of the job has a manager");
    Ok(counts)
}

/// Also not of what is under way in sockets, which a capture receives and keeps until its end.
#[test]
fn manager_keeps_no_descriptor_of_a_checkpoint() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("unix_rights", 1_000))?;
        guest.wait_step(3)?;
        lab.checkpoint(&guest)?;
        let before = of_managers(&guest)?;
        for _ in 0..10 {
            lab.checkpoint(&guest)?;
        }
        let after = of_managers(&guest)?;
        ensure!(after == before, "{before:?} descriptors became {after:?}");
        guest.kill_tree()?;
        Ok(())
    })
}

/// One checkpoint after the other while bytes are under way: no call is interrupted or cut short, and no byte is
/// lost or doubled.
#[test]
fn checkpoints_all_the_time() -> Result {
    Lab::one_host(|lab| {
        one_checkpoint_after_the_other(lab, &Program::guest("unix_many", 100_000).arg("100"))
    })
}
