//! Files that are not as they were when the job was saved, and files that go along with a job.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ulpm_tests::{Guest, Lab, Program, Result, ensure, is_root};

/// Starts the guest, and lets it take a few steps.
fn start(lab: &Lab, step: u64) -> Result<Guest<'_>> {
    let guest = lab.launch(&Program::guest("shipped", 60))?;
    guest.set_limit(step)?;
    guest.wait_step(step)?;
    Ok(guest)
}

/// `ulpm_restart` with `--files`.
fn restart<'lab>(lab: &'lab Lab, how: &str, checkpoint: &Path) -> Result<Guest<'lab>> {
    let mut command = lab.hosts[0].tool("ulpm_restart");
    command.args(["--files", how]).arg(checkpoint);
    lab.start_command(0, "again", command)
}

fn append(path: &Path, text: &str) -> Result {
    OpenOptions::new().append(true).open(path)?.write_all(text.as_bytes())?;
    Ok(())
}

#[test]
fn file_that_has_grown_is_told_refused_or_cut() -> Result {
    Lab::one_host(|lab| {
        let guest = start(lab, 10)?;
        let checkpoint = lab.checkpoint_and_kill(&guest)?.path;
        let log = guest.dir.join("sub/log");
        let len = fs::metadata(&log)?.len();
        append(&log, "more than there was\n")?;
        let text = checkpoint.to_string_lossy().into_owned();
        let words = ["sub/log", "has changed", "had 320 ", "340 bytes"];
        let said = lab.tool(0, "ulpm_restart", &["--files", "refuse", &text])?;
        said.failure(&words)?;
        let said = lab.tool(0, "ulpm_restart", &["--check", "--files", "truncate", &text])?;
        ensure!(said.stderr.contains("sub/log has changed"), "{}", said.stderr);
        said.success()?;
        ensure!(fs::metadata(&log)?.len() == len + 20, "a check has cut the file");
        guest.set_free()?;
        // As it is now: the guest finds that it is longer.
        let told = restart(lab, "continue", &checkpoint)?.finish()?.expect_code(99)?;
        ensure!(told.stderr.contains("sub/log has changed"), "{}", told.stderr);
        fs::write(guest.dir.join("sub/log"), fs::read(&log)?)?;
        let cut = restart(lab, "truncate", &checkpoint)?.finish()?;
        ensure!(cut.stderr.contains("sub/log has changed"), "{}", cut.stderr);
        cut.expect_code(0)?;
        ensure!(
            fs::metadata(&log)?.len() == 60 * len / 10,
            "the log is not as long as it should be"
        );
        Ok(())
    })
}

#[test]
fn files_that_went_along_are_made_and_replaced() -> Result {
    Lab::two_hosts(|lab| {
        let guest = start(lab, 20)?;
        let target = lab.hosts[1].address();
        let arguments = ["--migrate", &target, "--files", "ship", "--keep-images", "--json"];
        let said =
            lab.tool(0, "ulpm_command", &[&arguments[..], &[&*guest.name]].concat())?.success()?;
        let said: serde_json::Value = serde_json::from_str(&said)?;
        let image = said["images"].as_str().ok_or("no image is named")?.to_owned();
        let id = said["target_id"].to_string();
        lab.tool(1, "ulpm_command", &["--kill", &id])?.success()?;
        guest.finish()?;
        let sub = guest.dir.join("sub");
        guest.set_free()?;

        // One that is read only is not replaced, and then nothing is.
        fs::set_permissions(sub.join("input"), fs::Permissions::from_mode(0o644))?;
        let input = fs::read(sub.join("input"))?;
        append(&sub.join("input"), "x")?;
        fs::write(sub.join("log"), "another log")?;
        fs::remove_file(sub.join("holes"))?;
        let said = lab.tool(0, "ulpm_restart", &["--files", "ship", &image])?;
        said.failure(&["sub/input", "has changed", "only reads it"])?;
        ensure!(fs::read(sub.join("log"))? == b"another log", "it was replaced all the same");
        ensure!(!sub.join("holes").exists(), "it was made all the same");
        fs::write(sub.join("input"), input)?;
        fs::set_permissions(sub.join("input"), fs::Permissions::from_mode(0o444))?;

        // A restart that fails puts back what there was.
        let first = fs::read(sub.join("first"))?;
        fs::set_permissions(sub.join("log"), fs::Permissions::from_mode(0o600))?;
        fs::rename(&sub, guest.dir.join("away"))?;
        let said = lab.tool(0, "ulpm_restart", &["--files", "ship", &image])?;
        said.failure(&["sub/", "cannot be put in place"])?;
        fs::rename(guest.dir.join("away"), &sub)?;

        // What exists and is equal is left alone; two names of one file are that again.
        fs::remove_file(sub.join("second"))?;
        fs::remove_file(sub.join("first"))?;
        let checked = lab.tool(0, "ulpm_restart", &["--check", "--files", "ship", &image])?;
        checked.success()?;
        ensure!(!sub.join("holes").exists(), "a check has made a file");
        ensure!(fs::read(sub.join("log"))? == b"another log", "a check has replaced a file");
        let again = restart(lab, "ship", Path::new(&image))?.finish()?;
        ensure!(again.stderr.contains("sub/log has changed"), "{}", again.stderr);
        again.expect_code(0)?;
        ensure!(fs::read(sub.join("first"))? != first, "the guest has not written to it");
        let left: Vec<_> = fs::read_dir(&sub)?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(left.len() == 6, "{left:?}");
        Ok(())
    })
}

#[test]
fn files_go_along_with_a_job_that_moves() -> Result {
    if !is_root() {
        println!("a host with other files is made with a mount namespace, which only root has");
        return Ok(());
    }
    Lab::two_hosts(|lab| {
        let guest = start(lab, 10)?;
        // The other host has the directory, and nothing in it.
        lab.hosts[1].kill_coordinator()?;
        lab.hosts[1].start_coordinator_without(&guest.dir.join("sub"))?;
        let target = lab.hosts[1].address();
        lab.tool(0, "ulpm_command", &["--migrate", &target, &guest.name])?
            .failure(&["sub/", "does not exist there"])?;
        guest.set_limit(15)?;
        guest.wait_step(15)?;
        let move_to = |from: usize, to: usize, name: &str| {
            let target = lab.hosts[to].address();
            lab.tool(from, "ulpm_command", &["--migrate", &target, "--files", "ship", name])?
                .success()
        };
        move_to(0, 1, &guest.name)?;
        let here = lab.follow_output(1, &guest.name, &guest)?;
        guest.set_limit(30)?;
        here.wait_step(30)?;
        // Here it is the file that was left behind.
        let log = guest.dir.join("sub/log");
        ensure!(File::open(&log)?.metadata()?.len() == 15 * 32, "the hosts share the file");
        move_to(1, 0, &guest.name)?;
        let back = lab.follow_output(0, &guest.name, &guest)?;
        guest.set_limit(40)?;
        back.wait_step(40)?;
        ensure!(fs::metadata(&log)?.len() == 40 * 32, "the file did not come back");
        move_to(0, 1, &guest.name)?;
        guest.set_free()?;
        guest.finish()?.expect_code(0)?;
        Ok(())
    })
}
