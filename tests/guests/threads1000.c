/* 1,000 threads in mutexes, condition variables, barriers and semaphores, recursive and error-checking mutexes held. */
#include "guest.h"
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

enum { MUTEX = 200, TOKEN = 200, BARRIER = 100, SEMAPHORE = 200, RECURSIVE = 150, CHECKED = 150, GROUP = 10 };
enum { THREADS = MUTEX + TOKEN + BARRIER + SEMAPHORE + RECURSIVE + CHECKED };

static atomic_int stop;
static atomic_long ready;

/* A counter that two members raise under the lock must never lose a step. */
static struct {
    pthread_mutex_t lock;
    long count, check;
} mutexes[MUTEX / GROUP];
static atomic_long raised[MUTEX / GROUP];

static struct {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    int turn;
    long rounds;
} tokens[TOKEN / GROUP];

static struct {
    pthread_barrier_t barrier;
    long round[GROUP];
    int ended;
} barriers[BARRIER / GROUP];

static struct {
    sem_t ping, pong;
    long balls;
} semaphores[SEMAPHORE / 2];

static void *in_mutex(void *argument)
{
    long me = (long)argument;
    ready++;
    while (!stop) {
        CHECK_EQ(pthread_mutex_lock(&mutexes[me / GROUP].lock), 0);
        mutexes[me / GROUP].count++;
        if (me % GROUP == 0)
            guest_nap_us(20000);
        mutexes[me / GROUP].check++;
        CHECK(mutexes[me / GROUP].count == mutexes[me / GROUP].check);
        CHECK_EQ(pthread_mutex_unlock(&mutexes[me / GROUP].lock), 0);
        raised[me / GROUP]++;
        guest_nap_us(20000);
    }
    return NULL;
}

static void *in_token(void *argument)
{
    long me = (long)argument % GROUP, group = (long)argument / GROUP;
    ready++;
    CHECK_EQ(pthread_mutex_lock(&tokens[group].lock), 0);
    while (!stop) {
        while (tokens[group].turn != me && !stop)
            CHECK_EQ(pthread_cond_wait(&tokens[group].moved, &tokens[group].lock), 0);
        if (stop)
            break;
        tokens[group].rounds += me == 0;
        CHECK_EQ(pthread_mutex_unlock(&tokens[group].lock), 0);
        guest_nap_us(5000);
        CHECK_EQ(pthread_mutex_lock(&tokens[group].lock), 0);
        CHECK_EQ(tokens[group].turn, me);
        tokens[group].turn = (int)((me + 1) % GROUP);
        CHECK_EQ(pthread_cond_broadcast(&tokens[group].moved), 0);
    }
    CHECK_EQ(pthread_cond_broadcast(&tokens[group].moved), 0);
    CHECK_EQ(pthread_mutex_unlock(&tokens[group].lock), 0);
    return NULL;
}

static void *in_barrier(void *argument)
{
    long me = (long)argument % GROUP, group = (long)argument / GROUP;
    ready++;
    for (long round = 1;; round++) {
        barriers[group].round[me] = round;
        if (me == 0)
            guest_nap_us(20000);
        int serial = pthread_barrier_wait(&barriers[group].barrier);
        CHECK(serial == 0 || serial == PTHREAD_BARRIER_SERIAL_THREAD);
        for (int i = 0; i < GROUP; i++)
            CHECK_EQ(barriers[group].round[i], round);
        if (serial != 0)
            barriers[group].ended = stop;
        pthread_barrier_wait(&barriers[group].barrier);
        if (barriers[group].ended)
            return NULL;
    }
}

static void *in_semaphore(void *argument)
{
    long me = (long)argument % 2, pair = (long)argument / 2;
    ready++;
    for (;;) {
        CHECK_EQ(sem_wait(me ? &semaphores[pair].pong : &semaphores[pair].ping), 0);
        int ended = stop;
        semaphores[pair].balls++;
        if (me == 0 && !ended)
            guest_nap_us(20000);
        CHECK_EQ(sem_post(me ? &semaphores[pair].ping : &semaphores[pair].pong), 0);
        if (ended)
            return NULL;
    }
}

