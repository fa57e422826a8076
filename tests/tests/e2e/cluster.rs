//! Who is let in: hosts that join a cluster, and strangers who try.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use ulpm_cluster::{Authority, Cluster};
use ulpm_control::{Client, Request};
use ulpm_tests::{DEADLINE, Guest, Lab, Program, Result, ensure, until};

/// Makes the first host a cluster of its own, and lets the second join it.
fn joined(lab: &Lab) -> Result {
    for host in &lab.hosts {
        host.quit_coordinator()?;
        host.leave_cluster();
    }
    let made =
        lab.tool(0, "ulpm_coordinator", &["--init-cluster", "--name", "ann@a"])?.success()?;
    ensure!(made.contains("this host is ann@a"), "{made}");
    lab.hosts[0].start_coordinator()?;
    let token = lab.tool(0, "ulpm_coordinator", &coordinator(lab, 0, &["--invite"]))?.success()?;
    lab.tool(1, "ulpm_coordinator", &["--name", "bob@b", "--join-cluster", token.trim()])?
        .success()?;
    lab.hosts[1].start_coordinator()?;
    // It is good for one.
    let third = lab.dir.join("third").to_string_lossy().into_owned();
    let again = ["--cluster", &third, "--name", "eve@b", "--join-cluster", token.trim()];
    lab.tool(1, "ulpm_coordinator", &again)?.failure(&["says no", "used before"])?;
    Ok(())
}

