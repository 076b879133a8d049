/* test_shm_ring.c - the shared ring: bytes in order, hostile positions, and two threads that sleep and wake. */
#include "../../transports/shm_ring.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>

#include "test.h"

enum { SIZE = 256, GUARD = 64 };

static struct shm_ring_shared shared;
static uint8_t room[GUARD + SIZE + GUARD];
static struct shm_ring writer, reader;

static void begin(void)
{
    memset(&shared, 0, sizeof shared);
    memset(room, 0xA5, sizeof room);
    shm_ring_init(&writer, &shared, room + GUARD, SIZE, 1);
    shm_ring_init(&reader, &shared, room + GUARD, SIZE, 0);
}

static int guards_are_whole(void)
{
    for (int i = 0; i < GUARD; i++)
        if (room[i] != 0xA5 || room[GUARD + SIZE + i] != 0xA5)
            return 0;
    return 1;
}

static ssize_t put(const void *from, size_t bytes)
{
    struct iovec iov = {(void *)(uintptr_t)from, bytes};
    return shm_ring_move(&writer, &iov, 1);
}

static ssize_t get(void *to, size_t bytes)
{
    struct iovec iov = {to, bytes};
    return shm_ring_move(&reader, &iov, 1);
}

TEST(an_empty_ring_has_nothing_and_takes_all)
{
    begin();
    uint8_t bytes[2 * SIZE] = {0};
    CHECK_EQ_INT(get(bytes, 1), -EAGAIN);
    CHECK(!shm_ring_ready(&reader) && shm_ring_ready(&writer));
    CHECK_EQ_INT(put(bytes, sizeof bytes), SIZE);
    CHECK_EQ_INT(put(bytes, 1), -EAGAIN);
    CHECK(shm_ring_ready(&reader) && !shm_ring_ready(&writer));
    CHECK_EQ_INT(shm_ring_used(&writer), SIZE);
    CHECK(guards_are_whole());
}

/* Odd sizes on both sides, lists of buffers with empty ones, past the end of the ring many times. */
TEST(bytes_keep_their_order)
{
    begin();
    uint64_t random = 1;
    uint8_t next_in = 0, next_out = 0;
    for (int turn = 0; turn < 20000; turn++) {
        uint8_t from[300], to[300];
        size_t count = test_random(&random) % sizeof from, cut = count ? test_random(&random) % count : 0;
        for (size_t i = 0; i < count; i++)
            from[i] = (uint8_t)(next_in + i);
        struct iovec out[3] = {{from, cut}, {NULL, 0}, {from + cut, count - cut}};
        ssize_t moved = count ? shm_ring_move(&writer, out, 3) : 0;
        next_in = (uint8_t)(next_in + (moved > 0 ? moved : 0));
        size_t most = 1 + test_random(&random) % sizeof to;
        struct iovec in[2] = {{to, most / 3}, {to + most / 3, most - most / 3}};
        moved = shm_ring_move(&reader, in, 2);
        for (ssize_t i = 0; i < moved; i++)
            CHECK(to[i] == next_out++);
    }
    CHECK(guards_are_whole());
}

TEST(positions_may_wrap)
{
    begin();
    uint8_t bytes[SIZE] = {1, 2, 3};
    writer.position = reader.position = UINT64_MAX - 1;
    atomic_store(&shared.written, UINT64_MAX - 1);
    atomic_store(&shared.read, UINT64_MAX - 1);
    CHECK_EQ_INT(put(bytes, 3), 3);
    CHECK_EQ_INT(writer.position, 1);
    uint8_t got[3] = {0};
    CHECK_EQ_INT(get(got, 3), 3);
    CHECK_EQ_BYTES(got, bytes, 3);
}

/* A position out of range is an error that both calls and readiness show, and nothing is touched. */
TEST(lies_are_errors)
{
    const uint64_t lies[] = {SIZE + 1, UINT64_MAX, 1ull << 63, 1ull << 32};
    uint8_t bytes[2 * SIZE] = {0};
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        begin();
        atomic_store(&shared.written, lies[i]);
        CHECK_EQ_INT(get(bytes, sizeof bytes), -EPROTO);
        CHECK(shm_ring_ready(&reader));
        CHECK_EQ_INT(shm_ring_used(&reader), 0);
        CHECK_EQ_INT(shm_ring_must_wake(&reader), 0);
        begin();
        atomic_store(&shared.read, lies[i] == UINT64_MAX ? 1 : lies[i]);
        CHECK_EQ_INT(put(bytes, sizeof bytes), -EPROTO);
        CHECK(shm_ring_ready(&writer));
        CHECK(guards_are_whole());
    }
}

