//! What cannot be done is refused in words, before anything has happened.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ulpm_tests::{DEADLINE, Lab, Output, Program, Result, ensure, guest_path, is_root, until};

/// Runs `ulpm_launch PROGRAM`.
fn launch(lab: &Lab, program: &Path) -> Result<Output> {
    lab.tool(0, "ulpm_launch", &["--", &program.to_string_lossy()])
}

fn refused(lab: &Lab, program: &Path, code: i32, words: &[&str]) -> Result {
    let output = launch(lab, program)?;
    ensure!(
        output.code == code,
        "exit status {} instead of {code}: {}",
        output.code,
        output.stderr
    );
    ensure!(output.stdout.is_empty(), "{}", output.stdout);
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    output.failure(&[words, &[name.as_str()]].concat())?;
    ensure!(lab.hosts[0].status()?["jobs"].as_array().is_some_and(Vec::is_empty), "a job is left");
    Ok(())
}

#[test]
fn missing_program() -> Result {
    Lab::one_host(|lab| {
        refused(lab, &lab.dir.join("no-such-program"), 127, &["no such file"])?;
        refused(lab, Path::new("no-such-program-in-path"), 127, &["not found"])
    })
}

#[test]
fn what_is_no_program() -> Result {
    Lab::one_host(|lab| {
        refused(lab, &lab.dir.join("home"), 126, &["cannot be executed"])?;
        let text = lab.dir.join("text");
        fs::write(&text, "no program\n")?;
        refused(lab, &text, 126, &["cannot be executed"])
    })
}

#[test]
fn statically_linked_program() -> Result {
    Lab::one_host(|lab| refused(lab, &guest_path("counter-static")?, 78, &["static"]))
}

#[test]
fn program_with_address_sanitizer() -> Result {
    Lab::one_host(|lab| refused(lab, &guest_path("counter-asan")?, 78, &["AddressSanitizer"]))
}

#[test]
fn program_for_another_machine() -> Result {
    Lab::one_host(|lab| {
        let mut image = fs::read(guest_path("counter")?)?;
        // e_machine of an ELF file is at 18; 183 is AArch64.
        image[18] = 183;
        let program = lab.dir.join("aarch64-program");
        fs::write(&program, image)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        refused(lab, &program, 78, &["machine"])
    })
}

/// A program that runs with other rights than the user's.
fn setuid_program(lab: &Lab) -> Result<PathBuf> {
    if !is_root() {
        let found =
            ["/usr/bin/su", "/bin/su", "/usr/bin/passwd", "/usr/bin/mount"].iter().find(|path| {
                fs::metadata(path).is_ok_and(|status| status.permissions().mode() & 0o4000 != 0)
            });
        return Ok(found.ok_or("no setuid program on this machine")?.into());
    }
    let program = lab.dir.join("setuid-program");
    fs::copy(guest_path("counter")?, &program)?;
    nix::unistd::chown(&program, Some(nix::unistd::Uid::from_raw(65534)), None)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755))?;
    Ok(program)
}

#[test]
fn setuid_program_is_refused() -> Result {
    Lab::one_host(|lab| refused(lab, &setuid_program(lab)?, 78, &["setuid"]))
}

#[test]
fn no_coordinator_and_none_can_be_started() -> Result {
    Lab::one_host(|lab| {
        let program = guest_path("counter")?.to_string_lossy().into_owned();
        // Nobody listens at that port: the listener is gone again.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let tcp = format!("127.0.0.1:{port}");
        let nowhere = lab.dir.join("text/sock");
        fs::write(lab.dir.join("text"), "")?;
        for address in [tcp.as_str(), &nowhere.to_string_lossy()] {
            let output = lab.tool(0, "ulpm_launch", &["-c", address, "--", &program])?;
            ensure!(output.code == 69, "exit status {}: {}", output.code, output.stderr);
            ensure!(output.stdout.is_empty(), "the program ran: {}", output.stdout);
            output.failure(&["coordinator", address])?;
            let output = lab.tool(0, "ulpm_command", &["-c", address, "--status"])?;
            ensure!(output.code == 69, "exit status {}: {}", output.code, output.stderr);
            output.failure(&["coordinator", address])?;
        }
        Ok(())
    })
}

