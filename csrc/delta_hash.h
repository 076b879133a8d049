/* delta_hash.h - xxh3-128 of a state, taken tile by tile beside all else that is done with one, so that memory is read once. Only states of
 * PCCL_DELTA_HASH_FROM bytes or more: shorter ones xxh3 treats otherwise. Compiled once per instruction set, which brings
 *   hash_stripes  adds so many stripes of 64 bytes to the sums, the key beginning at a byte of the secret and going on by 8 with each
 *   hash_scramble what is done to the sums after each 16 stripes */

enum { HASH_STRIPE = 64, HASH_STRIPES = 16, HASH_BLOCK = HASH_STRIPE * HASH_STRIPES };

/* The sums before anything is added. */
static const uint64_t hash_begin[8] = {0xc2b2ae3d,         0x9e3779b185ebca87, 0xc2b2ae3d27d4eb4f, 0x165667b19e3779f9,
                                       0x85ebca77c2b2ae63, 0x85ebca77,         0x27d4eb2f165667c5, 0x9e3779b1};

/* All blocks of the hash within `bytes` that begin at byte `from`, a multiple of HASH_BLOCK, but for the last of `total`. */
ISA_INLINE void hash_tile(uint64_t sums[8], const uint8_t *at, size_t from, size_t bytes, size_t total)
{
    for (size_t i = 0; i < bytes && from + i + HASH_BLOCK < total; i += HASH_BLOCK) {
        hash_stripes(sums, at + i, hash_secret, HASH_STRIPES);
        hash_scramble(sums, hash_secret + sizeof hash_secret - HASH_STRIPE);
    }
}

ISA_INLINE uint64_t hash_fold(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

ISA_INLINE uint64_t hash_merge(const uint64_t sums[8], const uint8_t *secret, uint64_t x)
{
    for (unsigned i = 0; i < 8; i += 2)
        x += hash_fold(sums[i] ^ bits_load(secret + 8 * i), sums[i + 1] ^ bits_load(secret + 8 * i + 8));
    x = (x ^ x >> 37) * 0x165667919e3779f9u;
    return x ^ x >> 32;
}

/* `end`: behind the last byte; what hash_tile has left, and the last HASH_STRIPE bytes, are before it. The hash is big-endian. */
ISA_INLINE void hash_finish(uint64_t sums[8], const uint8_t *end, size_t total, uint8_t hash[PCCL_DELTA_HASH_BYTES])
{
    size_t left = total - (total - 1) / HASH_BLOCK * HASH_BLOCK;
    hash_stripes(sums, end - left, hash_secret, (left - 1) / HASH_STRIPE);
    hash_stripes(sums, end - HASH_STRIPE, hash_secret + sizeof hash_secret - HASH_STRIPE - 7, 1);
    uint64_t low = hash_merge(sums, hash_secret + 11, total * hash_begin[1]);
    uint64_t high = hash_merge(sums, hash_secret + sizeof hash_secret - HASH_STRIPE - 11, ~(total * hash_begin[2]));
    bits_store(hash, __builtin_bswap64(high));
    bits_store(hash + 8, __builtin_bswap64(low));
}
