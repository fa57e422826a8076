//! A machine with another kernel and another processor: Debian's, emulated by qemu without help of the hardware.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::artifacts::{BINARIES, other_kernel};
use crate::guest::Running;
use crate::{Lab, Result, ensure};

/// Some four seconds on a machine that has nothing else to do.
const BOOT: Duration = Duration::from_secs(150);
/// Room for what the machine hands back.
const DISK: u64 = 256 << 20;

/// What was run there, and what is left of it.
#[derive(Debug)]
pub struct Booted {
    /// What lay in /out when the script had ended.
    pub out: PathBuf,
    /// What the kernel and the script have said.
    pub console: String,
}

impl Booted {
    /// A file of /out as text.
    ///
    /// # Errors
    ///
    /// When there is none; with what was seen on the console.
    pub fn text(&self, name: &str) -> Result<String> {
        let read = fs::read_to_string(self.out.join(name));
        read.map_err(|error| format!("/out/{name}: {error}; console:\n{}", self.console).into())
    }
}

impl Lab {
    /// Boots the machine, runs `script` with a shell there as the user who runs the tests, and waits for its end.
    ///
    /// ULPM is there, and `files`, each under the path that it has here, programs with their libraries.
    ///
    /// # Errors
    ///
    /// When there is no such kernel, or no qemu, or it does not end in time.
    pub fn boot(&self, processor: &str, files: &[&Path], script: &str) -> Result<Booted> {
        self.boot_with(processor, files, script, None)
    }

    /// The same with a network: this machine is 10.0.2.2 there, and what listens at port 3490 there is reached at `port`
    /// of the loopback here.
    ///
    /// # Errors
    ///
    /// As [`Self::boot`].
    pub fn boot_with(
        &self,
        processor: &str,
        files: &[&Path],
        script: &str,
        port: Option<u16>,
    ) -> Result<Booted> {
        let kernel = other_kernel()?;
        let dir = nix::unistd::mkdtemp(&self.dir.join("boot.XXXXXX"))?;
        let uid = nix::unistd::geteuid();
        let gid = nix::unistd::getegid();
        let root = dir.join("root");
        fs::create_dir_all(root.join("etc"))?;
        fs::write(root.join("etc/passwd"), format!("user:x:{uid}:{gid}::/tmp:/bin/sh\n"))?;
        fs::write(root.join("run"), "su user -s /bin/sh -c 'sh /script'\n")?;
        let bin = self.bin.display();
        let script = format!(
            "export HOME=/tmp PATH={bin}:/bin ULPM_COORDINATOR=/tmp/coordinator\n{script}\n"
        );
        fs::write(root.join("script"), script)?;

        let mut paths: BTreeSet<PathBuf> = files.iter().map(|path| (*path).to_owned()).collect();
        for name in BINARIES {
            paths.insert(self.bin.join(name));
        }
        for program in paths.clone().iter().filter(|path| path.is_file()) {
            paths.extend(libraries(program)?);
        }
        let input = dir.join("in.tar");
        let mut archive = Command::new("tar");
        archive.arg("--create").arg("--dereference").arg("--file").arg(&input);
        archive.arg("--directory").arg(&root).args(["etc", "run", "script"]);
        archive.args(["--directory", "/"]);
        archive.args(paths.iter().map(|path| path.strip_prefix("/").unwrap_or(path)));
        self.output(archive)?.success()?;
        let output = dir.join("out.tar");
        File::create(&output)?.set_len(DISK)?;

        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", processor, "-smp", "2", "-m", "1G"])
            .args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(kernel.join("vmlinuz"))
            .arg("-initrd")
            .arg(kernel.join("initrd"))
            .args(["-append", "console=ttyS0 panic=-1 quiet"])
            .arg("-drive")
            .arg(format!("file={},format=raw,if=virtio,readonly=on", input.display()))
            .arg("-drive")
            .arg(format!("file={},format=raw,if=virtio", output.display()));
        if let Some(port) = port {
            qemu.arg("-netdev").arg(format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:3490"));
            qemu.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        }
        println!("{qemu:?}");
        let mut running = Running::start(qemu, Stdio::null())
            .map_err(|error| format!("{error}: install qemu-system-x86"))?;
        let ended = running.wait(BOOT);
        if ended.is_err() {
            running.child.kill()?;
            running.child.wait()?;
        }
        let console = running.stdout.text();
        println!("{console}{}", running.stderr.text());
        let code = ended?;
        ensure!(code == 0, "qemu ended with {code}: {}", running.stderr.text());

        let out = dir.join("out");
        fs::create_dir(&out)?;
        let mut archive = Command::new("tar");
        archive.arg("--extract").arg("--file").arg(&output).arg("--directory").arg(&out);
        self.output(archive)?.success()?;
        Ok(Booted { out, console })
    }
}

/// The libraries that a program or library is linked with, and its interpreter.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output()?;
    // What is no program has none, and ldd says so with its exit status.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let path = |line: &str| {
        let word = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some(PathBuf::from(word))
    };
    Ok(text.lines().filter_map(path).collect())
}
