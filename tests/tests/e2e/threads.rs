//! Memory and threads.

use ulpm_tests::{Lab, Program, Result, is_root, under_continuous_checkpoints};

use crate::whole_life;

whole_life! {
    counter => Program::guest("counter", 200);
    a_thousand_threads => Program::guest("threads1000", 200);
    malloc_storm => Program::guest("malloc_storm", 200).env("MALLOC_ARENA_MAX", "1");
    mappings => Program::guest("mappings", 200);
    address_space => Program::guest("address_space", 80);
    vector_registers => Program::guest("fpu", 200);
    thread_state => Program::guest("thread_state", 200);
    timed_calls => Program::guest("sleeps", 300);
    transfers_in_threads => transfers("threads");
    transfers_in_processes => transfers("processes");
    signals => Program::guest("signals", 200);
    handlers_in_handlers => Program::guest("handlers", 200);
    signals_that_wait => Program::guest("pending", 150);
    exceptions => Program::guest("exceptions", 200);
    openmp => Program::guest("openmp", 200).env("OMP_NUM_THREADS", "4");
}

/// Calls that move much at a time, in threads or in processes.
fn transfers(workers: &str) -> Program {
    let program = Program::guest("transfers", 200).arg(workers);
    // Only root may give a receive buffer all the room that a checkpoint of a full one needs, and has hosts that can
    // have a port each.
    if is_root() { program } else { program.arg("no-tcp") }
}

/// Without restarts nothing is late.
#[test]
fn transfers_are_not_late_under_checkpoints_all_the_time() -> Result {
    Lab::one_host(|lab| under_continuous_checkpoints(lab, &transfers("processes").arg("late")))
}

/// What the kernel itself finds by the thread id in a mutex needs the old ids: they come back where the kernel
/// grants that, to whoever has `CAP_CHECKPOINT_RESTORE`, and where nobody else has them.
mod old_ids {
    use std::path::Path;

    use ulpm_tests::{DEADLINE, Lab, Program, Result, is_root, until};

    /// Whether nobody has the ids of a checkpoint's processes: who has died has its own until it is waited for,
    /// which the machine's init may do late.
    fn are_free(checkpoint: &Path) -> Result<Option<()>> {
        for entry in std::fs::read_dir(checkpoint)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(pid) = name.strip_suffix(".ulpm")
                && Path::new("/proc").join(pid).exists()
            {
                return Ok(None);
            }
        }
        Ok(Some(()))
    }

    fn come_back(program: &Program) -> Result {
        if !is_root() {
            println!("only with privileges: the run as root shows this");
            return Ok(());
        }
        Lab::one_host(|lab| {
            let mut guest = lab.launch(program)?;
            guest.set_limit(20)?;
            guest.wait_step(5)?;
            for generation in 1..=3 {
                let checkpoint = lab.checkpoint(&guest)?;
                guest.kill_tree()?;
                until("ids that nobody has", DEADLINE, || are_free(&checkpoint.path))?;
                guest = lab.restart(&guest, &checkpoint.path)?;
                guest.set_limit(20 + 10 * generation)?;
                guest.wait_step(15 + 10 * generation)?;
            }
            guest.set_free()?;
            guest.finish()?.expect_code(0)?;
            Ok(())
        })
    }

    #[test]
    fn owners_of_robust_mutexes_die() -> Result {
        come_back(&Program::guest("robust_death", 100))
    }

    #[test]
    fn threads_contend_for_mutexes_with_priority_inheritance() -> Result {
        come_back(&Program::guest("pi_mutex", 100))
    }
}

mod sigusr2 {
    use ulpm_tests::{Lab, Program, Result, checkpointed_equals_native};

    fn mode(name: &str) -> Result {
        Lab::one_host(|lab| {
            checkpointed_equals_native(lab, &Program::guest("sigusr2", 200).arg(name), 3)
        })
    }

    #[test]
    fn default_is_left_alone() -> Result {
        mode("default")
    }

    #[test]
    fn ignored_is_left_alone() -> Result {
        mode("ignored")
    }

    #[test]
    fn handled_is_left_alone() -> Result {
        mode("handled")
    }

    #[test]
    fn blocked_is_left_alone() -> Result {
        mode("blocked")
    }

    #[test]
    fn waited_for_is_left_alone() -> Result {
        mode("waited")
    }

    /// A signalfd is not rebuilt yet; a program that has one runs and can be told so.
    #[test]
    fn read_from_a_signalfd_is_left_alone() -> Result {
        Lab::one_host(|lab| {
            let guest = lab.launch(&Program::guest("sigusr2", 100).arg("signalfd"))?;
            guest.set_limit(50)?;
            guest.wait_step(10)?;
            let asked = lab.tool(0, "ulpm_command", &["--checkpoint", &guest.name])?;
            println!("checkpoint of a program with a signalfd: {asked:?}");
            guest.set_free()?;
            guest.finish()?.expect_code(0)?;
            Ok(())
        })
    }

    #[test]
    fn another_signal_can_be_chosen() -> Result {
        Lab::one_host(|lab| {
            let program = Program::guest("sigusr2", 200)
                .arg("handled")
                .option("--ckpt-signal")
                .option("SIGURG");
            checkpointed_equals_native(lab, &program, 2)
        })
    }
}
