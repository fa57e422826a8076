//! Where things are.

use std::path::{Path, PathBuf};

/// Environment variable with the default of `-c`.
pub const ENV_COORDINATOR: &str = "ULPM_COORDINATOR";
/// Environment variable with the directory of our programs and library.
pub const ENV_LIBDIR: &str = "ULPM_LIBDIR";
/// The port of coordinators.
pub const DEFAULT_PORT: u16 = 3490;

/// File name of our library.
pub const PRELOAD: &str = "libulpm_hijack.so";

/// One of our files was not found.
#[derive(Debug, thiserror::Error)]
#[error(
    "{name} was not found in {}: install ULPM's files together, or set {ENV_LIBDIR}",
    list(tried)
)]
pub struct NotFound {
    name: String,
    tried: Vec<PathBuf>,
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
}

/// Absolute path of one of our programs, or of our library.
///
/// It lies beside the running program, or in `../lib/ulpm` from there; [`ENV_LIBDIR`] goes before both.
///
/// # Errors
///
/// [`NotFound`]
pub fn find(name: &str) -> Result<PathBuf, NotFound> {
    let mut tried = Vec::new();
    if let Some(dir) = std::env::var_os(ENV_LIBDIR).filter(|dir| !dir.is_empty()) {
        tried.push(PathBuf::from(dir));
    }
    if let Ok(exe) = std::env::current_exe()
        && let Some(dir) = exe.parent()
    {
        tried.push(dir.to_owned());
        tried.push(dir.join("../lib/ulpm"));
    }
    for dir in &tried {
        if let Ok(path) = dir.join(name).canonicalize() {
            return Ok(path);
        }
    }
    Err(NotFound { name: name.into(), tried })
}

/// Where a coordinator keeps what is not for others, when it is not told: `$XDG_RUNTIME_DIR/ulpm`, or
/// `/tmp/ulpm-UID`.
#[must_use]
pub fn state_dir() -> PathBuf {
    match absolute_env("XDG_RUNTIME_DIR").filter(|dir| dir.is_dir()) {
        Some(dir) => dir.join("ulpm"),
        None => PathBuf::from(format!("/tmp/ulpm-{}", nix::unistd::geteuid())),
    }
}

/// A coordinator's socket, when it is not told.
#[must_use]
pub fn socket() -> PathBuf {
    state_dir().join("coordinator.sock")
}

/// The state directory of the coordinator with this socket, when it is not told.
///
/// Each socket has its own, so that coordinators run side by side.
#[must_use]
pub fn state_dir_of(at: &Path) -> PathBuf {
    if at == socket() {
        return state_dir();
    }
    let mut dir = at.as_os_str().to_owned();
    dir.push(".d");
    dir.into()
}

/// Where checkpoints lie, when nobody says otherwise: `$XDG_STATE_HOME/ulpm` or `~/.local/state/ulpm`.
///
/// `None` without a home.
#[must_use]
pub fn ckpt_dir() -> Option<PathBuf> {
    if let Some(dir) = absolute_env("XDG_STATE_HOME") {
        return Some(dir.join("ulpm"));
    }
    let home = absolute_env("HOME").or_else(|| {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok()??;
        Some(user.dir)
    })?;
    Some(home.join(".local/state/ulpm"))
}

/// Refuses `HOST:PORT` whose port is a number and none that a port can be.
///
/// # Errors
///
/// What is wrong, in words.
pub fn check_port(address: &str) -> Result<(), String> {
    let Some((host, port)) = address.rsplit_once(':') else { return Ok(()) };
    // An address of version 6 without brackets has no port.
    let has_port = !host.contains(':') || host.ends_with(']');
    if has_port && port.parse::<u16>().is_err() {
        return Err(format!("{port:?} is no port: give a number up to 65535"));
    }
    Ok(())
}

fn absolute_env(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_number_up_to_65535() {
        for good in ["b", "b:1", "::1", "[::1]", "[::1]:65535", "10.0.0.1:0"] {
            assert_eq!(check_port(good), Ok(()), "{good}");
        }
        for bad in ["b:65536", "b:", "b:x", "[::1]:99999", "b:-1"] {
            assert!(check_port(bad).is_err(), "{bad}");
        }
    }
}
