/* describe.c - descriptions in words, and the kernels as the border shows them. */
#include <stdio.h>
#include <string.h>

#include "codec.h"
#include "crc32c.h"
#include "engine.h"
#include "err.h"
#include "reduce.h"
#include "sha256.h"

static const char *kind_name(uint8_t kind)
{
    static const char *const names[] = {"?", "all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all",
                                        "send/recv", "barrier"};
    return kind < PCCL_KIND_COUNT ? names[kind] : "?";
}

int pccl_desc_text(uint64_t packed, char *text, int cap)
{
    struct desc d;
    if (desc_unpack(packed, &d) != PCCL_OK)
        return snprintf(text, (size_t)cap, "?");
    if (d.kind == PCCL_BARRIER)
        return snprintf(text, (size_t)cap, "barrier");
    int reduces = d.kind == PCCL_ALL_REDUCE || d.kind == PCCL_REDUCE_SCATTER;
    const char *algorithm = d.algorithm == PCCL_ALGORITHM_RING ? " (ring)"
                            : d.algorithm == PCCL_ALGORITHM_ONE_ROUND ? " (one round)" : "";
    return snprintf(text, (size_t)cap, "%s%s%s %s x %llu%s%s%s", kind_name(d.kind), reduces ? " " : "",
                    reduces ? redop_name((pccl_redop)d.redop) : "", dtype_name((pccl_dtype)d.dtype),
                    (unsigned long long)d.count, algorithm, d.codec ? " as " : "", d.codec ? codec_name((pccl_codec)d.codec) : "");
}

pccl_err pccl_desc_read(uint64_t packed, pccl_op_desc *fields)
{
    struct desc d;
    if (desc_unpack(packed, &d) != PCCL_OK)
        return PCCL_EPROTO;
    *fields = (pccl_op_desc){
        .kind = d.kind, .dtype = d.dtype, .redop = d.redop, .algorithm = d.algorithm, .codec = d.codec,
        .count = d.count, .bytes = d.count * dtype_bytes((pccl_dtype)d.dtype),
    };
    return PCCL_OK;
}

const char *pccl_kernels(void)
{
    return reduce_isa();
}

pccl_err pccl_reduce(const char *isa, int dtype, int redop, void *dst, const void *const *srcs, uint32_t src_count,
                     uint64_t count, uint32_t divisor)
{
    if (dtype < 0 || dtype >= PCCL_DTYPE_COUNT || redop < 0 || redop >= PCCL_REDOP_COUNT || src_count == 0) {
        err_set("unknown dtype or op, or no sources");
        return PCCL_EINVAL;
    }
    reduce_fn *kernel = isa ? reduce_kernel_isa(isa, (pccl_dtype)dtype, (pccl_redop)redop)
                            : reduce_kernel((pccl_dtype)dtype, (pccl_redop)redop);
    if (!kernel) {
        err_set("no such kernel: %s %s on %s", redop_name((pccl_redop)redop), dtype_name((pccl_dtype)dtype),
                isa ? isa : "this machine");
        return PCCL_EINVAL;
    }
    kernel(dst, srcs, src_count, count, divisor);
    return PCCL_OK;
}

uint32_t pccl_crc32c(uint32_t crc, const void *data, uint64_t bytes)
{
    return crc32c(crc, data, bytes);
}

void pccl_hmac_sha256(const uint8_t *key, uint64_t key_bytes, const uint8_t *data, uint64_t bytes, uint8_t mac[32])
{
    hmac_sha256(key, key_bytes, data, bytes, mac);
}
