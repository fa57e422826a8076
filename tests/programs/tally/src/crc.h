#ifndef CRC_H
#define CRC_H
#include <stddef.h>
#include <stdint.h>
uint32_t crc32_of(uint32_t sum, const void *data, size_t len);
#endif
