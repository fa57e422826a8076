//! Finds out before anything is started whether a program can run under ULPM.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ulpm_control::exit;

use crate::elf::{Elf, PT_INTERP, Unfit};
use crate::os;

/// Why a program cannot run under ULPM.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// There is none.
    #[error("{} was not found", .0.to_string_lossy())]
    NotFound(OsString),
    /// It cannot be executed at all.
    #[error("{} cannot be executed", path.display())]
    CannotExecute {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is for another machine.
    #[error("{} is for another machine ({machine}); ULPM runs x86-64 programs here", path.display())]
    Machine {
        /// The file.
        path: PathBuf,
        /// Which machine.
        machine: String,
    },
    /// It is static.
    #[error("{} is statically linked, so ULPM's library cannot be loaded into it: link it dynamically", .0.display())]
    Static(PathBuf),
    /// It is for another C library.
    #[error("{} uses the C library of {interpreter}; ULPM needs glibc", path.display())]
    Libc {
        /// The file.
        path: PathBuf,
        /// Its dynamic linker.
        interpreter: String,
    },
    /// It gets privileges.
    #[error("{} is {what}, so the system does not load ULPM's library into it: run a copy without that", path.display())]
    Privileged {
        /// The file.
        path: PathBuf,
        /// Setuid, setgid, …
        what: &'static str,
    },
    /// It is instrumented.
    #[error("{} is built with {sanitizer}, whose shadow memory cannot be saved: build it without", path.display())]
    Sanitizer {
        /// The file.
        path: PathBuf,
        /// Which.
        sanitizer: &'static str,
    },
    /// An interpreter is missing.
    #[error("{} needs {interpreter}, which cannot be used", path.display())]
    Interpreter {
        /// The file.
        path: PathBuf,
        /// The interpreter in its first line, or its dynamic linker.
        interpreter: String,
        /// Why.
        source: Box<CheckError>,
    },
    /// Scripts that name scripts.
    #[error("{} names an interpreter that names an interpreter, and so on", .0.display())]
    TooDeep(PathBuf),
}

impl CheckError {
    /// Exit code of the tool.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound(_) => exit::NOT_FOUND,
            Self::CannotExecute { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                exit::NOT_FOUND
            }
            Self::CannotExecute { .. } | Self::TooDeep(_) => exit::CANNOT_EXECUTE,
            Self::Interpreter { source, .. } => source.exit_code(),
            _ => exit::CONFIG,
        }
    }
}

/// What has to be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The file.
    pub path: PathBuf,
    /// Whether the shell has to interpret it, as execvp(3) lets it.
    pub by_shell: bool,
}

/// Finds a program as execvp(3) does, and checks it.
///
/// # Errors
///
/// [`CheckError`]
pub fn find(name: &OsStr) -> Result<Program, CheckError> {
    let path = locate(name)?;
    let by_shell = check(&path, 0)? == Kind::Text;
    if by_shell {
        check(Path::new("/bin/sh"), 1)?;
    }
    Ok(Program { path, by_shell })
}

fn locate(name: &OsStr) -> Result<PathBuf, CheckError> {
    if name.as_bytes().contains(&b'/') {
        return Ok(name.into());
    }
    let search = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let mut denied = None;
    for dir in std::env::split_paths(&search) {
        let dir = if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir };
        let path = dir.join(name);
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                denied = denied.or(Some(CheckError::CannotExecute { path, source: error }));
            }
            Err(_) => {}
        }
    }
    Err(denied.unwrap_or_else(|| CheckError::NotFound(name.into())))
}

fn executable(path: &Path) -> io::Result<()> {
    let meta = std::fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(nix::unistd::access(path, nix::unistd::AccessFlags::X_OK)?)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Elf,
    Script,
    Text,
}

fn check(path: &Path, depth: u32) -> Result<Kind, CheckError> {
    if depth > 4 {
        return Err(CheckError::TooDeep(path.into()));
    }
    let cannot = |source| CheckError::CannotExecute { path: path.into(), source };
    executable(path).map_err(cannot)?;
    let mut file = match File::open(path) {
        Ok(file) => file,
        // It can be executed and not read; there is nothing to check.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(Kind::Elf),
        Err(error) => return Err(cannot(error)),
    };
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(256).read_to_end(&mut head).map_err(cannot)?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let mut words =
            line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
        let Some(interpreter) = words.next() else {
            return Err(cannot(io::Error::new(
                io::ErrorKind::InvalidData,
                "its first line names no interpreter",
            )));
        };
        let interpreter = PathBuf::from(OsString::from_vec(interpreter.to_vec()));
        check(&interpreter, depth + 1).map_err(|source| CheckError::Interpreter {
            path: path.into(),
            interpreter: interpreter.display().to_string(),
            source: Box::new(source),
        })?;
        return Ok(Kind::Script);
    }
    if !head.starts_with(b"\x7fELF") {
        if head.iter().take_while(|&&byte| byte != b'\n').any(|&byte| byte == 0) {
            return Err(cannot(io::Error::new(io::ErrorKind::InvalidData, "it is no program")));
        }
        return Ok(Kind::Text);
    }
    check_privileges(path, &file)?;
    check_elf(path, &file, &head)?;
    Ok(Kind::Elf)
}

