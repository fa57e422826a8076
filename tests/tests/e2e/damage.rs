//! Images that are cut short, damaged, or of another version are never restarted.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use ulpm_tests::{Guest, Lab, Program, Random, Result, ensure};

/// A checkpoint of a counter that was killed.
fn checkpoint_of_a_dead_counter(lab: &Lab) -> Result<(Guest<'_>, PathBuf)> {
    let guest = lab.launch(&Program::guest("counter", 100_000))?;
    guest.wait_step(3)?;
    let checkpoint = lab.checkpoint(&guest)?;
    guest.kill_tree()?;
    Ok((guest, checkpoint.path))
}

/// The image of a checkpoint of one process.
fn image(checkpoint: &Path) -> Result<PathBuf> {
    let found = fs::read_dir(checkpoint)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "ulpm"));
    Ok(found.ok_or("no image in the checkpoint")?)
}

/// Tries to restart `checkpoint`, which must fail before the program says anything.
fn refused(lab: &Lab, checkpoint: &Path, what: &str, words: &[&str]) -> Result {
    for arguments in [&["--check"][..], &[]] {
        let path = checkpoint.to_string_lossy();
        let output = lab.tool(0, "ulpm_restart", &[arguments, &[&*path]].concat())?;
        ensure!(output.stdout.is_empty(), "{what}: the program ran: {}", output.stdout);
        ensure!(output.code == 65, "{what}: exit status {}: {}", output.code, output.stderr);
        output.failure(words).map_err(|error| format!("{what}: {error}"))?;
    }
    let jobs = &lab.hosts[0].status()?["jobs"];
    ensure!(jobs.as_array().is_some_and(Vec::is_empty), "{what}: a job is left: {jobs}");
    Ok(())
}

/// That what was not touched restarts still: the damage was the reason, and nothing else.
fn still_restarts(lab: &Lab, guest: &Guest<'_>, checkpoint: &Path) -> Result {
    let twin = lab.restart(guest, checkpoint)?;
    twin.wait_step(4)?;
    twin.kill_tree()?;
    Ok(())
}

#[test]
fn image_that_is_cut_short() -> Result {
    Lab::one_host(|lab| {
        let (guest, checkpoint) = checkpoint_of_a_dead_counter(lab)?;
        let path = image(&checkpoint)?;
        let whole = fs::read(&path)?;
        for len in
            [0, 1, 31, 4095, 4096, 4097, whole.len() / 2, whole.len() - 4096, whole.len() - 1]
        {
            fs::write(&path, &whole[..len])?;
            refused(lab, &checkpoint, &format!("cut to {len} bytes"), &["image"])?;
        }
        fs::write(&path, whole)?;
        still_restarts(lab, &guest, &checkpoint)
    })
}

#[test]
fn image_with_one_flipped_bit() -> Result {
    Lab::one_host(|lab| {
        let (guest, checkpoint) = checkpoint_of_a_dead_counter(lab)?;
        let path = image(&checkpoint)?;
        let whole = fs::read(&path)?;
        let mut random = Random::from_env();
        let mut places = vec![0, 8 * 12, 8 * 16, 8 * 28, 8 * 4096, 8 * whole.len() - 1];
        for _ in 0..12 {
            places.push(usize::try_from(random.between(0, 8 * whole.len() as u64))?);
        }
        for bit in places {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, damaged)?;
            refused(lab, &checkpoint, &format!("bit {bit} flipped"), &["image"])?;
        }
        fs::write(&path, whole)?;
        still_restarts(lab, &guest, &checkpoint)
    })
}

#[test]
fn image_of_another_version_or_architecture() -> Result {
    Lab::one_host(|lab| {
        let (guest, checkpoint) = checkpoint_of_a_dead_counter(lab)?;
        let path = image(&checkpoint)?;
        let whole = fs::read(&path)?;
        // Version and architecture stand at 8 and 10, as the format's specification says.
        for (at, word) in [(8, "format"), (10, "architecture")] {
            let mut other = whole.clone();
            other[at] ^= 0x40;
            fs::write(&path, other)?;
            refused(lab, &checkpoint, word, &[word])?;
        }
        fs::write(&path, whole)?;
        still_restarts(lab, &guest, &checkpoint)
    })
}

#[test]
fn manifest_that_is_damaged_missing_or_of_another_time() -> Result {
    Lab::one_host(|lab| {
        let (guest, checkpoint) = checkpoint_of_a_dead_counter(lab)?;
        let path = checkpoint.join("manifest.json");
        let text = fs::read_to_string(&path)?;
        let changed = |key: &str, value: Value| -> Result<String> {
            let mut manifest: Value = serde_json::from_str(&text)?;
            manifest[key] = value;
            Ok(manifest.to_string())
        };
        let cases = [
            ("empty", String::new()),
            ("cut short", text[..text.len() / 2].to_owned()),
            ("format", changed("format", 99.into())?),
            ("no processes", changed("processes", Value::Array(Vec::new()))?),
            ("another root", changed("root", 1.into())?),
        ];
        for (what, text) in cases {
            fs::write(&path, text)?;
            refused(lab, &checkpoint, what, &["checkpoint"])?;
        }
        fs::write(&path, &text)?;
        let image = image(&checkpoint)?;
        let aside = lab.dir.join("aside");
        fs::rename(&image, &aside)?;
        let output = lab.tool(0, "ulpm_restart", &[&checkpoint.to_string_lossy()])?;
        output.failure(&[&image.file_name().unwrap_or_default().to_string_lossy()])?;
        fs::rename(&aside, &image)?;
        still_restarts(lab, &guest, &checkpoint)
    })
}
