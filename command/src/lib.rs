//! Asks a coordinator to checkpoint, migrate, list and end jobs.

#![forbid(unsafe_code)]

pub mod inspect;
pub mod options;
mod progress;
pub mod run;
mod text;
