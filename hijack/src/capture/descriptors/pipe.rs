//! Pipes with and without a name, with what is in them.

use alloc::vec::Vec;
use core::ffi::CStr;

use ulpm_image::Meta;
use ulpm_image::meta::{Description, Fifo, PACKET, Pipe, description_kind as kind};
use ulpm_sys::fmt::Text;
use ulpm_sys::{Errno, POLLHUP, POLLIN, PollFd, oflag};

use super::{Open, Subject};
use crate::freeze::Failed;

/// The election of the process that saves a pipe's content: it has two ends at least.
const PIPE: u64 = 2;

pub(super) fn kind(open: &Open) -> u32 {
    if open.path.starts_with(b"pipe:") { kind::PIPE } else { kind::FIFO }
}

/// What only the description of a named pipe's reading end knows: whether all writers are gone, or none has
/// come yet.
pub(super) fn hung_up(open: &Open) -> u64 {
    let mut fds = [PollFd { fd: open.ours, events: POLLIN, revents: 0 }];
    let polled = ulpm_sys::poll(&mut fds, 0);
    u64::from(polled.is_ok() && fds[0].revents & POLLHUP != 0)
}

pub(super) fn save(
    subject: &Subject<'_>,
    open: &Open,
    description: &Description,
    meta: &mut Meta,
) -> Result<(), Failed> {
    let id = [open.status.dev, open.status.ino];
    let known = match description.kind {
        kind::PIPE => meta.pipes.iter().any(|pipe| pipe.id == id[1]),
        _ => meta.fifos.iter().any(|fifo| [fifo.dev, fifo.inode] == id),
    };
    if known || !subject.wins(PIPE, &id)? {
        return Ok(());
    }
    let pipe = pipe(open)?;
    if description.kind == kind::PIPE {
        meta.pipes.push(pipe);
    } else {
        meta.fifos.push(Fifo {
            dev: id[0],
            inode: id[1],
            mode: open.status.mode & !ulpm_sys::mode::TYPE,
            deleted: open.path.ends_with(b" (deleted)"),
            pipe,
        });
    }
    Ok(())
}

/// Copies what is in a pipe, and leaves it there.
fn pipe(open: &Open) -> Result<Pipe, Failed> {
    let failed = |errno: Errno| Failed::system("copy the content of a pipe", errno);
    let capacity = ulpm_sys::fcntl(open.ours, ulpm_sys::F_GETPIPE_SZ, 0).map_err(failed)?;
    let mut pipe = Pipe {
        id: open.status.ino,
        capacity: u64::try_from(capacity).unwrap_or(0),
        ..Pipe::default()
    };
    let len = ulpm_sys::bytes_to_read(open.ours).map_err(failed)?;
    if len != 0 {
        // Opened anew for reading, whichever end this is: an open through /proc makes a description
        // of its own, so the program's flags stay as they are.
        let link = Text::<64>::path(format_args!("/proc/thread-self/fd/{}", open.ours));
        let flags = oflag::RDONLY | oflag::NONBLOCK | oflag::CLOEXEC;
        let from = ulpm_sys::open(link.c_str(), flags).map_err(failed)?;
        let copied = match copy_pipe(from, capacity, len, &mut pipe) {
            Err(Errno::PERM) => take_out_and_put_back(from, link.c_str(), len, &mut pipe),
            other => other,
        };
        ulpm_sys::close(from);
        copied.map_err(failed)?;
    }
    if pipe.parts.iter().all(|part| part & PACKET == 0) {
        pipe.parts.clear();
    }
    Ok(pipe)
}

/// For a user who has so many pipes that no further one gets enough buffers (fs.pipe-user-pages-soft).
///
/// All processes of the job stand still meanwhile, and what came out fits in again.
fn take_out_and_put_back(from: i32, link: &CStr, len: usize, pipe: &mut Pipe) -> Result<(), Errno> {
    let into = ulpm_sys::open(link, oflag::WRONLY | oflag::CLOEXEC)?;
    let taken = take_apart(from, len, pipe);
    let mut rest = &pipe.content[..];
    for &part in &pipe.parts {
        // Whether a write makes a packet is a flag of the description, and this one is ours.
        let flags = if part & PACKET == 0 { 0 } else { oflag::DIRECT };
        let _ = ulpm_sys::fcntl(into, ulpm_sys::F_SETFL, flags.cast_unsigned() as usize);
        let (mut now, later) = rest.split_at((part & !PACKET) as usize);
        rest = later;
        while !now.is_empty() {
            // It can fail in no other way than to be interrupted: we hold a reader.
            now = &now[ulpm_sys::write(into, now).unwrap_or(0)..];
        }
    }
    ulpm_sys::close(into);
    taken
}

fn copy_pipe(from: i32, capacity: i32, len: usize, pipe: &mut Pipe) -> Result<(), Errno> {
    let [out, into] = ulpm_sys::pipe(oflag::CLOEXEC | oflag::NONBLOCK)?;
    let result = (|| {
        // As many buffers as the original has: tee copies buffers, not bytes.
        let size = usize::try_from(capacity).unwrap_or(ulpm_sys::PAGE);
        ulpm_sys::fcntl(into, ulpm_sys::F_SETPIPE_SZ, size)?;
        if ulpm_sys::tee(from, into, len)? != len {
            return Err(Errno::IO);
        }
        take_apart(out, len, pipe)
    })();
    ulpm_sys::close(out);
    ulpm_sys::close(into);
    result
}

/// Takes `len` bytes out of a pipe, buffer by buffer, and notes which are packets.
///
/// The kernel says that of no buffer. But a read ends behind a packet, even where there is more: so each
/// buffer is moved to a pipe of two, and a byte that is none of its own is put behind it.
fn take_apart(from: i32, len: usize, pipe: &mut Pipe) -> Result<(), Errno> {
    let [out, into] = ulpm_sys::pipe(oflag::CLOEXEC | oflag::NONBLOCK)?;
    let result = (|| {
        // A user with many pipes gets no more than two buffers anyway.
        ulpm_sys::fcntl(into, ulpm_sys::F_SETPIPE_SZ, 2 * ulpm_sys::PAGE)?;
        let mut buffer = Vec::new();
        while pipe.content.len() < len {
            // One of the two is taken, so that a splice moves one.
            ulpm_sys::write(into, b"|")?;
            let moved = ulpm_sys::splice_pipe(from, into, len - pipe.content.len())?;
            buffer.resize(moved + 1, 0);
            ulpm_sys::read(out, &mut buffer[..1])?;
            ulpm_sys::write(into, b"|")?;
            let read = ulpm_sys::read(out, &mut buffer)?;
            pipe.content.extend_from_slice(&buffer[..moved]);
            let part = u32::try_from(moved).map_err(|_| Errno::IO)?;
            if read == moved {
                pipe.parts.push(part | PACKET);
                ulpm_sys::read(out, &mut buffer[..1])?;
            } else {
                match pipe.parts.last_mut() {
                    Some(last) if *last & PACKET == 0 => *last += part,
                    _ => pipe.parts.push(part),
                }
            }
        }
        Ok(())
    })();
    ulpm_sys::close(out);
    ulpm_sys::close(into);
    result
}
