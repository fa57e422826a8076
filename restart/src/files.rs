//! Regular files that a job has open, and that are not here as they were when it was saved.
//!
//! A checkpoint does not hold them, as they are the user's; one that is not as it was is told in any case, and
//! the user chooses what becomes of it. With a job that moves they may go along.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ulpm_control::host;
use ulpm_control::message::Files as How;
use ulpm_image::meta::{DeletedFile, Description, description_kind, region_flag};

use crate::error::RestartError;
use crate::image_file::ImageFile;
use crate::path_map::PathMap;

/// A file that the job has open.
struct Wanted<'a> {
    pid: i32,
    description: &'a Description,
    /// Through any description.
    written: bool,
    /// What it held, if that came along.
    content: Option<&'a DeletedFile>,
}

/// What is to be done before the job goes on.
#[derive(Debug, Default)]
pub struct Files {
    /// Paths and lengths of files to be cut.
    to_cut: Vec<(PathBuf, u64)>,
    /// What was put here, to be taken away again if the restart fails.
    put: Vec<Put>,
}

/// A file that was put in place.
#[derive(Debug)]
struct Put {
    path: PathBuf,
    inode: u64,
    /// Where the one is that was there before.
    old: Option<PathBuf>,
}

impl Files {
    /// Looks at the files of a job, tells which have changed, and puts those in place that came along. With `check`
    /// no file that exists is touched.
    ///
    /// # Errors
    ///
    /// [`RestartError`] names a file with which the job is not to go on, or that cannot be made. Nothing was
    /// changed then.
    pub fn look(
        images: &[ImageFile],
        paths: &PathMap,
        how: How,
        check: bool,
    ) -> Result<Self, RestartError> {
        let mut files = Self::default();
        let wanted = wanted(images, paths, how == How::Ship);
        let mut to_put = Vec::new();
        for (path, file) in &wanted {
            let found = match fs::metadata(path) {
                Ok(found) if found.is_file() => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    to_put.extend(file.content.map(|content| (path, file, content, None)));
                    continue;
                }
                // Whatever is wrong with it, opening it says so.
                _ => continue,
            };
            if is_unchanged(&found, file.description) {
                continue;
            }
            if let Some(content) = file.content
                && is_equal(path, &found, content)
            {
                continue;
            }
            let text = changed(&found, file.description);
            let refused = |way_out| RestartError::FileChanged {
                pid: file.pid,
                path: path.clone(),
                text: format!("{text}{way_out}"),
            };
            match (how, file.content) {
                (How::Refuse, _) => return Err(refused("")),
                (How::Ship, Some(content)) if file.written => {
                    to_put.extend((!check).then_some((path, file, content, Some(found))));
                }
                (How::Ship, Some(_)) => {
                    return Err(refused(
                        ", and the job only reads it: make the two equal, or move it without --files ship",
                    ));
                }
                (How::Truncate, _) if file.written && found.len() > file.description.file_len => {
                    files.to_cut.push((path.clone(), file.description.file_len));
                }
                _ => {}
            }
            eprintln!("ulpm_restart: file {} has changed: {text}", path.display());
        }
        // What was put so far is taken away again when `files` is dropped.
        let mut made: HashMap<(u64, u64), PathBuf> = HashMap::new();
        for (path, file, content, found) in to_put {
            let key = (content.dev, content.inode);
            let first = made.get(&key).map(PathBuf::as_path);
            let put =
                put(path, file.description, content, found.as_ref(), first).map_err(|source| {
                    RestartError::PutFile { pid: file.pid, path: path.clone(), source }
                })?;
            made.entry(key).or_insert_with(|| put.path.clone());
            files.put.push(put);
        }
        Ok(files)
    }

    /// Cuts what is to be cut.
    ///
    /// # Errors
    ///
    /// [`RestartError`] names the file that cannot be cut; others may be.
    pub fn cut(&mut self) -> Result<(), RestartError> {
        for (path, len) in self.to_cut.drain(..) {
            let cut = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(len));
            cut.map_err(|source| RestartError::Object {
                text: path.display().to_string(),
                what: format!("be cut to {len} bytes"),
                source,
            })?;
        }
        Ok(())
    }

    /// The job goes on: what was put here stays.
    pub fn keep(mut self) {
        for put in self.put.drain(..) {
            if let Some(old) = put.old {
                let _ = fs::remove_file(old);
            }
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for put in self.put.drain(..) {
            let is_ours = fs::metadata(&put.path).is_ok_and(|found| found.ino() == put.inode);
            let _ = match put.old {
                Some(old) if is_ours => fs::rename(old, &put.path),
                None if is_ours => fs::remove_file(&put.path),
                _ => Ok(()),
            };
        }
    }
}

