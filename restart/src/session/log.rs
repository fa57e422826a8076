//! What a job has written: the end of it in a file, and where there is no room in memory.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ulpm_control::session::{Channel, PART};

/// When a log has become so long, a new one is begun; the one before it stays, and all others go.
const MOST: u64 = 16 * 1024 * 1024;
/// The most that is kept in memory where the disk is full.
const MOST_IN_MEMORY: usize = 1024 * 1024;
/// The most parts whose channels are known.
const MOST_PARTS: usize = 100_000;

/// All output, numbered from 0 on.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    current: Rc<File>,
    parts: VecDeque<Part>,
    end: u64,
    in_memory: usize,
}

#[derive(Debug)]
struct Part {
    at: u64,
    len: u64,
    channel: Channel,
    place: Place,
}

#[derive(Debug)]
enum Place {
    File(Rc<File>, u64),
    Memory(Vec<u8>),
}

fn open(path: &Path) -> io::Result<Rc<File>> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600).open(path).map(Rc::new)
}

impl Log {
    /// Goes on behind what is in the file.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.into(),
            current: open(path)?,
            parts: VecDeque::new(),
            end: 0,
            in_memory: 0,
        })
    }

    /// Number of the first byte that is kept.
    pub(super) fn first(&self) -> u64 {
        self.parts.front().map_or(self.end, |part| part.at)
    }

    /// Number of the byte behind the last.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    pub(super) fn append(&mut self, channel: Channel, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            match (&*self.current).write(rest) {
                Ok(0) | Err(_) => break,
                Ok(len) => {
                    // Where it went, the position says: others may write to the log as well.
                    let end = (&*self.current).stream_position().unwrap_or(0);
                    let place = Place::File(Rc::clone(&self.current), end - len as u64);
                    self.push(channel, len as u64, place);
                    rest = &rest[len..];
                    if end >= MOST {
                        self.begin_another();
                    }
                }
            }
        }
        if !rest.is_empty() {
            self.in_memory += rest.len();
            self.push(channel, rest.len() as u64, Place::Memory(rest.into()));
        }
        while self.in_memory > MOST_IN_MEMORY || self.parts.len() > MOST_PARTS {
            self.drop_first();
        }
    }

    fn push(&mut self, channel: Channel, len: u64, place: Place) {
        let at = self.end;
        self.end += len;
        if let Some(Part { len: before, channel: same, place: Place::File(file, from), .. }) =
            self.parts.back_mut()
            && let Place::File(behind, at) = &place
            && *same == channel
            && Rc::ptr_eq(file, behind)
            && *from + *before == *at
        {
            *before += len;
            return;
        }
        self.parts.push_back(Part { at, len, channel, place });
    }

    fn drop_first(&mut self) {
        if let Some(Part { place: Place::Memory(bytes), .. }) = self.parts.pop_front() {
            self.in_memory -= bytes.len();
        }
    }

    /// Keeps the file as the one before.
    fn begin_another(&mut self) {
        let mut before = self.path.clone().into_os_string();
        before.push(".1");
        // Without it the file becomes longer than it should, and nothing is lost.
        let Ok(()) = std::fs::rename(&self.path, before) else { return };
        let Ok(next) = open(&self.path) else { return };
        let last = std::mem::replace(&mut self.current, next);
        let goes = |part: &Part| match &part.place {
            Place::File(file, _) => !Rc::ptr_eq(file, &last),
            Place::Memory(_) => true,
        };
        while self.parts.front().is_some_and(goes) {
            self.drop_first();
        }
    }

    /// Some bytes from a number on that is kept, all of one channel.
    pub(super) fn read(&self, at: u64) -> Option<(Channel, Vec<u8>)> {
        let index = self.parts.partition_point(|part| part.at + part.len <= at);
        let part = self.parts.get(index)?;
        let skip = at.checked_sub(part.at)?;
        let len = usize::try_from(part.len - skip).unwrap_or(PART).min(PART);
        let bytes = match &part.place {
            Place::File(file, from) => {
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, from + skip).ok()?;
                bytes
            }
            Place::Memory(bytes) => {
                let skip = usize::try_from(skip).ok()?;
                bytes.get(skip..skip + len)?.into()
            }
        };
        Some((part.channel, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ulpm_control::session::{ERROR, OUTPUT};

    #[test]
    fn what_was_written_is_read_in_order_and_the_oldest_goes() {
        let dir = nix::unistd::mkdtemp(&std::env::temp_dir().join("ulpm-log-XXXXXX")).unwrap();
        let path = dir.join("1.out");
        std::fs::write(&path, "before\n").unwrap();
        let mut log = Log::open(&path).unwrap();
        log.append(OUTPUT, b"one ");
        log.append(OUTPUT, b"two ");
        log.append(ERROR, b"oops");
        assert_eq!(log.read(0), Some((OUTPUT, b"one two ".to_vec())));
        assert_eq!(log.read(5), Some((OUTPUT, b"wo ".to_vec())));
        assert_eq!(log.read(8), Some((ERROR, b"oops".to_vec())));
        assert_eq!(log.read(12), None);
        let block: Vec<u8> = (0..251).cycle().take(1024 * 1024).collect();
        for _ in 0..40 {
            log.append(OUTPUT, &block);
        }
        assert_eq!(log.end(), 12 + 40 * 1024 * 1024);
        assert!(log.first() > 0 && log.first() <= log.end() - MOST, "{}", log.first());
        let mut at = log.first();
        while at < log.end() {
            let (_, bytes) = log.read(at).unwrap();
            for byte in bytes {
                assert_eq!(byte, block[usize::try_from((at - 12) % (1024 * 1024)).unwrap()]);
                at += 1;
            }
        }
        let kept: u64 = std::fs::read_dir(&dir)
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        assert!(kept <= 2 * MOST + 1024 * 1024, "{kept} bytes are kept");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
