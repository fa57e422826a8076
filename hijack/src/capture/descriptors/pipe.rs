//! Pipes, with what is in them.

use alloc::vec::Vec;

use ulpm_image::Meta;
use ulpm_image::meta::{Pipe, description_kind as kind};
use ulpm_sys::fmt::Text;
use ulpm_sys::{Errno, oflag};

use super::{Open, Subject, cannot};
use crate::freeze::Failed;

/// The election of the process that saves a pipe's content: it has two ends at least.
const PIPE: u64 = 2;

pub(super) fn kind(open: &Open) -> Result<u32, Failed> {
    if !open.path.starts_with(b"pipe:") {
        return Err(cannot(open, "is a named pipe"));
    }
    if open.flags & oflag::DIRECT.cast_unsigned() != 0 {
        return Err(cannot(open, "is a pipe of packets (O_DIRECT)"));
    }
    Ok(kind::PIPE)
}

pub(super) fn save(subject: &Subject<'_>, open: &Open, meta: &mut Meta) -> Result<(), Failed> {
    let known = meta.pipes.iter().any(|pipe| pipe.id == open.status.ino);
    if !known && subject.wins(PIPE, &[open.status.dev, open.status.ino])? {
        meta.pipes.push(pipe(open)?);
    }
    Ok(())
}

/// Copies what is in a pipe, and leaves it there.
fn pipe(open: &Open) -> Result<Pipe, Failed> {
    let failed = |errno: Errno| Failed::system("copy the content of a pipe", errno);
    let capacity = ulpm_sys::fcntl(open.ours, ulpm_sys::F_GETPIPE_SZ, 0).map_err(failed)?;
    let mut content = Vec::new();
    let len = ulpm_sys::bytes_to_read(open.ours).map_err(failed)?;
    if len != 0 {
        // Opened anew for reading, whichever end this is: an open through /proc makes a description
        // of its own, so the program's flags stay as they are.
        let link = Text::<64>::path(format_args!("/proc/thread-self/fd/{}", open.ours));
        let flags = oflag::RDONLY | oflag::NONBLOCK | oflag::CLOEXEC;
        let from = ulpm_sys::open(link.c_str(), flags).map_err(failed)?;
        let copied = match copy_pipe(from, capacity, len, &mut content) {
            Err(Errno::PERM) => take_out_and_put_back(from, link.c_str(), len, &mut content),
            other => other,
        };
        ulpm_sys::close(from);
        copied.map_err(failed)?;
    }
    let capacity = u64::try_from(capacity).unwrap_or(0);
    Ok(Pipe { id: open.status.ino, capacity, content })
}

/// For a user who has so many pipes that no further one gets enough buffers (fs.pipe-user-pages-soft).
///
/// All processes of the job stand still meanwhile, and what came out fits in again.
fn take_out_and_put_back(
    from: i32,
    link: &core::ffi::CStr,
    len: usize,
    content: &mut Vec<u8>,
) -> Result<(), Errno> {
    let into = ulpm_sys::open(link, oflag::WRONLY | oflag::CLOEXEC)?;
    content.resize(len, 0);
    let taken = ulpm_sys::read(from, content);
    content.truncate(taken.unwrap_or(0));
    let mut rest = &content[..];
    while !rest.is_empty() {
        // It can fail in no other way than to be interrupted: we hold a reader.
        rest = &rest[ulpm_sys::write(into, rest).unwrap_or(0)..];
    }
    ulpm_sys::close(into);
    match taken? {
        all if all == len => Ok(()),
        _ => Err(Errno::IO),
    }
}

fn copy_pipe(from: i32, capacity: i32, len: usize, content: &mut Vec<u8>) -> Result<(), Errno> {
    let [out, into] = ulpm_sys::pipe(oflag::CLOEXEC | oflag::NONBLOCK)?;
    let result = (|| {
        // As many buffers as the original has: tee copies buffers, not bytes.
        let size = usize::try_from(capacity).unwrap_or(ulpm_sys::PAGE);
        ulpm_sys::fcntl(into, ulpm_sys::F_SETPIPE_SZ, size)?;
        let copied = ulpm_sys::tee(from, into, len)?;
        content.resize(copied, 0);
        let mut read = 0;
        while read < copied {
            match ulpm_sys::read(out, &mut content[read..])? {
                0 => return Err(Errno::IO),
                more => read += more,
            }
        }
        if copied == len { Ok(()) } else { Err(Errno::IO) }
    })();
    ulpm_sys::close(out);
    ulpm_sys::close(into);
    result
}
