/* loss_meter.c - decides how many packets a path loses by itself, whatever it is given.
 *
 * More streams help against such losses, and do harm where it is they that overfill a queue: then more is lost, and by a mean of
 * all losses even more streams would be wanted. A queue that overflows loses many packets in one round trip and none in most; a path
 * that loses by chance loses about as many in each. So losses are counted by rounds, and rounds of bursts do not count, nor those
 * beside them. Where most rounds are such, that is what the path is like. */
#include "loss_meter.h"

#include <stdlib.h>

enum {
    ROUND_PACKETS = 1024,      /* of a round at least, */
    ROUNDS_MIN = 16,           /* and so many, */
    PACKETS_MIN = 40000,       /* with so many packets, until it is known: of fewer a path that loses one in 10,000 may lose none */
    BURST_LOSSES = 4,          /* more than these and so many times the median of all rounds is a burst */
    BURST_TIMES = 4
};

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint32_t usual(const uint32_t *lost, uint32_t count)
{
    uint32_t sorted[LOSS_ROUNDS];
    for (uint32_t i = 0; i < count; i++)
        sorted[i] = lost[i];
    qsort(sorted, count, sizeof *sorted, by_value);
    return sorted[count / 2];
}

/* A burst begins in one round and may end in the next. */
static int is_near_burst(const struct loss_meter *m, uint32_t round, uint64_t most)
{
    return m->lost[(round - 1) % LOSS_ROUNDS] > most || m->lost[round % LOSS_ROUNDS] > most
           || m->lost[(round + 1) % LOSS_ROUNDS] > most;
}

static void judge(struct loss_meter *m)
{
    uint32_t count = m->rounds < LOSS_ROUNDS ? m->rounds : LOSS_ROUNDS, first = m->rounds - count;
    uint64_t most = BURST_LOSSES + BURST_TIMES * (uint64_t)usual(m->lost, count), sent = 0, lost = 0;
    for (uint32_t i = first + 1; i + 1 < m->rounds; i++) { /* those that have one on either side */
        if (is_near_burst(m, i, most))
            continue;
        sent += m->sent[i % LOSS_ROUNDS];
        lost += m->lost[i % LOSS_ROUNDS];
    }
    if (count < ROUNDS_MIN || sent < PACKETS_MIN)
        return;
    m->is_known = 1;
    m->ppm = (uint32_t)(lost * 1000000U / sent);
}

void loss_count(struct loss_meter *m, uint64_t now_ns, uint64_t round_ns, uint64_t packets, uint64_t again)
{
    /* Streams come and go, and their counters with them: then this round tells nothing. */
    int counted = m->begin_ns && packets >= m->packets && again >= m->again;
    if (counted && (now_ns < m->begin_ns + round_ns || packets - m->packets < ROUND_PACKETS))
        return;
    if (counted) {
        m->sent[m->rounds % LOSS_ROUNDS] = (uint32_t)(packets - m->packets);
        m->lost[m->rounds++ % LOSS_ROUNDS] = (uint32_t)(again - m->again);
        judge(m);
    }
    m->begin_ns = now_ns;
    m->packets = packets;
    m->again = again;
}
