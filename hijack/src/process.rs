//! What the library knows about the process that it is in.

use core::ffi::{CStr, c_char};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use ulpm_protocol::manager::FREEZE_SIGNAL;
use ulpm_protocol::table::{self, ENV_TABLE, SlotState, Table};
use ulpm_sys::signal::{self, bit};
use ulpm_sys::{Errno, map, oflag, prot};

use crate::wrap::paths;
use crate::{clock, heap, manager, next, plugins, program, threads};

#[link(name = "c")]
unsafe extern "C" {
    static mut environ: *const *const c_char;
}

/// What a forked child must not inherit.
///
/// It lies in a page that the kernel wipes on fork, so that a child starts with zeros however it was
/// made, the system call itself included, before any of its code runs.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct PerProcess {
    /// The process id that the program sees; 0 if not known yet.
    pub(crate) pid: AtomicI32,
    /// 0: there is no manager thread; 1: it begins; 2: it has descriptors of its own.
    pub(crate) has_manager: AtomicU32,
    /// 1 while user threads are being stopped or stand still.
    pub(crate) freezing: AtomicU32,
    /// Highest epoch from which this process has thawed, or that it will not take part in.
    pub(crate) thawed_epoch: AtomicU32,
    /// Stopped threads wait while this does not change.
    pub(crate) thaw: AtomicU32,
    /// Not 0 while stopped threads are to do something, take their signals for one: `thaw` changes, and they go on
    /// waiting.
    pub(crate) collecting: AtomicU32,
    /// How many have.
    pub(crate) collected: AtomicU32,
    /// Records in use.
    pub(crate) records: AtomicUsize,
    /// Records whose thread stands still.
    pub(crate) stopped: AtomicU32,
    /// Calls under way that a freeze with a borrowed signal would harm, see `wrap::exec` and `wrap::signals`.
    pub(crate) signal_users: AtomicU32,
    /// 1 while the state of `system` calls is being changed.
    pub(crate) system_lock: AtomicU32,
    /// After a restart, until a fork: the real id of the parent if that is outside the job, and the
    /// id by which the program knows it.
    pub(crate) outside_parent: [AtomicI32; 2],
    /// The thread that calls plugins.
    pub(crate) helper: plugins::Helper,
    /// What the program asks of us.
    pub(crate) asked: program::Asked,
}

static PER_PROCESS: AtomicPtr<PerProcess> = AtomicPtr::new(ptr::null_mut());
static TABLE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// 1 once the program was restarted, so that virtual ids may differ from real ones.
static RESTARTED: AtomicU32 = AtomicU32::new(0);

/// Address and length of the vDSO as the program knows it.
pub(crate) static VDSO: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// Path of the program as it was before any restart, after which /proc/self/exe is `ulpm_restart`;
/// NUL-terminated, empty until the first freeze.
pub(crate) struct ProgramPath(core::cell::UnsafeCell<[u8; 4097]>);
// SAFETY: written by the manager while every other thread stands still.
unsafe impl Sync for ProgramPath {}
static PROGRAM: ProgramPath = ProgramPath(core::cell::UnsafeCell::new([0; 4097]));

/// The program's path, if /proc/self/exe does not tell it.
pub(crate) fn program() -> Option<&'static CStr> {
    if !is_restarted() {
        return None;
    }
    // SAFETY: see `ProgramPath`.
    let path = CStr::from_bytes_until_nul(unsafe { &*PROGRAM.0.get() }).ok()?;
    (!path.is_empty()).then_some(path)
}

/// Takes note of the program's path. Only on the manager thread, in a freeze.
pub(crate) fn set_program(path: &[u8]) {
    // SAFETY: see `ProgramPath`.
    let place = unsafe { &mut *PROGRAM.0.get() };
    let len = path.len().min(place.len() - 1);
    place[..len].copy_from_slice(&path[..len]);
    place[len..].fill(0);
}

/// Offset of glibc's rseq area from the thread pointer, and its length; 0 for none.
pub(crate) static RSEQ: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// The job's table; `None` if the process is no member of a job.
pub(crate) fn table() -> Option<Table> {
    let base = NonNull::new(TABLE.load(Ordering::Acquire))?;
    // SAFETY: `join` has mapped it for good, and a restart maps it at the same address.
    unsafe { Table::open(base) }.ok()
}

