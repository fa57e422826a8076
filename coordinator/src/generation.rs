//! Directories of checkpoints: written under another name, made durable, then renamed.
//!
//! ```text
//!  DIR/NAME/.3.partial/   while it is written; locked by its writer, so that others see that it lives
//!  DIR/NAME/3/            complete
//!  DIR/NAME/latest -> 3
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use ulpm_control::manifest::{FILE_NAME, Manifest};

/// A checkpoint that is being written; removed when dropped before [`Partial::finish`].
#[derive(Debug)]
pub struct Partial {
    parent: PathBuf,
    dir: PathBuf,
    generation: u64,
    done: bool,
    _lock: Flock<File>,
}

/// Bytes of the files in a generation; 0 if there is none.
#[must_use]
pub fn size(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    entries.flatten().filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

/// A step failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}", path.display())]
pub struct GenerationError {
    /// What was to be done.
    pub what: &'static str,
    /// With what.
    pub path: PathBuf,
    /// Why it cannot be done.
    pub source: io::Error,
}

trait Context<T> {
    fn context(self, what: &'static str, path: &Path) -> Result<T, GenerationError>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: &'static str, path: &Path) -> Result<T, GenerationError> {
        self.map_err(|source| GenerationError { what, path: path.to_owned(), source })
    }
}

impl Partial {
    /// Begins the next generation under `ckpt_dir/name`, and removes what dead writers have left.
    ///
    /// # Errors
    ///
    /// [`GenerationError`]: nothing was made, but maybe directories on the way.
    pub fn create(ckpt_dir: &Path, name: &str) -> Result<Self, GenerationError> {
        let parent = ckpt_dir.join(name);
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(ckpt_dir).context("create", ckpt_dir)?;
        let mut generation = 0;
        loop {
            // Another writer that gives up removes it if it is empty.
            match fs::DirBuilder::new().mode(0o700).create(&parent) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.context("create", &parent)?,
            }
            if generation == 0 {
                generation = remove_dead(&parent)
                    .and_then(|()| generations(&parent))
                    .context("read", &parent)?
                    .last()
                    .map_or(1, |last| last + 1);
            }
            let dir = parent.join(partial_name(generation));
            match fs::DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => {
                    if let Some(lock) = lock_new(&dir)? {
                        return Ok(Self { parent, dir, generation, done: false, _lock: lock });
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => generation += 1,
                // Another writer has given up, and removed what it took for empty.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(GenerationError { what: "create", path: dir, source });
                }
            }
        }
    }

    /// Number of the generation.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Where it is being written.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Creates the image file of a process.
    ///
    /// # Errors
    ///
    /// [`GenerationError`]: there is no such file, or it was there before.
    pub fn image(&self, virt: i32) -> Result<File, GenerationError> {
        let path = self.dir.join(Manifest::image_name(virt));
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .context("create", &path)
    }

    /// Removes an image file that is not needed after all.
    pub fn discard(&self, virt: i32) {
        let _ = fs::remove_file(self.dir.join(Manifest::image_name(virt)));
    }

    /// Completes the checkpoint, whose images are durable: writes the manifest and gives the directory
    /// its name. `latest` points to it from then on if that is wanted.
    ///
    /// # Errors
    ///
    /// [`GenerationError`]: the directory is removed, and `latest` is what it was; but if only the last
    /// step fails, which makes the names durable, both are there.
    pub fn finish(mut self, manifest: &Manifest, latest: bool) -> Result<PathBuf, GenerationError> {
        let path = self.dir.join(FILE_NAME);
        write_manifest(&path, manifest).context("write", &path)?;
        sync(&self.dir).context("write", &self.dir)?;
        let name = self.generation.to_string();
        let path = self.parent.join(&name);
        fs::rename(&self.dir, &path).context("create", &path)?;
        self.done = true;
        if latest && let Err(error) = point_latest(&self.parent, &name) {
            let _ = fs::remove_dir_all(&path);
            return Err(error).context("complete", &path);
        }
        sync(&self.parent).context("complete", &path)?;
        Ok(path)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_dir_all(&self.dir);
            // Only if nothing else is in it.
            let _ = fs::remove_dir(&self.parent);
        }
    }
}

/// Lets `latest` beside the directory `complete` point to it.
///
/// # Errors
///
/// `latest` is what it was.
pub fn make_latest(complete: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) =
        (complete.parent(), complete.file_name().and_then(|n| n.to_str()))
    else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    point_latest(parent, name)?;
    sync(parent)
}

