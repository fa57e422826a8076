//! Unix sockets.

use ulpm_tests::{
    Lab, Program, Result, checkpointed_equals_native, is_root, migrated_equals_native,
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
