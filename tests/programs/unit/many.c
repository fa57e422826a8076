/* Many functions out of one macro: enough to keep the optimizer busy for seconds. */
#include <stdint.h>

#define FUNCTION(n)                                                                      \
    static uint64_t mix##n(uint64_t *values, int count, uint64_t seed)                   \
    {                                                                                    \
        uint64_t sum = seed + n;                                                         \
        for (int i = 0; i < count; i++) {                                                \
            values[i] = values[i] * (2 * n + 1) + (sum >> (n % 31 + 1));                 \
            for (int k = 0; k < n % 7 + 2; k++)                                          \
                sum ^= (values[(i + k) % count] << (k + 1)) | (sum >> (63 - k));         \
            if (sum % (n + 3) == 1)                                                      \
                sum += values[i] / (n + 2);                                              \
        }                                                                                \
        return sum;                                                                      \
    }

#define TEN(f, n) f(n##0) f(n##1) f(n##2) f(n##3) f(n##4) f(n##5) f(n##6) f(n##7) f(n##8) f(n##9)
#define HUNDRED(f, n) TEN(f, n##0) TEN(f, n##1) TEN(f, n##2) TEN(f, n##3) TEN(f, n##4) TEN(f, n##5) TEN(f, n##6) TEN(f, n##7)
#define ALL(f) HUNDRED(f, 1) HUNDRED(f, 2) HUNDRED(f, 3) HUNDRED(f, 4)

ALL(FUNCTION)

#define CALL(n) sum = mix##n(values, 64, sum);

uint64_t mix_all(uint64_t *values)
{
    uint64_t sum = 1;
    ALL(CALL)
    return sum;
}
