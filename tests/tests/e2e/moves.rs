//! What is looked at before a job moves, and what the owner of the other host lets it have.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use ulpm_tests::{Guest, Lab, Program, Result, ensure, is_root};

/// A guest that stays for as long as the test takes.
fn stays(lab: &Lab) -> Result<Guest<'_>> {
    let guest = lab.launch(&Program::guest("counter", 1_000_000))?;
    guest.wait_step(2)?;
    Ok(guest)
}

fn goes_on(guest: &Guest<'_>) -> Result {
    let last = guest.last_step();
    guest.wait_step(last + 2)?;
    Ok(())
}

/// What `--check --json` says of a subject: verdict, text, way out.
fn said(
    lab: &Lab,
    guest: &Guest<'_>,
    options: &[&str],
    code: i32,
    subject: &str,
) -> Result<[String; 3]> {
    let target = lab.hosts[1].address();
    let arguments = [&["--json", "--check", &target], options, &[&*guest.name]].concat();
    let output = lab.tool(0, "ulpm_command", &arguments)?;
    ensure!(output.code == code, "exit status {}: {}{}", output.code, output.stdout, output.stderr);
    let checked: Value = serde_json::from_str(&output.stdout)?;
    let findings = checked["findings"].as_array().ok_or("--check --json has no findings")?;
    let worst = if code == 0 { ["ok", "warning"] } else { ["no", "no"] };
    ensure!(worst.iter().any(|worst| checked["verdict"] == *worst), "{checked}");
    // The worst of a subject counts.
    let rank =
        |finding: &&Value| ["ok", "warning", "no"].iter().position(|v| finding["verdict"] == *v);
    let found = findings.iter().filter(|finding| finding["subject"] == subject).max_by_key(rank);
    let found = found.ok_or_else(|| format!("nothing on {subject}: {checked}"))?;
    Ok(["verdict", "text", "way_out"].map(|key| found[key].as_str().unwrap_or_default().into()))
}

/// Ends a job that was moved there.
fn end(lab: &Lab, host: usize, guest: &Guest<'_>) -> Result {
    lab.tool(host, "ulpm_command", &["--kill", &guest.name])?.success()?;
    guest.finish()?.expect_code(137)?;
    Ok(())
}

#[test]
fn check_says_what_is_well_and_moves_nothing() -> Result {
    Lab::two_hosts(|lab| {
        let guest = stays(lab)?;
        for subject in [
            "objects",
            "architecture",
            "processor",
            "kernel",
            "version",
            "user",
            "files",
            "programs",
            "memory",
            "disk",
            "resources",
            "limits",
        ] {
            let [verdict, text, _] = said(lab, &guest, &[], 0, subject)?;
            ensure!(verdict == "ok" && !text.is_empty(), "{subject}: {verdict}: {text}");
        }
        let target = lab.hosts[1].address();
        let text = lab.tool(0, "ulpm_command", &["--check", &target, &guest.name])?.success()?;
        ensure!(text.contains("can move") && text.contains("  ok"), "{text}");
        let jobs = lab.hosts[1].status()?;
        ensure!(jobs["jobs"].as_array().is_some_and(Vec::is_empty), "it has moved: {jobs}");
        goes_on(&guest)?;
        guest.kill_tree()?;
        Ok(())
    })
}

#[test]
fn objects_that_cannot_be_saved_are_named_before_anything_stands_still() -> Result {
    Lab::two_hosts(|lab| {
        let guest = lab.launch(&Program::guest("refused_state", 1_000).arg("userfaultfd"))?;
        guest.set_limit(5)?;
        guest.wait_step(5)?;
        let [verdict, text, way_out] = said(lab, &guest, &[], 67, "objects")?;
        ensure!(verdict == "no" && text.contains("userfaultfd"), "{verdict}: {text}");
        ensure!(way_out.contains("close it"), "{way_out}");
        let target = lab.hosts[1].address();
        let output = lab.tool(0, "ulpm_command", &["--migrate", &target, &guest.name])?;
        ensure!(output.code == 67, "exit status {}: {}", output.code, output.stderr);
        output.failure(&["cannot move", "userfaultfd", "close it"])?;
        ensure!(!lab.hosts[0].log().contains("Freeze"), "it was frozen");
        guest.kill_tree()?;
        Ok(())
    })
}

