//! x86-64.

use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;

use ulpm_sys::arch::nr;
use ulpm_sys::arch::xsave::{self, Layout, Unfit};

use crate::cut;
use crate::threads::{self, Stopped};

/// Where the kernel goes when a handler of ours returns (SA_RESTORER).
///
/// # Safety
///
/// The stack pointer is that of a signal frame.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn signal_return() {
    naked_asm!(
        "mov eax, 15", // rt_sigreturn
        "syscall",
    )
}

/// Stands in the place of a handler of the program's: has the sender named in its siginfo, and goes on in the handler, which
/// finds the stack as the kernel has made it.
///
/// # Safety
///
/// The kernel calls it, as a handler with SA_SIGINFO.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn stand_in() {
    naked_asm!(
        "push rdi", // The three arguments.
        "push rsi",
        "push rdx",          // With these the stack is aligned for the call.
        "call {enter}",      // Returns the handler.
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "jmp rax",
        enter = sym crate::wrap::signals::enter,
    )
}

/// Whether a thread at `rip` is at the beginning of [`stand_in`].
pub(crate) fn is_in_stand_in(rip: usize) -> bool {
    /// The instructions up to the call, which is five bytes long.
    const LEN: usize = 8;
    rip.wrapping_sub((stand_in as *const ()).addr()) < LEN
}

/// Calls `threads::wait_for_thaw(stopped)` in such a way that a new thread can return from here
/// instead: everything that the caller needs is on the stack, and `stopped.sp` says where.
///
/// # Safety
///
/// `stopped` is the calling thread's own.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn park(stopped: *mut Stopped) {
    naked_asm!(
        "push rbp", // The registers that a function must keep.
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",            // Six registers and the return address: align for the call.
        "mov [rdi + {sp}], rsp", // From here a restored thread goes on.
        "call {wait}",
        "jmp {out}",
        sp = const offset_of!(Stopped, sp),
        wait = sym threads::wait_for_thaw,
        out = sym leave_park,
    )
}

/// The end of [`park`], reached by the thread that called it or by the one that replaces it.
///
/// # Safety
///
/// Jumped to, with the stack as `park` left it.
#[unsafe(naked)]
unsafe extern "C" fn leave_park() {
    naked_asm!(
        "add rsp, 8", // Undo what `park` pushed, in reverse.
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret", // To the freeze handler.
    )
}

/// Makes a thread that takes the place of a parked one, and returns its id or a negated error.
///
/// # Safety
///
/// `stopped` describes a parked thread that nothing else runs.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn clone_parked(
    flags: usize,
    sp: usize,
    tid_address: usize,
    fs: usize,
    stopped: *mut Stopped,
) -> isize {
    naked_asm!(
        "push r12",     // The child finds `stopped` here; the parent gets its own back.
        "mov r12, r8",
        "mov r10, rdx", // clone's fourth argument: where the kernel clears the tid.
        "mov r8, rcx",  // Its fifth: the thread pointer.
        "xor edx, edx", // Its third, unused: where to store the tid.
        "mov eax, 56",  // clone
        "syscall",
        "test rax, rax",
        "jz {enter}", // The child stands on the parked stack already.
        "pop r12",
        "ret",
        enter = sym enter_restored,
    )
}

/// The same by clone3(2), which can give the thread an id.
///
/// # Safety
///
/// As [`clone_parked`], with what `arguments` say; their `stack` ends at `stopped.sp`.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn clone3_parked(
    arguments: *const ulpm_sys::CloneArguments,
    stopped: *mut Stopped,
) -> isize {
    naked_asm!(
        "push r12",
        "mov r12, rsi",
        "mov esi, {len}",
        "mov eax, {number}",
        "syscall",
        "test rax, rax",
        "jz {enter}",
        "pop r12",
        "ret",
        len = const size_of::<ulpm_sys::CloneArguments>(),
        number = const nr::CLONE3,
        enter = sym enter_restored,
    )
}

