//! Asks, and prints the answer.

use std::io::{self, IsTerminal as _, Write};

use serde::Serialize;
use ulpm_control::client::ClientError;
use ulpm_control::message::{Checked, Checkpointed, Finding, Migrated, Ssh, Status, Verdict};
use ulpm_control::session::{self, End, Party, Streams};
use ulpm_control::{Address, Client, OnFailure, Reply, Request, exit, link};

use crate::inspect::{self, InspectError};
use crate::options::Options;
use crate::progress::Line;
use crate::text;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Options that do not go together.
    #[error("{0}; see --help")]
    Usage(String),
    /// The coordinator says no, or says nothing.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// An image cannot be shown.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// Standard output is closed.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
    /// No ssh.
    #[error(
        "there is no ssh in your PATH: install it (openssh-client), or let both hosts be of a cluster"
    )]
    NoSsh,
    /// What was checked cannot be.
    #[error("{0}")]
    Unfit(String, u8),
    /// There is no connection to the job any more.
    #[error("{0}")]
    Lost(String),
    /// A result has no text.
    #[error("cannot print the result as JSON")]
    Json(#[from] serde_json::Error),
}

impl CommandError {
    /// Exit code of the tool.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => exit::USAGE,
            Self::Client(error) => error.exit_code(),
            Self::Inspect(error) => error.exit_code(),
            Self::NoSsh => exit::UNAVAILABLE,
            Self::Unfit(_, code) => *code,
            Self::Output(_) | Self::Lost(_) => exit::IO,
            Self::Json(_) => exit::SOFTWARE,
        }
    }

    /// Whether whoever reads the output has gone, to whom nothing needs to be said.
    #[must_use]
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Does what the command line asks for, and returns the code to exit with.
///
/// # Errors
///
/// [`CommandError`]
pub fn run(options: &Options) -> Result<u8, CommandError> {
    options.check().map_err(CommandError::Usage)?;
    match &options.attach {
        Some(job) => attach(options, job),
        None => ask(options).map(|()| exit::OK),
    }
}

/// Connects our standard streams to a job.
fn attach(options: &Options, job: &str) -> Result<u8, CommandError> {
    // The coordinator of this host finds the way to another one.
    let own = || match &options.coordinator {
        Some(address @ Address::Socket(_)) => address.clone(),
        _ => Address::default(),
    };
    let (address, at) = match options.address() {
        _ if options.ssh_target().is_some() => (own(), options.address.clone()),
        Address::Tcp(at) => (own(), Some(at)),
        address => (address, None),
    };
    let request = Request::Attach { job: Some(job.into()), at, ssh: ssh(options)? };
    let party = Party::Visitor { detach: options.detach_keys.clone().unwrap_or_default().0 };
    if std::io::stdin().is_terminal() {
        eprintln!("ulpm_command: attached to {job}");
    }
    // What is wrong with the request is said as for all others.
    let mut client = Client::connect_or_start(&address)?;
    client.call(&request)?;
    let mut first = Some(client.into_wire());
    let connect = || match first.take() {
        Some(wire) => wire.map_err(|error| (error.to_string(), true)),
        None => link::connect(&address, &request),
    };
    match session::follow(party, Streams::own(), None, connect)? {
        End::Code(code) => Ok(code),
        End::Detached => {
            eprintln!("\nulpm_command: detached from {job}, which goes on");
            Ok(exit::OK)
        }
        End::Signal(signal) => Ok(u8::try_from(128 + signal).unwrap_or(exit::FAILED)),
        End::Lost(text) => Err(CommandError::Lost(text)),
        End::Status(_) => Ok(exit::OK),
    }
}

