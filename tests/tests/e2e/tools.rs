//! The tools as a person or a script uses them.

use std::fs;

use serde_json::Value;
use ulpm_tests::{DEADLINE, Guest, Lab, Program, Result, ensure, guest_path, until};

const TOOLS: [&str; 4] = ["ulpm_coordinator", "ulpm_launch", "ulpm_command", "ulpm_restart"];

fn counter() -> Program {
    Program::guest("counter", 100_000)
}

fn status(lab: &Lab) -> Result<Vec<Value>> {
    Ok(lab.hosts[0].status()?["jobs"].as_array().cloned().unwrap_or_default())
}

#[test]
fn help_and_version() -> Result {
    Lab::one_host(|lab| {
        for tool in TOOLS {
            let help = lab.tool(0, tool, &["--help"])?.success()?;
            ensure!(help.contains("Usage") && help.contains("64"), "{tool} --help: {help}");
            ensure!(!lab.tool(0, tool, &["-h"])?.success()?.is_empty(), "{tool} -h says nothing");
            let version = lab.tool(0, tool, &["-V"])?.success()?;
            ensure!(version == format!("{tool} {}\n", env!("CARGO_PKG_VERSION")), "{version:?}");
        }
        Ok(())
    })
}

#[test]
fn status_lists_jobs_and_processes() -> Result {
    Lab::one_host(|lab| {
        ensure!(status(lab)?.is_empty(), "a fresh coordinator has jobs");
        let guest = lab.launch(&Program::guest("tree64", 100_000))?;
        guest.wait_step(2)?;
        let job = lab.job(0, &guest.name)?.ok_or("the job is not listed")?;
        let processes = job["processes"].as_array().ok_or("no processes")?;
        ensure!(processes.len() == 65, "{} processes", processes.len());
        ensure!(processes.iter().all(|process| process["threads"] == 1), "{processes:?}");
        let text = lab.tool(0, "ulpm_command", &["--status"])?.success()?;
        ensure!(text.contains(&guest.name) && text.contains("tree64"), "{text}");
        guest.kill_tree()?;
        ensure!(status(lab)?.is_empty(), "the job is listed still");
        Ok(())
    })
}

#[test]
fn coordinator_starts_on_demand_and_ends_on_request() -> Result {
    Lab::one_host(|lab| {
        let socket = lab.dir.join("home/sock");
        let socket = socket.to_string_lossy();
        let counter = guest_path("counter")?.to_string_lossy().into_owned();
        let output = lab.tool(0, "ulpm_launch", &["-c", &socket, "--", &counter, "5", "4"])?;
        ensure!(output.code == 4 && output.stdout.contains("ok counter"), "{output:?}");
        lab.tool(0, "ulpm_command", &["-c", &socket, "--status"])?.success()?;
        lab.tool(0, "ulpm_command", &["-c", &socket, "--quit"])?.success()?;
        until("the coordinator to be gone", DEADLINE, || {
            Ok((lab.tool(0, "ulpm_command", &["-c", &socket, "--status"])?.code == 69)
                .then_some(()))
        })
    })
}

#[test]
fn programs_go_on_when_the_coordinator_is_told_to_quit() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&counter())?;
        guest.wait_step(2)?;
        lab.tool(0, "ulpm_command", &["--quit"])?.success()?;
        until("the coordinator to be gone", DEADLINE, || {
            Ok(lab.hosts[0].status().is_err().then_some(()))
        })?;
        let last = guest.last_step();
        guest.wait_step(last + 3)?;
        lab.hosts[0].start_coordinator()?;
        until("the job to be listed again", DEADLINE, || {
            Ok(lab.job(0, &guest.name)?.filter(|job| job["state"] == "running"))
        })?;
        lab.checkpoint(&guest)?;
        guest.kill_tree()?;
        Ok(())
    })
}

#[test]
fn checkpoint_prints_its_path_and_keeps_as_many_as_wanted() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&counter().option("--keep").option("3"))?;
        guest.wait_step(2)?;
        let mut paths = Vec::new();
        for _ in 0..5 {
            let text = lab.tool(0, "ulpm_command", &["--checkpoint", &guest.name])?.success()?;
            let path = text.trim_end().to_owned();
            ensure!(fs::metadata(format!("{path}/manifest.json")).is_ok(), "{text:?}");
            paths.push(path);
        }
        for (number, path) in paths.iter().enumerate() {
            ensure!(
                fs::metadata(path).is_ok() == (number >= 2),
                "generation {}: {path}",
                number + 1
            );
        }
        guest.kill_tree()?;
        // Each that is left can be restarted, also by the link and by its images alone.
        let mut images: Vec<String> = fs::read_dir(&paths[3])?
            .flatten()
            .map(|entry| entry.path().to_string_lossy().into_owned())
            .filter(|path| path.ends_with(".ulpm"))
            .collect();
        images.sort();
        let latest = lab.images().join(&guest.name).join("latest").to_string_lossy().into_owned();
        for arguments in [vec![paths[2].clone()], vec![latest], images] {
            let mut command = lab.hosts[0].tool("ulpm_restart");
            command.args(&arguments);
            let twin = lab.start_command(0, &guest.name, command)?;
            twin.wait_step(3)?;
            twin.kill_tree()?;
        }
        Ok(())
    })
}

