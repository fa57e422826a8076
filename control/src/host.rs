//! What is to be known of this host.

use std::collections::BTreeSet;

/// Features that change what a program's libraries choose, as /proc/cpuinfo calls them. Others, such as
/// how the processor handles power or faults, do not matter to a program.
const CHOSEN: [&str; 33] = [
    "abm",
    "adx",
    "aes",
    "avx",
    "avx2",
    "avx_vnni",
    "bmi1",
    "bmi2",
    "cx16",
    "f16c",
    "fma",
    "gfni",
    "lahf_lm",
    "movbe",
    "movdir64b",
    "movdiri",
    "pclmulqdq",
    "popcnt",
    "rdrand",
    "rdseed",
    "rtm",
    "sha_ni",
    "sse4_1",
    "sse4_2",
    "sse4a",
    "ssse3",
    "vaes",
    "vpclmulqdq",
    "xop",
    "fma4",
    "tbm",
    "serialize",
    "fsgsbase",
];

/// Name of this host.
#[must_use]
pub fn name() -> String {
    first_line("/proc/sys/kernel/hostname").unwrap_or_else(|| "localhost".into())
}

/// Kernel release, as in uname(2).
#[must_use]
pub fn kernel() -> String {
    first_line("/proc/sys/kernel/osrelease").unwrap_or_default()
}

/// Machine, as in uname(2).
#[must_use]
pub fn arch() -> String {
    std::env::consts::ARCH.into()
}

/// Features of this host's processor that programs may choose.
#[must_use]
pub fn cpu() -> Vec<String> {
    features(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn features(cpuinfo: &str) -> Vec<String> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let flags: BTreeSet<_> = flags.split_whitespace().skip(2).collect();
    let chosen = |flag: &&&str| {
        CHOSEN.contains(flag) || flag.starts_with("avx512") || flag.starts_with("amx_")
    };
    flags.iter().filter(chosen).map(|&flag| flag.to_owned()).collect()
}

/// `features` without those that GLIBC_TUNABLES keeps a program from.
///
/// With `glibc.cpu.hwcaps=-AVX2,-AVX512F` these two, and what builds on them, are left out.
#[must_use]
pub fn without_tunables(mut features: Vec<String>, tunables: &str) -> Vec<String> {
    let caps = tunables.split(':').find_map(|entry| entry.strip_prefix("glibc.cpu.hwcaps="));
    for cap in caps.unwrap_or_default().split(',') {
        let Some(cap) = cap.strip_prefix('-') else { continue };
        let cap = cap.to_ascii_lowercase().replace("_usable", "");
        features.retain(|feature| {
            let plain = feature.replace('_', "");
            let named = plain == cap.replace('_', "");
            let built_on = match cap.as_str() {
                "avx512f" => feature.starts_with("avx512"),
                "avx2" => feature.starts_with("avx512") || feature == "avx_vnni",
                "avx" => {
                    feature.starts_with("avx")
                        || matches!(feature.as_str(), "fma" | "f16c" | "vaes")
                }
                "lzcnt" => feature == "abm",
                _ => false,
            };
            !named && !built_on
        });
    }
    features
}

/// Seconds since 1970 as RFC 3339 in UTC.
#[must_use]
pub fn rfc3339(secs: u64) -> String {
    // Days to a date of the proleptic Gregorian calendar, with years that begin in March, so that the
    // leap day is the last of its year.
    let days = secs / 86400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// This moment as RFC 3339 in UTC.
#[must_use]
pub fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    rfc3339(since.unwrap_or_default().as_secs())
}

fn first_line(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().next().map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_at_the_edges() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_732_060_799), "2024-11-19T23:59:59Z");
        assert_eq!(rfc3339(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn only_features_that_a_program_chooses_count() {
        let cpuinfo = "processor : 0\nflags\t\t: fpu erms avx2 avx512f constant_tsc\nbugs:";
        assert_eq!(features(cpuinfo), ["avx2", "avx512f"]);
    }

    #[test]
    fn tunables_take_features_away() {
        let all = || ["aes", "avx", "avx2", "avx512f", "avx512bw"].map(String::from).to_vec();
        let left = without_tunables(all(), "glibc.malloc.x=1:glibc.cpu.hwcaps=-AVX512F,-AES");
        assert_eq!(left, ["avx", "avx2"]);
        assert_eq!(without_tunables(all(), ""), all());
    }
}
