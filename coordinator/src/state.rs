//! The state directory: what a coordinator leaves to the next one.
//!
//! ```text
//!  lock             held by the coordinator that lives
//!  next-id          the next job's id
//!  coordinator.log  with --daemon
//!  jobs/ID.table    the job table, mapped by every member; ID.N.table after the Nth restart of a job that failed
//!  jobs/ID.json     what else is to be known of the job
//!  jobs/ID.out      output of a job that came by migration; jobs/ID.out.1 is what was before it
//!  jobs/ID.sock     where whoever has the terminal of such a job connects
//!  moved/ID.json    a job that went elsewhere; written before COMMIT is sent, so this is the log of
//!                   hand-overs: what stands here never runs here again
//!  arrived/TOKEN.json  a job that came from elsewhere; written before PREPARED is said, and again before it
//!                   goes on
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ulpm_control::JobId;
use ulpm_control::message::{Files, Home, Outside, Policy, Ssh, Stdio};

/// Why a coordinator cannot have its state directory.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another one lives.
    #[error("a coordinator already runs for {}", .0.display())]
    Running(PathBuf),
    /// The directory is not ours alone.
    #[error("{} cannot be used: {text}; remove it or choose another with --state-dir", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        text: String,
    },
    /// The system refuses.
    #[error("cannot use {}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What is to be known of a job, beside its table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobMeta {
    /// Its id.
    pub id: JobId,
    /// Its name.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Where it started.
    pub cwd: PathBuf,
    /// How to checkpoint it.
    pub policy: Policy,
    /// Virtual id of the root, once known.
    pub root: Option<i32>,
    /// Token of the hand-over by which it came.
    pub origin: Option<String>,
    /// Token of the last hand-over that was begun here.
    #[serde(default)]
    pub offered: Option<String>,
    /// Where it was launched, if that is another host.
    #[serde(default)]
    pub home: Option<Home>,
    /// Number of its table: each restart of a job that has failed makes a new one.
    #[serde(default)]
    pub table: u32,
    /// Who waits for its root.
    #[serde(default)]
    pub parent: Option<Parent>,
    /// It has failed, and is being restarted.
    #[serde(default)]
    pub recovering: Option<Recovering>,
    /// When it was restarted because it had failed, in seconds since 1970.
    #[serde(default)]
    pub restarts: Vec<u64>,
    /// What was said of its last failure.
    #[serde(default)]
    pub last_failure: Option<String>,
    /// Somebody wants it to end.
    #[serde(default)]
    pub killed: bool,
}

/// A process that waits for the root of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its id.
    pub pid: i32,
    /// When it started, as /proc tells.
    pub start: u64,
}

/// A job that has failed, and is to be restarted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovering {
    /// What has happened to it.
    pub text: String,
    /// Number of the table of what has failed. If the job has a newer one, that tells whether it goes on.
    pub table: u32,
}

/// A job that went elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedRecord {
    /// Its id here.
    pub id: JobId,
    /// Its name.
    pub name: String,
    /// `HOST:PORT` of the coordinator that has it.
    pub target: String,
    /// How it is reached, if by ssh.
    #[serde(default)]
    pub ssh: Ssh,
    /// Names the hand-over there.
    pub token: String,
    /// Where the image lay on the target when it was decided.
    pub image: String,
    /// Token of the hand-over by which it had come.
    pub origin: Option<String>,
    /// What became of its standard streams.
    #[serde(default)]
    pub stdio: Stdio,
    /// How it ended, once it has.
    pub finished: Option<Finished>,
}

/// A job that came from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrivedRecord {
    /// Names the hand-over.
    pub token: String,
    /// Its id here.
    pub job: JobId,
    /// Its name.
    pub name: String,
    /// Where its image lay.
    pub image: PathBuf,
    /// The image stays when the job goes on.
    #[serde(default)]
    pub keep_images: bool,
    /// What becomes of open files.
    #[serde(default)]
    pub files: Files,
    /// What becomes of sockets that are connected to programs outside the job.
    #[serde(default)]
    pub outside: Outside,
    /// `HOST:PORT` where the source can be asked for its decision, if it listens.
    #[serde(default)]
    pub source: Option<String>,
    /// What becomes of its standard streams.
    #[serde(default)]
    pub stdio: Stdio,
    /// Where it was launched, if that is not here.
    #[serde(default)]
    pub home: Option<Home>,
    /// How far it has come.
    #[serde(default)]
    pub stage: Stage,
    /// How it ended, once it has.
    pub finished: Option<Finished>,
}

/// How far the arrival of a job has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Its image is complete, and the source has not said yet that it has decided.
    Prepared,
    /// It belongs here. Its id is 0 until it was rebuilt from an image that was kept.
    #[default]
    Taken,
}

/// How a job ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// As from wait(2), if it is known.
    pub status: Option<i32>,
    /// What is to be told to the user, or nothing.
    pub text: String,
}