#[test]
fn interval_makes_checkpoints_by_itself() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&counter().option("-i").option("1"))?;
        let generation = |wanted: u64| {
            until(format!("generation {wanted}"), DEADLINE, || {
                let job = lab.job(0, &guest.name)?.ok_or("the job is gone")?;
                Ok(job["generation"].as_u64().filter(|&found| found >= wanted))
            })
        };
        guest.wait_step(1)?;
        let found = generation(2)?;
        lab.tool(0, "ulpm_command", &["--interval", "0", &guest.name])?.success()?;
        let job = lab.job(0, &guest.name)?.ok_or("the job is gone")?;
        ensure!(job["interval"].is_null(), "{job}");
        lab.tool(0, "ulpm_command", &["--interval", "1", &guest.name])?.success()?;
        generation(found + 1)?;
        guest.kill_tree()?;
        let twin = lab.restart(&guest, &lab.images().join(&guest.name).join("latest"))?;
        twin.wait_step(1)?;
        // It is the job's own choice, and goes with it.
        let before = generation(1)?;
        generation(before + 1)?;
        twin.kill_tree()?;
        Ok(())
    })
}

#[test]
fn inspect_shows_what_is_in_an_image() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("files", 100_000))?;
        guest.wait_step(2)?;
        let checkpoint = lab.checkpoint(&guest)?;
        guest.kill_tree()?;
        let path = checkpoint.path.to_string_lossy().into_owned();
        let text = lab.tool(0, "ulpm_command", &["--inspect", &path])?.success()?;
        ensure!(text.contains("files.d/input"), "{text}");
        let json = lab.tool(0, "ulpm_command", &["--json", "--inspect", &path])?.success()?;
        serde_json::from_str::<Value>(&json)?;
        ensure!(json.contains("files.d/input"), "{json}");
        for entry in fs::read_dir(&checkpoint.path)?.flatten() {
            let image = entry.path().to_string_lossy().into_owned();
            if image.ends_with(".ulpm") {
                let json =
                    lab.tool(0, "ulpm_command", &["--json", "--inspect", &image])?.success()?;
                serde_json::from_str::<Value>(&json)?;
            }
        }
        Ok(())
    })
}

#[test]
fn kill_ends_every_process_of_a_job() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("tree64", 100_000))?;
        guest.wait_step(2)?;
        lab.tool(0, "ulpm_command", &["--kill", &guest.name])?.success()?;
        ensure!(guest.finish()?.code == 137, "{}", guest.errors());
        until("every process to be gone", DEADLINE, || {
            Ok(guest.members()?.is_empty().then_some(()))
        })?;
        ensure!(status(lab)?.is_empty(), "the job is listed still");
        Ok(())
    })
}

#[test]
fn a_second_program_joins_a_job() -> Result {
    Lab::one_host(|lab| {
        let first = lab.launch(&counter())?;
        first.wait_step(2)?;
        let mut command = lab.hosts[0].tool("ulpm_launch");
        command.args(["--join", &first.name, "--"]).arg(guest_path("counter")?).arg("100000");
        let second = lab.start_command(0, &first.name, command)?;
        second.wait_step(2)?;
        let checkpoint = lab.checkpoint(&first)?;
        ensure!(checkpoint.processes == 2, "{} processes", checkpoint.processes);
        first.kill_tree()?;
        second.finish()?;
        let twin = lab.restart(&first, &checkpoint.path)?;
        // Both write to what is now the standard output of one ulpm_restart.
        twin.wait_lines(20)?;
        let job = lab.job(0, &first.name)?.ok_or("the job is not listed")?;
        let both = job["processes"].as_array().map_or(0, Vec::len);
        ensure!(both == 2, "{both} processes after the restart: {}", twin.errors());
        twin.kill_tree()?;
        Ok(())
    })
}