fn check_privileges(path: &Path, file: &File) -> Result<(), CheckError> {
    let Ok(meta) = file.metadata() else { return Ok(()) };
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let privileged = |what| Err(CheckError::Privileged { path: path.into(), what });
    // It is no privilege to become who one is.
    if meta.mode() & 0o4000 != 0 && meta.uid() != uid.as_raw() {
        return privileged("setuid");
    }
    if meta.mode() & 0o2010 == 0o2010 && meta.gid() != gid.as_raw() {
        return privileged("setgid");
    }
    if !uid.is_root() && os::has_capabilities(path) {
        return privileged("given capabilities");
    }
    Ok(())
}

const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;

fn check_elf(path: &Path, file: &File, head: &[u8]) -> Result<(), CheckError> {
    let damaged = || CheckError::CannotExecute {
        path: path.into(),
        source: io::Error::new(io::ErrorKind::InvalidData, "its ELF header is damaged"),
    };
    let elf = Elf::open(file, head).map_err(|unfit| match unfit {
        Unfit::Machine(machine) => CheckError::Machine { path: path.into(), machine },
        Unfit::Damaged => damaged(),
    })?;
    let Some(interpreter) = elf.segment(PT_INTERP) else {
        // The dynamic linker itself, told to run a program.
        let name = path.canonicalize().ok().and_then(|path| path.file_name().map(OsStr::to_owned));
        if name.is_some_and(|name| name.as_bytes().starts_with(b"ld-linux")) {
            return Ok(());
        }
        return Err(CheckError::Static(path.into()));
    };
    let interpreter =
        elf.read(interpreter.offset, interpreter.len.min(4096)).ok_or_else(damaged)?;
    let interpreter = String::from_utf8_lossy(&interpreter).trim_end_matches('\0').to_owned();
    if interpreter.contains("musl") {
        return Err(CheckError::Libc { path: path.into(), interpreter });
    }
    if !Path::new(&interpreter).exists() {
        let source = Box::new(CheckError::NotFound(interpreter.clone().into()));
        return Err(CheckError::Interpreter { path: path.into(), interpreter, source });
    }
    let Some(entries) = elf.dynamic() else { return Ok(()) };
    let value = |tag| entries.iter().find(|entry| entry.0 == tag).map(|entry| entry.1);
    let (Some(strings), Some(len)) = (value(DT_STRTAB), value(DT_STRSZ)) else { return Ok(()) };
    let Some(strings) = elf.read_address(strings, len) else { return Ok(()) };
    let needed = entries.iter().filter(|entry| entry.0 == DT_NEEDED).filter_map(|entry| {
        let name = strings.get(usize::try_from(entry.1).ok()?..)?;
        Some(String::from_utf8_lossy(name.split(|&byte| byte == 0).next()?).into_owned())
    });
    let needed: Vec<String> = needed.collect();
    let sanitizers = [
        ("libasan.so", "__asan_init", "AddressSanitizer"),
        ("libhwasan.so", "__hwasan_init", "HWAddressSanitizer"),
        ("libtsan.so", "__tsan_init", "ThreadSanitizer"),
        ("libmsan.so", "__msan_init", "MemorySanitizer"),
        ("liblsan.so", "__lsan_init", "LeakSanitizer"),
    ];
    for (library, symbol, sanitizer) in sanitizers {
        let linked = needed.iter().any(|name| name.starts_with(library));
        if linked || strings.split(|&byte| byte == 0).any(|name| name == symbol.as_bytes()) {
            return Err(CheckError::Sanitizer { path: path.into(), sanitizer });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    fn file(name: &str, content: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ulpm-check-{}-{name}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        file.write_all(content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn usual_programs_and_scripts_pass() {
        assert!(!find(OsStr::new("ls")).unwrap().by_shell);
        let script = file("script", b"#!/bin/sh\n:\n");
        assert!(!find(script.as_os_str()).unwrap().by_shell);
        let plain = file("plain", b"echo\n");
        assert!(find(plain.as_os_str()).unwrap().by_shell);
        for path in [script, plain] {
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn what_is_missing_or_no_program_is_named() {
        let error = find(OsStr::new("no-such-program")).unwrap_err();
        assert_eq!(error.exit_code(), exit::NOT_FOUND);
        let error = find(OsStr::new("/etc/passwd")).unwrap_err();
        assert_eq!(error.exit_code(), exit::CANNOT_EXECUTE);
        let script = file("odd", b"#!/no/such/interpreter -x\n");
        let error = find(script.as_os_str()).unwrap_err();
        assert_eq!(error.exit_code(), exit::NOT_FOUND);
        assert!(error.to_string().contains("/no/such/interpreter"), "{error}");
        std::fs::remove_file(script).unwrap();
    }

    #[test]
    fn other_machines_and_damaged_files_are_refused_in_words() {
        let mut arm = b"\x7fELF\x02\x01\x01".to_vec();
        arm.resize(64, 0);
        arm[18] = 183;
        let path = file("arm", &arm);
        let error = find(path.as_os_str()).unwrap_err();
        assert!(error.to_string().contains("aarch64"), "{error}");
        arm[18] = 62;
        std::fs::write(&path, &arm).unwrap();
        assert_eq!(find(path.as_os_str()).unwrap_err().exit_code(), exit::CANNOT_EXECUTE);
        std::fs::remove_file(path).unwrap();
    }
}
