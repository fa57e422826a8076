//! Plugins: shared objects that `ulpm_launch --plugin` has preloaded beside this library, and what they are called for.
//!
//! The dynamic linker loads them; here they are only found, by the paths that the environment names. Three kinds of
//! threads call them, see `ulpm_plugin::event`:
//!
//! ```text
//!  program   init, exit, threads, fork, exec          where the wrapper stands that knows of it
//!  helper    pre-freeze, thaw …                       a thread of libc's own, which does nothing else
//!  manager   frozen, restored                         while all others stand still
//! ```
//!
//! The *helper* is made by pthread_create, for a plugin may call all of libc in it; to the engine it is a thread of the
//! program like any other, and is saved and restored as such. It exists where a plugin asks for its events. The manager
//! posts what is to be done, and waits for the answer only before a freeze. A callback that crashes there is left where it is:
//! the handler does not return, and becomes the helper.
//!
//! A child of `fork` gets a helper of its own. One of vfork, clone or `_Fork` has none until it executes a program, and
//! its plugins are not asked.

use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use ulpm_image::meta::{Plugin as Saved, plugin_flag};
use ulpm_plugin::{Event, Plugin, Services, event};
use ulpm_protocol::manager::Failure;
use ulpm_protocol::table::ENV_PLUGINS;
use ulpm_sys::arch::UserContext;
use ulpm_sys::fmt::Text;
use ulpm_sys::signal::{self, Action, SigInfo, bit};
use ulpm_sys::{OwnedFd, Timespec, map, oflag, prot};

use crate::__errno_location;
use crate::arch::{signal_return, thread_slot};
use crate::freeze::Failed;
use crate::process::{self, PerProcess};
use crate::program;
use crate::wrap::pthread;

/// Plugins that a process can have.
const MAX: usize = 16;
/// Bytes of the list of their paths.
const LIST_LEN: usize = 4096;

/// Those that are called in the opposite order.
const BACK: u64 = mask(&[
    event::EXIT,
    event::THREAD_EXIT,
    event::EXEC_FAILED,
    event::THAW_CHECKPOINT,
    event::THAW_RESTART,
    event::THAW_ABORT,
    event::POST_MIGRATE,
    event::RESTORED,
]);
/// Those of the helper.
const HELPERS: u64 = mask(&[
    event::PRE_FREEZE,
    event::THAW_CHECKPOINT,
    event::THAW_RESTART,
    event::THAW_ABORT,
    event::PRE_MIGRATE,
    event::POST_MIGRATE,
]);
/// Those of a thread's life.
const THREADS: u64 = mask(&[event::THREAD_START, event::THREAD_EXIT]);

const fn mask(events: &[u32]) -> u64 {
    let (mut all, mut index) = (0, 0);
    while index < events.len() {
        all |= ulpm_plugin::bit(events[index]);
        index += 1;
    }
    all
}

/// What a plugin is given, and behind it what tells us whose it is.
#[repr(C)]
struct Given {
    services: Services,
    index: usize,
}

struct Loaded {
    plugin: AtomicPtr<Plugin>,
    /// Which of the paths in the list is its own.
    path: AtomicUsize,
    /// Its section: version, address and length.
    section: [AtomicUsize; 3],
    /// The signal that has ended a callback of it; 0 for none.
    crashed: AtomicU32,
    /// How often it was called for each event, and for how long together, in nanoseconds.
    calls: [AtomicU64; event::COUNT],
    spent: [AtomicU64; event::COUNT],
    given: Given,
}

static PLUGINS: [Loaded; MAX] = {
    let mut all = [const {
        Loaded {
            plugin: AtomicPtr::new(ptr::null_mut()),
            path: AtomicUsize::new(0),
            section: [const { AtomicUsize::new(0) }; 3],
            crashed: AtomicU32::new(0),
            calls: [const { AtomicU64::new(0) }; event::COUNT],
            spent: [const { AtomicU64::new(0) }; event::COUNT],
            given: Given { services: SERVICES, index: 0 },
        }
    }; MAX];
    let mut index = 0;
    while index < MAX {
        all[index].given.index = index;
        index += 1;
    }
    all
};
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// All events that any of them asks for.
static WANTED: AtomicU64 = AtomicU64::new(0);

