//! Regular files and directories, and the content of those that have no name any more.

use ulpm_image::Meta;
use ulpm_image::meta::{DeletedFile, description_kind as kind};
use ulpm_sys::fmt::Text;
use ulpm_sys::{mode, oflag};

use super::{Open, Subject, cannot};
use crate::freeze::Failed;

/// The election of the process that saves a file's content: several descriptions may lead to it.
const DELETED: u64 = 5;

/// The longest file without a name whose content is saved, in bytes.
const MAX_DELETED: i64 = 256 << 20;

/// The file system of POSIX message queues (ipc/mqueue.c).
const MQUEUE_MAGIC: u64 = 0x1980_0202;

pub(super) fn kind(open: &Open) -> Result<u32, Failed> {
    let is_deleted = open.path.ends_with(b" (deleted)");
    if open.status.mode & mode::TYPE == mode::DIRECTORY {
        return if is_deleted {
            Err(cannot(open, "is a directory that was deleted"))
        } else {
            Ok(kind::FILE)
        };
    }
    if ulpm_sys::filesystem(open.ours) == Ok(MQUEUE_MAGIC) {
        return Err(cannot(open, "is a message queue"));
    }
    if !is_deleted {
        return Ok(kind::FILE);
    }
    if open.status.size > MAX_DELETED {
        let why = "was deleted, and is longer than what is saved of such a file";
        return Err(cannot(open, why));
    }
    Ok(kind::DELETED)
}

pub(super) fn save(subject: &Subject<'_>, open: &Open, meta: &mut Meta) -> Result<(), Failed> {
    let id = [open.status.dev, open.status.ino];
    let known = meta.deleted.iter().any(|file| [file.dev, file.inode] == id);
    if !known && subject.wins(DELETED, &id)? {
        meta.deleted.push(content(open)?);
    }
    Ok(())
}

/// The content of a file that nobody could open again.
fn content(open: &Open) -> Result<DeletedFile, Failed> {
    let failed = |errno| Failed::system("read a file that was deleted", errno);
    // Opened anew, for the descriptor may be for writing only.
    let link = Text::<64>::path(format_args!("/proc/thread-self/fd/{}", open.ours));
    let from = ulpm_sys::open(link.c_str(), oflag::RDONLY | oflag::CLOEXEC).map_err(failed)?;
    let mut content = alloc::vec![0; usize::try_from(open.status.size).unwrap_or(0)];
    let mut read = 0;
    let result = loop {
        match ulpm_sys::pread(from, &mut content[read..], read) {
            Ok(0) => break Ok(()),
            Ok(more) => read += more,
            Err(errno) => break Err(failed(errno)),
        }
    };
    ulpm_sys::close(from);
    content.truncate(read);
    result.map(|()| DeletedFile { dev: open.status.dev, inode: open.status.ino, content })
}
