//! Levels of x86-64, for programs that are to run on all processors of a mixed pool.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

use crate::host;

/// A level of x86-64, as the System V ABI defines them: what a program may use of its processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Baseline {
    /// SSE2, which all have
    #[value(name = "x86-64")]
    V1,
    /// Up to SSE4.2, from 2009
    #[value(name = "x86-64-v2")]
    V2,
    /// Up to AVX2, from 2013 to 2015
    #[value(name = "x86-64-v3")]
    V3,
    /// Up to AVX-512, from 2017
    #[value(name = "x86-64-v4")]
    V4,
}

/// All of them, the highest first.
const LEVELS: [Baseline; 4] = [Baseline::V4, Baseline::V3, Baseline::V2, Baseline::V1];

/// Features that the levels add, as /proc/cpuinfo calls them.
const V2: &[&str] = &["cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"];
const V3: &[&str] = &["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"];
const V4: &[&str] = &["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"];

impl Baseline {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "x86-64",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        }
    }

    /// Features that a program of this level may use, of those that differ.
    fn features(self) -> BTreeSet<&'static str> {
        let added = [(Self::V2, V2), (Self::V3, V3), (Self::V4, V4)];
        let below = added.iter().filter(|(level, _)| *level <= self);
        below.flat_map(|(_, features)| features.iter().copied()).collect()
    }

    /// The highest level all of whose features are among these.
    #[must_use]
    pub fn highest(have: &BTreeSet<String>) -> Self {
        let has_all = |level: &Self| level.features().into_iter().all(|name| have.contains(name));
        LEVELS.into_iter().find(has_all).unwrap_or(Self::V1)
    }

    /// The environment that keeps a program to this level, as far as its libraries heed one. `old` is what is
    /// set already: GLIBC_TUNABLES is added to, and what else the user has set stays.
    #[must_use]
    pub fn environment(
        self,
        old: impl Fn(&str) -> Option<OsString>,
    ) -> Vec<(&'static str, OsString)> {
        let may = self.features();
        let may_not = host::all_features().filter(|feature| !may.contains(feature));
        let caps = host::tunables_without(may_not);
        let tunables = match old("GLIBC_TUNABLES").filter(|old| !old.is_empty()) {
            Some(old) => add_tunables(&old, &caps),
            None => caps.into(),
        };
        let mut all = vec![("GLIBC_TUNABLES", tunables)];
        // Where XSAVE is used, what lazy binding saves with it has the length that it had where the program began.
        if self >= Self::V3 {
            all.push(("LD_BIND_NOW", "1".into()));
        }
        let unset = self.of_libraries().into_iter().filter(|(name, _)| old(name).is_none());
        all.extend(unset.map(|(name, value)| (name, value.into())));
        all
    }

    /// Variables by which libraries that ask the processor themselves can be told, as each documents them.
    fn of_libraries(self) -> Vec<(&'static str, &'static str)> {
        let pick = |values: [&'static str; 4]| values[self as usize];
        let mut all = vec![
            // OpenBLAS that is built for several processors.
            ("OPENBLAS_CORETYPE", pick(["Prescott", "Nehalem", "Haswell", "SkylakeX"])),
            // CPUID leaf 1, EDX and ECX; then leaf 7, EBX and ECX; then its EDX. PCLMULQDQ, RDRAND and AES are of no
            // level.
            (
                "OPENSSL_ia32cap",
                pick([
                    "~0x7ed81a0200000000:0:0",
                    "~0x7e40180200000000:0:0",
                    "~0x4200080200000000:~0xfffffffffffffed7:0",
                    "~0x4200080200000000:~0xffffffff2ffcfed7:0",
                ]),
            ),
            ("MKL_ENABLE_INSTRUCTIONS", pick(["SSE4_2", "SSE4_2", "AVX2", "AVX512"])),
            ("ONEDNN_MAX_CPU_ISA", pick(["SSE41", "SSE41", "AVX2", "AVX512_CORE"])),
            ("ATEN_CPU_CAPABILITY", pick(["default", "default", "avx2", "avx512"])),
            ("ARROW_USER_SIMD_LEVEL", pick(["NONE", "SSE4_2", "AVX2", "AVX512"])),
            // All off; only SSSE3.
            ("GNUTLS_CPUID_OVERRIDE", pick(["0x1", "0x4", "0x4", "0x4"])),
        ];
        // NumPy complains about those that it is built to need.
        let numpy = pick([
            "SSSE3,SSE41,POPCNT,SSE42,AVX,F16C,FMA3,AVX2,AVX512F,AVX512CD,AVX512_SKX,AVX512_CLX,AVX512_CNL,AVX512_ICL,AVX512_SPR",
            "AVX,F16C,FMA3,AVX2,AVX512F,AVX512CD,AVX512_SKX,AVX512_CLX,AVX512_CNL,AVX512_ICL,AVX512_SPR",
            "AVX512F,AVX512CD,AVX512_SKX,AVX512_CLX,AVX512_CNL,AVX512_ICL,AVX512_SPR",
            "AVX512_CLX,AVX512_CNL,AVX512_ICL,AVX512_SPR",
        ]);
        all.push(("NPY_DISABLE_CPU_FEATURES", numpy));
        all
    }
}

