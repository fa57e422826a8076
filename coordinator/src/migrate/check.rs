//! What is looked at before a job moves: here, what cannot be saved; at the target, what it would lack.
//!
//! `--check` prints it, and `--migrate` goes by it before anything stands still.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::AccessFlags;
use ulpm_control::message::{Finding, Needed, Offer, Outside, Verdict};
use ulpm_control::{Baseline, host, place};
use ulpm_protocol::refused;

use crate::barrier::Stranger;
use crate::process;

/// The first kernel that has all calls that a restart makes.
const OLDEST_KERNEL: (u32, u32) = (5, 9);
/// Of a process that another of the job has started so.
pub(crate) const NAMESPACE: &str =
    "runs in a pid namespace of its own, which a restart cannot make";
/// What helps then.
pub(crate) const NAMESPACE_WAY_OUT: &str =
    "end it, or start it without a namespace, or run ulpm_coordinator and ulpm_launch in there";
/// So many are named where many lack something.
const NAMED: usize = 5;

fn found(subject: &str, verdict: Verdict, text: impl Into<String>, way_out: &str) -> Finding {
    Finding { subject: subject.into(), verdict, text: text.into(), way_out: way_out.into() }
}

fn ok(subject: &str, text: impl Into<String>) -> Finding {
    found(subject, Verdict::Ok, text, "")
}

fn no(subject: &str, text: impl Into<String>, way_out: &str) -> Finding {
    found(subject, Verdict::No, text, way_out)
}

fn warning(subject: &str, text: impl Into<String>, way_out: &str) -> Finding {
    found(subject, Verdict::Warning, text, way_out)
}

/// The first few of a list.
fn list<T: ToString>(all: &[T]) -> String {
    let mut words: Vec<String> = all.iter().take(NAMED).map(ToString::to_string).collect();
    if all.len() > NAMED {
        words.push(format!("{} more", all.len() - NAMED));
    }
    words.join(", ")
}

/// What a target says of an offer.
pub(super) fn at_target(offer: &Offer) -> Vec<Finding> {
    let mut findings = vec![architecture(offer), processor(offer), kernel(offer), version(offer)];
    findings.extend(user(offer));
    findings.extend(files(offer));
    findings.push(memory(offer));
    findings.push(disk(offer));
    findings.push(resources(offer));
    findings
}

fn architecture(offer: &Offer) -> Finding {
    let here = host::arch();
    if here == offer.arch {
        return ok("architecture", here);
    }
    let text =
        format!("it is a {here} machine there, and the job's programs are for {}", offer.arch);
    no("architecture", text, "")
}

fn processor(offer: &Offer) -> Finding {
    let have: BTreeSet<_> = host::cpu().into_iter().collect();
    let lacks: Vec<_> = offer.cpu.iter().filter(|cpu| !have.contains(*cpu)).cloned().collect();
    if lacks.is_empty() {
        // What libraries were told to leave alone binds nobody who does not ask them.
        let less = offer.cpu_here.iter().filter(|cpu| !have.contains(*cpu)).count();
        if less == 0 {
            return ok("processor", "it has all there that the processor here has");
        }
        let text = format!(
            "it lacks {less} features of the processor here, which the job's libraries leave alone"
        );
        let own: Vec<_> = offer.programs.iter().filter(|path| asks_itself(path)).collect();
        if own.is_empty() {
            return ok(
                "processor",
                text + "; a program that asks the processor itself is not bound by that",
            );
        }
        let text = format!("{text}; but {} may have chosen some by itself", list(&own));
        return warning(
            "processor",
            text,
            "move it to a processor that has all, or run it without",
        );
    }
    let text = format!(
        "its processor lacks {}, which the job's libraries may have chosen",
        lacks.join(", ")
    );
    if offer.force {
        return warning("processor", text, "");
    }
    let tunables = host::tunables_without(lacks.iter().map(String::as_str));
    let level = Baseline::highest(&have).name();
    let way_out = format!(
        "start the job with ulpm_launch --cpu-baseline {level}, or with GLIBC_TUNABLES={tunables}, or migrate with \
         --force"
    );
    no("processor", text, &way_out)
}

/// Whether a program or library is known to ask the processor itself, whatever the environment says.
fn asks_itself(path: &str) -> bool {
    const KNOWN: [&str; 11] = [
        "libLLVM",
        "libavcodec",
        "libblis",
        "libgcrypt",
        "libgmp",
        "libjulia",
        "libjvm",
        "libluajit",
        "libx264",
        "libx265",
        "node",
    ];
    let name = path.rsplit('/').next().unwrap_or_default();
    KNOWN.iter().any(|known| {
        name.strip_prefix(known)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
    })
}

