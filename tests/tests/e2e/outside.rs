//! A server in a job, and clients outside of it; and what is left of connections when a job has ended.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use ulpm_tests::{
    DEADLINE, Guest, Host, Lab, Program, Result, ensure, is_root, program_path, until,
};

const PYTHON: &str = "/usr/bin/python3";

/// `programs/echo_client.py`
struct Client {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Client {
    fn start(host: &Host, address: &str, port: &str, connections: u32) -> Result<Self> {
        let script = program_path("echo_client.py");
        let mut child = host
            .command(PYTHON)
            .arg(script)
            .args([address, port, &connections.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take().ok_or("no standard input")?;
        let answers = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        Ok(Self { child, orders, answers })
    }

    /// Says what it is to do, and returns how many answers it has got, and how long it waited for one at most.
    fn order(&mut self, word: &str) -> Result<(u64, Duration)> {
        // One that has failed has said why.
        let _ = writeln!(self.orders, "{word}");
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let mut words = line.split_whitespace();
        ensure!(words.next() == Some("ok"), "{word}: the client says {line}");
        let mut number = || words.next().and_then(|word| word.parse().ok()).ok_or("no number");
        Ok((number()?, Duration::from_millis(number()?)))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn server(address: &str) -> Program {
    Program::script(PYTHON, "echo_server.py", 1).arg(address)
}

fn port_of(guest: &Guest<'_>) -> Result<String> {
    until("the server's port", DEADLINE, || {
        let output = guest.output();
        let port = output.lines().find_map(|line| line.strip_prefix("port "));
        Ok(port.map(str::to_owned))
    })
}

fn end(mut client: Client, guest: &Guest<'_>) -> Result {
    client.order("end")?;
    let finished = guest.finish()?.expect_code(0)?;
    ensure!(finished.stdout.contains("ok echo_server"), "{}", finished.stdout);
    Ok(())
}

/// A job that has a client outside of it is not ended where that is not wanted, and its client does not notice.
#[test]
fn job_with_a_client_outside_is_not_ended_if_that_is_refused() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&server("127.0.0.1"))?;
        let port = port_of(&guest)?;
        let mut client = Client::start(&lab.hosts[0], "127.0.0.1", &port, 2)?;
        client.order("pause")?;
        let save = ["--checkpoint", "--kill", "--outside-sockets", "refuse", &guest.name];
        lab.tool(0, "ulpm_command", &save)?.failure(&[
            "goes on",
            "a connection to 127.0.0.1",
            "outside the job",
        ])?;
        let left = std::fs::read_dir(lab.images().join(&guest.name)).map_or(0, Iterator::count);
        ensure!(left == 0, "{left} checkpoints are left");
        client.order("go")?;
        client.order("pause")?;
        end(client, &guest)
    })
}

/// Clients that send and receive without end while the server is checkpointed every 50 ms: every answer is right, and
/// none is late.
fn under_load(seconds: u64) -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&server("127.0.0.1"))?;
        let port = port_of(&guest)?;
        let mut client = Client::start(&lab.hosts[0], "127.0.0.1", &port, 8)?;
        client.order("go")?;
        let begin = Instant::now();
        let mut longest: f64 = 0.0;
        let mut count = 0;
        while begin.elapsed() < Duration::from_secs(seconds) {
            longest = longest.max(lab.checkpoint(&guest)?.freeze_ms);
            count += 1;
            std::thread::sleep(Duration::from_millis(50));
        }
        let (answers, wait) = client.order("pause")?;
        println!(
            "{count} checkpoints, the longest freeze {longest} ms; {answers} answers, the latest after {wait:?}"
        );
        // What is frozen answers later. On a machine that has much to do a freeze takes long.
        let allowed = 2000.0 + 2.0 * longest;
        ensure!(
            wait.as_secs_f64() * 1000.0 < allowed,
            "an answer came after {wait:?}, more than {allowed} ms"
        );
        end(client, &guest)
    })
}

#[test]
fn clients_of_a_server_that_is_checkpointed_all_the_time() -> Result {
    under_load(10)
}

