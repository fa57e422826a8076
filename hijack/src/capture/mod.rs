//! Saving the frozen process.
//!
//! Everything here runs on the manager thread while the program stands still, asks the kernel, and
//! disturbs nothing.

mod attributes;
mod descriptors;
pub(crate) mod ipc;
mod memory;
pub(crate) mod text;
pub(crate) mod write;

use alloc::vec::Vec;

use ulpm_image::Meta;
use ulpm_image::meta::{Thread, Zombie};
use ulpm_protocol::manager::{Failure, Zombie as ZombieMessage};
use ulpm_protocol::table::Table;
use ulpm_sys::pr;

use crate::freeze::Failed;
use crate::process::PerProcess;
use crate::threads;

pub(crate) use descriptors::let_go;
pub(crate) use memory::Saved;

/// What is to be saved, and the circumstances.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// Whether the program lets itself be looked into, see [`LookedInto`].
    pub(crate) dumpable: u64,
    pub(crate) own: &'static PerProcess,
    pub(crate) table: Table,
    pub(crate) epoch: u32,
    /// The process was stopped before it was frozen.
    pub(crate) stopped: bool,
    /// The leading thread has ended.
    pub(crate) leader_gone: bool,
    /// Encoded `Zombie` entries.
    pub(crate) zombies: &'a [u8],
    /// The content of open files goes along.
    pub(crate) with_files: bool,
    /// The process stays frozen, and most likely ends.
    pub(crate) holds: bool,
    /// TCP connections to programs outside the job are to outlive it.
    pub(crate) repairs: bool,
}

impl Subject<'_> {
    /// The key of an election: `kind` keeps kinds of objects apart.
    pub(crate) fn key(&self, kind: u64, parts: &[u64]) -> u64 {
        // FNV-1a over words; a collision of two among the few thousand objects of a job would need
        // some billions of them.
        parts
            .iter()
            .chain([&kind, &u64::from(self.epoch)])
            .fold(0xcbf2_9ce4_8422_2325, |hash, part| {
                (hash ^ part).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29)
            })
    }

    /// Whether this process is the one that saves an object.
    pub(crate) fn wins(&self, kind: u64, parts: &[u64]) -> Result<bool, Failed> {
        let me = u64::from(ulpm_sys::getpid().cast_unsigned());
        match self.table.claim(self.key(kind, parts), me) {
            Ok(winner) => Ok(winner == me),
            Err(error) => Err(unsupported(format_args!("too many shared objects: {error}"))),
        }
    }
}

/// Something that cannot be saved, in words.
pub(crate) fn unsupported(why: core::fmt::Arguments<'_>) -> Failed {
    Failed::new(Failure::Unsupported, 0, why)
}

/// Something that cannot be saved now, but will be as soon as the program has run on for a moment.
pub(crate) fn not_now(why: core::fmt::Arguments<'_>) -> Failed {
    Failed::new(Failure::Again, 0, why)
}

/// The process lets itself be looked into while this is there. Of one that has forbidden it (PR_SET_DUMPABLE) neither
/// the others of the job may ask the kernel whether they share a descriptor, nor itself for its page map, unless
/// they are root's.
#[derive(Debug)]
pub(crate) struct LookedInto {
    /// Whether it was allowed, as the kernel tells.
    pub(crate) before: u64,
}

impl LookedInto {
    pub(crate) fn allow() -> Self {
        let before = attributes::flag(pr::GET_DUMPABLE);
        if before == 0 {
            Self::set(1);
        }
        Self { before }
    }

    fn set(value: usize) {
        // SAFETY: the operation takes a number.
        let _ = unsafe { ulpm_sys::prctl(pr::SET_DUMPABLE, [value, 0]) };
    }
}

impl Drop for LookedInto {
    fn drop(&mut self) {
        if self.before == 0 {
            Self::set(0);
        }
    }
}

/// Collects everything but the content of memory, and what of memory is to be written.
///
/// # Errors
///
/// [`Failed`] names what cannot be saved; nothing was changed.
pub(crate) fn collect(subject: &Subject<'_>) -> Result<(Meta, Vec<Saved>), Failed> {
    let mut meta = Meta::default();
    attributes::collect(subject, &mut meta)?;
    meta.threads = threads::stopped(subject.own)
        // SAFETY: the thread stands still.
        .map(|stopped| unsafe { &*stopped })
        .map(|stopped| Thread {
            tid: stopped.virt,
            name: stopped.name,
            syscall: stopped.again.map_or(-1, |number| i64::try_from(number).unwrap_or(-1)),
        })
        .collect();
    meta.zombies = ZombieMessage::decode_all(subject.zombies)
        .map(|z| Zombie { pid: z.virt, status: z.status, pgid: z.pgid, sid: z.sid })
        .collect();
    meta.plugins = crate::plugins::saved();
    descriptors::collect(subject, &mut meta)?;
    attributes::stop_clocks(&mut meta);
    let saved = memory::collect(subject, &mut meta)?;
    // Behind the regions: they hold what is in the segments that are attached here.
    ipc::collect(subject, &mut meta)?;
    Ok((meta, saved))
}