/// First steps of a restored thread: `r12` holds its `Stopped`, `rsp` is `stopped.sp`.
///
/// # Safety
///
/// Jumped to, with the registers as the line above says.
#[unsafe(naked)]
unsafe extern "C" fn enter_restored() {
    naked_asm!(
        "mov rdi, r12",
        "call {restored}", // The stack is aligned, as `park` left it.
        "jmp {out}",
        restored = sym threads::restored,
        out = sym leave_park,
    )
}

/// Makes the calling thread take the place of a parked one.
///
/// # Safety
///
/// As [`clone_parked`]; the calling thread's own stack is of no further use.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn become_parked(stopped: *mut Stopped) -> ! {
    naked_asm!(
        "mov r12, rdi",
        "mov rsp, [rdi + {sp}]",
        "jmp {enter}",
        sp = const offset_of!(Stopped, sp),
        enter = sym enter_restored,
    )
}

/// Makes a thread that calls `function` on a new stack, and returns its id or a negated error.
///
/// # Safety
///
/// `stack` is the top of memory that only this thread uses; `function` does not return.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn clone_thread(
    flags: usize,
    stack: usize,
    function: extern "C" fn() -> !,
) -> isize {
    naked_asm!(
        "push r12",
        "mov r12, rdx",
        "xor edx, edx",
        "xor r10d, r10d",
        "xor r8d, r8d",
        "mov eax, 56", // clone
        "syscall",
        "test rax, rax",
        "jz 2f",
        "pop r12",
        "ret",
        "2: xor ebp, ebp", // Outermost frame: unwinders stop here.
        "and rsp, -16",
        "call r12",
        "ud2",
    )
}

/// `vfork()`. Reason: name (the child's id).
///
/// The child returns first, on the parent's stack, and will have overwritten what lay below when the
/// parent returns. So the return address stays in a register, which the kernel keeps for both.
///
/// # Safety
///
/// As vfork(2).
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn vfork() -> i32 {
    naked_asm!(
        "pop rdi",
        // The parent holds a real name from the return of the call on; see `critical`. A freeze signal
        // that came meanwhile is delivered at that very moment.
        "mov r8, qword ptr fs:[0]",
        "add r8, qword ptr [rip + ulpm_slot@GOTTPOFF]",
        "lea r9, [rsp + 128]",
        "mov [r8 + 24], r9", // critical::START
        "mov qword ptr [r8 + 32], 0", // critical::LET_GO
        "lock inc dword ptr [rip + {vforking}]", // getpid() asks the kernel while this is not 0.
        "mov eax, 58",                           // vfork
        "syscall",
        "push rdi",
        "test eax, eax",
        "jz 2f",
        "sub rsp, 8", // Align for the call.
        "movsxd rdi, eax",
        "call {parent}",
        "add rsp, 8",
        "2: ret",
        vforking = sym crate::wrap::fork::VFORKING,
        parent = sym crate::wrap::fork::vfork_parent,
    )
}

