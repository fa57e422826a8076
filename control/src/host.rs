//! What is to be known of this host.

use std::collections::BTreeSet;

/// Features that change what a program's libraries choose, as /proc/cpuinfo calls them. Others, such as
/// how the processor handles power or faults, do not matter to a program.
const CHOSEN: [&str; 35] = [
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
    "xsave",
    "xsavec",
];

/// What there is of AVX-512 and AMX, also of processors that this one is not.
const WIDE: [&str; 28] = [
    "amx_avx512",
    "amx_bf16",
    "amx_complex",
    "amx_fp16",
    "amx_fp8",
    "amx_int8",
    "amx_movrs",
    "amx_tf32",
    "amx_tile",
    "amx_transpose",
    "avx512_4fmaps",
    "avx512_4vnniw",
    "avx512_bf16",
    "avx512_bitalg",
    "avx512_fp16",
    "avx512_vbmi2",
    "avx512_vnni",
    "avx512_vp2intersect",
    "avx512_vpopcntdq",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512er",
    "avx512f",
    "avx512ifma",
    "avx512pf",
    "avx512vbmi",
    "avx512vl",
];

/// All features that programs may choose, of whichever processor.
pub fn all_features() -> impl Iterator<Item = &'static str> {
    CHOSEN.into_iter().chain(WIDE)
}

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

/// What programs use of a kernel that another may be built or started without, and what is in /proc where it is.
pub const KERNEL: [(&str, &str); 5] = [
    ("epoll", "/proc/sys/fs/epoll"),
    ("inotify", "/proc/sys/fs/inotify"),
    ("IPv6", "/proc/net/if_inet6"),
    ("POSIX message queues", "/proc/sys/fs/mqueue"),
    ("System V objects", "/proc/sysvipc/shm"),
];

/// Those of `features` that this host's kernel lacks, by the names of [`KERNEL`]; unknown ones count as lacking.
#[must_use]
pub fn kernel_lacks(features: &[String]) -> Vec<String> {
    let has = |name: &str| {
        let known = KERNEL.iter().find(|(known, _)| *known == name);
        known.is_some_and(|(_, path)| std::path::Path::new(path).exists())
    };
    features.iter().filter(|name| !has(name)).cloned().collect()
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

/// What /proc/cpuinfo and glibc call by different names; for all others upper case is the only difference.
const NAMES: [(&str, &str); 2] = [("abm", "LZCNT"), ("cx16", "CMPXCHG16B")];

/// Those of AVX-512 that glibc knows by name; memcpy is chosen by AVX512VL alone.
const AVX512: [&str; 7] =
    ["AVX512F", "AVX512BW", "AVX512CD", "AVX512DQ", "AVX512ER", "AVX512PF", "AVX512VL"];

fn glibc_name(feature: &str) -> String {
    let other = NAMES.iter().find(|(name, _)| *name == feature);
    other.map_or_else(|| feature.to_ascii_uppercase(), |(_, name)| (*name).to_owned())
}

/// `features` without those that a program in this environment does not choose.
///
/// `tunables` is GLIBC_TUNABLES: with `glibc.cpu.hwcaps=-AVX2,-BMI2` these two are left out. What glibc does
/// not know by name may be in the list as well; the user vouches for the program then. `bind_now` says that
/// LD_BIND_NOW is set: the linker has no registers to save when it looks up functions.
#[must_use]
pub fn without_tunables(mut features: Vec<String>, tunables: &str, bind_now: bool) -> Vec<String> {
    let caps = tunables.split(':').find_map(|entry| entry.strip_prefix("glibc.cpu.hwcaps="));
    let off: BTreeSet<String> = caps
        .unwrap_or_default()
        .split(',')
        .filter_map(|cap| Some(cap.strip_prefix('-')?.replace("_Usable", "")))
        .collect();
    let off = |cap: &str| off.contains(cap);
    let no_xsave = off("OSXSAVE") || off("XSAVE") && off("XSAVEC");
    features.retain(|feature| {
        let name = glibc_name(feature);
        let linker = matches!(feature.as_str(), "xsave" | "xsavec");
        let wide = feature.starts_with("avx")
            || feature.starts_with("amx_")
            || matches!(feature.as_str(), "f16c" | "fma" | "fma4" | "vaes" | "vpclmulqdq" | "xop");
        // Who looks for one of those that glibc has no name for, looks for AVX512F first.
        let builds_on_avx512f = feature.starts_with("avx512") && !AVX512.contains(&&*name);
        let left_out = off(&name)
            || no_xsave && (linker || wide)
            || bind_now && linker
            || builds_on_avx512f && off("AVX512F")
            || feature.starts_with("amx_") && off("AMX_TILE");
        // This bit alone chooses AVX for memcpy, whatever is said of AVX itself.
        let copies = feature == "avx" && !off("AVX_Fast_Unaligned_Load");
        copies || !left_out
    });
    features
}

/// The setting of GLIBC_TUNABLES that keeps a program from choosing these features.
#[must_use]
pub fn tunables_without<'a>(features: impl IntoIterator<Item = &'a str>) -> String {
    let mut caps = BTreeSet::new();
    for feature in features {
        caps.insert(format!("-{}", glibc_name(feature)));
        match feature {
            "xsave" => caps.insert("-OSXSAVE".into()),
            "avx" => caps.insert("-AVX_Fast_Unaligned_Load".into()),
            _ => true,
        };
    }
    format!("glibc.cpu.hwcaps={}", Vec::from_iter(caps).join(","))
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
        let all = || ["aes", "avx", "avx2", "avx512bw", "avx512f"].map(String::from).to_vec();
        let tunables = "glibc.malloc.x=1:glibc.cpu.hwcaps=-AVX512F,-AES";
        assert_eq!(without_tunables(all(), tunables, false), ["avx", "avx2", "avx512bw"]);
        assert_eq!(without_tunables(all(), "", false), all());
    }

    #[test]
    fn avx_is_chosen_by_the_bit_that_says_it_is_fast() {
        let without = |tunables| without_tunables(vec!["avx".into()], tunables, false);
        assert_eq!(without("glibc.cpu.hwcaps=-AVX"), ["avx"]);
        assert_eq!(without("glibc.cpu.hwcaps=-OSXSAVE"), ["avx"]);
        assert!(without("glibc.cpu.hwcaps=-AVX,-AVX_Fast_Unaligned_Load").is_empty());
    }

    #[test]
    fn xsave_is_for_looking_up_functions() {
        let all = || ["xsave", "xsavec"].map(String::from).to_vec();
        assert!(without_tunables(all(), "", true).is_empty());
        assert_eq!(without_tunables(all(), "glibc.cpu.hwcaps=-XSAVEC", false), ["xsave"]);
        assert!(without_tunables(all(), "glibc.cpu.hwcaps=-OSXSAVE", false).is_empty());
    }

    #[test]
    fn tunables_that_are_proposed_leave_nothing_of_what_is_lacking() {
        let mut all: Vec<String> = CHOSEN.map(String::from).to_vec();
        all.extend(
            ["avx512f", "avx512vl", "avx512bw", "avx512_vnni", "amx_tile"].map(String::from),
        );
        for feature in &all {
            let tunables = tunables_without([feature.as_str()]);
            let left = without_tunables(vec![feature.clone()], &tunables, false);
            assert!(left.is_empty(), "{feature}: {tunables}");
        }
        let tunables = tunables_without(all.iter().map(String::as_str));
        assert!(without_tunables(all, &tunables, false).is_empty());
    }
}