/// The value of [`ENV_PLUGINS`].
struct List(UnsafeCell<[u8; LIST_LEN]>, AtomicUsize);
// SAFETY: written by the constructor, before any other thread is there, and by the manager of a restarted process, where
// all stand still.
unsafe impl Sync for List {}

impl List {
    fn get(&self) -> &[u8] {
        // SAFETY: see above.
        unsafe { &(&*self.0.get())[..self.1.load(Ordering::Acquire)] }
    }

    /// Adds what fits. See above for who may.
    fn push(&self, bytes: &[u8]) {
        let from = self.1.load(Ordering::Relaxed);
        // SAFETY: see above.
        if let Some(place) = unsafe { &mut *self.0.get() }.get_mut(from..from + bytes.len()) {
            place.copy_from_slice(bytes);
            self.1.store(from + bytes.len(), Ordering::Release);
        }
    }

    fn clear(&self) {
        self.1.store(0, Ordering::Release);
    }
}
static LIST: List = List(UnsafeCell::new([0; LIST_LEN]), AtomicUsize::new(0));
/// The same for programs that are executed: without those whose files are not on this host.
static HERE: List = List(UnsafeCell::new([0; LIST_LEN]), AtomicUsize::new(0));

/// Why a checkpoint is held back.
struct Reason(UnsafeCell<[u8; REASON_LEN]>);
// SAFETY: written by the helper before it answers, read by the manager after that.
unsafe impl Sync for Reason {}
static REASON: Reason = Reason(UnsafeCell::new([0; REASON_LEN]));
const REASON_LEN: usize = 256;

/// The helper thread of this process, in the page that a fork wipes.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Helper {
    /// 1 once it is there, or about to be.
    exists: AtomicU32,
    /// Its `thread_slot`.
    slot: AtomicUsize,
    /// Changes when something is to be done.
    posts: AtomicU32,
    /// 1: the plugins are to be asked; 2: for a move.
    prepare: AtomicU32,
    /// What the thaw was, see [`Thaw`]; 0 for none.
    thaw: AtomicU32,
    /// [`YES`] or [`NO`] to the last question.
    answer: AtomicU32,
    /// 1: nobody waits for the answer any more.
    cancelled: AtomicU32,
    /// The plugin that is being called, plus one.
    calling: AtomicU32,
    /// What for, and since when.
    event: AtomicU32,
    since: AtomicI64,
    /// How many plugins have been asked, and have not said no.
    asked: AtomicU32,
    /// The [`Thaw`] that is being told.
    telling: AtomicU32,
}

const YES: u32 = 1;
const NO: u32 = 2;

/// How a process thaws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thaw {
    /// There is no checkpoint.
    Aborted = 1,
    /// There is one.
    Saved = 2,
    /// From an image.
    Restarted = 3,
    /// From an image, on another host.
    Moved = 4,
}

/// The value that [`ENV_PLUGINS`] is to have; empty without plugins.
pub(crate) fn list() -> &'static [u8] {
    HERE.get()
}

/// Paths of the plugins.
pub(crate) fn paths(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == b':').skip(1).filter(|path| !path.is_empty())
}

/// Whether this is the path of a plugin that is not on this host.
pub(crate) fn is_gone(path: &[u8]) -> bool {
    let is_it = |other: &[u8]| other == path;
    HERE.get() != LIST.get() && paths(LIST.get()).any(is_it) && !paths(HERE.get()).any(is_it)
}

/// Whether there is any plugin. What costs something without is behind this.
pub(crate) fn wants(events: u64) -> bool {
    WANTED.load(Ordering::Relaxed) & events != 0
}

/// Whether threads are to be told of.
pub(crate) fn wants_threads() -> bool {
    wants(THREADS)
}

