/* sha256.h - SHA-256 (FIPS 180-4) and HMAC (RFC 2104), for the handshake's proofs; not for bulk data. */
#ifndef PCCL_SHA256_H
#define PCCL_SHA256_H

#include <stddef.h>
#include <stdint.h>

struct sha256 {
    uint32_t state[8];
    uint64_t bytes;
    uint8_t block[64];
};

void sha256_init(struct sha256 *s);
void sha256_update(struct sha256 *s, const void *data, size_t bytes);
void sha256_final(struct sha256 *s, uint8_t digest[32]);
void hmac_sha256(const uint8_t *key, size_t key_bytes, const void *data, size_t bytes, uint8_t mac[32]);
/* Compares in time that does not depend on the contents; 1 if equal. */
int bytes_equal(const uint8_t *a, const uint8_t *b, size_t bytes);

#endif
