/* iSCSI on the wire, as far as the lean client and the bare target need it: RFC 7143 clause 11. */
#ifndef WIRE_H
#define WIRE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { BHS = 48, DIGEST = 4, SEGMENT = 256 * 1024, MAX_BURST = 16 * 1024 * 1024 - 1024 };
enum {
    NOP_OUT = 0x00, COMMAND = 0x01, LOGIN = 0x03, DATA_OUT = 0x05, LOGOUT = 0x06,
    NOP_IN = 0x20, RESPONSE = 0x21, LOGIN_RESPONSE = 0x23, DATA_IN = 0x25, LOGOUT_RESPONSE = 0x26, R2T = 0x31,
    ASYNC = 0x32,
};
enum { IMMEDIATE = 0x40, FINAL = 0x80, WITH_STATUS = 0x01 };
enum { READ_FLAGS = 0xC1, WRITE_FLAGS = 0xA1, PLAIN_FLAGS = 0x81 };
enum { TEST_UNIT_READY = 0x00, READ_10 = 0x28, WRITE_10 = 0x2A, SYNCHRONIZE_CACHE_10 = 0x35, READ_16 = 0x88,
       WRITE_16 = 0x8A };
#define NO_TAG 0xFFFFFFFFu

static inline uint32_t get32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, 4);
    return __builtin_bswap32(value);
}

static inline void put32(uint8_t *at, uint32_t value)
{
    value = __builtin_bswap32(value);
    memcpy(at, &value, 4);
}

static inline uint32_t get24(const uint8_t *at)
{
    return (uint32_t)at[0] << 16 | (uint32_t)at[1] << 8 | at[2];
}

static inline void put24(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 16);
    at[1] = (uint8_t)(value >> 8);
    at[2] = (uint8_t)value;
}

/* Peripheral addressing below 256, flat above (SAM-5 4.7.7). */
static inline void put_lun(uint8_t *header, unsigned lun)
{
    header[8] = (uint8_t)(lun < 256 ? 0 : 0x40 | lun >> 8);
    header[9] = (uint8_t)lun;
}

static inline size_t padded(size_t length)
{
    return (length + 3) & ~(size_t)3;
}

/* CRC32C over `length` more bytes; begin with 0. */
uint32_t crc32c(uint32_t crc, const void *data, size_t length);

#endif
