/* Fills memory with random numbers that no compression makes smaller, and tells at the end whether they are all there.
 * `random_memory STEPS MEGABYTES` */
#include "guest.h"
#include <sys/mman.h>

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    size_t words = (size_t)(argc > 2 ? atol(argv[2]) : 16) << 17;
    uint64_t *memory = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    uint64_t state = 0x123456789abcdefu, sum = 0, again = 0;
    for (size_t i = 0; i < words; i++)
        sum = sum * 31 + (memory[i] = guest_random(&state));
    for (long i = 1; i <= steps; i++)
        guest_step(i);
    for (size_t i = 0; i < words; i++)
        again = again * 31 + memory[i];
    CHECK(sum == again);
    guest_line("ok random_memory %016lx", (unsigned long)again);
    return 0;
}
