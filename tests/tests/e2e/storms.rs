//! Checkpoints at random moments of programs that fork and exec without pause.

use ulpm_tests::{Lab, Program, Random, Result, ensure};

use crate::whole_life;

whole_life! {
    forks => Program::guest("fork_storm", 200);
    execs => Program::guest("exec_storm", 200);
}

/// 100 checkpoints, one after the other, and a restart of every tenth.
fn a_hundred_checkpoints(name: &str) -> Result {
    Lab::one_host(|lab| {
        let mut random = Random::from_env();
        let program = Program::guest(name, 1_000_000).option("--keep").option("2");
        let mut guest = lab.launch(&program)?;
        for round in 1..=100 {
            // A few steps further, or none at all.
            let seen = guest.last_step();
            guest.wait_step(seen.max(1) + random.between(0, 3))?;
            let checkpoint =
                lab.checkpoint(&guest).map_err(|error| format!("checkpoint {round}: {error}"))?;
            if round % 10 == 0 {
                guest.kill_tree()?;
                guest = lab.restart(&guest, &checkpoint.path)?;
                guest.wait_step(1).map_err(|error| format!("restart {round}: {error}"))?;
            }
        }
        let seen = guest.last_step();
        guest.wait_step(seen + 5)?;
        ensure!(!guest.output().contains("FAILED"), "a check failed: {}", guest.errors());
        guest.kill_tree()?;
        Ok(())
    })
}

#[test]
fn fork_storm_takes_a_hundred_checkpoints() -> Result {
    a_hundred_checkpoints("fork_storm")
}

#[test]
fn exec_storm_takes_a_hundred_checkpoints() -> Result {
    a_hundred_checkpoints("exec_storm")
}
