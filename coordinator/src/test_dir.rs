//! A directory for a test.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use ulpm_control::manifest::{FORMAT, Manifest, ProcessEntry};

pub(crate) struct TestDir(PathBuf);

static NEXT: AtomicU32 = AtomicU32::new(0);

impl TestDir {
    pub(crate) fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ulpm-unit-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn manifest() -> Manifest {
    Manifest {
        format: FORMAT,
        ulpm_version: "0.1.0".into(),
        job: "a-1".into(),
        generation: 1,
        created: String::new(),
        host: String::new(),
        arch: String::new(),
        kernel: String::new(),
        cpu: Vec::new(),
        argv: Vec::new(),
        cwd: "/".into(),
        root: 10,
        ckpt_signal: 12,
        interval: None,
        keep: None,
        recovery: ulpm_control::Recovery::default(),
        processes: vec![ProcessEntry {
            virt: 10,
            parent: 0,
            file: "10.ulpm".into(),
            bytes: 0,
            command: String::new(),
        }],
        freeze_ms: 0.0,
        total_ms: 0.0,
    }
}