fn ask(options: &Options) -> Result<(), CommandError> {
    if let Some(path) = &options.inspect {
        let shown = inspect::inspect(path, options.json)?;
        return print(&shown);
    }
    let address = options.address();
    let mut client = Client::connect(&address)?;
    let jobs = options.jobs.clone();
    if options.status {
        let Reply::Status(status) = client.call(&Request::Status)? else {
            return Err(unexpected());
        };
        return if options.json {
            print_json(&status)
        } else {
            print(&show_status(&status, &options.jobs))
        };
    }
    if options.checkpoint {
        let request = Request::Checkpoint {
            jobs,
            keep: options.keep,
            freeze_until_durable: options.freeze_until_durable,
            kill: options.kill,
            outside: options.outside_sockets.unwrap_or_default(),
        };
        let Reply::Checkpointed(done) = long_call(&mut client, &request, options.verbose)? else {
            return Err(unexpected());
        };
        return print_list(&done, options.json, show_checkpoint);
    }
    if options.migrate.is_some() || options.home.is_some() {
        let request = Request::Migrate {
            target: options.migrate.clone(),
            jobs: options.home.clone().map_or(jobs, |job| vec![job]),
            stdio: options.stdio,
            keep_images: options.keep_images,
            force: options.force,
            files: options.files.unwrap_or_default(),
            outside: options.outside_sockets.unwrap_or_default(),
            ssh: ssh(options)?,
        };
        let Reply::Migrated(done) = long_call(&mut client, &request, options.verbose)? else {
            return Err(unexpected());
        };
        for (job, warning) in
            done.iter().flat_map(|done| done.warnings.iter().map(|warning| (&done.job, warning)))
        {
            eprintln!("ulpm_command: warning: job {job}: {warning}");
        }
        return print_list(&done, options.json, show_migration);
    }
    if let Some(target) = &options.check {
        let request = Request::Check {
            target: target.clone(),
            jobs,
            force: options.force,
            files: options.files.unwrap_or_default(),
            outside: options.outside_sockets.unwrap_or_default(),
            ssh: ssh(options)?,
        };
        let Reply::Checked(done) = long_call(&mut client, &request, options.verbose)? else {
            return Err(unexpected());
        };
        print_list(&done, options.json, show_check)?;
        let unfit = done.iter().find_map(|job| Some((job, Finding::refusal(&job.findings)?.0)));
        return match unfit {
            Some((Checked { job, target, .. }, code)) => {
                Err(CommandError::Unfit(format!("job {job} cannot move to {target}"), code))
            }
            None => Ok(()),
        };
    }
    let request = if options.kill {
        Request::Kill { jobs }
    } else if let Some(secs) = options.interval {
        Request::Interval { secs, jobs }
    } else if let Some(on_failure) = options.on_failure {
        Request::OnFailure { on_failure, max_restarts: options.max_restarts, jobs }
    } else if let Some(job) = &options.output {
        Request::Output { job: Some(job.clone()), offset: 0, follow: options.follow }
    } else {
        Request::Quit
    };
    let mut stdout = io::stdout().lock();
    client.send(&request)?;
    loop {
        match client.receive()? {
            Reply::Output(bytes) => {
                stdout.write_all(&bytes)?;
                stdout.flush()?;
            }
            Reply::Done => return Ok(()),
            _ => return Err(unexpected()),
        }
    }
}

/// How the user calls ssh. The coordinator may have been started with another environment.
fn ssh(options: &Options) -> Result<Ssh, CommandError> {
    if options.ssh_target().is_none() {
        return Ok(Ssh::default());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("ssh")).find(|path| path.is_file());
    let program = found.ok_or(CommandError::NoSsh)?;
    let program = std::path::absolute(program)?.to_string_lossy().into_owned();
    let agent = std::env::var("SSH_AUTH_SOCK").ok();
    Ok(Ssh { program, agent, remote_path: options.remote_path.clone() })
}

fn unexpected() -> CommandError {
    ClientError::Unexpected("another kind of reply".into()).into()
}

/// Asks for something that takes long, and shows how it goes.
fn long_call(client: &mut Client, request: &Request, verbose: bool) -> Result<Reply, ClientError> {
    let mut line = Line::new(verbose);
    client.send(request)?;
    loop {
        match client.receive()? {
            Reply::Progress(progress) => line.report(&progress),
            reply => return Ok(reply),
        }
    }
}

fn print(text: &str) -> Result<(), CommandError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