#[test]
fn wrong_command_lines() -> Result {
    Lab::one_host(|lab| {
        let cases: [(&str, &[&str]); 8] = [
            ("ulpm_launch", &[]),
            ("ulpm_launch", &["--no-such-option", "true"]),
            ("ulpm_launch", &["--ckpt-signal", "KILL", "true"]),
            ("ulpm_launch", &["--name", "a/b", "true"]),
            ("ulpm_command", &[]),
            ("ulpm_command", &["--status", "--checkpoint"]),
            ("ulpm_restart", &[]),
            ("ulpm_restart", &["--map-path", "nonsense", "x"]),
        ];
        for (tool, arguments) in cases {
            let output = lab.tool(0, tool, arguments)?;
            ensure!(
                output.code == 64,
                "{}: exit status {}: {}",
                output.command,
                output.code,
                output.stderr
            );
            output.failure(&[])?;
        }
        Ok(())
    })
}

/// A port that cannot be one is a wrong command line, and no host that does not answer.
#[test]
fn ports_that_cannot_be() -> Result {
    Lab::one_host(|lab| {
        let cases: [(&str, &[&str]); 5] = [
            ("ulpm_command", &["--migrate", "b:65536"]),
            ("ulpm_command", &["--check", "b:x"]),
            ("ulpm_command", &["-c", "b:99999", "--status"]),
            ("ulpm_coordinator", &["--listen", "127.0.0.1:65536"]),
            ("ulpm_launch", &["-c", "b:65536", "true"]),
        ];
        for (tool, arguments) in cases {
            let output = lab.tool(0, tool, arguments)?;
            ensure!(output.code == 64, "{}: {} {}", output.command, output.code, output.stderr);
            output.failure(&["is no port"])?;
        }
        Ok(())
    })
}

#[test]
fn coordinator_of_another_user() -> Result {
    if !is_root() {
        println!("only root can ask as another user");
        return Ok(());
    }
    Lab::one_host(|lab| {
        let as_nobody = |arguments: &[&std::ffi::OsStr]| -> Result<Output> {
            let mut command = lab.hosts[0].command("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
            command.arg(lab.bin.join("ulpm_command")).args(arguments).current_dir("/");
            lab.output(command)
        };
        if as_nobody(&["--version".as_ref()])?.code != 0 {
            println!("nobody may not run ULPM's programs here");
            return Ok(());
        }
        let socket = lab.hosts[0].socket.as_os_str();
        let output = as_nobody(&["-c".as_ref(), socket, "--status".as_ref()])?;
        ensure!(output.code == 77, "exit status {}: {}", output.code, output.stderr);
        output.failure(&["is user root's", "-c"])?;
        // An image in a directory that one may not enter.
        let images = lab.images();
        let output = as_nobody(&["--inspect".as_ref(), images.join("x").as_os_str()])?;
        ensure!(output.code == 77, "exit status {}: {}", output.code, output.stderr);
        Ok(())
    })
}

#[test]
fn jobs_that_do_not_exist_and_jobs_that_are_not_named() -> Result {
    Lab::one_host(|lab| {
        for arguments in [["--checkpoint", "nobody"], ["--kill", "nobody"], ["--output", "nobody"]]
        {
            let output = lab.tool(0, "ulpm_command", &arguments)?;
            ensure!(output.code == 66, "{}: {} {}", output.command, output.code, output.stderr);
            output.failure(&["nobody"])?;
        }
        let one = lab.launch(&Program::guest("counter", 100_000))?;
        let other = lab.launch(&Program::guest("counter", 100_000))?;
        one.wait_step(1)?;
        other.wait_step(1)?;
        let target =
            format!("127.0.0.1:{}", TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
        for arguments in [&["--checkpoint"][..], &["--kill"], &["--migrate", &target]] {
            let output = lab.tool(0, "ulpm_command", arguments)?;
            output.failure(&[&one.name, &other.name])?;
        }
        for guest in [&one, &other] {
            let last = guest.last_step();
            guest.wait_step(last + 2)?;
            guest.kill_tree()?;
        }
        Ok(())
    })
}

#[test]
fn unreachable_peer_leaves_the_program_alone() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("counter", 100_000))?;
        guest.wait_step(3)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let target = format!("127.0.0.1:{port}");
        let output = lab.tool(0, "ulpm_command", &["--migrate", &target, &guest.name])?;
        output.failure(&[&target])?;
        let output =
            lab.tool(0, "ulpm_command", &["--migrate", "no-such-host.invalid", &guest.name])?;
        output.failure(&["no-such-host.invalid"])?;
        let last = guest.last_step();
        guest.wait_step(last + 3)?;
        guest.kill_tree()?;
        Ok(())
    })
}

