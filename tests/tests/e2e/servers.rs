//! Servers and their clients that nobody wrote for us.

use ulpm_tests::{Lab, Program, Result, checkpointed_equals_native, migrated_equals_native};

use crate::whole_life;

const PYTHON: &str = "/usr/bin/python3";

whole_life! {
    python_manager => Program::script(PYTHON, "unix_manager.py", 200);
}

/// Server and clients are one job, and the clients check every answer. They write files while they run.
fn server(kind: &str) -> Program {
    let path = ulpm_tests::program_path("servers.py").to_string_lossy().into_owned();
    Program::new(kind, &[PYTHON, &path, kind, "120"], ulpm_tests::Pace::Steps).changes_files()
}

fn lives(kind: &str) -> Result {
    Lab::one_host(|lab| checkpointed_equals_native(lab, &server(kind), 5))
}

/// A port cannot be had twice in one network, so this needs hosts that are more than a name.
fn moves(kind: &str) -> Result {
    Lab::two_hosts(|lab| {
        if !lab.hosts[0].is_namespace() {
            println!("both hosts have one network: the run as root shows this");
            return Ok(());
        }
        migrated_equals_native(lab, &server(kind))
    })
}

macro_rules! servers {
    ($($kind:ident)+) => {
        $(
            mod $kind {
                #[test]
                fn goes_on_from_five_checkpoints_in_a_row() -> ulpm_tests::Result {
                    super::lives(stringify!($kind))
                }

                #[test]
                fn moves_there_and_back_and_there() -> ulpm_tests::Result {
                    super::moves(stringify!($kind))
                }
            }
        )+
    };
}

servers! { redis memcached nginx socat http asyncio }
