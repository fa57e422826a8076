/* System V shared memory: keyed and private, shared by processes, read-only, removed, unattached, in two places. */
#include "guest.h"
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>

enum { LEN = 3 * 4096 + 100, WORDS = LEN / 8 };

/* A segment with a key that nobody has: ftok of different files may give the same. */
static int keyed(key_t *key)
{
    for (int project = 1; project < 256; project++) {
        *key = ftok(".", project);
        CHECK(*key != -1);
        int id = shmget(*key, LEN, IPC_CREAT | IPC_EXCL | 0640);
        if (id >= 0)
            return id;
        CHECK_EQ(errno, EEXIST);
    }
    CHECK(!"no free key");
    return -1;
}

static struct shmid_ds status(int id)
{
    struct shmid_ds status;
    CHECK_EQ(shmctl(id, IPC_STAT, &status), 0);
    return status;
}

static uint64_t *attach(int id, const void *at, int flags)
{
    uint64_t *memory = shmat(id, at, flags);
    CHECK(memory != (void *)-1);
    return memory;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    key_t key;
    int named = keyed(&key), private = shmget(IPC_PRIVATE, LEN, 0600), removed = shmget(IPC_PRIVATE, LEN, 0600);
    int alone = shmget(IPC_PRIVATE, LEN, 0600), child_only = shmget(IPC_PRIVATE, LEN, 0600);
    CHECK(private >= 0 && removed >= 0 && alone >= 0 && child_only >= 0);
    fprintf(stderr, "key %d\n", key);
    CHECK(named != private && private != removed);

    /* SHM_RND rounds an address down to a page. */
    char *place = mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(place != MAP_FAILED);
    CHECK_EQ(munmap(place, 1 << 20), 0);
    uint64_t *rounded = attach(named, place + 8192 + 77, SHM_RND);
    CHECK(rounded == (uint64_t *)(place + 8192));
    uint64_t *reader = attach(named, NULL, SHM_RDONLY);
    uint64_t *shared = attach(private, NULL, 0), *gone = attach(removed, NULL, 0);
    CHECK_EQ(shmctl(removed, IPC_RMID, NULL), 0);
    CHECK(status(removed).shm_perm.mode & SHM_DEST);
    /* What a part of an attachment was made, it stays. */
    CHECK_EQ(mprotect(shared + 512, 4096, PROT_READ), 0);
    uint64_t *written = attach(alone, NULL, 0);
    for (int i = 0; i < WORDS; i++)
        written[i] = (uint64_t)i * 7;
    CHECK_EQ(shmdt(written), 0);

    int to[2], from[2];
    CHECK(pipe(to) == 0 && pipe(from) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(close(to[1]) == 0 && close(from[0]) == 0);
        uint64_t *own = attach(child_only, NULL, 0);
        long i;
        while (read(to[0], &i, sizeof i) == sizeof i) {
            CHECK_EQ(rounded[i % WORDS], i + 1);
            shared[i % 512] += (uint64_t)i;
            gone[0] += 1;
            if (i > 0)
                CHECK_EQ(own[(i - 1) % WORDS], i - 1);
            own[i % WORDS] = (uint64_t)i;
            CHECK_EQ(write(from[1], &i, sizeof i), sizeof i);
        }
        CHECK_EQ(shmdt(own), 0);
        _exit(0);
    }
    CHECK(close(to[0]) == 0 && close(from[1]) == 0);

    uint64_t sum[512] = {0};
    for (long i = 0; i < steps; i++) {
        guest_step(i + 1);
        rounded[i % WORDS] = (uint64_t)i + 1;
        CHECK_EQ(reader[i % WORDS], i + 1);
        CHECK_EQ(write(to[1], &i, sizeof i), sizeof i);
        long answer;
        CHECK_EQ(read(from[0], &answer, sizeof answer), sizeof answer);
        sum[i % 512] += (uint64_t)i;
        CHECK_EQ(shared[i % 512], sum[i % 512]);
        CHECK_EQ(gone[0], i + 1);

        /* The ids, and the key, lead where they led. */
        CHECK_EQ(shmget(key, 0, 0), named);
        CHECK_EQ(shmget(key, LEN, IPC_CREAT | 0640), named);
        CHECK(shmget(key, LEN, IPC_CREAT | IPC_EXCL | 0640) == -1 && errno == EEXIST);
        CHECK(shmget(key, 10 * LEN, 0) == -1 && errno == EINVAL);
        struct shmid_ds found = status(named);
        CHECK_EQ(found.shm_segsz, LEN);
        CHECK_EQ(found.shm_nattch, 4);
        CHECK_EQ(found.shm_perm.mode & 0777, 0640);
        CHECK_EQ(found.shm_perm.__key, key);
        CHECK_EQ(found.shm_perm.uid, geteuid());
        CHECK(status(removed).shm_perm.mode & SHM_DEST);
        CHECK_EQ(status(removed).shm_nattch, 2);
        CHECK_EQ(status(alone).shm_nattch, 0);
        CHECK_EQ(status(child_only).shm_nattch, 1);

        uint64_t *again = attach(alone, NULL, SHM_RDONLY);
        CHECK_EQ(again[i % WORDS], i % WORDS * 7);
        CHECK_EQ(mprotect(again, 4096, PROT_READ | PROT_WRITE), -1);
        CHECK_EQ(shmdt(again), 0);
        CHECK_EQ(mprotect(reader, 4096, PROT_READ | PROT_WRITE), -1);
        /* Detached and attached where it was. */
        CHECK_EQ(shmdt(rounded), 0);
        CHECK_EQ(status(named).shm_nattch, 3);
        CHECK(attach(named, place + 8192 + 11, SHM_RND) == rounded);
        /* A new one is none of the old. */
        int new = shmget(IPC_PRIVATE, 4096, 0600);
        CHECK(new >= 0 && new != named && new != private && new != removed && new != alone && new != child_only);
        uint64_t *fresh = attach(new, NULL, 0);
        CHECK_EQ(fresh[0], 0);
        CHECK_EQ(shmctl(new, IPC_RMID, NULL), 0);
        CHECK_EQ(shmdt(fresh), 0);
        CHECK(shmctl(new, IPC_STAT, &found) == -1 && (errno == EINVAL || errno == EIDRM));
    }
    CHECK_EQ(close(to[1]), 0);
    int end = 0;
    CHECK_EQ(waitpid(child, &end, 0), child);
    CHECK_EQ(end, 0);
    uint64_t total = 0;
    for (int i = 0; i < 512; i++)
        total += shared[i];
    CHECK_EQ(mprotect(shared + 512, 4096, PROT_READ | PROT_WRITE), 0);
    shared[513] = 1;
    CHECK(shmdt(shared) == 0 && shmdt(rounded) == 0 && shmdt(reader) == 0 && shmdt(gone) == 0);
    struct shmid_ds found;
    CHECK(shmctl(removed, IPC_STAT, &found) == -1 && (errno == EINVAL || errno == EIDRM));
    CHECK(shmctl(named, IPC_RMID, NULL) == 0 && shmctl(private, IPC_RMID, NULL) == 0);
    CHECK(shmctl(alone, IPC_RMID, NULL) == 0 && shmctl(child_only, IPC_RMID, NULL) == 0);
    CHECK(shmget(key, 0, 0) == -1 && errno == ENOENT);
    guest_line("ok shm %llu", (unsigned long long)total);
    return 0;
}