#[test]
fn peer_that_is_no_coordinator_leaves_the_program_alone() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("counter", 100_000))?;
        guest.wait_step(3)?;
        // One that answers nonsense, and one that hangs up.
        for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b""] {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let target = listener.local_addr()?.to_string();
            let server = std::thread::spawn(move || -> std::io::Result<()> {
                use std::io::Write;
                let (mut stream, _) = listener.accept()?;
                let mut question = [0; 64];
                // What is asked is of no interest.
                let _ = stream.read(&mut question)?;
                stream.write_all(answer)
            });
            let output = lab.tool(0, "ulpm_command", &["--migrate", &target, &guest.name])?;
            output.failure(&[&target])?;
            server.join().map_err(|_| "the server panicked")??;
        }
        let last = guest.last_step();
        guest.wait_step(last + 3)?;
        lab.checkpoint(&guest)?;
        guest.kill_tree()?;
        Ok(())
    })
}

#[test]
fn what_is_no_checkpoint_cannot_be_restarted() -> Result {
    Lab::one_host(|lab| {
        let nothing = lab.dir.join("nothing");
        let output = lab.tool(0, "ulpm_restart", &[&nothing.to_string_lossy()])?;
        ensure!(output.code == 66, "exit status {}: {}", output.code, output.stderr);
        output.failure(&["nothing"])?;
        let empty = lab.dir.join("home");
        let output = lab.tool(0, "ulpm_restart", &[&empty.to_string_lossy()])?;
        output.failure(&["manifest.json"])?;
        Ok(())
    })
}

/// A checkpoint of a program with such a state is refused, in words, and the program is unharmed.
fn state_refused(what: &str, words: &[&str]) -> Result {
    Lab::one_host(|lab| state_refused_in(lab, what, words))
}

fn state_refused_in(lab: &Lab, what: &str, words: &[&str]) -> Result {
    let guest = lab.launch(&Program::guest("refused_state", 30).arg(what))?;
    guest.set_limit(5)?;
    guest.wait_step(5)?;
    let said = lab.tool(0, "ulpm_command", &["--checkpoint", "--kill", &guest.name])?;
    said.failure(&[words, &["cannot be saved"]].concat())?;
    guest.set_free()?;
    guest.finish()?.expect_code(0)?;
    Ok(())
}

#[test]
fn datagram_that_is_not_complete() -> Result {
    state_refused("cork", &["MSG_MORE"])
}

#[test]
fn urgent_data() -> Result {
    state_refused("urgent", &["urgent data"])
}

#[test]
fn multicast_group_for_certain_sources() -> Result {
    state_refused("sources", &["multicast group"])
}

#[test]
fn message_queue_with_a_thread_with_attributes_to_be_told() -> Result {
    state_refused("queue", &["message queue", "attributes", "SIGEV_THREAD"])
}

#[test]
fn inotify() -> Result {
    if is_root() {
        println!("root finds the file: the run as another user shows this");
        return Ok(());
    }
    state_refused("inotify", &["inotify", "path nobody knows"])
}

#[test]
fn userfaultfd() -> Result {
    state_refused("userfaultfd", &["userfaultfd"])
}

#[test]
fn file_of_huge_pages() -> Result {
    state_refused("huge", &["huge pages"])
}

#[test]
fn asynchronous_requests_that_do_not_end() -> Result {
    state_refused("requests", &["io_setup", "under way"])
}

#[test]
fn process_outside_the_job() -> Result {
    state_refused("process", &["outside the job", "pidfd"])
}

#[test]
fn deleted_name_of_a_file_whose_other_name_is_not_known() -> Result {
    state_refused("linked", &["was deleted under this name"])
}

#[test]
fn timer_of_one_of_several_threads() -> Result {
    state_refused("timer", &["timer_create", "processor time"])
}

#[test]
fn seccomp_filter() -> Result {
    state_refused("seccomp", &["seccomp filter"])
}

