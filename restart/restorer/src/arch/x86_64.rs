//! The code on x86-64.

use core::arch::global_asm;

// rbx walks the list, r12 holds the failure descriptor. A system call keeps both, changes rcx, r11 and
// rax, and uses no stack.
global_asm!(
    ".pushsection .text.ulpm_restorer,\"ax\",@progbits",
    ".globl ulpm_restorer_start",
    ".hidden ulpm_restorer_start",
    "ulpm_restorer_start:",
    "mov rbx, rdi",       // First argument: the list.
    "mov r12, rsi",       // Second: where a failure is reported.
    "20: mov rax, [rbx]", // The number,
    "cmp rax, -1",        // or the end.
    "je 23f",
    "mov rdi, [rbx + 8]", // The arguments.
    "mov rsi, [rbx + 16]",
    "mov rdx, [rbx + 24]",
    "mov r10, [rbx + 32]",
    "mov r8, [rbx + 40]",
    "mov r9, [rbx + 48]",
    "syscall",
    "mov rcx, [rbx + 56]", // What it must return:
    "cmp rcx, -2",
    "je 22f", // anything,
    "cmp rcx, -1",
    "je 21f",       // anything but an error,
    "cmp rax, rcx", // or this.
    "jne 24f",
    "jmp 22f",
    "21: cmp rax, -4096",
    "ja 24f",
    "22: add rbx, 64", // The next.
    "jmp 20b",
    "23: mov rsp, [rbx + 16]", // The end: the new stack,
    "mov rdi, [rbx + 24]",     // the argument,
    "xor ebp, ebp",            // no frame above,
    "sub rsp, 8",              // aligned as after a call,
    "jmp [rbx + 8]",           // and off.
    "24: mov [rbx + 56], rax", // A failure: put the result into the operation,
    "mov eax, 1",              // write
    "mov rdi, r12",
    "mov rsi, rbx", // all of it,
    "mov edx, 64",
    "syscall",
    "mov eax, 231", // and exit_group
    "mov edi, 71",  // with EX_OSERR.
    "syscall",
    "ud2",
    ".globl ulpm_restorer_end",
    ".hidden ulpm_restorer_end",
    "ulpm_restorer_end:",
    ".popsection",
);

/// The instructions, to be copied to executable memory and called with the address of a list of
/// operations and the number of a descriptor.
#[must_use]
pub fn code() -> &'static [u8] {
    unsafe extern "C" {
        static ulpm_restorer_start: u8;
        static ulpm_restorer_end: u8;
    }
    let (start, end) = (&raw const ulpm_restorer_start, &raw const ulpm_restorer_end);
    // SAFETY: the two labels enclose the instructions above.
    unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) }
}
