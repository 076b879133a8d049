/* digests.h - the digest of a piece (digests.c), also bit by bit, for whoever sees its bytes come in any order. */
#ifndef PCCL_DIGESTS_H
#define PCCL_DIGESTS_H

#include <stddef.h>
#include <stdint.h>

/* Of a piece of at most so many bytes the digest is digest_end of the sum of what its parts add. */
enum { DIGEST_STRETCH_BYTES = 1 << 24 };

/* What the bytes from byte `from` of the piece on add; from, and where they end unless that is the end of the piece: multiples of 8. */
uint64_t digest_add(const uint8_t *at, size_t bytes, uint64_t from);
uint64_t digest_end(uint64_t sum, uint64_t bytes, uint64_t seed);

#endif