#[test]
fn check_says_whether_a_job_can_be_restarted_and_starts_nothing() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("files", 100_000))?;
        guest.wait_step(2)?;
        let path = lab.checkpoint(&guest)?.path.to_string_lossy().into_owned();
        guest.kill_tree()?;
        lab.tool(0, "ulpm_restart", &["--check", &path])?.success()?;
        ensure!(status(lab)?.is_empty(), "--check has started a job");
        let (input, away) = (guest.dir.join("files.d"), guest.dir.join("away.d"));
        fs::rename(&input, &away)?;
        let output = lab.tool(0, "ulpm_restart", &["--check", &path])?;
        output.failure(&["files.d", "--map-path"])?;
        let map = format!("{}={}", input.display(), away.display());
        lab.tool(0, "ulpm_restart", &["--check", "--map-path", &map, &path])?.success()?;
        Ok(())
    })
}

#[test]
fn files_that_were_moved_are_found_by_map_path() -> Result {
    Lab::one_host(|lab| {
        // It has its input open, and its working directory is a folder that is elsewhere later.
        let script = "exec 3<words; while read -r word <&3; do echo \"$word\"; read -r go; done";
        let program = Program::new("mapped", &["sh", "-c", script], ulpm_tests::Pace::Lines).fed();
        let folder = lab.dir.join("source");
        fs::create_dir(&folder)?;
        fs::write(folder.join("words"), "one\ntwo\nthree\n")?;
        let guest = lab.launch(&program.folder(&folder))?;
        guest.wait_for("one")?;
        guest.write("go\n")?;
        guest.wait_for("two")?;
        let checkpoint = lab.checkpoint(&guest)?;
        guest.kill_tree()?;
        let moved = lab.dir.join("moved");
        fs::rename(&guest.dir, &moved)?;
        let mut command = lab.hosts[0].tool("ulpm_restart");
        command.arg("--map-path").arg(format!("{}={}", guest.dir.display(), moved.display()));
        command.arg(&checkpoint.path);
        let twin = lab.start_command(0, &guest.name, command)?;
        twin.write("go\n")?;
        twin.wait_for("three")?;
        twin.close_stdin();
        twin.finish()?;
        Ok(())
    })
}

#[test]
fn detached_restart_returns_and_the_job_goes_on() -> Result {
    Lab::one_host(|lab| {
        // What it writes goes to a file, for its standard output ends with ulpm_restart.
        let program = Program::guest("daemon", 60);
        let guest = lab.launch(&program)?;
        guest.set_limit(20)?;
        let progress = guest.dir.join("daemon.progress");
        let lines = || fs::read_to_string(&progress).unwrap_or_default().lines().count();
        until("5 steps", DEADLINE, || Ok((lines() >= 5).then_some(())))?;
        let checkpoint = lab.checkpoint(&guest)?;
        guest.kill_tree()?;
        lab.tool(0, "ulpm_restart", &["--detach", &checkpoint.path.to_string_lossy()])?
            .success()?;
        ensure!(lab.job(0, &guest.name)?.is_some(), "the job is not listed");
        guest.set_free()?;
        until("all steps", DEADLINE, || Ok((lines() >= 61).then_some(())))?;
        until("the job to end", DEADLINE, || Ok(lab.job(0, &guest.name)?.is_none().then_some(())))
    })
}

#[test]
fn many_copies_of_one_image_run_side_by_side() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("zombies", 100_000))?;
        guest.wait_step(5)?;
        let checkpoint = lab.checkpoint(&guest)?;
        let mut copies: Vec<Guest<'_>> = Vec::new();
        for _ in 0..5 {
            copies.push(lab.restart(&guest, &checkpoint.path)?);
        }
        for copy in copies.iter().chain([&guest]) {
            let last = copy.last_step();
            copy.wait_step(last.max(5) + 10)?;
            ensure!(!copy.output().contains("FAILED"), "{}", copy.output());
        }
        let jobs = status(lab)?;
        ensure!(jobs.len() == 6, "{} jobs", jobs.len());
        for job in jobs {
            let id = job["id"].to_string();
            lab.tool(0, "ulpm_command", &["--kill", &id])?.success()?;
        }
        for copy in copies.iter().chain([&guest]) {
            copy.finish()?;
        }
        Ok(())
    })
}

