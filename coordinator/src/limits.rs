//! What jobs from other hosts may have of this one, as its owner says.

use ulpm_control::message::{Finding, Verdict};

/// Limits for all guests together; `None` is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Jobs that have come here and live, or are on their way.
    pub guests: Option<u32>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of images.
    pub disk: Option<u64>,
}

/// What guests have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) guests: u32,
    pub(crate) memory: u64,
    pub(crate) disk: u64,
}

impl Limits {
    /// Whether one more guest may come that needs about so many bytes of memory, and as many on disk.
    pub(crate) fn finding(&self, usage: &Usage, need: u64) -> Finding {
        let mut texts = Vec::new();
        if let Some(most) = self.guests.filter(|&most| usage.guests >= most) {
            texts.push(format!(
                "its owner lets {most} jobs of others in at a time, and {} are there",
                usage.guests
            ));
        }
        let of = [("memory", self.memory, usage.memory), ("disk space", self.disk, usage.disk)];
        for (what, limit, used) in of {
            if let Some(most) = limit.filter(|&most| need > most.saturating_sub(used)) {
                texts.push(format!(
                    "its owner gives jobs of others {} MiB of {what}, of which {} MiB are taken, and the job needs \
                     about {} MiB",
                    most >> 20,
                    used >> 20,
                    (need >> 20).max(1)
                ));
            }
        }
        let is_limited = *self != Self::default();
        let (verdict, text) = match (texts.is_empty(), is_limited) {
            (false, _) => (Verdict::No, texts.join("; ")),
            (true, true) => {
                (Verdict::Ok, "the job is within the limits that the owner has set".into())
            }
            (true, false) => (Verdict::Ok, "the owner has set none".into()),
        };
        let way_out = match verdict {
            Verdict::No => {
                "try again when other jobs have left, or have --max-guests, --max-memory or --max-disk raised there"
            }
            _ => "",
        };
        Finding { subject: Finding::LIMITS.into(), verdict, text, way_out: way_out.into() }
    }

    /// The most bytes that the images of one more guest may have.
    pub(crate) fn most(&self, usage: &Usage) -> u64 {
        let left =
            |limit: Option<u64>, used| limit.map_or(u64::MAX, |most| most.saturating_sub(used));
        left(self.memory, usage.memory).min(left(self.disk, usage.disk))
    }
}

/// Reads a number of bytes such as `512M`.
///
/// # Errors
///
/// What is wrong, in words.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!("{text:?} is no size: give a number of bytes, or one with K, M, G or T behind it")
    };
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].trim_end_matches("iB").trim_end_matches('B') {
        "" => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("3K"), Ok(3072));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        for bad in ["", "G", "1X", "-1", "1.5G", "99999999999T"] {
            parse_size(bad).unwrap_err();
        }
    }

    #[test]
    fn each_limit_counts() {
        let limits = Limits { guests: Some(2), memory: Some(10 << 20), disk: None };
        let usage = |guests, memory| Usage { guests, memory, disk: 7 };
        let verdict = |usage, need| limits.finding(&usage, need).verdict;
        assert_eq!(verdict(usage(1, 4 << 20), 6 << 20), Verdict::Ok);
        assert_eq!(verdict(usage(2, 0), 0), Verdict::No);
        assert_eq!(verdict(usage(0, 5 << 20), 6 << 20), Verdict::No);
        assert_eq!(limits.most(&usage(0, 1 << 20)), 9 << 20);
        assert_eq!(Limits::default().most(&usage(9, 9)), u64::MAX);
    }
}
