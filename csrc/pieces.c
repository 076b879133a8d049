/* pieces.c - many small copies in one call: what packs a list of tensors into one, and writes the results back. */
#include <string.h>

#include "include/pccl.h"

void pccl_copy_pieces(const uintptr_t *to, const uintptr_t *from, const uint64_t *bytes, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (bytes[i])
            memcpy((void *)to[i], (const void *)from[i], bytes[i]);
}