#[test]
fn output_of_a_moved_job_is_kept_and_followed() -> Result {
    Lab::two_hosts(|lab| {
        let guest = lab.launch(&Program::guest("counter", 80).arg("9"))?;
        guest.set_limit(20)?;
        guest.wait_step(10)?;
        let migration = lab.migrate(&guest.name, 0, 1)?;
        let id = migration.target_id.to_string();
        guest.set_limit(40)?;
        let shown = until("output on the target", DEADLINE, || {
            let text = lab.tool(1, "ulpm_command", &["--output", &id])?.success()?;
            Ok(text.contains("step 40 ").then_some(text))
        })?;
        ensure!(!shown.contains("step 5 "), "what was written on the source is here: {shown}");
        ensure!(lab.job(0, &guest.name)?.is_none(), "the source lists it still as running");
        let moved = lab.hosts[0].status()?["moved"].clone();
        ensure!(moved.as_array().is_some_and(|moved| moved.len() == 1), "{moved}");
        let viewer = lab.follow_output(1, &id, &guest)?;
        viewer.wait_for("step 40")?;
        guest.set_free()?;
        viewer.finish()?.expect_code(0)?;
        let launched = guest.finish()?.expect_code(9)?;
        let whole = launched.stdout + &viewer.output();
        let steps = whole.lines().filter(|line| line.starts_with("step ")).count();
        ensure!(steps == 80 && whole.contains("ok counter"), "{steps} steps: {whole}");
        Ok(())
    })
}

#[test]
fn several_jobs_are_saved_and_moved_by_name() -> Result {
    Lab::two_hosts(|lab| {
        let one = lab.launch(&counter())?;
        let other = lab.launch(&counter())?;
        one.wait_step(2)?;
        other.wait_step(2)?;
        let both =
            lab.tool(0, "ulpm_command", &["--json", "--checkpoint", &one.name, &other.name])?;
        let both: Value = serde_json::from_str(&both.success()?)?;
        ensure!(both.as_array().is_some_and(|both| both.len() == 2), "{both}");
        let target = lab.hosts[1].address();
        let moved =
            lab.tool(0, "ulpm_command", &["--json", "--migrate", &target, &one.name, &other.name])?;
        let moved: Value = serde_json::from_str(&moved.success()?)?;
        ensure!(moved.as_array().is_some_and(|moved| moved.len() == 2), "{moved}");
        lab.tool(1, "ulpm_command", &["--kill", &one.name, &other.name])?.success()?;
        ensure!(one.finish()?.code == 137 && other.finish()?.code == 137, "{}", one.errors());
        Ok(())
    })
}

#[test]
fn freeze_until_durable_holds_the_program_until_its_image_is_safe() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("random_memory", 1_000_000).arg("64"))?;
        guest.wait_step(3)?;
        let checkpoint = lab.checkpoint_with(&guest, &["--freeze-until-durable"])?;
        let (freeze, total) = (checkpoint.freeze_ms, checkpoint.total_ms);
        ensure!(freeze > total / 2.0, "frozen for {freeze} ms of {total} ms");
        let last = guest.last_step();
        guest.wait_step(last + 3)?;
        guest.kill_tree()?;
        let twin = lab.restart(&guest, &checkpoint.path)?;
        twin.wait_step(6)?;
        twin.kill_tree()?;
        Ok(())
    })
}

/// `ulpm_launch … <input`, which nothing else can stand for.
#[test]
fn input_from_a_file_goes_on_where_it_stood() -> Result {
    Lab::two_hosts(|lab| {
        let input = lab.dir.join("input");
        let records: String = (1..=60).map(|number| format!("record {number:8}\n")).collect();
        fs::write(&input, records)?;
        let line = format!(
            "exec {} -d {} --name reader -- {} 60 <{}",
            lab.bin.join("ulpm_launch").display(),
            lab.images().display(),
            guest_path("read_input")?.display(),
            input.display()
        );
        let mut command = lab.hosts[0].command("sh");
        command.args(["-c", &line]);
        let guest = lab.start_command(0, "reader", command)?;
        guest.set_limit(20)?;
        guest.wait_step(20)?;
        let checkpoint = lab.checkpoint(&guest)?;
        guest.kill_tree()?;
        let twin = lab.restart(&guest, &checkpoint.path)?;
        twin.set_limit(40)?;
        twin.wait_step(40)?;
        let migration = lab.migrate(&twin.name, 0, 1)?;
        twin.set_free()?;
        let id = migration.target_id.to_string();
        until("the end of the input on the target", DEADLINE, || {
            let text = lab.tool(1, "ulpm_command", &["--output", &id])?.success()?;
            ensure!(!text.contains("FAILED"), "{text}");
            Ok(text.contains("ok read_input").then_some(()))
        })?;
        twin.finish()?.expect_code(0)?;
        Ok(())
    })
}
