//! The vDSO, which every kernel brings its own of.
//!
//! libc holds pointers into the one that the program was started with. If this kernel's is the same to
//! the byte, it is moved to the old address. Otherwise, and where the program's clocks are not this kernel's,
//! the old one's pages are put back as plain memory, and each of its functions becomes a jump to this
//! kernel's, wherever that lies: as fast, and the same on every kernel.

/// This process's vDSO and the data pages that belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vdso {
    /// Where the data pages begin.
    pub start: usize,
    /// Where the code begins.
    pub code: usize,
    /// Where it ends.
    pub end: usize,
}

impl Vdso {
    /// Finds it; `None` if the kernel gives none.
    #[must_use]
    pub fn of_this_process(maps: &str) -> Option<Self> {
        let range = |line: &str| {
            let (range, _) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let number = |digits| usize::from_str_radix(digits, 16).ok();
            Some((number(start)?, number(end)?))
        };
        let (code, end) = maps.lines().find(|line| line.ends_with("[vdso]")).and_then(range)?;
        let is_data = |line: &&str| line.ends_with("[vvar]") || line.ends_with("[vvar_vclock]");
        let data = maps.lines().filter(is_data).filter_map(range);
        // They lie directly in front of the code; a gap would not matter.
        let start =
            data.map(|(start, _)| start).filter(|&start| start < code).min().unwrap_or(code);
        Some(Self { start, code, end })
    }

    /// Length with its data pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether there is none; never so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// Its code.
    #[must_use]
    pub fn bytes(&self) -> &'static [u8] {
        let code = std::ptr::with_exposed_provenance(self.code);
        // SAFETY: the kernel has mapped it readable, and for good.
        unsafe { std::slice::from_raw_parts(code, self.end - self.code) }
    }
}
