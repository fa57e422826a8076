//! Harness of the end-to-end tests.
//!
//! A [`Lab`] is one test's own world: a directory, one or two hosts with a coordinator each, and the
//! programs that were started in it. Guest programs lie in `guests/`, scripts and a C project in
//! `programs/`. A test says what is to happen; the harness waits for lines and states, never for time.
//!
//! ```no_run
//! use ulpm_tests::{Lab, Program, Result};
//!
//! fn counter_goes_on_from_where_it_was() -> Result {
//!     Lab::one_host(|lab| {
//!         let guest = lab.launch(&Program::guest("counter", 200))?;
//!         guest.wait_for("step 3")?;
//!         let checkpoint = lab.checkpoint(&guest)?;
//!         guest.kill_tree()?;
//!         let twin = lab.restart(&checkpoint.path)?;
//!         twin.finish()?.expect_code(0)
//!     })
//! }
//! ```
//!
//! # Environment
//!
//! - `ULPM_BIN_DIR`: where the binaries and `libulpm_hijack.so` lie. Without it they are built.
//! - `ULPM_GUEST_DIR`: where compiled guests lie. Without it they are compiled when they are needed.
//! - `ULPM_KERNEL_DIR`: where another kernel lies. Without it `scripts/other-kernel` fetches it.
//! - `ULPM_TESTS_DIR`: this crate's sources, when they were moved since it was compiled.
//! - `ULPM_TEST_SEED`: repeats the pseudo-random moments of an earlier run.

#![forbid(unsafe_code)]

mod artifacts;
mod capture;
pub mod faults;
mod guest;
mod host;
mod lab;
mod other_kernel;
mod process;
mod program;
mod random;
mod undisturbed;
mod wait;
mod wire;

pub use artifacts::{guest_path, prepare, program_path};
pub use capture::Capture;
pub use guest::{Finished, Guest};
pub use host::Host;
pub use lab::{Checkpoint, Lab, Migration, Output};
pub use other_kernel::Booted;
pub use process::{Process, is_alive, processes};
pub use program::{Compare, Feed, Pace, Program};
pub use random::Random;
pub use undisturbed::{
    all_the_time, checkpointed_equals_native, migrated_equals_native,
    one_checkpoint_after_the_other, there_and_back, under_continuous_checkpoints,
};
pub use wait::{DEADLINE, until};
pub use wire::Wire;

/// What a test returns.
pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Ends the test with a message unless a condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+).into());
        }
    };
}

/// Whether the tests run as root.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