/// The regular files that the images have open, by where they are here.
fn wanted<'a>(
    images: &'a [ImageFile],
    paths: &PathMap,
    with_content: bool,
) -> BTreeMap<PathBuf, Wanted<'a>> {
    let mut wanted: BTreeMap<PathBuf, Wanted<'_>> = BTreeMap::new();
    // Under whichever name.
    let written: HashSet<(u64, u64)> = images
        .iter()
        .flat_map(|image| &image.meta.descriptions)
        .filter(|description| {
            let flags = description.flags.cast_signed();
            flags & libc::O_ACCMODE != libc::O_RDONLY && flags & libc::O_PATH == 0
        })
        .map(|description| (description.dev, description.inode))
        .collect();
    for image in images {
        for description in &image.meta.descriptions {
            let key = (description.dev, description.inode);
            if description.kind != description_kind::FILE
                || description.mode & libc::S_IFMT != libc::S_IFREG
                || [&b"/proc/"[..], b"/sys/", b"/dev/"]
                    .iter()
                    .any(|directory| description.path.starts_with(directory))
                || is_in_memory(images, key)
            {
                continue;
            }
            let path = paths.map(Path::new(std::ffi::OsStr::from_bytes(&description.path)));
            wanted.entry(path).or_insert_with(|| {
                let mut all = images.iter().flat_map(|image| &image.meta.files);
                let content = all.find(|file| (file.dev, file.inode) == key);
                Wanted {
                    pid: image.pid(),
                    description,
                    written: written.contains(&key),
                    content: content.filter(|_| with_content),
                }
            });
        }
    }
    wanted
}

/// Whether a file is in memory only and mapped shared: that is given its content back otherwise.
fn is_in_memory(images: &[ImageFile], key: (u64, u64)) -> bool {
    let flags = region_flag::CARRIED | region_flag::SHARED;
    images
        .iter()
        .flat_map(|image| &image.meta.regions)
        .any(|region| region.flags & flags == flags && (region.dev, region.inode) == key)
}

fn is_unchanged(found: &Metadata, description: &Description) -> bool {
    found.len() == description.file_len && [found.mtime(), found.mtime_nsec()] == description.mtime
}

/// In words, how a file differs from what it was.
fn changed(found: &Metadata, description: &Description) -> String {
    let written = |seconds: i64| host::rfc3339(u64::try_from(seconds).unwrap_or(0));
    format!(
        "it has {} bytes, last written {}, and had {} when the job was saved, last written {}",
        found.len(),
        written(found.mtime()),
        description.file_len,
        written(description.mtime[0]),
    )
}

/// Whether a file holds what it held. One that cannot be read does not.
fn is_equal(path: &Path, found: &Metadata, content: &DeletedFile) -> bool {
    found.len() == content.len && File::open(path).is_ok_and(|file| holds(file, content))
}

