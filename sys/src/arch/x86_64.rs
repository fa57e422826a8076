//! What is particular to x86-64: the system call instruction, call numbers, thread registers.

pub mod xsave;

use core::arch::asm;

/// `syscall` with its two bytes in memory order: what stands before the address that a system call
/// returns to.
pub const SYSCALL_INSTRUCTION: [u8; 2] = [0x0f, 0x05];

/// Numbers of system calls, from arch/x86/entry/syscalls/syscall_64.tbl.
#[expect(missing_docs, reason = "each is documented in section 2 of the manual")]
pub mod nr {
    macro_rules! numbers {
        ($($name:ident = $number:literal;)*) => {
            $(pub const $name: usize = $number;)*

            /// The name of a call, for messages.
            #[must_use]
            pub fn name(number: usize) -> &'static str {
                match number {
                    $($number => stringify!($name),)*
                    _ => "?",
                }
            }
        };
    }

    numbers! {
        READ = 0; WRITE = 1; CLOSE = 3; FSTAT = 5; POLL = 7; LSEEK = 8; MMAP = 9; MPROTECT = 10;
        MUNMAP = 11; BRK = 12; RT_SIGACTION = 13; RT_SIGPROCMASK = 14; RT_SIGRETURN = 15; IOCTL = 16;
        PREAD64 = 17; READV = 19; WRITEV = 20; SCHED_YIELD = 24; MREMAP = 25; MADVISE = 28; PAUSE = 34; NANOSLEEP = 35;
        SHMGET = 29; SHMAT = 30; SHMCTL = 31;
        GETITIMER = 36; SETITIMER = 38; SENDFILE = 40; GETPID = 39; CONNECT = 42; ACCEPT = 43; SENDTO = 44;
        RECVFROM = 45; SENDMSG = 46; RECVMSG = 47; SOCKET = 41; GETSOCKNAME = 51; GETPEERNAME = 52;
        SETSOCKOPT = 54; GETSOCKOPT = 55; CLONE = 56; FORK = 57; VFORK = 58;
        EXECVE = 59; EXIT = 60; WAIT4 = 61; KILL = 62; SEMGET = 64; SEMOP = 65; SEMCTL = 66;
        SHMDT = 67; MSGGET = 68; MSGSND = 69; MSGRCV = 70; MSGCTL = 71; FCNTL = 72;
        FLOCK = 73; FSYNC = 74; FDATASYNC = 75; READLINK = 89; GETRLIMIT = 97; SETPGID = 109; GETPPID = 110;
        SETSID = 112; GETPGID = 121; GETSID = 124; IOPRIO_SET = 251; IOPRIO_GET = 252; GETPRIORITY = 140;
        SETPRIORITY = 141; SCHED_SETPARAM = 142; SCHED_GETPARAM = 143; SCHED_SETSCHEDULER = 144;
        SCHED_GETSCHEDULER = 145; SCHED_RR_GET_INTERVAL = 148; TKILL = 200; GETPGRP = 111;
        MIGRATE_PAGES = 256; MOVE_PAGES = 279; PROCESS_VM_READV = 310; PROCESS_VM_WRITEV = 311;
        IO_URING_SETUP = 425; PIDFD_SEND_SIGNAL = 424; FSTATFS = 138; RT_SIGPENDING = 127; RT_SIGTIMEDWAIT = 128;
        RT_SIGQUEUEINFO = 129; RT_SIGSUSPEND = 130; SIGALTSTACK = 131; PERSONALITY = 135; PRCTL = 157;
        ARCH_PRCTL = 158; GETTID = 186; FUTEX = 202; SCHED_GETAFFINITY = 204; SCHED_SETAFFINITY = 203;
        IO_SETUP = 206; IO_GETEVENTS = 208; IO_SUBMIT = 209; IO_PGETEVENTS = 333; GETDENTS64 = 217; SET_TID_ADDRESS = 218; SEMTIMEDOP = 220;
        TIMER_CREATE = 222; TIMER_SETTIME = 223; TIMER_GETTIME = 224; TIMER_DELETE = 226;
        TIMERFD_GETTIME = 287; TIMERFD_SETTIME = 286; SYSINFO = 99; PTRACE = 101; FUTEX_WAITV = 449; RESTART_SYSCALL = 219; INOTIFY_ADD_WATCH = 254; INOTIFY_RM_WATCH = 255; INOTIFY_INIT1 = 294;
        OPEN_BY_HANDLE_AT = 304; MQ_OPEN = 240; MQ_UNLINK = 241; MQ_TIMEDSEND = 242;
        MQ_TIMEDRECEIVE = 243; MQ_NOTIFY = 244; MQ_GETSETATTR = 245; UNSHARE = 272;
        CLOCK_GETTIME = 228; CLOCK_NANOSLEEP = 230; EXIT_GROUP = 231; EPOLL_WAIT = 232; TGKILL = 234;
        WAITID = 247; OPENAT = 257; NEWFSTATAT = 262; UNLINKAT = 263; RENAMEAT = 264; READLINKAT = 267;
        SELECT = 23; PSELECT6 = 270; PPOLL = 271; SET_ROBUST_LIST = 273; GET_ROBUST_LIST = 274;
        SPLICE = 275; TEE = 276; EPOLL_PWAIT = 281;
        ACCEPT4 = 288; PIPE2 = 293; RT_TGSIGQUEUEINFO = 297; RECVMMSG = 299; FALLOCATE = 285; SENDMMSG = 307; GETRANDOM = 318; PRLIMIT64 = 302; KCMP = 312;
        SCHED_SETATTR = 314; SCHED_GETATTR = 315; EXECVEAT = 322; RSEQ = 334; PIDFD_OPEN = 434;
        CLONE3 = 435; CLOSE_RANGE = 436; PIDFD_GETFD = 438; EPOLL_PWAIT2 = 441;
    }
}