/// Finds the plugins that the environment names. `was_member`: the process was of the job before it executed this program.
/// In the constructor.
pub(crate) fn begin(own: &'static PerProcess, was_member: bool) {
    const RTLD_NOW_NOLOAD: c_int = 2 | 4;
    #[link(name = "c")]
    unsafe extern "C" {
        fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
        fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    }
    let Some(value) = process::environment(ENV_PLUGINS) else { return };
    let value = value.to_bytes();
    LIST.push(value);
    HERE.push(value);
    for (number, path) in paths(value).enumerate() {
        let path = Text::<LIST_LEN>::path(format_args!("{}", Bytes(path)));
        // SAFETY: strings; a handle that is not null is valid.
        let found = unsafe {
            let handle = dlopen(path.c_str().as_ptr(), RTLD_NOW_NOLOAD);
            if handle.is_null() { handle } else { dlsym(handle, c"ulpm_plugin".as_ptr()) }
        };
        add(found.cast::<Plugin>(), number);
    }
    if COUNT.load(Ordering::Relaxed) == 0 {
        return;
    }
    tell(event::INIT, 0, None);
    if was_member {
        tell(event::AFTER_EXEC, 0, None);
    }
    start_helper(own);
}

fn add(plugin: *mut Plugin, path: usize) {
    let index = COUNT.load(Ordering::Relaxed);
    // SAFETY: null, or what the object exports under that name, which begins with its size and version.
    let known = unsafe {
        !plugin.is_null()
            && (*plugin).abi == ulpm_plugin::ABI
            && (*plugin).size as usize >= size_of::<Plugin>()
    };
    // ulpm_launch has refused all others. One may have been replaced since.
    if known && let Some(loaded) = PLUGINS.get(index) {
        loaded.path.store(path, Ordering::Relaxed);
        loaded.plugin.store(plugin, Ordering::Release);
        // SAFETY: as above.
        WANTED.fetch_or(unsafe { (*plugin).events }, Ordering::Relaxed);
        COUNT.store(index + 1, Ordering::Release);
    }
}

/// Bytes that are written as they are, where they are UTF-8.
struct Bytes<'a>(&'a [u8]);

impl core::fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match core::str::from_utf8(self.0) {
            Ok(text) => f.write_str(text),
            Err(_) => self.0.escape_ascii().fmt(f),
        }
    }
}

fn plugin(index: usize) -> Option<&'static Plugin> {
    // SAFETY: null, or what `add` has found valid; a preloaded object is never unloaded.
    unsafe { PLUGINS.get(index)?.plugin.load(Ordering::Acquire).as_ref() }
}

fn name(index: usize) -> Bytes<'static> {
    Bytes(string(plugin(index).map_or(ptr::null(), |plugin| plugin.name)))
}

/// A string of a plugin's descriptor.
fn string(text: *const c_char) -> &'static [u8] {
    if text.is_null() {
        return b"?";
    }
    // SAFETY: a string that lives as long as the plugin.
    unsafe { CStr::from_ptr(text) }.to_bytes()
}

/// What an image says of the plugins. On the manager, while all other threads stand still.
pub(crate) fn saved() -> Vec<Saved> {
    let describe = |index: usize| {
        let (plugin, loaded) = (plugin(index)?, PLUGINS.get(index)?);
        let [version, at, len] = [0, 1, 2].map(|part| loaded.section[part].load(Ordering::Acquire));
        let section = ptr::with_exposed_provenance::<u8>(at);
        Some(Saved {
            name: string(plugin.name).to_vec(),
            version: string(plugin.version).to_vec(),
            path: paths(LIST.get()).nth(loaded.path.load(Ordering::Relaxed))?.to_vec(),
            flags: plugin.flags & plugin_flag::REQUIRED,
            section_version: u32::try_from(version).unwrap_or(0),
            section: if len == 0 {
                Vec::new()
            } else {
                // SAFETY: the plugin has vouched for it until it says something else.
                unsafe { core::slice::from_raw_parts(section, len) }.to_vec()
            },
        })
    };
    (0..COUNT.load(Ordering::Acquire)).filter_map(describe).collect()
}

/// Calls one plugin, if it asks for that.
fn call(index: usize, event: &Event) -> c_int {
    let (Some(plugin), Some(loaded)) = (plugin(index), PLUGINS.get(index)) else { return 0 };
    let wanted = plugin.events & ulpm_plugin::bit(event.number) != 0;
    let Some(callback) = plugin.callback.filter(|_| wanted) else { return 0 };
    if loaded.crashed.load(Ordering::Relaxed) != 0 {
        return 0;
    }
    let began = ulpm_sys::monotonic_ns();
    // SAFETY: the plugin says that it is one of this interface.
    let result = unsafe { callback(event, &raw const loaded.given.services) };
    let spent = u64::try_from(ulpm_sys::monotonic_ns() - began).unwrap_or(0);
    let number = event.number as usize;
    loaded.calls[number].fetch_add(1, Ordering::Relaxed);
    loaded.spent[number].fetch_add(spent, Ordering::Relaxed);
    result
}

