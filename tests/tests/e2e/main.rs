//! Whole programs, launched, saved, restarted and moved.

#![forbid(unsafe_code)]

mod bad_days;
mod big_memory;
mod clocks;
mod cluster;
mod damage;
mod events;
mod faults;
mod inet;
mod interposition;
mod ipc;
mod kernel_objects;
mod kernel_state;
mod kill;
mod moves;
mod native;
mod open_files;
mod other_kernel;
mod outside;
mod plugins;
mod processes;
mod programs;
mod recovery;
mod refusals;
mod servers;
mod session;
mod ssh;
mod storms;
mod terminal;
mod threads;
mod tools;
mod unix_sockets;

/// Three tests of one program: five generations of checkpoint, `kill -9` and restart; A → B → A → B; and a checkpoint
/// every 50 ms.
macro_rules! whole_life {
    ($($(#[$attribute:meta])* $name:ident => $program:expr;)+) => {
        $(
            mod $name {
                use super::*;

                #[test]
                $(#[$attribute])*
                fn goes_on_from_five_checkpoints_in_a_row() -> ulpm_tests::Result {
                    ulpm_tests::Lab::one_host(|lab| {
                        ulpm_tests::checkpointed_equals_native(lab, &$program, 5)
                    })
                }

                #[test]
                $(#[$attribute])*
                fn moves_there_and_back_and_there() -> ulpm_tests::Result {
                    ulpm_tests::Lab::two_hosts(|lab| {
                        ulpm_tests::migrated_equals_native(lab, &$program)
                    })
                }

                #[test]
                $(#[$attribute])*
                fn does_not_notice_checkpoints_all_the_time() -> ulpm_tests::Result {
                    ulpm_tests::Lab::one_host(|lab| {
                        ulpm_tests::under_continuous_checkpoints(lab, &$program)
                    })
                }
            }
        )+
    };
}
pub(crate) use whole_life;

/// A port cannot be had twice in one network, so this needs hosts that are more than a name.
fn moves(program: &ulpm_tests::Program) -> ulpm_tests::Result {
    ulpm_tests::Lab::two_hosts(|lab| {
        if !lab.hosts[0].is_namespace() {
            println!("both hosts have one network: the run as root shows this");
            return Ok(());
        }
        ulpm_tests::migrated_equals_native(lab, program)
    })
}
