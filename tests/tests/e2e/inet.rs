//! Internet sockets.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use ulpm_tests::{
    Lab, Program, Result, checkpointed_equals_native, ensure, migrated_equals_native,
};

fn lives(program: &Program) -> Result {
    Lab::one_host(|lab| checkpointed_equals_native(lab, program, 5))
}

/// A port cannot be had twice in one network, so this needs hosts that are more than a name.
fn moves(program: &Program) -> Result {
    Lab::two_hosts(|lab| {
        if !lab.hosts[0].is_namespace() {
            println!("both hosts have one network: the run as root shows this");
            return Ok(());
        }
        migrated_equals_native(lab, program)
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