#[expect(clippy::cast_possible_truncation, reason = "some sixty bytes")]
fn happens(number: u32, child: i32) -> Event {
    Event {
        size: size_of::<Event>() as u32,
        number,
        pid: process::own().map_or(0, process::virtual_pid),
        child,
        deadline_ns: 0,
        path: ptr::null(),
        reason: ptr::null_mut(),
        reason_size: 0,
    }
}

/// The order in which they are called for an event.
fn order(number: u32) -> impl Iterator<Item = usize> {
    let count = COUNT.load(Ordering::Acquire);
    let back = BACK & ulpm_plugin::bit(number) != 0;
    (0..count).map(move |index| if back { count - 1 - index } else { index })
}

/// Calls all plugins that ask for an event, on this thread.
pub(crate) fn tell(number: u32, child: i32, path: Option<&CStr>) {
    if !wants(ulpm_plugin::bit(number)) {
        return;
    }
    // SAFETY: libc returns a valid pointer to this thread's own errno.
    let errno = unsafe { *__errno_location() };
    let path = path.map_or(ptr::null(), CStr::as_ptr);
    let event = Event { path, ..happens(number, child) };
    for index in order(number) {
        call(index, &event);
    }
    // SAFETY: as above.
    unsafe { *__errno_location() = errno };
}

/// Calls all plugins that ask for an event of the manager's. While all other threads stand still.
pub(crate) fn tell_frozen(number: u32) {
    if wants(ulpm_plugin::bit(number)) {
        let event = happens(number, 0);
        for index in order(number) {
            call(index, &event);
        }
    }
}

/// In a restarted process, while nobody goes on yet: looks which plugins' files are here, and tells the plugins.
pub(crate) fn restored() {
    if LIST.get().is_empty() {
        return;
    }
    HERE.clear();
    HERE.push(LIST.get().split(|&byte| byte == b':').next().unwrap_or_default());
    for path in paths(LIST.get()) {
        let name = Text::<LIST_LEN>::path(format_args!("{}", Bytes(path)));
        let is_here = ulpm_sys::stat(name.c_str()).is_ok();
        HERE.push(b":");
        HERE.push(if is_here { path } else { b"" });
    }
    tell_frozen(event::RESTORED);
}

/// In the child of a fork, on its only thread.
pub(crate) fn forked(own: &'static PerProcess) {
    tell(event::FORK_CHILD, 0, None);
    start_helper(own);
}

// ---- The helper

/// What the helper leaves open: the signal of freezes, and those of its own mistakes.
const FAULTS: [i32; 7] = [4, 5, 6, 7, 8, 11, 31]; // ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS

fn helper_mask() -> u64 {
    FAULTS
        .iter()
        .fold(signal::ALL & !bit(ulpm_protocol::manager::FREEZE_SIGNAL), |mask, &signal| {
            mask & !bit(signal)
        })
}

fn start_helper(own: &'static PerProcess) {
    if !wants(HELPERS) || own.helper.exists.swap(1, Ordering::AcqRel) != 0 {
        return;
    }
    let mask = signal::set_mask(helper_mask());
    // Without one, the plugins are not asked.
    if !pthread::create_detached(run) {
        own.helper.exists.store(0, Ordering::Release);
    }
    signal::set_mask(mask);
}

extern "C" fn run(_: *mut c_void) -> *mut c_void {
    if let Some(own) = process::own() {
        ulpm_sys::set_thread_name(b"ulpm-plugins\0\0\0\0");
        own.helper.slot.store(thread_slot().addr(), Ordering::Release);
        serve(own);
    }
    ptr::null_mut()
}

fn serve(own: &PerProcess) -> ! {
    let helper = &own.helper;
    loop {
        let posts = helper.posts.load(Ordering::Acquire);
        let thaw = helper.thaw.swap(0, Ordering::AcqRel);
        if thaw != 0 {
            helper.telling.store(thaw, Ordering::Relaxed);
            guarded(|| tell_thaw(helper, thaw, None));
            continue;
        }
        let prepare = helper.prepare.swap(0, Ordering::AcqRel);
        if prepare != 0 {
            let answer = guarded(|| ask(helper, prepare == 2));
            helper.answer.store(if answer { YES } else { NO }, Ordering::Release);
            ulpm_sys::futex_wake_all(&helper.answer);
            continue;
        }
        let _ = ulpm_sys::futex_wait(&helper.posts, posts, None);
    }
}

