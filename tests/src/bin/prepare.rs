//! Builds what the tests run and copies it into a directory, so that a user who can build nothing can run them.
//!
//! Usage: `ulpm-test-prepare DIR`. Afterwards `DIR/bin`, `DIR/guests`, `DIR/kernel` and `DIR/tests` are
//! what `ULPM_BIN_DIR`, `ULPM_GUEST_DIR`, `ULPM_KERNEL_DIR` and `ULPM_TESTS_DIR` want.

use std::path::Path;

fn main() -> ulpm_tests::Result {
    let dir = std::env::args_os().nth(1).ok_or("usage: ulpm-test-prepare DIR")?;
    ulpm_tests::prepare(Path::new(&dir))
}
