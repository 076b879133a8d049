/* crc32c.h - the checksum of every frame (Castagnoli, reflected, as in iSCSI: crc32c("123456789") = 0xE3069283). */
#ifndef PCCL_CRC32C_H
#define PCCL_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Continues `crc` (0 to begin) over the bytes. Picks the fastest way this machine has, once. */
uint32_t crc32c(uint32_t crc, const void *data, size_t bytes);
/* The same by a named way ("table", "sse42", "pclmul", "vpclmul", "arm"), for tests; *ok_p 0 if this machine lacks it. */
uint32_t crc32c_by(const char *way, uint32_t crc, const void *data, size_t bytes, int *ok_p);

#endif