#[test]
fn files_that_are_not_there_are_named() -> Result {
    if !is_root() {
        println!("a host with other files is made with a mount namespace, which only root has");
        return Ok(());
    }
    Lab::two_hosts(|lab| {
        let guest = stays(lab)?;
        lab.hosts[1].kill_coordinator()?;
        lab.hosts[1].start_coordinator_without(&lab.dir.join("work"))?;
        let [verdict, text, way_out] = said(lab, &guest, &[], 67, "files")?;
        ensure!(verdict == "no" && text.contains("work/1 does not exist there"), "{text}");
        ensure!(way_out.contains("--files ship"), "{way_out}");
        goes_on(&guest)?;
        guest.kill_tree()?;
        Ok(())
    })
}

#[test]
fn files_that_may_not_be_opened_are_named() -> Result {
    if is_root() {
        println!("root may open every file: the run as another user shows this");
        return Ok(());
    }
    Lab::two_hosts(|lab| {
        let program = Program::new(
            "writer",
            &["/bin/sh", "-c", "exec 3>>mine; while :; do sleep 0.1; done"],
            ulpm_tests::Pace::Lines,
        );
        let guest = lab.launch(&program)?;
        let file = guest.dir.join("mine");
        ulpm_tests::until("the file", ulpm_tests::DEADLINE, || Ok(file.exists().then_some(())))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o444))?;
        let [verdict, text, _] = said(lab, &guest, &[], 67, "files")?;
        ensure!(
            verdict == "no" && text.contains("mine") && text.contains("may not open"),
            "{text}"
        );
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
        said(lab, &guest, &[], 0, "files")?;
        guest.kill_tree()?;
        Ok(())
    })
}

/// Starts the other host's coordinator again, with further options.
fn limited(lab: &Lab, options: &[&str]) -> Result {
    lab.hosts[1].quit_coordinator()?;
    lab.hosts[1].start_coordinator_with(options)
}

/// The owner's limits say no in words and with an exit code of their own, also at a move.
fn refused_by_limit(lab: &Lab, guest: &Guest<'_>, words: &[&str]) -> Result {
    let [verdict, text, way_out] = said(lab, guest, &[], 72, "limits")?;
    ensure!(verdict == "no" && words.iter().all(|word| text.contains(word)), "{verdict}: {text}");
    ensure!(way_out.contains("--max-"), "{way_out}");
    let target = lab.hosts[1].address();
    let output = lab.tool(0, "ulpm_command", &["--migrate", &target, &guest.name])?;
    ensure!(output.code == 72, "exit status {}: {}", output.code, output.stderr);
    output.failure(&[&["its owner", "goes on here"], words].concat())?;
    goes_on(guest)
}

#[test]
fn owner_limits_how_many_jobs_come() -> Result {
    Lab::two_hosts(|lab| {
        let guest = stays(lab)?;
        let other = stays(lab)?;
        limited(lab, &["--max-guests", "0"])?;
        refused_by_limit(lab, &guest, &["lets 0 jobs"])?;
        limited(lab, &["--max-guests", "1"])?;
        lab.migrate(&guest.name, 0, 1)?;
        refused_by_limit(lab, &other, &["lets 1 jobs", "1 are there"])?;
        // Its own jobs are not guests, and one that leaves makes room.
        let own = lab.launch_on(1, &Program::guest("counter", 1_000_000))?;
        own.wait_step(1)?;
        lab.migrate(&guest.name, 1, 0)?;
        lab.migrate(&other.name, 0, 1)?;
        own.kill_tree()?;
        end(lab, 1, &other)?;
        end(lab, 0, &guest)
    })
}

#[test]
fn owner_limits_memory_and_disk_of_jobs_that_come() -> Result {
    Lab::two_hosts(|lab| {
        let guest = stays(lab)?;
        limited(lab, &["--max-memory", "100K"])?;
        refused_by_limit(lab, &guest, &["of memory"])?;
        limited(lab, &["--max-disk", "100K"])?;
        refused_by_limit(lab, &guest, &["of disk space"])?;
        limited(lab, &["--max-guests", "3", "--max-memory", "1G", "--max-disk", "1G"])?;
        lab.migrate(&guest.name, 0, 1)?;
        end(lab, 1, &guest)
    })
}