/// Calls one plugin on the helper.
fn call_helped(helper: &Helper, index: usize, number: u32, can_veto: bool) -> c_int {
    let now = ulpm_sys::monotonic_ns();
    helper.since.store(now, Ordering::Relaxed);
    helper.event.store(number, Ordering::Relaxed);
    helper.calling.store(u32::try_from(index + 1).unwrap_or(0), Ordering::Release);
    let event = Event {
        deadline_ns: now + deadline_ns(index),
        reason: if can_veto { REASON.0.get().cast() } else { ptr::null_mut() },
        reason_size: if can_veto { REASON_LEN as u64 } else { 0 },
        ..happens(number, 0)
    };
    let result = call(index, &event);
    helper.calling.store(0, Ordering::Release);
    result
}

fn deadline_ns(index: usize) -> i64 {
    let chosen = plugin(index).map_or(0, |plugin| plugin.deadline_ms);
    let ms = if chosen == 0 { ulpm_plugin::DEFAULT_DEADLINE_MS } else { chosen };
    i64::from(ms) * 1_000_000
}

/// Asks all plugins whether the process may be saved.
fn ask(helper: &Helper, moves: bool) -> bool {
    helper.asked.store(0, Ordering::Relaxed);
    for number in [event::PRE_MIGRATE, event::PRE_FREEZE] {
        if number == event::PRE_MIGRATE && !moves {
            continue;
        }
        for index in order(number) {
            // SAFETY: see `Reason`.
            unsafe { (*REASON.0.get())[0] = 0 };
            let vetoed = call_helped(helper, index, number, true) != 0;
            // Also one whose answer comes too late has to be told that it was in vain.
            if number == event::PRE_FREEZE && !vetoed {
                helper.asked.store(u32::try_from(index + 1).unwrap_or(0), Ordering::Relaxed);
            }
            if vetoed || helper.cancelled.load(Ordering::Acquire) != 0 {
                if vetoed {
                    refuse(index, None);
                }
                return false;
            }
        }
    }
    true
}

/// Puts into words why a plugin is in the way. On the helper, before it answers.
fn refuse(index: usize, crashed: Option<u32>) {
    // SAFETY: see `Reason`.
    let place = unsafe { &mut *REASON.0.get() };
    let given = place.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = match crashed {
        Some(signal) => Text::<REASON_LEN>::of(format_args!(
            "plugin {} has crashed (signal {signal}) and gets no more events in this process: try again without it",
            name(index)
        )),
        None if given.is_empty() => {
            Text::of(format_args!("plugin {} says no, and not why", name(index)))
        }
        None => Text::of(format_args!("plugin {} says no: {}", name(index), Bytes(given))),
    };
    let bytes = text.bytes();
    let len = bytes.len().min(REASON_LEN - 1);
    place[..len].copy_from_slice(&bytes[..len]);
    place[len] = 0;
}

/// Tells the plugins how the process goes on; from behind the given one on, if that has crashed.
fn tell_thaw(helper: &Helper, thaw: u32, behind: Option<(u32, usize)>) {
    let mut events = [event::THAW_ABORT, 0];
    if thaw == Thaw::Saved as u32 {
        events[0] = event::THAW_CHECKPOINT;
    } else if thaw >= Thaw::Restarted as u32 {
        events[0] = event::THAW_RESTART;
        events[1] = if thaw == Thaw::Moved as u32 { event::POST_MIGRATE } else { 0 };
    }
    let asked = helper.asked.load(Ordering::Relaxed) as usize;
    let mut skip = behind;
    for number in events.into_iter().filter(|&number| number != 0) {
        for index in order(number) {
            if let Some(last) = skip {
                skip = (last != (number, index)).then_some(last);
                continue;
            }
            if number != event::THAW_ABORT || index < asked {
                call_helped(helper, index, number, false);
            }
        }
    }
    helper.asked.store(0, Ordering::Relaxed);
    helper.telling.store(0, Ordering::Release);
}

