//! Waiting for conditions.

use std::time::{Duration, Instant};

use crate::Result;

/// How long a condition may take that normally holds within a second.
pub const DEADLINE: Duration = Duration::from_secs(40);

/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(4);

/// Waits until `condition` gives a value.
///
/// # Errors
///
/// What `condition` fails with, or `what` when the deadline has passed.
pub fn until<T>(
    what: impl Into<String>,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() > end {
            return Err(format!("after {deadline:?}, still waiting: {}", what.into()).into());
        }
        std::thread::sleep(PAUSE);
    }
}
