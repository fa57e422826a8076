//! Plugins that the processes of a job have loaded.
//!
//! Their code and memory are in the images like all of it. Their files are needed by programs that the job executes.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ulpm_image::meta::plugin_flag;
use ulpm_protocol::restart::ENVIRONMENT;

use crate::error::RestartError;
use crate::image_file::ImageFile;

/// Looks whether the plugins' files are here; says so where one is not that can be done without.
///
/// # Errors
///
/// [`RestartError::Unfit`]: one that is required is missing.
pub(crate) fn check(images: &[ImageFile]) -> Result<(), RestartError> {
    let mut said = BTreeSet::new();
    for image in images {
        for plugin in &image.meta.plugins {
            let path = Path::new(OsStr::from_bytes(&plugin.path));
            if path.exists() {
                continue;
            }
            let text = format!(
                "plugin {} {} ({}) is not here",
                String::from_utf8_lossy(&plugin.name),
                String::from_utf8_lossy(&plugin.version),
                path.display()
            );
            if plugin.flags & plugin_flag::REQUIRED != 0 {
                let text = format!("{text}, and wants to be required: bring its file here");
                return Err(RestartError::Unfit { pid: image.pid(), text });
            }
            if said.insert(path) {
                eprintln!("ulpm_restart: {text}: programs that the job starts go without it");
            }
        }
    }
    Ok(())
}

/// Puts the environment of this process where plugins find it, if there are any. Returns its path.
///
/// # Errors
///
/// [`RestartError::System`]
pub(crate) fn leave_environment(
    images: &[ImageFile],
    table: &Path,
) -> Result<PathBuf, RestartError> {
    let mut path = table.as_os_str().to_owned();
    path.push(ENVIRONMENT);
    let path = PathBuf::from(path);
    if images.iter().all(|image| image.meta.plugins.is_empty()) {
        return Ok(path);
    }
    let mut text = Vec::new();
    for (name, value) in std::env::vars_os() {
        text.extend(name.as_bytes());
        text.push(b'=');
        text.extend(value.as_bytes());
        text.push(0);
    }
    // It holds secrets.
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&path).and_then(|mut file| file.write_all(&text));
    written.map_err(|source| RestartError::System {
        what: "leave the environment for plugins",
        source,
    })?;
    Ok(path)
}
