//! Paths travel as bytes, for they need not be UTF-8; in text they are shown as well as they can be.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    if to.is_human_readable() {
        path.to_string_lossy().serialize(to)
    } else {
        path.as_os_str().as_bytes().serialize(to)
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    if from.is_human_readable() {
        String::deserialize(from).map(PathBuf::from)
    } else {
        Vec::<u8>::deserialize(from).map(|bytes| PathBuf::from(OsString::from_vec(bytes)))
    }
}
