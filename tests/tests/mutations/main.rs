//! Damage that no checksum shows: images and messages that were changed at random and are whole all the same. Each is
//! either taken for what it says, or refused in words; none makes us crash, hang, or reserve more memory than its length allows.
//!
//! `ULPM_TEST_MUTATIONS` says how many of each; without it, what takes a few seconds.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use ulpm_control::codec;
use ulpm_control::manifest::Manifest;
use ulpm_control::message::{JobId, PeerMessage, Reply, Request};
use ulpm_image::{Batch, Crc32c, Header, Meta, PAGE};
use ulpm_protocol::manager::{self, FromManager, ToManager};
use ulpm_restart::image_file::ImageFile;
use ulpm_tests::{Lab, Pace, Program, Random, Result, ensure, program_path};

/// Counts what is reserved, and the most that was.
struct Counting;

static RESERVED: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does it; what is counted changes nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = RESERVED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller vouches for the layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        RESERVED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller vouches for both.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One test at a time: all count what is reserved in this process.
static TURN: Mutex<()> = Mutex::new(());

/// Longest time for one that is refused or taken, on a loaded machine.
const LONGEST: Duration = Duration::from_secs(2);

/// Runs `take` on something of `len` bytes, and sees that it neither takes long nor much memory.
fn within_bounds<T>(len: usize, take: impl FnOnce() -> T) -> Result<T> {
    let before = RESERVED.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let began = Instant::now();
    let taken = take();
    let (time, most) = (began.elapsed(), MOST.load(Ordering::Relaxed).saturating_sub(before));
    // In memory a list of numbers of one byte each may become one of structures.
    let allowed = 64 * len + (1 << 20);
    ensure!(most <= allowed, "{len} bytes had {most} reserved, {allowed} are allowed");
    ensure!(time < LONGEST, "{len} bytes took {time:?}");
    Ok(taken)
}

fn count() -> u64 {
    let asked = std::env::var("ULPM_TEST_MUTATIONS").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(20_000)
}

/// Changes bytes at one to eight random places: bits, numbers that are at some limit, pieces that are left out, said twice, or
/// come from elsewhere.
fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    const LIMITS: [u32; 8] = [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0x8000_0000, u32::MAX - 1, u32::MAX];
    let any = |random: &mut Random, len: usize| {
        usize::try_from(random.between(0, len as u64)).unwrap_or(0)
    };
    let mut bytes = seeds[any(random, seeds.len())].clone();
    for _ in 0..random.between(1, 9) {
        let at = any(random, bytes.len());
        let len = any(random, 64).min(bytes.len() - at);
        match random.between(0, 6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << any(random, 8),
            1 if at < bytes.len() => bytes[at] = LIMITS[any(random, 8)].to_le_bytes()[0],
            2 if at + 4 <= bytes.len() => {
                bytes[at..at + 4].copy_from_slice(&LIMITS[any(random, 8)].to_le_bytes());
            }
            3 => drop(bytes.drain(at..at + len)),
            4 => {
                let twice = bytes[at..at + len].to_vec();
                bytes.splice(at..at, twice);
            }
            _ => {
                let other = &seeds[any(random, seeds.len())];
                let from = any(random, other.len());
                let piece = other[from..other.len().min(from + len)].to_vec();
                bytes.splice(at..at + len, piece);
            }
        }
    }
    bytes
}

/// The metadata of every image of a job with threads, processes, files, pipes and sockets.
fn metadata(lab: &Lab) -> Result<Vec<Vec<u8>>> {
    let script = program_path("servers.py").to_string_lossy().into_owned();
    let argv = ["/usr/bin/python3", &script, "multiprocessing", "1000000"];
    let guest = lab.launch(&Program::new("seeds", &argv, Pace::Steps))?;
    guest.wait_step(3)?;
    let checkpoint = lab.checkpoint(&guest)?;
    guest.kill_tree()?;
    let mut seeds = Vec::new();
    for entry in fs::read_dir(&checkpoint.path)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "ulpm") {
            let image = ImageFile::open(&path)?;
            let bytes = image.meta.encode();
            ensure!(Meta::decode(&bytes)? == image.meta, "{path:?} does not come back");
            seeds.push(bytes);
        }
    }
    ensure!(seeds.len() >= 4, "{} images", seeds.len());
    Ok(seeds)
}

/// An image without memory, whose checksums are right.
fn write_image(path: &Path, meta: &[u8]) -> Result {
    let meta_len = u64::try_from(meta.len())?;
    let mut bytes = Header { meta_len, meta_crc: Crc32c::of(meta) }.encode().to_vec();
    bytes.extend(meta);
    bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
    bytes.extend(Batch::new(0).encode());
    Ok(fs::write(path, bytes)?)
}