// ---- What the manager asks of it

/// What a freeze waits for between two looks at the helper.
const SLICE_NS: i64 = 10_000_000;

/// Whether the plugins of this process are to be asked before a freeze.
pub(crate) fn has_helper(own: &PerProcess) -> bool {
    wants(HELPERS) && own.helper.exists.load(Ordering::Acquire) != 0
}

/// Asks the plugins whether the process may be saved. On the manager, before the freeze.
///
/// # Errors
///
/// [`Failed`]: who says no and why, or does not answer.
pub(crate) fn prepare(own: &PerProcess, deadline_ms: u32, moves: bool) -> Result<(), Failed> {
    let helper = &own.helper;
    if !has_helper(own) {
        return Ok(());
    }
    let deadline = ulpm_sys::monotonic_ns() + i64::from(deadline_ms) * 1_000_000;
    helper.cancelled.store(0, Ordering::Release);
    helper.answer.store(0, Ordering::Release);
    helper.prepare.store(if moves { 2 } else { 1 }, Ordering::Release);
    post(helper);
    loop {
        match helper.answer.load(Ordering::Acquire) {
            YES => return Ok(()),
            0 => {}
            _ => {
                // SAFETY: see `Reason`.
                let place = unsafe { &*REASON.0.get() };
                let reason = place.split(|&byte| byte == 0).next().unwrap_or_default();
                return Err(refusal(format_args!("{}", Bytes(reason))));
            }
        }
        let now = ulpm_sys::monotonic_ns();
        let calling = helper.calling.load(Ordering::Acquire) as usize;
        let late =
            calling != 0 && now - helper.since.load(Ordering::Relaxed) > deadline_ns(calling - 1);
        if late || now > deadline {
            helper.cancelled.store(1, Ordering::Release);
            helper.prepare.store(0, Ordering::Release);
            return Err(match calling.checked_sub(1) {
                Some(index) => refusal(format_args!(
                    "plugin {} has not come back from {} for {} ms: try again when it has, or without it",
                    name(index),
                    Bytes(event::name(helper.event.load(Ordering::Relaxed)).to_bytes()),
                    (now - helper.since.load(Ordering::Relaxed)) / 1_000_000
                )),
                None => refusal(format_args!("its plugins do not answer in time: try again")),
            });
        }
        let _ = ulpm_sys::futex_wait(&helper.answer, 0, Some(Timespec::from_ns(SLICE_NS)));
    }
}

fn refusal(why: core::fmt::Arguments<'_>) -> Failed {
    Failed::new(Failure::Unsupported, 0, why)
}

/// Has the plugins told how the process goes on. On the manager, behind the thaw.
pub(crate) fn thawed(own: &PerProcess, thaw: Thaw) {
    if has_helper(own) {
        own.helper.thaw.store(thaw as u32, Ordering::Release);
        post(&own.helper);
    }
}

fn post(helper: &Helper) {
    helper.posts.fetch_add(1, Ordering::AcqRel);
    ulpm_sys::futex_wake_all(&helper.posts);
}

// ---- Callbacks that crash

/// What stood for the [`FAULTS`] before.
struct Before(UnsafeCell<[Action; FAULTS.len()]>);
// SAFETY: written by the helper, before the handler that reads it is installed.
unsafe impl Sync for Before {}
static BEFORE: Before =
    Before(UnsafeCell::new([Action { handler: 0, flags: 0, restorer: 0, mask: 0 }; FAULTS.len()]));

fn fault_action() -> Action {
    Action {
        handler: (on_fault as extern "C" fn(i32, *const SigInfo, *mut UserContext) as *const ())
            .addr(),
        flags: signal::SA_SIGINFO | signal::SA_ONSTACK | signal::SA_RESTART | signal::SA_RESTORER,
        restorer: (signal_return as *const ()).addr(),
        mask: 0,
    }
}

/// Runs callbacks with our handler for what they may do wrong. Others' faults are passed on.
fn guarded<R>(run: impl FnOnce() -> R) -> R {
    guard();
    let result = run();
    unguard();
    result
}

fn guard() {
    let ours = fault_action();
    // SAFETY: see `Before`.
    let before = unsafe { &mut *BEFORE.0.get() };
    for (&number, before) in FAULTS.iter().zip(before) {
        if let Ok(old) = signal::action(number, None)
            && old.handler != ours.handler
        {
            *before = old;
            let _ = signal::action(number, Some(&ours));
        }
    }
}

