//! Reading /proc without a heap.

use core::ffi::CStr;

use ulpm_sys::{Errno, OwnedFd, oflag};

/// Reads the start of a small file; empty if it cannot be read.
pub(crate) fn read_file<'a>(path: &CStr, buffer: &'a mut [u8]) -> &'a [u8] {
    let Ok(fd) = ulpm_sys::open(path, oflag::RDONLY | oflag::CLOEXEC) else { return &[] };
    let mut len = 0;
    while let Ok(more @ 1..) = ulpm_sys::read(fd, &mut buffer[len..]) {
        len += more;
    }
    ulpm_sys::close(fd);
    &buffer[..len]
}

/// The lines of a file; one that does not fit the buffer is cut.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    fd: i32,
    buffer: &'a mut [u8],
    start: usize,
    end: usize,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(fd: i32, buffer: &'a mut [u8]) -> Self {
        Self { fd, buffer, start: 0, end: 0 }
    }

    /// The next line, without its end.
    pub(crate) fn next(&mut self) -> Option<&[u8]> {
        loop {
            let unread = &self.buffer[self.start..self.end];
            if let Some(len) = unread.iter().position(|&byte| byte == b'\n') {
                let line = self.start..self.start + len;
                self.start = line.end + 1;
                return Some(&self.buffer[line]);
            }
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            let more = ulpm_sys::read(self.fd, &mut self.buffer[self.end..]).unwrap_or(0);
            if more == 0 {
                let rest = 0..core::mem::take(&mut self.end);
                return if rest.is_empty() { None } else { Some(&self.buffer[rest]) };
            }
            self.end += more;
        }
    }
}

/// The names in a directory, without `.` and `..`.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    buffer: [u8; 2048],
    start: usize,
    end: usize,
}

impl Directory {
    pub(crate) fn open(path: &CStr) -> Result<Self, Errno> {
        let fd = ulpm_sys::open(path, oflag::RDONLY | oflag::CLOEXEC)?;
        Ok(Self { fd: OwnedFd::new(fd), buffer: [0; 2048], start: 0, end: 0 })
    }

    /// The next name.
    pub(crate) fn next(&mut self) -> Option<&[u8]> {
        loop {
            if self.start == self.end {
                self.end = ulpm_sys::getdents(self.fd.get(), &mut self.buffer).unwrap_or(0);
                self.start = 0;
                if self.end == 0 {
                    return None;
                }
            }
            // struct linux_dirent64: ino u64, off u64, reclen u16, type u8, name.
            let entry = self.start;
            let len = u16::from_le_bytes([self.buffer[entry + 16], self.buffer[entry + 17]]);
            self.start += usize::from(len);
            let name = self.buffer[entry + 19..self.start].split(|&byte| byte == 0).next();
            if !matches!(name, None | Some(b"." | b"..")) {
                let name = entry + 19..entry + 19 + name.map_or(0, <[u8]>::len);
                return Some(&self.buffer[name]);
            }
        }
    }
}
