//! What is in an image.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use ulpm_control::exit;
use ulpm_control::manifest::{FILE_NAME, Manifest, ManifestError};
use ulpm_image::meta::{description_kind, plugin_flag, region_flag, region_kind};
use ulpm_image::{Batch, Crc32c, Header, ImageError, Meta, PAGE};

use crate::text;

/// Why an image cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no image, or a damaged one.
    #[error("image {} cannot be used", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ImageError,
    },
    /// The directory is no checkpoint.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// It has no text.
    #[error("cannot print the image as JSON")]
    Json(#[from] serde_json::Error),
}

impl InspectError {
    /// Exit code of the tool.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => exit::NO_INPUT,
            Self::Manifest(ManifestError::Missing(_)) => exit::NO_INPUT,
            Self::Read { source, .. } | Self::Manifest(ManifestError::Io { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                exit::NO_PERMISSION
            }
            Self::Read { .. } | Self::Manifest(ManifestError::Io { .. }) => exit::IO,
            Self::Image { .. } | Self::Manifest(_) => exit::DATA,
            Self::Json(_) => exit::SOFTWARE,
        }
    }
}

#[derive(Debug, Serialize)]
struct Checkpoint {
    manifest: Manifest,
    images: Vec<Image>,
}

#[derive(Debug, Serialize)]
struct Image {
    file: String,
    bytes: u64,
    format: u16,
    metadata_bytes: u64,
    memory_bytes: u64,
    process: Process,
    threads: Vec<Thread>,
    regions: Vec<Region>,
    descriptors: Vec<Descriptor>,
    pipes: Vec<Pipe>,
    zombies: Vec<Zombie>,
    plugins: Vec<Plugin>,
}

#[derive(Debug, Serialize)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    name: String,
    program: String,
    directory: String,
    arguments_bytes: u64,
    heap_bytes: u64,
    uid: u32,
    gid: u32,
    stopped: bool,
}

#[derive(Debug, Serialize)]
struct Thread {
    id: i32,
    name: String,
    system_call: Option<i64>,
}

#[derive(Debug, Serialize)]
struct Region {
    start: u64,
    end: u64,
    protection: String,
    kind: &'static str,
    flags: Vec<&'static str>,
    offset: u64,
    path: String,
    saved_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Descriptor {
    fd: i32,
    kind: &'static str,
    description: u64,
    close_on_exec: bool,
    flags: u32,
    position: u64,
    path: String,
}

#[derive(Debug, Serialize)]
struct Pipe {
    id: u64,
    capacity: u64,
    bytes: usize,
}

#[derive(Debug, Serialize)]
struct Zombie {
    pid: i32,
    status: i32,
}

#[derive(Debug, Serialize)]
struct Plugin {
    name: String,
    version: String,
    path: String,
    required: bool,
    section_version: u32,
    section: String,
}

/// Describes an image, or all images of a checkpoint's directory, after checking every byte.
///
/// # Errors
///
/// [`InspectError`] also for an image that is damaged at its very end.
pub fn inspect(path: &Path, json: bool) -> Result<String, InspectError> {
    if path.is_dir() || path.file_name().is_some_and(|name| name == FILE_NAME) {
        let dir = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
        let manifest = Manifest::read(dir)?;
        let images: Result<_, _> =
            manifest.processes.iter().map(|process| read(&dir.join(&process.file))).collect();
        let checkpoint = Checkpoint { manifest, images: images? };
        return if json { to_json(&checkpoint) } else { Ok(show_checkpoint(&checkpoint)) };
    }
    let image = read(path)?;
    if json { to_json(&image) } else { Ok(show(&image)) }
}

fn to_json<T: Serialize>(value: &T) -> Result<String, InspectError> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Reads from the start to the end, and knows where it is.
struct Reader {
    file: BufReader<File>,
    offset: u64,
}

/// Outside: reading failed. Inside: what was read is wrong.
type Checked<T> = io::Result<Result<T, ImageError>>;

impl Reader {
    fn fill(&mut self, bytes: &mut [u8]) -> Checked<()> {
        match self.file.read_exact(bytes) {
            Ok(()) => {
                self.offset += bytes.len() as u64;
                Ok(Ok(()))
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Ok(Err(ImageError::Short { offset: self.offset }))
            }
            Err(error) => Err(error),
        }
    }

