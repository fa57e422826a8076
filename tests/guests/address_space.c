/* Takes almost all of the address space: whoever restores it finds no place of its own that was agreed upon. */
#include "guest.h"
#include <sys/mman.h>

enum { MOST = 4096, PAGES = 64 };

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    static char *taken[MOST];
    static size_t lens[MOST];
    int count = 0;
    /* What malloc and stdio need later. */
    char *spare = mmap(NULL, 64 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(spare != MAP_FAILED);
    for (size_t len = (size_t)1 << 46; len >= (size_t)1 << 28; len /= 2)
        while (count < MOST) {
            char *at = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (at == MAP_FAILED)
                break;
            taken[count] = at;
            lens[count++] = len;
        }
    CHECK(count > 0 && count < MOST);
    CHECK_EQ(munmap(spare, 64 << 20), 0);
    /* Something to keep in the middle of some of them. */
    for (int i = 0; i < count && i < PAGES; i++) {
        char *page = taken[i] + lens[i] / 2;
        CHECK_EQ(mprotect(page, 4096, PROT_READ | PROT_WRITE), 0);
        memset(page, i + 1, 4096);
    }
    for (long step = 1; step <= steps; step++) {
        guest_step(step);
        for (int i = 0; i < count && i < PAGES; i++) {
            const char *page = taken[i] + lens[i] / 2;
            for (int k = 0; k < 4096; k++)
                CHECK_EQ(page[k], i + 1);
        }
    }
    guest_line("ok address_space");
    return 0;
}