/// The same for what not every kernel has, or not for every user.
fn state_refused_where_it_can_be(what: &str, words: &[&str]) -> Result {
    Lab::one_host(|lab| {
        if lab.native(&Program::guest("refused_state", 1).arg(what))?.finish()?.code != 0 {
            println!("there is no {what} here for this user");
            return Ok(());
        }
        state_refused_in(lab, what, words)
    })
}

#[test]
fn fanotify() -> Result {
    state_refused_where_it_can_be("fanotify", &["watches file systems", "fanotify"])
}

#[test]
fn perf_event() -> Result {
    state_refused_where_it_can_be("perf", &["perf_event_open"])
}

#[test]
fn object_of_bpf() -> Result {
    state_refused_where_it_can_be("bpf", &["object of bpf"])
}

#[test]
fn rules_of_landlock() -> Result {
    state_refused_where_it_can_be("landlock", &["landlock"])
}

#[test]
fn netlink_socket_of_netfilter() -> Result {
    state_refused_where_it_can_be("netfilter", &["netlink socket of netfilter"])
}

#[test]
fn packet_socket() -> Result {
    state_refused_where_it_can_be("packet", &["socket of a family"])
}

#[test]
fn out_of_band_data_of_a_unix_socket() -> Result {
    state_refused_where_it_can_be("out-of-band", &["out-of-band data"])
}

#[test]
fn pidfd_of_a_thread() -> Result {
    state_refused_where_it_can_be("thread", &["PIDFD_THREAD"])
}

#[test]
fn secret_memory() -> Result {
    state_refused_where_it_can_be("secret", &["memfd_secret"])
}

#[test]
fn capabilities_that_were_given_up() -> Result {
    state_refused_where_it_can_be("capabilities", &["given up capabilities"])
}

#[test]
fn process_that_another_of_the_job_traces() -> Result {
    state_refused("traced", &["traced by process", "refused_state"])
}

/// A checkpoint is refused quickly, naming what is in the way, and so is a move.
fn refused_at_once(command: &[&str], words: &[&str]) -> Result {
    Lab::one_host(|lab| {
        let mut program = Program::guest("counter", 1);
        program.argv = command.iter().map(ToString::to_string).collect();
        let guest = lab.launch(&program)?;
        guest.wait_for("here")?;
        let began = Instant::now();
        let said = lab.tool(0, "ulpm_command", &["--checkpoint", "--kill", &guest.name])?;
        said.failure(&[words, &["cannot be saved"]].concat())?;
        ensure!(began.elapsed() < Duration::from_secs(8), "after {:?}", began.elapsed());
        lab.tool(0, "ulpm_command", &["--kill", &guest.name])?.success()?;
        until("the job to end", DEADLINE, || Ok(lab.job(0, &guest.name)?.is_none().then_some(())))?;
        guest.kill_tree()?;
        Ok(())
    })
}

#[test]
fn program_below_strace() -> Result {
    if !Path::new("/usr/bin/strace").exists() {
        println!("there is no strace");
        return Ok(());
    }
    let command = ["strace", "-f", "-o", "/dev/null", "sh", "-c", "echo here; sleep 1000; true"];
    refused_at_once(&command, &["traced by process", "strace -f"])
}

#[test]
fn program_below_gdb() -> Result {
    if !Path::new("/usr/bin/gdb").exists() {
        println!("there is no gdb");
        return Ok(());
    }
    let script = "echo here; sleep 1000; true";
    let command = ["gdb", "-nx", "-q", "-batch", "-ex", "run", "--args", "/bin/sh", "-c", script];
    refused_at_once(&command, &["traced by process", "gdb"])
}

#[test]
fn pid_namespace_of_a_part_of_the_job() -> Result {
    if !is_root() {
        println!("only root can make a pid namespace so: the run as root shows this");
        return Ok(());
    }
    let script = "sleep 1000 & echo here; wait";
    let command = ["unshare", "--pid", "--fork", "sh", "-c", script];
    refused_at_once(&command, &["pid namespace of its own", "run ulpm_coordinator"])
}

#[test]
fn changed_user() -> Result {
    if !is_root() {
        println!("only root can change its user: the run as root shows this");
        return Ok(());
    }
    state_refused("user", &["changed its user", "65534"])
}
