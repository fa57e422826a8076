#include "crc.h"

static uint32_t tables[8][256];

static void prepare(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t sum = byte;
        for (int bit = 0; bit < 8; bit++)
            sum = sum & 1 ? sum >> 1 ^ 0xedb88320u : sum >> 1;
        tables[0][byte] = sum;
    }
    for (int byte = 0; byte < 256; byte++)
        for (int i = 1; i < 8; i++)
            tables[i][byte] = tables[i - 1][byte] >> 8 ^ tables[0][tables[i - 1][byte] & 255];
}

uint32_t crc32_of(uint32_t sum, const void *data, size_t len)
{
    const unsigned char *at = data;
    if (tables[0][1] == 0)
        prepare();
    sum = ~sum;
    for (; len >= 8; len -= 8, at += 8) {
        uint32_t low = sum ^ (at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24);
        sum = tables[7][low & 255] ^ tables[6][low >> 8 & 255] ^ tables[5][low >> 16 & 255] ^ tables[4][low >> 24] ^
              tables[3][at[4]] ^ tables[2][at[5]] ^ tables[1][at[6]] ^ tables[0][at[7]];
    }
    while (len-- > 0)
        sum = sum >> 8 ^ tables[0][(sum ^ *at++) & 255];
    return ~sum;
}
