//! Extended registers (AVX and later) in memory, and how a machine's layout of them is told from another's.
//!
//! XSAVE's standard format gives each component a place of its own, which CPUID names. The places differ: an
//! AMD processor has no gap where Intel's once had MPX, so its AVX-512 registers lie 256 bytes lower.

use core::arch::x86_64::{__cpuid, __cpuid_count};

/// Components that are told apart: up to AMX.
const COUNT: usize = 19;
/// x87 and SSE, which every x86-64 has.
const LEGACY: u64 = 3;
/// Rights to memory with a protection key.
const PKRU: usize = 9;
/// What Linux gives a new process there: access to what has no key, and to nothing that has one.
const INITIAL_PKRU: [u8; 4] = 0x5555_5554u32.to_le_bytes();
/// MPX, which Linux 5.6 has given up: no program uses it, whatever the processor says.
const MPX: u64 = 0b1_1000;
/// The legacy area and the XSAVE header.
const HEADER_END: usize = 576;
/// Where the kernel describes a signal frame, in the unused end of the legacy area.
const SOFTWARE: usize = 464;
/// XSTATE_BV: the components that are in use.
const IN_USE: usize = 512;
/// FP_XSTATE_MAGIC1 and 2.
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;

/// Where each component lies in the standard format, and how long it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The components whose registers the kernel saves.
    pub features: u64,
    /// Length of the whole area.
    pub len: usize,
    components: [Component; COUNT],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Component {
    at: u32,
    len: u32,
}

impl Component {
    fn range(self) -> core::ops::Range<usize> {
        self.at as usize..self.end()
    }

    fn end(self) -> usize {
        self.at as usize + self.len as usize
    }
}

/// Why extended registers cannot be loaded here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// This machine lacks some that are in use.
    Lacking,
    /// They lie further apart here, and there is no room.
    Layout,
}

impl Layout {
    /// That of this machine.
    #[must_use]
    pub fn here() -> Self {
        if __cpuid(1).ecx & (1 << 27) == 0 {
            return Self { features: LEGACY, len: 512, ..Self::default() }; // No XSAVE.
        }
        let (low, high): (u32, u32);
        // SAFETY: the CPU and the kernel have XSAVE on (OSXSAVE); 0 names XCR0.
        unsafe {
            core::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
        }
        let features = u64::from(high) << 32 | u64::from(low);
        let mut components = [Component::default(); COUNT];
        for (number, component) in (0u32..).zip(&mut components).skip(2) {
            if features & 1 << number != 0 {
                let leaf = __cpuid_count(0xd, number);
                *component = Component { at: leaf.ebx, len: leaf.eax };
            }
        }
        Self { features, len: __cpuid_count(0xd, 0).ebx as usize, components }
    }

    /// Where the last of these components ends.
    #[must_use]
    pub fn end(&self, features: u64) -> usize {
        let ends = self.components(features & self.features).map(|(_, component)| component.end());
        ends.max().unwrap_or(0).max(HEADER_END)
    }

    fn components(
        &self,
        features: u64,
    ) -> impl DoubleEndedIterator<Item = (usize, Component)> + use<> {
        let all = self.components.into_iter().enumerate().skip(2);
        all.filter(move |&(number, _)| features & 1 << number != 0)
    }

