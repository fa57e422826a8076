//! Rebuilds an address space: a list of system calls, and the code that makes them.
//!
//! Between the moment at which the old memory is gone and the moment at which the new one is complete,
//! no function, constant or stack of a usual program exists. What runs then is some twenty instructions
//! without relocations, heap or stack, which work through a list of system calls that was prepared
//! while there was still a comfortable place to prepare it. Both lie in a *window*, a range of addresses
//! that neither the old nor the new memory uses.
//!
//! ```text
//!  window   code | stack | arguments and data | operations
//! ```

#![no_std]

#[cfg_attr(target_arch = "x86_64", path = "arch/x86_64.rs")]
mod arch;

pub use arch::code;

/// A system call, and what it has to return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Operation {
    number: usize,
    arguments: [usize; 6],
    expected: usize,
}

/// `Operation::number` of the jump that ends a list.
const JUMP: usize = usize::MAX;
/// `Operation::expected`: any result that is not an error.
const SUCCESS: usize = usize::MAX;
/// `Operation::expected`: any result.
const ANYTHING: usize = usize::MAX - 1;

impl Operation {
    /// A call that must succeed.
    #[must_use]
    pub const fn succeed(number: usize, arguments: [usize; 6]) -> Self {
        Self { number, arguments, expected: SUCCESS }
    }

    /// A call that must return `expected`.
    #[must_use]
    pub const fn exactly(expected: usize, number: usize, arguments: [usize; 6]) -> Self {
        Self { number, arguments, expected }
    }

    /// A call whose result does not matter.
    #[must_use]
    pub const fn attempt(number: usize, arguments: [usize; 6]) -> Self {
        Self { number, arguments, expected: ANYTHING }
    }

    /// The end: a jump to `entry`, with `stack` as stack pointer and one argument.
    #[must_use]
    pub const fn jump(entry: usize, stack: usize, argument: usize) -> Self {
        Self { number: JUMP, arguments: [entry, stack, argument, 0, 0, 0], expected: 0 }
    }
}

/// Bytes of what the restorer writes to its failure descriptor.
pub const FAILURE_LEN: usize = size_of::<Operation>();

/// A call that did not return what it had to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Number of the call.
    pub number: usize,
    /// Its arguments.
    pub arguments: [usize; 6],
    /// What it returned.
    pub returned: usize,
}

impl Failure {
    /// Reads what the restorer wrote.
    #[must_use]
    pub fn decode(bytes: [u8; FAILURE_LEN]) -> Self {
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
            usize::from_le_bytes(word)
        };
        Self { number: word(0), arguments: [1, 2, 3, 4, 5, 6].map(word), returned: word(7) }
    }
}

impl core::fmt::Display for Failure {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let name = ulpm_sys::arch::nr::name(self.number);
        let [a, b, ..] = self.arguments;
        write!(f, "system call {name}({a:#x}, {b:#x}, …) ")?;
        match ulpm_sys::Errno::check(self.returned) {
            Ok(short) => write!(f, "returned {short}"),
            Err(errno) => write!(f, "failed: {errno}"),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    /// Runs a list in a forked child and returns its wait status and what it wrote to the pipe.
    fn run(build: impl FnOnce(i32) -> Vec<Operation>) -> (i32, Vec<u8>) {
        let [out, into] = ulpm_sys::pipe(0).unwrap();
        let list = build(into);
        let code = code();
        // SAFETY: a new mapping, filled inside its bounds; the child only executes the list.
        unsafe {
            let flags = ulpm_sys::map::PRIVATE | ulpm_sys::map::ANONYMOUS;
            let page = ulpm_sys::mmap(0, 4096, 7, flags, -1, 0).unwrap();
            let at = core::ptr::with_exposed_provenance_mut::<u8>(page);
            at.copy_from_nonoverlapping(code.as_ptr(), code.len());
            let enter: extern "C" fn(*const Operation, usize) -> ! = core::mem::transmute(at);
            let pid = ulpm_sys::arch::syscall(ulpm_sys::arch::nr::FORK, [0; 6]);
            if pid == 0 {
                enter(list.as_ptr(), into as usize);
            }
            ulpm_sys::close(into);
            let mut written = std::vec![0; 1000];
            let len = ulpm_sys::read(out, &mut written).unwrap();
            written.truncate(len);
            let (_, status) = ulpm_sys::wait4(pid as i32, 0).unwrap();
            ulpm_sys::close(out);
            ulpm_sys::munmap(page, 4096);
            (status, written)
        }
    }

    #[test]
    fn works_through_the_list() {
        use ulpm_sys::arch::nr;
        let text = b"hello";
        let (status, written) = run(|into| {
            std::vec![
                Operation::attempt(nr::CLOSE, [12345, 0, 0, 0, 0, 0]),
                Operation::exactly(5, nr::WRITE, [into as usize, text.as_ptr().addr(), 5, 0, 0, 0]),
                Operation::succeed(nr::GETPID, [0; 6]),
                Operation::attempt(nr::EXIT_GROUP, [7, 0, 0, 0, 0, 0]),
            ]
        });
        assert_eq!((status, &written[..]), (7 << 8, &b"hello"[..]));
    }

    #[test]
    fn reports_the_call_that_failed_and_ends() {
        use ulpm_sys::arch::nr;
        let (status, written) =
            run(|_| std::vec![Operation::succeed(nr::CLOSE, [999, 0, 0, 0, 0, 0])]);
        assert_eq!(status, 71 << 8);
        let failure = Failure::decode(written.try_into().unwrap());
        assert_eq!((failure.number, failure.arguments[0]), (nr::CLOSE, 999));
        assert_eq!(ulpm_sys::Errno::check(failure.returned), Err(ulpm_sys::Errno::BADF));
    }
}
