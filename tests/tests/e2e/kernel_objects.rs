//! Files and pipes.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;
use ulpm_tests::{Lab, Program, Result, ensure};

use crate::whole_life;

whole_life! {
    files => Program::guest("files", 200);
    file_without_a_name => Program::guest("files", 200).arg("nameless");
    files_of_memfd_create => Program::guest("memfd", 150);
    pipes => Program::guest("pipes", 200);
    packets => Program::guest("packets", 200);
    files_in_odd_states => Program::guest("odd_files", 150);
    locks => Program::guest("locks", 150);
    named_pipes => Program::guest("fifos", 200);
    asynchronous_requests => Program::guest("aio", 150).changes_files();
    asynchronous_requests_by_libaio => Program::guest("aio", 150).arg("libaio").changes_files();
}

#[test]
fn named_pipe_whose_reader_is_outside() -> Result {
    Lab::one_host(|lab| {
        let path = lab.dir.join("outside");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU)?;
        let mut options = OpenOptions::new();
        let mut reader = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path)?;
        let program = Program::guest("fifos", 30).arg(path.to_string_lossy());
        let mut guest = lab.launch(&program)?;
        for step in [5, 12, 20] {
            guest.set_limit(step)?;
            guest.wait_step(step)?;
            let checkpoint = lab.checkpoint_and_kill(&guest)?;
            guest = lab.restart(&guest, &checkpoint.path)?;
        }
        guest.set_free()?;
        guest.finish()?.expect_code(0)?;
        let mut text = String::new();
        reader.read_to_string(&mut text)?;
        let wanted: String = (0..30).map(|line| format!("{line}\n")).collect();
        ensure!(text == wanted, "{text}");
        Ok(())
    })
}

#[test]
fn named_pipe_that_is_gone_is_made_again() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("fifos", 20))?;
        guest.set_limit(5)?;
        guest.wait_step(5)?;
        let checkpoint = lab.checkpoint_and_kill(&guest)?;
        fs::remove_file(guest.dir.join("both"))?;
        fs::write(guest.dir.join("both"), "no pipe")?;
        let said = lab.tool(0, "ulpm_restart", &[&checkpoint.path.to_string_lossy()])?;
        said.failure(&["both", "named pipe"])?;
        fs::remove_file(guest.dir.join("both"))?;
        let guest = lab.restart(&guest, &checkpoint.path)?;
        guest.set_free()?;
        guest.finish()?.expect_code(0)?;
        Ok(())
    })
}

#[test]
fn lock_that_somebody_else_holds_now() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("locks", 20))?;
        guest.set_limit(5)?;
        guest.wait_step(5)?;
        let checkpoint = lab.checkpoint_and_kill(&guest)?;
        let path = checkpoint.path.to_string_lossy().into_owned();
        let file = fs::File::open(guest.dir.join("alone"))?;
        file.lock_shared()?;
        lab.tool(0, "ulpm_restart", &[&path])?.failure(&["alone", "lock"])?;
        lab.tool(0, "ulpm_restart", &["--check", &path])?.failure(&["alone", "lock"])?;
        file.unlock()?;
        let guest = lab.restart(&guest, &checkpoint.path)?;
        // The job has them again: a second copy of it cannot.
        guest.set_limit(7)?;
        guest.wait_step(7)?;
        lab.tool(0, "ulpm_restart", &[&path])?.failure(&["lock"])?;
        guest.set_free()?;
        guest.finish()?.expect_code(0)?;
        Ok(())
    })
}

/// Not moved: where the file is the same, as in this test, to open it there breaks the lease.
#[test]
fn write_lease() -> Result {
    Lab::one_host(|lab| {
        let program = Program::guest("locks", 150).arg("sole");
        ulpm_tests::checkpointed_equals_native(lab, &program, 5)?;
        ulpm_tests::under_continuous_checkpoints(lab, &program)
    })
}