/// What is particular to this process; `None` if it is no member of a job.
pub(crate) fn own() -> Option<&'static PerProcess> {
    // SAFETY: null, or the page that `join` has mapped for good; zeros are valid for all its fields.
    unsafe { PER_PROCESS.load(Ordering::Acquire).as_ref() }
}

/// Whether virtual ids may differ from real ones.
pub(crate) fn is_restarted() -> bool {
    RESTARTED.load(Ordering::Relaxed) != 0
}

/// Says that virtual ids may differ from real ones.
pub(crate) fn set_restarted() {
    RESTARTED.store(1, Ordering::Relaxed);
}

/// The process id that the program sees.
///
/// A child that was forked behind our back enters the table here, or when the freeze signal reaches it.
pub(crate) fn virtual_pid(own: &PerProcess) -> i32 {
    match own.pid.load(Ordering::Relaxed) {
        0 => {
            let real = ulpm_sys::getpid();
            let virt = enter(real).unwrap_or(real);
            own.pid.store(virt, Ordering::Relaxed);
            threads::settle_leader(virt, real);
            virt
        }
        pid => pid,
    }
}

/// Enters the calling process into the table, if it is not there; `None` if there is no room.
fn enter(real: i32) -> Option<i32> {
    let table = table()?;
    if let Some(slot) = table.by_real(real) {
        slot.set_state(SlotState::Live);
        return Some(slot.virt());
    }
    let parent = table.virtual_of(ulpm_sys::getppid());
    let virt = table.insert(real, parent, SlotState::Live).ok()?.virt();
    table.forget_debts(virt);
    Some(virt)
}

/// Joins the job that the environment names; does nothing if it names none, or the table is gone.
pub(crate) fn join() {
    let Some(path) = environment(ENV_TABLE) else { return };
    let Some(table) = map_table(path) else { return };
    if !heap::reserve() {
        return;
    }
    let flags = map::PRIVATE | map::ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice. 18 is MADV_WIPEONFORK.
    let page = unsafe {
        let page = ulpm_sys::mmap(0, ulpm_sys::PAGE, prot::READ | prot::WRITE, flags, -1, 0);
        page.and_then(|page| ulpm_sys::madvise(page, ulpm_sys::PAGE, 18).map(|()| page))
    };
    let Ok(page) = page else { return };
    find_vdso();
    find_rseq();
    clock::join(table);
    paths::prepare();
    TABLE.store(ptr::with_exposed_provenance_mut(table.address()), Ordering::Release);
    PER_PROCESS.store(ptr::with_exposed_provenance_mut(page), Ordering::Release);

    if table.header().restarted.load(Ordering::Relaxed) != 0 {
        set_restarted();
    }
    threads::install_handler(FREEZE_SIGNAL);
    let was_member = table.by_real(ulpm_sys::getpid()).is_some();
    if let Some(own) = own() {
        virtual_pid(own);
    }
    // An exec came from a process that had blocked it, so that none could arrive before the handler.
    let mask = signal::block(0);
    signal::set_mask(mask & !bit(FREEZE_SIGNAL));
    if let Some(own) = own() {
        plugins::begin(own, was_member);
        manager::start(own);
    }
}

fn map_table(path: &CStr) -> Option<Table> {
    let fd = ulpm_sys::open(path, oflag::RDWR | oflag::CLOEXEC).ok()?;
    let protection = prot::READ | prot::WRITE;
    let long_enough = ulpm_sys::fstat(fd)
        .is_ok_and(|status| usize::try_from(status.size).is_ok_and(|len| len >= table::LEN));
    // SAFETY: a new mapping at an address of the kernel's choice.
    let map = || unsafe { ulpm_sys::mmap(0, table::LEN, protection, map::SHARED, fd, 0) };
    let base = if long_enough { map().ok() } else { None };
    ulpm_sys::close(fd);
    let base = NonNull::new(ptr::with_exposed_provenance_mut(base?))?;
    // SAFETY: the mapping is `LEN` bytes long, shared, and never unmapped.
    unsafe { Table::open(base) }.ok()
}

/// The value of an environment variable, without libc's lock.
pub(crate) fn environment(name: &str) -> Option<&'static CStr> {
    // SAFETY: libc keeps `environ` a null-terminated array of C strings, or null.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            let text = CStr::from_ptr(*entry);
            let bytes = text.to_bytes();
            if bytes.len() > name.len()
                && bytes.starts_with(name.as_bytes())
                && bytes[name.len()] == b'='
            {
                return Some(CStr::from_ptr((*entry).add(name.len() + 1)));
            }
            entry = entry.add(1);
        }
    }
    None
}