/// The directory, locked.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl StateDir {
    /// Makes the directory where it is missing, checks that it is ours alone, and locks it.
    ///
    /// # Errors
    ///
    /// [`StateError`]
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let io = |source| StateError::Io { path: path.to_owned(), source };
        match fs::DirBuilder::new().recursive(false).mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(io)?,
        }
        // Not following a link: in /tmp anybody could have put one here.
        let meta = fs::symlink_metadata(path).map_err(io)?;
        let unsafe_because =
            |text: &str| StateError::Unsafe { path: path.to_owned(), text: text.into() };
        if !meta.is_dir() {
            return Err(unsafe_because("it is not a directory"));
        }
        if meta.uid() != nix::unistd::geteuid().as_raw() {
            return Err(unsafe_because("it belongs to another user"));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(unsafe_because("others have access to it"));
        }
        let lock = path.join("lock");
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(lock);
        let lock = Flock::lock(file.map_err(io)?, FlockArg::LockExclusiveNonblock).map_err(
            |(_, errno)| match errno {
                nix::errno::Errno::EWOULDBLOCK => StateError::Running(path.to_owned()),
                errno => io(errno.into()),
            },
        )?;
        for dir in ["jobs", "moved", "arrived"] {
            match fs::DirBuilder::new().mode(0o700).create(path.join(dir)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.map_err(io)?,
            }
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An id that no job here has had.
    ///
    /// # Errors
    ///
    /// When it cannot be recorded; it is not to be used then.
    pub fn next_id(&self) -> io::Result<JobId> {
        let path = self.path.join("next-id");
        let recorded =
            fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let seen =
            ["jobs", "moved"].iter().flat_map(|dir| fs::read_dir(self.path.join(dir))).flatten();
        let seen = seen.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.split('.').next()?.parse::<u64>().ok()
        });
        let id = recorded.unwrap_or(1).max(seen.max().map_or(1, |id| id + 1));
        replace(&path, format!("{}\n", id + 1).as_bytes(), false)?;
        Ok(JobId(id))
    }

    /// Path of a job's table, the first of which has the number 0.
    #[must_use]
    pub fn table(&self, id: JobId, number: u32) -> PathBuf {
        match number {
            0 => self.path.join(format!("jobs/{id}.table")),
            _ => self.path.join(format!("jobs/{id}.{number}.table")),
        }
    }

    /// What the paths of all tables of a job begin with.
    #[must_use]
    pub fn table_prefix(&self, id: JobId) -> PathBuf {
        self.path.join(format!("jobs/{id}."))
    }

    /// Path of a job's log.
    #[must_use]
    pub fn output(&self, id: JobId) -> PathBuf {
        self.path.join(format!("jobs/{id}.out"))
    }

    /// Path of what a job's log was before it became too long.
    #[must_use]
    pub fn older_output(&self, id: JobId) -> PathBuf {
        self.path.join(format!("jobs/{id}.out.1"))
    }

    /// Path of the socket at which the streams of a job that came by migration are kept.
    #[must_use]
    pub fn session(&self, id: JobId) -> PathBuf {
        self.path.join(format!("jobs/{id}.sock"))
    }

    /// Path of a job's record.
    #[must_use]
    pub fn meta(&self, id: JobId) -> PathBuf {
        self.path.join(format!("jobs/{id}.json"))
    }

    /// Path of the record of a job that went elsewhere.
    #[must_use]
    pub fn moved(&self, id: JobId) -> PathBuf {
        self.path.join(format!("moved/{id}.json"))
    }

    /// Path of the record of a job that came from elsewhere; tokens are hexadecimal.
    #[must_use]
    pub fn arrived(&self, token: &str) -> PathBuf {
        self.path.join(format!("arrived/{token}.json"))
    }

    /// All records in a directory; damaged ones are left out and named in the log.
    #[must_use]
    pub fn records<T: DeserializeOwned>(&self, dir: &str) -> Vec<T> {
        let Ok(entries) = fs::read_dir(self.path.join(dir)) else { return Vec::new() };
        let paths = entries.flatten().map(|entry| entry.path());
        let json =
            paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let mut found = Vec::new();
        for path in json {
            match fs::read(&path)
                .map_err(|error| error.to_string())
                .and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()))
            {
                Ok(record) => found.push(record),
                Err(error) => tracing::warn!("{} is damaged: {error}", path.display()),
            }
        }
        found
    }

    /// Keeps the logs of the newest `keep` jobs that have ended.
    pub fn forget_old_outputs(&self, living: &dyn Fn(JobId) -> bool, keep: usize) {
        let Ok(entries) = fs::read_dir(self.path.join("jobs")) else { return };
        let id = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_suffix(".out")?.parse().ok().map(JobId)
        };
        let mut ended: Vec<JobId> =
            entries.flatten().filter_map(id).filter(|&id| !living(id)).collect();
        ended.sort_unstable();
        ended.truncate(ended.len().saturating_sub(keep));
        for id in ended {
            let _ = fs::remove_file(self.output(id));
            let _ = fs::remove_file(self.older_output(id));
        }
    }
}

/// Replaces a record so that either the old or the new one is found, also after a power cut.
///
/// # Errors
///
/// The old one is still there.
pub fn save<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(record)?;
    crate::fault::disk()?;
    replace(path, &text, true)
}

fn replace(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if durable && let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;

    #[test]
    fn a_second_coordinator_is_kept_out_and_ids_are_never_used_again() {
        let dir = TestDir::new();
        let path = dir.path().join("state");
        let state = StateDir::open(&path).unwrap();
        assert!(matches!(StateDir::open(&path), Err(StateError::Running(_))));
        assert_eq!(state.next_id().unwrap(), JobId(1));
        assert_eq!(state.next_id().unwrap(), JobId(2));
        fs::remove_file(path.join("next-id")).unwrap();
        fs::write(path.join("jobs/7.out"), "").unwrap();
        assert_eq!(state.next_id().unwrap(), JobId(8));
        drop(state);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_link_or_an_open_directory_is_refused() {
        let dir = TestDir::new();
        let path = dir.path().join("state");
        std::os::unix::fs::symlink("/tmp", &path).unwrap();
        assert!(matches!(StateDir::open(&path), Err(StateError::Unsafe { .. })));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert!(matches!(StateDir::open(&path), Err(StateError::Unsafe { .. })));
    }
}
