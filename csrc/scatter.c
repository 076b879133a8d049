/* scatter.c - new values written to their places in many tensors, in one call: what an engine of inference stands still for.
 *
 * Places and values lie one after the other, tensor by tensor, so they are read in a stream; what costs is the first touch of each line of a
 * target. Places are known ahead, so lines are asked for some writes before they are needed. */
#include "err.h"

enum { AHEAD = 24 }; /* writes; a line is there after about as many as fit into the delay of memory */

#define SCATTER(bits)                                                                                                  \
    static void scatter_##bits(uint##bits##_t *restrict to, const int64_t *restrict place,                             \
                               const uint##bits##_t *restrict value, uint64_t n)                                       \
    {                                                                                                                  \
        uint64_t i = 0;                                                                                                \
        for (; i + AHEAD < n; i++) {                                                                                   \
            __builtin_prefetch(&to[place[i + AHEAD]], 1);                                                              \
            to[place[i]] = value[i];                                                                                   \
        }                                                                                                              \
        for (; i < n; i++)                                                                                             \
            to[place[i]] = value[i];                                                                                   \
    }

SCATTER(8)
SCATTER(16)
SCATTER(32)

/* Ascending, each once, all within. */
static int places_fit(const int64_t *place, uint64_t count, uint64_t elements)
{
    if (count == 0)
        return 1;
    if (place[0] < 0 || (uint64_t)place[count - 1] >= elements)
        return 0;
    int fit = 1;
    for (uint64_t i = 1; i < count; i++)
        fit &= place[i - 1] < place[i];
    return fit;
}

pccl_err pccl_scatter_check(const pccl_scatter *parts, uint64_t count, uint64_t *bad_p)
{
    for (uint64_t i = 0; i < count; i++) {
        const pccl_scatter *part = &parts[i];
        *bad_p = i;
        if (part->width != 1 && part->width != 2 && part->width != 4) {
            err_set("elements have 1, 2 or 4 bytes, not %u", part->width);
            return PCCL_EINVAL;
        }
        if (part->count > 0 && (part->to % part->width != 0 || part->values % part->width != 0 || part->places % 8 != 0)) {
            err_set("memory is not aligned to its elements");
            return PCCL_EINVAL;
        }
        if (!places_fit((const int64_t *)(uintptr_t)part->places, part->count, part->elements)) {
            err_set("places must ascend, each once, below %llu", (unsigned long long)part->elements);
            return PCCL_EINVAL;
        }
    }
    return PCCL_OK;
}

void pccl_scatter_run(const pccl_scatter *parts, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        const pccl_scatter *part = &parts[i];
        void *to = (void *)(uintptr_t)part->to;
        const int64_t *places = (const int64_t *)(uintptr_t)part->places;
        const void *values = (const void *)(uintptr_t)part->values;
        if (part->width == 1)
            scatter_8(to, places, values, part->count);
        else if (part->width == 2)
            scatter_16(to, places, values, part->count);
        else
            scatter_32(to, places, values, part->count);
    }
}
