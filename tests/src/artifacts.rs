//! Builds what the tests run: `cargo test` builds no binaries of other crates, and nobody builds guests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};

use crate::Result;

pub(crate) const BINARIES: [&str; 8] = [
    "ulpm_coordinator",
    "ulpm_launch",
    "ulpm_command",
    "ulpm_restart",
    "libulpm_hijack.so",
    "libulpm_plugin_environ.so",
    "libulpm_plugin_notify.so",
    "libulpm_plugin_tell.so",
];
const FLAGS: [&str; 7] = ["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-D_GNU_SOURCE"];

/// Kinds of guests' sources.
const SOURCES: [&str; 3] = ["c", "cpp", "rs"];

/// This crate's sources.
fn sources() -> PathBuf {
    std::env::var_os("ULPM_TESTS_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

/// Cargo's target directory: this program lies in it, at `PROFILE/deps/NAME` or `PROFILE/NAME`.
fn target() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let found = program
        .ancestors()
        .find(|dir| dir.file_name().is_some_and(|name| name == "debug" || name == "release"));
    Ok(found.and_then(Path::parent).ok_or("this program lies in no target directory")?.into())
}

/// A script or folder in `programs/`.
#[must_use]
pub fn program_path(name: &str) -> PathBuf {
    sources().join("programs").join(name)
}

/// Where the binaries lie, after they were built.
///
/// # Errors
///
/// When cargo fails, or one of them is missing.
pub(crate) fn binaries() -> Result<PathBuf> {
    static DONE: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let built = DONE.get_or_init(|| build_binaries().map_err(|error| error.to_string()));
    Ok(built.clone()?)
}

fn build_binaries() -> Result<PathBuf> {
    let dir = match std::env::var_os("ULPM_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let target = target()?;
            cargo_build(&target)?;
            target.join("release")
        }
    };
    let dir = dir.canonicalize().map_err(|error| format!("{}: {error}", dir.display()))?;
    for name in BINARIES {
        if !dir.join(name).exists() {
            return Err(format!("{} has no {name}", dir.display()).into());
        }
    }
    Ok(dir)
}

