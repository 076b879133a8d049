/* fetch_sums.c - digests of the parts of a fetch, taken of each segment as it comes, while the cache has it.
 *
 * All runs are of whole parts, so a position in their concatenation says which part it is in and where. Segments begin and end at multiples
 * of 8 bytes of a part, because parts and segments are such; in which order they come does not matter (digests.h). */
#include <string.h>

#include "engine.h"

void sums_begin(struct part_sums *s, const pccl_fetch_request *request, uint64_t *memory)
{
    *s = (struct part_sums){.part_bytes = request->part_bytes, .count = request->part_count, .sums = memory,
                            .seeds = memory + request->part_count, .digests = request->digests};
    if (s->count)
        memcpy(s->seeds, request->seeds, s->count * sizeof *s->seeds);
}

void sums_add(const struct part_sums *s, uint64_t position, const uint8_t *at, uint32_t bytes)
{
    while (s->count && bytes) {
        uint64_t into = position % s->part_bytes, left = s->part_bytes - into;
        uint32_t n = left < bytes ? (uint32_t)left : bytes;
        s->sums[position / s->part_bytes] += digest_add(at, n, into);
        position += n;
        at += n;
        bytes -= n;
    }
}

void sums_end(const struct part_sums *s)
{
    for (uint32_t i = 0; i < s->count; i++)
        s->digests[i] = digest_end(s->sums[i], s->part_bytes, s->seeds[i]);
}