// Makes the rest of a call that was cut short: see `cut`. The stack pointer is that of a `cut::Rest` throughout. Nobody
// calls this: a thread gets here from a signal handler, and goes on behind the program's call as if that had just
// returned. A cancellation may unwind it, as it does the program's own call, so the unwinder is told where that was:
// the frame's address is the stack pointer that the program had, which like the return address lies in the `Rest`.
core::arch::global_asm!(
    ".section .text.ulpm_rest,\"ax\",@progbits",
    ".p2align 4",
    ".globl ulpm_rest",
    ".hidden ulpm_rest",
    ".globl ulpm_rest_returned",
    ".hidden ulpm_rest_returned",
    ".type ulpm_rest,@function",
    ".cfi_startproc",
    ".cfi_signal_frame",
    ".cfi_escape 0x0f, 3, 0x77, {rsp}, 0x06", // DW_CFA_def_cfa_expression: *(rsp + {rsp})
    ".cfi_escape 0x10, 16, 2, 0x77, {rip}",   // DW_CFA_expression: rip is saved at rsp + {rip}
    "nop", // Unwinders look up what is before a return address.
    "ulpm_rest:",
    "cmp qword ptr [rsp + {mode}], 0",
    "je 3f",
    "2: lea rdi, [rsp + {poll}]",
    "mov esi, 1",
    "mov rdx, [rsp + {timeout}]", // The kernel leaves there what is left of it.
    "xor r10d, r10d",             // No mask.
    "mov r8d, 8",
    "mov eax, {ppoll}",
    "syscall",
    "cmp rax, 1",
    "je 4f",
    "cmp qword ptr [rsp + {total}], 0",
    "jne 7f",
    "test rax, rax",
    "jnz 5f",
    "mov rax, [rsp + {late}]",
    "5: mov [rsp + {total}], rax", // Nothing was done: the time is over, or a handler of the program's has run.
    "jmp 7f",
    "4: cmp qword ptr [rsp + {mode}], 2",
    "je 8f",
    "movzx eax, word ptr [rsp + {found}]",
    "test [rsp + {stop_at}], eax",
    "jnz 7f",
    "3: mov rdi, [rsp + {now}]",
    "mov rsi, [rsp + {now} + 8]",
    "mov rdx, [rsp + {now} + 16]",
    "cmp rdx, [rsp + {step}]",
    "cmova rdx, [rsp + {step}]",
    "mov r10, [rsp + {now} + 24]",
    "mov r8, [rsp + {now} + 32]",
    "mov r9, [rsp + {now} + 40]",
    "mov rax, [rsp + {number}]",
    "syscall",
    "ulpm_rest_returned:",
    "cmp rax, -4095",
    "jae 6f",
    "add [rsp + {total}], rax",
    "add [rsp + {now} + 8], rax", // This matters to calls on memory only: all that poll, or have parts.
    "sub [rsp + {now} + 16], rax",
    "sub [rsp + {left}], rax",
    "jz 9f",
    "test rax, rax", // The end of a stream.
    "jz 7f",
    "cmp rax, [rsp + {enough}]", // Less, if the call waits: a handler of the program's has run.
    "jae 2b",
    "jmp 7f",
    "6: cmp rax, -11", // EAGAIN: somebody else was quicker.
    "jne 7f",
    "cmp qword ptr [rsp + {enough}], 1",
    "je 2b",
    "jmp 7f",
    "9: cmp qword ptr [rsp + {part_count}], 0", // The next part.
    "je 7f",
    "dec qword ptr [rsp + {part_count}]",
    "mov rcx, [rsp + {parts}]",
    "add qword ptr [rsp + {parts}], 16",
    "mov rax, [rcx]",
    "mov [rsp + {now} + 8], rax",
    "mov rax, [rcx + 8]",
    "mov [rsp + {now} + 16], rax",
    "mov [rsp + {left}], rax",
    "test rax, rax",
    "jz 9b",
    "jmp ulpm_rest",
    "7: mov rax, [rsp + {total}]", // Done: a system call changes rax, rcx and r11 only.
    "mov rcx, [rsp + {rip}]",
    "jmp 10f",
    "8: mov rax, [rsp + {again}]", // The program's own call, again.
    "mov rcx, [rsp + {rip}]",
    "lea rcx, [rcx - 2]",
    "10: mov rdi, [rsp + {arguments}]",
    "mov rsi, [rsp + {arguments} + 8]",
    "mov rdx, [rsp + {arguments} + 16]",
    "mov r10, [rsp + {arguments} + 24]",
    "mov r8, [rsp + {arguments} + 32]",
    "mov r9, [rsp + {arguments} + 40]",
    "mov rsp, [rsp + {rsp}]",
    ".cfi_def_cfa rsp, 0",
    ".cfi_register rip, rcx",
    "jmp rcx",
    ".cfi_endproc",
    ".size ulpm_rest, . - ulpm_rest",
    ".previous",
    rip = const cut::at::RIP,
    rsp = const cut::at::RSP,
    arguments = const cut::at::ARGUMENTS,
    total = const cut::at::TOTAL,
    number = const cut::at::NUMBER,
    now = const cut::at::NOW,
    left = const cut::at::LEFT,
    parts = const cut::at::PARTS,
    part_count = const cut::at::PART_COUNT,
    poll = const cut::at::POLL,
    found = const cut::at::FOUND,
    timeout = const cut::at::TIMEOUT,
    mode = const cut::at::MODE,
    step = const cut::at::STEP,
    enough = const cut::at::ENOUGH,
    stop_at = const cut::at::STOP_AT,
    again = const cut::at::AGAIN,
    late = const cut::at::LATE,
    ppoll = const nr::PPOLL,
);