/// Arguments that name a host's coordinator.
fn coordinator<'a>(lab: &'a Lab, host: usize, rest: &[&'a str]) -> Vec<&'a str> {
    let socket = lab.hosts[host].socket.to_str().unwrap_or_default();
    [&["--socket", socket], rest].concat()
}

fn goes_on(guest: &Guest<'_>) -> Result {
    let last = guest.last_step();
    guest.wait_step(last + 2)?;
    Ok(())
}

#[test]
fn hosts_that_have_joined_send_each_other_jobs_until_one_is_shown_out() -> Result {
    Lab::two_hosts(|lab| {
        joined(lab)?;
        let guest = lab.launch(&Program::guest("counter", 100_000))?;
        guest.wait_step(2)?;
        lab.migrate(&guest.name, 0, 1)?;
        lab.migrate(&guest.name, 1, 0)?;
        let allow = lab.hosts[1].cluster().join("allow");
        std::fs::write(&allow, "bob@*  # only himself\n")?;
        let target = lab.hosts[1].address();
        let migrate = ["--migrate", &target, &guest.name];
        let refused = lab.tool(0, "ulpm_command", &migrate)?;
        ensure!(refused.code == 77, "exit status {}: {}", refused.code, refused.stderr);
        refused.failure(&["ann@a may not send", "cluster/allow"])?;
        // A line that says nothing is told of, and lets nobody in.
        std::fs::write(&allow, "ann at a\nbob@*\n")?;
        lab.tool(0, "ulpm_command", &migrate)?.failure(&["ann@a may not send"])?;
        ensure!(lab.hosts[1].log().contains("line 1 of"), "{}", lab.hosts[1].log());
        std::fs::remove_file(allow)?;
        lab.tool(0, "ulpm_coordinator", &["--revoke", "bob@b"])?.success()?;
        lab.tool(0, "ulpm_coordinator", &["--revoke", "bob@b"])?.failure(&["no host"])?;
        // Neither may it be sent anything, nor may it send.
        lab.tool(0, "ulpm_command", &migrate)?.failure(&["revoked"])?;
        let theirs = lab.launch_on(1, &Program::guest("counter", 100_000))?;
        theirs.wait_step(2)?;
        let here = lab.hosts[0].address();
        lab.tool(1, "ulpm_command", &["--migrate", &here, &theirs.name])?.failure(&["revoked"])?;
        goes_on(&theirs)?;
        theirs.kill_tree()?;
        guest.kill_tree()?;
        Ok(())
    })
}

/// In words, whichever side is in no cluster, or in another.
#[test]
fn hosts_that_are_not_of_one_cluster_say_so() -> Result {
    Lab::one_host(|lab| {
        let inside = lab.dir.join("inside").to_string_lossy().into_owned();
        let other = lab.dir.join("other").to_string_lossy().into_owned();
        for cluster in [&inside, &other] {
            lab.tool(0, "ulpm_coordinator", &["--cluster", cluster, "--init-cluster"])?
                .success()?;
        }
        let host = &lab.hosts[0];
        let ask = |cluster: &str, words: &[&str]| -> Result {
            let mut ask = host.tool("ulpm_command");
            ask.args(["-c", &host.address(), "--status"]).env("ULPM_CLUSTER", cluster);
            let said = lab.output(ask)?;
            if words.is_empty() { said.success().map(drop) } else { said.failure(words).map(drop) }
        };
        ask(&inside, &["in no cluster"])?;
        host.quit_coordinator()?;
        host.enter_cluster(inside.as_ref());
        host.start_coordinator()?;
        ask(&inside, &[])?;
        ask(&other, &["of another cluster"])?;
        ask("/nowhere", &["of a cluster", "--join-cluster"])
    })
}

#[test]
fn without_a_cluster_nobody_beyond_the_host_is_listened_to() -> Result {
    Lab::one_host(|lab| {
        let host = &lab.hosts[0];
        host.leave_cluster();
        let listen = coordinator(lab, 0, &["--listen", "0.0.0.0:0"]);
        host.quit_coordinator()?;
        lab.tool(0, "ulpm_coordinator", &listen)?
            .failure(&["without a cluster", "--init-cluster"])?;
        for ask in [&["--invite"][..], &["--revoke", "bob@b"]] {
            let said = lab.tool(0, "ulpm_coordinator", ask)?;
            ensure!(said.code == 66, "exit status {}", said.code);
            said.failure(&["in no cluster", "--init-cluster"])?;
        }
        lab.tool(0, "ulpm_coordinator", &["--join-cluster", "nonsense"])?.failure(&["--invite"])?;
        lab.tool(0, "ulpm_coordinator", &["--init-cluster", "--name", "a b"])?
            .failure(&["no name for a host"])?;
        lab.tool(0, "ulpm_coordinator", &["--init-cluster"])?.success()?;
        lab.tool(0, "ulpm_coordinator", &["--init-cluster"])?.failure(&["in a cluster already"])?;
        lab.tool(0, "ulpm_coordinator", &coordinator(lab, 0, &["--invite"]))?
            .failure(&["no coordinator of this host listens"])?;
        host.start_coordinator()
    })
}

#[test]
fn invitation_that_has_expired_says_so() -> Result {
    Lab::one_host(|lab| {
        let host = &lab.hosts[0];
        host.quit_coordinator()?;
        lab.tool(0, "ulpm_coordinator", &["--init-cluster"])?.success()?;
        host.start_coordinator()?;
        let authority = Authority::open(&host.cluster())?;
        let invitation = authority.invite(vec![host.address()], Duration::ZERO)?.to_string();
        let made = Instant::now();
        until("the invitation to expire", DEADLINE, || {
            Ok((made.elapsed() > Duration::from_secs(2)).then_some(()))
        })?;
        let there = lab.dir.join("there").to_string_lossy().into_owned();
        let join = ["--cluster", &there, "--name", "eve@e", "--join-cluster", &invitation];
        lab.tool(0, "ulpm_coordinator", &join)?.failure(&[
            "invitation",
            "has expired",
            "--invite",
        ])?;
        Ok(())
    })
}

/// Whether whoever is at the other end hears anything but a farewell.
fn answered(mut stream: &TcpStream) -> Result<Vec<u8>> {
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut heard = Vec::new();
    // A reset is as good as an end.
    let _ = stream.read_to_end(&mut heard);
    Ok(heard)
}

/// Plain TCP, random bytes, keys of another cluster, of none, revoked ones, silence, and many at once: all get
/// nothing, and the job does not notice.
#[test]
fn strangers_get_nothing_and_harm_nothing() -> Result {
    Lab::one_host(|lab| {
        let host = &lab.hosts[0];
        host.quit_coordinator()?;
        host.leave_cluster();
        lab.tool(0, "ulpm_coordinator", &["--init-cluster", "--name", "ann@a"])?.success()?;
        host.start_coordinator()?;
        let guest = lab.launch(&Program::guest("counter", 1_000_000))?;
        guest.wait_step(2)?;
        let address = host.address();

        // A request in plain text, such as a kill of all jobs.
        let mut plain = TcpStream::connect(&address)?;
        plain.write_all(&ulpm_control::codec::encode(&Request::Kill { jobs: Vec::new() })?)?;
        let heard = answered(&plain)?;
        ensure!(heard.len() < 16, "plain text was answered: {heard:02x?}");

        // Noise, of many lengths.
        let mut noise = std::fs::File::open("/dev/urandom")?;
        for len in [1, 3, 12, 100, 5_000, 100_000] {
            let mut bytes = vec![0; len];
            noise.read_exact(&mut bytes)?;
            let stream = TcpStream::connect(&address)?;
            let _ = (&stream).write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Write);
            let heard = answered(&stream)?;
            ensure!(heard.len() < 16, "{len} random bytes were answered: {heard:02x?}");
        }

        // Another cluster's keys, and an invitation that was used up or is used for something else.
        let other = lab.dir.join("other");
        Authority::create(&other, "ann@a")?;
        let stranger = Cluster::open(&other)?.ok_or("no cluster")?;
        let ask = |cluster: &Cluster| -> Result<String> {
            let asked = Client::connect_as(&address, cluster)
                .and_then(|mut client| client.call(&Request::Status));
            match asked {
                Ok(reply) => Err(format!("a stranger was answered: {reply:?}").into()),
                Err(error) => Ok(ulpm_control::chain(&error).join(": ")),
            }
        };
        ask(&stranger)?;
        let authority = Authority::open(&host.cluster())?;
        let invitation = authority.invite(vec![address.clone()], Duration::from_secs(60))?;
        let said = ask(&invitation.cluster())?;
        ensure!(said.contains("joining the cluster, and nothing else"), "{said}");
        let member = Cluster::open(&host.cluster())?.ok_or("no cluster")?;
        let mut client = Client::connect_as(&address, &member)?;
        let join = Request::Join { name: "eve@e".into(), request: vec![1, 2, 3] };
        let said = client.call(&join).err().ok_or("a member has joined once more")?;
        ensure!(said.to_string().contains("invited"), "{said}");

        // Those who say nothing are shown the door, and meanwhile members are served.
        let silent = TcpStream::connect(&address)?;
        let many: Vec<TcpStream> =
            (0..1_000).map_while(|_| TcpStream::connect(&address).ok()).collect();
        ensure!(many.len() > 500, "only {} connections", many.len());
        let begun = Instant::now();
        until("a member to be served in spite of them", DEADLINE, || {
            let asked = Client::connect_as(&address, &member)
                .and_then(|mut client| client.call(&Request::Status));
            Ok(asked.is_ok().then_some(()))
        })?;
        println!("{} silent connections; a member waited {:?}", many.len(), begun.elapsed());
        ensure!(answered(&silent)?.len() < 16, "a silent one was answered");
        drop(many);
        let checkpoint = lab.checkpoint(&guest)?;
        ensure!(checkpoint.path.is_dir(), "no checkpoint");
        goes_on(&guest)?;
        guest.kill_tree()?;
        Ok(())
    })
}