/* Whatever another process writes to any of the shared words, only the ring is touched. */
TEST(random_words_never_lead_outside)
{
    uint64_t random = 7;
    uint8_t bytes[2 * SIZE];
    memset(bytes, 0x5A, sizeof bytes);
    begin();
    for (int turn = 0; turn < 100000; turn++) {
        uint64_t word = test_random(&random);
        uint64_t near = (word & 1 ? reader.position : writer.position) + word % (2 * SIZE) - SIZE / 2;
        _Atomic uint64_t *target = word & 2 ? &shared.written : &shared.read;
        atomic_store(target, word & 4 ? near : word);
        atomic_store(&shared.reader_sleeps, (uint32_t)word);
        atomic_store(&shared.writer_sleeps, (uint32_t)(word >> 32));
        ssize_t moved = word & 8 ? put(bytes, sizeof bytes) : get(bytes, sizeof bytes);
        CHECK(moved == -EPROTO || moved == -EAGAIN || (moved > 0 && moved <= SIZE));
        CHECK(shm_ring_used(&reader) <= SIZE);
        shm_ring_must_wake(&writer);
        shm_ring_must_wake(&reader);
    }
    CHECK(guards_are_whole());
}

TEST(a_sleeper_is_woken_once)
{
    begin();
    uint8_t bytes[SIZE] = {0};
    CHECK_EQ_INT(shm_ring_must_wake(&writer), 0);
    shm_ring_sleep(&reader, 1);
    CHECK_EQ_INT(put(bytes, 1), 1);
    CHECK_EQ_INT(shm_ring_must_wake(&writer), 1);
    CHECK_EQ_INT(shm_ring_must_wake(&writer), 0);
    shm_ring_sleep(&reader, 1);
    shm_ring_sleep(&reader, 0);
    CHECK_EQ_INT(shm_ring_must_wake(&writer), 0);
}

TEST(a_sleeping_writer_waits_for_a_quarter)
{
    begin();
    uint8_t bytes[SIZE] = {0};
    CHECK_EQ_INT(put(bytes, SIZE), SIZE);
    shm_ring_sleep(&writer, 1);
    CHECK_EQ_INT(get(bytes, SIZE / 4 - 1), SIZE / 4 - 1);
    CHECK(!shm_ring_ready(&writer));
    CHECK_EQ_INT(shm_ring_must_wake(&reader), 0);
    CHECK_EQ_INT(get(bytes, 1), 1);
    CHECK(shm_ring_ready(&writer));
    CHECK_EQ_INT(shm_ring_must_wake(&reader), 1);
}

/* -- two threads ------------------------------------------------------------------------------------ */

enum { STREAM_BYTES = 4 << 20 };
static sem_t bell[2];                  /* [0] wakes the reader, [1] the writer */

/* Waits as a transport does: says that it sleeps, looks once more, sleeps. */
static void wait_for(struct shm_ring *r, sem_t *own_bell)
{
    shm_ring_sleep(r, 1);
    if (!shm_ring_ready(r))
        sem_wait(own_bell);
    shm_ring_sleep(r, 0);
}

static void *write_all(void *unused)
{
    uint8_t bytes[97];
    for (size_t sent = 0; sent < STREAM_BYTES;) {
        size_t count = sent % sizeof bytes + 1 < STREAM_BYTES - sent ? sent % sizeof bytes + 1 : STREAM_BYTES - sent;
        for (size_t i = 0; i < count; i++)
            bytes[i] = (uint8_t)((sent + i) * 31 >> 3);
        ssize_t moved = put(bytes, count);
        if (moved == -EAGAIN) {
            wait_for(&writer, &bell[1]);
            continue;
        }
        sent += (size_t)moved;
        if (shm_ring_must_wake(&writer))
            sem_post(&bell[0]);
    }
    return unused;
}

TEST(two_threads_lose_neither_bytes_nor_wakes)
{
    begin();
    sem_init(&bell[0], 0, 0);
    sem_init(&bell[1], 0, 0);
    pthread_t thread;
    CHECK_EQ_INT(pthread_create(&thread, NULL, write_all, NULL), 0);
    size_t got = 0, wrong = 0;
    while (got < STREAM_BYTES) {
        uint8_t bytes[200];
        ssize_t moved = get(bytes, got % sizeof bytes + 1);
        if (moved == -EAGAIN) {
            wait_for(&reader, &bell[0]);
            continue;
        }
        for (ssize_t i = 0; i < moved; i++)
            wrong += bytes[i] != (uint8_t)((got + (size_t)i) * 31 >> 3);
        got += (size_t)moved;
        if (shm_ring_must_wake(&reader))
            sem_post(&bell[1]);
    }
    pthread_join(thread, NULL);
    CHECK_EQ_INT(wrong, 0);
    CHECK_EQ_INT(got, STREAM_BYTES);
}

TEST_MAIN("shm_ring")