/// Puts further features into a setting of GLIBC_TUNABLES.
fn add_tunables(old: &OsStr, caps: &str) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    const NAME: &[u8] = b"glibc.cpu.hwcaps=";
    let mut value = caps.as_bytes().to_vec();
    let mut others = Vec::new();
    for entry in old.as_bytes().split(|&byte| byte == b':').filter(|entry| !entry.is_empty()) {
        match entry.strip_prefix(NAME) {
            Some(already) => {
                value.push(b',');
                value.extend(already);
            }
            None => others.extend([entry, b":"].concat()),
        }
    }
    others.extend(value);
    OsString::from_vec(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(level: Baseline, features: &[&str]) -> Vec<String> {
        let environment = level.environment(|_| None);
        let value = |name: &str| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map_or_else(String::new, |(_, value)| value.to_string_lossy().into_owned())
        };
        let features = features.iter().map(|&feature| feature.to_owned()).collect();
        let bind_now = !value("LD_BIND_NOW").is_empty();
        host::without_tunables(features, &value("GLIBC_TUNABLES"), bind_now)
    }

    #[test]
    fn a_level_leaves_what_it_has_and_nothing_else() {
        let all: Vec<_> = host::all_features().collect();
        for (level, may) in
            [(Baseline::V1, 0), (Baseline::V2, 6), (Baseline::V3, 14), (Baseline::V4, 19)]
        {
            let left: Vec<_> = kept(level, &all);
            let allowed = level.features();
            assert!(left.iter().all(|left| allowed.contains(left.as_str())), "{level:?}: {left:?}");
            assert_eq!(left.len(), may, "{level:?}: {left:?}");
        }
        // Also of processors that come after this was written.
        assert!(kept(Baseline::V3, &["avx512_vp2intersect", "avx512_new", "amx_new"]).is_empty());
    }

    #[test]
    fn the_highest_level_of_a_processor_is_known() {
        let have = |parts: &[&[&str]]| -> BTreeSet<String> {
            parts.concat().iter().map(|&name| name.to_owned()).collect()
        };
        assert_eq!(Baseline::highest(&have(&[])), Baseline::V1);
        assert_eq!(Baseline::highest(&have(&[V2, &["avx"]])), Baseline::V2);
        assert_eq!(Baseline::highest(&have(&[V2, V3])), Baseline::V3);
        assert_eq!(Baseline::highest(&have(&[V3, V4])), Baseline::V1);
    }

    #[test]
    fn what_the_user_has_set_stays() {
        let old = |name: &str| match name {
            "GLIBC_TUNABLES" => Some("glibc.cpu.hwcaps=-ERMS:glibc.malloc.check=1".into()),
            "OPENBLAS_CORETYPE" => Some("Zen".into()),
            _ => None,
        };
        let environment = Baseline::V2.environment(old);
        let (_, tunables) = &environment[0];
        let tunables = tunables.to_str().unwrap();
        assert!(tunables.starts_with("glibc.malloc.check=1:glibc.cpu.hwcaps=-"), "{tunables}");
        assert!(tunables.ends_with(",-ERMS") && tunables.contains("-AVX2,"), "{tunables}");
        assert!(environment.iter().all(|(name, _)| *name != "OPENBLAS_CORETYPE"));
    }
}
