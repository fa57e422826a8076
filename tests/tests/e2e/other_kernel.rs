//! An image made here restarts under another kernel and on another processor, and the other way round.

use std::fs;
use std::path::{Path, PathBuf};

use ulpm_tests::{Booted, DEADLINE, Guest, Lab, Program, Result, ensure, guest_path, until};

const STEPS: u64 = 40;

/// It calls functions of libc for the first time when it has moved.
fn clocks() -> Program {
    Program::guest("clocks", STEPS).arg("20")
}

/// The output of an undisturbed run.
fn natively(lab: &Lab) -> Result<String> {
    Ok(lab.native(&clocks())?.finish()?.expect_code(7)?.stdout)
}

fn saved_here<'lab>(lab: &'lab Lab, program: &Program) -> Result<(Guest<'lab>, PathBuf)> {
    let guest = lab.launch(program)?;
    guest.set_limit(6)?;
    guest.wait_step(3)?;
    let checkpoint = lab.checkpoint_and_kill(&guest)?;
    guest.set_free()?;
    Ok((guest, checkpoint.path))
}

/// Restarts a checkpoint there. The program itself is not there: the image carries it.
fn restarted_there(
    lab: &Lab,
    processor: &str,
    guest: &Guest<'_>,
    checkpoint: &Path,
) -> Result<Booted> {
    let limit = guest.dir.with_extension("limit");
    let path = checkpoint.display();
    let script =
        format!("ulpm_restart {path} >/out/stdout 2>/out/stderr </dev/null; echo $? >/out/status");
    lab.boot(processor, &[checkpoint, &guest.dir, &limit], &script)
}

/// The GLIBC_TUNABLES that a refusal proposes.
fn proposed(refusal: &str) -> Result<String> {
    let (_, rest) = refusal.split_once("GLIBC_TUNABLES=").ok_or("the refusal names no way out")?;
    Ok(rest.split_once(", or").ok_or("the refusal names no other way out")?.0.into())
}

/// The refusal of a checkpoint there, whose proposal then helps: launched so, it goes on there.
fn goes_on_there(processor: &str) -> Result {
    Lab::one_host(|lab| {
        let native = natively(lab)?;
        let (guest, checkpoint) = saved_here(lab, &clocks())?;
        let refused = restarted_there(lab, processor, &guest, &checkpoint)?;
        let (stdout, mut stderr) = (refused.text("stdout")?, refused.text("stderr")?);
        let mut output = guest.output();
        if refused.text("status")?.trim() != "7" {
            ensure!(refused.text("status")? == "78\n" && stdout.is_empty(), "{stdout}{stderr}");
            let program = clocks().env("GLIBC_TUNABLES", proposed(&stderr)?);
            let (guest, checkpoint) = saved_here(lab, &program)?;
            let restarted = restarted_there(lab, processor, &guest, &checkpoint)?;
            stderr = restarted.text("stderr")?;
            ensure!(restarted.text("status")? == "7\n", "{stderr}");
            output = guest.output() + &restarted.text("stdout")?;
        } else {
            output += &stdout;
        }
        ensure!(output == native, "not as natively:\n{output}{stderr}");
        Ok(())
    })
}

/// Saves a program there and restarts it here. What `environment` sets is what the processors call for.
fn comes_from_there(processor: &str, environment: &str) -> Result {
    Lab::one_host(|lab| {
        let native = natively(lab)?;
        let work = lab.dir.join("work/there");
        let limit = lab.dir.join("work/there.limit");
        fs::create_dir(&work)?;
        fs::write(&limit, "6")?;
        let program = guest_path("clocks")?;
        let script = format!(
            "cd {work}; export GUEST_LIMIT={limit} {environment}\n\
             ulpm_launch -d /out/images --name clocks -- {program} {STEPS} 20 2>/out/stderr </dev/null |\n\
             while read line; do\n\
                 echo \"$line\" >>/out/stdout\n\
                 case $line in 'step 3 '*)\n\
                     ulpm_command --checkpoint --kill clocks 2>/out/error || ulpm_command --kill clocks\n\
                 esac\n\
             done",
            work = work.display(),
            limit = limit.display(),
            program = program.display(),
        );
        let booted = lab.boot(processor, &[&work, &limit, &program], &script)?;
        let error = booted.text("error")?;
        ensure!(error.is_empty(), "{error}");
        fs::write(&limit, STEPS.to_string())?;
        let mut command = lab.hosts[0].tool("ulpm_restart");
        command.arg(booted.out.join("images/clocks/1")).current_dir(&work);
        let twin = lab.start_command(0, "clocks", command)?;
        let finished = twin.finish()?.expect_code(7)?;
        let output = booted.text("stdout")? + &finished.stdout;
        ensure!(output == native, "not as natively:\n{output}{}", finished.stderr);
        Ok(())
    })
}