/// The number of a system call whose instruction follows `code`: only if the code puts it there in plain sight, and
/// what comes between does nothing but fill other registers.
#[must_use]
pub fn number_of_call(code: &[u8]) -> Option<usize> {
    (0..code.len()).rev().find_map(|at| {
        let (number, rest) = match &code[at..] {
            [0xb8, low, high @ (0 | 1), 0, 0, rest @ ..] => {
                (usize::from(*high) << 8 | usize::from(*low), rest)
            }
            [0x31 | 0x33, 0xc0, rest @ ..] => (0, rest),
            _ => return None,
        };
        // With a prefix it is another register, or longer.
        let prefixed = at > 0 && matches!(code[at - 1], 0x40..=0x4f | 0x66);
        (!prefixed && fills_other_registers(rest)).then_some(number)
    })
}

/// Whether `code` is whole instructions that leave rax alone.
fn fills_other_registers(mut code: &[u8]) -> bool {
    while !code.is_empty() {
        let (prefix, rest) = match code {
            [prefix @ 0x40..=0x4f, rest @ ..] => (*prefix, rest),
            _ => (0, code),
        };
        let len = match rest {
            // xor and mov from one register to another: the target is the lower one, or the one in the middle.
            [0x31 | 0x89, modrm @ 0xc0..=0xff, ..] if modrm & 7 != 0 || prefix & 1 != 0 => 2,
            [0x33 | 0x8b | 0x63, modrm @ 0xc0..=0xff, ..]
                if modrm & 0x38 != 0 || prefix & 4 != 0 =>
            {
                2
            }
            // mov and lea from memory.
            [0x8b | 0x8d | 0x63, modrm @ ..0xc0, ..] if modrm & 0x38 != 0 || prefix & 4 != 0 => {
                let index = usize::from(modrm & 7 == 4);
                let offset = match modrm >> 6 {
                    0 if modrm & 7 == 5 => 4,
                    0 if index == 1 && rest.get(2).is_some_and(|sib| sib & 7 == 5) => 4,
                    0 => 0,
                    1 => 1,
                    _ => 4,
                };
                2 + index + offset
            }
            // mov of a number.
            [0xc7, modrm @ 0xc0..=0xc7, ..] if *modrm != 0xc0 || prefix & 1 != 0 => 6,
            [register @ 0xb8..=0xbf, ..]
                if (*register != 0xb8 || prefix & 1 != 0) && prefix & 8 == 0 =>
            {
                5
            }
            _ => return false,
        };
        let Some(behind) = rest.get(len..) else { return false };
        code = behind;
    }
    true
}

/// Makes a system call.
///
/// # Safety
///
/// The call does what the caller means, and every pointer in `args` is good for it.
#[inline(always)]
pub unsafe fn syscall(nr: usize, args: [usize; 6]) -> usize {
    let returned;
    // SAFETY: the caller vouches for the call. The kernel changes rcx, r11 and the result only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr => returned,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    returned
}

/// `arch_prctl` operations, from arch/x86/include/uapi/asm/prctl.h.
pub mod prctl {
    /// Set the base of gs.
    pub const SET_GS: usize = 0x1001;
    /// Set the base of fs.
    pub const SET_FS: usize = 0x1002;
    /// Read the base of fs.
    pub const GET_FS: usize = 0x1003;
    /// Read the base of gs.
    pub const GET_GS: usize = 0x1004;
}

/// Whether the CPU has the CRC32 instruction.
#[must_use]
pub fn has_sse42() -> bool {
    core::arch::x86_64::__cpuid(1).ecx & (1 << 20) != 0
}