    /// Fits the extended state of a signal frame that was made in the layout `made` to this one.
    ///
    /// The kernel takes a frame back only if it is no longer than its own would be; from a longer one it
    /// restores x87 and SSE, and drops the rest without a word. So what is not in use goes, and the rest is
    /// put to its place here.
    ///
    /// # Errors
    ///
    /// [`Unfit`]; the frame is spoilt then.
    pub fn fit(&self, made: &Self, area: &mut [u8]) -> Result<(), Unfit> {
        let Some(frame) = Frame::read(area) else { return Ok(()) }; // x87 and SSE only.
        let same = self.components(frame.features).eq(made.components(frame.features));
        if same && frame.features & !self.features == 0 && frame.len <= self.len {
            return Ok(());
        }
        let mut in_use = frame.in_use & frame.features & (self.features | !MPX) | LEGACY;
        for (number, component) in made.components(in_use & !self.features) {
            // All zero is as good as not in use: some processors do not keep account of it.
            let content = area.get(component.range()).unwrap_or(&[]);
            let initial = number == PKRU && content.starts_with(&INITIAL_PKRU);
            if !initial && content.iter().any(|&byte| byte != 0) {
                return Err(Unfit::Lacking);
            }
            in_use &= !(1 << number);
        }
        if in_use & !self.features & !LEGACY != 0 {
            return Err(Unfit::Lacking); // None that this library knows.
        }
        let len = self.end(in_use);
        if len > frame.len {
            return Err(Unfit::Layout);
        }
        // No component may be written over before it was moved: those that go down first, from below.
        let (old, new) = (made.components(in_use), self.components(in_use));
        for ((_, from), (_, to)) in old.zip(new).filter(|((_, from), (_, to))| to.at < from.at) {
            copy(area, from, to)?;
        }
        let (old, new) = (made.components(in_use).rev(), self.components(in_use).rev());
        for ((_, from), (_, to)) in old.zip(new).filter(|((_, from), (_, to))| to.at > from.at) {
            copy(area, from, to)?;
        }
        Frame { features: in_use, len, in_use }.write(area);
        Ok(())
    }
}

fn copy(area: &mut [u8], from: Component, to: Component) -> Result<(), Unfit> {
    if from.len != to.len || from.end().max(to.end()) > area.len() {
        return Err(Unfit::Layout);
    }
    area.copy_within(from.range(), to.at as usize);
    Ok(())
}

/// What a signal frame says of itself: `struct _fpx_sw_bytes` (arch/x86/include/uapi/asm/sigcontext.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    features: u64,
    len: usize,
    in_use: u64,
}

impl Frame {
    /// `None` if there is x87 and SSE only.
    fn read(area: &[u8]) -> Option<Self> {
        let four = |at: usize| Some(u32::from_le_bytes(*area.get(at..)?.first_chunk()?));
        let eight = |at: usize| Some(u64::from_le_bytes(*area.get(at..)?.first_chunk()?));
        if four(SOFTWARE)? != MAGIC1 {
            return None;
        }
        let len = four(SOFTWARE + 16)? as usize;
        Some(Self { features: eight(SOFTWARE + 8)?, len, in_use: eight(IN_USE)? })
    }

    fn write(self, area: &mut [u8]) {
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = area.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        let len = u32::try_from(self.len).unwrap_or(0);
        put(SOFTWARE + 4, &(len + 4).to_le_bytes());
        put(SOFTWARE + 8, &self.features.to_le_bytes());
        put(SOFTWARE + 16, &len.to_le_bytes());
        put(IN_USE, &self.in_use.to_le_bytes());
        put(self.len, &MAGIC2.to_le_bytes());
    }
}

