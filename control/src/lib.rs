//! What the tools and the coordinators of ULPM say to each other.
//!
//! ```text
//!  ulpm_launch ──┐
//!  ulpm_command ─┼─ Request ─▶ coordinator ─ Request::Offer, then PeerMessage ─▶ coordinator of another host
//!  ulpm_restart ─┘◀─ Reply ──
//! ```
//!
//! [`message`] holds what is said, [`codec`] how it looks on the wire, [`client`] the tools' end of a
//! connection, [`manifest`] what lies beside the images of a checkpoint, and [`place`] where files are.

#![forbid(unsafe_code)]

pub mod baseline;
pub mod client;
pub mod codec;
pub mod exit;
pub mod host;
pub mod link;
pub mod manifest;
pub mod message;
pub mod place;
mod raw_path;
pub mod recovery;
pub mod session;

pub use baseline::Baseline;
pub use client::{Address, Client, ClientError};
pub use link::JobLink;
pub use manifest::Manifest;
pub use message::{JobId, Reply, Request};
pub use recovery::{OnFailure, Recovery};

/// Writes an error and its causes, a line each, to standard error.
pub fn print_error(program: &str, error: &dyn std::error::Error) {
    eprintln!("{program}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  caused by: {error}");
        cause = error.source();
    }
}

/// An error and its causes as lines, outermost first.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> Vec<String> {
    let mut lines = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        lines.push(error.to_string());
        cause = error.source();
    }
    lines
}