/* Held nearly all the time, so that every checkpoint finds most of them held. */
static void *with_recursive(void *argument)
{
    pthread_mutex_t own;
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&own, &attributes);
    ready++;
    while (!stop) {
        for (int depth = 0; depth < 3; depth++)
            CHECK_EQ(pthread_mutex_lock(&own), 0);
        guest_nap_us(30000 + 100 * ((long)argument % 50));
        CHECK_EQ(pthread_mutex_trylock(&own), 0);
        for (int depth = 0; depth < 4; depth++)
            CHECK_EQ(pthread_mutex_unlock(&own), 0);
        CHECK_EQ(pthread_mutex_unlock(&own), EPERM);
    }
    CHECK_EQ(pthread_mutex_destroy(&own), 0);
    return NULL;
}

static pthread_mutex_t shared_checked[CHECKED / 2];

static void *with_checked(void *argument)
{
    long me = (long)argument;
    pthread_mutex_t *lock = &shared_checked[me / 2];
    ready++;
    while (!stop) {
        CHECK_EQ(pthread_mutex_lock(lock), 0);
        guest_nap_us(30000 + 100 * (me % 50));
        CHECK_EQ(pthread_mutex_lock(lock), EDEADLK);
        CHECK_EQ(pthread_mutex_unlock(lock), 0);
        int foreign = pthread_mutex_unlock(lock);
        CHECK(foreign == EPERM);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    pthread_mutexattr_t checked, recursive;
    pthread_mutexattr_init(&checked);
    pthread_mutexattr_settype(&checked, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    for (int i = 0; i < MUTEX / GROUP; i++)
        pthread_mutex_init(&mutexes[i].lock, NULL);
    for (int i = 0; i < TOKEN / GROUP; i++) {
        pthread_mutex_init(&tokens[i].lock, NULL);
        pthread_cond_init(&tokens[i].moved, NULL);
    }
    for (int i = 0; i < BARRIER / GROUP; i++)
        pthread_barrier_init(&barriers[i].barrier, NULL, GROUP);
    for (int i = 0; i < SEMAPHORE / 2; i++) {
        sem_init(&semaphores[i].ping, 0, 1);
        sem_init(&semaphores[i].pong, 0, 0);
    }
    for (int i = 0; i < CHECKED / 2; i++)
        pthread_mutex_init(&shared_checked[i], &checked);

    static const struct {
        void *(*run)(void *);
        long count;
    } kinds[] = {{in_mutex, MUTEX},         {in_token, TOKEN},           {in_barrier, BARRIER},
                 {in_semaphore, SEMAPHORE}, {with_recursive, RECURSIVE}, {with_checked, CHECKED}};
    static pthread_t threads[THREADS];
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    CHECK_EQ(pthread_attr_setstacksize(&attributes, 128 * 1024), 0);
    long started = 0;
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++)
        for (long i = 0; i < kinds[kind].count; i++)
            CHECK_EQ(pthread_create(&threads[started++], &attributes, kinds[kind].run, (void *)i), 0);
    while (ready < THREADS)
        guest_nap_us(1000);

    /* The main thread holds one of each from the first step to the last. */
    pthread_mutex_t main_checked, main_recursive;
    pthread_mutex_init(&main_checked, &checked);
    pthread_mutex_init(&main_recursive, &recursive);
    CHECK_EQ(pthread_mutex_lock(&main_checked), 0);
    CHECK_EQ(pthread_mutex_lock(&main_recursive), 0);
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        CHECK_EQ(pthread_mutex_lock(&main_checked), EDEADLK);
        CHECK_EQ(pthread_mutex_lock(&main_recursive), 0);
        CHECK_EQ(pthread_mutex_unlock(&main_recursive), 0);
    }
    CHECK_EQ(pthread_mutex_unlock(&main_checked), 0);
    CHECK_EQ(pthread_mutex_unlock(&main_recursive), 0);
    CHECK_EQ(pthread_mutex_unlock(&main_recursive), EPERM);

    stop = 1;
    for (int i = 0; i < TOKEN / GROUP; i++) {
        pthread_mutex_lock(&tokens[i].lock);
        pthread_cond_broadcast(&tokens[i].moved);
        pthread_mutex_unlock(&tokens[i].lock);
    }
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    for (int i = 0; i < MUTEX / GROUP; i++)
        CHECK(mutexes[i].count == raised[i] && mutexes[i].count > 0);
    guest_line("ok threads1000");
    return 0;
}
