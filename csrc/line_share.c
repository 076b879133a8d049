/* line_share.c - decides how fast a link may be that has less to send than the others on this peer's line.
 *
 * Links that share a line get about equal parts of it, whatever they have to do. Who has the least is done first, and those that are
 * left find the rest of the line slowly: a connection that is busy looks but now and then for more than it has. So a link that has
 * clearly less to send than the others is paced by its part of what waits, and the others have what it leaves from the beginning. At the
 * latest it is done when the line is.
 *
 * Only where the line is known, and where all that waits is one op's: other ops need not wait for each other. */
#include "engine.h"

enum {
    LESS_PERCENT = 80,         /* of an equal part of what waits: such a link has clearly less */
    AHEAD_PERCENT = 125        /* of its part of the line, should the line carry more than was read */
};

/* What waits on a link. 0: there are others' segments than the sender's; the first sets it. */
static int add_waiting(const struct link *l, const struct sender **sender, uint64_t *bytes)
{
    for (uint32_t i = 0; i < PCCL_PRIORITY_COUNT; i++) {
        const struct flow *first = l->queues[i].flows, *f = first;
        if (!f)
            continue;
        do {
            if (*sender && f->sender != *sender)
                return 0;
            *sender = f->sender;
            *bytes += (uint64_t)f->count * f->segments[f->head].bytes;
            f = f->next;
        } while (f != first);
    }
    return 1;
}

uint64_t line_share(const struct link *l)
{
    const struct line_meter *m = &l->engine->line;
    const struct sender *sender = NULL;
    uint64_t own = 0, all = 0, links = 0;
    if (!m->up_bytes_per_s || !line_is_long(l) || !add_waiting(l, &sender, &own) || !own)
        return UINT64_MAX;
    for (const struct link *other = l->engine->links; other; other = other->next) {
        uint64_t bytes = 0;
        if (line_is_long(other) && !add_waiting(other, &sender, &bytes))
            return UINT64_MAX;
        all += bytes;
        links += bytes > 0;
    }
    if (own * links * 100 >= all * LESS_PERCENT)
        return UINT64_MAX;
    return (uint64_t)((unsigned __int128)m->up_bytes_per_s * own * AHEAD_PERCENT / (all * 100));
}
