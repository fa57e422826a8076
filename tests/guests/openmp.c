/* OpenMP: parallel loops, reductions, sections and tasks, with the pool of threads waiting in between. */
#include "guest.h"
#include <omp.h>

enum { LENGTH = 200000 };

static uint64_t values[LENGTH];

static long fibonacci(int n)
{
    long a, b;
    if (n < 2)
        return n;
#pragma omp task shared(a) if (n > 10)
    a = fibonacci(n - 1);
#pragma omp task shared(b) if (n > 10)
    b = fibonacci(n - 2);
#pragma omp taskwait
    return a + b;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    uint64_t total = 0;
    omp_set_num_threads(4);
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        uint64_t sum = 0, again = 0;
        int members = 0;
        long number = 0;
#pragma omp parallel for schedule(dynamic, 1000)
        for (long k = 0; k < LENGTH; k++) {
            uint64_t state = (uint64_t)(k + i * 7919 + 1);
            values[k] = guest_random(&state);
        }
#pragma omp parallel for reduction(+ : sum)
        for (long k = 0; k < LENGTH; k++)
            sum += values[k];
#pragma omp parallel
        {
#pragma omp atomic
            members++;
#pragma omp barrier
#pragma omp single
            number = fibonacci(18);
        }
        for (long k = 0; k < LENGTH; k++)
            again += values[k];
        CHECK(sum == again);
        CHECK_EQ(members, 4);
        CHECK_EQ(number, 2584);
        total ^= sum;
    }
    guest_line("ok openmp %016lx", (unsigned long)total);
    return 0;
}
