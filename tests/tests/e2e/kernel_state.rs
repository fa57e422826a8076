//! What the kernel knows of a process and its threads besides descriptors: timers, attributes, names.

use std::process::Command;

use ulpm_tests::{Lab, Program, Result, guest_path, is_root};

use crate::whole_life;

/// `timeout` with a timer of its own, which waits for a guest.
fn timeout() -> Program {
    let mut program = Program::guest("counter", 200);
    program.argv.splice(0..0, ["timeout".into(), "100".into()]);
    program
}

whole_life! {
    posix_timers => Program::guest("posix_timers", 150);
    attributes => Program::guest("attributes", 150);
    raw_calls => Program::guest("raw_calls", 100);
    uptime => Program::guest("uptime", 150);
    timeout_100 => timeout();
}

/// A tool of ulpm as on a host that was booted so much earlier, in seconds.
fn on_older_host(lab: &Lab, earlier: u32, tool: &str) -> Command {
    let seconds = earlier.to_string();
    let mut command = lab.hosts[0].command("unshare");
    command.args(["--time", "--fork", "--kill-child", "--monotonic", &seconds]);
    command.args(["--boottime", &seconds, "--"]).arg(lab.hosts[0].tool(tool).get_program());
    command
}

#[test]
fn clocks_that_count_from_a_boot_go_on_where_they_stood() -> Result {
    if !is_root() {
        println!("only root can make a time namespace: the run as root shows this");
        return Ok(());
    }
    Lab::one_host(|lab| {
        let name = "uptime";
        let mut launch = on_older_host(lab, 100_000, "ulpm_launch");
        launch.arg("-d").arg(lab.images()).args(["--name", name, "--"]);
        launch.arg(guest_path("uptime")?).arg("120");
        let mut guest = lab.start_command(0, name, launch)?;
        guest.set_limit(10)?;
        let mut last = guest.wait_step(5)?;
        for earlier in [0, 1_000_000, 0, 5_000] {
            let checkpoint = lab.checkpoint_and_kill(&guest)?;
            let mut restart = on_older_host(lab, earlier, "ulpm_restart");
            restart.arg(checkpoint.path);
            guest = lab.start_command(0, name, restart)?;
            guest.wait_running()?;
            guest.set_limit(last + 25)?;
            last = guest.wait_step(last + 15)?;
        }
        guest.set_free()?;
        guest.finish()?.expect_code(0)?;
        Ok(())
    })
}
