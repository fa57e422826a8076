//! Internet sockets.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use ulpm_tests::{
    Lab, Program, Result, checkpointed_equals_native, ensure, is_root,
    one_checkpoint_after_the_other, there_and_back,
};

use crate::{moves, whole_life};

whole_life! {
    netlink => Program::guest("netlink", 200);
    slow_unix_server => Program::guest("slow_server", 80).arg("unix");
}

fn lives(program: &Program) -> Result {
    Lab::one_host(|lab| checkpointed_equals_native(lab, program, 5))
}

/// One connection with itself, and others that are seldom.
#[test]
fn edges_go_on_from_five_checkpoints_in_a_row() -> Result {
    lives(&Program::guest("inet_edges", 200))
}

#[test]
fn edges_move_there_and_back_and_there() -> Result {
    moves(&Program::guest("inet_edges", 200))
}

/// A datagram of another host that was not read: root can send it again, with its sender.
#[test]
fn datagram_of_another_host() -> Result {
    Lab::two_hosts(|lab| {
        if !lab.hosts[0].is_namespace() {
            println!("only root has hosts of their own: the run as root shows this");
            return Ok(());
        }
        let guest = lab.launch(&Program::guest("udp_outside", 30).arg("10.90.0.1"))?;
        guest.set_limit(5)?;
        guest.wait_step(5)?;
        let output = guest.output();
        let port = output.lines().find_map(|line| line.strip_prefix("port ")).ok_or("no port")?;
        let send = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(b'hello', ('10.90.0.1', int(sys.argv[1])))";
        let sent = lab.hosts[1].command("/usr/bin/python3").args(["-c", send, port]).status()?;
        ensure!(sent.success(), "{sent}");
        let checkpoint = lab.checkpoint_and_kill(&guest)?;
        let twin = lab.restart(&guest, &checkpoint.path)?;
        twin.set_free()?;
        let finished = twin.finish()?.expect_code(0)?;
        ensure!(finished.stdout.contains("hello from 10.90.0.2\n"), "{}", finished.stdout);
        Ok(())
    })
}

#[test]
fn tcp_goes_on_from_five_checkpoints_in_a_row() -> Result {
    lives(&Program::guest("tcp", 200))
}

#[test]
fn tcp_moves_there_and_back_and_there() -> Result {
    moves(&Program::guest("tcp", 200))
}

#[test]
fn udp_goes_on_from_five_checkpoints_in_a_row() -> Result {
    lives(&Program::guest("udp", 200))
}

#[test]
fn udp_moves_there_and_back_and_there() -> Result {
    moves(&Program::guest("udp", 200))
}

/// A client whose server is outside: it reads what had come, and then the end; both ends see a connection
/// that was closed. With `--outside-sockets refuse` the job is not restarted.
#[test]
fn other_end_outside_the_job() -> Result {
    Lab::one_host(|lab| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port().to_string();
        let guest = lab.launch(&Program::guest("tcp_client", 30).arg(port))?;
        let (mut server, _) = listener.accept()?;
        server.write_all(b"before the checkpoint")?;
        guest.set_limit(5)?;
        guest.wait_step(5)?;
        let checkpoint = lab.checkpoint(&guest)?;
        // A checkpoint disturbs nothing.
        server.write_all(b".")?;
        guest.kill_tree()?;
        let mut rest = Vec::new();
        // The end, or a reset: the client had not read everything.
        let _ = server.read_to_end(&mut rest);
        ensure!(rest == b"hello", "the server got {rest:?}");
        let path = checkpoint.path.to_string_lossy().into_owned();
        let refused =
            lab.tool(0, "ulpm_restart", &["--outside-sockets", "refuse", "--detach", &path])?;
        refused.failure(&["outside the job", "127.0.0.1"])?;
        let twin = lab.restart(&guest, &checkpoint.path)?;
        twin.set_free()?;
        let finished = twin.finish()?.expect_code(0)?;
        let read = "read before the checkpoint, and the end";
        ensure!(finished.stdout.contains(read), "{}", finished.stdout);
        Ok(())
    })
}

/// Notices of the kernel that were not read get lost, and the program is told so.
#[test]
fn lost_notices_of_the_kernel() -> Result {
    if !is_root() {
        println!("only root can make the kernel send notices: the run as root shows this");
        return Ok(());
    }
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("netlink_lost", 30))?;
        guest.set_limit(20)?;
        guest.wait_step(5)?;
        let first = lab.checkpoint(&guest)?;
        guest.kill_tree()?;
        let twin = lab.restart(&guest, &first.path)?;
        twin.wait_step(10)?;
        // The notice of the loss is not lost.
        let second = lab.checkpoint(&twin)?;
        twin.kill_tree()?;
        let twin = lab.restart(&twin, &second.path)?;
        twin.set_free()?;
        let finished = twin.finish()?.expect_code(0)?;
        ensure!(finished.stdout.contains("ok netlink_lost 1 none\n"), "{}", finished.stdout);
        Ok(())
    })
}

/// A checkpoint that goes on loses none of them.
#[test]
fn notices_of_the_kernel_stay() -> Result {
    if !is_root() {
        println!("only root can make the kernel send notices: the run as root shows this");
        return Ok(());
    }
    Lab::one_host(|lab| {
        let guest = lab.launch(&Program::guest("netlink_lost", 30))?;
        guest.set_limit(20)?;
        guest.wait_step(5)?;
        lab.checkpoint(&guest)?;
        guest.set_free()?;
        let finished = guest.finish()?.expect_code(0)?;
        ensure!(finished.stdout.contains("ok netlink_lost 0 all\n"), "{}", finished.stdout);
        Ok(())
    })
}

#[test]
fn slow_tcp_server_goes_on_from_five_checkpoints_in_a_row() -> Result {
    lives(&Program::guest("slow_server", 80).arg("tcp"))
}

#[test]
fn slow_tcp_server_moves_there_and_back_and_there() -> Result {
    moves(&Program::guest("slow_server", 80).arg("tcp"))
}

fn many(steps: u64, connections: &str) -> Program {
    Program::guest("unix_many", steps).arg(connections).arg("tcp")
}

#[test]
fn a_thousand_connections_twenty_checkpoints() -> Result {
    Lab::one_host(|lab| checkpointed_equals_native(lab, &many(260, "1000"), 20))
}

#[test]
fn a_thousand_connections_five_moves() -> Result {
    Lab::two_hosts(|lab| there_and_back(lab, &many(100, "1000"), 5))
}

/// One checkpoint after the other while bytes are under way: no call is interrupted or cut short, and no byte is
/// lost or doubled.
#[test]
fn checkpoints_all_the_time() -> Result {
    if !is_root() {
        // Each checkpoint of a stalled stream lets some more through, until no buffer may grow any more: such a
        // checkpoint is refused in words then, see docs/kinds.md.
        println!(
            "only root may give a receive buffer all the room it needs: the run as root shows this"
        );
        return Ok(());
    }
    Lab::one_host(|lab| one_checkpoint_after_the_other(lab, &many(100_000, "100")))
}