fn kernel(offer: &Offer) -> Finding {
    let here = host::kernel();
    let lacks = host::kernel_lacks(&offer.kernel_features);
    let mut numbers = here.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
    let release = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if release < OLDEST_KERNEL {
        let (major, minor) = OLDEST_KERNEL;
        let text = format!("Linux {here} there is older than {major}.{minor}");
        return no("kernel", text, "");
    }
    if !lacks.is_empty() {
        let text =
            format!("Linux {here} there has no {}, which the job uses", lacks.join(" and no "));
        return no("kernel", text, "choose another host, or load or enable that");
    }
    let uses = if offer.kernel_features.is_empty() {
        String::new()
    } else {
        format!("; the job uses {}", offer.kernel_features.join(", "))
    };
    ok("kernel", format!("Linux {here} there, {} here{uses}", offer.kernel))
}

fn version(offer: &Offer) -> Finding {
    let here = env!("CARGO_PKG_VERSION");
    if offer.format != ulpm_image::FORMAT_VERSION {
        let text = format!(
            "ULPM {here} there reads images of format {}, and ULPM {} here writes format {}",
            ulpm_image::FORMAT_VERSION,
            offer.version,
            offer.format
        );
        no("version", text, "use the same release of ULPM on both sides")
    } else if offer.version != here {
        let text = format!("ULPM {here} there, {} here", offer.version);
        warning("version", text, "")
    } else {
        ok("version", format!("ULPM {here} on both sides"))
    }
}

fn user(offer: &Offer) -> Vec<Finding> {
    let uid = nix::unistd::geteuid();
    if uid.as_raw() != offer.uid {
        let text = format!(
            "the coordinator there runs as user {uid}, and the job belongs to user {}",
            offer.uid
        );
        let way_out = "run a coordinator there as a user with that number";
        return vec![no("user", text, way_out)];
    }
    let mut findings = Vec::new();
    let own: Vec<u32> =
        nix::unistd::getgroups().unwrap_or_default().iter().map(|group| group.as_raw()).collect();
    let lacks: Vec<_> = offer.groups.iter().filter(|group| !own.contains(group)).collect();
    if !uid.is_root() && !lacks.is_empty() {
        let text = format!(
            "the user is not in group {} there; what only that may open, the job cannot",
            list(&lacks)
        );
        findings.push(warning("groups", text, ""));
    }
    if offer.outside == Outside::Repair && !uid.is_root() {
        let text = "the coordinator there does not run as root, so that connections to programs outside the job \
                    are reset and not repaired";
        findings.push(warning("connections", text, ""));
    }
    if findings.is_empty() {
        findings.push(ok("user", format!("user {uid} on both sides")));
    }
    findings
}

fn files(offer: &Offer) -> Vec<Finding> {
    let mut missing = Vec::new();
    let mut closed = Vec::new();
    for Needed { path, access } in &offer.paths {
        if !Path::new(path).exists() {
            missing.push(path);
        } else if nix::unistd::access(path.as_str(), AccessFlags::from_bits_truncate(*access))
            .is_err()
        {
            closed.push(path);
        }
    }
    let mut findings = Vec::new();
    if !missing.is_empty() {
        let text = format!("{} does not exist there, and the job has it open", list(&missing));
        findings.push(no("files", text, "put it there, or send files along with --files ship"));
    }
    if !closed.is_empty() {
        let text = format!("the user may not open {} there as the job has it open", list(&closed));
        findings.push(no("files", text, "change its permissions there"));
    }
    if findings.is_empty() {
        let text = match offer.paths.len() {
            0 => "the job has none open".into(),
            count => format!("all {count} files and directories that the job has open are there"),
        };
        findings.push(ok("files", text));
    }
    let gone: Vec<_> = offer.programs.iter().filter(|path| !Path::new(path).exists()).collect();
    findings.push(if gone.is_empty() {
        ok("programs", format!("all {} programs and libraries are there", offer.programs.len()))
    } else {
        let text = format!(
            "{} does not exist there; what is loaded goes along, and it cannot be started again",
            list(&gone)
        );
        warning("programs", text, "install it there")
    });
    findings
}

fn memory(offer: &Offer) -> Finding {
    let have = available_memory();
    let need = offer.bytes;
    let (have_mib, need_mib) = (have >> 20, need >> 20);
    if have < need {
        let text = format!(
            "it has {have_mib} MiB of memory free there, and the job needs about {need_mib} MiB"
        );
        return no("memory", text, "");
    }
    let text = format!("about {need_mib} MiB are needed, and {have_mib} MiB are free there");
    if have / 10 * 9 < need { warning("memory", text, "") } else { ok("memory", text) }
}

fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    if text.is_empty() { u64::MAX } else { (kib("MemAvailable:") + kib("SwapFree:")) * 1024 }
}

/// Where images may be put: where the job has them, or where they are without a word of the user.
pub(super) fn image_dirs(offer: &Offer) -> Vec<PathBuf> {
    let mut dirs = vec![offer.policy.ckpt_dir.clone()];
    dirs.extend(place::ckpt_dir().filter(|dir| *dir != offer.policy.ckpt_dir));
    dirs
}

fn disk(offer: &Offer) -> Finding {
    let need = offer.bytes;
    let mut refused = Vec::new();
    for dir in image_dirs(offer) {
        // It is made if it does not exist.
        let Some(above) = dir.ancestors().find(|above| above.exists()) else { continue };
        let writable = AccessFlags::W_OK | AccessFlags::X_OK;
        if !above.is_dir() || nix::unistd::access(above, writable).is_err() {
            refused.push(format!("{} cannot be written there", dir.display()));
            continue;
        }
        let Ok(stat) = nix::sys::statvfs::statvfs(above) else { continue };
        let have = stat.blocks_available() * stat.fragment_size();
        let (have_mib, need_mib) = (have >> 20, need >> 20);
        // A file system in memory may say nothing.
        if have >= need || stat.blocks() == 0 {
            let text = format!(
                "about {need_mib} MiB are needed in {}, and {have_mib} MiB are free there",
                dir.display()
            );
            return ok("disk", text);
        }
        refused.push(format!(
            "{} has {have_mib} MiB free there, and the images need about {need_mib} MiB",
            dir.display()
        ));
    }
    no("disk", refused.join("; "), "make room there, or start the job with another --ckpt-dir")
}

/// Limits of the kernel on what our processes may have.
fn resources(offer: &Offer) -> Finding {
    let hard = |resource| getrlimit(resource).map_or(u64::MAX, |(_, hard)| hard);
    let files = hard(Resource::RLIMIT_NOFILE);
    if offer.descriptors > files {
        let text = format!(
            "a process may have {files} descriptors there, and the job has number {} open",
            offer.descriptors - 1
        );
        return no("resources", text, "raise the limit (ulimit -Hn) for the coordinator there");
    }
    let threads = hard(Resource::RLIMIT_NPROC);
    if u64::from(offer.threads) > threads && !nix::unistd::geteuid().is_root() {
        let text =
            format!("the user may have {threads} threads there, and the job has {}", offer.threads);
        return no("resources", text, "raise the limit (ulimit -Hu) for the coordinator there");
    }
    let text = format!("{} processes, {} threads, descriptors", offer.processes, offer.threads);
    ok("resources", format!("{text} below {}", offer.descriptors))
}

/// What one process of a job needs, and what of it cannot be saved, as far as /proc says so.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Paths, and what has to be allowed: bits as for access(2).
    pub(super) needed: Vec<(PathBuf, i32)>,
    pub(super) programs: BTreeSet<String>,
    pub(super) kernel: BTreeSet<&'static str>,
    pub(super) descriptors: u64,
    pub(super) refused: Vec<Finding>,
}

/// Looks at a process. `replaced` is as for [`process::open_paths`].
pub(super) fn look_at(pid: i32, replaced: &[(u64, u64)], table: &Path) -> Look {
    let mut look = Look { needed: process::open_paths(pid, replaced), ..Look::default() };
    let name = format!("process {pid} ({})", process::short_command(pid));
    let way_out = "have the program close it before the move";
    let sockets = Sockets::of(pid);
    for (fd, path) in process::descriptors(pid) {
        look.descriptors = look.descriptors.max(u64::try_from(fd).unwrap_or(0) + 1);
        let bytes = path.as_os_str().as_encoded_bytes();
        let anonymous = bytes.strip_prefix(b"anon_inode:");
        let why = match anonymous {
            Some(name) => refused::anonymous(name),
            None => refused::device(bytes),
        };
        if let Some(why) = why {
            let text = format!(
                "{name}: descriptor {fd} ({}) {why}, which cannot be saved",
                path.display()
            );
            look.refused.push(no("objects", text, way_out));
        }
        match anonymous {
            Some(b"[eventpoll]") => drop(look.kernel.insert("epoll")),
            Some(b"inotify") => drop(look.kernel.insert("inotify")),
            _ => {}
        }
        if let Some(inode) = socket_inode(bytes) {
            if sockets.packet.contains(&inode) {
                let text =
                    format!("{name}: descriptor {fd} is a packet socket, which cannot be saved");
                look.refused.push(no("objects", text, way_out));
            }
            if sockets.v6.contains(&inode) {
                look.kernel.insert("IPv6");
            }
        }
    }
    for (path, shared) in process::mapped_files(pid, table) {
        if shared {
            look.needed.push((path, AccessFlags::R_OK.bits()));
        } else {
            look.programs.extend(path.to_str().map(str::to_owned));
        }
    }
    if let Some(tracer) = process::tracer(pid) {
        let text = format!("{name} {}", traced_by(tracer));
        look.refused.push(no("objects", text, TRACER_WAY_OUT));
    }
    look
}

