//! Jobs that move by the user's own ssh, to a real sshd.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use ulpm_tests::{DEADLINE, Guest, Lab, Output, Program, Result, ensure, is_root, until};

/// Debian's sshd on the other host, which lets in whoever has one key; and a user who has it.
struct Sshd {
    dir: PathBuf,
    /// Without `ssh://`.
    address: String,
    child: Child,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // It ends with the test; there is nothing to be done about a failure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keygen(path: &std::path::Path) -> Result {
    let mut keygen = Command::new("ssh-keygen");
    let made = keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status()?;
    ensure!(made.success(), "ssh-keygen: {made}");
    Ok(())
}

impl Sshd {
    /// On the second host.
    fn start(lab: &Lab) -> Result<Self> {
        let dir = lab.dir.join("ssh");
        fs::create_dir(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        for key in ["host", "user", "stranger"] {
            keygen(&dir.join(key))?;
        }
        fs::copy(dir.join("user.pub"), dir.join("authorized"))?;
        let target = lab.hosts[1].address();
        let (host, _) = target.rsplit_once(':').ok_or("no port")?;
        // Free where it is asked, and so in a namespace that has nothing else.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let path = |name: &str| dir.join(name).display().to_string();
        fs::write(
            dir.join("sshd_config"),
            format!(
                "ListenAddress {host}:{port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
                 PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nPermitRootLogin yes\n\
                 SetEnv HOME={} ULPM_CLUSTER={} ULPM_TEST_LAB={}\n",
                path("host"),
                path("authorized"),
                lab.dir.join("home").display(),
                lab.hosts[1].cluster().display(),
                lab.dir.display(),
            ),
        )?;
        let known = fs::read_to_string(dir.join("host.pub"))?;
        fs::write(dir.join("known"), format!("[{host}]:{port} {known}"))?;
        // The user's own ssh, with settings that are not in the home of whoever runs the tests.
        let config = |name: &str, key: &str, known: &str| -> Result {
            fs::create_dir(dir.join(name))?;
            let ssh = dir.join(name).join("ssh");
            fs::write(
                dir.join(name).join("config"),
                format!(
                    "Host *\nIdentityFile {}\nIdentitiesOnly yes\nUserKnownHostsFile {}\nGlobalKnownHostsFile none\n",
                    path(key),
                    path(known)
                ),
            )?;
            let config = dir.join(name).join("config");
            fs::write(
                &ssh,
                format!("#!/bin/sh\nexec /usr/bin/ssh -F {} \"$@\"\n", config.display()),
            )?;
            Ok(fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755))?)
        };
        config("bin", "user", "known")?;
        config("bin-stranger", "stranger", "known")?;
        config("bin-unknown", "user", "nobody")?;
        // With that a host of a lab is entered.
        fs::create_dir(dir.join("bin-none"))?;
        std::os::unix::fs::symlink("/usr/bin/nsenter", dir.join("bin-none/nsenter"))?;
        // sshd gives up its privileges there.
        if is_root() {
            fs::create_dir_all("/run/sshd")?;
        }
        let mut sshd = lab.hosts[1].command("/usr/sbin/sshd");
        sshd.args(["-D", "-e", "-f"]).arg(dir.join("sshd_config"));
        let log = dir.join("log");
        sshd.stdin(Stdio::null()).stderr(fs::File::create(&log)?);
        let child =
            sshd.spawn().map_err(|error| format!("sshd: {error}: install openssh-server"))?;
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid())?.ok_or("no user")?.name;
        let sshd = Self { dir, address: format!("{user}@{host}:{port}"), child };
        until("sshd to listen", DEADLINE, || {
            Ok(fs::read_to_string(&log)?.contains("Server listening").then_some(()))
        })?;
        Ok(sshd)
    }

    /// `ulpm_command` with the ssh that lies in one of the directories.
    fn command(&self, lab: &Lab, from: usize, bin: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = lab.hosts[from].tool("ulpm_command");
        let path = if bin == "bin-none" {
            self.dir.join(bin).display().to_string()
        } else {
            format!("{}:/usr/bin:/bin", self.dir.join(bin).display())
        };
        command.env("PATH", path).args(arguments);
        lab.output(command)
    }

    /// The second host's coordinator.
    fn target(&self, lab: &Lab) -> String {
        format!("ssh://{}{}", self.address, lab.hosts[1].socket.display())
    }
}