/// Builds the workspace, once for a run of nextest, which starts a process for each test.
fn cargo_build(target: &Path) -> Result {
    let _lock = lock(&target.join("ulpm-tests.lock"))?;
    let stamp = target.join("ulpm-tests.run");
    let run = std::env::var("NEXTEST_RUN_ID").ok();
    if run.is_some() && fs::read_to_string(&stamp).ok() == run {
        return Ok(());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--workspace", "--target-dir"])
        .arg(target)
        .current_dir(sources())
        .status()
        .map_err(|error| format!("cannot run cargo build: {error}"))?;
    if !status.success() {
        return Err("cargo build --release failed".into());
    }
    if let Some(run) = run {
        fs::write(stamp, run)?;
    }
    Ok(())
}

fn lock(path: &Path) -> Result<Flock<File>> {
    let file = File::create(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

/// What a guest's name can end in, and what the compiler is given for it.
const VARIANTS: [(&str, &str); 2] = [("-static", "-static"), ("-asan", "-fsanitize=address")];

/// Where another kernel and its initial file system lie, after `scripts/other-kernel` has fetched them.
///
/// # Errors
///
/// When they cannot be fetched.
pub(crate) fn other_kernel() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("ULPM_KERNEL_DIR") {
        let dir = PathBuf::from(dir);
        return if dir.join("initrd").exists() {
            Ok(dir)
        } else {
            let text = "there is no other kernel to test with: run scripts/other-kernel";
            Err(format!("{text} {}", dir.display()).into())
        };
    }
    let dir = target()?.join("ulpm-other-kernel");
    fs::create_dir_all(&dir)?;
    let _lock = lock(&dir.join(".lock"))?;
    let script = sources().join("../scripts/other-kernel");
    let output = Command::new(&script).arg(&dir).output();
    let output = output.map_err(|error| format!("cannot run {}: {error}", script.display()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("there is no other kernel to test with:\n{text}").into());
    }
    Ok(dir)
}

/// Path of the compiled guest `name`, after it was compiled. `plugin_NAME` is a plugin of ULPM. `NAME-static` is linked statically, `NAME-asan`
/// has AddressSanitizer.
///
/// # Errors
///
/// When there is no such source, or it does not compile.
pub fn guest_path(name: &str) -> Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(dir) = std::env::var_os("ULPM_GUEST_DIR") {
        let path = PathBuf::from(dir).join(name);
        return if path.exists() { Ok(path) } else { Err(format!("no {}", path.display()).into()) };
    }
    compile(name, &target()?.join("ulpm-guests"))
}

fn compile(name: &str, dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let _lock = lock(&dir.join(".lock"))?;
    let output = dir.join(name);
    let variant = VARIANTS.iter().find_map(|(end, flag)| Some((name.strip_suffix(end)?, *flag)));
    let stem = variant.map_or(name, |(stem, _)| stem);
    let folder = sources().join("guests");
    let source = |kind: &&str| folder.join(format!("{stem}.{kind}"));
    let kind = SOURCES.into_iter().find(|kind| source(kind).exists());
    let kind = kind.ok_or_else(|| format!("no guest has the name {stem}"))?;
    let source = source(&kind);
    let changed = |path: &Path| -> Result<SystemTime> {
        let status = fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(status.modified()?)
    };
    let mut newest = changed(&source)?;
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "h") {
            newest = newest.max(changed(&path)?);
        }
    }
    if changed(&output).is_ok_and(|when| when >= newest) {
        return Ok(output);
    }
    let mut compiler = match kind {
        "rs" => Command::new("rustc"),
        "c" => Command::new("gcc"),
        _ => Command::new("g++"),
    };
    if kind == "rs" {
        compiler.args(["--edition", "2024", "-O"]);
    } else {
        compiler.arg(if kind == "c" { "-std=gnu17" } else { "-std=gnu++17" });
        // g++ defines _GNU_SOURCE itself.
        compiler.args(FLAGS.iter().filter(|flag| kind == "c" || !flag.starts_with("-D")));
    }
    if name == "openmp" {
        compiler.arg("-fopenmp");
    }
    compiler.args(variant.map(|(_, flag)| flag));
    if stem.starts_with("plugin_") {
        compiler.args(["-shared", "-fPIC", "-Wl,-z,now", "-I"]);
        compiler.arg(sources().join("../plugins/include"));
    }
    if stem == "plugin_python" {
        let output = Command::new("/usr/bin/python3-config").arg("--includes").output()?;
        compiler.args(String::from_utf8_lossy(&output.stdout).split_whitespace());
    }
    let half = dir.join(format!(".{name}.half"));
    compiler.arg("-o").arg(&half).arg(&source);
    compiler.args((kind != "rs").then_some("-lm"));
    let result = compiler.output().map_err(|error| format!("cannot run {compiler:?}: {error}"))?;
    if !result.status.success() {
        let text = String::from_utf8_lossy(&result.stderr).into_owned();
        return Err(format!("{} does not compile:\n{text}", source.display()).into());
    }
    fs::rename(half, &output)?;
    Ok(output)
}

/// Builds everything at once and copies what the tests need into `dir`, for a user who can build nothing.
///
/// # Errors
///
/// When something does not build, or cannot be copied.
pub fn prepare(dir: &Path) -> Result {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin)?;
    let built = binaries()?;
    for name in BINARIES {
        fs::copy(built.join(name), bin.join(name))?;
    }
    let guests = dir.join("guests");
    fs::create_dir_all(&guests)?;
    for entry in fs::read_dir(sources().join("guests"))? {
        let path = entry?.path();
        let kind = path.extension().and_then(|extension| extension.to_str());
        if kind.is_some_and(|kind| SOURCES.contains(&kind))
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            fs::copy(guest_path(name)?, guests.join(name))?;
        }
    }
    for (end, _) in VARIANTS {
        let name = format!("counter{end}");
        fs::copy(guest_path(&name)?, guests.join(name))?;
    }
    let kernel = dir.join("kernel");
    fs::create_dir_all(&kernel)?;
    match other_kernel() {
        Ok(found) => {
            for name in ["vmlinuz", "initrd"] {
                fs::copy(found.join(name), kernel.join(name))?;
            }
        }
        // The tests that need it will fail and say so; all others can run.
        Err(error) => eprintln!("{error}"),
    }
    copy_tree(&sources().join("programs"), &dir.join("tests/programs"))
}

/// Copies a folder of regular files.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> Result {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).map_err(|error| format!("{}: {error}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
