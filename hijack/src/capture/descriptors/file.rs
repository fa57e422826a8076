//! Regular files and directories, and the content of those that have no name any more.

use alloc::vec::Vec;

use ulpm_image::Meta;
use ulpm_image::meta::{DeletedFile, Description, FilePart, MemoryFile, description_kind as kind};
use ulpm_sys::fmt::Text;
use ulpm_sys::{Errno, mode, oflag};

use super::super::text::Directory;
use super::{Open, Subject, cannot};
use crate::freeze::Failed;
use crate::seals;

/// The election of the process that saves a file's content: several descriptions may lead to it.
const DELETED: u64 = 5;
/// The same for a file that has a name.
const NAMED: u64 = 32;

/// The most that is saved of a file without a name, in bytes; holes do not count.
const MAX_DELETED: usize = 256 << 20;

/// The file system of POSIX message queues (ipc/mqueue.c).
pub(super) const MQUEUE_MAGIC: u64 = 0x1980_0202;

/// Huge pages, and memfd_secret(2) (include/uapi/linux/magic.h).
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
const SECRETMEM_MAGIC: u64 = 0x5345_434d;

/// What a file with or without a name is; one that has another name than it was opened by gets that.
pub(super) fn kind(open: &Open, description: &mut Description) -> Result<u32, Failed> {
    let why = match open.filesystem {
        MQUEUE_MAGIC => return Ok(kind::QUEUE),
        HUGETLBFS_MAGIC => "is memory of huge pages (hugetlbfs, MFD_HUGETLB)",
        SECRETMEM_MAGIC => "is memory that is hidden from the kernel (memfd_secret)",
        _ => "",
    };
    if !why.is_empty() {
        return Err(cannot(open, why));
    }
    let Some(old) = open.path.strip_suffix(b" (deleted)") else { return Ok(kind::FILE) };
    let is_regular = open.status.mode & mode::TYPE == mode::REGULAR;
    if is_regular && open.status.nlink > 0 {
        if let Some(path) = other_name(old, open) {
            description.path = path;
            return Ok(kind::FILE);
        }
        // What is written to it is for whoever knows the other name.
        if open.flags & oflag::ACCMODE.cast_unsigned() != oflag::RDONLY.cast_unsigned() {
            let why = "was deleted under this name and has another, in another directory";
            return Err(cannot(open, why));
        }
    }
    Ok(kind::DELETED)
}

/// Another name of a file, in the directory in which it had this one.
fn other_name(old: &[u8], open: &Open) -> Option<Vec<u8>> {
    let slash = old.iter().rposition(|&byte| byte == b'/')?;
    let directory = core::str::from_utf8(&old[..=slash]).ok()?;
    let path = Text::<4097>::path(format_args!("{directory}"));
    let mut names = Directory::open(path.c_str()).ok()?;
    while let Some(name) = names.next() {
        let Ok(name) = core::str::from_utf8(name) else { continue };
        let path = Text::<4097>::path(format_args!("{directory}{name}"));
        let is_same = ulpm_sys::stat(path.c_str())
            .is_ok_and(|found| (found.dev, found.ino) == (open.status.dev, open.status.ino));
        if is_same {
            return Some(path.bytes().to_vec());
        }
    }
    None
}

pub(super) fn save(subject: &Subject<'_>, open: &Open, meta: &mut Meta) -> Result<(), Failed> {
    if open.status.mode & mode::TYPE != mode::REGULAR {
        return Ok(()); // A directory that was deleted is empty.
    }
    let id = [open.status.dev, open.status.ino];
    let known = meta.deleted.iter().any(|file| [file.dev, file.inode] == id);
    if !known && subject.wins(DELETED, &id)? {
        let why = "was deleted, and holds more than what is saved of such a file";
        meta.deleted.push(content(open, why)?);
        if let Some(seals) = seals::of(open.ours, &open.path) {
            meta.memory_files.push(MemoryFile { dev: id[0], inode: id[1], seals });
        }
    }
    Ok(())
}

/// The content of a file that goes along with the job.
pub(super) fn save_with_name(
    subject: &Subject<'_>,
    open: &Open,
    meta: &mut Meta,
) -> Result<(), Failed> {
    let elsewhere = [&b"/proc/"[..], b"/sys/", b"/dev/"];
    if open.status.mode & mode::TYPE != mode::REGULAR
        || elsewhere.iter().any(|directory| open.path.starts_with(directory))
    {
        return Ok(());
    }
    let id = [open.status.dev, open.status.ino];
    let known = meta.files.iter().any(|file| [file.dev, file.inode] == id);
    if !known && subject.wins(NAMED, &id)? {
        let size = |file: &DeletedFile| -> usize {
            file.parts.iter().map(|part| part.content.len()).sum()
        };
        let before: usize = meta.files.iter().map(size).sum();
        let why = "holds, with other open files, more than goes along with a job (256 MiB)";
        let file = content(open, why)?;
        if before + size(&file) > MAX_DELETED {
            return Err(cannot(open, why));
        }
        meta.files.push(file);
    }
    Ok(())
}

/// The content of a file; `why` says what it is that holds too much.
fn content(open: &Open, why: &str) -> Result<DeletedFile, Failed> {
    let failed = |errno| Failed::system("read a file that is open", errno);
    // Opened anew, for the descriptor may be for writing only.
    let link = Text::<64>::path(format_args!("/proc/thread-self/fd/{}", open.ours));
    let len = usize::try_from(open.status.size).unwrap_or(0);
    let reads = open.flags & oflag::ACCMODE.cast_unsigned() != oflag::WRONLY.cast_unsigned();
    let parts = match ulpm_sys::open(link.c_str(), oflag::RDONLY | oflag::CLOEXEC) {
        Ok(from) => {
            let parts = parts(from, len);
            ulpm_sys::close(from);
            parts
        }
        // Its mode does not let even its owner any more. To look for holes moves the position.
        Err(Errno::ACCES) if reads => {
            let parts = parts(open.ours, len);
            ulpm_sys::seek(open.ours, usize::try_from(open.position).unwrap_or(0))
                .map_err(failed)?;
            parts
        }
        Err(errno) => return Err(failed(errno)),
    };
    match parts.map_err(failed)? {
        Some(parts) => Ok(DeletedFile {
            dev: open.status.dev,
            inode: open.status.ino,
            len: u64::try_from(open.status.size).unwrap_or(0),
            parts,
        }),
        None => Err(cannot(open, why)),
    }
}

/// What a file holds, without its holes; `None` if it is too much.
fn parts(from: i32, len: usize) -> Result<Option<Vec<FilePart>>, Errno> {
    let mut parts = Vec::new();
    let (mut at, mut total) = (0, 0);
    while at < len {
        let start = match ulpm_sys::seek_data(from, at) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno),
        };
        let end = ulpm_sys::seek_hole(from, start)?.min(len);
        total += end - start;
        if total > MAX_DELETED {
            return Ok(None);
        }
        let mut content = alloc::vec![0; end - start];
        let mut read = 0;
        while read < content.len() {
            match ulpm_sys::pread(from, &mut content[read..], start + read)? {
                0 => break,
                more => read += more,
            }
        }
        content.truncate(read);
        parts.push(FilePart { offset: start as u64, content });
        at = end;
    }
    Ok(Some(parts))
}
