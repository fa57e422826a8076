//! Memory and threads.

use ulpm_tests::Program;

use crate::whole_life;

whole_life! {
    counter => Program::guest("counter", 200);
    a_thousand_threads => Program::guest("threads1000", 200);
    malloc_storm => Program::guest("malloc_storm", 200).env("MALLOC_ARENA_MAX", "1");
    mappings => Program::guest("mappings", 200);
    address_space => Program::guest("address_space", 80);
    vector_registers => Program::guest("fpu", 200);
    thread_state => Program::guest("thread_state", 200);
    #[ignore = "issue B: robust mutexes and the death of their owner after a restart"]
    owners_of_robust_mutexes_die => Program::guest("robust_death", 100);
    timed_calls => Program::guest("sleeps", 300);
    signals => Program::guest("signals", 200);
    exceptions => Program::guest("exceptions", 200);
    openmp => Program::guest("openmp", 200).env("OMP_NUM_THREADS", "4");
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
