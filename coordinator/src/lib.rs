//! The coordinator: one daemon for each user and host, which knows the jobs there.
//!
//! ```text
//!  managers, tools ── unix socket ─▶ server ── events ─▶ one task for each job (job, barrier, migrate)
//!  other coordinators ── TCP ──────▶   │
//!                                      └── state directory: what the next coordinator finds
//! ```
//!
//! It may die at any moment: programs go on, managers connect to its successor, and that takes up the
//! jobs from the state directory.

#![deny(unsafe_code)]

pub mod barrier;
pub mod error;
mod fault;
pub mod generation;
mod job;
mod kernel;
pub mod limits;
mod manager;
mod membership;
mod migrate;
mod network;
pub mod options;
mod process;
mod recovery;
pub mod run;
pub mod server;
mod ssh;
pub mod state;
mod streams;
#[cfg(test)]
mod test_dir;
mod watch;
mod wire;
