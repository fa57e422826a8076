/* Every kind of mapping that a usual program has: content, protection, holes and growth stay as they are. */
#include "guest.h"
#include <limits.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { PAGE = 4096 };

static sigjmp_buf fault;
static volatile sig_atomic_t fault_expected;

static void on_fault(int number)
{
    CHECK(fault_expected);
    siglongjmp(fault, number);
}

/* Whether a read of `at` (or a write) ends in SIGSEGV. */
static int faults(volatile char *at, int writes)
{
    fault_expected = 1;
    if (sigsetjmp(fault, 1) != 0) {
        fault_expected = 0;
        return 1;
    }
    if (writes)
        *at = *at;
    else
        (void)*at;
    fault_expected = 0;
    return 0;
}

/* The permissions that /proc shows for the page at `at`, or "none". */
static void permissions(const void *at, char *found)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    CHECK(maps != NULL);
    char line[PATH_MAX + 200];
    strcpy(found, "none");
    while (fgets(line, sizeof line, maps) != NULL) {
        unsigned long from, to;
        char mode[8];
        if (sscanf(line, "%lx-%lx %7s", &from, &to, mode) != 3)
            continue; /* See PERMISSIONS. */
        if ((unsigned long)at >= from && (unsigned long)at < to)
            strcpy(found, mode);
    }
    CHECK_EQ(fclose(maps), 0);
}

#define PERMISSIONS(at, wanted)               \
    do {                                      \
        char found_mode[8];                   \
        permissions(at, found_mode);          \
        /* Again where a restart in the middle made it another file. */ \
        for (int again = 0; again < 3 && strcmp(found_mode, wanted) != 0; again++) \
            permissions(at, found_mode);      \
        CHECK(strcmp(found_mode, wanted) == 0); \
    } while (0)

static char *map(size_t len, int protection, int flags, int fd, off_t offset)
{
    char *at = mmap(NULL, len, protection, flags, fd, offset);
    CHECK(at != MAP_FAILED);
    return at;
}

static void fill(char *at, size_t len, uint64_t seed)
{
    for (size_t i = 0; i + 8 <= len; i += 8)
        *(uint64_t *)(at + i) = guest_random(&seed);
}

static uint64_t deep(int depth)
{
    volatile char room[16384];
    memset((char *)room, depth, sizeof room);
    return depth == 0 ? 1 : deep(depth - 1) + (unsigned char)room[100];
}

