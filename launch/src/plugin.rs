//! Finds out before anything is started whether a plugin can be loaded: the dynamic linker would only say so on the
//! program's standard error, and go on without.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ulpm_control::{exit, place};
use ulpm_plugin::{ABI, SYMBOL};
use ulpm_protocol::table::ENV_PLUGINS;

use crate::elf::{ET_DYN, Elf, Unfit};

/// Environment variable with directories of plugins.
pub const ENV_PLUGIN_PATH: &str = "ULPM_PLUGIN_PATH";
/// How many plugins a program can have, and how long their paths may be together.
const MOST: (usize, usize) = (16, 4000);

/// Why a plugin cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// There is none.
    #[error("there is no plugin {name}: {}", where_it_was_sought(tried))]
    NotFound {
        /// As it was given.
        name: String,
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
    /// It cannot be read.
    #[error("the plugin {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is for another machine.
    #[error("the plugin {} is for another machine ({machine}): build it for x86-64", path.display())]
    Machine {
        /// The file.
        path: PathBuf,
        /// Which machine.
        machine: String,
    },
    /// It is something else.
    #[error("the plugin {} is {what}: build it with -shared, or as a cdylib", path.display())]
    NoObject {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It has no descriptor.
    #[error("{} is no plugin: it does not export {SYMBOL}, see ulpm_plugin.h", .0.display())]
    NoDescriptor(PathBuf),
    /// It is of another version.
    #[error("the plugin {} is made for version {found} of the interface, this is version {ABI}: build it again", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Of which.
        found: u32,
    },
    /// Its path cannot stand in a list.
    #[error("the plugin {} cannot be named to the dynamic linker: its path has a colon or a space", .0.display())]
    Path(PathBuf),
    /// There are too many.
    #[error("there are too many plugins, or their paths are too long: at most {} of {} bytes together", MOST.0, MOST.1)]
    TooMany,
    /// We are in a job.
    #[error(
        "a program that is started from within a job has its plugins; --plugin is for ulpm_launch outside of one"
    )]
    InJob,
}

fn where_it_was_sought(tried: &[PathBuf]) -> String {
    let tried: Vec<_> = tried.iter().map(|path| path.display().to_string()).collect();
    format!("looked for {}", tried.join(", "))
}

impl PluginError {
    /// Exit code of the tool.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => exit::NO_INPUT,
            Self::Read { .. } => exit::IO,
            Self::Version { .. } => exit::PROTOCOL,
            Self::TooMany | Self::InJob => exit::USAGE,
            _ => exit::CONFIG,
        }
    }
}

/// What the environment has to say for these plugins, and what is to be added to LD_PRELOAD. Nothing without plugins.
///
/// # Errors
///
/// [`PluginError`]: the first that cannot be loaded.
pub fn environment(
    plugins: &[PathBuf],
    log: Option<&Path>,
) -> Result<Option<[Vec<u8>; 2]>, PluginError> {
    if plugins.is_empty() {
        return Ok(None);
    }
    let mut value = ENV_PLUGINS.as_bytes().to_vec();
    value.push(b'=');
    if let Some(log) = log {
        let log = std::path::absolute(log)
            .map_err(|source| PluginError::Read { path: log.into(), source })?;
        if log.as_os_str().as_bytes().contains(&b':') {
            return Err(PluginError::Path(log));
        }
        value.extend(log.as_os_str().as_bytes());
    }
    let mut preload = Vec::new();
    for plugin in plugins {
        let path = locate(plugin)?;
        check(&path)?;
        if path.as_os_str().as_bytes().iter().any(|byte| b": \t\n".contains(byte)) {
            return Err(PluginError::Path(path));
        }
        for list in [&mut value, &mut preload] {
            list.push(b':');
            list.extend(path.as_os_str().as_bytes());
        }
    }
    if plugins.len() > MOST.0 || value.len() > MOST.1 {
        return Err(PluginError::TooMany);
    }
    Ok(Some([value, preload]))
}

/// A name without a slash is that of a plugin in one of the directories of [`ENV_PLUGIN_PATH`], or beside our programs.
fn locate(plugin: &Path) -> Result<PathBuf, PluginError> {
    let name = plugin.as_os_str();
    if name.as_bytes().contains(&b'/') {
        let missing = || PluginError::NotFound {
            name: name.to_string_lossy().into_owned(),
            tried: vec![plugin.into()],
        };
        return plugin.canonicalize().map_err(|_| missing());
    }
    let file = format!("libulpm_plugin_{}.so", name.to_string_lossy().replace('-', "_"));
    let mut tried = Vec::new();
    for dir in std::env::split_paths(&std::env::var_os(ENV_PLUGIN_PATH).unwrap_or_default()) {
        for name in [OsStr::new(&file), name] {
            let path = dir.join(name);
            match path.canonicalize() {
                Ok(path) if path.is_file() => return Ok(path),
                _ => tried.push(path),
            }
        }
    }
    place::find(&file).map_err(|_| {
        tried.push(file.into());
        PluginError::NotFound { name: name.to_string_lossy().into_owned(), tried }
    })
}

/// Whether the dynamic linker will load it, and we will find a descriptor that we understand.
fn check(path: &Path) -> Result<(), PluginError> {
    let cannot = |source| PluginError::Read { path: path.into(), source };
    let mut file = File::open(path).map_err(cannot)?;
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(64).read_to_end(&mut head).map_err(cannot)?;
    let no_object = |what| PluginError::NoObject { path: path.into(), what };
    if !head.starts_with(b"\x7fELF") {
        return Err(no_object("no ELF file"));
    }
    let elf = Elf::open(&file, &head).map_err(|unfit| match unfit {
        Unfit::Machine(machine) => PluginError::Machine { path: path.into(), machine },
        Unfit::Damaged => no_object("damaged"),
    })?;
    if elf.kind() != ET_DYN {
        return Err(no_object("no shared object"));
    }
    let found = elf.exported(SYMBOL).and_then(|address| elf.read_address(address, 8));
    let Some([_, _, _, _, abi @ ..]) = found.as_deref() else {
        return Err(PluginError::NoDescriptor(path.into()));
    };
    match abi.try_into().map(u32::from_le_bytes) {
        Ok(ABI) => Ok(()),
        Ok(found) => Err(PluginError::Version { path: path.into(), found }),
        Err(_) => Err(PluginError::NoDescriptor(path.into())),
    }
}