fn print_json<T: Serialize>(value: &T) -> Result<(), CommandError> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// One object for one result, a list for several.
fn print_list<T: Serialize>(
    list: &[T],
    json: bool,
    show: impl Fn(&T) -> String,
) -> Result<(), CommandError> {
    match (json, list) {
        (true, [only]) => print_json(only),
        (true, _) => print_json(&list),
        (false, _) => print(&list.iter().map(show).collect::<String>()),
    }
}

/// The path alone, for scripts.
fn show_checkpoint(done: &Checkpointed) -> String {
    format!("{}\n", done.path.display())
}

fn show_migration(done: &Migrated) -> String {
    let mut text = format!(
        "{} goes on at {} as job {}: {} processes, {}, frozen for {:.1} ms, {:.1} ms in all\n",
        done.job,
        done.target,
        done.target_id,
        done.processes,
        text::bytes(done.bytes),
        done.freeze_ms,
        done.total_ms
    );
    if let Some(images) = &done.images {
        text += &format!("its images stay in {images} there\n");
    }
    text
}

fn show_check(done: &Checked) -> String {
    let can = match done.verdict {
        Verdict::Ok => "can move",
        Verdict::Warning => "can move, with reservations",
        Verdict::No => "cannot move",
    };
    let mut out = format!("job {} to {}: {can}\n", done.job, done.target);
    let mut rows = Vec::new();
    for finding in &done.findings {
        let row = [finding.verdict.to_string(), finding.subject.clone(), finding.text.clone()];
        rows.push(row.to_vec());
        if !finding.way_out.is_empty() {
            rows.push(vec![String::new(), String::new(), format!("→ {}", finding.way_out)]);
        }
    }
    out += &text::table(&rows, 2);
    out
}

fn show_status(status: &Status, only: &[String]) -> String {
    let mut out = format!(
        "host {}, coordinator {} ({}) at {}",
        status.host,
        status.pid,
        status.version,
        status.socket.display()
    );
    match &status.listen {
        Some(listen) => out += &format!(", listening on {listen}\n"),
        None => out += ", not listening for other hosts\n",
    }
    let wanted = |name: &str, id: u64| {
        only.is_empty() || only.iter().any(|o| o == name || *o == id.to_string())
    };
    for job in status.jobs.iter().filter(|job| wanted(&job.name, job.id.0)) {
        out += &format!("\njob {} ({}): {}, ", job.name, job.id, job.state);
        out += &match job.generation {
            0 => "no checkpoint".to_owned(),
            generation => format!(
                "checkpoint {}",
                job.ckpt_dir.join(&job.name).join(generation.to_string()).display()
            ),
        };
        if let Some(secs) = job.interval {
            out += &format!(", every {secs} s");
        }
        if job.on_failure != OnFailure::None {
            let (count, most) = (job.restarts, job.max_restarts);
            out += &format!(
                ", on failure: {} ({count} of {most} within the last hour)",
                job.on_failure
            );
        }
        if job.has_output {
            out += ", output in its log";
        }
        out.push('\n');
        if let Some(error) = &job.last_error {
            out += &format!("  the last periodic checkpoint failed: {error}\n");
        }
        if let Some(text) = &job.last_failure {
            out += &format!("  the last failure: {text}\n");
        }
        let mut rows = vec![
            ["PID", "VIRTUAL", "STATE", "THREADS", "MEMORY", "COMMAND"].map(String::from).to_vec(),
        ];
        for process in &job.processes {
            rows.push(vec![
                process.real.to_string(),
                process.virt.to_string(),
                process.state.clone(),
                process.threads.to_string(),
                text::bytes(process.rss),
                text::short(&process.command, 100),
            ]);
        }
        out += &text::table(&rows, 2);
    }
    if !status.moved.is_empty() {
        out += "\nmoved to other hosts:\n";
        let rows: Vec<_> = status
            .moved
            .iter()
            .map(|job| vec![job.name.clone(), format!("({})", job.id), job.host.clone()])
            .collect();
        out += &text::table(&rows, 2);
    }
    out
}
