/* Counts, and carries a checksum from each step to the next: memory and the place in the program survive. */
#include "guest.h"

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    uint64_t state = 88172645463325252u;
    for (long i = 1; i <= steps; i++) {
        guest_pace(i, NULL);
        guest_line("step %ld %016lx", i, (unsigned long)guest_random(&state));
    }
    guest_line("ok counter %016lx", (unsigned long)state);
    return argc > 2 ? atoi(argv[2]) : 0;
}
