//! A host: a coordinator, and where permitted a network namespace around it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::process::kill_hard;
use crate::{DEADLINE, Result, Wire, until};

/// One host of a lab.
#[derive(Debug)]
pub struct Host {
    /// `a` or `b`.
    pub name: String,
    /// The coordinator's socket.
    pub socket: PathBuf,
    /// The coordinator's state directory.
    pub state_dir: PathBuf,
    namespace: Option<String>,
    /// Keys of the cluster that it is in, if it is in one.
    cluster: Mutex<PathBuf>,
    /// Where the coordinator listens for others; with port 0 until it runs.
    listen: Mutex<String>,
    log: PathBuf,
    coordinator: Mutex<Option<Child>>,
    lab: PathBuf,
    bin: PathBuf,
    clock: Option<Clock>,
    /// What is to happen to its coordinator, see `coordinator/src/fault.rs`.
    faults: Mutex<String>,
}

/// A time namespace, which lives as long as the process in it.
#[derive(Debug)]
struct Clock {
    child: Child,
    /// Id of that process, whose parent `child` is.
    pid: i32,
    /// Whether a restart on this host may make another.
    may_nest: bool,
}

/// Runs `ip` with these arguments.
pub(crate) fn ip(arguments: &str) -> Result {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

impl Host {
    /// Hosts on the loopback, told apart by port.
    pub(crate) fn on_loopback(lab: &Path, bin: &Path, count: usize) -> Result<Vec<Self>> {
        ["a", "b"]
            .iter()
            .take(count)
            .map(|name| Self::new(lab, bin, name, None, "127.0.0.1:0"))
            .collect()
    }

    /// Two network namespaces with a cable between them. The error says why there are none.
    pub(crate) fn in_namespaces(lab: &Path, bin: &Path) -> Result<Vec<Self>> {
        let (hosts, [a, b]) = Self::apart(lab, bin)?;
        ip(&format!("-n {a} link add eth0 type veth peer name eth0 netns {b}"))?;
        for (namespace, address) in [(&a, "10.90.0.1/24"), (&b, "10.90.0.2/24")] {
            ip(&format!("-n {namespace} address add {address} dev eth0"))?;
            ip(&format!("-n {namespace} link set eth0 up"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
        }
        Ok(hosts)
    }

    /// Two network namespaces with a cable between them that can be bad. The error says why there are none.
    pub(crate) fn on_a_wire(lab: &Path, bin: &Path) -> Result<(Vec<Self>, Wire)> {
        let (hosts, [a, b]) = Self::apart(lab, bin)?;
        let wire = Wire::lay([(a, "10.90.0.1".into()), (b, "10.90.0.2".into())])?;
        Ok((hosts, wire))
    }

    /// Two network namespaces with nothing between them, and their names.
    fn apart(lab: &Path, bin: &Path) -> Result<(Vec<Self>, [String; 2])> {
        if !crate::is_root() {
            return Err("not root".into());
        }
        // One process runs several tests where there is no nextest.
        static LABS: AtomicU32 = AtomicU32::new(0);
        let (process, lab_number) = (std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let name = |host: &str| format!("ulpm-{process}-{lab_number}-{host}");
        let hosts = [
            Self::new(lab, bin, "a", Some(name("a")), "10.90.0.1:0")?,
            Self::new(lab, bin, "b", Some(name("b")), "10.90.0.2:0")?,
        ];
        let (a, b) = (name("a"), name("b"));
        // What is made before a step fails goes with `hosts`.
        ip(&format!("netns add {a}"))?;
        ip(&format!("netns add {b}"))?;
        Ok((hosts.into(), [a, b]))
    }

    fn new(
        lab: &Path,
        bin: &Path,
        name: &str,
        namespace: Option<String>,
        listen: &str,
    ) -> Result<Self> {
        let dir = lab.join(name);
        fs::create_dir(&dir)?;
        Ok(Self {
            name: name.into(),
            socket: dir.join("sock"),
            state_dir: dir.join("state"),
            namespace,
            cluster: Mutex::new(lab.join("cluster")),
            listen: Mutex::new(listen.into()),
            log: dir.join("log"),
            coordinator: Mutex::new(None),
            lab: lab.into(),
            bin: bin.into(),
            clock: None,
            faults: Mutex::default(),
        })
    }

    /// Where the keys of its cluster are, which all hosts of a lab share at first.
    #[must_use]
    pub fn cluster(&self) -> PathBuf {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes it out of the lab's cluster; it may make or join another.
    pub fn leave_cluster(&self) {
        self.enter_cluster(&self.lab.join(&self.name).join("cluster"));
    }

    /// Makes it one of the cluster whose files are there, from its coordinator's next start on.
    pub fn enter_cluster(&self, dir: &Path) {
        *self.cluster.lock().unwrap_or_else(PoisonError::into_inner) = dir.to_owned();
    }

    /// Whether it is a network of its own.
    #[must_use]
    pub fn is_namespace(&self) -> bool {
        self.namespace.is_some()
    }

    /// Where other hosts reach the coordinator.
    #[must_use]
    pub fn address(&self) -> String {
        self.listen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What jobs have written that moved here, by the name of the file that keeps it.
    pub(crate) fn kept_outputs(&self) -> Vec<(String, String)> {
        let Ok(entries) = std::fs::read_dir(self.state_dir.join("jobs")) else { return Vec::new() };
        let outputs =
            entries.flatten().filter(|entry| entry.path().extension() == Some("out".as_ref()));
        outputs
            .map(|entry| {
                let text = std::fs::read(entry.path()).unwrap_or_default();
                let name = entry.file_name().to_string_lossy().into_owned();
                (name, String::from_utf8_lossy(&text).into_owned())
            })
            .collect()
    }

    /// A command that runs on this host, in an environment that holds what a user's has and nothing of
    /// the machine that runs the tests.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let net = self.namespace.as_ref().map(|name| format!("--net=/run/netns/{name}"));
        let time = self.clock.as_ref().map(|clock| format!("--time=/proc/{}/ns/time", clock.pid));
        // Whoever may not make one makes it in a user namespace, and has no rights in that once it is entered.
        let user = self.clock.as_ref().filter(|_| !crate::is_root());
        let user = user.map(|clock| format!("--user=/proc/{}/ns/user", clock.pid));
        let keep = user.is_some().then(|| "--preserve-credentials".to_owned());
        let enter: Vec<String> = [user, keep, net, time].into_iter().flatten().collect();
        let mut command = if enter.is_empty() {
            Command::new(program)
        } else {
            // Enters the namespaces and becomes the program: the process id is the program's.
            let mut command = Command::new("nsenter");
            command.args(enter).arg("--").arg(program);
            command
        };
        command
            .env_clear()
            .env("HOME", self.lab.join("home"))
            .env("LANG", "C.UTF-8")
            .env("OPENBLAS_NUM_THREADS", "2")
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("RUST_BACKTRACE", "1")
            .env("TMPDIR", self.lab.join("tmp"))
            .env("ULPM_CLUSTER", self.cluster())
            .env("ULPM_COORDINATOR", &self.socket)
            .env("ULPM_TEST_LAB", &self.lab)
            .current_dir(&self.lab);
        if self.clock.as_ref().is_some_and(|clock| !clock.may_nest) {
            command.env("ULPM_NO_TIME_NAMESPACE", "1");
        }
        command
    }

    /// Makes this a host that was booted so many seconds earlier. A restart on it makes a time namespace of the job's
    /// own only if it may. The error says why it cannot be one.
    pub(crate) fn set_clock_ahead(&mut self, seconds: u32, may_nest: bool) -> Result {
        let mut command = Command::new("unshare");
        if !crate::is_root() {
            command.args(["--user", "--map-current-user"]);
        }
        let seconds = seconds.to_string();
        command.args(["--time", "--fork", "--kill-child", "--monotonic", &seconds]);
        command.args(["--boottime", &seconds, "--", "sh", "-c", "echo $$; exec cat"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let Ok(pid) = line.trim().parse() else {
            child.wait()?;
            return Err("no time namespace can be made".into());
        };
        self.clock = Some(Clock { child, pid, may_nest });
        let entered = self.command("true").output()?;
        if entered.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&entered.stderr).into_owned();
        Err(format!("the time namespace cannot be entered: {why}").into())
    }

    /// One of ULPM's programs, on this host.
    #[must_use]
    pub fn tool(&self, name: &str) -> Command {
        self.command(self.bin.join(name))
    }

    /// Starts the coordinator and waits until it answers. A second one gets the port of the first.
    ///
    /// # Errors
    ///
    /// When it ends, or does not answer in time; with its log.
    pub fn start_coordinator(&self) -> Result {
        self.start_coordinator_by(self.tool("ulpm_coordinator"))
    }

    /// The same, with further options.
    ///
    /// # Errors
    ///
    /// As [`Self::start_coordinator`].
    pub fn start_coordinator_with(&self, options: &[&str]) -> Result {
        let mut command = self.tool("ulpm_coordinator");
        command.args(options);
        self.start_coordinator_by(command)
    }

    /// The same, on a host that has nothing in a directory: for root only.
    ///
    /// # Errors
    ///
    /// As [`Self::start_coordinator`].
    pub fn start_coordinator_without(&self, directory: &Path) -> Result {
        let mut command = self.command("unshare");
        command.args(["--mount", "sh", "-c", "mount -t tmpfs none \"$0\" && exec \"$@\""]);
        command.arg(directory).arg(self.bin.join("ulpm_coordinator"));
        self.start_coordinator_by(command)
    }

    /// The same with faults at named points, see `coordinator/src/fault.rs`.
    ///
    /// # Errors
    ///
    /// As [`Self::start_coordinator`].
    pub fn start_faulty_coordinator(&self, faults: &str) -> Result {
        self.set_faults(faults);
        let started = self.start_coordinator();
        self.set_faults("");
        started
    }

    /// Says what is to happen to coordinators of this host that are started from now on.
    pub fn set_faults(&self, faults: &str) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults.into();
    }

    fn start_coordinator_by(&self, mut command: Command) -> Result {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child = command
            .arg("--socket")
            .arg(&self.socket)
            .arg("--listen")
            .arg(self.address())
            .arg("--state-dir")
            .arg(&self.state_dir)
            .env("ULPM_LOG", "debug")
            .env("ULPM_FAULT", &*self.faults.lock().unwrap_or_else(PoisonError::into_inner))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("cannot start ulpm_coordinator: {error}"))?;
        *self.coordinator.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        let status = until(format!("coordinator {} to answer", self.name), DEADLINE, || {
            let mut slot = self.coordinator.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(status) = slot.as_mut().and_then(|child| child.try_wait().transpose()) {
                return Err(format!("coordinator ended: {:?}\n{}", status, self.log()).into());
            }
            drop(slot);
            // It answers before it listens to other hosts.
            Ok(self.status().ok().filter(|status| status["listen"].is_string()))
        })?;
        let listen =
            status["listen"].as_str().ok_or("--status --json does not say where it listens")?;
        *self.listen.lock().unwrap_or_else(PoisonError::into_inner) = listen.into();
        Ok(())
    }

    /// What `ulpm_command --status --json` says.
    ///
    /// # Errors
    ///
    /// When the coordinator does not answer, or not with JSON.
    pub fn status(&self) -> Result<Value> {
        let output = self.tool("ulpm_command").args(["--json", "--status"]).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The coordinator's process id.
    #[must_use]
    pub fn coordinator_pid(&self) -> Option<i32> {
        let slot = self.coordinator.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref().map(|child| child.id().cast_signed())
    }

    /// `kill -9` of the coordinator.
    ///
    /// # Errors
    ///
    /// When it did not run.
    pub fn kill_coordinator(&self) -> Result {
        let mut slot = self.coordinator.lock().unwrap_or_else(PoisonError::into_inner);
        let mut child = slot.take().ok_or("no coordinator runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Lets the coordinator end as a user would, if it runs.
    ///
    /// # Errors
    ///
    /// When it does not end in time.
    pub fn quit_coordinator(&self) -> Result {
        let Some(mut child) =
            self.coordinator.lock().unwrap_or_else(PoisonError::into_inner).take()
        else {
            return Ok(());
        };
        let quit = self.tool("ulpm_command").arg("--quit").output()?;
        let ended = until("coordinator to end after --quit", DEADLINE, || Ok(child.try_wait()?));
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        ended.map_err(|error| {
            format!("{error}; --quit said {}", String::from_utf8_lossy(&quit.stderr))
        })?;
        Ok(())
    }

    /// What the coordinator has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut clock) = self.clock.take() {
            drop(clock.child.stdin.take());
            // It was told to end; there is nothing to be done about a failure.
            let _ = clock.child.wait();
        }
        if let Some(mut child) =
            self.coordinator.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            kill_hard(child.id().cast_signed());
            // It was killed; there is nothing to be done about a failure.
            let _ = child.wait();
        }
        if let Some(namespace) = &self.namespace
            && Path::new("/run/netns").join(namespace).exists()
            && let Err(error) = ip(&format!("netns delete {namespace}"))
        {
            eprintln!("{error}");
        }
    }
}