/// A job that was launched for processors of that level moves to one, and back. One that was not is told what is in the
/// way, before anything stands still.
#[test]
fn moves_to_an_older_processor_and_back_with_a_baseline() -> Result {
    Lab::one_host(|lab| {
        let native = natively(lab)?;
        let host = &lab.hosts[0];
        host.quit_coordinator()?;
        lab.tool(0, "ulpm_coordinator", &["--init-cluster"])?.success()?;
        host.start_coordinator()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let (there, here) = (format!("127.0.0.1:{port}"), host.address());
        let (_, here) = here.rsplit_once(':').ok_or("no port")?;

        let free = lab.launch(&clocks())?;
        free.set_limit(6)?;
        free.wait_step(1)?;
        let program = clocks().option("--cpu-baseline=x86-64-v2");
        let bound = lab.launch(&program)?;
        bound.set_limit(6)?;
        bound.wait_step(3)?;
        let limit = bound.dir.with_extension("limit");
        let script = format!(
            "export ULPM_CLUSTER={cluster}\n\
             ulpm_coordinator --listen 0.0.0.0 --daemon 2>/out/error\n\
             until ulpm_command --status | grep -q 'job {job}'; do sleep 0.2; done\n\
             echo 12 >{limit}\n\
             until ulpm_command --output {job} | grep -q 'step 12 '; do sleep 0.2; done\n\
             ulpm_command --output {job} >/out/stdout\n\
             ulpm_command --migrate 10.0.2.2:{here} {job} 2>>/out/error || ulpm_command --kill\n\
             while ulpm_command --status | grep -q 'moved to'; do sleep 0.2; done\n\
             cat /tmp/*.d/coordinator.log >/out/log",
            cluster = host.cluster().display(),
            job = bound.name,
            limit = limit.display(),
        );
        let files = [bound.dir.as_path(), free.dir.as_path(), &limit, &host.cluster()];
        std::thread::scope(|scope| -> Result {
            let booted = scope.spawn(|| {
                let booted = lab.boot_with("Nehalem", &files, &script, Some(port));
                booted.map_err(|error| error.to_string())
            });
            until("the other machine to answer", 6 * DEADLINE, || {
                let asked = lab.tool(0, "ulpm_command", &["--check", &there, &bound.name])?;
                ensure!(asked.code != 67, "{}{}", asked.stdout, asked.stderr);
                Ok((asked.code == 0).then_some(()))
            })?;
            let refused = lab.tool(0, "ulpm_command", &["--check", &there, &free.name])?;
            ensure!(refused.code == 67, "exit status {}", refused.code);
            for word in ["avx2", "bmi2", "--cpu-baseline x86-64-v2"] {
                ensure!(refused.stdout.contains(word), "no {word}: {}", refused.stdout);
            }
            lab.tool(0, "ulpm_command", &["--migrate", &there, &free.name])?.failure(&[
                "lacks",
                "avx2",
                "--cpu-baseline x86-64-v2",
                "goes on here",
            ])?;
            free.set_free()?;
            ensure!(free.finish()?.expect_code(7)?.stdout == native, "not as natively");

            lab.tool(0, "ulpm_command", &["--migrate", &there, &bound.name])?.success()?;
            until("the job to come back", 6 * DEADLINE, || lab.job(0, &bound.name))?;
            let back = lab.follow_output(0, &bound.name, &bound)?;
            bound.set_free()?;
            let finished = bound.finish()?.expect_code(7)?;
            let booted = booted.join().map_err(|_| "the other machine's thread panicked")??;
            let output = finished.stdout + &booted.text("stdout")? + &back.finish()?.stdout;
            // Who comes from root there lacks groups here, and is told.
            let told = |line: &&str| !line.starts_with("ulpm_restart: the job had groups");
            let output: String = output.split_inclusive('\n').filter(told).collect();
            ensure!(output == native, "not as natively:\n{output}{}", booted.text("error")?);
            Ok(())
        })
    })
}

#[test]
fn goes_on_where_nothing_but_sse2_is() -> Result {
    goes_on_there("qemu64")
}

#[test]
fn goes_on_where_avx2_is_and_neither_avx512_nor_xsavec() -> Result {
    goes_on_there("Haswell")
}

#[test]
fn goes_on_where_there_are_protection_keys() -> Result {
    goes_on_there("max")
}

#[test]
fn comes_from_where_nothing_but_sse2_is() -> Result {
    comes_from_there("qemu64", "")
}

#[test]
fn comes_from_where_avx2_is_and_neither_avx512_nor_xsavec() -> Result {
    comes_from_there("Haswell", "LD_BIND_NOW=1")
}

#[test]
fn comes_from_where_there_are_protection_keys() -> Result {
    // The emulated processor is half AMD's, half Intel's.
    comes_from_there("max", "GLIBC_TUNABLES=glibc.cpu.hwcaps=-SSE4A,-VAES")
}