#[test]
fn mutated_images_are_refused_or_mean_what_they_say() -> Result {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Lab::one_host(|lab| {
        let seeds = metadata(lab)?;
        let path = lab.images().join("mutated.ulpm");
        let mut random = Random::from_env();
        let (mut taken, all) = (0, count());
        for _ in 0..all {
            let bytes = mutate(&seeds, &mut random);
            match within_bounds(bytes.len(), || Meta::decode(&bytes))? {
                Err(error) => ensure!(!error.to_string().is_empty(), "refused without a word"),
                Ok(meta) => {
                    let again = Meta::decode(&meta.encode())?;
                    ensure!(again == meta, "what was taken is something else when it is written");
                    taken += 1;
                    // Much of the time goes into the file.
                    if taken % 16 == 0 {
                        write_image(&path, &bytes)?;
                        let opened =
                            within_bounds(bytes.len() + 4 * PAGE, || ImageFile::open(&path))?;
                        ensure!(opened?.meta == meta, "the file holds something else");
                    }
                }
            }
        }
        println!("{taken} of {all} were taken");
        ensure!(taken > 0 && taken < all, "{taken} of {all} were taken");
        Ok(())
    })
}

/// Passes on what a tool and its coordinator say to each other, and keeps it.
fn listen_in(from: &Path, to: &Path) -> Result<Arc<Mutex<Vec<Vec<u8>>>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = UnixListener::bind(from)?;
    let (to, kept) = (to.to_path_buf(), Arc::clone(&heard));
    std::thread::spawn(move || {
        for tool in listener.incoming().flatten() {
            let Ok(coordinator) = UnixStream::connect(&to) else { return };
            let (Ok(tool_too), Ok(coordinator_too)) = (tool.try_clone(), coordinator.try_clone())
            else {
                return;
            };
            for (mut source, mut sink) in [(tool, coordinator), (coordinator_too, tool_too)] {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || {
                    let mut buffer = vec![0; codec::MAX_PAYLOAD];
                    while let Ok(len @ 1..) = source.read(&mut buffer) {
                        if let Ok(mut kept) = kept.lock() {
                            kept.push(buffer[..len].to_vec());
                        }
                        if sink.write_all(&buffer[..len]).is_err() {
                            break;
                        }
                    }
                    let _ = sink.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    Ok(heard)
}

/// Whether a frame is refused, or comes back as it was taken.
fn holds<T: DeserializeOwned + Serialize>(frame: &[u8]) -> Result<bool> {
    let read = || codec::read::<T>(&mut &frame[..]);
    match within_bounds(frame.len() + codec::MAX_PAYLOAD, read)? {
        Err(error) => {
            ensure!(!error.to_string().is_empty(), "refused without a word");
            Ok(false)
        }
        Ok(message) => {
            // Bytes, for a number may be none (NaN) and differ from itself.
            let sent = codec::encode(&message)?;
            let again = codec::encode(&codec::read::<T>(&mut &sent[..])?)?;
            ensure!(again == sent, "what was taken is something else when it is sent");
            Ok(true)
        }
    }
}

/// Frames that were heard between real programs, and those between two hosts, which are not to be heard (TLS).
fn frames(lab: &Lab) -> Result<Vec<Vec<u8>>> {
    let guest = lab.launch(&Program::new("heard", &["/usr/bin/sleep", "1000"], Pace::Cpu))?;
    guest.wait_running()?;
    let socket = lab.images().join("ear");
    let status = lab.hosts[0].status()?;
    let Some(own) = status["socket"].as_str() else { return Err("no socket".into()) };
    let heard = listen_in(&socket, Path::new(own))?;
    let ear = socket.to_string_lossy().into_owned();
    for words in [&["--status"][..], &["--checkpoint"], &["--interval", "100"], &["--checkpoint"]] {
        let words = [&["-c", ear.as_str()][..], words].concat();
        lab.tool(0, "ulpm_command", &words)?.success()?;
    }
    let found = lab.checkpoint(&guest)?;
    guest.kill_tree()?;
    let text = || "text".to_owned();
    let manifest = Box::new(Manifest::read(&found.path)?);
    let mut frames = heard.lock().map_err(|_| "a listener has panicked")?.clone();
    ensure!(frames.len() >= 8, "{} frames were heard", frames.len());
    frames.extend([
        codec::encode(&PeerMessage::Manifest(manifest))?,
        codec::encode(&PeerMessage::Accept {
            token: text(),
            revoked: Some(vec![1; 300]),
            findings: vec![],
        })?,
        codec::encode(&PeerMessage::Refuse {
            code: 1,
            chain: vec![text(); 3],
            image: Some(text()),
        })?,
        codec::encode(&PeerMessage::Running { job: JobId(3), images: None })?,
        codec::encode(&Request::Join { name: text(), request: vec![7; 500] })?,
        codec::encode(&Request::Images { token: text() })?,
    ]);
    Ok(frames)
}

#[test]
fn mutated_messages_are_refused_or_mean_what_they_say() -> Result {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Lab::one_host(|lab| {
        let seeds = frames(lab)?;
        let mut random = Random::from_env();
        let (mut taken, all) = (0, count());
        for round in 0..all {
            let mut frame = mutate(&seeds, &mut random);
            // Mostly with a header that fits, so that what is behind it is looked at.
            if frame.len() > codec::HEADER_LEN && round % 8 != 0 {
                let payload = u32::try_from(frame.len() - codec::HEADER_LEN)?;
                frame[..4].copy_from_slice(&codec::MAGIC);
                frame[4..6].copy_from_slice(&codec::VERSION.to_le_bytes());
                frame[8..12].copy_from_slice(&payload.to_le_bytes());
            }
            let kinds = [holds::<Request>, holds::<Reply>, holds::<PeerMessage>];
            for kind in kinds {
                taken += u64::from(kind(&frame)?);
            }
        }
        println!("{taken} of {all} were taken, as one kind of message or another");
        ensure!(taken > 0 && taken < 3 * all, "{taken} of {all} were taken");
        Ok(())
    })
}

#[test]
fn mutated_messages_of_managers_are_refused_or_mean_what_they_say() -> Result {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut buffer = [0; manager::HEADER_LEN + manager::MAX_PAYLOAD];
    let mut seeds = Vec::new();
    for message in [
        FromManager::Hello { version: 1, job: 2, real: 3, virt: 4, restored: true, stopped: false },
        FromManager::Frozen { threads: 5 },
        FromManager::Written { bytes: 1 << 40 },
        FromManager::Snapped,
    ] {
        let len = message.encode(&mut buffer);
        seeds.push(buffer[..len].to_vec());
    }
    let len = ToManager::Capture { flags: 3, zombies: &[9; 48] }.encode(&mut buffer);
    seeds.push(buffer[..len].to_vec());
    let mut random = Random::from_env();
    let mut taken = 0;
    for _ in 0..count() {
        let frame = mutate(&seeds, &mut random);
        let Some((header, payload)) = frame.split_first_chunk::<{ manager::HEADER_LEN }>() else {
            continue;
        };
        let Ok(header) = manager::FrameHeader::decode(*header) else { continue };
        let payload = &payload[..payload.len().min(header.len)];
        if let Ok(message) = FromManager::decode(header.kind, payload) {
            let len = message.encode(&mut buffer);
            let again = FromManager::decode(header.kind, &buffer[manager::HEADER_LEN..len]);
            ensure!(again == Ok(message), "{message:?} is {again:?} when it is sent");
            taken += 1;
        }
        let _ = ToManager::decode(header.kind, payload);
    }
    ensure!(taken > 0, "none was taken");
    Ok(())
}

/// A coordinator that is told nonsense a thousand times over has its jobs and answers as before.
#[test]
fn a_coordinator_bears_mutated_messages() -> Result {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Lab::one_host(|lab| {
        let seeds = frames(lab)?;
        let guest = lab.launch(&Program::new("stays", &["/usr/bin/sleep", "1000"], Pace::Cpu))?;
        guest.wait_running()?;
        let status = lab.hosts[0].status()?;
        let Some(own) = status["socket"].as_str() else { return Err("no socket".into()) };
        let mut random = Random::from_env();
        for round in 0..count() / 20 {
            let frame = mutate(&seeds, &mut random);
            // What is a request by chance would be done.
            if codec::read::<Request>(&mut &frame[..]).is_ok() {
                continue;
            }
            let mut link = UnixStream::connect(own)?;
            // It may have hung up in the middle.
            let _ = link.write_all(&frame);
            let _ = link.shutdown(std::net::Shutdown::Write);
            if round % 100 == 0 {
                ensure!(lab.job(0, &guest.name)?.is_some(), "the job is not known after {round}");
            }
        }
        lab.checkpoint(&guest)?;
        guest.kill_tree()?;
        Ok(())
    })
}
