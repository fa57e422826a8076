//! Guests and scripts are right without ULPM; else no other test means anything.

use ulpm_tests::{Lab, Program, Result};

/// Guests that end by themselves after some steps.
const GUESTS: [&str; 21] = [
    "counter",
    "daemon",
    "exceptions",
    "exec_env",
    "exec_storm",
    "files",
    "fork_storm",
    "fpu",
    "libc_contract",
    "malloc_storm",
    "mappings",
    "openmp",
    "pipes",
    "random_memory",
    "robust_death",
    "signals",
    "sigusr2",
    "sleeps",
    "thread_state",
    "threads1000",
    "tree64",
];

#[test]
fn guests_pass_natively() -> Result {
    Lab::without_coordinator(|lab| {
        for name in GUESTS {
            let guest = lab.native(&Program::guest(name, 40))?;
            guest.finish()?.expect_code(0).map_err(|error| format!("{name}: {error}"))?;
        }
        lab.native(&Program::guest("zombies", 20))?.finish()?.expect_code(0)?;
        Ok(())
    })
}
