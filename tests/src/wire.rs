//! A network between two hosts that can be bad.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::host::ip;
use crate::{Result, program_path};

/// The only device of a host besides its loopback.
const DEVICE: &str = "eth0";

/// What `programs/wire.py` carries.
#[derive(Debug)]
pub struct Wire {
    /// Network namespaces, and the address that each has.
    ends: [(String, String); 2],
    child: Child,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Wire {
    /// Joins two network namespaces; each gets its address.
    pub(crate) fn lay(ends: [(String, String); 2]) -> Result<Self> {
        static WIRES: AtomicU32 = AtomicU32::new(0);
        let number = WIRES.fetch_add(1, Ordering::Relaxed);
        // Names of devices have room for 15 bytes.
        let devices = ["a", "b"].map(|end| format!("u{}-{number}{end}", std::process::id()));
        let mut child = Command::new("python3")
            .arg(program_path("wire.py"))
            .args(&devices)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().ok_or("no standard input")?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let wire = Self { ends, child, pipes: Mutex::new((stdin, BufReader::new(stdout))) };
        wire.wait("ready")?;
        for ((namespace, address), device) in wire.ends.iter().zip(&devices) {
            ip(&format!("link set {device} netns {namespace}"))?;
            ip(&format!("-n {namespace} link set {device} name {DEVICE} mtu 9000"))?;
            ip(&format!("-n {namespace} address add {address}/24 dev {DEVICE}"))?;
            ip(&format!("-n {namespace} link set {DEVICE} up"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
        }
        Ok(wire)
    }

    fn wait(&self, word: &str) -> Result {
        let mut line = String::new();
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner).1.read_line(&mut line)?;
        if line.trim() == word { Ok(()) } else { Err(format!("wire.py said {line:?}").into()) }
    }

    /// Says what it does from now on, in the words of `programs/wire.py`.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn set(&self, how: &str) -> Result {
        // In one write, which is what is read at once.
        let line = format!("{how}\n");
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        pipes.0.write_all(line.as_bytes())?;
        drop(pipes);
        self.wait("done")
    }

    /// Takes both devices down, or up again.
    ///
    /// # Errors
    ///
    /// When the kernel does not do that.
    pub fn plug(&self, is_in: bool) -> Result {
        let state = if is_in { "up" } else { "down" };
        for (namespace, _) in &self.ends {
            ip(&format!("-n {namespace} link set {DEVICE} {state}"))?;
        }
        Ok(())
    }

    /// Resets every TCP connection between the hosts.
    ///
    /// # Errors
    ///
    /// When ss(8) cannot be run.
    pub fn reset(&self) -> Result {
        for ((namespace, _), (_, other)) in self.ends.iter().zip(self.ends.iter().rev()) {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{namespace}"));
            let output = command.args(["ss", "-K", "-t", "dst", other]).output()?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                return Err(format!("ss -K: {said}").into());
            }
        }
        Ok(())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        crate::process::kill_hard(self.child.id().cast_signed());
        // It was killed; there is nothing to be done about a failure.
        let _ = self.child.wait();
    }
}
