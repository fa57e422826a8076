//! Paths that are elsewhere on this host.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::RestartError;

/// One `--map-path OLD=NEW`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    old: PathBuf,
    new: PathBuf,
}

impl FromStr for Mapping {
    type Err = RestartError;

    fn from_str(text: &str) -> Result<Self, RestartError> {
        let invalid = || RestartError::MapPath(text.into());
        let (old, new) = text.split_once('=').ok_or_else(invalid)?;
        let (old, new) = (PathBuf::from(old), PathBuf::from(new));
        if !old.is_absolute() || !new.is_absolute() {
            return Err(invalid());
        }
        Ok(Self { old, new })
    }
}

impl Mapping {
    /// As it stands on a command line.
    #[must_use]
    pub fn to_argument(&self) -> OsString {
        let mut text = self.old.clone().into_os_string();
        text.push("=");
        text.push(&self.new);
        text
    }
}

/// All of them; the first that fits counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathMap(pub Vec<Mapping>);

impl PathMap {
    /// Where `path` is here.
    #[must_use]
    pub fn map(&self, path: &Path) -> PathBuf {
        let mapped = self.0.iter().find_map(|mapping| {
            let rest = path.strip_prefix(&mapping.old).ok()?;
            // Joining an empty path would leave a slash behind a file's name.
            Some(if rest.as_os_str().is_empty() {
                mapping.new.clone()
            } else {
                mapping.new.join(rest)
            })
        });
        mapped.unwrap_or_else(|| path.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_components_are_replaced_and_the_first_fit_counts() {
        let map = PathMap(vec!["/a/b=/x".parse().unwrap(), "/a=/y".parse().unwrap()]);
        assert_eq!(map.map(Path::new("/a/b/c")), Path::new("/x/c"));
        assert_eq!(map.map(Path::new("/a/bc")), Path::new("/y/bc"));
        assert_eq!(map.map(Path::new("/a/b")).as_os_str(), "/x");
        assert_eq!(map.map(Path::new("/b")), Path::new("/b"));
        assert_eq!(map.0[1].to_argument(), "/a=/y");
        for invalid in ["a=/b", "/a"] {
            let error = invalid.parse::<Mapping>().unwrap_err();
            assert!(matches!(error, RestartError::MapPath(_)), "{error}");
        }
    }
}
