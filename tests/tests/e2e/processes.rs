//! Process trees.

use std::fs;

use ulpm_tests::{DEADLINE, Lab, Program, Result, ensure, until};

use crate::whole_life;

whole_life! {
    tree_of_64 => Program::guest("tree64", 200);
    zombies_orphans_groups_sessions => Program::guest("zombies", 200);
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