    fn page(&mut self) -> Checked<[u8; PAGE]> {
        let mut page = [0; PAGE];
        Ok(self.fill(&mut page)?.map(|()| page))
    }
}

fn read(path: &Path) -> Result<Image, InspectError> {
    let failed = |source| InspectError::Read { path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    let mut head = [0; 8];
    let have = Read::by_ref(&mut &file).take(8).read(&mut head).map_err(failed)?;
    let wrong = |source| InspectError::Image { path: path.into(), source };
    if have < 8 || head != ulpm_image::MAGIC {
        return Err(wrong(ImageError::NotAnImage));
    }
    let file = File::open(path).map_err(failed)?;
    let mut reader = Reader { file: BufReader::with_capacity(1 << 20, file), offset: 0 };
    let (header, meta, pages) = walk(&mut reader, len).map_err(failed)?.map_err(wrong)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(describe(name, len, &header, &meta, &pages))
}

/// Addresses and lengths of what was saved of memory.
type Saved = Vec<(u64, u64)>;

fn walk(reader: &mut Reader, len: u64) -> Checked<(Header, Meta, Saved)> {
    macro_rules! check {
        ($result:expr) => {
            match $result {
                Ok(value) => value,
                Err(error) => return Ok(Err(error)),
            }
        };
    }
    let page = check!(reader.page()?);
    let header = check!(Header::decode(&page));
    if header.meta_len > len {
        return Ok(Err(ImageError::Short { offset: len }));
    }
    let meta_len = usize::try_from(header.meta_len).unwrap_or(usize::MAX);
    let mut bytes = vec![0; meta_len.next_multiple_of(PAGE)];
    check!(reader.fill(&mut bytes)?);
    if Crc32c::of(&bytes[..meta_len]) != header.meta_crc {
        return Ok(Err(ImageError::Checksum { part: "metadata", offset: PAGE as u64 }));
    }
    let meta = check!(Meta::decode(&bytes[..meta_len]));
    let mut saved = Vec::new();
    let mut pages = 0;
    let mut data = Vec::new();
    loop {
        let offset = reader.offset;
        let page = check!(reader.page()?);
        let batch = check!(Batch::decode(&page, offset));
        if batch.pages_before != pages {
            return Ok(Err(ImageError::Invalid { field: "page count", found: batch.pages_before }));
        }
        if batch.is_last() {
            break;
        }
        for extent in batch.extents() {
            let offset = reader.offset;
            data.resize(extent.len(), 0);
            check!(reader.fill(&mut data)?);
            if Crc32c::of(&data) != extent.crc {
                return Ok(Err(ImageError::Checksum { part: "memory", offset }));
            }
            saved.push((extent.address, extent.len() as u64));
        }
        pages += batch.pages();
    }
    if reader.offset != len {
        let found = len.saturating_sub(reader.offset);
        return Ok(Err(ImageError::Invalid { field: "length behind its end", found }));
    }
    Ok(Ok((header, meta, saved)))
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

fn describe(file: String, bytes: u64, header: &Header, meta: &Meta, saved: &Saved) -> Image {
    let process = &meta.process;
    let [_, _, _, _, start_brk, brk, _, arg_start, arg_end, ..] = meta.memory_map.fields;
    let saved_in = |start: u64, end: u64| {
        let inside = saved.iter().filter(|(address, _)| (start..end).contains(address));
        inside.map(|(_, len)| len).sum()
    };
    Image {
        file,
        bytes,
        format: ulpm_image::FORMAT_VERSION,
        metadata_bytes: header.meta_len,
        memory_bytes: saved.iter().map(|(_, len)| len).sum(),
        process: Process {
            pid: process.pid,
            parent: process.ppid,
            group: process.pgid,
            session: process.sid,
            name: lossy(&process.comm),
            program: lossy(&process.exe),
            directory: lossy(&process.cwd),
            arguments_bytes: arg_end.saturating_sub(arg_start),
            heap_bytes: brk.saturating_sub(start_brk),
            uid: process.uid,
            gid: process.gid,
            stopped: process.stopped,
        },
        threads: meta
            .threads
            .iter()
            .map(|thread| Thread {
                id: thread.tid,
                name: lossy(&thread.name),
                system_call: Some(thread.syscall).filter(|&number| number >= 0),
            })
            .collect(),
        regions: meta
            .regions
            .iter()
            .map(|region| Region {
                start: region.start,
                end: region.end,
                protection: protection(region.protection),
                kind: match region.kind {
                    region_kind::ANONYMOUS => "anonymous",
                    region_kind::FILE => "file",
                    region_kind::SHARED_MEMORY => "shared memory",
                    region_kind::VDSO => "vdso",
                    region_kind::SEGMENT => "System V memory",
                    _ => "unknown",
                },
                flags: flags(region.flags),
                offset: region.offset,
                path: lossy(&region.path),
                saved_bytes: saved_in(region.start, region.end),
            })
            .collect(),
        descriptors: meta
            .descriptors
            .iter()
            .map(|descriptor| {
                let file = meta.descriptions.iter().find(|file| file.id == descriptor.description);
                Descriptor {
                    fd: descriptor.fd,
                    kind: match file.map_or(0, |file| file.kind) {
                        description_kind::FILE => "file",
                        description_kind::PIPE => "pipe",
                        description_kind::STREAM => "stream",
                        description_kind::EVENT => "event",
                        description_kind::EPOLL => "epoll",
                        description_kind::SOCKET => "socket",
                        description_kind::MASTER => "pty master",
                        description_kind::TERMINAL => "terminal",
                        _ => "unknown",
                    },
                    description: descriptor.description,
                    close_on_exec: descriptor.cloexec,
                    flags: file.map_or(0, |file| file.flags),
                    position: file.map_or(0, |file| file.position),
                    path: file.map(|file| lossy(&file.path)).unwrap_or_default(),
                }
            })
            .collect(),
        pipes: meta
            .pipes
            .iter()
            .map(|pipe| Pipe { id: pipe.id, capacity: pipe.capacity, bytes: pipe.content.len() })
            .collect(),
        plugins: meta
            .plugins
            .iter()
            .map(|plugin| Plugin {
                name: lossy(&plugin.name),
                version: lossy(&plugin.version),
                path: lossy(&plugin.path),
                required: plugin.flags & plugin_flag::REQUIRED != 0,
                section_version: plugin.section_version,
                section: plugin.section.escape_ascii().to_string(),
            })
            .collect(),
        zombies: meta
            .zombies
            .iter()
            .map(|zombie| Zombie { pid: zombie.pid, status: zombie.status })
            .collect(),
    }
}

fn protection(bits: u32) -> String {
    [(1, 'r'), (2, 'w'), (4, 'x')]
        .map(|(bit, letter)| if bits & bit == 0 { '-' } else { letter })
        .iter()
        .collect()
}

fn flags(bits: u32) -> Vec<&'static str> {
    let names = [
        (region_flag::SHARED, "shared"),
        (region_flag::GROWS_DOWN, "grows-down"),
        (region_flag::NO_RESERVE, "no-reserve"),
        (region_flag::HUGE_PAGE, "huge-page"),
        (region_flag::NO_HUGE_PAGE, "no-huge-page"),
        (region_flag::DONT_FORK, "dont-fork"),
        (region_flag::WIPE_ON_FORK, "wipe-on-fork"),
        (region_flag::DONT_DUMP, "dont-dump"),
        (region_flag::MERGEABLE, "mergeable"),
        (region_flag::LOCKED, "locked"),
        (region_flag::CARRIED, "carried"),
    ];
    names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect()
}

fn show_checkpoint(checkpoint: &Checkpoint) -> String {
    let manifest = &checkpoint.manifest;
    let mut out = format!(
        "job {}, generation {}, of {} on {} ({}, Linux {}), made by ULPM {}\n",
        manifest.job,
        manifest.generation,
        manifest.created,
        manifest.host,
        manifest.arch,
        manifest.kernel,
        manifest.ulpm_version
    );
    out += &format!("{}\n", manifest.argv.join(" "));
    out += &format!(
        "{} processes, {}, frozen for {:.1} ms\n",
        manifest.processes.len(),
        text::bytes(manifest.bytes()),
        manifest.freeze_ms
    );
    for image in &checkpoint.images {
        out.push('\n');
        out += &show(image);
    }
    out
}

fn show(image: &Image) -> String {
    let process = &image.process;
    let mut out = format!(
        "image {} (format {}): {}, of which {} memory and {} metadata\n",
        image.file,
        image.format,
        text::bytes(image.bytes),
        text::bytes(image.memory_bytes),
        text::bytes(image.metadata_bytes)
    );
    out += &format!(
        "process {} ({}), parent {}, group {}, session {}{}\n",
        process.pid,
        process.name,
        process.parent,
        process.group,
        process.session,
        if process.stopped { ", stopped" } else { "" }
    );
    out += &format!(
        "program {}, in {}, heap {}\n",
        process.program,
        process.directory,
        text::bytes(process.heap_bytes)
    );
    out += &format!("\n{} threads\n", image.threads.len());
    let thread = |thread: &Thread| {
        let call =
            thread.system_call.map_or(String::new(), |number| format!("in system call {number}"));
        vec![thread.id.to_string(), thread.name.clone(), call]
    };
    out += &text::table(&image.threads.iter().map(thread).collect::<Vec<_>>(), 2);
    out += &format!("\n{} regions\n", image.regions.len());
    let region = |region: &Region| {
        vec![
            format!("{:x}-{:x}", region.start, region.end),
            region.protection.clone(),
            region.kind.into(),
            text::bytes(region.end - region.start),
            format!("saved {}", text::bytes(region.saved_bytes)),
            region.flags.join(","),
            region.path.clone(),
        ]
    };
    out += &text::table(&image.regions.iter().map(region).collect::<Vec<_>>(), 2);
    out += &format!("\n{} descriptors\n", image.descriptors.len());
    let descriptor = |descriptor: &Descriptor| {
        vec![
            descriptor.fd.to_string(),
            descriptor.kind.into(),
            format!("at {}", descriptor.position),
            descriptor.path.clone(),
        ]
    };
    out += &text::table(&image.descriptors.iter().map(descriptor).collect::<Vec<_>>(), 2);
    for pipe in &image.pipes {
        out += &format!("pipe {} holds {} of {} bytes\n", pipe.id, pipe.bytes, pipe.capacity);
    }
    for plugin in &image.plugins {
        let Plugin { name, version, path, section_version, section, .. } = plugin;
        out += &format!("plugin {name} {version} ({path})");
        if !section.is_empty() {
            out += &format!(", section of version {section_version}: {section}");
        }
        out.push('\n');
    }
    for zombie in &image.zombies {
        out += &format!("zombie {} with status {}\n", zombie.pid, zombie.status);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_image_is_said_to_be_none() {
        let path = std::env::temp_dir().join(format!("ulpm-inspect-{}", std::process::id()));
        for content in [&b""[..], b"short", &[0; 8192]] {
            std::fs::write(&path, content).unwrap();
            let error = inspect(&path, false).unwrap_err();
            assert!(matches!(error, InspectError::Image { source: ImageError::NotAnImage, .. }));
            assert_eq!(error.exit_code(), exit::DATA);
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(inspect(&path, false).unwrap_err().exit_code(), exit::NO_INPUT);
    }

    #[test]
    fn an_image_without_memory_is_shown_and_no_prefix_of_it_is() {
        let meta = Meta::default().encode();
        let header = Header { meta_len: meta.len() as u64, meta_crc: Crc32c::of(&meta) };
        let mut bytes = header.encode().to_vec();
        bytes.extend(&meta);
        bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
        bytes.extend(Batch::new(0).encode());
        let path = std::env::temp_dir().join(format!("ulpm-inspect-whole-{}", std::process::id()));
        std::fs::write(&path, &bytes).unwrap();
        assert!(inspect(&path, false).unwrap().contains("0 threads"));
        assert!(inspect(&path, true).unwrap().starts_with('{'));
        for cut in (0..bytes.len()).step_by(509) {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(inspect(&path, false).is_err(), "cut at {cut}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