unsafe extern "C" {
    fn ulpm_rest();
    fn ulpm_rest_returned();
}

/// Where the instructions begin that make the rest of a call.
pub(crate) fn rest_start() -> usize {
    (ulpm_rest as *const ()).addr()
}

/// Where a call returns to that makes a part of the rest.
pub(crate) fn rest_returned() -> usize {
    (ulpm_rest_returned as *const ()).addr()
}

// The slot of `thread_slot`.
core::arch::global_asm!(
    ".section .tbss.ulpm_slot,\"awT\",@nobits",
    ".p2align 3",
    ".globl ulpm_slot",
    ".hidden ulpm_slot",
    ".type ulpm_slot,@object",
    ".size ulpm_slot,320",
    "ulpm_slot: .zero 320",
    ".previous",
);

/// Words of [`thread_slot`].
pub(crate) const SLOT_LEN: usize = 40;

/// The calling thread's own words, zero at first; other modules say what for.
///
/// `thread_local!` compiles to a call of `__tls_get_addr` here, which may allocate. The initial-exec
/// model is two instructions, usable in any handler and before any constructor.
pub(crate) fn thread_slot() -> *mut [u64; SLOT_LEN] {
    let slot;
    // SAFETY: reads the thread pointer and an offset fixed at load time.
    unsafe {
        core::arch::asm!(
            "mov {p}, qword ptr fs:[0]",
            "add {p}, qword ptr [rip + ulpm_slot@GOTTPOFF]",
            p = out(reg) slot,
            options(nostack, readonly),
        );
    }
    slot
}

/// The stack pointer. A local variable's address is no measure for it: in a function that calls no other
/// it may lie below, in the red zone.
#[inline(always)]
pub(crate) fn stack_pointer() -> usize {
    let sp;
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mov {sp}, rsp", sp = out(reg) sp, options(nomem, nostack, preserves_flags));
    }
    sp
}

/// The layout of extended registers on the machine where the process was last captured.
///
/// A restart finds it in the image, together with the signal frames that have this layout.
static CAPTURED: Captured = Captured(UnsafeCell::new(None));

struct Captured(UnsafeCell<Option<Layout>>);

// SAFETY: the manager writes while all threads stand still; they read when they are restored, from memory
// that nobody writes before all have arrived.
unsafe impl Sync for Captured {}

/// Notes the layout of extended registers for a restart; returns XCR0 and the length of their save area.
///
/// # Safety
///
/// The calling thread is the manager, or a copy of it, and all threads of the program stand still.
pub(crate) unsafe fn note_extended_state() -> (u64, u64) {
    let layout = Layout::here();
    // SAFETY: the caller vouches for it that nobody reads meanwhile.
    unsafe { *CAPTURED.0.get() = Some(layout) };
    (layout.features, layout.len as u64)
}

/// Fits the extended state in a signal frame of the image to this machine.
///
/// # Errors
///
/// In words, what this machine cannot do.
///
/// # Safety
///
/// `fpstate` is null, or that of a signal frame which the calling thread will return to; the process was
/// restored from an image.
pub(crate) unsafe fn fit_extended_state(fpstate: usize) -> Result<(), &'static str> {
    if fpstate == 0 {
        return Ok(());
    }
    let here = Layout::here();
    // SAFETY: written when the image was made, and by nobody since; see `Captured`.
    let made = unsafe { *CAPTURED.0.get() }.unwrap_or(here);
    // SAFETY: the caller vouches for the frame, which is as long as it says.
    let area = unsafe {
        let start = core::ptr::with_exposed_provenance_mut::<u8>(fpstate);
        core::slice::from_raw_parts_mut(start, xsave::frame_len(fpstate))
    };
    here.fit(&made, area).map_err(|unfit| match unfit {
        Unfit::Lacking => {
            "this processor lacks vector registers that a thread of the program is using"
        }
        Unfit::Layout => {
            "this processor keeps vector registers that a thread of the program is using at other places"
        }
    })
}
