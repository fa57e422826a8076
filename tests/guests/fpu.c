/* Threads that keep numbers in x87, SSE, AVX and AVX-512 registers alone for milliseconds, and rounding modes for good. */
#include "guest.h"
#include <fenv.h>
#include <pthread.h>
#include <stdatomic.h>

#define SPIN "mov %[spins], %%rcx\n1: dec %%rcx\njnz 1b\n"
#define SPINS ((long)3000000)

static atomic_int stop;
static atomic_long rounds;

static void in_x87(uint64_t seed)
{
    double in[8], out[8];
    for (int i = 0; i < 8; i++)
        in[i] = (double)(guest_random(&seed) >> 12);
    __asm__ volatile("fldl 0(%[in])\nfldl 8(%[in])\nfldl 16(%[in])\nfldl 24(%[in])\n"
                     "fldl 32(%[in])\nfldl 40(%[in])\nfldl 48(%[in])\nfldl 56(%[in])\n" SPIN
                     "fstpl 56(%[out])\nfstpl 48(%[out])\nfstpl 40(%[out])\nfstpl 32(%[out])\n"
                     "fstpl 24(%[out])\nfstpl 16(%[out])\nfstpl 8(%[out])\nfstpl 0(%[out])\n"
                     :
                     : [in] "r"(in), [out] "r"(out), [spins] "r"(SPINS)
                     : "rcx", "memory", "cc", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)");
    CHECK(memcmp(in, out, sizeof in) == 0);
}

#define LOW "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7"
#define MIDDLE "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#define HIGH                                                                                                   \
    "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", \
        "xmm28", "xmm29", "xmm30", "xmm31"

/* Loads or stores the sixteen low registers; `r` is the prefix of their name and `size` their length. */
#define LOAD16(move, r, size)                                                                                       \
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n" move " \\n*" size "(%[in]), %%" r "\\n\n.endr\n"
#define STORE16(move, r, size)                                                                                      \
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n" move " %%" r "\\n, \\n*" size "(%[out])\n.endr\n"

static void in_sse(uint64_t seed)
{
    uint64_t in[16 * 2], out[16 * 2];
    for (int i = 0; i < 32; i++)
        in[i] = guest_random(&seed);
    __asm__ volatile(LOAD16("movups", "xmm", "16") SPIN STORE16("movups", "xmm", "16")
                     :
                     : [in] "r"(in), [out] "r"(out), [spins] "r"(SPINS)
                     : "rcx", "memory", "cc", LOW, MIDDLE);
    CHECK(memcmp(in, out, sizeof in) == 0);
}

__attribute__((target("avx"))) static void in_avx(uint64_t seed)
{
    uint64_t in[16 * 4], out[16 * 4];
    for (int i = 0; i < 64; i++)
        in[i] = guest_random(&seed);
    __asm__ volatile(LOAD16("vmovups", "ymm", "32") SPIN STORE16("vmovups", "ymm", "32") "vzeroupper\n"
                     :
                     : [in] "r"(in), [out] "r"(out), [spins] "r"(SPINS)
                     : "rcx", "memory", "cc", LOW, MIDDLE);
    CHECK(memcmp(in, out, sizeof in) == 0);
}

__attribute__((target("avx512f,avx512bw"))) static void in_avx512(uint64_t seed)
{
    uint64_t in[32 * 8 + 8], out[32 * 8 + 8];
    for (int i = 0; i < 32 * 8 + 8; i++)
        in[i] = guest_random(&seed);
    out[32 * 8] = in[32 * 8];
    __asm__ volatile(LOAD16("vmovups", "zmm", "64")
                     ".irp n,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\nvmovups \\n*64(%[in]), %%zmm\\n\n.endr\n"
                     ".irp n,1,2,3,4,5,6,7\nkmovq 2048+\\n*8(%[in]), %%k\\n\n.endr\n" SPIN
                     ".irp n,1,2,3,4,5,6,7\nkmovq %%k\\n, 2048+\\n*8(%[out])\n.endr\n"
                     ".irp n,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\nvmovups %%zmm\\n, \\n*64(%[out])\n.endr\n"
                     STORE16("vmovups", "zmm", "64") "vzeroupper\n"
                     :
                     : [in] "r"(in), [out] "r"(out), [spins] "r"(SPINS)
                     : "rcx", "memory", "cc", LOW, MIDDLE, HIGH, "k1", "k2", "k3", "k4", "k5", "k6", "k7");
    CHECK(memcmp(in, out, sizeof in) == 0);
}

/* Each thread has a rounding mode of its own, for x87 and SSE. */
static void *work(void *argument)
{
    static const int modes[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    int mode = modes[(long)argument % 4];
    uint64_t seed = (uint64_t)(long)argument + 77;
    CHECK_EQ(fesetround(mode), 0);
    volatile double one = 1, three = 3;
    volatile long double long_one = 1, long_three = 3;
    double third = one / three;
    long double long_third = long_one / long_three;
    while (!stop) {
        uint64_t next = guest_random(&seed);
        in_x87(next);
        in_sse(next);
        if (__builtin_cpu_supports("avx"))
            in_avx(next);
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
            in_avx512(next);
        CHECK_EQ(fegetround(), mode);
        CHECK(one / three == third);
        CHECK(long_one / long_three == long_third);
        rounds++;
        guest_nap_us(500);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    pthread_t threads[4];
    double sum = 0;
    for (long i = 0; i < 4; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, work, (void *)i), 0);
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        sum += 1.0 / (double)i;
    }
    stop = 1;
    for (int i = 0; i < 4; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    CHECK(rounds > 0);
    guest_line("ok fpu %.17g", sum);
    return 0;
}