/// Length of the extended state at `fpstate` in a signal frame, with the word behind it.
///
/// # Safety
///
/// `fpstate` is that of a signal frame.
#[must_use]
pub unsafe fn frame_len(fpstate: usize) -> usize {
    const LEN: usize = 512;
    // SAFETY: the legacy area is always there.
    let legacy = unsafe {
        core::slice::from_raw_parts(core::ptr::with_exposed_provenance::<u8>(fpstate), LEN)
    };
    let four = |at: usize| legacy.get(at..)?.first_chunk().copied().map(u32::from_le_bytes);
    if four(SOFTWARE) != Some(MAGIC1) {
        return LEN;
    }
    four(SOFTWARE + 16).unwrap_or(0) as usize + 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(components: &[(usize, u32, u32)]) -> Layout {
        let mut layout = Layout { features: LEGACY, ..Layout::default() };
        for &(number, at, len) in components {
            layout.features |= 1 << number;
            layout.components[number] = Component { at, len };
        }
        layout.len = layout.end(u64::MAX);
        layout
    }

    fn amd() -> Layout {
        layout(&[(2, 576, 256), (5, 832, 64), (6, 896, 512), (7, 1408, 1024)])
    }

    fn intel() -> Layout {
        layout(&[(2, 576, 256), (5, 1088, 64), (6, 1152, 512), (7, 1664, 1024), (9, 2688, 8)])
    }

    fn small() -> Layout {
        layout(&[(2, 576, 256)])
    }

    fn none() -> Layout {
        Layout { features: LEGACY, len: 512, ..Layout::default() }
    }

    /// A frame in which each component in use is filled with its number.
    fn frame(made: &Layout, in_use: u64) -> Vec<u8> {
        let mut area = vec![0; made.len + 4];
        area[SOFTWARE..SOFTWARE + 4].copy_from_slice(&MAGIC1.to_le_bytes());
        Frame { features: made.features, len: made.len, in_use }.write(&mut area);
        for (number, component) in made.components(in_use) {
            area[component.range()].fill(u8::try_from(number).unwrap());
        }
        area
    }

    fn check(area: &[u8], at: &Layout, in_use: u64) {
        let found = Frame::read(area).unwrap();
        assert_eq!((found.in_use, found.features), (in_use, in_use));
        assert!(found.len <= at.len.max(HEADER_END) && found.len == at.end(in_use));
        assert_eq!(area[found.len..found.len + 4], MAGIC2.to_le_bytes());
        for (number, component) in at.components(in_use) {
            assert!(area[component.range()].iter().all(|&b| usize::from(b) == number), "{number}");
        }
    }

    #[test]
    fn a_frame_of_the_same_layout_stays_as_it_is() {
        let mut area = frame(&amd(), 0xe7);
        let before = area.clone();
        assert_eq!(amd().fit(&amd(), &mut area), Ok(()));
        assert_eq!(area, before);
    }

    #[test]
    fn what_is_not_in_use_does_not_matter() {
        for (from, to) in [(amd(), small()), (intel(), small()), (intel(), amd()), (small(), amd())]
        {
            let mut area = frame(&from, 7);
            assert_eq!(to.fit(&from, &mut area), Ok(()));
            if from.features & !to.features != 0 {
                check(&area, &to, 7);
            }
        }
        let mut area = frame(&amd(), 3);
        assert_eq!(none().fit(&amd(), &mut area), Ok(()));
        check(&area, &none(), 3);
    }

    #[test]
    fn what_is_in_use_must_be_here_unless_it_is_as_at_the_start() {
        let mut area = frame(&amd(), 0x87);
        assert_eq!(small().fit(&amd(), &mut area), Err(Unfit::Lacking));
        let mut area = frame(&amd(), 0x87);
        area[1408..2432].fill(0);
        assert_eq!(small().fit(&amd(), &mut area), Ok(()));
        check(&area, &small(), 7);

        let mut area = frame(&intel(), 0x207);
        assert_eq!(amd().fit(&intel(), &mut area), Err(Unfit::Lacking));
        let mut area = frame(&intel(), 0x207);
        area[2688..2692].copy_from_slice(&INITIAL_PKRU);
        assert_eq!(amd().fit(&intel(), &mut area), Ok(()));
        check(&area, &amd(), 7);
    }

    #[test]
    fn nobody_misses_mpx() {
        let with_mpx = layout(&[(2, 576, 256), (3, 960, 64), (4, 1024, 64)]);
        let mut area = frame(&with_mpx, 0x1f);
        assert_eq!(small().fit(&with_mpx, &mut area), Ok(()));
        check(&area, &small(), 7);
    }

    #[test]
    fn registers_move_to_where_this_machine_has_them() {
        let mut area = frame(&intel(), 0xe7);
        assert_eq!(amd().fit(&intel(), &mut area), Ok(()));
        check(&area, &amd(), 0xe7);
        let mut area = frame(&amd(), 0x67);
        assert_eq!(intel().fit(&amd(), &mut area), Ok(()));
        check(&area, &intel(), 0x67);
        let mut area = frame(&amd(), 0xe7);
        assert_eq!(intel().fit(&amd(), &mut area), Err(Unfit::Layout));
    }

    #[test]
    fn a_frame_with_x87_and_sse_only_fits_anywhere() {
        let mut area = vec![0; 512];
        assert_eq!(intel().fit(&none(), &mut area), Ok(()));
        assert_eq!(area, [0; 512]);
    }
}
