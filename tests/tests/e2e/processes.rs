//! Process trees.

use std::fs;

use ulpm_tests::{DEADLINE, Lab, Program, Result, ensure, is_root, until};

use crate::whole_life;

whole_life! {
    tree_of_64 => Program::guest("tree64", 200);
    zombies_orphans_groups_sessions => Program::guest("zombies", 200);
    processes_that_stop_each_other => Program::guest("stoppers", 400);
    every_way_to_exec => Program::guest("exec_env", 80);
    threads_of_a_forked_child => Program::guest("forked_threads", 200);
    fork_and_cancellation => Program::guest("libc_contract", 200);
}

/// What the daemon has written, when it has ended well.
fn daemon_result(dir: &std::path::Path) -> Result<Option<String>> {
    let text = fs::read_to_string(dir.join("daemon.progress")).unwrap_or_default();
    Ok(text.ends_with("ok daemon\n").then_some(text))
}

#[test]
fn daemon_that_closed_everything_is_restarted() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("daemon", 100))?;
        guest.set_limit(30)?;
        let progress = guest.dir.join("daemon.progress");
        let has = |step: u64| {
            let progress = progress.clone();
            move || {
                let text = fs::read_to_string(&progress).unwrap_or_default();
                Ok((text.lines().count() as u64 >= step).then_some(()))
            }
        };
        until("10 steps of the daemon", DEADLINE, has(10))?;
        let checkpoint = lab.checkpoint(&guest)?;
        ensure!(
            checkpoint.processes == 1,
            "{} processes instead of the daemon",
            checkpoint.processes
        );
        guest.kill_tree()?;
        let twin = lab.restart(&guest, &checkpoint.path)?;
        twin.set_free()?;
        let text = until("the daemon to end well", DEADLINE, || daemon_result(&guest.dir))?;
        ensure!(text.lines().count() == 101, "{} lines", text.lines().count());
        twin.finish()?;
        Ok(())
    })
}

/// What a program starts in a pid namespace has ids there that others have here: those are left alone.
#[test]
fn pid_namespace_of_a_job_harms_nobody_outside() -> Result {
    if !is_root() {
        println!("only root can make a pid namespace so: the run as root shows this");
        return Ok(());
    }
    Lab::one_host(|lab| {
        let script = "sleep 1000 & sleep 1000 & sleep 1000 & echo here; wait";
        let mut program = Program::guest("counter", 1);
        program.argv = ["unshare", "--pid", "--fork", "sh", "-c", script].map(Into::into).into();
        let guest = lab.launch(&program)?;
        guest.wait_for("here")?;
        let job = lab.job(0, &guest.name)?.ok_or("no job")?;
        for process in job["processes"].as_array().ok_or("no processes")? {
            let command = process["command"].as_str().unwrap_or_default();
            ensure!(command.contains("sleep 1000"), "a stranger is listed: {process}");
        }
        lab.tool(0, "ulpm_command", &["--kill", &guest.name])?.success()?;
        until("the job to end", DEADLINE, || Ok(lab.job(0, &guest.name)?.is_none().then_some(())))?;
        guest.kill_tree()?;
        Ok(())
    })
}
