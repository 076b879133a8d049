/* sha256.c - SHA-256 and HMAC, straight from FIPS 180-4 and RFC 2104.
 *
 * The handshake hashes a few hundred bytes per stream, so nothing here is tuned. Words on the wire are big-endian. */
#include "sha256.h"

#include <string.h>

enum { BLOCK_BYTES = 64, DIGEST_BYTES = 32, LENGTH_AT = BLOCK_BYTES - 8 };

static const uint32_t round_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate_right(uint32_t x, unsigned bits)
{
    return (x >> bits) | (x << (32 - bits));
}

static uint32_t load_word(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | (uint32_t)p[3];
}

static void store_word(uint8_t *p, uint32_t word)
{
    for (unsigned i = 0; i < 4; i++)
        p[i] = (uint8_t)(word >> (24 - 8 * i));
}

static void expand_block(const uint8_t *block, uint32_t w[64])
{
    for (size_t i = 0; i < 16; i++)
        w[i] = load_word(block + 4 * i);
    for (size_t i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        uint32_t low = rotate_right(a, 7) ^ rotate_right(a, 18) ^ (a >> 3);
        uint32_t high = rotate_right(b, 17) ^ rotate_right(b, 19) ^ (b >> 10);
        w[i] = w[i - 16] + low + w[i - 7] + high;
    }
}

static void compress(uint32_t state[8], const uint8_t *block)
{
    uint32_t w[64];
    expand_block(block, w);
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (size_t i = 0; i < 64; i++) {
        uint32_t sum_e = rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25);
        uint32_t choice = (e & f) ^ (~e & g);
        uint32_t t = h + sum_e + choice + round_constants[i] + w[i];
        uint32_t sum_a = rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22);
        uint32_t majority = (a & b) ^ (a & c) ^ (b & c);
        h = g, g = f, f = e, e = d + t;
        d = c, c = b, b = a, a = t + sum_a + majority;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

void sha256_init(struct sha256 *s)
{
    static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(s->state, initial, sizeof initial);
    s->bytes = 0;
}

void sha256_update(struct sha256 *s, const void *data, size_t bytes)
{
    const uint8_t *p = data;
    while (bytes > 0) {
        size_t held = (size_t)(s->bytes % BLOCK_BYTES);
        size_t taken = BLOCK_BYTES - held < bytes ? BLOCK_BYTES - held : bytes;
        memcpy(s->block + held, p, taken);
        s->bytes += taken;
        p += taken;
        bytes -= taken;
        if (held + taken == BLOCK_BYTES)
            compress(s->state, s->block);
    }
}

void sha256_final(struct sha256 *s, uint8_t digest[32])
{
    static const uint8_t padding[BLOCK_BYTES] = {0x80};
    uint64_t bits = s->bytes * 8;
    size_t held = (size_t)(s->bytes % BLOCK_BYTES);
    sha256_update(s, padding, (held < LENGTH_AT ? LENGTH_AT : LENGTH_AT + BLOCK_BYTES) - held);
    uint8_t length[8];
    store_word(length, (uint32_t)(bits >> 32));
    store_word(length + 4, (uint32_t)bits);
    sha256_update(s, length, sizeof length);
    for (size_t i = 0; i < 8; i++)
        store_word(digest + 4 * i, s->state[i]);
}

/* Hash of (key xor pad) followed by the data: one of the two layers of an HMAC. */
static void keyed_hash(const uint8_t key[BLOCK_BYTES], uint8_t pad, const void *data, size_t bytes, uint8_t digest[32])
{
    uint8_t masked[BLOCK_BYTES];
    for (size_t i = 0; i < BLOCK_BYTES; i++)
        masked[i] = key[i] ^ pad;
    struct sha256 s;
    sha256_init(&s);
    sha256_update(&s, masked, sizeof masked);
    sha256_update(&s, data, bytes);
    sha256_final(&s, digest);
}

void hmac_sha256(const uint8_t *key, size_t key_bytes, const void *data, size_t bytes, uint8_t mac[32])
{
    uint8_t block_key[BLOCK_BYTES] = {0};
    if (key_bytes > BLOCK_BYTES) {
        struct sha256 s;
        sha256_init(&s);
        sha256_update(&s, key, key_bytes);
        sha256_final(&s, block_key);
    } else if (key_bytes > 0) {
        memcpy(block_key, key, key_bytes);
    }
    uint8_t inner[DIGEST_BYTES];
    keyed_hash(block_key, 0x36, data, bytes, inner);
    keyed_hash(block_key, 0x5c, inner, sizeof inner, mac);
}

int bytes_equal(const uint8_t *a, const uint8_t *b, size_t bytes)
{
    volatile uint8_t difference = 0;
    for (size_t i = 0; i < bytes; i++)
        difference = (uint8_t)(difference | (a[i] ^ b[i]));
    return difference == 0;
}
