/* Contexts for asynchronous requests (io_setup): requests under way all the time, events that were not read, rings of several pages
 * that go round, notices by an eventfd, a thread that waits; by system calls, and by libaio where there is one. */
#include "guest.h"
#include <dlfcn.h>
#include <linux/aio_abi.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { BLOCK = 4096, MANY = 16, LEFT = 3, LARGE = 700 };

/* What the kernel has at the start of a ring. */
struct ring {
    unsigned id, slots, head, tail, magic, features[2], header;
    struct io_event events[];
};

static int (*setup)(int, aio_context_t *);
static int (*submit)(aio_context_t, long, struct iocb **);
static int (*get)(aio_context_t, long, long, struct io_event *, struct timespec *);
static int (*destroy)(aio_context_t);

static int own_setup(int n, aio_context_t *context)
{
    return syscall(SYS_io_setup, n, context) < 0 ? -errno : 0;
}

static int own_submit(aio_context_t context, long n, struct iocb **list)
{
    long made = syscall(SYS_io_submit, context, n, list);
    return made < 0 ? -errno : (int)made;
}

static int own_get(aio_context_t context, long least, long most, struct io_event *events, struct timespec *timeout)
{
    long got = syscall(SYS_io_getevents, context, least, most, events, timeout);
    return got < 0 ? -errno : (int)got;
}

static int own_destroy(aio_context_t context)
{
    return syscall(SYS_io_destroy, context) < 0 ? -errno : 0;
}

static int open_direct(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0600);
    if (fd < 0)
        fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0);
    return fd;
}

static void *blocks(int count)
{
    void *memory = NULL;
    CHECK_EQ(posix_memalign(&memory, BLOCK, (size_t)count * BLOCK), 0);
    return memory;
}

static struct iocb request(int operation, int fd, void *block, long at, long data)
{
    struct iocb made = {0};
    made.aio_lio_opcode = (unsigned short)operation;
    made.aio_fildes = (unsigned)fd;
    made.aio_buf = (uintptr_t)block;
    made.aio_nbytes = BLOCK;
    made.aio_offset = at * BLOCK;
    made.aio_data = (unsigned long)data;
    return made;
}

static atomic_int stop;
static atomic_long rounds;

/* Has requests under way all the time: writes many blocks, reads them back, syncs. */
static void *load(void *unused)
{
    int fd = open_direct("load");
    aio_context_t context = 0;
    CHECK_EQ(setup(MANY, &context), 0);
    char *memory = blocks(2 * MANY);
    struct iocb all[MANY], *list[MANY];
    struct io_event events[MANY];
    for (long round = 0; !stop; round++) {
        for (int pass = 0; pass < 2; pass++) {
            for (int i = 0; i < MANY; i++) {
                if (pass == 0)
                    memset(memory + i * BLOCK, (int)(round + i), BLOCK);
                all[i] = request(pass ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE, fd, memory + (pass * MANY + i) * BLOCK, i, i);
                list[i] = &all[i];
            }
            for (int made = 0; made < MANY;) {
                int more = submit(context, MANY - made, list + made);
                CHECK(more > 0);
                made += more;
            }
            char seen[MANY] = {0};
            for (int got = 0; got < MANY;) {
                int more = get(context, 1, MANY, events, NULL);
                CHECK(more >= 1 && more <= MANY - got);
                for (int i = 0; i < more; i++) {
                    CHECK_EQ(events[i].res, BLOCK);
                    CHECK(events[i].data < MANY && !seen[events[i].data]);
                    CHECK_EQ(events[i].obj, (uintptr_t)&all[events[i].data]);
                    seen[events[i].data] = 1;
                }
                got += more;
            }
        }
        CHECK_EQ(memcmp(memory, memory + MANY * BLOCK, MANY * BLOCK), 0);
        rounds++;
    }
    CHECK_EQ(destroy(context), 0);
    CHECK_EQ(close(fd), 0);
    return unused;
}

static aio_context_t waited;
static atomic_long told;

/* Waits for events, one at a time. */
static void *wait_for_events(void *unused)
{
    struct io_event event;
    for (;; told++) {
        struct timespec long_time = {1000, 0};
        CHECK_EQ(get(waited, 1, 1, &event, told % 2 ? &long_time : NULL), 1);
        CHECK_EQ(event.data, told);
    }
    return unused;
}

