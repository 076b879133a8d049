/* paced.h - the simulator's transport as one whose streams can be paced, for C tests of what a link that is held keeps on its way.
 *
 * Of node 0 only. It remembers the last pace, the most that was on the way of all streams of a link, and how often streams were asked about
 * themselves, and tells `rtt_now_us`. */
#ifndef PCCL_PACED_H
#define PCCL_PACED_H

#include "../../csrc/engine.h"
#include "cluster.h"

static struct transport_ops paced;
static const struct transport_ops *unpaced;
static uint64_t last_pace, most_held, asked, rtt_now_us;

static void remember_pace(struct stream *s, uint64_t bytes_per_s)
{
    (void)s;
    last_pace = bytes_per_s;
}

static void tell_info(const struct stream *s, struct stream_info *info)
{
    unpaced->info(s, info);
    asked++;
    info->rtt_now_us = rtt_now_us;
}

static ssize_t watch_writev(struct stream *s, const struct iovec *iov, int iov_count)
{
    ssize_t bytes = unpaced->writev(s, iov, iov_count);
    const struct conn *c = s->user;
    const struct link *l = c ? c->link : NULL;
    uint64_t held = 0;
    for (uint32_t i = 0; l && i < l->streams; i++) {
        struct stream_info info = {0};
        if (l->conns[i])
            unpaced->info(l->conns[i]->stream, &info);
        held += info.held_bytes;
    }
    most_held = held > most_held ? held : most_held;
    return bytes;
}

static inline void pace(struct cluster *c)
{
    unpaced = c->engines[0]->ops;
    paced = *unpaced;
    paced.pace = remember_pace;
    paced.info = tell_info;
    paced.writev = watch_writev;
    c->engines[0]->ops = &paced;
    last_pace = most_held = asked = rtt_now_us = 0;
}

#endif
