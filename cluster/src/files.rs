//! Files of a cluster.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::ClusterError;

fn failed(path: &Path) -> impl Fn(io::Error) -> ClusterError {
    move |source| ClusterError::File { path: path.to_owned(), source }
}

/// Makes a directory for our eyes only.
pub(crate) fn make_dir(path: &Path) -> Result<(), ClusterError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path))
}

/// The content of a file; `None` if there is none.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, ClusterError> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path)(error)),
    }
}

/// A certificate, as DER.
pub(crate) fn read_pem(path: &Path) -> Result<Option<Vec<u8>>, ClusterError> {
    let Some(content) = read(path)? else { return Ok(None) };
    let parsed = CertificateDer::from_pem_slice(&content).map_err(|error| {
        ClusterError::Damaged { path: path.to_owned(), text: error.to_string() }
    })?;
    Ok(Some(parsed.to_vec()))
}

/// A file that nobody else may read.
pub(crate) fn read_secret(path: &Path) -> Result<Option<String>, ClusterError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(path)(error)),
    };
    if file.metadata().map_err(failed(path))?.mode() & 0o077 != 0 {
        return Err(ClusterError::Readable(path.to_owned()));
    }
    let mut content = String::new();
    file.read_to_string(&mut content).map_err(failed(path))?;
    Ok(Some(content))
}

/// Writes a file whole or not at all, for our eyes only.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), ClusterError> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = Path::new(&name);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(temporary, path)
    })();
    written.map_err(|error| {
        let _ = std::fs::remove_file(temporary);
        failed(path)(error)
    })
}
