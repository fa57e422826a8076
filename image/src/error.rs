//! What can be wrong with an image.

use core::fmt;

/// Why bytes are no image that we can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// It does not start as an image does.
    NotAnImage,
    /// Written in another version of the format.
    Version(u16),
    /// Of another architecture.
    Architecture(u16),
    /// It ends too early.
    Short {
        /// Where more was expected, in bytes from the start of the part.
        offset: u64,
    },
    /// A checksum does not match.
    Checksum {
        /// Which part.
        part: &'static str,
        /// Where it starts, in bytes from the start of the file.
        offset: u64,
    },
    /// A number that is out of its range.
    Invalid {
        /// Which.
        field: &'static str,
        /// What was found.
        found: u64,
    },
    /// A part that must be there is not.
    Missing(&'static str),
    /// A section that this version does not know, and that may not be skipped.
    UnknownSection(u32),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnImage => f.write_str("not a ULPM image"),
            Self::Version(found) => write!(
                f,
                "image format {found}, this release reads {}: restart it with the release that wrote it",
                crate::FORMAT_VERSION
            ),
            Self::Architecture(found) => {
                write!(f, "image of architecture {found}, this is {} (x86-64)", crate::ARCH_X86_64)
            }
            Self::Short { offset } => write!(f, "image is cut short at offset {offset}"),
            Self::Checksum { part, offset } => {
                write!(
                    f,
                    "checksum of the {part} at offset {offset} does not match: image is damaged"
                )
            }
            Self::Invalid { field, found } => {
                write!(f, "image holds {field} {found:#x}, which is invalid")
            }
            Self::Missing(section) => write!(f, "image has no {section}"),
            Self::UnknownSection(tag) => {
                write!(f, "image holds section {tag:#x}, which this release does not know")
            }
        }
    }
}

impl core::error::Error for ImageError {}
