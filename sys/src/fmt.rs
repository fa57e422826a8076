//! Text in a buffer of fixed size, for code that has no heap.

use core::fmt;

/// Text of at most `N` bytes; what does not fit is cut.
#[derive(Clone)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// No text.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// Formats `args`.
    #[must_use]
    pub fn of(args: fmt::Arguments<'_>) -> Self {
        let mut text = Self::new();
        let _ = fmt::Write::write_fmt(&mut text, args);
        text
    }

    /// Formats a path and puts a NUL behind it.
    #[must_use]
    pub fn path(args: fmt::Arguments<'_>) -> Self {
        let mut text = Self::of(args);
        text.len = text.len.min(N - 1);
        text.bytes[text.len] = 0;
        text
    }

    /// Adds bytes, as far as there is room.
    pub fn push(&mut self, bytes: &[u8]) {
        let room = &mut self.bytes[self.len..];
        let len = bytes.len().min(room.len());
        room[..len].copy_from_slice(&bytes[..len]);
        self.len += len;
    }

    /// What was written.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The text as a C string; empty if it holds a NUL of its own.
    #[must_use]
    pub fn c_str(&self) -> &core::ffi::CStr {
        let end = (self.len + 1).min(N);
        core::ffi::CStr::from_bytes_with_nul(&self.bytes[..end]).unwrap_or_default()
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.bytes().escape_ascii())
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.push(s.as_bytes());
        Ok(())
    }
}