fn holds(mut file: File, content: &DeletedFile) -> bool {
    let mut buffer = vec![0; 1 << 16];
    let mut at = 0;
    let mut parts = content.parts.iter().peekable();
    loop {
        let len = match file.read(&mut buffer) {
            Ok(0) => return at == content.len,
            Ok(len) => len,
            Err(_) => return false,
        };
        let mut expected = vec![0; len];
        let end = at + len as u64;
        while let Some(part) = parts.peek() {
            let part_end = part.offset + part.content.len() as u64;
            let (from, to) = (part.offset.max(at), part_end.min(end));
            if from < to {
                let index = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
                expected[index(from - at)..index(to - at)].copy_from_slice(
                    &part.content[index(from - part.offset)..index(to - part.offset)],
                );
            }
            if part_end > end {
                break;
            }
            parts.next();
        }
        if buffer[..len] != expected[..] {
            return false;
        }
        at = end;
    }
}

/// Puts a file in place, under its name only when it is complete; `found` is what is there now, and `first` another
/// name of the file that was made already.
fn put(
    path: &Path,
    description: &Description,
    content: &DeletedFile,
    found: Option<&Metadata>,
    first: Option<&Path>,
) -> io::Result<Put> {
    let place = if found.is_some() { fs::canonicalize(path)? } else { path.to_owned() };
    let beside = |what: &str| {
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        place.with_file_name(format!(".{name}.ulpm-{what}-{}", std::process::id()))
    };
    let new = beside("new");
    let filled = (|| {
        let file = match first {
            Some(first) => {
                fs::hard_link(first, &new)?;
                File::open(&new)?
            }
            None => fill(&new, description, content, found)?,
        };
        let inode = file.metadata()?.ino();
        let old = found.map(|_| beside("old"));
        match &old {
            Some(old) => fs::hard_link(&place, old).and_then(|()| fs::rename(&new, &place))?,
            // Not over one that has come meanwhile.
            None => fs::hard_link(&new, &place).and_then(|()| fs::remove_file(&new))?,
        }
        Ok(Put { path: place.clone(), inode, old })
    })();
    filled.inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

/// Makes a file with the content that came along.
fn fill(
    path: &Path,
    description: &Description,
    content: &DeletedFile,
    found: Option<&Metadata>,
) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(content.len)?;
    for part in &content.parts {
        file.write_all_at(&part.content, part.offset)?;
    }
    if let Some(found) = found {
        // Only root can give a file away, and nobody else needs to.
        let _ = fchown(&file, Some(found.uid()), Some(found.gid()));
    }
    file.set_permissions(Permissions::from_mode(description.mode & 0o7777))?;
    let [seconds, nanoseconds] = description.mtime.map(|part| u64::try_from(part).unwrap_or(0));
    let since = Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds);
    file.set_modified(SystemTime::UNIX_EPOCH + since)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ulpm_image::meta::FilePart;

    #[test]
    fn what_a_file_holds_is_compared_with_its_holes() {
        let path = std::env::temp_dir().join(format!("ulpm-files-{}", std::process::id()));
        let part = |offset, content: &[u8]| FilePart { offset, content: content.to_vec() };
        let content = DeletedFile {
            len: 200_000,
            parts: vec![part(10, b"ten"), part(65_534, b"border"), part(199_990, &[7; 10])],
            ..DeletedFile::default()
        };
        let description = Description { mode: 0o100_640, mtime: [5, 6], ..Description::default() };
        let placed = put(&path, &description, &content, None, None).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, 0o640);
        assert_eq!([found.mtime(), found.mtime_nsec()], [5, 6]);
        assert!(is_equal(&path, &found, &content));
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"x", 100).unwrap();
        assert!(!is_equal(&path, &found, &content));
        let again = put(&path, &description, &content, Some(&found), None).unwrap();
        assert!(is_equal(&path, &fs::metadata(&path).unwrap(), &content));
        drop(Files { to_cut: Vec::new(), put: vec![again] });
        assert!(!is_equal(&path, &fs::metadata(&path).unwrap(), &content));
        drop(Files { to_cut: Vec::new(), put: vec![placed] });
        assert!(!path.exists());
    }
}
