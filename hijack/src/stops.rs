//! Stops of children that the program has been told of.
//!
//! A process that is stopped has to be continued to be frozen, and is stopped again at the thaw; so its parent would be told
//! once more. Whether it has been told before, the kernel says when nobody of the job runs any more who could continue or stop the
//! child, and this is still stopped: those are continued last, parents before their children. It is told again before the
//! parent goes on: those are thawed first. What is asked between lies in the library's own memory, so it is so behind a
//! restart too.

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};

use ulpm_protocol::table::{Slot, Table};
use ulpm_sys::Timespec;
use ulpm_sys::fmt::Text;
use ulpm_sys::proc::{Stat, decimal};

use crate::capture::text::{Directory, read_file};

/// Of more children at once the program is told once more.
const MAX_CHILDREN: usize = 1024;
/// How long a child may take to stop again: it may have been continued or ended by somebody else meanwhile.
const PATIENCE_NS: i64 = 100_000_000;
/// The same where the parent is about to stop too, beside its children.
const LONG_PATIENCE_NS: i64 = 1_000_000_000;

/// The ids, as the program knows them, of stopped children.
static TOLD: [AtomicI32; MAX_CHILDREN] = [const { AtomicI32::new(0) }; MAX_CHILDREN];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Takes note of no children.
pub(crate) fn clear() {
    COUNT.store(0, Ordering::Relaxed);
}

/// Takes note of the children that are stopped, and of which the program knows it. While the others of the job stand
/// still.
pub(crate) fn note(table: &Table) {
    clear();
    let has_told = |slot: &Slot| ulpm_sys::stopped_child(slot.real(), false) == Ok(false);
    for slot in table.slots().iter().filter(|slot| slot.is_member()) {
        // What is no child gives an error. Once more behind the look, for it may be stopping now.
        if has_told(slot)
            && is_stopped(slot.real())
            && has_told(slot)
            && let Some(place) = TOLD.get(COUNT.load(Ordering::Relaxed))
        {
            place.store(slot.virt(), Ordering::Relaxed);
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Takes what the kernel has to tell of them a second time. Before the program goes on, or stops.
pub(crate) fn forget_repeated(table: &Table, stops: bool) {
    let patience = if stops { LONG_PATIENCE_NS } else { PATIENCE_NS };
    let deadline = ulpm_sys::monotonic_ns() + patience;
    for told in &TOLD[..COUNT.swap(0, Ordering::Relaxed).min(MAX_CHILDREN)] {
        let Some(slot) = table.by_virtual(told.load(Ordering::Relaxed)) else { continue };
        // It stands still, but maybe its last thread is only about to.
        while ulpm_sys::stopped_child(slot.real(), true) == Ok(false)
            && ulpm_sys::monotonic_ns() < deadline
        {
            let pause = AtomicU32::new(0);
            let _ = ulpm_sys::futex_wait(&pause, 0, Some(Timespec::from_ns(50_000)));
        }
    }
}

/// Whether a process is stopped by a signal: all of its threads, for the kernel has nothing to tell before the last.
fn is_stopped(pid: i32) -> bool {
    let state_is = |path: &Text<64>, states: &[u8]| {
        let mut buffer = [0; 1024];
        let stat = Stat::parse(read_file(path.c_str(), &mut buffer));
        matches!(stat.and_then(|stat| stat.field(3)), Some([state]) if states.contains(state))
    };
    if !state_is(&Text::path(format_args!("/proc/{pid}/stat")), b"TZ") {
        return false;
    }
    let path = Text::<64>::path(format_args!("/proc/{pid}/task"));
    let Ok(mut tasks) = Directory::open(path.c_str()) else { return false };
    let mut stopped = false;
    while let Some(entry) = tasks.next() {
        let Some(tid) = decimal(entry) else { continue };
        let path = Text::path(format_args!("/proc/{pid}/task/{tid}/stat"));
        if !state_is(&path, b"TZX") {
            return false;
        }
        stopped |= state_is(&path, b"T");
    }
    stopped
}
