//! The functions of a vDSO, and jumps in their place.

/// Bytes that a jump takes.
const JUMP: usize = 12;

/// Where an ELF file has its dynamic symbols, and their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Functions {
    symbols: usize,
    count: usize,
    names: usize,
}

impl Functions {
    /// Finds them; `None` if these bytes are no ELF file that has any.
    #[must_use]
    pub fn of(elf: &[u8]) -> Option<Self> {
        /// `Elf64_Ehdr`: `e_shoff`, `e_shentsize` and `e_shnum`.
        const HEADER: (usize, usize, usize) = (40, 58, 60);
        /// `Elf64_Shdr`: `sh_type`, `sh_offset`, `sh_size` and `sh_link`.
        const SECTION: (usize, usize, usize, usize) = (4, 24, 32, 40);
        const SHT_DYNSYM: usize = 11;
        if elf.get(..4) != Some(b"\x7fELF") {
            return None;
        }
        let first = number::<8>(elf, HEADER.0)?;
        let len = number::<2>(elf, HEADER.1)?;
        let section = |index: usize| first.checked_add(index.checked_mul(len)?);
        (0..number::<2>(elf, HEADER.2)?).find_map(|index| {
            let at = section(index)?;
            if number::<4>(elf, at.checked_add(SECTION.0)?)? != SHT_DYNSYM {
                return None;
            }
            let names = section(number::<4>(elf, at + SECTION.3)?)?;
            Some(Self {
                symbols: number::<8>(elf, at + SECTION.1)?,
                count: number::<8>(elf, at + SECTION.2)? / SYMBOL_LEN,
                names: number::<8>(elf, names.checked_add(SECTION.1)?)?,
            })
        })
    }

    /// Name and place of each of them, in the file where they were found.
    pub fn iter<'elf>(&self, elf: &'elf [u8]) -> impl Iterator<Item = (&'elf [u8], usize)> {
        let Self { symbols, count, names } = *self;
        (0..count).filter_map(move |index| {
            /// `Elf64_Sym`: `st_info` and `st_value`.
            const SYMBOL: (usize, usize) = (4, 8);
            const STT_FUNC: usize = 2;
            let at = symbols.checked_add(index.checked_mul(SYMBOL_LEN)?)?;
            let place = number::<8>(elf, at.checked_add(SYMBOL.1)?)?;
            let is_function = number::<1>(elf, at + SYMBOL.0)? & 0xf == STT_FUNC;
            let name = elf.get(names.checked_add(number::<4>(elf, at)?)?..)?;
            let len = name.iter().position(|&byte| byte == 0)?;
            (is_function && place != 0).then_some((&name[..len], place))
        })
    }

    /// The place of one of them.
    #[must_use]
    pub fn find(&self, elf: &[u8], name: &[u8]) -> Option<usize> {
        self.iter(elf).find(|&(other, _)| other == name).map(|(_, place)| place)
    }
}

const SYMBOL_LEN: usize = 24;

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<usize> {
    let found = bytes.get(at..at.checked_add(N)?)?;
    found.iter().rev().try_fold(0usize, |value, &byte| Some(value << 8 | usize::from(byte)))
}

/// Makes every function of `vdso` a jump to the address that `target` gives for its name. One for which it gives
/// none becomes `return -ENOSYS`, upon which libc makes the system call.
///
/// # Errors
///
/// In words, if it is no vDSO.
pub fn redirect(
    vdso: &mut [u8],
    target: impl Fn(&[u8]) -> Option<usize>,
) -> Result<(), &'static str> {
    let functions = Functions::of(vdso).ok_or("the vDSO cannot be read")?;
    for index in 0.. {
        let Some((name, place)) = functions.iter(vdso).nth(index) else { break };
        let target = target(name);
        put_jump(vdso, place, target).ok_or("a function of the vDSO lies outside of it")?;
    }
    Ok(())
}

/// Puts a jump to `target` at a place, or what [`redirect`] puts for none; `None` if there is no room.
pub fn put_jump(code: &mut [u8], place: usize, target: Option<usize>) -> Option<()> {
    let code = code.get_mut(place..place.checked_add(JUMP)?)?;
    match target {
        Some(target) => {
            // movabs rax, target; jmp rax
            code[..2].copy_from_slice(&[0x48, 0xb8]);
            code[2..10].copy_from_slice(&target.to_le_bytes());
            code[10..].copy_from_slice(&[0xff, 0xe0]);
        }
        // mov eax, -38; ret
        None => code[..6].copy_from_slice(&[0xb8, 0xda, 0xff, 0xff, 0xff, 0xc3]),
    }
    Some(())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::prelude::v1::*;

    /// This process's vDSO, by its auxiliary vector.
    fn own() -> Option<Vec<u8>> {
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let number = |digits| usize::from_str_radix(digits, 16).ok();
        let (start, end) = (number(start)?, number(end)?);
        let code = core::ptr::with_exposed_provenance(start);
        // SAFETY: the kernel has mapped it readable, and for good.
        Some(unsafe { core::slice::from_raw_parts(code, end - start) }.to_vec())
    }

    #[test]
    fn a_redirected_copy_jumps_where_it_was_told() {
        let mut copy = own().expect("this kernel has a vDSO");
        let found = Functions::of(&copy).unwrap();
        let place = found.find(&copy, b"__vdso_clock_gettime").unwrap();
        let other = found.find(&copy, b"__vdso_gettimeofday").unwrap();
        let target = |name: &[u8]| name.ends_with(b"clock_gettime").then_some(0x1122_3344_5566);
        redirect(&mut copy, target).unwrap();
        assert_eq!(
            copy[place..place + JUMP],
            [0x48, 0xb8, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0, 0xff, 0xe0]
        );
        assert_eq!(copy[other..other + 6], [0xb8, 0xda, 0xff, 0xff, 0xff, 0xc3]);
        assert_eq!(Functions::of(&copy), Some(found));
    }

    #[test]
    fn damaged_files_have_no_functions() {
        let whole = own().expect("this kernel has a vDSO");
        let len = whole.len();
        for end in [0, 3, 40, 64, len / 2] {
            let count = Functions::of(&whole[..end]).map_or(0, |f| f.iter(&whole[..end]).count());
            assert_eq!(count, 0, "of {end} bytes");
        }
        let mut wild = whole.clone();
        wild[40..48].fill(0xff);
        assert_eq!(Functions::of(&wild), None);
    }
}
