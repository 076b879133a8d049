/* link_meter.c - passive measurement: bandwidth, loss and round-trip time of a link, from its real traffic.
 *
 * Bandwidth is what was written during a time in which every stream was full and more was waiting: then the writes
 * keep the pace of the network. Shorter times than METER_SHORTEST_NS say more about socket buffers than about the link and do not
 * count; the buffers' first filling is not counted either, because the clock starts when they are full. */
#include "engine.h"

#define METER_SHORTEST_NS (50 * MILLISECOND)
#define METER_LONGEST_NS (200 * MILLISECOND)

static void take_sample(struct link *l)
{
    struct meter *m = &l->meter;
    uint64_t elapsed_ns = l->engine->now_ns - m->busy_since_ns;
    if (elapsed_ns < METER_SHORTEST_NS)
        return;
    uint64_t sample = (uint64_t)((unsigned __int128)(l->sent_bytes - m->busy_bytes) * 1000000000U / elapsed_ns);
    m->bytes_per_s = m->bytes_per_s ? (3 * m->bytes_per_s + sample) / 4 : sample;
}

void meter_sent(struct link *l, int saturated)
{
    struct meter *m = &l->meter;
    uint64_t now_ns = l->engine->now_ns;
    if (m->busy_since_ns && (!saturated || now_ns - m->busy_since_ns >= METER_LONGEST_NS)) {
        take_sample(l);
        m->busy_since_ns = 0;
    }
    if (saturated && !m->busy_since_ns) {
        m->busy_since_ns = now_ns;
        m->busy_bytes = l->sent_bytes;
    }
}

void meter_ask(struct link *l)
{
    uint64_t packets = 0, again = 0;
    uint32_t rtt_us = 0;
    for (uint32_t i = 0; i < l->streams; i++) {
        struct stream_info info;
        if (!l->conns[i] || l->conns[i]->state != CONN_OPEN)
            continue;
        l->engine->ops->info(l->conns[i]->stream, &info);
        packets += info.packets;
        again += info.packets_again;
        if (info.rtt_us && (!rtt_us || info.rtt_us < rtt_us))
            rtt_us = (uint32_t)info.rtt_us;
    }
    if (rtt_us)
        l->rtt_us = rtt_us;
    struct meter *m = &l->meter;
    /* Streams come and go, and their counters with them: then this round tells nothing. */
    if (packets > m->packets + 100 && again >= m->packets_again)
        m->loss_ppm = (uint32_t)((again - m->packets_again) * 1000000U / (packets - m->packets));
    m->packets = packets;
    m->packets_again = again;
}