/// Whether the user can log in at all: nobody has no shell.
fn has_shell() -> bool {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    let shell = user.map(|user| user.shell).unwrap_or_default();
    let can = !shell.ends_with("nologin") && !shell.ends_with("false");
    if !can {
        println!("this user has no shell ({}), so sshd lets nobody in", shell.display());
    }
    can
}

fn stays(lab: &Lab, steps: u64) -> Result<Guest<'_>> {
    let guest = lab.launch(&Program::guest("tree64", steps))?;
    guest.wait_step(2)?;
    Ok(guest)
}

#[test]
fn moves_by_ssh_and_a_coordinator_is_started_there() -> Result {
    if !has_shell() {
        return Ok(());
    }
    Lab::two_hosts(|lab| {
        let sshd = Sshd::start(lab)?;
        // Nothing listens there, and nobody is of a cluster.
        lab.hosts[1].quit_coordinator()?;
        let target = sshd.target(lab);
        let guest = lab.launch(&Program::guest("counter", 40))?;
        guest.set_limit(10)?;
        guest.wait_step(5)?;
        let remote = lab.bin.display().to_string();
        let options = ["--remote-path", &remote, &guest.name];
        let checked =
            sshd.command(lab, 0, "bin", &[&["--check", &target], &options[..]].concat())?;
        ensure!(checked.code == 0, "{}{}", checked.stdout, checked.stderr);
        ensure!(checked.stdout.contains("can move"), "{}", checked.stdout);
        guest.wait_step(10)?;
        sshd.command(lab, 0, "bin", &[&["--migrate", &target], &options[..]].concat())?
            .success()?;
        let there = lab.follow_output(1, &guest.name, &guest)?;
        guest.set_free()?;
        // Its end is told over ssh too.
        let finished = guest.finish()?;
        let output = finished.stdout.clone() + &there.finish()?.stdout;
        finished.expect_code(0)?;
        ensure!(output.contains("step 40 "), "{output}");
        lab.tool(1, "ulpm_command", &["--quit"])?.success()?;
        Ok(())
    })
}

#[test]
fn many_processes_go_over_one_connection() -> Result {
    if !has_shell() {
        return Ok(());
    }
    Lab::two_hosts(|lab| {
        let sshd = Sshd::start(lab)?;
        let guest = stays(lab, 1_000_000)?;
        let target = sshd.target(lab);
        let arguments =
            ["--migrate", &target, "--remote-path", &lab.bin.display().to_string(), &guest.name];
        let said = sshd.command(lab, 0, "bin", &arguments)?.success()?;
        ensure!(said.contains("goes on at ssh://"), "{said}");
        lab.migrate(&guest.name, 1, 0)?;
        lab.tool(0, "ulpm_command", &["--kill", &guest.name])?.success()?;
        guest.finish()?;
        Ok(())
    })
}

#[test]
fn whatever_is_wrong_with_ssh_is_told_apart() -> Result {
    if !has_shell() {
        return Ok(());
    }
    Lab::two_hosts(|lab| {
        let sshd = Sshd::start(lab)?;
        let guest = lab.launch(&Program::guest("counter", 1_000_000))?;
        guest.wait_step(2)?;
        let target = sshd.target(lab);
        let remote = lab.bin.display().to_string();
        let (host, port) = sshd.address.rsplit_once(':').ok_or("no port")?;
        let nobody = format!("ssh://{host}:{}", port.parse::<u16>()? ^ 1);
        let cases: [(&str, &str, &str, i32, &[&str]); 6] = [
            ("bin-none", &target, &remote, 69, &["no ssh in your PATH"]),
            ("bin-unknown", &target, &remote, 77, &["key of", "by hand"]),
            ("bin-stranger", &target, &remote, 77, &["not let in", "Permission denied"]),
            (
                "bin",
                &target,
                "/nowhere",
                69,
                &["no ulpm_coordinator", "/nowhere/ulpm_coordinator", "--remote-path"],
            ),
            ("bin", &nobody, &remote, 68, &["cannot reach", "refused"]),
            ("bin", "ssh://", &remote, 64, &["no target"]),
        ];
        for (bin, target, remote, code, words) in cases {
            let arguments = ["--migrate", target, "--remote-path", remote, &guest.name];
            let output = sshd.command(lab, 0, bin, &arguments)?;
            ensure!(output.code == code, "{bin}: exit status {}: {}", output.code, output.stderr);
            output.failure(words)?;
        }
        let last = guest.last_step();
        guest.wait_step(last + 2)?;
        guest.kill_tree()?;
        Ok(())
    })
}