fn write_manifest(path: &Path, manifest: &Manifest) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(manifest)?;
    text.push(b'\n');
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&text)?;
    file.sync_all()
}

fn point_latest(parent: &Path, name: &str) -> io::Result<()> {
    let temporary = parent.join(format!(".latest.{name}"));
    let _ = fs::remove_file(&temporary);
    symlink(name, &temporary)?;
    fs::rename(&temporary, parent.join("latest"))
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn partial_name(generation: u64) -> String {
    format!(".{generation}.partial")
}

/// Complete generations in `parent`, in rising order; none if it does not exist.
///
/// # Errors
///
/// When the directory cannot be read.
pub fn generations(parent: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if let Some(generation) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            && entry.path().join(FILE_NAME).exists()
        {
            found.push(generation);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Locks a directory that was just made; `None` if another coordinator, whose jobs lie beside ours, has taken it for a
/// dead writer's meanwhile, and removes it.
fn lock_new(dir: &Path) -> Result<Option<Flock<File>>, GenerationError> {
    let file = match File::open(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.context("open", dir)?,
    };
    let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
        Err((_, errno)) => return Err(io::Error::from(errno)).context("lock", dir),
    };
    let is_there = lock.metadata().context("look at", dir)?.nlink() != 0;
    Ok(is_there.then_some(lock))
}

/// Removes partial generations whose writers are dead.
///
/// # Errors
///
/// When the directory cannot be read.
pub fn remove_dead(parent: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix('.').and_then(|name| name.strip_suffix(".partial"));
        if number.is_none_or(|number| number.parse::<u64>().is_err()) {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        // Held until it is gone: who has just made it sees that it is not his any more.
        if let Ok(_lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            tracing::info!("removing {}, which a writer has left incomplete", path.display());
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}

/// Removes all but the newest `keep` complete generations; at least one stays.
pub fn prune(parent: &Path, keep: u32) {
    let Ok(all) = generations(parent) else { return };
    let surplus = all.len().saturating_sub(keep.max(1) as usize);
    for generation in &all[..surplus] {
        remove(&parent.join(generation.to_string()));
    }
}

/// Removes a complete generation; it is never seen incomplete.
pub fn remove(path: &Path) {
    let (Some(parent), Some(name)) =
        (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return;
    };
    let doomed = parent.join(format!(".{name}.partial"));
    if let Err(error) = fs::rename(path, &doomed).and_then(|()| fs::remove_dir_all(&doomed)) {
        tracing::warn!("cannot remove {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::{TestDir, manifest};

    #[test]
    fn a_generation_appears_complete_and_the_oldest_goes() {
        let dir = TestDir::new();
        let parent = dir.path().join("a-1");
        for generation in 1..=3 {
            let partial = Partial::create(dir.path(), "a-1").unwrap();
            assert_eq!(partial.generation(), generation);
            partial.image(10).unwrap();
            let path = partial.finish(&manifest(), true).unwrap();
            assert_eq!(parent.join("latest").canonicalize().unwrap(), path.canonicalize().unwrap());
            prune(&parent, 2);
        }
        assert_eq!(generations(&parent).unwrap(), [2, 3]);
        Manifest::read(&parent.join("latest")).unwrap();
    }

    #[test]
    fn one_that_fails_leaves_nothing() {
        let dir = TestDir::new();
        let partial = Partial::create(dir.path(), "a-1").unwrap();
        partial.image(10).unwrap();
        drop(partial);
        assert!(!dir.path().join("a-1").exists());
    }

    #[test]
    fn writers_who_come_and_go_at_once_do_not_take_each_other_for_dead() {
        let dir = TestDir::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let partial = Partial::create(dir.path(), "a-1").unwrap();
                        partial.image(10).unwrap();
                    }
                });
            }
        });
        assert!(!dir.path().join("a-1").exists());
    }

    #[test]
    fn what_a_dead_writer_left_is_removed_and_a_living_ones_is_not() {
        let dir = TestDir::new();
        let parent = dir.path().join("a-1");
        fs::create_dir_all(parent.join(".7.partial")).unwrap();
        let first = Partial::create(dir.path(), "a-1").unwrap();
        let second = Partial::create(dir.path(), "a-1").unwrap();
        assert_eq!((first.generation(), second.generation()), (1, 2));
        assert!(!parent.join(".7.partial").exists());
    }
}