/// Machine registers in the order of `struct sigcontext_64` (arch/x86/include/uapi/asm/sigcontext.h).
#[derive(Debug)]
#[repr(C)]
#[expect(missing_docs, reason = "registers")]
pub struct MachineContext {
    pub r8: usize,
    pub r9: usize,
    pub r10: usize,
    pub r11: usize,
    pub r12: usize,
    pub r13: usize,
    pub r14: usize,
    pub r15: usize,
    pub rdi: usize,
    pub rsi: usize,
    pub rbp: usize,
    pub rbx: usize,
    pub rdx: usize,
    pub rax: usize,
    pub rcx: usize,
    pub rsp: usize,
    pub rip: usize,
    pub eflags: usize,
    pub segments: u64,
    pub err: u64,
    pub trapno: u64,
    pub oldmask: u64,
    pub cr2: u64,
    pub fpstate: usize,
    reserved: [u64; 8],
}

/// `struct ucontext` of the kernel (include/uapi/asm-generic/ucontext.h), as far as it is used.
#[derive(Debug)]
#[repr(C)]
pub struct UserContext {
    /// UC_… flags.
    pub flags: usize,
    /// Unused by the kernel.
    pub link: usize,
    /// The alternate stack when the signal came.
    pub stack: crate::signal::AltStack,
    /// Registers of the interrupted code.
    pub machine: MachineContext,
    /// The mask that sigreturn gives back.
    pub mask: u64,
}

impl UserContext {
    /// Whether the interrupted code stands just behind a system call that returned `errno`.
    ///
    /// # Safety
    ///
    /// The context is that of a thread which stands in a signal handler of this process.
    #[must_use]
    pub unsafe fn returned(&self, errno: crate::Errno) -> bool {
        let failed = 0usize.wrapping_sub(errno.raw().cast_unsigned() as usize);
        // SAFETY: the caller vouches for the context.
        self.machine.rax == failed && unsafe { self.follows_call() }
    }

    /// Whether the interrupted code stands just behind a system call.
    ///
    /// # Safety
    ///
    /// As [`UserContext::returned`].
    #[must_use]
    pub unsafe fn follows_call(&self) -> bool {
        let before = self.machine.rip.wrapping_sub(SYSCALL_INSTRUCTION.len());
        let before = core::ptr::with_exposed_provenance::<[u8; 2]>(before);
        // SAFETY: the pair is only read when it shares the page with the instruction to be executed
        // next, which is mapped.
        self.machine.rip & (crate::PAGE - 1) >= SYSCALL_INSTRUCTION.len()
            && unsafe { before.read_unaligned() } == SYSCALL_INSTRUCTION
    }

    /// The number of the system call that the interrupted code is about to make, or to make again
    /// because the kernel restarts it.
    ///
    /// # Safety
    ///
    /// As [`UserContext::returned`].
    #[must_use]
    pub unsafe fn about_to_call(&self) -> Option<usize> {
        let here = core::ptr::with_exposed_provenance::<[u8; 2]>(self.machine.rip);
        // SAFETY: the instruction to be executed next is mapped; two bytes are read if they lie in
        // its page.
        (self.machine.rip & (crate::PAGE - 1) <= crate::PAGE - 2
            && unsafe { here.read_unaligned() } == SYSCALL_INSTRUCTION)
            .then_some(self.machine.rax)
    }

    /// Makes the interrupted code issue system call `nr` again.
    pub fn rewind(&mut self, nr: usize) {
        self.machine.rip -= SYSCALL_INSTRUCTION.len();
        self.machine.rax = nr;
    }
}

#[cfg(test)]
mod tests {
    use super::number_of_call;

    #[test]
    fn numbers_of_calls_are_read_where_they_are_plain() {
        // write of glibc 2.36: mov eax, 1
        assert_eq!(number_of_call(&[0x74, 0x15, 0xb8, 1, 0, 0, 0]), Some(1));
        // read: xor eax, eax
        assert_eq!(number_of_call(&[0x74, 0x15, 0x31, 0xc0]), Some(0));
        // sendto with threads: mov eax, 44; mov rsi, [rsp+16]; mov edi, [rsp+8]
        let code = [0xb8, 0x2c, 0, 0, 0, 0x48, 0x8b, 0x74, 0x24, 0x10, 0x8b, 0x7c, 0x24, 0x08];
        assert_eq!(number_of_call(&code), Some(44));
        // recvfrom: … mov edi, [rsp]
        assert_eq!(number_of_call(&[0xb8, 0x2d, 0, 0, 0, 0x8b, 0x3c, 0x24]), Some(45));
        // __syscall_cancel_arch: mov rax, rsi; …
        assert_eq!(number_of_call(&[0x48, 0x89, 0xf0, 0x48, 0x89, 0xd7]), None);
        // mov eax, 1; call …; mov r8d, 1
        assert_eq!(number_of_call(&[0xb8, 1, 0, 0, 0, 0xe8, 1, 2, 3, 4]), None);
        assert_eq!(number_of_call(&[0x41, 0xb8, 1, 0, 0, 0]), None);
        // mov eax, 1; mov eax, [rsp+8]
        assert_eq!(number_of_call(&[0xb8, 1, 0, 0, 0, 0x8b, 0x44, 0x24, 0x08]), None);
    }
}