static void *find(const char *name)
{
    void *found = dlsym(RTLD_DEFAULT, name);
    CHECK(found != NULL);
    return found;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    setup = own_setup, submit = own_submit, get = own_get, destroy = own_destroy;
    if (argc > 2 && strcmp(argv[2], "libaio") == 0 && dlopen("libaio.so.1", RTLD_NOW | RTLD_GLOBAL) != NULL) {
        setup = (int (*)(int, aio_context_t *))find("io_setup");
        submit = (int (*)(aio_context_t, long, struct iocb **))find("io_submit");
        get = (int (*)(aio_context_t, long, long, struct io_event *, struct timespec *))find("io_getevents");
        destroy = (int (*)(aio_context_t))find("io_destroy");
    }
    pthread_t loader, waiter;
    CHECK_EQ(pthread_create(&loader, NULL, load, NULL), 0);

    aio_context_t small = 0, large = 0;
    CHECK_EQ(setup(1, &small), 0);
    CHECK_EQ(setup(LARGE, &large), 0);
    CHECK_EQ(setup(4, &waited), 0);
    CHECK_EQ(setup(0, &waited), -EINVAL);
    CHECK_EQ(submit(1, 0, NULL), -EINVAL);
    CHECK_EQ(pthread_create(&waiter, NULL, wait_for_events, NULL), 0);
    int fd = open_direct("small"), null = open("/dev/null", O_RDWR), note = eventfd(0, EFD_NONBLOCK);
    CHECK(null >= 0 && note >= 0);
    char *memory = blocks(2);
    struct ring *ring = (struct ring *)large;
    CHECK_EQ(ring->magic, 0xa10a10a1);
    unsigned slots = ring->slots;
    CHECK(slots > LARGE);

    /* A forked child has the memory of its parent's contexts, but not them; and one of its own in the same place. */
    int ask[2], tell[2];
    CHECK(pipe(ask) == 0 && pipe(tell) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK_EQ(close(ask[1]), 0);
        aio_context_t own = 0;
        CHECK_EQ(setup(5, &own), 0);
        char byte;
        for (long i = 0; read(ask[0], &byte, 1) == 1; i++) {
            struct io_event event;
            CHECK_EQ(get(large, 0, 1, &event, NULL), -EINVAL);
            struct iocb one = request(IOCB_CMD_PWRITE, null, memory, 0, i), *list = &one;
            CHECK_EQ(submit(own, 1, &list), 1);
            CHECK_EQ(get(own, 1, 1, &event, NULL), 1);
            CHECK_EQ(event.data, i);
            CHECK_EQ(write(tell[1], "", 1), 1);
        }
        _exit(0);
    }
    CHECK_EQ(close(ask[0]), 0);

    struct iocb all[LEFT], *list[LEFT];
    struct io_event events[LARGE];
    long made = 0, taken = 0, passed = 0;
    for (long i = 0; i < steps; i++) {
        char byte;
        CHECK_EQ(write(ask[1], "", 1), 1);
        CHECK_EQ(read(tell[0], &byte, 1), 1);

        /* Some hundred events that were not read stay there from step to step, and go round in the ring. */
        for (int k = 0; k < 20; k++) {
            for (int j = 0; j < LEFT; j++) {
                all[j] = request(IOCB_CMD_PWRITE, null, memory, 0, made + j);
                list[j] = &all[j];
            }
            CHECK_EQ(submit(large, LEFT, list), LEFT);
            made += LEFT;
        }
        CHECK_EQ(ring->tail, made % slots);
        CHECK_EQ(ring->head, taken % slots);
        guest_step(i + 1);
        CHECK_EQ(ring->tail, made % slots);
        CHECK_EQ(ring->head, taken % slots);
        if (made - taken > 400) {
            /* Some by the kernel, some as qemu does it. */
            int got = get(large, 50, 50, events, NULL);
            CHECK_EQ(got, 50);
            for (int k = 0; k < got; k++)
                CHECK_EQ(events[k].data, taken + k);
            taken += got;
            for (int k = 0; k < 25; k++, taken++) {
                struct io_event *event = &ring->events[ring->head];
                CHECK_EQ(event->data, taken);
                CHECK_EQ(event->res, BLOCK);
                CHECK_EQ(event->obj, (uintptr_t)&all[taken % LEFT]);
                ring->head = (ring->head + 1) % slots;
            }
        }

        /* A block of a file, with a notice. */
        memset(memory, (int)i, BLOCK);
        all[0] = request(i % 3 == 1 ? IOCB_CMD_FDSYNC : IOCB_CMD_PWRITE, fd, memory, i, i);
        if (i % 3 == 1)
            all[0].aio_buf = 0, all[0].aio_nbytes = 0, all[0].aio_offset = 0;
        all[0].aio_flags = IOCB_FLAG_RESFD;
        all[0].aio_resfd = (unsigned)note;
        list[0] = &all[0];
        CHECK_EQ(submit(small, 1, list), 1);
        guest_pace(i + 1, NULL);
        CHECK_EQ(get(small, 1, 4, events, NULL), 1);
        CHECK_EQ(events[0].res, i % 3 == 1 ? 0 : BLOCK);
        CHECK_EQ(events[0].data, i);
        uint64_t count = 0;
        for (int patience = 0; read(note, &count, sizeof count) != sizeof count; patience++) {
            CHECK(errno == EAGAIN && patience < 1000);
            guest_nap_us(1000);
        }
        CHECK_EQ(count, 1);
        if (i % 3 != 1) {
            CHECK_EQ(pread(fd, memory + BLOCK, BLOCK, i * BLOCK), BLOCK);
            CHECK_EQ(memcmp(memory, memory + BLOCK, BLOCK), 0);
        }
        struct timespec none = {0, 0}, soon = {0, 2000000};
        CHECK_EQ(get(small, 1, 4, events, &none), 0);
        CHECK_EQ(get(small, 1, 4, events, &soon), 0);

        /* Another context comes to the place of the last. */
        aio_context_t brief = 0;
        CHECK_EQ(setup(3, &brief), 0);
        all[0] = request(IOCB_CMD_PWRITE, null, memory, 0, 7);
        CHECK_EQ(submit(brief, 1, list), 1);
        if (i % 2)
            CHECK_EQ(get(brief, 1, 1, events, NULL), 1);
        CHECK_EQ(destroy(brief), 0);

        all[0] = request(IOCB_CMD_PWRITE, null, memory, 0, passed);
        CHECK_EQ(submit(waited, 1, list), 1);
        passed++;
        for (int patience = 0; told < passed; patience++) {
            CHECK(patience < 20000);
            guest_nap_us(1000);
        }
    }
    stop = 1;
    CHECK_EQ(pthread_join(loader, NULL), 0);
    CHECK(rounds > 0);
    CHECK_EQ(close(ask[1]), 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    CHECK_EQ(destroy(small), 0);
    CHECK_EQ(destroy(large), 0);
    CHECK_EQ(destroy(large), -EINVAL);
    guest_line("ok aio");
    return 0;
}