/// Changes a variable of the program's environment; `None` takes it away.
///
/// # Errors
///
/// There is no memory.
///
/// # Safety
///
/// Every thread of the program stands still.
pub(crate) unsafe fn set_variable(name: &[u8], value: Option<&[u8]>) -> Result<(), Errno> {
    let flags = map::PRIVATE | map::ANONYMOUS;
    // What is replaced stays where it is: a thread may hold a pointer to it.
    // SAFETY: a new mapping at an address of the kernel's choice.
    let room = |len: usize| unsafe {
        let len = ulpm_sys::page_up(len);
        ulpm_sys::mmap(0, len, prot::READ | prot::WRITE, flags, -1, 0)
    };
    // SAFETY: libc keeps `environ` a null-terminated array of C strings, or null; nobody changes it meanwhile.
    unsafe {
        let list = environ.cast_mut();
        let (mut count, mut found) = (0, None);
        while !list.is_null() && !(*list.add(count)).is_null() {
            let entry = CStr::from_ptr(*list.add(count)).to_bytes();
            if entry.strip_prefix(name).is_some_and(|rest| rest.starts_with(b"=")) {
                found = Some(count);
            }
            count += 1;
        }
        let Some(value) = value else {
            if let Some(at) = found {
                ptr::copy(list.add(at + 1), list.add(at), count - at);
            }
            return Ok(());
        };
        let text = ptr::with_exposed_provenance_mut::<u8>(room(name.len() + value.len() + 2)?);
        let mut next = text;
        for part in [name, b"=", value] {
            next.copy_from_nonoverlapping(part.as_ptr(), part.len());
            next = next.add(part.len());
        }
        match found {
            Some(at) => list.add(at).write(text.cast()),
            None => {
                let bytes = (count + 2) * size_of::<*const c_char>();
                let longer = ptr::with_exposed_provenance_mut::<*const c_char>(room(bytes)?);
                if count != 0 {
                    longer.copy_from_nonoverlapping(list, count);
                }
                longer.add(count).write(text.cast());
                environ = longer;
            }
        }
    }
    Ok(())
}

/// Finds the vDSO by the auxiliary vector, and its length by its ELF header, behind whose sections nothing
/// follows.
fn find_vdso() {
    const AT_SYSINFO_EHDR: usize = 33;
    /// `Elf64_Ehdr`: `e_shoff`, `e_shentsize` and `e_shnum`.
    const SECTIONS: (usize, usize, usize) = (40, 58, 60);
    #[link(name = "c")]
    unsafe extern "C" {
        fn getauxval(kind: usize) -> usize;
    }
    // SAFETY: the call takes a number.
    let start = unsafe { getauxval(AT_SYSINFO_EHDR) };
    if start == 0 {
        return;
    }
    let header = ptr::with_exposed_provenance::<u8>(start);
    // SAFETY: the kernel has mapped the vDSO there, which begins with an aligned ELF header.
    let len = unsafe {
        let half = |at| usize::from(header.add(at).cast::<u16>().read_unaligned());
        header.add(SECTIONS.0).cast::<usize>().read_unaligned()
            + half(SECTIONS.1) * half(SECTIONS.2)
    };
    VDSO[0].store(start, Ordering::Relaxed);
    VDSO[1].store(len.next_multiple_of(ulpm_sys::PAGE), Ordering::Relaxed);
}

/// glibc exports where it registered its rseq areas since 2.35; older ones register none.
fn find_rseq() {
    let offset = next::find(c"__rseq_offset").cast::<isize>();
    let size = next::find(c"__rseq_size").cast::<u32>();
    if offset.is_null() || size.is_null() {
        return;
    }
    // SAFETY: glibc defines them as ptrdiff_t and unsigned int.
    let (offset, size) = unsafe { (*offset, *size) };
    if size != 0 {
        // The registered length is not the size in use: 32 at least, and what the kernel knows
        // (AT_RSEQ_FEATURE_SIZE and AT_RSEQ_ALIGN are both at most 32 so far).
        RSEQ[0].store(offset.cast_unsigned(), Ordering::Relaxed);
        RSEQ[1].store((size as usize).next_multiple_of(32).max(32), Ordering::Relaxed);
    }
}