#[test]
#[ignore = "takes a minute"]
fn clients_of_a_server_that_is_checkpointed_for_a_minute() -> Result {
    under_load(60)
}

/// Whether there are two networks, and this is root: all others cannot repair a connection.
fn can_repair(lab: &Lab) -> bool {
    let can = lab.hosts[0].is_namespace();
    if !can {
        println!("only root can repair a connection: the run as root shows this");
    }
    can
}

const REPAIR: [&str; 2] = ["--outside-sockets", "repair"];

fn ip(host: &Host, arguments: &[&str]) -> Result {
    let output = host.command("ip").args(arguments).output()?;
    ensure!(
        output.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Waits until no connection of a host has sent what the other end has not acknowledged.
fn wait_for_acknowledgements(host: &Host) -> Result {
    until("everything to be acknowledged", DEADLINE, || {
        let shown = host.command("ss").args(["--tcp", "--info", "--no-header"]).output()?;
        ensure!(shown.status.success(), "ss: {}", String::from_utf8_lossy(&shown.stderr));
        Ok((!String::from_utf8_lossy(&shown.stdout).contains(" unacked:")).then_some(()))
    })
}

/// The client, on another host, streams on while the server is saved and ended, and notices nothing of its restarts.
/// The cable is out meanwhile: the host would answer for a connection that is not there.
#[test]
fn clients_on_another_host_notice_no_restart() -> Result {
    Lab::two_hosts(|lab| {
        if !can_repair(lab) {
            return Ok(());
        }
        let mut guest = lab.launch(&server("10.90.0.1"))?;
        let port = port_of(&guest)?;
        let mut client = Client::start(&lab.hosts[1], "10.90.0.1", &port, 4)?;
        for _ in 0..3 {
            client.order("go")?;
            ip(&lab.hosts[1], &["link", "set", "eth0", "down"])?;
            client.order("sever")?;
            let checkpoint = lab.checkpoint_and_kill_with(&guest, &REPAIR)?;
            guest = lab.restart_with(0, &guest, &checkpoint.path, &REPAIR)?;
            guest.wait_running()?;
            let said = guest.errors();
            ensure!(!said.contains("cannot be repaired"), "{said}");
            ip(&lab.hosts[1], &["link", "set", "eth0", "up"])?;
        }
        client.order("go")?;
        end(client, &guest)
    })
}

/// The server, of two processes, moves to another host, and so does its address, while its clients are silent.
fn move_with(address: &str, prefix: &str, addresses: [&str; 2]) -> Result {
    Lab::two_hosts(|lab| {
        if !can_repair(lab) {
            return Ok(());
        }
        let give = |host: &Host, address: &str| {
            let arguments = ["address", "add", &format!("{address}/{prefix}"), "dev", "eth0"];
            // An address of IPv6 is to be there at once.
            let at_once: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
            ip(host, &[&arguments, at_once].concat())
        };
        let take = |host: &Host, address: &str| {
            ip(host, &["address", "delete", &format!("{address}/{prefix}"), "dev", "eth0"])
        };
        for (host, own) in lab.hosts.iter().zip(addresses).filter(|(_, own)| !own.is_empty()) {
            give(host, own)?;
        }
        give(&lab.hosts[0], address)?;
        let guest = lab.launch(&server(address).arg("4"))?;
        let port = port_of(&guest)?;
        let mut client = Client::start(&lab.hosts[1], address, &port, 4)?;
        let mut job = guest.name.clone();
        for from in [0, 1, 0] {
            let to = 1 - from;
            client.order("go")?;
            client.order("pause")?;
            // An acknowledgement may be late, and must not come to a host that has no connection yet.
            for host in &lab.hosts {
                wait_for_acknowledgements(host)?;
            }
            take(&lab.hosts[from], address)?;
            give(&lab.hosts[to], address)?;
            for host in &lab.hosts {
                // Who knew where the address was.
                let _ = ip(host, &["neighbour", "flush", "all"]);
            }
            let migration = lab.migrate_with(&job, from, to, &REPAIR)?;
            job = migration.target_id.to_string();
        }
        client.order("go")?;
        client.order("end")?;
        guest.finish()?.expect_code(0)?;
        Ok(())
    })
}

#[test]
fn clients_notice_no_move() -> Result {
    move_with("10.90.0.9", "24", ["", ""])
}

#[test]
fn clients_notice_no_move_over_ipv6() -> Result {
    move_with("fd00:90::9", "64", ["fd00:90::1", "fd00:90::2"])
}

/// What cannot be repaired is told, and the clients find the connection closed; a move can be refused.
#[test]
fn connections_that_cannot_be_repaired_are_told() -> Result {
    Lab::two_hosts(|lab| {
        let guest = lab.launch(&server("127.0.0.1"))?;
        let port = port_of(&guest)?;
        let mut client = Client::start(&lab.hosts[0], "127.0.0.1", &port, 1)?;
        client.order("go")?;
        client.order("pause")?;
        if lab.hosts[0].is_namespace() {
            let target = lab.hosts[1].address();
            let refuse = ["--outside-sockets", "refuse"];
            let arguments = [&["--migrate", &target][..], &refuse, &[&guest.name]].concat();
            let refused = lab.tool(0, "ulpm_command", &arguments)?;
            refused.failure(&["outside the job"])?;
        }
        // It goes on here.
        client.order("go")?;
        client.order("pause")?;
        // Not to be repaired by anybody: this one was not saved for it.
        let checkpoint = lab.checkpoint(&guest)?;
        guest.kill_tree()?;
        let twin = lab.restart_with(0, &guest, &checkpoint.path, &REPAIR)?;
        twin.wait_running()?;
        let said = twin.errors();
        ensure!(said.contains("cannot be repaired"), "{said}");
        ensure!(client.order("go").is_err(), "the client's connection has survived");
        let client = Client::start(&lab.hosts[0], "127.0.0.1", &port, 1)?;
        end(client, &twin)
    })
}

/// Connections within the job leave nothing behind when it ends with its checkpoint, so a listener without
/// SO_REUSEADDR has its port again at once.
#[test]
fn no_port_is_kept_by_connections_of_a_job_that_ended() -> Result {
    Lab::one_host(|lab| {
        let mut guest = lab.launch(&Program::guest("listener", 200).arg("keeps"))?;
        let mut last = 0;
        for _ in 0..3 {
            guest.set_limit(last + 40)?;
            last = guest.wait_step(last + 5)?;
            let checkpoint = lab.checkpoint_and_kill(&guest)?;
            let begin = Instant::now();
            guest = lab.restart(&guest, &checkpoint.path)?;
            guest.wait_running()?;
            ensure!(begin.elapsed() < Duration::from_secs(15), "it took {:?}", begin.elapsed());
            ensure!(!guest.errors().contains("TIME_WAIT"), "{}", guest.errors());
        }
        guest.set_free()?;
        guest.finish()?.expect_code(0)?;
        Ok(())
    })
}

/// Connections that the program itself has closed keep the port for a minute: root ends them, all others are told.
#[test]
fn port_that_closed_connections_keep() -> Result {
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("listener", 200).arg("closes"))?;
        guest.set_limit(20)?;
        guest.wait_step(5)?;
        let checkpoint = lab.checkpoint(&guest)?;
        guest.kill_tree()?;
        let begin = Instant::now();
        let twin = lab.restart(&guest, &checkpoint.path)?;
        if is_root() {
            twin.wait_running()?;
            ensure!(begin.elapsed() < Duration::from_secs(15), "it took {:?}", begin.elapsed());
        } else {
            until("ulpm_restart to say what it waits for", DEADLINE, || {
                Ok(twin.errors().contains("TIME_WAIT").then_some(()))
            })?;
            // A minute is longer than a test waits for anything else.
            until("the minute to pass", Duration::from_secs(90), || Ok(twin.wait_running().ok()))?;
        }
        twin.set_free()?;
        twin.finish()?.expect_code(0)?;
        Ok(())
    })
}