/// Of a process that is traced.
pub(crate) fn traced_by(tracer: i32) -> String {
    let command = process::short_command(tracer);
    format!(
        "is traced by process {tracer} ({command}), which a restart could not have trace it again"
    )
}
/// What helps then.
pub(crate) const TRACER_WAY_OUT: &str = "end the debugger, or strace, or have it let go";

/// Processes whose rights a restart would not bring back.
pub(super) fn rights(pids: impl Iterator<Item = i32>) -> Vec<Finding> {
    let Some(own) = process::Rights::of("self") else { return Vec::new() };
    let foreign = pids.filter_map(|pid| {
        let why = process::Rights::of(&pid.to_string())?.foreign_to(&own)?;
        let text =
            format!("process {pid} ({}) cannot be saved: {why}", process::short_command(pid));
        Some(no("objects", text, ""))
    });
    foreign.collect()
}

/// Children of members that are no members.
pub(super) fn strangers(strangers: &[Stranger]) -> Vec<Finding> {
    let stranger = |stranger: &Stranger| {
        let pid = stranger.pid.0;
        if process::has_pid_namespace(pid) {
            let name = format!("process {pid} ({})", process::short_command(pid));
            return no("objects", format!("{name} {NAMESPACE}"), NAMESPACE_WAY_OUT);
        }
        let text = format!(
            "process {pid} ({}), a child of {}, is not under ULPM",
            process::short_command(pid),
            stranger.parent
        );
        // It may be about to be one.
        let way_out = "try again; one that is static, setuid or another user's has to end first";
        warning("objects", text, way_out)
    };
    strangers.iter().map(stranger).collect()
}

/// That nothing of a job is in the way.
pub(super) fn no_objections(processes: usize) -> Finding {
    let text = format!(
        "nothing that the kernel shows of {processes} processes is in the way; what they share, and what is \
         under way in sockets, is looked at when they stand still"
    );
    ok("objects", text)
}

/// N of `socket:[N]`.
fn socket_inode(path: &[u8]) -> Option<u64> {
    let number = path.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Sockets of a process's network, by their inodes.
#[derive(Debug, Default)]
struct Sockets {
    packet: BTreeSet<u64>,
    v6: BTreeSet<u64>,
}

impl Sockets {
    fn of(pid: i32) -> Self {
        // Field numbers as the kernel prints them: proc_pid_net(5).
        let inodes = |names: &[&str], field: usize| {
            let texts = names
                .iter()
                .filter_map(|name| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")).ok());
            let texts: Vec<_> = texts.collect();
            let lines = texts.iter().flat_map(|text| text.lines().skip(1));
            lines.filter_map(|line| line.split_whitespace().nth(field)?.parse().ok()).collect()
        };
        Self { packet: inodes(&["packet"], 8), v6: inodes(&["tcp6", "udp6", "raw6"], 9) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_could_move() {
        let look = look_at(std::process::id().cast_signed(), &[], Path::new("/"));
        assert!(look.refused.is_empty(), "{:?}", look.refused);
        assert!(look.programs.iter().any(|path| path.contains("libc")), "{:?}", look.programs);
        assert!(look.descriptors > 2);
    }

    #[test]
    fn a_socket_of_version_6_is_seen() {
        let Ok(listener) = std::net::TcpListener::bind("[::1]:0") else { return };
        let look = look_at(std::process::id().cast_signed(), &[], Path::new("/"));
        assert!(look.kernel.contains("IPv6"));
        drop(listener);
    }

    #[test]
    fn libraries_are_known_by_their_names() {
        assert!(asks_itself("/usr/bin/node") && asks_itself("/usr/lib/libgmp.so.10"));
        assert!(asks_itself("/usr/lib/libLLVM-15.so.1"));
        assert!(!asks_itself("/usr/bin/nodejs2") && !asks_itself("/usr/lib/libgmpxx.so.4"));
    }

    #[test]
    fn a_long_list_is_cut() {
        assert_eq!(list(&[1, 2]), "1, 2");
        assert_eq!(list(&[1, 2, 3, 4, 5, 6, 7]), "1, 2, 3, 4, 5, 2 more");
    }
}
