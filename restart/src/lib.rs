//! `ulpm_restart`: brings a job back from its images.
//!
//! ```text
//!  read and check all images ─▶ make shared objects ─▶ fork the tree ─▶ in each process:
//!  attributes, descriptors ─▶ restorer: memory ─▶ library in the image: threads ─▶ manager says Hello
//! ```
//!
//! Until the coordinator has heard from every process, nothing runs; if one cannot be rebuilt, all are
//! ended.

pub mod clock;
pub mod error;
pub mod files;
pub mod image_file;
pub mod ipc;
pub mod locks;
pub mod objects;
pub mod options;
pub mod path_map;
pub mod plan;
mod plugins;
pub mod run;
pub mod session;
pub mod terminal;
pub mod tree;
pub mod vdso;