static int open_file(const char *name, char *content, size_t len)
{
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK_EQ(write(fd, content, len), len);
    return fd;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    /* A handler on its own stack, because one of the faults is at the end of a stack. */
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_ONSTACK};
    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
    CHECK_EQ(sigaltstack(&stack, NULL), 0);
    CHECK_EQ(sigaction(SIGSEGV, &action, NULL), 0);
    CHECK_EQ(sigaction(SIGBUS, &action, NULL), 0);

    /* Anonymous: written, read-only, executable, never touched, and with guard pages on both sides. */
    char *written = map(256 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(written, 256 * PAGE, 1);
    char *constant = map(16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(constant, 16 * PAGE, 2);
    CHECK_EQ(mprotect(constant, 16 * PAGE, PROT_READ), 0);
    char *code = map(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(code, "\xb8\x2a\x00\x00\x00\xc3", 6); /* mov $42,%eax; ret */
    CHECK_EQ(mprotect(code, PAGE, PROT_READ | PROT_EXEC), 0);
    int (*function)(void);
    memcpy(&function, &code, sizeof function);
    char *untouched = map(64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *guarded = map(3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK_EQ(mprotect(guarded + PAGE, PAGE, PROT_READ | PROT_WRITE), 0);
    fill(guarded + PAGE, PAGE, 3);
    /* Written, and then closed to all access: the content is there when it is opened again. */
    char *closed = map(8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(closed, 8 * PAGE, 4);
    CHECK_EQ(mprotect(closed, 8 * PAGE, PROT_NONE), 0);

    /* A reservation as garbage collectors make it, with a part in use. */
    size_t reserved = (size_t)64 << 30;
    char *reservation = map(reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK_EQ(mprotect(reservation + (1 << 20), 16 * PAGE, PROT_READ | PROT_WRITE), 0);
    fill(reservation + (1 << 20), 16 * PAGE, 5);
    /* More than could be written to, and without MAP_NORESERVE. */
    size_t vast_len = (size_t)8 << 40;
    char *vast = map(vast_len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    /* Huge pages by advice, a hole, and a part that was moved. */
    char *huge = map(8 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    (void)madvise(huge, 8 << 20, MADV_HUGEPAGE);
    fill(huge, 8 << 20, 6);
    char *holed = map(5 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(holed, 5 * PAGE, 7);
    CHECK_EQ(munmap(holed + 2 * PAGE, PAGE), 0);
    char *moved = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(moved, 4 * PAGE, 8);
    moved = mremap(moved, 4 * PAGE, 64 * PAGE, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED);

    /* Files: private with one page changed, private untouched, shared; and one whose name is gone. */
    char content[8 * PAGE];
    fill(content, sizeof content, 9);
    int private_fd = open_file("mappings.private", content, sizeof content);
    char *private_file = map(sizeof content, PROT_READ | PROT_WRITE, MAP_PRIVATE, private_fd, 0);
    private_file[3 * PAGE] = 'x';
    char *second_page = map(2 * PAGE, PROT_READ, MAP_PRIVATE, private_fd, PAGE);
    int shared_fd = open_file("mappings.shared", content, sizeof content);
    char *shared_file = map(sizeof content, PROT_READ | PROT_WRITE, MAP_SHARED, shared_fd, 0);
    int gone_fd = open_file("mappings.gone", content, sizeof content);
    char *gone_file = map(sizeof content, PROT_READ | PROT_WRITE, MAP_PRIVATE, gone_fd, 0);
    gone_file[PAGE] = 'y';
    CHECK_EQ(close(private_fd), 0);
    CHECK_EQ(close(gone_fd), 0);
    CHECK_EQ(unlink("mappings.gone"), 0);
    /* Mappings that reach beyond the ends of their files, where nothing can be read: of two pages, one, and none. */
    char *beyond[3];
    for (int i = 0; i < 3; i++) {
        int fd = open_file("mappings.short", content, (size_t)(2 - i) * PAGE - (i == 0 ? 100 : 0));
        beyond[i] = map((size_t)(10 + i) * PAGE, PROT_READ | PROT_WRITE, i == 1 ? MAP_PRIVATE : MAP_SHARED, fd, 0);
        CHECK_EQ(unlink("mappings.short"), 0);
        CHECK_EQ(close(fd), 0);
    }

    /* The break, and a stack that grows down by itself. */
    char *break_before = sbrk(0);
    CHECK(sbrk(32 * PAGE) == break_before);
    fill(break_before, 32 * PAGE, 10);
    char *below = map(64 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK_EQ(munmap(below + 32 * PAGE, 32 * PAGE), 0);
    char *grows = mmap(below + 56 * PAGE, 8 * PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_GROWSDOWN, -1, 0);
    CHECK(grows == below + 56 * PAGE);
    fill(grows, 8 * PAGE, 11);

    /* Shared anonymous memory between forked processes, mapped twice as large in one of them only. */
    struct {
        atomic_long asked, answered, sum;
        char page[PAGE];
    } *shared = (void *)map(16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t parent = getpid(), child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        /* It ends with its parent, should a check end that one. */
        while (getppid() == parent) {
            long asked = shared->asked;
            if (asked < 0)
                _exit(0);
            if (asked > shared->answered) {
                shared->page[asked % PAGE] = (char)asked;
                shared->sum += asked;
                shared->answered = asked;
            }
            guest_nap_us(200);
        }
        _exit(97);
    }

    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        CHECK(guest_sum(written, 256 * PAGE) != 0);
        written[(i * 977) % (256 * PAGE)] ^= (char)i;
        PERMISSIONS(written, "rw-p");
        PERMISSIONS(constant, "r--p");
        CHECK(faults(constant, 1) && !faults(constant, 0));
        PERMISSIONS(code, "r-xp");
        CHECK_EQ(function(), 42);
        for (size_t at = 0; at < (64u << 20); at += 8 << 20)
            CHECK_EQ(untouched[at + (size_t)(i % 1000)], 0);
        CHECK(faults(guarded, 0) && faults(guarded + 2 * PAGE, 0) && !faults(guarded + PAGE, 1));
        PERMISSIONS(guarded, "---p");
        PERMISSIONS(closed, "---p");
        PERMISSIONS(vast + vast_len - PAGE, "---p");
        PERMISSIONS(reservation, "---p");
        PERMISSIONS(reservation + reserved - PAGE, "---p");
        PERMISSIONS(reservation + (1 << 20), "rw-p");
        PERMISSIONS(holed + PAGE, "rw-p");
        PERMISSIONS(holed + 2 * PAGE, "none");
        PERMISSIONS(second_page, "r--p");
        PERMISSIONS(shared_file, "rw-s");
        PERMISSIONS(shared, "rw-s");
        CHECK_EQ(moved[4 * PAGE], 0);
        CHECK_EQ(private_file[3 * PAGE], 'x');
        CHECK(memcmp(private_file, content, 3 * PAGE) == 0);
        CHECK(memcmp(private_file + 4 * PAGE, content + 4 * PAGE, 4 * PAGE) == 0);
        CHECK(memcmp(second_page, content + PAGE, 2 * PAGE) == 0);
        CHECK_EQ(gone_file[PAGE], 'y');
        CHECK(memcmp(gone_file + 2 * PAGE, content + 2 * PAGE, PAGE) == 0);

        CHECK(memcmp(beyond[0], content, PAGE) == 0);
        CHECK_EQ(beyond[0][PAGE + 7], i == 1 ? content[PAGE + 7] : (char)(i - 1));
        beyond[0][PAGE + 7] = (char)i;
        CHECK_EQ(beyond[1][PAGE / 2], i == 1 ? content[PAGE / 2] : (char)(i - 1));
        beyond[1][PAGE / 2] = (char)i;
        /* A restored mapping reads zero there. */
        CHECK(faults(beyond[2], 0) || *beyond[2] == 0);

        /* What is written through a shared mapping stands in the file at once, and the other way round. */
        shared_file[PAGE + i % 100] = (char)i;
        char byte = 0;
        CHECK_EQ(pread(shared_fd, &byte, 1, PAGE + i % 100), 1);
        CHECK_EQ(byte, (char)i);
        CHECK_EQ(pwrite(shared_fd, "z", 1, 5 * PAGE + i), 1);
        CHECK_EQ(shared_file[5 * PAGE + i], 'z');

        /* The break goes on from where it was, the stacks still grow. */
        CHECK(sbrk(0) >= (void *)(break_before + 32 * PAGE));
        if (i % 8 == 0) {
            char *more = sbrk(PAGE);
            CHECK(more != (void *)-1);
            memset(more, (int)i, PAGE);
        }
        if (i <= 40)
            grows[-i * 512] = (char)i;
        CHECK(deep((int)(i % 64)) > 0);

        shared->asked = i;
        while (shared->answered < i)
            guest_nap_us(200);
        CHECK_EQ(shared->page[i % PAGE], (char)i);
        CHECK_EQ(shared->sum, i * (i + 1) / 2);
    }
    for (long i = 1; i <= steps && i <= 40; i++)
        CHECK_EQ(grows[-i * 512], (char)i);
    CHECK_EQ(mprotect(closed, 8 * PAGE, PROT_READ), 0);
    shared->asked = -1;
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    uint64_t sum = guest_sum(written, 256 * PAGE) ^ guest_sum(constant, 16 * PAGE) ^ guest_sum(guarded + PAGE, PAGE) ^
                   guest_sum(closed, 8 * PAGE) ^ guest_sum(reservation + (1 << 20), 16 * PAGE) ^
                   guest_sum(huge, 8 << 20) ^ guest_sum(holed, 2 * PAGE) ^ guest_sum(moved, 64 * PAGE) ^
                   guest_sum(break_before, 32 * PAGE) ^ guest_sum(grows, 8 * PAGE) ^
                   guest_sum(shared_file, sizeof content) ^ guest_sum(gone_file, sizeof content);
    guest_line("ok mappings %016lx", (unsigned long)sum);
    return 0;
}
