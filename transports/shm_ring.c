/* shm_ring.c - the ring of shm_ring.h: positions, copies, and who sleeps. */
#include "shm_ring.h"

#include <errno.h>
#include <string.h>

void shm_ring_init(struct shm_ring *r, struct shm_ring_shared *shared, void *data, uint64_t size, int is_writer)
{
    *r = (struct shm_ring){
        .is_writer = is_writer, .size = size, .data = data,
        .own = is_writer ? &shared->written : &shared->read,
        .theirs = is_writer ? &shared->read : &shared->written,
        .own_sleep = is_writer ? &shared->writer_sleeps : &shared->reader_sleeps,
        .their_sleep = is_writer ? &shared->reader_sleeps : &shared->writer_sleeps,
    };
}

/* Bytes that wait in the ring; more than its size if the other side lies. */
static uint64_t waiting(const struct shm_ring *r)
{
    uint64_t theirs = atomic_load(r->theirs);
    return r->is_writer ? r->position - theirs : theirs - r->position;
}

/* Copies between the list and the ring, in the direction of the view; returns how many bytes of `most` the list had. */
static size_t copy(const struct shm_ring *r, const struct iovec *iov, int iov_count, size_t most)
{
    size_t done = 0;
    for (int i = 0; i < iov_count && done < most; i++) {
        uint8_t *memory = iov[i].iov_base;
        size_t left = iov[i].iov_len < most - done ? iov[i].iov_len : most - done;
        while (left > 0) {
            size_t at = (size_t)((r->position + done) & (r->size - 1));
            size_t bytes = left < r->size - at ? left : (size_t)r->size - at;
            if (r->is_writer)
                memcpy(r->data + at, memory, bytes);
            else
                memcpy(memory, r->data + at, bytes);
            memory += bytes;
            done += bytes;
            left -= bytes;
        }
    }
    return done;
}

ssize_t shm_ring_move(struct shm_ring *r, const struct iovec *iov, int iov_count)
{
    uint64_t used = waiting(r);
    if (used > r->size)
        return -EPROTO;
    uint64_t most = r->is_writer ? r->size - used : used;
    if (most == 0)
        return -EAGAIN;
    if (most > SHM_RING_PIECE_BYTES)
        most = SHM_RING_PIECE_BYTES;
    size_t bytes = copy(r, iov, iov_count, (size_t)most);
    r->position += bytes;
    atomic_store(r->own, r->position);
    return (ssize_t)bytes;
}

uint64_t shm_ring_used(const struct shm_ring *r)
{
    uint64_t used = waiting(r);
    return used <= r->size ? used : 0;
}

/* Enough is free for a sleeping writer. */
static int has_room(const struct shm_ring *r, uint64_t used)
{
    return used <= r->size - r->size / 4;
}

int shm_ring_ready(const struct shm_ring *r)
{
    uint64_t used = waiting(r);
    if (used > r->size)
        return 1;
    return r->is_writer ? has_room(r, used) : used > 0;
}

void shm_ring_sleep(struct shm_ring *r, int sleeps)
{
    atomic_store(r->own_sleep, (uint32_t)sleeps);
}

int shm_ring_must_wake(struct shm_ring *r)
{
    if (atomic_load(r->their_sleep) == 0)
        return 0;
    if (!r->is_writer && !has_room(r, waiting(r)))
        return 0;
    return atomic_exchange(r->their_sleep, 0) != 0;
}