fn unguard() {
    let ours = fault_action();
    // SAFETY: see `Before`.
    let before = unsafe { &*BEFORE.0.get() };
    for (&number, before) in FAULTS.iter().zip(before) {
        // Unless the program has installed something of its own meanwhile.
        if signal::action(number, None).is_ok_and(|now| now.handler == ours.handler) {
            let _ = signal::action(number, Some(before));
        }
    }
}

extern "C" fn on_fault(signo: i32, info: *const SigInfo, context: *mut UserContext) {
    type Handler = extern "C" fn(i32, *const SigInfo, *mut UserContext);
    let own = process::own();
    let helper = own.map(|own| &own.helper);
    let ours = helper.is_some_and(|helper| {
        helper.slot.load(Ordering::Relaxed) == thread_slot().addr()
            && helper.calling.load(Ordering::Relaxed) != 0
    });
    if let Some(own) = own.filter(|_| ours) {
        crashed(own, signo.cast_unsigned());
    }
    let position = FAULTS.iter().position(|&number| number == signo).unwrap_or(0);
    // SAFETY: see `Before`.
    let before = unsafe { (&*BEFORE.0.get())[position] };
    if before.handler > signal::SIG_IGN {
        // SAFETY: the program has installed it; the arguments are those of either kind of handler.
        let handler: Handler = unsafe { core::mem::transmute(before.handler) };
        handler(signo, info, context);
        return;
    }
    // As it would have been: a fault comes again when we return.
    let _ = signal::action(signo, Some(&before));
    // SAFETY: the kernel gives a handler with SA_SIGINFO this pointer.
    if unsafe { (*info).code } <= 0 {
        let _ = ulpm_sys::tgkill(ulpm_sys::getpid(), ulpm_sys::gettid(), signo);
    }
}

/// Goes on as the helper, on top of a callback that has crashed.
fn crashed(own: &PerProcess, signo: u32) -> ! {
    let helper = &own.helper;
    let index = (helper.calling.load(Ordering::Relaxed) as usize).saturating_sub(1);
    let number = helper.event.load(Ordering::Relaxed);
    if let Some(loaded) = PLUGINS.get(index) {
        loaded.crashed.store(signo, Ordering::Relaxed);
    }
    signal::set_mask(helper_mask());
    let telling = helper.telling.load(Ordering::Relaxed);
    if telling == 0 {
        refuse(index, Some(signo));
        helper.calling.store(0, Ordering::Release);
        helper.answer.store(NO, Ordering::Release);
        ulpm_sys::futex_wake_all(&helper.answer);
    } else {
        tell_thaw(helper, telling, Some((number, index)));
        helper.calling.store(0, Ordering::Release);
    }
    unguard();
    serve(own)
}

// ---- Services

const SERVICES: Services = Services {
    #[expect(clippy::cast_possible_truncation, reason = "some fifty bytes")]
    size: size_of::<Services>() as u32,
    abi: ulpm_plugin::ABI,
    log: Some(log),
    restart_variable: Some(restart_variable),
    set_variable: Some(set_variable),
    wish_checkpoint: Some(wish_checkpoint),
    set_section: Some(set_section),
};

/// # Safety
///
/// `services` is what a plugin was given, `text` a string.
unsafe extern "C" fn log(services: *const Services, text: *const c_char) {
    // O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC
    const FLAGS: i32 = oflag::WRONLY | 0o2000 | oflag::CREAT | oflag::CLOEXEC;
    let Some(file) = LIST.get().split(|&byte| byte == b':').next().filter(|file| !file.is_empty())
    else {
        return;
    };
    let file = Text::<LIST_LEN>::path(format_args!("{}", Bytes(file)));
    let Ok(file) = ulpm_sys::open(file.c_str(), FLAGS).map(OwnedFd::new) else { return };
    // SAFETY: the caller vouches for both; `Given` begins with the services.
    let (index, text) =
        unsafe { ((*services.cast::<Given>()).index, CStr::from_ptr(text).to_bytes()) };
    let pid = process::own().map_or(0, process::virtual_pid);
    let line = Text::<1024>::of(format_args!("{pid} {}: {}\n", name(index), Bytes(text)));
    // One write, so that lines of several processes do not mix.
    let _ = ulpm_sys::write(file.get(), line.bytes());
}

