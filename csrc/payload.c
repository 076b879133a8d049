/* payload.c - a frame's payload where it lies: what writev and readv take of it, its checksum, and a copy. */
#include <string.h>

#include "crc32c.h"
#include "link.h"

int payload_iov(struct payload payload, uint32_t bytes, uint32_t skip, struct iovec *iov, int cap)
{
    uint32_t left = bytes - skip;
    int count = 0;
    if (payload.data) {
        iov[0] = (struct iovec){(void *)(uintptr_t)(payload.data + skip), left};
        return 1;
    }
    const struct run *run = payload.runs;
    for (; skip >= run->bytes; run++)
        skip -= (uint32_t)run->bytes;
    for (; left && count < cap; run++) {
        uint32_t n = (uint32_t)run->bytes - skip;
        iov[count++] = (struct iovec){run->at + skip, n};
        left -= n;
        skip = 0;
    }
    return count;
}

uint32_t payload_crc(struct payload payload, uint32_t bytes)
{
    if (payload.data)
        return crc32c(0, payload.data, bytes);
    uint32_t crc = 0;
    const struct run *run = payload.runs;
    for (uint32_t at = 0; at < bytes; at += (uint32_t)run++->bytes)
        crc = crc32c(crc, run->at, run->bytes);
    return crc;
}

void payload_copy(struct payload payload, uint32_t bytes, uint32_t already, uint8_t *to)
{
    if (payload.data && bytes > already)
        memcpy(to + already, payload.data + already, bytes - already);
    const struct run *run = payload.runs;
    for (uint32_t at = 0; !payload.data && at < bytes; at += (uint32_t)run++->bytes)
        memcpy(to + at, run->at, run->bytes);
}

void payload_fill(struct payload payload, uint32_t from, const uint8_t *bytes, uint32_t count)
{
    if (payload.data)
        memcpy((uint8_t *)(uintptr_t)payload.data + from, bytes, count);
    for (const struct run *run = payload.runs; !payload.data && count; from -= (uint32_t)run++->bytes) {
        if (from >= run->bytes)
            continue;
        uint32_t left = (uint32_t)run->bytes - from, n = left < count ? left : count;
        memcpy(run->at + from, bytes, n);
        bytes += n;
        count -= n;
        from += n;
    }
}
