//! `manifest.json`: what lies in a checkpoint.
//!
//! ```text
//!  DIR/NAME/latest          symbolic link to the newest complete generation
//!  DIR/NAME/3/manifest.json written last: a directory without it is no checkpoint
//!  DIR/NAME/3/1234.ulpm     one image for each process, named by its virtual id
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Recovery, raw_path};

/// Name of the file.
pub const FILE_NAME: &str = "manifest.json";
/// Raised when a field changes its meaning.
pub const FORMAT: u32 = 1;
/// The most that the file may hold.
const MAX_LEN: u64 = 16 * 1024 * 1024;

/// All that is known of a checkpoint as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The release of ULPM that made it.
    pub ulpm_version: String,
    /// The job's name.
    pub job: String,
    /// Number of this checkpoint.
    pub generation: u64,
    /// When, as in RFC 3339, in UTC.
    pub created: String,
    /// Where.
    pub host: String,
    /// Machine, as in uname(2).
    pub arch: String,
    /// Kernel release, as in uname(2).
    pub kernel: String,
    /// Features of the processor that programs may have chosen.
    pub cpu: Vec<String>,
    /// Program and arguments of the job's root.
    pub argv: Vec<String>,
    /// Where the job was started.
    #[serde(with = "raw_path")]
    pub cwd: PathBuf,
    /// Virtual id of the root.
    pub root: i32,
    /// Signal that stops user threads.
    pub ckpt_signal: u32,
    /// Seconds between periodic checkpoints.
    pub interval: Option<u64>,
    /// Generations that are kept.
    pub keep: Option<u32>,
    /// What happens when the job fails.
    #[serde(default)]
    pub recovery: Recovery,
    /// The processes.
    pub processes: Vec<ProcessEntry>,
    /// How long the job stood still.
    pub freeze_ms: f64,
    /// From the request to the last image.
    pub total_ms: f64,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    /// The id that the program sees.
    pub virt: i32,
    /// Virtual id of the parent, 0 if that is not in the job.
    pub parent: i32,
    /// File name of the image, in the manifest's directory.
    pub file: String,
    /// Length of the image in bytes.
    pub bytes: u64,
    /// Command line, for display.
    pub command: String,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// There is none.
    #[error("{} is not a complete checkpoint: it has no {FILE_NAME}", .0.display())]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{} is damaged: {text}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        text: String,
    },
    /// Made by another version.
    #[error("{} has format {found}, this is {FORMAT}: use the release of ULPM that made it", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

impl Manifest {
    /// Reads the manifest of the checkpoint in `dir`, and checks that it can be used.
    ///
    /// # Errors
    ///
    /// [`ManifestError`]. Whether the images are there is not checked.
    pub fn read(dir: &Path) -> Result<Self, ManifestError> {
        let path = dir.join(FILE_NAME);
        let io = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => ManifestError::Missing(dir.to_owned()),
            _ => ManifestError::Io { path: path.clone(), source },
        };
        let len = std::fs::metadata(&path).map_err(io)?.len();
        let damaged = |text: String| ManifestError::Damaged { path: path.clone(), text };
        if len > MAX_LEN {
            return Err(damaged(format!("{len} bytes are too many")));
        }
        let text = std::fs::read(&path).map_err(io)?;
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if format != FORMAT {
            return Err(ManifestError::Format { path, found: format });
        }
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        manifest.check().map_err(damaged)?;
        Ok(manifest)
    }

    /// Checks what a reader relies on.
    ///
    /// # Errors
    ///
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        check_name(&self.job)?;
        if self.processes.is_empty() {
            return Err("it lists no process".into());
        }
        let mut seen = std::collections::BTreeSet::new();
        for process in &self.processes {
            if process.virt <= 0 || !seen.insert(process.virt) {
                return Err(format!("process id {} is invalid or listed twice", process.virt));
            }
            if process.file != Self::image_name(process.virt) {
                return Err(format!("image name {:?} is not allowed", process.file));
            }
        }
        if !seen.contains(&self.root) {
            return Err(format!("its root {} is not among its processes", self.root));
        }
        Ok(())
    }

    /// File name of the image of the process with this virtual id.
    #[must_use]
    pub fn image_name(virt: i32) -> String {
        format!("{virt}.ulpm")
    }

    /// Bytes of all images.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.processes.iter().fold(0, |sum, process| sum.saturating_add(process.bytes))
    }
}

/// Checks that a job name can be the name of a directory.
///
/// # Errors
///
/// What is wrong, in words.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| !c.is_control() && c != '/';
    if name.is_empty() || name.len() > 128 {
        return Err(format!("job name {name:?} is empty or longer than 128 bytes"));
    }
    if name.starts_with(['.', '-']) || !name.chars().all(allowed) || name == "latest" {
        return Err(format!("job name {name:?} is not allowed: no leading '.' or '-', no '/'"));
    }
    if name.chars().all(|c| c.is_ascii_digit()) {
        return Err(format!("job name {name:?} is not allowed: a number is a job's id"));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) fn example() -> Manifest {
    Manifest {
        format: FORMAT,
        ulpm_version: "0.1.0".into(),
        job: "counter-1".into(),
        generation: 3,
        created: "2026-11-20T12:00:00Z".into(),
        host: "a".into(),
        arch: "x86_64".into(),
        kernel: "6.18.0".into(),
        cpu: vec!["avx2".into()],
        argv: vec!["counter".into()],
        cwd: "/tmp".into(),
        root: 10,
        ckpt_signal: 12,
        interval: None,
        keep: None,
        recovery: Recovery::default(),
        processes: vec![ProcessEntry {
            virt: 10,
            parent: 0,
            file: "10.ulpm".into(),
            bytes: 5,
            command: "counter".into(),
        }],
        freeze_ms: 1.5,
        total_ms: 2.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_survives_text_and_frames() {
        let manifest = example();
        let text = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
        let frame = crate::codec::encode(&manifest).unwrap();
        let back: Manifest = crate::codec::read(&mut frame.as_slice()).unwrap();
        assert_eq!(back, manifest);
        manifest.check().unwrap();
    }

    #[test]
    fn a_manifest_cannot_name_a_file_elsewhere() {
        let mut manifest = example();
        manifest.processes[0].file = "../../etc/passwd".into();
        assert!(manifest.check().is_err());
        let mut manifest = example();
        manifest.job = "../x".into();
        assert!(manifest.check().is_err());
        let mut manifest = example();
        manifest.root = 11;
        assert!(manifest.check().is_err());
    }
}
