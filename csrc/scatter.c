/* scatter.c - new values written to their places in many tensors, in one call: what an engine of inference stands still for.
 *
 * Places and values lie one after the other, tensor by tensor, so they are read in a stream; what costs is the first touch of each line of a
 * target. Places are known ahead, so lines are asked for some writes before they are needed. */
#include "err.h"

enum { AHEAD = 24 }; /* writes; a line is there after about as many as fit into the delay of memory */

#define SCATTER(place_type, places, bits)                                                                              \
    static void scatter_##places##_##bits(uint##bits##_t *restrict to, const place_type *restrict place,               \
                                          const uint##bits##_t *restrict value, uint64_t n)                            \
    {                                                                                                                  \
        uint64_t i = 0;                                                                                                \
        for (; i + AHEAD < n; i++) {                                                                                   \
            __builtin_prefetch(&to[place[i + AHEAD]], 1);                                                              \
            to[place[i]] = value[i];                                                                                   \
        }                                                                                                              \
        for (; i < n; i++)                                                                                             \
            to[place[i]] = value[i];                                                                                   \
    }

SCATTER(int64_t, 64, 8)
SCATTER(int64_t, 64, 16)
SCATTER(int64_t, 64, 32)
SCATTER(uint32_t, 32, 8)
SCATTER(uint32_t, 32, 16)
SCATTER(uint32_t, 32, 32)

/* Ascending, each once, all within. Negative ones are beyond all. */
#define PLACES_FIT(place_type, places)                                                                                 \
    static int places_fit_##places(const place_type *place, uint64_t count, uint64_t elements)                         \
    {                                                                                                                  \
        if (count == 0)                                                                                                \
            return 1;                                                                                                  \
        int fit = (uint64_t)place[0] < elements && (uint64_t)place[count - 1] < elements;                              \
        for (uint64_t i = 1; i < count; i++)                                                                           \
            fit &= place[i - 1] < place[i];                                                                            \
        return fit;                                                                                                    \
    }

PLACES_FIT(int64_t, 64)
PLACES_FIT(uint32_t, 32)

static int places_fit(const pccl_scatter *part)
{
    const void *places = (const void *)(uintptr_t)part->places;
    return part->place_width == 8 ? places_fit_64(places, part->count, part->elements) : places_fit_32(places, part->count, part->elements);
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
        if (part->place_width != 4 && part->place_width != 8) {
            err_set("places have 4 or 8 bytes, not %u", part->place_width);
            return PCCL_EINVAL;
        }
        if (part->count > 0 && (part->to % part->width != 0 || part->values % part->width != 0 || part->places % part->place_width != 0)) {
            err_set("memory is not aligned to its elements");
            return PCCL_EINVAL;
        }
        if (!places_fit(part)) {
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
        const void *places = (const void *)(uintptr_t)part->places, *values = (const void *)(uintptr_t)part->values;
        int is_wide = part->place_width == 8;
        if (part->width == 1)
            (is_wide ? scatter_64_8(to, places, values, part->count) : scatter_32_8(to, places, values, part->count));
        else if (part->width == 2)
            (is_wide ? scatter_64_16(to, places, values, part->count) : scatter_32_16(to, places, values, part->count));
        else
            (is_wide ? scatter_64_32(to, places, values, part->count) : scatter_32_32(to, places, values, part->count));
    }
}
