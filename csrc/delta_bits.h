/* delta_bits.h - strings of bits, the lowest of a byte first. A writer may write 8 bytes past what it has filled; a reader
 * may look 8 bytes past its end, where there are zeros. */
#ifndef PCCL_DELTA_BITS_H
#define PCCL_DELTA_BITS_H

#include <stdint.h>
#include <string.h>

/* Most bits that one put or peek moves. */
enum { BITS_AT_ONCE = 56, BITS_SLACK_BYTES = 16 };

static inline uint64_t bits_mask(unsigned count)
{
    return count < 64 ? ((uint64_t)1 << count) - 1 : ~(uint64_t)0;
}

/* x > 0: the place of its highest bit. */
static inline unsigned bits_log2(uint64_t x)
{
    return 63u - (unsigned)__builtin_clzll(x);
}

static inline uint64_t bits_load(const uint8_t *p)
{
    uint64_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline void bits_store(uint8_t *p, uint64_t x)
{
    memcpy(p, &x, sizeof x);
}

struct bit_writer {
    uint8_t *at;    /* whole bytes end here */
    uint64_t rest;  /* bits that follow, */
    unsigned count; /* 0 to 7 of them */
};

/* value < 2^count, count <= BITS_AT_ONCE */
static inline void bits_put(struct bit_writer *w, uint64_t value, unsigned count)
{
    w->rest |= value << w->count;
    w->count += count;
    bits_store(w->at, w->rest);
    w->at += w->count >> 3;
    w->rest >>= w->count & 56;
    w->count &= 7;
}

static inline void bits_put_unary(struct bit_writer *w, uint64_t zeros)
{
    for (; zeros >= BITS_AT_ONCE; zeros -= BITS_AT_ONCE)
        bits_put(w, 0, BITS_AT_ONCE);
    bits_put(w, (uint64_t)1 << zeros, (unsigned)zeros + 1);
}

/* A number below 2^31: how many bits it has, in 5, then all but the highest. */
static inline void bits_put_number(struct bit_writer *w, uint32_t x)
{
    unsigned length = x > 0 ? bits_log2(x) + 1 : 0;
    bits_put(w, length, 5);
    if (length > 1)
        bits_put(w, x & bits_mask(length - 1), length - 1);
}

/* x in exponential Golomb code of order g: with v = (x >> g) + 1, log2 v zeros and a one, then v without its highest bit, then
 * the g low bits of x. */
static inline void bits_put_golomb(struct bit_writer *w, uint32_t x, unsigned g)
{
    uint64_t v = ((uint64_t)x >> g) + 1;
    unsigned length = bits_log2(v);
    bits_put_unary(w, length);
    bits_put(w, v & bits_mask(length), length);
    bits_put(w, x & bits_mask(g), g);
}

static inline uint8_t *bits_end(struct bit_writer *w)
{
    return w->at + (w->count > 0);
}

struct bit_reader {
    const uint8_t *bytes;
    uint64_t at, end; /* in bits; at > end: the string was too short */
};

/* The bits from a place on, at least BITS_AT_ONCE of them. */
static inline uint64_t bits_peek(const struct bit_reader *r, uint64_t at)
{
    return bits_load(r->bytes + (at >> 3)) >> (at & 7);
}

static inline uint64_t bits_get(struct bit_reader *r, unsigned count)
{
    if (r->at > r->end || count > r->end - r->at) {
        r->at = r->end + 1;
        return 0;
    }
    uint64_t value = bits_peek(r, r->at) & bits_mask(count);
    r->at += count;
    return value;
}

static inline int bits_are_good(const struct bit_reader *r)
{
    return r->at <= r->end;
}

static inline uint32_t bits_get_number(struct bit_reader *r)
{
    unsigned length = (unsigned)bits_get(r, 5);
    if (length < 2)
        return length;
    return (uint32_t)(bits_get(r, length - 1) | (uint64_t)1 << (length - 1));
}

/* May be any number where the bytes are hostile. */
static inline uint64_t bits_get_golomb(struct bit_reader *r, unsigned g)
{
    uint64_t window = bits_peek(r, r->at) & bits_mask(BITS_AT_ONCE);
    unsigned length = window ? (unsigned)__builtin_ctzll(window) : BITS_AT_ONCE;
    if (length > 32) {
        r->at = r->end + 1;
        return 0;
    }
    r->at += length + 1;
    if (!bits_are_good(r))
        return 0;
    uint64_t v = bits_get(r, length) | (uint64_t)1 << length;
    return (v - 1) << g | bits_get(r, g);
}

#endif
