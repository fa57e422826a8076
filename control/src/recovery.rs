//! What is to happen when a job fails.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What is done when a process of a job is ended by a signal that nobody in the job has sent, or the whole job is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// Nothing: what would happen without ULPM
    #[default]
    None,
    /// What is left of it is ended, and it is restarted from its last complete generation
    Restart,
}

impl fmt::Display for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Restart => "restart",
        })
    }
}

impl FromStr for OnFailure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "restart" => Ok(Self::Restart),
            _ => Err(format!("{text:?} is neither restart nor none")),
        }
    }
}

/// How a job is kept alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// When it fails.
    pub on_failure: OnFailure,
    /// Restarts within an hour after which it is given up.
    pub max_restarts: u32,
}

/// Restarts within an hour when nobody says otherwise.
pub const MAX_RESTARTS: u32 = 5;

impl Default for Recovery {
    fn default() -> Self {
        Self { on_failure: OnFailure::None, max_restarts: MAX_RESTARTS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_has_a_word() {
        for choice in [OnFailure::None, OnFailure::Restart] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        "always".parse::<OnFailure>().unwrap_err();
    }
}
