//! Standard streams of jobs that have come here, or went: connections between whoever has the terminal and the keeper of
//! a job (`ulpm_control::session`), of which nothing is looked at here.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use ulpm_control::codec::CodecError;
use ulpm_control::message::{Refusal, Ssh};
use ulpm_control::{JobId, Reply, Request, exit};

use crate::migrate::within_answer;
use crate::network::{Link, Network, with_port};
use crate::server::Shared;
use crate::state::Stage;
use crate::wire;

/// Bytes that are passed on at a time, and all that is held of them.
const PIECE: usize = 64 * 1024;

fn refusal(code: u8, text: String) -> Refusal {
    Refusal { code, chain: vec![text] }
}

/// The keeper of a job that has come here.
async fn keeper(shared: &Shared, id: JobId) -> Result<Link, Refusal> {
    match connect(&shared.state.session(id)).await {
        Ok(stream) => Ok(Link::Unix(stream)),
        Err(error) => Err(Refusal {
            code: exit::NO_INPUT,
            chain: vec![format!("nobody keeps the streams of job {id} here"), error.to_string()],
        }),
    }
}

/// Connects to a socket at a path of any length.
async fn connect(path: &Path) -> io::Result<UnixStream> {
    let dir = std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?;
    let name = path.file_name().unwrap_or_default();
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    UnixStream::connect(short).await
}

/// Asks another coordinator for streams.
async fn ask(
    network: &Network,
    target: &str,
    ssh: &Ssh,
    request: &Request,
) -> Result<Link, Refusal> {
    let lost = |error: &dyn std::error::Error| {
        let mut chain = vec![format!("{target} cannot be asked for the streams of the job")];
        chain.extend(ulpm_control::chain(error));
        Refusal { code: exit::NO_HOST, chain }
    };
    let mut link = network.connect(target, ssh).await.map_err(|error| lost(&error))?;
    let asked = async {
        wire::write(&mut link, request).await?;
        wire::read(&mut link).await
    };
    match within_answer(asked).await.map_err(|error| lost(&error))? {
        Reply::Done => Ok(link),
        Reply::Error(refusal) => Err(refusal),
        other => Err(lost(&CodecError::Payload(format!("{other:?} was not expected")))),
    }
}

/// The streams of a job that was launched here and went elsewhere.
pub(crate) async fn of_moved(shared: &Shared, id: JobId) -> Result<Link, Refusal> {
    let unknown = || refusal(exit::NO_INPUT, format!("no job {id} has gone from here"));
    let record = shared.moved_record(id).ok_or_else(unknown)?;
    let request = Request::Session { token: record.token };
    ask(&shared.network, &record.target, &record.ssh, &request).await
}

/// The streams of a job that has come here, for the coordinator that it came from.
pub(crate) async fn of_arrived(shared: &Shared, token: &str) -> Result<Link, Refusal> {
    let unknown = || refusal(exit::NO_INPUT, "no job has come here by that hand-over".into());
    let record = shared.arrived_record(token).ok_or_else(unknown)?;
    if record.finished.is_none() && (record.stage != Stage::Taken || record.job == JobId(0)) {
        let text = format!("job {} does not go on here yet", record.name);
        return Err(refusal(exit::TEMPORARY, text));
    }
    keeper(shared, record.job).await
}

/// The streams of a job that runs here or elsewhere, for somebody who looks in.
pub(crate) async fn of_job(
    shared: &Shared,
    job: Option<String>,
    at: Option<String>,
    ssh: &Ssh,
) -> Result<Link, Refusal> {
    if let Some(at) = at {
        let request = Request::Attach { job, at: None, ssh: Ssh::default() };
        return ask(&shared.network, &with_port(&at), ssh, &request).await;
    }
    let names: Vec<String> = job.into_iter().collect();
    let handle = shared.resolve(&names)?.remove(0);
    if !shared.state.session(handle.id).exists() {
        let text = format!(
            "job {} runs here with the terminal or the pipes with which it was launched: there is nothing to attach to before it has moved",
            handle.name
        );
        return Err(refusal(exit::NO_INPUT, text));
    }
    keeper(shared, handle.id).await
}

/// Says that it goes on, and passes everything on in both directions until one of the ends has gone.
pub(crate) async fn pass_on(
    link: Link,
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<(), CodecError> {
    wire::write(writer, &Reply::Done).await?;
    let (mut from, mut to) = tokio::io::split(link);
    tokio::select! {
        done = copy(reader, &mut to) => done?,
        done = copy(&mut from, writer) => done?,
    }
    Err(CodecError::Closed)
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..len]).await?;
        to.flush().await?;
    }
}