/// Name of the file beside the job table with the environment of a restart.
const RESTART_ENVIRONMENT: &[u8] = ulpm_protocol::restart::ENVIRONMENT.as_bytes();

/// # Safety
///
/// `name` is a string, `buffer` has `size` bytes.
unsafe extern "C" fn restart_variable(
    _: *const Services,
    name: *const c_char,
    buffer: *mut c_char,
    size: u64,
) -> i64 {
    // SAFETY: the caller vouches for it.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    let found = with_restart_environment(|all| {
        let value = all
            .split(|&byte| byte == 0)
            .find_map(|entry| entry.strip_prefix(name)?.strip_prefix(b"="))?;
        let room = usize::try_from(size).unwrap_or(0);
        if room > 0 && !buffer.is_null() {
            let len = value.len().min(room - 1);
            // SAFETY: the caller vouches for the buffer.
            unsafe {
                buffer.cast::<u8>().copy_from_nonoverlapping(value.as_ptr(), len);
                buffer.add(len).write(0);
            }
        }
        i64::try_from(value.len()).ok()
    });
    found.unwrap_or(-1)
}

fn with_restart_environment<R>(run: impl FnOnce(&[u8]) -> Option<R>) -> Option<R> {
    let table = process::table()?;
    let mut path = Text::<2048>::new();
    path.push(table.path());
    path.push(RESTART_ENVIRONMENT);
    path.push(b"\0");
    let path = CStr::from_bytes_with_nul(path.bytes()).ok()?;
    let file = ulpm_sys::open(path, oflag::RDONLY | oflag::CLOEXEC).map(OwnedFd::new).ok()?;
    let len = usize::try_from(ulpm_sys::fstat(file.get()).ok()?.size).ok()?;
    if len == 0 {
        return None;
    }
    // SAFETY: a new mapping at an address of the kernel's choice, of a file that nobody changes.
    let start = unsafe { ulpm_sys::mmap(0, len, prot::READ, map::PRIVATE, file.get(), 0) }.ok()?;
    // SAFETY: as above; it is ours until it is unmapped.
    let result =
        run(unsafe { core::slice::from_raw_parts(ptr::with_exposed_provenance(start), len) });
    // SAFETY: as above.
    unsafe { ulpm_sys::munmap(start, len) };
    result
}

/// # Safety
///
/// `name` is a string, `value` one or null; every thread of the program stands still.
unsafe extern "C" fn set_variable(
    _: *const Services,
    name: *const c_char,
    value: *const c_char,
) -> c_int {
    // SAFETY: the caller vouches for it.
    let result = unsafe {
        let value = (!value.is_null()).then(|| CStr::from_ptr(value).to_bytes());
        process::set_variable(CStr::from_ptr(name).to_bytes(), value)
    };
    result.map_or(-1, |()| 0)
}

/// # Safety
///
/// None is needed.
unsafe extern "C" fn wish_checkpoint(_: *const Services) -> c_int {
    if program::wish() { 0 } else { -1 }
}

/// # Safety
///
/// `services` is what a plugin was given, `data` has `len` bytes, until it says something else.
unsafe extern "C" fn set_section(
    services: *const Services,
    version: u32,
    data: *const c_void,
    len: u64,
) -> c_int {
    // SAFETY: the caller vouches for it; `Given` begins with the services.
    let index = unsafe { (*services.cast::<Given>()).index };
    let (Some(loaded), Ok(len @ ..=MAX_SECTION)) = (PLUGINS.get(index), usize::try_from(len))
    else {
        return -1;
    };
    loaded.section[2].store(0, Ordering::Release);
    loaded.section[0].store(version as usize, Ordering::Relaxed);
    loaded.section[1].store(data.expose_provenance(), Ordering::Relaxed);
    loaded.section[2].store(if data.is_null() { 0 } else { len }, Ordering::Release);
    0
}

/// Bytes of a plugin's section, at most.
const MAX_SECTION: usize = 1 << 20;

/// At the end of the process by exit(3), before the plugins' own destructors.
#[used]
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = at_exit;

extern "C" fn at_exit() {
    tell(event::EXIT, 0, None);
}
