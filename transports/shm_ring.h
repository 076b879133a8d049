/* shm_ring.h - one direction of bytes between two processes through memory they share: a ring, one writer, one reader.
 *
 * Each side keeps its own position for itself and only publishes it; of the shared words it reads the other side's
 * position and flag alone, and a position that cannot be true is an error (-EPROTO), so that whatever the other process
 * writes there, nothing outside the ring is touched. What lies in the ring is as trustworthy as a network.
 *
 * Sleeping: a side that is about to sleep says so (shm_ring_sleep), and then looks once more. A side that has moved
 * bytes asks whether the other sleeps (shm_ring_must_wake). Both are sequentially consistent: one of the two notices.
 * A sleeping writer is only woken when a quarter of the ring is free, a sleeping reader at once. */
#ifndef PCCL_SHM_RING_H
#define PCCL_SHM_RING_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/uio.h>

enum {
    SHM_RING_LINE = 128,               /* two cache lines: processors fetch them in pairs */
    SHM_RING_PIECE_BYTES = 128 << 10   /* most bytes of one call, so that the other side can begin with them */
};

/* As it lies in shared memory; all zero at first. */
struct shm_ring_shared {
    alignas(SHM_RING_LINE) _Atomic uint64_t written;   /* bytes since the beginning */
    alignas(SHM_RING_LINE) _Atomic uint64_t read;
    alignas(SHM_RING_LINE) _Atomic uint32_t reader_sleeps;
    alignas(SHM_RING_LINE) _Atomic uint32_t writer_sleeps;
};

/* One side's view. */
struct shm_ring {
    int is_writer;
    uint64_t size;                     /* a power of two */
    uint64_t position;                 /* own; what the shared word says is never read back */
    uint8_t *data;
    _Atomic uint64_t *own, *theirs;
    _Atomic uint32_t *own_sleep, *their_sleep;
};

/* Borrows both for as long as the view is used. */
void shm_ring_init(struct shm_ring *r, struct shm_ring_shared *shared, void *data, uint64_t size, int is_writer);
/* Writes or reads, as the view does. > 0 bytes moved; -EAGAIN: full, or empty; -EPROTO: the other side's position is
 * a lie. */
ssize_t shm_ring_move(struct shm_ring *r, const struct iovec *iov, int iov_count);
/* Is there something to read; is enough free to be worth a write? True also if a call would give -EPROTO. */
int shm_ring_ready(const struct shm_ring *r);
/* Bytes that wait in the ring; 0 if the other side lies. */
uint64_t shm_ring_used(const struct shm_ring *r);
void shm_ring_sleep(struct shm_ring *r, int sleeps);
/* After bytes were moved: 1 if the other side sleeps and must be woken by the caller; it is asked only once. */
int shm_ring_must_wake(struct shm_ring *r);

#endif
