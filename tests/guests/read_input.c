/* Reads its standard input record by record, and knows each. */
#include "guest.h"

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    for (long i = 1; i <= steps; i++) {
        char found[17] = {0}, wanted[32];
        snprintf(wanted, sizeof wanted, "record %8ld\n", i);
        CHECK_EQ(read(STDIN_FILENO, found, 16), 16);
        CHECK(strcmp(found, wanted) == 0);
        guest_step(i);
    }
    char byte;
    CHECK_EQ(read(STDIN_FILENO, &byte, 1), 0);
    guest_line("ok read_input");
    return 0;
}
