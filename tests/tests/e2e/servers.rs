//! Servers and their clients that nobody wrote for us.

use ulpm_tests::{
    Guest, Lab, Pace, Program, Result, checkpointed_equals_native, ensure, is_root, program_path,
};

use crate::{moves, whole_life};

const PYTHON: &str = "/usr/bin/python3";

whole_life! {
    python_manager => Program::script(PYTHON, "unix_manager.py", 200);
}

fn script() -> String {
    program_path("servers.py").to_string_lossy().into_owned()
}

/// Server and clients are one job, and the clients check every answer. They write files while they run.
fn server(kind: &str, steps: u64) -> Program {
    Program::new(kind, &[PYTHON, &script(), kind, &steps.to_string()], Pace::Steps).changes_files()
}

/// A program in several processes that send each other messages, without a server of its own.
fn mpi(steps: u64) -> Program {
    let ranks = program_path("mpi.py").to_string_lossy().into_owned();
    let mut argv = vec!["mpirun", "--oversubscribe", "-n", "3"];
    if is_root() {
        argv.push("--allow-run-as-root");
    }
    let steps = steps.to_string();
    argv.extend([PYTHON, &ranks, &steps]);
    Program::new("mpi", &argv, Pace::Steps).changes_files()
}

fn lives(program: &Program, generations: u64) -> Result {
    Lab::one_host(|lab| checkpointed_equals_native(lab, program, generations))
}

/// A client that is no part of the job, on one of the lab's hosts. What an earlier one was answered there still holds
/// when it connects again.
fn client<'lab>(
    lab: &'lab Lab,
    host: usize,
    kind: &str,
    server: &Guest<'_>,
) -> Result<Guest<'lab>> {
    let mut command = lab.hosts[host].command(PYTHON);
    command.args([&script(), "outside", kind, &server.dir.to_string_lossy(), &host.to_string()]);
    lab.start_command(host, &format!("outside{host}"), command)
}

/// A client outside of the job sees nothing of checkpoints. A restart ends its connection.
fn outside(kind: &str) -> Result {
    Lab::one_host(|lab| {
        let mut guest = lab.launch(&server(kind, 1 << 40))?;
        let client = client(lab, 0, kind, &guest)?;
        let mut step = client.wait_step(5)?;
        for _ in 1..=5 {
            lab.checkpoint(&guest)?;
            step = client.wait_step(step + 5)?;
        }
        ensure!(!client.output().contains("again"), "it noticed: {}", client.output());
        for restart in 1..=3 {
            let checkpoint = lab.checkpoint_and_kill(&guest)?;
            guest = lab.restart(&guest, &checkpoint.path)?;
            guest.wait_running().map_err(|error| format!("restart {restart}: {error}"))?;
            client.wait_step(client.last_step() + 5)?;
            guest.wait_step(1)?;
        }
        ensure!(client.output().contains("again"), "nothing happened: {}", client.output());
        guest.kill_tree()?;
        Ok(())
    })
}

/// Clients of each host find the server there whenever it is there, with all that it has answered them.
fn outside_moves(kind: &str) -> Result {
    Lab::two_hosts(|lab| {
        if !lab.hosts[0].is_namespace() {
            println!("both hosts have one network: the run as root shows this");
            return Ok(());
        }
        let guest = lab.launch(&server(kind, 1 << 40))?;
        let clients = [client(lab, 0, kind, &guest)?, client(lab, 1, kind, &guest)?];
        clients[0].wait_step(5)?;
        if kind == "git" {
            // The files of its own clones come and go faster than a move can ask the target for them.
            guest.set_limit(1)?;
        }
        for (from, to) in [(0, 1), (1, 0), (0, 1)] {
            lab.migrate(&guest.name, from, to)?;
            clients[to].wait_step(clients[to].last_step() + 5)?;
        }
        let [first, _] = &clients;
        ensure!(first.output().contains("again"), "nothing happened: {}", first.output());
        lab.tool(1, "ulpm_command", &["--kill", &guest.name])?.success()?;
        guest.finish()?.expect_code(128 + 9)?;
        Ok(())
    })
}

macro_rules! servers {
    ($($kind:ident $steps:literal $generations:literal;)+) => {
        $(
            mod $kind {
                #[test]
                fn goes_on_from_checkpoints_in_a_row() -> ulpm_tests::Result {
                    super::lives(&super::server(stringify!($kind), $steps), $generations)
                }

                #[test]
                fn moves_there_and_back_and_there() -> ulpm_tests::Result {
                    super::moves(&super::server(stringify!($kind), $steps))
                }
            }
        )+
    };
}

servers! {
    redis 120 5;
    memcached 120 5;
    nginx 120 5;
    socat 120 5;
    http 120 5;
    asyncio 120 5;
    multiprocessing 120 5;
    mariadb 120 5;
    openssl 120 5;
    dbus 50 3;
    agent 120 5;
    perl 120 5;
    node 120 5;
    java 100 3;
}

/// Postgres does not run as root, nor a program that has changed its user under ULPM.
#[test]
fn postgres() -> Result {
    if is_root() {
        println!("postgres refuses root: the run as another user shows this");
        return Ok(());
    }
    lives(&server("postgres", 100), 5)
}

#[test]
fn git_daemon() -> Result {
    lives(&server("git", 14), 2)
}

#[test]
fn git_daemon_moves_there_and_back_and_there() -> Result {
    moves(&server("git", 30))
}

mod openmpi {
    #[test]
    fn goes_on_from_checkpoints_in_a_row() -> ulpm_tests::Result {
        super::lives(&super::mpi(80), 3)
    }

    #[test]
    fn moves_there_and_back_and_there() -> ulpm_tests::Result {
        super::moves(&super::mpi(80))
    }
}

macro_rules! clients_outside {
    ($($kind:ident)+; of_two_hosts $($tcp:ident)+) => {
        mod client_outside {
            $(
                #[test]
                fn $kind() -> ulpm_tests::Result {
                    super::outside(stringify!($kind))
                }
            )+

            #[test]
            fn postgres() -> ulpm_tests::Result {
                if ulpm_tests::is_root() {
                    println!("postgres refuses root: the run as another user shows this");
                    return Ok(());
                }
                super::outside("postgres")
            }
        }

        mod clients_of_two_hosts {
            $(
                #[test]
                fn $tcp() -> ulpm_tests::Result {
                    super::outside_moves(stringify!($tcp))
                }
            )+
        }
    };
}

clients_outside! {
    redis memcached nginx socat http asyncio multiprocessing mariadb openssl dbus agent perl node java git;
    of_two_hosts redis memcached nginx socat http asyncio multiprocessing mariadb openssl perl node java git
}
