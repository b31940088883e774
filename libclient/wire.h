/* Packs protobuf fields straight into a buffer, for the messages of hot paths. The caller has checked that they fit. */
#pragma once

#include <stdint.h>
#include <string.h>

static inline uint8_t *wire_varint(uint8_t *p, uint64_t x)
{
        for (; x >= 0x80; x >>= 7)
                *p++ = (uint8_t)(x | 0x80);
        *p++ = (uint8_t)x;
        return p;
}

/* A field of type uint32, uint64 or bool; zero is not sent. */
static inline uint8_t *wire_uint(uint8_t *p, uint32_t field, uint64_t x)
{
        return x ? wire_varint(wire_varint(p, (uint64_t)field << 3), x) : p;
}

/* Starts a bytes field; its n bytes are to follow. */
static inline uint8_t *wire_open(uint8_t *p, uint32_t field, size_t n)
{
        return wire_varint(wire_varint(p, (uint64_t)field << 3 | 2), n);
}

static inline uint8_t *wire_bytes(uint8_t *p, uint32_t field, const void *bytes, size_t n)
{
        if (!n)
                return p;
        p = wire_open(p, field, n);
        memcpy(p, bytes, n);
        return p + n;
}
