//! The vDSO, which every kernel brings its own of.
//!
//! libc holds pointers into the one that the program was started with. If this kernel's is the same to
//! the byte, it is moved to the old address. Otherwise the old one's pages are put back as plain
//! memory, and each of its functions becomes a jump to this kernel's, wherever that lies: as fast, and
//! the same on every kernel.

use object::{Object as _, ObjectSymbol as _};

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

/// Makes every function of `old` a jump to the function of that name in `new`, which will lie at
/// `new_code`. One that `new` lacks becomes `return -ENOSYS`, upon which libc makes the system call.
///
/// # Errors
///
/// In words, if one of the two is no ELF file.
pub fn redirect(old: &mut [u8], new: &[u8], new_code: usize) -> Result<(), String> {
    let invalid = |error: object::Error| format!("the vDSO cannot be read: {error}");
    let functions = |bytes: &[u8]| -> Result<Vec<(String, u64)>, String> {
        let file = object::File::parse(bytes).map_err(invalid)?;
        Ok(file
            .dynamic_symbols()
            .filter(|symbol| symbol.kind() == object::SymbolKind::Text && symbol.address() != 0)
            .filter_map(|symbol| Some((symbol.name().ok()?.to_owned(), symbol.address())))
            .collect())
    };
    let new_functions = functions(new)?;
    for (name, offset) in functions(old)? {
        let found = new_functions.iter().find(|(other, _)| *other == name);
        let stub = match found {
            Some((_, target)) => {
                let target = new_code as u64 + target;
                let [a, b, c, d, e, f, g, h] = target.to_le_bytes();
                // movabs rax, target; jmp rax
                vec![0x48, 0xb8, a, b, c, d, e, f, g, h, 0xff, 0xe0]
            }
            // mov eax, -38; ret
            None => vec![0xb8, 0xda, 0xff, 0xff, 0xff, 0xc3],
        };
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let place = offset.checked_add(stub.len()).and_then(|end| old.get_mut(offset..end));
        place
            .ok_or_else(|| format!("vDSO function {name} lies outside of it"))?
            .copy_from_slice(&stub);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirected_copy_calls_the_real_one() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let vdso = Vdso::of_this_process(&maps).expect("this kernel has a vDSO");
        let mut copy = vdso.bytes().to_vec();
        redirect(&mut copy, vdso.bytes(), vdso.code).unwrap();
        let file = object::File::parse(vdso.bytes()).unwrap();
        let symbol = file
            .dynamic_symbols()
            .find(|symbol| symbol.name() == Ok("__vdso_clock_gettime"))
            .unwrap();
        let at = usize::try_from(symbol.address()).unwrap();
        assert_eq!(copy[at..at + 2], [0x48, 0xb8]);
        let target = usize::from_le_bytes(copy[at + 2..at + 10].try_into().unwrap());
        assert_eq!(target, vdso.code + at);
    }
}
