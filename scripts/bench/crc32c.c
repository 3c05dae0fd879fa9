#include "wire.h"

#if defined(__x86_64__)

__attribute__((target("sse4.2"))) uint32_t crc32c(uint32_t crc, const void *data, size_t length)
{
    const uint8_t *at = data;
    uint64_t sum = ~crc;
    for (; length >= 8; at += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        sum = __builtin_ia32_crc32di(sum, word);
    }
    uint32_t rest = (uint32_t)sum;
    for (; length; at++, length--)
        rest = __builtin_ia32_crc32qi(rest, *at);
    return ~rest;
}

#else

uint32_t crc32c(uint32_t crc, const void *data, size_t length)
{
    static uint32_t table[256];
    const uint8_t *at = data;
    if (!table[1])
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; bit++)
                value = value >> 1 ^ (value & 1 ? 0x82F63B78u : 0);
            table[i] = value;
        }
    crc = ~crc;
    for (; length; at++, length--)
        crc = crc >> 8 ^ table[(crc ^ *at) & 0xFF];
    return ~crc;
}

#endif
